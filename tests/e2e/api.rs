//! The HTTP API as its own description has it: who may do what, lists, and the description itself.

use super::uploads::{As, module_path, start, token};
use hooksieve_tests::{Answer, PROBE, Server, TOKEN, cli_with, python, say, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A call as the description has it, with what it is asked about here.
#[derive(Debug)]
struct Call {
    method: Method,
    path: String,
    /// The scope that it needs.
    needs: String,
    /// What it is answered where it may.
    may: u16,
    body: Option<Value>,
}

impl Call {
    async fn by(&self, caller: &As<'_>) -> Answer {
        let body = self.body.clone();
        caller.call(self.method.clone(), &self.path, body).await
    }
}

/// What a call is asked with, so that none changes what the next one finds.
struct Asked {
    id: &'static str,
    query: &'static str,
    /// Instead of what stands for the path's parameters otherwise.
    with: &'static [(&'static str, &'static str)],
    may: u16,
    body: Option<Value>,
}

fn asked(id: &'static str, may: u16) -> Asked {
    Asked {
        id,
        query: "",
        with: &[],
        may,
        body: None,
    }
}

impl Asked {
    fn query(mut self, query: &'static str) -> Self {
        self.query = query;
        self
    }

    fn with(mut self, with: &'static [(&'static str, &'static str)]) -> Self {
        self.with = with;
        self
    }

    fn body(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }
}

/// Every call of the API.
fn every_call() -> Vec<Asked> {
    let expired = json!({
        "tenant": "acme", "scope": "read-only", "label": "x", "expires": "2001-01-01T00:00:00Z",
    });
    let not_understood = || json!({ "x": 1 });
    let no_rule = &[("rule", "none")];
    vec![
        asked("who_am_i", 200),
        asked("list_tenants", 200),
        asked("tenant", 200),
        asked("backup", 200),
        asked("set_tenant", 409).body(json!({})),
        asked("remove_tenant", 409),
        asked("usage", 200),
        asked("minutes", 200),
        asked("list_sources", 200),
        asked("set_source", 422).body(json!({ "kind": "x" })),
        asked("remove_source", 404).with(&[("source", "none")]),
        asked("list_channels", 200),
        asked("set_channel", 422).body(json!({ "kind": "x" })),
        asked("remove_channel", 404).with(&[("channel", "none")]),
        asked("list_tokens", 200).query("?tenant=acme"),
        asked("make_token", 422).body(expired),
        asked("revoke_token", 404),
        asked("list_modules", 200),
        asked("upload_module", 422).body(json!("not the module")),
        asked("add_module", 422).body(json!("no module")),
        asked("delete_module", 409),
        asked("list_rules", 200),
        asked("audit", 200),
        asked("rule", 200),
        asked("shadow", 404),
        asked("try_module", 422).body(not_understood()),
        asked("try_input", 422).body(not_understood()),
        asked("module", 200),
        asked("add_version", 422).body(not_understood()),
        asked("promote", 422).body(not_understood()),
        asked("stage", 422).body(not_understood()),
        asked("roll_back", 409),
        asked("stop", 200),
        asked("resume", 200),
        asked("delete_rule", 404).with(no_rule),
        asked("record", 200),
        asked("event", 200),
        asked("events", 200),
        asked("deliveries", 200),
        asked("feed", 400).query("?since=x"),
        asked("list_held", 200).query("?tenant=acme"),
        asked("held_event", 200),
        asked("release_held", 409),
        asked("release_all", 200),
        asked("drop_held", 404).with(no_rule),
        asked("list_dead", 200).query("?tenant=acme"),
        asked("purge_all", 200).query("?tenant=acme&channel=none"),
        asked("purge", 404),
        asked("redrive", 404),
        asked("delivery", 200),
        asked("acknowledge", 404),
        asked("test_channel", 404),
        asked("enable_channel", 404),
    ]
}

async fn description(server: &Server) -> Value {
    let url = format!("{}/v1/openapi.json", server.base);
    let response = server.client.get(url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

/// The calls of the description, and that there is exactly one way to ask for each.
fn calls(description: &Value, about: &[(&str, &str)]) -> Vec<Call> {
    let mut ways: BTreeMap<_, _> = every_call().into_iter().map(|it| (it.id, it)).collect();
    let mut calls = Vec::new();
    for (template, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            let way = ways.remove(id);
            let way = way.unwrap_or_else(|| panic!("nobody tried whom {id} lets do what"));
            let mut path = template.clone();
            for (name, value) in way.with.iter().chain(about) {
                path = path.replace(&format!("{{{name}}}"), value);
            }
            assert!(!path.contains('{'), "{path}");
            calls.push(Call {
                method: method.to_uppercase().parse().unwrap(),
                path: path + way.query,
                needs: operation["security"][0]["token"][0]
                    .as_str()
                    .unwrap()
                    .to_owned(),
                may: way.may,
                body: way.body,
            });
        }
    }
    let left: Vec<_> = ways.keys().collect();
    assert!(left.is_empty(), "not in the description: {left:?}");
    calls
}

/// Every call of the description, as everyone who may and may not.
#[tokio::test(flavor = "multi_thread")]
async fn everyone_may_do_what_his_token_says_and_sees_no_other_tenant() {
    let (_receiver, setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    author.upload("acme", PROBE).await;
    author.version("one", json!({ "as": "live" })).await;
    let failed = json!({ "do": "panic" }).to_string();
    let event = server.post_json("/in/acme/open", &failed).await.id();
    server.settled(&event).await;
    let sent = json!({ "do": "post", "payload": 1 }).to_string();
    let sent = server.post_json("/in/acme/open", &sent).await.id();
    let story = server.settled(&sent).await;
    let delivery = story["deliveries"][0]["id"].as_str().unwrap().to_owned();
    let module = module_path("acme", PROBE);
    let sha256 = module.rsplit('/').next().unwrap();
    let rank = HashMap::from([
        ("ingest-only", 0),
        ("read-only", 1),
        ("author", 2),
        ("tenant-admin", 3),
        ("operator", 4),
    ]);
    let about = [
        ("tenant", "acme"),
        ("rule", "own"),
        ("channel", "none"),
        ("source", "none"),
        ("token", "000000000000"),
        ("event", event.as_str()),
        ("delivery", &delivery),
        ("sha256", sha256),
    ];
    let calls = calls(&description(&server).await, &about);
    let mut who = Vec::new();
    for scope in ["ingest-only", "read-only", "author", "tenant-admin"] {
        for tenant in ["acme", "other"] {
            let text = token(&server, Some(tenant), scope).await;
            who.push((scope, Some(tenant), text));
        }
    }
    who.push(("operator", None, token(&server, None, "operator").await));
    for (scope, tenant, text) in &who {
        let caller = As(&server, text.clone());
        for call in &calls {
            let got = call.by(&caller).await;
            let (needs, may) = (call.needs.as_str(), call.may);
            let allowed = rank[scope] >= rank[needs];
            let foreign = *tenant == Some("other");
            // Not of any tenant.
            let neutral = ["/v1/whoami", "/v1/tenants", "/v1/backup"].contains(&call.path.as_str());
            let sends_only = *scope == "ingest-only" && !allowed;
            let expected = match (foreign && !neutral, allowed) {
                _ if sends_only => 403,
                (true, _) => 404,
                (false, true) => may,
                (false, false) => 403,
            };
            let context = format!("{call:?} as {scope} of {tenant:?}: {}", got.body);
            // What is not there is not there, whoever asks.
            if !(allowed || may != 404 || foreign) {
                assert!([403, 404].contains(&got.status), "{context}");
            } else {
                assert_eq!(got.status, expected, "{context}");
            }
            if foreign {
                let seen = got.body.replace("tenant acme", "");
                let named = ["probe", "own\"", "fixed\",\"acme"];
                assert!(named.iter().all(|it| !seen.contains(it)), "{context}");
            }
        }
        // Nobody makes himself more than he is.
        if *scope != "operator" {
            let body = json!({ "scope": "operator", "label": "x" });
            let made = caller.call(Method::POST, "/v1/tokens", Some(body)).await;
            made.problem(403, "not-allowed");
        }
    }
    let tenants = As(&server, who[3].2.clone());
    let seen = tenants.call(Method::GET, "/v1/tenants", None).await.json();
    assert_eq!(seen.as_array().unwrap().len(), 1);
    assert_eq!(seen[0]["name"], "other");

    // Without a token, with what looks like one, with a revoked and an expired one: the same answer.
    let good = who[2].2.clone();
    let admin = As(&server, who[6].2.clone());
    let mut bad = vec![
        String::new(),
        "x".to_owned(),
        format!("{good}0"),
        good[..good.len() - 1].to_owned(),
    ];
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_millis(300)).to_string();
    let short = json!({ "tenant": "acme", "scope": "author", "label": "short", "expires": soon });
    let short = admin
        .call(Method::POST, "/v1/tokens", Some(short))
        .await
        .json();
    bad.push(short["token"].as_str().unwrap().to_owned());
    let id = good.split('_').nth(1).unwrap();
    let revoked = admin
        .call(Method::DELETE, &format!("/v1/tokens/{id}"), None)
        .await;
    assert_eq!(revoked.json(), json!({ "revoked": id }));
    bad.push(good.clone());
    tokio::time::sleep(Duration::from_millis(400)).await;
    let mut said = BTreeSet::new();
    for text in &bad {
        let caller = As(&server, text.clone());
        for call in &calls {
            let got = call.by(&caller).await;
            said.insert(got.problem(401, "not-authorised"));
        }
        // A token in the address is none.
        let path = format!("/v1/whoami?token={}&access_token={0}", who[6].2);
        caller
            .call(Method::GET, &path, None)
            .await
            .problem(401, "not-authorised");
    }
    assert_eq!(said.len(), 1);
    // No secret of all this is anywhere that is kept or said.
    let secret = |text: &String| text.rsplit('_').next().unwrap().to_owned();
    let listed = admin.call(Method::GET, "/v1/tokens", None).await.body;
    let log = server.said();
    for (.., text) in &who {
        assert!(!listed.contains(&secret(text)) && !log.contains(&secret(text)));
    }
    let data = setup.data();
    server.end().await;
    let mut files = vec![data];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|it| it.unwrap().path()),
            );
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for (.., text) in &who {
            let secret = secret(text).into_bytes();
            let found = bytes.windows(secret.len()).any(|it| it == secret);
            assert!(!found, "{} holds a token", path.display());
        }
    }
}

