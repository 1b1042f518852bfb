//! From what the rule made to the values that are bound: each of the type that the tenant declared, or
//! a sentence that says which is not. Pure.
//!
//! A message is read as the map `{title, text, link: {url, label}, fields: [{name, value}]}`, a body as
//! it is. Nothing is converted that could lose anything or surprise: a number in a string is a string.

use super::statement::Driver;
use crate::store::Delivery;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hooksieve_sdk::wire::Payload;
use serde_json::Value as Json;

/// What one place of the statement gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binding {
    /// What the engine knows of the delivery.
    Given(Given),
    /// Part of what the rule made, by its JSON pointer (RFC 6901).
    Pointer {
        pointer: String,
        r#type: Type,
        /// Without it, nothing there and `null` bind NULL.
        required: bool,
    },
}

/// What the engine knows of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The same at every try, so that a unique column takes the row once.
    DeliveryId,
    EventId,
    EventType,
    Reason,
    Rule,
    Source,
    Subject,
    /// The event's, as a timestamp.
    Time,
}

/// What a value must be, and what it is bound as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Text,
    Integer,
    Float,
    Boolean,
    /// Any value, as JSON text.
    Json,
    /// A string of RFC 3339.
    Timestamp,
    /// A string of Base64.
    Bytes,
}

/// A value with its type; `None` is NULL.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(Option<String>),
    Integer(Option<i64>),
    Float(Option<f64>),
    Boolean(Option<bool>),
    Json(Option<String>),
    Timestamp(Option<jiff::Timestamp>),
    Bytes(Option<Vec<u8>>),
}

impl Given {
    pub const ALL: [(&'static str, Given); 8] = [
        ("delivery_id", Given::DeliveryId),
        ("event_id", Given::EventId),
        ("event_type", Given::EventType),
        ("reason", Given::Reason),
        ("rule", Given::Rule),
        ("source", Given::Source),
        ("subject", Given::Subject),
        ("time", Given::Time),
    ];
}

impl Type {
    pub const ALL: [(&'static str, Type); 7] = [
        ("boolean", Type::Boolean),
        ("bytes", Type::Bytes),
        ("float", Type::Float),
        ("integer", Type::Integer),
        ("json", Type::Json),
        ("text", Type::Text),
        ("timestamp", Type::Timestamp),
    ];

    /// What a value of it is in the rule's data.
    fn expected(self) -> &'static str {
        match self {
            Type::Text => "a string",
            Type::Integer => "an integer of 64 bits",
            Type::Float => "a number",
            Type::Boolean => "a boolean",
            Type::Json => "any value",
            Type::Timestamp => "a string with a time of RFC 3339",
            Type::Bytes => "a string of Base64",
        }
    }

    fn null(self) -> Value {
        match self {
            Type::Text => Value::Text(None),
            Type::Integer => Value::Integer(None),
            Type::Float => Value::Float(None),
            Type::Boolean => Value::Boolean(None),
            Type::Json => Value::Json(None),
            Type::Timestamp => Value::Timestamp(None),
            Type::Bytes => Value::Bytes(None),
        }
    }

