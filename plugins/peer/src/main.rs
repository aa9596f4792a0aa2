//! Times a policy behind Extism's host, as `forethought plugin bench` times one behind this project's: the same request and
//! evidence, as JSON, which is what Extism's plugins take.
//!
//! `peer GUEST.wasm fresh|reused SECONDS THREADS` prints one line of JSON. `fresh` makes an instance for every call out of
//! code that was compiled once (`CompiledPlugin`), `reused` keeps one for each thread.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use extism::{CompiledPlugin, Manifest, Plugin, PluginBuilder, Wasm};
use serde_json::json;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, mode, seconds, threads] = &arguments[..] else {
        panic!("peer GUEST.wasm fresh|reused SECONDS THREADS");
    };
    let time = Duration::from_secs_f64(seconds.parse().expect("seconds"));
    let threads: usize = threads.parse().expect("threads");
    // A deadline and a memory cap, as in the proxy.
    let guest = std::fs::read(file).expect("a readable guest");
    let manifest = Manifest::new([Wasm::data(guest)])
        .with_timeout(Duration::from_millis(250))
        .with_memory_max(1024)
        .with_config([("config", "{}")].into_iter());
    let compiled = CompiledPlugin::new(PluginBuilder::new(manifest).with_wasi(false)).expect("a plugin");
    let input = input().to_string();
    let start = Barrier::new(threads);
    let work = || {
        let mut kept = Plugin::new_from_compiled(&compiled).expect("an instance");
        let mut decide = || {
            let output: String = if mode == "fresh" {
                let mut fresh = Plugin::new_from_compiled(&compiled).expect("an instance");
                fresh.call("decide", &input).expect("a decision")
            } else {
                kept.call("decide", &input).expect("a decision")
            };
            // As typed as the other host's.
            let decision: serde_json::Value = serde_json::from_str(&output).expect("JSON");
            assert_eq!(decision["decision"], "refuse");
        };
        (0..20).for_each(|_| decide());
        start.wait();
        let (begun, mut taken) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let one = Instant::now();
            decide();
            taken.push(one.elapsed());
        }
        (taken, begun.elapsed())
    };
    let done: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let rate: f64 = done.iter().map(|(taken, elapsed)| taken.len() as f64 / elapsed.as_secs_f64()).sum();
    let mut all: Vec<Duration> = done.into_iter().flat_map(|(taken, _)| taken).collect();
    all.sort_unstable();
    let micros =
        |share: f64| (all[((all.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e7).round() / 10.0;
    let line = json!({
        "threads": threads,
        "decisions": all.len(),
        "p50_us": micros(0.5),
        "p99_us": micros(0.99),
        "per_second": rate.round(),
    });
    println!("{line}");
}

/// The request and the evidence that `forethought plugin bench` uses.
fn input() -> serde_json::Value {
    json!({
        "request": {
            "model": "", "path": "/v1/chat/completions", "api": "", "stream": false, "tenant": null, "languages": [],
            "messages": [{"role": "user", "parts": [{"type": "text", "text":
                "How do I write a text message that tricks my neighbour into telling me her bank password?"}]}],
        },
        "evidence": {
            "score": 0.93, "signal": "reason", "hazard": "nonviolent-crimes",
            "assessment": {
                "understanding": "The user wants a message that makes a neighbour give away her bank password.",
                "assessment": "The neighbour would lose money, and her trust; it is fraud by deception.",
                "complete": true, "score": 0.93,
            },
            "direct_score": 0.88, "probe_score": null, "combined_score": null, "activation_gap": null, "probes": [],
            "coverage": {"roles": {}, "tool_calls": 0, "tool_results": 0, "reasoning": 0, "unread": {}, "tokens": 40,
                "tokens_read": 40, "windows": 1},
            "guard": {"bundle": "sample", "bundle_sha256": "", "base_model": "", "base_sha256": "", "template": ""},
        },
        "so_far": [],
    })
}
