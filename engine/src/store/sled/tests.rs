//! What the embedded store promises beyond the common suite: what is on disk after a restart, after
//! a kill, and when the disk fails.

mod folder;
mod offline;

use super::folder::SEGMENT_BYTES;
use super::*;
use crate::store::conformance::*;
use crate::store::{MemoryStore, Store};
use proptest::prelude::*;
use proptest::sample::Index;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

conformance!({
    let folder = TempDir::new().unwrap();
    (open(folder.path()), folder)
});

fn options() -> Options {
    Options {
        duplicate_window_ms: WINDOW_MS,
        cache_bytes: 64 << 20,
        queue_max: 1_024,
        group_max: 256,
        // So small that the suite reaches what waits on disk.
        due_loaded_max: 3,
    }
}

fn open(path: &Path) -> SledStore {
    SledStore::open(path, options()).unwrap()
}

fn refused(path: &Path) -> Error {
    match SledStore::open(path, options()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_restart_keeps_everything_but_leases() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let tenant = name("a");
    let first = store.append(new_event("a", "1", "x")).await.unwrap().id;
    let second = store.append(new_event("a", "2", "x")).await.unwrap().id;
    let mut commit = commit_due("a", first, "triage", &[NOW_MS, NOW_MS + 1]);
    commit.held = vec![held("a", first, "broken")];
    store.commit(&tenant, vec![commit.clone()]).await.unwrap();
    assert_eq!(claim(&store, NOW_MS + 1, 1_000, 9).await.len(), 2);
    let gone = Settlement::Dead {
        reason: "gone".to_owned(),
    };
    let dead = commit.deliveries[0].id;
    store.settle(dead, attempt(5, None), gone).await.unwrap();
    drop(store);

    let store = open(folder.path());
    let again = store.append(new_event("a", "1", "x")).await.unwrap();
    assert_eq!((again.id, again.duplicate), (first, true));
    let open_events = store.backlog(&tenant, None, 9).await.unwrap();
    assert_eq!(
        open_events.iter().map(|it| it.id).collect::<Vec<_>>(),
        [second]
    );
    assert_eq!(store.held(None, None, 9).await.unwrap(), commit.held);
    assert_eq!(
        store.dead(&Which::default(), 9).await.unwrap().deliveries[0].id,
        dead
    );
    let claimed = claim(&store, NOW_MS + 1, 1_000, 9).await;
    assert_eq!(claimed, commit.deliveries[1..]);
    let story = store.story(first).await.unwrap().unwrap();
    assert_eq!(story.decisions, commit.decisions);
    assert_eq!(story.deliveries.len(), 2);
}

#[tokio::test]
async fn ids_grow_although_the_clock_went_back() {
    let folder = TempDir::new().unwrap();
    let mut last = None;
    for back_ms in [0, 1_000, 365 * 86_400_000] {
        let store = open(folder.path());
        for tenant in ["z", "a"] {
            let mut event = anonymous(tenant, "x");
            event.received_ms -= back_ms;
            let id = store.append(event).await.unwrap().id;
            assert!(Some(id) > last);
            last = Some(id);
        }
    }
}

#[test]
fn a_store_of_another_version_is_refused() {
    let folder = TempDir::new().unwrap();
    drop(open(folder.path()));
    let change = |change: &dyn Fn(&::sled::Db)| {
        let config = ::sled::Config::new().path(folder.path());
        let db = config.segment_size(SEGMENT_BYTES).open().unwrap();
        change(&db);
        db.flush().unwrap();
    };
    change(&|db| drop(db.insert(keys::FORMAT, "99")));
    let error = refused(folder.path());
    assert!(
        matches!(&error, Error::Format { found, .. } if found == "99"),
        "{error}"
    );
    change(&|db| {
        db.remove(keys::FORMAT).unwrap();
        db.insert("foreign", "row").unwrap();
    });
    let error = refused(folder.path());
    assert!(matches!(error, Error::Format { .. }), "{error}");
    change(&|db| {
        db.remove("foreign").unwrap();
        db.open_tree("foreign").unwrap().insert("a", "row").unwrap();
    });
    let error = refused(folder.path());
    assert!(matches!(error, Error::Format { .. }), "{error}");
}

#[test]
fn a_store_in_use_is_refused_and_opens_once_it_is_closed() {
    let folder = TempDir::new().unwrap();
    for _ in 0..20 {
        let store = open(folder.path());
        let error = refused(folder.path());
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        drop(store);
    }
}

#[test]
fn a_damaged_store_says_that_it_does_not_open() {
    let folder = TempDir::new().unwrap();
    drop(open(folder.path()));
    fs::write(folder.path().join("conf"), "no configuration of sled's").unwrap();
    let error = refused(folder.path());
    assert!(matches!(error, Error::Open { .. }), "{error}");
}

/// sled panics on some damage, when it opens or only when it reads: whoever looks gets a sentence.
#[tokio::test]
async fn a_store_that_is_damaged_further_on_is_told() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    let body = "x".repeat(8_000);
    for n in 0..2_000 {
        let event = anonymous("a", &format!("{n} {body}"));
        store.append(event).await.unwrap();
    }
    drop(store);
    let path = folder.path().join("db");
    let whole = fs::read(&path).unwrap();
    let rows = |report: &Report| report.kinds.get("event").map_or(0, |it| it.rows);
    assert_eq!(rows(&check(folder.path(), &mut |_| ()).unwrap()), 2_000);
    for part in 1..8 {
        let mut damaged = whole.clone();
        let at = whole.len() / 8 * part;
        damaged[at..at + 100_000].fill(0xa5);
        fs::write(&path, &damaged).unwrap();
        match check(folder.path(), &mut |_| ()) {
            Ok(report) => assert!(report.faults > 0 || rows(&report) == 2_000, "{report:?}"),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

#[tokio::test]
async fn appends_share_flushes() {
    let folder = TempDir::new().unwrap();
    let store = Arc::new(open(folder.path()));
    let mut tasks = JoinSet::new();
    for n in 0..200 {
        let store = Arc::clone(&store);
        tasks.spawn(async move { store.append(anonymous("a", &n.to_string())).await.unwrap() });
    }
    tasks.join_all().await;
    let flushes = store.shared.flushes.load(Ordering::Relaxed);
    assert!(
        (1..50).contains(&flushes),
        "{flushes} flushes for 200 appends"
    );
    // What changes nothing costs no flush.
    let event = store.append(new_event("a", "1", "x")).await.unwrap().id;
    store.append(new_event("a", "1", "x")).await.unwrap();
    let unknown = DeliveryId::new(event, &name("r"), 0);
    let done = attempt(NOW_MS, None);
    store
        .settle(unknown, done, Settlement::Delivered)
        .await
        .unwrap();
    assert_eq!(store.shared.flushes.load(Ordering::Relaxed), flushes + 1);
}

#[tokio::test]
async fn a_full_queue_refuses_appends_and_lets_commits_wait() {
    let folder = TempDir::new().unwrap();
    let few = Options {
        queue_max: 4,
        group_max: 1,
        ..options()
    };
    let store = Arc::new(SledStore::open(folder.path(), few).unwrap());
    let mut appends = JoinSet::new();
    let mut commits = JoinSet::new();
    for n in 0..64 {
        let (one, other) = (Arc::clone(&store), Arc::clone(&store));
        appends.spawn(async move { one.append(anonymous("a", &n.to_string())).await });
        let tenant = name(&format!("t{n}"));
        commits.spawn(async move {
            let event = EventId::next(NOW_MS, None);
            let commit = commit_due(tenant.as_str(), event, "r", &[NOW_MS]);
            other.commit(&tenant, vec![commit]).await
        });
    }
    let commits = commits.join_all().await;
    assert!(commits.iter().all(Result::is_ok));
    let appends = appends.join_all().await;
    assert!(appends.iter().any(|it| matches!(it, Err(Error::Busy(_)))));
    let stored = appends.iter().filter(|it| it.is_ok()).count();
    assert_eq!(
        store.backlog(&name("a"), None, 100).await.unwrap().len(),
        stored
    );
}

#[tokio::test]
async fn forgotten_duplicates_leave_the_disk() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path());
    for n in 0..40 {
        let mut event = new_event("a", &n.to_string(), "x");
        event.received_ms += n * WINDOW_MS / 8;
        store.append(event).await.unwrap();
    }
    let rows = store.shared.db.scan_prefix([keys::DUPLICATE]).count();
    // The window, and one bucket that is not wholly over.
    assert!(rows <= 8 + 3, "{rows} rows");
}

/// Names the test that a child process runs, and the folder of its store.
const CHILD: &str = "HOOKSIEVE_TEST_STORE_CHILD";

fn child(test: &str, folder: &Path, shell: &str) -> Process {
    let mut child = Process::new("sh");
    child
        .arg("-c")
        .arg(format!("{shell} exec \"$0\" --exact --nocapture {test}"))
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    child
}

/// Tells the parent process something; the test harness has its own lines on stdout.
fn tell(word: &str, what: impl Display) {
    let mut out = std::io::stdout().lock();
    // The parent may be gone already.
    let _ = writeln!(out, "\n{word} {what}").and_then(|()| out.flush());
}

/// What the killed child does: appends from many tasks, commits, settles, and tells what was
/// acknowledged.
async fn work_until_killed(store: Arc<SledStore>) {
    let mut tasks = JoinSet::new();
    for n in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let tenant = format!("t{n}");
            loop {
                let event = anonymous(&tenant, &"x".repeat(2_000));
                let id = store.append(event).await.unwrap().id;
                tell("appended", id);
                let commit = commit_due(&tenant, id, "triage", &[NOW_MS]);
                let delivery = commit.deliveries[0].id;
                store.commit(&name(&tenant), vec![commit]).await.unwrap();
                tell("committed", id);
                let done = attempt(NOW_MS, None);
                store
                    .settle(delivery, done, Settlement::Delivered)
                    .await
                    .unwrap();
                tell("settled", delivery);
            }
        });
    }
    tasks.join_next().await;
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let store = Arc::new(open(Path::new(&folder)));
        Runtime::new().unwrap().block_on(work_until_killed(store));
        return;
    }
    let test = "store::sled::tests::what_was_acknowledged_survives_a_kill";
    let folder = TempDir::new().unwrap();
    let mut told = Vec::new();
    for round in 0..4 {
        let mut child = child(test, folder.path(), "").spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            BufReader::new(out)
                .lines()
                .map_while(Result::ok)
                .collect::<Vec<_>>()
        });
        thread::sleep(Duration::from_millis(300 + 110 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        told.extend(reader.join().unwrap());

        let store = open(folder.path());
        Runtime::new().unwrap().block_on(async {
            for line in &told {
                match line.split_once(' ') {
                    Some(("appended", id)) => {
                        let id = id.parse().unwrap();
                        assert!(store.event(id).await.unwrap().is_some(), "{line}");
                    }
                    Some(("committed", id)) => {
                        let story = store.story(id.parse().unwrap()).await.unwrap().unwrap();
                        assert!(story.decided, "{line}");
                        assert_eq!((story.decisions.len(), story.deliveries.len()), (1, 1));
                    }
                    Some(("settled", id)) => {
                        let id = id.parse().unwrap();
                        let state = store.delivery(id).await.unwrap().unwrap().state;
                        assert_eq!(state, State::Delivered { at_ms: NOW_MS }, "{line}");
                    }
                    _ => {}
                }
            }
        });
    }
    let settled = told
        .iter()
        .filter(|line| line.starts_with("settled"))
        .count();
    assert!(settled > 10, "the child did too little: {settled} settled");
}

