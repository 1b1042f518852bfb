//! From a sender's request to what a receiver got, with every answer on the way.

use hooksieve_tests::{Received, Receiver, Reply, Server, Setup, TOKEN, cli_with, sign, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SECRET: &str = "it-is-made-up";
const IN: &str = "/in/acme/hub";

/// A tenant with a GitHub source `hub`, a Shopify source `shop`, JSON sources `app` (with a token)
/// and `open`, and a webhook channel `hook`; its rules are up to the test.
fn tenant(hook: &Receiver, rules: &str) -> String {
    format!(
        "[[source]]\nname = 'hub'\nkind = 'github'\nsecret = {{ env = 'HUB' }}\n\
         [[source]]\nname = 'shop'\nkind = 'shopify'\nsecret = {{ env = 'HUB' }}\n\
         [[source]]\nname = 'app'\nkind = 'json'\ntoken = {{ env = 'APP' }}\ntype = 'alert'\n\
         type_from = '/kind'\nid_from = '/id'\nsubject_from = '/host'\n\
         [[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n{rules}",
        hook.url("/hook")
    )
}

const ONE: &str = "[[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n";

/// Retries within milliseconds, and few of them.
const HASTY: &str = "[dispatch]\nretry_ms = [10, 20, 40]\n";

fn setup(hook: &Receiver, rules: &str) -> Setup {
    Setup::new()
        .env("HUB", SECRET)
        .env("APP", "app-token")
        .tenant("acme", &tenant(hook, rules))
}

/// What the probe is asked to post.
fn post(payload: impl Into<Value>) -> String {
    json!({ "do": "post", "payload": payload.into() }).to_string()
}

async fn github(server: &Server, delivery: &str, body: &str) -> hooksieve_tests::Answer {
    server
        .post_github(IN, SECRET, ("issues", delivery), body)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_taken_decided_and_delivered() {
    let hook = Receiver::start().await;
    let server = setup(&hook, ONE).start().await;
    let body = r#"{"action": "opened", "do": "post", "payload": {"n": 1, "é": [1.5, null, "💥"]},
                   "repository": {"full_name": "octo/api"}}"#;
    let answer = github(&server, "d-1", body).await;
    assert_eq!(answer.json()["duplicate"], false);
    let story = server.settled(&answer.id()).await;
    let event = &story["event"];
    assert_eq!(event["type"], "issues.opened");
    assert_eq!(event["subject"], "octo/api");
    assert_eq!(event["tenant"], "acme");
    assert_eq!(event["source"], "hub");
    assert_eq!(event["sender_id"], "d-1");
    assert_eq!(event["verified"], "github: HMAC-SHA256 of the body");
    assert_eq!(event["data"]["payload"]["é"][2], "💥");
    // What a rule may see of the headers, and no signature.
    assert_eq!(
        event["headers"],
        json!({ "x-github-event": "issues", "x-github-delivery": "d-1" })
    );
    let decision = &story["decisions"][0];
    assert_eq!(decision["outcome"], "notified");
    assert_eq!(decision["reason"], "posted");
    assert!(decision["fuel"].as_u64().unwrap() > 0);
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "delivered");
    assert_eq!(delivery["attempts"][0]["status"], 200);
    let got = hook.wait_for(1).await;
    assert_eq!(got[0].id(), delivery["id"]);
    assert_eq!(
        got[0].json(),
        json!({ "greeting": "", "kind": "issues.opened", "data": { "n": 1, "é": [1.5, null, "💥"] } })
    );
    // The same story without the data.
    let bare = server
        .get(&format!("/v1/events/{}", answer.id()))
        .await
        .json();
    assert_eq!(
        (&bare["event"]["data"], &bare["event"]["headers"]),
        (&Value::Null, &Value::Null)
    );
    server.end().await;
    assert_eq!(hook.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sender_has_its_way_in() {
    let hook = Receiver::start().await;
    let server = setup(&hook, ONE).start().await;
    // GitHub, set to form encoding: the signature is of the form as it is.
    let form = format!(
        "payload={}",
        url::form_urlencoded::byte_serialize(post("a form & more").as_bytes()).collect::<String>()
    );
    let signature = sign::github(SECRET, form.as_bytes());
    let headers = [
        ("content-type", "application/x-www-form-urlencoded"),
        ("x-github-event", "push"),
        ("x-github-delivery", "form"),
        ("x-hub-signature-256", &signature),
    ];
    server.post(IN, &headers, form.as_bytes()).await.id();
    let got = hook.wait_for(1).await;
    assert_eq!(got[0].json()["data"], "a form & more");
    assert_eq!(got[0].json()["kind"], "push");
    // Shopify.
    let body = post("an order");
    let signature = sign::shopify(SECRET, body.as_bytes());
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("x-shopify-topic", "orders/create"),
        ("x-shopify-webhook-id", "w-1"),
        ("x-shopify-shop-domain", "a.example"),
        ("x-shopify-hmac-sha256", &signature),
    ];
    let taken = server
        .post("/in/acme/shop", &headers, body.as_bytes())
        .await;
    let story = server.settled(&taken.id()).await;
    assert_eq!(story["event"]["type"], "orders.create");
    assert_eq!(story["event"]["subject"], "a.example");
    let changed = server.post("/in/acme/shop", &headers, b"{}").await;
    changed.problem(401, "not-verified");
    // JSON with a token, its type, id and subject from the body.
    let headers = [
        ("content-type", "application/json"),
        ("authorization", "Bearer app-token"),
    ];
    let body = r#"{"do": "drop", "kind": "disk.full", "id": 7, "host": "db-1"}"#;
    let taken = server.post("/in/acme/app", &headers, body.as_bytes()).await;
    let story = server.settled(&taken.id()).await;
    assert_eq!(story["event"]["type"], "disk.full");
    assert_eq!(story["event"]["sender_id"], "7");
    assert_eq!(story["event"]["subject"], "db-1");
    for token in ["Bearer other", "Basic app-token", "app-token"] {
        let headers = [
            ("content-type", "application/json"),
            ("authorization", token),
        ];
        let refused = server.post("/in/acme/app", &headers, body.as_bytes()).await;
        refused.problem(401, "not-verified");
    }
    server
        .post_json("/in/acme/app", body)
        .await
        .problem(401, "not-verified");
    // JSON that anyone on this machine may send.
    let taken = server.post_json("/in/acme/open", &post("open")).await;
    let story = server.settled(&taken.id()).await;
    assert_eq!(story["event"]["type"], "json");
    assert_eq!(story["event"]["verified"], "json: open on loopback");
    server.end().await;
    assert_eq!(hook.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_delivery_is_answered_alike_and_processed_once() {
    let hook = Receiver::start().await;
    let server = setup(&hook, ONE).start().await;
    let first = github(&server, "d-1", &post(1)).await;
    let again = github(&server, "d-1", &post(1)).await;
    assert_eq!(
        (again.id(), &again.json()["duplicate"]),
        (first.id(), &json!(true))
    );
    // Fifty at once, the first among them.
    let body = post(2);
    let repeats = (0..50).map(|_| github(&server, "d-2", &body));
    let answers = join_all(repeats).await;
    let ids: HashSet<_> = answers.iter().map(hooksieve_tests::Answer::id).collect();
    assert_eq!(ids.len(), 1);
    let firsts = answers
        .iter()
        .filter(|answer| answer.json()["duplicate"] == false);
    assert_eq!(firsts.count(), 1);
    // The sender's id is data: the same one with another body is another event.
    let other = github(&server, "d-2", &post(3)).await;
    assert!(!ids.contains(&other.id()));
    assert_eq!(other.json()["duplicate"], false);
    // And the same body without the id, or from another source, too.
    server.post_json("/in/acme/open", &post(1)).await;
    server.post_json("/in/acme/open", &post(1)).await;
    server.settle().await;
    let mut got: Vec<_> = hook
        .received()
        .iter()
        .map(|got| got.json()["data"].as_u64().unwrap())
        .collect();
    got.sort_unstable();
    assert_eq!(got, [1, 1, 1, 2, 3]);
    server.end().await;
}

/// All of them at once; the tests have no other need of a futures library.
pub(super) async fn join_all<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = all.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (future, slot) in waiting.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(output) => *slot = Some(output),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_is_told_why() {
    let hook = Receiver::start().await;
    let setup = setup(&hook, ONE).config("[server]\nbody_bytes_max = 2048\n");
    let server = setup.start().await;
    let body = post(1);
    let good = sign::github(SECRET, body.as_bytes());
    let wrong = sign::github("another", body.as_bytes());
    let json = ("content-type", "application/json");
    let issues = ("x-github-event", "issues");
    let signed = ("x-hub-signature-256", good.as_str());
    let send = |headers: Vec<(&'static str, &str)>, body: &str| {
        let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        let (server, body) = (&server, body.to_owned());
        async move {
            let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
            server.post(IN, &headers, body.as_bytes()).await
        }
    };
    assert_eq!(
        send(vec![json, issues], &body)
            .await
            .problem(401, "not-verified"),
        "the request has no X-Hub-Signature-256 header; check that both sides hold the same secret"
    );
    let misfit = "the X-Hub-Signature-256 header does not fit the body and the source's secret; check that both sides hold the same secret";
    let answer = send(vec![json, issues, ("x-hub-signature-256", &wrong)], &body).await;
    assert_eq!(answer.problem(401, "not-verified"), misfit);
    assert_eq!(answer.header("www-authenticate"), "Bearer");
    let changed = body.replace('1', "2");
    assert_eq!(
        send(vec![json, issues, signed], &changed)
            .await
            .problem(401, "not-verified"),
        misfit
    );
    // Signed, and no use: 400.
    assert_eq!(
        send(vec![json, signed], &body)
            .await
            .problem(400, "invalid-body"),
        "the X-GitHub-Event header names no event"
    );
    for bad in ["", "{", "not json", "{} {}", "\u{1}", "[1,]"] {
        let signature = sign::github(SECRET, bad.as_bytes());
        let answer = send(vec![json, issues, ("x-hub-signature-256", &signature)], bad).await;
        let detail = answer.problem(400, "invalid-body");
        assert!(detail.starts_with("the body is not JSON: "), "{detail}");
    }
    let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
    let signature = sign::github(SECRET, deep.as_bytes());
    send(
        vec![json, issues, ("x-hub-signature-256", &signature)],
        &deep,
    )
    .await
    .problem(400, "invalid-body");
    let form = "other=1";
    let signature = sign::github(SECRET, form.as_bytes());
    let answer = send(
        vec![
            ("content-type", "application/x-www-form-urlencoded"),
            issues,
            ("x-hub-signature-256", &signature),
        ],
        form,
    );
    assert_eq!(
        answer.await.problem(400, "invalid-body"),
        "the form has no field `payload`"
    );
    // 415, only to whom the secret is known.
    let answer = send(vec![("content-type", "text/plain"), issues, signed], &body).await;
    assert_eq!(
        answer.problem(415, "media-type"),
        "the content type \"text/plain\" is not taken here; send application/json or application/x-www-form-urlencoded"
    );
    send(vec![("content-type", "text/plain"), issues], &body)
        .await
        .problem(401, "not-verified");
    // One answer for a tenant and for a source that do not exist.
    let mut details = HashSet::new();
    for path in [
        "/in/acme/nope",
        "/in/nope/hub",
        "/in/ACME/hub",
        "/in/acme/%00",
    ] {
        details.insert(
            server
                .post_json(path, "{}")
                .await
                .problem(404, "unknown-source"),
        );
    }
    assert_eq!(details.len(), 1);
    for path in ["/", "/in", "/in/acme", "/in/acme/hub/more", "/v2/held"] {
        server.get(path).await.problem(404, "unknown-path");
    }
    assert_eq!(server.get(IN).await.status, 405);
    // 413: announced, and not announced. Exactly the limit is taken.
    let sized = |bytes: usize| {
        let padding = "x".repeat(bytes - r#"{"pad":""}"#.len());
        format!(r#"{{"pad":"{padding}"}}"#)
    };
    server.post_json("/in/acme/open", &sized(2_048)).await.id();
    let detail = server
        .post_json("/in/acme/open", &sized(2_049))
        .await
        .problem(413, "body-too-large");
    assert_eq!(
        detail,
        "the body is larger than 2048 bytes, the limit of this server (body_bytes_max)"
    );
    let chunked = |bytes: usize| {
        let mut request = format!(
            "{}transfer-encoding: chunked\r\n\r\n",
            head("/in/acme/open")
        );
        for piece in sized(bytes).as_bytes().chunks(500) {
            request += &format!(
                "{:x}\r\n{}\r\n",
                piece.len(),
                std::str::from_utf8(piece).unwrap()
            );
        }
        request + "0\r\n\r\n"
    };
    assert!(
        raw(&server, &chunked(2_048))
            .await
            .starts_with("HTTP/1.1 202")
    );
    let answer = raw(&server, &chunked(2_049)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(
        answer.to_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert!(answer.contains("application/problem+json"), "{answer}");
    // Announced only: refused before any of it is sent.
    let answer = raw(
        &server,
        &format!(
            "{}content-length: 999999999999\r\n\r\n",
            head("/in/acme/open")
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    server.end().await;
    assert_eq!(hook.count(), 0);
}

/// The beginning of a request, without its length and the empty line. The connection closes after
/// it, so that the answer can be read to its end.
fn head(path: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    )
}

async fn connect(server: &Server) -> TcpStream {
    let addr = server.base.strip_prefix("http://").unwrap();
    TcpStream::connect(addr).await.unwrap()
}

/// Sends these bytes and reads what comes until the connection closes.
async fn raw(server: &Server, request: &str) -> String {
    let mut stream = connect(server).await;
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(stream).await
}

async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // A connection that is reset has said what it had to say.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A request that is being received: the engine has asked for its body, and has had none of it.
async fn begun(server: &Server, bytes: usize) -> TcpStream {
    let mut stream = connect(server).await;
    let head = head("/in/acme/open");
    let request = format!("{head}content-length: {bytes}\r\nexpect: 100-continue\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_broken_senders_are_let_go() {
    let hook = Receiver::start().await;
    let server = setup(&hook, ONE)
        .config("[server]\nrequest_timeout_ms = 200\n")
        .start()
        .await;
    let mut slow = begun(&server, 100).await;
    slow.write_all(b"{").await.unwrap();
    let answer = rest(slow).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(
        answer.contains("urn:hooksieve:problem:body-timeout"),
        "{answer}"
    );
    assert!(
        answer.contains("the body did not arrive within 200 ms; send it again"),
        "{answer}"
    );
    // One that hangs up leaves nothing behind.
    drop(begun(&server, 100).await);
    let answer = server.post_json("/in/acme/open", r#"{"do": "drop"}"#).await;
    answer.id();
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_at_once_are_sent_away() {
    let hook = Receiver::start().await;
    let server = setup(&hook, ONE)
        .config("[server]\nrequests_max = 16\n")
        .start()
        .await;
    let body = r#"{"do": "drop"}"#;
    let mut first = begun(&server, body.len()).await;
    let second = begun(&server, body.len()).await;
    let answer = server.post_json("/in/acme/open", body).await;
    assert_eq!(
        answer.problem(503, "busy"),
        "too many requests are being received; send it again later"
    );
    assert_eq!(answer.header("retry-after"), "5");
    // Operators and probes are not shut out.
    assert_eq!(server.get("/healthz").await.status, 200);
    first.write_all(body.as_bytes()).await.unwrap();
    let taken = rest(first).await;
    assert!(taken.starts_with("HTTP/1.1 202"), "{taken}");
    drop(second);
    until("the place to be free again", || async {
        let answer = server.post_json("/in/acme/open", body).await;
        (answer.status == 202).then_some(())
    })
    .await;
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_the_operators_token() {
    let hook = Receiver::start().await;
    let setup = setup(&hook, ONE);
    let server = setup.start().await;
    for (probe, says) in [("/healthz", "ok"), ("/readyz", "ready")] {
        let answer = server.call_with(Method::GET, probe, None).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, says));
    }
    let id = "01890a5d-ac96-774b-bcce-b302099a8057";
    let held = format!("/v1/held/acme/{id}/one");
    for (method, path, known) in [
        (Method::GET, "/v1/held".to_owned(), 200),
        (Method::GET, "/v1/dead".to_owned(), 200),
        (Method::DELETE, "/v1/dead".to_owned(), 200),
        (Method::DELETE, format!("/v1/dead/{id}"), 404),
        (
            Method::POST,
            "/v1/channels/acme/nowhere/test".to_owned(),
            404,
        ),
        (Method::GET, format!("/v1/events/{id}"), 404),
        (Method::GET, format!("/v1/deliveries/{id}"), 404),
        (Method::GET, held.clone(), 404),
        (Method::DELETE, held.clone(), 404),
        (Method::POST, format!("{held}/release"), 404),
    ] {
        for token in [
            None,
            Some(""),
            Some("a-token-for-tests-alon"),
            Some("A-token-for-tests-alone"),
        ] {
            let answer = server.call_with(method.clone(), &path, token).await;
            let detail = answer.problem(401, "not-authorised");
            assert_eq!(
                detail,
                "send a token that is good as `Authorization: Bearer TOKEN`"
            );
        }
        let answer = server.call(method, &path).await;
        assert_eq!(answer.status, known, "{path}");
        if known == 404 {
            answer.problem(404, "not-found");
        }
    }
    server
        .get("/v1/events/nonsense")
        .await
        .problem(400, "invalid-id");
    server
        .get("/v1/held?tenant=No!")
        .await
        .problem(400, "invalid-id");
    server.end().await;
    // An engine that was given none makes one, for its owner's eyes alone.
    let setup = setup.without_env("HOOKSIEVE_OPERATOR_TOKEN");
    let server = setup.start().await;
    let path = setup.data().join("operator-token");
    let token = std::fs::read_to_string(&path).unwrap();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let call = |token: String| {
        let server = &server;
        async move {
            server
                .call_with(Method::GET, "/v1/held", Some(&token))
                .await
                .status
        }
    };
    assert_eq!(call(token).await, 200);
    assert_eq!(call(TOKEN.into()).await, 401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_see_what_they_subscribed_to() {
    let hook = Receiver::start().await;
    let rule = |name: &str, events: &str, more: &str| {
        format!(
            "[[rule]]\nname = '{name}'\nmodule = 'probe.wasm'\nevents = [{events}]\n{more}\n[rule.config]\ngreeting = '{name}'\n"
        )
    };
    let rules = [
        rule("all", "'*'", ""),
        rule("issues", "'issues'", ""),
        rule("opened", "'issues.opened', 'push'", ""),
        rule("group", "'issues.*'", ""),
        rule("app-only", "'*'", "sources = ['app']"),
        rule("elsewhere", "'issue'", ""),
    ];
    let server = setup(&hook, &rules.concat()).start().await;
    let send = async |event: &str, action: Option<&str>| -> Vec<String> {
        let body = json!({ "do": "post", "action": action, "payload": event }).to_string();
        let answer = server.post_github(IN, SECRET, (event, "x"), &body).await;
        let story = server.settled(&answer.id()).await;
        let decisions = story["decisions"].as_array().unwrap();
        assert_eq!(
            decisions.len(),
            story["deliveries"].as_array().unwrap().len()
        );
        decisions
            .iter()
            .map(|decision| decision["rule"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        send("issues", Some("opened")).await,
        ["all", "issues", "opened", "group"]
    );
    assert_eq!(
        send("issues", Some("closed")).await,
        ["all", "issues", "group"]
    );
    assert_eq!(send("issues", None).await, ["all", "issues", "group"]);
    assert_eq!(send("issue_comment", Some("created")).await, ["all"]);
    assert_eq!(send("push", None).await, ["all", "opened"]);
    let got = hook.wait_for(13).await;
    let greetings: Vec<_> = got
        .iter()
        .map(|got| got.json()["greeting"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(greetings.iter().filter(|name| *name == "all").count(), 5);
    let ids: HashSet<_> = got.iter().map(Received::id).collect();
    assert_eq!(
        ids.len(),
        13,
        "a delivery of each rule has an id of its own"
    );
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_decision_reaches_several_channels() {
    let hook = Receiver::start().await;
    let more = format!(
        "[[channel]]\nname = 'second'\nkind = 'webhook'\nurl = '{}'\n{ONE}",
        hook.url("/second")
    );
    let server = setup(&hook, &more).start().await;
    let body = r#"{"do": "everywhere", "channels": ["hook", "second", "hook"], "title": "hi"}"#;
    let taken = server.post_json("/in/acme/open", body).await;
    let story = server.settled(&taken.id()).await;
    assert_eq!(story["deliveries"].as_array().unwrap().len(), 3);
    let got = hook.wait_for(3).await;
    let mut paths: Vec<_> = got.iter().map(|got| got.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/hook", "/hook", "/second"]);
    let message = got[0].json();
    assert_eq!(message["type"], "json");
    assert_eq!(message["data"]["message"]["title"], "hi");
    assert_eq!(message["data"]["event"]["id"], taken.id());
    // A channel that the tenant does not have, or not for this rule, is the rule's failure.
    let body = r#"{"do": "everywhere", "channels": ["secnd"]}"#;
    let taken = server.post_json("/in/acme/open", body).await;
    let story = server.settled(&taken.id()).await;
    assert_eq!(
        story["decisions"][0]["error"],
        "its decision is not valid: actions[0] names the channel \"secnd\", which its tenant does not have; did you mean `second`?"
    );
    server.end().await;
    assert_eq!(hook.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_event_waits_for_a_better_rule() {
    let hook = Receiver::start().await;
    let broken = format!("{ONE}[rule.config]\nbroken = true\n");
    let setup = setup(&hook, &broken);
    let server = setup.start().await;
    let taken = server.post_json("/in/acme/open", &post("kept")).await;
    let let_go = server.post_json("/in/acme/open", &post("let go")).await;
    let (taken, let_go) = (taken.id(), let_go.id());
    let story = server.settled(&taken).await;
    assert_eq!(story["decisions"][0]["then"], "held");
    let failed = "it returned an error: it is configured to fail";
    assert_eq!(story["decisions"][0]["error"], failed);
    server.settle().await;
    let held = server.get("/v1/held").await.json()["items"].take();
    let of = |held: &Value| {
        (
            held["tenant"].clone(),
            held["event"].clone(),
            held["rule"].clone(),
            held["error"].clone(),
        )
    };
    assert_eq!(
        of(&held[0]),
        (json!("acme"), json!(taken), json!("one"), json!(failed))
    );
    assert_eq!(of(&held[1]).1, json!(let_go));
    let others = server.get("/v1/held?tenant=other").await.json();
    assert_eq!(others, json!({ "items": [] }));
    let first = server.get("/v1/held?limit=1").await.json();
    let rest = format!("/v1/held?after={}", first["next"].as_str().unwrap());
    let rest = server.get(&rest).await.json();
    assert_eq!(rest["items"][0]["event"], let_go);
    assert!(rest.get("next").is_none(), "{rest}");
    let path = format!("/v1/held/acme/{taken}/one");
    let one = server.get(&path).await.json();
    assert_eq!(one["event"]["data"]["payload"], "kept");
    // The wrong tenant, event or rule is nothing.
    for wrong in [
        format!("/v1/held/other/{taken}/one"),
        format!("/v1/held/acme/{taken}/two"),
    ] {
        server.get(&wrong).await.problem(404, "not-found");
        server
            .call(Method::DELETE, &wrong)
            .await
            .problem(404, "not-found");
        let released = server.call(Method::POST, &format!("{wrong}/release")).await;
        assert!(matches!(released.status, 404 | 409), "{}", released.body);
    }
    // The rule is as it was, so it fails again, and the event stays.
    let release = format!("{path}/release");
    let detail = server
        .call(Method::POST, &release)
        .await
        .problem(409, "not-released");
    assert_eq!(
        detail,
        format!("the rule failed again, so the event stays held: {failed}")
    );
    assert_eq!(
        server.get("/v1/held").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    // Over the command line, as a person does it.
    let held = |args: &[&str]| {
        let mut all = vec!["held"];
        all.extend(args);
        all.extend(["--url", &server.base]);
        cli_with(&all, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"")
    };
    let listed = held(&["list"]);
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    assert!(
        listed.stdout.contains(&taken) && listed.stdout.contains(failed),
        "{}",
        listed.stdout
    );
    let refused = held(&["release", "acme", &taken, "one"]);
    assert_eq!(refused.code, 1);
    assert_eq!(
        refused.stderr,
        format!("error: Not released: the rule failed again, so the event stays held: {failed}\n")
    );
    let dropped = held(&["drop", "acme", &let_go, "one"]);
    assert_eq!(
        (dropped.code, dropped.stdout.as_str()),
        (0, "dropped\n"),
        "{}",
        dropped.stderr
    );
    let again = held(&["drop", "acme", &let_go, "one"]);
    assert_eq!(again.code, 1, "{}", again.stdout);
    assert_eq!(
        server.story(&let_go).await["decisions"][0]["then"],
        "dropped"
    );
    server.stop().await;

    // The rule is mended, the engine restarted: what was held is still there, and now goes out.
    let setup = setup.tenant(
        "acme",
        &tenant(&hook, &format!("{ONE}[rule.config]\ngreeting = 'mended'\n")),
    );
    let server = setup.start().await;
    assert_eq!(
        server.get("/v1/held").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(hook.count(), 0);
    let released = server.call(Method::POST, &release).await;
    assert_eq!(
        (released.status, &released.json()["outcome"]),
        (200, &json!("notified"))
    );
    let got = hook.wait_for(1).await;
    assert_eq!(
        (&got[0].json()["data"], &got[0].json()["greeting"]),
        (&json!("kept"), &json!("mended"))
    );
    let story = server.settled(&taken).await;
    assert_eq!(story["decisions"][0]["outcome"], "notified");
    assert_eq!(story["deliveries"][0]["id"], got[0].id());
    server
        .call(Method::POST, &release)
        .await
        .problem(404, "not-found");
    let held = server.get("/v1/held").await.json();
    assert_eq!(held, json!({ "items": [] }));
    server.end().await;
    assert_eq!(hook.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_rule_passes_or_drops_as_it_is_told() {
    let hook = Receiver::start().await;
    let rule = |name: &str, on_error: &str| {
        format!(
            "[[rule]]\nname = '{name}'\nmodule = 'probe.wasm'\nevents = ['*']\non_error = '{on_error}'\n"
        )
    };
    let rules = [rule("passes", "pass"), rule("drops", "drop")].concat();
    let file = format!("default_channel = 'hook'\n{}", tenant(&hook, &rules));
    let server = setup(&hook, ONE).tenant("acme", &file).start().await;
    let taken = server
        .post_json("/in/acme/open", r#"{"do": "panic", "code": 7}"#)
        .await;
    let story = server.settled(&taken.id()).await;
    let got = hook.wait_for(1).await;
    let message = got[0].json();
    assert_eq!(
        message["data"]["reason"],
        "passed on because the rule failed"
    );
    let text = message["data"]["message"]["text"].as_str().unwrap();
    assert!(
        text.starts_with(
            "The rule passes failed on this event, so it is passed on as it is: panicked: "
        ),
        "{text}"
    );
    assert!(text.contains("asked to panic: 7"), "{text}");
    assert_eq!(message["data"]["message"]["fields"][0]["value"], taken.id());
    let then: Vec<_> = story["decisions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|decision| decision["then"].clone())
        .collect();
    assert_eq!(then, ["passed", "dropped"]);
    let held = server.get("/v1/held").await.json();
    assert_eq!(held, json!({ "items": [] }));
    server.end().await;
    assert_eq!(hook.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_is_tried_again_under_one_id() {
    let hook = Receiver::answering(|n, _| Reply::status(if n < 2 { 500 } else { 204 })).await;
    let server = setup(&hook, ONE).config(HASTY).start().await;
    let taken = server.post_json("/in/acme/open", &post(1)).await;
    let story = server.settled(&taken.id()).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "delivered");
    let attempts = delivery["attempts"].as_array().unwrap();
    let statuses: Vec<_> = attempts
        .iter()
        .map(|attempt| attempt["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [500, 500, 204]);
    let host = hook.url("");
    let host = host.strip_prefix("http://").unwrap();
    assert_eq!(attempts[0]["error"], format!("{host} answered 500"));
    assert_eq!(attempts[2]["error"], Value::Null);
    let got = hook.received();
    assert_eq!(got.len(), 3);
    assert!(
        got.iter()
            .all(|each| delivery["id"] == each.id() && each.body == got[0].body)
    );
    let told = cli_with(
        &["explain", &taken.id(), "--url", &server.base],
        &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)],
        b"",
    );
    assert_eq!(told.code, 0, "{}", told.stderr);
    for part in [
        &taken.id(),
        "rule one",
        "posted",
        "hook",
        "delivered",
        "answered 500",
        "204",
    ] {
        assert!(
            told.stdout.contains(part),
            "{part} is not in\n{}",
            told.stdout
        );
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_asks_for_time_gets_it() {
    let hook = Receiver::answering(|n, _| match n {
        0 => Reply::status(429).header("retry-after", "1"),
        _ => Reply::status(200),
    })
    .await;
    let server = setup(&hook, ONE).config(HASTY).start().await;
    let taken = server.post_json("/in/acme/open", &post(1)).await;
    server.settled(&taken.id()).await;
    let got = hook.received();
    let waited = got[1].at - got[0].at;
    assert!(waited >= Duration::from_millis(990), "{waited:?}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_is_kept_as_a_dead_letter() {
    // What a receiver understood and refused is not tried again; what is broken is, up to the end.
    let hook = Receiver::answering(|_, got| {
        Reply::status(if got.json()["data"] == "refused" {
            400
        } else {
            503
        })
    })
    .await;
    let setup = setup(&hook, ONE).config(HASTY);
    let server = setup.start().await;
    let refused = server
        .post_json("/in/acme/open", &post("refused"))
        .await
        .id();
    let story = server.settled(&refused).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "dead");
    assert_eq!(delivery["attempts"].as_array().unwrap().len(), 1);
    assert!(
        delivery["reason"]
            .as_str()
            .unwrap()
            .contains("answered 400"),
        "{delivery}"
    );
    assert_eq!(hook.count(), 1);
    let broken = server
        .post_json("/in/acme/open", &post("broken"))
        .await
        .id();
    let story = server.settled(&broken).await;
    assert_eq!(story["deliveries"][0]["state"], "dead");
    assert_eq!(
        story["deliveries"][0]["attempts"].as_array().unwrap().len(),
        4
    );
    assert_eq!(hook.count(), 5);
    server.end().await;
    // They outlive the engine.
    let server = setup.start().await;
    let dead = server.get("/v1/dead?tenant=acme").await.json();
    let dead = dead["items"].as_array().unwrap();
    assert_eq!(dead.len(), 2);
    let id = dead[0]["id"].as_str().unwrap();
    let one = server.get(&format!("/v1/deliveries/{id}")).await.json();
    assert_eq!(one["payload"]["body"]["data"], "refused");
    let run = |args: &[&str]| {
        let mut all = vec!["dead"];
        all.extend(args);
        all.extend(["--url", &server.base]);
        cli_with(&all, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"")
    };
    assert!(run(&["list"]).stdout.contains(id));
    let listed = run(&["list", "--json"]).json_lines();
    assert_eq!(listed[0].as_array().unwrap().len(), 2);
    assert!(run(&["show", id]).stdout.contains("answered 400"));
    assert_eq!(run(&["show", "nonsense"]).code, 1);
    // Taken up again they have ids of their own, so that the receiver sees no repeat.
    let again = run(&["redrive", id]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert!(
        again.stdout.contains("goes out again as"),
        "{}",
        again.stdout
    );
    let story = server.settled(&refused).await;
    let (old, new) = (&story["deliveries"][0], &story["deliveries"][1]);
    assert_eq!(
        (&old["state"], &new["state"]),
        (&json!("redriven"), &json!("dead"))
    );
    assert_eq!(
        (&old["other"], &new["redrive_of"]),
        (&new["id"], &old["id"])
    );
    let got = hook.received();
    assert_eq!((got.len(), got[5].id()), (6, new["id"].as_str().unwrap()));
    assert_ne!(got[5].id(), got[0].id());
    assert_eq!(got[5].body, got[0].body);
    let unknown = run(&["redrive", id]);
    assert_eq!(unknown.code, 1);
    assert!(
        unknown.stderr.contains("there is no dead letter"),
        "{}",
        unknown.stderr
    );
    let none = run(&["redrive", "--all", "--channel", "nowhere"]);
    assert!(
        none.stdout.contains("nothing to redrive"),
        "{}",
        none.stdout
    );
    let all = run(&["redrive", "--all", "--tenant", "acme", "--json"]);
    assert_eq!(all.json_lines()[0].as_array().unwrap().len(), 2);
    server.settled(&refused).await;
    server.settled(&broken).await;
    server.stop().await;
    assert_eq!(hook.count(), 11);
}

/// Redirects are not followed, and nobody at home is worth another try.
#[tokio::test(flavor = "multi_thread")]
async fn redirects_end_and_closed_ports_are_tried_again() {
    let elsewhere = Receiver::start().await;
    let to = elsewhere.url("/other");
    let hook = Receiver::answering(move |_, _| Reply::status(302).header("location", &to)).await;
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let more =
        format!("[[channel]]\nname = 'closed'\nkind = 'webhook'\nurl = 'http://{closed}/'\n{ONE}");
    let server = setup(&hook, &more).config(HASTY).start().await;
    let taken = server.post_json("/in/acme/open", &post(1)).await;
    let story = server.settled(&taken.id()).await;
    assert_eq!(story["deliveries"][0]["state"], "dead");
    assert_eq!(
        story["deliveries"][0]["attempts"].as_array().unwrap().len(),
        1
    );
    assert_eq!(elsewhere.count(), 0);
    let taken = server
        .post_json("/in/acme/open", r#"{"do": "post", "channel": "closed"}"#)
        .await;
    let story = server.settled(&taken.id()).await;
    let attempts = story["deliveries"][0]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 4);
    assert!(attempts.iter().all(|attempt| attempt["status"].is_null()));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_is_under_way() {
    let hook =
        Receiver::answering(|_, _| Reply::status(200).after(Duration::from_millis(700))).await;
    let setup = setup(&hook, ONE);
    let server = setup.start().await;
    let taken = server.post_json("/in/acme/open", &post(1)).await.id();
    // One delivery is with its receiver, and one request is being received.
    hook.wait_for(1).await;
    let body = post(2);
    let mut sending = begun(&server, body.len()).await;
    server.terminate();
    sending.write_all(body.as_bytes()).await.unwrap();
    let answer = rest(sending).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let (status, said) = server.ended().await;
    assert!(status.success(), "{status}: {said}");
    // The delivery was recorded before the end, so nothing is sent twice after it.
    let server = setup.start().await;
    let story = server.settled(&taken).await;
    assert_eq!(story["deliveries"][0]["state"], "delivered");
    assert_eq!(
        story["deliveries"][0]["attempts"].as_array().unwrap().len(),
        1
    );
    let got = hook.wait_for(2).await;
    let second = got.iter().filter(|got| got.json()["data"] == 2);
    let ids: HashSet<_> = second.map(Received::id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(got.iter().filter(|got| got.json()["data"] == 1).count(), 1);
    server.stop().await;
}

/// A receiver that never answers does not hold the stop up beyond the drain time.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_when_the_drain_time_does() {
    let hook = Receiver::answering(|_, _| Reply::status(200).after(Duration::from_secs(600))).await;
    let setup = setup(&hook, ONE).config("[server]\ndrain_ms = 300\n");
    let server = setup.start().await;
    server.post_json("/in/acme/open", &post(1)).await.id();
    hook.wait_for(1).await;
    server.terminate();
    let (status, said) = server.ended().await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("they go on at the next start"), "{said}");
    // And so it does.
    let server = setup.start().await;
    let got = hook.wait_for(2).await;
    assert_eq!(got[0].id(), got[1].id());
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_address_needs_a_token_and_no_open_source() {
    let hook = Receiver::start().await;
    let closed = format!(
        "[[source]]\nname = 'hub'\nkind = 'github'\nsecret = {{ env = 'HUB' }}\n{ONE}\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n",
        hook.url("/")
    );
    let setup = setup(&hook, ONE).tenant("acme", &closed);
    let public = ["--listen", "0.0.0.0:0"];
    let setup = setup.without_env("HOOKSIEVE_OPERATOR_TOKEN");
    assert_eq!(
        setup.refused(&public),
        (
            2,
            "error: 0.0.0.0:0 is a public address, and the engine has no operator token: set HOOKSIEVE_OPERATOR_TOKEN to a long random text, or listen on 127.0.0.1\n".into()
        )
    );
    let setup = setup
        .tenant("acme", &tenant(&hook, ONE))
        .env("HOOKSIEVE_OPERATOR_TOKEN", TOKEN);
    assert_eq!(
        setup.refused(&public),
        (
            2,
            "error: the source `open` of tenant `acme` is open to everyone, and 0.0.0.0:0 is not a loopback address: give it a `token`\n".into()
        )
    );
    // Two engines on one store, and two on one port.
    let server = setup.start().await;
    let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
    assert_eq!(code, 2);
    assert!(
        said.ends_with(
            "is in use by another process; stop it, or name another folder with --data\n"
        ),
        "{said}"
    );
    let other = tempfile::tempdir().unwrap();
    let addr = server.base.strip_prefix("http://").unwrap();
    let (code, said) = setup.refused(&["--listen", addr, "--data", other.path().to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(
        said.starts_with(&format!("error: cannot listen on {addr}: ")),
        "{said}"
    );
    server.end().await;
}

/// Each mistake in one sentence, with its file, its line and the nearest right name.
#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_found_before_anything_runs() {
    let source = "[[source]]\nname = 'hub'\nkind = 'github'\nsecret = { env = 'HUB' }\n";
    let chat = "[[channel]]\nname = 'chat'\nkind = 'webhook'\nurl = 'http://127.0.0.1:1/'\n";
    let rule = "[[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n";
    let with = |more: &str| format!("{source}{chat}{rule}{more}");
    let sql = |driver: &str| {
        format!(
            "[[channel]]\nname = 'db'\nkind = 'sql'\n{driver}\nhost = 'a.example'\ndatabase = 'd'\nusername = 'u'\n\
             statement = 'DELETE FROM t WHERE a = ? OR b = ?'\nvalues = ['/b', {{ pointer = '/c', type = 'text' }}]\n"
        )
    };
    // The rule begins at line 9.
    let tenants: Vec<(String, &str)> = vec![
        (
            with("on_eror = 'drop'"),
            "13: rule `one` has no key `on_eror`; did you mean `on_error`?",
        ),
        (
            with("on_error = 'dorp'"),
            "13: `on_error` of rule `one` is \"dorp\"; there are `hold`, `pass` and `drop`; did you mean `drop`?",
        ),
        (
            with("on_error = 'pass'"),
            "13: `on_error = \"pass\"` sends to the tenant's `default_channel`, which is not set",
        ),
        (
            with("channels = ['chat', 'caht']"),
            "13: rule `one`: there is no channel `caht`; did you mean `chat`?",
        ),
        (
            with("sources = ['hbu']"),
            "13: rule `one`: there is no source `hbu`; did you mean `hub`?",
        ),
        (
            with("config = 5"),
            "13: `config` of rule `one` is not a table",
        ),
        (
            with("[rule.config]\ngreting = 'x'"),
            "9: rule `one`: it has no use for its configuration: ",
        ),
        (
            with(chat),
            "13: channel `chat`: there is a channel of that name above",
        ),
        (
            with(rule),
            "13: rule `one`: there is a rule of that name above",
        ),
        (
            with(source),
            "13: source `hub`: there is a source of that name above",
        ),
        (
            format!("default_channel = 'chta'\n{}", with("")),
            "1: there is no channel `chta`; did you mean `chat`?",
        ),
        (
            format!("default_chanel = 'chat'\n{}", with("")),
            "1: the file has no key `default_chanel`; did you mean `default_channel`?",
        ),
        (
            format!("default_channel = 'chat'\n{source}{rule}"),
            "1: there is no channel `chat`; there is no [[channel]] at all",
        ),
        (
            with("").replace("kind = 'github'", "kind = 'gitub'"),
            "3: source `hub` has the kind \"gitub\"; there are `github`, `shopify` and `json`; did you mean `github`?",
        ),
        (
            with("").replace("kind = 'webhook'", "kind = 'slak'"),
            "7: channel `chat` has the kind \"slak\"; there are `discord`, `email`, `lark`, `pagerduty`, `slack`, `sql`, `teams`, `voice`, `webhook`; did you mean `slack`?",
        ),
        (
            with("").replace("{ env = 'HUB' }", "'open sesame'"),
            "4: `secret` of source `hub` is a secret and does not stand in the file: write secret = { env = \"NAME\" } or { file = \"PATH\" }",
        ),
        (
            with("").replace("'HUB'", "'HUBB'"),
            "4: the environment variable HUBB for `secret` of source `hub` is not set",
        ),
        (
            with("").replace("{ env = 'HUB' }", "{ file = 'no-such-file' }"),
            "4: ",
        ),
        (
            with("").replace("'probe.wasm'", "'policy:github-triag'"),
            "11: there is no policy `github-triag`; did you mean `github-triage`? (`hooksieve policies list` shows them)",
        ),
        (
            with("").replace("'probe.wasm'", "'prob.wasm'"),
            "11: the module ",
        ),
        (
            with("").replace("'probe.wasm'", "'acme.toml'"),
            "9: rule `one`: it is not a WebAssembly module: it does not begin with `\\0asm` and version 1; pass the .wasm file that cargo left in target/wasm32-unknown-unknown/release",
        ),
        (
            with("").replace("events = ['*']", ""),
            "9: rule `one` has no `events`; write events = [\"*\"] for all",
        ),
        (
            with("").replace("['*']", "['issues.*.x']"),
            "12: \"issues.*.x\" is no pattern: write a type (`issues.opened`), a group (`issues.*`), or `*`",
        ),
        (
            with("").replace("'one'", "'One'"),
            "10: `name` of rule number 1: \"One\" is not a name: use 1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit",
        ),
        (
            with("").replace("http://127.0.0.1:1/", "127.0.0.1"),
            "5: channel `chat`: the url is not one: relative URL without a base",
        ),
        (
            with("").replace("[[rule]]", "[rule]"),
            "9: `rule` is a table, not tables: write [[rule]]",
        ),
        (
            with("").replace("[[rule]]", "[[rules]]"),
            "9: the file has no key `rules`; did you mean `rule`?",
        ),
        (
            with("").replace(
                "kind = 'webhook'",
                "kind = 'webhook'\nsecret = [{ env = 'HUB' }, 'open sesame']",
            ),
            "8: `secret` of channel `chat` is a secret and does not stand in the file: write secret = { env = \"NAME\" } or { file = \"PATH\" }",
        ),
        (
            with("").replace("kind = 'webhook'", "kind = 'webhook'\nsecret = []"),
            "8: `secret` of channel `chat` is an empty list",
        ),
        (
            with("").replace("kind = 'webhook'", "kind = 'webhook'\nmethod = 'GET'"),
            "5: channel `chat`: \"GET\" is no method; there are POST, PUT and PATCH",
        ),
        (
            with("").replace(
                "kind = 'webhook'",
                "kind = 'webhook'\nheaders = { X-Key = { env = 'NONE' } }",
            ),
            "8: the environment variable NONE for `X-Key` of `headers` of channel `chat` is not set",
        ),
        (
            with("").replace(
                "kind = 'webhook'",
                "kind = 'webhook'\nheaders = { Host = 'x' }",
            ),
            "5: channel `chat`: the header `host` is not the tenant's to set",
        ),
        (
            with(
                "[[channel]]\nname = 'phone'\nkind = 'voice'\naccount_sid = 'AC1'\nfrom = '+12025550100'\nto = ['5550101']\nauth_token = { env = 'HUB' }",
            ),
            "13: channel `phone`: \"5550101\" is not a phone number; write it with its country, as in \"+12025550123\"",
        ),
        (
            with("[[channel]]\nname = 'phone'\nkind = 'voice'\naccount_sid = 'AC1'"),
            "13: channel `phone` has no `to`",
        ),
        (
            with("[[channel]]\nname = 'office'\nkind = 'teams'\nurl = 'https://example.com'"),
            "16: `url` of channel `office` is a secret and does not stand in the file: write url = { env = \"NAME\" } or { file = \"PATH\" }",
        ),
        (with("name = 'again'"), "13: not TOML: "),
        (
            with("timeout_ms = 5").replace("url = ", "timeout_ms = 5\nurl = "),
            "8: `timeout_ms` may be 100 to 600000",
        ),
        (
            with(&sql("driver = 'mysql'").replace("'mysql'", "'mysq'")),
            "16: `driver` of channel `db` has \"mysq\"; there are `mysql`, `postgres`; did you mean `mysql`?",
        ),
        (
            with(&sql("driver = 'mysql'").replace("'a.example'", "'/run/mysqld'")),
            "13: channel `db`: \"/run/mysqld\" is not a host: it takes a name or an address, and no URL or socket",
        ),
        (
            with(&sql("driver = 'postgres'")),
            "13: channel `db`: the statement has places for 0 values ($1, $2), and `values` lists 2",
        ),
        (
            with(&sql("driver = 'mysql'").replace("'/b'", "'b'")),
            "21: `values` of channel `db` has \"b\"; there are `delivery_id`, `event_id`, `event_type`, `reason`, `rule`, `source`, `subject`, `time`",
        ),
        (
            with(&sql("driver = 'mysql'").replace("'text'", "'txt'")),
            "21: `type` of number 2 in `values` of channel `db` has \"txt\"; there are `boolean`, `bytes`, `float`, `integer`, `json`, `text`, `timestamp`; did you mean `text`?",
        ),
        (
            with(&sql("driver = 'mysql'").replace("'/c'", "'c'")),
            "21: \"c\" in `values` of channel `db` is no JSON pointer; write \"/c\"",
        ),
        (
            with(&sql("driver = 'mysql'").replace("{ ", "{ requird = true, ")),
            "21: number 2 in `values` of channel `db` has no key `requird`; did you mean `required`?",
        ),
        (
            with(&sql("driver = 'mysql'").replace("['/b', ", "'/b' #")),
            "21: `values` of channel `db` is not a list of strings and tables",
        ),
    ];
    let hook = Receiver::start().await;
    let mut setup = setup(&hook, ONE);
    for (file, expected) in tenants {
        setup = setup.tenant("acme", &file);
        let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
        let shown = format!("error: {}:", setup.tenants().join("acme.toml").display());
        let Some(sentence) = said.strip_prefix(&shown) else {
            panic!("{expected}: {said}");
        };
        assert_eq!(code, 2, "{said}");
        assert_eq!(said.lines().count(), 1, "one sentence: {said}");
        // A sentence that ends in another program's words is compared as far as it is ours.
        if expected.ends_with(' ') {
            assert!(sentence.starts_with(expected), "{sentence}");
        } else {
            assert_eq!(sentence.trim_end(), expected);
        }
    }
    setup = setup.tenant("acme", &with(""));
    for (config, expected) in [
        (
            "\n[server]\nlisen = ''",
            "3: [server] has no key `lisen`; did you mean `listen`?",
        ),
        (
            "[limts]",
            "1: there is no section `[limts]`; did you mean `limits`?",
        ),
        (
            "[limits]\nfuel = 5",
            "2: `fuel` of [limits] is 5, and may be 1000 to 1099511627776",
        ),
        (
            "[limits]\nfuel = 'lots'",
            "2: `fuel` of [limits] is a string, not an integer",
        ),
        (
            "[dispatch]\nlease_ms = 15000",
            "2: `lease_ms` of [dispatch] must be longer than `timeout_ms`, or a slow delivery is sent twice",
        ),
    ] {
        setup = setup.config(config);
        let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
        let place = setup.path().join("hooksieve.toml");
        assert_eq!(
            (code, said),
            (2, format!("error: {}:{expected}\n", place.display()))
        );
    }
    setup = setup.config("").env("HOOKSIEVE_SERVER__LISEN", "x");
    assert_eq!(
        setup.refused(&[]),
        (
            2,
            "error: the environment variable HOOKSIEVE_SERVER__LISEN: [server] has no key `lisen`; did you mean `HOOKSIEVE_SERVER__LISTEN`?\n".into()
        )
    );
    setup = setup
        .without_env("HOOKSIEVE_SERVER__LISEN")
        .config("[egress]\nca_file = '/no/such/file'");
    let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
    assert_eq!(code, 2);
    assert!(
        said.starts_with("error: /no/such/file: ca_file cannot be read: "),
        "{said}"
    );
    setup = setup.config("").file("Acme Corp.toml", b"");
    let (code, said) = setup.refused(&["--listen", "127.0.0.1:0"]);
    assert_eq!(code, 2);
    assert!(
        said.contains(
            "Acme Corp.toml: the file's name is the tenant's, and \"Acme Corp\" is not a name: "
        ),
        "{said}"
    );
    let nowhere = setup.path().join("nowhere");
    let (code, said) = setup.refused(&["--tenants", nowhere.to_str().unwrap()]);
    assert_eq!(code, 2);
    assert!(
        said.contains("nowhere: the folder of tenants cannot be read: "),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_tested_with_one_real_message() {
    let hook = Receiver::answering(|n, _| Reply::status(if n == 0 { 204 } else { 410 })).await;
    let server = setup(&hook, ONE).start().await;
    let run = |args: &[&str]| {
        let mut all = vec!["channel", "test", "--tenant", "acme"];
        all.extend(args);
        all.extend(["--url", &server.base]);
        cli_with(&all, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"")
    };
    let good = run(&["hook"]);
    assert_eq!(good.code, 0, "{}", good.stderr);
    assert!(good.stdout.contains("delivered through hook (webhook)"));
    assert!(good.stdout.contains("answer   204"), "{}", good.stdout);
    let got = hook.received().remove(0).json();
    assert_eq!(got["type"], "hooksieve.channel.test");
    assert_eq!(got["data"]["message"]["title"], "A test of hook");
    // It is not tried again, and not kept.
    let bad = run(&["hook", "--json"]);
    assert_eq!(bad.code, 1);
    let line = &bad.json_lines()[0];
    assert_eq!(line["status"], 410);
    assert!(line["error"].as_str().unwrap().contains("answered 410"));
    let unknown = run(&["nowhere"]);
    assert_eq!(unknown.code, 1);
    assert!(
        unknown
            .stderr
            .contains("there is no channel nowhere of acme")
    );
    assert_eq!(server.get("/v1/dead").await.json(), json!({ "items": [] }));
    server.stop().await;
    assert_eq!(hook.count(), 2);
}
