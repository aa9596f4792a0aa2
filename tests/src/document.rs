//! Documents that the tests write: what stands there is what was seen.

use std::path::PathBuf;

/// Checks that the document at `docs/{name}` says `text`. Set `UPDATE_DOCS` to write it anew.
///
/// # Panics
/// If it says something else.
#[track_caller]
pub fn is_written(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, text).expect("the document can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/{name} says something else; set UPDATE_DOCS=1 to write it anew:\n{text}");
}
