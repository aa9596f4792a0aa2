//! The report for people.

use std::fmt::Write as _;

use super::{CURVE_PLOT, JSON_FILE, LAYERS_PLOT, ProbeReport, Report};
use crate::probe::{
    rows::FileRecord,
    scores::{LeftOut, Measure},
};

/// Layers in the table of the best.
const BEST: usize = 10;

impl Report {
    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = self.write_markdown(&mut text);
        text
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# Probes of `{}`\n", self.bundle)?;
        writeln!(out, "Base model `{}`, weights `{}`,", self.base_model, short(&self.base_sha256))?;
        match &self.adapter_sha256[..] {
            "" => writeln!(out, "without an adapter. `{JSON_FILE}` holds all numbers.\n")?,
            sha256 => writeln!(out, "adapter `{}`. `{JSON_FILE}` holds all numbers.\n", short(sha256))?,
        }
        self.write_data(out)?;
        self.write_probes(out)?;
        self.write_sets(out)?;
        self.write_cells(out)?;
        writeln!(out, "## Sources, styles and categories that a fit has not seen\n")?;
        for probe in &self.probes {
            for left_out in &probe.left_out {
                write_totals(out, probe, left_out)?;
            }
        }
        if let Some(first) = self.probes.first() {
            for left_out in &first.left_out {
                write_groups(out, first, left_out)?;
            }
        }
        self.write_curve(out)
    }

    fn write_data(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "## Data\n\n| use | file | harmful | benign | sha256 |\n| --- | --- | ---: | ---: | --- |"
        )?;
        let mut rows = |what: &str, files: &[FileRecord]| -> std::fmt::Result {
            for FileRecord { file, sha256, harmful, benign } in files {
                writeln!(out, "| {what} | {file} | {harmful} | {benign} | `{}` |", short(sha256))?;
            }
            Ok(())
        };
        rows("fit", &self.fit)?;
        rows("threshold", self.threshold.as_deref().unwrap_or_default())?;
        for (name, files) in &self.score {
            rows(&format!("score: {name}"), files)?;
        }
        if self.left_out > 0 {
            writeln!(out, "\nRows left out of the fit, as they fill several windows: {}.", self.left_out)?;
        }
        writeln!(out)
    }

    fn write_probes(&self, out: &mut String) -> std::fmt::Result {
        let (folds, parts) = (self.folds, self.chosen_by);
        writeln!(out, "## Probes\n")?;
        if parts > 0 {
            let names: Vec<&str> = self.score[..parts].iter().map(|(name, _)| name.as_str()).collect();
            writeln!(
                out,
                "Chosen, calibrated and given thresholds by rows that no fit has seen ({}), so their scores below are a \
                 little flattered; those of other sets are not. Out of fold: on the rows fitted on, cross-validated \
                 over {folds} folds of neighbouring rows. An adapter trained on these rows flatters that figure.\n",
                names.join(", ")
            )?;
        } else {
            writeln!(
                out,
                "Chosen, calibrated and given thresholds by cross-validation over {folds} folds of neighbouring rows.\n"
            )?;
        }
        writeln!(
            out,
            "| probe | kind | C | AUROC, chosen by | logistic | network | AUROC out of fold | threshold | set on | \
             flagged there |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        )?;
        for p in &self.probes {
            let kind = |i: usize| p.kinds.get(i).map_or("-".into(), |(_, auroc)| format!("{auroc:.3}"));
            let t = &p.threshold;
            writeln!(
                out,
                "| `{}` | {:?} | {} | {:.3} | {} | {} | {} | {:.4} | {} benign rows | {}",
                p.name,
                p.kind,
                p.c,
                p.chosen_by,
                kind(0),
                kind(1),
                number(p.auroc),
                t.value,
                t.rows,
                match t.interval {
                    Some(i) => format!(
                        "{:.3} ({:.3} to {:.3}), wanted {} |",
                        t.flagged as f64 / t.rows as f64,
                        i.low,
                        i.high,
                        t.target_fpr
                    ),
                    None => "- |".into(),
                }
            )?;
        }
        writeln!(out, "\nIn `guard.toml`:\n\n```toml")?;
        for p in &self.probes {
            writeln!(out, "[[probes]]\nfile = \"{}\"", p.file)?;
        }
        writeln!(out, "```\n")
    }

    fn write_sets(&self, out: &mut String) -> std::fmt::Result {
        if self.score.is_empty() {
            return Ok(());
        }
        writeln!(
            out,
            "## Scores on rows that no fit has seen\n\nRecall and false-positive rate at the probe's threshold. In \
             brackets: 95% intervals, exact for shares, bootstrap for AUROC.\n\n\
             | set | probe | harmful | benign | AUROC | recall | false-positive rate |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: |"
        )?;
        for (i, (name, _)) in self.score.iter().enumerate() {
            for probe in &self.probes {
                let Some(s) = probe.sets.get(i) else { continue };
                let (auroc, recall, fpr) = (measure(&s.auroc), measure(&s.recall), measure(&s.fpr));
                let (harmful, benign) = (s.harmful, s.benign);
                writeln!(
                    out,
                    "| {name} | `{}` | {harmful} | {benign} | {auroc} | {recall} | {fpr} |",
                    probe.name
                )?;
            }
            if let Some((_, auroc)) = self.together.iter().find(|(set, _)| set == name) {
                writeln!(out, "| {name} | mean of their logits | | | {auroc:.3} | | |")?;
            }
        }
        let left_out = self.probes.first().map_or(0, |p| p.sets.iter().map(|s| s.left_out).sum());
        if left_out > 0 {
            writeln!(out, "\nRows not scored, as they are fitted on: {left_out}.")?;
        }
        writeln!(out)
    }

    fn write_cells(&self, out: &mut String) -> std::fmt::Result {
        let names = self.cells.first().map(|cell| &cell.sets[..]).unwrap_or_default();
        write!(
            out,
            "## Layers and positions\n\n![AUROC by layer and position]({LAYERS_PLOT})\n\nThe best of {}, logistic \
             regression:\n\n| layer | position | C | AUROC, chosen by |",
            self.cells.len()
        )?;
        names.iter().try_for_each(|(name, _)| write!(out, " {name} |"))?;
        write!(out, "\n| ---: | --- | ---: | ---: |")?;
        names.iter().try_for_each(|_| write!(out, " ---: |"))?;
        let mut cells: Vec<_> = self.cells.iter().collect();
        cells.sort_by(|a, b| b.auroc.total_cmp(&a.auroc));
        for cell in cells.into_iter().take(BEST) {
            let (layer, position, c) = (cell.layer, cell.position, cell.settings.c);
            write!(out, "\n| {layer} | {position} | {c} | {:.3} |", cell.auroc)?;
            cell.sets.iter().try_for_each(|(_, auroc)| write!(out, " {auroc:.3} |"))?;
        }
        writeln!(out, "\n")
    }

    fn write_curve(&self, out: &mut String) -> std::fmt::Result {
        let (Some(points), Some(probe)) = (&self.learning_curve, self.probes.first()) else { return Ok(()) };
        writeln!(
            out,
            "## How many examples does a probe need?\n\n![AUROC by number of examples]({CURVE_PLOT})\n\n\
             Logistic regression at the place of `{}`; AUROC, mean and standard deviation over the draws.\n",
            probe.name
        )?;
        let names = points.first().map(|p| &p.sets[..]).unwrap_or_default();
        write!(out, "| examples | draws |")?;
        names.iter().try_for_each(|set| write!(out, " {} |", set.name))?;
        write!(out, "\n| ---: | ---: |")?;
        names.iter().try_for_each(|_| write!(out, " ---: |"))?;
        for point in points {
            write!(out, "\n| {} | {} |", point.size, point.draws)?;
            for set in &point.sets {
                if point.draws > 1 {
                    write!(out, " {:.3} ± {:.3} |", set.mean, set.deviation)?;
                } else {
                    write!(out, " {:.3} |", set.mean)?;
                }
            }
        }
        writeln!(out)
    }
}

