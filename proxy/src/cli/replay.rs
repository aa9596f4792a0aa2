//! `forethought replay`: recorded evidence, decided anew by the policies of another configuration.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use forethought_core::{
    conversation::Conversation,
    evidence::{Assessment, Coverage, Evidence, GuardVersion, Hazard, Path, PhaseEnd, ProbeReading, Timings},
    policy::{Case, PolicyChain, RequestFacts},
};
use serde::{Deserialize, Serialize};

use super::{config::ConfigArgs, print_json, say_plainly};
use crate::policies;

/// Flags of `forethought replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// An audit file
    #[arg(value_name = "AUDIT.jsonl")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is read of a record. Names and meanings are those of the audit's own.
#[derive(Debug, Deserialize)]
struct Recorded {
    id: String,
    decision: String,
    by: Option<String>,
    /// What the policy ruled where nobody acted on it.
    ruled: Option<String>,
    error: Option<String>,
    path: String,
    model: Option<String>,
    stream: Option<bool>,
    format: Option<String>,
    tenant: Option<String>,
    #[serde(default)]
    languages: Vec<String>,
    /// The record is of a request that a guard read if it has one.
    score: Option<f64>,
    signal: Option<Path>,
    hazard: Option<Hazard>,
    direct_score: Option<f64>,
    probe_score: Option<f64>,
    combined_score: Option<f64>,
    reasoned_score: Option<f64>,
    ends: Option<[PhaseEnd; 2]>,
    #[serde(default)]
    probes: Vec<ProbeReading>,
    understanding: Option<String>,
    assessment: Option<String>,
    #[serde(default)]
    coverage: Coverage,
    #[serde(default)]
    guard: GuardVersion,
    prompt: Option<Prompt>,
}

#[derive(Debug, Deserialize)]
struct Prompt {
    conversation: Option<Conversation>,
}

/// What came of a replay.
#[derive(Debug, Default, Serialize)]
pub struct Replayed {
    /// Records that were decided anew.
    pub decided: usize,
    /// Records of requests that no guard read, which can't be.
    pub skipped: usize,
    /// Records without the request's text: a policy that reads it may decide otherwise.
    pub without_text: usize,
    /// How often each old decision (outer) became each new one.
    pub counts: BTreeMap<String, BTreeMap<String, usize>>,
    /// Those that are decided otherwise now.
    pub flips: Vec<Flip>,
}

/// A request that is decided otherwise now.
#[derive(Debug, Serialize)]
pub struct Flip {
    /// Its id.
    pub id: String,
    /// P(harmful).
    pub score: f64,
    /// The hazard.
    pub hazard: Option<Hazard>,
    /// The recorded decision.
    pub was: String,
    /// Who made it.
    pub was_by: Option<String>,
    /// The new decision.
    pub is: String,
    /// Who makes it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// Runs `forethought replay`.
///
/// # Errors
/// Mistakes in the configuration, plugins that can't be loaded, lines that are no audit records.
pub fn run(args: &ReplayArgs, config: &ConfigArgs) -> Result<()> {
    let config = config.load([config.quiet_log()])?;
    let chain = policies::chain(&config.policy, &Arc::default())?;
    let file = File::open(&args.file).with_context(|| format!("can't read {}", args.file.display()))?;
    let replayed = replay(BufReader::new(file), &chain)
        .with_context(|| format!("{} is not an audit file", args.file.display()))?;
    if args.json { print_json(&replayed) } else { Ok(replayed.write(&mut io::stdout().lock())?) }
}

/// Decides all records anew.
///
/// # Errors
/// Lines that can't be read, or are no audit records.
pub fn replay(lines: impl io::BufRead, chain: &PolicyChain) -> Result<Replayed> {
    let mut replayed = Replayed::default();
    for (index, line) in lines.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let record: Recorded = match serde_json::from_str(&line) {
            Ok(record) => record,
            // The message is not shown in whole: it may quote the line.
            Err(error) => bail!("line {}, column {}: not an audit record", index + 1, error.column()),
        };
        let Some(score) = record.score else {
            replayed.skipped += 1;
            continue;
        };
        replayed.decided += 1;
        let (id, hazard, was_by) = (record.id.clone(), record.hazard.clone(), record.by.clone());
        let was = record.was();
        let (facts, conversation, evidence) = record.parts(score);
        replayed.without_text += usize::from(conversation.is_none());
        let conversation = conversation.unwrap_or_default();
        let case = Case { facts: &facts, conversation: &conversation, evidence: &evidence, lazy: None };
        let (is, by, reason) = match chain.decide(&case) {
            Ok(ruling) => (ruling.decision.as_str().to_owned(), ruling.by, ruling.reason),
            Err(failure) => ("deny".to_owned(), failure.policy, failure.message),
        };
        *replayed.counts.entry(was.clone()).or_default().entry(is.clone()).or_default() += 1;
        if was != is {
            replayed.flips.push(Flip { id, score, hazard, was, was_by, is, by, reason });
        }
    }
    Ok(replayed)
}

impl Recorded {
    /// What the policies decided, whether or not it was acted on.
    fn was(&self) -> String {
        match (&self.ruled, &self.error) {
            (Some(ruled), _) if ruled.contains('_') => "deny".to_owned(), // an error's code
            (Some(ruled), _) => ruled.clone(),
            (None, _) => self.decision.clone(),
        }
    }

    fn parts(self, score: f64) -> (RequestFacts, Option<Conversation>, Evidence) {
        let facts = RequestFacts {
            model: self.model.unwrap_or_default(),
            path: self.path,
            api: self.format.unwrap_or_default(),
            stream: self.stream.unwrap_or_default(),
            tenant: self.tenant,
            languages: self.languages,
        };
        let written = |score| Assessment {
            understanding: self.understanding.unwrap_or_default(),
            assessment: self.assessment.unwrap_or_default(),
            ends: self.ends.unwrap_or([PhaseEnd::Complete; 2]),
            score,
        };
        let evidence = Evidence {
            score,
            path: self.signal.unwrap_or(Path::Reason),
            hazard: self.hazard,
            assessment: self.reasoned_score.map(written),
            direct_score: self.direct_score,
            probe_score: self.probe_score,
            combined_score: self.combined_score,
            probes: self.probes,
            partial: false,
            coverage: self.coverage,
            timings: Timings::default(),
            guard: self.guard,
            steps: vec![],
        };
        (facts, self.prompt.and_then(|prompt| prompt.conversation), evidence)
    }
}

impl Replayed {
    /// Writes a table for people.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        writeln!(
            out,
            "{} decided anew, {} flipped; {} that no guard read were skipped",
            self.decided,
            self.flips.len(),
            self.skipped
        )?;
        if self.without_text > 0 {
            writeln!(
                out,
                "{} have no text (the setting `audit.prompt`): policies that read it may decide otherwise",
                self.without_text
            )?;
        }
        for (was, counts) in &self.counts {
            for (is, count) in counts {
                writeln!(out, "  {was:<10} -> {is:<10} {count:>7}")?;
            }
        }
        if !self.flips.is_empty() {
            writeln!(out, "{:<36}  score  {:<20} was -> is", "id", "hazard")?;
        }
        for flip in &self.flips {
            let hazard = flip.hazard.as_ref().map_or("-", |hazard| hazard.as_str());
            let line = format!(
                "{:<36}  {:.3}  {hazard:<20} {} -> {} by {}: {}",
                flip.id, flip.score, flip.was, flip.is, flip.by, flip.reason
            );
            writeln!(out, "{}", say_plainly(&line))?;
        }
        Ok(())
    }
}
