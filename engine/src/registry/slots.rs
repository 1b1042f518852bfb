//! Whose turn it is to have the engine work at a module: to compile it, or to start it.
//!
//! ```text
//!   ask ──> waiting ──admit──> running ──leave──> its time is in the tenant's account
//!    │         │                                  (which empties by a budget's worth an hour)
//!    │         └── over its budget by then, or out of patience: told to come again
//!    └── over its budget: told so, and in how many seconds to come again
//! ```
//!
//! - A tenant has one at a time. Of those who wait, whoever has used least goes first.
//! - Work is long from [`LONG`] on, and from its first moment where its tenant had long work lately. What is
//!   long has half of the slots at most, and when newcomers have become long in more than that, two slots
//!   are lent: so nobody waits for long behind others' compile bombs. A tenant that has a thousand rules
//!   compiled, each in a moment, is not held for one of those.
//! - What is charged is what it took, also where a module was refused or nobody waits for it any more:
//!   a slot belongs to the work, and not to the call.
//! - It does not know what is done in a slot, and ends nothing: the work has limits of its own.

use super::Error;
use crate::id::Name;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// How many have one at once.
pub(super) const SLOTS: usize = 4;
/// In how many of them long work begins at most.
const LONG_SLOTS: usize = SLOTS / 2;
/// How many there are when some are lent because long ones do not end.
pub(super) const SLOTS_MAX: usize = SLOTS + 2;
/// What is long. A rule takes a tenth of a second.
const LONG: Duration = Duration::from_secs(3);
/// How long one waits for a slot.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How many accounts are remembered before those are forgotten that are empty.
const ACCOUNTS_REMEMBERED: usize = 4_096;
const HOUR: Duration = Duration::from_secs(3_600);

/// Slots with an account for each tenant.
pub(super) struct Slots(Mutex<State>);

struct State {
    queue: Queue,
    /// How those who wait are told.
    told: HashMap<u64, oneshot::Sender<Result<(), OverBudget>>>,
}

/// A tenant's place, from when it asks until its work is done.
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: u64,
    cost: Option<Duration>,
}

impl Slot {
    /// Ends it, and charges this much.
    pub(super) fn end(mut self, cost: Duration) {
        self.cost = Some(cost);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.slots.state();
        let now = Instant::now();
        state.told.remove(&self.id);
        state.queue.leave(self.id, self.cost, now);
        state.admit(now);
    }
}

impl Slots {
    /// With this budget for a tenant and hour; `None` bounds nobody, and still has those go first who have
    /// used least.
    pub(super) fn new(per_hour: Option<Duration>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            queue: Queue::new(per_hour),
            told: HashMap::new(),
        })))
    }

    /// Waits for a slot.
    ///
    /// # Errors
    /// When the tenant has used its budget, or others have all slots for too long.
    pub(super) async fn enter(self: &Arc<Self>, tenant: &Name) -> Result<Slot, Error> {
        let until = Instant::now() + PATIENCE;
        let (slot, mut told) = {
            let mut state = self.state();
            let now = Instant::now();
            let id = state.queue.ask(tenant, now);
            let id = id.map_err(|over| Error::CompileTime(over.wait_s))?;
            let (tell, told) = oneshot::channel();
            state.told.insert(id, tell);
            state.admit(now);
            let slot = Slot {
                slots: self.clone(),
                id,
                cost: None,
            };
            (slot, told)
        };
        loop {
            let next = self.state().queue.next_long(Instant::now());
            let next = next.map_or(until, |next| next.min(until));
            tokio::select! {
                biased;
                told = &mut told => return match told {
                    Ok(Ok(())) => Ok(slot),
                    Ok(Err(over)) => Err(Error::CompileTime(over.wait_s)),
                    // Its sender goes with the slot, which is here.
                    Err(_) => Err(Error::Busy("other modules are being compiled")),
                },
                () = sleep_until(next) => {
                    let now = Instant::now();
                    if now >= until {
                        return Err(Error::Busy("other modules are being compiled"));
                    }
                    self.state().admit(now);
                }
            }
        }
    }

    /// How many are at work.
    pub(super) fn running(&self) -> usize {
        self.state().queue.running.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admit(&mut self, now: Instant) {
        for (id, outcome) in self.queue.admit(now) {
            if let Some(tell) = self.told.remove(&id) {
                // Whoever does not listen any more gives its slot back.
                let _ = tell.send(outcome);
            }
        }
    }
}

