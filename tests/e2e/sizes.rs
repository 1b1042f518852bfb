//! What a rule weighs: its module, and the memory that is cleared for every event. A change of the SDK
//! that makes rules larger is seen here, and either undone or written into `guest-sdk/README.md`.

use hooksieve_tests::{LEAN, PROBE, cli};
use serde_json::Value;

/// The largest that each module may be, in bytes.
const LIMITS: [(&str, usize); 7] = [
    ("lean-drop", 8_192),
    ("lean-forward", 8_192),
    ("first-rule", 9_216),
    ("lean-format", 12_288),
    ("lean-serde", 13_312),
    ("github-triage", 28_672),
    ("shopify-orders", 24_576),
];

fn module(name: &str) -> &'static [u8] {
    let lean = LEAN.iter().find(|(lean, _)| *lean == name);
    let policy = hooksieve_policies::get(name).map(|policy| policy.wasm);
    lean.map(|(_, wasm)| *wasm).or(policy).unwrap()
}

#[test]
fn rules_are_small() {
    let sizes = LIMITS.map(|(name, limit)| (name, module(name).len(), limit));
    let too_large: Vec<_> = sizes.iter().filter(|(_, is, limit)| is > limit).collect();
    assert!(too_large.is_empty(), "{too_large:?} of {sizes:?}");
}

/// Runs a module on one payload, as `replay` does.
fn replay(wasm: &[u8], payload: &str) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (rule, event) = (path("rule.wasm"), path("event.json"));
    std::fs::write(&rule, wasm).unwrap();
    std::fs::write(&event, payload).unwrap();
    let output = cli(&["replay", "--rule", &rule, "--type", "t", "--json", &event]);
    output.json_lines().remove(0)
}

/// Stack, statics and heap stand side by side in one page, with room for an ordinary event.
#[test]
fn a_rule_is_at_home_in_one_page() {
    let payload = format!(r#"{{"text": "{}"}}"#, "x".repeat(24_000));
    for (name, wasm) in LEAN {
        if name != "lean-serde" {
            let shown = replay(wasm, &payload);
            assert_eq!(shown["memory_bytes"], 65_536, "{name}: {shown}");
            assert!(shown["error"].is_null(), "{name}: {shown}");
        }
    }
}

/// The stack lies below everything else, so what goes too deep leaves memory.
#[test]
fn a_recursion_that_goes_too_deep_is_trapped() {
    let recurse = |depth: u32| replay(PROBE, &format!(r#"{{"do": "recurse", "depth": {depth}}}"#));
    assert_eq!(recurse(40)["decision"]["reason"], "returned from 40");
    for depth in [120, 200, 100_000] {
        let error = recurse(depth)["error"].clone();
        assert_eq!(
            error["message"], "trapped: it reached outside its memory",
            "{depth}: {error}"
        );
    }
}
