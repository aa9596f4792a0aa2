//! ONNX Runtime, the library that runs probes: where it is found, and what it can do.
//!
//! A process has one. It is looked for in `ORT_DYLIB_PATH`, then in the configuration; where neither names one, among the
//! system's libraries, then in the model store, which fetches it.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use ort::{
    LoadDynamicError,
    environment::Environment,
    ep::{self, ExecutionProvider as _, ExecutionProviderDispatch},
    logging::LogLevel,
};
use serde::{Deserialize, Serialize};

use crate::store::{ModelSpec, Progress, Store, StoreError};

/// Its name in the model store's registry.
const STORED: &str = "onnxruntime";
/// Names under which systems install it. The loader looks for them in its own places.
const INSTALLED: &[&str] = if cfg!(windows) {
    &["onnxruntime.dll"]
} else if cfg!(target_os = "macos") {
    &["libonnxruntime.dylib"]
} else {
    &["libonnxruntime.so", "libonnxruntime.so.1"]
};

/// The loaded library. Clones share it.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(super) environment: Environment,
    library: Arc<str>,
}

/// Why ONNX Runtime can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The file does not exist.
    #[error("there is no ONNX Runtime at {path} (named by {setting}): correct the path, or leave it out")]
    Missing {
        /// The path.
        path: String,
        /// What named it.
        setting: &'static str,
    },
    /// The file can't be loaded.
    #[error("{path} (named by {setting}) can't be loaded as ONNX Runtime: {problem}")]
    Load {
        /// The path.
        path: String,
        /// What named it.
        setting: &'static str,
        /// What the loader says.
        problem: String,
    },
    /// The library is older than the interface that is used.
    #[error(
        "{path} (named by {setting}) is ONNX Runtime {found}, which is too old: 1.{} or newer is needed",
        ort::MINOR_VERSION
    )]
    TooOld {
        /// The path.
        path: String,
        /// What named it.
        setting: &'static str,
        /// Its version.
        found: String,
    },
    /// There is none, and none can be had.
    #[error(
        "probes need ONNX Runtime: none is installed, and it can't be fetched ({source}). Set ORT_DYLIB_PATH or \
         `guard.onnxruntime` to a copy of the library, version 1.{minor} or newer", minor = ort::MINOR_VERSION
    )]
    Store {
        /// Why it can't be fetched.
        #[from]
        source: StoreError,
    },
    /// It was loaded and does not work.
    #[error("ONNX Runtime ({library}) does not start: {problem}")]
    Start {
        /// The library.
        library: String,
        /// What it says.
        problem: String,
    },
    /// The library can't compute there.
    #[error(
        "`guard.execution_providers` asks for `{provider}`, but this ONNX Runtime ({library}) offers only {}",
        .offered.iter().map(|p| p.as_str()).collect::<Vec<_>>().join(", ")
    )]
    NoProvider {
        /// What was asked for.
        provider: &'static str,
        /// The library.
        library: String,
        /// What there is.
        offered: Vec<ExecutionProvider>,
    },
}

impl Runtime {
    /// The library, loaded by the first call. `configured` is a path from the configuration; `store` fetches a copy where
    /// none is named and none is installed.
    ///
    /// # Errors
    /// A library that is named is missing, too old or none; or none is named, installed or can be fetched.
    pub fn load(
        configured: Option<&Path>,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Self, RuntimeError> {
        // It is never unloaded: at the end of a process, threads of others may still be in it.
        static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            return Ok(runtime.clone());
        }
        let runtime = Self::find(configured, store, progress)?;
        tracing::debug!(library = &*runtime.library, "loaded ONNX Runtime");
        Ok(loaded.insert(runtime).clone())
    }

    fn find(configured: Option<&Path>, store: &Store, progress: &dyn Progress) -> Result<Self, RuntimeError> {
        let environment = env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
        let named = [(environment, "ORT_DYLIB_PATH"), (configured.map(Path::to_owned), "guard.onnxruntime")];
        for (path, setting) in named {
            if let Some(path) = path {
                return Self::named(&path, setting);
            }
        }
        for name in INSTALLED {
            match Self::from(Path::new(name), "the system") {
                Ok(runtime) => return Ok(runtime),
                Err(error) => tracing::debug!("{error}"),
            }
        }
        let fetched = store.resolve(&ModelSpec::Name(STORED.to_owned()), progress)?;
        Self::from(&fetched.path, "the model store")
    }

