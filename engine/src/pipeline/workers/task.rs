//! Work in steps, so that others get their turns in between, and so that a step that does not come back
//! takes nothing with it but itself.
//!
//! What has come of the work so far stands apart from the step that runs, under a lock that is held for
//! moments: another thread goes on with it when the step is given up.

use crate::id::Name;
use crate::sandbox::Instances;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use tokio::sync::oneshot;

/// What the threads do for a tenant.
pub(in crate::pipeline) trait Work: Send + 'static {
    /// One run of a guest.
    type Step: Guest;
    type Answer: Send + 'static;

    /// What is to be run next, as things stand now; the same until [`Work::take`] has what came of it.
    fn next(&mut self) -> Option<Self::Step>;
    fn take(&mut self, outcome: <Self::Step as Guest>::Outcome);
    /// The step that was given out last is not waited for any more: it was for so long.
    fn lost(&mut self, after: Duration);
    /// What came of all of it, which took so much processor time.
    fn answer(self, used: Duration) -> Self::Answer;
}

/// A run of a guest, with all that it needs.
pub(in crate::pipeline) trait Guest: Send {
    type Outcome;
    /// Blocks for as long as the guest runs.
    fn run(self, instances: &mut Instances) -> Self::Outcome;
    /// Whose run it is.
    fn rule(&self) -> &Name;
    /// After what time it will not come back.
    fn lost_after(&self) -> Duration;
}

/// Work as the threads see it, whatever it is.
pub(super) trait Task: Send + Sync {
    /// Runs one step. Blocks for as long as the guest runs.
    fn step(&self, instances: &mut Instances) -> Stepped;
    /// It goes back to the queue; so much was used since it came from there.
    fn put_back(&self, used: Duration);
    /// It has come to its end: whoever waits is answered.
    fn end(&self, used: Duration);
    /// A step panicked, which is a bug of ours: whoever waits learns of it.
    fn abandon(&self);
    /// Which step runs, by its number, and how long it may; `None` where none does, or it cannot be told now.
    fn runs(&self) -> Option<(u64, Duration)>;
    /// Gives up this step, if it still runs, which has used so much for all that is known; whose it was.
    fn lose(&self, step: u64, after: Duration) -> Option<Name>;
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stepped {
    More,
    /// Nothing is left to do but to answer.
    Done,
    /// It was given up meanwhile: the work is somebody else's.
    GivenUp,
}

pub(super) struct Stepwise<W: Work> {
    state: Mutex<State<W>>,
}

struct State<W: Work> {
    /// `None` once it was answered or abandoned.
    work: Option<W>,
    /// Taken from the work ahead of its time, because whether there is one says whether it is done.
    ready: Option<W::Step>,
    /// The last step's number, and while it runs what is known of it.
    step: u64,
    running: Option<(Name, Duration)>,
    used: Duration,
    answer: Option<oneshot::Sender<W::Answer>>,
}

impl<W: Work> Stepwise<W> {
    pub(super) fn new(work: W, answer: oneshot::Sender<W::Answer>) -> Self {
        Self {
            state: Mutex::new(State {
                work: Some(work),
                ready: None,
                step: 0,
                running: None,
                used: Duration::ZERO,
                answer: Some(answer),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Work> State<W> {
    fn next(&mut self) -> Option<W::Step> {
        // Nobody waits any more when the engine is stopping.
        if self.answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return None;
        }
        let ready = self.ready.take();
        ready.or_else(|| self.work.as_mut()?.next())
    }
}

impl<W: Work> Task for Stepwise<W> {
    fn step(&self, instances: &mut Instances) -> Stepped {
        let (number, step) = {
            let mut state = self.lock();
            let Some(step) = state.next() else {
                return Stepped::Done;
            };
            state.step += 1;
            state.running = Some((step.rule().clone(), step.lost_after()));
            (state.step, step)
        };
        let outcome = step.run(instances);
        let mut state = self.lock();
        if state.step != number || state.running.take().is_none() {
            return Stepped::GivenUp;
        }
        if let Some(work) = &mut state.work {
            work.take(outcome);
        }
        state.ready = state.next();
        match state.ready {
            Some(_) => Stepped::More,
            None => Stepped::Done,
        }
    }

    fn put_back(&self, used: Duration) {
        let mut state = self.lock();
        state.used += used;
        // Much may have happened until it is gone on with, such as a quarantine.
        state.ready = None;
    }

    fn end(&self, used: Duration) {
        let mut state = self.lock();
        let used = state.used + used;
        let (work, answer) = (state.work.take(), state.answer.take());
        drop(state);
        if let (Some(work), Some(answer)) = (work, answer) {
            let _ = answer.send(work.answer(used));
        }
    }

    fn abandon(&self) {
        let mut state = self.lock();
        (state.work, state.answer, state.running) = (None, None, None);
    }

    fn runs(&self) -> Option<(u64, Duration)> {
        let state = self.try_lock()?;
        let (_, lost_after) = state.running.as_ref()?;
        Some((state.step, *lost_after))
    }

    fn lose(&self, step: u64, after: Duration) -> Option<Name> {
        let mut state = self.try_lock()?;
        if state.step != step {
            return None;
        }
        let (rule, _) = state.running.take()?;
        state.used += after;
        if let Some(work) = &mut state.work {
            work.lost(after);
        }
        Some(rule)
    }
}

impl<W: Work> Stepwise<W> {
    /// For who must not wait: a thread that does not come back may hold the lock.
    fn try_lock(&self) -> Option<MutexGuard<'_, State<W>>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(state)) => Some(state.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
