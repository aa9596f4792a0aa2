//! What all plugins share: the compiler, the clock of their deadlines, and the folder of compiled code.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::{error::LoadError, limits::Limits};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(5);
/// Stack of a call, in bytes; a quarter of what threads have as a rule.
const STACK: usize = 512 << 10;
/// Instances that may be alive at once, idle stateful ones included.
const INSTANCES: u32 = 256;

/// Compiles and runs plugins. Clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: wasmtime::Engine,
    pub(crate) cache: Option<PathBuf>,
}

impl Engine {
    /// An engine that keeps compiled code in the folder `cache`, if there is one.
    ///
    /// # Errors
    /// If this machine can't run one.
    pub fn new(cache: Option<PathBuf>) -> Result<Self, LoadError> {
        let mut config = config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
        let inner = wasmtime::Engine::new(&config)
            // The pool reserves addresses, not memory, but some systems limit those too: then every instance maps its own.
            .or_else(|_| wasmtime::Engine::new(&self::config()))
            .map_err(|error| LoadError::Engine(error.to_string()))?;
        let weak = inner.weak();
        let tick = move || {
            let (begun, mut ticks) = (Instant::now(), 0);
            loop {
                thread::sleep(TICK);
                let Some(engine) = weak.upgrade() else { break };
                // A busy machine wakes this thread late; ticks that were missed are made up for.
                let due = begun.elapsed().as_nanos() / TICK.as_nanos();
                for _ in ticks..due {
                    engine.increment_epoch();
                }
                ticks = due;
            }
        };
        thread::Builder::new()
            .name("plugin-clock".to_owned())
            .spawn(tick)
            .map_err(|error| LoadError::Engine(error.to_string()))?;
        Ok(Self { inner, cache })
    }

    /// Ticks that are sure to be at least `time`.
    pub(crate) fn ticks(time: Duration) -> u64 {
        let ticks = time.as_nanos().div_ceil(TICK.as_nanos());
        u64::try_from(ticks).unwrap_or(u64::MAX / 2).saturating_add(1)
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true).max_wasm_stack(STACK).wasm_component_model(true);
    config
}

/// Instances are made in memory that is mapped already, which is most of what makes them cheap.
fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    let can_scan = PoolingAllocationConfig::is_pagemap_scan_available();
    pool.total_component_instances(INSTANCES)
        .total_core_instances(8 * INSTANCES)
        .total_memories(INSTANCES)
        .total_tables(4 * INSTANCES)
        .max_core_instances_per_component(256)
        .max_memories_per_component(4)
        .max_tables_per_component(32)
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        .max_memory_size(Limits::MOST_MEMORY)
        .table_elements(Limits::TABLE_ELEMENTS)
        // What an ordinary call touches is cleared and kept, so that the next one needs no help from the kernel. Linux 6.7 and
        // later tell what was touched; elsewhere all of it up to this size is cleared.
        .pagemap_scan(Enabled::Auto)
        .linear_memory_keep_resident(if can_scan { 2 << 20 } else { 256 << 10 })
        .table_keep_resident(16 << 10);
    pool
}
