//! What senders and browsers meet at the door, also with a proxy in between.

use hooksieve_tests::{Nginx, PATIENCE, Receiver, Server, Setup, TOKEN, until};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

const OPEN: &str = "[[source]]\nname = 'in'\nkind = 'json'\nopen = true\n";

/// More than the buffers between two sockets hold.
const LARGE: usize = 24 << 20;

fn tenants(setup: Setup) -> Setup {
    setup
        .tenant("acme", OPEN)
        .tenant("slow", &format!("{OPEN}[quotas]\nevents_per_s = 1\n"))
}

fn address(server: &Server) -> String {
    server.base.strip_prefix("http://").unwrap().to_owned()
}

/// Sends a whole request, as most HTTP clients do, and only then reads the answer; then asks once more on the
/// same connection.
fn whole(address: &str, head: &str, body: &[u8]) -> std::io::Result<[String; 2]> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let first = answer(&mut stream)?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: h\r\n\r\n")?;
    Ok([first, answer(&mut stream)?])
}

/// One answer, as long as it says it is.
fn answer(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut read = Vec::new();
    loop {
        let mut part = [0; 4_096];
        let more = stream.read(&mut part)?;
        read.extend_from_slice(&part[..more]);
        let text = String::from_utf8_lossy(&read);
        let length = text.split_once("\r\n\r\n").and_then(|(head, body)| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
            Some((length.1.parse::<usize>().ok()?, body.len()))
        });
        if more == 0 || length.is_some_and(|(length, got)| got >= length) {
            return Ok(text.into_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_reaches_who_sends_the_whole_body_first() {
    let setup = tenants(Setup::new()).config("[server]\nbody_bytes_max = 65536\n");
    let server = setup.start().await;
    let post = |path: &str, more: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n{more}\r\n")
    };
    let sized = format!("content-length: {LARGE}\r\n");
    let body = vec![b' '; LARGE];
    let mut chunked = format!("{LARGE:x}\r\n").into_bytes();
    chunked.extend_from_slice(&body);
    chunked.extend_from_slice(b"\r\n0\r\n\r\n");
    let put = post("/in/acme/in", &sized).replacen("POST", "PUT", 1);
    // What is left of a second's quota.
    server.post_json("/in/slow/in", "{}").await.id();
    for (head, body, status) in [
        (post("/in/acme/in", &sized), &body, 413),
        (
            post("/in/acme/in", "transfer-encoding: chunked\r\n"),
            &chunked,
            413,
        ),
        (post("/in/acme/unknown", &sized), &body, 404),
        (post("/nothing", &sized), &body, 404),
        (
            post("/v1/tenants/acme/rules/r/versions", &sized),
            &body,
            401,
        ),
        (put, &body, 405),
        (post("/in/slow/in", &sized), &body, 429),
    ] {
        let (address, body) = (address(&server), body.clone());
        let asked = head.clone();
        let answers = tokio::task::spawn_blocking(move || whole(&address, &asked, &body));
        let [first, next] = match answers.await.unwrap() {
            Ok(answers) => answers,
            Err(error) => panic!("{head}: {error}"),
        };
        // A quota's second may be over by the time that it is asked for: then the body is too large.
        let statuses = match status {
            429 => &[429, 413][..],
            _ => &[status],
        };
        let fits = |status: &u16| first.starts_with(&format!("HTTP/1.1 {status} "));
        assert!(statuses.iter().any(fits), "{head}: {first}");
        assert!(
            first.contains("application/problem+json"),
            "{head}: {first}"
        );
        assert!(next.starts_with("HTTP/1.1 200 "), "{head}: {next}");
    }
    server.end().await;
}

/// A sender that waits to be asked for the body sends none of it, and none is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_was_not_asked_for_is_not_waited_for() {
    let server = tenants(Setup::new()).start().await;
    let address = address(&server);
    let ended = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let head = "POST /in/acme/unknown HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        let mut all = String::new();
        stream.read_to_string(&mut all)?;
        Ok::<_, std::io::Error>(all)
    });
    let all = ended.await.unwrap().unwrap();
    assert!(all.starts_with("HTTP/1.1 404 "), "{all}");
    assert!(all.to_lowercase().contains("connection: close"), "{all}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_passes_early_answers_on() {
    let setup = tenants(Setup::new()).config("[server]\nbody_bytes_max = 65536\n");
    let server = setup.start().await;
    let Ok(nginx) = Nginx::before(&address(&server)) else {
        return server.end().await;
    };
    let client = reqwest::Client::new();
    let post = async |path: &str| {
        let request = client.post(format!("{}{path}", nginx.base));
        let request = request.header("content-type", "application/json");
        let response = request.body(vec![b' '; LARGE]).send().await.unwrap();
        let retry = response.headers().get("retry-after").cloned();
        (response.status().as_u16(), retry)
    };
    for _ in 0..3 {
        assert_eq!(post("/in/acme/in").await.0, 413);
        assert_eq!(post("/in/acme/unknown").await.0, 404);
    }
    let refused = until("the quota of a second to be used up", || async {
        server.post_json("/in/slow/in", "{}").await;
        let (status, retry) = post("/in/slow/in").await;
        (status == 429).then_some(retry)
    });
    assert_eq!(refused.await.unwrap(), "1");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_is_told_through_a_proxy_with_its_defaults() {
    let server = tenants(Setup::new()).start().await;
    let Ok(nginx) = Nginx::before(&address(&server)) else {
        return server.end().await;
    };
    let id = server.post_json("/in/acme/in", "{}").await.id();
    let all = "since=00000000-0000-0000-0000-000000000000";
    let feed = format!("{}/v1/tenants/acme/events/feed?{all}", nginx.base);
    let request = reqwest::Client::new().get(feed).bearer_auth(TOKEN);
    let first = async {
        let mut response = request.send().await.unwrap();
        response.chunk().await.unwrap().unwrap()
    };
    let first = tokio::time::timeout(PATIENCE, first).await;
    let first = first.expect("it comes before there is a buffer full of it");
    let first = String::from_utf8_lossy(&first).into_owned();
    assert!(first.contains(&id), "{first}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_in_behind_a_proxy_that_changes_the_host_works_or_says_what_to_do() {
    let sign_in = async |base: &str, host: &[(&str, &str)]| {
        let request = reqwest::Client::new().post(format!("{base}/console/session"));
        let request = request.json(&json!({ "token": TOKEN }));
        let request = request.header("origin", "http://hooks.example");
        let with = |request: reqwest::RequestBuilder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        let response = host.iter().fold(request, with).send().await.unwrap();
        (
            response.status().as_u16(),
            response.json::<Value>().await.unwrap(),
        )
    };
    let server = tenants(Setup::new()).start().await;
    let Ok(nginx) = Nginx::before(&address(&server)) else {
        return server.end().await;
    };
    let (status, told) = sign_in(&nginx.base, &[]).await;
    assert_eq!(status, 403, "{told}");
    let detail = told["detail"].as_str().unwrap();
    let asked = format!("the request came for {:?}", address(&server));
    for part in [
        "\"http://hooks.example\"",
        &asked,
        "`public_url` of [server]",
    ] {
        assert!(detail.contains(part), "{detail}");
    }
    let forwarded = [("x-forwarded-host", "hooks.example")];
    assert_eq!(sign_in(&nginx.base, &forwarded).await.0, 200);
    server.end().await;
    let setup = tenants(Setup::new()).config("[server]\npublic_url = 'http://hooks.example/'\n");
    let server = setup.start().await;
    let nginx = Nginx::before(&address(&server)).expect("it was there before");
    assert_eq!(sign_in(&nginx.base, &[]).await.0, 200);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_can_be_decided() {
    let hook = Receiver::start().await;
    let acme = format!(
        "{OPEN}[[source]]\nname = 'hub'\nkind = 'github'\nsecret = [{{ env = 'NEW' }}, {{ file = 'old' }}]\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n",
        hook.url("/hook"),
    );
    let setup = Setup::new()
        .env("NEW", "the new secret")
        .file("old", b"\xef\xbb\xbfthe old secret\r\n")
        .tenant("acme", &acme)
        .config("[limits]\ninput_bytes = 4096\n");
    let server = setup.start().await;
    // Half of an emoji, cut off by somebody's substring.
    let cut = r#"{"do": "post", "payload": "cut \ud83d"}"#;
    for secret in ["the new secret", "the old secret"] {
        let sent = (secret, "issues");
        let id = server
            .post_github("/in/acme/hub", sent.0, (sent.1, secret), cut)
            .await
            .id();
        server.settled(&id).await;
    }
    let wrong = server
        .post_github("/in/acme/hub", "another", ("issues", "3"), cut)
        .await;
    wrong.problem(401, "not-verified");
    let received = hook.wait_for(2).await;
    assert!(
        received
            .iter()
            .all(|got| got.json()["data"] == "cut \u{fffd}")
    );
    // With a byte order mark.
    let id = server
        .post_json("/in/acme/in", "\u{feff}{\"do\": \"drop\"}")
        .await
        .id();
    let story = server.settled(&id).await;
    assert_eq!(story["decisions"][0]["outcome"], "dropped");
    // A body that is packed.
    let packed = [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
    ];
    let detail = server
        .post("/in/acme/in", &packed, b"\x1f\x8b")
        .await
        .problem(415, "media-type");
    assert!(detail.contains("content encoding \"gzip\""), "{detail}");
    // As large as rules may be handed, and one byte more.
    let sized = |pad: usize| format!(r#"{{"do": "drop", "pad": "{}"}}"#, "x".repeat(pad));
    let over = async |pad: usize| server.post_json("/in/acme/in", &sized(pad)).await.status == 413;
    let (mut fits, mut not) = (1_000, 4_096);
    while not - fits > 1 {
        let middle = usize::midpoint(fits, not);
        match over(middle).await {
            true => not = middle,
            false => fits = middle,
        }
    }
    let id = server.post_json("/in/acme/in", &sized(fits)).await.id();
    let story = server.settled(&id).await;
    assert_eq!(story["decisions"][0]["outcome"], "dropped", "{story}");
    let answer = server.post_json("/in/acme/in", &sized(not)).await;
    let detail = answer.problem(413, "event-too-large");
    assert!(
        detail.contains("the limit of this server is 4096 (input_bytes of [limits])"),
        "{detail}"
    );
    // An event of the engine's own is nobody else's.
    let forged = server.post_github(
        "/in/acme/hub",
        "the new secret",
        ("hooksieve.rule.quarantined", "9"),
        "{}",
    );
    let detail = forged.await.problem(400, "invalid-body");
    assert!(detail.contains("the engine's own"), "{detail}");
    server.stop().await;
    let named = Setup::new().tenant(
        "acme",
        "[[source]]\nname = 'hooksieve'\nkind = 'json'\nopen = true\n",
    );
    let (_, said) = named.refused(&[]);
    assert!(
        said.contains("a source cannot be named `hooksieve`"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_method_is_told_which_one_is_taken() {
    let server = tenants(Setup::new()).start().await;
    for (path, allowed) in [
        ("/in/acme/in", "POST"),
        ("/v1/tenants/acme/usage", "GET,HEAD"),
    ] {
        let method = match allowed {
            "POST" => reqwest::Method::GET,
            _ => reqwest::Method::DELETE,
        };
        let answer = server.call(method, path).await;
        assert_eq!(answer.header("allow"), allowed);
        let detail = answer.problem(405, "wrong-method");
        assert!(detail.contains("takes another method"), "{detail}");
    }
    server.end().await;
}

/// What strangers write cannot make a rule fail: 256 emoji are a title that GitHub takes.
#[tokio::test(flavor = "multi_thread")]
async fn no_title_silences_the_triage() {
    let hook = Receiver::start().await;
    let acme = format!(
        "[[source]]\nname = 'hub'\nkind = 'github'\nsecret = {{ env = 'HUB' }}\n\
         [[channel]]\nname = 'urgent'\nkind = 'webhook'\nurl = '{}'\n\
         [[rule]]\nname = 'triage'\nmodule = 'policy:github-triage'\nevents = ['*']\n\
         config = {{ incident_labels = ['incident'], urgent = 'urgent', mail = 'urgent', chat = 'urgent', me = ['ada'] }}\n",
        hook.url("/hook"),
    );
    let setup = Setup::new().env("HUB", "s").tenant("acme", &acme);
    let server = setup.start().await;
    let long = "🔥".repeat(256);
    let incident = json!({
        "action": "opened", "sender": { "login": "mallory" },
        "repository": { "full_name": "x".repeat(3_000) },
        "issue": { "title": long, "body": "b", "html_url": "javascript:alert(1)", "labels": [{ "name": "incident" }] },
    });
    let body = incident.to_string();
    for n in 0..3 {
        let id = server
            .post_github("/in/acme/hub", "s", ("issues", &n.to_string()), &body)
            .await
            .id();
        let story = server.settled(&id).await;
        let decision = &story["decisions"][0];
        assert_eq!(decision["outcome"], "notified", "{story}");
        let log = decision["log"]
            .as_array()
            .unwrap()
            .last()
            .unwrap()
            .as_str()
            .unwrap();
        assert!(
            log.starts_with("hooksieve cut actions[0].message."),
            "{log}"
        );
    }
    let got = hook.wait_for(3).await;
    let title = got[0].json()["data"]["message"]["title"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(
        title.starts_with("Incident: 🔥") && title.ends_with("🔥…"),
        "{}",
        got[0].json()
    );
    server.stop().await;
}
