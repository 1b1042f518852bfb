//! Rules that are WASI programs: they decide as reactors do, and get nothing of the machine.

use hooksieve::sandbox::{Error, Limits, Program, Refused, Run, Sandbox};
use hooksieve::tenant::encode_config;
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Decision, EventHead};
use hooksieve_tests::{TRIAGE_COMMAND, cli_with, say};

use crate::senders::examples;

/// The default limits, but for the wall clock: a slow machine must not get a word in.
fn limits() -> Limits {
    Limits {
        wall_clock_ms: 60_000,
        ..Limits::default()
    }
}

fn event(kind: &str, data: &Data) -> (Vec<u8>, Vec<u8>) {
    let head = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind,
        subject: None,
        time: "2026-03-01T09:30:00Z",
        headers: &[],
    };
    head.encode(data)
}

/// Every example of GitHub's, through the same rule in both forms.
#[test]
fn both_forms_decide_alike() {
    let Ok(_) = hooksieve_tests::node() else {
        return;
    };
    let policy = hooksieve_policies::get("github-triage").unwrap();
    let example: toml::Value = toml::from_str(policy.example).unwrap();
    let config = encode_config(&example["rule"][0]["config"]).unwrap();
    let program = |wasm: &[u8]| {
        let module = Sandbox::new(limits()).compile(wasm).unwrap();
        Program::new(module, config.clone(), limits()).unwrap()
    };
    let (reactor, command) = (program(policy.wasm), program(TRIAGE_COMMAND));
    let mut took = Vec::new();
    let mut decisions = 0;
    for example in examples() {
        let data = Data::from_json(example.payload.to_string().as_bytes()).unwrap();
        let (event, index) = event(&example.kind(), &data);
        let run = command.run(&event, &index);
        let decided = run.outcome.unwrap();
        assert_eq!(decided, reactor.run(&event, &index).outcome.unwrap());
        // A program is as exact as a reactor.
        assert_eq!(command.run(&event, &index).fuel, run.fuel);
        took.push(run.duration.as_micros());
        decisions += 1;
    }
    took.sort_unstable();
    say(&format!(
        "{decisions} decisions alike; as a program p50 {} us, p99 {} us",
        took[took.len() / 2],
        took[took.len() * 99 / 100]
    ));
    assert_eq!(decisions, 329);
}

/// What the programs below write when nothing stopped them, at 64.
const OK: &[u8] = b"\x82\xa6reason\xa2ok\xa7actions\x90";

/// A program that does this and then decides well. It may call `$write(fd, at, bytes)`.
fn program(imports: &str, does: &str) -> String {
    let ok: String = OK.iter().map(|byte| format!("\\{byte:02x}")).collect();
    format!(
        r#"(module
          (import "wasi_snapshot_preview1" "fd_write"
            (func $fd_write (param i32 i32 i32 i32) (result i32)))
          {imports}
          (memory (export "memory") 2)
          (data (i32.const 64) "{ok}")
          (func $write (param $fd i32) (param $at i32) (param $bytes i32)
            (i32.store (i32.const 16) (local.get $at))
            (i32.store (i32.const 20) (local.get $bytes))
            (drop (call $fd_write (local.get $fd) (i32.const 16) (i32.const 1) (i32.const 24))))
          (func (export "_start") (local $n i32)
            {does}
            (call $write (i32.const 1) (i32.const 64) (i32.const {length}))))"#,
        length = OK.len()
    )
}

fn import(name: &str, params: &str) -> String {
    format!(
        r#"(import "wasi_snapshot_preview1" "{name}" (func ${name} (param {params}) (result i32)))"#
    )
}

/// Traps unless the expression is this number.
fn expect(expression: &str, number: i64) -> String {
    format!("(if (i32.ne {expression} (i32.const {number})) (then unreachable))")
}

#[track_caller]
fn run_within(wat: &str, limits: &Limits) -> Run {
    let wasm = wat::parse_str(wat).unwrap();
    let module = Sandbox::new(limits.clone()).compile(wasm).unwrap();
    let program = Program::new(module, vec![0x80], limits.clone()).unwrap();
    let data = Data::from_json(b"{}").unwrap();
    let (event, index) = event("test", &data);
    let run = program.run(&event, &index);
    let again = program.run(&event, &index);
    assert_eq!((&run.outcome, run.fuel), (&again.outcome, again.fuel));
    assert_eq!(run.log, again.log);
    run
}

