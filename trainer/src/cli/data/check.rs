//! `forethought-trainer data check`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use forethought_core::dataset::Dataset;
use forethought_core::guard::bundle::Bundle;
use forethought_core::store::{Console, ModelSpec, Store};

use super::PROBLEMS;
use super::table::{row, table};
use crate::dataset::check::{
    Base, Counts, Finding, Flaw, Group, Kind, Limits, Part, Place, Repeat, Report, Source, check,
};

const HELP: &str = "\
Exit codes: 0 nothing to mend, 1 the check could not be made, 2 wrong flags, 4 problems found. Rows are named by file, \
line and id; no text of theirs is printed without --show-text. Single words that tell the label are printed where at \
least five rows have them.";

/// Flags of `data check`.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct CheckArgs {
    /// Files of JSON lines; repeats are looked for across all of them
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Files that must not have a prompt in common with the others, such as validation and benchmarks
    #[arg(long, value_name = "FILE", num_args = 1..)]
    against: Vec<PathBuf>,
    /// Print all that was found as one JSON object
    #[arg(long)]
    json: bool,
    /// Show the texts that problems are about
    #[arg(long)]
    show_text: bool,
    /// Model whose tokenizer counts [default: that of the guard bundle]
    #[arg(long, value_name = "SPEC")]
    base: Option<ModelSpec>,
    /// Guard bundle whose template and token caps count
    #[arg(long, value_name = "FOLDER", default_value = "default")]
    bundle: String,
    /// Count no tokens, so that no model is needed
    #[arg(long, conflicts_with_all = ["base", "max_tokens"])]
    no_tokens: bool,
    /// Longest sequence, in tokens
    #[arg(long, value_name = "N", default_value_t = Limits::default().tokens)]
    max_tokens: usize,
    /// Jaccard similarity of character 5-grams from which on prompts are near duplicates
    #[arg(long, value_name = "SHARE", default_value_t = Limits::default().near)]
    near: f64,
    /// The most that lengths may tell of the label, as AUROC
    #[arg(long, value_name = "AUROC", default_value_t = Limits::default().length_auroc)]
    max_length_auroc: f64,
    /// Words to list in each direction
    #[arg(long, value_name = "N", default_value_t = Limits::default().words)]
    words: usize,
    /// Entries of each list; --json has all
    #[arg(long, value_name = "N", default_value_t = 20)]
    list: usize,
}

/// Runs `data check`.
///
/// # Errors
/// A file or the base model can't be read.
pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.near > 0.0 && args.near <= 1.0, "--near must be above 0 and at most 1");
    ensure!((0.5..=1.0).contains(&args.max_length_auroc), "--max-length-auroc must be between 0.5 and 1");
    let read = |paths: &[PathBuf]| -> anyhow::Result<Vec<Source>> {
        let source =
            |path: &PathBuf| Ok(Source { path: path.display().to_string(), dataset: Dataset::read(path)? });
        paths.iter().map(source).collect()
    };
    let (files, against) = (read(&args.files)?, read(&args.against)?);
    let base = if args.no_tokens { None } else { Some(base(args)?) };
    let limits = Limits {
        near: args.near,
        length_auroc: args.max_length_auroc,
        tokens: args.max_tokens,
        words: args.words,
        texts: args.show_text,
    };
    let report = check(&files, &against, base.as_ref(), &limits)?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", shown(&report, args.list))?;
    }
    Ok(if report.problems == 0 { ExitCode::SUCCESS } else { PROBLEMS.into() })
}

fn base(args: &CheckArgs) -> anyhow::Result<Base> {
    let manifest = Bundle::open(&args.bundle)?.manifest;
    let spec = match &args.base {
        Some(spec) => spec.clone(),
        None => manifest.base.model.parse()?,
    };
    let model = Store::open_default()?
        .resolve(&spec, &Console::stderr())
        .context("no tokenizer to count with (--no-tokens does without)")?;
    Ok(Base::open(&model.path, &manifest)?)
}

