//! The 8-bit product against what else could do its work, on the shapes of SmolLM2-135M.
//!
//! `RAYON_NUM_THREADS=1 cargo bench -p forethought-core --bench q8 [-- WEIGHT...]`, and again with 2: candle's
//! quantised products have threads of their own, counted once a process. Every layer has its own weights, so that
//! they come from where they would in a model and not from the nearest cache. Figures are billions of operations
//! (a multiplication and an addition are two) a second, the best of several runs that take turns: other work on
//! the machine then hurts all alike.

use std::time::{Duration, Instant};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use forethought_core::model::q8::{Kernel, Q8Matrix};

/// Name, `[n, k]`.
const LAYER: [(&str, usize, usize); 7] = [
    ("q", 576, 576),
    ("k", 192, 576),
    ("v", 192, 576),
    ("o", 576, 576),
    ("gate", 1536, 576),
    ("up", 1536, 576),
    ("down", 576, 1536),
];
const HEAD: (&str, usize, usize) = ("head", 49152, 576);
const LAYERS: usize = 30;
/// Weights that share one `x`, by index into a layer.
const GROUPS: [&[usize]; 4] = [&[0, 1, 2], &[3], &[4, 5], &[6]];
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 64, 256];

/// One weight in every form.
struct Weight {
    n: usize,
    k: usize,
    dense: Vec<f32>,
    q8: Q8Matrix,
    candle: QMatMul,
}

impl Weight {
    fn new((_, n, k): (&str, usize, usize)) -> anyhow::Result<Self> {
        let dense = random(n * k);
        let tensor = Tensor::from_slice(&dense, (n, k), &Device::Cpu)?;
        Ok(Self {
            n,
            k,
            q8: Q8Matrix::quantize(&dense, n, k)?,
            candle: QMatMul::from_qtensor(QTensor::quantize(&tensor, GgmlDType::Q8_0)?)?,
            dense,
        })
    }
}

type Product<'a> = dyn Fn(&[f32], usize, &[&Weight], &mut [f32]) -> anyhow::Result<()> + 'a;

fn main() -> anyhow::Result<()> {
    // Inside the pool from the start, as a model's thread would be: entering it costs more than a small product.
    rayon::ThreadPoolBuilder::new().build()?.install(run)
}

fn run() -> anyhow::Result<()> {
    let layers: Vec<Vec<Weight>> =
        (0..LAYERS).map(|_| LAYER.into_iter().map(Weight::new).collect()).collect::<Result<_, _>>()?;
    let head = Weight::new(HEAD)?;

    let mut contenders: Vec<(String, Box<Product>)> = Vec::new();
    for kernel in Kernel::available() {
        contenders
            .push((format!("{kernel}"), Box::new(move |x, m, weights, out| q8(kernel, x, m, weights, out))));
    }
    contenders.push(("f32 gemm".into(), Box::new(dense)));
    contenders.push(("candle Q8_0".into(), Box::new(candle)));

    let threads = rayon::current_num_threads();
    println!("{threads} threads, billions of operations a second (tokens a second for the whole model)");
    print!("{:>8} {:>5}", "weight", "m");
    contenders.iter().for_each(|(name, _)| print!(" {name:>14}"));
    println!();

    let stacks: Vec<(&str, Vec<Vec<&Weight>>)> = [0, 1, 4, 6]
        .map(|i| (LAYER[i].0, layers.iter().map(|layer| vec![&layer[i]]).collect()))
        .into_iter()
        .chain([(HEAD.0, vec![vec![&head]])])
        .chain([("model", {
            let groups =
                layers.iter().flat_map(|layer| GROUPS.map(|g| g.iter().map(|&i| &layer[i]).collect()));
            groups.chain([vec![&head]]).collect()
        })])
        .collect();
    // Names on the command line choose weights; cargo adds flags of its own.
    let only: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, stack) in stacks.iter().filter(|(name, _)| only.is_empty() || only.iter().any(|o| o == name)) {
        for m in BATCHES {
            let best = race(&contenders, m, stack)?;
            let weights: usize = stack.iter().flatten().map(|w| w.n * w.k).sum();
            print!("{name:>8} {m:>5}");
            for time in best {
                let rate = (2 * weights * m) as f64 / time.as_secs_f64() / 1e9;
                let tokens = m as f64 / time.as_secs_f64();
                print!(
                    " {:>14}",
                    if *name == "model" { format!("{tokens:.0} ({rate:.0})") } else { format!("{rate:.1}") }
                );
            }
            println!();
        }
    }
    Ok(())
}

/// The best time of each contender for one pass over `stack`.
fn race(
    contenders: &[(String, Box<Product>)],
    m: usize,
    stack: &[Vec<&Weight>],
) -> anyhow::Result<Vec<Duration>> {
    let x = random(m * 1536);
    let mut out = vec![0.0; m * stack.iter().map(|g| g.iter().map(|w| w.n).sum()).max().unwrap_or(0)];
    let mut best = vec![Duration::MAX; contenders.len()];
    for _ in 0..3 {
        for ((_, product), best) in contenders.iter().zip(&mut best) {
            // Runs of one contender follow each other, so that threads it parks or spins do not meet the next.
            let started = Instant::now();
            for run in 0.. {
                let pass = Instant::now();
                for weights in stack {
                    product(&x, m, weights, &mut out)?;
                }
                // The first run warms up.
                if run > 0 {
                    *best = pass.elapsed().min(*best);
                }
                if run > 0 && started.elapsed() > Duration::from_millis(100) {
                    break;
                }
            }
        }
    }
    Ok(best)
}

fn q8(kernel: Kernel, x: &[f32], m: usize, weights: &[&Weight], mut out: &mut [f32]) -> anyhow::Result<()> {
    let mut parts = Vec::new();
    for w in weights {
        let (part, rest) = out.split_at_mut(m * w.n);
        parts.push((&w.q8, part));
        out = rest;
    }
    Ok(kernel.matmul_many(&x[..m * weights[0].k], m, &mut parts)?)
}

#[allow(unsafe_code)] // gemm's interface is pointers
fn dense(x: &[f32], m: usize, weights: &[&Weight], mut out: &mut [f32]) -> anyhow::Result<()> {
    let parallelism = match rayon::current_num_threads() {
        1 => gemm::Parallelism::None,
        threads => gemm::Parallelism::Rayon(threads),
    };
    for w in weights {
        let (n, k) = (w.n, w.k);
        let (part, rest) = out.split_at_mut(m * n);
        // SAFETY: `x` holds `[m, k]`, `w.dense` `[n, k]` and `part` `[m, n]` numbers, all row-major.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                part.as_mut_ptr(),
                1,
                n as isize,
                false,
                x[..m * k].as_ptr(),
                1,
                k as isize,
                w.dense.as_ptr(),
                k as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                parallelism,
            );
        }
        out = rest;
    }
    Ok(())
}

fn candle(x: &[f32], m: usize, weights: &[&Weight], _: &mut [f32]) -> anyhow::Result<()> {
    let k = weights[0].k;
    let x = Tensor::from_slice(&x[..m * k], (m, k), &Device::Cpu)?;
    for w in weights {
        std::hint::black_box(w.candle.forward(&x)?);
    }
    Ok(())
}

/// Numbers in -1..1, the same every time.
fn random(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        state as f32 / (1u32 << 31) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
