//! `examples/rules/forward.wat`, a rule made without our SDK: what `guest-sdk/ABI.md` says is enough
//! to write one, and what it says of fuel is what the engine charges.

use hooksieve::sandbox::{Error, Limits, Program, Run, Sandbox};
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Decision, EventHead};
use hooksieve_sdk::{notify, wire};

fn compile(wat: &str) -> hooksieve::sandbox::Module {
    let wasm = wat::parse_str(wat).unwrap();
    let sandbox = Sandbox::new(Limits::default());
    sandbox.compile(wasm.as_slice()).unwrap()
}

fn program(wat: &str) -> Program {
    Program::new(compile(wat), vec![0x80], Limits::default()).unwrap()
}

fn run(program: &Program, kind: &str, json: &str) -> Run {
    let data = Data::from_json(json.as_bytes()).unwrap();
    let (event, index) = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "github",
        kind,
        subject: None,
        time: "2026-03-01T09:30:00Z",
        headers: &[],
    }
    .encode(&data);
    program.run(&event, &index)
}

const FORWARD: &str = include_str!("../../examples/rules/forward.wat");

#[test]
fn the_rule_written_by_hand_drops_and_forwards() {
    let program = program(FORWARD);
    let ping = run(&program, "ping", r#"{"zen": "Keep it logically awesome."}"#);
    assert_eq!(ping.outcome, Ok(Decision::drop("a ping")));
    assert_eq!(ping.log, ["GitHub says hello"]);

    // Types of each length that a string's header can have here, and a body that fills more memory
    // than the module starts with.
    let long = "x".repeat(128);
    let body = format!(r#"{{"body": "{}"}}"#, "y".repeat(200_000));
    for (kind, json) in [
        ("issues.opened", "{}"),
        ("pong", "[]"),
        (long.as_str(), "null"),
        ("push", body.as_str()),
    ] {
        let forwarded = run(&program, kind, json);
        let expected = notify("mail").title(kind).because("forwarded");
        assert_eq!(forwarded.outcome, Ok(expected), "{kind}");
        assert!(forwarded.log.is_empty());
    }
}

#[test]
fn a_configuration_needs_an_init() {
    let config = Data::from_json(br#"{"channel": "mail"}"#).unwrap();
    let error =
        Program::new(compile(FORWARD), config.bytes().to_vec(), Limits::default()).unwrap_err();
    assert_eq!(error, Error::NoInit);
}

/// A rule whose `decide` does `body` and then drops the event.
fn doing(body: &str) -> String {
    format!(
        r#"(module
            (import "hooksieve" "log" (func $log (param i32 i32 i32)))
            (memory (export "memory") 4)
            (table $table 100 funcref)
            (data (i32.const 0) "\82\a6reason\a0\a7actions\90")
            (func (export "hooksieve_abi_1"))
            (func (export "hooksieve_reserve") (param i32) (result i32) (i32.const 1024))
            (func (export "hooksieve_decide") (param i32 i32 i32 i32) (result i64)
                {body}
                (i64.const 18)))"#
    )
}

#[track_caller]
fn fuel(body: &str) -> u64 {
    let run = run(&program(&doing(body)), "any", "{}");
    assert_eq!(run.outcome, Ok(Decision::default()), "{body}");
    run.fuel
}

/// The table in ABI.md, "Fuel".
#[test]
fn fuel_is_charged_as_the_contract_says() {
    let base = fuel("");
    let (event, index) = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "github",
        kind: "any",
        subject: None,
        time: "2026-03-01T09:30:00Z",
        headers: &[],
    }
    .encode(&Data::from_json(b"{}").unwrap());
    let input = event.len().next_multiple_of(4) + index.len();
    // `i32.const`, `i64.const` and the two `end`s.
    assert_eq!(base, input.div_ceil(16) as u64 + 4);

    let more = |body: &str| fuel(body) - base;
    assert_eq!(more("nop"), 1);
    assert_eq!(more("(drop (i32.const 1))"), 2);
    assert_eq!(more("(drop (memory.size))"), 36);
    assert_eq!(more("(drop (f64.sqrt (f64.const 2)))"), 18);
    assert_eq!(more("(drop (i64.load (i32.const 8)))"), 5);
    // Three operands, 50, and the length.
    let fill = |bytes: u32| {
        more(&format!(
            "(memory.fill (i32.const 2048) (i32.const 0) (i32.const {bytes}))"
        ))
    };
    assert_eq!(fill(0), 53);
    assert_eq!(fill(7), 53);
    assert_eq!(fill(8), 54);
    assert_eq!(fill(200_000), 53 + 25_000);
    let copy = "(memory.copy (i32.const 2048) (i32.const 4096) (i32.const 800))";
    assert_eq!(more(copy), 103 + 100);
    // Growth is charged by the page, and a growth that no limit could grant is not.
    assert_eq!(more("(drop (memory.grow (i32.const 0)))"), 102);
    assert_eq!(more("(drop (memory.grow (i32.const 3)))"), 102 + 3 * 16_384);
    assert_eq!(more("(drop (memory.grow (i32.const -1)))"), 102);
    let table = "(table.fill $table (i32.const 0) (ref.null func) (i32.const 100))";
    // Such a module cannot be put back: its new instance is paid for by its elements, its table, segments, functions,
    // import, exports and size.
    let bytes = wat::parse_str(doing(table)).unwrap().len() as u64;
    let of_each = [100 * 2, 800, 500, 4 * 50, 1_800, 4 * 1_800];
    let start = 20_000 + of_each.iter().sum::<u64>() + bytes.div_ceil(8);
    assert_eq!(more(table), 203 + 100 * 14 + start);
    // Memory beyond the first 4 pages is paid for by whoever begins with it.
    let larger = doing("").replace("(export \"memory\") 4)", "(export \"memory\") 6)");
    let run = run(&program(&larger), "any", "{}");
    assert_eq!(run.fuel - base, 2 * 8_192);
    // A line: its three operands, the call, 450, and its bytes.
    assert_eq!(
        more("(call $log (i32.const 0) (i32.const 0) (i32.const 50))"),
        3 + 12 + 450 + 50
    );
}

#[test]
fn a_growth_that_was_refused_is_named_by_what_fails_after_it() {
    let grown = "(if (i32.eq (memory.grow (i32.const 300)) (i32.const -1)) (then (unreachable)))";
    let run = run(&program(&doing(grown)), "any", "{}");
    assert!(
        matches!(
            run.outcome,
            Err(Error::Memory {
                requested_pages: 300,
                limit_pages: 256,
                ..
            })
        ),
        "{:?}",
        run.outcome
    );
    // Alone it is no failure.
    fuel("(drop (memory.grow (i32.const 300)))");
}

#[test]
fn codes_are_negative_and_small() {
    let code = |code: i64| {
        let wat = doing(&format!("(return (i64.const {code}))"));
        run(&program(&wat), "any", "{}").outcome
    };
    assert_eq!(code(wire::Code::BadInput as i64), Err(Error::BadInput));
    assert_eq!(
        code(wire::Code::OutOfMemory as i64),
        Err(Error::OutOfMemory)
    );
    assert!(matches!(code(-2), Err(Error::Config { .. })));
    assert_eq!(code(-4), Err(Error::UnknownCode { code: -4 }));
}
