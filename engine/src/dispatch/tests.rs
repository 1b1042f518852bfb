//! Against the store in memory and real HTTP receivers.

use super::*;
use crate::channel::{Channel, webhook};
use crate::id::{EventId, Hash};
use crate::quota::EventsQuota;
use crate::secret::Secret;
use crate::store::{About, Commit, EventLog as _, MemoryStore, NewEvent, Outbox as _, State};
use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::post;
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Message, Payload};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis() as i64
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A receiver whose paths are its channels, and a dispatcher that delivers to them.
struct Stage {
    store: Arc<MemoryStore>,
    receiver: Arc<Receiver>,
    cancel: CancellationToken,
    running: JoinHandle<()>,
}

struct Receiver {
    /// The paths and ids that came in, in order.
    seen: Mutex<Vec<(String, String)>>,
    /// What to answer on a path; 200 when it is not named. The first of several is used up.
    answers: Mutex<HashMap<String, VecDeque<u16>>>,
    /// `/slow` waits for one of these.
    let_go: Semaphore,
    at_once: AtomicUsize,
    at_once_max: AtomicUsize,
}

impl Receiver {
    async fn take(&self, path: String, id: String) -> StatusCode {
        self.seen.lock().unwrap().push((path.clone(), id));
        if path == "slow" {
            let at_once = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.at_once_max.fetch_max(at_once, Ordering::SeqCst);
            self.let_go.acquire().await.unwrap().forget();
            self.at_once.fetch_sub(1, Ordering::SeqCst);
        }
        let mut answers = self.answers.lock().unwrap();
        let next = answers.get_mut(&path).and_then(VecDeque::pop_front);
        StatusCode::from_u16(next.unwrap_or(200)).unwrap()
    }

    fn seen_on(&self, path: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(on, _)| on == path).count()
    }
}

async fn stage(in_flight_max: usize, per_channel_max: usize, lease_ms: i64) -> Stage {
    let receiver = Arc::new(Receiver {
        seen: Mutex::default(),
        answers: Mutex::default(),
        let_go: Semaphore::new(0),
        at_once: AtomicUsize::new(0),
        at_once_max: AtomicUsize::new(0),
    });
    let taking = Arc::clone(&receiver);
    let take = move |Path(path): Path<String>, headers: axum::http::HeaderMap| async move {
        let id = headers["webhook-id"].to_str().unwrap().to_owned();
        taking.take(path, id).await
    };
    let app = Router::new().route("/{path}", post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });

    let channels = ["fast", "slow", "flaky"].map(|channel| {
        let webhook = webhook::Webhook::new(webhook::Settings {
            url: format!("http://{address}/{channel}"),
            timeout_ms: 10_000,
            ..webhook::Settings::default()
        });
        (name(channel), Arc::new(Channel::Webhook(webhook.unwrap())))
    });
    let live = Live::default();
    let octo = crate::live::OfTenant {
        sources: BTreeMap::new(),
        channels: BTreeMap::from(channels),
        paces: BTreeMap::new(),
        deliveries_per_s: 0,
        stored_bytes: 0,
        events: Arc::new(EventsQuota::new(0)),
    };
    live.put(&name("octo"), octo);
    let store = Arc::new(MemoryStore::new(0));
    let wake: Wake = Arc::new(|_: &Name| {});
    let switches = Switches::load(store.clone(), wake).await.unwrap();
    let settings = Settings {
        disable_after_ms: 60_000,
        in_flight_max,
        in_flight_per_channel_max: per_channel_max,
        lease_ms,
        schedule: Schedule {
            waits_ms: vec![1, 2, 4],
        },
        metrics: Arc::new(Metrics::new([&name("octo")])),
    };
    let dispatcher = Dispatcher::new(
        store.clone(),
        Arc::new(live),
        Arc::new(crate::channel::tests::outgoing(None)),
        Links::new(None, Secret::new("a key")),
        Arc::new(switches),
        settings,
        Arc::new(now_ms),
    );
    let cancel = CancellationToken::new();
    Stage {
        store,
        receiver,
        running: tokio::spawn(dispatcher.run(cancel.clone())),
        cancel,
    }
}

impl Stage {
    /// Commits an event with one delivery to each of these channels.
    async fn commit(&self, channels: &[&str]) -> Vec<DeliveryId> {
        let (tenant, rule) = (name("octo"), name("triage"));
        let event = NewEvent {
            tenant: tenant.clone(),
            source: name("github"),
            kind: "push".into(),
            subject: None,
            time: "2025-06-01T12:00:00Z".into(),
            headers: Vec::new(),
            data: Data::from_json(b"{}").unwrap(),
            sender_id: None,
            body_hash: Hash::of(b"{}"),
            verified: "test".into(),
            received_ms: now_ms(),
        };
        let event: EventId = self.store.append(event).await.unwrap().id;
        let delivery = |(position, channel): (usize, &&str)| Delivery {
            id: DeliveryId::new(event, &rule, position),
            tenant: tenant.clone(),
            event,
            rule: rule.clone(),
            position: position as u32,
            channel: name(channel),
            reason: String::new(),
            payload: Payload::Message(Message::default()),
            about: About {
                source: name("github"),
                kind: "push".into(),
                subject: None,
                time: "2025-06-01T12:00:00Z".into(),
            },
            state: State::Pending { due_ms: now_ms() },
            attempts: Vec::new(),
            created_ms: now_ms(),
            timing: None,
            held_back: 0,
            gathered: Vec::new(),
            redrive_of: None,
            fallback_of: None,
            escalation_of: None,
        };
        let deliveries: Vec<_> = channels.iter().enumerate().map(delivery).collect();
        let ids = deliveries.iter().map(|delivery| delivery.id).collect();
        let commit = Commit {
            event,
            received_ms: now_ms(),
            decisions: Vec::new(),
            deliveries,
            held: Vec::new(),
        };
        self.store.commit(&tenant, vec![commit]).await.unwrap();
        ids
    }

