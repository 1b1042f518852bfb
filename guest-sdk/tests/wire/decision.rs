//! Answers: what is written is read, what is read is exactly the contract, and the limits hold.

use crate::{any, hex};
use hooksieve_sdk::prelude::*;
use hooksieve_sdk::wire::Decision;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(decision in any::decision()) {
        let bytes = decision.encode();
        prop_assert_eq!(Decision::decode(&bytes).unwrap().unwrap(), decision.clone());
        // serde's own reading and writing of the same types.
        prop_assert_eq!(&rmp_serde::from_slice::<Decision>(&bytes).unwrap(), &decision);
        let named = rmp_serde::to_vec_named(&decision).unwrap();
        prop_assert_eq!(Decision::decode(&named).unwrap().unwrap(), decision.clone());
        let json = serde_json::to_string(&decision).unwrap();
        let there: serde_json::Value = serde_json::from_str(&json).unwrap();
        let again: Decision = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(serde_json::to_value(&again).unwrap(), there);
    }

    #[test]
    fn what_is_accepted_is_what_serde_reads(
        decision in any::decision(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes = decision.encode();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(Ok(ours)) = Decision::decode(&bytes) {
            let theirs: Decision = rmp_serde::from_slice(&bytes)
                .unwrap_or_else(|error| panic!("{error}: {}", hex(&bytes)));
            prop_assert_eq!(serde_json::to_value(&ours).unwrap(), serde_json::to_value(&theirs).unwrap());
        }
    }

    #[test]
    fn errors_are_text(message in any::text()) {
        let bytes = Decision::encode_error(&message);
        prop_assert_eq!(Decision::decode(&bytes).unwrap(), Err(message));
    }
}

#[track_caller]
fn refused(json: &str, expected: &str) {
    let data = hooksieve_sdk::wire::json::Data::from_json(json.as_bytes()).unwrap();
    let error = Decision::decode(data.bytes()).unwrap_err();
    assert_eq!(error.to_string(), expected, "{json}");
}

#[test]
fn what_is_not_the_contract_is_refused_with_its_place() {
    refused("[]", "the decision is an array, not a map");
    refused("{}", "the decision has no `reason`");
    refused(r#"{"reason": "r"}"#, "the decision has no `actions`");
    refused(
        r#"{"reason": 1, "actions": []}"#,
        "reason is an integer, not a string",
    );
    refused(
        r#"{"reason": "r", "actions": {}}"#,
        "actions is a map, not an array",
    );
    refused(
        r#"{"reason": "r", "actions": [], "more": 1}"#,
        "the decision has the unknown key \"more\"",
    );
    refused(
        r#"{"reason": "r", "reason": "s", "actions": []}"#,
        "the decision has `reason` twice",
    );
    refused(
        r#"{"error": "e", "reason": "r"}"#,
        "`error` stands beside other keys",
    );
    refused(r#"{"error": null}"#, "error is nothing, not a string");
    let action = |action: &str, expected: &str| {
        refused(
            &format!(r#"{{"reason": "r", "actions": [{action}]}}"#),
            expected,
        );
    };
    action("1", "actions[0] is an integer, not a map");
    action("{}", "actions[0] has no `channel`");
    action(
        r#"{"channel": "a"}"#,
        "actions[0] has no `message` or `body`",
    );
    action(
        r#"{"channel": "a", "message": {"title": "t"}, "body": 1}"#,
        "actions[0] has more than one `message` or `body`",
    );
    action(
        r#"{"channel": "a", "channel": "b", "body": 1}"#,
        "actions[0] has `channel` twice",
    );
    action(
        r#"{"channel": "a", "delay": 1, "body": 1}"#,
        "actions[0] has the unknown key \"delay\"",
    );
    let message = |message: &str, expected: &str| {
        action(
            &format!(r#"{{"channel": "a", "message": {message}}}"#),
            expected,
        );
    };
    message("{}", "actions[0].message has no `title`");
    message(
        r#"{"title": true}"#,
        "actions[0].message.title is a boolean, not a string",
    );
    message(
        r#"{"title": "t", "html": "x"}"#,
        "actions[0].message has the unknown key \"html\"",
    );
    message(
        r#"{"title": "t", "text": "a", "text": "b"}"#,
        "actions[0].message has `text` twice",
    );
    message(
        r#"{"title": "t", "link": {}}"#,
        "actions[0].message.link has no `url`",
    );
    message(
        r#"{"title": "t", "link": {"url": "u", "label": 1}}"#,
        "actions[0].message.link.label is an integer, not a string",
    );
    message(
        r#"{"title": "t", "fields": [{"name": "n"}]}"#,
        "actions[0].message.fields[0] has no `value`",
    );
}

#[test]
fn what_may_be_left_out_is_left_out() {
    let data = hooksieve_sdk::wire::json::Data::from_json(
        br#"{"actions": [{"message": {"title": "t", "link": null, "fields": []}, "channel": "a"}], "reason": ""}"#,
    )
    .unwrap();
    let decision = Decision::decode(data.bytes()).unwrap().unwrap();
    assert_eq!(decision, notify("a").title("t").into());
}

#[test]
fn a_body_has_61_levels() {
    let body = |depth: usize| {
        let json = format!("{}{}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        let recorded = hooksieve_sdk::testing::event("deep", json);
        let decision = post("hook")
            .copy("data", Some(recorded.event().data()))
            .because("deep");
        Decision::decode(&decision.encode()).map(|_| ())
    };
    assert_eq!(body(61), Ok(()));
    let error = body(62).unwrap_err().to_string();
    assert!(
        error.starts_with("it nests deeper than 64 levels"),
        "{error}"
    );
}
