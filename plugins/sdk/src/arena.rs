//! An allocator whose first bytes are part of the component.
//!
//! Rust's own grows the memory for the first byte it is asked for. The host makes a fresh instance for every call as a rule, and
//! giving each one more memory, and taking it away again, is most of what a small policy costs: the kernel has to tell the
//! other processors of it.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::{Cell, UnsafeCell},
    ptr,
};

extern crate std;

use std::alloc::System;

/// Bytes that are there from the start.
const BYTES: usize = 128 << 10;

/// Gives out `BYTES` from front to back and takes back the last block only; what does not fit is for Rust's allocator. A plugin
/// that keeps its instance loses these bytes once, and not more.
pub(crate) struct Arena {
    bytes: UnsafeCell<[u8; BYTES]>,
    used: Cell<usize>,
}

// SAFETY: a component has one thread.
unsafe impl Sync for Arena {}

impl Arena {
    /// With nothing given out.
    pub(crate) const fn new() -> Self {
        Self { bytes: UnsafeCell::new([0; BYTES]), used: Cell::new(0) }
    }

    fn start(&self) -> *mut u8 {
        self.bytes.get().cast()
    }

    /// Where `block` begins in the arena, if it lies in there.
    fn offset(&self, block: *mut u8) -> Option<usize> {
        let offset = block.addr().wrapping_sub(self.start().addr());
        (offset < BYTES).then_some(offset)
    }
}

// SAFETY: blocks are within `bytes`, aligned and apart from each other, for `used` only falls to the beginning of the last.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let free = self.start().wrapping_add(self.used.get());
        let offset = self.used.get().saturating_add(free.align_offset(layout.align()));
        match offset.checked_add(layout.size()) {
            Some(end) if end <= BYTES => {
                self.used.set(end);
                self.start().wrapping_add(offset)
            }
            _ => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.offset(block) {
            Some(offset) if offset + layout.size() == self.used.get() => self.used.set(offset),
            Some(_) => {}
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(block) else {
            return unsafe { System.realloc(block, layout, size) };
        };
        let is_last = offset + layout.size() == self.used.get();
        if is_last && size <= BYTES - offset {
            self.used.set(offset + size);
            return block;
        }
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            unsafe { ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
            unsafe { self.dealloc(block, layout) };
        }
        new
    }
}