/// A tenant has used its budget; so many seconds until there is some again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OverBudget {
    wait_s: u32,
}

/// Who has a slot, who waits for one, and who has used how much.
struct Queue {
    per_hour: Option<Duration>,
    accounts: HashMap<Name, Account>,
    running: Vec<Running>,
    /// In the order in which they asked.
    waiting: Vec<(u64, Name)>,
    last: u64,
}

/// What a tenant had used at some moment, and how much of that in long work.
struct Account {
    used: Duration,
    long: Duration,
    at: Instant,
}

struct Running {
    id: u64,
    tenant: Name,
    since: Instant,
    /// Whether its tenant had long work lately.
    long_before: bool,
}

impl Running {
    fn is_long(&self, now: Instant) -> bool {
        self.long_before || now.duration_since(self.since) >= LONG
    }
}

/// How fast an account empties where there is no budget.
const PER_HOUR: Duration = Duration::from_secs(120);

impl Queue {
    fn new(per_hour: Option<Duration>) -> Self {
        Self {
            per_hour,
            accounts: HashMap::new(),
            running: Vec::new(),
            waiting: Vec::new(),
            last: 0,
        }
    }

    /// What a tenant has used, less what its hours gave back since.
    fn used(&self, tenant: &Name, now: Instant) -> Duration {
        self.account(tenant, now).used
    }

    fn account(&self, tenant: &Name, now: Instant) -> Account {
        match self.accounts.get(tenant) {
            Some(account) => self.by_now(account, now),
            None => Account {
                used: Duration::ZERO,
                long: Duration::ZERO,
                at: now,
            },
        }
    }

    fn by_now(&self, account: &Account, now: Instant) -> Account {
        let hours = now.duration_since(account.at).div_duration_f64(HOUR);
        let back = self.per_hour.unwrap_or(PER_HOUR).mul_f64(hours);
        Account {
            used: account.used.saturating_sub(back),
            long: account.long.saturating_sub(back),
            at: now,
        }
    }

    /// Whether a tenant has some of its budget left, however little: what it will take is not known.
    fn within(&self, tenant: &Name, now: Instant) -> Result<(), OverBudget> {
        let Some(per_hour) = self.per_hour else {
            return Ok(());
        };
        let used = self.used(tenant, now);
        if used < per_hour {
            return Ok(());
        }
        let hours = (used - per_hour).div_duration_f64(per_hour);
        // A whole second more, since what is there then has to be more than nothing.
        let wait_s = HOUR.mul_f64(hours).as_secs().saturating_add(1);
        Err(OverBudget {
            wait_s: u32::try_from(wait_s).unwrap_or(u32::MAX),
        })
    }

    /// Takes a place in the queue.
    fn ask(&mut self, tenant: &Name, now: Instant) -> Result<u64, OverBudget> {
        self.within(tenant, now)?;
        self.last += 1;
        self.waiting.push((self.last, tenant.clone()));
        Ok(self.last)
    }

    /// Gives slots to those whose turn it is, and refuses those whose budget is used up by now.
    fn admit(&mut self, now: Instant) -> Vec<(u64, Result<(), OverBudget>)> {
        let mut told = Vec::new();
        loop {
            let at_work: HashSet<&Name> = self.running.iter().map(|it| &it.tenant).collect();
            let free = self.waiting.iter().filter(|(_, it)| !at_work.contains(it));
            let next = free.min_by_key(|(id, tenant)| {
                let account = self.account(tenant, now);
                (!account.long.is_zero(), account.used, *id)
            });
            let Some((id, tenant)) = next.cloned() else {
                return told;
            };
            let outcome = self.within(&tenant, now);
            let long_before = !self.account(&tenant, now).long.is_zero();
            // Where this one has to wait, so have all the others.
            if outcome.is_ok() && !self.has_room(long_before, now) {
                return told;
            }
            self.waiting.retain(|(it, _)| *it != id);
            if outcome.is_ok() {
                self.running.push(Running {
                    id,
                    tenant,
                    since: now,
                    long_before,
                });
            }
            told.push((id, outcome));
        }
    }

