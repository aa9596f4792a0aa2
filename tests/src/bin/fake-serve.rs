//! `forethought serve` with fakes for models: what the tests send signals to.

use std::sync::Arc;

use clap::Parser;
use forethought_core::generate::ChatEvent;
use forethought_proxy::cli::{
    config::ConfigArgs,
    serve::{Models, ServeArgs, run},
};
use forethought_tests::{FakeGuard, FakeModel};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    serve: ServeArgs,
}

fn main() -> std::process::ExitCode {
    // Says one word, and never comes to an end.
    let model = FakeModel::telling(vec![ChatEvent::Text("Well".to_owned())]);
    let models = Models { guard: Arc::new(FakeGuard::reading()), chat: Some(Arc::new(model)) };
    let cli = Cli::parse();
    match run(&cli.serve, &cli.config, move |_| Ok(models.clone())) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
