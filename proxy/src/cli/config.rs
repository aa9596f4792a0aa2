//! `forethought config`: what is configured, where it came from, and whether it is right.

use std::{io::Write, path::PathBuf};

use anyhow::Result;
use clap::{ArgAction, Args, Subcommand};
use serde_json::Value;

use super::models;
use crate::config::{CheckedConfig, Flag, Merged, Problems, Raw, Setting, Sources};
use crate::reload;

/// Flags that every command with a configuration has.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file [default: forethought.toml here, or in the platform's configuration folder]
    #[arg(long, short, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Set one key, such as `--set policy.threshold=0.7`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = assignment, global = true)]
    pub set: Vec<(String, String)>,
    /// Log more; may be repeated
    #[arg(long, short, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Log less; may be repeated
    #[arg(long, short, action = ArgAction::Count, global = true)]
    pub quiet: u8,
}

impl ConfigArgs {
    /// This process's layers, with `flags` on top.
    pub fn sources(&self, flags: impl IntoIterator<Item = Flag>) -> Sources {
        let set = self.set.iter().map(|(key, value)| Flag {
            name: "--set".to_owned(),
            key: key.clone(),
            value: value.clone(),
        });
        Sources::of_process(self.config.clone(), set.chain(flags).collect())
    }

    /// The log level of a proxy, whose log is what people look at: as configured, or `info` moved by `-v` and `-q`.
    pub fn serving_log(&self) -> Option<Flag> {
        (self.verbose != self.quiet).then(|| self.log_level(2))
    }

    /// The log level of a command that shows something else: warnings, moved by `-v` and `-q`.
    pub fn quiet_log(&self) -> Flag {
        self.log_level(1)
    }

    fn log_level(&self, usual: i32) -> Flag {
        const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
        let level = usual + i32::from(self.verbose) - i32::from(self.quiet);
        let name = if self.quiet > self.verbose { "--quiet" } else { "--verbose" };
        flag(name, "log.level", LEVELS[level.clamp(0, 4) as usize])
    }

    /// The checked configuration.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn load(&self, flags: impl IntoIterator<Item = Flag>) -> Result<CheckedConfig, Problems> {
        CheckedConfig::load(&self.sources(flags))
    }
}

/// A value that `name` sets.
pub(super) fn flag(name: &str, key: &str, value: impl ToString) -> Flag {
    Flag { name: name.to_owned(), key: key.to_owned(), value: value.to_string() }
}

/// What to do with the configuration.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Report every mistake at once, and load all that a reload would
    Check {
        /// Don't load the guard and the embedded model
        #[arg(long)]
        skip_models: bool,
    },
    /// Print every key's value and where it came from
    Show,
    /// Print the JSON Schema of the configuration file
    Schema,
}

/// Runs `forethought config`, printing to `out`.
///
/// # Errors
/// [`Problems`] where the configuration has mistakes; `out`'s own errors.
pub fn run(args: &ConfigArgs, command: ConfigCommand, out: &mut impl Write) -> Result<()> {
    match command {
        ConfigCommand::Check { skip_models } => {
            let sources = args.sources([]);
            let load = |config: &CheckedConfig| models::load(config).map_err(Into::into);
            reload::rehearse(&sources, (!skip_models).then_some(&load as &reload::Load))?;
            match &sources.file {
                Some(path) => writeln!(out, "{} is right", path.display())?,
                None => writeln!(out, "there is no configuration file; defaults and environment are right")?,
            }
        }
        ConfigCommand::Show => {
            let merged = Merged::read(&args.sources([]));
            merged.settings().iter().try_for_each(|setting| writeln!(out, "{}", line(setting)))?;
            merged.check()?;
        }
        ConfigCommand::Schema => {
            serde_json::to_writer_pretty(&mut *out, &schemars::schema_for!(Raw))?;
            writeln!(out)?;
        }
    }
    Ok(())
}

/// A line of TOML, with the value's origin as comment.
fn line(Setting { key, value, origin }: &Setting) -> String {
    let shown = match value {
        Value::Null => return format!("# {key} is not set"),
        Value::String(text) => toml::Value::from(without_password(text)).to_string(),
        Value::Object(_) => "{}".to_owned(),
        other => toml::Value::try_from(other).map_or_else(|_| other.to_string(), |value| value.to_string()),
    };
    format!("{:<64} # {origin}", format!("{key} = {shown}"))
}

/// A URL's user and password are a mistake that the check reports; they are not shown all the same.
fn without_password(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://...@{host}"),
        _ => text.to_owned(),
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("needs the form KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_toml_with_origins() {
        fn check(key: &str, value: Value, expected: &str) {
            let line = line(&Setting { key: key.to_owned(), value, origin: "flag --set".to_owned() });
            let (setting, origin) = line.split_once(" #").unwrap_or((&line, ""));
            assert_eq!(setting.trim_end(), expected);
            assert!(line.starts_with('#') || origin == " flag --set", "{line}");
            line.parse::<toml::Table>().unwrap();
        }
        check("a", Value::Null, "# a is not set");
        check("a.b", "x \"y\"".into(), "a.b = 'x \"y\"'");
        check("a", "http://user:hunter2@host/v1".into(), "a = \"http://...@host/v1\"");
        check("a", 5.into(), "a = 5");
        check("a", 0.5.into(), "a = 0.5");
        check("a", serde_json::json!(["GET /x"]), "a = [\"GET /x\"]");
        check("a", serde_json::json!({}), "a = {}");
    }

    #[test]
    fn the_schema_describes_every_section() {
        let mut out = Vec::new();
        run(&ConfigArgs::default(), ConfigCommand::Schema, &mut out).unwrap();
        let schema: Value = serde_json::from_slice(&out).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let raw = serde_json::to_value(Raw::default()).unwrap();
        for key in raw.as_object().unwrap().keys() {
            assert!(properties.contains_key(key), "{key}");
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}
