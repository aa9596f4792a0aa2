//! The commands. This file only wires: it reads flags, hands them to a command, and maps the outcome to an exit code.

pub mod calibrate;
pub mod combine;
pub mod data;
pub mod export;
pub mod probe;
pub mod report;
pub mod sft;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code of a command that could not do its work. (Wrong flags exit with 2.)
pub const FAILED: u8 = 1;
/// Exit code of a command that Ctrl-C ended.
pub const INTERRUPTED: u8 = 130;

/// Tunes the Forethought guard
#[derive(Debug, Parser)]
#[command(name = "forethought-trainer", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tune an adapter on R1-Act examples
    Sft(sft::SftArgs),
    /// Fit probes on the guard's hidden states and write them as ONNX
    Probe(probe::ProbeArgs),
    /// Write a tuned adapter as a PEFT folder, merged weights or a guard bundle, and check what was written
    Export(export::ExportArgs),
    /// Fit the probabilities of a bundle's verdicts to scored rows
    Calibrate(calibrate::CalibrateArgs),
    /// Fit one score to the signals of a bundle, and what is clear without reasoning
    Combine(combine::CombineArgs),
    /// Write a bundle's EVAL.md: how it was made and what it scores
    Report(report::ReportArgs),
    /// Check, write and convert training data
    Data {
        #[command(subcommand)]
        command: data::DataCommand,
    },
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    let outcome = match command {
        Command::Sft(args) => sft::run(&args),
        Command::Probe(args) => probe::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Combine(args) => combine::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Data { command } => data::run(&command),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        FAILED.into()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }
}
