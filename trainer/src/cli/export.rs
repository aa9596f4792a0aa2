//! `forethought-trainer export`.

use std::process::ExitCode;

/// Flags of `export`.
#[derive(clap::Args, Debug)]
pub struct ExportArgs {}

/// Runs `export`.
///
/// # Errors
/// None yet.
pub fn run(_: &ExportArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
