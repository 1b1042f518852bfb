//! How quickly a recording is replayed, beside what it is to read it, and beside one process an event.
//!
//! ```text
//! cargo run --release --example replay -- --help
//! ```
#![allow(clippy::print_stdout, reason = "the report")]

use clap::Parser;
use hooksieve::recording::{Writer, blocks};
use hooksieve::replay::{BadInput, Defaults, payload};
use hooksieve_tests::process::resident_mb;
use hooksieve_tests::{program, tests_folder};
use serde_json::Value;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Measures replay on events made of GitHub's own examples, each with other numbers, hashes and dates.
#[derive(Debug, Parser)]
struct Arguments {
    /// Events in the recording.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// The rule.
    #[arg(long, default_value = "policy:github-triage")]
    rule: String,
    /// Processes with one event each.
    #[arg(long, default_value_t = 20)]
    processes: u32,
}

fn main() {
    let arguments = Arguments::parse();
    let dir = tempfile::tempdir().expect("a folder");
    let recording = dir.path().join("events.hsr");
    let one = dir.path().join("one.json");
    let json_bytes = record(&recording, &one, arguments.events);
    let recorded_bytes = std::fs::metadata(&recording).expect("a recording").len();
    println!(
        "events             {:>9}, {} bytes of JSON on average",
        arguments.events,
        json_bytes / arguments.events
    );
    println!(
        "recording          {:>9} MB, {:.1} % of the JSON",
        recorded_bytes / 1_000_000,
        100.0 * recorded_bytes as f64 / json_bytes as f64
    );
    let events = arguments.events as f64;
    let bare = read(&recording, arguments.events);
    let rate = |took: Duration| events / took.as_secs_f64();
    println!(
        "bare decoding      {:>9.0} events/s on one core",
        rate(bare)
    );
    for cores in [1, 2] {
        let (took, flat) = replay(&arguments.rule, &recording, cores);
        println!(
            "replay, {cores} cores    {:>9.0} events/s, {:.0} a core, {:.2} of bare decoding; resident {} MB in the middle, {} MB at the end",
            rate(took),
            rate(took) / f64::from(cores),
            bare.as_secs_f64() / took.as_secs_f64() / f64::from(cores),
            flat[0],
            flat[1]
        );
    }
    let began = Instant::now();
    for _ in 0..arguments.processes {
        let (_, _) = replay(&arguments.rule, &one, 1);
    }
    let each = began.elapsed() / arguments.processes;
    println!(
        "a process an event {:>9.1} events/s",
        1.0 / each.as_secs_f64()
    );
}

fn defaults(kind: &str) -> Defaults {
    let name = |text: &str| text.parse().expect("a name");
    Defaults {
        tenant: name("recorded"),
        source: name("github"),
        kind: Some(kind.to_owned()),
    }
}

/// Writes the recording, and one event as JSON; gives how much JSON all events are.
fn record(to: &Path, one: &Path, events: u64) -> u64 {
    let index = "js/node_modules/@octokit/webhooks-examples/api.github.com/index.json";
    let path = tests_folder().join(index);
    let text = std::fs::read(path).expect("`npm ci --prefix tests/js` puts the examples there");
    let all: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
    let mut examples = Vec::new();
    for event in &all {
        let kind = event["name"].as_str().expect("a name");
        for example in event["examples"].as_array().into_iter().flatten() {
            examples.push((defaults(kind), example.clone()));
        }
    }
    let file = BufWriter::new(File::create(to).expect("a file"));
    let mut writer = Writer::new(file, false).expect("a recording");
    let mut bytes = 0;
    for n in 0..events {
        let (defaults, example) = &examples[n as usize % examples.len()];
        let mut example = example.clone();
        vary(&mut example, n);
        let json = example.to_string();
        bytes += json.len() as u64;
        let event = payload(json.as_bytes(), defaults).expect("an event");
        writer.recorded(&event).expect("it is written");
        if n == 0 {
            let attributes = serde_json::json!({ "id": "1", "source": "github", "type": defaults.kind, "data": example });
            std::fs::write(one, attributes.to_string()).expect("a file");
        }
    }
    writer.end().expect("it is written");
    bytes
}

/// Other numbers, hashes and moments: what differs from event to event.
fn vary(value: &mut Value, n: u64) {
    match value {
        Value::Number(number) => {
            if let Some(old) = number.as_u64().filter(|old| *old > 1_000) {
                *value = (old + n * 7_919).into();
            }
        }
        Value::String(text) => {
            let hash = text.len() == 40 && text.bytes().all(|it| it.is_ascii_hexdigit());
            let moment = text.len() == 20 && text.ends_with('Z');
            if hash {
                *text = format!("{:016x}{:016x}{:08x}", mix(n), mix(n + 1), n as u32);
            } else if moment {
                text.replace_range(
                    11..19,
                    &format!("{:02}:{:02}:{:02}", n / 3600 % 24, n / 60 % 60, n % 60),
                );
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|it| vary(it, n)),
        Value::Object(all) => all.values_mut().for_each(|it| vary(it, n)),
        _ => {}
    }
}

/// splitmix64.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How long it takes to have every event, and nothing more.
fn read(recording: &Path, expected: u64) -> Duration {
    let began = Instant::now();
    let file = BufReader::new(File::open(recording).expect("the recording"));
    let (tenant, mut events) = ("recorded".parse().expect("a name"), 0);
    let read = blocks(file, &mut |block| {
        block.events(&tenant, &mut |event| {
            events += u64::from(!event.event.encoded.is_empty());
            Ok(())
        })
    });
    read.map_err(|error: hooksieve::recording::NotRead| BadInput {
        place: recording.display().to_string(),
        message: error.to_string(),
    })
    .expect("it is whole");
    assert_eq!(events, expected);
    began.elapsed()
}

/// How long `hooksieve replay` takes, and its resident memory in the middle and near the end.
fn replay(rule: &str, events: &Path, cores: u32) -> (Duration, [u64; 2]) {
    let events = events.to_str().expect("a path");
    let cpus: Vec<_> = (0..cores).map(|it| it.to_string()).collect();
    let began = Instant::now();
    let mut child = std::process::Command::new("taskset")
        .args(["-c", &cpus.join(",")])
        .arg(program())
        .args(["replay", "--rule", rule, events])
        .stdout(Stdio::null())
        .spawn()
        .expect("taskset of util-linux");
    let mut seen = Vec::new();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            assert!(status.success(), "{status}");
            break;
        }
        seen.push(resident_mb(child.id()));
        std::thread::sleep(Duration::from_millis(5));
    }
    seen.retain(|it| *it > 0);
    let at = |share: f64| {
        let at = (seen.len() as f64 * share) as usize;
        seen.get(at).copied().unwrap_or(0)
    };
    (began.elapsed(), [at(0.5), at(0.99)])
}
