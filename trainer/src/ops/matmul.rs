//! Matrix products of borrowed views, done by `gemm` on the calling thread.
//!
//! This is the crate's only `unsafe` code: `gemm` takes raw pointers, the views check that they stay in bounds.
#![allow(unsafe_code)]

use std::ops::Range;

/// A read-only matrix inside a slice.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// All of `data` as rows of `cols` values. `cols` must divide its length.
    pub fn new(data: &'a [f32], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0, "a matrix of {cols} columns can't hold {} values", data.len());
        Self { data, rows: data.len() / cols, cols, row_stride: cols, col_stride: 1 }
    }

    /// The same rows, `range` of the columns.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols);
        Self { data: skip(self.data, range.start * self.col_stride), cols: range.len(), ..self }
    }

    /// `range` of the rows, the same columns.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows);
        Self { data: skip(self.data, range.start * self.row_stride), rows: range.len(), ..self }
    }

    /// The transpose; nothing is copied.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    fn end(&self) -> usize {
        end(self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

/// A matrix inside a slice that a product is written to. Its rows are contiguous.
pub struct MatMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a> MatMut<'a> {
    /// All of `data` as rows of `cols` values. `cols` must divide its length.
    pub fn new(data: &'a mut [f32], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0, "a matrix of {cols} columns can't hold {} values", data.len());
        Self { rows: data.len() / cols, data, cols, row_stride: cols }
    }

    /// The same rows, `range` of the columns.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols);
        let start = range.start.min(self.data.len());
        Self { data: &mut self.data[start..], cols: range.len(), ..self }
    }

    /// `range` of the rows, the same columns.
    pub fn rows(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows);
        let start = (range.start * self.row_stride).min(self.data.len());
        Self { data: &mut self.data[start..], rows: range.len(), ..self }
    }
}

/// What happens to the values already in the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// They are overwritten, and need not be initialised to anything.
    Replace,
    /// The product is added to them.
    Add,
}

/// `dst = scale * lhs rhs`, or `dst += scale * lhs rhs`.
///
/// # Panics
/// When the shapes do not fit together: a mistake of the caller, never of the data.
pub fn matmul(dst: MatMut<'_>, into: Into, scale: f32, lhs: Mat<'_>, rhs: Mat<'_>) {
    assert_eq!((dst.rows, dst.cols, lhs.cols), (lhs.rows, rhs.cols, rhs.rows), "matrix shapes do not fit");
    assert!(lhs.end() <= lhs.data.len() && rhs.end() <= rhs.data.len());
    assert!(end(dst.rows, dst.cols, dst.row_stride, 1) <= dst.data.len());
    // SAFETY: the three asserts keep every index that `gemm` reaches inside its slice, `dst` is
    // borrowed exclusively, and its rows do not overlap (`row_stride >= cols` by construction).
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            lhs.cols,
            dst.data.as_mut_ptr(),
            1,
            dst.row_stride as isize,
            into == Into::Add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// One past the last index of a strided matrix.
fn end(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// `data` without its first `count` values; empty when there are fewer, as for a view of no rows.
fn skip(data: &[f32], count: usize) -> &[f32] {
    data.get(count..).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: Mat<'_>, b: Mat<'_>) -> Vec<f32> {
        let at = |m: &Mat<'_>, i: usize, j: usize| m.data[i * m.row_stride + j * m.col_stride];
        let cell = |i, j| (0..a.cols).map(|k| at(&a, i, k) * at(&b, k, j)).sum();
        (0..a.rows).flat_map(|i| (0..b.cols).map(move |j| (i, j))).map(|(i, j)| cell(i, j)).collect()
    }

    #[test]
    fn views_address_what_they_say() {
        let a: Vec<f32> = (0..24).map(|i| i as f32).collect(); // [4, 6]
        let b: Vec<f32> = (0..30).map(|i| (i % 7) as f32 - 3.0).collect(); // [5, 6]
        let lhs = Mat::new(&a, 6).rows(1..4).columns(2..5); // [3, 3]
        let rhs = Mat::new(&b, 6).columns(1..4).t(); // [3, 5]
        let expected = naive(lhs, rhs);
        let mut out = vec![1.0; 3 * 8];
        matmul(MatMut::new(&mut out, 8).columns(2..7), Into::Add, 2.0, lhs, rhs);
        for i in 0..3 {
            assert_eq!(out[i * 8..i * 8 + 2], [1.0, 1.0]);
            assert_eq!(out[i * 8 + 7], 1.0);
            for j in 0..5 {
                assert_eq!(out[i * 8 + 2 + j], 1.0 + 2.0 * expected[i * 5 + j]);
            }
        }
        matmul(MatMut::new(&mut out, 8).rows(1..2).columns(0..5), Into::Replace, 1.0, lhs.rows(0..1), rhs);
        assert_eq!(out[8..13], expected[..5]);
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn shapes_are_checked() {
        let (a, mut out) = ([0.0; 6], [0.0; 4]);
        matmul(MatMut::new(&mut out, 2), Into::Replace, 1.0, Mat::new(&a, 3), Mat::new(&a, 3));
    }
}
