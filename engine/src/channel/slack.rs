//! Slack's incoming webhooks: a message as blocks, within Slack's limits, all of it escaped.
//!
//! The address of an incoming webhook is its only protection, so it is a secret: it stands in no
//! error and no log. An answer is success only when it is 200 and says `ok`. Message text stays
//! text: no mention, no link and no emoji name in it takes effect.
//!
//! Format and limits: Slack's documents "Sending messages using incoming webhooks", "Block Kit" and
//! "Formatting text for app surfaces".

use super::answer::Secrets;
use super::outgoing::{self, Outgoing};
use super::text::{self, angle_entity, escaped};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use hooksieve_sdk::wire::{Message, Payload};
use serde_json::{Value, json};
use std::time::Duration;
use url::Url;

const HEADER_CHARS_MAX: usize = 150;
const TEXT_CHARS_MAX: usize = 3000;
const FIELD_CHARS_MAX: usize = 2000;
const FIELDS_PER_SECTION_MAX: usize = 10;
const BLOCKS_MAX: usize = 50;
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
    let about = &delivery.about;
    let title = match text::one_line(&message.title, HEADER_CHARS_MAX) {
        title if title.is_empty() => about.kind.clone(),
        title => title,
    };
    let mut blocks = vec![json!({
        "type": "header",
        // Without `emoji`, `:rocket:` stays what the event said.
        "text": {"type": "plain_text", "text": escape(&title, HEADER_CHARS_MAX), "emoji": false},
    })];
    let body = text::lines(&message.text);
    if !body.trim().is_empty() {
        blocks.push(section(escape(&body, TEXT_CHARS_MAX)));
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
                let room = FIELD_CHARS_MAX - name.chars().count() - "**\n".len();
                let value = escape(&text::lines(&field.value), room);
                verbatim(format!("*{name}*\n{value}"))
            })
            .collect();
        blocks.push(json!({"type": "section", "fields": fields}));
    }
    if let Some(link) = link {
        blocks.push(section(link));
    }
    blocks.push(json!({
        "type": "context",
        "elements": [verbatim(escape(&text::footer(delivery), FIELD_CHARS_MAX))],
    }));
    json!({"text": escape(&title, TEXT_CHARS_MAX), "blocks": blocks})
}

fn section(text: String) -> Value {
    json!({"type": "section", "text": verbatim(text)})
}

/// Text in which Slack finds no links, channels or people of its own accord.
fn verbatim(text: String) -> Value {
    json!({"type": "mrkdwn", "text": text, "verbatim": true})
}

fn escape(text: &str, chars_max: usize) -> String {
    escaped(text, chars_max, angle_entity)
}

/// `<url|label>`, or nothing where the address does not fit: a cut address leads astray.
fn link(link: &hooksieve_sdk::wire::Link) -> Option<String> {
    let (url, label) = text::web_link(link)?;
    let url = url
        .as_str()
        .replace('|', "%7C")
        .replace('<', "%3C")
        .replace('>', "%3E")
        .replace('&', "&amp;");
    let link = format!("<{url}|{}>", escape(&label.replace('|', "/"), 400));
    (link.chars().count() <= TEXT_CHARS_MAX).then_some(link)
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
                    assert!(chars(&block["text"]["text"]) <= TEXT_CHARS_MAX);
                    // A cut address would lead astray.
                    assert!(!text.contains("example.com"));
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
