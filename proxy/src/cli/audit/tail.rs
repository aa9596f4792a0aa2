//! The latest records, and those to come.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{ConfigArgs, Entry, Filter, print, read::lines};

/// How often the file is looked at for more.
const LOOK: Duration = Duration::from_millis(200);
/// Looks until older files are taken as they are found.
const TRIES: u32 = 10;

pub(super) fn run(
    filter: &Filter,
    config: &ConfigArgs,
    lines: usize,
    follow: bool,
    json: bool,
    out: &mut dyn io::Write,
) -> Result<()> {
    let path = filter.path(config)?;
    // Opened before the old records are read: what is written meanwhile is printed twice at worst, and nothing is missed.
    let following = if follow { Some(Following::open(&path)?) } else { None };
    let mut latest = VecDeque::with_capacity(lines.min(1_024));
    for entry in filter.entries(config)? {
        latest.push_back(entry?);
        if latest.len() > lines {
            latest.pop_front();
        }
    }
    for entry in &latest {
        print(entry, json, out)?;
    }
    let Some(mut following) = following else { return Ok(()) };
    let last = latest.back().map(|entry| &entry.id);
    loop {
        for entry in following.more()? {
            if filter.takes(&entry) && Some(&entry.id) != last {
                print(&entry, json, out)?;
            }
        }
        out.flush()?;
        std::thread::sleep(LOOK);
    }
}

/// A file that grows, and is begun anew when it is large.
struct Following<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    /// The line that is being written.
    part: String,
    /// The record that was read last.
    last: Option<String>,
    /// Looks since the file was rotated away.
    tries: u32,
}

impl<'a> Following<'a> {
    /// At the end of a file.
    fn open(path: &'a Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
        let reader = BufReader::new(file);
        let mut following = Self { path, reader, part: String::new(), last: None, tries: 0 };
        following.read(&mut |_| {})?;
        Ok(following)
    }

    /// The records that were written since.
    fn more(&mut self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        // Looked at first: a file that is rotated away is still read to its end.
        let is_rotated = !is_current(self.reader.get_ref(), self.path);
        self.read(&mut |entry| found.push(entry))?;
        if is_rotated {
            self.tries += 1;
            match self.turn() {
                Ok(Some(between)) => {
                    found.extend(between);
                    self.read(&mut |entry| found.push(entry))?;
                }
                Err(error) if self.tries >= TRIES => return Err(error),
                // Files are renamed and compressed right now: the next look will find them in order.
                Ok(None) | Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Turns to the file that is written now, and gives what came between it and the one before; `None` if that can't be told
    /// yet.
    fn turn(&mut self) -> Result<Option<Vec<Entry>>> {
        let file = File::open(self.path).with_context(|| format!("can't read {}", self.path.display()))?;
        let mut older = crate::audit::files(self.path);
        older.retain(|file| file != self.path);
        let between = match &self.last {
            // Where it is gone for good, all that is left came after it.
            Some(last) => after(older, last, self.tries >= TRIES)?,
            None => Some(vec![]),
        };
        if between.is_none() || !is_current(&file, self.path) {
            return Ok(None);
        }
        (self.reader, self.tries) = (BufReader::new(file), 0);
        self.part.clear();
        Ok(between)
    }

    /// Reads on to the end of the file; what is no record is left out.
    fn read(&mut self, each: &mut dyn FnMut(Entry)) -> io::Result<()> {
        // Where no older files are kept, the file is emptied.
        if self.reader.stream_position()? > self.reader.get_ref().metadata()?.len() {
            self.reader.rewind()?;
            self.part.clear();
        }
        while self.reader.read_line(&mut self.part)? > 0 {
            if self.part.ends_with('\n') {
                if let Ok(entry) = Entry::parse(self.part.trim_end()) {
                    self.last = Some(entry.id.clone());
                    each(entry);
                }
                self.part.clear();
            }
        }
        Ok(())
    }
}

/// Whether a file is still the one at `path`.
#[cfg(unix)]
fn is_current(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().ok().zip(fs::metadata(path).ok()).is_some_and(|(own, there)| own.ino() == there.ino())
}

/// Whether a file is still the one at `path`.
#[cfg(not(unix))]
fn is_current(file: &File, path: &Path) -> bool {
    file.metadata().ok().zip(fs::metadata(path).ok()).is_some_and(|(own, there)| there.len() >= own.len())
}

/// The records of `files` (oldest first) after the one with the id `last`. If it is in none of them: all with `or_all`, else
/// `None`.
fn after(files: Vec<PathBuf>, last: &str, or_all: bool) -> Result<Option<Vec<Entry>>> {
    let records = |file: &Path| -> Result<_> {
        let lines = lines(file).with_context(|| format!("can't read {}", file.display()))?;
        Ok(lines.map_while(io::Result::ok).filter_map(|line| Entry::parse(&line).ok()))
    };
    let (mut found, mut is_there) = (Vec::new(), or_all);
    for file in files.iter().rev() {
        // Twice, so that a large file's records are not all held for the one after which nothing came.
        let at = records(file)?.position(|record| record.id == last);
        found.push(records(file)?.skip(at.map_or(0, |at| at + 1)).collect::<Vec<_>>());
        if at.is_some() {
            is_there = true;
            break;
        }
    }
    Ok(is_there.then(|| found.into_iter().rev().flatten().collect()))
}
