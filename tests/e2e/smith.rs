//! Random modules: what an instance that is put back between events gives is what a new one gives.

use crate::senders::examples;
use hooksieve::sandbox::{Instances, Kept, Limits, Program, Run, Sandbox};
use hooksieve::tenant::encode_config;
use hooksieve_sdk::wire::EventHead;
use hooksieve_sdk::wire::json::Data;
use hooksieve_tests::proof::{ALL, Case, Proof};
use hooksieve_tests::{PROBE, node, program, say};
use std::process::Command;

/// A figure from the environment, for who has more time than the default takes.
fn from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
        Err(_) => default,
    }
}

#[test]
fn smith_modules_run_the_same_warm_and_new() {
    let modules = from_env("HOOKSIEVE_SMITH_MODULES", 400);
    let first = from_env("HOOKSIEVE_SMITH_SEED", 1);
    let mut proof = Proof::new(None);
    for case in (first..first + modules).filter_map(Case::new) {
        if let Err(message) = proof.check(&case) {
            panic!("module {}: {message}", case.seed);
        }
    }
    let shares = &proof.shares;
    say(&shares.to_string());
    assert!(shares.count("module", ALL) >= modules * 99 / 100);
    // It proves something only where something happens.
    for (what, kind, least) in [
        ("module", "accepted", 75.0),
        ("module", "accepted and keepable", 40.0),
        ("module", "memory_start", 0.1),
        ("module", "table_start", 0.1),
        ("start", "decides", 70.0),
        ("start", "with more than 1 MiB", 1.0),
        ("state", "globals or tables changed", 5.0),
        ("state", "memory changed", 20.0),
        ("event", "grew memory", 3.0),
        ("event", "logged", 30.0),
        ("event", "log cut off", 0.1),
        ("event", "decided", 10.0),
        ("event", "trapped", 5.0),
        ("event", "fuel", 5.0),
        ("event", "memory", 0.1),
        ("event", "table", 0.1),
        ("event", "stack", 0.1),
        ("event", "input", 0.1),
        ("event", "input_place", 0.1),
        ("event", "output", 0.1),
        ("event", "answer", 0.1),
        ("event", "rule", 0.1),
        ("event", "out_of_memory", 0.1),
    ] {
        let percent = shares.percent(what, kind);
        assert!(percent >= least, "{what} {kind}: {percent:.2} %");
    }
}

fn limits() -> Limits {
    Limits {
        wall_clock_ms: 60_000,
        ..Limits::default()
    }
}

fn event(kind: &str, json: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let head = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind,
        subject: None,
        time: "2026-01-01T00:00:00Z",
        headers: &[],
    };
    head.encode(&Data::from_json(json).unwrap())
}

/// All of a run but how long it took.
fn shown(run: &Run) -> String {
    let Run {
        outcome,
        fuel,
        memory_bytes,
        log,
        ..
    } = run;
    format!("{outcome:?}, fuel {fuel}, {memory_bytes} bytes, log {log:?}")
}

/// The rules that people really use, on everything that GitHub sends.
#[test]
fn smith_policies_run_the_same_warm_and_new_on_githubs_payloads() {
    // It is what brings the examples here.
    let Ok(_node) = node() else { return };
    let events: Vec<_> = examples()
        .iter()
        .map(|example| {
            let body = serde_json::to_vec(&example.payload).unwrap();
            event(&example.kind(), &body)
        })
        .collect();
    let mut programs = vec![(PROBE, vec![0x80])];
    for name in ["github-triage", "shopify-orders"] {
        let policy = hooksieve_policies::get(name).unwrap();
        let example: toml::Value = toml::from_str(policy.example).unwrap();
        let config = encode_config(&example["rule"][0]["config"]).unwrap();
        programs.push((policy.wasm, config));
    }
    let sandbox = Sandbox::new(limits());
    let programs: Vec<_> = programs
        .into_iter()
        .map(|(wasm, config)| {
            let module = sandbox.compile(wasm).unwrap();
            Program::new(module, config, limits()).unwrap()
        })
        .collect();
    let mut wide = Instances::new(KEPT);
    let mut narrow = Instances::new(Kept {
        count_max: 1,
        ..KEPT
    });
    for (event, index) in events.iter().chain(events.iter().rev()) {
        for program in &programs {
            let new = shown(&program.run(event, index));
            assert_eq!(shown(&wide.run(program, event, index)), new);
            assert_eq!(shown(&narrow.run(program, event, index)), new);
        }
    }
    assert_eq!((wide.len(), narrow.len()), (programs.len(), 1));
}

/// Room for all.
const KEPT: Kept = Kept {
    count_max: 1_000,
    bytes_max: 1 << 30,
};

/// So many programs of one module.
fn programs(count: usize) -> Vec<Program> {
    let module = Sandbox::new(limits()).compile(PROBE).unwrap();
    let program = |_| Program::new(module.clone(), vec![0x80], limits()).unwrap();
    (0..count).map(program).collect()
}

#[test]
fn smith_instances_wait_only_as_many_as_may() {
    let (drop, index) = event("test", br#"{"do": "drop"}"#);
    let all = programs(40);
    let new = shown(&all[0].run(&drop, &index));
    for count_max in [0, 1, 7, 40, 100] {
        let mut instances = Instances::new(Kept { count_max, ..KEPT });
        for program in all.iter().chain(&all).chain(all.iter().rev()) {
            assert_eq!(shown(&instances.run(program, &drop, &index)), new);
            assert!(instances.len() <= count_max);
        }
        assert_eq!(instances.len(), count_max.min(all.len()));
    }
    // None has room for itself; and what an event made large no longer has beside others.
    let mut instances = Instances::new(Kept {
        bytes_max: 1,
        ..KEPT
    });
    instances.run(&all[0], &drop, &index);
    assert_eq!(instances.len(), 0);
    let mut instances = Instances::new(Kept {
        bytes_max: 20 << 20,
        ..KEPT
    });
    for program in &all {
        instances.run(program, &drop, &index);
    }
    assert_eq!(instances.len(), all.len());
    let (grow, index) = event("test", br#"{"do": "allocate", "bytes": 5000000}"#);
    let new = shown(&all[0].run(&grow, &index));
    for program in &all {
        assert_eq!(shown(&instances.run(program, &grow, &index)), new);
    }
    assert!((1..25).contains(&instances.len()), "{}", instances.len());
}

#[test]
fn smith_instances_of_dropped_programs_go() {
    let (drop, index) = event("test", br#"{"do": "drop"}"#);
    let mut instances = Instances::new(KEPT);
    for _ in 0..20 {
        for program in programs(40) {
            instances.run(&program, &drop, &index);
        }
        // Looked for when half as many were added: what is gone is soon outnumbered.
        assert!(instances.len() <= 40 + 16, "{}", instances.len());
    }
}

/// In a process of its own, which can also be the one that compiles, and whose memory nothing else
/// moves.
#[test]
fn smith_nothing_leaks() {
    let figures = [
        ("--decisions", "HOOKSIEVE_SMITH_DECISIONS", 100_000),
        ("--loads", "HOOKSIEVE_SMITH_LOADS", 1_000),
        ("--through-child", "HOOKSIEVE_SMITH_THROUGH_CHILD", 20),
    ];
    // `cargo test` builds examples; `tests/examples/smith.rs` says why it is one.
    let mut command = Command::new(program().with_file_name("examples").join("smith"));
    for (argument, name, default) in figures {
        command.args([argument, &from_env(name, default).to_string()]);
    }
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told}", output.status);
}
