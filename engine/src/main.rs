//! The `hooksieve` program: a thin front to the library, and the only place that prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the command line speaks here"
)]

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    hooksieve::sandbox::compile_if_asked();
    cli::main()
}
