//! Slack's incoming webhooks: a message as blocks, within Slack's limits, all of it escaped.
//!
//! The address of an incoming webhook is its only protection, so it is a secret: it stands in no
//! error and no log. An answer is success only when it is 200 and says `ok`. Message text stays
//! text: no mention, no link, no markup and no emoji name in it takes effect. So all of it stands in
//! objects that are plain text, with emoji off, and the link in an element of rich text: Slack's markup
//! (`mrkdwn`) has escapes for `&`, `<` and `>` alone, and none for `*`, `_`, backquotes and `:rocket:`.
//!
//! Format and limits: Slack's documents "Sending messages using incoming webhooks", "Block Kit"
//! ("Text object", "Rich text block") and "Formatting text for app surfaces".

use super::answer::Secrets;
use super::outgoing::{self, Outgoing};
use super::text::{self, angle_entity, escaped};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use crate::timing::Room;
use hooksieve_sdk::wire::{Message, Payload};
use serde_json::{Value, json};
use std::time::Duration;
use url::Url;

const HEADER_CHARS_MAX: usize = 150;
const TEXT_CHARS_MAX: usize = 3000;
pub(super) const ROOM: Room = Room::new(TEXT_CHARS_MAX, |text| text::width(text, angle_entity));
const FIELD_CHARS_MAX: usize = 2000;
const FIELDS_PER_SECTION_MAX: usize = 10;
const BLOCKS_MAX: usize = 50;
const URL_CHARS_MAX: usize = 3000;
/// How much of a field's text its name may take.
const FIELD_NAME_CHARS_MAX: usize = 200;

/// What a tenant file says of a Slack channel.
pub struct Settings {
    /// The address of the incoming webhook.
    pub url: Secret,
    pub timeout_ms: u64,
}

/// A Slack channel with checked settings.
pub struct Slack {
    url: Url,
    pub(super) timeout: Duration,
}

impl Slack {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the address.
    pub fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self {
            url: outgoing::web_address(settings.url.expose())?,
            timeout: Duration::from_millis(settings.timeout_ms),
        })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let Payload::Message(message) = &delivery.payload else {
            return Err(Failure::never("slack takes a message, not a body"));
        };
        let body = payload(delivery, message);
        let answer = client.post_json(&self.url, &body, self.timeout).await?;
        let host = outgoing::host(&self.url);
        if answer.status != 200 {
            let error = match word(&answer.body) {
                Some(word) => format!("{host} answered {} ({word})", answer.status),
                None => format!("{host} answered {}", answer.status),
            };
            return Err(answer.failure(error));
        }
        if answer.body.trim_ascii() != b"ok" {
            // Something else stands there, for now or for good: nothing says the message was refused.
            let error = format!("{host} answered 200 without Slack's ok");
            return Err(answer.failed(error, Retry::Later));
        }
        Ok(Sent {
            status: Some(200),
            refused: Vec::new(),
        })
    }

    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        secrets.url(&self.url);
    }
}

pub(super) fn payload(delivery: &Delivery, message: &Message) -> Value {
    let title = text::title(delivery, &message.title, HEADER_CHARS_MAX);
    let mut blocks = vec![json!({
        "type": "header",
        "text": plain(escape(&title, HEADER_CHARS_MAX)),
    })];
    let body = text::lines(&message.text);
    if !body.trim().is_empty() {
        let text = plain(escape(&body, TEXT_CHARS_MAX));
        blocks.push(json!({"type": "section", "text": text}));
    }
    let link = message.link.as_ref().and_then(link);
    let sections_max = BLOCKS_MAX - blocks.len() - usize::from(link.is_some()) - 1;
    for fields in message
        .fields
        .chunks(FIELDS_PER_SECTION_MAX)
        .take(sections_max)
    {
        let fields: Vec<_> = fields
            .iter()
            .map(|field| {
                let name = escape(
                    &text::one_line(&field.name, FIELD_NAME_CHARS_MAX),
                    FIELD_NAME_CHARS_MAX,
                );
                let room = FIELD_CHARS_MAX - name.chars().count() - ":\n".len();
                let value = escape(&text::lines(&field.value), room);
                plain(format!("{name}:\n{value}"))
            })
            .collect();
        blocks.push(json!({"type": "section", "fields": fields}));
    }
    if let Some(link) = link {
        blocks.push(link);
    }
    blocks.push(json!({
        "type": "context",
        "elements": [plain(escape(&text::footer(delivery), FIELD_CHARS_MAX))],
    }));
    // The text is what a notification shows.
    json!({"text": escape(&title, TEXT_CHARS_MAX), "mrkdwn": false, "blocks": blocks})
}

