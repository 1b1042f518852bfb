//! Modules that mean harm, or are broken: each ends in the error that names what it did, each limit
//! holds from both sides, and the process goes on deciding as before.

use crate::guest::{
    FOREVER, FUEL, Guest, KEPT, LOG, OK, OK_AT, all_is_well, doing, escaped, event, limits, ok,
};
use hooksieve::sandbox::{Cache, Error, Instances, Limits, Program, Sandbox};
use hooksieve_sdk::wire::{DEPTH_MAX, Decision, pack};
use hooksieve_tests::{Receiver, Setup};
use std::time::Duration;

#[test]
fn fuel_ends_what_does_not_end() {
    assert_eq!(doing(FOREVER).fails(), FUEL);
    let good = Guest::default();
    let burnt = good.decides().fuel;
    let with = |fuel| Limits { fuel, ..limits() };
    assert_eq!(good.decides_within(&with(burnt)).fuel, burnt);
    let limit = burnt - 1;
    assert_eq!(good.fails_within(&with(limit)), Error::Fuel { limit });
    // Less than the input alone costs.
    assert_eq!(good.fails_within(&with(1)), Error::Fuel { limit: 1 });
    all_is_well();
}

/// One operator that does much is charged for all of it: these loops end after the work that the
/// fuel pays for, not after ten million times that.
#[test]
fn bulk_operations_are_charged_by_their_length() {
    let times = |count: u32, what: &str| {
        doing(&format!(
            "(local.set $n (i32.const {count}))
             (loop $l {what} (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))"
        ))
    };
    let memory = |mut guest: Guest| {
        guest.memory = "(memory (export \"memory\") 256)".into();
        guest
    };
    let table = |mut guest: Guest| {
        guest.extra =
            "(table $t 10000 funcref) (elem $e func) (elem declare func $f) (func $f)".into();
        guest
    };
    // 16 MiB less the first page at 8 bytes for 1: 2,088,960 fuel each. The 252 pages beyond the
    // first 4, which the event starts with, are 2,064,384.
    let fill = "(memory.fill (i32.const 65536) (i32.const 7) (i32.const 16711680))";
    memory(times(3, fill)).decides();
    assert_eq!(memory(times(4, fill)).fails(), FUEL);
    let copy = "(memory.copy (i32.const 65536) (i32.const 65536) (i32.const 16711680))";
    memory(times(3, copy)).decides();
    assert_eq!(memory(times(4, copy)).fails(), FUEL);
    // 60,000 bytes of a segment: 7,500 fuel each, and 250.
    let init = |count| {
        let mut guest = memory(times(
            count,
            "(memory.init $d (i32.const 65536) (i32.const 0) (i32.const 60000))",
        ));
        guest.extra = format!("(data $d \"{}\")", "x".repeat(60_000));
        guest
    };
    init(1_000).decides();
    assert_eq!(init(1_050).fails(), FUEL);
    // 10,000 elements at 14 each.
    let fill = "(table.fill $t (i32.const 0) (ref.null func) (i32.const 10000))";
    table(times(70, fill)).decides();
    assert_eq!(table(times(72, fill)).fails(), FUEL);
    let copy = "(table.copy $t $t (i32.const 0) (i32.const 0) (i32.const 10000))";
    table(times(70, copy)).decides();
    assert_eq!(table(times(72, copy)).fails(), FUEL);
    // Longer than anything there is: the price is asked before the bounds are.
    for huge in [
        "(memory.fill (i32.const 0) (i32.const 0) (i32.const -1))",
        "(memory.copy (i32.const 0) (i32.const 0) (i32.const -1))",
    ] {
        assert_eq!(doing(huge).fails(), FUEL);
    }
    // For ever, one byte and no byte at a time.
    for (what, bytes) in [("fill", 1), ("copy", 1), ("fill", 0), ("copy", 0)] {
        let one = format!(
            "(loop $l (memory.{what} (i32.const 0) (i32.const 0) (i32.const {bytes})) (br $l))"
        );
        assert_eq!(doing(&one).fails(), FUEL);
    }
    for forever in [
        "(loop $l (table.fill $t (i32.const 0) (ref.null func) (i32.const 10000)) (br $l))",
        "(loop $l (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 0)) (br $l))",
        "(loop $l (table.set $t (i32.const 0) (ref.func $f)) (br $l))",
        "(loop $l (drop (table.grow $t (ref.null func) (i32.const 0))) (br $l))",
        "(loop $l (drop (table.grow $t (ref.null func) (i32.const 1))) (br $l))",
        "(loop $l (drop (memory.grow (i32.const 0))) (br $l))",
        "(loop $l (drop (memory.grow (i32.const 65535))) (br $l))",
    ] {
        assert_eq!(table(doing(forever)).fails(), FUEL, "{forever}");
    }
    all_is_well();
}