#[track_caller]
fn run(wat: &str) -> Run {
    run_within(wat, &limits())
}

#[track_caller]
fn decides(imports: &str, does: &str) -> Run {
    let run = run(&program(imports, does));
    assert_eq!(run.outcome, Ok(Decision::drop("ok")), "{does}");
    run
}

#[track_caller]
fn fails(imports: &str, does: &str) -> Error {
    run(&program(imports, does)).outcome.unwrap_err()
}

#[track_caller]
fn refused(wat: &str) -> Refused {
    let wasm = wat::parse_str(wat).unwrap();
    Sandbox::new(limits()).compile(wasm).unwrap_err()
}

#[test]
fn the_clock_stands_at_the_events_time() {
    let clock = import("clock_time_get", "i32 i64 i32");
    // 2026-03-01T09:30:00Z in nanoseconds.
    let told = "(i64.ne (i64.load (i32.const 128)) (i64.const 1772357400000000000))";
    for id in [0, 1, 2, 3] {
        let ask = format!("(call $clock_time_get (i32.const {id}) (i64.const 1) (i32.const 128))");
        let same = format!("{} (if {told} (then unreachable))", expect(&ask, 0));
        decides(&clock, &same.repeat(3));
    }
}

#[test]
fn random_numbers_come_from_the_events_id() {
    let random = import("random_get", "i32 i32");
    let log = "(drop (call $random_get (i32.const 256) (i32.const 64)))
        (loop $l
          (i32.store8 (i32.add (i32.const 256) (local.get $n))
            (i32.add (i32.const 97)
              (i32.and (i32.load8_u (i32.add (i32.const 256) (local.get $n))) (i32.const 15))))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $l (i32.lt_u (local.get $n) (i32.const 64))))
        (call $write (i32.const 2) (i32.const 256) (i32.const 64))";
    let text = decides(&random, log).log.join("");
    assert_eq!(text.len(), 64);
    assert_eq!(decides(&random, log).log.join(""), text);
    assert_ne!(text[..32], text[32..]);
    // All of memory, again and again, is paid for.
    let much = "(loop $l (drop (call $random_get (i32.const 0) (i32.const 131072))) (br $l))";
    assert_eq!(fails(&random, much), Error::Fuel { limit: 10_000_000 });
}

#[test]
fn nothing_reaches_beyond_the_program() {
    for (name, params, call, errno) in [
        (
            "poll_oneoff",
            "i32 i32 i32 i32",
            "(i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)",
            58,
        ),
        (
            "path_open",
            "i32 i32 i32 i32 i32 i64 i64 i32 i32",
            "(i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 0) (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 0)",
            76,
        ),
        (
            "fd_prestat_get",
            "i32 i32",
            "(i32.const 3) (i32.const 0)",
            8,
        ),
        (
            "fd_readdir",
            "i32 i32 i32 i64 i32",
            "(i32.const 3) (i32.const 0) (i32.const 9) (i64.const 0) (i32.const 0)",
            8,
        ),
        (
            "fd_read",
            "i32 i32 i32 i32",
            "(i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)",
            8,
        ),
        (
            "fd_seek",
            "i32 i64 i32 i32",
            "(i32.const 0) (i64.const 0) (i32.const 0) (i32.const 8)",
            70,
        ),
        ("sched_yield", "", "", 0),
    ] {
        let call = format!("(call ${name} {call})");
        decides(&import(name, params), &expect(&call, errno));
    }
    // Descriptors that are not there, and buffers outside memory.
    decides(
        "",
        &expect(
            "(call $fd_write (i32.const 3) (i32.const 16) (i32.const 1) (i32.const 24))",
            8,
        ),
    );
    decides(
        "",
        &expect(
            "(call $fd_write (i32.const 1) (i32.const -8) (i32.const 4) (i32.const 24))",
            21,
        ),
    );
    // The environment holds the configuration and nothing else.
    let environ = import("environ_sizes_get", "i32 i32");
    let asked = "(drop (call $environ_sizes_get (i32.const 128) (i32.const 132)))";
    let one = expect("(i32.load (i32.const 128))", 1);
    let bytes = expect(
        "(i32.load (i32.const 132))",
        "HOOKSIEVE_CONFIG={}\0".len() as i64,
    );
    decides(&environ, &format!("{asked}{one}{bytes}"));
}

