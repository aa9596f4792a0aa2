//! A file of lines that begins anew when it has grown too large.
//!
//! Written here because the rotation crates drop lines, or panic, where the disk fails.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    keep: usize,
    /// Bytes of the current line that are on disk already, after a write that failed half way.
    written: usize,
}

impl RotatingFile {
    pub(super) fn open(path: &Path, max_bytes: u64, keep: usize) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, max_bytes, keep, written: 0 })
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
        if self.keep == 0 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.keep).rev() {
                if numbered(&self.path, number).exists() {
                    fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1))?;
                }
            }
            if self.path.exists() {
                fs::rename(&self.path, numbered(&self.path, 1))?;
            }
            self.file = open(&self.path)?;
        }
        self.size = self.file.metadata()?.len();
        Ok(())
    }
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
        let mut file = RotatingFile::open(&path, 10, 2).unwrap();
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
    fn an_existing_file_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        for _ in 0..2 {
            RotatingFile::open(&path, 100, 1).unwrap().write_line(b"x\n").unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\nx\n");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        RotatingFile::open(&path, 100, 1).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
