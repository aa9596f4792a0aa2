//! Each operation's gradients against candle's autograd on the plain formula, and against finite differences.
#![allow(clippy::unwrap_used)] // Helpers of tests are not inside of `#[test]`.

use candle_core::{D, Device, Result, Tensor, Var};
use forethought_trainer::ops::attention::{self, Heads, Segment};
use forethought_trainer::ops::linear::{self, Linear, LoraPart, LoraSlots};
use forethought_trainer::ops::loss::{self, Target};
use forethought_trainer::ops::matmul::Into;
use forethought_trainer::ops::rope::{RopeTable, Turn};
use forethought_trainer::ops::weight::Frozen;
use forethought_trainer::ops::{norm, swiglu};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor(values: &[f32], columns: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / columns, columns), &Device::Cpu).unwrap()
}

fn close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs();
        assert!(error < tolerance * (1.0 + expected.abs()), "{name} at {i}: {found} against {expected}");
    }
}

/// Checks `forward` and `backward` (of the input, given the output's gradient) of one input.
fn check(
    name: &str,
    input: &[f32],
    forward: impl Fn(&[f32]) -> Vec<f32>,
    backward: impl Fn(&[f32], &[f32]) -> Vec<f32>,
    formula: impl Fn(&Tensor) -> Result<Tensor>,
) {
    let output = forward(input);
    let d_output = random(output.len(), 99);
    let gradient = backward(input, &d_output);

    let var = Var::from_slice(input, input.len(), &Device::Cpu).unwrap();
    let expected = formula(&var).unwrap().flatten_all().unwrap();
    close(&format!("{name} forward"), &output, &expected.to_vec1().unwrap(), 1e-5);
    let seed = Tensor::from_slice(&d_output, d_output.len(), &Device::Cpu).unwrap();
    let store = (expected * seed).unwrap().sum_all().unwrap().backward().unwrap();
    close(&format!("{name} backward"), &gradient, &store.get(&var).unwrap().to_vec1().unwrap(), 2e-5);

    // Along random directions; in f64 from the outputs on.
    for seed in 0..3 {
        let direction = random(input.len(), 200 + seed);
        let at = |by: f32| -> f64 {
            let moved: Vec<f32> = input.iter().zip(&direction).map(|(x, d)| x + by * d).collect();
            forward(&moved).iter().zip(&d_output).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum()
        };
        let slope = (at(1e-3) - at(-1e-3)) / 2e-3;
        let exact: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        assert!((slope - exact).abs() < 5e-3 * (1.0 + exact.abs()), "{name}: slope {slope}, exact {exact}");
    }
}

#[test]
fn rms_norm() {
    let (width, eps) = (45, 1e-3);
    let weight = random(width, 1);
    check(
        "norm",
        &random(7 * width, 2),
        |x| {
            let mut y = vec![f32::NAN; x.len()];
            norm::forward(x, &weight, eps, &mut y);
            y
        },
        |x, dy| {
            // Adds: what is there stays.
            let mut dx = vec![1.0; x.len()];
            norm::backward(x, &weight, eps, dy, &mut dx);
            dx.iter().map(|d| d - 1.0).collect()
        },
        |x| {
            let x = x.reshape(((), width))?;
            let rms = (x.sqr()?.mean_keepdim(1)? + f64::from(eps))?.sqrt()?;
            x.broadcast_div(&rms)?.broadcast_mul(&Tensor::new(weight.as_slice(), &Device::Cpu)?)
        },
    );
}

#[test]
fn gated_activation() {
    let width = 37;
    let input: Vec<f32> = random(5 * 2 * width, 3).iter().map(|x| 6.0 * x).collect();
    check(
        "swiglu",
        &input,
        |x| {
            let mut h = vec![f32::NAN; x.len() / 2];
            swiglu::forward(x, width, &mut h);
            h
        },
        |x, dh| {
            let mut x = x.to_vec();
            swiglu::backward(&mut x, width, dh);
            x
        },
        |x| {
            let x = x.reshape(((), 2 * width))?;
            x.narrow(1, 0, width)?.silu()? * x.narrow(1, width, width)?
        },
    );
}

fn segment(rows: std::ops::Range<usize>, position: usize, past: &[std::ops::Range<usize>]) -> Segment {
    Segment { rows, position, past: past.to_vec() }
}

/// Two sequences that share five rows, and one that shares nothing.
fn segments() -> Vec<Segment> {
    vec![
        segment(0..5, 0, &[]),
        segment(5..8, 5, std::slice::from_ref(&(0..5))),
        segment(8..12, 5, std::slice::from_ref(&(0..5))),
        segment(12..18, 0, &[]),
    ]
}

