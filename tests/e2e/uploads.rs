//! Tenants' own rules: uploaded, tried in the shadow, promoted, rolled back.

use hooksieve_tests::{Answer, PROBE, Receiver, Server, Setup, TOKEN, cli_with, say, until};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A tenant with an open source, a webhook, and one rule in its file that drops everything.
fn tenant(receiver: &Receiver) -> String {
    format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\nsubject_from = '/subject'\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
         [[rule]]\nname = 'fixed'\nmodule = 'probe.wasm'\nevents = ['nothing.of.the.kind']\n",
        receiver.url("/hook"),
    )
}

/// Two tenants that know nothing of each other.
pub(super) async fn start(config: &str) -> (Receiver, Setup, Server) {
    let receiver = Receiver::start().await;
    let setup = Setup::new()
        .config(config)
        .tenant("acme", &tenant(&receiver))
        .tenant("other", &tenant(&receiver));
    let server = setup.start().await;
    (receiver, setup, server)
}

/// A call with a body, as whoever has this token.
pub(super) struct As<'a>(pub(super) &'a Server, pub(super) String);

impl As<'_> {
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        self.with(method, path, &[], body).await
    }

    pub(super) async fn with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let url = format!("{}{path}", self.0.base);
        let mut request = self.0.client.request(method, url).bearer_auth(&self.1);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    pub(super) async fn upload(&self, tenant: &str, wasm: &[u8]) -> Answer {
        let path = format!("{}{}", self.0.base, module_path(tenant, wasm));
        answer(
            self.0
                .client
                .put(path)
                .bearer_auth(&self.1)
                .body(wasm.to_vec()),
        )
        .await
    }

    /// A version with this greeting; the answer is the rule.
    pub(super) async fn version(&self, greeting: &str, role: Value) -> Answer {
        let mut body = json!({
            "module": sha256(PROBE), "config": { "greeting": greeting }, "events": ["*"],
        });
        let more = role.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(more);
        let path = "/v1/tenants/acme/rules/own/versions";
        self.call(Method::POST, path, Some(body)).await
    }

    async fn change(&self, what: &str, body: Value) -> Answer {
        let path = format!("/v1/tenants/acme/rules/own/{what}");
        self.call(Method::POST, &path, Some(body)).await
    }
}

