//! Microsoft Teams, by a workflow that begins "When a Teams webhook request is received": a message as
//! an adaptive card, within the limits of Teams, with nothing in it that the card reads as markup.
//!
//! The address of a workflow is its only protection, so it is a secret. A workflow answers 202 (200
//! where it was built to answer). The connectors that came before it answer 200 whatever happens, and
//! say in words what went wrong: such words are a failure here.
//!
//! Format and limits: Microsoft's documents "Create incoming webhooks with Workflows for Microsoft
//! Teams", "Create and send messages" (of connectors) and "Text features" (of adaptive cards). Mentions
//! take an entry beside the text, which is never made here.

use super::answer::Secrets;
use super::outgoing::{self, Answer, Outgoing};
use super::text::{self, escaped};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use crate::timing::Room;
use hooksieve_sdk::wire::{Message, Payload};
use serde_json::{Value, json};
use std::time::Duration;
use url::Url;

/// All of a request: "The message size limit is 28 KB" ("Create and send messages"). What follows leaves
/// room within it for the widest characters, their escapes, and what stands around them.
#[cfg(test)]
const REQUEST_BYTES_MAX: usize = 28_000;
const TITLE_CHARS_MAX: usize = 150;
const TEXT_CHARS_MAX: usize = 2_800;
pub(super) const ROOM: Room = Room::new(TEXT_CHARS_MAX, |text| text::width(text, entity));
const FIELDS_MAX: usize = 12;
const FIELD_NAME_CHARS_MAX: usize = 50;
const FIELD_VALUE_CHARS_MAX: usize = 120;
const FOOTER_CHARS_MAX: usize = 600;
const URL_BYTES_MAX: usize = 2_000;
/// What stands where a field says nothing.
const EMPTY: &str = "\u{200b}";

/// How a connector's answer begins when it failed, and where it says with which status.
const FAILED: &str = "Webhook message delivery failed";
const FAILED_STATUS: &str = "HTTP error ";

/// What a tenant file says of a Teams channel.
pub struct Settings {
    /// The address of the workflow.
    pub url: Secret,
    pub timeout_ms: u64,
}

/// A Teams channel with checked settings.
pub struct Teams {
    url: Url,
    pub(super) timeout: Duration,
}

impl Teams {
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
            return Err(Failure::never("teams takes a message, not a body"));
        };
        let body = payload(delivery, message);
        let answer = client.post_json(&self.url, &body, self.timeout).await?;
        let host = outgoing::host(&self.url);
        if !matches!(answer.status, 200 | 202) {
            let error = format!("{host} answered {}", answer.status);
            return Err(answer.failure(error));
        }
        match words_of_failure(&answer) {
            None => Ok(Sent {
                status: Some(answer.status),
                refused: Vec::new(),
            }),
            Some(Some(status)) => {
                let error = format!(
                    "{host} answered {}, and that Teams answered it {status}",
                    answer.status
                );
                Err(answer.failed(error, answer.retry(status)))
            }
            Some(None) => {
                let error = format!("{host} answered {}, and that it failed", answer.status);
                Err(answer.failed(error, Retry::Later))
            }
        }
    }

    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        secrets.url(&self.url);
    }
}

/// Whether a good status comes with words of failure, and with which status if they say so.
fn words_of_failure(answer: &Answer) -> Option<Option<u16>> {
    let text = String::from_utf8_lossy(&answer.body);
    if !text.contains(FAILED) {
        return None;
    }
    let status = text.split_once(FAILED_STATUS).and_then(|(_, rest)| {
        let digits = rest.get(..3)?;
        digits.parse().ok()
    });
    Some(status)
}

pub(super) fn payload(delivery: &Delivery, message: &Message) -> Value {
    let title = text::title(delivery, &message.title, TITLE_CHARS_MAX);
    let block = |text: String| json!({ "type": "TextBlock", "text": text, "wrap": true });
    let mut heading = block(escape(&title, TITLE_CHARS_MAX));
    heading["size"] = "Large".into();
    heading["weight"] = "Bolder".into();
    let mut body = vec![heading];
    let text = escape(text::lines(&message.text).trim(), TEXT_CHARS_MAX);
    if !text.is_empty() {
        body.push(block(text));
    }
    let fact = |name: &str, value: &str| {
        let part = |text: &str, chars_max| match escape(&text::one_line(text, chars_max), chars_max)
        {
            text if text.is_empty() => EMPTY.to_owned(),
            text => text,
        };
        json!({
            "title": part(name, FIELD_NAME_CHARS_MAX),
            "value": part(value, FIELD_VALUE_CHARS_MAX),
        })
    };
    let fields = message.fields.iter().take(FIELDS_MAX);
    let facts: Vec<_> = fields
        .map(|field| fact(&field.name, &field.value))
        .collect();
    if !facts.is_empty() {
        body.push(json!({ "type": "FactSet", "facts": facts }));
    }
    let mut footer = block(escape(&text::footer(delivery), FOOTER_CHARS_MAX));
    footer["size"] = "Small".into();
    footer["isSubtle"] = true.into();
    body.push(footer);
    let mut card = json!({
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
    });
    if let Some((url, label)) = message.link.as_ref().and_then(text::web_link)
        && url.as_str().len() <= URL_BYTES_MAX
    {
        // The title of a button has no markup.
        card["actions"] =
            json!([{ "type": "Action.OpenUrl", "title": label, "url": url.as_str() }]);
    }
    json!({
        "type": "message",
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": card,
        }],
    })
}