/// The limit on file sizes stands in for a full disk.
#[test]
fn a_failed_write_breaks_the_store_and_loses_nothing_acknowledged() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let store = open(Path::new(&folder));
        Runtime::new().unwrap().block_on(async {
            loop {
                match store.append(anonymous("a", &"x".repeat(20_000))).await {
                    Ok(appended) => tell("appended", appended.id),
                    Err(error) => {
                        assert!(matches!(error, Error::Broken { .. }), "{error}");
                        break;
                    }
                }
            }
            let error = store.append(anonymous("a", "x")).await.unwrap_err();
            assert!(matches!(error, Error::Broken { .. }), "{error}");
            let error = store.backlog(&name("a"), None, 1).await.unwrap_err();
            assert!(matches!(error, Error::Broken { .. }), "{error}");
            tell("broken", "as it should be");
        });
        // The process ends here as the engine would; sled's own destructors may not.
        std::process::exit(0);
    }
    let test = "store::sled::tests::a_failed_write_breaks_the_store_and_loses_nothing_acknowledged";
    let folder = TempDir::new().unwrap();
    let limited = child(test, folder.path(), "trap '' XFSZ; ulimit -f 16384;")
        .output()
        .unwrap();
    let told = String::from_utf8(limited.stdout).unwrap();
    assert!(told.contains("broken as it should be"), "{told}");
    let ids = told
        .lines()
        .filter_map(|line| line.strip_prefix("appended "));
    let expected: Vec<EventId> = ids.map(|id| id.parse().unwrap()).collect();
    assert!(expected.len() > 10);
    let store = open(folder.path());
    let events = Runtime::new()
        .unwrap()
        .block_on(store.backlog(&name("a"), None, usize::MAX));
    let found: Vec<_> = events.unwrap().iter().map(|event| event.id).collect();
    assert!(
        found.starts_with(&expected),
        "{} of {}",
        found.len(),
        expected.len()
    );
}

