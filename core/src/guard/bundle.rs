//! A guard bundle: the folder that says which base model a guard is made of, and how it is asked.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::combine::{self, Combination};
use crate::{
    evidence::{GuardVersion, Hazard, Phase},
    model::{Adapter, ModelError, adapter},
    probe::{Made, ProbeSource},
};

/// Contents of a bundle's `guard.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The bundle's name.
    pub name: String,
    /// The bundle's version.
    pub version: String,
    /// The model it is made for.
    pub base: Base,
    /// What the model is asked.
    pub template: Template,
    /// How much it may write.
    pub limits: TokenLimits,
    /// How closely it keeps to the conversation's own words.
    #[serde(default, skip_serializing_if = "Focus::is_none")]
    pub focus: Focus,
    /// What it may find.
    pub hazards: Hazards,
    /// From logits to probabilities.
    #[serde(default)]
    pub calibration: Calibrations,
    /// Folder of a PEFT adapter, inside the bundle.
    pub adapter: Option<PathBuf>,
    /// Probes of its hidden states.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbeFile>,
    /// What the cascade takes for clear, where the configuration does not say.
    pub cascade: Option<Band>,
    /// How several signals make one score, by the signals that there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub combine: Vec<Combination>,
}

/// A probe's file. All else is inside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeFile {
    /// An ONNX file, inside the bundle.
    pub file: PathBuf,
}

/// Scores that are clear without reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// Below this a conversation is clearly benign.
    pub benign_below: f64,
    /// From this on it is clearly harmful; above 1 nothing is.
    pub harmful_from: f64,
}

impl Band {
    /// What is wrong with it, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let Self { benign_below: low, harmful_from: high } = *self;
        // Written so that a value that is not a number fails.
        let right = low >= 0.0 && low <= high && high.is_finite();
        (!right).then(|| {
            format!("benign_below is {low} and harmful_from {high}, and must rise in this order from 0")
        })
    }
}

impl Manifest {
    /// Reads a `guard.toml`.
    ///
    /// # Errors
    /// It is missing or wrong; the message names it.
    pub fn read(path: &Path) -> Result<Self, BundleError> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => parse(&text, &name),
            Err(source) => Err(BundleError::Io { path: name, source }),
        }
    }
}

/// The base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// A model specification for the [store](crate::store).
    pub model: String,
    /// sha256 of its weights, hexadecimal; not checked where missing.
    pub sha256: Option<String>,
}

/// The prompt and the headings that make up R1-Act's structure.
///
/// Every heading is tokenized on its own, in training as in use, so that both see the same ids.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// The template's name.
    pub name: String,
    /// The template's version.
    pub version: u32,
    /// The system message.
    pub system: String,
    /// The user message; `{conversation}` stands for the transcript.
    pub user: String,
    /// Opens the assistant's turn.
    pub open: String,
    /// Opens the first phase.
    pub understanding: String,
    /// Closes the first phase and opens the second.
    pub assessment: String,
    /// Closes the second phase and asks for the verdict.
    pub verdict: String,
    /// Asks for the verdict where no phases are written.
    pub direct_verdict: String,
    /// The verdict that counts as harmful.
    pub harmful: String,
    /// The verdict that counts as benign.
    pub benign: String,
    /// Asks for the hazard, after the verdict.
    pub category: String,
}

/// What is added to the logits of the conversation's own words while a phase is written, each until it is written once.
///
/// A small model loses the thread of what it has read, and writes about what it was trained on instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Focus {
    /// In the problem understanding.
    #[serde(default)]
    pub understanding: f32,
    /// In the harmfulness assessment.
    #[serde(default)]
    pub assessment: f32,
}

impl Focus {
    /// Whether nothing is added.
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// For a phase.
    pub(super) fn of(&self, phase: Phase) -> f32 {
        match phase {
            Phase::Understanding => self.understanding,
            Phase::Assessment => self.assessment,
        }
    }
}

/// Most tokens of each phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenLimits {
    /// Of the problem understanding.
    pub understanding_tokens: usize,
    /// Of the harmfulness assessment.
    pub assessment_tokens: usize,
}

