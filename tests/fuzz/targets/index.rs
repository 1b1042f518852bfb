//! Events of any content, as the engine writes them: every value reads the same with the skip index
//! and without.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Event, EventHead, SkipIndex, Value};
use libfuzzer_sys::fuzz_target;

/// Content of any shape.
#[derive(Arbitrary, Debug)]
enum Content {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    /// Long enough that what holds it is in the index.
    Long(u8),
    List(Vec<Content>),
    Map(Vec<(u8, Content)>),
}

impl Content {
    /// As JSON text; keys may stand twice.
    fn write(&self, json: &mut String) {
        match self {
            Content::Null => json.push_str("null"),
            Content::Bool(value) => json.push_str(&value.to_string()),
            Content::Integer(value) => json.push_str(&value.to_string()),
            Content::Float(value) => json.push_str(&serde_json::json!(value).to_string()),
            Content::Text(text) => json.push_str(&serde_json::json!(text).to_string()),
            Content::Long(count) => {
                json.push('"');
                json.extend(std::iter::repeat_n('x', usize::from(*count)));
                json.push('"');
            }
            Content::List(items) => {
                json.push('[');
                for (n, item) in items.iter().enumerate() {
                    json.push_str(if n == 0 { "" } else { "," });
                    item.write(json);
                }
                json.push(']');
            }
            Content::Map(entries) => {
                json.push('{');
                for (n, (key, item)) in entries.iter().enumerate() {
                    json.push_str(if n == 0 { "" } else { "," });
                    json.push_str(&format!("\"k{key}\":"));
                    item.write(json);
                }
                json.push('}');
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let Ok(content) = Content::arbitrary(&mut u) else {
        return;
    };
    let mut json = String::new();
    content.write(&mut json);
    // Nested too deep, and nothing else: it is JSON.
    let Ok(data) = Data::from_json(json.as_bytes()) else {
        serde_json::from_str::<serde_json::Value>(&json)
            .map(drop)
            .unwrap_or_default();
        return;
    };
    let header = ("x-header".to_owned(), "value".repeat(bytes.len() % 40));
    let head = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind: "test",
        subject: None,
        time: "2026-01-01T00:00:00Z",
        headers: &[header],
    };
    let (event, index) = head.encode(&data);
    let index = SkipIndex::new(&index);
    assert!(
        (1..index.len()).all(|n| index.get(n - 1) < index.get(n)),
        "not sorted"
    );
    let with = Event::decode(&event, index).unwrap();
    let without = Event::decode(&event, SkipIndex::default()).unwrap();
    let whole = (Value::indexed(&event, index), Value::new(&event));
    whole
        .1
        .validate()
        .unwrap_or_else(|error| assert!(error.message().contains("deeper")));
    same(whole.0, whole.1);
    same(with.data(), without.data());
    same(with.headers(), without.headers());
});

fn same(with: Value<'_>, without: Value<'_>) {
    assert_eq!(with.kind(), without.kind());
    assert_eq!(with.encoded(), without.encoded());
    assert_eq!(with.len(), without.len());
    assert_eq!(with.items().count(), without.items().count());
    for (with, without) in with.items().zip(without.items()) {
        same(with, without);
    }
    assert_eq!(with.entries().count(), without.entries().count());
    for ((key, a), (other, b)) in with.entries().zip(without.entries()) {
        assert_eq!(key, other);
        same(a, b);
        let (a, b) = (with.get(key).unwrap(), without.get(key).unwrap());
        assert_eq!(a.encoded(), b.encoded());
    }
}
