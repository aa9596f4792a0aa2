//! `forethought plugin new`: a folder with a plugin that builds, and cases that it passes.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use forethought_plugins::template::{self, Language};

use crate::cli::progress::say;

/// Flags of `forethought plugin new`.
#[derive(Args, Clone, Debug)]
pub(super) struct NewArgs {
    /// What to write it in
    #[arg(long, value_enum, default_value = "rust")]
    lang: Lang,
    /// The plugin's name; the folder's last part
    #[arg(value_name = "NAME")]
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Lang {
    Rust,
    Js,
    Python,
}

pub(super) fn run(args: &NewArgs) -> Result<()> {
    let name = args.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let starts = name.starts_with(|c: char| c.is_ascii_lowercase());
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !starts || !name.bytes().all(good) {
        bail!("`{name}` can't be a plugin's name: use small letters, digits and dashes, a letter first");
    }
    if args.path.exists() {
        bail!("{} is there already", args.path.display());
    }
    let language = match args.lang {
        Lang::Rust => Language::Rust,
        Lang::Js => Language::JavaScript,
        Lang::Python => Language::Python,
    };
    for (path, text) in template::files(language, name) {
        let path = args.path.join(path);
        let folder = path.parent().unwrap_or(&args.path);
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    }
    say(&format!("{} is there; its README.md says how to build, test and use it", args.path.display()));
    Ok(())
}
