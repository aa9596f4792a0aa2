//! bf16 products on Intel's matrix unit (AMX): frozen weights as tiles, about ten times as fast as f32 vectors.
//!
//! The unit multiplies a tile of 16 x 32 bf16 with one of 32 x 16 and adds to 16 x 16 f32. Weights are rounded and cut
//! into tiles once; activations at each product. Sums are f32 throughout.
//!
//! Rust has no stable intrinsics for it, hence the assembler; this and [`matmul`](super::matmul) are the crate's only
//! `unsafe` code.
#![allow(unsafe_code)]

use std::arch::asm;
use std::cell::Cell;
use std::ops::Range;
use std::sync::OnceLock;

use super::matmul::Into;
use super::simd::vectorised;

/// Rows or columns of a tile of sums.
const SIDE: usize = 16;
/// Inputs that a tile holds.
const DEPTH: usize = 32;
/// Rows and columns that the kernel sums at once: two tiles each way.
const BLOCK: usize = 2 * SIDE;

/// Tiles of depth that are multiplied before the next rows' turn: 512 rows of them are 1.5 MB.
const CHUNK: usize = 48;

/// A tile of bf16: 16 rows of 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([u16; SIDE * DEPTH]);

const ZERO: Tile = Tile([0; SIDE * DEPTH]);

thread_local! {
    /// The activations' tiles of the last product, kept for their memory.
    static SCRATCH: Cell<Vec<Tile>> = const { Cell::new(Vec::new()) };
}

/// A weight matrix `[outputs, inputs]` as tiles, for `y = x W^T`.
#[derive(Debug, Clone)]
pub struct Panels {
    outputs: usize,
    inputs: usize,
    /// Panels of 32 outputs; in each, for every 32 inputs, two tiles of 16 outputs. A tile's row holds two neighbouring
    /// inputs of each output. What is missing at the edges is zero.
    tiles: Vec<Tile>,
}

impl std::fmt::Debug for Tile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tile")
    }
}

/// Whether this CPU has the unit and the system lets this process use it.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        // Leaf 7: bit 22 of EDX is AMX-BF16, bit 24 AMX-TILE.
        const WANTED: u32 = 1 << 22 | 1 << 24;
        let leaves = std::arch::x86_64::__cpuid(0).eax;
        if leaves < 7 || std::arch::x86_64::__cpuid_count(7, 0).edx & WANTED != WANTED {
            return false;
        }
        // The state is 8 KB a thread, so Linux hands it out on request only.
        const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
        const XTILEDATA: i64 = 18;
        // SAFETY: this request takes two numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
    })
}

impl Panels {
    /// Rounds and cuts a matrix; `weight(output, input)` are its values. `None` where the unit is not [`available`].
    pub fn new(outputs: usize, inputs: usize, weight: impl Fn(usize, usize) -> f32) -> Option<Self> {
        if !available() {
            return None;
        }
        let depth = inputs.div_ceil(DEPTH);
        let mut tiles = vec![ZERO; outputs.div_ceil(BLOCK) * depth * 2];
        for (i, tile) in tiles.iter_mut().enumerate() {
            let output = i / (2 * depth) * BLOCK + i % 2 * SIDE;
            let input = i / 2 % depth * DEPTH;
            for (j, value) in tile.0.iter_mut().enumerate() {
                let (output, input) = (output + j / 2 % SIDE, input + j / DEPTH * 2 + j % 2);
                if output < outputs && input < inputs {
                    *value = round(weight(output, input));
                }
            }
        }
        Some(Self { outputs, inputs, tiles })
    }

    /// A weight, rounded.
    pub fn get(&self, output: usize, input: usize) -> f32 {
        let panel = output / BLOCK * self.inputs.div_ceil(DEPTH) + input / DEPTH;
        let tile = &self.tiles[2 * panel + output / SIDE % 2];
        let bits = tile.0[input % DEPTH / 2 * DEPTH + output % SIDE * 2 + input % 2];
        f32::from_bits(u32::from(bits) << 16)
    }

