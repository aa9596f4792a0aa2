//! The latest records, and those to come.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader, Seek as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{ConfigArgs, Entry, Filter, print, read::entries};

/// How often the file is looked at for more.
const LOOK: Duration = Duration::from_millis(200);
/// How often a list of files is made anew that has changed before it was read.
const TRIES: u32 = 5;

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
    let (mut latest, mut last) = (VecDeque::with_capacity(lines.min(1_024)), None);
    for entry in filter.all(config)? {
        let entry = entry?;
        last = Some(entry.id.clone());
        if !filter.takes(&entry) {
            continue;
        }
        latest.push_back(entry);
        if latest.len() > lines {
            latest.pop_front();
        }
    }
    for entry in &latest {
        print(entry, json, out)?;
    }
    let Some(mut following) = following else { return Ok(()) };
    following.last.clone_from(&last);
    loop {
        for entry in following.more()? {
            if filter.takes(&entry) && Some(&entry.id) != last.as_ref() {
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
}

impl<'a> Following<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let mut reader = reader(path)?;
        reader.seek(io::SeekFrom::End(0))?;
        Ok(Self { path, reader, part: String::new(), last: None })
    }

    /// The records that were written since.
    fn more(&mut self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        // Looked at first: a file that is rotated away is still read to its end.
        let is_rotated = self.is_rotated();
        self.read(&mut found)?;
        if is_rotated {
            found.extend(self.turn(TRIES)?);
            self.read(&mut found)?;
        }
        Ok(found)
    }

    /// Turns to the file that is written now, and gives what came between it and the one before.
    fn turn(&mut self, tries: u32) -> Result<Vec<Entry>> {
        self.reader = reader(self.path)?;
        self.part.clear();
        let mut older = crate::audit::files(self.path);
        older.retain(|file| file != self.path);
        match after(older, self.last.as_deref()) {
            Ok(found) if !self.is_rotated() => Ok(found),
            found if tries == 0 => found,
            // What was listed is not what lies there by now: files are renamed and compressed meanwhile.
            _ => self.turn(tries - 1),
        }
    }

    /// Reads on to the end of the file; what is no record is left out.
    fn read(&mut self, found: &mut Vec<Entry>) -> io::Result<()> {
        while self.reader.read_line(&mut self.part)? > 0 {
            if self.part.ends_with('\n') {
                if let Ok(entry) = Entry::parse(self.part.trim_end()) {
                    self.last = Some(entry.id.clone());
                    found.push(entry);
                }
                self.part.clear();
            }
        }
        Ok(())
    }

    #[cfg(unix)]
    fn is_rotated(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let (own, there) = (self.reader.get_ref().metadata(), fs::metadata(self.path));
        own.ok().zip(there.ok()).is_some_and(|(own, there)| own.ino() != there.ino())
    }

    #[cfg(not(unix))]
    fn is_rotated(&self) -> bool {
        let (own, there) = (self.reader.get_ref().metadata(), fs::metadata(self.path));
        own.ok().zip(there.ok()).is_some_and(|(own, there)| there.len() < own.len())
    }
}

fn reader(path: &Path) -> Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
    Ok(BufReader::new(file))
}

/// The records of `files` (oldest first) after the one with the id `last`; all, if it is in none of them.
fn after(files: Vec<PathBuf>, last: Option<&str>) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for file in files.into_iter().rev() {
        let mut records = entries(vec![file]).collect::<Result<Vec<_>>>()?;
        let at = records.iter().position(|record| Some(&*record.id) == last);
        let new = records.split_off(at.map_or(0, |at| at + 1));
        found.push(new);
        if at.is_some() {
            break;
        }
    }
    Ok(found.into_iter().rev().flatten().collect())
}
