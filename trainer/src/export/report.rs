//! Writes all exports, checks them, and says how far each is from the adapter: a table, and `export.json` beside them.

use std::fmt;
use std::fs;
use std::path::Path;

use forethought_core::guard::bundle::Base;
use serde::Serialize;

use super::check::{Check, Figures};
use super::publish::{REPORT, publish};
use super::{Export, Source, file_error, write_json};
use crate::adapter::LoraConfig;
use crate::error::{Result, TrainError};

/// Contents of `export.json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The base model.
    pub base: Base,
    /// The adapter's shape.
    pub lora: LoraConfig,
    /// Prompts on which exports were compared.
    pub prompts: usize,
    /// Positions whose logits were compared.
    pub positions: usize,
    /// The base without the adapter: what the adapter does at all.
    pub untuned: Figures,
    /// What was written.
    pub exports: Vec<Row>,
}

/// One export.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its format, and how its numbers are held.
    pub export: String,
    /// Its file or folder, beside `export.json`.
    pub path: String,
    /// Size of all its files.
    pub bytes: u64,
    /// How far it is from the adapter.
    #[serde(flatten)]
    pub figures: Figures,
    /// What [`Figures::logits`] was allowed to be.
    pub tolerance: f64,
}

impl Row {
    /// Fails if the export is further off than it may be.
    ///
    /// # Errors
    /// [`TrainError::Disagrees`].
    pub fn check(&self) -> Result<()> {
        let (export, found, tolerance) = (self.export.clone(), self.figures.logits, self.tolerance);
        if found <= tolerance { Ok(()) } else { Err(TrainError::Disagrees { export, found, tolerance }) }
    }
}

/// Writes `exports` into the new folder `out` and compares each with the reference. All of them are there afterwards,
/// or none. `tell` hears every line of the table as it is known.
///
/// # Errors
/// When one of them can't be written or read back, or is further off than `tolerance` (by default
/// [`Export::tolerance`]); every export is compared before that.
pub fn export(
    source: &Source<'_>,
    exports: &[Export],
    check: &Check<'_>,
    (out, force): (&Path, bool),
    tolerance: Option<f64>,
    tell: &mut dyn FnMut(&Line<'_>),
) -> Result<Report> {
    publish(out, force, |folder| {
        let untuned = check.untuned()?;
        tell(&Line { name: "(without the adapter)", figures: &untuned, tolerance: None });
        let mut rows = Vec::new();
        for export in exports {
            let path = source.write(export, folder)?;
            let figures = check.compare(export, &path)?;
            let tolerance = tolerance.unwrap_or_else(|| export.tolerance());
            let (name, bytes) = (export.label(), size(&path).map_err(|error| file_error(&path, error))?);
            tell(&Line { name: &name, figures: &figures, tolerance: Some(tolerance) });
            rows.push(Row { export: name, path: export.file_name(), bytes, figures, tolerance });
        }
        rows.iter().try_for_each(Row::check)?;
        let report = Report {
            base: source.base.clone(),
            lora: source.tuned.lora.clone(),
            prompts: check.prompts(),
            positions: check.positions(),
            untuned,
            exports: rows,
        };
        write_json(&folder.join(REPORT), &report)?;
        Ok(report)
    })
}

/// Bytes of a file, or of all files in a folder.
fn size(path: &Path) -> std::io::Result<u64> {
    let meta = fs::metadata(path)?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

/// A line of the table.
pub struct Line<'a> {
    /// What was compared.
    pub name: &'a str,
    /// How far it is off.
    pub figures: &'a Figures,
    /// How far it may be; `None` where nothing is asked of it.
    pub tolerance: Option<f64>,
}

impl Line<'_> {
    /// The table's head.
    pub fn head() -> String {
        let units = "largest differences from the adapter on its base: logits in standard deviations";
        let [worst, usual, argmax, margin, score, allowed] =
            ["logits", "(rms)", "same argmax", "margin", "score", "allowed"];
        format!("{units}\n{:22} {worst:>9} {usual:>9} {argmax:>12} {margin:>9} {score:>9} {allowed:>8}", "")
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { logits, logits_rms, same_argmax, margin, score } = self.figures;
        let argmax = 100.0 * same_argmax;
        write!(f, "{:22} {logits:>9.2e} {logits_rms:>9.2e}", self.name)?;
        write!(f, " {argmax:>10.2} % {margin:>9.2e} {score:>9.2e}")?;
        match self.tolerance {
            Some(tolerance) if *logits > tolerance => write!(f, " {tolerance:>8} TOO FAR OFF"),
            Some(tolerance) => write!(f, " {tolerance:>8}"),
            None => Ok(()),
        }
    }
}
