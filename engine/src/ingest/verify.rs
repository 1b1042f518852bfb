//! Who sent this, and what is it: one file a sender, pure functions over the raw bytes.
//!
//! The signature is checked over the body exactly as it came, in constant time, before anything in
//! it is parsed. What a rule sees of the headers is an allow-list per sender: signatures, tokens and
//! cookies are never on it.

mod github;
pub(crate) mod json;
mod shopify;

use crate::id::Hash;
use crate::secret::Secret;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use hmac::{Hmac, KeyInit, Mac};
use hooksieve_sdk::wire::Value;
use hooksieve_sdk::wire::json::Data;
use sha2::Sha256;

/// How a source verifies its sender and reads what it sends.
#[derive(Clone, Debug)]
pub enum Verify {
    GitHub {
        secrets: Vec<Secret>,
    },
    Shopify {
        secrets: Vec<Secret>,
    },
    Json {
        /// What the sender has to have.
        access: Access,
        /// The event type where `kind_from` gives none.
        kind: String,
        /// JSON pointers into the body.
        kind_from: Option<String>,
        id_from: Option<String>,
        subject_from: Option<String>,
    },
}

/// What a source of JSON takes as proof.
#[derive(Clone, Debug)]
pub enum Access {
    /// Nothing: on a loopback address only.
    Open,
    /// One of these.
    Tokens(Vec<Secret>),
    /// Access tokens of its tenant that may send events.
    AccessTokens,
}

/// Whether an access token may send events to the source that is asked.
pub type MaySend<'a> = &'a dyn Fn(&str) -> bool;

/// A request that was verified and read.
#[derive(Clone, Debug, PartialEq)]
pub struct Incoming {
    pub kind: String,
    pub subject: Option<String>,
    pub sender_id: Option<String>,
    pub headers: Vec<(String, String)>,
    pub data: Data,
    /// How, for the person who asks later.
    pub verified: &'static str,
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("the request has no {header} header")]
    Unsigned { header: &'static str },
    #[error("the {header} header does not fit the body and the source's secret")]
    BadSignature { header: &'static str },
    #[error("the Authorization header does not carry the source's token")]
    BadToken,
    #[error("the content type {found:?} is not taken here; send {expected}")]
    MediaType {
        found: String,
        expected: &'static str,
    },
    #[error("the content encoding {found:?} is not taken here; send the body as it is")]
    Encoding { found: String },
    #[error("{0}")]
    Body(String),
}

impl Verify {
    /// Verifies a request and reads it.
    ///
    /// # Errors
    /// The signature first; nothing about the body is said to a sender that is not known.
    pub fn read(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        may_send: MaySend<'_>,
    ) -> Result<Incoming, Rejected> {
        let encoding = header(headers, "content-encoding").map_or("", str::trim);
        if !matches!(encoding, "" | "identity") {
            let found = bounded(encoding);
            return Err(Rejected::Encoding { found });
        }
        match self {
            Verify::GitHub { secrets } => github::read(secrets, headers, body),
            Verify::Shopify { secrets } => shopify::read(secrets, headers, body),
            Verify::Json {
                access,
                kind,
                kind_from,
                id_from,
                subject_from,
            } => {
                let pointers = json::Pointers {
                    kind: kind_from.as_deref(),
                    id: id_from.as_deref(),
                    subject: subject_from.as_deref(),
                };
                json::read((access, may_send), kind, &pointers, headers, body)
            }
        }
    }

    /// A recorded payload, which has no signature any more: for replay.
    pub fn recorded(kind: &str, data: Data) -> Incoming {
        Incoming {
            kind: with_action(kind, &data),
            subject: github::subject(&data),
            sender_id: None,
            headers: Vec::new(),
            data,
            verified: "recorded",
        }
    }

    /// A payload as if its sender had sent it here, without the proof. `kind` is the sender's event name,
    /// for a source that has it from a header.
    ///
    /// # Errors
    /// When it is not what such a sender sends.
    pub fn unproven(&self, kind: Option<&str>, body: &[u8]) -> Result<Incoming, Rejected> {
        let Verify::Json {
            kind: own,
            kind_from,
            id_from,
            subject_from,
            ..
        } = self
        else {
            let needs = "the payload needs its `type`, which its sender says in a header";
            let kind = kind.ok_or_else(|| Rejected::Body(needs.to_owned()))?;
            return Ok(Self::recorded(kind, data(body)?));
        };
        let open = Verify::Json {
            access: Access::Open,
            kind: kind.unwrap_or(own).to_owned(),
            kind_from: kind_from.clone(),
            id_from: id_from.clone(),
            subject_from: subject_from.clone(),
        };
        let json = HeaderValue::from_static("application/json");
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, json)]);
        open.read(&headers, body, &|_| false)
    }

    /// The name of this kind in a tenant's file.
    pub fn kind(&self) -> &'static str {
        match self {
            Verify::GitHub { .. } => "github",
            Verify::Shopify { .. } => "shopify",
            Verify::Json { .. } => "json",
        }
    }

    /// Whether it takes everything from everyone.
    pub fn is_open(&self) -> bool {
        matches!(
            self,
            Verify::Json {
                access: Access::Open,
                ..
            }
        )
    }
}