    /// `y = x W^T` or `y += x W^T`: `x` is `[T, inputs]` and rounded to bf16, `y` `[T, outputs]`.
    pub fn product(&self, x: &[f32], y: &mut [f32], into: Into) {
        assert_eq!(x.len() / self.inputs, y.len() / self.outputs, "matrix shapes do not fit");
        let mut tiles = SCRATCH.take();
        self.cut(x, &mut tiles);
        configure();
        let depth = self.inputs.div_ceil(DEPTH);
        // Of a deep product as much at a time as leaves the activations in the cache.
        for start in (0..depth).step_by(CHUNK) {
            let into = if start == 0 { into } else { Into::Add };
            self.add(&tiles, start..(start + CHUNK).min(depth), y, into);
        }
        release();
        SCRATCH.set(tiles);
    }

    /// The part of a product that belongs to some of the tiles' depth.
    fn add(&self, x: &[Tile], span: Range<usize>, y: &mut [f32], into: Into) {
        let depth = self.inputs.div_ceil(DEPTH);
        let mut sums = Sums([0.0; BLOCK * BLOCK]);
        for (panel, weights) in self.tiles.chunks_exact(2 * depth).enumerate() {
            let weights = &weights[2 * span.start..2 * span.end];
            let column = panel * BLOCK;
            let width = BLOCK.min(self.outputs - column);
            for (x, y) in x.chunks_exact(2 * depth).zip(y.chunks_mut(BLOCK * self.outputs)) {
                let (upper, lower) = x.split_at(depth);
                let x = (&upper[span.clone()], &lower[span.clone()]);
                if into == Into::Replace && (width, y.len()) == (BLOCK, BLOCK * self.outputs) {
                    multiply(x, weights, &mut y[column..], self.outputs);
                    continue;
                }
                multiply(x, weights, &mut sums.0, BLOCK);
                for (y, sums) in y.chunks_exact_mut(self.outputs).zip(sums.0.chunks_exact(BLOCK)) {
                    let y = &mut y[column..column + width];
                    match into {
                        Into::Replace => y.copy_from_slice(&sums[..width]),
                        Into::Add => y.iter_mut().zip(sums).for_each(|(y, sum)| *y += sum),
                    }
                }
            }
        }
    }

    /// Rounds activations and cuts them into tiles: for every 32 rows the upper tiles, then the lower ones.
    fn cut(&self, x: &[f32], tiles: &mut Vec<Tile>) {
        let depth = self.inputs.div_ceil(DEPTH);
        let rows = x.len() / self.inputs;
        tiles.clear();
        tiles.resize(rows.div_ceil(BLOCK) * 2 * depth, ZERO);
        vectorised(|| {
            for (row, x) in x.chunks_exact(self.inputs).enumerate() {
                let tiles = &mut tiles[row / SIDE * depth..][..depth];
                for (tile, x) in tiles.iter_mut().zip(x.chunks(DEPTH)) {
                    let row = &mut tile.0[row % SIDE * DEPTH..][..DEPTH];
                    row.iter_mut().zip(x).for_each(|(value, &x)| *value = round(x));
                }
            }
        });
    }
}

/// A block of sums.
#[repr(C, align(64))]
struct Sums([f32; BLOCK * BLOCK]);

