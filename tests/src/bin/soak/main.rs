//! A soak: mixed traffic for a long time, counted from all sides. `soak run` starts an upstream that fails now and then and
//! two proxies in processes of their own, has `wrk` and callers that leave send requests, and then compares what the
//! clients, the audit files and the upstream have seen. It writes `docs/robustness.md`.
//!
//! `cargo run --release -p forethought-tests --bin soak -- run --seconds 600 --out docs/robustness.md`

mod process;
mod report;
mod traffic;

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Result;
use clap::{Args, Parser};
use forethought_proxy::cli::{
    config::ConfigArgs,
    serve::{Models, ServeArgs, run},
};
use forethought_tests::FakeGuard;
use tokio::time::sleep;

use self::{
    process::{memory, start, wrk},
    report::Report,
    traffic::{Arrived, Left, leave, upstream},
};

/// The proxies: name and configuration.
const PROXIES: [(&str, &str); 2] = [
    ("guard-first", ""),
    ("parallel, answers read", "policy.order = \"parallel\"\nresponse_guard.enabled = true\n"),
];
/// Callers that leave, for each proxy.
pub(crate) const LEAVERS: usize = 4;
const SAMPLE: Duration = Duration::from_secs(5);

#[derive(Parser)]
enum Cli {
    /// Runs the soak
    Run(RunArgs),
    /// One of its proxies
    Serve {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        serve: ServeArgs,
    },
}

#[derive(Args)]
pub(crate) struct RunArgs {
    /// How long requests are sent
    #[arg(long, default_value_t = 600)]
    pub(crate) seconds: u64,
    /// Connections of wrk to each proxy
    #[arg(long, default_value_t = 16)]
    pub(crate) connections: usize,
    /// File for the report, beside standard output
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Cli::parse() {
        Cli::Run(args) => tokio::runtime::Runtime::new()?.block_on(soak(&args)),
        Cli::Serve { config, serve } => {
            let guard = Arc::new(FakeGuard::reading().taking(Duration::from_millis(3)).forgetful());
            run(&serve, &config, move |_| Ok(Models { guard: guard.clone(), chat: None }))
        }
    }
}

async fn soak(args: &RunArgs) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let arrived: [Arrived; 2] = Default::default();
    let mut upstreams = Vec::new();
    let mut proxies = Vec::new();
    for ((name, toml), arrived) in PROXIES.iter().zip(&arrived) {
        let upstream = upstream(arrived.clone()).await;
        proxies.push(start(name, toml, &upstream.url(), &folder.path().join(name.replace(' ', "-")))?);
        upstreams.push(upstream);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let left: Vec<Arc<Left>> = proxies.iter().map(|_| Arc::default()).collect();
    let mut leavers = Vec::new();
    for (proxy, left) in proxies.iter().zip(&left) {
        for caller in 0..LEAVERS {
            leavers.push(tokio::spawn(leave(proxy.address, caller, left.clone(), stop.clone())));
        }
    }
    let mut loads = proxies.iter().map(|proxy| wrk(proxy, args)).collect::<Result<Vec<_>>>()?;
    while loads.iter_mut().any(|load| !matches!(load.try_wait(), Ok(Some(_)))) {
        sleep(SAMPLE).await;
        for proxy in &mut proxies {
            proxy.memory.push(memory(proxy.process.id())?);
        }
    }
    stop.store(true, Relaxed);
    for leaver in leavers {
        leaver.await?;
    }
    let mut report = Report::new(args);
    for (((proxy, load), left), arrived) in proxies.into_iter().zip(loads).zip(left).zip(&arrived) {
        let load = String::from_utf8(load.wait_with_output()?.stdout)?;
        let arrived = std::mem::take(&mut *arrived.lock().unwrap_or_else(PoisonError::into_inner));
        let left = left.stages.lock().unwrap_or_else(PoisonError::into_inner).clone();
        report.add(proxy, &load, &left, &arrived)?;
    }
    print!("{}", report.text());
    if let Some(out) = &args.out {
        std::fs::write(out, report.text())?;
    }
    report.verdict()
}
