//! The store over time: what is forgotten, what is kept, and a disk that is full.

use hooksieve_tests::{Output, Receiver, Reply, Server, Setup, TOKEN, cli_with, may_mount, until};
use reqwest::Method;
use serde_json::json;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A tenant with an open source, one rule, and two channels.
fn tenant(receiver: &Receiver) -> String {
    format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
         [[channel]]\nname = 'gone'\nkind = 'webhook'\nurl = '{}'\n\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n",
        receiver.url("/hook"),
        receiver.url("/gone"),
    )
}

/// Answers 400 to what goes to `/gone`, and takes everything else.
async fn receiver() -> Receiver {
    Receiver::answering(|_, got| match got.path.as_str() {
        "/gone" => Reply::status(400),
        _ => Reply::status(200),
    })
    .await
}

async fn sent_to(server: &Server, channel: &str) -> String {
    let event = json!({ "do": "everywhere", "channels": [channel], "title": channel });
    let sent = server.post_json("/in/acme/open", &event.to_string()).await;
    let id = sent.id();
    server.settled(&id).await;
    id
}

fn run(server: &Server, args: &[&str]) -> Output {
    let mut all = args.to_vec();
    all.extend(["--url", &server.base]);
    cli_with(&all, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"")
}

/// `store` on the folder of an engine that has ended.
fn store(setup: &Setup, args: &[&str]) -> Output {
    let data = setup.data();
    let mut all = vec!["store"];
    all.extend(args);
    all.extend(["--data", data.to_str().unwrap()]);
    cli_with(&all, &[], b"")
}

