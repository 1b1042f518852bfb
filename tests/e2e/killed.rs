//! The engine is killed at the system calls by which a start and a stop change files: it starts again, and
//! all is there. A few of them each time, and those at which sled's own names change; `HOOKSIEVE_KILL_POINTS=all`
//! for every one.

use hooksieve::store;
use hooksieve_tests::{Ended, Receiver, Setup, Traced, say};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// How many calls of each kind of run are tried, besides those that are tried always.
const POINTS: usize = 5;
/// Calls at which it matters: names appear, change and go.
const ALWAYS: [&str; 4] = [".generating", "conf", "set-aside", "rename"];
/// How often a call that matters is tried, of those that look the same.
const ALIKE: usize = 4;

fn tenant(hook: &Receiver, with_rule: bool) -> String {
    let rule = if with_rule {
        "[[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n"
    } else {
        ""
    };
    format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\nretry_ms = [3_600_000]\n{rule}",
        hook.url("/hook"),
    )
}

/// How many rows there are of each kind that may not become fewer.
type Rows = BTreeMap<&'static str, u64>;

/// What a store holds, which is whole.
fn rows(data: &Path, at: &str) -> Rows {
    let report = store::check(&data.join("store"), &mut |_| {});
    let report = report.unwrap_or_else(|error| panic!("{at}: {error}"));
    assert!(report.faults == 0, "{at}: {:?}", report.told);
    let kinds = report.kinds.into_iter();
    kinds.map(|(kind, found)| (kind, found.rows)).collect()
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

/// Which of these calls are tried: numbers from 1 on.
fn chosen(calls: &[String]) -> Vec<usize> {
    if std::env::var("HOOKSIEVE_KILL_POINTS").is_ok_and(|it| it == "all") {
        return (1..=calls.len()).collect();
    }
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let step = (calls.len() / POINTS).max(1);
    let chosen = calls.iter().enumerate().filter(|(at, call)| {
        let often = seen.entry(call.as_str()).or_default();
        *often += 1;
        let matters = ALWAYS.iter().any(|part| call.contains(part));
        at % step == step - 1 || (matters && *often <= ALIKE)
    });
    chosen.map(|(at, _)| at + 1).collect()
}

/// How a run ended, and the ids of events that it took.
type Run = (Ended, Vec<String>);

/// Waits until it is up and has it end, or sees it killed before.
fn through(traced: Traced, then: impl FnOnce(&Traced, &str) -> Vec<String>) -> Run {
    let mut taken = Vec::new();
    if let Some(line) = traced.line() {
        let base = line.split_once("listens on ").map(|(_, rest)| rest);
        let base = base.and_then(|rest| rest.split(' ').next());
        taken = then(&traced, base.expect("it says where it listens"));
    }
    (traced.ended(), taken)
}

/// Kills runs that begin with this folder at one call after another, and looks what is there afterwards.
/// The number of kills.
async fn killed_everywhere(
    what: &str,
    setup: &Setup,
    before: &Path,
    run: impl Fn(usize) -> Option<Run>,
    events: &[String],
) -> Option<usize> {
    copy(before, &setup.data());
    let least = match events {
        [] => Rows::new(),
        _ => rows(&setup.data(), what),
    };
    copy(before, &setup.data());
    let (whole, _) = run(0)?;
    assert!(!whole.calls.is_empty(), "{what}: it changes files at all");
    let mut kills = 0;
    for at in chosen(&whole.calls) {
        copy(before, &setup.data());
        let (ended, taken) = run(at)?;
        let call = ended.calls.last().cloned().unwrap_or_default();
        let place = format!("{what}, killed at call {at}, {call}");
        kills += usize::from(ended.killed);
        let server = setup.start().await;
        for event in events.iter().chain(&taken) {
            let found = server.get(&format!("/v1/events/{event}")).await;
            assert_eq!(found.status, 200, "{place}: {}", found.body);
        }
        server.stop().await;
        let now = rows(&setup.data(), &place);
        for (kind, least) in &least {
            let now = now.get(kind).copied().unwrap_or(0);
            assert!(now >= *least, "{place}: {kind}: {now} of {least}");
        }
    }
    say(&format!(
        "killed: {what}: {} calls change files, {kills} kills, all there",
        whole.calls.len()
    ));
    Some(kills)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_call_of_a_start_or_a_stop_it_opens_again_with_all_that_was_there() {
    let hook = Receiver::start().await;
    let quiet = "[log]\nlevel = \"error\"\n";
    // The first start of all, where there is nothing yet.
    let setup = Setup::new()
        .config(quiet)
        .tenant("acme", &tenant(&hook, false));
    let nothing = tempfile::tempdir().unwrap();
    let end = |traced: &Traced, _: &str| {
        traced.signal(libc::SIGKILL);
        Vec::new()
    };
    let run = |kill_at| Some(through(setup.start_traced(kill_at, true).ok()?, end));
    let first = killed_everywhere("a first start", &setup, nothing.path(), run, &[]).await;
    if first.is_none() {
        return;
    }

    // One that finds something of every kind, and has a snapshot to write.
    let setup = Setup::new()
        .config(quiet)
        .tenant("acme", &tenant(&hook, true));
    let server = setup.start().await;
    let mut events = Vec::new();
    for n in 0..24 {
        let event = match n % 4 {
            0 => json!({ "do": "error", "message": "held" }),
            1 => json!({ "do": "notify", "channel": "hook", "after_s": 3_600, "title": "later" }),
            _ => json!({ "do": "post", "channel": "hook", "payload": "x".repeat(20_000) }),
        };
        let sent = server.post_json("/in/acme/open", &event.to_string()).await;
        events.push(sent.id());
    }
    server.settled(&events[23]).await;
    server.stop().await;
    let before = tempfile::tempdir().unwrap();
    copy(&setup.data(), before.path());
    let run = |kill_at| Some(through(setup.start_traced(kill_at, true).ok()?, end));
    let start = killed_everywhere("a start", &setup, before.path(), run, &events).await;

    // And the end of one that has taken something.
    let run = |kill_at| {
        let traced = setup.start_traced(kill_at, false).ok()?;
        Some(through(traced, |traced, base| {
            let event = json!({ "do": "post", "channel": "hook", "payload": 1 }).to_string();
            let id = send(base, &event);
            traced.count();
            traced.signal(libc::SIGTERM);
            vec![id]
        }))
    };
    let stop = killed_everywhere("a stop", &setup, before.path(), run, &events).await;
    assert!(first > Some(0) && start > Some(0) && stop > Some(0));
}

/// Posts an event without a runtime, and waits for the answer that it is taken: its id.
fn send(base: &str, event: &str) -> String {
    use std::io::{Read as _, Write as _};

    let addr = base.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    let length = event.len();
    let request = format!(
        "POST /in/acme/open HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{event}"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let id = answer.split_once(r#""id":""#).map(|(_, rest)| rest);
    id.and_then(|rest| rest.split('"').next())
        .expect("an id")
        .to_owned()
}
