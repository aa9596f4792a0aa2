//! TensorBoard's event files: TFRecord frames of `Event` messages. The few messages that scalars need are written out
//! here with their tags, as in tensorflow's `event.proto` and `summary.proto`, so that no protobuf compiler is needed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::{Message, Oneof};

use crate::error::{Result, TrainError};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    Session(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.START`: TensorBoard then forgets what earlier files of the run hold from this step on.
const START: i32 = 1;

/// An event file being written.
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `folder` for a run that has taken `step` steps.
    pub(super) fn create(folder: &Path, step: usize) -> Result<Self> {
        // TensorBoard reads a run's files in the order of their names.
        let path = (0..)
            .map(|number| folder.join(format!("events.out.tfevents.{:010}.{number}", now() as u64)))
            .find(|path| !path.exists())
            .unwrap_or_else(|| folder.join("events.out.tfevents"));
        let file = File::create(&path).map_err(|source| TrainError::File { path: path.clone(), source })?;
        let mut events = Self { path, file };
        events.append(0, What::FileVersion("brain.Event:2".into()))?;
        if step > 0 {
            events.append(step + 1, What::Session(SessionLog { status: START }))?;
        }
        Ok(events)
    }

    /// Writes scalars of one step.
    pub(super) fn write(&mut self, step: usize, values: &[(String, f64)]) -> Result<()> {
        let value = |(tag, value): &(String, f64)| Value { tag: tag.clone(), simple_value: *value as f32 };
        self.append(step, What::Summary(Summary { value: values.iter().map(value).collect() }))
    }

    fn append(&mut self, step: usize, what: What) -> Result<()> {
        let event = Event { wall_time: now(), step: step as i64, what: Some(what) };
        let written = self.file.write_all(&frame(&event.encode_to_vec()));
        written.map_err(|source| TrainError::File { path: self.path.clone(), source })
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A TFRecord: length, its checksum, the data, its checksum.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts = [&length[..], &masked(&length).to_le_bytes(), data, &masked(data).to_le_bytes()];
    parts.concat()
}

/// CRC-32C as TFRecord masks it, so that checksums of data that holds checksums stay apart.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_tfrecords() {
        // CRC-32C's check value is 0xe3069283; masked as TFRecord says: rotated right by 15, plus 0xa282ead8.
        assert_eq!(masked(b"123456789"), 0xc78ab0e5);
    }

    #[test]
    fn events_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 4).unwrap();
        events.write(5, &[("train/loss".into(), 1.5)]).unwrap();
        let bytes = std::fs::read(&events.path).unwrap();
        let (mut at, mut read) = (0, Vec::new());
        while at < bytes.len() {
            let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            let data = &bytes[at + 12..at + 12 + length];
            let sum = u32::from_le_bytes(bytes[at + 12 + length..at + 16 + length].try_into().unwrap());
            assert_eq!(sum, masked(data));
            read.push(Event::decode(data).unwrap());
            at += 16 + length;
        }
        assert_eq!(read.len(), 3);
        assert_eq!((read[1].step, &read[1].what), (5, &Some(What::Session(SessionLog { status: START }))));
        let value = Value { tag: "train/loss".into(), simple_value: 1.5 };
        assert_eq!((read[2].step, &read[2].what), (5, &Some(What::Summary(Summary { value: vec![value] }))));
    }
}
