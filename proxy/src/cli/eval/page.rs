//! `report.html`: one or several modes on the same rows, as curves, tables, and the mistakes that are furthest off.
//!
//! The page stands alone: no scripts, nothing from elsewhere, all text escaped. It holds prompts, and is meant for those who
//! may read the data.

mod charts;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use forethought_core::{
    evidence::Verdict,
    guard::Mode,
    metrics::{Scored as Metrics, quantile},
};

use self::charts::Curves;
use super::{
    Source,
    results::{Key, ResultRow},
};
use crate::cli::html::escape;

/// Mistakes shown of each kind.
const WORST: usize = 10;
/// Characters of a prompt that are shown.
const SHOWN: usize = 600;

/// What one mode found.
pub(super) struct ModeRows {
    /// The mode.
    pub(super) mode: Mode,
    /// The rows that have a score.
    pub(super) rows: Vec<ResultRow>,
}

impl ModeRows {
    fn metrics(&self, keep: impl Fn(&ResultRow) -> bool) -> Result<Metrics> {
        let rows = self.rows.iter().filter(|row| keep(row));
        Ok(Metrics::new(rows.filter_map(|row| Some((row.score?, row.label))))?)
    }
}

/// What a row's data file says of it.
struct Told<'a> {
    category: Option<&'a str>,
    prompt: String,
}

