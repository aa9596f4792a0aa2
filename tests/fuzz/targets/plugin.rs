//! Plugins' files: whatever they are, they load or are rejected, in time, and what they say of themselves is checked.

#![no_main]

use std::{path::Path, sync::LazyLock};

use forethought_plugins::{Engine, Plugin, PluginOptions};
use libfuzzer_sys::fuzz_target;

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    // The fuzzer's hook aborts before the host can catch what a library panics at. What it doesn't catch still ends the run.
    drop(std::panic::take_hook());
    Engine::new(None).expect("an engine")
});

fuzz_target!(|data: &[u8]| {
    match Plugin::of_bytes(&ENGINE, Path::new("x.wasm"), data, PluginOptions::default()) {
        Ok(plugin) => assert!(!plugin.manifest().name.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
