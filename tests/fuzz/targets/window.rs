//! What is held back of an answer: each piece of the input is a frame, the first one what is bad.

#![no_main]

use forethought_proxy::properties::{Told, window};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [hold, rest @ ..] = data else { return };
    let mut pieces = rest.split(|byte| *byte == b'\n');
    let bad = String::from_utf8_lossy(pieces.next().unwrap_or_default()).into_owned();
    let told = pieces.filter_map(|piece| {
        let (about, text) = piece.split_first()?;
        Some((about & 3, (about >> 2) & 3, about & 16 != 0, String::from_utf8_lossy(text).into_owned()))
    });
    let told: Vec<Told> = told.take(64).collect();
    window(usize::from(*hold), &told, &bad);
});
