//! Names and ids, as types that cannot be swapped: names are what people chose, ids are our own.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use utoipa::ToSchema;
use uuid::Uuid;

/// What a person called a tenant, a source, a rule or a channel: 1 to 63 of `a-z`, `0-9`, `-` and
/// `_`, beginning with a letter or a digit. So it is safe in a URL, a file name and a store key.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, pattern = "^[a-z0-9][a-z0-9_-]{0,62}$")]
pub struct Name(Arc<str>);

/// The text is not a [`Name`].
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a name: use 1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit"
)]
pub struct NotAName(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let fits = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let starts = text
            .as_bytes()
            .first()
            .is_some_and(u8::is_ascii_alphanumeric);
        if starts && text.len() <= 63 && text.bytes().all(fits) {
            Ok(Self(text.into()))
        } else {
            Err(NotAName(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0.as_ref().to_owned()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The engine's own id of an event: a UUIDv7. The store gives them out, each greater than the one
/// before, so that they also order a tenant's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventId(pub Uuid);

impl EventId {
    /// An id for this moment, greater than `after` even where the clock stood still or went back.
    pub fn next(now_ms: i64, after: Option<EventId>) -> Self {
        let fresh = Uuid::new_v7(uuid::Timestamp::from_unix(
            uuid::NoContext,
            now_ms.div_euclid(1000) as u64,
            now_ms.rem_euclid(1000) as u32 * 1_000_000,
        ));
        match after {
            Some(EventId(last)) if fresh <= last => Self(Self::successor(last)),
            _ => Self(fresh),
        }
    }

    /// One that is less than those of events that came in from this moment on.
    pub fn before(ms: i64) -> Self {
        let ms = u128::try_from(ms).unwrap_or(0) & 0xffff_ffff_ffff;
        Self(Uuid::from_u128(ms << 80))
    }

    /// The id of an event that has none yet, made from its bytes: replay gives the same event the
    /// same id in every run.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(hashed(&[b"event", bytes]))
    }

    /// A greater one that nobody can guess from the one before: the 12 bits above the variant, and then the
    /// time, take the step, and the 62 bits below are drawn anew.
    fn successor(last: Uuid) -> Uuid {
        let high = last.as_u128() >> 64;
        let (time, rand_a) = (high >> 16, high & 0xfff);
        let (time, rand_a) = if rand_a < 0xfff {
            (time, rand_a + 1)
        } else {
            (time + 1, 0)
        };
        let drawn = u128::from(rand::random::<u64>() >> 2);
        Uuid::from_u128((((time << 16) | 0x7000 | rand_a) << 64) | (0b10 << 62) | drawn)
    }
}

/// The id of a delivery: it follows from the event, the rule and the position of the action in its
/// decision, so deciding twice after a crash makes one delivery. The receiver sees this id. It
/// begins with the event's moment, so that the store keeps deliveries of one time together: rows
/// under random keys cost it a page each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DeliveryId(pub Uuid);

impl DeliveryId {
    pub fn new(event: EventId, rule: &Name, position: usize) -> Self {
        let hash = hashed(&[
            b"delivery",
            event.0.as_bytes(),
            rule.as_str().as_bytes(),
            &(position as u64).to_be_bytes(),
        ]);
        Self::beside(hash, event.0)
    }

    /// The id under which this delivery is redriven: another one, and always the same.
    pub fn redriven(self) -> Self {
        self.derived("redrive")
    }

    /// The id of the delivery that escalates this one.
    pub fn escalated(self) -> Self {
        self.derived("escalation")
    }

    /// The id of the delivery to the channel that this one falls back on.
    pub fn fallen_back(self) -> Self {
        self.derived("fallback")
    }

    fn derived(self, purpose: &str) -> Self {
        Self::beside(hashed(&[purpose.as_bytes(), self.0.as_bytes()]), self.0)
    }

    /// With the moment of another id, so that their rows stand together.
    fn beside(hash: Uuid, other: Uuid) -> Self {
        let mut bytes = *hash.as_bytes();
        bytes[..6].copy_from_slice(&other.as_bytes()[..6]);
        Self(Uuid::from_bytes(bytes))
    }
}

/// A UUIDv8 of the SHA-256 over the parts, each with its length before it.
fn hashed(parts: &[&[u8]]) -> Uuid {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Uuid::new_v8(bytes)
}

macro_rules! id_text {
    ($($id:ident),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0.to_string())
            }
        }

        impl FromStr for $id {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    )*};
}

id_text!(EventId, DeliveryId);

/// The SHA-256 that names a module or a configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ToSchema)]
#[schema(value_type = String, pattern = "^[0-9a-f]{64}$")]
pub struct Hash(pub [u8; 32]);

impl Hash {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// Hexadecimal where people read, 32 bytes in store rows.
impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(self)
        } else {
            to.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            return String::deserialize(from)?
                .parse()
                .map_err(serde::de::Error::custom);
        }
        serde_bytes::ByteArray::<32>::deserialize(from).map(|bytes| Self(bytes.into_array()))
    }
}

/// The text is not a SHA-256 in hexadecimal.
#[derive(Clone, Debug, thiserror::Error)]
#[error("a SHA-256 is 64 hexadecimal digits")]
pub struct NotAHash;

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(NotAHash);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| NotAHash)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NotAHash)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_everywhere() {
        for good in ["a", "github-triage", "0", "a_b", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "A",
            "a b",
            "a/b",
            "ä",
            "../x",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn event_ids_only_grow_even_when_the_clock_goes_back() {
        let mut last = EventId::next(1_700_000_000_000, None);
        for now_ms in [
            1_700_000_000_000,
            1_700_000_000_000,
            1_600_000_000_000,
            1_700_000_000_001,
        ] {
            let id = EventId::next(now_ms, Some(last));
            assert!(id > last);
            assert_eq!(id.0.get_version_num(), 7);
            last = id;
        }
        let full = EventId(Uuid::from_u128(
            (0x0197_0000_0000_7fff << 64) | (0b10 << 62) | ((1 << 62) - 1),
        ));
        let id = EventId::next(0, Some(full));
        assert!(id > full);
        assert_eq!(
            (id.0.get_version_num(), id.0.get_variant()),
            (7, uuid::Variant::RFC4122)
        );
    }

    #[test]
    fn a_delivery_id_tells_event_rule_and_position_apart() {
        let event = EventId::next(0, None);
        let (a, b): (Name, Name) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(DeliveryId::new(event, &a, 0), DeliveryId::new(event, &a, 0));
        assert_ne!(DeliveryId::new(event, &a, 0), DeliveryId::new(event, &a, 1));
        assert_ne!(DeliveryId::new(event, &a, 0), DeliveryId::new(event, &b, 0));
    }
}
