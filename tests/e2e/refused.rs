//! What is refused before it is compiled: each refusal names what is wrong, and each limit holds from
//! both sides.

use crate::guest::{Guest, LOG, all_is_well, doing, event, limits, wasm};
use hooksieve::sandbox::{Error, Limits, Program, Refused, Sandbox};
use hooksieve_tests::PROBE;

#[track_caller]
fn refused(wasm: &[u8]) -> Refused {
    match Sandbox::new(limits()).check(wasm) {
        Err(refused) => {
            assert!(!refused.fix().is_empty());
            refused
        }
        Ok(_) => panic!("it was accepted"),
    }
}

#[track_caller]
fn accepted(wasm: &[u8], limits: &Limits) {
    if let Err(refused) = Sandbox::new(limits.clone()).compile(wasm) {
        panic!("{refused}");
    }
}

#[test]
fn files_that_are_no_module_are_told_apart() {
    assert_eq!(refused(b""), Refused::NotWasm);
    assert_eq!(refused(b"#!/bin/sh\n"), Refused::NotWasm);
    assert_eq!(refused(b"\0asm\x02\0\0\0"), Refused::NotWasm);
    assert_eq!(refused(&wasm("(component)")), Refused::Component);
    let good = Guest::default().wasm();
    accepted(&good, &limits());
    // Cut off anywhere: refused, but where whole sections are left and none of them is missed.
    let sandbox = Sandbox::new(limits());
    let mut whole = 0;
    for end in 0..good.len() {
        match (sandbox.check(&good[..end]), end) {
            (Err(Refused::NotWasm), ..8)
            | (Err(Refused::Invalid { .. } | Refused::MissingExport { .. }), 8..) => {}
            (Ok(_), 8..) => whole += 1,
            (other, _) => panic!("{end}: {other:?}"),
        }
    }
    assert_eq!(whole, 2, "before the data, and before the names");
    assert!(matches!(
        refused(&good[..good.len() - 1]),
        Refused::Invalid { .. }
    ));
    // Every byte changed, one at a time: never a panic, and what is accepted runs into an end.
    let limits = Limits {
        fuel: 100_000,
        ..limits()
    };
    let sandbox = Sandbox::new(limits.clone());
    let (event, index) = event();
    let mut ran = 0;
    for at in 8..good.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut damaged = good.clone();
            damaged[at] ^= change;
            let Ok(module) = sandbox.compile(damaged) else {
                continue;
            };
            if let Ok(program) = Program::new(module, vec![0x80], limits.clone()) {
                let _ = program.run(&event, &index);
                ran += 1;
            }
        }
    }
    assert!(ran > 10, "{ran}");
    all_is_well();
}

#[test]
fn a_module_is_only_so_large() {
    let limit = limits().module_bytes;
    let padded = |bytes: usize| {
        let mut wasm = Guest::default().wasm();
        // A custom section: id 0, its length in LEB128 of three or four bytes, a name of none.
        let rest = bytes - wasm.len() - 1 - 4;
        wasm.push(0);
        let mut left = rest as u32;
        for n in 0..4 {
            let more = if n < 3 { 0x80 } else { 0 };
            wasm.push((left & 0x7f) as u8 | more);
            left >>= 7;
        }
        wasm.push(0);
        wasm.resize(bytes, 7);
        wasm
    };
    accepted(&padded(limit), &limits());
    assert_eq!(
        refused(&padded(limit + 1)),
        Refused::Size {
            bytes: limit + 1,
            limit
        }
    );
    all_is_well();
}

