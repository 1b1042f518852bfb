//! The end of a guest's stack.

use crate::guest::{Guest, LOG, all_is_well, event, limits, ok};
use hooksieve::sandbox::Error;
use hooksieve_tests::cli_with;

#[test]
fn the_stack_ends_and_always_at_the_same_depth() {
    let endless = Guest {
        decide: "(call $down) unreachable".into(),
        extra: "(func $down (call $down) (call $down))".into(),
        ..Guest::default()
    };
    let stack = Error::Stack {
        limit_bytes: 262_144,
    };
    let first = endless.run();
    assert_eq!(first.outcome, Err(stack.clone()));
    let (event, index) = event();
    let program = endless.program(&limits());
    for _ in 0..100 {
        let run = program.run(&event, &index);
        assert_eq!((&run.outcome, run.fuel), (&first.outcome, first.fuel));
    }
    let deep = |depth: u32| Guest {
        decide: format!("(call $down (i32.const {depth})) {}", ok()),
        extra: "(func $down (param i32)
                  (if (local.get 0) (then (call $down (i32.sub (local.get 0) (i32.const 1))))))"
            .into(),
        ..Guest::default()
    };
    // Where it ends depends on the compiler's frames; that there is one depth does not.
    let (mut passes, mut fails) = (1, 1 << 20);
    while fails - passes > 1 {
        let middle = (passes + fails) / 2;
        match deep(middle).run().outcome {
            Ok(_) => passes = middle,
            Err(error) => {
                assert_eq!(error, stack);
                fails = middle;
            }
        }
    }
    assert!((1_000..100_000).contains(&passes), "{passes}");
    for _ in 0..10 {
        deep(passes).decides();
        assert_eq!(deep(fails).fails(), stack);
    }
    all_is_well();
}

/// In processes of their own: wasmer keeps stacks for the next guest, whatever size that one asks.
#[test]
fn a_smaller_stack_is_a_smaller_depth() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let guest = Guest {
        decide: format!("(call $down (i32.const 4000)) {}", ok()),
        extra: "(func $down (param i32)
                  (if (local.get 0) (then (call $down (i32.sub (local.get 0) (i32.const 1))))))"
            .into(),
        ..Guest::default()
    };
    std::fs::write(path("deep.wasm"), guest.wasm()).unwrap();
    let replay = |stack_bytes: u32| {
        let config = format!("[limits]\nstack_bytes = {stack_bytes}\n");
        std::fs::write(path("config.toml"), config).unwrap();
        let (rule, config) = (path("deep.wasm"), path("config.toml"));
        let args = [
            "replay", "--json", "--rule", &rule, "--config", &config, "--type", "x", "-",
        ];
        let output = cli_with(&args, &[], b"{}");
        (output.code, output.json_lines()[0]["error"].clone())
    };
    assert_eq!(replay(262_144), (0, serde_json::Value::Null));
    assert_eq!(
        replay(65_536),
        (
            1,
            serde_json::json!({
                "kind": "stack",
                "message": "stack overflow: its calls need more than 65536 bytes of stack"
            })
        )
    );
}

/// What compiled code calls wasmer for runs on the guest's stack, traps among it. However little of
/// the stack is left for that, the guest alone fails, and no lock stays taken: another thread can trap.
#[test]
fn a_trap_at_the_very_end_of_the_stack_holds_nobody_up() {
    for last in [
        "unreachable",
        "(loop $l (br $l))",
        "(memory.fill (i32.const 65530) (i32.const 0) (i32.const 100))",
        "(memory.fill (i32.const 1024) (i32.const 0) (i32.const 1000))",
        "(drop (memory.grow (i32.const 1)))",
        "(drop (table.get 0 (i32.const 9)))",
        "(drop (table.grow 0 (ref.null func) (i32.const 9)))",
        "(table.fill 0 (i32.const 0) (ref.null func) (i32.const 9))",
        "(memory.init $late (i32.const 1024) (i32.const 0) (i32.const 4))",
        "(data.drop $late)",
        "(drop (i32.load (i32.const 0x7fffffff)))",
        "(call $log (i32.const 0) (i32.const 1024) (i32.const 9))",
    ] {
        let guest = |last: &str| Guest {
            imports: LOG.into(),
            decide: format!("(call $down (i32.load (local.get 0))) {}", ok()),
            extra: format!(
                "(table 1 funcref)
                 (data $late \"late\")
                 (func $down (param i32)
                   (if (local.get 0)
                     (then (call $down (i32.sub (local.get 0) (i32.const 1))))
                     (else {last})))"
            ),
            ..Guest::default()
        };
        // The depth comes with the input, in place of an event.
        let program = guest(last).program(&limits());
        let deep = |depth: u32| program.run(&depth.to_le_bytes(), &[]).outcome;
        let plain = guest("").program(&limits());
        let fits = |depth: u32| plain.run(&depth.to_le_bytes(), &[]).outcome.is_ok();
        let (mut passes, mut fails) = (1, 1 << 20);
        while fails - passes > 1 {
            let middle = (passes + fails) / 2;
            *(if fits(middle) {
                &mut passes
            } else {
                &mut fails
            }) = middle;
        }
        let high_up = deep(1);
        for depth in passes - 200..=fails {
            let outcome = deep(depth);
            let stack = matches!(outcome, Err(Error::Stack { .. }));
            assert!(stack || outcome == high_up, "{last}, {depth}: {outcome:?}");
            assert!(stack || depth < fails || matches!(outcome, Err(Error::Fuel { .. })));
        }
        let other = std::thread::spawn(move || program.run(&1_u32.to_le_bytes(), &[]).outcome);
        assert_eq!(other.join().unwrap(), high_up, "{last}");
    }
    all_is_well();
}
