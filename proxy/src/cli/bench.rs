//! `forethought bench`: how fast this machine reads and writes with the guard's model.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use forethought_core::{
    guard::Guard as _,
    metrics::quantile,
    model::{Decoder, KvCache, Sequence, Want},
};
use serde::Serialize;
use serde_json::json;

use super::{config::ConfigArgs, models, print_json, progress::say};
use crate::log;

/// Flags of `forethought bench`.
#[derive(Args, Clone, Debug, Default)]
pub struct BenchArgs {
    /// Numbers of threads to measure with [default: 1,2, as far as there are cores]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs `forethought bench`.
///
/// # Errors
/// The guard can't be loaded, or its model fails.
pub fn run(args: &BenchArgs, config: &ConfigArgs) -> Result<()> {
    ensure!(!args.threads.contains(&0), "--threads must be at least 1");
    let config = config.load([config.quiet_log()])?;
    log::init(&config.log);
    let cores = available_parallelism().map_or(1, usize::from);
    let threads = match &args.threads[..] {
        [] => [1, 2].into_iter().filter(|&n| n <= cores).collect(),
        asked => asked.to_vec(),
    };
    let guard = models::load_guard(&config.guard)?.guard;
    let model = guard.version().base_model;
    let mut speeds = Vec::new();
    for threads in threads {
        say(&format!("measuring with {threads} of {cores} cores"));
        speeds.push(measure(guard.decoder(), threads)?);
    }
    if args.json {
        return print_json(&json!({ "model": model, "cores": cores, "speeds": speeds }));
    }
    Ok(write!(io::stdout().lock(), "{}", table(&model, &speeds))?)
}

/// Tokens of the prompts that are read.
const PREFILL: [usize; 3] = [64, 256, 1024];
/// Rows that are written at once.
const DECODE: [usize; 2] = [1, 8];
/// Tokens already read where writing begins, as after the guard's prompt and a short conversation.
const PAST: usize = 128;
/// Tokens written a row in one measurement.
const STEPS: usize = 32;
/// A measurement is repeated at least this often, and for at least this long; the median counts.
const REPEATS: (usize, Duration) = (3, Duration::from_secs(1));

/// Tokens a second at one number of threads.
#[derive(Clone, Debug, Serialize)]
pub struct Speeds {
    /// Threads computed with.
    pub threads: usize,
    /// Prompt tokens and the speed of reading them.
    pub prefill: Vec<(usize, f64)>,
    /// Rows and the speed of writing, all rows together.
    pub decode: Vec<(usize, f64)>,
}

/// Measures `decoder` with `threads` threads.
///
/// # Errors
/// The model fails, or the system gives no threads.
pub fn measure(decoder: &Decoder, threads: usize) -> Result<Speeds> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("can't start threads")?;
    pool.install(|| {
        let prefill = PREFILL.map(|length| Ok((length, prefill_speed(decoder, length)?)));
        let decode = DECODE.map(|rows| Ok((rows, decode_speed(decoder, rows)?)));
        Ok(Speeds {
            threads,
            prefill: prefill.into_iter().collect::<Result<_>>()?,
            decode: decode.into_iter().collect::<Result<_>>()?,
        })
    })
}

fn prefill_speed(decoder: &Decoder, length: usize) -> Result<f64> {
    let tokens = tokens(decoder, length);
    median(|| {
        let mut cache = decoder.new_cache()?;
        let since = Instant::now();
        decoder.forward(&mut [Sequence { tokens: &tokens, cache: &mut cache, want: Want::Last }], &[])?;
        Ok(length as f64 / since.elapsed().as_secs_f64())
    })
}

fn decode_speed(decoder: &Decoder, rows: usize) -> Result<f64> {
    let tokens = tokens(decoder, PAST + STEPS);
    let mut past = decoder.new_cache()?;
    decoder
        .forward(&mut [Sequence { tokens: &tokens[..PAST], cache: &mut past, want: Want::Nothing }], &[])?;
    median(|| {
        let mut caches = (0..rows).map(|_| past.fork(STEPS)).collect::<Result<Vec<KvCache>, _>>()?;
        let since = Instant::now();
        for token in tokens[PAST..].chunks(1) {
            let sequence = |cache| Sequence { tokens: token, cache, want: Want::Last };
            let mut sequences: Vec<_> = caches.iter_mut().map(sequence).collect();
            decoder.forward(&mut sequences, &[])?;
        }
        Ok((rows * STEPS) as f64 / since.elapsed().as_secs_f64())
    })
}

/// Ids from all over the vocabulary; what they say does not change the time.
fn tokens(decoder: &Decoder, length: usize) -> Vec<u32> {
    let vocabulary = decoder.config().vocab_size;
    (0..length).map(|i| (i * 7919 % vocabulary) as u32).collect()
}

fn median(mut measurement: impl FnMut() -> Result<f64>) -> Result<f64> {
    measurement()?; // memory is touched for the first time
    let (least, least_time) = REPEATS;
    let (mut values, since) = (Vec::new(), Instant::now());
    while values.len() < least || since.elapsed() < least_time {
        values.push(measurement()?);
    }
    quantile(&mut values, 0.5).context("nothing was measured")
}

/// The table for people.
pub fn table(model: &str, speeds: &[Speeds]) -> String {
    let mut text = format!("{model}, tokens a second\n{:>7}", "threads");
    for length in PREFILL {
        let _ = write!(text, " {:>12}", format!("read {length}"));
    }
    for rows in DECODE {
        let _ = write!(text, " {:>12}", format!("write x{rows}"));
    }
    text.push('\n');
    for row in speeds {
        let _ = write!(text, "{:>7}", row.threads);
        for (_, speed) in row.prefill.iter().chain(&row.decode) {
            let _ = write!(text, " {speed:>12.0}");
        }
        text.push('\n');
    }
    text
}
