//! Discord's webhooks: a message as an embed, within Discord's limits, with nothing in it that Discord
//! reads as markup and nobody mentioned.
//!
//! The address of a webhook is a secret, as Slack's is. It is asked to wait until the message is posted
//! (`wait=true`): success is the message's id.
//!
//! Format and limits: Discord's developer documents "Execute Webhook" and "Embed Limits".

use super::answer::Secrets;
use super::outgoing::{self, Outgoing};
use super::text::{self, escaped};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use crate::timing::Room;
use hooksieve_sdk::wire::{Message, Payload};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;
use url::Url;

const TITLE_CHARS_MAX: usize = 256;
/// All of an embed may have 6,000 characters: this much of it for the text, and the rest below.
const DESCRIPTION_CHARS_MAX: usize = 3_000;
pub(super) const ROOM: Room = Room::new(DESCRIPTION_CHARS_MAX, |text| text::width(text, entity));
const FIELDS_MAX: usize = 25;
const FIELD_NAME_CHARS_MAX: usize = 256;
const FIELD_VALUE_CHARS_MAX: usize = 1_024;
const FIELDS_CHARS_MAX: usize = 2_000;
const FOOTER_CHARS_MAX: usize = 600;
const URL_CHARS_MAX: usize = 2_048;
/// What stands where Discord refuses an empty text.
const EMPTY: &str = "\u{200b}";

/// What a tenant file says of a Discord channel.
pub struct Settings {
    /// The address of the webhook.
    pub url: Secret,
    pub timeout_ms: u64,
}

/// A Discord channel with checked settings.
pub struct Discord {
    url: Url,
    pub(super) timeout: Duration,
}

/// The message that was posted, or what was wrong.
#[derive(Deserialize)]
struct Said {
    id: Option<String>,
    #[serde(default)]
    message: String,
}

impl Discord {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the address.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let mut url = outgoing::web_address(settings.url.expose())?;
        if !url.query_pairs().any(|(name, _)| name == "wait") {
            url.query_pairs_mut().append_pair("wait", "true");
        }
        Ok(Self {
            url,
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
            return Err(Failure::never("discord takes a message, not a body"));
        };
        let body = payload(delivery, message);
        let answer = client.post_json(&self.url, &body, self.timeout).await?;
        let host = outgoing::host(&self.url);
        let said = serde_json::from_slice::<Said>(&answer.body).ok();
        if answer.status != 200 {
            let why = said.map(|said| text::one_line(&said.message, 200));
            let error = match why {
                Some(why) if !why.is_empty() => {
                    format!("{host} answered {} ({why})", answer.status)
                }
                _ => format!("{host} answered {}", answer.status),
            };
            return Err(answer.failure(error));
        }
        if said.and_then(|said| said.id).is_none() {
            let error = format!("{host} answered 200 without the message that it posted");
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
    let title = text::title(delivery, &message.title, TITLE_CHARS_MAX);
    let mut left = FIELDS_CHARS_MAX;
    let mut fields = Vec::new();
    for field in message.fields.iter().take(FIELDS_MAX) {
        let name = escape(&text::one_line(&field.name, 100), FIELD_NAME_CHARS_MAX);
        let value = escape(&text::lines(&field.value), FIELD_VALUE_CHARS_MAX.min(left));
        let chars = name.chars().count() + value.chars().count() + 2;
        if chars > left {
            break;
        }
        left -= chars;
        fields.push(json!({ "name": shown(name), "value": shown(value), "inline": true }));
    }
    let mut embed = json!({
        "title": escape(&title, TITLE_CHARS_MAX),
        "description": escape(&text::lines(&message.text), DESCRIPTION_CHARS_MAX),
        "fields": fields,
        // A footer has no markup.
        "footer": { "text": text::one_line(&text::footer(delivery), FOOTER_CHARS_MAX) },
    });
    if let Some((url, _)) = message.link.as_ref().and_then(text::web_link)
        && url.as_str().chars().count() <= URL_CHARS_MAX
    {
        embed["url"] = url.as_str().into();
    }
    json!({ "embeds": [embed], "allowed_mentions": { "parse": [] } })
}

fn shown(text: String) -> String {
    match text.trim().is_empty() {
        true => EMPTY.to_owned(),
        false => text,
    }
}

fn escape(text: &str, chars_max: usize) -> String {
    escaped(text, chars_max, entity)
}

fn entity(c: char) -> Option<&'static str> {
    Some(match c {
        '\\' => "\\\\",
        '*' => "\\*",
        '_' => "\\_",
        '~' => "\\~",
        '`' => "\\`",
        '|' => "\\|",
        '>' => "\\>",
        '<' => "\\<",
        '[' => "\\[",
        ']' => "\\]",
        '(' => "\\(",
        ')' => "\\)",
        '#' => "\\#",
        '-' => "\\-",
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

    #[test]
    fn a_hostile_message_stays_text() {
        let message = hostile_message();
        let payload = payload(&delivery(Payload::Message(message.clone())), &message);
        insta::assert_snapshot!(serde_json::to_string_pretty(&payload).unwrap());
    }

    #[test]
    fn discords_limits_are_kept() {
        let message = Message {
            title: "*".repeat(1_000),
            text: "_".repeat(100_000),
            link: Some(Link {
                url: format!("https://example.com/{}", "x".repeat(5_000)),
                label: None,
            }),
            fields: vec![
                Field {
                    name: "[".repeat(5_000),
                    value: "]".repeat(5_000),
                };
                100
            ],
        };
        let payload = payload(&delivery(Payload::Message(message.clone())), &message);
        let embed = &payload["embeds"][0];
        let chars = |text: &Value| text.as_str().unwrap().chars().count();
        let fields = embed["fields"].as_array().unwrap();
        let mut all =
            chars(&embed["title"]) + chars(&embed["description"]) + chars(&embed["footer"]["text"]);
        assert!(chars(&embed["title"]) <= 256);
        assert!(!fields.is_empty() && fields.len() <= 25);
        for field in fields {
            assert!(chars(&field["name"]) <= 256 && chars(&field["value"]) <= 1_024);
            all += chars(&field["name"]) + chars(&field["value"]);
        }
        assert!(all <= 6_000, "{all}");
        assert!(embed.get("url").is_none());
    }

    #[tokio::test]
    async fn only_a_posted_message_is_success() {
        let channel = |url: String| {
            Channel::Discord(
                Discord::new(Settings {
                    url: Secret::new(url),
                    timeout_ms: 2000,
                })
                .unwrap(),
            )
        };
        let posted = r#"{"id":"1","type":0,"content":""}"#;
        assert_eq!(
            attempted(200, posted, channel).await.unwrap().status,
            Some(200)
        );
        for (status, body, retry, error) in [
            (
                404,
                r#"{"message": "Unknown Webhook", "code": 10015}"#,
                Retry::Never,
                "answered 404 (Unknown Webhook)",
            ),
            (
                429,
                r#"{"message": "You are being rate limited.", "retry_after": 0.3}"#,
                Retry::Later,
                "answered 429",
            ),
            (200, "{}", Retry::Later, "without the message"),
            (204, "", Retry::Never, "answered 204"),
            (502, "<html>", Retry::Later, "answered 502"),
        ] {
            let failure = attempted(status, body, channel).await.unwrap_err();
            assert_eq!((failure.status, failure.retry), (Some(status), retry));
            assert!(failure.error.contains(error), "{}", failure.error);
        }
    }
}
