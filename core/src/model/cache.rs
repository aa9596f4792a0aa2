//! Keys and values of the tokens read so far.

use candle_core::{DType, Device, Tensor};

use super::{ModelConfig, Result};

/// One sequence's keys and values, for every layer.
///
/// A shared prefix is read once and [forked](Self::fork) for each conversation.
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>, // each [capacity, kv_width]
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// An empty cache.
    ///
    /// # Errors
    /// Out of memory on the device.
    pub fn new(config: &ModelConfig, device: &Device, dtype: DType) -> Result<Self> {
        let empty = || Tensor::zeros((0, config.kv_width()), dtype, device);
        let layers = (0..config.layers).map(|_| Ok((empty()?, empty()?))).collect::<Result<_>>()?;
        Ok(Self { layers, len: 0, capacity: 0 })
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// An independent copy with room for `extra` more tokens.
    ///
    /// # Errors
    /// Out of memory on the device.
    pub fn fork(&self, extra: usize) -> Result<Self> {
        let mut fork = Self { layers: self.layers.clone(), len: self.len, capacity: 0 };
        fork.grow(self.len + extra)?;
        Ok(fork)
    }

    /// Forgets all tokens after the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Makes room for `extra` more tokens. Called once a step, before any layer appends.
    pub(super) fn reserve(&mut self, extra: usize) -> Result<()> {
        let needed = self.len + extra;
        if needed > self.capacity {
            self.grow(needed.next_multiple_of(64).max(self.capacity * 3 / 2))
        } else {
            Ok(())
        }
    }

    /// Moves to new storage: a clone of a tensor shares the old one.
    fn grow(&mut self, capacity: usize) -> Result<()> {
        let len = self.len;
        let moved = |old: &Tensor| {
            let new = Tensor::zeros((capacity, old.dim(1)?), old.dtype(), old.device())?;
            if len > 0 {
                new.slice_set(&old.narrow(0, 0, len)?.contiguous()?, 0, 0)?;
            }
            Ok::<_, candle_core::Error>(new)
        };
        for (k, v) in &mut self.layers {
            (*k, *v) = (moved(k)?, moved(v)?);
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Writes one layer's keys and values `[tokens, kv_width]` behind those held, and returns all of that layer,
    /// `[len + tokens, kv_width]` each. The length grows by [`Self::advance`], after the last layer.
    pub(super) fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let (keys, values) = &self.layers[layer];
        keys.slice_set(&k.contiguous()?, 0, self.len)?;
        values.slice_set(&v.contiguous()?, 0, self.len)?;
        let total = self.len + k.dim(0)?;
        Ok((keys.narrow(0, 0, total)?, values.narrow(0, 0, total)?))
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
