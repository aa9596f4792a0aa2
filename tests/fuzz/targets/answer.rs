//! Answers of every format: the first bytes choose path and number of answers, the rest is a stream that is then cut.

#![no_main]

use forethought_proxy::properties::{PATHS, answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let [path, choices, stream @ ..] = data {
        answer(PATHS[usize::from(*path) % PATHS.len()], usize::from(*choices), stream);
    }
});
