//! The author's kit: from nothing to a rule that is built, tried and compared.

use super::console::ENDLESS;
use hooksieve_tests::{LEAN, Output, cli_with, program, say};
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

fn hooksieve(folder: &Path, args: &[&str]) -> Output {
    let done = Command::new(program())
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output {
        code: done.status.code().unwrap(),
        stdout: text(&done.stdout),
        stderr: text(&done.stderr),
    }
}

fn well(folder: &Path, args: &[&str]) -> String {
    let done = hooksieve(folder, args);
    assert_eq!(done.code, 0, "{args:?}: {}{}", done.stdout, done.stderr);
    done.stdout
}

/// Each template as an author takes it, beside nothing but the program: made, tested, built, replayed.
#[test]
fn every_template_builds_and_decides() {
    let dir = tempfile::tempdir().unwrap();
    for (template, notified) in [("github", 2), ("shopify", 1), ("json", 2)] {
        let began = Instant::now();
        let name = format!("my-{template}");
        let made = well(dir.path(), &["new", &name, "--template", template]);
        assert!(made.contains("hooksieve build"), "{made}");
        let folder = dir.path().join(&name);
        let tested = Command::new("cargo")
            .args(["test", "--quiet"])
            .env("CARGO_TARGET_DIR", dir.path().join("tests"))
            .current_dir(&folder)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&tested.stderr);
        assert!(tested.status.success(), "{said}");
        assert!(!said.contains("warning"), "{said}");
        let built = well(&folder, &["build"]);
        assert!(built.contains("accepted"), "{built}");
        let replayed = well(&folder, &["replay", "events"]);
        let expected = format!(
            "3 events: {} dropped, {notified} notified, 0 failed",
            3 - notified
        );
        assert!(replayed.contains(&expected), "{replayed}");
        say(&format!("{template}: {:?}", began.elapsed()));
    }
    // A tenant's file without rules: the rule that is here is meant.
    let folder = dir.path().join("my-github");
    let mail = |name: &str| {
        format!(
            "[[channel]]\nname = '{name}'\nkind = 'email'\nhost = 'mail.example'\nfrom = 'a@mail.example'\nto = ['b@mail.example']\n"
        )
    };
    std::fs::write(folder.join("acme.toml"), mail("mail")).unwrap();
    let args = ["replay", "--tenant", "acme.toml"];
    let one = hooksieve(&folder, &args);
    assert_eq!(one.code, 1);
    assert!(
        one.stdout
            .contains("\"chat\", which its tenant does not have"),
        "{}",
        one.stdout
    );
    std::fs::write(folder.join("acme.toml"), mail("mail") + &mail("chat")).unwrap();
    assert!(well(&folder, &args).contains("2 notified, 0 failed"));
    // What is there stays.
    let again = hooksieve(dir.path(), &["new", "my-json"]);
    assert_eq!(again.code, 2);
    assert!(
        again.stderr.contains("something at my-json already"),
        "{}",
        again.stderr
    );
    let wrong = hooksieve(dir.path(), &["new", "../x"]);
    assert_eq!(wrong.code, 2);
    let none = hooksieve(dir.path(), &["build"]);
    assert_eq!(none.code, 2);
    assert!(
        none.stderr.contains("`hooksieve new NAME`"),
        "{}",
        none.stderr
    );
}

const EVENTS: &str = r#"{"id":"e1","source":"open","type":"a","data":{"do":"notify","title":"one","link":"https://a.example/"}}
{"id":"e2","source":"open","type":"b","data":{"do":"drop"}}
{"id":"e3","source":"open","type":"c","data":{"do":"panic","code":4}}
"#;

