//! The SDK's allocator, which else only runs inside plugins.

#![allow(unsafe_code)]

#[path = "../sdk/src/arena.rs"]
mod arena;

use std::{
    alloc::{GlobalAlloc, Layout},
    slice,
};

use arena::Arena;
use proptest::prelude::*;

/// A block, and the byte that all of it was filled with.
struct Block {
    at: *mut u8,
    layout: Layout,
    byte: u8,
}

impl Block {
    fn fill(&mut self, byte: u8) {
        self.byte = byte;
        unsafe { self.at.write_bytes(byte, self.layout.size()) };
    }

    fn holds(&self, size: usize) -> bool {
        unsafe { slice::from_raw_parts(self.at, size) }.iter().all(|byte| *byte == self.byte)
    }
}

proptest! {
    /// Blocks are aligned and keep what was written to them, whatever happens to others: none lies in another.
    #[test]
    fn blocks_keep_what_they_hold(
        steps in prop::collection::vec((0..4_u8, any::<prop::sample::Index>(), 1..40_000_usize, 0..8_u32), 1..200),
    ) {
        let arena = Arena::new();
        let mut blocks: Vec<Block> = Vec::new();
        for (number, (what, which, size, align)) in steps.into_iter().enumerate() {
            let byte = number as u8;
            match what {
                2 if !blocks.is_empty() => {
                    let block = blocks.swap_remove(which.index(blocks.len()));
                    prop_assert!(block.holds(block.layout.size()));
                    unsafe { arena.dealloc(block.at, block.layout) };
                }
                3 if !blocks.is_empty() => {
                    let block = which.get(&blocks).layout;
                    let i = which.index(blocks.len());
                    blocks[i].at = unsafe { arena.realloc(blocks[i].at, block, size) };
                    blocks[i].layout = Layout::from_size_align(size, block.align())?;
                    prop_assert!(blocks[i].holds(size.min(block.size())));
                    blocks[i].fill(byte);
                }
                _ => {
                    let layout = Layout::from_size_align(size, 1 << align)?;
                    blocks.push(Block { at: unsafe { arena.alloc(layout) }, layout, byte });
                    blocks.last_mut().into_iter().for_each(|block| block.fill(byte));
                }
            }
            for block in &blocks {
                prop_assert!(!block.at.is_null() && block.at.addr().is_multiple_of(block.layout.align()));
            }
        }
        for block in blocks {
            prop_assert!(block.holds(block.layout.size()));
            unsafe { arena.dealloc(block.at, block.layout) };
        }
    }
}

/// The last block grows where it is, and its place is used again.
#[test]
fn the_last_block_can_grow_and_be_given_back() -> Result<(), Box<dyn std::error::Error>> {
    let arena = Arena::new();
    let layout = Layout::from_size_align(100, 8)?;
    unsafe {
        let first = arena.alloc(layout);
        assert_eq!(arena.realloc(first, layout, 4000), first);
        arena.dealloc(first, Layout::from_size_align(4000, 8)?);
        assert_eq!(arena.alloc(layout), first);
        // More than the arena holds is had from elsewhere, and given back there.
        let large = Layout::from_size_align(1 << 20, 8)?;
        let elsewhere = arena.alloc(large);
        assert!(!elsewhere.is_null());
        arena.dealloc(elsewhere, large);
    }
    Ok(())
}
