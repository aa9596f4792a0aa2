//! What a run leaves on disk besides its states: the settings as used, `metrics.jsonl`, TensorBoard events and plots.

mod plot;
mod tensorboard;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forethought_core::store::sha256_file;
use serde::{Deserialize, Serialize};

use self::tensorboard::Events;
use super::evaluation::{Evaluation, SetScores};
use crate::config::{Select, SftConfig};
use crate::error::{Result, TrainError};
use crate::source::SourceReport;
use crate::train::StepReport;

/// Name of the file that holds a line of JSON for every step and every evaluation.
pub const METRICS: &str = "metrics.jsonl";

/// Name of the file that says what was learnt.
const DATA: &str = "data.json";

/// A file of rows as a run read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// sha256 of the file, hexadecimal.
    pub sha256: String,
    /// What it gave.
    #[serde(flatten)]
    pub report: SourceReport,
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// A step.
    Step(StepLine),
    /// Scores after a step.
    Evaluation(Evaluation),
}

/// A step's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Steps taken, this one included.
    pub step: usize,
    /// The batch's loss before the update.
    pub loss: f64,
    /// The gradients' norm before clipping.
    pub grad_norm: f64,
    /// The learning rate.
    pub rate: f64,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Time taken.
    pub seconds: f64,
}

impl Line {
    fn step(&self) -> usize {
        match self {
            Self::Step(line) => line.step,
            Self::Evaluation(evaluation) => evaluation.step,
        }
    }
}

/// Writes a run's records as it goes.
pub struct Recorder {
    folder: PathBuf,
    metrics: File,
    events: Events,
    lines: Vec<Line>,
}

impl Recorder {
    /// Opens the records of a run that has taken `step` steps. Lines of later steps, which a run that resumes at `step`
    /// takes again, are dropped.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn open(folder: &Path, config: &SftConfig, step: usize) -> Result<Self> {
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let path = folder.join("config.toml");
        let text = toml::to_string(config).map_err(std::io::Error::other).map_err(failed(&path))?;
        fs::write(&path, text).map_err(failed(&path))?;
        let path = folder.join(METRICS);
        let lines: Vec<Line> = read(&path)?.into_iter().filter(|line| line.step() <= step).collect();
        let mut metrics = File::create(&path).map_err(failed(&path))?;
        lines.iter().try_for_each(|line| write_line(&mut metrics, line)).map_err(failed(&path))?;
        let events = Events::create(folder, step)?;
        Ok(Self { folder: folder.to_owned(), metrics, events, lines })
    }

    /// Records which files were read.
    ///
    /// # Errors
    /// When a file can't be read or written.
    pub fn data(&self, reports: &[SourceReport]) -> Result<()> {
        let file = |report: &SourceReport| -> Result<DataFile> {
            let sha256 = sha256_file(Path::new(&report.path))?;
            Ok(DataFile { sha256, report: report.clone() })
        };
        let files = reports.iter().map(file).collect::<Result<Vec<_>>>()?;
        let path = self.folder.join(DATA);
        let json = serde_json::to_vec_pretty(&files).map_err(std::io::Error::other).map_err(failed(&path))?;
        fs::write(&path, json).map_err(failed(&path))
    }

    /// Records a step.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn step(&mut self, report: &StepReport, took: Duration) -> Result<()> {
        let line = StepLine {
            step: report.step + 1,
            loss: report.batch.loss,
            grad_norm: report.grad_norm,
            rate: report.rate,
            tokens: report.batch.tokens,
            seconds: took.as_secs_f64(),
        };
        let speed = line.tokens as f64 / line.seconds.max(1e-9);
        let values = [
            ("train/loss".into(), line.loss),
            ("train/grad_norm".into(), line.grad_norm),
            ("train/rate".into(), line.rate),
            ("train/tokens_per_second".into(), speed),
        ];
        self.events.write(line.step, &values)?;
        self.record(Line::Step(line))
    }

    /// Records scores.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn evaluation(&mut self, evaluation: &Evaluation) -> Result<()> {
        let mut values = Vec::new();
        for (set, scores) in &evaluation.sets {
            values.extend(named(scores).map(|(name, value)| (format!("{set}/{name}"), value)));
        }
        self.events.write(evaluation.step, &values)?;
        self.record(Line::Evaluation(evaluation.clone()))
    }

    /// The best scores on record.
    pub fn best(&self, select: Select) -> Option<Evaluation> {
        let mut best: Option<Evaluation> = None;
        for line in &self.lines {
            if let Line::Evaluation(evaluation) = line
                && evaluation.beats(best.as_ref(), select)
            {
                best = Some(evaluation.clone());
            }
        }
        best
    }

    /// Draws `loss.svg` and `eval.svg` anew.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn plot(&self) -> Result<()> {
        plot::draw(&self.folder, &self.lines)
    }

    fn record(&mut self, line: Line) -> Result<()> {
        write_line(&mut self.metrics, &line).map_err(failed(&self.folder.join(METRICS)))?;
        self.lines.push(line);
        Ok(())
    }
}

/// A set's scores that are there, by name.
fn named(scores: &SetScores) -> impl Iterator<Item = (&'static str, f64)> + use<> {
    let values = [
        ("loss", Some(scores.loss)),
        ("accuracy", scores.accuracy),
        ("recall", scores.recall),
        ("false_positive_rate", scores.false_positive_rate),
        ("auroc", scores.auroc),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

/// Reads which files a run read.
///
/// # Errors
/// When the file can't be read.
pub fn read_data(folder: &Path) -> Result<Vec<DataFile>> {
    let path = folder.join(DATA);
    serde_json::from_str(&read_text(&path)?).map_err(std::io::Error::other).map_err(failed(&path))
}

/// Reads a file of a run.
///
/// # Errors
/// Names the file.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(failed(path))
}

/// Reads a run's `metrics.jsonl`; a run that has none has no lines. A torn last line is left out.
///
/// # Errors
/// When the file can't be read, or a line before the last is not one of a run.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(path)(error)),
    };
    let count = text.lines().count();
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        match serde_json::from_str(line) {
            Ok(line) => lines.push(line),
            Err(_) if number == count => {}
            Err(error) => {
                let problem = std::io::Error::other(format!("line {number}: {error}"));
                return Err(failed(path)(problem));
            }
        }
    }
    Ok(lines)
}

fn write_line(file: &mut File, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    file.write_all(text.as_bytes())
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    let path = path.to_owned();
    move |source| TrainError::File { path, source }
}
