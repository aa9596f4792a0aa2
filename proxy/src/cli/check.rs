//! `forethought check`: reads one prompt, and shows the guard's reasoning as it is written.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, Result};
use clap::Args;
use forethought_core::{
    conversation::Conversation,
    evidence::{Coverage, Evidence, Path as ScorePath, Phase, PhaseEnd, ProbeReading, Timings, Verdict},
    guard::{Event, Examination, Guard, GuardError, Options},
    policy::{Case, PolicyChain, RequestFacts, Ruling},
};
use serde_json::{Value, json};

use super::{
    HARMFUL,
    config::{ConfigArgs, flag},
    models, print_json,
    progress::say,
    runtime, say_plainly, trace,
};
use crate::{api::openai_chat, config::Flag, log};

/// Flags of `forethought check`.
#[derive(Args, Clone, Debug, Default)]
pub struct CheckArgs {
    /// The prompt; `-`, or nothing, reads standard input
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "conversation"])]
    pub file: Option<PathBuf>,
    /// Read a whole conversation from a JSON file: an OpenAI chat request, or its `messages`
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub conversation: Option<PathBuf>,
    /// `reason` writes the two phases before the verdict, `direct` asks for it at once, `probe` reads the hidden states, and
    /// `cascade` does that and reasons where it is not clear
    #[arg(long, value_name = "MODE", value_parser = ["reason", "direct", "probe", "cascade"])]
    pub mode: Option<String>,
    /// Score from which on the verdict is harmful
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub threshold: Option<f64>,
    /// Write what each probe says at every token to this file: a page to look at (`.html`), or data (`.json`)
    #[arg(long, value_name = "FILE", value_parser = trace::file)]
    pub trace: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl CheckArgs {
    fn flags(&self) -> impl Iterator<Item = Flag> {
        let mode = self.mode.as_ref().map(|mode| flag("--mode", "guard.mode", mode));
        let threshold = self.threshold.map(|score| flag("--threshold", "policy.threshold", score));
        mode.into_iter().chain(threshold)
    }

    fn conversation(&self) -> Result<Conversation> {
        if let Some(path) = &self.conversation {
            return read_conversation(path).with_context(|| format!("can't read {}", path.display()));
        }
        if let Some(path) = &self.file {
            let text = fs::read_to_string(path).with_context(|| format!("can't read {}", path.display()))?;
            return Ok(Conversation::from_user(text));
        }
        match self.prompt.as_deref() {
            None | Some("-") => {
                if io::stdin().is_terminal() {
                    say("type the prompt, then Ctrl-D (Ctrl-Z on Windows)");
                }
                let mut text = String::new();
                io::stdin().read_to_string(&mut text).context("can't read standard input")?;
                // `echo` and editors end the last line; the prompt does not hold that.
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Ok(Conversation::from_user(text.strip_suffix('\r').unwrap_or(text)))
            }
            Some(prompt) => Ok(Conversation::from_user(prompt)),
        }
    }
}

/// Runs `forethought check`: exits with 0 for benign and 3 for harmful.
///
/// # Errors
/// Wrong configuration or input, or the guard's failure.
pub fn run(args: &CheckArgs, config: &ConfigArgs) -> Result<ExitCode> {
    let config = config.load(args.flags().chain([config.quiet_log()]))?;
    log::init(&config.log);
    let conversation = args.conversation()?;
    let guard = models::load_guard(&config.guard)?.guard;
    let threshold = config.policy.thresholds.score;
    let policy = crate::policies::chain(&config.policy, &Arc::default())?;
    let traced = args.trace.as_ref().map(|_| trace::Traced::new(guard.clone())).transpose()?;
    let guard: &dyn Guard = traced.as_ref().map_or(&*guard, |traced| traced);
    // Whoever asks about one prompt waits for the whole of it, however long it is.
    let options = Options { mode: config.guard.mode, deadline: None };
    let checked = runtime()?.block_on(async {
        if args.json {
            return quietly(guard, &policy, conversation, options, threshold).await;
        }
        let mut out = anstream::stdout();
        aloud(guard, &policy, conversation, options, threshold, &mut out).await
    })?;
    if let Some((path, traced)) = args.trace.as_ref().zip(traced) {
        traced.trace().write(path, &checked)?;
    }
    if args.json {
        print_json(&checked.to_json()?)?;
    }
    Ok(match checked.verdict {
        Verdict::Benign => ExitCode::SUCCESS,
        Verdict::Harmful => HARMFUL.into(),
    })
}