#[test]
fn rotary_embedding() {
    let (width, columns, frequencies) = (14, 8, vec![1.0, 0.1]);
    let mut table = RopeTable::new(frequencies.clone());
    table.reserve(9);
    let turn = |x: &[f32], turn| {
        let mut x = x.to_vec();
        table.apply(&mut x, width, columns, &segments(), turn);
        x
    };
    check(
        "rope",
        &random(18 * width, 4),
        |x| turn(x, Turn::Forward),
        |_, dy| turn(dy, Turn::Back),
        |x| {
            let x = x.reshape((18, width))?;
            let positions = [0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7, 8, 0, 1, 2, 3, 4, 5];
            let angles: Vec<f32> =
                positions.iter().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f)).collect();
            let (cos, sin) = (tensor(&angles, 2).cos()?, tensor(&angles, 2).sin()?);
            let mut parts = Vec::new();
            for head in 0..columns / 4 {
                let (a, b) = (x.narrow(1, 4 * head, 2)?, x.narrow(1, 4 * head + 2, 2)?);
                parts.push(((&a * &cos)? - (&b * &sin)?)?);
                parts.push(((&b * &cos)? + (&a * &sin)?)?);
            }
            parts.push(x.narrow(1, columns, width - columns)?);
            Tensor::cat(&parts, 1)
        },
    );
}

#[test]
fn grouped_attention() {
    let heads = Heads { query: 6, key_value: 2, dim: 4 };
    let forward = |x: &[f32]| {
        let mut out = vec![f32::NAN; 18 * heads.query_width()];
        let mut lse = vec![f32::NAN; 18 * heads.query];
        attention::forward(heads, &segments(), x, &mut out, &mut lse, &mut Vec::new());
        (out, lse)
    };
    let input: Vec<f32> = random(18 * heads.width(), 5).iter().map(|x| 2.0 * x).collect();
    check(
        "attention",
        &input,
        |x| forward(x).0,
        |x, d_out| {
            let (out, lse) = forward(x);
            let mut dx = vec![f32::NAN; x.len()];
            attention::backward(heads, &segments(), x, (&out, &lse), d_out, &mut dx, &mut Vec::new());
            dx
        },
        |x| {
            let x = x.reshape((18, heads.width()))?;
            let column = |start: usize| x.narrow(1, start * heads.dim, heads.dim);
            let sees = |row: usize, key: usize| {
                let of = |row| segments().iter().position(|s| s.rows.contains(&row)).unwrap();
                key <= row && (of(key) == of(row) || (of(key) == 0 && of(row) < 3))
            };
            let mask: Vec<f32> =
                (0..18 * 18).map(|i| if sees(i / 18, i % 18) { 0.0 } else { f32::NEG_INFINITY }).collect();
            let mut outputs = Vec::new();
            for head in 0..heads.query {
                let (q, k, v) = (column(head)?, column(6 + head / 3)?, column(8 + head / 3)?);
                let scores = ((q.matmul(&k.t()?)? / 2.0)? + tensor(&mask, 18))?;
                let weights = scores.exp()?;
                let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
                outputs.push(weights.matmul(&v)?);
            }
            Tensor::cat(&outputs, 1)
        },
    );
}

/// Two adapted projections and one that is not, of 5, 4 and 3 outputs.
fn lora_layer() -> (Linear, LoraSlots, Vec<f32>) {
    let (inputs, outputs, rank) = (10, 12, 2);
    let layer =
        Linear { weight: Frozen::dense(random(outputs * inputs, 6), inputs), bias: Some(random(outputs, 7)) };
    let parts = vec![LoraPart { columns: 0..5, b: 40..50 }, LoraPart { columns: 9..12, b: 50..56 }];
    (layer, LoraSlots { rank, scale: 1.5, a: 0..40, parts }, random(56, 8))
}

/// The layer's formula, of input and trainable values.
fn lora_formula(x: &Tensor, values: &Tensor) -> Result<Tensor> {
    let x = x.reshape(((), 10))?;
    let base = x.matmul(&tensor(&random(120, 6), 10).t()?)?;
    let base = base.broadcast_add(&Tensor::new(random(12, 7), &Device::Cpu)?)?;
    let update = |a: usize, b: usize, outputs: usize| {
        let a = values.narrow(0, a, 20)?.reshape((2, 10))?;
        let b = values.narrow(0, b, 2 * outputs)?.reshape((outputs, 2))?;
        x.matmul(&a.t()?)?.matmul(&b.t()?)? * 1.5
    };
    let none = Tensor::zeros((x.dims()[0], 4), x.dtype(), x.device())?;
    base + Tensor::cat(&[update(0, 40, 5)?, none, update(20, 50, 3)?], 1)?
}