/// The report for people.
fn shown(report: &Report, list: usize) -> String {
    let mut text = String::new();
    rows(&mut text, report);
    let total: Counts = report.files.iter().fold(Counts::default(), |sum, file| Counts {
        harmful: sum.harmful + file.rows.harmful,
        benign: sum.benign + file.rows.benign,
    });
    groups(&mut text, "style", &report.styles, list);
    groups(&mut text, "category", &report.categories, list);
    tokens(&mut text, report);
    lengths_and_words(&mut text, report);

    let contrast = &report.contrast;
    let _ = writeln!(
        text,
        "\ncontrast: {} pairs of neighbours share trigger words and differ in label ({} of {} rows); {} share them and agree",
        contrast.opposite,
        contrast.rows,
        total.total(),
        contrast.agreeing.len()
    );
    listed(&mut text, list, contrast.agreeing.iter().map(|pair| both(&pair.first, &pair.second)));

    problems(&mut text, report, list);
    let _ = match report.problems {
        0 => writeln!(text, "\nno problems"),
        1 => writeln!(text, "\n1 problem"),
        count => writeln!(text, "\n{count} problems"),
    };
    text
}

fn rows(text: &mut String, report: &Report) {
    let mut lines = vec![row([&"file", &"rows", &"harmful", &"benign", &"with phases", &"bad lines"])];
    for file in &report.files {
        let Counts { harmful, benign } = file.rows;
        lines.push(row([&file.file, &file.rows.total(), &harmful, &benign, &file.with_phases, &file.bad]));
    }
    *text += &table(&lines);
}

fn groups(text: &mut String, name: &str, groups: &[Group], most: usize) {
    let mut lines = vec![row([&name, &"rows", &"harmful", &"benign"])];
    for Group { name, rows } in groups.iter().take(most) {
        lines.push(row([name, &rows.total(), &rows.harmful, &rows.benign]));
    }
    if let Some(left @ 1..) = groups.len().checked_sub(most) {
        lines.push(vec![format!("and {left} more")]);
    }
    *text += "\n";
    *text += &table(&lines);
}

fn tokens(text: &mut String, report: &Report) {
    let Some(tokens) = &report.tokens else {
        *text += "\ntokens: not counted\n";
        return;
    };
    let mut lines =
        vec![row([&"tokens", &"rows", &"min", &"median", &"p95", &"max", &"one epoch", &"trained"])];
    let parts = tokens.parts.iter().map(|part| (part.part.as_str(), part.sizes, None));
    let forms = tokens.forms.iter().map(|form| {
        let name = match form.form {
            crate::r1act::Form::Full => "whole, full form",
            crate::r1act::Form::Direct => "whole, direct form",
        };
        (name, form.sizes, Some(form.targets))
    });
    for (name, sizes, targets) in parts.chain(forms) {
        let [median, p95] = [sizes.median, sizes.p95].map(|size| format!("{size:.0}"));
        let targets = targets.map_or_else(String::new, |targets| targets.to_string());
        lines.push(row([&name, &sizes.rows, &sizes.min, &median, &p95, &sizes.max, &sizes.total, &targets]));
    }
    *text += "\n";
    *text += &table(&lines);
}

fn lengths_and_words(text: &mut String, report: &Report) {
    let mut lines = vec![row([&"length tells the label", &"AUROC", &""])];
    for leak in &report.lengths {
        let auroc = leak.auroc.map_or_else(|| "-".to_owned(), |auroc| format!("{auroc:.3}"));
        lines.push(row([&leak.part.as_str(), &auroc, &mark(leak.is_problem)]));
    }
    *text += "\n";
    *text += &table(&lines);
    for part in Part::ALL {
        let words = report.words.iter().filter(|word| word.part == part);
        let title = format!("words of the {}", part.as_str());
        let mut lines = vec![row([&title, &"harmful", &"benign", &"log odds", &"z", &""])];
        lines.extend(words.map(|word| {
            let [odds, z] = [word.log_odds, word.z].map(|number| format!("{number:+.2}"));
            row([&word.word, &word.rows.harmful, &word.rows.benign, &odds, &z, &mark(word.is_problem)])
        }));
        if lines.len() > 1 {
            *text += "\n";
            *text += &table(&lines);
        }
    }
}

