//! What every store must do: one suite, run against each implementation.

mod history;

pub(super) use self::history::{
    a_purged_dead_letter_is_none_any_more, dead_letters_come_in_pages, what_is_over_is_forgotten,
};

use super::*;
use hooksieve_sdk::wire::{
    Action, Body, Digest, Escalate, Field, Link as WireLink, Message, Timing,
};
use tokio::task::JoinSet;

pub(super) const WINDOW_MS: i64 = 60_000;
pub(super) const NOW_MS: i64 = 1_770_000_000_000;

/// Makes the tests of a store; `$open` gives an empty one and whatever must outlive it.
macro_rules! conformance {
    ($open:expr; $($test:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $test() {
            let (store, _keep) = $open;
            $crate::store::conformance::$test(std::sync::Arc::new(store)).await;
        }
    )*};
    ($open:expr) => {
        $crate::store::conformance::conformance!(
            $open;
            events_come_back_in_order,
            events_are_listed_from_both_ends,
            duplicates_are_recognised,
            duplicates_are_recognised_among_concurrent_appends,
            a_commit_counts_once,
            rows_come_back_as_they_were,
            claims_are_leased,
            claims_are_earliest_first,
            settled_is_settled,
            dead_letters_are_listed,
            a_dead_letter_is_redriven_once,
            a_digest_gathers_what_one_event_and_others_bring,
            an_escalation_is_acknowledged_unless_it_is_out,
            what_is_disabled_is_remembered,
            held_events_are_resolved_once,
            what_is_over_is_forgotten,
            a_purged_dead_letter_is_none_any_more,
            dead_letters_come_in_pages,
            records_are_set_together_and_found,
            next_due_is_the_earliest_that_can_happen,
            waiters_are_told,
            many_append_at_once,
            a_delivery_is_claimed_once_by_many,
        );
    };
}
pub(super) use conformance;

mod memory {
    use crate::store::MemoryStore;
    super::conformance!((MemoryStore::new(super::WINDOW_MS), ()));
}

pub(super) type TestStore = Arc<dyn Store>;

pub(super) fn name(name: &str) -> Name {
    name.parse().unwrap()
}

