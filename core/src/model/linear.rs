//! Linear layers: dense or 8-bit weights, with or without a LoRA update.

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use serde::{Deserialize, Serialize};

use super::{
    Result,
    adapter::Lora,
    q8::{self, Q8Matrix},
};

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// In the device's own type: exact, and four times as large.
    Dense,
    /// In 8 bits with a scale for every 32 weights: about half a percent off, and the fastest on a processor. Other devices
    /// hold weights dense all the same.
    #[default]
    Int8,
}

/// `y = x W^T (+ bias) (+ LoRA)`.
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

enum Weight {
    /// `[out, in]`.
    Dense(Tensor),
    /// Own kernel, on the processor.
    Int8(Q8Matrix),
}

impl Linear {
    /// A layer on `device`. `weight` `[out, in]`, `bias` `[out]` and `lora` are f32 on the CPU.
    pub(super) fn new(
        weight: &Tensor,
        bias: Option<&Tensor>,
        lora: Option<Lora>,
        precision: Precision,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let place = |t: &Tensor| t.to_device(device)?.to_dtype(dtype);
        let (out, input) = weight.dims2()?;
        let weight = match (precision, device) {
            // A width that is no multiple of the block stays dense.
            (Precision::Int8, _) if !input.is_multiple_of(q8::BLOCK) => Weight::Dense(place(weight)?),
            (Precision::Int8, Device::Cpu) => {
                let values = weight.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
                let matrix = Q8Matrix::quantize(&values, out, input);
                Weight::Int8(matrix.map_err(candle_core::Error::wrap)?)
            }
            // candle's 8-bit product on CUDA (0.11) is not a number where rows are no multiple of 256, as this model's are.
            (Precision::Int8 | Precision::Dense, _) => Weight::Dense(place(weight)?),
        };
        let lora = match lora {
            Some(Lora { a, b, scale }) => Some(Lora { a: place(&a)?, b: place(&b)?, scale }),
            None => None,
        };
        Ok(Self { weight, bias: bias.map(place).transpose()?, lora })
    }

    /// `x` `[tokens, in]` to `[tokens, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut outputs = forward_many([self], x)?;
        outputs.pop().ok_or_else(|| candle_core::Error::msg("no output").into())
    }

    /// The weight, where it is held dense.
    pub(super) fn dense(&self) -> Option<&Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Some(weight),
            Weight::Int8(_) => None,
        }
    }

    /// Rows `ids` of the weight, `[ids, in]`, where it is held in 8 bits by the own kernel: a model whose head is its
    /// embedding then needs no second table.
    pub(super) fn rows(&self, ids: &[u32]) -> Option<Result<Tensor>> {
        let matrix = self.weight.int8()?;
        let width = matrix.cols();
        let mut rows = vec![0f32; ids.len() * width];
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(width)) {
            if let Err(error) = matrix.dequantize_row(id as usize, row) {
                return Some(Err(candle_core::Error::wrap(error).into()));
            }
        }
        Some(Tensor::from_vec(rows, (ids.len(), width), &Device::Cpu).map_err(Into::into))
    }

    fn finish(&self, x: &Tensor, mut y: Tensor) -> Result<Tensor> {
        if let Some(bias) = &self.bias {
            y = y.broadcast_add(bias)?;
        }
        if let Some(Lora { a, b, scale }) = &self.lora {
            y = (y + (x.matmul(&a.t()?)?.matmul(&b.t()?)? * *scale)?)?;
        }
        Ok(y)
    }
}

/// Several layers over one input, in order. 8-bit layers share its quantisation.
pub(super) fn forward_many<const N: usize>(layers: [&Linear; N], x: &Tensor) -> Result<Vec<Tensor>> {
    let int8: Vec<&Q8Matrix> = layers.iter().filter_map(|l| l.weight.int8()).collect();
    let products = if int8.len() == N {
        int8_products(&int8, x)?
    } else {
        let product = |layer: &&Linear| match &layer.weight {
            Weight::Dense(weight) => Ok(x.matmul(&weight.t()?)?),
            Weight::Int8(weight) => {
                int8_products(&[weight], x)?.pop().ok_or_else(|| candle_core::Error::msg("no output").into())
            }
        };
        layers.iter().map(product).collect::<Result<_>>()?
    };
    layers.into_iter().zip(products).map(|(layer, y)| layer.finish(x, y)).collect()
}

impl Weight {
    fn int8(&self) -> Option<&Q8Matrix> {
        match self {
            Self::Int8(matrix) => Some(matrix),
            _ => None,
        }
    }
}

fn int8_products(weights: &[&Q8Matrix], x: &Tensor) -> Result<Vec<Tensor>> {
    let rows = x.dim(0)?;
    with_slice(x, |x| {
        let mut outputs: Vec<Vec<f32>> = weights.iter().map(|w| vec![0.0; rows * w.rows()]).collect();
        let mut parts: Vec<_> =
            weights.iter().copied().zip(outputs.iter_mut().map(Vec::as_mut_slice)).collect();
        q8::matmul_many(x, rows, &mut parts).map_err(candle_core::Error::wrap)?;
        let tensor =
            |(w, y): (&&Q8Matrix, Vec<f32>)| Ok(Tensor::from_vec(y, (rows, w.rows()), &Device::Cpu)?);
        weights.iter().zip(outputs).map(tensor).collect()
    })
}

/// Lends the values of an f32 tensor on the CPU, copied only if they do not lie in order.
pub(super) fn with_slice<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<T>) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => f(&values[start..end]),
        _ => Err(candle_core::Error::msg("expected an f32 tensor on the CPU").into()),
    }
}