#[test]
fn features_that_are_off_are_named() {
    for (feature, wat) in [
        (
            "threads",
            Guest {
                memory: "(memory (export \"memory\") 1 1 shared)".into(),
                ..Guest::default()
            }
            .wat(),
        ),
        (
            "threads",
            doing("(drop (i32.atomic.load (i32.const 0)))").wat(),
        ),
        ("SIMD", doing("(drop (i8x16.splat (i32.const 0)))").wat()),
        (
            "relaxed SIMD",
            doing("(drop (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0)))")
                .wat(),
        ),
        (
            "exceptions",
            Guest {
                extra: "(tag $e)".into(),
                ..doing("(throw $e)")
            }
            .wat(),
        ),
        ("exceptions (legacy)", doing("try catch_all end").wat()),
        (
            "memory64",
            Guest {
                memory: "(memory (export \"memory\") i64 1)".into(),
                decide: "unreachable".into(),
                ..Guest::default()
            }
            .wat()
            .replace("(data (i32.const 16)", "(data (i64.const 16)"),
        ),
        (
            "multi-memory",
            Guest {
                extra: "(memory 1)".into(),
                ..Guest::default()
            }
            .wat(),
        ),
        (
            "tail calls",
            Guest {
                extra: "(func $f (result i64) (return_call $f))".into(),
                ..Guest::default()
            }
            .wat(),
        ),
        (
            "extended constant expressions",
            Guest {
                extra: "(global i32 (i32.add (i32.const 1) (i32.const 2)))".into(),
                ..Guest::default()
            }
            .wat(),
        ),
        (
            "typed function references",
            Guest {
                extra: "(type $v (func)) (func (param (ref $v)) (call_ref $v (local.get 0)))"
                    .into(),
                ..Guest::default()
            }
            .wat(),
        ),
        (
            "GC",
            Guest {
                extra: "(type (struct (field i32)))".into(),
                ..Guest::default()
            }
            .wat(),
        ),
        ("GC", doing("(drop (ref.i31 (i32.const 1)))").wat()),
        (
            "wide arithmetic",
            doing("(i64.add128 (i64.const 1) (i64.const 1) (i64.const 1) (i64.const 1)) drop drop")
                .wat(),
        ),
        (
            "custom page sizes",
            Guest {
                memory: "(memory (export \"memory\") 65536 (pagesize 1))".into(),
                ..Guest::default()
            }
            .wat(),
        ),
    ] {
        assert_eq!(refused(&wasm(&wat)), Refused::Feature { feature }, "{wat}");
    }
    // What rustc emits is on.
    for on in [
        "(drop (i32.extend8_s (i32.const 1)))",
        "(drop (i32.trunc_sat_f64_s (f64.const nan)))",
        "(memory.copy (i32.const 0) (i32.const 0) (i32.const 0))",
        "(drop (ref.is_null (ref.null extern)))",
        "(block (result i32 i32) (i32.const 1) (i32.const 2)) drop drop",
    ] {
        doing(on).decides();
    }
    let global = Guest {
        extra: "(global (export \"g\") (mut i32) (i32.const 1))".into(),
        ..Guest::default()
    };
    global.decides();
    all_is_well();
}

