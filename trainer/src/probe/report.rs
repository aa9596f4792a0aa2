//! A run's outcome: JSON for programs, Markdown and two plots for people.

mod markdown;
mod plot;

use std::path::Path;

use forethought_core::probe::Position;
use serde::Serialize;

use super::{
    classifier::Kind,
    curve::Point,
    error::{ProbeError, Result},
    made::SetThreshold,
    rows::FileRecord,
    scores::{LeftOut, SetScore},
    search::Cell,
};

/// Name of the Markdown report; the JSON one is beside it.
pub const MARKDOWN_FILE: &str = "probe.md";
/// Name of the JSON report.
pub const JSON_FILE: &str = "probe.json";
/// Name of the plot of AUROC by layer and position.
pub const LAYERS_PLOT: &str = "layers.svg";
/// Name of the plot of AUROC by number of examples.
pub const CURVE_PLOT: &str = "learning-curve.svg";

/// Everything a run found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The bundle's name and version.
    pub bundle: String,
    /// The base model's name.
    pub base_model: String,
    /// sha256 of its weights.
    pub base_sha256: String,
    /// sha256 of the adapter's weights; empty without one.
    pub adapter_sha256: String,
    /// Files that were fitted on.
    pub fit: Vec<FileRecord>,
    /// Rows of them that were left out, as they fill several windows.
    pub left_out: usize,
    /// Files that thresholds were set on, where those are others.
    pub threshold: Option<Vec<FileRecord>>,
    /// Files that were scored.
    pub score: Vec<(String, Vec<FileRecord>)>,
    /// How many of those, from the first on, probes were chosen, calibrated and given thresholds by; with none it was
    /// done by cross-validation.
    pub chosen_by: usize,
    /// Folds of the cross-validation.
    pub folds: usize,
    /// Seed of everything that was drawn.
    pub seed: u64,
    /// Logistic regression at every layer and position.
    pub cells: Vec<Cell>,
    /// The probes that were written.
    pub probes: Vec<ProbeReport>,
    /// AUROC of the mean of their logits: out of fold, then on each set with both classes.
    pub together: Vec<(String, f64)>,
    /// How many examples the first probe needs.
    pub learning_curve: Option<Vec<Point>>,
}

/// One probe.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeReport {
    /// Its name.
    pub name: String,
    /// Its file, relative to the report.
    pub file: String,
    /// Its layer.
    pub layer: usize,
    /// Its position.
    pub position: Position,
    /// Its family.
    pub kind: Kind,
    /// Inverse strength of its penalty.
    pub c: f64,
    /// AUROC on the rows that it was chosen by.
    pub chosen_by: f64,
    /// AUROC out of fold on the rows that it is fitted on.
    pub auroc: Option<f64>,
    /// AUROC, on the rows it was chosen by, of the best logistic regression and the best small network there.
    pub kinds: Vec<(Kind, f64)>,
    /// Where it begins to say harmful.
    pub threshold: SetThreshold,
    /// Its scores on rows it has not seen.
    pub sets: Vec<SetScore>,
    /// Its scores when groups are left out of the fit.
    pub left_out: Vec<LeftOut>,
}

impl Report {
    /// Writes all files of the report into a folder.
    ///
    /// # Errors
    /// A file can't be written, or a plot not drawn.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(ProbeError::file(&path))
        };
        write(JSON_FILE, &(serde_json::to_string_pretty(self)? + "\n"))?;
        write(MARKDOWN_FILE, &self.markdown())?;
        plot::layers(&folder.join(LAYERS_PLOT), &self.cells)?;
        if let Some(curve) = &self.learning_curve {
            plot::curve(&folder.join(CURVE_PLOT), curve)?;
        }
        Ok(())
    }
}
