//! Which instruction set does the work, and how the work is cut up for threads.
//!
//! All kernels read the same layout and give the same bits. They need intrinsics, and threads write to interleaved
//! parts of one output: this module is where the `unsafe` is.
#![allow(unsafe_code)]

mod isa;

use std::fmt;
use std::marker::PhantomData;

use rayon::prelude::*;

use super::Q8Matrix;
use super::block::{BLOCK, Block};
use isa::portable;
#[cfg(target_arch = "x86_64")]
use isa::{avx_vnni, avx2, avx512_vnni};

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
        #[cfg(target_arch = "x86_64")]
        let x86 = {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let vnni = avx2 && is_x86_feature_detected!("avxvnni");
            let wide = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
            [wide.then_some(Isa::Avx512Vnni), vnni.then_some(Isa::AvxVnni), avx2.then_some(Isa::Avx2)]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let x86: [Option<Isa>; 0] = [];
        x86.into_iter().flatten().chain([Isa::Portable]).map(Self)
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
        const CHUNK: usize = 512; // blocks: some microseconds
        if blocks.len() < 2 * CHUNK || rayon::current_num_threads() == 1 {
            encode((blocks, x));
        } else {
            blocks.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK * BLOCK)).for_each(encode);
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
        let work = match self.0 {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512_vnni::cell,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => avx_vnni::cell,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::cell,
            Isa::Portable => portable::cell,
        };
        let run = |cell: usize| {
            let Some(part) = parts.iter().rev().find(|part| part.first <= cell) else { return };
            let (group, rows) = ((cell - part.first) / part.bands, (cell - part.first) % part.bands);
            let panels = group * GROUP..(group * GROUP + GROUP).min(part.w.rows.div_ceil(LANES));
            let rows = rows * BAND..(rows * BAND + BAND).min(m);
            // SAFETY: a `Kernel` exists only where the CPU has its instructions. `Part::new` has checked the lengths.
            // Cells do not overlap, and none is run twice, so no two threads write to one place.
            unsafe { work(x, part, rows, panels) }
        };
        let cost = GROUP * LANES * cols * m.min(BAND).div_ceil(FREE);
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
/// Rows of `x` that cost about what one does: their time is that of the weights' way from memory.
const FREE: usize = 8;
/// Weights, read once for every [`FREE`] rows of `x`, that make a second thread worth its while: five microseconds.
const SHARE: usize = 1 << 17;

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

// Inlined so that `encode_avx2` compiles it for its own vectors.
#[inline(always)]
fn encode(x: &[f32], blocks: &mut [Block]) {
    for (block, x) in blocks.iter_mut().zip(x.as_chunks().0) {
        *block = Block::new(x);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(x: &[f32], blocks: &mut [Block]) {
    encode(x, blocks);
}
