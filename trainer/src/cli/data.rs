//! `forethought-trainer data`: checks, writes and converts training data. Each command has its own file.

pub mod adopt;
pub mod assess;
pub mod check;
pub mod import;
mod table;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use forethought_core::dataset::Dataset;
use serde_json::{Map, Value};

/// Exit code of a command that did its work and found, or left, something to be mended.
pub const PROBLEMS: u8 = 4;

/// What to do with data.
#[derive(clap::Subcommand, Debug)]
pub enum DataCommand {
    /// Look for repeats, leaks of the label, and rows that are too long
    Check(check::CheckArgs),
    /// Have a teacher write understanding and assessment for labelled instructions
    Assess(Box<assess::AssessArgs>),
    /// Put the phases that a guard wrote into the rows that it was asked about
    Adopt(adopt::AdoptArgs),
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
        DataCommand::Adopt(args) => adopt::run(args),
        DataCommand::Import(args) => import::run(args),
    }
}

/// Writes the rows beside the output and puts them in its place once they read back as they should.
fn write_rows(path: &Path, rows: &[Map<String, Value>]) -> anyhow::Result<()> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    let read = Dataset::from_bytes(text.as_bytes());
    if let Some(bad) = read.bad.first() {
        bail!("row {} of the output would not be usable: {}", bad.line, bad.problem);
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let put = || {
        let mut file = fs::File::create(&part)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&part, path)
    };
    put().with_context(|| format!("can't write {}", path.display()))
}
