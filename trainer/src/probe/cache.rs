//! States on disk: a file for each model, prompt and choice of layers, with a record for each window that was read.
//!
//! Records have one size and are only ever appended, so an interrupted run goes on where it was, and any state is read
//! by its place.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::error::{ProbeError, Result};

/// A sha256.
pub type Key = [u8; 32];

/// Begins each file.
const MAGIC: [u8; 8] = *b"FTSTATE1";
const HEADER: u64 = MAGIC.len() as u64 + 32;

/// One file of states. While it is open, no other process has it.
pub struct Cache {
    path: PathBuf,
    file: File,
    /// Values of a record.
    len: usize,
    places: HashMap<Key, u64>,
}

impl Cache {
    /// Opens or creates the file for a model and prompt, told apart by `model`, with records of `len` values. Waits for
    /// another process that has it open.
    ///
    /// # Errors
    /// The file can't be read or written, or is none of these.
    pub fn open(folder: &Path, model: &Key, len: usize) -> Result<Self> {
        fs::create_dir_all(folder).map_err(ProbeError::file(folder))?;
        let path = folder.join(format!("{}.states", hex::encode(&model[..8])));
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = opened.map_err(ProbeError::file(&path))?;
        file.lock().map_err(ProbeError::file(&path))?;
        let size = file.metadata().map_err(ProbeError::file(&path))?.len();
        let header = [&MAGIC[..], model].concat();
        if size < HEADER {
            file.set_len(0).map_err(ProbeError::file(&path))?;
            file.write_all(&header).map_err(ProbeError::file(&path))?;
        } else {
            let mut found = vec![0; header.len()];
            file.read_exact(&mut found).map_err(ProbeError::file(&path))?;
            if found != header {
                let problem =
                    "this is no file of states for this model: remove it, or choose another `cache`";
                return Err(ProbeError::Cache { path, problem });
            }
        }
        let mut cache = Self { path, file, len, places: HashMap::new() };
        cache.index(size.saturating_sub(HEADER) / cache.record())?;
        Ok(cache)
    }

    fn record(&self) -> u64 {
        32 + 4 * self.len as u64
    }

    /// Reads the keys of all whole records; what an interrupted run left of another one is cut off.
    fn index(&mut self, records: u64) -> Result<()> {
        let (record, path) = (self.record(), self.path.clone());
        let mut reader = BufReader::with_capacity(64, &self.file);
        for i in 0..records {
            let place = HEADER + i * record;
            let mut key = [0; 32];
            reader.seek(SeekFrom::Start(place)).map_err(ProbeError::file(&path))?;
            reader.read_exact(&mut key).map_err(ProbeError::file(&path))?;
            self.places.insert(key, place + 32);
        }
        self.file.set_len(HEADER + records * record).map_err(ProbeError::file(&path))
    }

    /// Whether a window's states are there.
    pub fn holds(&self, key: &Key) -> bool {
        self.places.contains_key(key)
    }

    /// Appends a window's states.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn append(&mut self, key: Key, states: &[f32]) -> Result<()> {
        debug_assert_eq!(states.len(), self.len);
        let mut bytes = key.to_vec();
        bytes.extend(states.iter().flat_map(|v| v.to_le_bytes()));
        let place = self.file.seek(SeekFrom::End(0)).map_err(ProbeError::file(&self.path))?;
        self.file.write_all(&bytes).map_err(ProbeError::file(&self.path))?;
        self.places.insert(key, place + 32);
        Ok(())
    }

    /// Values `start .. start + count` of each window, one after the other. A window that is not there is a mistake of
    /// the caller.
    ///
    /// # Errors
    /// The file can't be read, or lacks a window.
    pub fn read(&mut self, keys: &[Key], start: usize, count: usize) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(keys.len() * count);
        let mut bytes = vec![0; 4 * count];
        for key in keys {
            let missing = || ProbeError::Data(format!("{} lacks a window", self.path.display()));
            let place = self.places.get(key).ok_or_else(missing)? + 4 * start as u64;
            self.file.seek(SeekFrom::Start(place)).map_err(ProbeError::file(&self.path))?;
            self.file.read_exact(&mut bytes).map_err(ProbeError::file(&self.path))?;
            values.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(values)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Closing unlocks as well; a failure leaves nothing to do.
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_outlive_an_interrupted_write() {
        let folder = tempfile::tempdir().unwrap();
        let model = [7; 32];
        let mut cache = Cache::open(folder.path(), &model, 3).unwrap();
        cache.append([1; 32], &[1.0, 2.0, 3.0]).unwrap();
        cache.append([2; 32], &[4.0, 5.0, 6.0]).unwrap();
        let path = cache.path.clone();
        drop(cache);
        let whole = fs::read(&path).unwrap();
        for cut in 0..=44 {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let mut cache = Cache::open(folder.path(), &model, 3).unwrap();
            assert!(cache.holds(&[1; 32]));
            assert_eq!(cache.holds(&[2; 32]), cut == 0, "{cut} bytes short");
            if cut > 0 {
                cache.append([2; 32], &[4.0, 5.0, 6.0]).unwrap();
            }
            assert_eq!(cache.read(&[[2; 32], [1; 32]], 1, 2).unwrap(), [5.0, 6.0, 2.0, 3.0]);
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0909090909090909.states");
        fs::write(&path, [b'x'; 100]).unwrap();
        let error = Cache::open(folder.path(), &[9; 32], 3).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("remove it"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), [b'x'; 100]);
    }
}
