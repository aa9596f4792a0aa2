//! The inner loops, one version for each instruction set, chosen when the program runs.
//!
//! All kernels read the same layout and give the same bits. A tile is a few rows of `x` times a panel or two of
//! sixteen rows of `w`; its sums stay in registers for all of `k`. The x86 versions need intrinsics, and threads
//! write to interleaved parts of one output: this file is where the `unsafe` is.
#![allow(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::Q8Matrix;
use super::block::{BLOCK, Block};

/// Rows of `w` in a panel.
pub(super) const LANES: usize = 16;
/// Quads in a block.
pub(super) const QUADS: usize = BLOCK / 4;

/// Four neighbouring columns of the sixteen rows of a panel, each weight plus 128: `vpdpbusd` wants one side
/// unsigned. `Block::bias` takes the 128 off again.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Quad([u8; 4 * LANES]);

impl Quad {
    pub(super) const ZERO: Self = Self([128; 4 * LANES]);

    pub(super) fn set(&mut self, lane: usize, quants: [i8; 4]) {
        self.0[4 * lane..][..4].copy_from_slice(&quants.map(|q| q.cast_unsigned() ^ 0x80));
    }

    pub(super) fn get(&self, lane: usize) -> [i8; 4] {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| (self.0[4 * lane + i] ^ 0x80).cast_signed());
        [a, b, c, d]
    }
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel(Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        })
    }
}

impl Kernel {
    /// Every kernel that this CPU can run, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        // A `Kernel` is made nowhere else, so holding one proves that the CPU has the instructions.
        let x86 = {
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                let vnni = avx2 && is_x86_feature_detected!("avxvnni");
                let wide =
                    avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
                [(wide, Isa::Avx512Vnni), (vnni, Isa::AvxVnni), (avx2, Isa::Avx2)]
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                []
            }
        };
        x86.into_iter().filter(|(has, _)| *has).map(|(_, isa)| Self(isa)).chain([Self(Isa::Portable)])
    }

    /// The fastest kernel of this CPU.
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self(Isa::Portable))
    }

    /// Quantises `x` into `blocks`, replacing what they held.
    pub(super) fn quantize(self, x: &[f32], blocks: &mut Vec<Block>) {
        blocks.clear();
        blocks.resize(x.len() / BLOCK, Block::ZERO);
        let encode = |(blocks, x): (&mut [Block], &[f32])| match self.0 {
            // SAFETY: each of these kernels includes AVX2, and a `Kernel` exists only where the CPU has it.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni | Isa::AvxVnni | Isa::Avx2 => unsafe { encode_avx2(x, blocks) },
            Isa::Portable => encode(x, blocks),
        };
        const SHARE: usize = 512; // blocks a task: some microseconds
        if blocks.len() < 2 * SHARE {
            encode((blocks, x));
        } else {
            blocks.par_chunks_mut(SHARE).zip(x.par_chunks(SHARE * BLOCK)).for_each(encode);
        }
    }

    /// `out = x * w^T` for each of `parts`; `x` is `[m, k / 32]` blocks.
    ///
    /// # Panics
    /// If lengths do not fit; callers have checked them.
    pub(super) fn product(self, x: &[Block], m: usize, parts: &mut [(&Q8Matrix, &mut [f32])]) {
        if m == 0 {
            return;
        }
        let mut cells = 0;
        let parts: Vec<Part> = parts.iter_mut().map(|(w, out)| Part::new(w, out, x, m, &mut cells)).collect();
        let Some(cols) = parts.first().map(|part| part.w.cols) else { return };
        let run = |cell: usize| {
            let Some(part) = parts.iter().rev().find(|part| part.first <= cell) else { return };
            let (group, rows) = ((cell - part.first) / part.bands, (cell - part.first) % part.bands);
            let panels = group * GROUP..(group * GROUP + GROUP).min(part.w.rows.div_ceil(LANES));
            let rows = rows * BAND..(rows * BAND + BAND).min(m);
            match self.0 {
                // SAFETY: a `Kernel` exists only where the CPU has its instructions. `Part::new` has checked the
                // lengths. Cells do not overlap, and no cell is run twice, so no two threads write to one place.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Vnni => unsafe { avx512_vnni::cell(x, part, rows, panels) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::AvxVnni => unsafe { avx_vnni::cell(x, part, rows, panels) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2::cell(x, part, rows, panels) },
                // SAFETY: as above.
                Isa::Portable => unsafe { portable::cell(x, part, rows, panels) },
            }
        };
        let cost = GROUP * LANES * m.min(BAND) * cols;
        let share = SHARE.div_ceil(cost.max(1));
        if cells < 2 * share || rayon::current_num_threads() == 1 {
            (0..cells).for_each(run);
        } else {
            (0..cells).into_par_iter().with_min_len(share).for_each(run);
        }
    }
}

