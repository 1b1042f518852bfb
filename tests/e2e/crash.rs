//! SIGKILL at random moments, while events stream in: nothing that was answered 202 is lost, and
//! nothing arrives under two ids.
//!
//! Three rounds in an ordinary run; `HOOKSIEVE_CRASH_ROUNDS=50` for a long one.

use hooksieve_tests::{Receiver, Server, Setup, say};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const SECRET: &str = "it-is-made-up";
const SENDERS: u64 = 6;
/// How long an engine lives at most.
const LIFE_MS: u64 = 700;

/// One sender: an event after another, each with a number of its own. As a careful sender does, it
/// repeats the event whose answer it did not get; the repeat has the same delivery id.
#[derive(Default)]
struct Sender {
    /// The number of the event that has no answer yet.
    open: Option<u64>,
    /// The numbers that were answered 202, with the ids they were given.
    accepted: Vec<(u64, String)>,
    /// Answered as a duplicate: the event had been stored, and the answer lost.
    duplicates: u64,
    /// Requests that had no answer.
    unanswered: u64,
}

impl Sender {
    /// Sends until it is told to stop, or gets no answer.
    async fn run(&mut self, server: &Server, numbers: &AtomicU64, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let number = match self.open {
                Some(number) => number,
                None => numbers.fetch_add(1, Ordering::Relaxed),
            };
            if !self.send(server, number).await {
                return;
            }
        }
    }

    /// Sends one event once; tells whether there was an answer.
    async fn send(&mut self, server: &Server, number: u64) -> bool {
        self.open = Some(number);
        let body = format!(
            r#"{{"do": "everywhere", "channels": ["left", "right"], "title": "{number}"}}"#
        );
        let signature = hooksieve_tests::sign::github(SECRET, body.as_bytes());
        let delivery = format!("delivery-{number}");
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", "issues"),
            ("x-github-delivery", &delivery),
            ("x-hub-signature-256", &signature),
        ];
        let sent = server.try_post("/in/acme/hub", &headers, body.as_bytes());
        match sent.await {
            Ok(answer) if answer.status == 202 => {
                self.accepted.push((number, answer.id()));
                self.duplicates += u64::from(answer.json()["duplicate"] == true);
                self.open = None;
                true
            }
            // Busy: it is sent again, as the answer asks.
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{}", answer.body);
                true
            }
            Err(_) => {
                self.unanswered += 1;
                false
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_it_loses_nothing_it_accepted() {
    let rounds = match std::env::var("HOOKSIEVE_CRASH_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("HOOKSIEVE_CRASH_ROUNDS is a number"),
        Err(_) => 3,
    };
    let receiver = Receiver::start().await;
    let channel = |name: &str| {
        let url = receiver.url(&format!("/{name}"));
        format!("[[channel]]\nname = '{name}'\nkind = 'webhook'\nurl = '{url}'\n")
    };
    let rule = |name: &str| {
        format!(
            "[[rule]]\nname = '{name}'\nmodule = 'probe.wasm'\nevents = ['*']\n[rule.config]\ngreeting = '{name}'\n"
        )
    };
    let tenant = format!(
        "[[source]]\nname = 'hub'\nkind = 'github'\nsecret = {{ env = 'HUB' }}\n{}{}{}{}",
        channel("left"),
        channel("right"),
        rule("one"),
        rule("two"),
    );
    let setup = Setup::new()
        .env("HUB", SECRET)
        .config("[dispatch]\nretry_ms = [50, 100, 200, 400, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500, 500]\n[log]\nlevel = \"error\"\n")
        .tenant("acme", &tenant);
    let numbers = Arc::new(AtomicU64::new(0));
    let mut senders: Vec<_> = (0..SENDERS).map(|_| Sender::default()).collect();
    for _ in 0..rounds {
        let server = Arc::new(setup.start().await);
        let stop = Arc::new(AtomicBool::new(false));
        let running: Vec<_> = senders
            .drain(..)
            .map(|mut sender| {
                let (server, numbers, stop) = (server.clone(), numbers.clone(), stop.clone());
                tokio::spawn(async move {
                    sender.run(&server, &numbers, &stop).await;
                    drop(server);
                    sender
                })
            })
            .collect();
        // The moment is the point: anything from the first request to a full load.
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..LIFE_MS))).await;
        server.kill_now();
        stop.store(true, Ordering::Relaxed);
        for sender in running {
            senders.push(sender.await.expect("a sender does not panic"));
        }
        let server = Arc::into_inner(server).expect("the senders have let go");
        server.kill();
    }

    // The last engine lives: what is open is sent again, and everything goes out.
    let server = setup.start().await;
    for sender in &mut senders {
        while let Some(number) = sender.open {
            assert!(
                sender.send(&server, number).await,
                "a living engine answers"
            );
        }
    }
    let all = senders.iter().flat_map(|sender| &sender.accepted);
    for (_, event) in all.clone() {
        let story = server.settled(event).await;
        let deliveries = story["deliveries"].as_array().expect("deliveries");
        let delivered = deliveries
            .iter()
            .filter(|delivery| delivery["state"] == "delivered");
        assert_eq!(delivered.count(), 4, "{story}");
    }
    let accepted: BTreeSet<u64> = all.map(|(number, _)| *number).collect();
    let expected = accepted.len() * 4;
    server.end().await;

    let arrived = distinct(&receiver);
    let lost: Vec<_> = accepted
        .iter()
        .flat_map(|number| ["one", "two"].map(|rule| (*number, rule)))
        .flat_map(|(number, rule)| {
            ["/left", "/right"].map(|path| (number, rule.to_owned(), path.to_owned()))
        })
        .filter(|key| !arrived.contains_key(key))
        .collect();
    let twice: Vec<_> = arrived.iter().filter(|(_, ids)| ids.len() > 1).collect();
    let unexpected = arrived
        .keys()
        .filter(|(number, ..)| !accepted.contains(number))
        .count();
    let requests = receiver.count();
    let sum = |of: fn(&Sender) -> u64| senders.iter().map(of).sum::<u64>();
    say(&format!(
        "crash: {rounds} kills; {} events accepted ({} of them at a repeat whose first answer was lost), {} requests unanswered; \
         {} deliveries due, {} arrived, {} requests at the receiver ({} repeats under the same id); lost {}, under two ids {}",
        accepted.len(),
        sum(|s| s.duplicates),
        sum(|s| s.unanswered),
        expected,
        arrived.len(),
        requests,
        requests - arrived.values().map(HashSet::len).sum::<usize>(),
        lost.len(),
        twice.len(),
    ));
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    assert!(twice.is_empty(), "under two ids: {twice:?}");
    assert_eq!(unexpected, 0, "arrived, and was never accepted");
    assert!(accepted.len() as u64 > rounds, "events were sent at all");
}

/// The ids under which each (event, rule, channel) arrived.
fn distinct(receiver: &Receiver) -> BTreeMap<(u64, String, String), HashSet<String>> {
    let mut arrived: BTreeMap<_, HashSet<String>> = BTreeMap::new();
    for got in receiver.received() {
        let data = got.json()["data"].take();
        let number = data["message"]["title"]
            .as_str()
            .and_then(|n| n.parse().ok());
        let rule = data["reason"].as_str().expect("a reason").to_owned();
        let key = (number.expect("a number"), rule, got.path.clone());
        arrived.entry(key).or_default().insert(got.id().to_owned());
    }
    arrived
}
