//! Cross-validation that keeps neighbours together.
//!
//! Neighbouring rows are often contrast pairs, the same words with another aim: a fit that has seen the one has seen
//! half of the other. So folds are made of blocks of neighbours, and the rows at a block's borders are left out of the
//! fit that is tested on it.

use std::ops::Range;

use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

/// Which rows are tested together.
#[derive(Clone, Debug)]
pub struct Folds {
    /// The fold of each row.
    of: Vec<usize>,
    /// The file of each row.
    files: Vec<usize>,
    count: usize,
    gap: usize,
}

impl Folds {
    /// Deals the blocks of `block` neighbouring rows out to `count` folds. `files` gives the file of each row; rows of a
    /// file lie side by side, in its order. `gap` rows on either side of a tested block are left out of the fit.
    pub fn new(files: &[usize], count: usize, block: usize, gap: usize, seed: u64) -> Self {
        let mut of = vec![0; files.len()];
        for (i, rows) in shuffled_blocks(files, block, seed).into_iter().enumerate() {
            of[rows].fill(i % count);
        }
        Self { of, files: files.to_vec(), count, gap }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The rows that are tested in a fold.
    pub fn tested(&self, fold: usize) -> Vec<usize> {
        (0..self.of.len()).filter(|&row| self.of[row] == fold).collect()
    }

    /// The rows that the fit tested there may see.
    pub fn fitted(&self, fold: usize) -> Vec<usize> {
        let is_near = |row: usize| {
            let near = row.saturating_sub(self.gap)..=(row + self.gap).min(self.of.len() - 1);
            near.into_iter().any(|other| self.of[other] == fold && self.files[other] == self.files[row])
        };
        (0..self.of.len()).filter(|&row| !is_near(row)).collect()
    }
}

/// Blocks of `block` neighbours, none over the border of a file, in an order drawn with `seed`.
pub fn shuffled_blocks(files: &[usize], block: usize, seed: u64) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let mut start = 0;
    for file in files.chunk_by(|a, b| a == b) {
        let end = start + file.len();
        blocks.extend((start..end).step_by(block.max(1)).map(|from| from..(from + block.max(1)).min(end)));
        start = end;
    }
    blocks.shuffle(&mut StdRng::seed_from_u64(seed));
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_tested_once_and_never_beside_a_fitted_one() {
        let files: Vec<usize> = [0; 103].into_iter().chain([1; 47]).collect();
        for (count, block, gap) in [(5, 20, 2), (2, 1, 0), (10, 7, 3)] {
            let folds = Folds::new(&files, count, block, gap, 3);
            let mut times = vec![0; files.len()];
            for fold in 0..count {
                let (tested, fitted) = (folds.tested(fold), folds.fitted(fold));
                assert!(!tested.is_empty() && !fitted.is_empty());
                tested.iter().for_each(|&row| times[row] += 1);
                for &a in &tested {
                    let close = |b: &&usize| b.abs_diff(a) <= gap && files[**b] == files[a];
                    assert_eq!(fitted.iter().find(close), None, "beside row {a}");
                }
            }
            assert!(times.iter().all(|&t| t == 1));
        }
    }

    #[test]
    fn blocks_keep_to_their_file() {
        let mut blocks = shuffled_blocks(&[4, 4, 4, 4, 4, 9, 9], 3, 1);
        blocks.sort_by_key(|rows| rows.start);
        assert_eq!(blocks, [0..3, 3..5, 5..7]);
    }
}