#[test]
fn the_wall_clock_stands_behind_the_fuel() {
    let limits = Limits {
        fuel: 1 << 40,
        wall_clock_ms: 20,
        ..limits()
    };
    let endless = doing(FOREVER);
    let run = endless.run_within(&limits);
    assert_eq!(run.outcome, Err(Error::WallClock { limit_ms: 20 }));
    assert!(
        run.duration >= Duration::from_millis(20),
        "{:?}",
        run.duration
    );
    Guest::default().decides_within(&Limits {
        wall_clock_ms: 60_000,
        ..limits.clone()
    });
    // The same thread runs on, and the same program strikes again.
    let program = endless.program(&limits);
    let (event, index) = event();
    for _ in 0..3 {
        let outcome = program.run(&event, &index).outcome;
        assert_eq!(outcome, Err(Error::WallClock { limit_ms: 20 }));
    }
    all_is_well();
}

#[test]
fn memory_grows_to_the_limit_and_not_beyond() {
    let grow = |pages: u32, refused: &str| {
        doing(&format!(
            "(if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then {refused}))"
        ))
    };
    let run = grow(255, "unreachable").decides();
    assert_eq!(run.memory_bytes, 16 << 20);
    match grow(256, "unreachable").fails() {
        Error::Memory {
            requested_pages: 256,
            limit_pages: 256,
            then,
        } => assert_eq!(then, "trapped: it reached `unreachable`, as an abort does"),
        other => panic!("{other:?}"),
    }
    for pages in ["65535", "65536", "-1"] {
        let all = doing(&format!(
            "(if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then unreachable))"
        ));
        match all.fails() {
            Error::Memory {
                limit_pages: 256,
                requested_pages,
                ..
            } => {
                assert_eq!(
                    requested_pages,
                    u64::from(pages.parse::<i64>().unwrap() as u32)
                );
            }
            other => panic!("{other:?}"),
        }
    }
    // A guest that can do without decides all the same.
    let run = grow(256, "").decides();
    assert_eq!(run.memory_bytes, 65_536);
    // What it then fails of for another reason is told with the growth, as the likely cause.
    let reach = grow(256, "(drop (i32.load (i32.const 65536)))").fails();
    assert!(
        matches!(reach, Error::Memory { then, .. } if then == "trapped: it reached outside its memory")
    );
    // Its own maximum is a limit too.
    let mut own = grow(2, "unreachable");
    own.memory = "(memory (export \"memory\") 1 2)".into();
    assert!(matches!(
        own.fails(),
        Error::Memory {
            requested_pages: 2,
            limit_pages: 2,
            ..
        }
    ));
    let mut own = grow(1, "unreachable");
    own.memory = "(memory (export \"memory\") 1 2)".into();
    own.decides();
    // The last byte is there, the next is not.
    let touch = |at: u64| {
        doing(&format!(
            "(drop (memory.grow (i32.const 255))) (i32.store8 (i32.const {}) (i32.const 1))",
            at as u32 as i32
        ))
    };
    touch((16 << 20) - 1).decides();
    let beyond = Error::Trapped {
        what: "it reached outside its memory",
    };
    for at in [16 << 20, 1 << 31, u64::from(u32::MAX)] {
        assert_eq!(touch(at).fails(), beyond);
    }
    // An offset that a 32-bit sum would wrap.
    assert_eq!(
        doing("(drop (i64.load offset=0xffffffff (i32.const -1)))").fails(),
        beyond
    );
    all_is_well();
}

