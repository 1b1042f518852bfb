//! The files in `golden/` hold version 1 of the contract, byte for byte.

use crate::hex;
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Decision, Event, EventHead, SkipIndex, Value};
use hooksieve_sdk::{notify, post};
use serde::Deserialize;
use std::path::PathBuf;

/// Set to write the files instead of comparing them.
const BLESS: &str = "HOOKSIEVE_BLESS";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name)
}

#[track_caller]
fn check(name: &str, bytes: &[u8]) {
    let path = path(name);
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, bytes).unwrap();
        return;
    }
    let expected = std::fs::read(&path).unwrap_or_default();
    if expected == bytes {
        return;
    }
    let same = expected
        .iter()
        .zip(bytes)
        .take_while(|(a, b)| a == b)
        .count();
    let part = |bytes: &[u8]| hex(&bytes[same.min(bytes.len())..bytes.len().min(same + 24)]);
    panic!(
        "golden/{name} differs from byte {same} on ({} bytes there, {} here)\n  there: {}…\n  here:  {}…\n\
         These bytes are version 1 of the contract: modules that are in use read them. If the change \
         is one that version 1 allows (ABI.md, \"What may change\"), bless it:\n  \
         {BLESS}=1 cargo test -p hooksieve-sdk --test wire golden",
        expected.len(),
        bytes.len(),
        part(&expected),
        part(bytes),
    );
}

/// The readable form of an event.
#[derive(Deserialize)]
struct Source {
    id: String,
    source: String,
    r#type: String,
    subject: Option<String>,
    time: String,
    headers: serde_json::Map<String, serde_json::Value>,
    data: AsData,
}

/// Read as the engine does, without a detour that would merge keys.
struct AsData(Data);

impl<'de> Deserialize<'de> for AsData {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Data::from_deserializer(from).map(Self)
    }
}

fn event() -> (Vec<u8>, Vec<u8>) {
    let source: Source =
        serde_json::from_slice(&std::fs::read(path("event.json")).unwrap()).unwrap();
    let headers: Vec<_> = source
        .headers
        .into_iter()
        .map(|(name, value)| (name, value.as_str().unwrap().to_owned()))
        .collect();
    EventHead {
        id: &source.id,
        source: &source.source,
        kind: &source.r#type,
        subject: source.subject.as_deref(),
        time: &source.time,
        headers: &headers,
    }
    .encode(&source.data.0)
}

#[test]
fn an_event_with_every_kind_of_value() {
    let (bytes, index) = event();
    check("event.msgpack", &bytes);
    check("event.index", &index);

    Value::new(&bytes).validate().unwrap();
    let event = Event::decode(&bytes, SkipIndex::new(&index)).unwrap();
    assert_eq!(event.id(), "01890a5d-ac96-774b-bcce-b302099a8057");
    assert_eq!(event.source(), "github");
    assert_eq!(event.kind(), "issues.opened");
    assert_eq!(event.subject(), Some("octo-org/api"));
    assert_eq!(event.time(), "2026-03-01T09:30:00Z");
    assert_eq!(event.header("x-github-event"), Some("issues"));
    assert_eq!(event.header("x-hub-signature-256"), None);
    assert_eq!(event.str("/issue/labels/1/name"), Some("incident"));
    assert_eq!(event.str("/twice"), Some("the first counts"));
    assert_eq!(
        event
            .data()
            .entries()
            .filter(|(key, _)| *key == "twice")
            .count(),
        2
    );
    assert_eq!(event.get("/integers/12").unwrap().as_u64(), Some(u64::MAX));
    assert_eq!(event.i64("/negatives/9"), Some(i64::MIN));
}

#[test]
fn a_decision_with_everything() {
    let decision = Decision::from(
        notify("oncall")
            .title("CI is red: build on main")
            .text("The tests failed.\nTwo of them.")
            .labelled_link("The run", "https://example.com/runs/17")
            .field("Repository", "octo-org/api")
            .field("Result", "failure"),
    )
    .and(notify("chat").title("Short").link("https://example.com/"))
    .and(
        post("warehouse")
            .set("kind", "order.paid")
            .set("total", 12.5)
            .set("count", 3)
            .set("none", None::<&str>)
            .set("tags", vec!["a", "b"])
            .set("big", u64::MAX)
            .set("low", i64::MIN)
            .set("yes", true),
    )
    .because("a failed run");
    let bytes = decision.encode();
    check("decision.msgpack", &bytes);
    assert_eq!(Decision::decode(&bytes).unwrap().unwrap(), decision);
    let mut readable = serde_json::to_vec_pretty(&decision).unwrap();
    readable.push(b'\n');
    check("decision.json", &readable);

    check("drop.msgpack", &Decision::drop("a bot's").encode());
}

#[test]
fn an_error() {
    let bytes = Decision::encode_error("no shipping address");
    check("error.msgpack", &bytes);
    let error = Decision::decode(&bytes).unwrap().unwrap_err();
    assert_eq!(error, "no shipping address");
}

#[test]
fn a_configuration() {
    let json = std::fs::read(path("config.json")).unwrap();
    let data = Data::from_json(&json).unwrap();
    check("config.msgpack", data.bytes());
}
