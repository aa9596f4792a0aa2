//! The `forethought` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    forethought_proxy::cli::main()
}
