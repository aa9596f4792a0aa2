//! `forethought plugin bench`: how long a plugin takes to decide.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use clap::Args;
use forethought_core::policy::{Case, RequestFacts};
use forethought_plugins::Plugin;
use serde_json::json;

use super::{LoadArgs, sample};
use crate::cli::print_json;

/// Flags of `forethought plugin bench`.
#[derive(Args, Clone, Debug)]
pub(super) struct BenchArgs {
    /// The plugin's file
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// Time to measure, for each number of threads
    #[arg(long, value_name = "SECONDS", default_value = "3")]
    seconds: f64,
    /// Numbers of threads that decide at once
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What one run measured.
struct Measured {
    threads: usize,
    decisions: usize,
    p50: Duration,
    p99: Duration,
    /// Decisions a second, of all threads together.
    rate: f64,
}

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let begun = Instant::now();
    let plugin = args.load.load(&args.file)?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;
    let time = Duration::from_secs_f64(args.seconds.clamp(0.01, 600.0));
    let runs = args.threads.iter().map(|&threads| measure(&plugin, threads.clamp(1, 64), time));
    let runs = runs.collect::<Result<Vec<_>>>()?;
    let micros = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    if args.json {
        let run = |run: &Measured| {
            json!({
                "threads": run.threads,
                "decisions": run.decisions,
                "p50_us": micros(run.p50),
                "p99_us": micros(run.p99),
                "per_second": run.rate.round(),
            })
        };
        return print_json(&json!({
            "plugin": plugin.manifest().name,
            "stateful": plugin.manifest().stateful,
            "load_ms": load_ms,
            "memory_bytes": plugin.idle_memory(),
            "runs": runs.iter().map(run).collect::<Vec<_>>(),
        }));
    }
    let mut out = io::stdout().lock();
    writeln!(out, "loaded in {load_ms:.1} ms; a decision in microseconds:")?;
    writeln!(out, "threads  decisions      p50      p99  per second")?;
    for Measured { threads, decisions, p50, p99, rate } in runs {
        writeln!(out, "{threads:>7} {decisions:>10} {:>8.1} {:>8.1} {rate:>11.0}", micros(p50), micros(p99))?;
    }
    Ok(())
}

fn measure(plugin: &Plugin, threads: usize, time: Duration) -> Result<Measured> {
    let (conversation, evidence) = sample();
    let facts = RequestFacts { path: "/v1/chat/completions".to_owned(), ..RequestFacts::default() };
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    let start = Barrier::new(threads);
    let decide = || {
        // Warm: the first calls bring code and memory in.
        let warm = (0..20).try_for_each(|_| plugin.decide_request(&case, &[]).map(drop));
        // Before any error: the other threads wait for this one.
        start.wait();
        warm?;
        let (begun, mut taken) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let one = Instant::now();
            plugin.decide_request(&case, &[])?;
            taken.push(one.elapsed());
        }
        Ok::<_, forethought_plugins::Failure>((taken, begun.elapsed()))
    };
    let done: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(decide)).collect();
        running.into_iter().map(|thread| thread.join()).collect()
    });
    let (mut all, mut rate) = (Vec::new(), 0.0);
    for one in done {
        let (taken, elapsed) = one.map_err(|_| anyhow!("a thread panicked"))??;
        rate += taken.len() as f64 / elapsed.as_secs_f64();
        all.extend(taken);
    }
    all.sort_unstable();
    let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
    Ok(Measured { threads, decisions: all.len(), p50: at(0.5), p99: at(0.99), rate })
}
