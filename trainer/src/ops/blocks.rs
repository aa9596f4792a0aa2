//! Weights in fewer bits, brought back to f32 a few rows at a time inside each product: what makes QLoRA's memory small
//! (arXiv 2305.14314).

use std::cell::Cell;
use std::ops::Range;

use half::{bf16, f16};

use super::simd::vectorised;

/// Rows brought back at once. Enough for `gemm` to run at full speed, few enough to stay in the cache.
const TILE: usize = 128;

thread_local! {
    /// The last tile, kept for its memory.
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// How values are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The upper half of an f32.
    Bf16,
    /// 32 values: an f16 scale and 32 signed bytes.
    Q8_0,
    /// 32 values: f16 scale and offset, then 16 bytes, the first 16 values in their lower halves.
    Q4_1,
    /// 64 values: an f16 scale, then 32 bytes in the same order, each half naming one of 16 levels.
    Nf4,
}

/// QLoRA's levels: quantiles of a normal distribution, scaled to -1..1.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl Format {
    /// Values and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::Bf16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q4_1 => (32, 20),
            Self::Nf4 => (64, 34),
        }
    }

    /// Appends a block. Values that GGUF's quantiser has rounded come out as they went in.
    fn write(self, values: &[f32], bytes: &mut Vec<u8>) {
        let peak = values.iter().fold(0.0f32, |peak, v| peak.max(v.abs()));
        let halves = |bytes: &mut Vec<u8>, codes: &dyn Fn(f32) -> u8| {
            let half = self.block().0 / 2;
            let code = |i: usize| values.get(i).map_or(0, |&v| codes(v));
            bytes.extend((0..half).map(|i| code(i) | code(i + half) << 4));
        };
        match self {
            Self::Bf16 => bytes.extend(bf16::from_f32(values[0]).to_le_bytes()),
            Self::Q8_0 => {
                let scale = peak / 127.0;
                bytes.extend(f16::from_f32(scale).to_le_bytes());
                let code = |&v: &f32| if scale > 0.0 { (v / scale).round() as i8 as u8 } else { 0 };
                bytes.extend(values.iter().map(code));
                bytes.resize(bytes.len() + 32 - values.len(), 0);
            }
            Self::Q4_1 => {
                let low = values.iter().copied().fold(f32::INFINITY, f32::min);
                let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let scale = (high - low) / 15.0;
                bytes.extend(f16::from_f32(scale).to_le_bytes());
                bytes.extend(f16::from_f32(low).to_le_bytes());
                let code = |v: f32| if scale > 0.0 { ((v - low) / scale).round().min(15.0) as u8 } else { 0 };
                halves(bytes, &code);
            }
            Self::Nf4 => {
                let scale = f16::from_f32(peak);
                bytes.extend(scale.to_le_bytes());
                let code = |v: f32| {
                    let v = if peak > 0.0 { v / scale.to_f32() } else { 0.0 };
                    LEVELS.windows(2).take_while(|pair| v > (pair[0] + pair[1]) / 2.0).count() as u8
                };
                halves(bytes, &code);
            }
        }
    }

    /// Brings a block back; a row's last one may be short.
    #[inline(always)]
    fn read(self, bytes: &[u8], out: &mut [f32]) {
        let number = |i: usize| f16::from_le_bytes([bytes[i], bytes[i + 1]]).to_f32();
        let halves = |bytes: &[u8], out: &mut [f32], value: &dyn Fn(u8) -> f32| {
            let (low, high) = out.split_at_mut(bytes.len().min(out.len()));
            low.iter_mut().zip(bytes).for_each(|(out, byte)| *out = value(byte & 15));
            high.iter_mut().zip(bytes).for_each(|(out, byte)| *out = value(byte >> 4));
        };
        match self {
            Self::Bf16 => out[0] = bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Self::Q8_0 => {
                let scale = number(0);
                out.iter_mut().zip(&bytes[2..]).for_each(|(out, &code)| *out = scale * f32::from(code as i8));
            }
            Self::Q4_1 => {
                let (scale, low) = (number(0), number(2));
                halves(&bytes[4..], out, &|code| scale * f32::from(code) + low);
            }
            Self::Nf4 => {
                let scale = number(0);
                halves(&bytes[2..], out, &|code| scale * LEVELS[usize::from(code)]);
            }
        }
    }
}

/// A matrix of packed rows.
#[derive(Debug)]
pub struct Blocks {
    format: Format,
    rows: usize,
    inputs: usize,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Packs rows of `inputs` values.
    pub fn new(values: &[f32], inputs: usize, format: Format) -> Self {
        let (len, size) = format.block();
        let mut bytes = Vec::with_capacity(values.len().div_ceil(len) * size);
        for block in values.chunks_exact(inputs).flat_map(|row| row.chunks(len)) {
            format.write(block, &mut bytes);
        }
        Self { format, rows: values.len() / inputs, inputs, bytes }
    }

    /// Brings rows back into `out`.
    pub fn rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let (len, size) = self.format.block();
        let row_bytes = self.inputs.div_ceil(len) * size;
        let bytes = &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
        // The match is outside of the loops, so that each is compiled for its format.
        macro_rules! read {
            ($format:path) => {
                vectorised(|| {
                    for (bytes, out) in bytes.chunks_exact(row_bytes).zip(out.chunks_exact_mut(self.inputs)) {
                        for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_mut(len)) {
                            $format.read(bytes, out);
                        }
                    }
                })
            };
        }
        match self.format {
            Format::Bf16 => read!(Format::Bf16),
            Format::Q8_0 => read!(Format::Q8_0),
            Format::Q4_1 => read!(Format::Q4_1),
            Format::Nf4 => read!(Format::Nf4),
        }
    }

    /// Calls `f` with every tile of rows and their values.
    pub fn each(&self, mut f: impl FnMut(Range<usize>, &[f32])) {
        let mut scratch = SCRATCH.take();
        scratch.resize(TILE * self.inputs, 0.0);
        for start in (0..self.rows).step_by(TILE) {
            let rows = start..(start + TILE).min(self.rows);
            let tile = &mut scratch[..rows.len() * self.inputs];
            self.rows(rows.clone(), tile);
            f(rows, tile);
        }
        SCRATCH.set(scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_what_was_packed_changes_nothing() {
        for format in [Format::Bf16, Format::Q8_0, Format::Q4_1, Format::Nf4] {
            let (rows, inputs) = (40, 72); // the last block of a row is short
            let values: Vec<f32> =
                (0..rows * inputs).map(|i| ((i * 7919 % 1009) as f32 / 300.0).sin()).collect();
            let again = |values: &[f32]| {
                let mut out = vec![f32::NAN; values.len()];
                Blocks::new(values, inputs, format).rows(0..rows, &mut out);
                out
            };
            let once = again(&values);
            assert_ne!(once, values);
            assert_eq!(again(&once), once, "{format:?}");
            assert_eq!(again(&vec![0.0; rows * inputs]), vec![0.0; rows * inputs]);
        }
    }

    #[test]
    fn tiles_cover_all_rows() {
        let values: Vec<f32> = (0..300 * 4).map(|i| i as f32).collect();
        let mut seen = Vec::new();
        Blocks::new(&values, 4, Format::Bf16).each(|rows, tile| {
            assert_eq!(tile.len(), rows.len() * 4);
            seen.extend(rows);
        });
        assert_eq!(seen, (0..300).collect::<Vec<_>>());
    }
}
