//! The threads themselves. Who is served next is tested in `queue.rs`, without any.

use super::queue::WAITING_OF_TENANT_MAX;
use super::*;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::thread::{ThreadId, current};
use tokio::task::JoinHandle;

const KEPT: Kept = Kept {
    count_max: 10,
    bytes_max: 1 << 20,
};

/// How long a step of these tests may take before it is lost, where it is not what is tested.
const NEVER: Duration = Duration::from_secs(600);

type Does = Arc<dyn Fn() + Send + Sync>;

/// Work of closures, each of which is a step. What comes of it is where each ran, or after what time it
/// was lost.
struct Steps {
    steps: Vec<Does>,
    lost_after: Duration,
    came: Vec<Result<ThreadId, Duration>>,
}

struct Step(Does, Name, Duration);

impl Work for Steps {
    type Step = Step;
    type Answer = Came;

    fn next(&mut self) -> Option<Step> {
        let does = self.steps.get(self.came.len())?;
        Some(Step(does.clone(), name("rule"), self.lost_after))
    }

    fn take(&mut self, outcome: ThreadId) {
        self.came.push(Ok(outcome));
    }

    fn lost(&mut self, after: Duration) {
        self.came.push(Err(after));
    }

    fn answer(self, used: Duration) -> Self::Answer {
        (self.came, used)
    }
}

impl Guest for Step {
    type Outcome = ThreadId;

    fn run(self, _: &mut Instances) -> ThreadId {
        (self.0)();
        current().id()
    }

    fn rule(&self) -> &Name {
        &self.1
    }

