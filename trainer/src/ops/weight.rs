//! Frozen weight matrices: read by the forward and the backward pass, never given a gradient.

use std::sync::Arc;

use super::matmul::{Into, Mat, MatMut, matmul};

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
        }
    }

    /// `y = x W^T` or `y += x W^T`: `x` is `[T, inputs]`, `y` `[T, outputs]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], into: Into) {
        match &self.values {
            Values::Dense(values) => matmul(
                MatMut::new(y, self.outputs),
                into,
                1.0,
                Mat::new(x, self.inputs),
                Mat::new(values, self.inputs).t(),
            ),
        }
    }

    /// `dx = dy W`: `dy` is `[T, outputs]`, `dx` `[T, inputs]`.
    pub fn backward(&self, dy: &[f32], dx: &mut [f32]) {
        match &self.values {
            Values::Dense(values) => matmul(
                MatMut::new(dx, self.inputs),
                Into::Replace,
                1.0,
                Mat::new(dy, self.outputs),
                Mat::new(values, self.inputs),
            ),
        }
    }
}