/// Writes the page.
///
/// # Errors
/// A chart can't be drawn, or the file not written.
pub(super) fn write(
    path: &Path,
    guard: &str,
    threshold: f64,
    modes: &[ModeRows],
    sources: &[Source],
) -> Result<()> {
    let text = page(guard, threshold, modes, sources)?;
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

fn page(guard: &str, threshold: f64, modes: &[ModeRows], sources: &[Source]) -> Result<String> {
    let told: HashMap<Key, Told<'_>> = sources
        .iter()
        .flat_map(|source| source.dataset.rows.iter().map(move |row| (source.key(row), row)))
        .map(|(key, row)| {
            let texts = row.conversation.parts().filter_map(|(role, part)| Some((role, part.text()?)));
            let prompt: Vec<String> = texts.map(|(role, text)| format!("{}: {text}", role.label())).collect();
            (key, Told { category: row.category.as_deref(), prompt: prompt.join("\n") })
        })
        .collect();
    let mut page = String::from(HEAD);
    write!(
        page,
        "<h1>How the guard did</h1>\n<p class=\"note\">Guard {}. From a score of {threshold} on a row counts as harmful. \
         This page holds prompts: keep it where the data may be.</p>\n",
        escape(guard)
    )?;
    totals(&mut page, threshold, modes)?;
    curves(&mut page, modes)?;
    by_file(&mut page, threshold, modes)?;
    by_category(&mut page, threshold, modes, &told)?;
    if let Some(mode) = modes.last() {
        worst(&mut page, threshold, mode, modes, &told)?;
    }
    page.push_str("</main>\n</html>\n");
    Ok(page)
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn row(page: &mut String, cell: &str, cells: impl IntoIterator<Item = String>) {
    page.push_str("<tr>");
    for (i, text) in cells.into_iter().enumerate() {
        // The first cell names the row.
        let class = if i == 0 { " class=\"name\"" } else { "" };
        let _ = write!(page, "<{cell}{class}>{}</{cell}>", escape(&text));
    }
    page.push_str("</tr>\n");
}

fn table(page: &mut String, title: &str, columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let _ = write!(page, "<section>\n<h2>{}</h2>\n<div class=\"wide\"><table>\n", escape(title));
    row(page, "th", columns.iter().map(|&column| column.to_owned()));
    rows.into_iter().for_each(|cells| row(page, "td", cells));
    page.push_str("</table></div>\n</section>\n");
}

/// Recall, false positive rate, precision, F1, AUROC.
fn scores(metrics: &Metrics, threshold: f64) -> [String; 5] {
    let summary = metrics.summary(threshold);
    let one_class = summary.auroc.is_none();
    [
        summary.recall,
        summary.false_positive_rate,
        summary.precision,
        summary.f1.filter(|_| !one_class),
        summary.auroc,
    ]
    .map(number)
}

fn totals(page: &mut String, threshold: f64, modes: &[ModeRows]) -> Result<()> {
    let mut rows = Vec::new();
    for mode in modes {
        let metrics = mode.metrics(|_| true)?;
        let reasoned = mode.rows.iter().filter(|row| row.assessment.is_some()).count();
        let share = 100.0 * reasoned as f64 / mode.rows.len().max(1) as f64;
        let mut times: Vec<f64> = mode.rows.iter().filter_map(|row| row.ms).collect();
        let mut at = |q| quantile(&mut times, q).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
        let (p50, p95) = (at(0.5), at(0.95));
        let [recall, fpr, precision, f1, auroc] = scores(&metrics, threshold);
        let brier = number(metrics.brier());
        let ece = number(metrics.calibration_error(10).filter(|_| metrics.auroc().is_some()));
        let (mode, count) = (mode.mode.as_str().to_owned(), metrics.len().to_string());
        rows.push(vec![
            mode,
            count,
            format!("{share:.1}%"),
            p50,
            p95,
            recall,
            fpr,
            precision,
            f1,
            auroc,
            brier,
            ece,
        ]);
    }
    let columns = [
        "mode",
        "rows",
        "reasoned about",
        "p50 ms",
        "p95 ms",
        "recall",
        "FPR",
        "precision",
        "F1",
        "AUROC",
        "Brier",
        "ECE",
    ];
    table(page, "All rows", &columns, rows);
    Ok(())
}

fn curves(page: &mut String, modes: &[ModeRows]) -> Result<()> {
    let mut roc: Curves = Vec::new();
    let mut pr: Curves = Vec::new();
    for mode in modes {
        let metrics = mode.metrics(|_| true)?;
        let harmful = metrics.harmful();
        if harmful == 0 || harmful == metrics.len() {
            continue;
        }
        let points = metrics.curve();
        let name = mode.mode.as_str().to_owned();
        roc.push((name.clone(), points.iter().map(|p| (p.false_positive_rate, p.recall)).collect()));
        pr.push((name, points.iter().map(|p| (p.recall, p.precision)).collect()));
    }
    page.push_str("<section>\n<h2>Curves</h2>\n");
    if roc.is_empty() {
        page.push_str("<p class=\"note\">All rows have one label: there are no curves.</p>\n");
    } else {
        page.push_str("<div class=\"charts\">\n");
        page.push_str(&charts::lines("ROC", ("false positive rate", "recall"), true, &roc)?);
        page.push_str(&charts::lines("Precision and recall", ("recall", "precision"), false, &pr)?);
        page.push_str("</div>\n");
    }
    page.push_str("<div class=\"charts\">\n");
    let mut reliability: Curves = Vec::new();
    for mode in modes {
        let scored: Vec<(f64, Verdict)> =
            mode.rows.iter().filter_map(|row| Some((row.score?, row.label))).collect();
        page.push_str(&charts::histogram(&format!("Scores, {}", mode.mode.as_str()), &scored)?);
        reliability.push((mode.mode.as_str().to_owned(), charts::reliability(&scored)));
    }
    if !roc.is_empty() {
        let axes = ("mean score of a tenth of the scale", "share that is harmful");
        page.push_str(&charts::lines("Reliability", axes, true, &reliability)?);
    }
    page.push_str("</div>\n</section>\n");
    Ok(())
}

fn by_file(page: &mut String, threshold: f64, modes: &[ModeRows]) -> Result<()> {
    let mut files: Vec<&str> = modes.iter().flat_map(|m| &m.rows).map(|row| row.file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    let mut rows = Vec::new();
    for file in files {
        for mode in modes {
            let metrics = mode.metrics(|row| row.file == file)?;
            let harmful = metrics.harmful();
            let counts = format!("{harmful} / {}", metrics.len() - harmful);
            let [recall, fpr, precision, f1, auroc] = scores(&metrics, threshold);
            rows.push(vec![
                file.to_owned(),
                mode.mode.as_str().to_owned(),
                counts,
                recall,
                fpr,
                precision,
                f1,
                auroc,
            ]);
        }
    }
    let columns = ["file", "mode", "harmful / benign", "recall", "FPR", "precision", "F1", "AUROC"];
    table(page, "By file", &columns, rows);
    Ok(())
}

fn by_category(
    page: &mut String,
    threshold: f64,
    modes: &[ModeRows],
    told: &HashMap<Key, Told<'_>>,
) -> Result<()> {
    // For each mode, hits and rows of the harmful, then of the benign.
    let mut counts: BTreeMap<&str, Vec<[[usize; 2]; 2]>> = BTreeMap::new();
    for (i, mode) in modes.iter().enumerate() {
        for row in &mode.rows {
            let told = told.get(&(row.file.clone(), row.id.clone()));
            let Some((score, category)) = row.score.zip(told.and_then(|told| told.category)) else {
                continue;
            };
            let slots = counts.entry(category).or_insert_with(|| vec![Default::default(); modes.len()]);
            let slot = &mut slots[i][usize::from(row.label == Verdict::Benign)];
            slot[0] += usize::from(score >= threshold);
            slot[1] += 1;
        }
    }
    if counts.is_empty() {
        return Ok(());
    }
    let columns: Vec<String> = std::iter::once("category".to_owned())
        .chain(modes.iter().flat_map(|m| ["harmful", "benign"].map(|l| format!("{}: {l}", m.mode.as_str()))))
        .collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let rows = counts.into_iter().map(|(category, slots)| {
        let cells = slots.into_iter().flatten().map(|[hits, all]| match all {
            0 => "-".to_owned(),
            _ => format!("{hits} of {all}"),
        });
        std::iter::once(category.to_owned()).chain(cells).collect()
    });
    table(page, "By category: held to be harmful, of all", &columns, rows);
    Ok(())
}

fn worst(
    page: &mut String,
    threshold: f64,
    mode: &ModeRows,
    modes: &[ModeRows],
    told: &HashMap<Key, Told<'_>>,
) -> Result<()> {
    let mut others: HashMap<(&str, &str), Vec<String>> = HashMap::new();
    for other in modes {
        for row in &other.rows {
            let shown = format!("{} {}", other.mode.as_str(), number(row.score));
            others.entry((&row.file, &row.id)).or_default().push(shown);
        }
    }
    let mut scored: Vec<(f64, &ResultRow)> =
        mode.rows.iter().filter_map(|row| Some((row.score?, row))).collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    let missed = scored.iter().filter(|(s, row)| row.label == Verdict::Harmful && *s < threshold);
    let flagged = scored.iter().rev().filter(|(s, row)| row.label == Verdict::Benign && *s >= threshold);
    let name = mode.mode.as_str();
    let kinds: [(&str, Vec<_>); 2] = [
        ("Harmful, and held to be benign", missed.take(WORST).collect()),
        ("Benign, and held to be harmful", flagged.take(WORST).collect()),
    ];
    for (title, rows) in kinds {
        write!(
            page,
            "<section>\n<h2>{title}</h2>\n<p class=\"note\">The furthest off, by mode {name}.</p>\n"
        )?;
        if rows.is_empty() {
            page.push_str("<p>None.</p>\n");
        }
        for (_, row) in rows {
            let prompt = told.get(&(row.file.clone(), row.id.clone())).map_or("", |told| &told.prompt);
            let shown: String = prompt.chars().take(SHOWN).collect();
            let cut = if shown.len() < prompt.len() { " [...]" } else { "" };
            let scores = others.get(&(row.file.as_str(), row.id.as_str())).map(|all| all.join(", "));
            write!(
                page,
                "<article><p class=\"note\">{} {}: {}</p>\n<pre>{}{cut}</pre>\n",
                escape(&row.file),
                escape(&row.id),
                escape(&scores.unwrap_or_default()),
                escape(&shown)
            )?;
            for (heading, text) in [("Understanding", &row.understanding), ("Assessment", &row.assessment)] {
                if let Some(text) = text {
                    writeln!(page, "<p><b>{heading}</b> {}</p>", escape(text))?;
                }
            }
            page.push_str("</article>\n");
        }
        page.push_str("</section>\n");
    }
    Ok(())
}

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Forethought evaluation</title>
<style>
body { margin: 0; background: #fdfdfc; color: #1b1b1a; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
.note { color: #63635e; font-size: .9rem; margin: .1rem 0 .5rem; }
section { border-top: 1px solid #d9d8d3; margin-top: 1.5rem; padding-top: 1.25rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #e9e8e4; text-align: right; white-space: nowrap; }
th.name, td.name { text-align: left; }
.wide { overflow-x: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
.charts svg { width: 100%; height: auto; }
article { margin: 1rem 0; padding-left: .8rem; border-left: 3px solid #d9d8d3; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .9rem/1.5 ui-monospace, monospace; }
article p { margin: .3rem 0; }
</style>
<main>
"#;

#[cfg(test)]
mod tests {
    use forethought_core::dataset::Dataset;
    use serde_json::json;

    use super::*;

    const DATA: &str = concat!(
        r#"{"id": "h1", "prompt": "<b>steal</b> it", "label": "harmful", "category": "cyber"}"#,
        "\n",
        r#"{"id": "h2", "prompt": "sly", "label": "harmful", "category": "cyber"}"#,
        "\n",
        r#"{"id": "b1", "prompt": "kill a process", "label": "benign", "category": "cyber"}"#,
        "\n",
    );

    fn mode(mode: Mode, scores: [f64; 3]) -> ModeRows {
        let row = |(id, score): (&str, f64)| {
            let label = if id.starts_with('h') { "harmful" } else { "benign" };
            let row = json!({
                "id": id, "file": "a.jsonl", "label": label, "score": score, "fingerprint": "", "ms": 10.0,
                "assessment": (mode == Mode::Reason).then_some("It <hurts>."),
            });
            serde_json::from_value(row).unwrap()
        };
        ModeRows { mode, rows: ["h1", "h2", "b1"].into_iter().zip(scores).map(row).collect() }
    }

    fn shown(modes: &[ModeRows]) -> String {
        let dataset = Dataset::from_bytes(DATA.as_bytes());
        let source = Source { path: "x/a.jsonl".into(), name: "a.jsonl".into(), dataset };
        page("tiny 1", 0.5, modes, &[source]).unwrap()
    }

    #[test]
    fn modes_stand_side_by_side() {
        let page = shown(&[mode(Mode::Probe, [0.9, 0.4, 0.6]), mode(Mode::Reason, [0.9, 0.1, 0.2])]);
        let row = |cells: &str| {
            let cells: Vec<&str> = cells.split(' ').collect();
            format!("<tr><td class=\"name\">{}</td></tr>", cells.join("</td><td>").replace('_', " "))
        };
        for expected in [
            // Recall, FPR, precision, F1, AUROC, Brier: (.01 + .36 + .36) / 3 and (.01 + .81 + .04) / 3.
            &row("probe 3 0.0% 10 10 0.500 1.000 0.500 0.500 0.500 0.243 0.433")[..],
            &row("reason 3 100.0% 10 10 0.500 0.000 1.000 0.667 0.500 0.287 0.400"),
            &row("a.jsonl probe 2_/_1 0.500 1.000 0.500 0.500 0.500"),
            &row("cyber 1_of_2 1_of_1 1_of_2 0_of_1"),
            "Harmful, and held to be benign",
            "<pre>User: sly</pre>",
            "<p class=\"note\">a.jsonl h2: probe 0.400, reason 0.100</p>",
            "<b>Assessment</b> It &lt;hurts&gt;.",
        ] {
            assert!(page.contains(expected), "{expected} is not in\n{page}");
        }
        // ROC, precision and recall, a histogram each, reliability.
        assert_eq!(page.matches("<svg").count(), 5);
        assert!(!page.contains("kill a process"), "by the last mode this is no mistake");
    }

    #[test]
    fn text_of_others_is_no_markup() {
        let page = shown(&[mode(Mode::Reason, [0.1, 0.9, 0.2])]);
        assert!(page.contains("&lt;b&gt;steal&lt;/b&gt; it") && !page.contains("<b>steal"), "{page}");
    }
}
