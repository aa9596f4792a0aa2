//! The inner loops: one macro with the loops over tiles, one module with the vectors of each instruction set.
//!
//! A tile is a few rows of `x` times one or two panels of `w`; its sums stay in registers for all of `k`.

use std::ops::Range;

use half::f16;

use super::{LANES, Part, QUADS, Quad};
use crate::model::q8::block::{BLOCK, Block};

/// The loops around one instruction set's `load`, `start`, `dot`, `scales`, `add` and `lanes`, compiled with its
/// features. `$rows` rows of `x` make a tile, as many as there are registers for.
macro_rules! kernel {
    ($(#[$feature:meta])* $rows:literal) => {
        /// Runs the tiles of a cell.
        ///
        /// # Safety
        /// The CPU has this kernel's features, `part` was made for `x`, rows and panels are within it, and no
        /// other thread works on this cell.
        $(#[$feature])*
        pub(in super::super) unsafe fn cell(x: &[Block], part: &Part<'_>, rows: Range<usize>, panels: Range<usize>) {
            let mut panel = panels.start;
            while panel < panels.end {
                let two = panels.end - panel >= 2;
                let mut row = rows.start;
                while row < rows.end {
                    let height = (rows.end - row).min($rows);
                    // SAFETY: rows and panels of the tile are within those of the cell.
                    unsafe {
                        match (height, two) {
                            (1, false) => tile::<1, 1>(x, part, row, panel),
                            (1, true) => tile::<1, 2>(x, part, row, panel),
                            (2, false) => tile::<2, 1>(x, part, row, panel),
                            (2, true) => tile::<2, 2>(x, part, row, panel),
                            (3, false) => tile::<3, 1>(x, part, row, panel),
                            (3, true) => tile::<3, 2>(x, part, row, panel),
                            (4, false) => tile::<4, 1>(x, part, row, panel),
                            (4, true) => tile::<4, 2>(x, part, row, panel),
                            (5, false) => tile::<5, 1>(x, part, row, panel),
                            (5, true) => tile::<5, 2>(x, part, row, panel),
                            (_, false) => tile::<6, 1>(x, part, row, panel),
                            (_, true) => tile::<6, 2>(x, part, row, panel),
                        }
                    }
                    row += height;
                }
                panel += if two { 2 } else { 1 };
            }
        }

        /// `M` rows of `x` times `P` panels of `w`.
        ///
        /// # Safety
        /// As for `cell`, of the rows and panels from `row` and `panel` on.
        $(#[$feature])*
        unsafe fn tile<const M: usize, const P: usize>(x: &[Block], part: &Part<'_>, row: usize, panel: usize) {
            let w = part.w;
            let blocks = w.cols / BLOCK;
            let mut sums = [[zero(); P]; M];
            for b in 0..blocks {
                // Loops rather than closures here: those are not always inlined, and then leave registers.
                let mut xs = [&Block::ZERO; M];
                let mut dots = [[start(0); P]; M];
                for i in 0..M {
                    // SAFETY: `b` is below `blocks`, and `Part::new` has compared every length with the shapes.
                    xs[i] = unsafe { x.get_unchecked((row + i) * blocks + b) };
                    dots[i] = [start(xs[i].bias); P];
                }
                for q in 0..QUADS {
                    for p in 0..P {
                        // SAFETY: as above.
                        let quad = load(unsafe { w.quads.get_unchecked(((panel + p) * blocks + b) * QUADS + q) });
                        for i in 0..M {
                            let [a, b, c, d] = xs[i].quants.as_chunks().0[q];
                            dots[i][p] = dot(dots[i][p], quad, [a, b, c, d]);
                        }
                    }
                }
                for p in 0..P {
                    // SAFETY: as above.
                    let scales = scales(unsafe { w.scales.get_unchecked((panel + p) * blocks + b) });
                    for i in 0..M {
                        sums[i][p] = add(sums[i][p], dots[i][p], scales, xs[i].scale);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (p, sums) in sums.iter().enumerate() {
                    // SAFETY: this tile's own place.
                    unsafe { part.write(row + i, panel + p, &lanes(*sums)) };
                }
            }
        }
    };
}

/// 512-bit vectors with `vpdpbusd`: Cascade Lake and later, Zen 4 and later.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_vnni {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx512f")]
    fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[target_feature(enable = "avx512f")]
    fn start(bias: i32) -> __m512i {
        _mm512_set1_epi32(bias)
    }

    #[target_feature(enable = "avx512f")]
    fn load(quad: &Quad) -> __m512i {
        // SAFETY: a quad is 64 bytes, aligned to 64.
        unsafe { _mm512_load_si512((&raw const *quad).cast()) }
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dot(sum: __m512i, quad: __m512i, x: [i8; 4]) -> __m512i {
        _mm512_dpbusd_epi32(sum, quad, _mm512_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned))))
    }

    #[target_feature(enable = "avx512f")]
    fn scales(scales: &[f16; LANES]) -> __m512 {
        // SAFETY: the array is 32 bytes; the load asks for no alignment.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(scales.as_ptr().cast()) })
    }

    #[target_feature(enable = "avx512f")]
    fn add(sum: __m512, dot: __m512i, scales: __m512, x: f32) -> __m512 {
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scales, _mm512_set1_ps(x)), sum)
    }

    #[target_feature(enable = "avx512f")]
    fn lanes(sum: __m512) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array is 64 bytes; the store asks for no alignment.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        lanes
    }

    kernel!(
        #[target_feature(enable = "avx512f,avx512vnni")]
        6
    );
}

