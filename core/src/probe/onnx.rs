//! One probe: an ONNX file, what it says of itself, and its readings.
//!
//! Input `hidden`, f32 `[batch, width]`; output `probability`, f32 `[batch, 1]`, P(harmful). What the trainer exports also
//! says in its metadata what it was made for; of any other file the configuration says it.

use std::{borrow::Cow, fmt, path::Path, str::FromStr, sync::Mutex, sync::PoisonError};

use ort::{
    session::{ModelMetadata, Session},
    value::{Outlet, TensorElementType, TensorRef},
};
use sha2::{Digest, Sha256};

use super::{ExecutionProvider, Position, ProbeError, Runtime};

const INPUT: &str = "hidden";
const OUTPUT: &str = "probability";
/// The layout of the metadata that is understood here.
const FORMAT: &str = "1";
/// Names that mean other signals.
const TAKEN: [&str; 2] = ["direct", "reason"];

/// A file that holds a probe.
#[derive(Clone, Debug)]
pub struct ProbeSource {
    /// The file's name, for messages.
    pub file: String,
    /// What it holds.
    pub bytes: Cow<'static, [u8]>,
    /// What is said of it elsewhere.
    pub made: Made,
    /// Whether the user added it; the others are the bundle's.
    pub own: bool,
}

/// What a configuration says of a probe. A layer or position is for files that don't say it themselves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Made {
    /// Its name, in place of the file's own.
    pub name: Option<String>,
    /// The layer it reads: 0 is the embedding, `k` the output of block `k`.
    pub layer: Option<usize>,
    /// The state it reads.
    pub position: Option<Position>,
    /// The score from which on it says harmful, in place of the file's own.
    pub threshold: Option<f64>,
}

/// What is known of a probe.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeInfo {
    /// Its name, which no other probe of the guard has.
    pub name: String,
    /// The layer it reads: 0 is the embedding, `k` the output of block `k`.
    pub layer: usize,
    /// The state it reads.
    pub position: Position,
    /// The score from which on it says harmful.
    pub threshold: f64,
    /// The file, for messages.
    pub file: String,
    /// sha256 of the file, hexadecimal.
    pub sha256: String,
    /// Whether the user added it; the others are the bundle's.
    pub own: bool,
    /// What it was fitted on; unknown for files that were not made here.
    pub made_for: Option<GuardParts>,
}

/// The parts of a guard that its hidden states depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardParts {
    /// sha256 of the base model's weights, hexadecimal.
    pub base_sha256: String,
    /// sha256 of the adapter's weights, hexadecimal; empty without one.
    pub adapter_sha256: String,
    /// Name and version of the template.
    pub template: String,
}

