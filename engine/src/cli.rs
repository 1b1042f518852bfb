//! The command line: one file a subcommand. Results go to standard output, the rest to standard
//! error; a broken pipe is success.

mod apply;
mod backup;
mod build;
mod channels;
mod check;
mod client;
mod dead;
mod demo;
mod events;
mod explain;
mod held;
mod login;
mod new;
mod policies;
mod record;
mod replay;
mod rules;
mod serve;
mod settings;
mod store;
mod style;
mod tokens;

use clap::{CommandFactory as _, Parser, Subcommand};
use hooksieve::config::read::Problem;
use hooksieve::serve::StartError;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

/// Lets users' rules, small WebAssembly modules, decide what becomes of every event.
#[derive(Parser)]
#[command(name = "hooksieve", version, styles = style::HELP, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 success; 1 it ran and the outcome is bad; 2 bad usage, input or configuration."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the engine: take events in, decide, deliver
    Serve(serve::Args),
    /// Show the whole of it in one command, with real parts on this machine
    Demo(demo::Args),
    /// Begin a rule: a crate that builds, with tests and sample events
    New(new::Args),
    /// Compile a rule's crate to a module, and check it
    Build(build::Args),
    /// Write events with what was decided of them to a file, for replay
    Record(record::Args),
    /// Run events through a rule, sending nothing; compare what it decides
    Replay(replay::Args),
    /// Say whether a module is accepted, and if not, why and what to do
    Check(check::Args),
    /// List the ready-made rules, or write them to files
    Policies(policies::Args),
    /// Keep an engine's address and a token for it, so that other commands find them
    Login(login::Args),
    /// Upload a module as a new version of a rule
    Push(rules::Push),
    /// Make a version of a rule live: the one named, or its canary or shadow
    Promote(rules::Promote),
    /// Make the version live that was before
    Rollback(rules::Rollback),
    /// Look at rules, their versions and changes; end a shadow or canary; delete a rule
    Rules(rules::Args),
    /// List what came in and what became of it, or follow it
    Events(events::Events),
    /// List what newest events led to, and how it stands
    Deliveries(events::Deliveries),
    /// List the tenants that the token can see; make, change and remove those without a file
    Tenants(settings::Tenants),
    /// Tell what a tenant uses of what it may use
    Usage(settings::Usage),
    /// List, set up and remove a tenant's sources
    Sources(settings::Sources),
    /// Make, list and revoke access tokens
    Tokens(tokens::Args),
    /// Look at events that a rule failed on, and release or drop them
    Held(held::Args),
    /// Look at deliveries that were given up
    Dead(dead::Args),
    /// Make an engine's tenants what files say, and show the difference first
    Apply(apply::Args),
    /// Write everything that a running engine's store holds to a file
    Backup(backup::Args),
    /// Check a store as a whole, export or import it
    Store(store::Args),
    /// List, set up and remove a tenant's channels; find out whether one works
    #[command(alias = "channel")]
    Channels(channels::Args),
    /// Tell what became of an event: rules, decisions, deliveries, attempts
    Explain(explain::Args),
    /// Write a script that completes these commands in a shell
    Completions {
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
}

/// Why a command ends badly: its exit code, and one sentence.
#[derive(Debug)]
enum Failure {
    /// It ran, and the outcome is bad. The report is already printed where there is no sentence.
    Outcome(Option<String>),
    /// Usage, input or configuration.
    Input(String),
    /// Whoever read the output has gone.
    Pipe,
}

impl Failure {
    fn input(error: impl fmt::Display) -> Self {
        Self::Input(error.to_string())
    }

    fn outcome(error: impl fmt::Display) -> Self {
        Self::Outcome(Some(error.to_string()))
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::input(problem)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::input(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Pipe,
            _ => Self::outcome(error),
        }
    }
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(args),
        Command::New(args) => new::run(args),
        Command::Build(args) => build::run(args),
        Command::Record(args) => record::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Check(args) => check::run(args),
        Command::Policies(args) => policies::run(args),
        Command::Login(args) => login::run(args),
        Command::Push(args) => rules::push(args),
        Command::Promote(args) => rules::promote(args),
        Command::Rollback(args) => rules::roll_back(args),
        Command::Rules(args) => rules::run(args),
        Command::Tokens(args) => tokens::run(args),
        Command::Held(args) => held::run(args),
        Command::Dead(args) => dead::run(args),
        Command::Apply(args) => apply::run(args),
        Command::Backup(args) => backup::run(args),
        Command::Store(args) => store::run(args),
        Command::Channels(args) => channels::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Events(args) => events::events(args),
        Command::Deliveries(args) => events::deliveries(args),
        Command::Tenants(args) => settings::tenants(args),
        Command::Usage(args) => settings::usage(args),
        Command::Sources(args) => settings::sources(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hooksieve", &mut script);
            io::Write::write_all(&mut io::stdout(), &script).map_err(Failure::from)
        }
    };
    let (code, sentence) = match done {
        Ok(()) | Err(Failure::Pipe) => return ExitCode::SUCCESS,
        Err(Failure::Outcome(sentence)) => (1, sentence),
        Err(Failure::Input(sentence)) => (2, Some(sentence)),
    };
    if let Some(sentence) = sentence {
        let error = style::ERROR;
        anstream::eprintln!("{error}error:{error:#} {sentence}");
    }
    ExitCode::from(code)
}

/// The environment as settings and secrets are read from it; what is not text cannot be meant.
fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// Runs a command's asynchronous part.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(Failure::outcome)?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(BLOCKING_PATIENCE);
    done
}

/// How long what blocks a thread is waited for after a command has ended, such as the trial of a module
/// that does not come back: the end of the process ends it.
const BLOCKING_PATIENCE: Duration = Duration::from_secs(5);
