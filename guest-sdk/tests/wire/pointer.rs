//! JSON pointers, by the examples of RFC 6901 (section 5) and what it leaves to mistakes.

use hooksieve_sdk::wire::Value;
use hooksieve_sdk::wire::json::Data;

#[track_caller]
fn check(json: &str, pointer: &str, expected: Option<&str>) {
    let data = Data::from_json(json.as_bytes()).unwrap();
    let found = Value::new(data.bytes()).pointer(pointer);
    let found = found.map(|value| serde_json::to_string(&value).unwrap());
    assert_eq!(found.as_deref(), expected, "{pointer:?}");
}

#[test]
fn the_examples_of_the_rfc() {
    let document = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
    check(document, "", Some(document));
    for (pointer, expected) in [
        ("/foo", r#"["bar","baz"]"#),
        ("/foo/0", r#""bar""#),
        ("/", "0"),
        ("/a~1b", "1"),
        ("/c%d", "2"),
        ("/e^f", "3"),
        ("/g|h", "4"),
        ("/i\\j", "5"),
        ("/k\"l", "6"),
        ("/ ", "7"),
        ("/m~0n", "8"),
    ] {
        check(document, pointer, Some(expected));
    }
}

#[test]
fn escapes_are_undone_once_and_in_order() {
    let document = r#"{"~1":1,"/":2,"~":3,"~01":4,"a":{"/~":5}}"#;
    check(document, "/~01", Some("1"));
    check(document, "/~1", Some("2"));
    check(document, "/~0", Some("3"));
    check(document, "/~001", Some("4"));
    check(document, "/a/~1~0", Some("5"));
    // A tilde that escapes nothing names nothing.
    for pointer in ["/~", "/~2", "/a~", "/~~"] {
        check(document, pointer, None);
    }
}

#[test]
fn array_positions_are_plain_digits() {
    let document = r#"[10,11,12,13,14,15,16,17,18,19,20]"#;
    check(document, "/0", Some("10"));
    check(document, "/10", Some("20"));
    for pointer in [
        "/11",
        "/-",
        "/-1",
        "/+1",
        "/01",
        "/00",
        "/1.0",
        "/ 1",
        "/1 ",
        "/",
        "/x",
        "/0/0",
        "/9999999999",
        "/99999999999999999999999999",
        "/١",
    ] {
        check(document, pointer, None);
    }
    // In a map the same steps are keys.
    check(r#"{"01":1,"-":2,"0":3}"#, "/01", Some("1"));
    check(r#"{"01":1,"-":2,"0":3}"#, "/-", Some("2"));
    check(r#"{"01":1,"-":2,"0":3}"#, "/0", Some("3"));
}

#[test]
fn what_leads_nowhere_is_none() {
    let document = r#"{"a":{"b":[{"c":1}]},"":{"":2}}"#;
    check(document, "/a/b/0/c", Some("1"));
    check(document, "//", Some("2"));
    for pointer in [
        "a",
        "a/b",
        "/a/",
        "/a/b/",
        "/a/b/0/c/d",
        "/A",
        "/a/b/c",
        "#/a",
        "///",
    ] {
        check(document, pointer, None);
    }
    check("1", "", Some("1"));
    check("1", "/", None);
    check("\"text\"", "/0", None);
}
