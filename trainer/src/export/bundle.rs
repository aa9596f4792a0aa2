//! A guard bundle: `guard.toml`, the adapter, and what is known of its quality.

use std::path::{Path, PathBuf};

use forethought_core::guard::bundle::{Bundle, Manifest};

use super::{Dtype, Tuned, copy, create_folder, peft};
use crate::error::{Result, TrainError};
use crate::state;

/// Name of the adapter's folder.
const ADAPTER: &str = "adapter";

/// Writes a bundle for the base model that `manifest` names, with `eval` as its `EVAL.md`.
///
/// # Errors
/// When a file can't be read or written, `dtype` can't hold a number, or the proxy would not take the bundle.
pub fn write(
    folder: &Path,
    manifest: Manifest,
    tuned: &Tuned,
    dtype: Dtype,
    eval: Option<&Path>,
) -> Result<()> {
    create_folder(folder)?;
    let manifest = Manifest { adapter: Some(PathBuf::from(ADAPTER)), ..manifest };
    let text = toml::to_string_pretty(&manifest)
        .map_err(|error| TrainError::Export { problem: format!("guard.toml can't be written: {error}") })?;
    state::write_file(&folder.join("guard.toml"), text.as_bytes())?;
    peft::write(&folder.join(ADAPTER), tuned, &manifest.base.model, dtype)?;
    if let Some(eval) = eval {
        copy(eval, &folder.join("EVAL.md"))?;
    }
    let name = folder.to_str().ok_or_else(|| TrainError::Export {
        problem: format!("{} is no UTF-8, as a bundle's name must be", folder.display()),
    })?;
    Bundle::open(name)?;
    Ok(())
}