/// An event of a sender that gives its deliveries ids.
pub(super) fn new_event(tenant: &str, sender_id: &str, body: &str) -> NewEvent {
    let json = format!(r#"{{"body": {body:?}}}"#);
    NewEvent {
        tenant: name(tenant),
        source: name("github"),
        kind: "issues.opened".to_owned(),
        subject: Some("octo/api".to_owned()),
        time: "2026-02-02T02:40:00Z".to_owned(),
        headers: vec![("x-github-event".to_owned(), "issues".to_owned())],
        data: Data::from_json(json.as_bytes()).unwrap(),
        sender_id: Some(sender_id.to_owned()),
        body_hash: Hash::of(body.as_bytes()),
        verified: "github hmac-sha256".to_owned(),
        received_ms: NOW_MS,
    }
}

/// An event that is never a duplicate.
pub(super) fn anonymous(tenant: &str, body: &str) -> NewEvent {
    NewEvent {
        sender_id: None,
        ..new_event(tenant, "", body)
    }
}

pub(super) fn decision(event: EventId, rule: &str, outcome: Outcome) -> DecisionRecord {
    DecisionRecord {
        event,
        rule: name(rule),
        version: Some(7),
        module: Hash::of(b"module"),
        config: Hash::of(b"config"),
        outcome,
        fuel: 12_345,
        memory_bytes: 1 << 20,
        duration_us: 7,
        log: vec!["looked".to_owned()],
        decided_ms: NOW_MS,
        prices: 2,
    }
}

pub(super) fn decided(event: EventId, rule: &str) -> DecisionRecord {
    let made = Decision {
        reason: "it matters".to_owned(),
        actions: vec![Action {
            channel: "team".to_owned(),
            payload: message("an incident"),
            timing: None,
        }],
    };
    decision(event, rule, Outcome::Decided(made))
}

fn message(title: &str) -> Payload {
    Payload::Message(Message {
        title: title.to_owned(),
        text: "what happened".to_owned(),
        link: Some(WireLink {
            url: "https://example.com/1".to_owned(),
            label: None,
        }),
        fields: vec![Field {
            name: "Repository".to_owned(),
            value: "octo/api".to_owned(),
        }],
    })
}

pub(super) fn delivery(
    tenant: &str,
    event: EventId,
    rule: &str,
    position: usize,
    due_ms: i64,
) -> Delivery {
    Delivery {
        id: DeliveryId::new(event, &name(rule), position),
        tenant: name(tenant),
        event,
        rule: name(rule),
        position: position as u32,
        channel: name("team"),
        reason: "it matters".to_owned(),
        payload: message("an incident"),
        about: About {
            source: name("github"),
            kind: "issues.opened".to_owned(),
            subject: None,
            time: "2026-02-02T02:40:00Z".to_owned(),
        },
        state: State::Pending { due_ms },
        attempts: Vec::new(),
        created_ms: NOW_MS,
        timing: None,
        held_back: 0,
        gathered: Vec::new(),
        redrive_of: None,
        fallback_of: None,
        escalation_of: None,
    }
}

pub(super) fn held(tenant: &str, event: EventId, rule: &str) -> Held {
    Held {
        tenant: name(tenant),
        event,
        rule: name(rule),
        error: "out of fuel".to_owned(),
        since_ms: NOW_MS,
    }
}

/// One rule's decision with deliveries due at these moments.
pub(super) fn commit_due(tenant: &str, event: EventId, rule: &str, due_ms: &[i64]) -> Commit {
    let deliveries = due_ms.iter().enumerate();
    Commit {
        event,
        received_ms: NOW_MS,
        decisions: vec![decided(event, rule)],
        deliveries: deliveries
            .map(|(position, due_ms)| delivery(tenant, event, rule, position, *due_ms))
            .collect(),
        held: Vec::new(),
    }
}

pub(super) fn attempt(at_ms: i64, error: Option<&str>) -> Attempt {
    Attempt {
        at_ms,
        duration_ms: 12,
        status: Some(if error.is_some() { 503 } else { 200 }),
        error: error.map(str::to_owned),
        answer: error.map(|_| "try again later".to_owned()),
        ambiguous: error.is_some(),
        ..Attempt::default()
    }
}

/// Appends an event and commits it with deliveries due at these moments.
async fn given(store: &TestStore, tenant: &str, due_ms: &[i64]) -> Vec<DeliveryId> {
    let event = store.append(anonymous(tenant, "x")).await.unwrap().id;
    let commit = commit_due(tenant, event, "triage", due_ms);
    let ids = commit.deliveries.iter().map(|it| it.id).collect();
    store.commit(&name(tenant), vec![commit]).await.unwrap();
    ids
}

async fn claimed(store: &TestStore, now_ms: i64, limit: usize) -> Vec<DeliveryId> {
    let deliveries = claim(&**store, now_ms, 1_000, limit).await;
    deliveries.iter().map(|delivery| delivery.id).collect()
}

/// Claims up to so many, of whatever line.
pub(super) async fn claim(
    store: &(impl Outbox + ?Sized),
    now_ms: i64,
    lease_ms: i64,
    mut limit: usize,
) -> Vec<Delivery> {
    let mut wanted = |_: &Line| {
        let one_more = limit > 0;
        limit = limit.saturating_sub(1);
        one_more
    };
    let claimed = store.claim(now_ms, lease_ms, &mut wanted).await;
    claimed.unwrap().deliveries
}

async fn backlog(store: &TestStore, tenant: &str, limit: usize) -> Vec<EventId> {
    let events = store.backlog(&name(tenant), None, limit).await.unwrap();
    events.iter().map(|event| event.id).collect()
}

pub(super) async fn events_come_back_in_order(store: TestStore) {
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(
            store
                .append(anonymous("a", &n.to_string()))
                .await
                .unwrap()
                .id,
        );
        store.append(anonymous("ab", "other")).await.unwrap();
    }
    assert!(ids.is_sorted());
    assert_eq!(backlog(&store, "a", 10).await, ids);
    assert_eq!(backlog(&store, "a", 2).await, ids[..2]);
    let after = async |id| {
        let events = store.backlog(&name("a"), Some(id), 2).await.unwrap();
        events.into_iter().map(|event| event.id).collect::<Vec<_>>()
    };
    assert_eq!(after(ids[1]).await, ids[2..4]);
    assert_eq!(backlog(&store, "nobody", 2).await, []);

    let commits = ids[..2].iter().map(|id| commit_due("a", *id, "r", &[]));
    store.commit(&name("a"), commits.collect()).await.unwrap();
    assert_eq!(backlog(&store, "a", 10).await, ids[2..]);
    assert_eq!(backlog(&store, "ab", 10).await.len(), 5);
    let event = store.event(ids[0]).await.unwrap().unwrap();
    assert_eq!((event.id, event.tenant), (ids[0], name("a")));
    let unknown = EventId::from_bytes(b"unknown");
    assert_eq!(store.event(unknown).await.unwrap(), None);
    assert!(store.story(unknown).await.unwrap().is_none());
}