    /// Whether there is a slot for one more, whose tenant had long work lately or not.
    fn has_room(&self, long_before: bool, now: Instant) -> bool {
        let all = self.running.len();
        let long = self.running.iter().filter(|it| it.is_long(now)).count();
        if long_before {
            all < SLOTS && long < LONG_SLOTS
        } else {
            all < SLOTS_MAX && all - long < SLOTS - long.min(LONG_SLOTS)
        }
    }

    /// When the next one becomes long, so that another may have a slot.
    fn next_long(&self, now: Instant) -> Option<Instant> {
        let short = self.running.iter().filter(|it| !it.is_long(now));
        short.map(|it| it.since + LONG).min()
    }

    /// Gives a place up, and charges what the work cost: the time that it had a slot where nobody says.
    fn leave(&mut self, id: u64, cost: Option<Duration>, now: Instant) {
        self.waiting.retain(|(it, _)| *it != id);
        let Some(at) = self.running.iter().position(|it| it.id == id) else {
            return;
        };
        let Running { tenant, since, .. } = self.running.swap_remove(at);
        let cost = cost.unwrap_or(now.duration_since(since));
        let mut account = self.account(&tenant, now);
        account.used += cost;
        if cost >= LONG {
            account.long += cost;
        }
        if self.accounts.len() >= ACCOUNTS_REMEMBERED {
            let accounts = std::mem::take(&mut self.accounts);
            let accounts = accounts.into_iter();
            let in_use = accounts.filter(|(_, it)| !self.by_now(it, now).used.is_zero());
            self.accounts = in_use.collect();
        }
        self.accounts.insert(tenant, account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Asks for these tenants, and tells who has a slot then.
    fn admitted(queue: &mut Queue, tenants: &[&str], now: Instant) -> Vec<u64> {
        for tenant in tenants {
            queue.ask(&name(tenant), now).unwrap();
        }
        let told = queue.admit(now).into_iter();
        told.map(|(id, outcome)| {
            outcome.unwrap();
            id
        })
        .collect()
    }

    #[test]
    fn there_are_so_many_slots_and_a_tenant_has_one() {
        let (mut queue, now) = (Queue::new(None), Instant::now());
        assert_eq!(admitted(&mut queue, &["a", "a", "b"], now), [1, 3]);
        assert_eq!(admitted(&mut queue, &["c", "d", "e"], now), [4, 5]);
        queue.leave(4, Some(seconds(1)), now);
        assert_eq!(admitted(&mut queue, &[], now), [6], "`a` has one already");
        queue.leave(1, Some(seconds(1)), now);
        assert_eq!(admitted(&mut queue, &[], now), [2]);
    }

    #[test]
    fn who_has_used_least_goes_first() {
        let (mut queue, now) = (Queue::new(None), Instant::now());
        for (tenant, cost) in [("much", 4), ("little", 2)] {
            let id = admitted(&mut queue, &[tenant], now)[0];
            queue.leave(id, Some(seconds(cost)), now);
        }
        let ids = admitted(&mut queue, &["w", "x", "y", "z"], now);
        assert_eq!(ids.len(), SLOTS);
        assert!(admitted(&mut queue, &["much", "little", "none"], now).is_empty());
        let (much, little, none) = (7, 8, 9);
        for (gone, next) in ids.iter().zip([none, little, much]) {
            queue.leave(*gone, Some(seconds(0)), now);
            assert_eq!(admitted(&mut queue, &[], now), [next]);
        }
    }

    #[test]
    fn long_work_has_half_of_the_slots() {
        let (mut queue, now) = (Queue::new(None), Instant::now());
        for tenant in ["a", "b", "c", "d"] {
            let id = admitted(&mut queue, &[tenant], now)[0];
            queue.leave(id, Some(LONG), now);
            // What is short in between changes nothing.
            let id = admitted(&mut queue, &[tenant], now)[0];
            queue.leave(id, Some(seconds(0)), now);
        }
        // This one has used more, and never long.
        for _ in 0..100 {
            let id = admitted(&mut queue, &["busy"], now)[0];
            queue.leave(id, Some(seconds(1)), now);
        }
        let began = admitted(&mut queue, &["a", "b", "c", "d"], now);
        assert_eq!(began.len(), LONG_SLOTS);
        assert_eq!(
            admitted(&mut queue, &["busy", "new", "newer"], now).len(),
            2
        );
        // It is forgotten by and by: 120 s of it in an hour.
        let long = |at| !queue.account(&name("c"), at).long.is_zero();
        assert!(long(now + seconds(89)) && !long(now + seconds(90)));
    }

    /// Nobody has used anything yet, and all of them take long.
    #[test]
    fn bombs_of_new_tenants_do_not_keep_others_waiting() {
        let (mut queue, now) = (Queue::new(None), Instant::now());
        assert_eq!(admitted(&mut queue, &["a", "b", "c", "d"], now).len(), 4);
        assert!(admitted(&mut queue, &["good"], now).is_empty());
        let before = now + LONG - Duration::from_millis(1);
        assert!(admitted(&mut queue, &[], before).is_empty());
        assert_eq!(queue.next_long(before), Some(now + LONG));
        let then = now + LONG;
        assert_eq!(admitted(&mut queue, &[], then), [5]);
        assert_eq!(admitted(&mut queue, &["e", "f"], then), [6]);
        assert_eq!(queue.running.len(), SLOTS_MAX);
        // And that is all, however long they take.
        assert!(admitted(&mut queue, &[], then + seconds(60)).is_empty());
    }

    #[test]
    fn a_budget_is_charged_afterwards_and_comes_back() {
        let (mut queue, now) = (Queue::new(Some(seconds(60))), Instant::now());
        let bomb = name("bomb");
        for cost in [20, 39, 21] {
            let id = admitted(&mut queue, &["bomb"], now)[0];
            queue.leave(id, Some(seconds(cost)), now);
        }
        // It comes back with a second's worth a minute.
        let told = queue.ask(&bomb, now).unwrap_err();
        assert_eq!(
            told,
            OverBudget {
                wait_s: 20 * 60 + 1
            }
        );
        assert!(queue.ask(&bomb, now + seconds(20 * 60)).is_err());
        assert!(queue.ask(&bomb, now + seconds(20 * 60 + 1)).is_ok());
        // And is nobody else's.
        assert!(queue.ask(&name("other"), now).is_ok());
    }

    #[test]
    fn one_that_waits_is_refused_when_the_one_before_it_used_the_budget() {
        let (mut queue, now) = (Queue::new(Some(seconds(60))), Instant::now());
        assert_eq!(admitted(&mut queue, &["a", "a"], now), [1]);
        queue.leave(1, None, now + seconds(61));
        let told = queue.admit(now + seconds(61));
        assert_eq!(told, [(2, Err(OverBudget { wait_s: 61 }))]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_had_until_the_work_is_done() {
        let slots = Slots::new(None);
        let mut had = Vec::new();
        for tenant in ["a", "b", "c", "d"] {
            had.push(slots.enter(&name(tenant)).await.unwrap());
        }
        // One gives up before its turn, and takes nobody's place.
        let began = Instant::now();
        let e = name("e");
        tokio::select! {
            biased;
            _ = slots.enter(&e) => panic!("all slots are had"),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
        had.pop().unwrap().end(Duration::ZERO);
        had.push(slots.enter(&name("f")).await.unwrap());
        assert_eq!(began.elapsed(), Duration::from_millis(10));
        // These take long: two more are let in then, and the third loses its patience.
        had.push(slots.enter(&name("g")).await.unwrap());
        had.push(slots.enter(&name("h")).await.unwrap());
        assert!(began.elapsed() >= LONG && began.elapsed() < LONG + seconds(1));
        let began = Instant::now();
        let refused = slots.enter(&name("i")).await;
        assert!(matches!(refused, Err(Error::Busy(_))));
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(slots.running(), SLOTS_MAX);
        drop(had);
        assert_eq!(slots.running(), 0);
        let state = slots.state();
        assert!(state.told.is_empty() && state.queue.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_without_budget_is_told_when_to_come_again() {
        let slots = Slots::new(Some(seconds(60)));
        let bomb = name("bomb");
        let slot = slots.enter(&bomb).await.unwrap();
        slot.end(seconds(90));
        let told = slots.enter(&bomb).await.err();
        assert!(matches!(told, Some(Error::CompileTime(1_801))), "{told:?}");
        slots.enter(&name("other")).await.unwrap();
        tokio::time::sleep(seconds(1_801)).await;
        slots.enter(&bomb).await.unwrap();
    }
}