    /// A library that somebody chose: no other takes its place.
    fn named(path: &Path, setting: &'static str) -> Result<Self, RuntimeError> {
        // A bare name is the loader's to find.
        if path.components().count() < 2 && !path.exists() {
            return Self::from(path, setting);
        }
        if !path.exists() {
            return Err(RuntimeError::Missing { path: path.display().to_string(), setting });
        }
        Self::from(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()), setting)
    }

    fn from(path: &Path, setting: &'static str) -> Result<Self, RuntimeError> {
        let library = path.display().to_string();
        let builder = ort::init_from(path).map_err(|error| {
            let path = library.clone();
            match error {
                LoadDynamicError::BadVersion { version_str, .. } => {
                    RuntimeError::TooOld { path, setting, found: version_str }
                }
                LoadDynamicError::Dlopen { error, .. } => {
                    RuntimeError::Load { path, setting, problem: error.to_string() }
                }
                other => RuntimeError::Load { path, setting, problem: other.to_string() },
            }
        })?;
        // Its builds for Windows would report to their maker.
        let started =
            builder.with_name("forethought").with_telemetry(false).with_logger(Arc::new(log)).build();
        let environment = started
            .map_err(|error| RuntimeError::Start { library: library.clone(), problem: error.to_string() })?;
        environment.set_log_level(LogLevel::Warning);
        Ok(Self { environment, library: library.into() })
    }

    /// The file it was loaded from.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Where this library can compute.
    pub fn providers(&self) -> Vec<ExecutionProvider> {
        ExecutionProvider::ALL.into_iter().filter(|provider| provider.is_offered()).collect()
    }

    /// Checks that the library can compute in all these places.
    ///
    /// # Errors
    /// The first one that it can't.
    pub fn check_providers(&self, wanted: &[ExecutionProvider]) -> Result<(), RuntimeError> {
        let offered = self.providers();
        match wanted.iter().find(|provider| !offered.contains(provider)) {
            None => Ok(()),
            Some(provider) => Err(RuntimeError::NoProvider {
                provider: provider.as_str(),
                library: self.library.to_string(),
                offered,
            }),
        }
    }
}

/// What the library has to say, into our log: its own lines on standard error would break a log of JSON lines. It speaks
/// of graphs and devices, never of what it computes on.
fn log(level: LogLevel, _category: &str, _id: &str, _place: &str, message: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(target: "onnxruntime", "{message}"),
        _ => tracing::debug!(target: "onnxruntime", "{message}"),
    }
}

/// Where probes compute. All but the first need a library that was built for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionProvider {
    /// The processor.
    Cpu,
    /// Apple's accelerators.
    Coreml,
    /// An NVIDIA GPU.
    Cuda,
    /// A GPU under Windows.
    Directml,
    /// Intel's accelerators.
    Openvino,
    /// An NVIDIA GPU, by TensorRT.
    Tensorrt,
}

impl ExecutionProvider {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Cpu, Self::Coreml, Self::Cuda, Self::Directml, Self::Openvino, Self::Tensorrt];

    /// The word for it in a configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Coreml => "coreml",
            Self::Cuda => "cuda",
            Self::Directml => "directml",
            Self::Openvino => "openvino",
            Self::Tensorrt => "tensorrt",
        }
    }

    fn is_offered(self) -> bool {
        let offered = match self {
            Self::Cpu => ep::CPU::is_available(),
            Self::Coreml => ep::CoreML::is_available(),
            Self::Cuda => ep::CUDA::is_available(),
            Self::Directml => ep::DirectML::is_available(),
            Self::Openvino => ep::OpenVINO::is_available(),
            Self::Tensorrt => ep::TensorRT::is_available(),
        };
        offered.unwrap_or(false)
    }

    /// What a session is asked for; failing is an error, not a silent change to the processor.
    pub(super) fn dispatch(self) -> ExecutionProviderDispatch {
        let dispatch = match self {
            Self::Cpu => ep::CPU::default().build(),
            Self::Coreml => ep::CoreML::default().build(),
            Self::Cuda => ep::CUDA::default().build(),
            Self::Directml => ep::DirectML::default().build(),
            Self::Openvino => ep::OpenVINO::default().build(),
            Self::Tensorrt => ep::TensorRT::default().build(),
        };
        dispatch.error_on_failure()
    }
}