    fn read(self, json: &Json) -> Option<Value> {
        Some(match self {
            Type::Text => Value::Text(Some(json.as_str()?.to_owned())),
            Type::Integer => Value::Integer(Some(json.as_i64()?)),
            Type::Float => Value::Float(Some(json.as_f64()?)),
            Type::Boolean => Value::Boolean(Some(json.as_bool()?)),
            Type::Json => Value::Json(Some(json.to_string())),
            Type::Timestamp => Value::Timestamp(Some(json.as_str()?.parse().ok()?)),
            Type::Bytes => Value::Bytes(Some(BASE64.decode(json.as_str()?).ok()?)),
        })
    }
}

/// The values of one delivery, in the order of the statement's places.
///
/// # Errors
/// One sentence with the pointer and the types; it never holds the value.
pub(super) fn values(
    driver: Driver,
    bindings: &[Binding],
    delivery: &Delivery,
) -> Result<Vec<Value>, String> {
    let made = match &delivery.payload {
        Payload::Message(message) => serde_json::to_value(message),
        Payload::Body(body) => serde_json::to_value(body),
    };
    let made = made.map_err(|error| format!("the body cannot become JSON: {error}"))?;
    let value = |binding: &Binding| match binding {
        Binding::Given(given) => self::given(*given, delivery),
        Binding::Pointer {
            pointer,
            r#type,
            required,
        } => match made.pointer(pointer) {
            None | Some(Json::Null) if *required => Err(format!(
                "there is nothing at {pointer:?}, which is required"
            )),
            None | Some(Json::Null) => Ok(r#type.null()),
            Some(json) => r#type.read(json).ok_or_else(|| {
                let (expected, is) = (r#type.expected(), kind(json));
                format!("the value at {pointer:?} is {is}, and {expected} is bound there")
            }),
        },
    };
    let checked = |binding: &Binding| {
        let value = value(binding)?;
        let nul = matches!(&value, Value::Text(Some(text)) if text.contains('\0'));
        match nul && driver == Driver::Postgres {
            true => Err(format!(
                "{} has a NUL in it, which no text of Postgres can hold; bind it as json, or leave it out in the rule",
                binding.place()
            )),
            false => Ok(value),
        }
    };
    bindings.iter().map(checked).collect()
}

impl Binding {
    /// Where its value comes from.
    fn place(&self) -> String {
        match self {
            Binding::Pointer { pointer, .. } => format!("the value at {pointer:?}"),
            Binding::Given(given) => {
                let name = Given::ALL.iter().find(|(_, it)| it == given);
                format!("`{}`", name.map_or("a value", |(name, _)| name))
            }
        }
    }
}

fn given(given: Given, delivery: &Delivery) -> Result<Value, String> {
    let about = &delivery.about;
    Ok(Value::Text(Some(match given {
        Given::DeliveryId => delivery.id.to_string(),
        Given::EventId => delivery.event.to_string(),
        Given::EventType => about.kind.clone(),
        Given::Reason => delivery.reason.clone(),
        Given::Rule => delivery.rule.to_string(),
        Given::Source => about.source.to_string(),
        Given::Subject => return Ok(Value::Text(about.subject.clone())),
        Given::Time => {
            let time = about.time.parse();
            let time = time.map_err(|_| "the event's time is not one of RFC 3339")?;
            return Ok(Value::Timestamp(Some(time)));
        }
    })))
}

/// What a value is, told without telling it.
fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "nothing",
        Json::Bool(_) => "a boolean",
        Json::Number(number) if number.is_u64() && !number.is_i64() => "an integer of over 63 bits",
        Json::Number(number) if number.is_f64() => "a number with a fraction or exponent",
        Json::Number(_) => "an integer",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "a map",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::{delivery, hostile_message};
    use hooksieve_sdk::wire::Body;
    use hooksieve_sdk::wire::json::Data;

    fn bound(json: &str, pointer: &str, r#type: Type, required: bool) -> Result<Value, String> {
        let data = Data::from_json(json.as_bytes()).unwrap();
        let body = Payload::Body(Body::from_msgpack(data.bytes().to_vec()));
        let binding = Binding::Pointer {
            pointer: pointer.into(),
            r#type,
            required,
        };
        values(Driver::Postgres, &[binding], &delivery(body)).map(|mut values| values.remove(0))
    }

