//! Custom bots of Feishu and Lark: a message as a post, signed where the bot asks for it.
//!
//! The address of a bot is a secret, as Slack's is. Errors come with HTTP 200: success is `code` 0 in
//! the answer. What a message says stays text, as only elements of another tag can mention people.
//!
//! Format, codes and limits: Feishu's document "Custom bot usage guide". The signature's key is the
//! timestamp, a line feed and the secret; it signs nothing.

use super::answer::Secrets;
use super::outgoing::{self, Outgoing};
use super::text;
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use hooksieve_sdk::wire::{Message, Payload};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Sha256;
use std::time::{Duration, SystemTime};
use url::Url;

/// A request may have 20 kB; these leave room for escapes of JSON and for what stands around them.
const TITLE_CHARS_MAX: usize = 150;
pub(super) const TEXT_CHARS_MAX: usize = 1_500;
const FIELDS_MAX: usize = 12;
const FIELD_NAME_CHARS_MAX: usize = 50;
const FIELD_VALUE_CHARS_MAX: usize = 100;

/// Too many messages in a moment: worth another try, unlike all other codes.
const CODE_TOO_MANY: i64 = 11_232;
/// The system behind it is busy.
const CODE_BUSY: i64 = 11_247;

/// What a tenant file says of a bot.
pub struct Settings {
    /// The address of the bot.
    pub url: Secret,
    /// What the bot's signature verification was set up with.
    pub secret: Option<Secret>,
    pub timeout_ms: u64,
}

/// A bot with checked settings.
pub struct Lark {
    url: Url,
    secret: Option<Secret>,
    pub(super) timeout: Duration,
}

#[derive(Deserialize)]
struct Said {
    code: i64,
    #[serde(default)]
    msg: String,
}

impl Lark {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the address.
    pub fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self {
            url: outgoing::web_address(settings.url.expose())?,
            secret: settings.secret,
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
            return Err(Failure::never("lark takes a message, not a body"));
        };
        let mut body = payload(delivery, message);
        if let Some(secret) = &self.secret {
            let now_s = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs());
            body["timestamp"] = now_s.to_string().into();
            body["sign"] = sign(secret.expose(), now_s).into();
        }
        let answer = client.post_json(&self.url, &body, self.timeout).await?;
        let host = outgoing::host(&self.url);
        if answer.status != 200 {
            let error = format!("{host} answered {}", answer.status);
            return Err(answer.failure(error));
        }
        let Ok(said) = serde_json::from_slice::<Said>(&answer.body) else {
            let error =
                format!("{host} answered 200 without the code that says whether it took it");
            return Err(answer.failed(error, Retry::Later));
        };
        if said.code == 0 {
            return Ok(Sent {
                status: Some(200),
                refused: Vec::new(),
            });
        }
        let retry = match said.code {
            CODE_TOO_MANY | CODE_BUSY => Retry::Later,
            _ => Retry::Never,
        };
        let error = format!(
            "{host} refused it with code {}: {}",
            said.code,
            text::one_line(&said.msg, 200)
        );
        Err(answer.failed(error, retry))
    }

    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        secrets.url(&self.url);
        if let Some(secret) = &self.secret {
            secrets.text(secret.expose());
        }
    }
}

fn sign(secret: &str, now_s: u64) -> String {
    let key = format!("{now_s}\n{secret}");
    let mac =
        Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of every length");
    BASE64.encode(mac.finalize().into_bytes())
}

pub(super) fn payload(delivery: &Delivery, message: &Message) -> Value {
    let title = text::title(delivery, &message.title, TITLE_CHARS_MAX);
    let words = |text: String| json!([{ "tag": "text", "text": text }]);
    let mut lines = Vec::new();
    let body = text::escaped(&text::lines(&message.text), TEXT_CHARS_MAX, |_| None);
    if !body.trim().is_empty() {
        lines.push(words(body));
    }
    for field in message.fields.iter().take(FIELDS_MAX) {
        lines.push(words(format!(
            "{}: {}",
            text::one_line(&field.name, FIELD_NAME_CHARS_MAX),
            text::one_line(&field.value, FIELD_VALUE_CHARS_MAX)
        )));
    }
    if let Some((url, label)) = message.link.as_ref().and_then(text::web_link) {
        lines.push(json!([{ "tag": "a", "text": label, "href": url.as_str() }]));
    }
    lines.push(words(text::footer(delivery)));
    json!({
        "msg_type": "post",
        "content": { "post": { "en_us": { "title": title, "content": lines } } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::channel::tests::{attempted, delivery, hostile_message};

    #[test]
    fn a_hostile_message_stays_text() {
        let message = hostile_message();
        let payload = payload(&delivery(Payload::Message(message.clone())), &message);
        insta::assert_snapshot!(serde_json::to_string_pretty(&payload).unwrap());
    }

    #[test]
    fn the_largest_message_fits_a_request() {
        let field = hooksieve_sdk::wire::Field {
            name: "💥".repeat(1_000),
            value: "💥".repeat(1_000),
        };
        let message = Message {
            title: "💥".repeat(1_000),
            text: "💥".repeat(100_000),
            link: None,
            fields: vec![field; 100],
        };
        let payload = payload(&delivery(Payload::Message(message.clone())), &message);
        assert!(payload.to_string().len() <= 19_500);
    }

    /// The expected value is what Python's `hmac` gives for the steps of Feishu's guide.
    #[test]
    fn the_signature_is_of_nothing_under_time_and_secret() {
        assert_eq!(
            sign("demo", 1_599_360_473),
            "l1N0gAcBjdwBvGm1xMjOF0XSyaLRpR7tuO5dHfhAYc8="
        );
    }

    #[tokio::test]
    async fn only_code_0_is_success() {
        let channel = |url: String| {
            Channel::Lark(
                Lark::new(Settings {
                    url: Secret::new(url),
                    secret: Some(Secret::new("s")),
                    timeout_ms: 2000,
                })
                .unwrap(),
            )
        };
        let good =
            r#"{"StatusCode":0,"StatusMessage":"success","code":0,"data":{},"msg":"success"}"#;
        assert_eq!(
            attempted(200, good, channel).await.unwrap().status,
            Some(200)
        );
        for (status, body, retry, error) in [
            (
                200,
                r#"{"code":19021,"msg":"sign match fail or timestamp is not within one hour from current time"}"#,
                Retry::Never,
                "refused it with code 19021: sign match fail",
            ),
            (
                200,
                r#"{"code":11232,"msg":"too many request"}"#,
                Retry::Later,
                "refused it with code 11232: too many request",
            ),
            (200, "<html>", Retry::Later, "without the code"),
            (
                400,
                r#"{"code":9499,"msg":"Bad Request"}"#,
                Retry::Never,
                "answered 400",
            ),
            (500, "", Retry::Later, "answered 500"),
        ] {
            let failure = attempted(status, body, channel).await.unwrap_err();
            assert_eq!((failure.status, failure.retry), (Some(status), retry));
            assert!(failure.error.contains(error), "{}", failure.error);
        }
    }
}
