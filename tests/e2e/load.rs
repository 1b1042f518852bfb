//! The short forms of the load proof and of replay's benchmark: the programs themselves, for a second.

use serde_json::Value;
use std::process::Command;

#[test]
fn every_event_under_load_arrives_once() {
    hooksieve_tests::program();
    let own = std::env::current_exe().expect("the tests' executable has a path");
    let load = own.with_file_name("../examples/load");
    let output = Command::new(load)
        .args([
            "--seconds",
            "1",
            "--rate",
            "300",
            "--tenants",
            "3",
            "--json",
        ])
        .output()
        .expect("cargo builds examples with the tests");
    let said = String::from_utf8_lossy(&output.stdout);
    let told: Value = serde_json::from_str(&said).expect("one JSON object");
    assert!(output.status.success(), "{told}");
    assert!(told["sent"].as_u64().expect("a count") >= 100, "{told}");
    assert_eq!(
        (&told["lost"], &told["twice"]),
        (&Value::from(0), &Value::from(0))
    );
}

#[test]
fn a_recording_is_replayed_beside_bare_decoding() {
    if hooksieve_tests::node().is_err() {
        return;
    }
    hooksieve_tests::program();
    let own = std::env::current_exe().expect("the tests' executable has a path");
    let output = Command::new(own.with_file_name("../examples/replay"))
        .args(["--events", "3000", "--processes", "1"])
        .output()
        .expect("cargo builds examples with the tests");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.lines().count(), 6, "{said}");
}