/// Go's linker writes `fd_write` twice. Each is the same function, which calls nothing of the program's.
#[test]
fn an_import_that_stands_twice_is_one_function() {
    let twice = import("fd_write", "i32 i32 i32 i32").replace("$fd_write", "$again");
    let call = "(call $again (i32.const 2) (i32.const 16) (i32.const 0) (i32.const 24))";
    decides(&twice, &expect(call, 0));
    // Of every import, twice, without a buffer to read or write: what can call itself would.
    for (name, params) in IMPORTS {
        let types: Vec<_> = params.chars().map(wasm_type).collect();
        let one = import(name, &types.join(" "));
        let two = one.replace(&format!("${name} "), &format!("${name}_2 "));
        let zeros: Vec<_> = (types.iter().map(|ty| format!("({ty}.const 0)"))).collect();
        let call = |suffix: &str| format!("(drop (call ${name}{suffix} {}))", zeros.join(" "));
        let wat = program(
            &format!("{one} {two}"),
            &format!("{}{}", call(""), call("_2")),
        );
        let wat = match name {
            "fd_write" => wat.replacen(&one, "", 1),
            _ => wat,
        };
        assert_eq!(run(&wat).outcome, Ok(Decision::drop("ok")), "{name}");
    }
}

/// All that may be imported but `proc_exit`, with the parameters that WASI gives them.
const IMPORTS: [(&str, &str); 42] = [
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("clock_res_get", "ii"),
    ("clock_time_get", "iIi"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("fd_advise", "iIIi"),
    ("fd_allocate", "iII"),
    ("fd_close", "i"),
    ("fd_datasync", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_fdstat_set_flags", "ii"),
    ("fd_fdstat_set_rights", "iII"),
    ("fd_filestat_get", "ii"),
    ("fd_filestat_set_size", "iI"),
    ("fd_filestat_set_times", "iIIi"),
    ("fd_pread", "iiiIi"),
    ("fd_prestat_dir_name", "iii"),
    ("fd_prestat_get", "ii"),
    ("fd_pwrite", "iiiIi"),
    ("fd_read", "iiii"),
    ("fd_readdir", "iiiIi"),
    ("fd_renumber", "ii"),
    ("fd_seek", "iIii"),
    ("fd_sync", "i"),
    ("fd_tell", "ii"),
    ("fd_write", "iiii"),
    ("path_create_directory", "iii"),
    ("path_filestat_get", "iiiii"),
    ("path_filestat_set_times", "iiiiIIi"),
    ("path_link", "iiiiiii"),
    ("path_open", "iiiiiIIii"),
    ("path_readlink", "iiiiii"),
    ("path_remove_directory", "iii"),
    ("path_rename", "iiiiii"),
    ("path_symlink", "iiiii"),
    ("path_unlink_file", "iii"),
    ("poll_oneoff", "iiii"),
    ("random_get", "ii"),
    ("sched_yield", ""),
    ("sock_recv", "iiiiii"),
    ("sock_shutdown", "ii"),
];

fn wasm_type(letter: char) -> &'static str {
    if letter == 'I' { "i64" } else { "i32" }
}

/// An import is taken with the type that WASI gives it and with no other, also where every call of it fails.
#[test]
fn imports_have_the_types_that_wasi_gives_them() {
    for (name, params) in IMPORTS {
        let types: Vec<_> = params.chars().map(wasm_type).collect();
        let right = import(name, &types.join(" "));
        let with = |import: &str| {
            format!("(module {import} (memory (export \"memory\") 1) (func (export \"_start\")))")
        };
        let taken = Sandbox::new(limits())
            .check(&wat::parse_str(with(&right)).unwrap())
            .is_ok();
        assert!(taken, "{name}");
        let swapped = types
            .iter()
            .map(|ty| if *ty == "i32" { "i64" } else { "i32" });
        let swapped: Vec<_> = swapped.collect();
        for wrong in [
            import(name, &[types.join(" "), "i32".to_owned()].join(" ")),
            import(name, "f64"),
            right.replace("(result i32)", "(result i64)"),
            right.replace("(result i32)", ""),
            right.replace("(result i32)", "(result i32 i32)"),
            import(name, &swapped.join(" ")),
        ] {
            if wrong == right {
                continue;
            }
            let refused = refused(&with(&wrong));
            assert_eq!(refused.kind(), "import_type", "{wrong}");
            let said = refused.to_string();
            assert!(
                said.contains(name) && said.contains("not a function ("),
                "{said}"
            );
        }
    }
}

/// What a call writes is ours to the last byte: every import on every descriptor, with places all over
/// memory, leaves the same memory in two processes, which have nothing else in common.
#[test]
fn what_calls_write_is_the_same_in_every_process() {
    let mut imports = String::new();
    let mut does = String::new();
    for (name, params) in IMPORTS {
        let types: Vec<_> = params.chars().map(wasm_type).collect();
        if name != "fd_write" {
            imports.push_str(&import(name, &types.join(" ")));
        }
        for fd in [0, 1, 2, 3, 4, 7, -1] {
            for small in [false, true] {
                let argument = |(n, ty): (usize, &&str)| {
                    let place = 4_096 + 512 * n as i64;
                    let value = match n {
                        0 if !name.ends_with("_get") || name.starts_with("fd") => fd,
                        n if small && n % 2 == 0 => 1,
                        _ => place,
                    };
                    format!("({ty}.const {value})")
                };
                let arguments: Vec<_> = types.iter().enumerate().map(argument).collect();
                // Nothing that was written before; and what came of the call is in memory as well.
                does.push_str(&format!(
                    "(memory.fill (i32.const 4096) (i32.const 85) (i32.const 8192))
                     (i32.store (i32.const 12288) (call ${name} {}))
                     (call $mix)",
                    arguments.join(" ")
                ));
            }
        }
    }
    let mix = r#"(global $hash (mut i64) (i64.const 7))
        (func $mix (local $n i32)
          (loop $l
            (global.set $hash (i64.xor (i64.mul (i64.rotl (global.get $hash) (i64.const 29))
              (i64.const 0x9e3779b97f4a7c15)) (i64.load (local.get $n))))
            (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 8))) (i32.const 131072)))))
        (func (export "_start")"#;
    let log = r#"(local.set $n (i32.const 0))
        (loop $l
          (i32.store8 (i32.add (i32.const 256) (local.get $n))
            (i32.add (i32.const 97) (i32.and (i32.wrap_i64 (global.get $hash)) (i32.const 15))))
          (global.set $hash (i64.shr_u (global.get $hash) (i64.const 4)))
          (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 16))))
        (call $write (i32.const 2) (i32.const 256) (i32.const 16))"#;
    let wat = program(&imports, &format!("{does}{log}"));
    let wat = wat.replacen("(func (export \"_start\")", mix, 1);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("all.wasm"), wat::parse_str(wat).unwrap()).unwrap();
    std::fs::write(
        path("config.toml"),
        "[limits]\nfuel = 10_000_000_000\nwall_clock_ms = 60_000\n",
    )
    .unwrap();
    let (rule, config) = (path("all.wasm"), path("config.toml"));
    let replayed = || {
        let args = [
            "replay", "--json", "--rule", &rule, "--config", &config, "--type", "x", "-",
        ];
        let output = cli_with(&args, &[], b"{}");
        let lines = output.json_lines();
        let Some(line) = lines.first() else {
            panic!("{}", output.stderr);
        };
        (
            line["log"].clone(),
            line["fuel"].clone(),
            line["error"].clone(),
        )
    };
    let first = replayed();
    assert!(
        first.0[0]
            .as_str()
            .is_some_and(|hash| hash.ends_with(|c: char| c.is_ascii_lowercase())),
        "{first:?}"
    );
    for _ in 0..3 {
        assert_eq!(replayed(), first);
    }
    // And what the two that have padding write, byte for byte.
    let stat = import("fd_fdstat_get", "i32 i32") + &import("fd_filestat_get", "i32 i32");
    let word = |at: i64, value: i64| {
        format!("(if (i64.ne (i64.load (i32.const {at})) (i64.const {value})) (then unreachable))")
    };
    for (fd, rights) in [(0, 2), (1, 64), (2, 64)] {
        let mut does = "(memory.fill (i32.const 4096) (i32.const 85) (i32.const 256))".to_owned();
        does += &expect(
            &format!("(call $fd_fdstat_get (i32.const {fd}) (i32.const 4096))"),
            0,
        );
        does += &expect(
            &format!("(call $fd_filestat_get (i32.const {fd}) (i32.const 4120))"),
            0,
        );
        does += &(word(4_096, 0) + &word(4_104, rights));
        does += &(4_112..4_184)
            .step_by(8)
            .map(|at| word(at, 0))
            .collect::<String>();
        does += &word(4_184, 0x5555_5555_5555_5555);
        decides(&stat, &does);
    }
}

