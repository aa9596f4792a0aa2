//! The latest records, and those to come.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::Path,
    time::Duration,
};

use anyhow::Result;

use super::{ConfigArgs, Entry, Filter, print};

/// How often the file is looked at for more.
const LOOK: Duration = Duration::from_millis(200);

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
    let mut following = if follow { Some(Following::open(&path)?) } else { None };
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
    let last = latest.back().map(|entry| entry.id.clone());
    while let Some(following) = &mut following {
        for line in following.more()? {
            if let Ok(entry) = Entry::parse(&line)
                && filter.takes(&entry)
                && Some(&entry.id) != last.as_ref()
            {
                print(&entry, json, out)?;
            }
        }
        out.flush()?;
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A file that grows, and is begun anew when it is large.
struct Following<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    /// The line that is being written.
    part: String,
}

impl<'a> Following<'a> {
    fn open(path: &'a Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        Ok(Self { path, reader: BufReader::new(file), part: String::new() })
    }

    /// The lines that were written since.
    fn more(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            // Looked at first: a file that is rotated away is still read to its end.
            let is_rotated = self.is_rotated();
            while self.reader.read_line(&mut self.part)? > 0 {
                if self.part.ends_with('\n') {
                    lines.push(std::mem::take(&mut self.part));
                }
            }
            if !is_rotated {
                return Ok(lines);
            }
            self.reader = BufReader::new(File::open(self.path)?);
            self.part.clear();
        }
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