fn write_totals(out: &mut String, probe: &ProbeReport, left_out: &LeftOut) -> std::fmt::Result {
    let (seen, unseen) = (&left_out.seen, &left_out.unseen);
    writeln!(
        out,
        "- `{}`, leaving out one {} at a time: AUROC {} (in-source {}), recall {} ({}), false-positive rate {} ({})",
        probe.name,
        left_out.by,
        number(unseen.auroc),
        number(seen.auroc),
        number(unseen.recall),
        number(seen.recall),
        number(unseen.fpr),
        number(seen.fpr),
    )
}

fn write_groups(out: &mut String, probe: &ProbeReport, left_out: &LeftOut) -> std::fmt::Result {
    let by = left_out.by;
    writeln!(
        out,
        "\n### `{}`: one {by} left out\n\nIn: scored by fits that have seen others of the {by}. Out: by a fit that has \
         seen none.\n\n\
         | {by} | harmful | benign | AUROC in | out | recall in | out | false positives in | out |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        probe.name
    )?;
    for g in &left_out.groups {
        let (seen, unseen) = (&g.seen, &g.unseen);
        let pairs = [(seen.auroc, unseen.auroc), (seen.recall, unseen.recall), (seen.fpr, unseen.fpr)];
        let pairs = pairs.map(|(seen, unseen)| format!("{} | {}", number(seen), number(unseen))).join(" | ");
        writeln!(out, "| {} | {} | {} | {pairs} |", g.name, g.harmful, g.benign)?;
    }
    writeln!(out)
}

fn measure(measure: &Option<Measure>) -> String {
    match measure {
        Some(Measure { value, interval: Some(i) }) => format!("{value:.3} ({:.3} to {:.3})", i.low, i.high),
        Some(Measure { value, interval: None }) => format!("{value:.3}"),
        None => "-".into(),
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".into(), |v| format!("{v:.3}"))
}

fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}
