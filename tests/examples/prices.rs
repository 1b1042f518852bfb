//! What each kind of operator costs in fuel, beside the time that it takes here: the measurement behind
//! the prices in `engine/src/sandbox/prices.rs`.
//!
//! ```text
//! cargo run --release -p hooksieve-tests --example prices [-- WORD]
//! ```
//!
//! Every operator stands some hundred times in a row, each waiting for the one before where operators can, in a
//! loop; the same loop without them is taken off. Printed is what one of them takes with what feeds it (the
//! constants and `local.get`s), and the nanoseconds of a unit of fuel, the dearest first. With a word, only
//! rows that contain it.
#![allow(clippy::print_stdout, reason = "it is a table")]

use hooksieve::sandbox::{Instances, Kept, Limits, Program, Sandbox};
use std::time::Duration;

/// How often an operator stands in a row.
const ROW: u32 = 200;
/// How often each is measured; the quickest counts.
const ROUNDS: u32 = 7;
/// About how long one measurement takes.
const TAKES: Duration = Duration::from_millis(8);

struct Case {
    name: String,
    what: String,
    row: u32,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name: &str, what: String, row: u32| {
        cases.push(Case {
            name: name.to_owned(),
            what,
            row,
        });
    };
    let unary = |ty: &str, op: &str| {
        let local = local(ty);
        format!("(local.set {local} ({op} (local.get {local})))")
    };
    let binary = |ty: &str, op: &str, with: &str| {
        let local = local(ty);
        format!("(local.set {local} ({op} (local.get {local}) ({ty}.const {with})))")
    };
    for ty in ["i32", "i64"] {
        for op in ["add", "sub", "and", "xor", "shl", "shr_s", "rotl", "mul"] {
            add(
                &format!("{ty}.{op}"),
                binary(ty, &format!("{ty}.{op}"), "0x1234567"),
                ROW,
            );
        }
        for op in ["div_s", "div_u", "rem_s", "rem_u"] {
            let what = format!(
                "(local.set {0} ({ty}.or ({ty}.{op} ({ty}.const -7) (local.get {0})) ({ty}.const 3)))",
                local(ty)
            );
            add(&format!("{ty}.{op}"), what, ROW);
        }
        for op in ["clz", "ctz", "popcnt", "extend8_s"] {
            add(&format!("{ty}.{op}"), unary(ty, &format!("{ty}.{op}")), ROW);
        }
    }
    add("i32.eqz", unary("i32", "i32.eqz"), ROW);
    add("i32.lt_u", binary("i32", "i32.lt_u", "77"), ROW);
    add(
        "i64.lt_u, extended",
        "(local.set $l (i64.extend_i32_u (i64.lt_u (local.get $l) (i64.const 77))))".into(),
        ROW,
    );
    add(
        "wrap, extend",
        "(local.set $l (i64.extend_i32_s (i32.wrap_i64 (local.get $l))))".into(),
        ROW,
    );
    for ty in ["f32", "f64"] {
        for op in ["add", "sub", "mul", "div", "min", "max", "copysign"] {
            add(
                &format!("{ty}.{op}"),
                binary(ty, &format!("{ty}.{op}"), "1.0000001"),
                ROW,
            );
        }
        for op in ["sqrt", "ceil", "floor", "trunc", "nearest", "abs", "neg"] {
            add(&format!("{ty}.{op}"), unary(ty, &format!("{ty}.{op}")), ROW);
        }
        add(
            &format!("{ty}.lt, convert"),
            format!(
                "(local.set {0} ({ty}.convert_i32_u ({ty}.lt (local.get {0}) ({ty}.const 2))))",
                local(ty)
            ),
            ROW,
        );
        for int in ["i32", "i64"] {
            for sign in ["s", "u"] {
                for kind in ["trunc", "trunc_sat"] {
                    let what = format!(
                        "(local.set {0} ({ty}.convert_{int}_{sign} ({int}.{kind}_{ty}_{sign} (local.get {0}))))",
                        local(ty)
                    );
                    add(&format!("{int}.{kind}_{ty}_{sign}, convert"), what, ROW);
                }
            }
        }
    }
    add(
        "promote, demote",
        "(local.set $d (f64.promote_f32 (f32.demote_f64 (local.get $d))))".into(),
        ROW,
    );
    add(
        "reinterpret, twice",
        "(local.set $l (i64.reinterpret_f64 (f64.reinterpret_i64 (local.get $l))))".into(),
        ROW,
    );
    for op in ["i32.load", "i32.load8_u", "i32.load16_s"] {
        add(
            &format!("{op}, dependent"),
            format!("(local.set $i ({op} (local.get $i)))"),
            ROW,
        );
        add(
            &format!("{op}, apart"),
            format!("(drop ({op} (local.get $i)))"),
            ROW,
        );
    }
    add(
        "i64.load, wrapped, dependent",
        "(local.set $i (i32.wrap_i64 (i64.load (local.get $i))))".into(),
        ROW,
    );
    add(
        "i32.store",
        "(i32.store (local.get $i) (i32.const 0))".into(),
        ROW,
    );
    add(
        "i64.store8",
        "(i64.store8 (local.get $i) (i64.const 0))".into(),
        ROW,
    );
    add(
        "store, load",
        "(i32.store (local.get $i) (local.get $i)) (local.set $i (i32.load (local.get $i)))".into(),
        ROW,
    );
    add(
        "global.get, add, global.set",
        "(global.set $g (i32.add (global.get $g) (i32.const 3)))".into(),
        ROW,
    );
    add(
        "local.tee, drop",
        "(drop (local.tee $i (i32.const 5)))".into(),
        ROW,
    );
    add("nop", "(nop)".into(), ROW);
    add(
        "select",
        "(local.set $l (select (local.get $l) (i64.const 9) (i32.wrap_i64 (local.get $l))))".into(),
        ROW,
    );
    add("if, else", "(if (local.get $i) (then (local.set $i (i32.const 0))) (else (local.set $i (i32.const 1))))".into(), ROW);
    add(
        "if, foretold",
        "(if (local.get $z) (then (local.set $i (i32.const 0))))".into(),
        ROW,
    );
    add(
        "block, br_if",
        "(block (br_if 0 (local.get $z)))".into(),
        ROW,
    );
    add("block, br", "(block (br 0))".into(), ROW);
    add("if, guessed", "(local.set $l (i64.add (i64.mul (local.get $l) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
         (if (i64.lt_s (local.get $l) (i64.const 0)) (then (global.set $g (i32.const 1))))".into(), ROW);
    add("br_table, guessed", "(local.set $l (i64.add (i64.mul (local.get $l) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
         (block (block (block (block (br_table 0 1 2 3 (i32.wrap_i64 (i64.shr_u (local.get $l) (i64.const 62))))) (global.set $g (i32.const 1))) (global.set $g (i32.const 2))) (global.set $g (i32.const 3)))".into(), 50);
    add(
        "br_table, foretold",
        "(block (block (block (br_table 0 1 2 (local.get $z)))))".into(),
        50,
    );
    add("loop", "(loop)".into(), ROW);
    add("loop, turning", "(local.set $i (i32.const 1000)) (loop $t (br_if $t (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))".into(), 1);
    add("call", "(call $empty)".into(), ROW);
    add(
        "call, 4 in, 1 out",
        "(local.set $i (call $four (local.get $i) (local.get $i) (local.get $i) (local.get $i)))"
            .into(),
        ROW,
    );
    add("call, 20 deep", "(call $deep (i32.const 20))".into(), 10);
    add(
        "call_indirect",
        "(call_indirect $t (i32.const 0))".into(),
        ROW,
    );
    add("call_indirect, guessed", "(local.set $l (i64.add (i64.mul (local.get $l) (i64.const 6364136223846793005)) (i64.const 1442695040888963407)))
         (call_indirect $t (i32.wrap_i64 (i64.shr_u (local.get $l) (i64.const 62))))".into(), ROW);
    add(
        "hooksieve.log, cut off",
        "(call $log (i32.const 0) (i32.const 0) (i32.const 1))".into(),
        20,
    );
    add(
        "memory.size",
        "(local.set $i (i32.and (memory.size) (local.get $z)))".into(),
        ROW,
    );
    add(
        "memory.grow 0",
        "(drop (memory.grow (i32.const 0)))".into(),
        20,
    );
    add(
        "memory.grow, refused",
        "(drop (memory.grow (i32.const 30000)))".into(),
        20,
    );
    for bytes in [0, 8, 64, 4_096, 100_000, 1 << 22] {
        let row = if bytes > 10_000 { 2 } else { 20 };
        add(
            &format!("memory.fill {bytes}"),
            format!("(memory.fill (local.get $z) (i32.const 0) (i32.const {bytes}))"),
            row,
        );
        add(
            &format!("memory.copy {bytes}"),
            format!(
                "(memory.copy (i32.const {}) (local.get $z) (i32.const {bytes}))",
                1 << 22
            ),
            row,
        );
        if bytes <= 4_096 {
            add(
                &format!("memory.init {bytes}"),
                format!("(memory.init $data (local.get $z) (i32.const 0) (i32.const {bytes}))"),
                row,
            );
        }
    }
    add("data.drop", "(data.drop $late)".into(), 20);
    add("elem.drop", "(elem.drop $dropped)".into(), 20);
    add(
        "table.get",
        "(drop (table.get $t (local.get $z)))".into(),
        20,
    );
    add(
        "table.set",
        "(table.set $s (local.get $z) (ref.null func))".into(),
        20,
    );
    add(
        "table.size",
        "(local.set $i (i32.and (table.size $t) (local.get $z)))".into(),
        ROW,
    );
    add(
        "table.grow 0",
        "(drop (table.grow $s (ref.null func) (i32.const 0)))".into(),
        20,
    );
    add("ref.func", "(drop (ref.func $empty))".into(), 20);
    add(
        "ref.null, ref.is_null",
        "(local.set $i (ref.is_null (ref.null func)))".into(),
        ROW,
    );
    for count in [0, 100, 5_000] {
        add(
            &format!("table.fill {count}"),
            format!("(table.fill $s (local.get $z) (ref.null func) (i32.const {count}))"),
            10,
        );
        add(
            &format!("table.copy {count}"),
            format!("(table.copy $s $s (i32.const 0) (local.get $z) (i32.const {count}))"),
            10,
        );
        add(
            &format!("table.copy {count}, over"),
            format!("(table.copy $s $s (i32.const 1) (local.get $z) (i32.const {count}))"),
            10,
        );
        if count <= 100 {
            add(
                &format!("table.init {count}"),
                format!(
                    "(table.init $s $elements (local.get $z) (i32.const 0) (i32.const {count}))"
                ),
                10,
            );
        }
    }
    cases
}

fn local(ty: &str) -> &'static str {
    match ty {
        "i32" => "$i",
        "i64" => "$l",
        "f32" => "$f",
        _ => "$d",
    }
}

const OK: &[u8] = b"\x82\xa6reason\xa2ok\xa7actions\x90";

fn wat(row: &str, turns: u64) -> String {
    let ok: String = OK.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let place = 16_000_000_u64 << 32 | OK.len() as u64;
    format!(
        "(module
           (import \"hooksieve\" \"log\" (func $log (param i32 i32 i32)))
           (memory (export \"memory\") 250)
           (data (i32.const 16000000) \"{ok}\")
           (data $data \"{}\") (data $late \"late\")
           (table $t 4 funcref) (elem (table $t) (i32.const 0) func $empty $empty2 $empty3 $empty4)
           (table $s 6000 funcref) (elem $elements func {}) (elem $dropped func $empty)
           (global $g (mut i32) (i32.const 0))
           (func $empty) (func $empty2 (global.set $g (i32.const 1))) (func $empty3 (global.set $g (i32.const 2)))
           (func $empty4 (global.set $g (i32.const 3)))
           (func $four (param i32 i32 i32 i32) (result i32) (i32.and (local.get 0) (local.get 3)))
           (func $deep (param i32)
             (if (local.get 0) (then (call $deep (i32.sub (local.get 0) (i32.const 1))))))
           (func (export \"hooksieve_abi_1\"))
           (func (export \"hooksieve_reserve\") (param i32) (result i32) (i32.const 15000000))
           (func (export \"hooksieve_decide\") (param i32 i32 i32 i32) (result i64)
             (local $n i64) (local $i i32) (local $z i32) (local $l i64) (local $f f32) (local $d f64)
             (local.set $n (i64.const {turns})) (local.set $f (f32.const 1.5)) (local.set $d (f64.const 1.5))
             (local.set $l (i64.const 3)) (local.set $i (i32.const 3))
             (loop $turn {row}
               (br_if $turn (i32.eqz (i64.eqz (local.tee $n (i64.sub (local.get $n) (i64.const 1)))))))
             (i64.const {place})))",
        "x".repeat(4_096),
        "$empty ".repeat(100),
    )
}

/// Nanoseconds and fuel of one turn.
fn measure(row: &str) -> (f64, f64) {
    let limits = Limits {
        fuel: 1 << 60,
        wall_clock_ms: 600_000,
        ..Limits::default()
    };
    let sandbox = Sandbox::new(limits.clone());
    let time = |turns: u64, rounds: u32| {
        let wasm = wat::parse_str(wat(row, turns)).expect("it is valid");
        let module = sandbox.compile(wasm).expect("it is a rule");
        let program = Program::new(module, vec![0x80], limits.clone()).expect("it starts");
        let mut instances = Instances::new(Kept {
            count_max: 1,
            bytes_max: 1 << 30,
        });
        let mut least = Duration::MAX;
        let mut fuel = 0;
        for _ in 0..rounds {
            let run = instances.run(&program, &[0xc0], &[]);
            run.outcome.expect("it decides");
            least = least.min(run.duration);
            fuel = run.fuel;
        }
        (least.as_secs_f64() * 1e9, fuel)
    };
    // What the event itself takes is in both.
    let (few, few_fuel) = time(10, 3);
    let each = ((time(1_000, 1).0 - few) / 990.0).max(1.0);
    let turns = ((TAKES.as_secs_f64() * 1e9 / each) as u64).clamp(100, 10_000_000);
    let (many, many_fuel) = time(turns, ROUNDS);
    let per = |many: f64, few: f64| (many - few) / (turns - 10) as f64;
    (per(many, few), per(many_fuel as f64, few_fuel as f64))
}

/// What a new instance has many of: its name, how many, and the module's text for so many.
type Start = (&'static str, u32, fn(u32) -> String);

fn starts() -> Vec<Start> {
    fn times(n: u32, text: impl Fn(u32) -> String) -> String {
        (0..n).map(text).collect()
    }
    vec![
        ("import", 60, |n| {
            times(n, |_| {
                "(import \"hooksieve\" \"log\" (func (param i32 i32 i32)))".into()
            })
        }),
        ("export", 900, |n| {
            times(n, |n| format!("(export \"e{n}\" (func $empty))"))
        }),
        ("export of a function each", 900, |n| {
            times(n, |n| format!("(func (export \"e{n}\"))"))
        }),
        ("export of a global", 900, |n| {
            times(n, |n| format!("(export \"e{n}\" (global $g))"))
        }),
        ("global", 900, |n| {
            times(n, |n| format!("(global i64 (i64.const {n}))"))
        }),
        // More would be more machine code than so small a module may become.
        ("function", 600, |n| times(n, |_| "(func)".into())),
        ("type", 8_000, |n| {
            times(n, |n| {
                format!(
                    "(type (func (param {})))",
                    (0..13)
                        .map(|bit| if n >> bit & 1 == 1 { "i64 " } else { "i32 " })
                        .collect::<String>()
                )
            })
        }),
        ("data segment", 9_000, |n| {
            times(n, |_| "(data (i32.const 64) \"x\")".into())
        }),
        ("passive data segment", 9_000, |n| {
            times(n, |_| "(data \"x\")".into())
        }),
        ("element segment", 9_000, |n| {
            format!(
                "(table $m 10 funcref) {}",
                times(n, |_| "(elem (table $m) (i32.const 0) func $empty)".into())
            )
        }),
        ("passive element segment", 9_000, |n| {
            times(n, |_| "(elem func $empty)".into())
        }),
        ("element in a segment", 9_000, |n| {
            format!(
                "(table $m 10000 funcref) (elem (table $m) (i32.const 0) func {})",
                "$empty ".repeat(n as usize)
            )
        }),
        ("element in a passive segment", 90_000, |n| {
            format!("(elem func {})", "$empty ".repeat(n as usize))
        }),
        ("element of a table", 9_000, |n| {
            format!("(table {n} funcref)")
        }),
        ("table", 9, |n| times(n, |_| "(table 1 funcref)".into())),
        ("byte of data", 1_000_000, |n| {
            format!("(data (i32.const 64) \"{}\")", "x".repeat(n as usize))
        }),
        ("byte of code", 100_000, |n| {
            format!(
                "(func (param i64) (result i64) {} (local.get 0))",
                "(local.set 0 (i64.mul (local.get 0) (local.get 0))) ".repeat(n as usize / 7)
            )
        }),
        ("page of memory, touched", 200, |n| {
            format!(
                "(func $touch (local i32) (local.set 0 (i32.const {n})) (loop $t (i32.store8 (i32.shl (local.get 0) (i32.const 16)) (i32.const 1)) (br_if $t (local.tee 0 (i32.sub (local.get 0) (i32.const 1))))))"
            )
        }),
    ]
}

/// Nanoseconds and fuel of an event that starts an instance.
fn start(extra: &str) -> (f64, f64) {
    let limits = Limits {
        fuel: 1 << 60,
        wall_clock_ms: 600_000,
        ..Limits::default()
    };
    let ok: String = OK.iter().map(|byte| format!("\\{byte:02x}")).collect();
    // Imports come first.
    let (imports, extra) = match extra.starts_with("(import") {
        true => (extra, ""),
        false => ("", extra),
    };
    let wat = format!(
        "(module {imports} (memory (export \"memory\") 250) (data (i32.const 16) \"{ok}\") (data $late \"late\")
           (global $g i32 (i32.const 0)) (func $empty) {extra}
           (func (export \"hooksieve_abi_1\"))
           (func (export \"hooksieve_reserve\") (param i32) (result i32) (i32.const 1024))
           (func (export \"hooksieve_decide\") (param i32 i32 i32 i32) (result i64)
             (data.drop $late) (i64.const {})))",
        16_u64 << 32 | OK.len() as u64
    );
    let module = Sandbox::new(limits.clone()).compile(wat::parse_str(wat).expect("it is valid"));
    let program = Program::new(module.expect("it is a rule"), vec![0x80], limits);
    let program = program.expect("it starts");
    let mut least = Duration::MAX;
    let mut fuel = 0;
    for _ in 0..300 {
        let run = program.run(&[0xc0], &[]);
        run.outcome.expect("it decides");
        least = least.min(run.duration);
        fuel = run.fuel;
    }
    (least.as_secs_f64() * 1e9, fuel as f64)
}

fn main() {
    let word = std::env::args().nth(1).unwrap_or_default();
    let (empty_ns, empty_fuel) = measure("");
    let mut rows: Vec<_> = cases()
        .into_iter()
        .filter(|case| case.name.contains(&word))
        .map(|case| {
            let (ns, fuel) = measure(&case.what.repeat(case.row as usize));
            let each = |turn: f64, empty: f64| (turn - empty).max(0.0) / f64::from(case.row);
            (case.name, each(ns, empty_ns), each(fuel, empty_fuel))
        })
        .collect();
    rows.sort_by(|a, b| (b.1 / b.2).total_cmp(&(a.1 / a.2)));
    let (none_ns, none_fuel) = start("");
    rows.push(("instance".to_owned(), none_ns, none_fuel));
    for (name, count, text) in starts() {
        let name = format!("instance, each {name}");
        if name.contains(&word) {
            let ((ns, fuel), n) = (start(&text(count)), f64::from(count));
            rows.push((name, (ns - none_ns) / n, (fuel - none_fuel) / n));
        }
    }
    println!(
        "{:<36} {:>9} {:>9} {:>9}",
        "what", "ns", "fuel", "ns a unit"
    );
    for (name, ns, fuel) in rows {
        println!("{name:<36} {ns:>9.2} {fuel:>9.1} {:>9.3}", ns / fuel);
    }
}
