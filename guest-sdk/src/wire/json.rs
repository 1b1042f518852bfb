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
    /// The payload that a JSON text stands for.
    ///
    /// # Errors
    /// When it is not JSON, nests deeper than [`DEPTH_MAX`], or something follows it; the error names
    /// line and column.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
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

    pub(crate) fn containers(&self) -> &[(u32, u32)] {
        &self.containers
    }
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
