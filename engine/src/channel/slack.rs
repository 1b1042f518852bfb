//! Slack's incoming webhooks: a message as blocks, within Slack's limits, all of it escaped.
//!
//! The address of an incoming webhook is its only protection, so it is a secret: it stands in no
//! error and no log. An answer is success only when it is 200 and says `ok`. Message text stays
//! text: no mention, no link and no emoji name in it takes effect.
//!
//! Format and limits: Slack's documents "Sending messages using incoming webhooks", "Block Kit" and
//! "Formatting text for app surfaces".

use super::outgoing::{self, Outgoing};
use super::text::{self, angle_entity, escaped};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use hooksieve_sdk::wire::{Message, Payload};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
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
    timeout: Duration,
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

    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let Payload::Message(message) = &delivery.payload else {
            return Err(Failure::never("slack takes a message, not a body"));
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = payload(delivery, message).to_string().into_bytes();
        let answer = client.post(&self.url, headers, body, self.timeout).await?;
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
            return Err(Failure::new(
                Some(200),
                format!("{host} answered 200 without Slack's ok"),
                Retry::Later,
            ));
        }
        Ok(Sent {
            status: Some(200),
            refused: Vec::new(),
        })
    }
}

fn payload(delivery: &Delivery, message: &Message) -> Value {
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
    let footer = match text::one_line(&delivery.reason, 500) {
        reason if reason.is_empty() => format!("{} from {}", about.kind, about.source),
        reason => format!("{reason} · {} from {}", about.kind, about.source),
    };
    blocks.push(json!({
        "type": "context",
        "elements": [verbatim(escape(&footer, FIELD_CHARS_MAX))],
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
