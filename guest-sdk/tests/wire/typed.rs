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