/// How many secrets a source may have: the new one and, while it is replaced, the old one.
pub const SECRETS_MAX: usize = 2;

/// Whether `signature` is the HMAC-SHA256 of the body with one of the secrets.
fn hmac_fits(secrets: &[Secret], body: &[u8], signature: &[u8]) -> bool {
    secrets.iter().any(|secret| {
        let mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes());
        mac.is_ok_and(|mac| mac.chain_update(body).verify_slice(signature).is_ok())
    })
}

fn data(body: &[u8]) -> Result<Data, Rejected> {
    Data::from_json(body).map_err(|error| Rejected::Body(format!("the body is not JSON: {error}")))
}

/// A header's text; `None` where it is missing or not text.
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The headers on a sender's allow-list, in its order, each bounded.
fn allowed(headers: &HeaderMap, names: &[&str]) -> Vec<(String, String)> {
    let present = names
        .iter()
        .filter_map(|name| Some((*name, header(headers, name)?)));
    present
        .map(|(name, value)| (name.to_owned(), bounded(value)))
        .collect()
}

/// A sender's id of the event, by which it is known when it comes again. An empty one is none. One that is
/// longer than attributes may be stands as its hash: of two that differ only at their ends, one would be
/// taken for the other.
fn sender_id(text: &str) -> Option<String> {
    match text.len() {
        0 => None,
        1..=ATTRIBUTE_BYTES_MAX => Some(text.to_owned()),
        _ => Some(format!("sha256:{}", Hash::of(text.as_bytes()))),
    }
}

/// The longest that a sender's id, a subject or a header may be; the rest of the others is cut off.
const ATTRIBUTE_BYTES_MAX: usize = 256;

fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(ATTRIBUTE_BYTES_MAX)].to_owned()
}

/// The media type without its parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let text = header(headers, "content-type").unwrap_or("");
    text.split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase()
}

pub(crate) fn is_json(media_type: &str) -> bool {
    media_type == "application/json" || media_type.ends_with("+json")
}

/// A sender's event name with the action in its body: `issues` and `opened` make `issues.opened`.
fn with_action(kind: &str, data: &Data) -> String {
    match Value::new(data.bytes()).str("/action") {
        // A recorded type may have its action already.
        Some(action) if is_kind(action) && !kind.ends_with(&format!(".{action}")) => {
            format!("{kind}.{action}")
        }
        _ => kind.to_owned(),
    }
}

/// Whether a text can be an event type, or a part of one.
fn is_kind(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':');
    (1..=128).contains(&text.len()) && text.bytes().all(fits)
}