/// The hazards a guard can name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hazards {
    /// Their names, as the model writes them; it may always say `none` instead.
    pub names: Vec<Hazard>,
    /// Score from which on one is named.
    pub from: f64,
}

/// Calibration of each way to a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrations {
    /// After the phases.
    #[serde(default)]
    pub reason: Calibration,
    /// With no phases.
    #[serde(default)]
    pub direct: Calibration,
}

/// Platt scaling: `P(harmful) = sigmoid(margin / temperature + bias)`, where the margin is the harmful label's logit
/// minus the benign one's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Divisor of the margin; above zero.
    pub temperature: f64,
    /// Added to the scaled margin.
    pub bias: f64,
}

impl Default for Calibration {
    fn default() -> Self {
        Self { temperature: 1.0, bias: 0.0 }
    }
}

impl Calibration {
    /// The probability for a margin.
    pub fn probability(&self, margin: f64) -> f64 {
        1.0 / (1.0 + (-(margin / self.temperature + self.bias)).exp())
    }
}

/// A loaded bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Contents of `guard.toml`.
    pub manifest: Manifest,
    /// sha256 over all its files, hexadecimal.
    pub sha256: String,
    home: Home,
}

/// Where a bundle's files are.
#[derive(Clone, Debug)]
enum Home {
    Folder(PathBuf),
    /// In the program, by their paths inside the bundle.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// A bundle in the program.
struct Builtin {
    name: &'static str,
    manifest: &'static str,
    /// The other files, by their paths inside the bundle.
    files: &'static [(&'static str, &'static [u8])],
}

/// The tuned guard, and the same base model untuned.
const BUILTIN: [Builtin; 2] = [
    Builtin {
        name: "default",
        manifest: include_str!("../../bundles/default/guard.toml"),
        files: &[
            (
                "adapter/adapter_config.json",
                include_bytes!("../../bundles/default/adapter/adapter_config.json"),
            ),
            (
                "adapter/adapter_model.safetensors",
                include_bytes!("../../bundles/default/adapter/adapter_model.safetensors"),
            ),
            ("probes/last-19.onnx", include_bytes!("../../bundles/default/probes/last-19.onnx")),
            ("probes/mean-8-mlp.onnx", include_bytes!("../../bundles/default/probes/mean-8-mlp.onnx")),
            ("probes/last-30.onnx", include_bytes!("../../bundles/default/probes/last-30.onnx")),
        ],
    },
    Builtin { name: "base", manifest: include_str!("../../bundles/base/guard.toml"), files: &[] },
];

/// Why a bundle can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file can't be read.
    #[error("can't read the guard bundle's {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// `guard.toml` is wrong.
    #[error("{path}: {problem}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// Where the transcript goes in [`Template::user`].
pub(super) const CONVERSATION: &str = "{conversation}";

impl Bundle {
    /// A bundle that is part of the program: `default`, the tuned guard, or `base`, which asks the untuned model.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn builtin(name: &str) -> Result<Self, BundleError> {
        let path = format!("built-in bundle `{name}`");
        let Some(Builtin { manifest, files, .. }) = BUILTIN.iter().find(|bundle| bundle.name == name) else {
            return Err(BundleError::Io { path, source: std::io::ErrorKind::NotFound.into() });
        };
        let mut hash = Sha256::new();
        for (name, contents) in [("guard.toml", manifest.as_bytes())].iter().chain(*files) {
            hash_file(&mut hash, name, contents);
        }
        let sha256 = hex::encode(hash.finalize());
        Ok(Self { manifest: parse(manifest, &path)?, sha256, home: Home::Embedded(files) })
    }

    /// Opens a bundle's folder, or [`Self::builtin`] for the name of one.
    ///
    /// # Errors
    /// A file is missing or wrong; the message names it.
    pub fn open(name: &str) -> Result<Self, BundleError> {
        if BUILTIN.iter().any(|bundle| bundle.name == name) {
            return Self::builtin(name);
        }
        let folder = Path::new(name);
        let manifest = Manifest::read(&folder.join("guard.toml"))?;
        Ok(Self { manifest, sha256: hash_folder(folder)?, home: Home::Folder(folder.to_owned()) })
    }

