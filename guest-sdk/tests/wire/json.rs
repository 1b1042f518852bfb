//! JSON to MessagePack and back: nothing is lost, and the bytes are those of anyone's encoder.

use crate::{any, hex};
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{
    DEPTH_MAX, Event, EventHead, INDEXED_BYTES_MIN, Kind, SkipIndex, Value, Writer,
};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

fn data(json: &str) -> Data {
    Data::from_json(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// The value as JSON, through the plain readers alone.
fn read(value: Value<'_>) -> Json {
    match value.kind() {
        Kind::Nil => Json::Null,
        Kind::Bool => value.as_bool().unwrap().into(),
        Kind::Integer => match value.as_u64() {
            Some(integer) => integer.into(),
            None => value.as_i64().unwrap().into(),
        },
        Kind::Float => value.as_f64().unwrap().into(),
        Kind::Str => value.as_str().unwrap().into(),
        Kind::Array => value.items().map(read).collect(),
        Kind::Map => {
            let entries = value
                .entries()
                .map(|(key, value)| (key.to_owned(), read(value)));
            Json::Object(Map::from_iter(entries))
        }
        Kind::Other => panic!("JSON has no bytes"),
    }
}

/// The containers of a value that is encoded from `start` on, with where they end, measured by
/// another encoder.
fn containers(json: &Json, start: usize, found: &mut Vec<(usize, usize)>) {
    let len = |json: &Json| rmp_serde::to_vec(json).unwrap().len();
    let header = |entries: usize| match entries {
        0..=15 => 1,
        16..=0xffff => 3,
        _ => 5,
    };
    let end = start + len(json);
    if matches!(json, Json::Array(_) | Json::Object(_)) && end - start >= INDEXED_BYTES_MIN {
        found.push((start, end));
    }
    match json {
        Json::Array(items) => {
            let mut at = start + header(items.len());
            for item in items {
                containers(item, at, found);
                at += len(item);
            }
        }
        Json::Object(entries) => {
            let mut at = start + header(entries.len());
            for (key, value) in entries {
                at += rmp_serde::to_vec(key).unwrap().len();
                containers(value, at, found);
                at += len(value);
            }
        }
        _ => {}
    }
}

/// Every place in the value, as a pointer.
fn pointers(json: &Json, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match json {
        Json::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                pointers(item, &format!("{here}/{n}"), found);
            }
        }
        Json::Object(entries) => {
            for (key, value) in entries {
                let step = key.replace('~', "~0").replace('/', "~1");
                pointers(value, &format!("{here}/{step}"), found);
            }
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost(json in any::json()) {
        let text = json.to_string();
        // What another reader makes of the same text.
        let json: Json = serde_json::from_str(&text).unwrap();
        let data = data(&text);
        let value = Value::new(data.bytes());
        prop_assert_eq!(value.validate(), Ok(()));
        prop_assert_eq!(hex(data.bytes()), hex(&rmp_serde::to_vec(&json).unwrap()));
        prop_assert_eq!(&read(value), &json);
        prop_assert_eq!(&Json::deserialize(value).unwrap(), &json);
        prop_assert_eq!(&serde_json::to_value(value).unwrap(), &json);
        prop_assert_eq!(&rmp_serde::from_slice::<Json>(data.bytes()).unwrap(), &json);
        let again = Data::from_deserializer(value).unwrap();
        prop_assert_eq!(again, data);
    }

    #[test]
    fn the_index_lists_the_large_containers_and_changes_no_look_up(json in any::json()) {
        let head = EventHead {
            id: "01890a5d-ac96-774b-bcce-b302099a8057",
            source: "test",
            kind: "any.thing",
            subject: None,
            time: "2026-01-01T00:00:00Z",
            headers: &[
                ("x-first".to_owned(), "one".repeat(8)),
                ("x-second".to_owned(), "two".repeat(20)),
            ],
        };
        let text = json.to_string();
        let json: Json = serde_json::from_str(&text).unwrap();
        let (bytes, index) = head.encode(&data(&text));
        let index = SkipIndex::new(&index);

        let whole: Json = rmp_serde::from_slice(&bytes).unwrap();
        let mut expected = Vec::new();
        containers(&whole, 0, &mut expected);
        let listed: Vec<_> = (0..index.len()).filter_map(|n| index.get(n)).collect();
        prop_assert_eq!(&listed, &expected);
        for &(start, end) in &listed {
            prop_assert_eq!(index.end_of(start), Some(end));
            prop_assert_eq!(index.end_of(start + 1).is_some(), listed.iter().any(|l| l.0 == start + 1));
        }

        let with = Event::decode(&bytes, index).unwrap();
        let without = Event::decode(&bytes, SkipIndex::default()).unwrap();
        prop_assert_eq!(with.header("x-second"), without.header("x-second"));
        let mut places = Vec::new();
        pointers(&json, "", &mut places);
        for place in &places {
            let found = with.get(place).unwrap();
            prop_assert_eq!(found.encoded(), without.get(place).unwrap().encoded());
            let expected = json.pointer(place).unwrap();
            prop_assert_eq!(hex(found.encoded().unwrap()), hex(&rmp_serde::to_vec(expected).unwrap()));
        }
    }
}

#[track_caller]
fn check(json: &str, expected: &str) {
    assert_eq!(hex(data(json).bytes()), expected, "{json}");
}

#[test]
fn numbers_take_their_shortest_form() {
    for (json, expected) in [
        ("0", "00"),
        ("127", "7f"),
        ("128", "cc80"),
        ("255", "ccff"),
        ("256", "cd0100"),
        ("65535", "cdffff"),
        ("65536", "ce00010000"),
        ("4294967295", "ceffffffff"),
        ("4294967296", "cf0000000100000000"),
        ("9223372036854775807", "cf7fffffffffffffff"),
        ("18446744073709551615", "cfffffffffffffffff"),
        ("-1", "ff"),
        ("-32", "e0"),
        ("-33", "d0df"),
        ("-128", "d080"),
        ("-129", "d1ff7f"),
        ("-32768", "d18000"),
        ("-32769", "d2ffff7fff"),
        ("-2147483648", "d280000000"),
        ("-2147483649", "d3ffffffff7fffffff"),
        ("-9223372036854775808", "d38000000000000000"),
        // What no 64-bit integer holds, and everything with a point or an exponent, is a float.
        ("18446744073709551616", "cb43f0000000000000"),
        ("-9223372036854775809", "cbc3e0000000000000"),
        ("1.0", "cb3ff0000000000000"),
        ("1e2", "cb4059000000000000"),
        ("0.1", "cb3fb999999999999a"),
        ("19.99", "cb4033fd70a3d70a3d"),
        ("-0", "cb8000000000000000"),
        ("-0.0", "cb8000000000000000"),
        ("5e-324", "cb0000000000000001"),
        ("1e-400", "cb0000000000000000"),
    ] {
        check(json, expected);
    }
    // A number beyond every float is no JSON to us, rather than infinity.
    assert!(Data::from_json(b"1e400").is_err());
}

#[test]
fn every_form_of_an_integer_is_read_alike() {
    for (bytes, expected) in [
        (&b"\x07"[..], 7),
        (b"\xcc\x07", 7),
        (b"\xcd\0\x07", 7),
        (b"\xce\0\0\0\x07", 7),
        (b"\xcf\0\0\0\0\0\0\0\x07", 7),
        (b"\xd0\x07", 7),
        (b"\xd1\0\x07", 7),
        (b"\xd2\0\0\0\x07", 7),
        (b"\xd3\0\0\0\0\0\0\0\x07", 7),
        (b"\xff", -1),
        (b"\xd0\xff", -1),
        (b"\xd1\xff\xff", -1),
        (b"\xd2\xff\xff\xff\xff", -1),
        (b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff", -1),
    ] {
        let value = Value::new(bytes);
        assert_eq!(value.kind(), Kind::Integer);
        assert_eq!(value.as_i64(), Some(expected), "{}", hex(bytes));
        assert_eq!(
            value.as_u64(),
            u64::try_from(expected).ok(),
            "{}",
            hex(bytes)
        );
        assert_eq!(value.as_f64(), Some(expected as f64), "{}", hex(bytes));
        assert_eq!(value.validate(), Ok(()));
    }
    assert_eq!(Value::new(&[0xca, 0x40, 0x20, 0, 0]).as_f64(), Some(2.5));
    // What does not fit is not bent.
    let mut writer = Writer::new();
    writer.u64(u64::MAX);
    assert_eq!(Value::new(writer.as_slice()).as_i64(), None);
    writer = Writer::new();
    writer.f64(3.0);
    assert_eq!(Value::new(writer.as_slice()).as_i64(), None);
}

#[test]
fn texts_take_their_shortest_length() {
    for (len, header) in [
        (0, "a0"),
        (31, "bf"),
        (32, "d920"),
        (255, "d9ff"),
        (256, "da0100"),
        (65_535, "daffff"),
        (65_536, "db00010000"),
    ] {
        let text = "x".repeat(len);
        check(
            &format!("{text:?}"),
            &format!("{header}{}", hex(text.as_bytes())),
        );
    }
}

#[test]
fn containers_take_their_shortest_length() {
    for (len, array, map) in [
        (0usize, "90", "80"),
        (15, "9f", "8f"),
        (16, "dc0010", "de0010"),
        (65_535, "dcffff", "deffff"),
        (65_536, "dd00010000", "df00010000"),
    ] {
        let json = format!("[{}]", vec!["1"; len].join(","));
        check(&json, &format!("{array}{}", "01".repeat(len)));
        let json = format!("{{{}}}", vec!["\"\":1"; len].join(","));
        check(&json, &format!("{map}{}", "a001".repeat(len)));
    }
}

#[test]
fn a_key_that_stands_twice_is_kept_twice_and_found_once() {
    let data = data(r#"{"a": 1, "b": 2, "a": 3}"#);
    assert_eq!(hex(data.bytes()), "83a16101a16202a16103");
    let value = Value::new(data.bytes());
    assert_eq!(value.i64("/a"), Some(1));
    assert_eq!(value.get("a").unwrap().as_i64(), Some(1));
    assert_eq!(value.entries().count(), 3);
}

#[test]
fn the_depth_has_a_limit_on_both_sides() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| {
            let inner = if open == "[" { "" } else { "1" };
            format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
        };
        let bytes = data(&nested(DEPTH_MAX)).bytes().to_vec();
        assert_eq!(Value::new(&bytes).validate(), Ok(()));
        // Inside an event it stands one level further in, and is read to its end.
        let recorded = hooksieve_sdk::testing::event("deep", nested(DEPTH_MAX));
        let again = serde_json::to_string(&recorded.event().data()).unwrap();
        assert_eq!(again, nested(DEPTH_MAX));

        let error = Data::from_json(nested(DEPTH_MAX + 1).as_bytes()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("nested deeper than 64 levels at line 1"),
            "{error}"
        );
        let deeper = [
            if open == "[" {
                &b"\x91"[..]
            } else {
                b"\x81\xa1a"
            },
            &bytes,
        ]
        .concat();
        let error = Value::new(&deeper).validate().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("it nests deeper than 64 levels"),
            "{error}"
        );
    }
}

#[test]
fn what_is_not_json_is_refused_with_its_place() {
    for json in ["", "{", "{\"a\":}", "[1,]", "nul", "1 2", "{1: 2}", "'a'"] {
        let error = Data::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 1 column"), "{json:?}: {error}");
    }
    // Neither UTF-8 nor JSON with something of it in a string.
    assert!(Data::from_json(b"\xff").is_err());
    assert!(Data::from_json(b"{}\xef\xbb\xbf").is_err());
}
