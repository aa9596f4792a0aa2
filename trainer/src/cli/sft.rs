//! `forethought-trainer sft`.

use std::process::ExitCode;

/// Flags of `sft`.
#[derive(clap::Args, Debug)]
pub struct SftArgs {}

/// Runs `sft`.
///
/// # Errors
/// None yet.
pub fn run(_: &SftArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
