//! Who is served next: a line for each tenant, and the least-served tenant first.
//!
//! Service is processor time. A tenant that comes in after it had nothing to do begins a turn ahead of
//! the least served of those that are busy: it is served soon, and cannot save up time while it rests.
//! What it used beyond that stays on its account until the others have caught up.
//!
//! Each line has a home, the thread's seat where its instances wait. A seat serves its own lines until
//! another's have waited for [`PATIENCE`] and are behind by more than [`AHEAD_MAX`].
//!
//! Guarantees:
//! - While one of a tenant's jobs is overdue no other of its jobs begins, and for [`ALONE_FOR`] after
//!   that they run one at a time.
//! - Within a tenant who came first is served first; what is given back between two rules goes to the
//!   head of its line.
//!
//! There are no threads and no clocks here: the moment is the caller's.

use super::TURN;
use crate::id::Name;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a job waits for the seat that it belongs to. To start an instance elsewhere takes about as
/// long.
pub(super) const PATIENCE: Duration = Duration::from_millis(1);

/// By how much service a seat's own lines may be ahead of others that wait: below it, going to where no
/// instance is warm costs more than it evens out.
pub(super) const AHEAD_MAX: Duration = Duration::from_millis(4);

/// How long a tenant's jobs run one at a time after one of them was overdue: otherwise it could take as
/// many threads as there are, again and again.
pub(super) const ALONE_FOR: Duration = Duration::from_secs(10);

/// How many threads may not come back from one tenant's rules. Then its events wait, until one comes back or
/// the engine is started anew: whoever knows how to hold a thread for ever is not to have all of them.
pub const LOST_OF_TENANT_MAX: usize = 4;

/// How many of a tenant's jobs may wait; beyond it, whoever brings one waits.
pub(super) const WAITING_OF_TENANT_MAX: usize = 128;

/// How many lines are kept before those are looked for that say nothing any more.
const LINES_KEPT: usize = 1_024;

/// All that waits.
pub(super) struct Queue<T> {
    lines: Vec<Option<Line<T>>>,
    free: Vec<usize>,
    by_tenant: HashMap<Name, usize>,
    /// The lines that have a job which may begin, of each seat: the least served first.
    homes: Vec<BTreeSet<Place>>,
    /// The lines that have a job running, once for each.
    running: Vec<usize>,
    /// How much the least served of the busy had when it was looked for last: it only grows.
    floor_ns: u64,
    /// The most that a line has.
    most_ns: u64,
    places: u64,
    waiting: usize,
    purge_at: usize,
}

/// Where a line stands: its service, then since when it stands there, then which it is.
type Place = (u64, u64, usize);

struct Line<T> {
    tenant: Name,
    home: usize,
    service_ns: u64,
    place: Option<Place>,
    waiting: VecDeque<Waiting<T>>,
    running: usize,
    overdue: usize,
    alone_until: Option<Instant>,
    /// Of its threads, those that do not come back.
    lost: usize,
    room: Arc<Semaphore>,
}

struct Waiting<T> {
    since: Instant,
    job: T,
    _room: Option<OwnedSemaphorePermit>,
}

/// What a seat does next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// The job of a line, which is told when it ends.
    Run {
        line: usize,
        job: T,
    },
    /// Nothing yet: what waits belongs to another seat for so long.
    Wait(Duration),
    Nothing,
}

impl<T> Queue<T> {
    pub(super) fn new(seats: usize) -> Self {
        Self {
            lines: Vec::new(),
            free: Vec::new(),
            by_tenant: HashMap::new(),
            homes: (0..seats).map(|_| BTreeSet::new()).collect(),
            running: Vec::new(),
            floor_ns: 0,
            most_ns: 0,
            places: 0,
            waiting: 0,
            purge_at: LINES_KEPT,
        }
    }

    /// The seat that a tenant belongs to.
    pub(super) fn home(&self, tenant: &Name) -> usize {
        let mut hasher = DefaultHasher::new();
        tenant.hash(&mut hasher);
        hasher.finish() as usize % self.homes.len()
    }

