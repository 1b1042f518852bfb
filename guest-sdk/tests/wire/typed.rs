//! Values as types of one's own, and what is said when they do not fit.

use hooksieve_sdk::wire::Value;
use hooksieve_sdk::wire::json::Data;
use serde::Deserialize;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    channel: String,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    level: Option<Level>,
    #[serde(default)]
    share: f32,
    #[serde(default)]
    count: u8,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Low,
    High { above: i32 },
    Named(String),
    Both(u8, u8),
}

fn read(json: &str) -> Result<Config, String> {
    let data = Data::from_json(json.as_bytes()).unwrap();
    Config::deserialize(Value::new(data.bytes())).map_err(|error| error.to_string())
}

#[test]
fn types_are_read() {
    let level = |json: &str| {
        read(&format!(r#"{{"channel": "a", "level": {json}}}"#))
            .unwrap()
            .level
    };
    assert_eq!(level("null"), None);
    assert_eq!(level("\"low\""), Some(Level::Low));
    assert_eq!(
        level(r#"{"high": {"above": -3}}"#),
        Some(Level::High { above: -3 })
    );
    assert_eq!(
        level(r#"{"named": "x"}"#),
        Some(Level::Named("x".to_owned()))
    );
    assert_eq!(level(r#"{"both": [1, 2]}"#), Some(Level::Both(1, 2)));
    let config = read(r#"{"channel": "a", "ignore": ["b"], "share": 1, "count": 255}"#).unwrap();
    assert_eq!(
        config,
        Config {
            channel: "a".to_owned(),
            ignore: vec!["b".to_owned()],
            level: None,
            share: 1.0,
            count: 255,
        }
    );
}

#[test]
fn what_does_not_fit_is_named_with_its_place() {
    #[track_caller]
    fn check(json: &str, expected: &str) {
        assert_eq!(read(json).unwrap_err(), expected, "{json}");
    }
    check("{}", "the key `channel` is missing");
    check("\"x\"", "expected struct Config, found a string");
    check(
        r#"{"channel": 7}"#,
        "at /channel: expected a string, found an integer",
    );
    check(
        r#"{"channel": "a", "ignore": ["b", 2.5]}"#,
        "at /ignore/1: expected a string, found a number",
    );
    check(
        r#"{"channel": "a", "ignore": null}"#,
        "at /ignore: expected a sequence, found nothing",
    );
    check(
        r#"{"channel": "a", "count": 256}"#,
        "at /count: expected u8, found 256",
    );
    check(
        r#"{"channel": "a", "count": -1}"#,
        "at /count: expected u8, found -1",
    );
    check(
        r#"{"channel": "a", "count": "x"}"#,
        "at /count: expected u8, found a string",
    );
    check(
        r#"{"channel": "a", "chanel": 1}"#,
        "unknown key `chanel`; known: `channel`, `ignore`, `level`, `share`, `count`",
    );
    check(
        r#"{"channel": "a", "channel": "b"}"#,
        "the key `channel` stands twice",
    );
    check(
        r#"{"channel": "a", "level": "hgih"}"#,
        "at /level: unknown variant `hgih`; known: `low`, `high`, `named`, `both`",
    );
    check(
        r#"{"channel": "a", "level": {"both": [1]}}"#,
        "at /level: expected tuple variant Level::Both with 2 elements, found 1",
    );
    check(
        r#"{"channel": "a", "level": {"high": {"above": true}}}"#,
        "at /level/above: expected i32, found a boolean",
    );
}

#[test]
fn numbers_may_be_written_longer_than_they_need() {
    #[track_caller]
    fn check(bytes: &[u8], unsigned: Option<u64>, signed: Option<i64>, float: Option<f64>) {
        let value = Value::new(bytes);
        assert_eq!(
            (value.as_u64(), value.as_i64(), value.as_f64()),
            (unsigned, signed, float),
            "{bytes:02x?}"
        );
    }
    check(b"\x7f", Some(127), Some(127), Some(127.0));
    check(b"\xe0", None, Some(-32), Some(-32.0));
    check(b"\xd0\x05", Some(5), Some(5), Some(5.0));
    check(b"\xd0\x80", None, Some(-128), Some(-128.0));
    check(b"\xd1\xff\xff", None, Some(-1), Some(-1.0));
    check(
        b"\xd2\x80\x00\x00\x00",
        None,
        Some(-0x8000_0000),
        Some(-2147483648.0),
    );
    check(b"\xcc\xff", Some(255), Some(255), Some(255.0));
    check(
        b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
        Some(u64::MAX),
        None,
        Some(u64::MAX as f64),
    );
    check(
        b"\xd3\x80\0\0\0\0\0\0\0",
        None,
        Some(i64::MIN),
        Some(i64::MIN as f64),
    );
    check(b"\xca\x3f\xc0\0\0", None, None, Some(1.5));
    check(b"\xcb\x3f\xf8\0\0\0\0\0\0", None, None, Some(1.5));
    check(b"\xa1\x31", None, None, None);
}

#[test]
fn a_struct_is_read_from_a_map_alone() {
    #[derive(Debug, Deserialize)]
    struct Point {
        #[allow(dead_code)]
        x: i64,
    }
    let data = Data::from_json(b"[1]").unwrap();
    let error = Point::deserialize(Value::new(data.bytes())).unwrap_err();
    assert_eq!(error.to_string(), "expected struct Point, found an array");
}
