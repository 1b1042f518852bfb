//! The harness of the end-to-end tests: the real program as a child process, real receivers, real
//! folders. Bytes go in at a port, and what arrives at a receiver is looked at.
//!
//! - [`Setup`] makes a folder with tenants, configuration and store, and starts a [`Server`] on it,
//!   as often as a test wants to restart.
//! - [`Server`] posts, asks, and ends: a test that forgets to end it fails, so that nothing runs on
//!   unseen and nothing that it accepted is left unaccounted for.
//! - [`Receiver`] is an HTTP server that keeps what it got and answers as it is told.
//! - [`Database`] is a Postgres or MariaDB server of the test's own.
//! - [`cli`] runs one command to its end.
//!
//! Nothing here sleeps for a fixed time: [`until`] looks again and again up to [`PATIENCE`].
#![allow(
    clippy::print_stderr,
    reason = "tests say loudly what they could not do"
)]

mod databases;
mod nginx;
mod peers;
pub mod process;
mod program;
pub mod proof;
mod receiver;
mod server;
pub mod shapes;
pub mod sign;
pub mod smith;
mod stopped;
mod traced;

pub use databases::{DATABASE, Database, Kind, PASSWORD, Pooler, USER};
pub use nginx::Nginx;
pub use peers::{Absent, Node, Python, browser, faketime, may_mount, node, python};
pub use program::{Output, cli, cli_with, program};
pub use receiver::{Received, Receiver, Reply};
pub use server::{ALLOW, Answer, Server, Setup, TOKEN};
pub use stopped::{StoppedThread, busiest};
pub use traced::{Ended, Traced};

use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

/// The rule that does on demand what an event says; see `tests/guests/probe`.
pub const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.wasm"));

/// The policy `github-triage` as a WASI program.
pub const TRIAGE_COMMAND: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/command.wasm"));

/// Rules of the sizes that `guest-sdk/README.md` speaks of, by name.
pub const LEAN: [(&str, &[u8]); 5] = [
    (
        "lean-drop",
        include_bytes!(concat!(env!("OUT_DIR"), "/lean_drop.wasm")),
    ),
    (
        "lean-forward",
        include_bytes!(concat!(env!("OUT_DIR"), "/lean_forward.wasm")),
    ),
    (
        "lean-format",
        include_bytes!(concat!(env!("OUT_DIR"), "/lean_format.wasm")),
    ),
    (
        "lean-serde",
        include_bytes!(concat!(env!("OUT_DIR"), "/lean_serde.wasm")),
    ),
    (
        "first-rule",
        include_bytes!(concat!(env!("OUT_DIR"), "/first_rule.wasm")),
    ),
];

/// How long a test waits for what must come. Long, because it only ends tests that fail.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Says something that is to be seen although the test passes: the test runner shows what is printed
/// by tests that fail, and this goes past it.
pub fn say(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(format!("\n{text}\n").as_bytes());
}

/// The folder of this package.
pub fn tests_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Looks until there is something, and panics when that takes longer than [`PATIENCE`].
#[track_caller]
pub fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{caller}: waited {PATIENCE:?} for {what}"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
}