/// What one guest leaves in its memory, the next does not find.
#[test]
fn memory_is_clean_for_the_next() {
    let dirty = doing(
        "(drop (memory.grow (i32.const 255)))
         (memory.fill (i32.const 65536) (i32.const 255) (i32.const 16711680))",
    );
    let trapping = doing(
        "(drop (memory.grow (i32.const 255)))
         (memory.fill (i32.const 65536) (i32.const 255) (i32.const 16711680)) unreachable",
    );
    let clean = doing(
        "(drop (memory.grow (i32.const 255)))
         (local.set $n (i32.const 65536))
         (loop $l
           (if (i64.ne (i64.load (local.get $n)) (i64.const 0)) (then unreachable))
           (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 4096))) (i32.const 16777216))))",
    );
    let fuel = clean.decides().fuel;
    for _ in 0..3 {
        dirty.decides();
        assert_eq!(clean.decides().fuel, fuel);
        trapping.fails();
        assert_eq!(clean.decides().fuel, fuel);
    }
    all_is_well();
}

#[test]
fn tables_grow_to_the_limit_and_not_beyond() {
    let grow = |elements: u32, refused: &str| {
        let mut guest = doing(&format!(
            "(if (i32.eq (table.grow $t (ref.null func) (i32.const {elements})) (i32.const -1)) (then {refused}))"
        ));
        guest.extra = "(table $t 1 funcref)".into();
        guest
    };
    grow(9_999, "unreachable").decides();
    assert!(matches!(
        grow(10_000, "unreachable").fails(),
        Error::Table {
            requested: 10_000,
            limit: 10_000,
            ..
        }
    ));
    assert!(matches!(
        grow(u32::MAX, "unreachable").fails(),
        Error::Table {
            requested: 0xffff_ffff,
            limit: 10_000,
            ..
        }
    ));
    grow(10_000, "").decides();
    all_is_well();
}

#[test]
fn answers_are_within_their_length_and_the_memory() {
    let answer = |pointer: u32, bytes: u32| Guest {
        decide: format!("(i64.const {})", pack(pointer, bytes)),
        ..Guest::default()
    };
    let length = |reason: usize| {
        // A reason of this many bytes makes an answer of 22 more.
        let mut bytes = b"\x82\xa6reason\xdb".to_vec();
        bytes.extend((reason as u32).to_be_bytes());
        bytes.extend(vec![b'x'; reason]);
        bytes.extend(b"\xa7actions\x90");
        let mut guest = answer(4_096, bytes.len() as u32);
        guest.memory = "(memory (export \"memory\") 2)".into();
        guest.extra = format!("(data (i32.const 4096) \"{}\")", escaped(&bytes));
        guest
    };
    assert_eq!(
        length(65_514).run().outcome,
        Ok(Decision::drop("x".repeat(65_514)))
    );
    assert_eq!(
        length(65_515).fails(),
        Error::Output {
            bytes: 65_537,
            limit: 65_536
        }
    );
    for bytes in [1 << 20, i32::MAX as u32, u32::MAX] {
        assert_eq!(
            answer(16, bytes).fails(),
            Error::Output {
                bytes: bytes as usize,
                limit: 65_536
            }
        );
    }
    // The memory's last bytes can be an answer; one byte more cannot.
    let bytes = OK.len() as u32;
    let last = 65_536 - bytes;
    let mut at_the_end = answer(last, bytes);
    at_the_end.extra = format!("(data (i32.const {last}) \"{}\")", escaped(OK));
    at_the_end.decides();
    for pointer in [last + 1, 65_536, i32::MAX as u32] {
        assert_eq!(
            answer(pointer, bytes).fails(),
            Error::OutputPlace {
                pointer,
                bytes,
                memory_bytes: 65_536
            }
        );
    }
    // Above 2 GiB the packed value is negative, which is a code.
    assert!(matches!(
        answer(u32::MAX, bytes).fails(),
        Error::UnknownCode { .. }
    ));
    all_is_well();
}

