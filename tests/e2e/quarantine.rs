//! A rule that fails again and again is not asked any more, until somebody has looked.

use super::uploads::{As, start, token};
use hooksieve_tests::{PROBE, Receiver, Server, Setup, TOKEN, cli_with};
use reqwest::Method;
use serde_json::{Value, json};

const FIVE: &str = "[quarantine]\nlast_events = 5\nfailed_percent = 80\n";

async fn send(server: &Server, what: &str) -> String {
    let event = json!({ "do": what, "payload": 1 }).to_string();
    server.post_json("/in/acme/open", &event).await.id()
}

/// What became of an event by one rule: the outcome, and the error.
async fn decided(server: &Server, event: &str, rule: &str) -> (Value, Value, String) {
    let story = server.settled(event).await;
    let decisions = story["decisions"].as_array().unwrap();
    let own = decisions.iter().find(|it| it["rule"] == rule).unwrap();
    let error = own["error"].as_str().unwrap_or_default().to_owned();
    (own["outcome"].clone(), own["then"].clone(), error)
}

async fn rule(server: &Server, name: &str) -> Value {
    let path = format!("/v1/tenants/acme/rules/{name}");
    server.get(&path).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_of_a_file_is_quarantined_resumed_and_asked_again() {
    let hook = Receiver::start().await;
    let setup = Setup::new().config(FIVE).tenant(
        "acme",
        &format!(
            "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
             [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
             [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['json']\non_error = 'drop'\n",
            hook.url("/hook"),
        ),
    );
    let server = setup.start().await;
    let good = send(&server, "drop").await;
    assert_eq!(decided(&server, &good, "one").await.0, "dropped");
    for _ in 0..4 {
        assert!(rule(&server, "one").await.get("quarantine").is_none());
        let failed = send(&server, "panic").await;
        let (outcome, then, _) = decided(&server, &failed, "one").await;
        assert_eq!((outcome, then), (json!("failed"), json!("dropped")));
    }
    let quarantine = rule(&server, "one").await["quarantine"].take();
    assert_eq!(
        (&quarantine["failed"], &quarantine["of"]),
        (&json!(4), &json!(5))
    );
    let why = quarantine["error"].as_str().unwrap();
    assert!(why.contains("asked to panic"), "{why}");
    // Its tenant is told, by an event.
    server.settle().await;
    let events = server.get("/v1/tenants/acme/events").await.json();
    let told = &events["items"][0]["event"];
    assert_eq!(
        (&told["type"], &told["subject"]),
        (&json!("hooksieve.rule.quarantined"), &json!("one"))
    );

    // What it would have decided is held now, though it drops what it fails on; after a restart too.
    let first = send(&server, "post").await;
    let (outcome, then, error) = decided(&server, &first, "one").await;
    assert_eq!((outcome, then), (json!("failed"), json!("held")));
    // To the second.
    let since = &quarantine["since"].as_str().unwrap()[..19];
    let told = "when it had failed on 4 of its last 5 events; resume it, or make another version live (one event a minute is asked of it, and it is back when it decides one)";
    assert!(error.contains(since) && error.ends_with(told), "{error}");
    server.stop().await;
    let server = setup.start().await;
    let second = send(&server, "post").await;
    assert_eq!(decided(&server, &second, "one").await.1, "held");
    assert_eq!(rule(&server, "one").await["quarantine"], quarantine);
    assert_eq!(hook.count(), 0);

    // Over the command line, as a person does it.
    let cli = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--url", &server.base]);
        let done = cli_with(&all, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"");
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout
    };
    let listed = cli(&["rules", "list", "--tenant", "acme"]);
    assert!(listed.contains("in the file, in quarantine"), "{listed}");
    let shown = cli(&["rules", "show", "one", "--tenant", "acme"]);
    assert!(shown.contains("asked to panic"), "{shown}");
    let resumed = cli(&["rules", "resume", "one", "--tenant", "acme"]);
    assert!(resumed.starts_with("one is asked again"), "{resumed}");
    let again = cli(&["rules", "resume", "one", "--tenant", "acme"]);
    assert_eq!(again, "one was not in quarantine\n");
    let audit = server.get("/v1/tenants/acme/audit").await.json();
    assert_eq!(
        (&audit[0]["what"], &audit[0]["rule"]),
        (&json!("resume"), &json!("one"))
    );
    let third = send(&server, "post").await;
    assert_eq!(decided(&server, &third, "one").await.0, "notified");
    hook.wait_for(1).await;
    assert_eq!(cli(&["held", "release-all", "acme", "one"]), "released 2\n");
    hook.wait_for(3).await;
    let held = server.get("/v1/held?tenant=acme").await.json();
    assert_eq!(held, json!({ "items": [] }));
    server.stop().await;
    // And it stays resumed.
    let server = setup.start().await;
    assert!(rule(&server, "one").await.get("quarantine").is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_takes_over_from_one_in_quarantine() {
    let (hook, _setup, server) = start(FIVE).await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    assert_eq!(author.upload("acme", PROBE).await.status, 201);
    let made = author.version("one", json!({ "as": "live" })).await;
    assert_eq!(made.status, 201, "{}", made.body);
    for _ in 0..5 {
        let failed = send(&server, "panic").await;
        assert_eq!(decided(&server, &failed, "own").await.1, "held");
    }
    let own = rule(&server, "own").await;
    assert_eq!(own["quarantine"]["version"], 1);
    let held = send(&server, "post").await;
    assert_eq!(decided(&server, &held, "own").await.1, "held");

    let made = author.version("two", json!({ "as": "live" })).await;
    assert!(made.json().get("quarantine").is_none(), "{}", made.body);
    let event = send(&server, "post").await;
    assert_eq!(decided(&server, &event, "own").await.0, "notified");
    // The new version fails on what made the old one fail, and decides the rest.
    let path = "/v1/tenants/acme/rules/own/release";
    let released = author.call(Method::POST, path, None).await;
    let Value::Object(mut released) = released.json() else {
        panic!("{}", released.body)
    };
    let error = released.remove("error").unwrap();
    let error = error.as_str().unwrap();
    assert!(error.contains("asked to panic"), "{error}");
    // The event that tells of the quarantine was held as well: the rule subscribes to everything.
    assert_eq!(
        Value::Object(released),
        json!({ "released": 2, "failed": 5 })
    );
    hook.wait_for(2).await;
    // Whoever rolls back has it asked again.
    let path = "/v1/tenants/acme/rules/own/rollback";
    let back = author.call(Method::POST, path, None).await;
    assert!(back.json().get("quarantine").is_none(), "{}", back.body);
    let event = send(&server, "post").await;
    assert_eq!(decided(&server, &event, "own").await.0, "notified");

    let reader = As(&server, token(&server, Some("acme"), "read-only").await);
    let path = "/v1/tenants/acme/rules/own/resume";
    let refused = reader.call(Method::POST, path, None).await;
    refused.problem(403, "not-allowed");
    let path = "/v1/tenants/acme/rules/none/resume";
    let refused = author.call(Method::POST, path, None).await;
    refused.problem(404, "not-found");
    server.stop().await;
}
