//! The event on the wire: a map of seven keys, always all of them, always in this order: `id`,
//! `source`, `type`, `subject`, `time`, `headers`, `data`.

use super::{Error, SkipIndex, Value};
#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
use super::{INDEXED_BYTES_MIN, Writer, json::Data};

/// One notification that came in, as a rule sees it: CloudEvents attributes, the sender's headers as
/// far as they are let through, and the payload.
///
/// ```
/// use hooksieve_sdk::prelude::*;
///
/// let recorded = hooksieve_sdk::testing::event(
///     "issues.opened",
///     r#"{"issue": {"number": 7, "labels": [{"name": "incident"}]}}"#,
/// );
/// let event = recorded.event();
/// assert_eq!(event.kind(), "issues.opened");
/// assert_eq!(event.i64("/issue/number"), Some(7));
/// assert!(event.each("/issue/labels").any(|label| label.str("/name") == Some("incident")));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    data: Value<'a>,
    /// Where the values stand, in the order of [`KEYS`].
    at: [usize; KEYS.len()],
}

/// The event's keys, in the order that the contract gives them.
const KEYS: [&str; 7] = ["id", "source", "type", "subject", "time", "headers", "data"];
const ID: usize = 0;
const SOURCE: usize = 1;
const KIND: usize = 2;
const SUBJECT: usize = 3;
const TIME: usize = 4;
const HEADERS: usize = 5;

impl<'a> Event<'a> {
    /// Reads an event as the engine wrote it, by the order of its keys. `index` may be empty. Keys that
    /// a later version adds are passed over.
    ///
    /// # Errors
    /// When an attribute is missing or of another kind than the contract says.
    #[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
    pub fn decode(bytes: &'a [u8], index: SkipIndex<'a>) -> Result<Self, Error> {
        Self::read(bytes, index).map_err(|key| Error::joined(&["the event has no ", key]))
    }

    /// [`Event::decode`], with the key that is missing as error.
    pub(crate) fn read(bytes: &'a [u8], index: SkipIndex<'a>) -> Result<Self, &'static str> {
        let mut entries = Value::trusted(bytes, index).entries();
        let mut event = Self {
            data: entries.value(),
            at: [0; KEYS.len()],
        };
        for (n, key) in KEYS.into_iter().enumerate() {
            let found = entries.advance();
            // In a module the engine's order is enough; to compare each name costs fuel every time.
            let is_there = match cfg!(all(target_arch = "wasm32", target_os = "unknown")) {
                true => found.is_some(),
                false => found == Some(key.as_bytes()),
            };
            event.data = entries.value();
            event.at[n] = event.data.at;
            let is_text = n <= TIME && n != SUBJECT;
            if !is_there || (is_text && event.data.as_str().is_none()) {
                return Err(key);
            }
        }
        Ok(event)
    }

    fn value(&self, n: usize) -> Value<'a> {
        let mut value = self.data;
        value.at = self.at[n];
        value
    }

    /// The engine's own id of this event.
    pub fn id(&self) -> &'a str {
        self.value(ID).as_str().unwrap_or_default()
    }

    /// The name of the source it came in by, as its tenant named it.
    pub fn source(&self) -> &'a str {
        self.value(SOURCE).as_str().unwrap_or_default()
    }

    /// The event's type: the sender's event name with its action, such as `issues.opened`.
    pub fn kind(&self) -> &'a str {
        self.value(KIND).as_str().unwrap_or_default()
    }

    /// What it is about, where the sender says so: a GitHub repository, a Shopify shop.
    pub fn subject(&self) -> Option<&'a str> {
        self.value(SUBJECT).as_str()
    }

    /// When it came in, as RFC 3339 in UTC with seconds: `2026-03-01T09:30:00Z`. A rule has no other
    /// clock.
    pub fn time(&self) -> &'a str {
        self.value(TIME).as_str().unwrap_or_default()
    }

    /// A header of the request, by its name in lower case. Only those that the source lets through
    /// are here; signatures, tokens and cookies never are.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.value(HEADERS).get(name)?.as_str()
    }

    /// All headers that were let through.
    pub fn headers(&self) -> Value<'a> {
        self.value(HEADERS)
    }

    /// The payload.
    pub fn data(&self) -> Value<'a> {
        self.data
    }

    /// The whole payload as a type of your own.
    ///
    /// # Errors
    /// When the payload does not fit the type; the message names what was wrong.
    pub fn data_as<T: serde::Deserialize<'a>>(&self) -> Result<T, Error> {
        T::deserialize(self.data)
    }

    /// The value in the payload at a JSON pointer (RFC 6901).
    pub fn get(&self, pointer: &str) -> Option<Value<'a>> {
        self.data.pointer(pointer)
    }

    /// The string in the payload at a JSON pointer.
    pub fn str(&self, pointer: &str) -> Option<&'a str> {
        self.data.str(pointer)
    }

    /// The integer in the payload at a JSON pointer.
    pub fn i64(&self, pointer: &str) -> Option<i64> {
        self.data.i64(pointer)
    }

    /// The number in the payload at a JSON pointer; integers count as numbers.
    pub fn f64(&self, pointer: &str) -> Option<f64> {
        self.data.f64(pointer)
    }

    /// The boolean in the payload at a JSON pointer.
    pub fn bool(&self, pointer: &str) -> Option<bool> {
        self.data.bool(pointer)
    }

    /// The values of the array in the payload at a JSON pointer; empty when there is none.
    pub fn each(&self, pointer: &str) -> super::Items<'a> {
        self.data.each(pointer)
    }
}

/// An event's attributes, before they are joined with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventHead<'a> {
    pub id: &'a str,
    pub source: &'a str,
    pub kind: &'a str,
    pub subject: Option<&'a str>,
    pub time: &'a str,
    pub headers: &'a [(String, String)],
}

#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
impl EventHead<'_> {
    /// The event as MessagePack, and the bytes of its skip index.
    pub fn encode(&self, data: &Data) -> (Vec<u8>, Vec<u8>) {
        let mut writer = Writer::with_capacity(data.bytes().len() + 512);
        writer.map(7);
        for (key, value) in [
            ("id", Some(self.id)),
            ("source", Some(self.source)),
            ("type", Some(self.kind)),
            ("subject", self.subject),
            ("time", Some(self.time)),
        ] {
            writer.str(key);
            match value {
                Some(value) => writer.str(value),
                None => writer.nil(),
            }
        }
        writer.str("headers");
        let headers_start = writer.len();
        writer.map(self.headers.len());
        for (name, value) in self.headers {
            writer.str(name);
            writer.str(value);
        }
        let headers_end = writer.len();
        writer.str("data");
        let data_start = writer.len();
        writer.raw(data.bytes());

        let mut index = Vec::with_capacity(8 * (data.containers().len() + 2));
        let mut list = |start: usize, end: usize| {
            if end - start >= INDEXED_BYTES_MIN {
                index.extend_from_slice(&(start as u32).to_le_bytes());
                index.extend_from_slice(&(end as u32).to_le_bytes());
            }
        };
        list(0, writer.len());
        list(headers_start, headers_end);
        for &(start, end) in data.containers() {
            list(data_start + start as usize, data_start + end as usize);
        }
        (writer.into_bytes(), index)
    }
}
