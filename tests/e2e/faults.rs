//! Receivers that misbehave as real ones do, and a machine whose clock jumps: everything arrives, and
//! nothing under two ids.

use hooksieve_tests::{Server, Setup, faketime, until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How often each delivery meets the fault before it is taken, and how many there are: fewer than fail in
/// a row before a channel gets a pause.
const FAULTS: usize = 1;
const EVENTS: usize = 4;
const TIMEOUT_MS: u64 = 700;

/// What a path does to the first tries of a delivery: what its attempts say, and whether the receiver
/// may have taken it.
const PATHS: [(&str, &str, bool); 9] = [
    ("/sound", "", false),
    ("/error", "answered 500", false),
    ("/busy", "answered 429", false),
    ("/closes", "", true),
    ("/resets", "", true),
    ("/drips", "", true),
    ("/silent", "", true),
    ("/slack", "answered 200", false),
    ("/lark", "code 11232", false),
];

/// One request: the path, what tells deliveries apart, when it came.
type Request = (String, String, Instant);

/// A server that speaks HTTP by hand, so that it can speak it badly.
struct Bad {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Bad {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let all = seen.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, all.clone()));
            }
        });
        Self { addr, seen }
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Vec<Request>>>) {
    while let Some((path, id)) = request(&mut stream).await {
        let before = {
            let mut seen = seen.lock().unwrap();
            let before = seen.iter().filter(|(at, of, _)| (at, of) == (&path, &id));
            let before = before.count();
            seen.push((path.clone(), id, Instant::now()));
            before
        };
        let answer = |status: &str, body: &str| {
            let length = body.len();
            format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            )
        };
        let good = match path.as_str() {
            "/slack" => answer("200 OK", "ok"),
            "/lark" => answer("200 OK", r#"{"code":0,"msg":"success"}"#),
            _ => answer("204 No Content", ""),
        };
        let text = match path.as_str() {
            _ if before >= FAULTS => good,
            "/error" => answer("500 Internal Server Error", "it hurts"),
            "/busy" => {
                "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"
                    .into()
            }
            "/closes" => return,
            "/resets" => {
                // Closed with what is unsent thrown away, the other side gets a reset.
                let _ = stream.set_zero_linger();
                return;
            }
            "/drips" => {
                for byte in good.bytes() {
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                return;
            }
            "/silent" => {
                tokio::time::sleep(Duration::from_secs(600)).await;
                return;
            }
            "/slack" => answer("200 OK", "rate_limited"),
            "/lark" => answer("200 OK", r#"{"code":11232,"msg":"too many request"}"#),
            _ => good,
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The path and what stands for the delivery; `None` at the end of the connection.
async fn request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Request::new(&mut headers);
        if let httparse::Status::Complete(start) = parsed.parse(&bytes).ok()? {
            let header = |name: &str| {
                let mut all = parsed.headers.iter();
                let found = all.find(|header| header.name.eq_ignore_ascii_case(name))?;
                std::str::from_utf8(found.value).ok()
            };
            let length: usize = header("content-length")?.parse().ok()?;
            if bytes.len() >= start + length {
                // Chat services are not told an id: the title is one.
                let body = String::from_utf8_lossy(&bytes[start..]).into_owned();
                let title = body.split("title-").nth(1).map(|rest| &rest[..3]);
                let id = header("webhook-id").or(title)?.to_owned();
                return Some((parsed.path?.to_owned(), id));
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn channel(bad: &Bad, path: &str) -> String {
    let name = &path[1..];
    let kind = match name {
        "slack" | "lark" => name,
        _ => "webhook",
    };
    let url = match kind {
        "webhook" => format!("'http://{}{path}'", bad.addr),
        _ => format!("{{ env = '{name}' }}"),
    };
    format!(
        "[[channel]]\nname = '{name}'\nkind = '{kind}'\nurl = {url}\ntimeout_ms = {TIMEOUT_MS}\n\
         retry_ms = [100, 200, 300, 400]\nrates = []\n"
    )
}

fn tenant(channels: &str) -> String {
    format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n{channels}\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n"
    )
}

async fn deliveries(server: &Server, event: &str) -> Vec<Value> {
    let story = server.settled(event).await;
    story["deliveries"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_misbehave_get_everything_and_hold_up_nobody() {
    let bad = Bad::start().await;
    let channels: String = PATHS.iter().map(|(path, ..)| channel(&bad, path)).collect();
    let setup = Setup::new()
        .env("slack", &format!("http://{}/slack", bad.addr))
        .env("lark", &format!("http://{}/lark", bad.addr))
        .tenant("acme", &tenant(&channels));
    let server = setup.start().await;
    let names: Vec<_> = PATHS.iter().map(|(path, ..)| &path[1..]).collect();
    let mut events: Vec<String> = Vec::new();
    let began = Instant::now();
    for n in 0..EVENTS {
        let title = format!("title-{n:03}");
        let event = json!({ "do": "everywhere", "channels": names, "title": title });
        let sent = server.post_json("/in/acme/open", &event.to_string()).await;
        events.push(sent.id());
    }
    let sent = began.elapsed();
    let mut tried = BTreeMap::new();
    for event in &events {
        for delivery in deliveries(&server, event).await {
            assert_eq!(delivery["state"], "delivered", "{delivery}");
            let path = format!("/{}", delivery["channel"].as_str().unwrap());
            let (_, says, ambiguous) = PATHS.iter().find(|(known, ..)| *known == path).unwrap();
            let attempts = delivery["attempts"].as_array().unwrap();
            let (good, failed) = attempts.split_last().unwrap();
            assert_eq!(good["error"], json!(null));
            for attempt in failed {
                let error = attempt["error"].as_str().unwrap();
                assert!(error.contains(says), "{path}: {error}");
                assert_eq!(
                    attempt["ambiguous"] == true,
                    *ambiguous,
                    "{path}: {attempt}"
                );
            }
            *tried.entry(path).or_insert(0) += attempts.len();
        }
    }
    // Each arrives under one id, and as often as it says that it was tried.
    let seen = bad.seen();
    for (path, ..) in PATHS {
        let of_path: Vec<_> = seen.iter().filter(|(at, ..)| at == path).collect();
        let ids: BTreeSet<_> = of_path.iter().map(|(_, id, _)| id).collect();
        assert_eq!((ids.len(), of_path.len()), (EVENTS, tried[path]), "{path}");
        if path != "/sound" {
            assert_eq!(of_path.len(), EVENTS * (1 + FAULTS), "{path}");
        }
    }
    // The one that works was not kept waiting by the eight that do not.
    let sound = seen.iter().filter(|(path, ..)| path == "/sound");
    let last = sound.map(|(_, _, at)| *at - began).max().unwrap();
    let held_up = Duration::from_millis(TIMEOUT_MS);
    assert!(last < sent + held_up, "{last:?}, sent in {sent:?}");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_loses_and_repeats_nothing() {
    let Ok(library) = faketime() else { return };
    let bad = Bad::start().await;
    let channels = [channel(&bad, "/sound"), channel(&bad, "/error")].concat();
    let dial = tempfile::NamedTempFile::new().unwrap();
    let turn = |to: &str| std::fs::write(dial.path(), to).unwrap();
    turn("+0");
    let setup = Setup::new()
        .env("LD_PRELOAD", &library)
        .env("FAKETIME_TIMESTAMP_FILE", dial.path().to_str().unwrap())
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .tenant("acme", &tenant(&channels));
    let mut server = setup.start().await;
    let mut events: Vec<String> = Vec::new();
    let began = Instant::now();
    for (n, jump) in ["+0", "+3650d", "-3650d", "+1d", "-0", "-1h", "+40d", "+0"]
        .into_iter()
        .enumerate()
    {
        // What the last but one jump found under way is done: not too many fail in a row.
        if let Some(before) = events.len().checked_sub(4) {
            deliveries(&server, &events[before]).await;
            deliveries(&server, &events[before + 1]).await;
        }
        turn(jump);
        if n == 4 {
            server.stop().await;
            server = setup.start().await;
        }
        for more in [json!({}), json!({ "after_s": 1 })] {
            let mut event = json!({ "do": "everywhere", "channels": ["sound", "error"] });
            if more != json!({}) {
                event = json!({ "do": "notify", "channel": "error", "title": "later" });
            }
            event
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let sent = server.post_json("/in/acme/open", &event.to_string()).await;
            events.push(sent.id());
        }
    }
    assert!(events.is_sorted(), "ids only grow: {events:?}");
    for event in &events {
        for delivery in deliveries(&server, event).await {
            assert_eq!(delivery["state"], "delivered", "{delivery}");
        }
    }
    assert!(
        began.elapsed() < Duration::from_secs(60),
        "{:?}",
        began.elapsed()
    );
    let seen = bad.seen();
    let ids = |path: &str| {
        let of_path = seen.iter().filter(|(at, ..)| at == path);
        of_path.map(|(_, id, _)| id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids("/sound").len(), 8, "each once");
    let errors: BTreeSet<_> = ids("/error").into_iter().collect();
    assert_eq!(errors.len(), 16);
    until("the log", || async {
        let said = server.said();
        said.contains("the machine's clock jumped").then_some(())
    })
    .await;
    server.end().await;
}