pub(super) async fn events_are_listed_from_both_ends(store: TestStore) {
    let mut ids = Vec::new();
    for n in 0..5 {
        let event = store.append(anonymous("a", &n.to_string())).await.unwrap();
        ids.push(event.id);
        store.append(anonymous("ab", "other")).await.unwrap();
    }
    let commit = commit_due("a", ids[0], "triage", &[NOW_MS]);
    store
        .commit(&name("a"), vec![commit.clone()])
        .await
        .unwrap();
    let listed = async |seek, limit| {
        let stories = store.stories(&name("a"), seek, limit).await.unwrap();
        let ids = stories.iter().map(|story| story.event.id);
        (ids.collect::<Vec<_>>(), stories)
    };
    assert_eq!(
        listed(Seek::Before(None), 3).await.0,
        [ids[4], ids[3], ids[2]]
    );
    let (last, stories) = listed(Seek::Before(Some(ids[2])), 3).await;
    assert_eq!(last, [ids[1], ids[0]]);
    assert!(!stories[0].decided && stories[1].decided);
    assert_eq!(stories[1].decisions, commit.decisions);
    assert_eq!(stories[1].deliveries, commit.deliveries);
    assert_eq!(listed(Seek::After(ids[2]), 9).await.0, [ids[3], ids[4]]);
    assert_eq!(listed(Seek::After(ids[4]), 9).await.0, []);
    let nobody = store.stories(&name("nobody"), Seek::Before(None), 9).await;
    assert!(nobody.unwrap().is_empty());
}

pub(super) async fn duplicates_are_recognised(store: TestStore) {
    let first = store.append(new_event("a", "1", "x")).await.unwrap();
    assert!(!first.duplicate);
    let again = store.append(new_event("a", "1", "x")).await.unwrap();
    assert_eq!((again.id, again.duplicate), (first.id, true));

    let other_source = NewEvent {
        source: name("gitlab"),
        ..new_event("a", "1", "x")
    };
    for (what, event) in [
        ("body", new_event("a", "1", "y")),
        ("id", new_event("a", "2", "x")),
        ("tenant", new_event("b", "1", "x")),
        ("source", other_source),
        ("no id", anonymous("a", "x")),
        ("no id again", anonymous("a", "x")),
    ] {
        assert!(!store.append(event).await.unwrap().duplicate, "{what}");
    }

    let at = |received_ms| NewEvent {
        received_ms,
        ..new_event("a", "1", "x")
    };
    for back_ms in [0, WINDOW_MS / 2] {
        let again = store.append(at(NOW_MS - back_ms)).await.unwrap();
        assert_eq!(again.id, first.id, "the clock went back");
    }
    let again = store.append(at(NOW_MS + WINDOW_MS)).await.unwrap();
    assert_eq!((again.id, again.duplicate), (first.id, true));
    let late = store.append(at(NOW_MS + WINDOW_MS + 1)).await.unwrap();
    assert!(!late.duplicate);
    let again = store.append(at(NOW_MS + 2 * WINDOW_MS)).await.unwrap();
    assert_eq!((again.id, again.duplicate), (late.id, true));
    assert_eq!(backlog(&store, "a", 100).await.len(), 7);
}

pub(super) async fn duplicates_are_recognised_among_concurrent_appends(store: TestStore) {
    let mut tasks = JoinSet::new();
    for n in 0..64 {
        let store = Arc::clone(&store);
        let body = (n % 4).to_string();
        tasks.spawn(async move { store.append(new_event("a", "1", &body)).await.unwrap() });
    }
    let answers = tasks.join_all().await;
    assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 4);
    let mut ids: Vec<_> = answers.iter().map(|answer| answer.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(backlog(&store, "a", 100).await, ids);
}