    /// The guard that it makes of a base model whose weights hash to `base_sha256`.
    pub fn version(&self, base_sha256: &str) -> GuardVersion {
        let Manifest { name, version, base, template, .. } = &self.manifest;
        GuardVersion {
            bundle: format!("{name} {version}"),
            bundle_sha256: self.sha256.clone(),
            base_model: base.model.clone(),
            base_sha256: base_sha256.to_owned(),
            template: format!("{} {}", template.name, template.version),
            own_probes: BTreeMap::new(),
        }
    }

    /// The adapter, if there is one.
    ///
    /// # Errors
    /// One of its files is missing or wrong; the message names it.
    pub fn adapter(&self) -> Result<Option<Adapter>, AdapterError> {
        let Some(folder) = &self.manifest.adapter else { return Ok(None) };
        let (name, config) = self.read(&folder.join(adapter::CONFIG))?;
        let (_, weights) = self.read(&folder.join(adapter::WEIGHTS))?;
        let name = Path::new(&name).parent().unwrap_or(Path::new(""));
        Ok(Some(Adapter::parse(name, &config, &weights)?))
    }

    /// Its probes, in the manifest's order.
    ///
    /// # Errors
    /// A file is missing; the message names it.
    pub fn probes(&self) -> Result<Vec<ProbeSource>, BundleError> {
        let source = |ProbeFile { file }: &ProbeFile| {
            let (file, bytes) = self.read(file)?;
            Ok(ProbeSource { file, bytes, made: Made::default(), own: false })
        };
        self.manifest.probes.iter().map(source).collect()
    }

    /// sha256 of the adapter's weights, hexadecimal; empty without one.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn adapter_sha256(&self) -> Result<String, BundleError> {
        match &self.manifest.adapter {
            None => Ok(String::new()),
            Some(folder) => {
                let (_, bytes) = self.read(&folder.join(adapter::WEIGHTS))?;
                Ok(hex::encode(Sha256::digest(&bytes)))
            }
        }
    }

    /// A file of the bundle, and its name for messages.
    fn read(&self, file: &Path) -> Result<(String, Cow<'static, [u8]>), BundleError> {
        match &self.home {
            Home::Folder(folder) => {
                let path = folder.join(file);
                let name = path.display().to_string();
                match std::fs::read(&path) {
                    Ok(bytes) => Ok((name, bytes.into())),
                    Err(source) => Err(BundleError::Io { path: name, source }),
                }
            }
            Home::Embedded(files) => {
                let path = format!("built-in {}", file.display());
                match files.iter().find(|(name, _)| Path::new(name) == file) {
                    Some((_, bytes)) => Ok((path, (*bytes).into())),
                    None => Err(BundleError::Io { path, source: std::io::ErrorKind::NotFound.into() }),
                }
            }
        }
    }
}

/// Why a bundle's adapter can't be used.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file is missing.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A file is wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
}

fn parse(text: &str, path: &str) -> Result<Manifest, BundleError> {
    let invalid = |problem: String| BundleError::Invalid { path: path.to_owned(), problem };
    let manifest: Manifest = toml::from_str(text).map_err(|e| invalid(e.to_string()))?;
    check(&manifest).map_err(invalid)?;
    Ok(manifest)
}

