//! Numbers in fewer bits, and safetensors files that are never whole in memory.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::View;
use serde::{Deserialize, Serialize};

use super::file_error;
use crate::error::{Result, TrainError};

/// How numbers are held in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, up to 65504.
    F16,
    /// 16 bits, with the range of 32 and less precision than `f16`.
    Bf16,
}

impl Dtype {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// torch's name for it.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Numbers as bytes, each rounded to the nearest that the type holds (to the even one of two).
    ///
    /// # Errors
    /// One of them is not finite, or is not after rounding.
    fn encode(self, name: &str, values: &[f32]) -> Result<Vec<u8>> {
        let too_large = |value: f32| !match self {
            Self::F32 => value.is_finite(),
            Self::F16 => f16::from_f32(value).is_finite(),
            Self::Bf16 => bf16::from_f32(value).is_finite(),
        };
        if let Some(&value) = values.iter().find(|&&value| too_large(value)) {
            return Err(does_not_fit(name, value, self.as_str()));
        }
        let mut bytes = Vec::with_capacity(values.len() * self.bytes());
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
            Self::Bf16 => bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        }
        Ok(bytes)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The error of a number that a type can't hold.
pub(super) fn does_not_fit(name: &str, value: f32, kind: &str) -> TrainError {
    let advice = if value.is_finite() { "choose bf16 or f32" } else { "the adapter or its base is damaged" };
    let problem = format!("tensor `{name}` holds {value}, which {kind} can't: {advice}");
    TrainError::Export { problem }
}

/// Gives the numbers of the tensor of this name and shape.
pub type Values<'a> = &'a dyn Fn(&str, &[usize]) -> Result<Vec<f32>>;

/// Writes a safetensors file. `values` gives a tensor's numbers when their turn comes, so that one tensor at a time is
/// in memory.
///
/// # Errors
/// Whatever `values` fails with, a number that `dtype` can't hold, or a file that can't be written.
pub fn write_safetensors(
    path: &Path,
    dtype: Dtype,
    tensors: Vec<(String, Vec<usize>)>,
    values: Values<'_>,
) -> Result<()> {
    let failure = RefCell::default();
    let views = tensors.into_iter().map(|(name, shape)| {
        let tensor = Later { name: name.clone(), shape, dtype, values, failure: &failure };
        (name, tensor)
    });
    // transformers refuses files that do not say this.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let written = safetensors::serialize_to_file(views, Some(metadata), path);
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    written.map_err(|error| file_error(path, std::io::Error::other(error)))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| file_error(path, error))
}

/// A tensor that is computed when it is written.
struct Later<'a> {
    name: String,
    shape: Vec<usize>,
    dtype: Dtype,
    values: Values<'a>,
    /// The writer takes no errors: the first is kept here, and zeros are written for the rest of a file that is then
    /// of no use.
    failure: &'a RefCell<Option<TrainError>>,
}

impl View for Later<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        match self.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.failure.borrow().is_none() {
            match (self.values)(&self.name, &self.shape)
                .and_then(|values| self.dtype.encode(&self.name, &values))
            {
                Ok(bytes) => return bytes.into(),
                Err(error) => *self.failure.borrow_mut() = Some(error),
            }
        }
        vec![0; self.data_len()].into()
    }

    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_the_nearest() {
        fn check(dtype: Dtype, value: f32, expected: f32) {
            let bytes = dtype.encode("x", &[value]).unwrap();
            let found = match dtype {
                Dtype::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
                Dtype::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
                Dtype::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
            };
            assert_eq!(found.to_bits(), expected.to_bits(), "{dtype} {value}");
        }
        check(Dtype::F32, 0.1, 0.1);
        check(Dtype::F32, -0.0, -0.0);
        // Next to 1, f16 has steps of 2^-10 and bf16 of 2^-7; halves go to the even neighbour.
        check(Dtype::F16, 1.0 + 0.49 / 1024.0, 1.0);
        check(Dtype::F16, 1.0 + 0.51 / 1024.0, 1.0 + 1.0 / 1024.0);
        check(Dtype::F16, 1.0 + 0.5 / 1024.0, 1.0);
        check(Dtype::F16, 1.0 + 1.5 / 1024.0, 1.0 + 2.0 / 1024.0);
        check(Dtype::F16, 65_519.0, 65_504.0);
        check(Dtype::F16, 1e-9, 0.0);
        check(Dtype::Bf16, 1.0 + 0.49 / 128.0, 1.0);
        check(Dtype::Bf16, -1.0 - 1.5 / 128.0, -1.0 - 2.0 / 128.0);
        check(Dtype::Bf16, 1e38, bf16::from_f32(1e38).to_f32());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        fn check(dtype: Dtype, value: f32, expected: &str) {
            let error = dtype.encode("some.weight", &[0.0, value]).unwrap_err().to_string();
            assert!(error.contains("some.weight") && error.contains(expected), "{error}");
        }
        check(Dtype::F16, 65_520.0, "65520, which f16 can't: choose bf16 or f32");
        check(Dtype::F16, -1e6, "-1000000");
        check(Dtype::Bf16, f32::MAX, "which bf16 can't");
        check(Dtype::F32, f32::NAN, "damaged");
        check(Dtype::F32, f32::INFINITY, "damaged");
    }

    #[test]
    fn a_tensor_that_fails_fails_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = vec![("a".to_owned(), vec![2]), ("b".to_owned(), vec![1, 2])];
        let values = |name: &str, _: &[usize]| Ok(if name == "a" { vec![1.0, 2.0] } else { vec![3.0, 1e9] });
        write_safetensors(&path, Dtype::Bf16, tensors.clone(), &values).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("a").unwrap().data(), [0x80, 0x3f, 0x00, 0x40]);
        assert_eq!(read.tensor("b").unwrap().shape(), [1, 2]);
        let error = write_safetensors(&path, Dtype::F16, tensors, &values).unwrap_err().to_string();
        assert!(error.contains("`b` holds 1000000000"), "{error}");
    }
}
