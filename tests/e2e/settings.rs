//! Tenants, sources and channels that are set up over HTTP, with secrets that nobody reads again.

use super::uploads::{As, token};
use hooksieve_tests::{PROBE, Receiver, Server, Setup, TOKEN, cli_with};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;

const SECRET: &str = "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM=";
const OPEN: &str = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n";

async fn put(who: &As<'_>, path: &str, body: Value) -> (u16, Value) {
    let answer = who.call(Method::PUT, path, Some(body)).await;
    (answer.status, answer.json())
}

async fn refused(who: &As<'_>, path: &str, body: Value) -> String {
    let answer = who.call(Method::PUT, path, Some(body)).await;
    answer.problem(422, "invalid")
}

/// Has an event come in; what became of it.
async fn post(server: &Server) -> Value {
    let event = json!({ "do": "post", "payload": 1 }).to_string();
    let id = server.post_json("/in/acme/open", &event).await.id();
    server.settled(&id).await
}

/// Files that hold a text as it is.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|it| it == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_without_a_file_sets_up_all_it_has() {
    let hook = Receiver::start().await;
    let setup = Setup::new().config("[log]\nlevel = \"debug\"\n");
    let server = setup.start().await;
    let operator = As(&server, TOKEN.to_owned());
    let (status, made) = put(&operator, "/v1/tenants/acme", json!({})).await;
    assert_eq!((status, &made["name"]), (201, &json!("acme")));
    let quotas = json!({ "quotas": { "events_per_s": 1000 } });
    assert_eq!(put(&operator, "/v1/tenants/acme", quotas).await.0, 200);
    let many = json!({ "quotas": { "deliveries_per_s": 1_000_001 } });
    let told = refused(&operator, "/v1/tenants/acme", many).await;
    assert!(told.contains("may be 0 to 1000000"), "{told}");
    let admin = As(&server, token(&server, Some("acme"), "tenant-admin").await);
    let open = json!({ "kind": "json", "open": true });
    assert_eq!(
        put(&admin, "/v1/tenants/acme/sources/open", open).await.0,
        201
    );
    let webhook = json!({
        "kind": "webhook", "url": hook.url("/hook"), "secret": SECRET,
        "headers": { "x-key": "a planted header" }, "rates": ["100/s"],
    });
    let path = "/v1/tenants/acme/channels/hook";
    let (status, set) = put(&admin, path, webhook.clone()).await;
    assert_eq!(status, 201, "{set}");
    let shown = json!({
        "name": "hook", "kind": "webhook", "in_file": false, "secrets": ["secret", "x-key"],
        "settings": {
            "kind": "webhook", "url": hook.url("/hook"), "headers": {}, "rates": ["100/s"],
        },
    });
    let mut changed = shown.clone();
    changed["change"] = json!("created");
    assert_eq!(set, changed);
    assert_eq!(admin.upload("acme", PROBE).await.status, 201);
    let made = admin.version("one", json!({ "as": "live" })).await;
    assert_eq!(made.status, 201, "{}", made.body);

    assert_eq!(post(&server).await["deliveries"][0]["state"], "delivered");
    let got = hook.wait_for(1).await;
    assert_eq!(got[0].header("x-key"), "a planted header");
    assert!(got[0].header("webhook-signature").starts_with("v1,"));
    let As(_, kept) = admin;
    server.stop().await;

    // It outlasts the engine, and nothing of a secret lies there as it is.
    assert_eq!(holding(&setup.data(), "a planted header"), [""; 0]);
    assert_eq!(holding(&setup.data(), "cGxhbnRlZC1"), [""; 0]);
    let server = setup.start().await;
    let admin = As(&server, kept);
    assert_eq!(post(&server).await["deliveries"][0]["state"], "delivered");
    let listed = server.get("/v1/tenants/acme/channels").await.json();
    assert_eq!(listed, json!([shown]));

    // What it uses of what it may, since the restart.
    let usage = server.get("/v1/tenants/acme/usage").await.json();
    for (what, used, max) in [
        ("rules", 1, 100),
        ("sources", 1, 100),
        ("channels", 1, 100),
        ("tokens", 1, 100),
    ] {
        assert_eq!(usage[what], json!({ "used": used, "max": max }), "{what}");
    }
    assert_eq!(usage["modules_bytes"]["used"], PROBE.len());
    assert_eq!(usage["events_per_s"]["max"], 1000);
    let own = server
        .get("/v1/tenants/acme/rules/own/minutes")
        .await
        .json();
    let sum = |minutes: &Value, what: &str| -> u64 {
        let minutes = minutes.as_array().unwrap().iter();
        minutes.map(|it| it[what].as_u64().unwrap()).sum()
    };
    for what in ["events", "notified", "delivered"] {
        assert_eq!(sum(&usage["minutes"], what), 1, "{what}");
    }
    assert_eq!(sum(&own, "notified"), 1);
    assert_eq!(sum(&own, "fuel"), sum(&usage["minutes"], "fuel"));

    // Another in its place holds for the next delivery.
    let mut moved = webhook;
    moved["url"] = json!(hook.url("/moved"));
    assert_eq!(put(&admin, path, moved).await.0, 200);
    post(&server).await;
    assert_eq!(hook.wait_for(3).await[2].path, "/moved");
    let audit = server.get("/v1/tenants/acme/audit").await.json();
    assert_eq!(
        (&audit[0]["what"], &audit[0]["thing"], &audit[0]["rule"]),
        (&json!("set"), &json!("channel"), &json!("hook"))
    );
    let log = server.said();
    for secret in ["a planted header", SECRET] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }

    // A version that names it keeps it; without one it goes.
    let named = json!({ "as": "live", "channels": ["hook"], "sources": ["open"] });
    assert_eq!(admin.version("two", named).await.status, 201);
    for path in [path, "/v1/tenants/acme/sources/open"] {
        let kept = admin.call(Method::DELETE, path, None).await;
        let detail = kept.problem(409, "conflict");
        assert!(
            detail.contains("version 2 of the rule own names"),
            "{detail}"
        );
    }
    assert_eq!(
        admin.version("one", json!({ "as": "live" })).await.status,
        201
    );
    let gone = admin.call(Method::DELETE, path, None).await;
    assert_eq!(gone.json(), json!({ "removed": "hook" }));
    let gone = admin.call(Method::DELETE, path, None).await;
    gone.problem(404, "not-found");
    assert_eq!(post(&server).await["decisions"][0]["outcome"], "failed");

    // The tenant goes with everything.
    let refused = admin.call(Method::DELETE, "/v1/tenants/acme", None).await;
    refused.problem(403, "not-allowed");
    let operator = As(&server, TOKEN.to_owned());
    let gone = operator
        .call(Method::DELETE, "/v1/tenants/acme", None)
        .await;
    assert_eq!(gone.json(), json!({ "removed": "acme" }));
    let who = admin.call(Method::GET, "/v1/whoami", None).await;
    who.problem(401, "not-authorised");
    let sent = server.post_json("/in/acme/open", "{}").await;
    sent.problem(404, "unknown-source");
    // And begins with nothing when it comes back.
    assert_eq!(put(&operator, "/v1/tenants/acme", json!({})).await.0, 201);
    for what in ["rules", "modules", "sources", "channels", "audit"] {
        let path = format!("/v1/tenants/acme/{what}");
        assert_eq!(server.get(&path).await.json(), json!([]), "{what}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_are_refused_and_change_nothing() {
    let hook = Receiver::start().await;
    let url = hook.url("/hook");
    let file = format!("{OPEN}[[channel]]\nname = 'fixed'\nkind = 'webhook'\nurl = '{url}'\n");
    let setup = Setup::new()
        .tenant("acme", &file)
        .config("[uploads]\nchannels_max = 1\n");
    let server = setup.start().await;
    let admin = As(&server, token(&server, Some("acme"), "tenant-admin").await);
    let path = "/v1/tenants/acme/channels/hook";
    for (settings, says) in [
        (json!({ "kind": "slak" }), "did you mean `slack`?"),
        (json!({ "kind": "slack" }), "channel `hook` has no `url`"),
        // What is the operator's is named by the operator alone.
        (
            json!({ "kind": "slack", "url": { "env": "HOME" } }),
            "`url` of channel `hook` is a secret: give its text",
        ),
        (
            json!({ "kind": "slack", "url": { "file": "/etc/passwd" } }),
            "`url` of channel `hook` is a secret: give its text",
        ),
        (
            json!({ "kind": "webhook", "url": url, "headers": { "x": { "file": "/etc/passwd" } } }),
            "is a secret: give its text",
        ),
        (
            json!({ "kind": "webhook", "url": url, "colour": "red" }),
            "`colour`",
        ),
        (
            json!({ "kind": "webhook", "url": "ftp://x" }),
            "channel `hook`: ",
        ),
        (
            json!({ "kind": "webhook", "url": url, "timeout_ms": 120_000 }),
            "lease",
        ),
        (
            json!({ "kind": "webhook", "url": url, "name": "x" }),
            "`name` is left out",
        ),
        (json!({ "kind": "webhook", "url": null }), "channel `hook`"),
        (
            json!({ "kind": "webhook", "url": "x".repeat(20_000) }),
            "the limit is 16384",
        ),
    ] {
        let told = refused(&admin, path, settings).await;
        assert!(told.contains(says), "{told}");
    }
    let path = "/v1/tenants/acme/sources/in";
    for (settings, says) in [
        (json!({ "kind": "github" }), "source `in` has no `secret`"),
        (
            json!({ "kind": "json" }),
            "needs one of `token`, `access_tokens = true`, and `open = true`",
        ),
    ] {
        let told = refused(&admin, path, settings).await;
        assert!(told.contains(says), "{told}");
    }
    let list = server.get("/v1/tenants/acme/channels").await.json();
    let fixed = json!([{
        "name": "fixed", "kind": "webhook", "in_file": true, "settings": {}, "secrets": [],
    }]);
    assert_eq!(list, fixed);
    // What stands in the file is changed there.
    let good = json!({ "kind": "webhook", "url": url });
    for (method, path) in [
        (Method::PUT, "/v1/tenants/acme/channels/fixed"),
        (Method::DELETE, "/v1/tenants/acme/channels/fixed"),
        (Method::DELETE, "/v1/tenants/acme/sources/open"),
    ] {
        let answer = admin.call(method, path, Some(good.clone())).await;
        let told = answer.problem(409, "conflict");
        assert!(told.contains("is in the tenant's file"), "{told}");
    }
    let one = "/v1/tenants/acme/channels/one";
    assert_eq!(put(&admin, one, good.clone()).await.0, 201);
    assert_eq!(put(&admin, one, good.clone()).await.0, 200);
    let two = admin.call(Method::PUT, "/v1/tenants/acme/channels/two", Some(good));
    two.await.problem(403, "quota");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_can_be_exchanged_and_must_not_be_lost() {
    const OLD: &str = "an old key of thirty-two characters";
    const NEW: &str = "a new key of thirty-two characters!";
    let hook = Receiver::start().await;
    let setup = Setup::new()
        .env("HOOKSIEVE_SECRETS_KEY", OLD)
        .tenant("acme", OPEN);
    let server = setup.start().await;
    let cli = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--url", &server.base]);
        let done = cli_with(&all, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"");
        assert_eq!(done.code, 0, "{}", done.stderr);
        done.stdout
    };
    let settings = setup.path().join("hook.toml");
    let text = format!(
        "kind = 'webhook'\nurl = '{}'\nsecret = '{SECRET}'\n",
        hook.url("/hook")
    );
    std::fs::write(&settings, text).unwrap();
    let settings = settings.to_str().unwrap();
    let set = cli(&["channels", "set", "--tenant", "acme", "hook", settings]);
    assert_eq!(set, "channel hook is set (webhook)\n");
    let listed = cli(&["channels", "list", "--tenant", "acme"]);
    assert!(
        listed.contains("hook") && !listed.contains(SECRET),
        "{listed}"
    );
    let listed = cli(&["sources", "list", "--tenant", "acme"]);
    assert!(listed.contains("in the file"), "{listed}");
    assert_eq!(
        cli(&["tenants", "set", "late", "--events-per-s", "9"]),
        "the tenant late is set\n"
    );
    let listed = cli(&["tenants"]);
    assert!(listed.contains("late"), "{listed}");
    let used = cli(&["usage", "--tenant", "acme"]);
    assert!(used.contains("channels") && used.contains("1 %"), "{used}");
    assert_eq!(cli(&["tenants", "remove", "late"]), "removed late\n");
    let tested = cli(&["channels", "test", "--tenant", "acme", "hook"]);
    assert!(tested.starts_with("delivered through hook"), "{tested}");
    server.stop().await;

    let lost = setup.env("HOOKSIEVE_SECRETS_KEY", NEW);
    let (code, said) = lost.refused(&[]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("channel/acme/hook") && said.contains("`secrets_key` of [server]"),
        "{said}"
    );
    let both = lost.env("HOOKSIEVE_SECRETS_KEY", &format!("{NEW}, {OLD}"));
    let server = both.start().await;
    let tested = server
        .call(Method::POST, "/v1/channels/acme/hook/test")
        .await;
    assert_eq!(tested.json()["delivered"], true, "{}", tested.body);
    server.stop().await;
    // By then the old one is not needed any more.
    let new = both.env("HOOKSIEVE_SECRETS_KEY", NEW);
    let server = new.start().await;
    let tested = server
        .call(Method::POST, "/v1/channels/acme/hook/test")
        .await;
    assert_eq!(tested.json()["delivered"], true, "{}", tested.body);
    server.stop().await;
    let (code, said) = new.env("HOOKSIEVE_SECRETS_KEY", "short").refused(&[]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("`secrets_key` is shorter than 32 characters"),
        "{said}"
    );
}