#[test]
fn input_goes_where_there_is_room() {
    let at = |reserve: &str| Guest {
        reserve: reserve.into(),
        ..Guest::default()
    };
    let (event, index) = event();
    let bytes = event.len().next_multiple_of(4) + index.len();
    at("(i32.sub (i32.const 65536) (local.get 0))").decides();
    for reserve in [
        "(i32.sub (i32.const 65540) (local.get 0))",
        "(i32.const 65536)",
        "(i32.const 0x7fffffff)",
        "(i32.const -1)",
        "(i32.const -16)",
    ] {
        match at(reserve).try_program(&limits(), vec![0x80]) {
            // Without an `init` the first input is the event.
            Ok(program) => match program.run(&event, &index).outcome {
                Err(Error::InputPlace {
                    memory_bytes: 65_536,
                    ..
                }) => {}
                other => panic!("{reserve}: {other:?}"),
            },
            Err(error) => panic!("{reserve}: {error}"),
        }
    }
    assert_eq!(at("(i32.const 0)").fails(), Error::NoRoom { bytes });
    assert_eq!(at(&format!("{FOREVER} (i32.const 1)")).fails(), FUEL);
    assert_eq!(
        at("unreachable").fails(),
        Error::Trapped {
            what: "it reached `unreachable`, as an abort does"
        }
    );
    // How much there may be.
    let with = |input_bytes| Limits {
        input_bytes,
        ..limits()
    };
    Guest::default().decides_within(&with(bytes));
    let limit = bytes - 1;
    assert_eq!(
        Guest::default().fails_within(&with(limit)),
        Error::Input { bytes, limit }
    );
    // It burns nothing then, whatever the instance did before.
    let busy = Guest {
        init: Some("(local.set $n (i32.const 7)) (i64.const 0)".into()),
        ..Guest::default()
    };
    for guest in [Guest::default(), busy] {
        let program = guest.program(&with(bytes));
        let mut instances = Instances::new(KEPT);
        let longer = [event.as_slice(), &[0; 4]].concat();
        for _ in 0..2 {
            assert_eq!(program.run(&longer, &index).fuel, 0);
            assert!(instances.run(&program, &event, &index).fuel > 0);
            assert_eq!(instances.run(&program, &longer, &index).fuel, 0);
        }
    }
    all_is_well();
}

fn logging(what: &str) -> Guest {
    Guest {
        imports: LOG.into(),
        ..doing(what)
    }
}

#[test]
fn logs_are_cut_off_and_stay_within_the_memory() {
    let line =
        |bytes: u32| format!("(call $log (i32.const 0) (i32.const 1024) (i32.const {bytes}))");
    let run = logging(&line(4_096)).decides();
    assert_eq!((run.log.len(), run.log[0].len()), (1, 4_096));
    let run = logging(&line(4_097)).decides();
    assert_eq!(run.log[0].len(), 4_096);
    assert_eq!(run.log[1], "[cut off: the limit is 4096 bytes]");
    // A flood: a thousand lines of a hundred bytes.
    let flood = format!(
        "(local.set $n (i32.const 1000))
         (loop $l {} (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))",
        line(100)
    );
    let run = logging(&flood).decides();
    let kept: usize = run.log.iter().map(String::len).sum();
    assert!(kept < 4_096 + 100, "{kept}");
    assert_eq!(
        run.log.last().unwrap(),
        "[cut off: the limit is 4096 bytes]"
    );
    // A flood of nothing keeps nothing, and is paid for.
    let nothing = logging(&format!("(loop $l {} (br $l))", line(0))).run();
    assert_eq!((nothing.outcome, nothing.log.len()), (Err(FUEL), 0));
    // The last bytes of the memory can be logged; one more cannot.
    let at = |pointer: i32, bytes: i32| {
        logging(&format!(
            "(call $log (i32.const 0) (i32.const {pointer}) (i32.const {bytes}))"
        ))
    };
    at(65_530, 6).decides();
    at(65_536, 0).decides();
    for (pointer, bytes) in [(65_530, 7), (65_536, 1), (-1, 1), (i32::MAX, 100)] {
        assert_eq!(
            at(pointer, bytes).fails(),
            Error::LogPlace {
                pointer: pointer as u32,
                bytes: bytes as u32,
                memory_bytes: 65_536
            }
        );
    }
    // Longer than its fuel.
    assert_eq!(at(0, -1).fails(), FUEL);
    assert_eq!(at(-1, -1).fails(), FUEL);
    // Bytes that are not text, and a level that does not exist, are lines all the same.
    let odd = Guest {
        extra: "(data (i32.const 2048) \"\\ff\\1b[31m\")".into(),
        ..logging("(call $log (i32.const 9) (i32.const 2048) (i32.const 6))")
    };
    assert_eq!(odd.decides().log, ["\u{fffd}\u{1b}[31m"]);
    all_is_well();
}

