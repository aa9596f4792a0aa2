//! Notes and new texts in requests of every format: the first bytes choose path and part, the rest is the body.

#![no_main]

use forethought_proxy::properties::{PATHS, edit};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let [path, part, body @ ..] = data {
        edit(PATHS[usize::from(*path) % PATHS.len()], body, usize::from(part >> 4), usize::from(part & 15));
    }
});