#[test]
fn what_differs_from_what_is_expected_is_told_field_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("probe.wasm"), hooksieve_tests::PROBE).unwrap();
    std::fs::write(path("one.ndjson"), EVENTS).unwrap();
    let (rule, events, expected) = (
        path("probe.wasm"),
        path("one.ndjson"),
        path("expected.ndjson"),
    );
    let replay = |more: &[&str], events: &str| {
        let mut args = vec!["replay", "--rule", &rule];
        args.extend(more);
        args.push(events);
        cli_with(&args, &[], b"")
    };
    let none = replay(&["--expect", &expected], &events);
    assert_eq!(none.code, 2);
    assert!(none.stderr.contains("--bless"), "{}", none.stderr);
    let blessed = replay(&["--expect", &expected, "--bless"], &events);
    assert_eq!(blessed.code, 0, "{}", blessed.stderr);
    let kept = "kept     3 events, 1 of them as failing";
    assert!(blessed.stdout.contains(kept), "{}", blessed.stdout);
    let mode = std::fs::metadata(&expected).unwrap().permissions();
    assert_eq!(mode.mode() & 0o444, 0o444, "others may read it, too");
    // Events are found by their ids, in whatever order they come.
    let mut turned: Vec<&str> = EVENTS.lines().rev().collect();
    std::fs::write(path("turned.ndjson"), turned.join("\n")).unwrap();
    let same = replay(&["--expect", &expected], &path("turned.ndjson"));
    assert_eq!(same.code, 0, "{}{}", same.stdout, same.stderr);
    let more = EVENTS.lines().next().unwrap().replace("e1", "e4");
    turned[0] = &more;
    std::fs::write(path("turned.ndjson"), turned.join("\n")).unwrap();
    let told = replay(&["--expect", &expected], &path("turned.ndjson"));
    assert_eq!(told.code, 1);
    for part in [
        "new: it is not among what is expected",
        "missing  1 event more expected, the first is e3",
        "differ   1 of 3",
    ] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
    std::fs::create_dir(path("empty")).unwrap();
    let none = replay(&[], &path("empty"));
    assert_eq!(none.code, 2);
    assert!(
        none.stderr.contains("no event to replay"),
        "{}",
        none.stderr
    );
    let same = replay(&["--expect", &expected], &events);
    assert_eq!(same.code, 0, "{}{}", same.stdout, same.stderr);
    assert!(same.stdout.contains("differ   0 of 3"), "{}", same.stdout);

    let (page_file, report) = (path("report.html"), path("report.json"));
    replay(&["--html", &page_file, "--report", &report], &events);
    let report = std::fs::read_to_string(report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    for (key, value) in [
        ("events", 3),
        ("dropped", 1),
        ("notified", 1),
        ("failed", 1),
    ] {
        assert_eq!(report[key], value, "{report}");
    }
    assert_eq!(report["fuel"]["limit"], 10_000_000, "{report}");
    assert_eq!(report["slowest"].as_array().unwrap().len(), 3, "{report}");
    let page = std::fs::read_to_string(&page_file).unwrap();
    for part in [
        "3 events",
        "1 failed",
        "asked to panic: 4",
        "<svg",
        "Headroom",
        "p99",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("src="), "it needs nothing else");

    let other = EVENTS
        .replace("\"one\"", "\"two\"")
        .replace("\"drop\"", "\"error\"");
    std::fs::write(path("two.ndjson"), other).unwrap();
    let two = path("two.ndjson");
    let told = replay(&["--expect", &expected, "--html", &page_file], &two);
    assert_eq!(told.code, 1);
    let page = std::fs::read_to_string(&page_file).unwrap();
    assert!(page.contains("What differs") && page.contains("decision.actions[0].message.title"));
    for line in [
        "a e1",
        "decision.actions[0].message.title",
        "one -> two",
        "b e2",
        "error.message",
        "differ   2 of 3",
    ] {
        assert!(told.stdout.contains(line), "{line}: {}", told.stdout);
    }
    let as_expected = told.stdout.lines().any(|line| line.starts_with("c e3"));
    assert!(!as_expected, "{}", told.stdout);
    let json = replay(&["--expect", &expected, "--json"], &two).json_lines();
    let first = &json[0]["differences"][0];
    assert_eq!(first["field"], "decision.actions[0].message.title");
    assert_eq!(json[2]["differences"].as_array().unwrap().len(), 0);

    // Fewer events than expected, and what is no expectation.
    let short: String = EVENTS.lines().take(1).map(|it| format!("{it}\n")).collect();
    std::fs::write(path("short.ndjson"), short).unwrap();
    let told = replay(&["--expect", &expected], &path("short.ndjson"));
    assert_eq!(told.code, 1);
    assert!(
        told.stdout.contains("2 events more expected"),
        "{}",
        told.stdout
    );
    std::fs::write(&expected, "{\n").unwrap();
    let told = replay(&["--expect", &expected], &events);
    assert_eq!(told.code, 2);
    assert!(told.stderr.contains("expected.ndjson:1"), "{}", told.stderr);
}

