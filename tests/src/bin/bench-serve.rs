//! `forethought serve` with a guard that finds the same in every conversation, after the same time: what the proxy is
//! measured with (`tests/benches/peers`).

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use forethought_core::{
    conversation::Conversation,
    evidence::GuardVersion,
    guard::{Event, Examination, Guard, Options},
};
use forethought_proxy::cli::{
    config::ConfigArgs,
    serve::{Models, ServeArgs, run},
};
use forethought_tests::evidence;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    serve: ServeArgs,
    /// Time that the guard takes, in microseconds; 0 answers at once
    #[arg(long, default_value_t = 0)]
    guard_us: u64,
}

/// Finds everything harmless. Unlike [`forethought_tests::FakeGuard`] it remembers nothing.
struct ConstantGuard(Duration);

impl Guard for ConstantGuard {
    fn examine(&self, _: Arc<Conversation>, _: Options) -> Examination {
        let (events, examination) = Examination::channel();
        let after = self.0;
        let tell = move || {
            let evidence = evidence(0.01);
            // The caller may have left.
            let _ = events.send(Event::Coverage(evidence.coverage.clone()));
            let _ = events.send(Event::Done(Box::new(evidence)));
        };
        if after.is_zero() {
            tell();
        } else {
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                tell();
            });
        }
        examination
    }

    fn version(&self) -> GuardVersion {
        evidence(0.0).guard
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let guard = Arc::new(ConstantGuard(Duration::from_micros(cli.guard_us)));
    match run(&cli.serve, &cli.config, move |_| Ok(Models { guard: guard.clone(), chat: None })) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
