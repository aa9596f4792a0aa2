//! `forethought-trainer data`: checks, writes and converts training data. Each command has its own file.

pub mod assess;
pub mod check;
pub mod import;
mod table;

use std::process::ExitCode;

/// Exit code of a command that did its work and found, or left, something to be mended.
pub const PROBLEMS: u8 = 4;

/// What to do with data.
#[derive(clap::Subcommand, Debug)]
pub enum DataCommand {
    /// Look for repeats, leaks of the label, and rows that are too long
    Check(check::CheckArgs),
    /// Have a teacher write understanding and assessment for labelled instructions
    Assess(Box<assess::AssessArgs>),
    /// Convert a public benchmark
    Import(import::ImportArgs),
}

/// Runs `data`.
///
/// # Errors
/// What keeps the command from its work; problems of the data are no error.
pub fn run(command: &DataCommand) -> anyhow::Result<ExitCode> {
    match command {
        DataCommand::Check(args) => check::run(args),
        DataCommand::Assess(args) => assess::run(args),
        DataCommand::Import(args) => import::run(args),
    }
}
