//! `forethought check --trace`: what each probe says at every token, as a page to look at or as data.
//!
//! The page stands alone: no scripts, nothing from elsewhere, all text escaped.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use forethought_core::{
    conversation::Conversation,
    evidence::GuardVersion,
    guard::{
        Event, Examination, Guard, LocalGuard, Options,
        trace::{Part, TracedToken},
    },
    probe::Position,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{check::Checked, html::escape};

/// A path that says by its end what is to be written there.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.extension().and_then(|end| end.to_str()) {
        Some("html" | "json") => Ok(path),
        _ => Err("must end in .html or .json".to_owned()),
    }
}

/// A guard that keeps what its probes say at every token.
pub struct Traced {
    guard: Arc<LocalGuard>,
    tokens: Arc<Mutex<Vec<TracedToken>>>,
}

impl Traced {
    /// Wraps `guard`.
    ///
    /// # Errors
    /// It has no probes.
    pub fn new(guard: Arc<LocalGuard>) -> Result<Self> {
        ensure!(
            guard.probes().next().is_some(),
            "--trace needs probes, and bundle `{}` has none: use a bundle that has some, or add one with `guard.probes`",
            guard.version().bundle
        );
        Ok(Self { guard, tokens: Arc::default() })
    }

    /// What was said so far.
    pub fn trace(&self) -> Trace {
        let probe = |info: &forethought_core::probe::ProbeInfo| TracedProbe {
            name: info.name.clone(),
            layer: info.layer,
            position: info.position,
            threshold: info.threshold,
        };
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Trace { probes: self.guard.probes().map(probe).collect(), tokens }
    }
}

impl Guard for Traced {
    fn examine(&self, conversation: Arc<Conversation>, options: Options) -> Examination {
        let mut examination = self.guard.trace(conversation, options);
        let (events, forwarded) = Examination::channel();
        let tokens = self.tokens.clone();
        tokio::spawn(async move {
            while let Some(event) = examination.next().await {
                match event {
                    Event::Traced(more) => {
                        tokens.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
                    }
                    event => {
                        if events.send(event).is_err() {
                            break; // which drops the examination and so stops the guard's work on it
                        }
                    }
                }
            }
        });
        forwarded
    }

    fn version(&self) -> GuardVersion {
        self.guard.version()
    }
}

/// What probes said at every token.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    /// The probes, in the order of [`TracedToken::scores`].
    pub probes: Vec<TracedProbe>,
    /// The tokens in the order of reading and writing.
    pub tokens: Vec<TracedToken>,
}

/// A probe of a trace.
#[derive(Clone, Debug, Serialize)]
pub struct TracedProbe {
    /// Its name.
    pub name: String,
    /// The layer it reads.
    pub layer: usize,
    /// The state it reads when it judges; in a trace it reads every one.
    pub position: Position,
    /// The score from which on it says harmful.
    pub threshold: f64,
}

impl Trace {
    /// Writes the page or the data, as the file's end says.
    pub(super) fn write(&self, path: &Path, checked: &Checked) -> Result<()> {
        let text = match path.extension() {
            Some(end) if end == "json" => format!("{:#}\n", self.json(checked)?),
            _ => self.html(checked),
        };
        fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
    }

    /// Probes, tokens, and what came of the check.
    ///
    /// # Errors
    /// None for what a guard finds.
    pub fn json(&self, checked: &Checked) -> Result<Value> {
        Ok(json!({ "probes": self.probes, "tokens": self.tokens, "result": checked.to_json()? }))
    }

    /// The page.
    pub fn html(&self, checked: &Checked) -> String {
        let Checked { evidence, verdict, threshold, ruling } = checked;
        let mut page = String::from(HEAD);
        // Writing to a string can't fail.
        let _ = write!(
            page,
            "<h1>What the guard knew, token by token</h1>\n<dl>\n\
             <dt>verdict</dt><dd>{verdict}: score {:.3}, harmful from {threshold} on</dd>\n\
             <dt>policy</dt><dd>{}: {}</dd>\n<dt>guard</dt><dd>{} on {}</dd>\n</dl>\n{LEGEND}",
            evidence.score,
            ruling.decision.as_str(),
            escape(&ruling.reason),
            escape(&evidence.guard.bundle),
            escape(&evidence.guard.base_model),
        );
        for (index, probe) in self.probes.iter().enumerate() {
            self.section(index, probe, checked, &mut page);
        }
        page.push_str("</main>\n</html>\n");
        page
    }