#[test]
fn the_contract_is_held_export_by_export() {
    let with = |from: &str, to: &str| {
        let wat = Guest {
            init: Some("(i64.const 0)".into()),
            ..Guest::default()
        }
        .wat();
        assert!(wat.contains(from), "{from}");
        refused(&wasm(&wat.replacen(from, to, 1)))
    };
    for (name, misspelt) in [
        ("hooksieve_reserve", "hooksieve_reserv"),
        ("hooksieve_decide", "hooksieve_decides"),
        ("hooksieve_decide", "hooksieve-decide"),
        ("memory", "memroy"),
    ] {
        assert_eq!(
            with(&format!("\"{name}\""), &format!("\"{misspelt}\"")),
            Refused::MissingExport {
                name,
                nearest: Some(misspelt.into())
            }
        );
    }
    assert_eq!(
        with("(export \"hooksieve_decide\")", ""),
        Refused::MissingExport {
            name: "hooksieve_decide",
            nearest: None
        }
    );
    // The optional one, misspelt, is not passed over.
    assert_eq!(
        with("hooksieve_init", "hooksieve_inti"),
        Refused::UnknownExport {
            name: "hooksieve_inti".into()
        }
    );
    for name in ["hooksieve_decide_2", "hooksieve"] {
        let guest = Guest {
            extra: format!("(func (export \"{name}\"))"),
            ..Guest::default()
        };
        assert_eq!(
            refused(&guest.wasm()),
            Refused::UnknownExport { name: name.into() }
        );
    }
    Guest {
        extra: "(func (export \"mine\"))".into(),
        ..Guest::default()
    }
    .decides();
    for (from, to, name, found) in [
        (
            "(func (export \"hooksieve_abi_1\"))",
            "(func (export \"hooksieve_abi_1\") (param f32))",
            "hooksieve_abi_1",
            "a function (f32)",
        ),
        (
            "(param i32) (result i32) (i32.const 256)",
            "(param i64) (result i32) (i32.const 256)",
            "hooksieve_reserve",
            "a function (i64) -> i32",
        ),
        (
            "(param i32 i32) (result i64)",
            "(param i32) (result i64)",
            "hooksieve_init",
            "a function (i32) -> i64",
        ),
        (
            "(param i32 i32 i32 i32) (result i64)",
            "(param i32 i32 i32) (result i64)",
            "hooksieve_decide",
            "a function (i32, i32, i32) -> i64",
        ),
        (
            "(memory (export \"memory\") 1)",
            "(memory 1) (func (export \"memory\"))",
            "memory",
            "a function",
        ),
        (
            "(func (export \"hooksieve_abi_1\"))",
            "(global (export \"hooksieve_abi_1\") i32 (i32.const 1))",
            "hooksieve_abi_1",
            "a global",
        ),
    ] {
        match with(from, to) {
            Refused::ExportType {
                name: at,
                found: is,
                ..
            } => assert_eq!((at.as_str(), is.as_str()), (name, found)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        with("hooksieve_abi_1", "hooksieve_abi_2"),
        Refused::Abi {
            found: "2".into(),
            known: 1
        }
    );
    let start = Guest {
        extra: "(func $s) (start $s)".into(),
        ..Guest::default()
    };
    assert_eq!(refused(&start.wasm()), Refused::Start);
    all_is_well();
}

#[test]
fn one_import_and_no_other() {
    let importing = |imports: &str| {
        refused(
            &Guest {
                imports: imports.into(),
                ..Guest::default()
            }
            .wasm(),
        )
    };
    for (module, name) in [
        ("env", "abort"),
        ("wasi_snapshot_preview1", "fd_write"),
        ("hooksieve", "logs"),
        ("hooksieve", "clock"),
        ("", ""),
    ] {
        assert_eq!(
            importing(&format!("(import \"{module}\" \"{name}\" (func))")),
            Refused::UnknownImport {
                module: module.into(),
                name: name.into(),
                allowed: "`hooksieve.log` alone"
            }
        );
    }
    for (import, found) in [
        ("(func)", "a function ()"),
        ("(func (param i32 i32))", "a function (i32, i32)"),
        (
            "(func (param i32 i32 i32) (result i32))",
            "a function (i32, i32, i32) -> i32",
        ),
        ("(global i32)", "not a function"),
        ("(table 1 funcref)", "not a function"),
    ] {
        match importing(&format!("(import \"hooksieve\" \"log\" {import})")) {
            Refused::ImportType { found: is, .. } => assert_eq!(is, found),
            other => panic!("{other:?}"),
        }
    }
    let memory = Guest {
        imports: "(import \"env\" \"memory\" (memory 1))".into(),
        memory: "(export \"memory\" (memory 0))".into(),
        ..Guest::default()
    };
    assert_eq!(
        refused(&memory.wasm()),
        Refused::UnknownImport {
            module: "env".into(),
            name: "memory".into(),
            allowed: "`hooksieve.log` alone"
        }
    );
    // Imported twice is imported.
    Guest {
        imports: format!("{LOG} (import \"hooksieve\" \"log\" (func (param i32 i32 i32)))"),
        ..Guest::default()
    }
    .decides();
    all_is_well();
}

#[test]
fn what_a_module_declares_is_limited() {
    let memory = |pages: u32| Guest {
        memory: format!("(memory (export \"memory\") {pages})"),
        ..Guest::default()
    };
    memory(256).decides();
    assert_eq!(
        refused(&memory(257).wasm()),
        Refused::MemoryStart {
            pages: 257,
            limit: 256
        }
    );
    assert_eq!(
        refused(&memory(65_536).wasm()),
        Refused::MemoryStart {
            pages: 65_536,
            limit: 256
        }
    );
    // None at all holds no answer.
    let none = Guest {
        memory: "(memory (export \"memory\") 0)".into(),
        ..Guest::default()
    };
    let wat = none.wat();
    let none = wat.split("(data").next().unwrap().to_owned() + ")";
    let module = Sandbox::new(limits()).compile(wasm(&none)).unwrap();
    let program = Program::new(module, vec![0x80], limits()).unwrap();
    let (event, index) = event();
    assert!(matches!(
        program.run(&event, &index).outcome,
        Err(Error::InputPlace {
            memory_bytes: 0,
            ..
        })
    ));
    let extra = |extra: String| Guest {
        extra,
        ..Guest::default()
    };
    let table = |elements: u32| extra(format!("(table {elements} funcref)"));
    table(10_000).decides();
    assert_eq!(
        refused(&table(10_001).wasm()),
        Refused::TableStart {
            elements: 10_001,
            limit: 10_000
        }
    );
    let tables = |count: usize| extra("(table 1 funcref)".repeat(count));
    tables(10).decides();
    assert_eq!(
        refused(&tables(11).wasm()),
        Refused::Count {
            what: "tables",
            count: 11,
            limit: 10
        }
    );
    // Four of them are the contract's.
    let exports = |count: usize| {
        let one = |n: usize| format!("(export \"e{n}\" (memory 0))");
        extra((4..count).map(one).collect())
    };
    exports(1_000).decides();
    assert_eq!(
        refused(&exports(1_001).wasm()),
        Refused::Count {
            what: "exports",
            count: 1_001,
            limit: 1_000
        }
    );
    // One of them is the guest's own.
    let segments = |count: usize| extra("(data \"\")".repeat(count - 1));
    segments(10_000).decides();
    assert_eq!(
        refused(&segments(10_001).wasm()),
        Refused::Count {
            what: "segments",
            count: 10_001,
            limit: 10_000
        }
    );
    let elements = |count: usize| extra(format!("(func $f) (elem func {})", "$f ".repeat(count)));
    elements(100_000).decides();
    assert_eq!(
        refused(&elements(100_001).wasm()),
        Refused::Count {
            what: "elements in segments",
            count: 100_001,
            limit: 100_000
        }
    );
    let globals = |count: usize| extra("(global (mut i64) (i64.const 1))".repeat(count));
    globals(1_000).decides();
    assert_eq!(
        refused(&globals(1_001).wasm()),
        Refused::Count {
            what: "globals",
            count: 1_001,
            limit: 1_000
        }
    );
    all_is_well();
}

/// What costs the compiler more than its size says: small files that would keep it busy for minutes.
#[test]
fn a_module_cannot_keep_the_compiler_busy() {
    let sandbox = Sandbox::new(limits());
    let check = |extra: String| {
        let guest = Guest {
            extra,
            ..Guest::default()
        };
        sandbox.check(&guest.wasm()).map(|_| ())
    };
    let count = |what, count, limit| Err(Refused::Count { what, count, limit });
    // Three of them are the contract's.
    let functions = |count: usize| check("(func)".repeat(count - 3));
    assert_eq!(functions(20_000), Ok(()));
    assert_eq!(functions(20_001), count("functions", 20_001, 20_000));
    // One of them is the guest's own.
    let locals = |count: usize| {
        let function = |count: usize| format!("(func (local {}))", "i32 ".repeat(count));
        check(format!(
            "{}{}",
            function(50_000).repeat(3),
            function(count - 150_001)
        ))
    };
    assert_eq!(locals(200_000), Ok(()));
    let limit = 200_000;
    assert_eq!(locals(200_001), count("locals", 200_001, limit));
    // Besides them a byte for the locals, and one for the end.
    let bytes = |bytes: usize| check(format!("(func {})", "nop ".repeat(bytes - 2)));
    let limit = 1 << 20;
    assert_eq!(bytes(limit), Ok(()));
    assert_eq!(
        bytes(limit + 1),
        count("bytes in one function", limit as u64 + 1, limit as u64)
    );
    let wide = |params: usize, results: usize| {
        let (params, results) = ("i32 ".repeat(params), "i32 ".repeat(results));
        check(format!("(type (func (param {params}) (result {results})))"))
    };
    assert_eq!(wide(64, 64), Ok(()));
    assert_eq!(wide(65, 0), count("parameters of a function", 65, 64));
    assert_eq!(wide(0, 65), count("results of a function", 65, 64));
    // A label costs the validator as many steps as its block has results: this took half a minute.
    let results = "i32 ".repeat(1_000);
    let labels = "0 ".repeat(65_000);
    let bomb = format!(
        "(type $wide (func (result {results}))) (func (block (type $wide) (br_table {labels} (unreachable) (i32.const 0))) unreachable)"
    );
    assert_eq!(check(bomb), count("results of a function", 1_000, 64));
    for policy in hooksieve_policies::ALL {
        accepted(policy.wasm, &limits());
    }
    accepted(PROBE, &limits());
    all_is_well();
}

/// What is valid and yet nothing can be made of.
#[test]
fn what_cannot_become_an_instance_is_refused() {
    let sandbox = Sandbox::new(limits());
    for extra in [
        "(data (i32.const 65535) \"xx\")",
        "(table 1 funcref) (elem (i32.const 1) $f) (func $f)",
    ] {
        let guest = Guest {
            extra: extra.into(),
            ..Guest::default()
        };
        let refused = sandbox.compile(guest.wasm()).err();
        assert!(matches!(refused, Some(Refused::Link { .. })), "{refused:?}");
    }
    all_is_well();
}
