//! All cores decide, and what they decide comes in the order of the events.

use super::Stop;
use hooksieve::pipeline::Rules;
use hooksieve::replay::{BadInput, Batch, Defaults, Recorded, batches};
use hooksieve::sandbox::{Instances, Kept, Run};
use hooksieve::store::{Commit, Outcome};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Batches that wait for a thread, and that wait for those before them.
const WAITING: usize = 4;
/// After which it is looked whether somebody wants it to end.
const WAIT: Duration = Duration::from_millis(100);
/// Each thread keeps an instance of a rule, and of the one that it is compared with.
const TWO: Kept = Kept {
    count_max: 2,
    bytes_max: usize::MAX,
};

/// What a rule made of an event.
pub(super) struct Answer {
    pub(super) run: Run,
    pub(super) commit: Commit,
}

impl Answer {
    fn failed(&self) -> bool {
        let decisions = self.commit.decisions.iter();
        decisions
            .into_iter()
            .any(|it| matches!(it.outcome, Outcome::Failed { .. }))
    }
}

/// An event with what the rule made of it, and the one that it is compared with; `None` of a rule that
/// was not asked.
pub(super) struct Judged {
    pub(super) recorded: Recorded,
    pub(super) answer: Option<Answer>,
    pub(super) before: Option<Answer>,
}

/// What comes next.
pub(super) enum Turn {
    Done(Done),
    /// Nothing, for the moment.
    Waiting,
    /// Nothing: somebody wanted it to end.
    Stopped,
}

/// Events that were judged together, and how much of their file they take.
pub(super) struct Done {
    pub(super) bytes: u64,
    pub(super) events: Vec<Judged>,
    /// What ended it early.
    bad: Option<BadInput>,
}

/// Somebody wants it to end.
pub(super) static STOPPED: AtomicBool = AtomicBool::new(false);

/// Gives all events, judged, in their order; with `keep`, whole.
///
/// # Errors
/// The first input that cannot be read, once those before it were given; or what `each` returns.
pub(super) fn judge(
    rules: &Rules,
    before: Option<&Rules>,
    paths: &[PathBuf],
    defaults: &Defaults,
    keep: bool,
    mut each: impl FnMut(Turn) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let count = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let (mut to, mut from) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (batches, work) = sync_channel(WAITING);
            let (done, judged) = sync_channel(WAITING);
            scope.spawn(move || judges([Some(rules), before], defaults, keep, &work, &done));
            to.push(batches);
            from.push(judged);
        }
        let reader = scope.spawn(move || reads(paths, defaults, &to));
        // They get batches in turn, so they are asked in turn; who has none left was the last.
        'all: for judged in from.iter().cycle() {
            let mut done = loop {
                match judged.recv_timeout(WAIT) {
                    Ok(done) => break done,
                    Err(RecvTimeoutError::Disconnected) => break 'all,
                    // Whoever writes to standard input may not write again.
                    Err(RecvTimeoutError::Timeout) if STOPPED.load(Ordering::Relaxed) => {
                        each(Turn::Stopped)?;
                    }
                    Err(RecvTimeoutError::Timeout) => each(Turn::Waiting)?,
                }
            };
            let bad = done.bad.take();
            each(Turn::Done(done))?;
            if let Some(bad) = bad {
                return Err(bad.into());
            }
        }
        match reader.join() {
            Ok(Err(Stop::Asked)) => each(Turn::Stopped),
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn reads(paths: &[PathBuf], defaults: &Defaults, to: &[SyncSender<Batch>]) -> Result<(), Stop> {
    let mut turn = to.iter().cycle();
    paths.iter().try_for_each(|path| {
        batches(path, defaults, &mut |batch| {
            if STOPPED.load(Ordering::Relaxed) {
                return Err(Stop::Asked);
            }
            // Nobody takes it where the other end has failed, and tells of it.
            let sent = turn.next().map(|to| to.send(batch));
            sent.transpose().map(drop).map_err(|_| Stop::Asked)
        })
    })
}

fn judges(
    rules: [Option<&Rules>; 2],
    defaults: &Defaults,
    keep: bool,
    work: &Receiver<Batch>,
    done: &SyncSender<Done>,
) {
    let mut instances = Instances::new(TWO);
    let mut ask = |rules: &Rules, recorded: &Recorded| {
        let (run, commit) = rules.replay(&recorded.event, &mut instances)?;
        Some(Answer { run, commit })
    };
    for batch in work {
        let (bytes, mut events) = (batch.bytes, Vec::new());
        let read = batch.events(defaults, &mut |mut recorded: Recorded| {
            let [answer, before] = rules.map(|rules| ask(rules?, &recorded));
            // It is long, and asked for again only where the rule failed.
            if !keep && !answer.as_ref().is_some_and(Answer::failed) {
                recorded.event.encoded = Vec::new();
            }
            events.push(Judged {
                recorded,
                answer,
                before,
            });
            Ok::<_, BadInput>(())
        });
        let bad = read.err();
        if done.send(Done { bytes, events, bad }).is_err() {
            return;
        }
    }
}