    /// How many lines have a job that may begin.
    pub(super) fn lines_waiting(&self) -> usize {
        self.homes.iter().map(BTreeSet::len).sum()
    }

    /// How many jobs wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The room for a tenant's jobs that wait.
    pub(super) fn room(&mut self, tenant: &Name) -> Arc<Semaphore> {
        let line = self.line(tenant);
        self.of(line).room.clone()
    }

    /// Takes a job in at the end of its tenant's line; gives the line's home.
    pub(super) fn push(
        &mut self,
        tenant: &Name,
        job: T,
        room: Option<OwnedSemaphorePermit>,
        now: Instant,
    ) -> usize {
        let line = self.line(tenant);
        if self.of(line).is_idle() {
            let floor_ns = self.floor();
            let line = self.of(line);
            let start_ns = floor_ns.saturating_sub(nanos(TURN));
            line.service_ns = line.service_ns.max(start_ns);
        }
        self.of(line).waiting.push_back(Waiting {
            since: now,
            job,
            _room: room,
        });
        self.waiting += 1;
        self.refresh(line, now);
        self.of(line).home
    }

    /// What a seat does next; `hurry` where nothing is to wait for its own seat.
    pub(super) fn next(&mut self, seat: usize, now: Instant, hurry: bool) -> Next<T> {
        let mut soonest: Option<Duration> = None;
        let mut others: Option<Place> = None;
        for (home, lines) in self.homes.iter().enumerate() {
            let Some(&place) = lines.first().filter(|_| home != seat) else {
                continue;
            };
            let waited = self.lines[place.2].as_ref().map_or(PATIENCE, |line| {
                let oldest = line.waiting.front();
                oldest.map_or(PATIENCE, |it| now.saturating_duration_since(it.since))
            });
            if hurry || waited >= PATIENCE {
                others = Some(others.map_or(place, |it| it.min(place)));
            } else {
                let left = PATIENCE - waited;
                soonest = Some(soonest.map_or(left, |it| it.min(left)));
            }
        }
        let own = self.homes[seat].first().copied();
        let place = match (own, others) {
            (Some(own), Some(other)) if own.0 > other.0.saturating_add(nanos(AHEAD_MAX)) => other,
            (Some(own), _) => own,
            (None, Some(other)) => other,
            (None, None) => return soonest.map_or(Next::Nothing, Next::Wait),
        };
        let id = place.2;
        let line = self.of(id);
        let Some(taken) = line.waiting.pop_front() else {
            // A place is held by a line that waits, and by no other.
            return Next::Nothing;
        };
        line.running += 1;
        self.running.push(id);
        self.waiting -= 1;
        self.refresh(id, now);
        Next::Run {
            line: id,
            job: taken.job,
        }
    }

    /// Ends a job of this line that used so much, or gives it back to be gone on with.
    pub(super) fn end(
        &mut self,
        line: usize,
        used: Duration,
        was_overdue: bool,
        back: Option<T>,
        now: Instant,
    ) {
        let it = self.of(line);
        it.running -= 1;
        it.overdue -= usize::from(was_overdue);
        it.service_ns = it.service_ns.saturating_add(nanos(used));
        let service_ns = it.service_ns;
        if let Some(job) = back {
            it.waiting.push_front(Waiting {
                since: now,
                job,
                _room: None,
            });
            self.waiting += 1;
        }
        self.most_ns = self.most_ns.max(service_ns);
        if let Some(at) = self.running.iter().position(|it| *it == line) {
            self.running.swap_remove(at);
        }
        self.refresh(line, now);
        if self.running.is_empty() && self.waiting == 0 {
            // Nobody is busy: what anybody used took nothing from another, and all begin alike.
            self.floor_ns = self.most_ns.saturating_add(nanos(TURN));
        }
    }

    /// A job of this line runs for too long: its others wait.
    pub(super) fn overdue(&mut self, line: usize, now: Instant) {
        let it = self.of(line);
        it.overdue += 1;
        it.alone_until = Some(now + ALONE_FOR);
        self.refresh(line, now);
    }

