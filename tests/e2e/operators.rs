//! What operators keep: tenants as files that are applied, limits of a tenant's own, backups; and what
//! programs that call rely on.

use super::uploads::{As, token};
use hooksieve_tests::{Output, PROBE, Receiver, Server, Setup, TOKEN, cli_with, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn operator<'a>(server: &'a Server) -> As<'a> {
    As(server, TOKEN.to_owned())
}

fn run(server: &Server, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut all = args.to_vec();
    all.extend(["--url", &server.base]);
    let mut given = vec![("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)];
    given.extend(env);
    cli_with(&all, &given, b"")
}

/// What `apply` says that it changes, as words.
fn changes(server: &Server, folder: &Path, more: &[&str], secret: &str) -> Vec<String> {
    let mut args = vec!["apply", "-f", folder.to_str().unwrap(), "--json"];
    args.extend(more);
    let done = run(server, &args, &[("HOOK_SECRET", secret)]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(!done.stdout.contains(secret), "{}", done.stdout);
    let told = &done.json_lines()[0]["changes"];
    let word = |step: &Value, key: &str| step[key].as_str().unwrap().to_owned();
    let told = told.as_array().unwrap().iter();
    told.map(|it| {
        format!(
            "{} {} {}",
            word(it, "change"),
            word(it, "what"),
            word(it, "name")
        )
    })
    .collect()
}

const SECRET: &str = "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM=";
const OTHER: &str = "whsec_YW5vdGhlci1wbGFudGVkLTI0LWJ5dGVzISEhISE=";

#[tokio::test(flavor = "multi_thread")]
async fn files_are_applied_and_the_difference_is_shown_first() {
    let hook = Receiver::start().await;
    let setup = Setup::new().tenant("fixed", "");
    let server = setup.start().await;
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(files.path().join(name), text).unwrap();
    write("probe.wasm", "");
    std::fs::write(files.path().join("probe.wasm"), PROBE).unwrap();
    let acme = |greeting: &str, more: &str| {
        format!(
            "default_channel = 'hook'\n\
             [[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
             [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\nsecret = {{ env = 'HOOK_SECRET' }}\n\
             [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\non_error = 'pass'\n\
             config = {{ greeting = '{greeting}' }}\n{more}[quotas]\nevents_per_s = 50\n",
            hook.url("/hook")
        )
    };
    write("acme.toml", &acme("hello", ""));
    let all = [
        "add tenant acme",
        "add channel hook",
        "add source open",
        "change tenant acme",
        "add rule one",
    ];
    let apply = |more: &[&str], secret: &str| changes(&server, files.path(), more, secret);
    assert_eq!(apply(&["--dry-run"], SECRET), all);
    let none = server.get("/v1/tenants/acme").await;
    assert_eq!(none.status, 404, "nothing was changed: {}", none.body);
    assert_eq!(apply(&[], SECRET), all);
    assert_eq!(apply(&["--dry-run"], SECRET), [""; 0]);
    assert_eq!(apply(&[], SECRET), [""; 0]);
    let sent = json!({ "do": "post", "payload": 1 }).to_string();
    let event = server.post_json("/in/acme/open", &sent).await.id();
    server.settled(&event).await;
    assert_eq!(hook.wait_for(1).await[0].json()["greeting"], "hello");
    // What a rule fails on goes to the default channel.
    let event = server.post_json("/in/acme/open", r#"{"do":"panic"}"#).await;
    server.settled(&event.id()).await;
    hook.wait_for(2).await;

    // Another secret is a difference, though nobody can read it.
    assert_eq!(apply(&["--dry-run"], OTHER), ["change channel hook"]);
    write(
        "acme.toml",
        &acme(
            "moved",
            "[[channel]]\nname = 'more'\nkind = 'webhook'\nurl = 'https://a.example/'\n",
        ),
    );
    let expected = ["add channel more", "change rule one"];
    assert_eq!(apply(&[], SECRET), expected);
    write("acme.toml", &acme("moved", ""));
    assert_eq!(apply(&[], SECRET), ["remove channel more"]);
    let rule = server.get("/v1/tenants/acme/rules/one").await.json();
    assert_eq!(rule["live"], 2, "{rule}");
    let shown = server.get("/v1/tenants/acme").await.json();
    assert_eq!(shown["settings"]["default_channel"], "hook");
    assert_eq!(shown["settings"]["quotas"]["events_per_s"], 50);

    // Others are left alone, unless they are meant.
    let own = operator(&server);
    let late = own.call(Method::PUT, "/v1/tenants/late", Some(json!({})));
    assert_eq!(late.await.status, 201);
    assert_eq!(apply(&[], SECRET), [""; 0]);
    let table = run(
        &server,
        &["apply", "-f", files.path().to_str().unwrap(), "--dry-run"],
        &[("HOOK_SECRET", SECRET)],
    );
    assert!(table.stdout.contains("left alone") && table.stdout.contains("late"));
    assert_eq!(apply(&["--prune"], SECRET), ["remove tenant late"]);
    assert_eq!(server.get("/v1/tenants/late").await.status, 404);

    // A mistake is told with its place before anything is changed; a tenant with a file stays as it is.
    write("bad.toml", "[[source]]\nname = 'x'\nkind = 'jsn'\n");
    let folder = files.path().to_str().unwrap().to_owned();
    let bad = run(
        &server,
        &["apply", "-f", &folder],
        &[("HOOK_SECRET", SECRET)],
    );
    assert_eq!(bad.code, 2);
    assert!(bad.stderr.contains("bad.toml:3"), "{}", bad.stderr);
    std::fs::remove_file(files.path().join("bad.toml")).unwrap();
    write("fixed.toml", "");
    let fixed = run(
        &server,
        &["apply", "-f", &folder],
        &[("HOOK_SECRET", SECRET)],
    );
    assert_eq!(fixed.code, 1);
    assert!(
        fixed.stderr.contains("has a file at the engine"),
        "{}",
        fixed.stderr
    );

    // Whether a secret is the same is told to operators alone.
    let admin = As(&server, token(&server, Some("acme"), "tenant-admin").await);
    let path = "/v1/tenants/acme/channels/hook?dry_run=true";
    let body = json!({ "kind": "webhook", "url": hook.url("/hook"), "secret": SECRET });
    let told = admin.call(Method::PUT, path, Some(body)).await;
    told.problem(403, "not-allowed");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_limits_of_its_own_within_the_operator_s() {
    let source = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
        [[channel]]\nname = 'mail'\nkind = 'webhook'\nurl = 'https://a.example/'\n\
        [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n";
    let setup = Setup::new()
        .config("[limits_max]\nfuel = 20000000\nmemory_bytes = 33554432\nactions = 20\n")
        .tenant("plain", source)
        .tenant("small", &format!("{source}[limits]\nfuel = 1000\n"))
        .tenant(
            "large",
            &format!("{source}[limits]\nactions = 20\nmemory_bytes = 33554432\n"),
        );
    let server = setup.start().await;
    let error = async |tenant: &str, event: Value| {
        let path = format!("/in/{tenant}/open");
        let id = server.post_json(&path, &event.to_string()).await.id();
        let story = until("a decision", || async {
            let story = server.story(&id).await;
            let decided = story["decisions"]
                .as_array()
                .is_some_and(|it| !it.is_empty());
            decided.then_some(story)
        });
        let decision = story.await["decisions"][0].clone();
        decision["error"].as_str().unwrap_or_default().to_owned()
    };
    let many = json!({ "do": "many", "count": 20 });
    let told = error("plain", many.clone()).await;
    assert!(told.contains("20 actions, the limit is 16"), "{told}");
    assert_eq!(error("large", many.clone()).await, "");
    let told = error("small", many).await;
    assert!(
        told.contains("out of fuel") && told.contains("1000"),
        "{told}"
    );
    let block = json!({ "do": "allocate", "bytes": 20 << 20 });
    assert!(error("plain", block.clone()).await.contains("limit of 256"));
    assert_eq!(error("large", block).await, "");

    // Of a tenant that was set up by calls they hold from the next event on.
    let operator = operator(&server);
    let set = async |body: Value| {
        operator
            .call(Method::PUT, "/v1/tenants/acme", Some(body))
            .await
    };
    assert_eq!(set(json!({})).await.status, 201);
    let open = json!({ "kind": "json", "open": true });
    let path = "/v1/tenants/acme/sources/open";
    assert_eq!(
        operator.call(Method::PUT, path, Some(open)).await.status,
        201
    );
    operator.upload("acme", PROBE).await;
    assert_eq!(
        operator.version("x", json!({ "as": "live" })).await.status,
        201
    );
    let drop = json!({ "do": "drop" });
    assert_eq!(error("acme", drop.clone()).await, "");
    assert_eq!(set(json!({ "limits": { "fuel": 1000 } })).await.status, 200);
    assert!(error("acme", drop.clone()).await.contains("out of fuel"));
    assert_eq!(set(json!({})).await.status, 200);
    assert_eq!(error("acme", drop).await, "");
    let told = set(json!({ "limits": { "fuel": 20_000_001 } })).await;
    let told = told.problem(422, "invalid");
    assert!(told.contains("1000 to 20000000"), "{told}");
    let told = set(json!({ "default_channel": "none" })).await;
    told.problem(409, "conflict");
    // The same fields in a row are not what they are by name.
    for list in [json!({ "limits": [2_000, null] }), json!([{}, {}])] {
        let told = set(list).await.problem(422, "invalid-body");
        assert!(told.contains("is not what this call takes"), "{told}");
    }
    assert_eq!(
        set(json!({ "limits": { "actions": 3.0 } })).await.status,
        200
    );
    server.stop().await;
    let over = setup.tenant("large", &format!("{source}[limits]\nactions = 21\n"));
    let (code, said) = over.refused(&[]);
    assert_eq!(code, 2);
    assert!(
        said.contains("tenant `large`") && said.contains("[limits_max]"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_s_oldest_events_make_room_and_what_waits_is_kept() {
    let tenant = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
        [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n\
        [quotas]\nstored_bytes = 200000\n";
    let setup = Setup::new()
        .config("[quarantine]\nlast_events = 0\n")
        .tenant("acme", tenant)
        .tenant("other", tenant);
    let server = setup.start().await;
    let event = |what: &str| json!({ "do": what, "filler": "x".repeat(10_000) }).to_string();
    let first = server.post_json("/in/acme/open", &event("drop")).await.id();
    let bystander = server
        .post_json("/in/other/open", &event("drop"))
        .await
        .id();
    for _ in 0..40 {
        until("room for an event", || async {
            let sent = server.post_json("/in/acme/open", &event("drop")).await;
            (sent.status == 202).then_some(())
        })
        .await;
    }
    assert_eq!(server.get(&format!("/v1/events/{first}")).await.status, 404);
    let kept = server.get(&format!("/v1/events/{bystander}")).await;
    assert_eq!(kept.status, 200, "another tenant's stay");
    let used = server.get("/v1/tenants/acme/usage").await.json();
    let taken = used["stored_bytes"]["used"].as_u64().unwrap();
    assert!((1..=210_000).contains(&taken), "{taken}");
    assert_eq!(used["stored_bytes"]["max"], 200_000);

    // What is held waits for somebody: then its sender does, too.
    let no_room = async |server: &Server| {
        until("no room", || async {
            let sent = server.post_json("/in/acme/open", &event("panic")).await;
            (sent.status != 202).then_some(sent)
        })
        .await
    };
    let refused = no_room(&server).await;
    assert_eq!(refused.header("retry-after"), "10");
    let told = refused.problem(429, "stored-bytes-quota");
    assert!(told.contains("200000 bytes"), "{told}");
    server
        .post_json("/in/other/open", &event("drop"))
        .await
        .id();
    server.stop().await;
    // It is counted on after a restart.
    let server = setup.start().await;
    let used = server.get("/v1/tenants/acme/usage").await.json();
    assert!(
        used["stored_bytes"]["used"].as_u64().unwrap() > 150_000,
        "{used}"
    );
    no_room(&server).await.problem(429, "stored-bytes-quota");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_only_sends_sends_and_sees_nothing() {
    let source = "[[source]]\nname = 'in'\nkind = 'json'\naccess_tokens = true\n";
    let setup = Setup::new().tenant("acme", source).tenant("other", source);
    let server = setup.start().await;
    let send = async |token: &str, tenant: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("content-type", "application/json"),
        ];
        server
            .post(&format!("/in/{tenant}/in"), &headers, b"{}")
            .await
            .status
    };
    let ingest = token(&server, Some("acme"), "ingest-only").await;
    assert_eq!(send(&ingest, "acme").await, 202);
    assert_eq!(send(&ingest, "other").await, 401);
    assert_eq!(send("nonsense", "acme").await, 401);
    assert_eq!(
        send(TOKEN, "acme").await,
        401,
        "an operator's sends no tenant's events"
    );
    for (scope, status) in [("read-only", 401), ("author", 202), ("tenant-admin", 202)] {
        let token = token(&server, Some("acme"), scope).await;
        assert_eq!(send(&token, "acme").await, status, "{scope}");
    }
    let sender = As(&server, ingest.clone());
    let who = sender.call(Method::GET, "/v1/whoami", None).await.json();
    assert_eq!(who["scope"], "ingest-only");
    let seen = sender
        .call(Method::GET, "/v1/tenants/acme/rules", None)
        .await;
    seen.problem(403, "not-allowed");
    let id = ingest.split('_').nth(1).unwrap();
    let path = format!("/v1/tokens/{id}");
    let revoked = operator(&server).call(Method::DELETE, &path, None).await;
    assert_eq!(revoked.status, 200);
    assert_eq!(send(&ingest, "acme").await, 401, "it is revoked");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_sent_again_with_its_key_is_made_once() {
    let setup = Setup::new().tenant("acme", "").tenant("other", "");
    let server = setup.start().await;
    let admin = As(&server, token(&server, Some("acme"), "tenant-admin").await);
    let other = As(&server, token(&server, Some("other"), "tenant-admin").await);
    let body = |tenant: &str, label: &str| json!({ "tenant": tenant, "scope": "read-only", "label": label });
    let make = async |who: &As<'_>, key: &str, body: Value| {
        let headers = [("idempotency-key", key)];
        who.with(Method::POST, "/v1/tokens", &headers, Some(body))
            .await
    };
    let first = make(&admin, "k1", body("acme", "a")).await;
    assert_eq!(first.status, 201);
    let again = make(&admin, "k1", body("acme", "a")).await;
    assert_eq!((again.status, &again.body), (201, &first.body));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.header("cache-control"), "no-store");
    let told = make(&admin, "k1", body("acme", "b")).await;
    told.problem(422, "idempotency-key-reused");
    // Another's key is another key, and so is what was refused.
    assert_eq!(make(&other, "k1", body("other", "a")).await.status, 201);
    let wrong = make(&admin, "k2", body("acme", "")).await;
    assert_eq!(wrong.status, 422);
    assert_eq!(make(&admin, "k2", body("acme", "c")).await.status, 201);
    let long = "x".repeat(256);
    let told = make(&admin, &long, body("acme", "d")).await;
    told.problem(400, "invalid-idempotency-key");
    let listed = admin.call(Method::GET, "/v1/tokens", None).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    let made = first.json()["token"].as_str().unwrap().to_owned();
    let As(_, text) = admin;
    server.stop().await;

    // It is remembered, and what it shows lies sealed.
    let held = std::fs::read(setup.data().join("store/db")).unwrap();
    assert!(!held.windows(made.len()).any(|it| it == made.as_bytes()));
    let server = setup.start().await;
    let admin = As(&server, text);
    let again = make(&admin, "k1", body("acme", "a")).await;
    assert_eq!((again.status, &again.body), (201, &first.body));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_calls_at_its_own_rate_and_the_command_line_waits() {
    let setup = Setup::new()
        .config("[server]\ncalls_per_s = 3\n")
        .tenant("acme", "");
    let server = setup.start().await;
    let text = token(&server, Some("acme"), "read-only").await;
    let reader = As(&server, text.clone());
    let other = As(&server, token(&server, Some("acme"), "read-only").await);
    let refused = until("too many calls", || async {
        let told = reader.call(Method::GET, "/v1/whoami", None).await;
        (told.status != 200).then_some(told)
    });
    let refused = refused.await;
    assert_eq!(refused.header("retry-after"), "1");
    let told = refused.problem(429, "calls-quota");
    assert!(told.contains("3 calls/s"), "{told}");
    assert_eq!(
        other.call(Method::GET, "/v1/whoami", None).await.status,
        200
    );
    for _ in 0..8 {
        let args = ["usage", "--url", &server.base];
        let used = cli_with(&args, &[("HOOKSIEVE_TOKEN", &text)], b"");
        assert_eq!(used.code, 0, "{}", used.stderr);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_whole_though_events_come_in() {
    let hook = Receiver::start().await;
    let tenant = format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n",
        hook.url("/hook")
    );
    let setup = Setup::new().tenant("acme", &tenant);
    let server = Arc::new(setup.start().await);
    let event = json!({ "do": "post", "payload": "x".repeat(5_000) }).to_string();
    let mut before = Vec::new();
    for _ in 0..50 {
        before.push(server.post_json("/in/acme/open", &event).await.id());
    }
    let done = Arc::new(AtomicBool::new(false));
    let load = {
        let (server, done, event) = (server.clone(), done.clone(), event.clone());
        tokio::spawn(async move {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                server.post_json("/in/acme/open", &event).await.id();
                sent += 1;
            }
            sent
        })
    };
    let folder = tempfile::tempdir().unwrap();
    for n in 0..5 {
        let file = folder.path().join(n.to_string());
        let file = file.to_str().unwrap();
        let taken = run(&server, &["backup", file], &[]);
        assert_eq!(taken.code, 0, "{}", taken.stderr);
        let data = folder.path().join(format!("data{n}"));
        std::fs::create_dir(&data).unwrap();
        let data = data.to_str().unwrap();
        let offline = |args: &[&str]| {
            let mut all = vec!["store"];
            all.extend(args);
            all.extend(["--data", data]);
            let done = cli_with(&all, &[], b"");
            assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        };
        offline(&["import", file]);
        // Every row is there that another one names, and the sizes are right.
        offline(&["check"]);
    }
    done.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 0);
    let reader = token(&server, Some("acme"), "tenant-admin").await;
    let told = As(&server, reader)
        .call(Method::GET, "/v1/backup", None)
        .await;
    told.problem(403, "not-allowed");
    Arc::into_inner(server).unwrap().stop().await;

    // An engine goes on from it.
    let other = Setup::new().tenant("acme", &tenant);
    std::fs::create_dir_all(other.data()).unwrap();
    std::fs::rename(
        folder.path().join("data4/store"),
        other.data().join("store"),
    )
    .unwrap();
    let server = other.start().await;
    for id in before {
        assert_eq!(server.get(&format!("/v1/events/{id}")).await.status, 200);
    }
    server.stop().await;
}

/// A rule that is asked again about a held event sees its own tenant's events, and of these the held ones.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_his_rule_look_at_another_s_event() {
    let source = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n";
    let setup = Setup::new().tenant("acme", source).tenant("other", source);
    let server = setup.start().await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    author.upload("acme", PROBE).await;
    assert_eq!(
        author.version("x", json!({ "as": "live" })).await.status,
        201
    );
    // What the rule fails with is what the event says.
    let telling = json!({ "do": "error", "message": "a planted secret" }).to_string();
    let foreign = server.post_json("/in/other/open", &telling).await.id();
    let decided = json!({ "do": "drop", "message": "x" }).to_string();
    let decided = server.post_json("/in/acme/open", &decided).await.id();
    let held = server.post_json("/in/acme/open", &telling).await.id();
    for id in [&decided, &held] {
        server.settled(id).await;
    }
    let release = async |event: &str| {
        let path = format!("/v1/held/acme/{event}/own/release");
        author.call(Method::POST, &path, None).await
    };
    for event in [
        foreign.as_str(),
        &decided,
        "01a2082f-661b-7943-959e-eb1db2475184",
    ] {
        let told = release(event).await;
        assert!(!told.body.contains("planted"), "{}", told.body);
        told.problem(404, "not-found");
    }
    let told = release(&held).await;
    assert!(
        told.problem(409, "not-released")
            .contains("a planted secret")
    );
    // One id says nothing of the next.
    let mut last = None;
    for _ in 0..20 {
        let id = server.post_json("/in/other/open", "{}").await.id();
        let low = u64::from_str_radix(&id.replace('-', "")[16..], 16).unwrap();
        if let Some(last) = last.replace(low) {
            assert!(low.abs_diff(last) > 1 << 20, "{low} after {last}");
        }
    }
    server.stop().await;
}

/// Who connects and says nothing, and who sends slowly, leave room for others.
#[tokio::test(flavor = "multi_thread")]
async fn silent_and_slow_clients_do_not_keep_others_out() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    let source = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n";
    let setup = Setup::new()
        .config("[server]\nconnections_max = 8\nrequests_max = 16\nrequest_timeout_ms = 1500\n")
        .tenant("acme", source)
        .tenant("other", source);
    let server = setup.start().await;
    let address = server.base.strip_prefix("http://").unwrap().to_owned();
    let mut silent = Vec::new();
    for begin in ["", "PRI * HT", "GET /he"].iter().cycle().take(8) {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(begin.as_bytes()).await.unwrap();
        silent.push(stream);
    }
    assert_eq!(server.get("/healthz").await.status, 200);
    for mut stream in silent {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
    // Two of sixteen are one tenant's: these two have it for as long as the engine waits for their bodies.
    let slow = || async {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let head = "POST /in/acme/open HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    until("its share is used up", || async {
        let _slow = [slow().await, slow().await];
        for _ in 0..20 {
            let answer = server.post_json("/in/acme/open", "{}").await;
            if answer.status == 503 {
                answer.problem(503, "busy");
                server.post_json("/in/other/open", "{}").await.id();
                return Some(());
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        None
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_have_room_for_so_much_and_no_more() {
    let setup = Setup::new()
        .config("[uploads]\nversions_bytes_max = 20000\n")
        .tenant("acme", "");
    let server = setup.start().await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    author.upload("acme", PROBE).await;
    let many: Vec<&str> = vec!["*"; 101];
    let told = author.version("x", json!({ "events": many })).await;
    assert!(told.problem(422, "invalid").contains("the limit is 100"));
    let told = author.version("x", json!({ "channels": ["a", "a"] })).await;
    told.problem(409, "conflict");
    let large = json!({ "config": { "greeting": "x".repeat(8_000) } });
    for _ in 0..2 {
        assert_eq!(author.version("x", large.clone()).await.status, 201);
    }
    let told = author.version("x", large).await.problem(403, "quota");
    assert!(told.contains("versions_bytes_max"), "{told}");
    server.stop().await;
}