#[test]
fn a_panic_is_told_with_its_message() {
    let panicking = |bytes: u32, end: &str| Guest {
        imports: LOG.into(),
        extra: format!("(data (i32.const 1024) \"{}\")", "p".repeat(3_000)),
        decide: format!("(call $log (i32.const 1) (i32.const 1024) (i32.const {bytes})) {end}"),
        ..Guest::default()
    };
    for (bytes, kept) in [(7, 7), (1_024, 1_024), (1_025, 1_024)] {
        assert_eq!(
            panicking(bytes, "unreachable").fails(),
            Error::Panicked {
                message: "p".repeat(kept)
            }
        );
    }
    // Said and not done.
    panicking(7, &ok()).decides();
    all_is_well();
}

/// What `hooksieve_init` logs as a panic is no event's, be it the first of an instance or a later one.
#[test]
fn a_panic_that_init_got_over_is_not_told_of_an_event() {
    let guest = Guest {
        imports: LOG.into(),
        init: Some(format!(
            "(call $log (i32.const 1) (i32.const {OK_AT}) (i32.const 6)) (i64.const 0)"
        )),
        decide: "unreachable".into(),
        ..Guest::default()
    };
    let what = "it reached `unreachable`, as an abort does";
    assert_eq!(guest.fails(), Error::Trapped { what });
    all_is_well();
}

#[test]
fn traps_are_named() {
    let callee = "(type $v (func)) (table $t 2 funcref) (elem (i32.const 1) $takes) (func $takes (param i32))";
    for (code, what) in [
        ("unreachable", "it reached `unreachable`, as an abort does"),
        (
            "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
            "it divided an integer by zero",
        ),
        (
            "(drop (i64.rem_u (i64.const 1) (i64.const 0)))",
            "it divided an integer by zero",
        ),
        (
            "(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))",
            "an integer overflowed in a division",
        ),
        (
            "(drop (i32.trunc_f64_s (f64.const nan)))",
            "it converted a number that no integer can hold",
        ),
        (
            "(call_indirect $t (type $v) (i32.const 0))",
            "it called through an empty table entry",
        ),
        (
            "(call_indirect $t (type $v) (i32.const 1))",
            "it called through a table entry of another type",
        ),
        (
            "(call_indirect $t (type $v) (i32.const 2))",
            "it reached outside a table",
        ),
        (
            "(drop (table.get $t (i32.const 2)))",
            "it reached outside a table",
        ),
        (
            "(drop (i64.load (i32.const 65529)))",
            "it reached outside its memory",
        ),
        (
            "(memory.fill (i32.const 65530) (i32.const 0) (i32.const 7))",
            "it reached outside its memory",
        ),
    ] {
        let mut guest = doing(code);
        guest.extra = callee.into();
        match guest.fails() {
            Error::Trapped { what: found } => assert_eq!(found, what, "{code}"),
            other => panic!("{code}: {other:?}"),
        }
    }
    doing("(drop (i64.load (i32.const 65528)))").decides();
    doing("(memory.fill (i32.const 65530) (i32.const 0) (i32.const 6))").decides();
    all_is_well();
}

#[test]
fn return_codes_have_their_meaning_or_none() {
    let returning = |code: i64| Guest {
        decide: format!("(i64.const {code})"),
        ..Guest::default()
    };
    assert_eq!(returning(-1).fails(), Error::BadInput);
    assert_eq!(returning(-3).fails(), Error::OutOfMemory);
    for code in [-4, -5, i64::from(i32::MIN), i64::MIN] {
        assert_eq!(returning(code).fails(), Error::UnknownCode { code });
    }
    // Nothing at all is no decision.
    assert!(matches!(returning(0).fails(), Error::Answer { .. }));
    all_is_well();
}

/// What becomes of these bytes as an answer.
#[track_caller]
fn answered(bytes: &[u8]) -> Result<Decision, Error> {
    let guest = Guest {
        memory: "(memory (export \"memory\") 2)".into(),
        decide: format!("(i64.const {})", pack(1_024, bytes.len() as u32)),
        extra: format!("(data (i32.const 1024) \"{}\")", escaped(bytes)),
        ..Guest::default()
    };
    guest.run().outcome
}

