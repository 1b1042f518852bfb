//! What a rule answers: a map with `reason` and `actions`, or a map with `error` alone.

#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
use super::json;
use super::{Error, Kind, Timing, Value, Writer};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What becomes of an event: a reason, for the person who asks later, and what to do. No action
/// drops the event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub reason: String,
    pub actions: Vec<Action>,
}

/// One thing to do: a message or a body, to one channel of the tenant, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    pub channel: String,
    #[serde(flatten)]
    pub payload: Payload,
    /// When and how often; `None` is at once, every time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timing: Option<Box<Timing>>,
}

/// What is sent: a message that the channel puts into its own form, or a body as it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Payload {
    Message(Message),
    Body(Body),
}

impl Payload {
    /// The message, where it is one.
    pub fn message(&self) -> Option<&Message> {
        match self {
            Payload::Message(message) => Some(message),
            Payload::Body(_) => None,
        }
    }

    /// The body, where it is one, to be read by path.
    pub fn body(&self) -> Option<Value<'_>> {
        match self {
            Payload::Body(body) => Some(body.value()),
            Payload::Message(_) => None,
        }
    }
}

/// A notification for people. All of it is plain text: the channel escapes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    pub title: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<Field>,
}

/// Where a message leads: an `http` or `https` address, and what to call it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// A short fact beside a message's text: "Repository", "octo/api".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Field {
    pub name: String,
    pub value: String,
}

/// A body that a rule made, kept as MessagePack and sent as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body(Vec<u8>);

impl Body {
    /// A body of what is MessagePack already: one value, written by [`Writer`].
    pub fn from_msgpack(encoded: Vec<u8>) -> Self {
        Self(encoded)
    }

    pub fn value(&self) -> Value<'_> {
        Value::new(&self.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for Body {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(to)
    }
}

#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        json::Data::from_deserializer(from).map(|data| Self(data.bytes().to_vec()))
    }
}

// Guests write decisions and never read them; this keeps the derives above whole on wasm.
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("a rule does not read bodies"))
    }
}

impl Decision {
    /// The decision as MessagePack.
    pub fn encode(&self) -> Vec<u8> {
        let mut to = Writer::with_capacity(256);
        to.map(2);
        to.entry("reason", &self.reason);
        to.str("actions");
        to.array(self.actions.len());
        for action in &self.actions {
            action.encode(&mut to);
        }
        to.into_bytes()
    }

    /// Reads what a rule answered: its decision, or the error it returned. Strict: an unknown key is
    /// an error, so that a later key never passes unnoticed through an older engine, and so is a key
    /// that stands twice, of which one would be lost.
    ///
    /// # Errors
    /// When it is not what the contract says; the message names the place.
    pub fn decode(answer: &[u8]) -> Result<Result<Self, String>, Error> {
        let value = Value::new(answer);
        value.validate()?;
        if let Some(error) = value.get("error") {
            if value.len() != 1 {
                return Err(Error::new("`error` stands beside other keys"));
            }
            return Ok(Err(string(error, &Place::In(&Place::Top, "error"))?));
        }
        let at = &Place::Top;
        let mut reason = None;
        let mut actions = None;
        for (key, value) in map(value, at)? {
            match key {
                "reason" => set(&mut reason, string(value, &Place::In(at, key))?, at, key)?,
                "actions" => {
                    let place = Place::In(at, key);
                    let read = array(value, &place)?
                        .enumerate()
                        .map(|(n, value)| Action::decode(value, &Place::Nth(&place, n)));
                    set(&mut actions, read.collect::<Result<_, _>>()?, at, key)?;
                }
                _ => return Err(unknown(at, key)),
            }
        }
        Ok(Ok(Self {
            reason: reason.ok_or_else(|| absent(at, "reason"))?,
            actions: actions.ok_or_else(|| absent(at, "actions"))?,
        }))
    }

    /// The answer of a rule that failed.
    pub fn encode_error(message: &str) -> Vec<u8> {
        let mut to = Writer::with_capacity(message.len() + 16);
        to.map(1);
        to.entry("error", message);
        to.into_bytes()
    }
}

impl Action {
    fn encode(&self, to: &mut Writer) {
        let timing = self.timing.as_deref().filter(|_| Timing::is_used());
        to.map(2 + usize::from(timing.is_some()));
        to.entry("channel", &self.channel);
        match &self.payload {
            Payload::Message(message) => {
                to.str("message");
                message.encode(to);
            }
            Payload::Body(body) => {
                to.str("body");
                to.raw(&body.0);
            }
        }
        if let Some(timing) = timing {
            to.str("timing");
            timing.encode(to);
        }
    }

    fn decode(value: Value<'_>, at: &Place<'_>) -> Result<Self, Error> {
        let mut channel = None;
        let mut payload = None;
        let mut timing = None;
        for (key, value) in map(value, at)? {
            let place = Place::In(at, key);
            let read = match key {
                "channel" => {
                    set(&mut channel, string(value, &place)?, at, key)?;
                    continue;
                }
                "timing" => {
                    set(&mut timing, Timing::decode(value, &place)?, at, key)?;
                    continue;
                }
                "message" => Payload::Message(Message::decode(value, &place)?),
                "body" => {
                    let encoded = value.encoded().ok_or_else(|| absent(at, "body"))?;
                    Payload::Body(Body(encoded.to_vec()))
                }
                _ => return Err(unknown(at, key)),
            };
            if payload.replace(read).is_some() {
                return Err(Error::new(format!(
                    "{at} has more than one `message` or `body`"
                )));
            }
        }
        Ok(Self {
            channel: channel.ok_or_else(|| absent(at, "channel"))?,
            payload: payload.ok_or_else(|| absent(at, "message` or `body"))?,
            timing: timing.map(Box::new),
        })
    }
}