    fn lost_after(&self) -> Duration {
        self.2
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn steps(steps: Vec<Does>) -> Steps {
    Steps {
        steps,
        lost_after: NEVER,
        came: Vec::new(),
    }
}

fn step(does: impl Fn() + Send + Sync + 'static) -> Steps {
    steps(vec![Arc::new(does)])
}

/// A door that everything waits at until it is opened, also when the test fails.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<(bool, usize)>, Condvar)>);

struct Opens(Door);

impl Door {
    fn new() -> (Self, Opens) {
        let door = Self::default();
        (door.clone(), Opens(door))
    }

    fn wait(&self) {
        let (state, opened) = &*self.0;
        let mut state = state.lock().unwrap();
        state.1 += 1;
        while !state.0 {
            state = opened.wait(state).unwrap();
        }
        state.1 -= 1;
    }

    /// How many wait at it.
    fn waiting(&self) -> usize {
        self.0.0.lock().unwrap().1
    }
}

impl Drop for Opens {
    fn drop(&mut self) {
        let (state, opened) = &*self.0.0;
        state.lock().unwrap().0 = true;
        opened.notify_all();
    }
}

/// Where a tenant's next job runs.
async fn where_is(workers: &Workers, tenant: &str) -> ThreadId {
    let (came, _) = workers.run(&name(tenant), step(|| {})).await.unwrap();
    came[0].unwrap()
}

/// What each step came to, on which thread or given up after how long; and the time that was used.
type Came = (Vec<Result<ThreadId, Duration>>, Duration);

fn queued(workers: &Workers, tenant: &str, work: Steps) -> JoinHandle<Option<Came>> {
    tokio::spawn(workers.run(&name(tenant), work))
}

async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let began = Instant::now();
    while !look() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "waited for {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Uses this much of the processor.
fn burn(time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn tenants_spread_over_the_seats() {
    let workers = Workers::start(4, KEPT).unwrap();
    let state = workers.shared.lock();
    let home = |n: usize| state.queue.home(&name(&format!("t{n}")));
    let homes: HashSet<usize> = (0..32).map(home).collect();
    assert_eq!(homes.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_work_goes_to_the_same_thread() {
    let workers = Workers::start(4, KEPT).unwrap();
    let mut came: HashMap<ThreadId, usize> = HashMap::new();
    for _ in 0..100 {
        *came.entry(where_is(&workers, "a").await).or_default() += 1;
    }
    // Where the machine keeps a thread waiting for a millisecond, another takes it, the first time as well.
    let same = came.values().max().copied().unwrap_or_default();
    assert!(same >= 50, "{came:?}");
}

/// However few wait, and whatever came before them there: another tenant's as well as its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_busy_thread_is_taken_by_an_idle_one() {
    let workers = Workers::start(2, KEPT).unwrap();
    let (door, opens) = Door::new();
    let at = door.clone();
    let blocked = queued(&workers, "a", step(move || at.wait()));
    until("the first to begin", || door.waiting() == 1).await;
    let other = where_is(&workers, "b").await;
    let again = where_is(&workers, "b").await;
    drop(opens);
    let busy = blocked.await.unwrap().unwrap().0[0].unwrap();
    assert!(busy != other && busy != again);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_of_a_tenant_wait_and_no_more_and_others_have_room() {
    let workers = Workers::start(1, KEPT).unwrap();
    let (door, opens) = Door::new();
    let at = door.clone();
    let blocked = queued(&workers, "a", step(move || at.wait()));
    until("the first to begin", || door.waiting() == 1).await;
    let a = name("a");
    let behind: Vec<_> = (0..WAITING_OF_TENANT_MAX + 1)
        .map(|_| workers.run(&a, step(|| {})))
        .collect();
    assert_eq!(workers.shared.lock().queue.waiting(), WAITING_OF_TENANT_MAX);
    where_is(&workers, "b").await;
    drop(opens);
    blocked.await.unwrap().unwrap();
    // The last one is queued by whoever waits for it.
    for ran in behind.into_iter().rev() {
        assert!(tokio::spawn(ran).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_its_job_and_nothing_else() {
    let workers = Workers::start(1, KEPT).unwrap();
    let panics = steps(vec![
        Arc::new(|| {}),
        Arc::new(|| panic!("a bug")),
        Arc::new(|| {}),
    ]);
    assert!(workers.run(&name("a"), panics).await.is_none());
    where_is(&workers, "a").await;
    assert_eq!(workers.threads().count, 1);
}

/// A hundred slow rules of one event do not hold up another tenant: its turn comes between two of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_has_its_turn_and_then_others_have_theirs() {
    let workers = Workers::start(1, KEPT).unwrap();
    let begun = Arc::new(AtomicBool::new(false));
    let slow: Vec<Does> = (0..100)
        .map(|_| {
            let begun = begun.clone();
            let does: Does = Arc::new(move || {
                begun.store(true, Ordering::Relaxed);
                burn(TURN);
            });
            does
        })
        .collect();
    let mut slow = queued(&workers, "slow", steps(slow));
    until("it to begin", || begun.load(Ordering::Relaxed)).await;
    for _ in 0..5 {
        where_is(&workers, "quick").await;
    }
    assert!(!slow.is_finished());
    let (came, used) = (&mut slow).await.unwrap().unwrap();
    assert_eq!(came.len(), 100);
    // All of its turns together, as far as it had the processor.
    assert!(used > Duration::from_millis(20), "{used:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_overdue_gives_its_seat_to_a_spare_and_takes_it_back() {
    let workers = Workers::start(1, KEPT).unwrap();
    let home = where_is(&workers, "b").await;
    let (door, opens) = Door::new();
    let at = door.clone();
    let blocked = queued(&workers, "a", step(move || at.wait()));
    until("it to begin", || door.waiting() == 1).await;
    let spare = where_is(&workers, "b").await;
    assert_ne!(spare, home);
    assert_eq!(workers.threads().count, 2);
    drop(opens);
    assert_eq!(blocked.await.unwrap().unwrap().0, [Ok(home)]);
    // What its instances are warm for is there again.
    until("the seat to be taken back", || {
        workers.shared.lock().seats[0].holder == Some(0)
    })
    .await;
    assert_eq!(where_is(&workers, "b").await, home);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_that_are_overdue_have_one_thread_each() {
    let workers = Workers::start(1, KEPT).unwrap();
    let (door, opens) = Door::new();
    let mut all = Vec::new();
    for tenant in ["a", "b", "c"] {
        for _ in 0..4 {
            let door = door.clone();
            all.push(queued(&workers, tenant, step(move || door.wait())));
        }
    }
    until("one of each to begin", || door.waiting() == 3).await;
    for _ in 0..10 {
        where_is(&workers, "quick").await;
    }
    // Once those are overdue, too, there is a spare with nothing to do.
    until("all to be overdue", || {
        let state = workers.shared.lock();
        let turns = state
            .threads
            .iter()
            .flatten()
            .filter_map(|it| it.turn.as_ref());
        turns.filter(|turn| turn.overdue).count() == 3
    })
    .await;
    assert_eq!(door.waiting(), 3);
    assert_eq!(workers.threads().count, 4);
    drop(opens);
    for one in all {
        one.await.unwrap().unwrap();
    }
}

/// One that is lost after so long.
fn lost_after(door: &Door, lost_after: Duration) -> Steps {
    let door = door.clone();
    Steps {
        lost_after,
        ..steps(vec![
            Arc::new(|| {}),
            Arc::new(move || door.wait()),
            Arc::new(|| {}),
        ])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_does_not_come_back_is_given_up_and_the_rest_is_done() {
    let workers = Workers::start(1, KEPT).unwrap();
    let (door, opens) = Door::new();
    let bound = Duration::from_millis(60);
    let lost = queued(&workers, "a", lost_after(&door, bound));
    let (came, used) = lost.await.unwrap().unwrap();
    let (first, waited, last) = (came[0], came[1].unwrap_err(), came[2]);
    assert!(waited >= bound && used >= bound, "{waited:?}, {used:?}");
    assert_ne!(first.unwrap(), last.unwrap());
    let threads = workers.threads();
    assert_eq!((threads.lost_ever, threads.decides), (1, true));
    let [told] = &threads.lost[..] else {
        panic!("{threads:?}")
    };
    assert_eq!((&told.tenant, &told.rule), (&name("a"), &name("rule")));
    // Its tenant is served on, and the new thread is the seat's owner.
    assert_eq!(where_is(&workers, "a").await, last.unwrap());
    let owner = workers.shared.lock().seats[0].owner;
    assert!(owner.is_some_and(|it| it != 0), "{owner:?}");
    // Should it come back after all, it ends, and what it brings is not taken.
    drop(opens);
    until("it to come back", || workers.threads().lost.is_empty()).await;
    assert_eq!(
        (workers.threads().count, workers.threads().lost_ever),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_lost_is_not_waited_for_at_the_end() {
    let workers = Workers::start(1, KEPT).unwrap();
    let (door, opens) = Door::new();
    let lost = queued(&workers, "a", lost_after(&door, Duration::from_millis(30)));
    lost.await.unwrap().unwrap();
    let began = Instant::now();
    drop(workers);
    assert!(began.elapsed() < END_PATIENCE, "{:?}", began.elapsed());
    drop(opens);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_threads_are_made_and_no_more() {
    let workers = Workers::start(1, KEPT).unwrap();
    let (door, opens) = Door::new();
    for n in 0..=SPARES_MAX {
        let work = lost_after(&door, Duration::from_millis(30));
        drop(queued(&workers, &format!("t{n}"), work));
    }
    until("all to be lost", || {
        workers.threads().lost.len() == SPARES_MAX + 1
    })
    .await;
    until("nobody to decide", || !workers.threads().decides).await;
    assert_eq!(workers.threads().count, SPARES_MAX + 1);
    let waits = queued(&workers, "b", step(|| {}));
    drop(opens);
    // One that ends makes room for one that decides.
    waits.await.unwrap().unwrap();
    assert!(workers.threads().decides);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_wakes_up_when_nothing_runs() {
    let workers = Workers::start(2, KEPT).unwrap();
    for n in 0..50 {
        where_is(&workers, &format!("t{n}")).await;
    }
    until("the watch to sleep", || {
        workers.shared.lock().watch.sleeps()
    })
    .await;
    let looks = workers.shared.lock().watch.looks;
    // However many there were, it looks at most each time that one could be overdue.
    assert!(looks < 50, "{looks}");
    tokio::time::sleep(OVERDUE * 8).await;
    assert_eq!(workers.shared.lock().watch.looks, looks);
}