#[test]
fn answers_that_are_no_decision_are_refused() {
    let cases: [&[u8]; 18] = [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x90",
        b"hello",
        b"\x80",
        b"\x82\xa6reason\xa2ok",
        b"\x81\xa6reason\xa2ok",
        b"\x81\xa7actions\x90",
        b"\x82\xa6reason\x01\xa7actions\x90",
        b"\x82\xa6reason\xa2ok\xa7actions\x80",
        b"\x83\xa6reason\xa2ok\xa7actions\x90\xa5extra\xc3",
        b"\x82\xa6reason\xa2ok\xa7actions\x90\x00",
        b"\x82\xa5error\xa1x\xa6reason\xa2ok",
        b"\x81\xa5error\x01",
        // Lengths that lie: 4 GiB of text, of actions, of keys.
        b"\x82\xa6reason\xdb\xff\xff\xff\xff",
        b"\x82\xa6reason\xa2ok\xa7actions\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\xa6reason",
    ];
    for bytes in cases {
        match answered(bytes) {
            Err(Error::Answer { message }) => assert!(!message.is_empty()),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }
    assert!(matches!(
        answered(b"\x82\xa6reason\xa2\xff\xfe\xa7actions\x90"),
        Err(Error::Answer { .. })
    ));
    assert_eq!(
        answered(b"\x81\xa5error\xa4oops"),
        Err(Error::Rule {
            message: "oops".into()
        })
    );
    let action = |parts: &[u8], keys: u8| {
        let mut bytes = b"\x82\xa6reason\xa2ok\xa7actions\x91".to_vec();
        bytes.push(0x80 + keys);
        bytes.extend(parts);
        answered(&bytes)
    };
    assert!(action(b"\xa7channel\xa1c\xa4body\xc0", 2).is_ok());
    assert!(action(b"\xa7channel\xa1c\xa7message\x81\xa5title\xa1t", 2).is_ok());
    for (parts, keys) in [
        (&b"\xa7channel\xa1c"[..], 1),
        (b"\xa4body\xc0", 1),
        (b"\xa7channel\x01\xa4body\xc0", 2),
        (
            b"\xa7channel\xa1c\xa4body\xc0\xa7message\x81\xa5title\xa1t",
            3,
        ),
        (b"\xa7channel\xa1c\xa4body\xc0\xa2at\x01", 3),
        (b"\xa7channel\xa1c\xa7message\x80", 2),
        (
            b"\xa7channel\xa1c\xa7message\x82\xa5title\xa1t\xa4html\xa1x",
            2,
        ),
    ] {
        let refused = action(parts, keys);
        assert!(matches!(refused, Err(Error::Answer { .. })), "{refused:?}");
    }
    all_is_well();
}

#[test]
fn answers_nest_only_so_deep() {
    let nested = |depth: usize| {
        let mut bytes = b"\x82\xa6reason\xa2ok\xa7actions\x91\x82\xa7channel\xa1c\xa4body".to_vec();
        bytes.extend(vec![0x91; depth]);
        bytes.push(0xc0);
        answered(&bytes)
    };
    // The decision, its actions and the action are three levels.
    assert!(nested(DEPTH_MAX - 3).is_ok());
    for depth in [DEPTH_MAX - 2, DEPTH_MAX, 1_000, 60_000] {
        let refused = nested(depth);
        assert!(
            matches!(refused, Err(Error::Answer { .. })),
            "{depth}: {refused:?}"
        );
    }
    all_is_well();
}

#[test]
fn a_decision_has_only_so_many_actions() {
    let actions = |count: u8| {
        let mut bytes = b"\x82\xa6reason\xa2ok\xa7actions\xdc\x00".to_vec();
        bytes.push(count);
        for _ in 0..count {
            bytes.extend(b"\x82\xa7channel\xa1c\xa4body\xc0");
        }
        answered(&bytes)
    };
    assert_eq!(actions(16).unwrap().actions.len(), 16);
    assert_eq!(
        actions(17),
        Err(Error::Actions {
            actions: 17,
            limit: 16
        })
    );
    all_is_well();
}

#[test]
fn an_init_that_fails_is_found_before_any_event() {
    let init = |body: &str| Guest {
        init: Some(body.into()),
        ..Guest::default()
    };
    let start =
        |guest: &Guest, config: &[u8]| guest.try_program(&limits(), config.to_vec()).map(|_| ());
    let some = b"\x81\xa1a\x01";
    assert_eq!(start(&init("(i64.const 0)"), some), Ok(()));
    assert_eq!(start(&Guest::default(), &[0x80]), Ok(()));
    assert_eq!(start(&Guest::default(), &[]), Ok(()));
    assert_eq!(start(&Guest::default(), some), Err(Error::NoInit));
    assert_eq!(
        start(&init("unreachable"), some),
        Err(Error::Trapped {
            what: "it reached `unreachable`, as an abort does"
        })
    );
    assert_eq!(
        start(&init(&format!("{FOREVER} (i64.const 0)")), some),
        Err(Error::InitFuel { limit: 10_000_000 })
    );
    assert_eq!(
        start(&init("(i64.const -2)"), some),
        Err(Error::Config {
            message: "code -2".into()
        })
    );
    assert_eq!(start(&init("(i64.const -1)"), some), Err(Error::BadInput));
    assert_eq!(
        start(&init("(i64.const -77)"), some),
        Err(Error::UnknownCode { code: -77 })
    );
    let mut says = init(&format!("(i64.const {})", pack(2_048, 9)));
    says.extra = "(data (i32.const 2048) \"\\81\\a5error\\a1x\")".into();
    assert_eq!(
        start(&says, some),
        Err(Error::Config {
            message: "x".into()
        })
    );
    assert!(matches!(
        start(&init(&ok()), some),
        Err(Error::Config { .. })
    ));
    assert_eq!(
        start(&init("(i64.const 0xffffffff)"), some),
        Err(Error::Output {
            bytes: u32::MAX as usize,
            limit: 65_536
        })
    );
    // From both sides: a loop that its fuel just pays for, and one unit less.
    let counting = init(
        "(local.set $n (i32.const 1000))
         (loop $l (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
         (i64.const 0)",
    );
    let within = |init_fuel| {
        let limits = Limits {
            init_fuel,
            ..limits()
        };
        counting.try_program(&limits, some.to_vec()).is_ok()
    };
    let (mut fails, mut passes) = (1_000, 100_000);
    assert!(!within(fails) && within(passes));
    while passes - fails > 1 {
        let middle = (passes + fails) / 2;
        if within(middle) {
            passes = middle;
        } else {
            fails = middle;
        }
    }
    for _ in 0..10 {
        assert!(within(passes) && !within(fails));
    }
    // A configuration is an input, and has its limit.
    let config = |bytes: usize| {
        let limits = Limits {
            input_bytes: 1_024,
            ..limits()
        };
        let result = init("(i64.const 0)").try_program(&limits, vec![0; bytes]);
        result.map(|_| ())
    };
    assert_eq!(config(1_024), Ok(()));
    assert_eq!(
        config(1_025),
        Err(Error::Input {
            bytes: 1_025,
            limit: 1_024
        })
    );
    all_is_well();
}

/// Each thread loads code, runs into a trap, and drops the code, over and over: what one unmaps is
/// where another's code goes next.
#[test]
fn code_comes_and_goes_on_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::new(limits()).cached(Cache::open(dir.path()).unwrap());
    let modules: Vec<_> = (0..8)
        .map(|n| doing(&format!("{} unreachable", "(nop)".repeat(n * 400))).wasm())
        .collect();
    let (event, index) = event();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (sandbox, modules, event, index) = (&sandbox, &modules, &event, &index);
            scope.spawn(move || {
                for n in 0..500 {
                    let wasm = modules[(n * 3 + thread) % modules.len()].as_slice();
                    let module = sandbox.compile(wasm).unwrap();
                    let program = Program::new(module, vec![0x80], limits()).unwrap();
                    let what = "it reached `unreachable`, as an abort does";
                    let outcome = program.run(event, index).outcome;
                    assert_eq!(outcome, Err(Error::Trapped { what }));
                }
            });
        }
    });
    all_is_well();
}

