//! Any JSON value and any decision, for properties.

use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Action, Body, Decision, Field, Link, Message, Payload};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Number, Value as Json};

pub(crate) fn text() -> impl Strategy<Value = String> {
    let short = vec(any::<char>(), 0..12).prop_map(String::from_iter);
    // Keys that pointers must escape, and lengths around each boundary of MessagePack's.
    let special = prop::sample::select(vec!["", "/", "~", "~0", "~1", "a/b", "m~n", "0", "-", "é"]);
    let long = (
        prop::sample::select(vec![31usize, 32, 255, 256, 300]),
        any::<char>(),
    )
        .prop_map(|(len, with)| std::iter::repeat_n(with, len).collect());
    prop_oneof![6 => short, 2 => special.prop_map(str::to_owned), 1 => long]
}

pub(crate) fn json() -> impl Strategy<Value = Json> {
    let float = any::<f64>().prop_filter_map("JSON has finite numbers", Number::from_f64);
    let boundary = (0u32..64, -1i64..=1)
        .prop_map(|(bit, more)| (1i64 << bit).wrapping_add(more))
        .prop_map(Json::from);
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<u64>().prop_map(Json::from),
        boundary.clone(),
        boundary.prop_map(|n| Json::from(n.as_i64().unwrap_or(0).wrapping_neg())),
        float.prop_map(Json::Number),
        text().prop_map(Json::from),
    ];
    leaf.prop_recursive(6, 200, 20, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..20).prop_map(Json::from),
            vec((text(), inner), 0..20).prop_map(|entries| Json::Object(Map::from_iter(entries))),
        ]
    })
}

fn message() -> impl Strategy<Value = Message> {
    let link = (text(), prop::option::of(text())).prop_map(|(url, label)| Link { url, label });
    let field = (text(), text()).prop_map(|(name, value)| Field { name, value });
    (text(), text(), prop::option::of(link), vec(field, 0..18)).prop_map(
        |(title, text, link, fields)| Message {
            title,
            text,
            link,
            fields,
        },
    )
}

pub(crate) fn decision() -> impl Strategy<Value = Decision> {
    let body = json().prop_map(|json| {
        let data = Data::from_json(json.to_string().as_bytes()).unwrap();
        Payload::Body(Body::from_msgpack(data.bytes().to_vec()))
    });
    let payload = prop_oneof![message().prop_map(Payload::Message), body];
    let action = (text(), payload).prop_map(|(channel, payload)| Action {
        channel,
        payload,
        timing: None,
    });
    (text(), vec(action, 0..18)).prop_map(|(reason, actions)| Decision { reason, actions })
}