pub(super) async fn a_commit_counts_once(store: TestStore) {
    let first = store.append(anonymous("a", "1")).await.unwrap().id;
    let second = store.append(anonymous("a", "2")).await.unwrap().id;
    let commit = |event, due_ms| Commit {
        held: vec![held("a", event, "broken")],
        ..commit_due("a", event, "triage", &[due_ms, due_ms])
    };
    let tenant = name("a");
    store.commit(&tenant, vec![commit(first, 5)]).await.unwrap();
    // After a crash the pipeline decides again, perhaps with another outcome: the first one stays.
    let again = vec![commit(first, 9), commit(second, 7)];
    store.commit(&tenant, again.clone()).await.unwrap();
    store.commit(&tenant, again).await.unwrap();

    for (event, due_ms) in [(first, 5), (second, 7)] {
        let story = store.story(event).await.unwrap().unwrap();
        assert!(story.decided);
        assert_eq!(story.decisions, [decided(event, "triage")]);
        assert_eq!(story.deliveries, commit(event, due_ms).deliveries);
        assert_eq!(story.held, [held("a", event, "broken")]);
    }
    assert_eq!(store.held(None, None, 10).await.unwrap().len(), 2);
    assert_eq!(claimed(&store, NOW_MS, 10).await.len(), 4);
    assert_eq!(backlog(&store, "a", 10).await, []);
}

pub(super) async fn rows_come_back_as_they_were(store: TestStore) {
    // Larger than any row of the embedded store, and a body with every kind of value.
    let large = "ü".repeat(300_000);
    let new = new_event("a", "1", &large);
    let id = store.append(new.clone()).await.unwrap().id;
    let expected = new.into_stored(id);
    assert_eq!(store.event(id).await.unwrap(), Some(expected.clone()));

    let json = br#"{"n": [1, -1, 1.5, null, true, "", 18446744073709551615], "m": {"": {}}}"#;
    let body = Body::from_msgpack(Data::from_json(json).unwrap().bytes().to_vec());
    let mut delivery = delivery("a", id, "triage", 0, NOW_MS);
    delivery.payload = Payload::Body(body.clone());
    delivery.reason = large;
    let actions = vec![Action {
        channel: "team".to_owned(),
        payload: Payload::Body(body),
        timing: None,
    }];
    let reason = "a body".to_owned();
    let failed = Outcome::Failed {
        kind: "fuel".to_owned(),
        error: "used 10 of 10".to_owned(),
        then: Then::Passed,
    };
    let commit = Commit {
        event: id,
        received_ms: NOW_MS,
        decisions: vec![
            decision(id, "triage", Outcome::Decided(Decision { reason, actions })),
            decision(id, "failing", failed),
        ],
        deliveries: vec![delivery.clone()],
        held: Vec::new(),
    };
    store
        .commit(&name("a"), vec![commit.clone()])
        .await
        .unwrap();
    let story = store.story(id).await.unwrap().unwrap();
    assert_eq!(story.event, expected);
    assert_eq!(story.decisions, commit.decisions);
    assert_eq!(story.deliveries, commit.deliveries);
    assert_eq!(claim(&*store, NOW_MS, 1, 1).await, [delivery.clone()]);

    let mut tried = attempt(NOW_MS, Some("busy"));
    tried.refused = vec!["x@example.com: unknown".to_owned()];
    let retry = Settlement::RetryAt { due_ms: NOW_MS + 9 };
    store
        .settle(delivery.id, tried.clone(), retry)
        .await
        .unwrap();
    delivery.attempts = vec![tried];
    delivery.state = State::Pending { due_ms: NOW_MS + 9 };
    assert_eq!(store.delivery(delivery.id).await.unwrap(), Some(delivery));
}

pub(super) async fn claims_are_leased(store: TestStore) {
    let ids = given(&store, "a", &[NOW_MS]).await;
    assert_eq!(claimed(&store, NOW_MS - 1, 9).await, []);
    assert_eq!(claimed(&store, NOW_MS, 0).await, []);
    assert_eq!(claimed(&store, NOW_MS, 9).await, ids);
    assert_eq!(claimed(&store, NOW_MS + 999, 9).await, []);
    assert_eq!(claimed(&store, NOW_MS + 1_000, 9).await, ids);
    assert_eq!(claimed(&store, NOW_MS + 1_500, 9).await, []);
}

pub(super) async fn claims_are_earliest_first(store: TestStore) {
    let ids = given(&store, "a", &[NOW_MS + 30, NOW_MS + 10]).await;
    let more = given(&store, "b", &[NOW_MS + 20, NOW_MS + 40]).await;
    assert_eq!(claimed(&store, NOW_MS + 30, 2).await, [ids[1], more[0]]);
    assert_eq!(claimed(&store, NOW_MS + 30, 2).await, [ids[0]]);
    let early = given(&store, "c", &[NOW_MS - 5]).await;
    assert_eq!(claimed(&store, NOW_MS + 50, 9).await, [early[0], more[1]]);
}