async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.text().await.unwrap(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn module_path(tenant: &str, wasm: &[u8]) -> String {
    format!("/v1/tenants/{tenant}/modules/{}", sha256(wasm))
}

pub(super) async fn token(server: &Server, tenant: Option<&str>, scope: &str) -> String {
    let body = json!({ "tenant": tenant, "scope": scope, "label": format!("a test's {scope}") });
    let operator = As(server, TOKEN.to_owned());
    let made = operator.call(Method::POST, "/v1/tokens", Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.header("cache-control"), "no-store");
    made.json()["token"].as_str().unwrap().to_owned()
}

/// Sends an event of a subject; gives what arrived of it and which version decided.
async fn greeted(server: &Server, receiver: &Receiver, subject: &str) -> (String, u64) {
    let event = json!({ "do": "post", "subject": subject, "payload": 1 }).to_string();
    let id = server.post_json("/in/acme/open", &event).await.id();
    let story = server.settled(&id).await;
    let delivery = &story["deliveries"][0]["id"];
    let got = receiver.received();
    let got = got.iter().find(|it| it.id() == delivery).unwrap().json();
    let decisions = story["decisions"].as_array().unwrap();
    assert_eq!(
        decisions.len(),
        1,
        "the rule in the file has not subscribed"
    );
    (
        got["greeting"].as_str().unwrap().to_owned(),
        decisions[0]["version"].as_u64().unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_is_uploaded_tried_promoted_and_rolled_back() {
    let (receiver, setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    let uploaded = author.upload("acme", PROBE).await;
    assert_eq!(uploaded.status, 201, "{}", uploaded.body);
    let module = uploaded.json();
    assert_eq!(module["sha256"], sha256(PROBE));
    assert_eq!(module["form"], "reactor");
    // The same again is the same.
    assert_eq!(author.upload("acme", PROBE).await.status, 200);

    let first = author.version("one", json!({ "as": "live" })).await;
    assert_eq!((first.status, first.header("etag")), (201, "\"1\""));
    assert_eq!(first.json()["live"], 1);
    let one = ("one".to_owned(), 1);
    assert_eq!(greeted(&server, &receiver, "a").await, one);

    // In the shadow it has no effect, and where it differs is told.
    let second = author.version("two", json!({ "as": "shadow" })).await;
    assert_eq!(second.json()["shadow"], 2);
    assert_eq!(greeted(&server, &receiver, "a").await, one);
    let dropped = json!({ "do": "drop" }).to_string();
    let same = server.post_json("/in/acme/open", &dropped).await.id();
    server.settled(&same).await;
    let path = "/v1/tenants/acme/rules/own/shadow";
    let compared = author.call(Method::GET, path, None).await.json();
    assert_eq!(
        (&compared["compared"], &compared["differed"]),
        (&json!(2), &json!(1))
    );
    assert_eq!(
        compared["differences"][0]["shadow"]["channels"],
        json!(["hook"])
    );

    // A stale change is not made.
    let promote = "/v1/tenants/acme/rules/own/promote";
    let stale = [("if-match", "\"1\"")];
    let refused = author.with(Method::POST, promote, &stale, None).await;
    refused.problem(412, "changed-meanwhile");
    let weak = [("if-match", "W/\"2\"")];
    let refused = author.with(Method::POST, promote, &weak, None).await;
    refused.problem(400, "invalid-if-match");
    // As a shell leaves it that took the quotes.
    let current = [("if-match", "2")];
    let promoted = author.with(Method::POST, promote, &current, None).await;
    assert_eq!(promoted.json()["live"], 2, "{}", promoted.body);
    let two = ("two".to_owned(), 2);
    assert_eq!(greeted(&server, &receiver, "a").await, two);
    let back = author.call(Method::POST, "/v1/tenants/acme/rules/own/rollback", None);
    assert_eq!(back.await.json()["live"], 1);
    assert_eq!(greeted(&server, &receiver, "a").await, one);
    let nothing = author.change("rollback", json!({})).await;
    assert!(
        nothing
            .problem(409, "conflict")
            .contains("no version that was live before")
    );

    // A canary has its subjects, and keeps them.
    let third = author.version("three", json!({ "as": "canary", "percent": 50 }));
    assert_eq!(
        third.await.json()["canary"],
        json!({ "version": 3, "percent": 50.0 })
    );
    let mut of_subject = BTreeMap::new();
    for round in 0..2 {
        for subject in 0..24 {
            let (greeting, _) = greeted(&server, &receiver, &format!("s-{subject}")).await;
            let before = of_subject.insert(subject, greeting.clone());
            assert!(round == 0 || before == Some(greeting));
        }
    }
    let greetings: BTreeSet<&str> = of_subject.values().map(String::as_str).collect();
    assert_eq!(greetings, BTreeSet::from(["one", "three"]));

    // All of it outlives the engine.
    let audit = author
        .call(Method::GET, "/v1/tenants/acme/audit", None)
        .await;
    let whats: Vec<_> = audit
        .json()
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|it| it["what"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        whats,
        ["promote", "shadow", "promote", "rollback", "canary"]
    );
    assert!(audit.body.contains("a test's author ("), "{}", audit.body);
    let text = author.1.clone();
    server.end().await;
    let server = setup.start().await;
    let author = As(&server, text);
    for (subject, greeting) in of_subject.into_iter().take(4) {
        let (again, _) = greeted(&server, &receiver, &format!("s-{subject}")).await;
        assert_eq!(again, greeting);
    }
    let explained = cli_with(
        &[
            "rules",
            "show",
            "own",
            "--tenant",
            "acme",
            "--url",
            &server.base,
        ],
        &[("HOOKSIEVE_TOKEN", &author.1)],
        b"",
    );
    assert!(
        explained.stdout.contains("canary, 50 %"),
        "{}{}",
        explained.stdout,
        explained.stderr
    );

    // A module that a version has stays; without its rule it can go, and nobody decides any more.
    let in_use = author
        .call(Method::DELETE, &module_path("acme", PROBE), None)
        .await;
    assert!(
        in_use
            .problem(409, "conflict")
            .contains("of the rule own has this module")
    );
    let gone = author
        .call(Method::DELETE, "/v1/tenants/acme/rules/own", None)
        .await;
    assert_eq!(gone.json(), json!({ "deleted": "own" }));
    let event = json!({ "do": "post", "payload": 1 }).to_string();
    let id = server.post_json("/in/acme/open", &event).await.id();
    assert_eq!(server.settled(&id).await["decisions"], json!([]));
    let gone = author
        .call(Method::DELETE, &module_path("acme", PROBE), None)
        .await;
    assert_eq!(gone.status, 200, "{}", gone.body);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_and_changes_nothing() {
    let limits = "[uploads]\nrules_max = 1\nversions_max = 2\nmodules_bytes_max = 200000\n\
                  [limits]\nmodule_bytes = 150000\n";
    let (receiver, setup, server) = start(limits).await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    let other = format!("{}{}", server.base, module_path("acme", b"other bytes"));
    let other = server.client.put(other).bearer_auth(&author.1);
    answer(other.body(PROBE)).await.problem(422, "other-module");
    let broken = author.upload("acme", b"\0asm\x01\0\0\0\xff").await;
    let told = broken.problem(422, "module-refused");
    assert!(told.contains("; "), "what to do is said, too: {told}");
    let large = author.upload("acme", &vec![0; 150_001]).await;
    assert!(
        large
            .problem(413, "body-too-large")
            .contains("module_bytes of [limits]")
    );
    let not_there = author.version("x", json!({})).await;
    assert!(
        not_there
            .problem(409, "conflict")
            .contains("upload it first")
    );
    assert_eq!(author.upload("acme", PROBE).await.status, 201);
    // What does not start is no version.
    for (body, what) in [
        (json!({ "config": { "greting": "x" } }), "it does not start"),
        (
            json!({ "channels": ["hok"] }),
            "there is no channel hok; did you mean `hook`?",
        ),
        (json!({ "sources": ["opn"] }), "there is no source opn"),
        (json!({ "events": [] }), "`events` is empty"),
        (json!({ "events": ["*.x"] }), "is no pattern"),
        (json!({ "on_error": "pass" }), "no `default_channel`"),
        (json!({ "as": "canary" }), "a canary needs `percent`"),
        (
            json!({ "as": "canary", "percent": 101 }),
            "`percent` may be 0.01 to 100",
        ),
        (
            json!({ "as": "live", "percent": 5 }),
            "`percent` belongs to a canary",
        ),
    ] {
        let refused = author.version("x", body).await;
        // 422 is wrong whatever the tenant has, and 409 is what another tenant may say.
        let (status, kind) = match what.starts_with("there is no") || what.starts_with("no `") {
            true => (409, "conflict"),
            false => (422, "invalid"),
        };
        let said = refused.problem(status, kind);
        assert!(said.contains(what), "{said}");
    }
    let unknown = author.version("x", json!({ "chanels": ["hook"] })).await;
    assert!(unknown.problem(422, "invalid-body").contains("chanels"));
    let none = author
        .call(Method::GET, "/v1/tenants/acme/rules/own", None)
        .await;
    none.problem(404, "not-found");
    // Limits.
    for number in 1..=3 {
        let made = author.version("x", json!({ "as": "live" })).await;
        assert_eq!(made.json()["live"], number, "{}", made.body);
        if number == 2 {
            // The first is what a rollback would need.
            let full = author.version("x", json!({})).await;
            assert!(
                full.problem(403, "quota").contains("versions_max"),
                "{}",
                full.body
            );
            let path = "/v1/tenants/acme/rules/own";
            assert_eq!(author.call(Method::DELETE, path, None).await.status, 200);
            break;
        }
    }
    assert_eq!(author.version("x", json!({})).await.status, 201);
    let body = json!({ "module": sha256(PROBE), "events": ["*"] });
    let second = author.call(
        Method::POST,
        "/v1/tenants/acme/rules/next/versions",
        Some(body.clone()),
    );
    assert!(
        second
            .await
            .problem(403, "quota")
            .contains("rules_max of [uploads]")
    );
    let fixed = author.call(
        Method::POST,
        "/v1/tenants/acme/rules/fixed/versions",
        Some(body),
    );
    assert!(
        fixed
            .await
            .problem(409, "conflict")
            .contains("in the tenant's file")
    );
    let triage = hooksieve_policies::get("github-triage").unwrap().wasm;
    let orders = hooksieve_policies::get("shopify-orders").unwrap().wasm;
    let mut last = author.upload("acme", triage).await;
    for more in [
        orders,
        &[triage, b"\0\x02\x01x"].concat(),
        &[orders, b"\0\x02\x01x"].concat(),
    ] {
        if last.status != 201 {
            break;
        }
        last = author.upload("acme", more).await;
    }
    assert!(last.status == 201 || last.problem(403, "quota").contains("modules_bytes_max"));
    // A version that cannot be used any more fails on its events, and loses none.
    let promote = author.change("promote", json!({ "version": 1 })).await;
    assert_eq!(promote.json()["live"], 1, "{}", promote.body);
    assert_eq!(greeted(&server, &receiver, "a").await.1, 1);
    server.end().await;
    // Without the rule in the file, which nothing could excuse.
    let files = tenant(&receiver);
    let (files, _) = files.split_once("[[rule]]").unwrap();
    let setup = setup
        .config(&limits.replace("150000", "1024"))
        .tenant("acme", files)
        .tenant("other", files);
    let server = setup.start().await;
    let event = json!({ "do": "post", "payload": 1 }).to_string();
    let id = server.post_json("/in/acme/open", &event).await.id();
    let story = server.settled(&id).await;
    assert_eq!(story["decisions"][0]["then"], "held", "{story}");
    let why = story["decisions"][0]["error"].as_str().unwrap();
    assert!(
        why.contains("cannot be used any more: the module is"),
        "{why}"
    );
    server.end().await;
}

/// The short form; `HOOKSIEVE_PROMOTIONS=1000` is the long one.
#[tokio::test(flavor = "multi_thread")]
async fn promoting_under_load_loses_no_event_and_decides_none_twice() {
    let rounds = std::env::var("HOOKSIEVE_PROMOTIONS");
    let rounds: usize = rounds.map_or(40, |it| it.parse().unwrap());
    let (receiver, _setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    author.upload("acme", PROBE).await;
    author.version("one", json!({ "as": "live" })).await;
    author.version("two", json!({})).await;
    let done = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> = (0..8)
        .map(|sender| {
            let (client, base, done) = (server.client.clone(), server.base.clone(), done.clone());
            tokio::spawn(async move {
                let mut ids = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    let event = json!({ "do": "post", "subject": sender, "payload": ids.len() });
                    let sent = client.post(format!("{base}/in/acme/open")).json(&event);
                    let answer: Value = sent.send().await.unwrap().json().await.unwrap();
                    ids.push(answer["id"].as_str().unwrap().to_owned());
                }
                ids
            })
        })
        .collect();
    let began = Instant::now();
    for round in 0..rounds {
        let (what, live) = match round % 2 {
            0 => ("promote", 2),
            _ => ("rollback", 1),
        };
        let changed = author.change(what, json!({ "version": 2 })).await;
        let changed = match changed.status {
            200 => changed,
            _ => panic!("{}", changed.body),
        };
        assert_eq!(changed.json()["live"], live);
        // What comes in after the answer is decided by it.
        let event = json!({ "do": "drop" }).to_string();
        let id = server.post_json("/in/acme/open", &event).await.id();
        let story = server.settled(&id).await;
        assert_eq!(story["decisions"][0]["version"], live, "round {round}");
    }
    let took = began.elapsed();
    done.store(true, Ordering::Relaxed);
    let mut ids = Vec::new();
    for sender in senders {
        ids.extend(sender.await.unwrap());
    }
    let mut by_version = BTreeMap::new();
    for id in &ids {
        let story = server.settled(id).await;
        let decisions = story["decisions"].as_array().unwrap();
        assert_eq!(decisions.len(), 1, "{story}");
        assert_eq!(story["deliveries"].as_array().unwrap().len(), 1, "{story}");
        *by_version
            .entry(decisions[0]["version"].as_u64())
            .or_insert(0) += 1;
    }
    let arrived = until("all have arrived", || async {
        let got = receiver.received();
        (got.len() >= ids.len()).then_some(got)
    });
    let arrived = arrived.await;
    let unique: BTreeSet<&str> = arrived.iter().map(|it| it.id()).collect();
    assert_eq!((unique.len(), arrived.len()), (ids.len(), ids.len()));
    say(&format!(
        "{rounds} changes in {took:.1?}: {} events, each decided once and arrived once; by version {by_version:?}",
        ids.len()
    ));
    server.end().await;
}

/// As an author does it, from a token.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_all_of_it() {
    let (receiver, setup, server) = start("").await;
    let made = |scope: &str| {
        let args = [
            "tokens",
            "make",
            "--tenant",
            "acme",
            "--label",
            "ci",
            "--scope",
            scope,
            "--url",
            &server.base,
        ];
        cli_with(&args, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"")
    };
    let token = made("author");
    assert_eq!(token.code, 0, "{}", token.stderr);
    let home = tempfile::tempdir().unwrap();
    let env = [("XDG_CONFIG_HOME", home.path().to_str().unwrap())];
    let run = |args: &[&str]| cli_with(args, &env, b"");
    let wrong = cli_with(&["login", &server.base], &env, b"hooksieve_0_0\n");
    assert_eq!((wrong.code, wrong.stdout.as_str()), (1, ""));
    let login = cli_with(&["login", &server.base], &env, token.stdout.as_bytes());
    assert_eq!(login.code, 0, "{}", login.stderr);
    assert!(
        login.stdout.contains("author of the tenant acme"),
        "{}",
        login.stdout
    );
    let kept = home.path().join("hooksieve/login.toml");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let wasm = setup.tenants().join("probe.wasm");
    let wasm = wasm.to_str().unwrap();
    let config = home.path().join("c.toml");
    std::fs::write(&config, "greeting = 'one'\n").unwrap();
    let needs = run(&["push", wasm, "--rule", "own"]);
    assert_eq!(needs.code, 2);
    assert!(needs.stderr.contains("--events '*'"), "{}", needs.stderr);
    let pushed = run(&[
        "push",
        wasm,
        "--rule",
        "own",
        "--events",
        "*",
        "--config",
        config.to_str().unwrap(),
    ]);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    assert!(
        pushed.stdout.starts_with("version 1 of own is live\n"),
        "{}",
        pushed.stdout
    );
    assert_eq!(greeted(&server, &receiver, "a").await.0, "one");
    // The next version goes on from the newest.
    std::fs::write(&config, "greeting = 'two'\n").unwrap();
    let pushed = run(&[
        "push",
        wasm,
        "--rule",
        "own",
        "--shadow",
        "--config",
        config.to_str().unwrap(),
    ]);
    assert!(
        pushed.stdout.contains("in the shadow"),
        "{}{}",
        pushed.stdout,
        pushed.stderr
    );
    assert_eq!(greeted(&server, &receiver, "a").await.0, "one");
    let shown = run(&["rules", "show", "own"]);
    assert!(
        shown.stdout.contains("version 2: 1 of 1 events differ"),
        "{}",
        shown.stdout
    );
    let shadow = server.get("/v1/tenants/acme/rules/own/shadow").await.json();
    let event = shadow["differences"][0]["event"].as_str().unwrap();
    let explained = run(&["explain", event]).stdout;
    assert!(
        explained.contains("shadow    version 2 would have: notified"),
        "{explained}"
    );
    assert_eq!(
        run(&["promote", "own"]).stdout,
        "version 2 of own is live\n"
    );
    assert_eq!(greeted(&server, &receiver, "a").await.0, "two");
    assert_eq!(
        run(&["rollback", "own"]).stdout,
        "version 1 of own is live\n"
    );
    let pushed = run(&["push", wasm, "--rule", "own", "--canary", "5%"]);
    assert!(
        pushed.stdout.contains("version 3 of own is the canary"),
        "{}{}",
        pushed.stdout,
        pushed.stderr
    );
    let listed = run(&["rules", "list", "--json"]).json_lines().remove(0);
    let own = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["name"] == "own")
        .unwrap();
    assert_eq!(own["canary"]["percent"], 5.0);
    assert_eq!(run(&["rules", "stop", "own"]).code, 0);
    let audit = run(&["rules", "audit"]).stdout;
    assert!(
        audit.contains("rollback") && audit.contains("ci ("),
        "{audit}"
    );
    // A token that was kept for one engine is not sent to another.
    let elsewhere = Receiver::start().await;
    run(&["rules", "list", "--url", &elsewhere.url("")]);
    let sent = elsewhere.received();
    assert!(
        sent.iter()
            .all(|it| !it.header("authorization").contains("hooksieve_"))
    );
    let revoked = token.stdout.split('_').nth(1).unwrap().to_owned();
    let gone = cli_with(
        &["tokens", "revoke", &revoked, "--url", &server.base],
        &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)],
        b"",
    );
    assert_eq!(gone.code, 0, "{}", gone.stderr);
    let after = run(&["rules", "list"]);
    assert!(after.stderr.contains("Not authorised"), "{}", after.stderr);
    assert_eq!(run(&["rules", "delete", "own"]).code, 1);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shadow_was_found_to_decide_outlasts_the_engine() {
    let (_receiver, setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    author.upload("acme", PROBE).await;
    author.version("one", json!({ "as": "live" })).await;
    author.version("two", json!({ "as": "shadow" })).await;
    let event = json!({ "do": "post", "payload": 1 }).to_string();
    let event = server.post_json("/in/acme/open", &event).await.id();
    server.settled(&event).await;
    let path = "/v1/tenants/acme/rules/own/shadow";
    let before = author.call(Method::GET, path, None).await.json();
    assert_eq!(before["differences"][0]["event"], json!(event));
    let As(_, text) = author;
    server.stop().await;
    let server = setup.start().await;
    let author = As(&server, text);
    assert_eq!(author.call(Method::GET, path, None).await.json(), before);
    // Another shadow begins anew.
    author.version("three", json!({ "as": "shadow" })).await;
    let now = author.call(Method::GET, path, None).await.json();
    assert_eq!((&now["version"], &now["compared"]), (&json!(3), &json!(0)));
    server.stop().await;
}

/// Damage, or an older engine, may leave a record that cannot be read: its rule's events wait for somebody, and are
/// not committed as if there were no rule.
#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_rule_whose_records_cannot_be_read_are_held() {
    let (_receiver, setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    assert_eq!(author.upload("acme", PROBE).await.status, 201);
    let made = author.version("hello", json!({ "as": "live" })).await;
    assert_eq!(made.status, 201, "{}", made.body);
    server.stop().await;

    let module = format!("wasm/acme/{}", sha256(PROBE));
    for (record, to) in [
        ("rule/acme/own", Some("{")),
        ("version/acme/own/0000000001", Some("[]")),
        ("version/acme/own/0000000001", None),
        (module.as_str(), None),
    ] {
        let before = changed(&setup, record, to.map(|it| it.as_bytes().to_vec())).await;
        let server = setup.start().await;
        let event = json!({ "do": "post", "channel": "hook", "payload": 1 }).to_string();
        let id = server.post_json("/in/acme/open", &event).await.id();
        let story = server.settled(&id).await;
        assert_eq!(story["decisions"][0]["rule"], "own", "{record}: {story}");
        assert_eq!(story["decisions"][0]["then"], "held", "{record}: {story}");
        assert!(server.said().contains("own"), "{record}: {}", server.said());
        server.stop().await;
        changed(&setup, record, before).await;
    }

    // Pushed again, it decides again.
    changed(&setup, "rule/acme/own", Some(b"{".to_vec())).await;
    let server = setup.start().await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    let made = author.version("again", json!({ "as": "live" })).await;
    assert_eq!(made.status, 201, "{}", made.body);
    assert_eq!(made.json()["live"], 2, "{}", made.body);
    let event = json!({ "do": "post", "channel": "hook", "payload": 1 }).to_string();
    let id = server.post_json("/in/acme/open", &event).await.id();
    let story = server.settled(&id).await;
    assert_eq!(story["deliveries"][0]["state"], "delivered", "{story}");
    server.stop().await;
}

/// Changes a record of a store that no engine has open; what it was before.
async fn changed(setup: &Setup, record: &str, to: Option<Vec<u8>>) -> Option<Vec<u8>> {
    use hooksieve::store::{Options, Records as _, SledStore};

    let options = Options {
        duplicate_window_ms: 1_000,
        cache_bytes: 1 << 20,
        queue_max: 16,
        group_max: 16,
        due_loaded_max: 16,
    };
    let store = SledStore::open(&setup.data().join("store"), options).unwrap();
    let before = store.record(record).await.unwrap();
    store
        .set_records(vec![(record.to_owned(), to)])
        .await
        .unwrap();
    before
}
