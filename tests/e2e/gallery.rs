//! `guest-sdk/ERRORS.md`: every limit's error as an author reads it, made from real runs of real modules.
//! `HOOKSIEVE_BLESS=1` writes it anew.

use crate::guest::{FOREVER, Guest, doing, limits, wasm};
use hooksieve::sandbox::{Error, Instances, Kept, Limits, Program, Sandbox};
use hooksieve_sdk::wire::EventHead;
use hooksieve_sdk::wire::json::Data;
use hooksieve_tests::{PROBE, tests_folder};
use serde_json::{Value, json};
use std::fmt::Write as _;

const HEAD: &str = "\
# What an author reads when a rule fails

What stands in a block was said: this page is made by the test `gallery` from real runs, with the default limits of
`engine/defaults.toml` where nothing else stands here. `hooksieve replay`, `hooksieve explain`, the console and the
log say it in the same words; programs find the word under `kind` in their JSON. A rule's failure is data: the event is
held, passed on or dropped, as `on_error` has it, and nothing of the event is lost.

";

/// A case: what the author did, its outcome, and what helps.
struct Case {
    did: &'static str,
    kind: &'static str,
    says: String,
    helps: &'static str,
}

fn case(did: &'static str, error: &Error, helps: &'static str) -> Case {
    Case {
        did,
        kind: error.kind(),
        says: error.to_string(),
        helps,
    }
}

/// What the probe ends in, for an event with this payload.
fn probe(limits: &Limits, config: &Value, payload: &Value) -> Error {
    let module = Sandbox::new(limits.clone()).compile(PROBE).unwrap();
    let config = Data::from_json(config.to_string().as_bytes()).unwrap();
    let program = match Program::new(module, config.bytes().to_vec(), limits.clone()) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let data = Data::from_json(payload.to_string().as_bytes()).unwrap();
    let (event, index) = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind: "test",
        subject: None,
        time: "2026-01-01T00:00:00Z",
        headers: &[],
    }
    .encode(&data);
    let kept = Kept {
        count_max: 1,
        bytes_max: usize::MAX,
    };
    let run = Instances::new(kept).run(&program, &event, &index);
    run.outcome.expect_err("it fails")
}

fn runs() -> Vec<Case> {
    let (usual, none) = (limits(), json!({}));
    let of_probe = |payload: Value| probe(&usual, &none, &payload);
    let init = |body: &str| {
        let guest = Guest {
            init: Some(format!("{body} (i64.const 0)")),
            ..Guest::default()
        };
        match guest.try_program(&limits(), vec![0x80]) {
            Err(error) => error,
            Ok(_) => panic!("it starts"),
        }
    };
    let patient = Limits {
        fuel: 1 << 40,
        wall_clock_ms: 1_000,
        ..limits()
    };
    let table = Guest {
        extra: "(table $t 1 funcref)".into(),
        ..doing(
            "(if (i32.eq (table.grow $t (ref.null func) (i32.const 10000)) (i32.const -1)) (then unreachable))",
        )
    };
    vec![
        case(
            "A loop that does not end, or more work than the limit pays for.",
            &doing(FOREVER).fails(),
            "Look less often: read the field you need (`event.str(\"/a/b\")`) before the whole payload, and end loops. `hooksieve replay` says what each event costs. An operator may give a tenant more (`[limits] fuel`).",
        ),
        case(
            "The same while the configuration is read.",
            &init(FOREVER),
            "Do in the rule what depends on the event, and keep the configuration small.",
        ),
        case(
            "The same where an operator has raised the fuel: the clock stands behind it.",
            &doing(FOREVER)
                .run_within(&patient)
                .outcome
                .expect_err("it fails"),
            "As for fuel. That a clock ends a rule, and not its fuel, is a sign that `[limits] fuel` is too high.",
        ),
        case(
            "More memory than there may be: `vec![1u8; 20 << 20]`.",
            &of_probe(json!({ "do": "allocate", "bytes": 20 << 20 })),
            "Keep less at once, and cut texts before they are copied. An operator may give a tenant more (`[limits] memory_bytes`).",
        ),
        case(
            "A table that grows beyond its limit (no Rust rule does).",
            &table.fails(),
            "Let the table be as large as the module declares it.",
        ),
        case(
            "A function that calls itself too deep, in 32 KiB of the rule's own stack.",
            &of_probe(json!({ "do": "recurse", "depth": 1_000_000 })),
            "Use a loop and a list of what is left to do.",
        ),
        case(
            "The same in a module that keeps nothing in memory for it: the engine's own stack for it ends.",
            &Guest {
                extra: "(func $deep (call $deep))".into(),
                ..doing("(call $deep)")
            }
            .fails(),
            "As above.",
        ),
        case(
            "A decision with too many actions.",
            &of_probe(json!({ "do": "many", "count": 17 })),
            "Send one message with fields, or a digest.",
        ),
        case(
            "A decision that is too long: a message with a text of 70,000 bytes.",
            &of_probe(json!({ "do": "notify", "text": "x".repeat(70_000) })),
            "Cut the text: no channel shows so much.",
        ),
        case(
            "An event that is larger than a rule is handed (here with `input_bytes = 1 024`).",
            &probe(
                &Limits {
                    input_bytes: 1_024,
                    ..limits()
                },
                &none,
                &json!({ "do": "drop", "filler": "x".repeat(2_000) }),
            ),
            "Nothing in the rule helps: the sender's payload is too large for this engine.",
        ),
        case(
            "`panic!`, `unwrap` on nothing, an index that is out of bounds.",
            &of_probe(json!({ "do": "panic", "code": 4 })),
            "The message has the place. Use `unwrap_or` for what a payload may lack.",
        ),
        case(
            "`Err(\"…\")` from the rule.",
            &of_probe(json!({ "do": "error", "message": "no such label" })),
            "It is the rule's own word.",
        ),
        case(
            "`unreachable`, which an abort becomes in a module without messages.",
            &doing("unreachable").fails(),
            "Build with the SDK's panic messages, and replay the event.",
        ),
        case(
            "A configuration with a key that the rule does not know.",
            &probe(&usual, &json!({ "greting": "hi" }), &json!({})),
            "It is found when the version is made, before any event: mend the configuration.",
        ),
        case(
            "An answer that is no decision (from a module of one's own).",
            &doing("(return (i64.const 0))").fails(),
            "`ABI.md` has the form of an answer, and `guest-sdk/golden` examples of it.",
        ),
    ]
}

