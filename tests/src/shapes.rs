//! Rules whose shape means harm: they have as much work as can be where fuel is not looked at, on the way
//! up from deep calls above all.

use std::fmt::Write as _;

/// A rule of such a shape.
pub struct Shape {
    pub name: String,
    pub wat: String,
}

/// What stands in a straight line, each operator waiting for the one before.
const LINES: [(&str, &str); 5] = [
    ("adding", "(local.set $l (i64.add (local.get $l) (i64.const 3)))"),
    ("square roots", "(local.set $d (f64.sqrt (local.get $d)))"),
    (
        "loads from all over memory",
        "(local.set $i (i32.load (i32.and (i32.mul (local.get $i) (i32.const 0x9e3779b1)) (i32.const 0xfffffc))))
         (local.set $i (i32.add (local.get $i) (local.get $n)))",
    ),
    ("divisions", "(local.set $l (i64.div_u (i64.const -7) (i64.or (local.get $l) (i64.const 3))))"),
    ("stores", "(i32.store (i32.shl (local.get $n) (i32.const 8)) (local.get $i))"),
];

/// How a function leaves.
const LEAVES: [(&str, &str); 5] = [
    ("at its end", ""),
    ("by return", "(return)"),
    ("by br", "(br $all)"),
    ("by br_if", "(br_if $all (i32.const 1)) unreachable"),
    ("by br_table", "(br_table $all $all $all (i32.const 1))"),
];

/// All of them.
pub fn all() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (line, operators) in LINES {
        for length in [1, 3, 8, 30, 300, 3_000] {
            let body = operators.repeat(length);
            shapes.push(deep(&format!("{length} {line} on the way up"), &body));
        }
    }
    for (leaving, leaves) in LEAVES {
        for length in [4, 12, 400] {
            let body = format!("{}{leaves}", LINES[0].1.repeat(length));
            shapes.push(deep(
                &format!("{length} adding on the way up, left {leaving}"),
                &body,
            ));
        }
    }
    let adding = |length: usize| LINES[0].1.repeat(length);
    // On one way through a function there is nothing, on another there is much.
    for (name, body) in [
        (
            "in an if",
            format!("(if (local.get $n) (then {}))", adding(300)),
        ),
        (
            "in an else",
            format!(
                "(if (i32.eqz (local.get $n)) (then) (else {}))",
                adding(300)
            ),
        ),
        (
            "behind a block that is left",
            format!(
                "(block $b (br_if $b (local.get $n)) {}) {}",
                adding(9),
                adding(9)
            ),
        ),
        (
            "in blocks within blocks",
            format!(
                "{}{}{}",
                "(block ".repeat(40),
                adding(9),
                format!(") {}", adding(9)).repeat(40)
            ),
        ),
        (
            "after calls of nothing",
            format!("(call $nothing) {}", adding(9)).repeat(30),
        ),
        (
            "in a loop",
            format!(
                "(local.set $l (i64.const 9)) (loop $t {} (br_if $t (i64.gt_u (local.tee $l (i64.sub (local.get $l) (i64.const 31))) (i64.const 100))))",
                adding(9)
            ),
        ),
    ] {
        shapes.push(deep(&format!("work {name} on the way up"), &body));
    }
    for (name, body) in [
        (
            "memory.fill",
            "(memory.fill (i32.const 65536) (i32.const 1) (i32.const 16000000))",
        ),
        (
            "memory.copy",
            "(memory.copy (i32.const 65536) (i32.const 70000) (i32.const 16000000))",
        ),
        (
            "memory.copy, downwards",
            "(memory.copy (i32.const 70000) (i32.const 65536) (i32.const 16000000))",
        ),
        (
            "hooksieve.log",
            "(call $log (i32.const 0) (i32.const 0) (i32.const 60000))",
        ),
        ("memory.grow", "(drop (memory.grow (i32.const 1)))"),
    ] {
        shapes.push(deep(&format!("{name} on the way up"), body));
    }
    shapes.push(Shape {
        name: "a straight line of 30,000".to_owned(),
        wat: rule("", &adding(30_000)),
    });
    let mut turns = String::new();
    for n in 0..400 {
        let _ = write!(
            turns,
            "(block (br_table 0 0 (local.get $n))) {} (call $nothing) ",
            adding(n % 30)
        );
    }
    shapes.push(Shape {
        name: "short lines with calls and br_table between".to_owned(),
        wat: rule("", &format!("(loop $t {turns} (br $t))")),
    });
    // Two functions by turns, through a table.
    let indirect = "(func $down (param $n i32) (local $i i32) (local $l i64) (local $d f64) (block $all
           (if (local.get $n) (then (call_indirect $t (param i32) (i32.sub (local.get $n) (i32.const 1)) (i32.and (local.get $n) (i32.const 1)))))
           LINE))
         (func $other (param $n i32) (local $i i32) (local $l i64) (local $d f64) (block $all
           (if (local.get $n) (then (call_indirect $t (param i32) (i32.sub (local.get $n) (i32.const 1)) (i32.and (local.get $n) (i32.const 1)))))
           LINE))
         (table $t 2 funcref) (elem (table $t) (i32.const 0) func $down $other)";
    shapes.push(Shape {
        name: "two by turns, through a table".to_owned(),
        wat: rule(&indirect.replace("LINE", &adding(8)), DOWN),
    });
    shapes
}

const DOWN: &str = "(call $down (i32.const 100000)) unreachable";

/// A function that calls itself first, as deep as it is told, and then does this.
fn deep(name: &str, body: &str) -> Shape {
    let down = format!(
        "(func $down (param $n i32) (local $i i32) (local $l i64) (local $d f64) (block $all
           (if (local.get $n) (then (call $down (i32.sub (local.get $n) (i32.const 1)))))
           {body}))"
    );
    // As deep as there is room for: its input says how deep.
    let decide = "(call $down (i32.load (local.get $at)))";
    Shape {
        name: name.to_owned(),
        wat: rule(&down, decide),
    }
}

const OK: &[u8] = b"\x82\xa6reason\xa2ok\xa7actions\x90";

fn rule(functions: &str, decide: &str) -> String {
    let ok: String = OK.iter().map(|byte| format!("\\{byte:02x}")).collect();
    format!(
        "(module
           (import \"hooksieve\" \"log\" (func $log (param i32 i32 i32)))
           (memory (export \"memory\") 256)
           (data (i32.const 16) \"{ok}\")
           (func $nothing)
           {functions}
           (func (export \"hooksieve_abi_1\"))
           (func (export \"hooksieve_reserve\") (param i32) (result i32) (i32.const 256))
           (func (export \"hooksieve_decide\") (param $at i32) (param i32 i32 i32) (result i64)
             (local $n i32) (local $i i32) (local $l i64) (local $d f64)
             {decide}
             (i64.const {})))",
        16_u64 << 32 | OK.len() as u64
    )
}