/// A program that reads the description and nothing else, schemathesis, asks for what it lets one ask and for
/// what it forbids, and finds no answer that contradicts it. `HOOKSIEVE_SCHEMATHESIS_S` goes on with random
/// calls for so many seconds.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_description_says_is_what_the_calls_do() {
    let Ok(python) = python() else { return };
    let (_receiver, _setup, server) = start("").await;
    for _ in 0..3 {
        let accepted = server.post_json("/in/acme/open", r#"{"do":"drop"}"#).await;
        assert_eq!(accepted.status, 202);
    }
    let seconds = std::env::var("HOOKSIEVE_SCHEMATHESIS_S");
    let phases = match &seconds {
        Ok(_) => "examples,coverage,fuzzing",
        Err(_) => "examples,coverage",
    };
    let mut command = python.schemathesis();
    command
        .arg("run")
        .arg(format!("{}/v1/openapi.json", server.base))
        .args(["--header", &format!("Authorization: Bearer {TOKEN}")])
        .args([
            "--phases",
            phases,
            "--no-color",
            "--generation-deterministic",
        ])
        .args(["--max-time", seconds.as_deref().unwrap_or("120")]);
    let done = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}");
    say(&told);
    server.end().await;
}

/// The description is one that programs take, and people can read it.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself() {
    let (_receiver, _setup, server) = start("").await;
    let description = description(&server).await;
    assert_eq!(description["openapi"], "3.1.0");
    let mut referred = BTreeSet::new();
    references(&description, &mut referred);
    for reference in referred {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(description.pointer(pointer).is_some(), "{reference}");
    }
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let context = format!("{method} {path}");
            let said = |key: &str| operation[key].as_str().is_some_and(|it| !it.is_empty());
            assert!(said("summary"), "{context}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("default"), "{context}");
            assert!(responses.len() >= 2, "{context}");
            for (status, response) in responses {
                let described = response["description"].as_str().unwrap_or_default();
                assert!(!described.is_empty(), "{context}: {status}");
            }
        }
    }
    let page = server.client.get(format!("{}/v1", server.base));
    let page = page.send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let text = page.text().await.unwrap();
    for path in description["paths"].as_object().unwrap().keys() {
        assert!(text.contains(path.as_str()), "{path}");
    }
    assert!(!text.contains("http://") && !text.contains("https://"));
    server.end().await;
}

