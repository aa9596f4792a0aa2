//! The output: a line a row, synced as it is written, from which a run goes on.
//!
//! A line that was cut when the writer was killed is taken out. Rows that failed go to a file beside it, without any
//! text of theirs; they are tried again by the next run, which begins that file anew.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use forethought_core::dataset::Row;
use serde::Serialize;
use serde_json::Value;

use crate::dataset::record::{self, Format, Record};
use crate::error::{Result, TrainError};

/// A row that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedRow {
    /// Its name.
    pub id: String,
    /// Its line in the input, counted from 1.
    pub line: usize,
    /// How many answers were asked for.
    pub tries: usize,
    /// Why the last one would not do, or why there was none.
    pub reason: String,
}

/// The rows that an output holds.
#[derive(Debug, Default)]
pub struct Done(HashMap<String, Written>);

#[derive(Debug)]
struct Written {
    line: usize,
    /// The instruction and the label: what the phases are about.
    about: [Option<String>; 2],
}

impl Done {
    /// Whether the output holds this row.
    ///
    /// # Errors
    /// It holds another row of this name: the input has changed, or belongs to another output.
    pub(super) fn holds(&self, row: &Row, record: &Record, path: &Path) -> Result<bool> {
        match self.0.get(&row.id) {
            None => Ok(false),
            Some(written) if written.about == about(record) => Ok(true),
            Some(written) => Err(TrainError::Input {
                path: path.into(),
                problem: format!(
                    "line {} has the id of the input's line {} and another instruction or label: \
                    name another output, or take that line out",
                    written.line, row.line
                ),
            }),
        }
    }
}

fn about(record: &Record) -> [Option<String>; 2] {
    let instruction = record.text("instruction").or_else(|| record.text("prompt"));
    [instruction, record.text("label")]
}

/// The rows that an output holds, without touching it; none where there is no such file.
///
/// # Errors
/// The file can't be read, or is something else.
pub(super) fn peek(path: &Path) -> Result<Done> {
    match fs::read(path) {
        Ok(bytes) => Ok(parse(path, &bytes)?.0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Done::default()),
        Err(source) => Err(TrainError::File { path: path.into(), source }),
    }
}

/// The rows of an output, and the length of its whole lines.
fn parse(path: &Path, bytes: &[u8]) -> Result<(Done, usize)> {
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let wrong = |problem| TrainError::Input { path: path.into(), problem };
    let records = record::parse(&bytes[..whole], Format::Jsonl).map_err(wrong)?;
    if let Some(bad) = records.bad.first() {
        let problem = format!("line {} is {}: this is no output of `data assess`", bad.line, bad.problem);
        return Err(TrainError::Input { path: path.into(), problem });
    }
    let mut done = HashMap::new();
    for record in records.records {
        match record.fields.get("id") {
            Some(Value::String(id)) => {
                done.insert(id.clone(), Written { line: record.line, about: about(&record) });
            }
            _ => {
                let problem = format!("line {} has no id: this is no output of `data assess`", record.line);
                return Err(TrainError::Input { path: path.into(), problem });
            }
        }
    }
    Ok((Done(done), whole))
}

/// An output being written. Locked: a second writer is turned away.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    done: Done,
    failed_path: PathBuf,
    failed: Option<File>,
}

impl Journal {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failure = |source| TrainError::File { path: path.into(), source };
        let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).clone();
        let mut file = options.open(path).map_err(failure)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let problem = "another run is writing it".into();
                return Err(TrainError::Input { path: path.into(), problem });
            }
            Err(TryLockError::Error(source)) => return Err(failure(source)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failure)?;
        let (done, whole) = parse(path, &bytes)?;
        file.set_len(whole as u64).map_err(failure)?;
        file.seek(io::SeekFrom::End(0)).map_err(failure)?;

        let failed_path = PathBuf::from({
            let mut name = OsString::from(path);
            name.push(".failed.jsonl");
            name
        });
        match fs::remove_file(&failed_path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(TrainError::File { path: failed_path, source });
            }
            _ => {}
        }
        Ok(Self { path: path.into(), file, done, failed_path, failed: None })
    }

    /// The rows that were there when it was opened.
    pub(super) fn done(&self) -> &Done {
        &self.done
    }

    /// Writes a row. When this returns, it is on the disk.
    pub(super) fn append(&mut self, record: Record) -> Result<()> {
        let line = Value::Object(record.fields).to_string();
        write_line(&mut self.file, &line)
            .map_err(|source| TrainError::File { path: self.path.clone(), source })
    }

    /// Notes a row that failed.
    pub(super) fn append_failed(&mut self, row: &FailedRow) -> Result<()> {
        let file = match &mut self.failed {
            Some(file) => Ok(file),
            none => File::create(&self.failed_path).map(|file| none.insert(file)),
        };
        let write = file.and_then(|file| write_line(file, &serde_json::to_string(row)?));
        write.map_err(|source| TrainError::File { path: self.failed_path.clone(), source })
    }
}

/// In one write, so that a row is there in whole or is the last line and cut.
fn write_line(file: &mut File, line: &str) -> io::Result<()> {
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_data()
}
