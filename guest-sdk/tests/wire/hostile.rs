//! Bytes that nobody wrote for us: no panic, no endless loop, no overflow of the stack, and
//! `validate` accepts exactly what the contract does.

use crate::any;
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{DEPTH_MAX, Decision, Event, SkipIndex, Value};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Does to the bytes whatever can be done.
fn hammer(bytes: &[u8], index: &[u8]) {
    for value in [
        Value::new(bytes),
        Value::indexed(bytes, SkipIndex::new(index)),
    ] {
        let mut budget = 2_000;
        walk(value, &mut budget);
        for pointer in ["", "/", "/a", "/0", "/0/0/0", "/a/0/~1", "/data/x", "/99"] {
            if let Some(found) = value.pointer(pointer) {
                walk(found, &mut budget);
            }
        }
        let _ = format!("{value:?}");
        let _ = serde_json::to_string(&value);
        let _ = serde_json::Value::deserialize(value);
        let _ = IgnoredAny::deserialize(value);
        let _ = Data::from_deserializer(value);
        let _ = <(u8, Option<String>, Vec<f64>)>::deserialize(value);
        let _ = value.validate();
    }
    let _ = Decision::decode(bytes);
    let _ = Event::decode(bytes, SkipIndex::new(index)).map(|event| format!("{event:?}"));
}

fn walk(value: Value<'_>, budget: &mut usize) {
    if *budget == 0 {
        return;
    }
    *budget -= 1;
    let _ = (value.kind(), value.is_nil(), value.len(), value.is_empty());
    let _ = (
        value.as_str(),
        value.as_bool(),
        value.as_i64(),
        value.as_u64(),
        value.as_f64(),
    );
    let _ = (value.encoded(), value.get("a"));
    for item in value.items().take(50) {
        walk(item, budget);
    }
    for (_, item) in value.entries().take(50) {
        walk(item, budget);
    }
}

/// What the contract says is a document, written down a second time and recursively.
fn is_document(bytes: &[u8]) -> bool {
    one(bytes, 0, false) == Some(bytes.len())
}

fn one(bytes: &[u8], depth: usize, key: bool) -> Option<usize> {
    let number = |from: usize, width: usize| {
        let part = bytes.get(from..from + width)?;
        Some(part.iter().fold(0usize, |n, &byte| n << 8 | byte as usize))
    };
    let tag = *bytes.first()?;
    let text = |from: usize, len: usize| {
        std::str::from_utf8(bytes.get(from..from.checked_add(len)?)?).ok()?;
        Some(from + len)
    };
    let fixed = |len: usize| bytes.get(..len).map(|_| len);
    let is_text = matches!(tag, 0xa0..=0xbf | 0xd9..=0xdb);
    if key && !is_text {
        return None;
    }
    let (mut at, values, is_map) = match tag {
        0xa0..=0xbf => return text(1, (tag & 31) as usize),
        0xd9 => return text(2, number(1, 1)?),
        0xda => return text(3, number(1, 2)?),
        0xdb => return text(5, number(1, 4)?),
        0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => return Some(1),
        0xcc | 0xd0 => return fixed(2),
        0xcd | 0xd1 => return fixed(3),
        0xca | 0xce | 0xd2 => return fixed(5),
        0xcb | 0xcf | 0xd3 => return fixed(9),
        0x90..=0x9f => (1, (tag & 15) as usize, false),
        0x80..=0x8f => (1, (tag & 15) as usize * 2, true),
        0xdc => (3, number(1, 2)?, false),
        0xdd => (5, number(1, 4)?, false),
        0xde => (3, number(1, 2)? * 2, true),
        0xdf => (5, number(1, 4)? * 2, true),
        _ => return None,
    };
    if depth == DEPTH_MAX {
        return None;
    }
    for n in 0..values {
        at += one(bytes.get(at..)?, depth + 1, is_map && n % 2 == 0)?;
    }
    Some(at)
}