    /// A thread does not come back from a job of this line; after so many of them nothing of it begins.
    pub(super) fn lost(&mut self, line: usize, now: Instant) {
        self.of(line).lost += 1;
        self.refresh(line, now);
    }

    /// It came back after all.
    pub(super) fn found(&mut self, line: usize, now: Instant) {
        self.of(line).lost -= 1;
        self.refresh(line, now);
    }

    /// Whose line it is.
    pub(super) fn tenant(&self, line: usize) -> Option<&Name> {
        Some(&self.lines.get(line)?.as_ref()?.tenant)
    }

    fn of(&mut self, line: usize) -> &mut Line<T> {
        // Lines go only when they are idle, and a number is held by who waits or runs.
        self.lines[line].as_mut().expect("a line that is in use")
    }

    fn line(&mut self, tenant: &Name) -> usize {
        if let Some(line) = self.by_tenant.get(tenant) {
            return *line;
        }
        self.purge();
        let made = Line {
            tenant: tenant.clone(),
            home: self.home(tenant),
            service_ns: 0,
            place: None,
            waiting: VecDeque::new(),
            running: 0,
            overdue: 0,
            alone_until: None,
            lost: 0,
            room: Arc::new(Semaphore::new(WAITING_OF_TENANT_MAX)),
        };
        let line = match self.free.pop() {
            Some(line) => {
                self.lines[line] = Some(made);
                line
            }
            None => {
                self.lines.push(Some(made));
                self.lines.len() - 1
            }
        };
        self.by_tenant.insert(tenant.clone(), line);
        line
    }

    /// Forgets lines that would begin as a new one does.
    fn purge(&mut self) {
        if self.by_tenant.len() < self.purge_at {
            return;
        }
        let start_ns = self.floor().saturating_sub(nanos(TURN));
        for (id, line) in self.lines.iter_mut().enumerate() {
            let gone = line.take_if(|it| it.says_nothing(start_ns));
            if let Some(gone) = gone {
                self.by_tenant.remove(&gone.tenant);
                self.free.push(id);
            }
        }
        self.purge_at = LINES_KEPT.max(self.by_tenant.len() * 2);
    }

    /// How much the least served of the busy has.
    fn floor(&mut self) -> u64 {
        let waiting = self.homes.iter().filter_map(BTreeSet::first);
        let waiting = waiting.map(|place| place.0);
        let running = self.running.iter();
        let running = running.filter_map(|it| Some(self.lines[*it].as_ref()?.service_ns));
        if let Some(least) = waiting.chain(running).min() {
            self.floor_ns = self.floor_ns.max(least);
        }
        self.floor_ns
    }

    /// Puts a line where it belongs after something about it changed.
    fn refresh(&mut self, id: usize, now: Instant) {
        let line = self.of(id);
        let alone = line.overdue > 0 || line.alone_until.is_some_and(|until| now < until);
        let rests = line.lost >= LOST_OF_TENANT_MAX || alone && line.running > 0;
        let may_begin = !line.waiting.is_empty() && !rests;
        let stands = line.place.is_some_and(|place| place.0 == line.service_ns);
        if may_begin && stands {
            return;
        }
        let (home, service_ns, before) = (line.home, line.service_ns, line.place.take());
        if let Some(before) = before {
            self.homes[home].remove(&before);
        }
        if may_begin {
            self.places += 1;
            let place = (service_ns, self.places, id);
            self.homes[home].insert(place);
            self.of(id).place = Some(place);
        }
    }
}

