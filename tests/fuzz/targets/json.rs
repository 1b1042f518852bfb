//! Any bytes as a webhook's body: what is taken is what a JSON reader finds in it, and what is not
//! taken is no JSON, nests too deep, or holds a number beyond every float.
#![no_main]

use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{DEPTH_MAX, Event, EventHead, SkipIndex};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let read: Result<Value, _> = serde_json::from_slice(body);
    let data = match (Data::from_json(body), &read) {
        (Ok(data), Ok(_)) => data,
        (Err(_), Err(_)) => return,
        (Err(error), Ok(value)) => {
            assert!(depth(value) > DEPTH_MAX, "refused: {error}");
            return;
        }
        (Ok(_), Err(error)) => panic!("taken, and it is no JSON: {error}"),
    };
    let head = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "test",
        kind: "test",
        subject: Some("subject"),
        time: "2026-01-01T00:00:00Z",
        headers: &[],
    };
    let (event, index) = head.encode(&data);
    let event = Event::decode(&event, SkipIndex::new(&index)).unwrap();
    event
        .data()
        .validate()
        .unwrap_or_else(|error| panic!("{error}"));
    // Of a key that stands twice both readers take the last.
    assert_eq!(event.data_as::<Value>().ok(), read.ok());
});

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
