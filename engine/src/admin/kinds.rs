//! What a source or a channel of each kind may say, for the API's description. The reader of tenants' files
//! is what decides; a test below keeps the two together.

use serde_json::{Map, Value, json};
use std::iter;

/// For each kind its fields, and what is the same for every kind.
const KINDS: &str = include_str!("kinds.json");

/// The schemas: `SourceBody`, `ChannelBody`, one for each kind, and those of what they consist of.
pub(crate) fn schemas() -> Map<String, Value> {
    let mut kinds: Map<String, Value> = match serde_json::from_str(KINDS) {
        Ok(kinds) => kinds,
        Err(error) => unreachable!("kinds.json: {error}"),
    };
    let mut schemas = object(kinds["texts"].take());
    for (thing, body) in [("source", "SourceBody"), ("channel", "ChannelBody")] {
        let of_thing = object(kinds[thing].take());
        let every = object(of_thing["every"].clone());
        let mut mapping = Map::new();
        for (name, mut given) in of_thing.into_iter().filter(|(name, _)| name != "every") {
            let kind = given["kind"].take();
            let mut properties = object(json!({ "kind": { "type": "string", "const": &kind } }));
            properties.extend(object(given["properties"].take()));
            properties.extend(every.clone());
            let required = given["required"].take();
            let required = required.as_array().into_iter().flatten().cloned();
            let mut schema = json!({
                "type": "object",
                "required": iter::once("kind".into()).chain(required).collect::<Vec<Value>>(),
                "properties": properties,
                "additionalProperties": false,
            });
            // What its fields ask of each other.
            for keyword in ["oneOf", "dependentRequired"] {
                if let Some(rule) = given.get_mut(keyword) {
                    schema[keyword] = rule.take();
                }
            }
            let place = format!("#/components/schemas/{name}");
            mapping.insert(kind.as_str().unwrap_or_default().to_owned(), place.into());
            schemas.insert(name, schema);
        }
        let kinds = mapping.values().map(|place| json!({ "$ref": place }));
        let described = format!(
            "What would stand in a tenant's file as a `[[{thing}]]`, but for the name. A secret is its text. All \
             of it is given anew each time: a secret that is left out is gone."
        );
        let whole = json!({
            "description": described,
            "oneOf": kinds.collect::<Vec<_>>(),
            "discriminator": { "propertyName": "kind", "mapping": mapping },
        });
        schemas.insert(body.to_owned(), whole);
    }
    schemas
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Name;
    use crate::tenant;
    use std::collections::{BTreeMap, BTreeSet};

    /// Each kind with all that it may say.
    fn examples() -> Value {
        let hook = "https://chat.example/hook/1";
        json!({
            "GitHubSource": { "secret": ["new", "old"] },
            "ShopifySource": { "secret": "s" },
            "JsonSource": {
                "token": ["new", "old"], "access_tokens": false, "open": false, "type": "alert", "type_from": "/kind",
                "id_from": "/id", "subject_from": "/about",
            },
            "DiscordChannel": { "url": hook },
            "EmailChannel": {
                "host": "mail.example", "port": 25, "tls": "tls", "username": "u", "password": "p",
                "from": "a@mail.example", "to": ["b@mail.example"], "reply_to": "c@mail.example",
                "list_unsubscribe": "mailto:d@mail.example", "dkim": {},
            },
            "LarkChannel": { "url": hook, "secret": "s" },
            "PagerDutyChannel": { "routing_key": "0".repeat(32), "severity": "info", "url": hook },
            "SlackChannel": { "url": hook },
            "SqlChannel": {
                "driver": "mysql", "host": "db.example", "port": 5, "database": "d", "username": "u",
                "password": "p", "tls": "require", "statement": "insert into t values (?, ?, ?)",
                "values": ["event_id", "/text", { "pointer": "/n", "type": "integer", "required": true }],
            },
            "TeamsChannel": { "url": hook },
            "VoiceChannel": {
                "account_sid": "AC1", "auth_token": "t", "from": "+12025550123", "to": ["+12025550124"],
                "url": hook, "calls_per_hour_max": 5.0, "language": "de-DE", "repeat": 1,
            },
            "WebhookChannel": {
                "url": hook, "secret": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "method": "PUT",
                "headers": { "X-One": "1" },
            },
        })
    }

    fn read(kind: &str, settings: &Map<String, Value>) -> Result<(), String> {
        let name = "a".parse::<Name>().unwrap();
        match kind.ends_with("Source") {
            true => tenant::source(&name, settings).map(drop),
            false => tenant::channel(&name, settings, 10_000).map(drop),
        }
    }

    /// The description has the keys that the reader has: no fewer, no more.
    #[test]
    fn what_is_described_is_what_is_read() {
        let every = json!({ "timeout_ms": 500, "rates": ["5/s"], "in_flight_max": 2.0, "retry_ms": [1, 2] });
        let schemas = schemas();
        let kinds: BTreeSet<&str> = ["SourceBody", "ChannelBody"]
            .iter()
            .flat_map(|body| schemas[*body]["oneOf"].as_array().unwrap())
            .map(|kind| kind["$ref"].as_str().unwrap().rsplit('/').next().unwrap())
            .collect();
        let examples: BTreeMap<String, Map<String, Value>> =
            serde_json::from_value(examples()).unwrap();
        assert_eq!(kinds, examples.keys().map(String::as_str).collect());
        // All that could be a key.
        let words: BTreeSet<&str> = include_str!("../tenant.rs")
            .split('"')
            .filter(|word| {
                !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            })
            .collect();
        for (kind, mut settings) in examples {
            let described = &schemas[&kind]["properties"];
            settings.insert("kind".to_owned(), described["kind"]["const"].clone());
            if kind.ends_with("Channel") {
                settings.extend(object(every.clone()));
            }
            let keys: BTreeSet<&str> = settings.keys().map(String::as_str).collect();
            let known = described.as_object().unwrap();
            assert_eq!(keys, known.keys().map(String::as_str).collect(), "{kind}");
            for key in schemas[&kind]["required"].as_array().unwrap() {
                let mut less = settings.clone();
                less.remove(key.as_str().unwrap());
                assert!(read(&kind, &less).is_err(), "{kind} without {key}");
            }
            if let Some(dkim) = settings.remove("dkim") {
                let mut more = settings.clone();
                more.insert("dkim".to_owned(), dkim);
                assert!(read(&kind, &more).unwrap_err().contains("has no `domain`"));
            }
            assert_eq!(read(&kind, &settings), Ok(()), "{kind}");
            for word in words
                .iter()
                .filter(|word| !known.contains_key(**word) && **word != "name")
            {
                let mut more = settings.clone();
                more.insert((*word).to_owned(), "x".into());
                let error = read(&kind, &more).unwrap_err();
                assert!(
                    error.contains(&format!("has no key `{word}`")),
                    "{kind}: {error}"
                );
            }
        }
    }
}