pub(super) async fn settled_is_settled(store: TestStore) {
    let ids = given(&store, "a", &[NOW_MS, NOW_MS + 1]).await;
    assert_eq!(claimed(&store, NOW_MS + 1, 9).await, ids);
    let failed = attempt(NOW_MS, Some("busy"));
    let retry = Settlement::RetryAt {
        due_ms: NOW_MS + 50,
    };
    store
        .settle(ids[0], failed.clone(), retry.clone())
        .await
        .unwrap();
    let done = attempt(NOW_MS + 7, None);
    store
        .settle(ids[1], done.clone(), Settlement::Delivered)
        .await
        .unwrap();

    // A retry is due at its moment, not at the end of the lease.
    assert_eq!(claimed(&store, NOW_MS + 49, 9).await, []);
    assert_eq!(claimed(&store, NOW_MS + 50, 9).await, [ids[0]]);
    store
        .settle(ids[0], done.clone(), Settlement::Delivered)
        .await
        .unwrap();
    assert_eq!(claimed(&store, NOW_MS + 100_000, 9).await, []);

    // One whose lease ended settles late: the first word counts.
    store.settle(ids[1], failed.clone(), retry).await.unwrap();
    assert_eq!(claimed(&store, NOW_MS + 100_000, 9).await, []);
    for (id, attempts) in [(ids[0], vec![failed, done.clone()]), (ids[1], vec![done])] {
        let delivery = store.delivery(id).await.unwrap().unwrap();
        assert_eq!(delivery.state, State::Delivered { at_ms: NOW_MS + 7 });
        assert_eq!(delivery.attempts, attempts);
    }
    let unknown = DeliveryId::new(EventId::from_bytes(b"unknown"), &name("r"), 0);
    let done = attempt(NOW_MS, None);
    store
        .settle(unknown, done, Settlement::Delivered)
        .await
        .unwrap();
    assert_eq!(store.delivery(unknown).await.unwrap(), None);
}

pub(super) async fn dead_letters_are_listed(store: TestStore) {
    let a = given(&store, "a", &[NOW_MS, NOW_MS]).await;
    let b = given(&store, "b", &[NOW_MS]).await;
    // Settling needs no claim: a lease may have ended meanwhile.
    for (id, at_ms) in [(a[0], 30), (b[0], 20), (a[1], 10)] {
        let reason = "gone".to_owned();
        let tried = attempt(at_ms, Some("410"));
        store
            .settle(id, tried, Settlement::Dead { reason })
            .await
            .unwrap();
    }
    let dead = async |tenant: Option<&str>, limit| {
        let tenant = tenant.map(name);
        let which = Which {
            tenant,
            ..Which::default()
        };
        let dead = store.dead(&which, limit).await.unwrap().deliveries;
        dead.iter().map(|it| it.id).collect::<Vec<_>>()
    };
    assert_eq!(dead(None, 9).await, [a[1], b[0], a[0]]);
    assert_eq!(dead(None, 1).await, [a[1]]);
    assert_eq!(dead(Some("a"), 9).await, [a[1], a[0]]);
    assert_eq!(dead(Some("c"), 9).await, []);
    assert_eq!(claimed(&store, NOW_MS, 9).await, []);
    let state = store.delivery(b[0]).await.unwrap().unwrap().state;
    let reason = "gone".to_owned();
    assert_eq!(state, State::Dead { at_ms: 20, reason });
}

