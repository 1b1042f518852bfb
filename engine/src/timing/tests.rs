//! Timing as a story: deliveries come one after another, and what becomes of each is written down.

use super::*;
use crate::store::{About, Attempt};
use hooksieve_sdk::wire::{Action, Decision, Message};
use hooksieve_sdk::{Notify, hours, minutes, notify};
use std::collections::HashMap;
use std::convert::Infallible;

const MINUTE_MS: i64 = 60_000;

/// What a store does, without one.
#[derive(Default)]
struct Kept {
    memories: HashMap<Slot, Memory>,
    deliveries: Vec<Delivery>,
    /// Digests that were sent meanwhile.
    out: Vec<DeliveryId>,
}

impl Remember for Kept {
    type Error = Infallible;

    fn get(&mut self, slot: &Slot) -> Result<Option<Memory>, Infallible> {
        Ok(self.memories.get(slot).cloned())
    }

    fn put(&mut self, slot: Slot, memory: Memory) -> Result<(), Infallible> {
        self.memories.insert(slot, memory);
        Ok(())
    }

    fn join(&mut self, digest: DeliveryId, new: &Delivery, at: i64) -> Result<bool, Infallible> {
        let open = self.deliveries.iter_mut().find(|it| it.id == digest);
        let open = open.filter(|_| !self.out.contains(&digest));
        Ok(open.is_some_and(|open| gather(open.as_digest(), new, at)))
    }
}

impl Kept {
    /// One more delivery, so many minutes after the beginning; tells its state in minutes.
    fn take(&mut self, at_min: i64, notify: Notify) -> String {
        let n = self.deliveries.len();
        let clock_ms = at_min * MINUTE_MS;
        let mut delivery = delivery(n, notify);
        let Ok(escalation) = admit(&mut delivery, clock_ms, self);
        let told = tell(&delivery);
        self.deliveries.push(delivery);
        match escalation {
            Some(escalation) => format!("{told}; {}: {}", escalation.channel, tell(&escalation)),
            None => told,
        }
    }
}

fn delivery(n: usize, notify: Notify) -> Delivery {
    let Action {
        channel,
        payload,
        timing,
    } = Decision::from(notify.title(format!("number {n}")))
        .actions
        .remove(0);
    let event = EventId::from_bytes(&n.to_be_bytes());
    let rule: Name = "rule".parse().unwrap();
    Delivery {
        id: DeliveryId::new(event, &rule, 0),
        tenant: "octo".parse().unwrap(),
        event,
        rule,
        position: 0,
        channel: channel.parse().unwrap(),
        reason: String::new(),
        payload,
        about: About {
            source: "s".parse().unwrap(),
            kind: "k".into(),
            subject: None,
            time: String::new(),
        },
        state: State::Pending { due_ms: 0 },
        attempts: Vec::new(),
        created_ms: 0,
        timing,
        held_back: 0,
        gathered: Vec::new(),
        redrive_of: None,
        fallback_of: None,
        escalation_of: None,
    }
}

