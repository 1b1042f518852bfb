//! One event on its way through a tenant's rules: they are asked one after another, by whichever thread
//! has time, and what comes of it does not depend on who asked which when.
//!
//! Nothing here blocks or waits. [`Deciding`] says which version is to be asked next ([`Asking`]), takes
//! what came of it, and is the event's [`Commit`] at the end.

use super::super::workers::{Guest, Work, lost_after};
use super::{
    ActiveRule, Changed, Commit, Failure, Instances, Name, Quarantine, Rules, Run, StoredEvent,
    empty,
};
use crate::quota::price;
use hooksieve_sdk::wire::Decision;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What an event comes to, and what came of asking.
pub(in crate::pipeline) struct Decided {
    pub(in crate::pipeline) commit: Commit,
    /// What it is charged: the greater of fuel and time.
    pub(in crate::pipeline) price: u64,
    /// Versions that have failed too often by now, and those that are back.
    pub(in crate::pipeline) changed: Vec<Changed>,
    /// Those that did not come back: to be kept before anything else happens.
    pub(in crate::pipeline) lost: Vec<Arc<Quarantine>>,
}

/// An event that is being decided.
pub(in crate::pipeline) struct Deciding {
    rules: Arc<Rules>,
    event: Arc<StoredEvent>,
    clock: fn() -> i64,
    /// The rules that are still to be asked, the one that is being asked among them.
    left: Range<usize>,
    /// Of an event that was held: whatever the rule subscribes to, and without its shadow.
    again: bool,
    /// What the first of them made of it, while its shadow is to be asked.
    own: Option<Own>,
    /// Who is asked now.
    asked: Option<Arc<ActiveRule>>,
    /// When the first was asked, which is when all of it is said to be decided.
    began_ms: Option<i64>,
    fuel: u64,
    /// Whoever is asked is in quarantine, and asked all the same.
    tried: bool,
    commit: Commit,
    changed: Vec<Changed>,
    lost: Vec<Arc<Quarantine>>,
}

/// What the version made of the event that it belongs to; nothing where no version sees it.
type Own = Option<(Arc<ActiveRule>, Run, Outcome)>;
type Outcome = Result<Decision, Failure>;

/// One version asked about one event.
pub(in crate::pipeline) struct Asking {
    rules: Arc<Rules>,
    event: Arc<StoredEvent>,
    rule: Arc<ActiveRule>,
}

