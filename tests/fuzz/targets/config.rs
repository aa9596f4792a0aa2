//! Configuration files.

#![no_main]

use forethought_proxy::properties::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let file = std::env::temp_dir().join(format!("forethought-fuzz-{}.toml", std::process::id()));
    config(&file, data);
});