fn refusals() -> Vec<(&'static str, Vec<u8>)> {
    let exports = "(memory (export \"memory\") 1) (func (export \"hooksieve_abi_1\"))";
    let mut large = Guest::default().wasm();
    // A custom section without a name, of 3 MiB: its length in LEB128.
    large.extend([0x00, 0x80, 0x80, 0xc0, 0x01]);
    large.extend(vec![0; 3 << 20]);
    vec![
        ("A file that is no module.", b"#!/bin/sh\n".to_vec()),
        ("A component.", wasm("(component)")),
        ("A module of 3 MiB.", large),
        (
            "A module without the SDK: no exports of the contract.",
            wasm("(module (memory (export \"memory\") 1))"),
        ),
        (
            "A module that wants something of its host.",
            wasm(&format!(
                "(module (import \"env\" \"now\" (func)) {exports})"
            )),
        ),
        (
            "A start function.",
            wasm(&format!("(module {exports} (func $s) (start $s))")),
        ),
        (
            "SIMD.",
            wasm(&format!(
                "(module {exports} (func (drop (v128.const i32x4 0 0 0 0))))"
            )),
        ),
        (
            "Threads.",
            wasm(
                "(module (memory (export \"memory\") 1 1 shared) (func (export \"hooksieve_abi_1\")))",
            ),
        ),
        (
            "Memory that begins with 32 MiB.",
            Guest {
                memory: "(memory (export \"memory\") 512)".into(),
                ..Guest::default()
            }
            .wasm(),
        ),
    ]
}

#[test]
fn the_gallery_of_errors_is_what_is_said() {
    let mut page = HEAD.to_owned();
    page.push_str("## While it runs\n");
    for it in runs() {
        let (kind, did, says, helps) = (it.kind, it.did, it.says, it.helps);
        write!(
            page,
            "\n### `{kind}`\n\n{did}\n\n```text\n{says}\n```\n\n{helps}\n"
        )
        .unwrap();
    }
    page.push_str("\n## Before it runs\n\n`hooksieve build`, `hooksieve check`, an upload and the engine's start refuse the same, and say what to do.\n");
    for (did, wasm) in refusals() {
        let refused = match Sandbox::new(limits()).check(&wasm) {
            Err(refused) => refused,
            Ok(_) => panic!("accepted: {did}"),
        };
        let (kind, fix) = (refused.kind(), refused.fix());
        write!(
            page,
            "\n### `{kind}`\n\n{did}\n\n```text\nwhy  {refused}\ndo   {fix}\n```\n"
        )
        .unwrap();
    }
    let path = tests_folder().join("../guest-sdk/ERRORS.md");
    if std::env::var_os("HOOKSIEVE_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page,
        "guest-sdk/ERRORS.md is not what is said; HOOKSIEVE_BLESS=1 writes it anew:\n{page}"
    );
}