/// The nearest bf16, ties to even. Overflows to infinity; NaN, as arithmetic makes it, stays NaN.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Shapes of the eight tile registers: 16 rows of 64 bytes each.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut i = 0;
    while i < 8 {
        (row_bytes[i], rows[i]) = (64, 16);
        i += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// Sets this thread's tile registers up. Only reached with [`Panels`], so where the unit is available.
fn configure() {
    // SAFETY: reads the 64 bytes of a valid configuration; the registers that it clears hold nothing of ours.
    unsafe { asm!("ldtilecfg [{config}]", config = in(reg) &raw const CONFIG, options(nostack, readonly)) };
}

/// Gives the registers back, so that the system need not save them.
fn release() {
    // SAFETY: clears the tile registers, which hold nothing that is still needed.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Writes the product of 32 rows and 32 columns to `y`, whose rows are `stride` apart. `x` holds the tiles of the upper
/// and of the lower 16 rows, `weights` the columns', in pairs.
fn multiply((upper, lower): (&[Tile], &[Tile]), weights: &[Tile], y: &mut [f32], stride: usize) {
    let depth = upper.len();
    assert!(depth > 0 && lower.len() == depth && weights.len() == 2 * depth);
    assert!(stride >= BLOCK && y.len() >= (BLOCK - 1) * stride + BLOCK);
    let stride_bytes = stride * size_of::<f32>();
    // SAFETY: `configure` has run on this thread. The loop reads `depth` tiles from each half of `x` and twice as
    // many from `weights`; the stores write 32 rows of 32 values from `y` on. The asserts bound them all.
    unsafe {
        let y = y.as_mut_ptr();
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{upper} + {row}]",
            "tileloadd tmm6, [{weights} + {row}]",
            "tileloadd tmm7, [{weights} + {row} + 1024]",
            "tileloadd tmm5, [{lower} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {weights}, 2048",
            "dec {depth}",
            "jnz 2b",
            "tilestored [{y} + {stride}], tmm0",
            "tilestored [{y} + {stride} + 64], tmm1",
            "tilestored [{y_lower} + {stride}], tmm2",
            "tilestored [{y_lower} + {stride} + 64], tmm3",
            upper = inout(reg) upper.as_ptr() => _,
            lower = inout(reg) lower.as_ptr() => _,
            weights = inout(reg) weights.as_ptr() => _,
            depth = inout(reg) depth => _,
            row = in(reg) 64_usize,
            y = in(reg) y,
            y_lower = in(reg) y.add(SIDE * stride),
            stride = in(reg) stride_bytes,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(x: f32) -> f32 {
        f32::from_bits(u32::from(round(x)) << 16)
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        assert_eq!(rounded(1.0), 1.0);
        assert_eq!(rounded(1.0 + 1.0 / 256.0), 1.0);
        assert_eq!(rounded(1.0 + 3.0 / 256.0), 1.0 + 4.0 / 256.0);
        assert_eq!(rounded(-1.0 - 1.1 / 256.0), -1.0 - 2.0 / 256.0);
        assert!(rounded(f32::NAN).is_nan() && rounded(f32::MAX).is_infinite());
    }

    #[test]
    fn products_are_those_of_rounded_values() {
        if !available() {
            return;
        }
        for (rows, outputs, inputs) in
            [(1, 1, 1), (32, 32, 32), (33, 40, 70), (40, 70, 1600), (17, 96, 33), (64, 31, 64)]
        {
            let value = |i: usize, of: usize| ((i * of + i / 3) % 97) as f32 / 31.0 - 1.5;
            let x: Vec<f32> = (0..rows * inputs).map(|i| value(i, 37)).collect();
            let panels = Panels::new(outputs, inputs, |o, i| value(o * inputs + i, 53)).unwrap();
            for (into, start) in [(Into::Replace, f32::NAN), (Into::Add, 2.0)] {
                let mut y = vec![start; rows * outputs];
                panels.product(&x, &mut y, into);
                for (i, &found) in y.iter().enumerate() {
                    let (row, output) = (i / outputs, i % outputs);
                    let product =
                        |k| f64::from(rounded(x[row * inputs + k])) * f64::from(panels.get(output, k));
                    let mut expected: f64 = (0..inputs).map(product).sum();
                    expected += if into == Into::Add { 2.0 } else { 0.0 };
                    assert_eq!(panels.get(output, 0), rounded(value(output * inputs, 53)));
                    let error = (f64::from(found) - expected).abs();
                    assert!(error < 1e-3, "{rows}x{outputs}x{inputs} at {row},{output}: {found}, {expected}");
                }
            }
        }
    }
}