fn tell(delivery: &Delivery) -> String {
    match &delivery.state {
        State::Pending { due_ms } => {
            let held_back = match delivery.held_back {
                0 => String::new(),
                n => format!(", {n} held back before"),
            };
            format!("due at {}{held_back}", due_ms / MINUTE_MS)
        }
        State::Suppressed { by, .. } => format!("{by:?}").to_lowercase(),
        State::Gathered { .. } => "gathered".to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn at_once_unless_it_says_when() {
    let mut kept = Kept::default();
    assert_eq!(kept.take(7, notify("a")), "due at 0", "as it was made");
    assert_eq!(kept.take(7, notify("a").after(minutes(5))), "due at 12");
    let at = || notify("a").at("1970-01-01T01:00:00Z");
    assert_eq!(kept.take(7, at()), "due at 60");
    assert_eq!(kept.take(90, at()), "due at 90", "it has passed");
    let both = at().after(minutes(100));
    assert_eq!(kept.take(7, both), "due at 107", "the later one");
    // 1970-01-01 is a Thursday.
    let office = || notify("a").within("Th-Fr 02:00-03:00 UTC");
    assert_eq!(kept.take(7, office()), "due at 120");
    assert_eq!(kept.take(150, office()), "due at 150");
    assert_eq!(kept.take(180, office()), "due at 1560", "tomorrow");
    assert_eq!(kept.take(7, office().critical()), "due at 7");
}

#[test]
fn repetitions_are_dropped_within_the_window_of_the_one_that_was_sent() {
    let mut kept = Kept::default();
    let one = |key: &str| notify("a").dedupe(key, minutes(10));
    assert_eq!(kept.take(0, one("x")), "due at 0");
    assert_eq!(kept.take(1, one("y")), "due at 1", "another key");
    let other = notify("b").dedupe("x", minutes(10));
    assert_eq!(kept.take(2, other), "due at 2", "another channel");
    assert_eq!(kept.take(9, one("x")), "dedupe");
    assert_eq!(kept.take(9, one("x").critical()), "dedupe");
    assert_eq!(
        kept.take(10, one("x")),
        "due at 10",
        "a repetition does not stretch it"
    );
    assert_eq!(kept.take(19, one("x")), "dedupe");
}

#[test]
fn what_is_too_much_is_counted_in_the_next_one() {
    let mut kept = Kept::default();
    let one = || notify("a").throttle("x", 2, minutes(10));
    let told: Vec<_> = [0, 1, 2, 3, 9, 10, 11, 12, 40, 50]
        .map(|at_min| kept.take(at_min, one()))
        .into();
    assert_eq!(
        told,
        [
            "due at 0",
            "due at 1",
            "throttle",
            "throttle",
            "throttle",
            "due at 10, 3 held back before",
            "due at 11",
            "throttle",
            "due at 40, 1 held back before",
            "due at 50",
        ]
    );
    assert_eq!(kept.take(51, one()), "due at 51");
    assert_eq!(kept.take(52, one().critical()), "due at 52");
    // What a throttle held back was not sent, so it makes no repetition of what comes later.
    let both = || one().dedupe("y", hours(1));
    assert_eq!(kept.take(53, both()), "throttle");
    assert_eq!(kept.take(60, both()), "due at 60, 1 held back before");
    assert_eq!(kept.take(61, both()), "dedupe");
}

#[test]
fn a_digest_gathers_until_its_window_ends_or_it_is_full() {
    let mut kept = Kept::default();
    let one = || notify("a").digest("x", minutes(10), 3);
    assert_eq!(kept.take(0, one()), "due at 10");
    assert_eq!(kept.take(9, one()), "gathered");
    assert_eq!(kept.take(9, one().critical()), "due at 9");
    assert_eq!(kept.take(10, one()), "due at 20", "the next one");
    assert_eq!(kept.take(11, one()), "gathered");
    assert_eq!(kept.take(12, one()), "gathered");
    assert_eq!(tell(&kept.deliveries[3]), "due at 12", "it is full");
    assert_eq!(kept.take(13, one()), "due at 23", "so the next one begins");
    // It went out early: what comes late to it begins another.
    kept.out.push(kept.deliveries[6].id);
    assert_eq!(kept.take(14, one()), "due at 24");
    let titles = |n: usize| -> Vec<&str> {
        let lines = kept.deliveries[n].gathered.iter();
        lines.map(|line| line.title.as_str()).collect()
    };
    assert_eq!(titles(0), ["number 0", "number 1"]);
    assert_eq!(titles(3), ["number 3", "number 4", "number 5"]);
}

#[test]
fn a_digest_waits_for_its_hours() {
    let mut kept = Kept::default();
    let one = || {
        let hours = "02:00-03:00 UTC";
        notify("a").digest("x", minutes(10), 3).within(hours)
    };
    assert_eq!(kept.take(0, one()), "due at 120");
    assert_eq!(kept.take(1, one()), "gathered");
    assert_eq!(kept.take(2, one()), "gathered");
    assert_eq!(tell(&kept.deliveries[0]), "due at 120", "full, and not yet");
}

#[test]
fn what_escalates_goes_to_two_channels() {
    let mut kept = Kept::default();
    let one = notify("a").after(minutes(5)).escalate("boss", minutes(15));
    assert_eq!(kept.take(1, one), "due at 6; boss: due at 21");
    let again = || {
        let one = notify("a").dedupe("x", hours(1));
        one.escalate("boss", minutes(15))
    };
    assert_eq!(kept.take(2, again()), "due at 2; boss: due at 17");
    assert_eq!(
        kept.take(3, again()),
        "dedupe",
        "nor is a repetition escalated"
    );
}

#[test]
fn a_dead_one_falls_back_once() {
    let mut dead = delivery(0, notify("a").or_else("b"));
    dead.attempts.push(Attempt::default());
    let new = fallback(&dead, 9).unwrap();
    assert_eq!(
        (new.channel.as_str(), &new.state),
        ("b", &State::Pending { due_ms: 9 })
    );
    assert_eq!((new.fallback_of, new.attempts.len()), (Some(dead.id), 0));
    assert_ne!(new.id, dead.id);
    assert_eq!(fallback(&new, 10), None);
    assert_eq!(fallback(&delivery(1, notify("a")), 9), None);
}

#[test]
fn a_receiver_is_told_of_it_in_the_message() {
    let mut kept = Kept::default();
    let one = |n: usize| {
        let one = notify("a").digest("x", minutes(10), 100);
        one.text("a long story")
            .link(format!("https://example.com/{n}"))
    };
    kept.take(0, one(0));
    let room = Room::default();
    let shown = |delivery: &Delivery, link: Option<&str>| match render(delivery, link, &room)
        .unwrap_or_else(|| delivery.payload.clone())
    {
        Payload::Message(message) => message,
        Payload::Body(_) => Message::default(),
    };
    // One alone is what it is.
    let alone = shown(&kept.deliveries[0], None);
    assert_eq!(
        (alone.title.as_str(), alone.text.as_str()),
        ("number 0", "a long story")
    );
    kept.take(1, one(1));
    kept.take(2, notify("a").digest("x", minutes(10), 100));
    let digest = shown(&kept.deliveries[0], None);
    assert_eq!(digest.title, "number 0 (and 2 more)");
    assert_eq!(
        digest.text,
        "• number 0\n  https://example.com/0\n• number 1\n  https://example.com/1\n• number 2"
    );

    let mut one = delivery(9, notify("a").text("t"));
    one.held_back = 7;
    let told = shown(&one, Some("https://example.com/ack/1"));
    let fields: Vec<_> = told
        .fields
        .iter()
        .map(|it| (&*it.name, &*it.value))
        .collect();
    assert_eq!(
        fields,
        [
            ("Held back before", "7"),
            ("Acknowledge", "https://example.com/ack/1")
        ]
    );
}

#[test]
fn a_digest_of_long_lines_stays_within_a_message() {
    let mut kept = Kept::default();
    for n in 0..100 {
        let url = format!("https://example.com/{n}/{}", "x".repeat(1_900));
        kept.take(0, notify("a").digest("x", minutes(10), 100).link(url));
    }
    let Some(Payload::Message(message)) = render(&kept.deliveries[0], None, &Room::default())
    else {
        panic!("a message");
    };
    assert!(message.text.len() <= 16_020, "{}", message.text.len());
    assert!(message.text.ends_with("and 92 more"), "{}", message.text);
}

/// What sixty of them come to where so much is shown: whole lines, and how many more there are.
#[test]
fn a_digest_is_cut_between_its_lines() {
    let mut kept = Kept::default();
    for n in 0..60 {
        let one = notify("a").digest("x", minutes(10), 100);
        kept.take(0, one.link(format!("https://example.com/runs/{n}?a=1&b=2")));
    }
    let whole: Vec<String> = (0..60)
        .map(|n| format!("• number {n}\n  https://example.com/runs/{n}?a=1&b=2"))
        .collect();
    let twice: fn(&str) -> usize = |text| 2 * text.chars().count();
    for (max, cost) in [
        (1_500, (|text| text.chars().count()) as fn(&str) -> usize),
        (3_000, twice),
        (3_000, str::len),
        (60, str::len),
        (100_000, str::len),
    ] {
        let room = Room::new(max, cost);
        let Some(Payload::Message(message)) = render(&kept.deliveries[0], None, &room) else {
            panic!("a message");
        };
        assert!(cost(&message.text) <= max, "{max}: {}", message.text);
        let (lines, left) = match message.text.rsplit_once("and ") {
            Some((lines, left)) => (lines.trim_end(), left.strip_suffix(" more").unwrap()),
            None => (message.text.as_str(), "0"),
        };
        let told = 60 - left.parse::<usize>().unwrap();
        let without = |line: &String| line.split('\n').next().unwrap().to_owned();
        let expected: Vec<String> = match max {
            // The addresses have no room there.
            60 => whole[..told].iter().map(without).collect(),
            _ => whole[..told].to_vec(),
        };
        assert_eq!(lines, expected.join("\n"), "{max}");
        assert_eq!(told == 60, max == 100_000);
        assert_eq!(message.title, "number 0 (and 59 more)");
    }
}

#[test]
fn a_long_title_leaves_the_count_in_sight() {
    let mut kept = Kept::default();
    for _ in 0..3 {
        kept.take(0, notify("a").digest("x", minutes(10), 100));
    }
    let digest = &mut kept.deliveries[0];
    let long = format!("first\nsecond {}", "long ".repeat(100));
    long.clone_into(&mut digest.gathered[1].title);
    let Payload::Message(message) = &mut digest.payload else {
        panic!("a message");
    };
    message.title = long;
    let Some(Payload::Message(message)) = render(digest, None, &Room::default()) else {
        panic!("a message");
    };
    assert!(
        message.title.starts_with("first second long"),
        "{}",
        message.title
    );
    assert!(
        message.title.ends_with("… (and 2 more)"),
        "{}",
        message.title
    );
    assert!(message.title.chars().count() < 150);
    assert_eq!(message.text.lines().count(), 3, "{}", message.text);
}