/// Text in which Slack finds nothing: no markup, and no emoji by their names.
fn plain(text: String) -> Value {
    json!({"type": "plain_text", "text": text, "emoji": false})
}

fn escape(text: &str, chars_max: usize) -> String {
    escaped(text, chars_max, angle_entity)
}

/// A link whose label is what it is, or nothing where the address does not fit: a cut address leads
/// astray.
fn link(link: &hooksieve_sdk::wire::Link) -> Option<Value> {
    let (url, label) = text::web_link(link)?;
    let fits = url.as_str().chars().count() <= URL_CHARS_MAX;
    fits.then(|| {
        let link = json!({"type": "link", "url": url.as_str(), "text": label});
        let section = json!({"type": "rich_text_section", "elements": [link]});
        json!({"type": "rich_text", "elements": [section]})
    })
}

/// Slack's word for what was wrong, such as `invalid_payload`, when the answer is such a word.
fn word(body: &[u8]) -> Option<&str> {
    let word = str::from_utf8(body.trim_ascii()).ok()?;
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    (!word.is_empty() && word.len() <= 40 && word.bytes().all(fits)).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::{answering, delivery, hostile_message, outgoing};
    use axum::http::StatusCode;
    use axum::response::IntoResponse;
    use hooksieve_sdk::wire::{Field, Link};

    fn payload_of(message: Message) -> Value {
        payload(&delivery(Payload::Message(message.clone())), &message)
    }

    #[test]
    fn a_hostile_message_stays_text() {
        let payload = payload_of(hostile_message());
        insta::assert_snapshot!(serde_json::to_string_pretty(&payload).unwrap());
    }

    #[test]
    fn no_text_becomes_markup_or_an_emoji() {
        let text = ":rocket: *b* _i_ ~s~ `c` ```d``` > q";
        let mut of = delivery(Payload::Message(Message::default()));
        of.reason = text.into();
        let message = Message {
            title: text.into(),
            text: text.into(),
            link: Some(Link {
                url: "https://example.com/".into(),
                label: Some(text.into()),
            }),
            fields: vec![Field {
                name: text.into(),
                value: text.into(),
            }],
        };
        let payload = payload(&of, &message);
        assert_eq!(payload["mrkdwn"], false);
        // Where Slack reads markup, and where it makes pictures of names, nothing of the text stands.
        fn check(value: &Value) {
            match value {
                Value::Object(map) => {
                    assert_ne!(map.get("type"), Some(&"mrkdwn".into()), "{value}");
                    if map.get("type") == Some(&"plain_text".into()) {
                        assert_eq!(map.get("emoji"), Some(&false.into()), "{value}");
                    }
                    map.values().for_each(check);
                }
                Value::Array(list) => list.iter().for_each(check),
                _ => {}
            }
        }
        check(&payload["blocks"]);
    }

    #[test]
    fn slacks_limits_are_kept() {
        let payload = payload_of(Message {
            title: "<".repeat(1000),
            text: "&".repeat(100_000),
            link: Some(Link {
                url: format!("https://example.com/{}", "x".repeat(5000)),
                label: None,
            }),
            fields: vec![
                Field {
                    name: ">".repeat(5000),
                    value: "<".repeat(5000),
                };
                1000
            ],
        });
        let blocks = payload["blocks"].as_array().unwrap();
        assert!(blocks.len() <= BLOCKS_MAX, "{}", blocks.len());
        // A cut address would lead astray.
        assert!(!payload.to_string().contains("example.com"));
        let chars = |text: &Value| text.as_str().unwrap().chars().count();
        for block in blocks {
            match block["type"].as_str().unwrap() {
                "header" => assert!(chars(&block["text"]["text"]) <= HEADER_CHARS_MAX),
                "section" if block["fields"].is_array() => {
                    let fields = block["fields"].as_array().unwrap();
                    assert!(fields.len() <= FIELDS_PER_SECTION_MAX);
                    for field in fields {
                        assert!(chars(&field["text"]) <= FIELD_CHARS_MAX);
                    }
                }
                "section" => {
                    let text = block["text"]["text"].as_str().unwrap();
                    assert!(text.chars().count() <= TEXT_CHARS_MAX);
                }
                "context" => assert!(chars(&block["elements"][0]["text"]) <= FIELD_CHARS_MAX),
                other => panic!("unexpected block {other}"),
            }
        }
    }

    #[test]
    fn an_empty_message_has_a_title_all_the_same() {
        let payload = payload_of(Message::default());
        assert_eq!(payload["text"], "workflow_run.completed");
        assert_eq!(payload["blocks"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn an_address_that_is_none_is_not_repeated() {
        let error = Slack::new(Settings {
            url: Secret::new("hooks.slack.com/services/T/B/secret"),
            timeout_ms: 1000,
        })
        .err()
        .unwrap();
        assert_eq!(error, "the url is not one: relative URL without a base");
    }

    #[tokio::test]
    async fn only_ok_is_success() {
        async fn answered(
            answer: impl IntoResponse + Clone + Send + Sync + 'static,
        ) -> Result<Sent, Failure> {
            let address = answering(answer).await.replace("http://", "");
            let slack = Slack::new(Settings {
                url: Secret::new(format!("http://{address}/services/T/B/secret")),
                timeout_ms: 2000,
            })
            .unwrap();
            let client = outgoing(None);
            let delivery = delivery(Payload::Message(hostile_message()));
            let result = slack.send(&client, &delivery).await;
            result.map_err(|mut failure| {
                assert!(!failure.error.contains("services"), "{}", failure.error);
                failure.error = failure.error.replace(&address.to_string(), "slack");
                failure
            })
        }
        assert_eq!(answered("ok").await.unwrap().status, Some(200));
        for (status, body, retry, error) in [
            (
                200,
                "<html>",
                Retry::Later,
                "slack answered 200 without Slack's ok",
            ),
            (202, "ok", Retry::Never, "slack answered 202 (ok)"),
            (302, "", Retry::Never, "slack answered 302"),
            (
                400,
                "invalid_payload",
                Retry::Never,
                "slack answered 400 (invalid_payload)",
            ),
            (
                403,
                "action_prohibited",
                Retry::Never,
                "slack answered 403 (action_prohibited)",
            ),
            (
                404,
                "channel_not_found",
                Retry::Never,
                "slack answered 404 (channel_not_found)",
            ),
            (
                404,
                "<b>Secret words</b>",
                Retry::Never,
                "slack answered 404",
            ),
            (429, "", Retry::Later, "slack answered 429"),
            (
                500,
                "rollup_error",
                Retry::Later,
                "slack answered 500 (rollup_error)",
            ),
        ] {
            let failure = answered((StatusCode::from_u16(status).unwrap(), body))
                .await
                .unwrap_err();
            assert_eq!(
                (failure.status, failure.retry, failure.error.as_str()),
                (Some(status), retry, error)
            );
        }
        let busy = (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "30")]);
        assert_eq!(
            answered(busy).await.unwrap_err().retry,
            Retry::After(Duration::from_secs(30))
        );
    }
}
