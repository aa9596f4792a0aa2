//! Frozen weight matrices: read by the forward and the backward pass, never given a gradient.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::blocks::{Blocks, Format};
use super::matmul::{Into, Mat, MatMut, matmul};

/// How frozen weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Four bytes a weight; products in f32.
    #[default]
    F32,
    /// Two bytes a weight, products in f32; with a matrix unit for bf16 four bytes, products in bf16 with f32 sums, and
    /// several times the speed.
    Bf16,
    /// GGUF's 8-bit blocks, 1.06 bytes a weight.
    Q8_0,
    /// GGUF's 4-bit blocks with an offset, 0.63 bytes a weight.
    Q4_1,
    /// QLoRA's 4-bit normal floats (arXiv 2305.14314) in blocks of 64, 0.53 bytes a weight.
    Nf4,
}

/// A frozen matrix of `[outputs, inputs]`, as a linear layer or an embedding has it. Clones share the values.
#[derive(Clone, Debug)]
pub struct Frozen {
    outputs: usize,
    inputs: usize,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Dense(Arc<Vec<f32>>),
    Blocks(Arc<Blocks>),
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles(Arc<Tiles>),
}

/// The same weights cut for `x W^T` and for `dy W`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[derive(Debug)]
struct Tiles {
    forward: super::amx::Panels,
    backward: super::amx::Panels,
}

impl Frozen {
    /// A matrix of full-precision values, row by row. `inputs` must divide their number.
    ///
    /// # Panics
    /// When it does not: loaders check shapes before.
    pub fn dense(values: Vec<f32>, inputs: usize) -> Self {
        assert_eq!(values.len() % inputs, 0, "rows of {inputs} can't hold {} values", values.len());
        Self { outputs: values.len() / inputs, inputs, values: Values::Dense(Arc::new(values)) }
    }

    /// A matrix rounded to `precision`. Blocks do not cross rows: a row's last one may be short.
    ///
    /// # Panics
    /// As [`dense`](Self::dense).
    pub fn new(values: Vec<f32>, inputs: usize, precision: Precision) -> Self {
        let blocks = |format| Values::Blocks(Arc::new(Blocks::new(&values, inputs, format)));
        let outputs = values.len() / inputs;
        let values = match precision {
            Precision::F32 => return Self::dense(values, inputs),
            Precision::Bf16 => tiles(&values, inputs).unwrap_or_else(|| blocks(Format::Bf16)),
            Precision::Q8_0 => blocks(Format::Q8_0),
            Precision::Q4_1 => blocks(Format::Q4_1),
            Precision::Nf4 => blocks(Format::Nf4),
        };
        Self { outputs, inputs, values }
    }

    /// Rows: what the layer puts out.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns: what it takes in.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Writes row `row` to `out`, as an embedding does.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match &self.values {
            Values::Dense(values) => out.copy_from_slice(&values[row * self.inputs..][..self.inputs]),
            Values::Blocks(blocks) => blocks.rows(row..row + 1, out),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Values::Tiles(tiles) => {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = tiles.forward.get(row, i));
            }
        }
    }

    /// `y = x W^T` or `y += x W^T`: `x` is `[T, inputs]`, `y` `[T, outputs]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], into: Into) {
        let x_view = Mat::new(x, self.inputs);
        match &self.values {
            Values::Dense(values) => {
                matmul(MatMut::new(y, self.outputs), into, 1.0, x_view, Mat::new(values, self.inputs).t());
            }
            Values::Blocks(blocks) => blocks.each(|rows, values| {
                let y = MatMut::new(y, self.outputs).columns(rows);
                matmul(y, into, 1.0, x_view, Mat::new(values, self.inputs).t());
            }),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Values::Tiles(tiles) => tiles.forward.product(x, y, into),
        }
    }

    /// `dx = dy W`: `dy` is `[T, outputs]`, `dx` `[T, inputs]`.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        let dy_view = Mat::new(dy, self.outputs);
        match &self.values {
            Values::Dense(values) => {
                let w = Mat::new(values, self.inputs);
                matmul(MatMut::new(dx, self.inputs), Into::Replace, 1.0, dy_view, w);
            }
            Values::Blocks(blocks) => blocks.each(|rows, values| {
                let into = if rows.start == 0 { Into::Replace } else { Into::Add };
                let w = Mat::new(values, self.inputs);
                matmul(MatMut::new(dx, self.inputs), into, 1.0, dy_view.columns(rows), w);
            }),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Values::Tiles(tiles) => tiles.backward.product(dy, dx, Into::Replace),
        }
    }
}

/// The values cut for the matrix unit, where there is one.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles(values: &[f32], inputs: usize) -> Option<Values> {
    use super::amx::Panels;
    let outputs = values.len() / inputs;
    let forward = Panels::new(outputs, inputs, |output, input| values[output * inputs + input])?;
    let backward = Panels::new(inputs, outputs, |output, input| values[input * inputs + output])?;
    Some(Values::Tiles(Arc::new(Tiles { forward, backward })))
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn tiles(_: &[f32], _: usize) -> Option<Values> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_precision_multiplies_its_own_rows() {
        let (rows, outputs, inputs) = (37, 300, 72);
        let value = |i: usize| ((i * 37 + i / 5) % 101) as f32 / 50.0 - 1.0;
        let x: Vec<f32> = (0..rows * inputs).map(value).collect();
        let dy: Vec<f32> = (0..rows * outputs).map(|i| value(i + 7)).collect();
        let w: Vec<f32> = (0..outputs * inputs).map(|i| value(i + 3)).collect();
        use Precision::*;
        // How far rounding moves a weight of up to 1, and (in bf16) what it does to an activation.
        for (precision, rounding, tolerance) in
            [(F32, 0.0, 1e-4), (Bf16, 0.004, 0.3), (Q8_0, 0.005, 1e-3), (Q4_1, 0.07, 1e-3), (Nf4, 0.16, 1e-3)]
        {
            let frozen = Frozen::new(w.clone(), inputs, precision);
            let mut held = vec![0.0; outputs * inputs];
            for (row, out) in held.chunks_exact_mut(inputs).enumerate() {
                frozen.row(row, out);
            }
            let worst = held.iter().zip(&w).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(worst <= rounding, "{precision:?} moves a weight by {worst}");
            let dense = Frozen::dense(held, inputs);
            let close = |a: &[f32], b: &[f32]| {
                let worst = a.iter().zip(b).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(worst < tolerance, "{precision:?} is off by {worst}");
            };
            for into in [Into::Replace, Into::Add] {
                let (mut y, mut expected) = (vec![1.0; rows * outputs], vec![1.0; rows * outputs]);
                frozen.forward(&x, &mut y, into);
                dense.forward(&x, &mut expected, into);
                close(&y, &expected);
            }
            let (mut dx, mut expected) = (vec![f32::NAN; rows * inputs], vec![f32::NAN; rows * inputs]);
            frozen.backward(&dy, &mut dx);
            dense.backward(&dy, &mut expected);
            close(&dx, &expected);
        }
    }
}