/// One rule with another in its place: the events on which they decide otherwise, and no others.
#[test]
fn two_modules_are_compared_on_the_same_events() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let events = path("e.ndjson");
    let line = |id: &str, kind: &str, user: &str| {
        format!(
            r#"{{"id":"{id}","source":"github","type":"{kind}","data":{{"issue":{{"title":"x"}},"sender":{{"type":"{user}","login":"ann"}}}}}}"#
        )
    };
    let all = [
        line("e1", "issues.opened", "User"),
        line("e2", "issues.closed", "User"),
        line("e3", "issues.opened", "Bot"),
    ];
    std::fs::write(&events, all.join("\n")).unwrap();
    let first = path("first.wasm");
    let (_, wasm) = LEAN.iter().find(|(name, _)| *name == "first-rule").unwrap();
    std::fs::write(&first, wasm).unwrap();
    let compare = |one: &str, other: &str| {
        let args = ["replay", "--rule", one, "--compare", other, events.as_str()];
        cli_with(&args, &[], b"")
    };
    let same = compare(&first, &first);
    assert_eq!(same.code, 0, "{}", same.stderr);
    assert!(same.stdout.contains("differ   0 of 3"), "{}", same.stdout);
    let told = compare(&first, "policy:github-triage");
    assert_eq!(told.code, 1);
    assert!(told.stdout.contains("issues.opened e1"), "{}", told.stdout);
    let mut lines = told.stdout.lines();
    let fuel = lines.any(|line| line.starts_with("  fuel") && line.contains("->"));
    assert!(!fuel, "other code burns other fuel: {}", told.stdout);
}

