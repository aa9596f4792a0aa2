//! A probe's call by `ort` against the same call by Python's onnxruntime, on the same file and library.
//!
//! `cargo bench -p forethought-core --bench probe [-- FILE.onnx]` times a linear probe as wide as SmolLM2's states, which it
//! writes to FILE; `python benches/probe.py FILE.onnx` then times the peer. Figures are microseconds a call, the median of
//! many, on one thread.

#[path = "../tests/support/onnx.rs"]
mod onnx;

use std::{path::PathBuf, time::Instant};

use forethought_core::{
    metrics::quantile,
    probe::{Made, Probe, ProbeSource, Runtime},
    store::{Console, Store},
};
use onnx::Onnx;

const WIDTH: usize = 576;
const CALLS: usize = 5_000;

fn main() -> anyhow::Result<()> {
    let weights = (0..WIDTH).map(|i| (i as f32 * 0.7).sin() / 24.0).collect();
    let bytes = Onnx::exported("bench", (18, "last"), "none 0", weights, 0.0).bytes();
    // cargo adds a flag of its own.
    if let Some(file) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) {
        std::fs::write(PathBuf::from(file), &bytes)?;
    }
    let runtime = Runtime::load(None, &Store::open_default()?, &Console::stderr())?;
    let source =
        ProbeSource { file: "bench.onnx".to_owned(), bytes: bytes.into(), made: Made::default(), own: true };
    let probe = Probe::open(&runtime, source, &[])?;
    for batch in [1, 64] {
        let states: Vec<f32> = (0..batch * WIDTH).map(|i| (i as f32 * 0.3).cos()).collect();
        let mut times = Vec::with_capacity(CALLS);
        for _ in 0..CALLS {
            let since = Instant::now();
            probe.run(&states, WIDTH)?;
            times.push(since.elapsed().as_secs_f64() * 1e6);
        }
        let median = quantile(&mut times, 0.5).unwrap_or(f64::NAN);
        println!("ort, batch {batch:2}: {median:.1} us a call");
    }
    Ok(())
}