fn mark(is_problem: bool) -> &'static str {
    if is_problem { "problem" } else { "" }
}

fn problems(text: &mut String, report: &Report, list: usize) {
    if !report.bad.is_empty() {
        let _ = writeln!(text, "\nbad lines: {}", report.bad.len());
        let named =
            report.bad.iter().map(|bad| format!("{}:{}: {}", bad.file, bad.row.line, bad.row.problem));
        listed(text, list, named);
    }
    for (repeats, what) in [(&report.repeats, "repeats"), (&report.contamination, "in files checked against")]
    {
        for kind in [Kind::Exact, Kind::Near] {
            let pairs: Vec<&Repeat> = repeats.iter().filter(|repeat| repeat.kind == kind).collect();
            if pairs.is_empty() {
                continue;
            }
            let kind = if kind == Kind::Exact { "exact" } else { "near" };
            let differ = pairs.iter().filter(|pair| pair.labels_differ).count();
            let _ =
                writeln!(text, "\n{kind} {what}: {}, of them {differ} with different labels", pairs.len());
            let named = pairs.iter().map(|pair| {
                let differ = if pair.labels_differ { ", labels differ" } else { "" };
                both(&pair.first, &pair.second) + &format!(" {:.2}{differ}", pair.similarity)
            });
            listed(text, list, named);
        }
    }
    let mut by_flaw: BTreeMap<Flaw, Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        by_flaw.entry(finding.flaw).or_default().push(finding);
    }
    for (flaw, findings) in by_flaw {
        let _ = writeln!(text, "\n{}: {}", described(flaw), findings.len());
        let named = findings.iter().map(|finding| {
            let detail = match finding.detail.as_str() {
                "" => String::new(),
                detail => format!(": {detail}"),
            };
            format!("{} {}{detail}{}", name(&finding.place), finding.part.as_str(), quoted(&finding.place))
        });
        listed(text, list, named);
    }
}

fn described(flaw: Flaw) -> &'static str {
    match flaw {
        Flaw::PhaseMissing => "phases missing where other rows have them",
        Flaw::PhaseOfSeveralLines => "phases of several lines (the guard ends a phase with its line)",
        Flaw::StatesVerdict => "phases that state the verdict",
        Flaw::CopiesInstruction => "phases that repeat the instruction",
        Flaw::CopiesPhase => "assessments that repeat the understanding",
        Flaw::RepeatsEarlierPhase => "phases that repeat an earlier row's",
        Flaw::ContradictsLabel => "assessments that speak against the label",
        Flaw::PhaseOverCap => "phases that the guard would cut off",
        Flaw::TooLong => "rows over the limit of tokens",
        Flaw::HintsVerdict => "to look at: phases that may give the verdict away in other words",
    }
}

fn name(place: &Place) -> String {
    format!("{}:{} ({})", place.file, place.line, place.id)
}

fn both(first: &Place, second: &Place) -> String {
    format!("{} and {}{}{}", name(first), name(second), quoted(first), quoted(second))
}

/// The text on a line of its own, where it is wanted.
fn quoted(place: &Place) -> String {
    let quote = |text: &String| format!("\n    {}", text.split_whitespace().collect::<Vec<_>>().join(" "));
    place.text.as_ref().map(quote).unwrap_or_default()
}

fn listed(text: &mut String, most: usize, lines: impl ExactSizeIterator<Item = String>) {
    let left = lines.len().saturating_sub(most);
    for line in lines.take(most) {
        let _ = writeln!(text, "  {line}");
    }
    if left > 0 {
        let _ = writeln!(text, "  and {left} more (--list, --json)");
    }
}
