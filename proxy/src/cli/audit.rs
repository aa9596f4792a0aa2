//! `forethought audit`: what the audit files say, rotated and compressed ones included.

mod read;
mod stats;
mod tail;

use std::{io, path::PathBuf, time::SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use self::read::{Entry, entries};
use super::{config::ConfigArgs, say_plainly};

/// Flags of `forethought audit`.
#[derive(Args, Clone, Debug)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum AuditCommand {
    /// Print the latest records, and with --follow those to come
    Tail {
        #[command(flatten)]
        filter: Filter,
        /// How many
        #[arg(long, short = 'n', default_value_t = 20)]
        lines: usize,
        /// Go on with records as they are written
        #[arg(long, short)]
        follow: bool,
        /// Print whole records as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the records that match
    Grep {
        /// Text that a record's JSON holds
        pattern: Option<String>,
        #[command(flatten)]
        filter: Filter,
        /// Print whole records as JSON
        #[arg(long)]
        json: bool,
        /// Print only how many match
        #[arg(long)]
        count: bool,
    },
    /// Count decisions, and plot them over time
    Stats {
        #[command(flatten)]
        filter: Filter,
        /// What to count by, beside the decision
        #[arg(long, value_enum, default_value_t)]
        by: stats::By,
        /// Rows of the plot
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
        rows: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which records.
#[derive(Args, Clone, Debug, Default)]
struct Filter {
    /// The audit file; its older ones lie beside it [default: that of the configuration]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// From this time on: RFC 3339, or a span before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// With this decision, such as refuse; may be repeated
    #[arg(long)]
    decision: Vec<String>,
    /// With this hazard; may be repeated
    #[arg(long)]
    hazard: Vec<String>,
    /// Of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// For this model
    #[arg(long)]
    model: Option<String>,
    /// With this error
    #[arg(long)]
    error: Option<String>,
    /// Marked with this flag
    #[arg(long)]
    flag: Option<String>,
    /// Whose id begins so
    #[arg(long)]
    id: Option<String>,
    /// With a score of at least this
    #[arg(long, value_name = "SCORE")]
    min_score: Option<f64>,
}

impl Filter {
    fn takes(&self, entry: &Entry) -> bool {
        let is = |wanted: &Option<String>, found: Option<&String>| {
            wanted.as_ref().is_none_or(|wanted| found == Some(wanted))
        };
        let among = |wanted: &[String], found: Option<&String>| {
            wanted.is_empty() || found.is_some_and(|found| wanted.contains(found))
        };
        self.since.is_none_or(|since| entry.time >= since)
            && self.until.is_none_or(|until| entry.time < until)
            && among(&self.decision, Some(&entry.decision))
            && among(&self.hazard, entry.hazard.as_ref())
            && is(&self.tenant, entry.tenant.as_ref())
            && is(&self.model, entry.model.as_ref())
            && is(&self.error, entry.error.as_ref())
            && self.flag.as_ref().is_none_or(|flag| entry.flags.contains(flag))
            && self.id.as_ref().is_none_or(|id| entry.id.starts_with(id))
            && self.min_score.is_none_or(|least| entry.score.is_some_and(|score| score >= least))
    }

    /// The audit file.
    fn path(&self, config: &ConfigArgs) -> Result<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let audit = config.load([config.quiet_log()])?.audit;
        audit
            .map(|audit| audit.path)
            .context("no records are kept (`audit.enabled`); name a file with --file")
    }

    /// The records that match, oldest first.
    fn entries(&self, config: &ConfigArgs) -> Result<impl Iterator<Item = Result<Entry>>> {
        let path = self.path(config)?;
        let files = crate::audit::files(&path);
        if files.is_empty() {
            bail!("there is no audit file {}", path.display());
        }
        let filter = self.clone();
        Ok(entries(files).filter(move |entry| entry.as_ref().map_or(true, |entry| filter.takes(entry))))
    }
}

/// Runs `forethought audit`, printing to `out`.
///
/// # Errors
/// A file that can't be read, or `out`'s own errors.
pub fn run(args: &AuditArgs, config: &ConfigArgs, out: &mut dyn io::Write) -> Result<()> {
    match &args.command {
        AuditCommand::Tail { filter, lines, follow, json } => {
            tail::run(filter, config, *lines, *follow, *json, out)
        }
        AuditCommand::Grep { pattern, filter, json, count } => {
            let mut found = 0_u64;
            for entry in filter.entries(config)? {
                let entry = entry?;
                if pattern.as_ref().is_none_or(|pattern| entry.raw.contains(pattern)) {
                    found += 1;
                    if !count {
                        print(&entry, *json, out)?;
                    }
                }
            }
            if *count {
                writeln!(out, "{found}")?;
            }
            Ok(())
        }
        AuditCommand::Stats { filter, by, rows, json } => {
            let stats = stats::Stats::of(filter.entries(config)?, *by, *rows as usize)?;
            if *json {
                serde_json::to_writer_pretty(&mut *out, &stats)?;
                writeln!(out)?;
            } else {
                stats.write(out)?;
            }
            Ok(())
        }
    }
}

fn print(entry: &Entry, json: bool, out: &mut dyn io::Write) -> Result<()> {
    if json {
        writeln!(out, "{}", entry.raw)?;
    } else {
        writeln!(out, "{}", say_plainly(&entry.to_string()))?;
    }
    Ok(())
}

/// A point in time, or a span before now.
fn time(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let span = humantime::parse_duration(text).ok();
    span.and_then(|span| SystemTime::now().checked_sub(span))
        .ok_or_else(|| "must be a time such as 2026-11-26T08:00:00Z, or a span such as 2h".to_owned())
}