/// Panels of a cell: those whose weights meet a row of `x` together.
const GROUP: usize = 2;
/// Rows of `x` in a cell, the unit of work; the group's weights stay in the first cache meanwhile.
const BAND: usize = 64;
/// Multiplications that make a thread worth waking: about ten microseconds of one core.
const SHARE: usize = 1 << 20;

/// One weight and the place for its product, cut into cells of [`GROUP`] panels times [`BAND`] rows.
struct Part<'a> {
    w: &'a Q8Matrix,
    out: *mut f32, // [m, n]
    bands: usize,
    /// The number of its first cell.
    first: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer stands for an exclusive borrow; `write` asks its callers to keep to their own cells.
unsafe impl Sync for Part<'_> {}

impl<'a> Part<'a> {
    fn new(w: &'a Q8Matrix, out: &'a mut [f32], x: &[Block], m: usize, cells: &mut usize) -> Self {
        let (panels, blocks) = (w.rows.div_ceil(LANES), w.cols / BLOCK);
        assert_eq!(x.len(), m * blocks);
        assert_eq!(out.len(), m * w.rows);
        assert_eq!(w.quads.len(), panels * blocks * QUADS);
        assert_eq!(w.scales.len(), panels * blocks);
        let (first, bands) = (*cells, m.div_ceil(BAND));
        *cells += panels.div_ceil(GROUP) * bands;
        Self { w, out: out.as_mut_ptr(), bands, first, lifetime: PhantomData }
    }

    /// Writes one row of a tile.
    ///
    /// # Safety
    /// `row` is below `m`, `panel` is one of `w`'s, and no other thread reads or writes this place meanwhile.
    #[inline(always)]
    unsafe fn write(&self, row: usize, panel: usize, sums: &[f32; LANES]) {
        let (n, column) = (self.w.rows, panel * LANES);
        // SAFETY: `row * n + column` to the end of the panel or of the row lies within `[m, n]`.
        unsafe {
            let out = self.out.add(row * n + column);
            out.copy_from_nonoverlapping(sums.as_ptr(), (n - column).min(LANES));
        }
    }
}

fn encode(x: &[f32], blocks: &mut [Block]) {
    encode_inline(x, blocks);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(x: &[f32], blocks: &mut [Block]) {
    encode_inline(x, blocks);
}

#[inline(always)]
fn encode_inline(x: &[f32], blocks: &mut [Block]) {
    for (block, x) in blocks.iter_mut().zip(x.as_chunks().0) {
        *block = Block::new(x);
    }
}

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
        pub(super) unsafe fn cell(x: &[Block], part: &Part<'_>, rows: Range<usize>, panels: Range<usize>) {
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
                // SAFETY: `b` is below `blocks`, and `Part::new` has compared every length with the shapes.
                let xs: [&Block; M] = std::array::from_fn(|i| unsafe { x.get_unchecked((row + i) * blocks + b) });
                let mut dots = xs.map(|x| [start(x.bias); P]);
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
mod avx512_vnni {
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
mod avx_vnni {
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
mod avx2 {
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
mod portable {
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

    #[inline(always)]
    fn dot(mut sum: [i32; LANES], quad: &Quad, x: [i8; 4]) -> [i32; LANES] {
        for (sum, w) in sum.iter_mut().zip(quad.0.as_chunks::<4>().0) {
            *sum += w.iter().zip(x).map(|(&w, x)| i32::from(w) * i32::from(x)).sum::<i32>();
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
