//! Server-sent events and lines: the first bytes say how to cut and where pieces end, the rest is the stream.

#![no_main]

use forethought_proxy::properties::frames;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let [kind, step, bytes @ ..] = data {
        let step = usize::from(*step) % 16 + 1;
        frames(*kind, bytes, &(0..bytes.len()).step_by(step).collect::<Vec<_>>());
    }
});
