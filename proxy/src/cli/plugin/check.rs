//! `forethought plugin check`: what a plugin is, what it wants, and whether it answers.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::Result;
use clap::Args;
use forethought_core::policy::{Case, RequestFacts};
use forethought_plugins::{NEWEST_INTERFACE, Window};

use super::{LoadArgs, cases::shown, sample};
use crate::cli::{FAILED, say_plainly};

/// Flags of `forethought plugin check`.
#[derive(Args, Clone, Debug)]
pub(super) struct CheckArgs {
    /// The plugin's file
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
}

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode> {
    let mut out = anstream::AutoStream::auto(io::stdout().lock());
    let begun = Instant::now();
    let plugin = args.load.load(&args.file)?;
    let loaded = begun.elapsed();
    let manifest = plugin.manifest();
    writeln!(out, "name       {} {}", say_plainly(&manifest.name), say_plainly(&manifest.version))?;
    writeln!(out, "interface  forethought:policy/policy@{NEWEST_INTERFACE}")?;
    let imports =
        if plugin.imports().is_empty() { "nothing".to_owned() } else { plugin.imports().join(", ") };
    writeln!(out, "imports    {imports}")?;
    writeln!(out, "size       {} bytes, sha256 {}", plugin.size(), plugin.sha256())?;
    writeln!(out, "instances  {}", if manifest.stateful { "used again" } else { "new for every call" })?;
    writeln!(out, "loaded     in {:.1} ms", loaded.as_secs_f64() * 1e3)?;

    let (conversation, evidence) = sample();
    let facts = RequestFacts { path: "check".to_owned(), ..RequestFacts::default() };
    let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
    let begun = Instant::now();
    let said = plugin.decide_request(&case, &[]);
    let took = begun.elapsed().as_secs_f64() * 1e3;
    let sound = match said {
        Ok((said, lines)) => {
            writeln!(
                out,
                "request    a harmful one, score {}: {} ({took:.2} ms)",
                evidence.score,
                shown(&said)
            )?;
            for line in lines {
                writeln!(out, "log        {:?}: {}", line.level, say_plainly(&line.message))?;
            }
            true
        }
        Err(failure) => {
            writeln!(out, "request    failed: {failure} ({took:.2} ms)")?;
            false
        }
    };
    let window = Window { held: "Dear neighbour,", last: true, ..Window::default() };
    let sound = match plugin.decide_response(&case, &window) {
        Ok((ruling, _)) => {
            writeln!(out, "response   {}", say_plainly(&format!("{:?}", ruling.decision)))?;
            sound
        }
        Err(failure) => {
            writeln!(out, "response   failed: {failure}")?;
            false
        }
    };
    Ok(if sound { ExitCode::SUCCESS } else { FAILED.into() })
}
