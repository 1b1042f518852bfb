//! A webhook of the tenant's: JSON by POST, signed as Standard Webhooks version 1 describes
//! (standardwebhooks.com), so that receivers can check it with the libraries they have.
//!
//! The id is the delivery's and stays the same over its retries; the timestamp and the signature are
//! of each attempt. Success is 2xx and nothing else.

use super::outgoing::{self, Outgoing};
use super::{Failure, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use hooksieve_sdk::wire::{Message, Payload};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Serialize;
use sha2::Sha256;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};
use url::Url;

/// How long a key may be, as Standard Webhooks asks.
const KEY_BYTES: RangeInclusive<usize> = 24..=64;

/// What a tenant file says of a webhook.
pub struct Settings {
    pub url: String,
    /// `whsec_` and the key in Base64; without one, nothing is signed.
    pub secret: Option<Secret>,
    pub timeout_ms: u64,
}

/// A webhook with checked settings.
pub struct Webhook {
    url: Url,
    key: Option<Vec<u8>>,
    timeout: Duration,
}

/// What a message becomes: the shape that Standard Webhooks proposes, with the event's attributes.
#[derive(Serialize)]
struct Envelope<'a> {
    r#type: &'a str,
    timestamp: &'a str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    event: Event<'a>,
    reason: &'a str,
    message: &'a Message,
}

#[derive(Serialize)]
struct Event<'a> {
    id: String,
    source: &'a str,
    r#type: &'a str,
    subject: Option<&'a str>,
    time: &'a str,
}

impl Webhook {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the secret.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let url = outgoing::web_address(&settings.url)?;
        let key = settings.secret.as_ref().map(key).transpose()?;
        Ok(Self {
            url,
            key,
            timeout: Duration::from_millis(settings.timeout_ms),
        })
    }

    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let now_s = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let body = body(delivery)
            .map_err(|error| Failure::never(format!("the body cannot become JSON: {error}")))?;
        let headers = self.headers(&delivery.id.to_string(), now_s, &body);
        let answer = client.post(&self.url, headers, body, self.timeout).await?;
        let host = outgoing::host(&self.url);
        match answer.status {
            200..300 => Ok(Sent {
                status: Some(answer.status),
                refused: Vec::new(),
            }),
            300..400 => Err(answer.failure(format!(
                "{host} answered {}, a redirect, and redirects are not followed",
                answer.status
            ))),
            status => Err(answer.failure(format!("{host} answered {status}"))),
        }
    }

    fn headers(&self, id: &str, now_s: u64, body: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut put = |name: &'static str, value: String| {
            // Ids, digits and Base64 are all visible ASCII.
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        put(CONTENT_TYPE.as_str(), "application/json".into());
        put("webhook-id", id.into());
        put("webhook-timestamp", now_s.to_string());
        if let Some(key) = &self.key {
            put("webhook-signature", sign(key, id, now_s, body));
        }
        headers
    }
}

fn body(delivery: &Delivery) -> Result<Vec<u8>, serde_json::Error> {
    let about = &delivery.about;
    match &delivery.payload {
        Payload::Body(body) => serde_json::to_vec(body),
        Payload::Message(message) => serde_json::to_vec(&Envelope {
            r#type: &about.kind,
            timestamp: &about.time,
            data: Data {
                event: Event {
                    id: delivery.event.to_string(),
                    source: about.source.as_str(),
                    r#type: &about.kind,
                    subject: about.subject.as_deref(),
                    time: &about.time,
                },
                reason: &delivery.reason,
                message,
            },
        }),
    }
}

fn sign(key: &[u8], id: &str, now_s: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(format!("{id}.{now_s}.").as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

fn key(secret: &Secret) -> Result<Vec<u8>, String> {
    let encoded = secret
        .expose()
        .strip_prefix("whsec_")
        .ok_or("the secret does not begin with whsec_")?;
    let key = BASE64
        .decode(encoded)
        .map_err(|_| "the secret is not Base64 after whsec_")?;
    if !KEY_BYTES.contains(&key.len()) {
        return Err(format!(
            "the secret holds {} bytes, and {} to {} are asked for; `openssl rand -base64 32` makes one",
            key.len(),
            KEY_BYTES.start(),
            KEY_BYTES.end()
        ));
    }
    Ok(key)
}
