//! A file of lines that begins anew when it has grown too large; older ones may be compressed.
//!
//! Written here because the rotation crates drop lines, or panic, where the disk fails.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use flate2::{Compression, write::GzEncoder};
use tracing::warn;

pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    keep: usize,
    /// Whether older files are compressed.
    compress: bool,
    /// The thread that compresses the latest of them.
    compressing: Option<JoinHandle<()>>,
    /// Bytes of the current line that are on disk already, after a write that failed half way.
    written: usize,
}

impl RotatingFile {
    pub(super) fn open(path: &Path, max_bytes: u64, keep: usize, compress: bool) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            max_bytes,
            keep,
            compress,
            compressing: None,
            written: 0,
        })
    }

    /// Writes one line, with its line feed. After an error the same line must be given again: what of it is written
    /// already is not written twice.
    pub(super) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.written == 0 && self.size > 0 && self.size + length > self.max_bytes {
            self.rotate()?;
        }
        while self.written < line.len() {
            match self.file.write(&line[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count;
                    self.size += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.written = 0;
        Ok(())
    }

    pub(super) fn sync(&self) {
        // Best effort: a device or a pipe can't be synchronised.
        let _ = self.file.sync_data();
    }

    /// Moves every older file one up, the current one to `.1`, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        self.finish();
        if self.keep == 0 {
            self.file.set_len(0)?;
        } else {
            let plain = |number| numbered(&self.path, number);
            for oldest in [plain(self.keep), compressed(&plain(self.keep))] {
                if oldest.exists() {
                    fs::remove_file(oldest)?;
                }
            }
            for number in (1..self.keep).rev() {
                let (from, to) = (plain(number), plain(number + 1));
                for (from, to) in [(compressed(&from), compressed(&to)), (from, to)] {
                    if from.exists() {
                        fs::rename(from, to)?;
                    }
                }
            }
            if self.path.exists() {
                fs::rename(&self.path, plain(1))?;
                if self.compress {
                    let file = plain(1);
                    // Best effort: a file that stays as it is can be read just as well.
                    let work = move || {
                        if let Err(error) = compress(&file) {
                            warn!("an older audit file is not compressed: {error}");
                        }
                    };
                    self.compressing =
                        std::thread::Builder::new().name("audit-gzip".to_owned()).spawn(work).ok();
                }
            }
            self.file = open(&self.path)?;
        }
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    /// Waits until no older file is being compressed.
    fn finish(&mut self) {
        if let Some(thread) = self.compressing.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for RotatingFile {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Replaces a file by its compressed form: there is a whole one of either at any time.
fn compress(path: &Path) -> io::Result<()> {
    let mut unfinished = OsString::from(path);
    unfinished.push(".gz.tmp");
    let done = File::open(path).and_then(|mut plain| {
        let mut encoder = GzEncoder::new(open_new(Path::new(&unfinished))?, Compression::default());
        io::copy(&mut plain, &mut encoder)?;
        encoder.finish()?.sync_all()?;
        fs::rename(&unfinished, compressed(path))?;
        fs::remove_file(path)
    });
    if done.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    done
}

fn open_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// The files of the log at `path`, oldest first, compressed ones included.
pub(crate) fn files(path: &Path) -> Vec<PathBuf> {
    let exists = |number: usize| {
        let plain = numbered(path, number);
        [compressed(&plain), plain].into_iter().find(|path| path.exists())
    };
    let mut files: Vec<PathBuf> = (1..).map_while(exists).collect();
    files.reverse();
    files.extend(path.exists().then(|| path.to_owned()));
    files
}

fn compressed(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".gz");
    name.into()
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_files_move_up_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/audit.jsonl");
        let mut file = RotatingFile::open(&path, 10, 2, false).unwrap();
        for line in
            ["aaaa\n", "bbbb\n", "cccc\n", "a line longer than a file\n", "dddd\n", "eeee\n", "ffff\n"]
        {
            file.write_line(line.as_bytes()).unwrap();
        }
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "ffff\n");
        assert_eq!(read(&numbered(&path, 1)), "dddd\neeee\n");
        assert_eq!(read(&numbered(&path, 2)), "a line longer than a file\n");
        assert!(!numbered(&path, 3).exists());
    }

    #[test]
    fn older_files_are_compressed_and_found() {
        use std::io::Read;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        // One from before files were compressed.
        fs::write(numbered(&path, 1), "old\n").unwrap();
        let mut file = RotatingFile::open(&path, 5, 3, true).unwrap();
        for line in ["aaaa\n", "bbbb\n", "cccc\n"] {
            file.write_line(line.as_bytes()).unwrap();
        }
        drop(file);
        let read = |path: &PathBuf| {
            let file = File::open(path).unwrap();
            let mut text = String::new();
            if path.extension().is_some_and(|end| end == "gz") {
                flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
            } else {
                File::open(path).unwrap().read_to_string(&mut text).unwrap();
            }
            text
        };
        let found = files(&path);
        assert_eq!(found.iter().map(read).collect::<String>(), "old\naaaa\nbbbb\ncccc\n");
        let names: Vec<_> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["audit.jsonl.3", "audit.jsonl.2.gz", "audit.jsonl.1.gz", "audit.jsonl"]);
        // The oldest goes, whatever its form.
        let mut file = RotatingFile::open(&path, 5, 3, true).unwrap();
        file.write_line(b"dddd\n").unwrap();
        drop(file);
        assert_eq!(files(&path).iter().map(read).collect::<String>(), "aaaa\nbbbb\ncccc\ndddd\n");
    }

    #[test]
    fn an_existing_file_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        for _ in 0..2 {
            RotatingFile::open(&path, 100, 1, false).unwrap().write_line(b"x\n").unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\nx\n");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        RotatingFile::open(&path, 100, 1, false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
