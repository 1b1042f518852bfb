//! Random modules: what an instance that is put back between events gives is what a new one gives.

use hooksieve_tests::proof::{ALL, Case, Proof};
use hooksieve_tests::say;

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
    let modules = from_env("HOOKSIEVE_SMITH_MODULES", 500);
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
