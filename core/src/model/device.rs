//! Where the model runs. The `cuda` and `metal` features make a device available and change nothing else.

use std::{fmt, str::FromStr};

use candle_core::{DType, Device};
use serde::{Deserialize, Serialize};

use super::{ModelError, Result};

/// A device by name: `cpu`, `cuda`, `cuda:1`, `metal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA device of this ordinal.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// The device is not compiled in, or can't be opened.
    pub fn open(self) -> Result<Device> {
        let not_built = |feature: &str| {
            ModelError::Device(format!(
                "device `{self}` is not compiled into this binary: build with `--features {feature}`, or use `cpu`"
            ))
        };
        let failed = |e| ModelError::Device(format!("device `{self}` can't be opened: {e}"));
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(not_built("cuda")),
            Self::Cuda(ordinal) => Device::new_cuda(ordinal).map_err(failed),
            Self::Metal if !cfg!(feature = "metal") => Err(not_built("metal")),
            Self::Metal => Device::new_metal(0).map_err(failed),
        }
    }

    /// The type that activations and dense weights have on this device: f32 on the processor (candle has no bf16
    /// product there), bf16 on CUDA, f16 on Metal.
    pub fn dtype(self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Cuda(_) => DType::BF16,
            Self::Metal => DType::F16,
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let unknown = || format!("unknown device `{s}`: use `cpu`, `cuda`, `cuda:N` or `metal`");
        match s.split_once(':') {
            None if s == "cpu" => Ok(Self::Cpu),
            None if s == "cuda" => Ok(Self::Cuda(0)),
            None if s == "metal" => Ok(Self::Metal),
            Some(("cuda", n)) => n.parse().map(Self::Cuda).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(device: DeviceChoice) -> Self {
        device.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}