/// 256-bit vectors in pairs: what AVX2 and AVX-VNNI share.
#[cfg(target_arch = "x86_64")]
mod avx {
    use std::arch::x86_64::*;

    use super::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn zero() -> [__m256; 2] {
        [_mm256_setzero_ps(); 2]
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn load(quad: &Quad) -> [__m256i; 2] {
        let at: *const __m256i = (&raw const *quad).cast();
        // SAFETY: a quad is twice 32 bytes, aligned to 64.
        unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn broadcast(x: [i8; 4]) -> __m256i {
        _mm256_set1_epi32(i32::from_ne_bytes(x.map(i8::cast_unsigned)))
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn scales(scales: &[f16; LANES]) -> [__m256; 2] {
        let at: *const __m128i = scales.as_ptr().cast();
        // SAFETY: the array is twice 16 bytes; the loads ask for no alignment.
        let [low, high] = unsafe { [_mm_loadu_si128(at), _mm_loadu_si128(at.add(1))] };
        [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn add(sum: [__m256; 2], dot: [__m256i; 2], scales: [__m256; 2], x: f32) -> [__m256; 2] {
        let x = _mm256_set1_ps(x);
        [
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[0]), _mm256_mul_ps(scales[0], x), sum[0]),
            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[1]), _mm256_mul_ps(scales[1], x), sum[1]),
        ]
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn lanes(sum: [__m256; 2]) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array is twice 32 bytes; the stores ask for no alignment.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), sum[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sum[1]);
        }
        lanes
    }
}

/// 256-bit vectors with `vpdpbusd`: Alder Lake and later.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx_vnni {
    use std::arch::x86_64::*;

    use super::avx::{add, broadcast, lanes, load, scales, zero};
    use super::*;

    #[target_feature(enable = "avx2")]
    fn start(bias: i32) -> [__m256i; 2] {
        [_mm256_set1_epi32(bias); 2]
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn dot(sum: [__m256i; 2], quad: [__m256i; 2], x: [i8; 4]) -> [__m256i; 2] {
        let x = broadcast(x);
        [_mm256_dpbusd_avx_epi32(sum[0], quad[0], x), _mm256_dpbusd_avx_epi32(sum[1], quad[1], x)]
    }

    kernel!(
        #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
        3
    );
}

/// 256-bit vectors with `vpmaddubsw`: Haswell and later, Zen.
///
/// That instruction adds pairs of products in 16 bits and saturates, which products of `0..=255` by `-127..=127`
/// would. So the 128 is taken off first, and the weight's sign moved to `x`: `w * x = |w| * (x * sign(w))`.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2 {
    use std::arch::x86_64::*;

    use super::avx::{add, broadcast, lanes, scales, zero};
    use super::*;

    #[target_feature(enable = "avx2")]
    fn start(_: i32) -> [__m256i; 2] {
        [_mm256_setzero_si256(); 2]
    }

    #[target_feature(enable = "avx2")]
    fn load(quad: &Quad) -> [__m256i; 2] {
        let [a, b] = avx::load(quad);
        let flip = _mm256_set1_epi8(i8::MIN);
        [_mm256_xor_si256(a, flip), _mm256_xor_si256(b, flip)]
    }

    #[target_feature(enable = "avx2")]
    fn dot(sum: [__m256i; 2], quad: [__m256i; 2], x: [i8; 4]) -> [__m256i; 2] {
        let (x, ones) = (broadcast(x), _mm256_set1_epi16(1));
        let [a, b] = quad;
        let a = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(x, a));
        let b = _mm256_maddubs_epi16(_mm256_abs_epi8(b), _mm256_sign_epi8(x, b));
        [
            _mm256_add_epi32(sum[0], _mm256_madd_epi16(a, ones)),
            _mm256_add_epi32(sum[1], _mm256_madd_epi16(b, ones)),
        ]
    }

    kernel!(
        #[target_feature(enable = "avx2,fma,f16c")]
        2
    );
}

/// Plain Rust, for every other CPU; the compiler makes what vectors it can of it.
pub(super) mod portable {
    use super::*;

    fn zero() -> [f32; LANES] {
        [0.0; LANES]
    }

    fn start(bias: i32) -> [i32; LANES] {
        [bias; LANES]
    }

    fn load(quad: &Quad) -> &Quad {
        quad
    }

    /// A lane's four weights come out of one word: compilers make vectors of shifts and masks, not of byte shuffles.
    #[inline(always)]
    fn dot(mut sum: [i32; LANES], quad: &Quad, x: [i8; 4]) -> [i32; LANES] {
        let words: [u32; LANES] = std::array::from_fn(|i| u32::from_le_bytes(quad.0.as_chunks().0[i]));
        for (sum, word) in sum.iter_mut().zip(words) {
            for (i, x) in x.into_iter().enumerate() {
                // Sixteen bits tell the compiler that a short multiplication will do.
                let w = (word >> (8 * i) & 0xff) as i16;
                *sum += i32::from(w) * i32::from(x);
            }
        }
        sum
    }

    fn scales(scales: &[f16; LANES]) -> [f32; LANES] {
        scales.map(f16::to_f32)
    }

    #[inline(always)]
    fn add(sum: [f32; LANES], dot: [i32; LANES], scales: [f32; LANES], x: f32) -> [f32; LANES] {
        std::array::from_fn(|i| (dot[i] as f32).mul_add(scales[i] * x, sum[i]))
    }

    fn lanes(sum: [f32; LANES]) -> [f32; LANES] {
        sum
    }

    kernel!(1);
}