pub(super) async fn a_dead_letter_is_redriven_once(store: TestStore) {
    let ids = given(&store, "a", &[NOW_MS, NOW_MS]).await;
    let (dead, alive) = (ids[0], ids[1]);
    let reason = || "gone".to_owned();
    let give_up = async |id: DeliveryId, at_ms: i64, accepted: &[&str]| {
        let mut tried = attempt(at_ms, Some("410"));
        tried.accepted = accepted.iter().map(|who| (*who).to_owned()).collect();
        let settlement = Settlement::Dead { reason: reason() };
        store.settle(id, tried, settlement).await.unwrap();
    };
    give_up(dead, 30, &["a@example.com"]).await;
    for no_dead_letter in [alive, DeliveryId(uuid::Uuid::nil())] {
        assert_eq!(store.redrive(no_dead_letter, 40).await.unwrap(), None);
    }
    let new = store.redrive(dead, 40).await.unwrap().unwrap();
    assert_eq!(store.redrive(dead, 40).await.unwrap(), None);
    // The old one knows the new one and keeps its story; the new one begins afresh.
    let old = store.delivery(dead).await.unwrap().unwrap();
    let redriven = State::Redriven {
        at_ms: 30,
        reason: reason(),
        to: new.id,
    };
    assert_eq!((old.state, old.attempts.len()), (redriven, 1));
    assert_ne!(new.id, dead);
    assert_eq!(new.state, State::Pending { due_ms: 40 });
    assert_eq!(new.redrive_of.as_ref().map(|of| of.id), Some(dead));
    assert!(new.attempts.is_empty());
    assert_eq!(new.payload, old.payload);
    assert_eq!(store.delivery(new.id).await.unwrap(), Some(new.clone()));
    assert!(
        store
            .dead(&Which::default(), 9)
            .await
            .unwrap()
            .deliveries
            .is_empty()
    );
    let story = store.story(new.event).await.unwrap().unwrap();
    assert!(story.deliveries.iter().any(|it| it.id == new.id));
    assert_eq!(claimed(&store, 40, 9).await, [new.id]);
    // It can die and be redriven as well, and nobody who has it is asked a second time.
    give_up(new.id, 50, &["b@example.com"]).await;
    let third = store.redrive(new.id, 60).await.unwrap().unwrap();
    assert!(third.id != dead && third.id != new.id);
    let accepted: Vec<_> = third.accepted().collect();
    assert_eq!(accepted, ["a@example.com", "b@example.com"]);
}

/// An event whose rule sends this often to a digest of three, or escalates.
async fn timed(store: &TestStore, actions: usize, timing: &Timing) -> Vec<DeliveryId> {
    let event = store.append(anonymous("a", "x")).await.unwrap().id;
    let mut commit = commit_due("a", event, "triage", &vec![NOW_MS; actions]);
    for delivery in &mut commit.deliveries {
        delivery.timing = Some(Box::new(timing.clone()));
    }
    if let Outcome::Decided(decided) = &mut commit.decisions[0].outcome {
        let action = decided.actions[0].clone();
        decided.actions = vec![action; actions];
    }
    let ids = commit.deliveries.iter().map(|it| it.id).collect();
    store.commit(&name("a"), vec![commit]).await.unwrap();
    ids
}

pub(super) async fn a_digest_gathers_what_one_event_and_others_bring(store: TestStore) {
    let mut digest = Timing::default();
    digest.digest = Some(Digest {
        key: "k".to_owned(),
        window_s: 60,
        size: 3,
    });
    let first = timed(&store, 2, &digest).await;
    assert_eq!(claimed(&store, NOW_MS, 9).await, []);
    let second = timed(&store, 1, &digest).await;
    // It is full, so it is due.
    let due = claim(&*store, NOW_MS, 1_000, 9).await;
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].id, first[0]);
    assert_eq!(due[0].payload, message("an incident"));
    let lines: Vec<_> = due[0].gathered.iter().map(|line| line.delivery).collect();
    assert_eq!(lines, [first[0], first[1], second[0]]);
    for gathered in [first[1], second[0]] {
        let state = store.delivery(gathered).await.unwrap().unwrap().state;
        let into = first[0];
        assert!(
            matches!(state, State::Gathered { into: it, .. } if it == into),
            "{state:?}"
        );
    }
    // The next one begins another, and one that is out takes no more.
    let third = timed(&store, 1, &digest).await;
    assert_eq!(
        claimed(&store, NOW_MS + 60_000, 9).await.first(),
        Some(&first[0])
    );
    let fourth = timed(&store, 1, &digest).await;
    let state = store.delivery(fourth[0]).await.unwrap().unwrap().state;
    assert!(matches!(state, State::Pending { .. }), "{state:?}");
    assert_ne!(third, fourth);
}

