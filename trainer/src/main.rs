//! The `forethought-trainer` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    forethought_trainer::cli::main()
}
