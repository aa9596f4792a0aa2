//! Requests of every format: the first byte chooses the path, the rest is the body.

#![no_main]

use forethought_proxy::properties::{PATHS, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let [path, body @ ..] = data {
        decode(PATHS[usize::from(*path) % PATHS.len()], body);
    }
});
