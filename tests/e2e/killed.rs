//! The engine is killed at the system calls by which it changes files, from its start through a few events to
//! its stop: it starts again, and all that it had accepted is there. A few of them each time, and those by which
//! sled makes what is not its log; `HOOKSIEVE_KILL_POINTS=all` for every one.

use hooksieve::store;
use hooksieve_tests::{Ended, Receiver, Setup, say};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// How many calls of each kind of run are tried, besides those that are tried always.
const POINTS: usize = 4;
/// Files at whose calls it matters most: they are not written as the log is.
const ALWAYS: [&str; 2] = [".generating", "conf"];
/// How often such a call is tried, of those that look the same.
const ALIKE: usize = 2;
/// How many events a run is sent.
const SENT: usize = 8;

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

/// Starts it, sends it events and has it stop, or sees it killed meanwhile: how it ended, and the ids of the events
/// that it said it had taken.
fn run(setup: &Setup, kill_at: usize) -> Option<(Ended, Vec<String>)> {
    let traced = setup.start_traced(kill_at).ok()?;
    let mut taken = Vec::new();
    if let Some(line) = traced.line() {
        let base = line.split_once("listens on ").map(|(_, rest)| rest);
        let base = base.and_then(|rest| rest.split(' ').next());
        let base = base.expect("it says where it listens");
        let sent = (0..SENT).map_while(|_| send(base).ok().flatten());
        taken.extend(sent);
        traced.signal(libc::SIGTERM);
    }
    Some((traced.ended(), taken))
}

/// Kills runs that begin with this folder at one call after another, and looks what is there afterwards.
/// The number of kills.
async fn killed_everywhere(
    what: &str,
    setup: &Setup,
    before: &Path,
    events: &[String],
) -> Option<usize> {
    copy(before, &setup.data());
    let least = match events {
        [] => Rows::new(),
        _ => rows(&setup.data(), what),
    };
    copy(before, &setup.data());
    let (whole, taken) = run(setup, 0)?;
    assert_eq!(taken.len(), SENT, "{what}: it takes events");
    assert!(!whole.calls.is_empty(), "{what}: it changes files at all");
    let mut kills = 0;
    for at in chosen(&whole.calls) {
        copy(before, &setup.data());
        let (ended, taken) = run(setup, at)?;
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
async fn killed_at_any_call_that_changes_a_file_it_opens_again_with_all_that_it_accepted() {
    let hook = Receiver::start().await;
    let quiet = "[log]\nlevel = \"error\"\n";
    // The first start of all, where there is nothing yet.
    let file = tenant(&hook, false);
    let setup = Setup::new().config(quiet).tenant("acme", &file);
    let nothing = tempfile::tempdir().unwrap();
    let Some(first) = killed_everywhere("a first run", &setup, nothing.path(), &[]).await else {
        return;
    };

    // Those that find something of every kind, and have a snapshot to write: after a stop, and after a kill.
    let file = tenant(&hook, true);
    let setup = Setup::new().config(quiet).tenant("acme", &file);
    let (stopped, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
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
    copy(&setup.data(), stopped.path());
    let server = setup.start().await;
    let more = json!({ "do": "notify", "channel": "hook", "after_s": 3_600 }).to_string();
    let mut all = events.clone();
    for _ in 0..8 {
        all.push(server.post_json("/in/acme/open", &more).await.id());
    }
    server.kill();
    copy(&setup.data(), killed.path());
    let after_stop = killed_everywhere("a run after a stop", &setup, stopped.path(), &events);
    let after_stop = after_stop.await.expect("it could be traced before");
    let after_kill = killed_everywhere("a run after a kill", &setup, killed.path(), &all);
    let after_kill = after_kill.await.expect("it could be traced before");
    assert!(first > 0 && after_stop > 0 && after_kill > 0);
}

/// Posts an event without a runtime: its id, where it is said to be taken.
fn send(base: &str) -> std::io::Result<Option<String>> {
    use std::io::{Read as _, Write as _};

    let event = json!({ "do": "post", "channel": "hook", "payload": 1 }).to_string();
    let addr = base.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(addr)?;
    let length = event.len();
    let request = format!(
        "POST /in/acme/open HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{event}"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let id = answer.split_once(r#""id":""#).map(|(_, rest)| rest);
    let id = id.and_then(|rest| rest.split('"').next());
    let taken = answer.starts_with("HTTP/1.1 202");
    Ok(id.filter(|_| taken).map(str::to_owned))
}
