//! `forethought plugin test`: a plugin against its cases.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use forethought_core::policy::{Case, RequestFacts};
use forethought_plugins::{Plugin, PluginOptions};
use serde_json::Value;

use super::{
    cases::{Cases, TestCase},
    grants,
};
use crate::{cli::FAILED, policies::engine};

/// What a folder's cases may be called.
const NAMES: [&str; 3] = ["cases.toml", "cases.yaml", "cases.yml"];
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// Flags of `forethought plugin test`.
#[derive(Args, Clone, Debug)]
pub(super) struct TestArgs {
    /// A folder with `cases.toml` or `cases.yaml`, or a file of that kind
    #[arg(value_name = "DIR")]
    path: PathBuf,
    /// The plugin's file, in place of the one that the cases name
    #[arg(long, value_name = "FILE.wasm")]
    component: Option<PathBuf>,
}

pub(super) fn run(args: &TestArgs) -> Result<ExitCode> {
    let file = if args.path.is_dir() { find(&args.path)? } else { args.path.clone() };
    let cases = read(&file)?;
    let component = match (&args.component, &cases.component) {
        (Some(own), _) => own.clone(),
        (None, Some(named)) => file.parent().unwrap_or(Path::new("")).join(named),
        (None, None) => {
            bail!("{} has no `component`; name the plugin's file with --component", file.display())
        }
    };
    let (passed, failed) = run_all(&cases, &component, &mut anstream::stdout())?;
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { FAILED.into() })
}

/// The cases of a folder. Two files are an error: one of them would silently not be run.
fn find(folder: &Path) -> Result<PathBuf> {
    let mut found = NAMES.iter().map(|name| folder.join(name)).filter(|file| file.exists());
    match (found.next(), found.next()) {
        (Some(file), None) => Ok(file),
        (None, _) => bail!("{} has none of {}", folder.display(), NAMES.join(", ")),
        (Some(one), Some(other)) => {
            bail!("{} and {} both hold cases: name one, or delete it", one.display(), other.display())
        }
    }
}

/// Reads cases in TOML, or, by the file's name, in YAML.
fn read(file: &Path) -> Result<Cases> {
    let text = fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    let yaml = file.extension().is_some_and(|kind| kind == "yaml" || kind == "yml");
    let cases = if yaml {
        serde_saphyr::from_str(&text).map_err(anyhow::Error::from)
    } else {
        toml::from_str(&text).map_err(anyhow::Error::from)
    };
    cases.with_context(|| format!("{} is not right", file.display()))
}

/// Runs all cases and says how each went; how many passed and failed.
fn run_all(cases: &Cases, component: &Path, out: &mut dyn io::Write) -> Result<(usize, usize)> {
    let bytes = fs::read(component)
        .with_context(|| format!("can't read the plugin {}; was it built?", component.display()))?;
    // A plugin is loaded once for each configuration.
    let mut loaded: BTreeMap<String, Result<Plugin, String>> = BTreeMap::new();
    let (mut passed, mut failed) = (0, 0);
    for case in &cases.case {
        let config = case.config.as_ref().or(cases.config.as_ref()).cloned().unwrap_or_default();
        let plugin = loaded.entry(Value::from(config.clone()).to_string()).or_insert_with(|| {
            let options = PluginOptions {
                config: config.into(),
                grants: grants(&cases.grants).map_err(|error| error.to_string())?,
                ..PluginOptions::default()
            };
            let engine = engine().map_err(|error| error.to_string())?;
            Plugin::of_bytes(&engine, component, &bytes, options).map_err(|error| error.to_string())
        });
        let wrong = judge(plugin, case);
        if wrong.is_empty() {
            passed += 1;
            writeln!(out, "{GOOD}ok{GOOD:#}      {}", case.name)?;
        } else {
            failed += 1;
            writeln!(out, "{BAD}FAILED{BAD:#}  {}", case.name)?;
            for (what, expected, found) in wrong {
                writeln!(out, "        {what}")?;
                writeln!(out, "          expected  {expected}")?;
                writeln!(out, "          found     {found}")?;
            }
        }
    }
    writeln!(out, "{passed} passed, {failed} failed")?;
    Ok((passed, failed))
}

/// What differs from what is expected: its name, the expected value, the one found.
fn judge(plugin: &Result<Plugin, String>, case: &TestCase) -> Vec<(String, String, String)> {
    let said = plugin.as_ref().map_err(Clone::clone).and_then(|plugin| {
        let conversation = case.request.conversation();
        let facts: RequestFacts = case.request.facts();
        let evidence = case.evidence.evidence();
        let so_far = case.so_far.iter().map(|opinion| opinion.opinion()).collect::<Vec<_>>();
        let judged = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
        plugin.decide_request(&judged, &so_far).map(|(said, _)| said).map_err(|failure| failure.to_string())
    });
    let found: Value = match said {
        Ok(said) => super::cases::to_json(&said),
        Err(error) => serde_json::json!({ "error": error }),
    };
    case.expect.differences(&found)
}