pub(super) async fn an_escalation_is_acknowledged_unless_it_is_out(store: TestStore) {
    let mut timing = Timing::default();
    timing.escalate = Some(Escalate {
        channel: "boss".to_owned(),
        after_s: 1,
    });
    let acknowledge = async |id: DeliveryId| store.acknowledge(id, NOW_MS + 5).await.unwrap();
    let one = timed(&store, 1, &timing).await[0];
    let late = timed(&store, 1, &timing).await[0];
    let plain = given(&store, "a", &[NOW_MS]).await[0];
    assert_eq!(acknowledge(plain).await, Acknowledgement::Nothing);
    for id in [one, one.escalated(), one] {
        assert_eq!(acknowledge(id).await, Acknowledgement::Acknowledged);
    }
    let mut due = claimed(&store, NOW_MS + 1_000, 9).await;
    let mut expected = vec![one, late, plain, late.escalated()];
    due.sort_unstable();
    expected.sort_unstable();
    assert_eq!(due, expected);
    assert_eq!(acknowledge(late).await, Acknowledgement::TooLate);
    let unknown = DeliveryId::new(EventId::from_bytes(b"unknown"), &name("r"), 0);
    assert_eq!(acknowledge(unknown).await, Acknowledgement::Nothing);
}

pub(super) async fn what_is_disabled_is_remembered(store: TestStore) {
    let line = |channel: &str| Line {
        tenant: name("a"),
        channel: name(channel),
    };
    let disabled = |reason: &str| Disabled {
        at_ms: NOW_MS,
        reason: reason.to_owned(),
    };
    for (channel, reason) in [("b", "gone"), ("a", "old"), ("a", "new")] {
        let off = Some(disabled(reason));
        store.switch(&line(channel), off).await.unwrap();
    }
    let all = [(line("a"), disabled("new")), (line("b"), disabled("gone"))];
    assert_eq!(store.disabled().await.unwrap(), all);
    for _ in 0..2 {
        store.switch(&line("a"), None).await.unwrap();
    }
    assert_eq!(store.disabled().await.unwrap(), all[1..]);
}

pub(super) async fn held_events_are_resolved_once(store: TestStore) {
    let mut events = Vec::new();
    for tenant in ["b", "a"] {
        let id = store.append(anonymous(tenant, "x")).await.unwrap().id;
        let failed = Outcome::Failed {
            kind: "fuel".to_owned(),
            error: "out of fuel".to_owned(),
            then: Then::Held,
        };
        let commit = Commit {
            event: id,
            received_ms: NOW_MS,
            decisions: vec![decided(id, "fine"), decision(id, "triage", failed)],
            deliveries: vec![delivery(tenant, id, "fine", 0, NOW_MS + 500)],
            held: vec![held(tenant, id, "triage"), held(tenant, id, "other")],
        };
        store.commit(&name(tenant), vec![commit]).await.unwrap();
        events.push(id);
    }
    let (b, a) = (events[0], events[1]);
    let all = [
        held("b", b, "other"),
        held("b", b, "triage"),
        held("a", a, "other"),
        held("a", a, "triage"),
    ];
    assert_eq!(store.held(None, None, 9).await.unwrap(), all);
    assert_eq!(store.held(None, None, 1).await.unwrap(), all[..1]);
    let first = (all[0].event, all[0].rule.clone());
    let rest = store.held(None, Some(&first), 9).await.unwrap();
    assert_eq!(rest, all[1..]);
    assert_eq!(
        store.held(Some(&name("a")), None, 9).await.unwrap(),
        all[2..]
    );

    let resolve = async |tenant: &str, rule: &str| {
        let deliveries = vec![delivery("a", a, rule, 0, NOW_MS)];
        let record = decided(a, rule);
        store
            .resolve_held(&name(tenant), record, deliveries)
            .await
            .unwrap()
    };
    assert!(!resolve("b", "triage").await, "another tenant's");
    assert!(!resolve("a", "fine").await, "not held");
    assert!(resolve("a", "triage").await);
    assert!(!resolve("a", "triage").await, "a second time");

    assert_eq!(
        store.held(Some(&name("a")), None, 9).await.unwrap(),
        all[2..3]
    );
    let story = store.story(a).await.unwrap().unwrap();
    assert_eq!(story.decisions, [decided(a, "fine"), decided(a, "triage")]);
    let ids: Vec<_> = ["fine", "triage"]
        .map(|rule| DeliveryId::new(a, &name(rule), 0))
        .into();
    assert_eq!(
        story.deliveries.iter().map(|it| it.id).collect::<Vec<_>>(),
        ids
    );
    assert_eq!(claimed(&store, NOW_MS, 9).await, ids[1..]);
}

