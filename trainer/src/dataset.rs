//! Data sets before they are trained on: read in many shapes, checked for leaks, and given R1-Act's phases by a teacher.
//!
//! [`record`] turns any file into objects with lines; [`read`] makes rows of them for training, [`mod@import`] converts
//! public benchmarks into the project's shape, [`mod@check`] looks for what a guard must not learn, and [`mod@assess`]
//! asks a teacher model for the two phases, as R1-Act (arXiv 2508.00324) did for its own set.

pub mod assess;
pub mod check;
pub mod import;
pub mod leaks;
pub mod read;
pub mod record;
pub mod similar;
pub mod text;