/// A probe that is ready to run.
pub struct Probe {
    info: ProbeInfo,
    /// Values of a state; none where the file takes any number.
    width: Option<usize>,
    // Running one changes it, as far as `ort` can tell. The guard's one thread is the only caller.
    session: Mutex<Session>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

impl Probe {
    /// Opens a probe, to compute with `providers`.
    ///
    /// # Errors
    /// The file is damaged, has other inputs and outputs, or does not say what it reads; or a provider is not to be had.
    pub fn open(
        runtime: &Runtime,
        source: ProbeSource,
        providers: &[ExecutionProvider],
    ) -> Result<Self, ProbeError> {
        let ProbeSource { file, bytes, made, own } = source;
        runtime.check_providers(providers)?;
        let session = session(runtime, &bytes, providers)
            .map_err(|error| ProbeError::Corrupt { file: file.clone(), problem: brief(&error) })?;
        let invalid = |problem: String| ProbeError::Invalid { file: file.clone(), problem };
        let width = width(session.inputs(), session.outputs()).map_err(invalid)?;
        let metadata = session.metadata().map_err(|error| invalid(format!("has no metadata: {error}")))?;
        let said = Said::read(&metadata).map_err(invalid)?;
        drop(metadata);
        let (layer, position) = (
            agreed("layer", said.as_ref().map(|s| s.layer), made.layer).map_err(invalid)?,
            agreed("position", said.as_ref().map(|s| s.position), made.position).map_err(invalid)?,
        );
        if let (Some(width), Some(said)) = (width, &said)
            && width != said.width
        {
            return Err(invalid(format!("says that it reads {} values, but reads {width}", said.width)));
        }
        let stem = || Path::new(&file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = made.name.or_else(|| Some(said.as_ref()?.name.clone())).or_else(stem).unwrap_or_default();
        if name.trim().is_empty() || TAKEN.contains(&name.as_str()) {
            return Err(invalid(format!("can't be called `{name}`: give it another `name`")));
        }
        let threshold = made.threshold.or_else(|| Some(said.as_ref()?.threshold)).unwrap_or(0.5);
        if !(0.0..=1.0).contains(&threshold) {
            return Err(invalid(format!("has the threshold {threshold}, which is no probability")));
        }
        let info = ProbeInfo {
            name,
            layer,
            position,
            threshold,
            sha256: hex::encode(Sha256::digest(&bytes)),
            own,
            made_for: said.as_ref().map(|s| s.made_for.clone()),
            file,
        };
        let width = width.or(said.map(|s| s.width));
        Ok(Self { info, width, session: Mutex::new(session) })
    }

    /// What is known of it.
    pub fn info(&self) -> &ProbeInfo {
        &self.info
    }

    /// Checks that the probe can read a guard of these parts, whose model has `layers` blocks and states of `width`
    /// values, by a trial on two states.
    ///
    /// # Errors
    /// It was made for another guard, reads a layer or width that the model has not, or does not give probabilities.
    pub fn check_fits(&self, guard: &GuardParts, layers: usize, width: usize) -> Result<(), ProbeError> {
        let file = || self.info.file.clone();
        let invalid = |problem: String| ProbeError::Invalid { file: file(), problem };
        if let Some(made_for) = &self.info.made_for {
            let parts = [
                ("base model", &made_for.base_sha256, &guard.base_sha256),
                ("adapter", &made_for.adapter_sha256, &guard.adapter_sha256),
                ("template", &made_for.template, &guard.template),
            ];
            if let Some(&(what, wants, has)) = parts.iter().find(|(_, a, b)| !a.eq_ignore_ascii_case(b)) {
                let shown = |part: &str| if part.is_empty() { "none".to_owned() } else { part.to_owned() };
                let (made_for, has) = (shown(wants), shown(has));
                return Err(ProbeError::MadeForAnother { file: file(), what, made_for, has });
            }
        }
        if let Some(wants) = self.width.filter(|&wants| wants != width) {
            return Err(invalid(format!(
                "reads {wants} values, but the model's states have {width}: it was made for another model"
            )));
        }
        if self.info.layer > layers {
            let layer = self.info.layer;
            return Err(invalid(format!("reads layer {layer}, but the model has only {layers}")));
        }
        self.run(&vec![0.0; 2 * width], width).map(drop).map_err(|error| invalid(error.to_string()))
    }

    /// P(harmful) for each of the states `[batch, width]`.
    ///
    /// # Errors
    /// The computation fails, or its outcome is no probability.
    pub fn run(&self, states: &[f32], width: usize) -> Result<Vec<f64>, ProbeError> {
        let failed = |problem: String| ProbeError::Run { name: self.info.name.clone(), problem };
        let batch = states.len() / width.max(1);
        if batch == 0 {
            return Ok(Vec::new());
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let scores = (|| {
            let input = TensorRef::from_array_view(([batch, width], states))?;
            let outputs = session.run(ort::inputs![INPUT => input])?;
            let (_, values) = outputs[OUTPUT].try_extract_tensor::<f32>()?;
            Ok(values.iter().map(|&score| f64::from(score)).collect::<Vec<f64>>())
        })()
        .map_err(|error: ort::Error| failed(brief(&error)))?;
        if scores.len() != batch {
            return Err(failed(format!("it gives {} values for {batch} states", scores.len())));
        }
        match scores.iter().find(|score| !(0.0..=1.0).contains(*score)) {
            None => Ok(scores),
            Some(score) => Err(failed(format!("it gives {score}, which is no probability"))),
        }
    }
}

fn session(runtime: &Runtime, bytes: &[u8], providers: &[ExecutionProvider]) -> ort::Result<Session> {
    // One state is a few thousand products: more threads would only wait for each other.
    let builder = Session::builder(&runtime.environment)?.with_intra_threads(1).map_err(plain)?;
    let providers: Vec<_> = providers.iter().map(|provider| provider.dispatch()).collect();
    builder.with_execution_providers(providers).map_err(plain)?.commit_from_memory(bytes)
}

/// The error without the builder that it would give back.
fn plain<T>(error: ort::Error<T>) -> ort::Error {
    ort::Error::new(error.message())
}

/// ONNX Runtime's errors go on for lines.
fn brief(error: &ort::Error) -> String {
    let line = error.message().lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

/// Checks names and types, and gives the number of values of a state if it is fixed.
fn width(inputs: &[Outlet], outputs: &[Outlet]) -> Result<Option<usize>, String> {
    let names = |outlets: &[Outlet]| {
        let names: Vec<_> = outlets.iter().map(|outlet| format!("`{}`", outlet.name())).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    let [input] = inputs else {
        return Err(format!("must have one input, `{INPUT}`, and has {}", names(inputs)));
    };
    if input.name() != INPUT {
        return Err(format!("must have one input, `{INPUT}`, and has {}", names(inputs)));
    }
    let Some(output) = outputs.iter().find(|output| output.name() == OUTPUT) else {
        return Err(format!("must have an output `{OUTPUT}`, and has {}", names(outputs)));
    };
    for outlet in [input, output] {
        if outlet.dtype().tensor_type() != Some(TensorElementType::Float32) {
            return Err(format!("must have f32 values in `{}`, not {:?}", outlet.name(), outlet.dtype()));
        }
    }
    let shape = input.dtype().tensor_shape().map_or(&[][..], |shape| shape);
    match *shape {
        [-1, width] => Ok(usize::try_from(width).ok()),
        _ => Err(format!(
            "must take any number of states, `{INPUT}` [batch, width], and takes {shape:?} (-1 is any number)"
        )),
    }
}

/// What an exported file says of itself.
struct Said {
    name: String,
    layer: usize,
    position: Position,
    width: usize,
    threshold: f64,
    made_for: GuardParts,
}

impl Said {
    /// `None` where the file was not made here.
    fn read(metadata: &ModelMetadata<'_>) -> Result<Option<Self>, String> {
        let find = |key: &str| metadata.custom(&format!("forethought.{key}"));
        let Some(format) = find("format") else { return Ok(None) };
        if format != FORMAT {
            return Err(format!("is of format {format}, and this program reads {FORMAT}: export it again"));
        }
        let text =
            |key: &str| find(key).ok_or_else(|| format!("does not say `forethought.{key}`: export it again"));
        fn parse<T: FromStr>(key: &str, text: &str) -> Result<T, String> {
            text.parse().map_err(|_| format!("says `{text}` for `forethought.{key}`: export it again"))
        }
        Ok(Some(Self {
            name: text("name")?,
            layer: parse("layer", &text("layer")?)?,
            position: parse("position", &text("position")?)?,
            width: parse("width", &text("width")?)?,
            threshold: parse("threshold", &text("threshold")?)?,
            made_for: GuardParts {
                base_sha256: text("base_sha256")?,
                adapter_sha256: find("adapter_sha256").unwrap_or_default(),
                template: text("template")?,
            },
        }))
    }
}

/// A value that the file says, the configuration says, or both say alike.
fn agreed<T: PartialEq + fmt::Display>(key: &str, said: Option<T>, given: Option<T>) -> Result<T, String> {
    match (said, given) {
        (Some(said), Some(given)) if said != given => Err(format!(
            "says that its {key} is {said}, but the configuration says {given}: leave it out there"
        )),
        (Some(value), _) | (None, Some(value)) => Ok(value),
        (None, None) => {
            Err(format!("does not say which {key} it reads: add `{key}` to its entry in `guard.probes`"))
        }
    }
}