/// What an author changes in one branch of a rule is told of the events that take it, and of no others.
#[test]
fn a_change_in_one_branch_is_told_of_the_events_that_take_it() {
    if hooksieve_tests::node().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let triage = include_str!("../../policies/github-triage/src/lib.rs");
    let changed = triage.replace(r#".because("a release")"#, r#".because("a new release")"#);
    assert_ne!(triage, changed);
    well(dir.path(), &["new", "mine"]);
    let folder = dir.path().join("mine");
    let build = |text: &str, to: &str| {
        std::fs::write(folder.join("src/lib.rs"), text).unwrap();
        well(&folder, &["build"]);
        std::fs::copy(folder.join("target/hooksieve/mine.wasm"), folder.join(to)).unwrap();
    };
    build(triage, "old.wasm");
    build(&changed, "new.wasm");
    let lines = crate::senders::examples().into_iter().enumerate().map(|(n, example)| {
        let event = json!({ "id": format!("x{n}"), "source": "github", "type": example.kind(), "data": example.payload });
        format!("{event}\n")
    });
    std::fs::write(folder.join("all.ndjson"), lines.collect::<String>()).unwrap();
    let decided = well(
        &folder,
        &["replay", "--rule", "old.wasm", "--json", "all.ndjson"],
    );
    let ids = |text: &str, wanted: &dyn Fn(&serde_json::Value) -> bool| -> Vec<String> {
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let wanted = lines.filter(|line| wanted(line));
        wanted
            .map(|line: serde_json::Value| line["event"]["id"].to_string())
            .collect()
    };
    let take_it = ids(&decided, &|line| line["decision"]["reason"] == "a release");
    assert!(!take_it.is_empty());
    let args = [
        "replay",
        "--rule",
        "new.wasm",
        "--compare",
        "old.wasm",
        "all.ndjson",
    ];
    let told = hooksieve(&folder, &args);
    assert_eq!(told.code, 1, "{}", told.stderr);
    let count = format!("differ   {} of 329", take_it.len());
    assert!(told.stdout.contains(&count), "{}", told.stdout);
    let told = hooksieve(&folder, &[&args[..], &["--json"]].concat()).stdout;
    let differ = ids(&told, &|line| line["differences"] != json!([]));
    assert_eq!(differ, take_it);
    say(&format!("one branch: {differ:?} differ"));
}

/// Raw payloads in folders of their events' names are recorded, and replayed, as what they are.
#[test]
fn folders_of_payloads_are_recorded_as_their_names_say() {
    let dir = tempfile::tempdir().unwrap();
    let payload = |at: &str, text: &str| {
        let path = dir.path().join("payloads").join(at);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    payload(
        "issues/opened.json",
        r#"{"action":"opened","issue":{"title":"It fails"}}"#,
    );
    payload("push/main.json", r#"{"ref":"refs/heads/main"}"#);
    well(dir.path(), &["record", "all.hsr", "--from", "payloads"]);
    for events in ["all.hsr", "payloads"] {
        let args = ["replay", "--rule", "policy:github-triage", "--json", events];
        let lines = hooksieve(dir.path(), &args).json_lines();
        let kinds: Vec<_> = lines
            .iter()
            .map(|line| line["event"]["type"].clone())
            .collect();
        assert_eq!(kinds, ["issues.opened", "push"], "{events}");
    }
    // Whose id is made of their bytes is known by where it stands.
    let args = ["replay", "--rule", "policy:github-triage", "payloads"];
    let told = hooksieve(dir.path(), &args).stdout;
    assert!(told.contains("push payloads/push/main.json"), "{told}");
    // Nothing to compare with is no agreement.
    let args = ["replay", "--rule", "policy:github-triage", "all.hsr"];
    let none = hooksieve(dir.path(), &[&args[..], &["--recorded", "other"]].concat());
    assert_eq!(none.code, 2);
    assert!(
        none.stderr.contains("they hold no decisions"),
        "{}",
        none.stderr
    );
    payload("stray.json", "{}");
    let none = hooksieve(dir.path(), &["record", "none.hsr", "--from", "payloads"]);
    assert_eq!(none.code, 2);
    assert!(
        none.stderr.contains("stray.json: this is a raw payload"),
        "{}",
        none.stderr
    );
}

/// What is piped in is told as it comes, and Ctrl-C ends it with what it has, though the pipe stays open.
#[test]
fn ctrl_c_ends_a_replay_with_what_it_has() {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::process::Stdio;
    let mut running = Command::new(program())
        .args(["replay", "--rule", "policy:github-triage", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = running.stdin.take().unwrap();
    let mut output = BufReader::new(running.stdout.take().unwrap());
    for n in 1..3 {
        let event = json!({ "id": n.to_string(), "source": "github", "type": "push", "data": {} });
        writeln!(input, "{event}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert!(line.contains("nothing for you"), "{line}");
    }
    let interrupt = format!("kill -INT {}", running.id());
    let done = Command::new("sh").args(["-c", &interrupt]).status();
    assert!(done.unwrap().success());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("2 events: 2 dropped"), "{rest}");
    let mut said = String::new();
    let errors = running.stderr.take().unwrap().read_to_string(&mut said);
    errors.unwrap();
    assert!(said.contains("of the events until then"), "{said}");
    assert_eq!(running.wait().unwrap().code(), Some(130));
    drop(input);
}

/// Where the fuel goes is drawn, and a failure says where it happened; replay builds what is written.
#[test]
fn where_a_rule_is_is_known_by_name() {
    let dir = tempfile::tempdir().unwrap();
    well(dir.path(), &["new", "mine"]);
    let folder = dir.path().join("mine");
    well(&folder, &["replay", "--profile", "fuel.svg"]);
    let drawn = std::fs::read_to_string(folder.join("fuel.svg")).unwrap();
    for part in [
        "<svg",
        "hooksieve_decide (",
        "hooksieve_sdk::wire::",
        " fuel, ",
    ] {
        assert!(drawn.contains(part), "{part}");
    }
    let path = folder.join("src/lib.rs");
    let text = std::fs::read_to_string(&path).unwrap();
    let broken = text.replace(
        r#"let name = event.str("/workflow_run/name").unwrap_or("a run");"#,
        "let name = name_of(event);",
    ) + r#"
#[inline(never)]
fn name_of<'a>(event: &Event<'a>) -> &'a str {
    event.str("/workflow_run/nome").unwrap()
}
"#;
    std::fs::write(&path, broken).unwrap();
    let told = hooksieve(&folder, &["replay"]);
    assert_eq!(told.code, 1, "{}", told.stderr);
    for part in [
        "1 failed",
        "panicked",
        "in mine::name_of",
        "called by hooksieve_decide",
    ] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
}

/// Large counts are kept by classes; what is told is never more than there was.
#[test]
fn a_rule_that_never_ends_burns_the_limit_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("endless.wasm"),
        wat::parse_str(ENDLESS).unwrap(),
    )
    .unwrap();
    std::fs::write(dir.path().join("push.json"), "{}").unwrap();
    let args = [
        "replay",
        "--rule",
        "endless.wasm",
        "--type",
        "push",
        "push.json",
    ];
    let told = hooksieve(
        dir.path(),
        &[&args[..], &["--profile", "fuel.svg"]].concat(),
    );
    assert_eq!(told.code, 1);
    let profile = std::fs::read_to_string(dir.path().join("fuel.svg")).unwrap();
    assert!(profile.contains("all (10,000,000 fuel"), "{profile}");
    let max = "p99 10 000 000, max 10 000 000 of 10 000 000 (100.0 %)";
    for part in [max, "headroom 0.0 % of the fuel, on push push.json"] {
        assert!(told.stdout.contains(part), "{part}: {}", told.stdout);
    }
}

/// With a tenant's file, its limits and channels hold, and it is shown what would go out.
#[test]
fn a_tenant_s_limits_and_channels_hold_in_replay() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("probe.wasm"), hooksieve_tests::PROBE).unwrap();
    let tenant = "[[channel]]\nname = 'mail'\nkind = 'email'\nhost = 'mail.example'\nfrom = 'a@mail.example'\nto = ['b@mail.example']\n\
        [[channel]]\nname = 'chat'\nkind = 'slack'\nurl = { env = 'CHAT_URL' }\n\
        [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\nconfig = { greeting = 'hello' }\n\
        [[rule]]\nname = 'two'\nmodule = 'probe.wasm'\nevents = ['*']\nchannels = ['chat']\n\
        [[rule]]\nname = 'three'\nmodule = 'probe.wasm'\nevents = ['b.*']\n\
        [limits]\nactions = 2\n";
    std::fs::write(path("acme.toml"), tenant).unwrap();
    let events = path("e.ndjson");
    let line = |id: &str, data: &str| {
        format!(r#"{{"id":"{id}","source":"open","type":"a","data":{data}}}"#)
    };
    let all = [
        line(
            "e1",
            r#"{"do":"notify","title":"A title","text":"A text of ann@acme.example","email":"ann@acme.example","link":"https://a.example/"}"#,
        ),
        line(
            "e2",
            r#"{"do":"notify","channel":"chat","title":"To all","link":"https://a.example/"}"#,
        ),
    ];
    std::fs::write(&events, all.join("\n")).unwrap();
    let tenant = path("acme.toml");
    let replay = |more: &[&str]| {
        let mut args = vec!["replay", "--tenant", &tenant];
        args.extend(more);
        args.push(&events);
        cli_with(
            &args,
            &[("CHAT_URL", "https://hooks.example/planted-secret")],
            b"",
        )
    };
    // All of its rules, one after another; a file of what is expected is of one.
    let every = replay(&[]).stdout;
    for part in ["rule one", "rule two", "rule three", "never matched"] {
        assert!(every.contains(part), "{every}");
    }
    let which = replay(&["--expect", &path("expected.ndjson"), "--bless"]);
    assert_eq!(which.code, 2);
    assert!(
        which.stderr.contains("it has one, two, three"),
        "{}",
        which.stderr
    );
    let page = path("report.html");
    let shown = replay(&["--rule", "one", "--render", "--html", &page]);
    assert_eq!(shown.code, 0, "{}{}", shown.stdout, shown.stderr);
    for part in [
        "mail (email)",
        "A text of ann@acme.example",
        "a from open, ",
        "chat (slack)",
        "To all",
        "hello",
        "headroom",
        "RCPT TO: b@mail.example",
        "Subject: ",
        "POST https://hooks.example/...",
        "content-type: application/json",
    ] {
        assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
    }
    assert!(!shown.stdout.contains("planted"), "{}", shown.stdout);
    // On the page the mail is as its reader sees it; a page is handed on, so what is personal is masked.
    let page = std::fs::read_to_string(page).unwrap();
    for part in [
        "<iframe sandbox",
        "RCPT TO: b@mail.example",
        "A text of xxx@xxxx.xxxxxxx",
        "&quot;text&quot;: &quot;",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains("planted") && !page.contains("ann@"));
    let unknown = replay(&["--rule", "tow"]);
    assert_eq!(unknown.code, 2);
    assert!(
        unknown
            .stderr
            .contains("no rule `tow`; did you mean `two`?"),
        "{}",
        unknown.stderr
    );
    // The second may not mail.
    let refused = replay(&["--rule", "two"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stdout.contains("not in the rule's `channels`"),
        "{}",
        refused.stdout
    );
    // A module of one's own, as this tenant's.
    std::fs::write(&events, line("e3", r#"{"do":"many","count":3}"#)).unwrap();
    let module = path("probe.wasm");
    let limited = replay(&["--rule", &module]);
    assert!(
        limited.stdout.contains("3 actions, the limit is 2"),
        "{}",
        limited.stdout
    );
}

/// Whoever saves a file reads what it changes, and nothing else.
#[test]
fn what_a_saved_file_changes_is_told() {
    use std::io::{BufRead as _, BufReader};
    let dir = tempfile::tempdir().unwrap();
    well(dir.path(), &["new", "mine"]);
    let folder = dir.path().join("mine");
    let mut watching = Command::new(program())
        .args(["replay", "--watch", "events"])
        .current_dir(&folder)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut until_it_waits = || {
        let mut told = String::new();
        loop {
            let line = lines.next().expect("it goes on").unwrap();
            if line.contains("waiting for a file") {
                return told;
            }
            told += &(line + "\n");
        }
    };
    let first = until_it_waits();
    assert!(
        first.contains("a new issue") && first.contains("failed CI"),
        "{first}"
    );
    let path = folder.join("src/lib.rs");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("CI is red: ", "Broken: ")).unwrap();
    let second = until_it_waits();
    assert!(
        second.contains("CI is red: tests -> Broken: tests"),
        "{second}"
    );
    assert!(second.contains("differ   1 of 3"), "{second}");
    assert!(!second.contains("a new issue"), "{second}");
    // What does not compile is said by the compiler, and the next save is looked at.
    std::fs::write(&path, "fn").unwrap();
    until_it_waits();
    std::fs::write(&path, text).unwrap();
    let last = until_it_waits();
    assert!(last.contains("Broken: tests -> CI is red: tests"), "{last}");
    watching.kill().unwrap();
    watching.wait().unwrap();
}

/// What an engine decided is recorded, and replayed against the same rule and another one.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_decided_is_recorded_and_replayed() {
    use hooksieve_tests::{Receiver, Setup, TOKEN};
    let hook = Receiver::start().await;
    let tenant = format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'mail'\nkind = 'webhook'\nurl = '{}'\n\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\nconfig = {{ greeting = 'hello' }}\n",
        hook.url("/hook")
    );
    let setup = Setup::new().tenant("acme", &tenant).tenant("other", "");
    let server = setup.start().await;
    for n in 0..40 {
        let event = serde_json::json!({
            "do": if n % 4 == 0 { "drop" } else { "notify" },
            "title": format!("{n} for ann@a.example"),
            "text": "x".repeat(500),
            "link": "https://a.example/",
            "contact": { "email": "ann@a.example" },
        });
        let id = server
            .post_json("/in/acme/open", &event.to_string())
            .await
            .id();
        server.settled(&id).await;
    }
    let failed = serde_json::json!({ "do": "panic", "code": 3 }).to_string();
    let id = server.post_json("/in/acme/open", &failed).await.id();
    server.settled(&id).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let record = |more: &[&str]| {
        let mut args = vec!["record", "--tenant", "acme", "--url", &server.base];
        args.extend(more);
        cli_with(&args, &[("HOOKSIEVE_OPERATOR_TOKEN", TOKEN)], b"")
    };
    let (file, open) = (path("events.hsr"), path("open.hsr"));
    let done = record(&[&file, "--since", "1h", "--rule", "one"]);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(record(&[&open, "--personal"]).code, 0);
    assert_eq!(record(&[&file]).code, 2, "what is there stays");
    let none = record(&[&path("none.hsr"), "--since", "tomorrow"]);
    assert_eq!(none.code, 2);
    assert!(none.stderr.contains("30m, 24h, 7d"), "{}", none.stderr);

    let probe = path("probe.wasm");
    std::fs::write(&probe, hooksieve_tests::PROBE).unwrap();
    let replay = |config: &str, more: &[&str], file: &str| {
        let settings = path("config.toml");
        std::fs::write(&settings, config).unwrap();
        let mut args = vec!["replay", "--rule", &probe, "--rule-config", &settings];
        args.extend(more);
        args.push(file);
        cli_with(&args, &[], b"")
    };
    for file in [&file, &open] {
        let same = replay("greeting = 'hello'", &["--recorded", "one"], file);
        assert_eq!(same.code, 0, "{}{}", same.stdout, same.stderr);
        assert!(same.stdout.contains("differ   0 of 41"), "{}", same.stdout);
    }
    let other = replay("greeting = 'bye'", &["--recorded", "one"], &file);
    assert_eq!(other.code, 1);
    assert!(other.stdout.contains("hello -> bye"), "{}", other.stdout);
    assert!(
        other.stdout.contains("differ   30 of 41"),
        "{}",
        other.stdout
    );
    let shown = |file: &str| replay("greeting = 'hello'", &["--json"], file).stdout;
    assert!(shown(&open).contains("for ann@a.example"));
    assert!(!shown(&file).contains("ann@"), "{}", shown(&file));
    assert!(
        shown(&file).contains("for xxx@x.xxxxxxx"),
        "{}",
        shown(&file)
    );

    // Cut off, it is not taken for whole.
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(path("short.hsr"), &bytes[..bytes.len() - 9]).unwrap();
    let short = replay(
        "greeting = 'hello'",
        &["--recorded", "one"],
        &path("short.hsr"),
    );
    assert_eq!(short.code, 2);
    assert!(
        short.stderr.contains("cut off or damaged"),
        "{}",
        short.stderr
    );
    server.stop().await;
}