/// One thing that can happen to a store. Moments are steps of a clock that moves on.
#[derive(Clone, Debug)]
enum Step {
    Append {
        tenant: u8,
        sender_id: Option<u8>,
        body: u8,
        ahead_ms: i64,
    },
    Commit {
        tenant: u8,
        events: usize,
        deliveries: u8,
        held: bool,
    },
    Claim {
        ahead_ms: i64,
        limit: usize,
    },
    Settle {
        which: Index,
        how: u8,
    },
    Resolve {
        which: Index,
    },
    Purge {
        which: Index,
    },
    Forget {
        behind_ms: i64,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<Index>;
    prop_oneof![
        6 => (0..3u8, proptest::option::of(0..3u8), 0..2u8, -WINDOW_MS..WINDOW_MS).prop_map(
            |(tenant, sender_id, body, ahead_ms)| Step::Append { tenant, sender_id, body, ahead_ms }
        ),
        4 => (0..3u8, 1..4usize, 0..4u8, any::<bool>()).prop_map(
            |(tenant, events, deliveries, held)| Step::Commit { tenant, events, deliveries, held }
        ),
        3 => (0..2_000i64, 0..6usize).prop_map(|(ahead_ms, limit)| Step::Claim { ahead_ms, limit }),
        4 => (which(), 0..3u8).prop_map(|(which, how)| Step::Settle { which, how }),
        1 => which().prop_map(|which| Step::Resolve { which }),
        1 => which().prop_map(|which| Step::Purge { which }),
        2 => (-100..2_000i64).prop_map(|behind_ms| Step::Forget { behind_ms }),
        1 => Just(Step::Reopen),
    ]
}

/// A store, with what it gave out in the order of the steps. The ids themselves differ from store to
/// store, so everything is compared by its place here.
struct Run {
    store: Arc<dyn Store>,
    events: Vec<(u8, EventId)>,
    deliveries: Vec<DeliveryId>,
    held: Vec<(u8, EventId)>,
    now_ms: i64,
    /// Counts the moments at which something falls due.
    moments: i64,
    seen: Vec<String>,
}

/// The outbox's clock ticks finer than the log's, so that no two moments in it are the same and ids
/// never decide an order.
const TICKS: i64 = 1_000_000;

impl Run {
    fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            events: Vec::new(),
            deliveries: Vec::new(),
            held: Vec::new(),
            now_ms: NOW_MS,
            moments: 0,
            seen: Vec::new(),
        }
    }

    fn event(&self, id: EventId) -> usize {
        self.events.iter().position(|(_, it)| *it == id).unwrap()
    }

    fn delivery(&self, id: DeliveryId) -> usize {
        self.deliveries.iter().position(|it| *it == id).unwrap()
    }

    fn see(&mut self, what: impl std::fmt::Debug) {
        self.seen.push(format!("{what:?}"));
    }

    fn moment(&mut self, ahead_ms: i64) -> i64 {
        self.moments += 1;
        (self.now_ms + ahead_ms) * TICKS + self.moments
    }

    fn make(&mut self, tenant: u8, event: EventId, rule: &str, position: usize) -> Delivery {
        let due_ms = self.moment(self.deliveries.len() as i64 * 7_919 % 3_001);
        let delivery = delivery(&format!("t{tenant}"), event, rule, position, due_ms);
        self.deliveries.push(delivery.id);
        delivery
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Append {
                tenant,
                sender_id,
                body,
                ahead_ms,
            } => {
                self.now_ms += ahead_ms.max(&0) / 3;
                let mut event = anonymous(&format!("t{tenant}"), &body.to_string());
                event.sender_id = sender_id.map(|id| id.to_string());
                event.received_ms = self.now_ms + ahead_ms.min(&0);
                let appended = self.store.append(event).await.unwrap();
                if !appended.duplicate {
                    self.events.push((*tenant, appended.id));
                }
                self.see((self.event(appended.id), appended.duplicate));
            }
            Step::Commit {
                tenant,
                events,
                deliveries,
                held: holds,
            } => {
                let name = name(&format!("t{tenant}"));
                let backlog = self.store.backlog(&name, None, *events).await.unwrap();
                let mut commits = Vec::new();
                for event in backlog {
                    let mut commit = commit_due("x", event.id, "triage", &[]);
                    for position in 0..*deliveries {
                        let made = self.make(*tenant, event.id, "triage", position.into());
                        commit.deliveries.push(made);
                    }
                    if *holds {
                        commit.held.push(held(name.as_str(), event.id, "held"));
                        self.held.push((*tenant, event.id));
                    }
                    commits.push(commit);
                }
                self.store.commit(&name, commits.clone()).await.unwrap();
                self.store.commit(&name, commits).await.unwrap();
            }
            Step::Claim { ahead_ms, limit } => {
                self.now_ms += ahead_ms;
                let now_ms = self.now_ms * TICKS;
                let claimed = claim(&*self.store, now_ms, 900 * TICKS, *limit).await;
                let claimed: Vec<_> = claimed.iter().map(|it| self.delivery(it.id)).collect();
                self.see(claimed);
            }
            Step::Settle { which, how } => {
                if self.deliveries.is_empty() {
                    return;
                }
                let id = *which.get(&self.deliveries);
                let at_ms = self.moment(0);
                let settlement = match how {
                    0 => Settlement::Delivered,
                    1 => Settlement::RetryAt {
                        due_ms: self.moment(500),
                    },
                    _ => Settlement::Dead {
                        reason: "gone".to_owned(),
                    },
                };
                self.store
                    .settle(id, attempt(at_ms, None), settlement)
                    .await
                    .unwrap();
            }
            Step::Resolve { which } => {
                if self.held.is_empty() {
                    return;
                }
                let (tenant, event) = *which.get(&self.held);
                let made = self.make(tenant, event, "held", self.deliveries.len());
                let name = name(&format!("t{tenant}"));
                let record = decided(event, "held");
                let resolved = self
                    .store
                    .resolve_held(&name, record, vec![made])
                    .await
                    .unwrap();
                self.see(resolved);
            }
            Step::Purge { which } => {
                if self.deliveries.is_empty() {
                    return;
                }
                let id = *which.get(&self.deliveries);
                let purged = self.store.purge(vec![id]).await.unwrap();
                self.see(purged);
            }
            Step::Forget { behind_ms } => {
                let before_ms = self.now_ms - behind_ms;
                let (mut from, mut forgotten) = (None, 0);
                loop {
                    let swept = self.store.forget(before_ms, None, from).await.unwrap();
                    forgotten += swept.forgotten;
                    from = swept.next;
                    if from.is_none() {
                        break;
                    }
                }
                self.see(forgotten);
            }
            // Claims end with the process; the model ends them by claiming after the lease.
            Step::Reopen => self.now_ms += 10_000,
        }
        self.look().await;
    }

    /// Notes all that can be seen from outside.
    async fn look(&mut self) {
        let due_ms = self.store.next_due().await.unwrap();
        self.see(due_ms);
        for tenant in [Some("t0"), Some("t1"), Some("t2"), None] {
            let tenant = tenant.map(name);
            if let Some(tenant) = &tenant {
                let backlog = self.store.backlog(tenant, None, 100).await.unwrap();
                let ids: Vec<_> = backlog.iter().map(|it| self.event(it.id)).collect();
                self.see(ids);
            }
            let held = self.store.held(tenant.as_ref(), None, 5).await.unwrap();
            let held: Vec<_> = held.iter().map(|it| self.event(it.event)).collect();
            let which = Which {
                tenant,
                ..Which::default()
            };
            let dead = self.store.dead(&which, 5).await.unwrap().deliveries;
            let dead: Vec<_> = dead.iter().map(|it| self.delivery(it.id)).collect();
            self.see((held, dead));
        }
        for (_, event) in self.events.clone() {
            let Some(story) = self.store.story(event).await.unwrap() else {
                self.seen.push("forgotten".to_owned());
                continue;
            };
            let deliveries = story.deliveries.iter();
            let deliveries: Vec<_> = deliveries
                .map(|it| (self.delivery(it.id), &it.state))
                .collect();
            let decisions: Vec<_> = story.decisions.iter().map(|it| &it.rule).collect();
            let seen = format!(
                "{:?}",
                (story.decided, deliveries, decisions, story.held.len())
            );
            self.seen.push(seen);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn it_shows_what_the_model_shows(steps in proptest::collection::vec(step(), 1..40)) {
        let folder = TempDir::new().unwrap();
        Runtime::new().unwrap().block_on(async {
            let mut model = Run::new(Arc::new(MemoryStore::new(WINDOW_MS)));
            let mut sled = Run::new(Arc::new(open(folder.path())));
            for step in &steps {
                if matches!(step, Step::Reopen) {
                    // Both look once more after all leases are over: then a restart shows nothing.
                    for run in [&mut model, &mut sled] {
                        claim(&*run.store, (run.now_ms + 10_000) * TICKS, 0, 0).await;
                    }
                    let closed: Arc<dyn Store> = Arc::new(MemoryStore::new(0));
                    drop(std::mem::replace(&mut sled.store, closed));
                    sled.store = Arc::new(open(folder.path()));
                }
                model.step(step).await;
                sled.step(step).await;
                assert_eq!(model.seen, sled.seen, "after {step:?}");
            }
            let closed: Arc<dyn Store> = Arc::new(MemoryStore::new(0));
            drop(std::mem::replace(&mut sled.store, closed));
            let report = check(folder.path(), &mut |_| {}).unwrap();
            assert!(report.told.is_empty(), "{:?}", report.told);
        });
    }
}
