//! The instances that a thread keeps between events: each is put back to its image after an event
//! and so serves the next. Those that were not used for longest make room when there are too many.

use super::compile::Code;
use super::instance::{Guest, Warm};
use super::program::{Inner, Program, Run};
use super::{Error, instance::Used};
use lru::LruCache;
use std::marker::PhantomData;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// How much a thread may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Instances.
    pub count_max: usize,
    /// What they hold in memory while they wait, about.
    pub bytes_max: usize,
}

/// Instances for the rules of one thread. What is decided with them is the same as with a new
/// instance for every event, fuel and log included.
pub struct Instances {
    waiting: LruCache<u64, Waiting>,
    bytes: usize,
    max: Kept,
    /// How many were added since those of dropped programs were looked for.
    added: usize,
    /// The code that instances run belongs to the thread that loaded it.
    stays_here: PhantomData<*const ()>,
}

struct Waiting {
    held: Held,
    bytes: usize,
    /// An instance whose program is gone will not be asked again.
    program: Weak<Inner>,
}

enum Held {
    Instance(Box<Warm>),
    /// Of a program that gets a new instance for every event: it is not read and authenticated each
    /// time.
    Code(#[expect(dead_code, reason = "held so that it stays loaded")] Arc<Code>),
}

impl Instances {
    pub fn new(max: Kept) -> Self {
        Self {
            waiting: LruCache::unbounded(),
            bytes: 0,
            max,
            added: 0,
            stays_here: PhantomData,
        }
    }

    /// How many instances wait for their next event.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Decides one event, in the instance that waits for this program or in a new one. Blocks for as
    /// long as the guest runs.
    pub fn run(&mut self, program: &Program, event: &[u8], index: &[u8]) -> Run {
        let started = Instant::now();
        let id = program.inner().id;
        if let Some(Waiting {
            held: Held::Instance(warm),
            bytes,
            ..
        }) = self.waiting.get_mut(&id)
        {
            let outcome = warm.decide(event, index);
            let (used, fit) = warm.reset();
            let before = std::mem::replace(bytes, warm.bytes());
            self.bytes = self.bytes - before + *bytes;
            if !fit {
                self.remove(id);
            }
            self.shrink(self.max.count_max, self.max.bytes_max);
            return Run::ended(outcome, used, started.elapsed());
        }
        if program.module().is_command() {
            self.hold_code(program);
            return program.run(event, index);
        }
        let (outcome, used) = match self.start(program) {
            Ok(guest) if program.module().keepable() => self.first(program, guest, event, index),
            Ok(mut guest) => {
                self.hold_code(program);
                let outcome = guest.decide(event, index);
                (outcome, guest.used())
            }
            Err(error) => (Err(error), Used::default()),
        };
        Run::ended(outcome, used, started.elapsed())
    }

    /// For the benchmark alone: as [`Instances::run`], but an instance that waits is not put back, so
    /// that its next event sees what this one left behind.
    #[doc(hidden)]
    pub fn run_without_reset(&mut self, program: &Program, event: &[u8], index: &[u8]) -> Run {
        let started = Instant::now();
        let waiting = self.waiting.get_mut(&program.inner().id);
        let Some(Held::Instance(warm)) = waiting.map(|waiting| &mut waiting.held) else {
            return self.run(program, event, index);
        };
        let outcome = warm.decide(event, index);
        Run::ended(outcome, warm.used(), started.elapsed())
    }

    /// The first event of a new instance, which is kept if it can be.
    fn first(
        &mut self,
        program: &Program,
        guest: Guest,
        event: &[u8],
        index: &[u8],
    ) -> (Result<hooksieve_sdk::wire::Decision, Error>, Used) {
        match guest.keep(program.module()) {
            Ok(mut warm) => {
                let outcome = warm.decide(event, index);
                let (used, fit) = warm.reset();
                if fit {
                    let bytes = warm.bytes();
                    self.add(program, Held::Instance(Box::new(warm)), bytes);
                }
                (outcome, used)
            }
            Err(mut guest) => {
                let outcome = guest.decide(event, index);
                (outcome, guest.used())
            }
        }
    }

    /// Keeps what a program runs that gets a new instance for every event.
    fn hold_code(&mut self, program: &Program) {
        if self.waiting.contains(&program.inner().id) {
            return;
        }
        let module = program.module();
        // Where it cannot be loaded, the event fails with the reason.
        if let Ok(code) = module.code() {
            self.add(program, Held::Code(code), module.instance_bytes());
        }
    }

    /// A new instance. When the system has no room for one, half of those that wait are given up and
    /// it is asked once more.
    fn start(&mut self, program: &Program) -> Result<Guest, Error> {
        match program.start() {
            Err(Error::Engine { message }) if !self.is_empty() => {
                tracing::warn!(waiting = self.len(), %message, "no room for an instance: dropping half of those that wait");
                self.shrink(self.len() / 2, self.bytes);
                program.start()
            }
            started => started,
        }
    }

    fn add(&mut self, program: &Program, held: Held, bytes: usize) {
        if bytes > self.max.bytes_max || self.max.count_max == 0 {
            return;
        }
        self.drop_orphans();
        self.shrink(self.max.count_max - 1, self.max.bytes_max - bytes);
        self.bytes += bytes;
        self.waiting.put(
            program.inner().id,
            Waiting {
                held,
                bytes,
                program: Arc::downgrade(program.inner()),
            },
        );
    }

    /// Drops those that were not used for longest until no more than this is left.
    fn shrink(&mut self, count: usize, bytes: usize) {
        while self.waiting.len() > count || self.bytes > bytes {
            match self.waiting.pop_lru() {
                Some((_, waiting)) => self.bytes -= waiting.bytes,
                None => break,
            }
        }
    }

    /// Drops the instances of programs that are gone. Looks through all of them each time that half
    /// as many were added, so that it costs each addition the same.
    fn drop_orphans(&mut self) {
        self.added += 1;
        if self.added <= self.waiting.len() / 2 + 16 {
            return;
        }
        self.added = 0;
        let orphans: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.program.strong_count() == 0)
            .map(|(id, _)| *id)
            .collect();
        for id in orphans {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(waiting) = self.waiting.pop(&id) {
            self.bytes -= waiting.bytes;
        }
    }
}