/// A conversation from an OpenAI chat request, or from its `messages` alone.
fn read_conversation(path: &Path) -> Result<Conversation> {
    let text = fs::read(path)?;
    let request = match serde_json::from_slice(&text) {
        Ok(Value::Array(messages)) => json!({ "model": "none", "messages": messages }).to_string().into(),
        _ => text,
    };
    Ok(openai_chat::decode(&request)?.conversation)
}

/// What came of a check.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What the guard found.
    pub evidence: Evidence,
    /// The verdict at the threshold that was asked for.
    pub verdict: Verdict,
    /// That threshold.
    pub threshold: f64,
    /// What the policy makes of it.
    pub ruling: Ruling,
}

impl Checked {
    /// Judges `evidence`. A score that is not a number counts as harmful.
    fn new(
        conversation: &Conversation,
        evidence: Evidence,
        policy: &PolicyChain,
        threshold: f64,
    ) -> Result<Self> {
        let verdict = if evidence.score < threshold { Verdict::Benign } else { Verdict::Harmful };
        let facts = RequestFacts { path: "check".to_owned(), ..RequestFacts::default() };
        let case = Case { facts: &facts, conversation, evidence: &evidence, lazy: None };
        let ruling = policy.decide(&case)?;
        Ok(Self { evidence, verdict, threshold, ruling })
    }

    /// All of it as one object: the evidence's fields, with `verdict`, `threshold` and `policy` beside them.
    pub fn to_json(&self) -> Result<Value> {
        let mut object = serde_json::to_value(&self.evidence)?;
        object["activation_gap"] = json!(self.evidence.activation_gap());
        object["verdict"] = json!(self.verdict);
        object["threshold"] = json!(self.threshold);
        let Ruling { decision, by, reason, flags } = &self.ruling;
        object["policy"] = json!({ "decision": decision.as_str(), "by": by, "reason": reason });
        if !flags.is_empty() {
            object["policy"]["flags"] = json!(flags);
        }
        Ok(object)
    }
}

/// Has `conversation` examined and waits for the outcome.
///
/// # Errors
/// The guard's and the policies'.
pub async fn quietly(
    guard: &dyn Guard,
    policy: &PolicyChain,
    conversation: Conversation,
    options: Options,
    threshold: f64,
) -> Result<Checked> {
    let conversation = Arc::new(conversation);
    let evidence = guard.examine(conversation.clone(), options).evidence().await?;
    Checked::new(&conversation, evidence, policy, threshold)
}

/// Has `conversation` examined and writes what happens to `out` while it happens. `out` gets colours: wrap it in an
/// [`anstream::AutoStream`] where it might be no terminal.
///
/// # Errors
/// The guard's, and those of `out`.
pub async fn aloud(
    guard: &dyn Guard,
    policy: &PolicyChain,
    conversation: Conversation,
    options: Options,
    threshold: f64,
    out: &mut dyn io::Write,
) -> Result<Checked> {
    if conversation.text_len() == 0 {
        writeln!(out, "{DIM}The prompt is empty.{DIM:#}")?;
    }
    let conversation = Arc::new(conversation);
    let evidence = stream(guard.examine(conversation.clone(), options), out).await?;
    let checked = Checked::new(&conversation, evidence, policy, threshold)?;
    checked.write(out)?;
    Ok(checked)
}

const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default();

/// A phase's title, and the colour of its text.
const fn looks(phase: Phase) -> (&'static str, Style) {
    match phase {
        Phase::Understanding => ("understanding", AnsiColor::Cyan.on_default()),
        Phase::Assessment => ("assessment", AnsiColor::Magenta.on_default()),
    }
}