    /// Waits until a delivery is no longer pending.
    async fn settled(&self, id: DeliveryId) -> Delivery {
        let mut settled = None;
        until(async || {
            let delivery = self.store.delivery(id).await.unwrap().unwrap();
            let done = !matches!(delivery.state, State::Pending { .. });
            settled = done.then_some(delivery);
            done
        })
        .await;
        settled.unwrap()
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.running.await.unwrap();
    }
}

async fn until(mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..5_000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it did not happen within 10 s");
}

fn statuses(delivery: &Delivery) -> Vec<Option<u16>> {
    delivery.attempts.iter().map(|it| it.status).collect()
}

#[tokio::test]
async fn a_delivery_arrives_once() {
    let stage = stage(8, 4, 60_000).await;
    let id = stage.commit(&["fast"]).await[0];
    let delivery = stage.settled(id).await;
    assert!(matches!(delivery.state, State::Delivered { .. }));
    assert_eq!(statuses(&delivery), [Some(200)]);
    assert_eq!(
        *stage.receiver.seen.lock().unwrap(),
        [("fast".to_owned(), id.to_string())]
    );
    stage.stop().await;
}

#[tokio::test]
async fn a_failure_is_tried_again_under_the_same_id() {
    let stage = stage(8, 4, 60_000).await;
    let answers = VecDeque::from([503, 429]);
    stage
        .receiver
        .answers
        .lock()
        .unwrap()
        .insert("flaky".into(), answers);
    let id = stage.commit(&["flaky"]).await[0];
    let delivery = stage.settled(id).await;
    assert!(matches!(delivery.state, State::Delivered { .. }));
    assert_eq!(statuses(&delivery), [Some(503), Some(429), Some(200)]);
    let seen = stage.receiver.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|(_, seen)| *seen == id.to_string()));
    stage.stop().await;
}

#[tokio::test]
async fn what_cannot_arrive_dies_with_its_reason() {
    let stage = stage(8, 4, 60_000).await;
    let answers = VecDeque::from([404, 500, 500, 500, 500]);
    stage
        .receiver
        .answers
        .lock()
        .unwrap()
        .insert("flaky".into(), answers);
    for (channel, attempts, reason) in [
        ("flaky", 1, "127.0.0.1:PORT answered 404"),
        (
            "flaky",
            4,
            "given up after 4 attempts: 127.0.0.1:PORT answered 500",
        ),
        ("gone", 1, "channel \"gone\" is no longer configured"),
    ] {
        let id = stage.commit(&[channel]).await[0];
        let delivery = stage.settled(id).await;
        assert_eq!(delivery.attempts.len(), attempts);
        let State::Dead { reason: found, .. } = delivery.state else {
            panic!("{:?}", delivery.state);
        };
        let (before, after) = reason.split_once("PORT").unwrap_or((reason, ""));
        assert!(
            found.starts_with(before) && found.ends_with(after),
            "{found}"
        );
    }
    stage.stop().await;
}

#[tokio::test]
async fn a_slow_channel_stops_no_other() {
    let stage = stage(8, 2, 60_000).await;
    // More than there are permits, all due before what goes to the other channel.
    let slow = stage.commit(&["slow"; 40]).await;
    until(async || stage.receiver.seen_on("slow") == 2).await;
    for id in stage.commit(&["fast"; 20]).await {
        stage.settled(id).await;
    }
    assert_eq!(stage.receiver.seen_on("slow"), 2);
    stage.receiver.let_go.add_permits(40);
    for id in &slow {
        stage.settled(*id).await;
    }
    assert_eq!(stage.receiver.at_once_max.load(Ordering::SeqCst), 2);
    assert_eq!(stage.receiver.seen_on("slow"), 40);
    stage.stop().await;
}

#[tokio::test]
async fn a_lease_that_ends_while_we_hold_it_starts_nothing_twice() {
    let stage = stage(4, 1, 5).await;
    let slow = stage.commit(&["slow"; 3]).await;
    until(async || stage.receiver.seen_on("slow") == 1).await;
    // Several leases long.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stage.receiver.let_go.add_permits(3);
    for id in &slow {
        assert_eq!(stage.settled(*id).await.attempts.len(), 1);
    }
    assert_eq!(stage.receiver.seen_on("slow"), 3);
    stage.stop().await;
}

#[tokio::test]
async fn what_is_in_flight_ends_and_nothing_new_begins() {
    let stage = stage(4, 1, 60_000).await;
    let ids = stage.commit(&["slow", "slow"]).await;
    until(async || stage.receiver.seen_on("slow") == 1).await;
    stage.cancel.cancel();
    let fast = stage.commit(&["fast"]).await[0];
    assert!(!stage.running.is_finished());
    stage.receiver.let_go.add_permits(2);
    stage.running.await.unwrap();

    let mut pending = 0;
    for id in ids {
        let delivery = stage.store.delivery(id).await.unwrap().unwrap();
        pending += usize::from(matches!(delivery.state, State::Pending { .. }));
    }
    assert_eq!((pending, stage.receiver.seen_on("slow")), (1, 1));
    let fast = stage.store.delivery(fast).await.unwrap().unwrap();
    assert!(fast.attempts.is_empty());
}
