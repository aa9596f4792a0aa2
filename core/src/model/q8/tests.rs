//! Against plain `f32` arithmetic, each kernel against the others, and rows alone against rows in a batch.

use super::*;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// `[n, k]` of every weight of SmolLM2-135M but the head, whose first rows stand for it; and shapes with short
/// last panels and an odd number of panels.
const SHAPES: [(usize, usize); 9] =
    [(576, 576), (192, 576), (1536, 576), (576, 1536), (2048, 576), (1, 32), (17, 64), (40, 96), (0, 32)];

fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = SmallRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0f32) * rng.random_range(0.0..1.0f32)).collect()
}

fn product(kernel: Kernel, x: &[f32], m: usize, w: &Q8Matrix) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * w.rows()];
    kernel.matmul_many(x, m, &mut [(w, &mut out)]).unwrap();
    out
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn agrees_with_f32() {
    for (n, k) in SHAPES {
        let (m, w) = (7, random(n * k, 1));
        let x = random(m * k, 2);
        let out = product(Kernel::best(), &x, m, &Q8Matrix::quantize(&w, n, k).unwrap());
        let (mut error, mut size) = (0.0, 0.0);
        for i in 0..m {
            for j in 0..n {
                let products = x[i * k..][..k].iter().zip(&w[j * k..][..k]);
                let expected: f64 = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                error += (f64::from(out[i * n + j]) - expected).powi(2);
                size += expected.powi(2);
            }
        }
        // Each side is rounded to 1 / 127 of its block's peak: 0.75% to 0.85% on these numbers.
        assert!(error.sqrt() <= 0.01 * size.sqrt(), "[{n}, {k}]: {error} of {size}");
    }
}

#[test]
fn kernels_give_the_same_bits() {
    for (n, k) in SHAPES {
        let w = Q8Matrix::quantize(&random(n * k, 3), n, k).unwrap();
        for m in [0, 1, 2, 3, 7, 64] {
            let x = random(m * k, 4);
            let expected = bits(&product(Kernel::available().last().unwrap(), &x, m, &w));
            for kernel in Kernel::available() {
                assert_eq!(bits(&product(kernel, &x, m, &w)), expected, "{kernel:?}, m = {m}, [{n}, {k}]");
            }
        }
    }
}

