//! The command line: results on standard output, one sentence on standard error, and exit codes that
//! mean something.

use hooksieve_tests::{Output, PROBE, TOKEN, cli, cli_with, program};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A folder with the probe's module and events for it.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("probe.wasm"), PROBE).unwrap();
    let events = dir.path().join("events");
    std::fs::create_dir_all(events.join("more")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(events.join(name), text).unwrap();
    write("1.json", r#"{"do": "drop"}"#);
    write(
        "2.json",
        r#"{"do": "post", "payload": {"b": 1, "a": [1.5]}}"#,
    );
    write(
        "more/3.ndjson",
        "{\"do\": \"everywhere\", \"channels\": [\"a\", \"b\"]}\n\n{\"do\": \"log\", \"lines\": [\"hello\"]}\n",
    );
    write("notes.txt", "not an event");
    dir
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

/// `replay` of the probe on these inputs, as JSON.
fn replay(dir: &TempDir, more: &[&str], stdin: &str) -> Output {
    let rule = path(dir, "probe.wasm");
    let mut args = vec!["replay", "--rule", &rule, "--json"];
    args.extend(more);
    cli_with(&args, &[], stdin.as_bytes())
}

fn timeless(output: &Output) -> Vec<Value> {
    let mut lines = output.json_lines();
    for line in &mut lines {
        line.as_object_mut()
            .unwrap()
            .remove("duration_us")
            .expect("a duration");
    }
    lines
}

#[test]
fn replay_shows_each_event_and_what_it_cost() {
    let dir = folder();
    let output = replay(&dir, &["--type", "issues", &path(&dir, "events")], "");
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    let lines = output.json_lines();
    assert_eq!(lines.len(), 4);
    for line in &lines {
        let keys: Vec<_> = line
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(
            keys,
            [
                "event",
                "decision",
                "error",
                "deliveries",
                "fuel",
                "prices",
                "memory_bytes",
                "duration_us",
                "log"
            ]
        );
        assert!(line["fuel"].as_u64().unwrap() > 0);
        assert_eq!(line["memory_bytes"].as_u64().unwrap() % 65_536, 0);
        assert_eq!(line["event"]["type"], "issues");
        assert_eq!(line["event"]["source"], "github");
    }
    assert_eq!(
        lines[0]["decision"],
        json!({ "reason": "asked to drop", "actions": [] })
    );
    assert_eq!(
        lines[1]["decision"]["actions"][0],
        json!({ "channel": "hook", "body": { "greeting": "", "kind": "issues", "data": { "b": 1, "a": [1.5] } } })
    );
    assert_eq!(lines[2]["decision"]["actions"].as_array().unwrap().len(), 2);
    assert_eq!(lines[3]["log"], json!(["hello"]));
    // For people, the same in a table with a summary.
    let rule = path(&dir, "probe.wasm");
    let text = cli(&[
        "replay",
        "--rule",
        &rule,
        "--type",
        "issues",
        &path(&dir, "events"),
    ]);
    assert_eq!(text.code, 0);
    assert!(
        text.stdout
            .contains("4 events: 2 dropped, 2 notified, 0 failed\n"),
        "{}",
        text.stdout
    );
    assert!(
        text.stdout.contains("actions  a 1, b 1, hook 1 (whether"),
        "{}",
        text.stdout
    );
    assert!(
        !text.stdout.contains('\u{1b}'),
        "no colours where there is no terminal"
    );
}

#[test]
fn two_replays_are_alike() {
    let dir = folder();
    let run = || replay(&dir, &["--type", "issues", &path(&dir, "events")], "");
    assert_eq!(timeless(&run()), timeless(&run()));
    // Also in their bytes, but for the time.
    let bytes = |output: Output| {
        let lines = output.stdout.lines().map(|line| {
            let (before, rest) = line.split_once("\"duration_us\":").unwrap();
            format!(
                "{before}{}",
                rest.trim_start_matches(|c: char| c.is_ascii_digit())
            )
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(bytes(run()), bytes(run()));
}

#[test]
fn replay_reads_files_folders_lines_and_standard_input() {
    let dir = folder();
    let file = path(&dir, "events/1.json");
    let lines = path(&dir, "events/more/3.ndjson");
    assert_eq!(
        replay(&dir, &["--type", "x", &file], "").json_lines().len(),
        1
    );
    assert_eq!(
        replay(&dir, &["--type", "x", &lines], "")
            .json_lines()
            .len(),
        2
    );
    assert_eq!(
        replay(&dir, &["--type", "x", &file, &lines, &file], "")
            .json_lines()
            .len(),
        4
    );
    // A stream of values, on lines of their own or not.
    let stream = r#"{"do": "drop"} {"do": "drop"}
        {"do": "log", "lines": []}"#;
    assert_eq!(
        replay(&dir, &["--type", "x", "-"], stream)
            .json_lines()
            .len(),
        3
    );
    assert_eq!(
        replay(&dir, &["--type", "x", "-"], "").json_lines().len(),
        0
    );
    // A recorded event has its own attributes.
    let recorded = r#"{"id": "e-1", "source": "hub", "type": "issues.opened", "subject": "octo/api",
        "time": "2026-03-01T09:30:00Z", "headers": {"x": "y"}, "data": {"do": "post", "payload": 1}}"#;
    let lines = replay(&dir, &["-"], recorded).json_lines();
    assert_eq!(
        lines[0]["event"],
        json!({ "id": "e-1", "source": "hub", "type": "issues.opened" })
    );
    assert_eq!(
        lines[0]["decision"]["actions"][0]["body"]["kind"],
        "issues.opened"
    );
    // A raw payload's action becomes part of its type.
    let lines = replay(
        &dir,
        &["--type", "issues", "-"],
        r#"{"action": "opened", "do": "drop"}"#,
    )
    .json_lines();
    assert_eq!(lines[0]["event"]["type"], "issues.opened");
}

#[test]
fn replay_shows_what_timing_comes_to() {
    let dir = folder();
    let event = |at: &str, timing: Value| {
        let mut data = json!({ "do": "notify", "channel": "chat", "title": "hello" });
        data.as_object_mut()
            .unwrap()
            .extend(timing.as_object().unwrap().clone());
        let time = format!("2026-01-05T{at}Z");
        let event = json!({ "id": at, "source": "s", "type": "t", "time": time, "data": data });
        format!("{event}\n")
    };
    let dedupe = || json!({ "key": "k", "dedupe_s": 60 });
    let digest = || json!({ "key": "d", "digest_s": 600, "size": 3 });
    let events = [
        event("08:00:00", dedupe()),
        event("08:00:59", dedupe()),
        event("08:01:00", dedupe()),
        event("08:02:00", json!({ "window": "Mo-Fr 09:00-18:00 UTC" })),
        event("08:03:00", json!({ "after_s": 30, "escalate_s": 300 })),
        event("08:10:00", digest()),
        event("08:11:00", digest()),
        event("08:12:00", digest()),
        event("08:13:00", digest()),
    ]
    .concat();
    let output = replay(&dir, &["-"], &events);
    let lines = output.json_lines();
    let comes_to = |n: usize| -> Vec<(String, String)> {
        let deliveries = lines[n]["deliveries"].as_array().unwrap();
        let text = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
        let each = deliveries.iter();
        each.map(|it| (text(it, "state"), text(it, "due")))
            .collect()
    };
    let one = |state: &str, due: &str| {
        let due = if due.is_empty() {
            String::new()
        } else {
            format!("2026-01-05T{due}Z")
        };
        (state.to_owned(), due)
    };
    assert_eq!(comes_to(0), [one("at-once", "")]);
    assert_eq!(comes_to(1), [one("deduped", "")]);
    assert_eq!(comes_to(2), [one("at-once", "")], "the minute is over");
    assert_eq!(comes_to(3), [one("later", "09:00:00")]);
    assert_eq!(
        comes_to(4),
        [one("later", "08:03:30"), one("escalation", "08:08:30")]
    );
    assert_eq!(comes_to(5), [one("digest", "08:20:00")]);
    assert_eq!(comes_to(6), [one("gathered", "")]);
    assert_eq!(comes_to(7), [one("gathered", "")]);
    assert_eq!(
        comes_to(8),
        [one("digest", "08:23:00")],
        "the first one was full"
    );

    let rule = path(&dir, "probe.wasm");
    let text = cli_with(&["replay", "--rule", &rule, "-"], &[], events.as_bytes()).stdout;
    for part in [
        "chat: dropped: it repeats one that was sent",
        "chat: waits until 2026-01-05T09:00:00Z",
        "timing   at-once 2, deduped 1, digest 2, escalation 1, gathered 2, later 2",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn replay_says_by_its_exit_code_how_it_went() {
    let dir = folder();
    // 1: it ran, and a rule failed on an event.
    let failing = r#"{"do": "drop"} {"do": "error", "message": "no"} {"do": "drop"}"#;
    let output = replay(&dir, &["--type", "x", "-"], failing);
    assert_eq!((output.code, output.stderr.as_str()), (1, ""));
    let lines = output.json_lines();
    assert_eq!(lines.len(), 3, "what follows a failure is still replayed");
    assert_eq!(
        lines[1]["error"],
        json!({ "kind": "rule", "message": "it returned an error: no" })
    );
    assert_eq!(lines[1]["decision"], Value::Null);
    // 2: usage, input or configuration, in one sentence.
    let rule = path(&dir, "probe.wasm");
    let missing = path(&dir, "no-such-file.json");
    let file = path(&dir, "events/1.json");
    let bad = path(&dir, "bad.json");
    std::fs::write(&bad, "{\"do\": }").unwrap();
    let lines = path(&dir, "bad.ndjson");
    std::fs::write(&lines, "\n\n{\n{}\n").unwrap();
    let config = path(&dir, "config.toml");
    std::fs::write(&config, "greting = 'x'\n").unwrap();
    for (args, expected) in [
        (
            vec!["--rule", &rule, "--type", "x", &missing],
            format!("error: {missing}: "),
        ),
        (
            vec!["--rule", &rule, "--type", "x", &bad],
            format!("error: {bad}: not JSON: "),
        ),
        (
            vec!["--rule", &rule, "--type", "x", &lines],
            format!("error: {lines}:3: not JSON: "),
        ),
        (
            vec!["--rule", &rule, &file],
            format!(
                "error: {file}: this is a raw payload: give the sender's event name with --type "
            ),
        ),
        (
            vec!["--rule", "policy:github-triag", &file],
            "error: there is no policy `github-triag`; did you mean `github-triage`?\n".into(),
        ),
        (
            vec!["--rule", "nothing.wasm", &file],
            "error: the rule nothing.wasm: ".into(),
        ),
        (
            vec!["--rule", &file, &file],
            format!("error: the rule {file} is refused: it is not a WebAssembly module: "),
        ),
        (
            vec!["--rule", &rule, "--rule-config", &config, &file],
            format!("error: the rule {rule}: it has no use for its configuration: "),
        ),
        (
            vec!["--rule", &rule, "--rule-config", &missing, &file],
            format!("error: {missing}: "),
        ),
        (
            vec!["--rule", &rule, "--source", "No Name", &file],
            "error: invalid value 'No Name' for '--source <NAME>'".into(),
        ),
        (
            vec!["--rule", &rule],
            "error: name the events, JSON files or folders: there is no folder `events` here\n"
                .into(),
        ),
        (
            vec![&file],
            "error: name the rule with --rule FILE.wasm".into(),
        ),
        (
            vec!["--rul", &rule, &file],
            "error: unexpected argument '--rul' found".into(),
        ),
    ] {
        let mut all = vec!["replay"];
        all.extend(args);
        let output = cli(&all);
        assert_eq!(output.code, 2, "{all:?}: {}", output.stderr);
        assert!(
            output.stderr.starts_with(&expected),
            "{all:?}: {}",
            output.stderr
        );
        assert_eq!(output.stdout, "", "{all:?}");
    }
    assert_eq!(cli(&["nonsense"]).code, 2);
    assert_eq!(cli(&["--help"]).code, 0);
    assert!(cli(&["--version"]).stdout.starts_with("hooksieve "));
    // The configuration, and the limits of the engine's own.
    std::fs::write(&config, "greeting = 'hi'\n").unwrap();
    let output = replay(
        &dir,
        &[
            "--rule-config",
            &config,
            "--type",
            "x",
            &path(&dir, "events/2.json"),
        ],
        "",
    );
    assert_eq!(
        output.json_lines()[0]["decision"]["actions"][0]["body"]["greeting"],
        "hi"
    );
    let limits = path(&dir, "limits.toml");
    std::fs::write(&limits, "[limits]\nfuel = 1000\n").unwrap();
    let output = replay(&dir, &["--config", &limits, "--type", "x", &file], "");
    assert_eq!(output.code, 1);
    assert_eq!(output.json_lines()[0]["error"]["kind"], "fuel");
    let output = cli_with(
        &["replay", "--rule", &rule, "--type", "x", "--json", &file],
        &[("HOOKSIEVE_LIMITS__FUEL", "1000")],
        b"",
    );
    assert_eq!(output.code, 1);
}

#[test]
fn check_accepts_and_refuses() {
    let dir = folder();
    let good = cli(&["check", &path(&dir, "probe.wasm")]);
    assert_eq!((good.code, good.stderr.as_str()), (0, ""));
    assert!(good.stdout.starts_with("accepted "), "{}", good.stdout);
    let json = cli(&["check", "--json", &path(&dir, "probe.wasm")]).json_lines();
    assert_eq!(
        (&json[0]["accepted"], &json[0]["size_bytes"]),
        (&json!(true), &json!(PROBE.len()))
    );
    assert_eq!(json[0]["sha256"].as_str().unwrap().len(), 64);
    let file = path(&dir, "bad.wasm");
    std::fs::write(
        &file,
        wat::parse_str("(module (func (export \"_initialize\")))").unwrap(),
    )
    .unwrap();
    let bad = cli(&["check", &file]);
    assert_eq!((bad.code, bad.stderr.as_str()), (1, ""));
    assert!(bad.stdout.starts_with("refused "), "{}", bad.stdout);
    assert!(
        bad.stdout
            .contains("it is a WASI library (it exports `_initialize`)"),
        "{}",
        bad.stdout
    );
    let json = cli(&["check", "--json", &file]);
    assert_eq!(json.code, 1);
    let json = &json.json_lines()[0];
    assert_eq!(
        (&json["accepted"], &json["kind"]),
        (&json!(false), &json!("wasi_library"))
    );
    assert!(
        json["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("cdylib"))
    );
    let missing = cli(&["check", "no-such.wasm"]);
    assert_eq!(missing.code, 2);
    assert!(
        missing
            .stderr
            .starts_with("error: no-such.wasm cannot be read: "),
        "{}",
        missing.stderr
    );
}

#[test]
fn policies_are_listed_and_exported_ready_to_use() {
    let listed = cli(&["policies", "list", "--json"]).json_lines();
    let names: Vec<_> = listed[0]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(
        names.contains(&"github-triage".to_owned()) && names.contains(&"shopify-orders".to_owned())
    );
    assert!(
        cli(&["policies", "list"])
            .stdout
            .contains("module = \"policy:NAME\"")
    );
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a/b");
    let exported = cli(&["policies", "export", out.to_str().unwrap()]);
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    assert_eq!(exported.stdout.lines().count(), 2 * names.len());
    for line in exported.stdout.lines() {
        assert!(Path::new(line).exists(), "{line}");
    }
    for name in &names {
        let wasm = out.join(format!("{name}.wasm"));
        assert_eq!(cli(&["check", wasm.to_str().unwrap()]).code, 0);
        // The example's configuration is one that the rule takes.
        let example = std::fs::read_to_string(out.join(format!("{name}.toml"))).unwrap();
        let example: toml::Value = toml::from_str(&example).unwrap();
        let config = out.join("config.toml");
        std::fs::write(
            &config,
            toml::to_string(&example["rule"][0]["config"]).unwrap(),
        )
        .unwrap();
        let policy = format!("policy:{name}");
        for rule in [wasm.to_str().unwrap(), &policy] {
            let args = [
                "replay",
                "--rule",
                rule,
                "--rule-config",
                config.to_str().unwrap(),
                "--type",
                "ping",
                "-",
            ];
            let output = cli_with(&args, &[], b"{}");
            assert_eq!(output.code, 0, "{}{}", output.stdout, output.stderr);
        }
    }
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(cli(&["policies", "export", file.to_str().unwrap()]).code, 2);
}

/// `hooksieve ... | head -1` is not an error.
#[test]
fn a_broken_pipe_is_success() {
    let dir = folder();
    let lines = path(&dir, "many.ndjson");
    std::fs::write(&lines, "{\"do\": \"drop\"}\n".repeat(5_000)).unwrap();
    for json in [true, false] {
        let mut command = Command::new(program());
        command
            .args([
                "replay",
                "--type",
                "x",
                "--rule",
                &path(&dir, "probe.wasm"),
                &lines,
            ])
            .args(json.then_some("--json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Nobody reads.
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    for args in [
        &["policies", "list"][..],
        &["policies", "list", "--json"],
        &["--help"],
        &["check", "--json"],
    ] {
        let module = path(&dir, "probe.wasm");
        let mut child = Command::new(program())
            .args(args)
            .args((args[0] == "check").then_some(&module))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}

/// Commands that ask a running engine say so when there is none.
#[test]
fn no_engine_is_said_plainly() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let url = format!("http://{closed}");
    let token = [("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)];
    for args in [
        &["held", "list"][..],
        &["dead", "list"],
        &["explain", "01890a5d-ac96-774b-bcce-b302099a8057"],
    ] {
        let mut all = args.to_vec();
        all.extend(["--url", &url]);
        let output = cli_with(&all, &token, b"");
        assert_eq!(output.code, 1);
        assert_eq!(
            output.stderr,
            format!(
                "error: no engine answers at {url}: start it with `hooksieve serve`, or name it with --url\n"
            )
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let output = cli(&[
        "held",
        "list",
        "--url",
        &url,
        "--data",
        dir.path().to_str().unwrap(),
    ]);
    assert_eq!(output.code, 2);
    assert!(
        output
            .stderr
            .starts_with("error: the operator token cannot be read from "),
        "{}",
        output.stderr
    );
}