fn references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                into.insert(reference.clone());
            }
            fields.values().for_each(|it| references(it, into));
        }
        Value::Array(items) => items.iter().for_each(|it| references(it, into)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_deliveries_are_listed_page_by_page() {
    let (_receiver, _setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    author.upload("acme", PROBE).await;
    author.version("one", json!({ "as": "live" })).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let what = if n == 2 { "panic" } else { "post" };
        let event = json!({ "do": what, "subject": format!("s{n}"), "payload": n }).to_string();
        ids.push(server.post_json("/in/acme/open", &event).await.id());
    }
    for id in &ids {
        server.settled(id).await;
    }
    let list = async |what: &str| {
        let path = format!("/v1/tenants/acme/{what}");
        author.call(Method::GET, &path, None).await
    };
    let names = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap().iter();
        let id = |it: &Value| it["event"]["id"].as_str().unwrap().to_owned();
        items.map(id).collect()
    };
    let newest = list("events?limit=2").await.json();
    assert_eq!(names(&newest), [ids[4].clone(), ids[3].clone()]);
    assert_eq!(newest["items"][0]["event"]["subject"], "s4");
    assert_eq!(newest["items"][0]["decisions"][0]["outcome"], "notified");
    let next = newest["next"].as_str().unwrap();
    let rest = list(&format!("events?after={next}")).await.json();
    assert_eq!(names(&rest), [&*ids[2], &ids[1], &ids[0]]);
    assert!(rest["next"].is_null());
    let failed = list("events?outcome=failed&type=*&source=open&rule=own").await;
    assert_eq!(names(&failed.json()), [&*ids[2]]);
    assert!(names(&list("events?type=nothing").await.json()).is_empty());
    let since = list(&format!("events?since={}&limit=2", ids[1]))
        .await
        .json();
    assert_eq!(names(&since), [&*ids[2], &ids[3]]);
    assert_eq!(since["next"], ids[3]);
    let on = list(&format!("events?since={}&after={}", ids[1], ids[3])).await;
    assert_eq!(names(&on.json()), [&*ids[4]]);
    let deliveries = list("deliveries?state=delivered&channel=hook").await.json();
    let items = deliveries["items"].as_array().unwrap();
    assert_eq!(items.len(), 4);
    assert_eq!(items[0]["event"], ids[4]);
    assert!(
        list("deliveries?state=dead").await.json()["items"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    for wrong in [
        "events?after=x",
        "events?limit=many",
        "events?limit=0",
        "deliveries?limit=101",
        "events?outcome=lost",
        "events?kind=x",
        "deliveries?state=x",
    ] {
        list(wrong).await.problem(400, "invalid-query");
    }
    list("events?source=A").await.problem(400, "invalid-id");

    let env = [
        ("HOOKSIEVE_TOKEN", author.1.as_str()),
        ("HOOKSIEVE_URL", &server.base),
    ];
    let cli = |args: &[&str]| {
        let done = cli_with(args, &env, b"");
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout
    };
    let shown = cli(&["events", "--limit", "3"]);
    assert!(
        shown.contains("own failed") && shown.contains("hook delivered"),
        "{shown}"
    );
    let shown = cli(&["deliveries", "--json", "--state", "delivered"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown.as_array().unwrap().len(), 4);
    let shown = cli(&["tenants"]);
    assert!(
        shown.contains("acme") && !shown.contains("other"),
        "{shown}"
    );
    let script = cli(&["completions", "bash"]);
    assert!(script.contains("_hooksieve"), "{script}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_tried_without_effect() {
    let (receiver, _setup, server) = start("").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    author.upload("acme", PROBE).await;
    let made = author.version("one", json!({ "events": ["issues"] })).await;
    let module = made.json()["versions"][0]["module"].clone();
    let drop = json!({ "do": "drop", "subject": "s" }).to_string();
    let event = server.post_json("/in/acme/open", &drop).await.id();
    server.settled(&event).await;
    let path = "/v1/tenants/acme/try";
    let tried = async |body: Value| author.call(Method::POST, path, Some(body)).await;

    let posted = json!({ "do": "post", "payload": { "n": 1 } });
    let on = |what: Value| {
        let mut body = json!({ "payload": posted, "type": "issues", "source": "open" });
        let what = what.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(what);
        body
    };
    let got = tried(on(json!({ "rule": "own" }))).await;
    assert_eq!(got.status, 200, "{}", got.body);
    let got = got.json();
    assert_eq!(got["outcome"], "notified");
    assert_eq!(got["subscribed"], true);
    assert!(got["fuel"].as_u64().unwrap() > 0);
    let action = &got["actions"][0];
    assert_eq!(
        (&action["channel"], &action["kind"]),
        (&json!("hook"), &json!("webhook"))
    );
    assert_eq!(action["preview"]["json"]["greeting"], "one");
    assert_eq!(action["preview"]["json"]["data"], json!({ "n": 1 }));

    let config = json!({ "greeting": "two" });
    let got = tried(on(json!({ "module": module, "config": config })))
        .await
        .json();
    assert_eq!(got["actions"][0]["preview"]["json"]["greeting"], "two");
    let got = tried(json!({ "rule": "own", "version": 1, "event": event }))
        .await
        .json();
    assert_eq!(
        (&got["outcome"], &got["subscribed"]),
        (&json!("dropped"), &json!(false))
    );
    let broken = json!({ "payload": { "do": "panic" } });
    let got = tried(on(json!({ "rule": "own", "payload": broken["payload"] })))
        .await
        .json();
    assert_eq!(got["outcome"], "failed");
    assert!(got["error"].as_str().unwrap().contains("asked to panic"));

    for (wrong, status, kind) in [
        (json!({ "rule": "own" }), 422, "invalid"),
        (on(json!({})), 422, "invalid"),
        (
            on(json!({ "rule": "own", "module": module })),
            422,
            "invalid",
        ),
        (on(json!({ "rule": "none" })), 404, "not-found"),
        (on(json!({ "rule": "own", "version": 7 })), 404, "not-found"),
        (on(json!({ "module": "0".repeat(64) })), 409, "conflict"),
        (
            json!({ "rule": "own", "event": "019a0000-0000-7000-8000-000000000000" }),
            404,
            "not-found",
        ),
    ] {
        tried(wrong).await.problem(status, kind);
    }
    let other = As(&server, token(&server, Some("other"), "author").await);
    other.upload("other", PROBE).await;
    let foreign = json!({ "module": module, "event": event });
    let foreign = other.call(Method::POST, "/v1/tenants/other/try", Some(foreign));
    foreign.await.problem(404, "not-found");

    let story = server.story(&event).await;
    assert!(story["decisions"].as_array().unwrap().is_empty(), "{story}");
    assert_eq!(receiver.count(), 0);
    server.end().await;
}

/// A tenant that asks for much at once, or slowly, is told so, and nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_calls_leave_room_for_the_others() {
    let (_receiver, _setup, server) = start("[server]\nrequest_timeout_ms = 2000\n").await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    let other = As(&server, token(&server, Some("other"), "author").await);
    let address = server.base.strip_prefix("http://").unwrap();
    let begun = format!(
        "POST /v1/tenants/acme/rules/own/stage HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{",
        author.1
    );
    let mut slow = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    until("the sixteen are under way", || async {
        let got = author.call(Method::GET, "/v1/whoami", None).await;
        (got.status == 429).then(|| got.problem(429, "too-many-calls"))
    })
    .await;
    let seen = other.call(Method::GET, "/v1/whoami", None).await;
    assert_eq!(seen.status, 200, "{}", seen.body);
    for mut stream in slow {
        let mut answer = vec![0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 408");
    }
    let seen = author.call(Method::GET, "/v1/whoami", None).await;
    assert_eq!(seen.status, 200, "{}", seen.body);
    server.end().await;
}

/// Answers that nobody reads are held as calls are that are under way.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_reads_count_as_calls() {
    let large = "[server]\nbody_bytes_max = 16777216\n[limits]\ninput_bytes = 33554432\nmemory_bytes = 67108864\n";
    let (_receiver, _setup, server) = start(large).await;
    let reader = As(&server, token(&server, Some("acme"), "read-only").await);
    let other = As(&server, token(&server, Some("other"), "read-only").await);
    // More than the buffers between two sockets hold.
    let body = format!("\"{}\"", "x".repeat(15 << 20));
    let id = server.post_json("/in/acme/open", &body).await.id();
    let address = server.base.strip_prefix("http://").unwrap();
    let ask = format!(
        "GET /v1/events/{id}?data=true HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\n\r\n",
        reader.1
    );
    let mut unread = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut status = vec![0; 12];
        stream.read_exact(&mut status).await.unwrap();
        assert_eq!(status, b"HTTP/1.1 200");
        unread.push(stream);
    }
    let refused = reader.call(Method::GET, "/v1/whoami", None).await;
    refused.problem(429, "too-many-calls");
    let seen = other.call(Method::GET, "/v1/whoami", None).await;
    assert_eq!(seen.status, 200, "{}", seen.body);
    // Whoever reads one to its end has room for another.
    let mut one = unread.pop().unwrap();
    let mut left = 15 << 20;
    while left > 0 {
        let mut part = vec![0; 1 << 16];
        left -= one.read(&mut part).await.unwrap().min(left);
    }
    until("room for a call", || async {
        let seen = reader.call(Method::GET, "/v1/whoami", None).await;
        (seen.status == 200).then_some(())
    })
    .await;
    drop(unread);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_tells_what_comes_in_and_has_bounds() {
    let (_receiver, _setup, server) = start("").await;
    let admin = As(&server, token(&server, Some("acme"), "tenant-admin").await);
    let reader = token(&server, Some("acme"), "read-only").await;
    let other = token(&server, Some("other"), "read-only").await;
    let follow = async |tenant: &str, token: &str, query: &str| {
        let url = format!("{}/v1/tenants/{tenant}/events/feed{query}", server.base);
        let request = server.client.get(url).bearer_auth(token);
        request.send().await.unwrap()
    };
    let mut feed = follow("acme", &reader, "").await;
    assert_eq!(feed.headers()["content-type"], "text/event-stream");
    let filtered = follow("acme", &reader, "?outcome=failed").await;
    let id = server
        .post_json("/in/acme/open", r#"{"do":"drop","subject":"s"}"#)
        .await
        .id();
    let mut told = String::new();
    while !told.contains("\n\n") {
        let chunk = feed.chunk().await.unwrap().unwrap();
        told.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert!(told.contains(&format!("id: {id}")), "{told}");
    let data = told.lines().find_map(|line| line.strip_prefix("data: "));
    let data: Value = serde_json::from_str(data.unwrap()).unwrap();
    assert_eq!(data["event"]["subject"], "s");

    let mut more = Vec::new();
    for _ in 0..6 {
        more.push(follow("acme", &reader, "").await);
    }
    assert_eq!(follow("acme", &reader, "").await.status(), 503);
    assert_eq!(follow("other", &other, "").await.status(), 200);
    assert_eq!(follow("acme", &other, "").await.status(), 404);
    drop(more.pop());
    until("a place is free", || async {
        let feed = follow("acme", &reader, "").await;
        (feed.status() == 200).then_some(())
    })
    .await;

    // Whose token is revoked is told nothing more; and feeds do not keep the engine from stopping.
    let id = reader.split('_').nth(1).unwrap();
    let path = format!("/v1/tokens/{id}");
    assert_eq!(admin.call(Method::DELETE, &path, None).await.status, 200);
    while feed.chunk().await.unwrap().is_some() {}
    let held = follow("acme", &admin.1, "").await;
    let began = std::time::Instant::now();
    server.end().await;
    assert!(began.elapsed() < Duration::from_secs(10));
    drop((held, filtered));
}