/// All of it in a running engine: a good rule and hostile ones on one source, side by side.
#[tokio::test(flavor = "multi_thread")]
async fn a_good_rule_beside_hostile_ones_delivers_everything() {
    let hostile: [(&str, &str, Guest); 8] = [
        ("loop", "hold", doing(FOREVER)),
        (
            "recursion",
            "hold",
            Guest {
                decide: "(call $d) unreachable".into(),
                extra: "(func $d (call $d) (call $d))".into(),
                ..Guest::default()
            },
        ),
        (
            "hog",
            "drop",
            doing("(if (i32.eq (memory.grow (i32.const 4000)) (i32.const -1)) (then unreachable))"),
        ),
        (
            "wild",
            "pass",
            Guest {
                decide: format!("(i64.const {})", pack(i32::MAX as u32, 20)),
                ..Guest::default()
            },
        ),
        (
            "giant",
            "drop",
            Guest {
                decide: format!("(i64.const {})", u32::MAX),
                ..Guest::default()
            },
        ),
        (
            "noise",
            "hold",
            Guest {
                decide: "(i64.const 0)".into(),
                ..Guest::default()
            },
        ),
        (
            "flood",
            "drop",
            logging("(loop $l (call $log (i32.const 0) (i32.const 0) (i32.const 100)) (br $l))"),
        ),
        (
            "fill",
            "pass",
            doing("(loop $l (memory.fill (i32.const 0) (i32.const 0) (i32.const 65536)) (br $l))"),
        ),
    ];
    let good = Receiver::start().await;
    let fallback = Receiver::start().await;
    let mut tenant = format!(
        "default_channel = 'fallback'\n\
         [[source]]\nname = 'app'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
         [[channel]]\nname = 'fallback'\nkind = 'webhook'\nurl = '{}'\n\
         [[rule]]\nname = 'good'\nmodule = 'probe.wasm'\nevents = ['*']\n",
        good.url("/good"),
        fallback.url("/fallback"),
    );
    let mut setup = Setup::new();
    for (name, on_error, guest) in &hostile {
        setup = setup.file(&format!("{name}.wasm"), &guest.wasm());
        tenant += &format!(
            "[[rule]]\nname = '{name}'\nmodule = '{name}.wasm'\nevents = ['*']\non_error = '{on_error}'\n"
        );
    }
    let setup = setup.config("[limits]\nwall_clock_ms = 60000\n");
    let server = setup.tenant("acme", &tenant).start().await;
    const EVENTS: usize = 20;
    for n in 0..EVENTS {
        let body = format!(r#"{{"do": "post", "payload": {n}}}"#);
        let answer = server.post_json("/in/acme/app", &body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    server.settle().await;
    let mut arrived: Vec<_> = good
        .received()
        .iter()
        .map(|got| got.json()["data"].as_u64().unwrap())
        .collect();
    arrived.sort_unstable();
    assert_eq!(arrived, (0..EVENTS as u64).collect::<Vec<_>>());
    assert_eq!(
        fallback.received().len(),
        2 * EVENTS,
        "what failed with `pass`"
    );
    let held = server.get("/v1/held?tenant=acme").await.json();
    let held = held["items"].as_array().unwrap();
    assert_eq!(held.len(), 3 * EVENTS);
    for (name, on_error, _) in &hostile {
        let count = held.iter().filter(|held| held["rule"] == *name).count();
        assert_eq!(
            count,
            if *on_error == "hold" { EVENTS } else { 0 },
            "{name}"
        );
    }
    let story = server.story(&server.accepted()[0]).await;
    let then = |rule: &str| {
        let decisions = story["decisions"].as_array().unwrap();
        let of = decisions
            .iter()
            .find(|decision| decision["rule"] == rule)
            .unwrap();
        (
            of["outcome"].as_str().unwrap().to_owned(),
            of["then"].clone(),
            of["error"].clone(),
        )
    };
    for (rule, expected, error) in [
        (
            "loop",
            "held",
            "out of fuel: it needs more than the 10000000 that one event may burn",
        ),
        (
            "recursion",
            "held",
            "stack overflow: its calls need more than 262144 bytes of stack",
        ),
        (
            "hog",
            "dropped",
            "memory: it asked for 4000 more pages of 64 KiB, was refused at a limit of 256, and then failed: trapped: it reached `unreachable`, as an abort does",
        ),
        (
            "wild",
            "passed",
            "its answer is said to be 20 bytes at 0x7fffffff, which is outside its memory of 65536",
        ),
        (
            "giant",
            "dropped",
            "its answer is 4294967295 bytes, the limit is 65536",
        ),
        (
            "flood",
            "dropped",
            "out of fuel: it needs more than the 10000000 that one event may burn",
        ),
        (
            "fill",
            "passed",
            "out of fuel: it needs more than the 10000000 that one event may burn",
        ),
    ] {
        let (outcome, done, said) = then(rule);
        assert_eq!(
            (outcome.as_str(), done.as_str(), said.as_str()),
            ("failed", Some(expected), Some(error)),
            "{rule}"
        );
    }
    assert_eq!(server.get("/healthz").await.status, 200);
    server.end().await;
}