/// Valid bytes with a few of them changed, cut off, or with more behind.
fn mutated(valid: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let cut = prop::option::of(any::<prop::sample::Index>());
    (valid, changes, cut, vec(any::<u8>(), 0..2)).prop_map(|(mut bytes, changes, cut, more)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(more);
        bytes
    })
}

fn document() -> impl Strategy<Value = Vec<u8>> {
    any::json().prop_map(|json| rmp_serde::to_vec(&json).unwrap())
}

/// Bytes that look like MessagePack more often than chance would have it.
fn tags() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![
        0x80u8..=0x84,
        0x90u8..=0x94,
        0xa0u8..=0xa3,
        0xc0u8..=0xdf,
        any::<u8>()
    ];
    vec(tag, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in vec(any::<u8>(), 0..300), index in vec(any::<u8>(), 0..64)) {
        hammer(&bytes, &index);
        prop_assert_eq!(Value::new(&bytes).validate().is_ok(), is_document(&bytes));
    }

    #[test]
    fn bytes_that_look_like_it(bytes in tags(), pairs in vec((0u32..200, 0u32..300), 0..8)) {
        let index: Vec<u8> = pairs.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()]).flatten().collect();
        hammer(&bytes, &index);
        prop_assert_eq!(Value::new(&bytes).validate().is_ok(), is_document(&bytes));
    }

    #[test]
    fn documents_that_were_changed(bytes in mutated(document()), index in vec(any::<u8>(), 0..64)) {
        hammer(&bytes, &index);
        prop_assert_eq!(Value::new(&bytes).validate().is_ok(), is_document(&bytes));
    }
}

#[test]
fn nothing_follows_a_nesting_without_end() {
    for (one, last) in [
        (&b"\x91"[..], &b"\xc0"[..]),
        (b"\x81\xa0", b"\xc0"),
        (b"\xdd\xff\xff\xff\xff", b""),
    ] {
        let mut bytes = one.repeat(200_000);
        bytes.extend_from_slice(last);
        let value = Value::new(&bytes);
        assert!(value.validate().is_err());
        let _ = value.pointer("/0/0");
        let _ = value.encoded();
        let printed = format!("{value:?}");
        assert!(printed.len() < 1_000, "{}", printed.len());
        assert!(serde_json::to_string(&value).is_err());
        assert!(serde_json::Value::deserialize(value).is_err());
        let _ = Decision::decode(&bytes);
    }
}

#[test]
fn a_length_that_lies_costs_nothing() {
    for bytes in [
        &b"\xdd\xff\xff\xff\xff"[..],
        b"\xdf\xff\xff\xff\xff\xa1a\x01",
        b"\xdb\xff\xff\xff\xffabc",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x91\xdb\xff\xff\xff\xff",
    ] {
        hammer(bytes, &[]);
        let value = Value::new(bytes);
        assert!(value.validate().is_err());
        assert_eq!(value.encoded(), None);
        assert!(value.items().count() <= bytes.len());
        assert!(value.entries().count() <= bytes.len());
    }
}

#[test]
fn validate_says_what_and_where() {
    #[track_caller]
    fn check(bytes: &[u8], expected: &str) {
        let result = Value::new(bytes).validate();
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
    check(b"", "it ends in the middle of a value (byte 0)");
    check(b"\x92\xcc\x01", "it ends in the middle of a value (byte 3)");
    check(b"\x92\x01\xc1", "the byte 0xc1 begins no value (byte 2)");
    check(b"\x93\x01", "a length reaches past the end (byte 0)");
    check(b"\x81\x01\x01", "a map key is not a string (byte 1)");
    check(b"\xa3ab", "it ends inside a string (byte 0)");
    check(b"\xa1\xff", "a string is not UTF-8 (byte 0)");
    check(
        b"\xc4\x01a",
        "bytes and extensions are not allowed (byte 0)",
    );
    check(
        b"\xd4\x01a",
        "bytes and extensions are not allowed (byte 0)",
    );
    check(b"\x01\x02", "bytes follow after its end (byte 1)");
}