/// A card's text is Markdown without most of it, and `{{DATE(..)}}`; a line feed alone ends no line.
fn escape(text: &str, chars_max: usize) -> String {
    escaped(text, chars_max, entity)
}

fn entity(c: char) -> Option<&'static str> {
    Some(match c {
        '\n' => "\n\n",
        '\\' => "\\\\",
        '*' => "\\*",
        '_' => "\\_",
        '~' => "\\~",
        '`' => "\\`",
        '|' => "\\|",
        '<' => "\\<",
        '>' => "\\>",
        '[' => "\\[",
        ']' => "\\]",
        '(' => "\\(",
        ')' => "\\)",
        '{' => "\\{",
        '}' => "\\}",
        '#' => "\\#",
        '-' => "\\-",
        '+' => "\\+",
        '!' => "\\!",
        '&' => "\\&",
        '@' => "\\@",
        ':' => "\\:",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::channel::tests::{attempted, delivery, hostile_message};
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
    fn no_text_becomes_a_link_a_mention_or_a_date() {
        for text in [
            "[click](https://evil.example)",
            "<at>Ann</at>",
            "&lt;at&gt;Ann&lt;/at&gt;",
            "{{DATE(2017-02-14T06:00:00Z)}}",
            "https://evil.example",
            "**bold** _it_ - item",
        ] {
            let message = Message {
                title: text.into(),
                text: text.into(),
                link: None,
                fields: vec![Field {
                    name: text.into(),
                    value: text.into(),
                }],
            };
            let card = &payload_of(message)["attachments"][0]["content"];
            let fact = &card["body"][2]["facts"][0];
            for shown in [
                &card["body"][0]["text"],
                &card["body"][1]["text"],
                &fact["title"],
                &fact["value"],
            ] {
                let shown = shown.as_str().unwrap();
                for syntax in ["](", "<at>", "</at>", "{{", "https://", "**", " _", " - "] {
                    assert!(!shown.contains(syntax), "{shown}");
                }
                // Nothing is lost over it.
                assert_eq!(shown.replace('\\', ""), text);
            }
        }
    }

    #[test]
    fn the_largest_message_fits_a_request() {
        for wide in ["💥", "\\", "\"", "\n*", "<"] {
            let field = Field {
                name: wide.repeat(1_000),
                value: wide.repeat(1_000),
            };
            let message = Message {
                title: wide.repeat(1_000),
                text: wide.repeat(100_000),
                link: Some(Link {
                    url: format!("https://example.com/{}", "x".repeat(1_980)),
                    label: Some(wide.repeat(1_000)),
                }),
                fields: vec![field; 100],
            };
            let mut of = delivery(Payload::Message(message.clone()));
            of.reason = wide.repeat(1_000);
            let bytes = payload(&of, &message).to_string().len();
            assert!(bytes <= REQUEST_BYTES_MAX, "{wide}: {bytes}");
        }
    }

    #[tokio::test]
    async fn a_good_status_with_words_of_failure_is_none() {
        let channel = |url: String| {
            Channel::Teams(
                Teams::new(Settings {
                    url: Secret::new(url),
                    timeout_ms: 2000,
                })
                .unwrap(),
            )
        };
        for (status, body) in [(202, ""), (200, "1"), (200, "")] {
            let sent = attempted(status, body, channel).await.unwrap();
            assert_eq!(sent.status, Some(status));
        }
        for (status, body, retry, error) in [
            (
                200,
                "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429 with ContextId tcid=0",
                Retry::Later,
                "answered 200, and that Teams answered it 429",
            ),
            (
                200,
                "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 413 with ContextId tcid=0",
                Retry::Never,
                "answered 200, and that Teams answered it 413",
            ),
            (
                200,
                "Webhook message delivery failed with error: something else",
                Retry::Later,
                "answered 200, and that it failed",
            ),
            (
                400,
                r#"{"error":{"code":"TriggerInputSchemaMismatch"}}"#,
                Retry::Never,
                "answered 400",
            ),
            (401, "", Retry::Never, "answered 401"),
            (410, "", Retry::Gone, "answered 410"),
            (429, "", Retry::Later, "answered 429"),
            (502, "<html>", Retry::Later, "answered 502"),
        ] {
            let failure = attempted(status, body, channel).await.unwrap_err();
            assert_eq!((failure.status, failure.retry), (Some(status), retry));
            assert!(failure.error.ends_with(error), "{}", failure.error);
            assert_eq!(
                failure.answer.as_deref(),
                (!body.is_empty()).then_some(body)
            );
        }
    }
}