#[test]
fn imports_beyond_the_list_are_refused() {
    for name in ["sock_accept", "proc_raise", "thread_spawn", "nonsense"] {
        let refused = refused(&program(&import(name, "i32"), ""));
        assert!(
            matches!(refused, Refused::UnknownImport { .. }),
            "{refused}"
        );
    }
    let refused_for =
        |extra: &str| refused(&program("", "").replace("(memory", &format!("{extra} (memory")));
    let address = "(table 1 funcref) (elem (i32.const 0) $fd_write)";
    assert_eq!(refused_for(address), Refused::ImportAddress);
    assert_eq!(
        refused_for("(elem declare func $fd_write)"),
        Refused::ImportAddress
    );
    assert_eq!(
        refused_for("(global funcref (ref.func $fd_write))"),
        Refused::ImportAddress
    );
    let library = r#"(module (memory (export "memory") 1) (func (export "_initialize")))"#;
    assert_eq!(refused(library), Refused::WasiLibrary);
    let signature = r#"(module (memory (export "memory") 1) (func (export "_start") (param i32)))"#;
    assert_eq!(refused(signature).kind(), "export_type");
}

#[test]
fn limits_hold_for_programs() {
    let fuel = Error::Fuel { limit: 10_000_000 };
    assert_eq!(fails("", "(loop $l (br $l))"), fuel);
    // A call of an import costs more than a plain operator, however little it does.
    assert_eq!(
        fails(
            "",
            "(loop $l (call $write (i32.const 2) (i32.const 64) (i32.const 0)) (br $l))"
        ),
        fuel
    );
    // A thousand million buffers, a gigabyte in one write: refused before they are looked at.
    decides(
        "",
        &expect(
            "(call $fd_write (i32.const 1) (i32.const 0) (i32.const 0x3fffffff) (i32.const 0))",
            28,
        ),
    );
    // As many buffers as may be, each all of memory: charged by their bytes, of which few are moved.
    let many = "(loop $b
          (i32.store (i32.add (i32.const 4096) (i32.shl (local.get $n) (i32.const 3))) (i32.const 0))
          (i32.store (i32.add (i32.const 4100) (i32.shl (local.get $n) (i32.const 3))) (i32.const 131072))
          (br_if $b (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 1024))))
        (drop (call $fd_write (i32.const 1) (i32.const 4096) (i32.const 1024) (i32.const 24)))";
    assert_eq!(fails("", many), fuel);
    let limits = Limits {
        output_bytes: 1_000,
        log_bytes: 100,
        ..limits()
    };
    let longer = |fd: i32, bytes: i32| {
        let wat = program(
            "",
            &format!("(call $write (i32.const {fd}) (i32.const 1024) (i32.const {bytes}))"),
        );
        run_within(&wat, &limits)
    };
    let over = 1_000 + OK.len();
    assert_eq!(
        longer(1, 1_000).outcome,
        Err(Error::Output {
            bytes: over,
            limit: 1_000
        })
    );
    let logged = longer(2, 1_000);
    assert_eq!(logged.outcome, Ok(Decision::drop("ok")));
    assert_eq!(
        logged.log.last().unwrap(),
        "[cut off: the limit is 100 bytes]"
    );
    assert_eq!(fails("", "unreachable").kind(), "trapped");
    let exit = r#"(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#;
    assert_eq!(
        fails(exit, "(call $exit (i32.const 3))"),
        Error::Exit { code: 3 }
    );
    let nothing = run(&program(exit, "(call $exit (i32.const 0))"));
    assert_eq!(nothing.outcome.unwrap_err().kind(), "answer");
    let grows = "(if (i32.ne (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable)) unreachable";
    assert_eq!(fails("", grows).kind(), "memory");
}
