//! `forethought plugin list`: the plugins of the configuration, in order.

use std::io::{self, Write as _};

use anyhow::Result;
use clap::Args;
use forethought_core::policy::{OnPolicyFailure, Policy as _};
use forethought_plugins::Plugin;
use serde_json::json;

use crate::{
    cli::{config::ConfigArgs, print_json, say_plainly},
    policies::engine,
};

/// Flags of `forethought plugin list`.
#[derive(Args, Clone, Debug)]
pub(super) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ListArgs, config: &ConfigArgs) -> Result<()> {
    let config = config.load([config.quiet_log()])?;
    let mut listed = Vec::new();
    let mut out = io::stdout().lock();
    for plugin in &config.policy.plugins {
        let loaded = Plugin::load(&engine()?, &plugin.path, plugin.options.clone())?;
        let (name, manifest) = (loaded.name(), loaded.manifest());
        let on_failure = match plugin.options.on_failure {
            OnPolicyFailure::Closed => "closed",
            OnPolicyFailure::Open => "open",
        };
        if args.json {
            listed.push(json!({
                "name": name,
                "plugin": manifest.name,
                "version": manifest.version,
                "stateful": manifest.stateful,
                "path": plugin.path,
                "sha256": loaded.sha256(),
                "imports": loaded.imports(),
                "on_failure": on_failure,
                "time_ms": plugin.options.limits.time.as_millis() as u64,
                "memory_bytes": plugin.options.limits.memory_bytes,
            }));
        } else {
            let what = say_plainly(&format!("{} {}", manifest.name, manifest.version));
            writeln!(out, "{name:<20} {what:<24} {on_failure:<7} {}", plugin.path.display())?;
        }
    }
    if args.json {
        print_json(&listed)?;
    } else if config.policy.plugins.is_empty() {
        writeln!(out, "the configuration has no plugins (`[[policy.plugins]]`)")?;
    }
    Ok(())
}