    #[test]
    fn a_value_is_of_its_declared_type() {
        let json = r#"{"a/b": {"~": ["x", -7, 1.5, true, null]}, "at": "2025-06-01T14:00:00+02:00",
                       "raw": "AP8=", "big": 18446744073709551615, "map": {"z": 1, "a": [null]}}"#;
        let at = "2025-06-01T12:00:00Z".parse().unwrap();
        for (pointer, r#type, value) in [
            ("/a~1b/~0/0", Type::Text, Value::Text(Some("x".into()))),
            ("/a~1b/~0/1", Type::Integer, Value::Integer(Some(-7))),
            ("/a~1b/~0/1", Type::Float, Value::Float(Some(-7.0))),
            ("/a~1b/~0/2", Type::Float, Value::Float(Some(1.5))),
            ("/a~1b/~0/3", Type::Boolean, Value::Boolean(Some(true))),
            ("/a~1b/~0/4", Type::Boolean, Value::Boolean(None)),
            ("/at", Type::Timestamp, Value::Timestamp(Some(at))),
            ("/raw", Type::Bytes, Value::Bytes(Some(vec![0, 255]))),
            (
                "/map",
                Type::Json,
                Value::Json(Some(r#"{"z":1,"a":[null]}"#.into())),
            ),
            ("/map/a/0", Type::Json, Value::Json(None)),
            ("/none", Type::Timestamp, Value::Timestamp(None)),
        ] {
            assert_eq!(bound(json, pointer, r#type, false), Ok(value), "{pointer}");
        }
        for (pointer, r#type, error) in [
            ("/at", Type::Integer, "a string, and an integer of 64 bits"),
            ("/a~1b/~0/1", Type::Text, "an integer, and a string"),
            (
                "/a~1b/~0/2",
                Type::Integer,
                "a number with a fraction or exponent, and an integer of 64 bits",
            ),
            (
                "/big",
                Type::Integer,
                "an integer of over 63 bits, and an integer of 64 bits",
            ),
            (
                "/a~1b/~0/0",
                Type::Timestamp,
                "a string, and a string with a time of RFC 3339",
            ),
            ("/at", Type::Bytes, "a string, and a string of Base64"),
            ("/map", Type::Boolean, "a map, and a boolean"),
            ("/a~1b/~0", Type::Float, "an array, and a number"),
        ] {
            assert_eq!(
                bound(json, pointer, r#type, false),
                Err(format!(
                    "the value at {pointer:?} is {error} is bound there"
                ))
            );
        }
        for pointer in ["/none", "/a~1b/~0/4"] {
            assert_eq!(
                bound(json, pointer, Type::Text, true),
                Err(format!(
                    "there is nothing at {pointer:?}, which is required"
                ))
            );
        }
    }

    #[test]
    fn a_nul_is_named_by_its_pointer() {
        let json = r#"{"note": "a\u0000b", "list": ["\u0000"]}"#;
        assert_eq!(
            bound(json, "/note", Type::Text, true).unwrap_err(),
            "the value at \"/note\" has a NUL in it, which no text of Postgres can hold; bind it as json, or leave it out in the rule"
        );
        assert!(bound(json, "/list", Type::Json, true).is_ok());
        let mut told = delivery(Payload::Message(hostile_message()));
        told.about.subject = Some("\0".into());
        let subject = [Binding::Given(Given::Subject)];
        let error = values(Driver::Postgres, &subject, &told).unwrap_err();
        assert!(error.starts_with("`subject` has a NUL in it"), "{error}");
        // The others take it.
        assert!(values(Driver::MySql, &subject, &told).is_ok());
    }

    #[test]
    fn a_message_is_a_map_and_the_engine_gives_the_rest() {
        let message = hostile_message();
        let delivery = delivery(Payload::Message(message.clone()));
        let mut bindings: Vec<Binding> = Given::ALL.map(|(_, given)| Binding::Given(given)).into();
        for pointer in ["/title", "/link/url", "/fields/0/value", "/fields/7/name"] {
            bindings.push(Binding::Pointer {
                pointer: pointer.into(),
                r#type: Type::Text,
                required: false,
            });
        }
        let text = |text: &str| Value::Text(Some(text.to_owned()));
        assert_eq!(
            values(Driver::MySql, &bindings, &delivery).unwrap(),
            [
                text(&delivery.id.to_string()),
                text(&delivery.event.to_string()),
                text("workflow_run.completed"),
                text("the build of <main> failed"),
                text("triage"),
                text("github"),
                text("octo/api"),
                Value::Timestamp(Some("2025-06-01T12:00:00Z".parse().unwrap())),
                text(&message.title),
                text(&message.link.unwrap().url),
                text("octo/<api> & co"),
                Value::Text(None),
            ]
        );
    }
}