/// Writes the phases as they come.
pub(super) async fn stream(mut examination: Examination, out: &mut dyn io::Write) -> Result<Evidence> {
    while let Some(event) = examination.next().await {
        match event {
            Event::Coverage(coverage) => {
                for gap in gaps(&coverage) {
                    writeln!(out, "{WARNING}not read: {gap}{WARNING:#}")?;
                }
                if coverage.windows > 1 {
                    let (tokens, windows) = (coverage.tokens_read, coverage.windows);
                    writeln!(out, "{DIM}reading {tokens} tokens in {windows} windows{DIM:#}")?;
                }
            }
            Event::PhaseStarted(phase) => {
                let (title, _) = looks(phase);
                write!(out, "{DIM}{title:14}{DIM:#}")?;
            }
            Event::Text(phase, text) => {
                let (_, style) = looks(phase);
                write!(out, "{style}{}{style:#}", say_plainly(&text))?;
            }
            Event::PhaseEnded(_, end) => {
                let why = match end {
                    PhaseEnd::Complete => "",
                    PhaseEnd::Cap => " ... (cut at its token cap)",
                    PhaseEnd::Deadline => " ... (cut at the deadline)",
                };
                writeln!(out, "{DIM}{why}{DIM:#}")?;
            }
            Event::Traced(_) => {}
            Event::Done(evidence) => return Ok(*evidence),
            Event::Failed(error) => return Err(error.into()),
        }
        out.flush()?;
    }
    Err(GuardError::Stopped.into())
}

impl Checked {
    /// Writes the findings.
    fn write(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let Self { evidence, verdict, threshold, ruling } = self;
        let style = match verdict {
            Verdict::Harmful => BAD,
            Verdict::Benign => GOOD,
        };
        let mut line = |name: &str, text: &str| writeln!(out, "{DIM}{name:14}{DIM:#}{text}");
        line("verdict", &format!("{style}{verdict}{style:#}"))?;
        line("score", &format!("{style}{:.3}{style:#} (harmful from {threshold} on)", evidence.score))?;
        if let Some(direct) = evidence.direct_score {
            line("direct score", &format!("{direct:.3}"))?;
        }
        for probe in &evidence.probes {
            let ProbeReading { name, layer, position, score, threshold } = probe;
            let name = say_plainly(name);
            let from = format!("harmful from {threshold} on; {name}, layer {layer}, {position}");
            line("probe", &format!("{score:.3} ({from})"))?;
        }
        if let Some(gap) = evidence.activation_gap() {
            line("gap", &format!("{gap:+.3} (probes minus verdict)"))?;
            line("decided by", by(evidence))?;
        }
        if let Some(hazard) = &evidence.hazard {
            let doubt = if *verdict == Verdict::Benign { " (if it were harmful)" } else { "" };
            line("category", &format!("{}{doubt}", say_plainly(hazard.as_str())))?;
        }
        line("policy", &format!("{}: {}", ruling.decision.as_str(), ruling.reason))?;
        line("read", &coverage_text(&evidence.coverage))?;
        line("time", &timings_text(&evidence.timings))?;
        line("guard", &format!("{} on {}", evidence.guard.bundle, evidence.guard.base_model))
    }
}

/// What the score comes from.
fn by(evidence: &Evidence) -> &'static str {
    match (evidence.path, evidence.combined_score.is_some()) {
        (ScorePath::Probe, false) => "the probes",
        (ScorePath::Probe, true) => "the signals before reasoning, together",
        (ScorePath::Direct, _) => "the direct verdict",
        (ScorePath::Unassessed, _) => "nothing: no guard could be asked",
        (ScorePath::Reason, false) => "the verdict after reasoning",
        (ScorePath::Reason, true) => "all signals together, after reasoning",
    }
}

/// What was read, and, plainly, what was not.
fn coverage_text(coverage: &Coverage) -> String {
    let windows = match coverage.windows {
        0 | 1 => String::new(),
        n => format!(" in {n} windows"),
    };
    let gaps: Vec<String> = gaps(coverage).collect();
    if gaps.is_empty() {
        return format!("all {} tokens{windows}", coverage.tokens);
    }
    let (read, gaps) = (coverage.tokens_read, gaps.join(", "));
    format!("{read} of {} tokens{windows}; {WARNING}not read: {gaps}{WARNING:#}", coverage.tokens)
}

fn gaps(coverage: &Coverage) -> impl Iterator<Item = String> {
    let tokens = coverage.tokens_unread();
    let tokens = (tokens > 0).then(|| format!("{tokens} tokens"));
    tokens.into_iter().chain(coverage.unread.iter().map(|(kind, n)| format!("{n} x {}", say_plainly(kind))))
}

fn timings_text(t: &Timings) -> String {
    let (total, queue, read, write) = (t.total_ms, t.queue_ms, t.prefill_ms, t.decode_ms);
    let (read_tokens, written) = (t.prompt_tokens, t.generated_tokens);
    format!(
        "{total:.0} ms: waiting {queue:.0}, reading {read_tokens} tokens {read:.0}, writing {written} tokens {write:.0}"
    )
}