pub(super) async fn next_due_is_the_earliest_that_can_happen(store: TestStore) {
    assert_eq!(store.next_due().await.unwrap(), None);
    let ids = given(&store, "a", &[NOW_MS + 500, NOW_MS + 5_000]).await;
    assert_eq!(store.next_due().await.unwrap(), Some(NOW_MS + 500));
    assert_eq!(claimed(&store, NOW_MS + 500, 9).await, ids[..1]);
    // Its lease ends before the other one is due.
    assert_eq!(store.next_due().await.unwrap(), Some(NOW_MS + 1_500));
    let done = attempt(NOW_MS, None);
    store
        .settle(ids[0], done.clone(), Settlement::Delivered)
        .await
        .unwrap();
    assert_eq!(store.next_due().await.unwrap(), Some(NOW_MS + 5_000));
    store
        .settle(ids[1], done, Settlement::Delivered)
        .await
        .unwrap();
    assert_eq!(store.next_due().await.unwrap(), None);
}

pub(super) async fn waiters_are_told(store: TestStore) {
    let changed = store.deliveries_changed();
    let told = async || {
        let wait = std::time::Duration::from_millis(20);
        tokio::time::timeout(wait, changed.notified()).await.is_ok()
    };
    let ids = given(&store, "a", &[NOW_MS]).await;
    assert!(told().await);
    given(&store, "a", &[]).await;
    assert!(!told().await, "nothing was added");
    let retry = Settlement::RetryAt { due_ms: NOW_MS };
    store
        .settle(ids[0], attempt(NOW_MS, None), retry)
        .await
        .unwrap();
    assert!(told().await);
    store
        .settle(ids[0], attempt(NOW_MS, None), Settlement::Delivered)
        .await
        .unwrap();
    assert!(!told().await);
}

pub(super) async fn many_append_at_once(store: TestStore) {
    let mut tasks = JoinSet::new();
    for n in 0..64 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let tenant = format!("t{}", n % 3);
            let mut ids = Vec::new();
            for m in 0..10 {
                let event = new_event(&tenant, &format!("{n}-{m}"), "x");
                ids.push(store.append(event).await.unwrap().id);
            }
            assert!(ids.is_sorted());
            ids
        });
    }
    let mut appended = tasks.join_all().await.concat();
    let mut found = Vec::new();
    for tenant in ["t0", "t1", "t2"] {
        let ids = backlog(&store, tenant, 1_000).await;
        assert!(ids.is_sorted());
        found.extend(ids);
    }
    appended.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, appended);
    assert_eq!(found.len(), 640);
}

pub(super) async fn a_delivery_is_claimed_once_by_many(store: TestStore) {
    let mut given_ids = Vec::new();
    for _ in 0..20 {
        given_ids.extend(given(&store, "a", &[NOW_MS; 10]).await);
    }
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let mut mine = Vec::new();
            loop {
                let claimed = claimed(&store, NOW_MS, 7).await;
                if claimed.is_empty() {
                    return mine;
                }
                for id in &claimed {
                    let done = attempt(NOW_MS, None);
                    store
                        .settle(*id, done, Settlement::Delivered)
                        .await
                        .unwrap();
                }
                mine.extend(claimed);
            }
        });
    }
    let mut claimed_ids = tasks.join_all().await.concat();
    claimed_ids.sort_unstable();
    given_ids.sort_unstable();
    assert_eq!(claimed_ids, given_ids);
}

pub(super) async fn records_are_set_together_and_found(store: TestStore) {
    let set = async |changes: &[(&str, Option<&[u8]>)]| {
        let changes = changes.iter();
        let changes = changes.map(|(key, value)| ((*key).to_owned(), value.map(<[u8]>::to_vec)));
        store.set_records(changes.collect()).await.unwrap();
    };
    let long = vec![7; 100_000];
    set(&[("a/1", Some(&long)), ("a/2", Some(b"two")), ("b/1", None)]).await;
    assert_eq!(store.record("a/1").await.unwrap(), Some(long));
    assert_eq!(store.record("a").await.unwrap(), None);
    let found = store.records("a/").await.unwrap();
    assert_eq!(
        found.iter().map(|(key, _)| key).collect::<Vec<_>>(),
        ["a/1", "a/2"]
    );
    // A long one becomes a short one, and nothing of it is left.
    set(&[("a/1", Some(b"one")), ("a/2", None), ("b", Some(b""))]).await;
    let found = store.records("").await.unwrap();
    let expected = [("a/1", b"one".to_vec()), ("b", Vec::new())];
    assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value)));
}
