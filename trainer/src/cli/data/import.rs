//! `forethought-trainer data import`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum as _};
use forethought_core::evidence::Verdict;

use super::{PROBLEMS, write_rows};
use crate::dataset::import::shapes::{SHAPES, Shape};
use crate::dataset::import::{Choices, Field, Imported, import};
use crate::dataset::record::{self, Format};

const HELP: &str = "\
Exit codes: 0 all rows converted, 1 the file could not be converted, 2 wrong flags, 4 rows were left out; each is named \
by its line (in a JSON array: its place) with the reason, on standard error.

A prompt that comes again (but for letter case, width and spacing) is left out. Text that begins with `User: ` is read \
as a transcript of several turns, as in the project's own data.";

/// Flags of `data import`.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct ImportArgs {
    /// Which benchmark's columns it has; `auto` tells by the columns
    #[arg(long, value_name = "SHAPE", default_value = "auto", value_parser = shape_names())]
    format: String,
    /// The file: CSV, TSV, JSON lines, a JSON array, or a text a line
    #[arg(long = "in", value_name = "FILE")]
    input: PathBuf,
    /// Where the rows go, as JSON lines
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
    /// The label of all rows, whatever the file says
    #[arg(long, value_name = "LABEL", value_parser = label)]
    label: Option<Verdict>,
    /// Take one of our fields from another key: `prompt`, `context`, `label`, `id`, `category`, `style` or `response`;
    /// an empty key takes nothing
    #[arg(long, value_name = "OURS=THEIRS", value_parser = pair)]
    map: Vec<(Field, String)>,
    /// Values of the label that mean harmful [default: the shape's own]
    #[arg(long, value_name = "VALUE", value_delimiter = ',')]
    harmful: Vec<String>,
    /// Values of the label that mean benign [default: the shape's own]
    #[arg(long, value_name = "VALUE", value_delimiter = ',')]
    benign: Vec<String>,
    /// The `source` of the rows, and the beginning of ids that are missing [default: the file's name]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// How the file is written [default: by its name]
    #[arg(long, value_name = "KIND")]
    read_as: Option<Format>,
}

fn shape_names() -> Vec<&'static str> {
    std::iter::once("auto").chain(SHAPES.iter().map(|shape| shape.name)).collect()
}

fn label(text: &str) -> Result<Verdict, String> {
    match text {
        "harmful" => Ok(Verdict::Harmful),
        "benign" => Ok(Verdict::Benign),
        _ => Err("it is `harmful` or `benign`".into()),
    }
}

fn pair(text: &str) -> Result<(Field, String), String> {
    let (ours, theirs) = text.split_once('=').ok_or("it is OURS=THEIRS")?;
    Ok((Field::from_str(ours, false)?, theirs.to_owned()))
}

/// Runs `data import`.
///
/// # Errors
/// The file can't be read, its shape is not known, the output is there or can't be written.
pub(super) fn run(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        args.force || !args.out.exists(),
        "{} is there already (--force replaces it)",
        args.out.display()
    );
    let records = record::read(&args.input, args.read_as)?;
    let path = args.input.display();
    let shape = match Shape::named(&args.format).or_else(|| Shape::detect(&records.records)) {
        Some(shape) => shape,
        None => bail!("{path}: no shape fits; name one with --format"),
    };
    let stem = || args.input.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let choices = Choices {
        label: args.label,
        keys: args.map.iter().cloned().collect(),
        harmful: args.harmful.clone(),
        benign: args.benign.clone(),
        source: args.source.clone().unwrap_or_else(stem),
    };
    let imported =
        import(records, shape, &choices).map_err(|problem| anyhow::anyhow!("{path}: {problem}"))?;
    ensure!(!imported.rows.is_empty() || !imported.dropped.is_empty(), "{path} holds no rows");
    write_rows(&args.out, &imported.rows)?;

    for bad in &imported.dropped {
        eprintln!("{path}:{}: {}", bad.line, bad.problem);
    }
    let Imported { rows, harmful, dropped } = &imported;
    eprintln!(
        "{path}, read as {}: {} rows, {harmful} harmful, {} benign; {} left out",
        shape.name,
        rows.len(),
        rows.len() - harmful,
        dropped.len()
    );
    for (reason, count) in reasons(&imported) {
        eprintln!("  {count} {reason}");
    }
    if let (Some(caution), None) = (shape.caution, args.label) {
        eprintln!("note: {caution}");
    }
    Ok(if dropped.is_empty() { ExitCode::SUCCESS } else { PROBLEMS.into() })
}

/// How many rows were left out for each reason, lines in reasons aside.
fn reasons(imported: &Imported) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for bad in &imported.dropped {
        let words = bad
            .problem
            .split(' ')
            .map(|word| if word.starts_with(|c: char| c.is_ascii_digit()) { "N" } else { word });
        *counts.entry(words.collect::<Vec<_>>().join(" ")).or_default() += 1;
    }
    counts
}