impl Message {
    fn encode(&self, to: &mut Writer) {
        to.map(2 + usize::from(self.link.is_some()) + usize::from(!self.fields.is_empty()));
        to.entry("title", &self.title);
        to.entry("text", &self.text);
        if let Some(link) = &self.link {
            to.str("link");
            to.map(1 + usize::from(link.label.is_some()));
            to.entry("url", &link.url);
            if let Some(label) = &link.label {
                to.entry("label", label);
            }
        }
        if !self.fields.is_empty() {
            to.str("fields");
            to.array(self.fields.len());
            for field in &self.fields {
                to.map(2);
                to.entry("name", &field.name);
                to.entry("value", &field.value);
            }
        }
    }

    fn decode(value: Value<'_>, at: &Place<'_>) -> Result<Self, Error> {
        let (mut title, mut text, mut link, mut fields) = (None, None, None, None);
        for (key, value) in map(value, at)? {
            let place = Place::In(at, key);
            match key {
                "title" => set(&mut title, string(value, &place)?, at, key)?,
                "text" => set(&mut text, string(value, &place)?, at, key)?,
                "link" => {
                    let read = match value.kind() {
                        Kind::Nil => None,
                        _ => Some(Link::decode(value, &place)?),
                    };
                    set(&mut link, read, at, key)?;
                }
                "fields" => {
                    let read = array(value, &place)?
                        .enumerate()
                        .map(|(n, value)| Field::decode(value, &Place::Nth(&place, n)));
                    set(&mut fields, read.collect::<Result<_, _>>()?, at, key)?;
                }
                _ => return Err(unknown(at, key)),
            }
        }
        Ok(Self {
            title: title.ok_or_else(|| absent(at, "title"))?,
            text: text.unwrap_or_default(),
            link: link.flatten(),
            fields: fields.unwrap_or_default(),
        })
    }
}

impl Link {
    fn decode(value: Value<'_>, at: &Place<'_>) -> Result<Self, Error> {
        let mut url = None;
        let mut label = None;
        for (key, value) in map(value, at)? {
            let place = Place::In(at, key);
            match key {
                "url" => set(&mut url, string(value, &place)?, at, key)?,
                "label" => {
                    let read = match value.kind() {
                        Kind::Nil => None,
                        _ => Some(string(value, &place)?),
                    };
                    set(&mut label, read, at, key)?;
                }
                _ => return Err(unknown(at, key)),
            }
        }
        Ok(Self {
            url: url.ok_or_else(|| absent(at, "url"))?,
            label: label.flatten(),
        })
    }
}

impl Field {
    fn decode(value: Value<'_>, at: &Place<'_>) -> Result<Self, Error> {
        let mut name = None;
        let mut text = None;
        for (key, value) in map(value, at)? {
            let place = Place::In(at, key);
            match key {
                "name" => set(&mut name, string(value, &place)?, at, key)?,
                "value" => set(&mut text, string(value, &place)?, at, key)?,
                _ => return Err(unknown(at, key)),
            }
        }
        Ok(Self {
            name: name.ok_or_else(|| absent(at, "name"))?,
            value: text.ok_or_else(|| absent(at, "value"))?,
        })
    }
}

/// Where in the answer something stands. Put into words only when it is wrong: every answer that is
/// read passes through here.
pub(super) enum Place<'p> {
    Top,
    In(&'p Place<'p>, &'p str),
    Nth(&'p Place<'p>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Top => f.write_str("the decision"),
            Place::In(Place::Top, key) => f.write_str(key),
            Place::In(parent, key) => write!(f, "{parent}.{key}"),
            Place::Nth(parent, n) => write!(f, "{parent}[{n}]"),
        }
    }
}

/// Fills a slot once.
pub(super) fn set<T>(
    slot: &mut Option<T>,
    read: T,
    at: &Place<'_>,
    key: &str,
) -> Result<(), Error> {
    match slot.replace(read) {
        None => Ok(()),
        Some(_) => Err(Error::new(format!("{at} has `{key}` twice"))),
    }
}

pub(super) fn string(value: Value<'_>, at: &Place<'_>) -> Result<String, Error> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| wrong(value, at, "a string"))
}

pub(super) fn map<'a>(value: Value<'a>, at: &Place<'_>) -> Result<super::Entries<'a>, Error> {
    match value.kind() {
        Kind::Map => Ok(value.entries()),
        _ => Err(wrong(value, at, "a map")),
    }
}

fn array<'a>(value: Value<'a>, at: &Place<'_>) -> Result<super::Items<'a>, Error> {
    match value.kind() {
        Kind::Array => Ok(value.items()),
        _ => Err(wrong(value, at, "an array")),
    }
}

pub(super) fn wrong(value: Value<'_>, at: &Place<'_>, wanted: &str) -> Error {
    Error::new(format!("{at} is {}, not {wanted}", value.kind().name()))
}

pub(super) fn absent(at: &Place<'_>, key: &str) -> Error {
    Error::new(format!("{at} has no `{key}`"))
}

pub(super) fn unknown(at: &Place<'_>, key: &str) -> Error {
    let key: String = key.chars().take(64).collect();
    Error::new(format!("{at} has the unknown key {key:?}"))
}
