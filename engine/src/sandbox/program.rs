//! A module with its configuration and limits: what decides events.

use super::instance::{Guest, Used};
use super::profile::Tree;
use super::{Error, Limits, Module, command};
use crate::id::Hash;
use hooksieve_sdk::wire::Decision;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A module with its configuration and limits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Program(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    /// Not used again while the process lives.
    pub(super) id: u64,
    pub(super) module: Module,
    pub(super) config: Box<[u8]>,
    config_hash: Hash,
    pub(super) limits: Arc<Limits>,
}

/// What one event's turn used and gave.
#[derive(Clone, Debug)]
pub struct Run {
    pub outcome: Result<Decision, Error>,
    /// Fuel that the event burned. Reading the configuration is in it only for a module that has to
    /// read it for every event.
    pub fuel: u64,
    /// Fuel that it burned after the limit was reached, until it was stopped: a few thousand at most,
    /// whatever its shape.
    #[doc(hidden)]
    pub fuel_past: u64,
    /// The guest's linear memory at the end.
    pub memory_bytes: u64,
    /// With the start of an instance, where that was needed, or with putting it back.
    pub duration: Duration,
    pub log: Vec<LogLine>,
}

impl Default for Run {
    /// A run that used nothing and decided nothing.
    fn default() -> Self {
        Self::ended(Ok(Decision::default()), Used::default(), Duration::ZERO)
    }
}

impl Run {
    pub(super) fn ended(outcome: Result<Decision, Error>, used: Used, duration: Duration) -> Self {
        Self {
            outcome,
            fuel: used.fuel,
            fuel_past: used.fuel_past,
            memory_bytes: used.memory_bytes,
            log: used.log,
            duration,
        }
    }
}

/// A line that a rule logged.
pub type LogLine = String;

impl Program {
    /// A module with its configuration as MessagePack, tried once: an `init` that refuses the
    /// configuration is found here and not at the first event.
    ///
    /// # Errors
    /// What [`Program::run`] would fail with before it sees an event.
    pub fn new(
        module: Module,
        config: Vec<u8>,
        limits: impl Into<Arc<Limits>>,
    ) -> Result<Self, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let program = Self(Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            module,
            config_hash: Hash::of(&config),
            config: config.into(),
            limits: limits.into(),
        }));
        if program.0.module.is_command() {
            command::try_start(&program.0)?;
        } else {
            program.start()?;
        }
        Ok(program)
    }

    pub fn module(&self) -> &Module {
        &self.0.module
    }

    /// SHA-256 of the configuration as MessagePack.
    pub fn config_hash(&self) -> Hash {
        self.0.config_hash
    }

    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Decides one event in a new instance. Blocks for as long as the guest runs.
    /// [`Instances::run`](super::Instances::run) gives the same and is quicker.
    pub fn run(&self, event: &[u8], index: &[u8]) -> Run {
        let started = Instant::now();
        let (outcome, used) = if self.0.module.is_command() {
            command::decide(&self.0, event, index)
        } else {
            match self.start() {
                Ok(mut guest) => {
                    let outcome = guest.decide(event, index);
                    (outcome, guest.used())
                }
                Err(error) => (Err(error), Used::default()),
            }
        };
        Run::ended(outcome, used, started.elapsed())
    }

    /// As [`Program::run`], with the calls of a module that is followed.
    pub(super) fn followed(&self, tree: Tree, event: &[u8], index: &[u8]) -> (Run, Tree) {
        let started = Instant::now();
        let (outcome, used, tree) = match self.start() {
            Ok(mut guest) => {
                guest.follow(tree);
                let outcome = guest.decide(event, index);
                let tree = guest.followed();
                (outcome, guest.used(), tree)
            }
            Err(error) => (Err(error), Used::default(), tree),
        };
        (Run::ended(outcome, used, started.elapsed()), tree)
    }

    /// A new instance that has read its configuration.
    pub(super) fn start(&self) -> Result<Guest, Error> {
        Guest::start(&self.0.module, &self.0.config, &self.0.limits)
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }
}