#[test]
fn extremes_do_not_overflow() {
    // Every weight and activation at the end of its range, in all combinations of signs.
    let (n, k) = (4, 64);
    let sign = |odd: bool| if odd { -1.0 } else { 1.0 };
    let w: Vec<f32> = (0..n * k).map(|i| sign(i / k % 2 == 1) * sign(i / k >= 2 && i % 2 == 1)).collect();
    let w = Q8Matrix::quantize(&w, n, k).unwrap();
    let x: Vec<f32> = (0..2 * k).map(|i| sign(i >= k && i % 2 == 1)).collect();
    for kernel in Kernel::available() {
        let out = product(kernel, &x, 2, &w);
        for (out, expected) in out.iter().zip([64.0, -64.0, 0.0, 0.0, 0.0, 0.0, 64.0, -64.0]) {
            assert!((out - expected).abs() < 0.05, "{kernel:?}: {out} for {expected}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_threads() {
    let (m, k) = (150, 576);
    let x = random(m * k, 5);
    let (up, gate) = (random(1536 * k, 6), random(1529 * k, 7));
    let up = Q8Matrix::quantize(&up, 1536, k).unwrap();
    let gate = Q8Matrix::quantize(&gate, 1529, k).unwrap();
    let together = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (mut a, mut b) = (vec![0.0; m * 1536], vec![0.0; m * 1529]);
        pool.install(|| matmul_many(&x, m, &mut [(&up, &mut a), (&gate, &mut b)])).unwrap();
        (bits(&a), bits(&b))
    };
    let (a, b) = together(1);
    assert!(together(2) == (a.clone(), b.clone()) && together(5) == (a.clone(), b.clone()));
    for (i, x) in x.chunks_exact(k).enumerate() {
        assert_eq!(bits(&product(Kernel::best(), x, 1, &up)), a[i * 1536..][..1536], "row {i}");
        assert_eq!(bits(&product(Kernel::best(), x, 1, &gate)), b[i * 1529..][..1529], "row {i}");
    }
}

#[test]
fn products_within_products() {
    // A thread that waits for its share of one product is given another one meanwhile.
    let (n, k) = (2048, 576);
    let w = Q8Matrix::quantize(&random(n * k, 8), n, k).unwrap();
    let x = random(64 * k, 9);
    let expected = bits(&product(Kernel::best(), &x, 64, &w));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let all: Vec<_> = pool
        .install(|| (0..24).into_par_iter().map(|_| bits(&product(Kernel::best(), &x, 64, &w))).collect());
    assert!(all.iter().all(|bits| *bits == expected));
}

#[test]
fn not_finite_activations_spoil_their_own_row_only() {
    let (n, k) = (48, 96);
    let w = Q8Matrix::quantize(&random(n * k, 10), n, k).unwrap();
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = random(3 * k, 11);
        let good = product(Kernel::best(), &x, 3, &w);
        x[k + 70] = bad;
        for kernel in Kernel::available() {
            let out = product(kernel, &x, 3, &w);
            assert!(out[n..2 * n].iter().all(|out| out.is_nan()), "{kernel:?}, {bad}");
            assert_eq!((bits(&out[..n]), bits(&out[2 * n..])), (bits(&good[..n]), bits(&good[2 * n..])));
        }
    }
}

#[test]
fn huge_and_tiny_activations() {
    let w = Q8Matrix::quantize(&[1.0; 32], 1, 32).unwrap();
    for size in [0.0, 1e-45, 1e-37, 1e-30, 1e30, f32::MAX / 64.0] {
        let out = product(Kernel::best(), &[size; 32], 1, &w)[0];
        let expected = if size < 1e-36 { 0.0 } else { 32.0 * size };
        assert!((out - expected).abs() <= 0.001 * expected, "{out} for {size}");
    }
    // The sum itself may leave the range of f32.
    assert_eq!(product(Kernel::best(), &[f32::MAX; 32], 1, &w), [f32::INFINITY]);
}

#[test]
fn eight_bit_weights_stay_exact() {
    let mut rng = SmallRng::seed_from_u64(12);
    let (n, k) = (33, 64);
    let mut w = Vec::new();
    for _ in 0..n * k / BLOCK {
        let scale = f16::from_f32(rng.random_range(1e-6..0.1)).to_f32();
        w.push(127.0 * scale);
        w.extend((1..BLOCK).map(|_| scale * f32::from(rng.random_range(-127..=127i8))));
    }
    let matrix = Q8Matrix::quantize(&w, n, k).unwrap();
    for (i, w) in w.chunks_exact(k).enumerate() {
        let mut row = vec![0.0; k];
        matrix.dequantize_row(i, &mut row).unwrap();
        assert_eq!(row, w, "row {i}");
    }
}

#[test]
fn weights_are_rounded_to_the_nearest() {
    let (n, k) = (20, 96);
    for size in [1e-9, 1e-6, 1e-3, 1.0, 1e6] {
        let w: Vec<f32> = random(n * k, 13).iter().map(|w| size * w).collect();
        let matrix = Q8Matrix::quantize(&w, n, k).unwrap();
        let mut row = vec![0.0; k];
        for (i, w) in w.chunks_exact(k).enumerate() {
            matrix.dequantize_row(i, &mut row).unwrap();
            for (w, q) in w.chunks_exact(BLOCK).zip(row.chunks_exact(BLOCK)) {
                let peak = w.iter().fold(0.0f32, |peak, w| peak.max(w.abs()));
                // Half a step, or where a scale is small for f16, what the nearest scale cannot reach.
                let bound = peak / 127.0 * 0.51 + 127.0 * f16::from_bits(1).to_f32() * 0.51;
                assert!(w.iter().zip(q).all(|(w, q)| (w - q).abs() <= bound), "row {i}, size {size}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let columns = |k| Q8Matrix::quantize(&vec![0.0; 2 * k], 2, k).err();
    assert_eq!(columns(33), Some(Q8Error::Columns { cols: 33 }));
    assert_eq!(columns(16), Some(Q8Error::Columns { cols: 16 }));
    assert_eq!(columns(64), None);
    assert_eq!(columns(0), None);

    let length = |what, expected, found| Q8Error::Length { what, expected, found };
    assert_eq!(Q8Matrix::quantize(&[0.0; 63], 2, 32).err(), Some(length("weights", 64, 63)));
    let mut w = [1.0; 128];
    for bad in [f32::NAN, f32::INFINITY, 1e7] {
        w[70] = bad;
        assert_eq!(Q8Matrix::quantize(&w, 4, 32).err(), Some(Q8Error::Weight { row: 2 }));
    }
    w[70] = 1.0;

    let w = Q8Matrix::quantize(&w, 4, 32).unwrap();
    assert_eq!((w.rows(), w.cols(), w.bytes()), (4, 32, 16 * 34));
    assert_eq!(matmul(&[0.0; 64], 1, &w, &mut [0.0; 4]), Err(length("x", 32, 64)));
    assert_eq!(matmul(&[0.0; 64], 2, &w, &mut [0.0; 4]), Err(length("out", 8, 4)));
    assert_eq!(w.dequantize_row(3, &mut [0.0; 31]), Err(length("out", 32, 31)));
    assert_eq!(w.dequantize_row(4, &mut [0.0; 32]), Err(Q8Error::Row { row: 4, rows: 4 }));
}