fn check(manifest: &Manifest) -> Result<(), String> {
    let Manifest { template, limits, hazards, calibration, adapter, probes, .. } = manifest;
    if template.user.matches(CONVERSATION).count() != 1 {
        return Err(format!("template.user: must hold `{CONVERSATION}` once"));
    }
    let texts = [
        ("understanding", &template.understanding),
        ("assessment", &template.assessment),
        ("verdict", &template.verdict),
        ("direct_verdict", &template.direct_verdict),
        ("harmful", &template.harmful),
        ("benign", &template.benign),
        ("category", &template.category),
    ];
    if let Some((key, _)) = texts.iter().find(|(_, text)| text.is_empty()) {
        return Err(format!("template.{key}: must not be empty"));
    }
    if limits.understanding_tokens == 0 || limits.assessment_tokens == 0 {
        return Err("limits: a phase needs at least one token".into());
    }
    // Written so that a value that is not a number fails.
    if ![manifest.focus.understanding, manifest.focus.assessment].iter().all(|add| (0.0..=20.0).contains(add))
    {
        return Err("focus: what is added must be from 0 to 20".into());
    }
    let names: BTreeSet<&Hazard> = hazards.names.iter().collect();
    if names.len() < hazards.names.len() || hazards.names.iter().any(|h| h.as_str().trim().is_empty()) {
        return Err("hazards.names: a name is empty or there twice".into());
    }
    for (key, c) in [("reason", calibration.reason), ("direct", calibration.direct)] {
        if !(c.temperature > 0.0 && c.temperature.is_finite() && c.bias.is_finite()) {
            return Err(format!(
                "calibration.{key}: the temperature must be above zero, both numbers finite"
            ));
        }
    }
    // A bundle is a folder that may come from anywhere: it must not reach out of itself.
    let is_outside = |path: &Path| path.components().any(|c| !matches!(c, std::path::Component::Normal(_)));
    if adapter.as_deref().is_some_and(is_outside) {
        return Err("adapter: must be a path inside the bundle".into());
    }
    if probes.iter().any(|probe| is_outside(&probe.file)) {
        return Err("probes.file: must be a path inside the bundle".into());
    }
    if let Some(problem) = manifest.cascade.and_then(|band| band.problem()) {
        return Err(format!("cascade: {problem}"));
    }
    if let Some(problem) = combine::problem(&manifest.combine) {
        return Err(format!("combine: {problem}"));
    }
    Ok(())
}

fn hash_file(hash: &mut Sha256, name: &str, contents: &[u8]) {
    for part in [name.as_bytes(), contents] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
}

/// Hash over the names and contents of all files, in order of their names.
fn hash_folder(folder: &Path) -> Result<String, BundleError> {
    fn visit(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { visit(&path, files)? } else { files.push(path) }
        }
        Ok(())
    }
    let failed = |path: &Path, source| BundleError::Io { path: path.display().to_string(), source };
    let mut files = Vec::new();
    visit(folder, &mut files).map_err(|e| failed(folder, e))?;
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let contents = std::fs::read(&path).map_err(|e| failed(&path, e))?;
        let name = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
        hash_file(&mut hash, &name, &contents);
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_bundle_names_the_mlcommons_hazards() -> Result<(), BundleError> {
        let bundle = Bundle::builtin("default")?;
        let names: Vec<&str> = bundle.manifest.hazards.names.iter().map(Hazard::as_str).collect();
        assert_eq!(names, Hazard::MLCOMMONS);
        Ok(())
    }

    #[test]
    fn mistakes_are_named() {
        fn check(from: &str, to: &str, expected: &str) {
            let text = include_str!("../../bundles/base/guard.toml").replace(from, to);
            let error = parse(&text, "guard.toml").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        check("{conversation}", "{}", "template.user");
        check("understanding_tokens = 64", "understanding_tokens = 0", "limits");
        check("[limits]", "[focus]\nassessment = -1\n[limits]", "focus: what is added must be from 0 to 20");
        check("\"cyber\"", "\"hate\"", "hazards.names");
        check("version = \"1\"", "version = \"1\"\nadapter = \"../x\"", "adapter");
        check("version = \"1\"", "version = \"1\"\nadaptor = \"x\"", "adaptor");
        check("[limits]", "[[probes]]\nfile = \"/x.onnx\"\n[limits]", "probes.file");
        check(
            "[limits]",
            "[cascade]\nbenign_below = 0.9\nharmful_from = 0.1\n[limits]",
            "cascade: benign_below",
        );
        check(
            "[limits]",
            "[[combine]]\nbias = 0\nweights = {}\n[limits]",
            "combine: an entry has no weights",
        );
        check(
            "from = 0.1",
            "from = 0.1\n[calibration.direct]\ntemperature = 0.0\nbias = 0.0",
            "calibration.direct",
        );
    }
}
