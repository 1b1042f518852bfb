//! The `hooksieve` program: a thin front to the library, and the only place that prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the command line speaks here"
)]

mod cli;

use mimalloc::MiMalloc;
use std::process::ExitCode;

/// The store copies a leaf of its tree for every row: that is where an allocator shows.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    hooksieve::sandbox::compile_if_asked();
    cli::main()
}