#[test]
fn lora_linear() {
    let (layer, lora, values) = lora_layer();
    let rows = 6;
    let x = random(rows * 10, 9);
    let forward = |x: &[f32], values: &[f32]| {
        let (mut y, mut xa) = (vec![f32::NAN; rows * 12], vec![f32::NAN; rows * 4]);
        linear::forward(&layer, &lora, values, x, &mut y, Into::Replace, &mut xa);
        (y, xa)
    };
    let backward = |x: &[f32], values: &[f32], dy: &[f32]| {
        let (_, xa) = forward(x, values);
        let (mut dx, mut d_xa, mut grads) =
            (vec![f32::NAN; x.len()], vec![f32::NAN; xa.len()], vec![1.0; 56]);
        linear::backward(&layer, &lora, values, (x, &xa), dy, &mut dx, &mut d_xa, &mut grads);
        // Adds: what is there stays.
        grads.iter_mut().for_each(|g| *g -= 1.0);
        (dx, grads)
    };
    check(
        "linear, input",
        &x,
        |x| forward(x, &values).0,
        |x, dy| backward(x, &values, dy).0,
        |x| lora_formula(x, &Tensor::new(values.as_slice(), &Device::Cpu)?),
    );
    check(
        "linear, adapters",
        &values,
        |values| forward(&x, values).0,
        |values, dy| backward(&x, values, dy).1,
        |values| lora_formula(&Tensor::new(x.as_slice(), &Device::Cpu)?, values),
    );
}

#[test]
fn cross_entropy() {
    // More positions than a chunk.
    let (positions, hidden, vocabulary) = (150, 6, 19);
    let head = random(vocabulary * hidden, 10);
    let frozen = Frozen::dense(head.clone(), hidden);
    let target = |i: usize| Target { token: (i * 7 % vocabulary) as u32, weight: (i % 4) as f32 * 0.5 };
    let targets: Vec<Target> = (0..positions).map(target).collect();
    // The weighted sum, as a vector of one.
    let forward = |x: &[f32]| {
        let mut nll = vec![f32::NAN; positions];
        loss::cross_entropy(&frozen, x, &targets, 1.0, &mut nll, None, &mut Vec::new());
        let sum: f64 = nll.iter().zip(&targets).map(|(n, t)| f64::from(n * t.weight)).sum();
        vec![(sum / 10.0) as f32]
    };
    let backward = |x: &[f32], dy: &[f32]| {
        let (mut nll, mut dx) = (vec![f32::NAN; positions], vec![f32::NAN; x.len()]);
        loss::cross_entropy(&frozen, x, &targets, dy[0] / 10.0, &mut nll, Some(&mut dx), &mut Vec::new());
        dx
    };
    let x: Vec<f32> = random(positions * hidden, 11).iter().map(|x| 3.0 * x).collect();
    check("cross-entropy", &x, forward, backward, |x| {
        let logits = x.reshape(((), hidden))?.matmul(&tensor(&head, hidden).t()?)?;
        let lse = logits.exp()?.sum_keepdim(1)?.log()?;
        let wanted: Vec<u32> = targets.iter().map(|t| t.token).collect();
        let nll = (lse - logits.gather(&Tensor::new(wanted, &Device::Cpu)?.unsqueeze(1)?, 1)?)?;
        let weights: Vec<f32> = targets.iter().map(|t| t.weight).collect();
        (nll.squeeze(1)? * Tensor::new(weights, &Device::Cpu)?)?.sum_all()? / 10.0
    });

    let (mut found, mut scratch) = (Vec::new(), Vec::new());
    loss::log_probabilities(&frozen, &x, &[3, 0], &mut found, &mut scratch);
    let mut nll = vec![0.0; positions];
    for (i, token) in [3, 0].into_iter().enumerate() {
        let targets = vec![Target { token, weight: 1.0 }; positions];
        loss::cross_entropy(&frozen, &x, &targets, 1.0, &mut nll, None, &mut scratch);
        let row: Vec<f32> = found.iter().skip(i).step_by(2).map(|p| -p).collect();
        close("log-probabilities", &row, &nll, 1e-5);
    }
}