impl Deciding {
    /// Asks every rule that subscribed.
    pub(in crate::pipeline) fn new(
        rules: Arc<Rules>,
        event: Arc<StoredEvent>,
        clock: fn() -> i64,
    ) -> Self {
        Self {
            left: 0..rules.rules.len(),
            commit: empty(&event),
            rules,
            event,
            clock,
            again: false,
            own: None,
            asked: None,
            began_ms: None,
            fuel: 0,
            tried: false,
            changed: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Asks one rule again, for an event it was held for. `None` when there is no such rule (any more).
    pub(in crate::pipeline) fn again(
        rules: Arc<Rules>,
        name: &Name,
        event: Arc<StoredEvent>,
        clock: fn() -> i64,
    ) -> Option<Self> {
        let at = rules.rules.iter().position(|rule| rule.name == *name)?;
        rules.rules[at].chosen(&event)?;
        Some(Self {
            left: at..at + 1,
            again: true,
            ..Self::new(rules, event, clock)
        })
    }

    fn now_ms(&mut self) -> i64 {
        *self.began_ms.get_or_insert_with(self.clock)
    }

    /// Who is to be asked next, as things stand now.
    fn whom(&mut self) -> Option<Arc<ActiveRule>> {
        let now_ms = self.now_ms();
        let rules = self.rules.clone();
        loop {
            let asked = rules.rules.get(self.left.clone())?.first()?;
            if self.own.is_none() {
                let rule = match self.again {
                    true => asked.chosen(&self.event),
                    false => asked.version_for(&self.event),
                };
                let Some(rule) = rule else {
                    self.own = Some(None);
                    continue;
                };
                let asked = self.again || self.tried;
                match rule.health.quarantine().filter(|_| !asked) {
                    None => return Some(rule.clone()),
                    Some(_) if rule.health.is_tried(now_ms) => {
                        self.tried = true;
                        return Some(rule.clone());
                    }
                    Some(quarantine) => {
                        let outcome = Err(Failure::from(&*quarantine));
                        self.own = Some(Some((rule.clone(), Run::default(), outcome)));
                    }
                }
            }
            let shadow = asked.shadow.as_ref().filter(|_| !self.again);
            if let Some(shadow) = shadow {
                let rests = shadow.rule.health.quarantine().is_some();
                if !rests && shadow.rule.sees(&self.event) {
                    return Some(shadow.rule.clone());
                }
                if !rests {
                    let own = self.own.as_ref().and_then(Option::as_ref);
                    let live = own.map(|(_, _, outcome)| outcome);
                    shadow.tally.note(&self.event, live, None);
                }
            }
            self.finish();
        }
    }

    /// Ends with the first of the rules that are left.
    fn finish(&mut self) {
        self.left.start += 1;
        self.tried = false;
        let now_ms = self.now_ms();
        if let Some(Some((rule, run, outcome))) = self.own.take() {
            (self.rules).add(&mut self.commit, &self.event, &rule, &run, outcome, now_ms);
        }
    }

    /// What came of asking whoever was to be asked.
    fn came(&mut self, rule: Arc<ActiveRule>, run: Run, outcome: Outcome) {
        self.fuel = self.fuel.saturating_add(run.fuel);
        match &self.own {
            None => self.own = Some(Some((rule, run, outcome))),
            Some(own) => {
                let asked = self.rules.rules.get(self.left.start);
                if let Some(shadow) = asked.and_then(|asked| asked.shadow.as_ref()) {
                    let live = own.as_ref().map(|(_, _, outcome)| outcome);
                    shadow.tally.note(&self.event, live, Some(&outcome));
                }
                self.finish();
            }
        }
    }
}

impl Work for Deciding {
    type Step = Asking;
    type Answer = Decided;

    fn next(&mut self) -> Option<Asking> {
        self.asked = self.whom();
        Some(Asking {
            rules: self.rules.clone(),
            event: self.event.clone(),
            rule: self.asked.clone()?,
        })
    }

    fn take(&mut self, (run, outcome): (Run, Outcome)) {
        let Some(rule) = self.asked.take() else {
            return;
        };
        if self.own.is_none() && !self.again {
            let now_ms = self.now_ms();
            let failure = outcome.as_ref().err();
            let changed = self.rules.note(&rule, failure, self.tried, now_ms);
            self.changed.extend(changed);
        }
        self.came(rule, run, outcome);
    }

    fn lost(&mut self, after: Duration) {
        let Some(rule) = self.asked.take() else {
            return;
        };
        let failure = Failure::Lost {
            after_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        };
        // Whatever it did before: the next one would be lost as well.
        let now_ms = self.now_ms();
        let quarantine = (self.rules).put_in_quarantine(&rule, (1, 1), Some(&failure), now_ms);
        self.lost.push(quarantine);
        let run = Run {
            duration: after,
            ..Run::default()
        };
        self.came(rule, run, Err(failure));
    }

    fn answer(self, used: Duration) -> Decided {
        Decided {
            commit: self.commit,
            price: price(self.fuel, used),
            changed: self.changed,
            lost: self.lost,
        }
    }
}

impl Guest for Asking {
    type Outcome = (Run, Outcome);

    fn run(self, instances: &mut Instances) -> (Run, Outcome) {
        self.rules.ask(&self.rule, &self.event, instances)
    }

    fn rule(&self) -> &Name {
        &self.rule.name
    }

    fn lost_after(&self) -> Duration {
        match &self.rule.program {
            Ok(program) => lost_after(program.limits()),
            Err(_) => Duration::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::versions::{Asked, Shadow, Tally};
    use super::*;
    use crate::id::{EventId, Hash};
    use crate::pipeline::{Unusable, quarantine};
    use crate::quota::FuelQuota;
    use crate::sandbox;
    use crate::store::{Outcome as Stored, Then};
    use crate::tenant::{ModuleRef, Rule};
    use hooksieve_sdk::wire::{Action, Message, Payload};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// A version that is never run here: what came of it is made up.
    fn version(rule: &str) -> ActiveRule {
        let rule = Rule {
            name: name(rule),
            module: ModuleRef::Uploaded(Hash::of(rule.as_bytes())),
            wasm: Arc::new([]),
            events: Vec::new(),
            sources: Vec::new(),
            channels: Vec::new(),
            config: Vec::new(),
            on_error: Then::Held,
            place: String::new(),
        };
        let none = sandbox::Error::Engine {
            message: "it is not run".to_owned(),
        };
        ActiveRule::new(&rule, None, Err(Unusable::from(none)))
    }

    fn rules(shadowed: bool) -> Arc<Rules> {
        let asked = ["one", "two", "three", "four"].map(|rule| {
            let mut asked = Asked::of_file(version(rule));
            if shadowed && rule == "two" {
                asked.shadow = Some(Shadow {
                    rule: Arc::new(version(rule)),
                    tally: Arc::new(Tally::default()),
                });
            }
            asked
        });
        Arc::new(Rules {
            tenant: name("acme"),
            rules: asked.into(),
            channels: None,
            default_channel: None,
            fuel: Arc::new(FuelQuota::new(0)),
            quarantine: quarantine::Settings::default(),
        })
    }

    fn event() -> Arc<StoredEvent> {
        Arc::new(StoredEvent {
            id: EventId::next(5, None),
            tenant: name("acme"),
            source: name("hub"),
            kind: "push".to_owned(),
            sender_id: None,
            verified: String::new(),
            received_ms: 5,
            encoded: Vec::new(),
            index: Vec::new(),
        })
    }

    /// What a rule is said to have made of the event.
    fn made(asking: &Asking) -> (Run, Outcome) {
        let run = Run {
            fuel: 100,
            ..Run::default()
        };
        let outcome = match asking.rule().as_str() {
            "three" => Err(Failure::Sandbox(sandbox::Error::Fuel { limit: 9 })),
            rule => Ok(Decision {
                reason: rule.to_owned(),
                actions: vec![Action {
                    channel: "hook".to_owned(),
                    payload: Payload::Message(Message::default()),
                    timing: None,
                }],
            }),
        };
        (run, outcome)
    }

    /// Decides it, asking anew whom to ask so many times before each answer, as a job does that is given
    /// back to the queue.
    fn decide(rules: &Arc<Rules>, event: &Arc<StoredEvent>, slices: usize) -> Decided {
        let mut deciding = Deciding::new(rules.clone(), event.clone(), || 7);
        while let Some(mut asking) = deciding.next() {
            for _ in 0..slices {
                asking = deciding.next().unwrap();
            }
            deciding.take(made(&asking));
        }
        deciding.answer(Duration::from_nanos(10))
    }

    fn outcomes(decided: &Decided) -> Vec<(String, String)> {
        let decisions = decided.commit.decisions.iter();
        let outcome = |it: &Stored| match it {
            Stored::Decided(decision) => decision.reason.clone(),
            Stored::Failed { kind, .. } => kind.clone(),
        };
        decisions
            .map(|it| (it.rule.to_string(), outcome(&it.outcome)))
            .collect()
    }

    #[test]
    fn what_is_decided_in_slices_is_what_is_decided_in_one_go() {
        for shadowed in [false, true] {
            let (rules, event) = (rules(shadowed), event());
            let whole = decide(&rules, &event, 0);
            assert_eq!(whole.price, if shadowed { 500 } else { 400 });
            assert_eq!(whole.commit.decisions.len(), 4);
            assert_eq!(
                (whole.commit.deliveries.len(), whole.commit.held.len()),
                (3, 1)
            );
            for slices in 1..3 {
                let sliced = decide(&rules, &event, slices);
                assert_eq!(
                    format!("{:?}", sliced.commit),
                    format!("{:?}", whole.commit)
                );
                assert_eq!(sliced.price, whole.price);
            }
            if let Some(shadow) = &rules.rules[1].shadow {
                assert_eq!(
                    shadow.tally.counts().0,
                    3,
                    "once for each time it was decided"
                );
            }
        }
    }

    #[test]
    fn a_rule_that_is_lost_has_failed_and_rests_and_the_others_are_asked() {
        let (rules, event) = (rules(false), event());
        let mut deciding = Deciding::new(rules.clone(), event.clone(), || 7);
        let first = deciding.next().unwrap();
        deciding.take(made(&first));
        assert_eq!(deciding.next().unwrap().rule().as_str(), "two");
        deciding.lost(Duration::from_millis(5_000));
        while let Some(asking) = deciding.next() {
            deciding.take(made(&asking));
        }
        let decided = deciding.answer(Duration::ZERO);
        let expected = [
            ("one", "one"),
            ("two", "lost"),
            ("three", "fuel"),
            ("four", "four"),
        ];
        let expected = expected.map(|(rule, made)| (rule.to_owned(), made.to_owned()));
        assert_eq!(outcomes(&decided), expected);
        assert_eq!(decided.commit.held.len(), 2);
        let [quarantine] = &decided.lost[..] else {
            panic!("{:?}", decided.lost)
        };
        assert_eq!(quarantine.rule, name("two"));
        assert!(quarantine.error.contains("5000 ms"), "{}", quarantine.error);
        // The next event is not asked of it, nor one that waits between two rules.
        let after = decide(&rules, &event, 1);
        assert_eq!(outcomes(&after)[1].1, "quarantined");
        assert_eq!(after.price, 300);
    }

    /// A rule that strangers made fail is back with the first event that it decides, a minute later at most.
    #[test]
    fn one_event_a_minute_is_asked_of_a_rule_in_quarantine() {
        const MINUTE: i64 = quarantine::TRIAL_EVERY_MS;
        let (rules, event) = (rules(false), event());
        let ask = |clock: fn() -> i64, fails: bool| {
            let mut deciding = Deciding::new(rules.clone(), event.clone(), clock);
            while let Some(mut asking) = deciding.next() {
                // As a job that is given back to the queue in between.
                asking = deciding.next().unwrap_or(asking);
                let (run, outcome) = made(&asking);
                let failure = Err(Failure::Lost { after_ms: 1 });
                let fails = fails && asking.rule().as_str() == "two";
                deciding.take((run, if fails { failure } else { outcome }));
            }
            deciding.answer(Duration::ZERO)
        };
        let two = rules.rules[1].live.clone().unwrap();
        rules.put_in_quarantine(&two, (50, 50), None, 0);
        assert_eq!(outcomes(&ask(|| MINUTE - 1, false))[1].1, "quarantined");
        // It fails once more, and is left alone for as long again.
        let tried = ask(|| MINUTE, true);
        assert_eq!(outcomes(&tried)[1].1, "lost");
        assert!(tried.changed.is_empty());
        assert_eq!(outcomes(&ask(|| 2 * MINUTE - 1, false))[1].1, "quarantined");
        let back = ask(|| 2 * MINUTE, false);
        assert_eq!(outcomes(&back)[1].1, "two");
        assert!(matches!(&back.changed[..], [Changed::Resumed(it)] if it.rule == name("two")));
        assert_eq!(outcomes(&ask(|| 2 * MINUTE, false))[1].1, "two");
    }

    #[test]
    fn a_shadow_that_is_lost_fails_nothing_and_is_not_asked_again() {
        let (rules, event) = (rules(true), event());
        let mut deciding = Deciding::new(rules.clone(), event.clone(), || 7);
        for _ in 0..2 {
            let asking = deciding.next().unwrap();
            deciding.take(made(&asking));
        }
        deciding.next().unwrap();
        deciding.lost(Duration::from_secs(5));
        while let Some(asking) = deciding.next() {
            deciding.take(made(&asking));
        }
        let decided = deciding.answer(Duration::ZERO);
        assert_eq!(decided.lost.len(), 1);
        assert_eq!(outcomes(&decided)[1].1, "two");
        let after = decide(&rules, &event, 0);
        assert_eq!((after.price, after.lost.len()), (400, 0));
        let two = name("two");
        let kept = rules.deciding(&two).unwrap();
        assert_eq!(kept.filter_map(|it| it.health.quarantine()).count(), 1);
    }

    #[test]
    fn a_rule_is_asked_again_alone_and_though_it_rests() {
        let (rules, event) = (rules(true), event());
        let mut deciding = Deciding::new(rules.clone(), event.clone(), || 7);
        deciding.next();
        deciding.lost(Duration::from_secs(5));
        let again = |rule: &str| Deciding::again(rules.clone(), &name(rule), event.clone(), || 7);
        for rule in ["one", "two"] {
            let mut again = again(rule).unwrap();
            let asking = again.next().unwrap();
            again.take(made(&asking));
            assert!(again.next().is_none());
            let decided = again.answer(Duration::from_micros(1));
            assert_eq!(outcomes(&decided), [(rule.to_owned(), rule.to_owned())]);
            assert_eq!(decided.price, 2_000);
        }
        assert!(again("none").is_none());
    }
}
