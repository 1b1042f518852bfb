//! Any bytes as an event, with any bytes as its skip index: reading ends, and reads nothing but them.
#![no_main]

use hooksieve_sdk::wire::{Event, SkipIndex, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], &str, &[u8])| {
    let (index, pointer, bytes) = input;
    let index = SkipIndex::new(index);
    let mut left = 1_000;
    walk(Value::indexed(bytes, index), &mut left);
    let Ok(event) = Event::decode(bytes, index) else {
        return;
    };
    event.id();
    event.source();
    event.kind();
    event.subject();
    event.time();
    event.header(pointer);
    event.str(pointer);
    event.i64(pointer);
    event.f64(pointer);
    event.bool(pointer);
    for value in event.each(pointer).take(100) {
        value.encoded();
    }
    walk(event.headers(), &mut left);
    walk(event.data(), &mut left);
    let _ = event.data_as::<serde_json::Value>();
});

/// Reads every value, as far as that is finite: an index that lies can make a document of any size.
fn walk(value: Value<'_>, left: &mut u32) {
    if *left == 0 {
        return;
    }
    *left -= 1;
    value.kind();
    value.as_str();
    value.as_bool();
    value.as_i64();
    value.as_u64();
    value.as_f64();
    value.encoded();
    let _ = value.validate();
    for item in value.items().take(*left as usize) {
        walk(item, left);
    }
    for (key, item) in value.entries().take(*left as usize) {
        assert!(value.get(key).is_some());
        walk(item, left);
    }
}
