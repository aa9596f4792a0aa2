//! The `forethought` command.

use clap::{Parser, Subcommand};
use forethought_proxy::cli::{config, serve};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Config {
        #[command(flatten)]
        args: config::ConfigArgs,
        #[command(subcommand)]
        command: config::ConfigCommand,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(&args, |_| anyhow::bail!("no models yet")),
        Command::Config { args, command } => config::run(&args, command, &mut std::io::stdout().lock()),
    }
}