impl<T> Line<T> {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }

    /// Whether it is as a new one would be.
    fn says_nothing(&self, start_ns: u64) -> bool {
        self.is_idle() && self.lost == 0 && self.service_ns <= start_ns
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// One seat, and jobs that are called as their tenant.
    struct One(Queue<&'static str>, Instant);

    impl One {
        fn new() -> Self {
            Self(Queue::new(1), Instant::now())
        }

        fn push(&mut self, tenant: &'static str, count: usize) {
            for _ in 0..count {
                self.0.push(&name(tenant), tenant, None, self.1);
            }
        }

        /// Serves one that uses so much.
        fn serve(&mut self, used: Duration) -> &'static str {
            self.1 += used;
            match self.0.next(0, self.1, false) {
                Next::Run { line, job } => {
                    self.0.end(line, used, false, None, self.1);
                    job
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn the_least_served_is_served_first() {
        let mut one = One::new();
        one.push("slow", 9);
        assert_eq!(one.serve(10 * MS), "slow");
        one.push("quick", 30);
        // Each is behind by what the other used: ten of the quick for one of the slow.
        let served: Vec<_> = (0..26)
            .map(|_| {
                let slow = one.0.homes[0].first().unwrap().2 == 0;
                one.serve(if slow { 10 * MS } else { MS })
            })
            .collect();
        let slow = served.iter().filter(|it| **it == "slow").count();
        assert!((2..=3).contains(&slow), "{served:?}");
        assert_eq!(served[0], "quick");
    }

    #[test]
    fn who_comes_in_is_not_behind_a_backlog_and_has_saved_up_nothing() {
        let mut one = One::new();
        one.push("a", 500);
        one.push("b", 500);
        for _ in 0..600 {
            one.serve(MS);
        }
        // However long it was away, it is no more than a turn ahead.
        one.push("new", 300);
        let served: Vec<_> = (0..30).map(|_| one.serve(MS)).collect();
        assert_eq!(served[..2], ["new", "new"]);
        let new = served.iter().filter(|it| **it == "new").count();
        assert!((11..=13).contains(&new), "{new}: {served:?}");
    }

    #[test]
    fn what_was_used_beyond_a_share_is_not_forgotten_by_going_away_for_a_moment() {
        let mut one = One::new();
        one.push("a", 100);
        one.push("bursts", 1);
        // It never has more than one waiting, and uses ten times as much with each.
        let mut bursts = 0;
        for _ in 0..55 {
            let place = *one.0.homes[0].first().unwrap();
            let its = one.0.tenant(place.2).unwrap().as_str() == "bursts";
            one.serve(if its { 10 * MS } else { MS });
            if its {
                bursts += 1;
                one.push("bursts", 1);
            }
        }
        assert!((4..=6).contains(&bursts), "{bursts}");
    }

    #[test]
    fn within_a_tenant_the_first_is_the_first_and_what_is_given_back_goes_to_the_head() {
        let mut queue = Queue::new(1);
        let now = Instant::now();
        for job in [1, 2, 3] {
            queue.push(&name("a"), job, None, now);
        }
        let Next::Run { line, job: 1 } = queue.next(0, now, false) else {
            panic!()
        };
        queue.end(line, MS, false, Some(1), now);
        let order: Vec<_> = std::iter::from_fn(|| match queue.next(0, now, false) {
            Next::Run { line, job } => {
                queue.end(line, MS, false, None, now);
                Some(job)
            }
            _ => None,
        })
        .collect();
        assert_eq!(order, [1, 2, 3]);
    }

    /// Two tenants of different homes.
    fn two_homes(queue: &Queue<&'static str>) -> (Name, Name) {
        let mut names = (0..).map(|n| name(&format!("t{n}")));
        let first = names.find(|it| queue.home(it) == 0).unwrap();
        (first, names.find(|it| queue.home(it) == 1).unwrap())
    }

    #[test]
    fn a_line_stays_at_home_until_it_has_waited() {
        let mut queue = Queue::new(2);
        let (first, second) = two_homes(&queue);
        let now = Instant::now();
        queue.push(&second, "another's", None, now);
        queue.push(&first, "own", None, now);
        let mut taken = |now| match queue.next(0, now, false) {
            Next::Run { job, .. } => Ok(job),
            Next::Wait(wait) => Err(wait),
            Next::Nothing => panic!(),
        };
        assert_eq!(taken(now), Ok("own"));
        assert_eq!(taken(now), Err(PATIENCE));
        assert_eq!(taken(now + PATIENCE / 4), Err(PATIENCE * 3 / 4));
        assert_eq!(taken(now + PATIENCE), Ok("another's"));
    }

    #[test]
    fn a_seat_leaves_its_own_lines_only_when_they_are_well_ahead() {
        let mut queue = Queue::new(2);
        let (first, second) = two_homes(&queue);
        let now = Instant::now();
        for _ in 0..20 {
            queue.push(&first, "own", None, now);
            queue.push(&second, "another's", None, now);
        }
        let later = now + PATIENCE;
        let served: Vec<_> = (0..6)
            .map(|_| match queue.next(0, later, false) {
                Next::Run { line, job } => {
                    queue.end(line, MS, false, None, later);
                    job
                }
                _ => panic!(),
            })
            .collect();
        assert_eq!(served[..5], ["own"; 5]);
        assert_eq!(served[5], "another's");
    }

    #[test]
    fn while_one_is_overdue_the_others_of_its_tenant_wait_and_then_go_one_at_a_time() {
        let mut queue = Queue::new(1);
        let mut now = Instant::now();
        for job in 1..=4 {
            queue.push(&name("a"), job, None, now);
        }
        let begin = |queue: &mut Queue<i32>, now| match queue.next(0, now, false) {
            Next::Run { line, job } => Some((line, job)),
            _ => None,
        };
        let (line, first) = begin(&mut queue, now).unwrap();
        assert_eq!(first, 1);
        queue.overdue(line, now);
        assert_eq!(begin(&mut queue, now), None);
        assert_eq!((queue.lines_waiting(), queue.waiting()), (0, 3));
        // Another tenant's may.
        queue.push(&name("b"), 9, None, now);
        let (other, nine) = begin(&mut queue, now).unwrap();
        assert_eq!(nine, 9);
        queue.end(other, MS, false, None, now);
        queue.end(line, MS, true, None, now);
        assert!(begin(&mut queue, now).is_some());
        assert_eq!(begin(&mut queue, now), None, "one at a time");
        queue.end(line, MS, false, None, now);
        now += ALONE_FOR;
        assert!(begin(&mut queue, now).is_some());
        assert!(begin(&mut queue, now).is_some(), "as before");
    }

    #[test]
    fn a_tenant_that_has_lost_so_many_threads_waits_until_one_comes_back() {
        let mut queue = Queue::new(1);
        let now = Instant::now();
        for job in 0..=LOST_OF_TENANT_MAX {
            queue.push(&name("a"), job, None, now);
        }
        let mut lines = Vec::new();
        for _ in 0..LOST_OF_TENANT_MAX {
            let Next::Run { line, job } = queue.next(0, now, false) else {
                panic!()
            };
            queue.lost(line, now);
            queue.end(line, MS, false, None, now);
            lines.push((line, job));
        }
        assert_eq!(queue.waiting(), 1);
        assert_eq!(queue.next(0, now, true), Next::Nothing);
        queue.push(&name("b"), 9, None, now);
        assert!(matches!(
            queue.next(0, now, false),
            Next::Run { job: 9, .. }
        ));
        queue.found(lines[0].0, now);
        assert!(matches!(
            queue.next(0, now, false),
            Next::Run {
                job: LOST_OF_TENANT_MAX,
                ..
            }
        ));
    }

    #[test]
    fn lines_that_say_nothing_are_forgotten() {
        let mut queue = Queue::new(1);
        let mut now = Instant::now();
        for n in 0..LINES_KEPT * 4 {
            queue.push(&name(&format!("t{n}")), n, None, now);
            let Next::Run { line, .. } = queue.next(0, now, false) else {
                panic!()
            };
            queue.end(line, MS, false, None, now);
            now += MS;
        }
        assert!(queue.by_tenant.len() <= LINES_KEPT);
        assert!(queue.lines.len() <= LINES_KEPT + 1);
    }
}