    /// One probe's strip and text.
    fn section(&self, index: usize, probe: &TracedProbe, checked: &Checked, page: &mut String) {
        let TracedProbe { name, layer, position, threshold } = probe;
        let reading = checked.evidence.probes.iter().find(|reading| reading.name == *name);
        let judged = reading.map_or_else(String::new, |reading| format!(" It judged: {:.3}.", reading.score));
        let _ = write!(
            page,
            "<section>\n<h2>{}</h2>\n<p class=\"note\">Layer {layer}, position {position}, harmful from {threshold} on.{judged}</p>\n",
            escape(name)
        );
        let score = |token: &TracedToken| token.scores.get(index).copied().unwrap_or(0.0);
        self.strip(&score, *threshold, page);
        let mut part = None;
        for (number, token) in self.tokens.iter().enumerate() {
            if part != Some(token.part) {
                page.push_str(if part.is_some() { "</p>\n" } else { "" });
                let _ = write!(page, "<h3>{}</h3>\n<p class=\"text\">", title(token.part));
                part = Some(token.part);
            }
            if !token.text.is_empty() {
                let (score, text) = (score(token), escape(&token.text).replace('\n', "\u{21b5}\n"));
                let _ = write!(
                    page,
                    "<span style=\"--p:{:.1}%\" title=\"{score:.3} (token {})\">{text}</span>",
                    100.0 * score,
                    number + 1
                );
            }
        }
        page.push_str(if part.is_some() { "</p>\n</section>\n" } else { "</section>\n" });
    }

    /// A bar a token, as high as its score, with the threshold across.
    fn strip(&self, score: &dyn Fn(&TracedToken) -> f64, threshold: f64, page: &mut String) {
        let count = self.tokens.len().max(1);
        let _ = writeln!(
            page,
            "<svg viewBox=\"0 0 {count} 100\" preserveAspectRatio=\"none\" role=\"img\" \
             aria-label=\"The score at each of {count} tokens\">"
        );
        for (number, token) in self.tokens.iter().enumerate() {
            let score = score(token);
            let height = (100.0 * score).max(2.0); // a score of zero is there too
            let _ = writeln!(
                page,
                "<rect x=\"{number}\" y=\"{:.1}\" width=\"1\" height=\"{height:.1}\" style=\"--p:{:.1}%\">\
                 <title>{score:.3} (token {}: {})</title></rect>",
                100.0 - height,
                100.0 * score,
                number + 1,
                escape(token.text.trim())
            );
        }
        let y = 100.0 * (1.0 - threshold);
        let _ = writeln!(page, "<line x1=\"0\" x2=\"{count}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n</svg>");
    }
}

fn title(part: Part) -> String {
    match part {
        Part::Window(0) => "The conversation".to_owned(),
        Part::Window(number) => format!("The conversation, window {}", number + 1),
        Part::Question => "The template's question".to_owned(),
        Part::Written => "What the guard wrote".to_owned(),
    }
}

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Forethought trace</title>
<style>
:root { --paper: #fdfdfc; --ink: #1b1b1a; --faint: #63635e; --rule: #d9d8d3; --low: #e4eef8; --high: #f0604f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161615; --ink: #f1f0ec; --faint: #a3a29b; --rule: #3a3936; --low: #1c3046; --high: #b5301f; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 0; } h3 { font-size: .85rem; margin: 1.25rem 0 .25rem; }
h3, dt, .note { color: var(--faint); font-weight: normal; }
.note { margin: .1rem 0 .75rem; font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dd { margin: 0; }
section { border-top: 1px solid var(--rule); margin-top: 1.5rem; padding-top: 1.25rem; }
svg { display: block; width: 100%; height: 6rem; border-bottom: 1px solid var(--rule); }
rect { fill: color-mix(in oklab, var(--high) var(--p), var(--low)); }
rect:hover { opacity: .6; }
line { stroke: var(--ink); stroke-dasharray: 4 3; vector-effect: non-scaling-stroke; }
.text { margin: 0; font: .95rem/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { background: color-mix(in oklab, var(--high) var(--p), var(--low)); padding: .15em 0; unicode-bidi: isolate; }
.legend { display: flex; gap: .6rem; align-items: center; font-size: .85rem; color: var(--faint); }
.legend i { width: 12rem; height: .9rem; background: linear-gradient(in oklab to right, var(--low), var(--high)); }
</style>
<main>
"#;

const LEGEND: &str = "<p class=\"legend\">P(harmful) 0 <i></i> 1 <span>A bar is a token; the dashed line is the probe's \
threshold. The numbers are in the tooltips.</span></p>\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_to_a_page_or_to_data() {
        assert!(file("out.html").is_ok() && file("a/b.json").is_ok());
        for name in ["out", "out.htm", "html", ""] {
            assert!(file(name).is_err(), "{name}");
        }
    }
}
