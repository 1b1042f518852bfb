//! Other people's code on the other side: GitHub's own library signs, GitHub's own examples are
//! decided, and the reference library of Standard Webhooks verifies what goes out.

use hooksieve_tests::{Node, Receiver, Setup, cli, node, say, tests_folder};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

/// How many examples GitHub's package holds.
const EXAMPLES: usize = 329;
const SECRET: &str = "it-is-made-up";
/// 32 bytes that are nobody's.
const WHSEC: &str = "whsec_bWFkZS11cC1mb3ItdGVzdHMtYWxvbmUtMzItYnl0ZXM=";
const WHSEC_OLD: &str = "whsec_dGhlIGtleSB0aGF0IGlzIGJlaW5nIHJlcGxhY2Vk";

/// Runs a script on lines of JSON; gives the line that it answers to each.
fn script(node: &Node, name: &str, argument: &str, lines: &[Value]) -> Vec<String> {
    let mut child = node
        .script(name)
        .arg(argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = BufReader::new(child.stdout.take().unwrap());
    let answers: Vec<_> = output.lines().map(Result::unwrap).collect();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(answers.len(), lines.len());
    answers
}

/// A payload of GitHub's, with its event's name.
pub(crate) struct Example {
    event: String,
    pub(crate) payload: Value,
}

impl Example {
    pub(crate) fn kind(&self) -> String {
        match self.payload["action"].as_str() {
            Some(action) => format!("{}.{action}", self.event),
            None => self.event.clone(),
        }
    }
}

pub(crate) fn examples() -> Vec<Example> {
    let path =
        tests_folder().join("js/node_modules/@octokit/webhooks-examples/api.github.com/index.json");
    let all: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let of = |event: &Value| {
        let name = event["name"].as_str().unwrap().to_owned();
        let payloads = event["examples"].as_array().unwrap().clone();
        payloads.into_iter().map(move |payload| Example {
            event: name.clone(),
            payload,
        })
    };
    all.iter().flat_map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_githubs_library_signs_is_taken() {
    let Ok(node) = node() else { return };
    let server = Setup::new()
        .env("HUB", SECRET)
        .tenant(
            "acme",
            "[[source]]\nname = 'hub'\nkind = 'github'\nsecret = { env = 'HUB' }\n",
        )
        .start()
        .await;
    let bodies: Vec<String> = [
        r#"{"action":"opened","issue":{"title":"Ünïcode 💥"}}"#,
        "{}",
        "{ \"spaces\" :\n\t1 }\n",
    ]
    .map(str::to_owned)
    .to_vec();
    let lines: Vec<_> = bodies.iter().map(|body| json!(body)).collect();
    let signatures = script(&node, "sign.js", SECRET, &lines);
    for (n, (body, signature)) in bodies.iter().zip(&signatures).enumerate() {
        let delivery = n.to_string();
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", "issues"),
            ("x-github-delivery", &delivery),
            ("x-hub-signature-256", signature),
        ];
        server
            .post("/in/acme/hub", &headers, body.as_bytes())
            .await
            .id();
        // Any byte changed, and it is somebody else's.
        for at in 0..body.len() {
            let mut changed = body.clone().into_bytes();
            changed[at] ^= 1;
            server
                .post("/in/acme/hub", &headers, &changed)
                .await
                .problem(401, "not-verified");
        }
        let longer = format!("{body} ");
        server
            .post("/in/acme/hub", &headers, longer.as_bytes())
            .await
            .problem(401, "not-verified");
    }
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_out_verifies_with_the_reference_library() {
    let Ok(node) = node() else { return };
    let hook = Receiver::start().await;
    let tenant = format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\nmethod = 'PUT'\n\
         secret = [{{ env = 'WHSEC' }}, {{ env = 'WHSEC_OLD' }}]\n\
         headers = {{ \"X-Team\" = 'ops', Authorization = {{ env = 'BEARER' }} }}\n\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n",
        hook.url("/")
    );
    let server = Setup::new()
        .env("WHSEC", WHSEC)
        .env("WHSEC_OLD", WHSEC_OLD)
        .env("BEARER", "Bearer made-up")
        .tenant("acme", &tenant)
        .start()
        .await;
    for body in [
        r#"{"do": "post", "payload": {"n": 1, "é": "💥"}}"#,
        r#"{"do": "notify", "channel": "hook", "title": "A <title>", "text": "and\ntext"}"#,
    ] {
        server.post_json("/in/acme/open", body).await.id();
    }
    server.settle().await;
    let got = hook.wait_for(2).await;
    let line = |body: &str, headers: [(&str, &str); 3]| {
        let headers: BTreeMap<_, _> = headers.into_iter().collect();
        json!({ "headers": headers, "body": body })
    };
    let mut lines = Vec::new();
    for got in &got {
        assert_eq!(got.method, "PUT");
        let own = (got.header("x-team"), got.header("authorization"));
        assert_eq!(own, ("ops", "Bearer made-up"));
        let body = std::str::from_utf8(&got.body).unwrap();
        let headers = ["webhook-id", "webhook-timestamp", "webhook-signature"]
            .map(|name| (name, got.header(name)));
        lines.push(line(body, headers));
        lines.push(line(&format!("{body} "), headers));
        let mut other = headers;
        other[0].1 = "another-id";
        lines.push(line(body, other));
    }
    // While a key is replaced, a receiver may know either of the two.
    for secret in [WHSEC, WHSEC_OLD] {
        let answers = script(&node, "verify.js", secret, &lines);
        for answers in answers.chunks(3) {
            assert_eq!(
                answers,
                [
                    "ok",
                    "No matching signature found",
                    "No matching signature found"
                ]
            );
        }
    }
    let stranger = "whsec_bmVpdGhlciBvZiB0aGUgdHdvIGtleXMgaGVyZQ==";
    let answers = script(&node, "verify.js", stranger, &lines);
    assert!(!answers.contains(&"ok".to_owned()), "{answers:?}");
    server.end().await;
}

/// All of GitHub's own examples: replayed, and sent to a running engine, which decides the same.
#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_githubs_is_decided_and_replay_says_what_happens() {
    let Ok(node) = node() else { return };
    let examples = examples();
    assert_eq!(examples.len(), EXAMPLES);
    let dir = tempfile::tempdir().unwrap();
    let config =
        "me = ['Codertocat', 'octo-org/octo-team']\nincident_labels = ['bug']\nci_branches = []\n";
    let config_file = dir.path().join("config.toml");
    std::fs::write(&config_file, config).unwrap();
    let events = dir.path().join("examples.ndjson");
    let recorded = examples.iter().enumerate().map(|(n, example)| {
        let event = json!({ "id": n.to_string(), "source": "hub", "type": example.kind(), "data": example.payload });
        format!("{event}\n")
    });
    std::fs::write(&events, recorded.collect::<String>()).unwrap();
    let output = cli(&[
        "replay",
        "--rule",
        "policy:github-triage",
        "--rule-config",
        config_file.to_str().unwrap(),
        "--json",
        events.to_str().unwrap(),
    ]);
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let replayed = output.json_lines();
    assert_eq!(replayed.len(), EXAMPLES);
    // The same from a recording, which is a fraction of the text.
    let recording = dir.path().join("examples.hsr");
    let (from, to) = (events.to_str().unwrap(), recording.to_str().unwrap());
    let recorded = cli(&["record", "--from", from, "--personal", to]);
    assert_eq!(recorded.code, 0, "{}", recorded.stderr);
    let bytes = |path: &str| std::fs::metadata(path).unwrap().len();
    let (json, packed) = (bytes(from), bytes(to));
    say(&format!(
        "examples: {json} bytes of JSON, {packed} recorded"
    ));
    assert!(packed * 3 < json, "{packed} of {json}");
    let again = cli(&[
        "replay",
        "--rule",
        "policy:github-triage",
        "--rule-config",
        config_file.to_str().unwrap(),
        "--json",
        to,
    ]);
    let without_time = |line: &Value| {
        let mut line = line.clone();
        line["duration_us"] = Value::Null;
        line
    };
    let same = again
        .json_lines()
        .iter()
        .map(without_time)
        .collect::<Vec<_>>();
    assert_eq!(same, replayed.iter().map(without_time).collect::<Vec<_>>());
    let mut outcomes = BTreeMap::<_, usize>::new();
    for line in &replayed {
        assert_eq!(line["error"], Value::Null, "{line}");
        let decision = &line["decision"];
        let to: Vec<_> = decision["actions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|action| action["channel"].to_string())
            .collect();
        let outcome = if to.is_empty() {
            "drop".to_owned()
        } else {
            to.join("+")
        };
        *outcomes
            .entry(format!("{outcome}: {}", decision["reason"]))
            .or_default() += 1;
    }
    let mut fuel: Vec<_> = replayed
        .iter()
        .map(|line| line["fuel"].as_u64().unwrap())
        .collect();
    fuel.sort_unstable();
    say(&format!(
        "examples: {EXAMPLES} decided, 0 failed; fuel p50 {}, max {}; {outcomes:#?}",
        fuel[EXAMPLES / 2],
        fuel[EXAMPLES - 1]
    ));
    assert!(outcomes.len() > 3, "{outcomes:?}");

    // The same, signed by GitHub's library, through the front door.
    let hook = Receiver::start().await;
    let channel = |name: &str| {
        format!(
            "[[channel]]\nname = '{name}'\nkind = 'webhook'\nurl = '{}'\n",
            hook.url(&format!("/{name}"))
        )
    };
    let tenant = format!(
        "[[source]]\nname = 'hub'\nkind = 'github'\nsecret = {{ env = 'HUB' }}\n{}{}{}\
         [[rule]]\nname = 'triage'\nmodule = 'policy:github-triage'\nevents = ['*']\n[rule.config]\n{config}",
        channel("mail"),
        channel("chat"),
        channel("urgent")
    );
    let server = Setup::new()
        .env("HUB", SECRET)
        .tenant("acme", &tenant)
        .start()
        .await;
    let bodies: Vec<_> = examples
        .iter()
        .map(|example| example.payload.to_string())
        .collect();
    let lines: Vec<_> = bodies.iter().map(|body| json!(body)).collect();
    let signatures = script(&node, "sign.js", SECRET, &lines);
    let mut actions = 0;
    for (n, example) in examples.iter().enumerate() {
        let delivery = n.to_string();
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", example.event.as_str()),
            ("x-github-delivery", &delivery),
            ("x-hub-signature-256", &signatures[n]),
        ];
        let taken = server
            .post("/in/acme/hub", &headers, bodies[n].as_bytes())
            .await;
        let story = server.settled(&taken.id()).await;
        assert_eq!(story["event"]["type"], example.kind());
        let (decided, replayed) = (&story["decisions"][0], &replayed[n]["decision"]);
        assert_eq!(
            decided["reason"],
            replayed["reason"],
            "{}: {decided}",
            example.kind()
        );
        let of = |list: &Value| -> Vec<Value> {
            list.as_array()
                .unwrap()
                .iter()
                .map(|one| one["channel"].clone())
                .collect()
        };
        assert_eq!(of(&story["deliveries"]), of(&replayed["actions"]));
        actions += replayed["actions"].as_array().unwrap().len();
    }
    assert_eq!(hook.count(), actions);
    server.end().await;
}
