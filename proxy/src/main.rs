//! The `forethought` command.

fn main() {}
