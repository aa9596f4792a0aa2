//! `forethought-trainer data`.

use std::process::ExitCode;

/// What to do with data.
#[derive(clap::Subcommand, Debug)]
pub enum DataCommand {
    /// Check a data set
    Check {},
}

/// Runs `data`.
///
/// # Errors
/// None yet.
pub fn run(_: &DataCommand) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
