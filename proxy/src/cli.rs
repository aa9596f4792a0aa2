//! The commands.
//!
//! This file only wires: it reads flags, hands them to a command, and maps the outcome to an exit code. Each command's
//! own work takes its guard, policy and output as arguments.

pub mod audit;
pub mod bench;
pub mod calibrate;
pub mod check;
pub mod config;
pub mod demo;
pub mod eval;
mod html;
pub mod key;
pub mod model;
pub mod models;
pub mod plugin;
mod progress;
pub mod replay;
pub mod serve;
pub mod trace;

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::config::{ConfigArgs, ConfigCommand};

/// Exit code of a command that could not do its work.
pub const FAILED: u8 = 1;
/// Exit code of `check` where the verdict is harmful. (Wrong flags exit with 2.)
pub const HARMFUL: u8 = 3;
/// Exit code of `eval` where rows failed or were not usable.
pub const INCOMPLETE: u8 = 4;
/// Exit code of `eval` after Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// A reverse proxy with a guard that thinks before the LLM answers
#[derive(Debug, Parser)]
#[command(name = "forethought", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  forethought demo                                see it at work, with nothing else installed
  forethought check \"How do I kill a process?\"   what the guard makes of one prompt
  forethought serve --upstream https://llm.example/v1
  forethought eval --data prompts.jsonl --out results.jsonl

Settings come from defaults, then a TOML file, then the environment (FORETHOUGHT__LISTEN=...), then flags; the last one
that sets a key wins. `forethought config show` prints them all and where each came from.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy until a signal stops it
    Serve(serve::ServeArgs),
    /// Show what the guard makes of one prompt; exits with 0 for benign, 3 for harmful
    Check(check::CheckArgs),
    /// Send three requests through a proxy of its own, then keep serving
    Demo(demo::DemoArgs),
    /// Score labelled prompts and measure how well the guard tells them apart
    Eval(eval::EvalArgs),
    /// Set the threshold by your own traffic, with what it promises
    Calibrate(calibrate::CalibrateArgs),
    /// Measure how fast this machine runs the guard
    Bench(bench::BenchArgs),
    /// Check, show or describe the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Make keys for tenants
    Key {
        #[command(subcommand)]
        command: key::KeyCommand,
    },
    /// Fetch, list, check and remove models
    Model(model::ModelArgs),
    /// Make, check, test and time policy plugins
    Plugin(plugin::PluginArgs),
    /// Read the audit files: the latest records, those that match, decisions over time
    Audit(audit::AuditArgs),
    /// Decide recorded evidence anew, with the policies of another configuration
    Replay(replay::ReplayArgs),
}

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    let Cli { config, command } = Cli::parse();
    run(&config, command).unwrap_or_else(|error| {
        // Whoever reads our output has seen enough, as `head` does: nothing to say, and nobody to say it to.
        let is_pipe = |cause: &(dyn Error + 'static)| {
            cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
        };
        if !error.chain().any(is_pipe) {
            progress::say(&explain(&error));
        }
        FAILED.into()
    })
}

fn run(config: &ConfigArgs, command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::run(&args, config, models::load)?,
        Command::Check(args) => return check::run(&args, config),
        Command::Demo(args) => demo::run(&args, config)?,
        Command::Eval(args) => return eval::run(&args, config),
        Command::Calibrate(args) => return calibrate::run(&args, config),
        Command::Bench(args) => bench::run(&args, config)?,
        Command::Config { command } => config::run(config, command, &mut io::stdout().lock())?,
        Command::Key { command } => key::run(command, &mut io::stdin().lock(), &mut io::stdout().lock())?,
        Command::Model(args) => return model::run(args),
        Command::Plugin(args) => return plugin::run(&args, config),
        Command::Audit(args) => audit::run(&args, config, &mut anstream::stdout().lock())?,
        Command::Replay(args) => replay::run(&args, config)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The runtime for a command's work.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// An error and its causes, one a line. A cause that the line above tells already is left out.
fn explain(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    let mut last = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !last.contains(&cause) {
            text += &format!("\n  because: {cause}");
            last = cause;
        }
    }
    text
}

/// Prints one JSON value.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Text of others made fit for a terminal: control characters, which could move the cursor or change the screen, are
/// shown as their code; line ends and tabs stay.
fn say_plainly(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => plain.push(c),
            c if c.is_control() => plain.extend(c.escape_unicode()),
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_tell_each_cause_once() {
        let error = anyhow!("no such file").context("can't read x: no such file").context("can't start");
        assert_eq!(explain(&error), "error: can't start\n  because: can't read x: no such file");
    }

    #[test]
    fn text_of_others_does_not_drive_the_terminal() {
        assert_eq!(say_plainly("a\tb\n\u{1b}[31m\u{9b}\r\u{e9}"), "a\tb\n\\u{1b}[31m\\u{9b}\\u{d}\u{e9}");
    }
}
