//! The wire contract: its bytes, its limits, and what it does with bytes that are not its own.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests say what they did"
)]

mod abi_document;
mod any;
mod decision;
mod golden;
mod hostile;
mod json;
mod pointer;
mod typed;

/// Bytes as hexadecimal, for messages and tables.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
