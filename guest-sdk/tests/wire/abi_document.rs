//! The example in ABI.md is what the code writes and reads.

use hooksieve_sdk::notify;
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Decision, Event, EventHead, SkipIndex, pack, unpack};

const ABI: &str = include_str!("../../ABI.md");

/// The bytes of the block with this name: what stands before `;` on each line. Each offset that is
/// written behind it must be true.
fn block(name: &str) -> Vec<u8> {
    let (_, rest) = ABI
        .split_once(&format!("```hex-{name}\n"))
        .unwrap_or_else(|| panic!("ABI.md has no block {name}"));
    let (block, _) = rest.split_once("```").unwrap();
    let mut bytes = Vec::new();
    for line in block.lines() {
        let (hex, note) = line.split_once(';').unwrap();
        if let Some(Ok(offset)) = note.split_whitespace().next().map(str::parse::<usize>) {
            assert_eq!(offset, bytes.len(), "{line}");
        }
        let values = hex
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16));
        bytes.extend(values.map(|byte| byte.unwrap_or_else(|error| panic!("{line}: {error}"))));
    }
    bytes
}

#[test]
fn the_example_is_true() {
    let data = r#"{
        "total": 12.5,
        "items": [
            {"name": "A book about birds", "quantity": 1},
            {"name": "A map of the Ruhr, in colour", "quantity": 300}
        ],
        "paid": true
    }"#;
    let (event, index) = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "shop",
        kind: "order.paid",
        subject: None,
        time: "2026-03-01T09:30:00Z",
        headers: &[],
    }
    .encode(&Data::from_json(data.as_bytes()).unwrap());
    assert_eq!(block("event"), event);
    assert_eq!(block("index"), index);
    let read = Event::decode(&event, SkipIndex::new(&index)).unwrap();
    assert_eq!(read.i64("/items/1/quantity"), Some(300));

    let decision = notify("mail")
        .title("An order of 12.5")
        .text("A book about birds")
        .because("a paid order");
    assert_eq!(block("decision"), decision.encode());
    assert_eq!(Decision::decode(&block("decision")), Ok(Ok(decision)));
    let error = "no shipping address".to_owned();
    assert_eq!(block("error"), Decision::encode_error(&error));

    // The numbers in the sentences around them.
    let total = event.len().next_multiple_of(4) + index.len();
    let digits = |number: i64| {
        let text = number.to_string();
        let groups: Vec<_> = text.as_bytes().rchunks(3).rev().collect();
        String::from_utf8(groups.join(&b',')).unwrap()
    };
    let returned = pack(8192, block("decision").len() as u32);
    assert_eq!(unpack(returned), Ok((8192, 100)));
    for said in [
        format!("An event of {} bytes:", event.len()),
        format!("hooksieve_reserve({total})"),
        format!(
            "hooksieve_decide(4096, {}, {}, {})",
            event.len(),
            4096 + event.len().next_multiple_of(4),
            index.len()
        ),
        format!("`8192 << 32 | 100`, which is {}.", digits(returned)),
    ] {
        assert!(ABI.contains(&said), "ABI.md does not say: {said}");
    }
}