async fn is_forgotten(server: &Server, event: &str) {
    until("an event is forgotten", || async {
        let answer = server.get(&format!("/v1/events/{event}")).await;
        (answer.status == 404).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_and_over_is_forgotten() {
    let receiver = receiver().await;
    let setup = Setup::new()
        .config("[store]\nkeep_s = 1\ndead_keep_s = 4\n")
        .tenant("acme", &tenant(&receiver));
    let server = setup.start().await;
    let arrived = sent_to(&server, "hook").await;
    let dead = sent_to(&server, "gone").await;
    let failed = json!({ "do": "panic", "code": 1 }).to_string();
    let held = server.post_json("/in/acme/open", &failed).await.id();
    is_forgotten(&server, &arrived).await;
    for kept in [&dead, &held] {
        let answer = server.get(&format!("/v1/events/{kept}")).await;
        assert_eq!(answer.status, 200, "it is younger than four seconds");
    }
    assert!(run(&server, &["held", "list"]).stdout.contains(&held));
    // What nobody looked after goes, and its event with it.
    is_forgotten(&server, &dead).await;
    is_forgotten(&server, &held).await;
    let none = server.get("/v1/dead").await.json();
    assert_eq!(none, json!({ "items": [] }));
    assert_eq!(server.get("/v1/held").await.json(), none);
    // A restart goes on as if nothing had been.
    server.stop().await;
    let report = store(&setup, &["check"]);
    assert_eq!(report.code, 0, "{}{}", report.stdout, report.stderr);
    let server = setup.start().await;
    sent_to(&server, "hook").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_purged_by_what_they_are() {
    let receiver = receiver().await;
    let setup = Setup::new().tenant("acme", &tenant(&receiver));
    let server = setup.start().await;
    let mut events = Vec::new();
    for _ in 0..3 {
        events.push(sent_to(&server, "gone").await);
    }
    let listed = run(&server, &["dead", "list", "--limit", "2"]).stdout;
    assert!(listed.contains("There are more"), "{listed}");
    for nothing in [
        &["--channel", "hook"][..],
        &["--tenant", "other"],
        &["--older-than", "1h"],
    ] {
        let mut args = vec!["dead", "purge", "--all"];
        args.extend(nothing);
        assert_eq!(run(&server, &args).stdout, "Purged: 0.\n");
    }
    let story = server
        .get(&format!("/v1/events/{}", events[0]))
        .await
        .json();
    let id = story["deliveries"][0]["id"].as_str().unwrap();
    assert_eq!(run(&server, &["dead", "purge", id]).stdout, "Purged: 1.\n");
    let again = run(&server, &["dead", "purge", id]);
    assert_eq!(again.code, 1);
    assert!(
        again.stderr.contains("there is no dead letter"),
        "{}",
        again.stderr
    );
    let story = server
        .get(&format!("/v1/events/{}", events[0]))
        .await
        .json();
    assert_eq!(story["deliveries"][0]["state"], "purged");
    let rest = run(&server, &["dead", "purge", "--all", "--channel", "gone"]);
    assert_eq!(rest.stdout, "Purged: 2.\n");
    let bad = server.call(Method::GET, "/v1/dead?before=yesterday").await;
    assert!(bad.problem(400, "invalid-query").contains("RFC 3339"));
    let bad = server.call(Method::GET, "/v1/dead?after=x").await;
    assert!(bad.problem(400, "invalid-query").contains("`next`"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_moves_by_export_and_import() {
    let receiver = receiver().await;
    let setup = Setup::new().tenant("acme", &tenant(&receiver));
    let server = setup.start().await;
    let events = [
        sent_to(&server, "hook").await,
        sent_to(&server, "gone").await,
    ];
    let before = server.get(&format!("/v1/events/{}", events[1])).await.body;
    let in_use = store(&setup, &["check"]);
    assert_eq!(in_use.code, 2);
    assert!(
        in_use.stderr.contains("in use by another process"),
        "{}",
        in_use.stderr
    );
    server.stop().await;
    let file = setup.path().join("all.export");
    let file = file.to_str().unwrap();
    let exported = store(&setup, &["export", file]);
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    assert_eq!(
        store(&setup, &["export", file]).code,
        2,
        "it is there already"
    );
    let there = store(&setup, &["import", file]);
    assert!(
        there.stderr.contains("there is something at"),
        "{}",
        there.stderr
    );
    std::fs::remove_dir_all(setup.data().join("store")).unwrap();
    let imported = store(&setup, &["import", file]);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
    let report = store(&setup, &["check", "--json"]);
    assert_eq!(report.json_lines()[0]["kinds"]["event"]["rows"], 2);
    let server = setup.start().await;
    let after = server.get(&format!("/v1/events/{}", events[1])).await.body;
    assert_eq!(before, after);
    let redriven = run(&server, &["dead", "redrive", "--all"]);
    assert_eq!(redriven.code, 0, "{}", redriven.stderr);
    server.stop().await;
}

/// A small disk of its own in memory, where this machine lets us have one.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path, mebibytes: u64) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        may_mount().ok()?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"]);
        assert!(mount.arg(path).status().unwrap().success());
        Some(Self(path.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Sends until so many were refused or so many were taken: their ids, and how many were refused.
async fn pump(server: &Server, until: impl Fn(usize, usize) -> bool) -> (Vec<String>, usize) {
    let body = json!({
        "do": "everywhere", "channels": ["hook"], "title": "one of many", "pad": "x".repeat(20_000),
    })
    .to_string();
    let (mut taken, mut refused) = (Vec::new(), 0);
    while !until(taken.len(), refused) {
        let answer = server.post_json("/in/acme/open", &body).await;
        if answer.status == 202 {
            taken.push(answer.id());
        } else {
            assert_eq!(answer.status, 503, "{}", answer.body);
            refused += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    (taken, refused)
}

/// How many deliveries arrived, each counted once.
fn arrived(receiver: &Receiver) -> usize {
    let received = receiver.received();
    let ids: HashSet<_> = received.iter().map(|got| got.id()).collect();
    ids.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_may_grow_no_more_forgets_history_first() {
    let receiver = receiver().await;
    let setup = Setup::new()
        .config("[store]\nkeep_s = 20\nbytes_max = 16_777_216\n")
        .tenant("acme", &tenant(&receiver));
    let server = setup.start().await;
    // Three times what fits.
    let (taken, _) = pump(&server, |taken, _| taken == 2_500).await;
    until("what is taken arrives", || async {
        (arrived(&receiver) == taken.len()).then_some(())
    })
    .await;
    until("the store is small again", || async {
        let first = server.get(&format!("/v1/events/{}", taken[0])).await;
        (first.status == 404 && server.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    server.stop().await;
    let report = store(&setup, &["check", "--json"]);
    assert_eq!(report.code, 0, "{}", report.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_refused_before_the_disk_is_full_and_taken_again() {
    let receiver = receiver().await;
    let setup = Setup::new()
        .config("[store]\ndisk_free_bytes_min = 25_165_824\n")
        .tenant("acme", &tenant(&receiver));
    let Some(_disk) = Disk::mount(&setup.data(), 96) else {
        return;
    };
    let server = setup.start().await;
    let (mut taken, _) = pump(&server, |taken, _| taken == 20).await;
    let filler = setup.data().join("filler");
    std::fs::write(&filler, vec![1; 64 << 20]).unwrap();
    let (before, refused) = pump(&server, |_, refused| refused == 5).await;
    assert_eq!(refused, 5);
    taken.extend(before);
    let ready = server.call_with(Method::GET, "/readyz", None).await;
    let detail = ready.problem(503, "store-full");
    assert_eq!(
        detail,
        "the disk is nearly full, so no event is taken; send it again later"
    );
    assert_eq!(ready.header("retry-after"), "60");
    // What was taken goes on.
    until("what is taken arrives", || async {
        (arrived(&receiver) == taken.len()).then_some(())
    })
    .await;
    std::fs::remove_file(&filler).unwrap();
    let (after, _) = pump(&server, |taken, _| taken == 20).await;
    taken.extend(after);
    for event in &taken {
        assert_eq!(
            server.settled(event).await["deliveries"][0]["state"],
            "delivered"
        );
    }
    assert!(
        server
            .said()
            .contains("no event is taken: the disk is nearly full")
    );
    assert!(server.said().contains("events are taken again"));
    server.stop().await;
    assert_eq!(store(&setup, &["check"]).code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_all_the_same_loses_nothing_that_was_taken() {
    let receiver = receiver().await;
    let setup = Setup::new()
        .config("[store]\ndisk_free_bytes_min = 0\n")
        .tenant("acme", &tenant(&receiver));
    let Some(_disk) = Disk::mount(&setup.data(), 48) else {
        return;
    };
    let server = setup.start().await;
    let (mut taken, _) = pump(&server, |taken, _| taken == 20).await;
    // Somebody else takes every byte.
    let filler = setup.data().join("filler");
    let full = std::fs::write(&filler, vec![1; 64 << 20]);
    assert!(full.is_err(), "it was larger than the disk");
    let (before, _) = pump(&server, |_, refused| refused == 5).await;
    taken.extend(before);
    let ready = server.call_with(Method::GET, "/readyz", None).await;
    assert_eq!(ready.status, 503, "{}", ready.body);
    server.kill();
    std::fs::remove_file(&filler).unwrap();
    let server = setup.start().await;
    for event in &taken {
        assert_eq!(
            server.settled(event).await["deliveries"][0]["state"],
            "delivered"
        );
    }
    let (after, _) = pump(&server, |taken, _| taken == 20).await;
    assert_eq!(after.len(), 20);
    server.stop().await;
    let report = store(&setup, &["check"]);
    assert_eq!(report.code, 0, "{}{}", report.stdout, report.stderr);
}
