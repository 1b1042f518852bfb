//! JSON to MessagePack, once, at ingest: key order kept, integers in their shortest form, every
//! other number as a 64-bit float. The same body always gives the same bytes, because the bytes
//! decide the fuel. Where a key stands twice, both are kept and look-ups find the first.

use super::{DEPTH_MAX, INDEXED_BYTES_MIN, Writer};
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A payload as MessagePack, with the larger containers in it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Data {
    bytes: Vec<u8>,
    /// Start and end of each container of at least [`INDEXED_BYTES_MIN`] bytes, sorted by start.
    containers: Vec<(u32, u32)>,
}

impl Data {
    /// The payload that a JSON text stands for. A byte order mark in front of it is passed over. What is no
    /// Unicode in its strings, half of a surrogate pair (`"\ud83d"`) or a byte that is not UTF-8, becomes
    /// U+FFFD, as it does in browsers: one cut emoji is no reason to lose an event.
    ///
    /// # Errors
    /// When it is not JSON, nests deeper than [`DEPTH_MAX`], or something follows it; the error names
    /// line and column.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
        Self::read(json).or_else(|error| match repaired(json) {
            Some(json) => Self::read(json.as_bytes()),
            None => Err(error),
        })
    }

    fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let data = Self::from_deserializer(&mut deserializer)?;
        deserializer.end()?;
        Ok(data)
    }

    /// The payload that any self-describing format holds.
    ///
    /// # Errors
    /// What the format reports, and nesting deeper than [`DEPTH_MAX`].
    pub fn from_deserializer<'de, D: de::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut data = Sink::default();
        Any(&mut data).deserialize(from)?;
        Ok(Self {
            bytes: data.writer.into_bytes(),
            containers: data.containers,
        })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes a rule is handed of it, with its part of the skip index.
    pub fn input_bytes(&self) -> usize {
        self.bytes.len() + 8 * self.containers.len()
    }

    pub(crate) fn containers(&self) -> &[(u32, u32)] {
        &self.containers
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The text with U+FFFD in place of what is no Unicode; `None` where all of it is.
fn repaired(json: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(json);
    let mut repaired = String::new();
    let mut rest = &*text;
    // Outside of strings a backslash is an error before and after.
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at..];
        let first = unit(escape).unwrap_or(0);
        let second = escape.get(6..).and_then(unit).unwrap_or(0);
        let pair = (0xd800..0xdc00).contains(&first) && (0xdc00..0xe000).contains(&second);
        let lone = !pair && (0xd800..0xe000).contains(&first);
        let end = match (pair, lone) {
            (true, _) => at + 12,
            (_, true) => at + 6,
            // One character is escaped, whatever it is.
            _ => at + 1 + escape[1..].chars().next().map_or(0, char::len_utf8),
        };
        repaired.push_str(&rest[..if lone { at } else { end }]);
        if lone {
            repaired.push_str("\\ufffd");
        }
        rest = &rest[end..];
    }
    repaired.push_str(rest);
    (repaired.as_bytes() != json).then_some(repaired)
}

/// The UTF-16 unit of the escape `\uXXXX` that a text begins with.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    all.then(|| u32::from_str_radix(digits, 16).ok())?
}

#[derive(Default)]
struct Sink {
    writer: Writer,
    containers: Vec<(u32, u32)>,
    depth: usize,
}

impl Sink {
    /// Leaves room for a container's header; its size is known only at its end.
    fn open<E: de::Error>(&mut self) -> Result<(usize, usize), E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!(
                "nested deeper than {DEPTH_MAX} levels"
            )));
        }
        self.depth += 1;
        let start = self.writer.len();
        self.writer.nil();
        self.containers.push((start as u32, 0));
        Ok((start, self.containers.len() - 1))
    }

    fn close(&mut self, (start, listed): (usize, usize), len: usize, is_map: bool) {
        self.depth -= 1;
        let moved = self.writer.container_header_at(start, len, is_map) as u32;
        let end = self.writer.len();
        if end - start < INDEXED_BYTES_MIN {
            // What it holds is smaller still, so nothing after it is listed either.
            self.containers.truncate(listed);
            return;
        }
        self.containers[listed].1 = end as u32;
        for (start, end) in &mut self.containers[listed + 1..] {
            *start += moved;
            *end += moved;
        }
    }
}

/// Any one value, written as it is met.
struct Any<'s>(&'s mut Sink);

impl<'de> DeserializeSeed<'de> for Any<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.writer.nil();
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        self.0.writer.nil();
        Ok(())
    }

    fn visit_some<D: de::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        self.deserialize(from)
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.writer.bool(value);
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.writer.u64(value);
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.writer.i64(value);
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.writer.f64(value);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.0.writer.str(value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let open = self.0.open()?;
        let mut len = 0;
        while seq.next_element_seed(Any(self.0))?.is_some() {
            len += 1;
        }
        self.0.close(open, len, false);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let open = self.0.open()?;
        let mut len = 0;
        while map.next_key_seed(Key(self.0))?.is_some() {
            map.next_value_seed(Any(self.0))?;
            len += 1;
        }
        self.0.close(open, len, true);
        Ok(())
    }
}

/// A map's key: a string and nothing else.
struct Key<'s>(&'s mut Sink);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string as key")
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.0.writer.str(value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Value;

    #[test]
    fn what_is_no_unicode_becomes_the_replacement_character() {
        for (json, expected) in [
            (&br#""cut \ud83d""#[..], "cut \u{fffd}"),
            (
                br#""\udc00\ud83d\ud83d\ude00 \uD83D\uDE00""#,
                "\u{fffd}\u{fffd}\u{1f600} \u{1f600}",
            ),
            (br#""\\ud83d""#, "\\ud83d"),
            (br#""\\\ud83d\n""#, "\\\u{fffd}\n"),
            (br#""\ud83d\u0041""#, "\u{fffd}A"),
            (b"\"M\xfcller\"", "M\u{fffd}ller"),
            (b"\"\xed\xa0\xbd\"", "\u{fffd}\u{fffd}\u{fffd}"),
            (b"\xef\xbb\xbf\"marked\"", "marked"),
        ] {
            let data = Data::from_json(json).unwrap();
            let text = Value::new(data.bytes()).as_str().map(str::to_owned);
            assert_eq!(text.as_deref(), Some(expected));
        }
        // In keys as well.
        let data = Data::from_json(br#"{"a\udfff": 7}"#).unwrap();
        assert_eq!(Value::new(data.bytes()).i64("/a\u{fffd}"), Some(7));
        // What is not JSON is none, and the place that is told is where it is in what came.
        for json in [
            &br#"{"a": "\ud83d", "b": }"#[..],
            br#"{"a": 1, \ud83d"#,
            br#""\ud83""#,
            b"\xef\xbb\xbf",
            b"\xff\xfe{\x00}\x00",
            b"\"\\",
        ] {
            assert!(Data::from_json(json).is_err());
        }
        let error = Data::from_json(br#"{"a": "\ud83d", "b": }"#).unwrap_err();
        assert_eq!((error.line(), error.column()), (1, 22));
    }
}
