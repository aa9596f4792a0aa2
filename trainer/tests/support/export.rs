//! What the tests of exports share: the decoder's tiny models, and an adapter whose every factor shows.

use std::path::PathBuf;

use forethought_core::guard::Bundle;
use forethought_core::guard::bundle::{Base, Manifest};
use forethought_core::model::Checkpoint;
use forethought_trainer::adapter::{Layout, LoraConfig};
use forethought_trainer::export::{Source, Tuned};
use forethought_trainer::model::Dimensions;

/// The tiny models.
pub(crate) const MODELS: [&str; 4] = ["llama", "llama3", "qwen2", "qwen3"];

/// A tiny model's folder, or a file in it.
pub(crate) fn tiny(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../core/tests/golden/tiny").join(name)
}

/// An adapter of fixed values; `golden/make_export.py` makes the same.
pub(crate) fn tuned(base: &Checkpoint) -> Tuned {
    let lora = LoraConfig { rank: 4, alpha: 8.0, ..LoraConfig::default() };
    let layout = Layout::new(&Dimensions::from(base.config()), &lora);
    let value = |i: usize| 0.2 * (((i * 37 + 11) % 101) as f32 / 50.0 - 1.0);
    let values = layout.factors.iter().flat_map(|factor| (0..factor.range.len()).map(value)).collect();
    Tuned { lora, layout, values }
}

/// A manifest that a tiny model can read: its tokens are single bytes, and its context is short.
#[allow(dead_code)] // not every test that shares this file needs it
pub(crate) fn manifest() -> Manifest {
    let mut manifest = Bundle::builtin("base").unwrap().manifest;
    manifest.template.harmful = "H".into();
    manifest.template.benign = "B".into();
    manifest.template.system = "S".into();
    manifest.template.user = "R {conversation}".into();
    manifest
}

/// A base and an adapter under names that need nothing from outside.
pub(crate) fn source<'a>(checkpoint: &'a Checkpoint, tuned: &'a Tuned) -> Source<'a> {
    let base = Base { model: "tiny".into(), sha256: Some("0".repeat(64)) };
    Source { checkpoint, base, base_name: "some/tiny".into(), tuned }
}
