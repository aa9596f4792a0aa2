//! `forethought-trainer data adopt`: labelled rows with the phases that a guard wrote about them.
//!
//! A guard that learns its verdict after written examples alone trusts whatever it later writes itself. Rows with a
//! guard's own phases, right and wrong, beside the true label teach the verdict how far to go by them. The guard must not
//! have learnt the rows that it writes about, or its phases are better than they will ever be again.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use forethought_core::dataset::Dataset;
use serde_json::{Map, Value};

use super::{PROBLEMS, write_rows};
use crate::results::{Judged, Results};

const HELP: &str = "\
The results are what `forethought eval --mode reason --data ROWS --out RESULTS` wrote. Give the rows a weight for the \
verdict alone in the run's file, or the guard learns to write as it wrote:

  [[data]]
  path = \"own.jsonl\"
  forms = [\"full\"]
  loss = { understanding = 0, assessment = 0, headings = 0, verdict = 5, category = 0.5 }

Exit codes: 0 all rows are written, 1 nothing is, 2 wrong flags, 4 rows were left out: they are in no results, or the \
guard wrote only one phase.";

/// Flags of `data adopt`.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub struct AdoptArgs {
    /// Labelled rows, as JSON lines
    #[arg(long, value_name = "FILE")]
    rows: PathBuf,
    /// What `forethought eval` wrote about them; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    results: Vec<PathBuf>,
    /// Where the rows with the guard's phases go
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace the output if it is there
    #[arg(long)]
    force: bool,
}

/// Runs `data adopt`.
///
/// # Errors
/// A file can't be read, the results are of other rows, the output is there or can't be written.
pub(super) fn run(args: &AdoptArgs) -> anyhow::Result<ExitCode> {
    let shown = args.out.display();
    ensure!(args.force || !args.out.exists(), "{shown} is there already (--force replaces it)");
    let (rows, left_out) = adopt(&args.rows, &args.results)?;
    write_rows(&args.out, &rows)?;
    eprintln!("{shown}: {} rows; {left_out} left out", rows.len());
    Ok(if left_out == 0 { ExitCode::SUCCESS } else { PROBLEMS.into() })
}

/// The rows of `path` with the phases in `results`, and how many rows there are no phases for.
fn adopt(path: &Path, results: &[PathBuf]) -> anyhow::Result<(Vec<Map<String, Value>>, usize)> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| format!("can't read {shown}"))?;
    let dataset = Dataset::from_bytes(&bytes);
    if let Some(bad) = dataset.bad.first() {
        bail!("{shown}:{}: {}", bad.line, bad.problem);
    }
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let mut judged: HashMap<String, Judged> = HashMap::new();
    for path in results {
        let rows = Results::read(path)?.rows.into_iter();
        judged.extend(rows.filter(|row| row.file == file).map(|row| (row.id.clone(), row)));
    }
    ensure!(!judged.is_empty(), "the results hold no row of a file named {file}");

    let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let mut rows = Vec::new();
    for row in &dataset.rows {
        let Some(judged) = judged.get(&row.id) else { continue };
        ensure!(
            judged.label == row.label,
            "{shown}:{}: the results have another label for it: they are of another version of the file",
            row.line
        );
        let phases = [("understanding", &judged.understanding), ("assessment", &judged.assessment)];
        let written = phases.map(|(key, text)| {
            let text = text.as_deref().map(str::trim).filter(|text| !text.is_empty())?;
            Some((key.to_owned(), Value::from(text)))
        });
        if let [Some(understanding), Some(assessment)] = written {
            let line = lines[row.line - 1].trim_ascii();
            let mut fields: Map<String, Value> =
                serde_json::from_slice(line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line))?;
            fields.extend([understanding, assessment]);
            rows.push(fields);
        }
    }
    ensure!(!rows.is_empty(), "the guard wrote both phases about no row of {shown}: was it asked to reason?");
    let left_out = dataset.rows.len() - rows.len();
    Ok((rows, left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = concat!(
        r#"{"id":"a","instruction":"one","label":"harmful","understanding":"old","assessment":"old","style":"task"}"#,
        "\n",
        r#"{"id":"b","instruction":"two","label":"benign"}"#,
        "\n",
        r#"{"id":"c","instruction":"three","label":"benign"}"#,
        "\n",
    );

    fn adopted(results: &str) -> Result<(Vec<Map<String, Value>>, usize), String> {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("rows.jsonl"), ROWS).unwrap();
        fs::write(at("results.jsonl"), results).unwrap();
        let meta = r#"{"mode": "reason", "guard": {"bundle": "tiny", "bundle_sha256": "00"}}"#;
        fs::write(at("results.jsonl.meta.json"), meta).unwrap();
        adopt(&at("rows.jsonl"), &[at("results.jsonl")]).map_err(|error| error.to_string())
    }

    fn result(id: &str, file: &str, label: &str, phases: Option<(&str, &str)>) -> String {
        let (understanding, assessment) = phases.unzip();
        let row = serde_json::json!({
            "id": id, "file": file, "label": label, "score": 0.5,
            "understanding": understanding, "assessment": assessment,
        });
        format!("{row}\n")
    }

    #[test]
    fn the_guards_phases_replace_those_of_the_row() {
        let results = [
            result("a", "rows.jsonl", "harmful", Some(("new 1", " new 2"))),
            result("b", "rows.jsonl", "benign", Some(("of two", " "))),
            result("c", "other.jsonl", "benign", Some(("of another", "file"))),
        ]
        .concat();
        let (rows, left_out) = adopted(&results).unwrap();
        assert_eq!((rows.len(), left_out), (1, 2));
        let expected = [
            ("id", "a"),
            ("instruction", "one"),
            ("label", "harmful"),
            ("understanding", "new 1"),
            ("assessment", "new 2"),
            ("style", "task"),
        ];
        assert_eq!(rows[0].len(), expected.len());
        for (key, value) in expected {
            assert_eq!(rows[0][key], value);
        }
    }

    #[test]
    fn results_of_something_else_are_named() {
        fn check(results: &str, expected: &str) {
            let error = adopted(results).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        check(
            &result("a", "rows.jsonl", "benign", Some(("x", "y"))),
            "rows.jsonl:1: the results have another label",
        );
        check(&result("a", "other.jsonl", "harmful", Some(("x", "y"))), "no row of a file named rows.jsonl");
        check(&result("a", "rows.jsonl", "harmful", None), "was it asked to reason?");
    }
}
