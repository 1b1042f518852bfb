//! Recordings: events with what was decided of them, in one compact file, for replay.
//!
//! ```text
//! "hsrec" 0 1 \n                               8 bytes: what it is, and version 1
//! length: u32, raw: u32, events: u32, zstd     a block: what it takes here and unpacked (little-endian), how
//! ...                                          many events it has, and these, as one Zstandard frame with its
//!                                              checksum: MessagePack, an event as rules get it, its skip
//!                                              index, and what was decided
//! 0: u32, 0: u32, events: u32                  the end: how many events there are in all
//! ```
//!
//! A block needs nothing of another: many threads can read one recording.
//!
//! What looks personal is masked unless it is asked for: texts under keys such as `email` or `phone`, and texts
//! that are mail addresses. A mask has the length of what it hides, letter by letter, so that the event keeps
//! its bytes' layout and its skip index; decisions are masked alike. Signatures, tokens and cookies never were
//! in an event.

mod personal;

pub use personal::Personal;

use crate::id::{EventId, Name};
use crate::replay::Recorded;
use crate::store::{Outcome, StoredEvent, Story};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"hsrec\x00\x01\n";
/// How much is packed together, and how much one block may be.
const BLOCK_BYTES: usize = 1 << 20;
const BLOCK_BYTES_MAX: usize = 64 << 20;
/// Between size and speed: higher ones take much longer to write, and no less to read.
const LEVEL: i32 = 3;

#[derive(Debug, Serialize, Deserialize)]
struct Packed {
    id: String,
    source: String,
    kind: String,
    received_ms: i64,
    #[serde(with = "serde_bytes")]
    event: Vec<u8>,
    #[serde(with = "serde_bytes")]
    index: Vec<u8>,
    made: Vec<Made>,
}

/// What a rule made of a recorded event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    pub rule: Name,
    pub version: Option<u32>,
    /// SHA-256 of the module, and of its configuration.
    pub module: String,
    pub config: String,
    pub fuel: u64,
    /// The decision as JSON; none where it failed.
    pub decision: Option<String>,
    /// The kind of failure, and its text.
    pub error: Option<(String, String)>,
    /// The version of the prices that `fuel` was counted in.
    #[serde(default = "crate::store::first_prices")]
    pub prices: u32,
}

impl Made {
    fn of(story: &Story) -> Vec<Self> {
        let decisions = story.decisions.iter();
        let made = decisions.map(|it| {
            let (decision, error) = match &it.outcome {
                Outcome::Decided(decision) => (serde_json::to_string(decision).ok(), None),
                Outcome::Failed { kind, error, .. } => (None, Some((kind.clone(), error.clone()))),
            };
            Self {
                rule: it.rule.clone(),
                version: it.version,
                module: it.module.to_string(),
                config: it.config.to_string(),
                fuel: it.fuel,
                decision,
                error,
                prices: it.prices,
            }
        });
        made.collect()
    }
}

/// Writes a recording.
pub struct Writer<W: Write> {
    to: W,
    masked: bool,
    full: Vec<u8>,
    pack: zstd::bulk::Compressor<'static>,
    /// Events that are written, and that are in the block that is filled.
    events: u32,
    in_block: u32,
}

impl<W: Write> Writer<W> {
    /// # Errors
    /// What the writer underneath says.
    pub fn new(mut to: W, masked: bool) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        let mut pack = zstd::bulk::Compressor::new(LEVEL)?;
        pack.include_checksum(true)?;
        Ok(Self {
            to,
            masked,
            full: Vec::with_capacity(BLOCK_BYTES),
            pack,
            events: 0,
            in_block: 0,
        })
    }

    /// Adds an event of an engine's, with what was decided.
    ///
    /// # Errors
    /// What the writer underneath says.
    pub fn story(&mut self, story: &Story) -> io::Result<()> {
        let event = &story.event;
        let made = Made::of(story);
        self.add(&event.id.to_string(), event.source.as_str(), event, made)
    }

    /// Adds an event of a file's, of which nothing was decided.
    ///
    /// # Errors
    /// What the writer underneath says.
    pub fn recorded(&mut self, recorded: &Recorded) -> io::Result<()> {
        let made = recorded.made.clone();
        self.add(&recorded.id, &recorded.source, &recorded.event, made)
    }

    fn add(
        &mut self,
        id: &str,
        source: &str,
        event: &StoredEvent,
        made: Vec<Made>,
    ) -> io::Result<()> {
        let mut packed = Packed {
            id: id.to_owned(),
            source: source.to_owned(),
            kind: event.kind.clone(),
            received_ms: event.received_ms,
            event: event.encoded.clone(),
            index: event.index.clone(),
            made,
        };
        if self.masked {
            personal::mask(&mut packed);
        }
        let written = packed.serialize(&mut rmp_serde::Serializer::new(&mut self.full));
        written.map_err(io::Error::other)?;
        self.in_block += 1;
        match self.full.len() >= BLOCK_BYTES {
            true => self.block(),
            false => Ok(()),
        }
    }

    fn block(&mut self) -> io::Result<()> {
        let packed = self.pack.compress(&self.full)?;
        let head = Head {
            bytes: packed.len() as u32,
            raw_bytes: self.full.len() as u32,
            events: std::mem::take(&mut self.in_block),
        };
        self.to.write_all(&head.encode())?;
        self.to.write_all(&packed)?;
        self.full.clear();
        let events = self.events.checked_add(head.events);
        self.events = events.ok_or_else(|| io::Error::other("too many events for one file"))?;
        Ok(())
    }

    /// Ends the recording; gives how many events it has.
    ///
    /// # Errors
    /// What the writer underneath says.
    pub fn end(mut self) -> io::Result<u64> {
        if self.in_block > 0 {
            self.block()?;
        }
        let end = Head {
            bytes: 0,
            raw_bytes: 0,
            events: self.events,
        };
        self.to.write_all(&end.encode())?;
        self.to.flush()?;
        Ok(u64::from(self.events))
    }
}

/// What stands before a block, and with nothing behind it at the end.
#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: u32,
    raw_bytes: u32,
    events: u32,
}

const HEAD_BYTES: usize = 12;

impl Head {
    fn encode(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        let numbers = [self.bytes, self.raw_bytes, self.events];
        for (place, number) in bytes.chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: [u8; HEAD_BYTES]) -> Self {
        let number = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            bytes: number(0),
            raw_bytes: number(4),
            events: number(8),
        }
    }
}

/// Why a recording is not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    #[error("it is no recording: `hooksieve record` makes one")]
    Other,
    #[error("it is cut off or damaged after {0} events; record it again")]
    Damaged(u64),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A block of a recording, as it is in its file.
#[derive(Debug)]
pub struct Block {
    head: Head,
    packed: Vec<u8>,
    /// How many events come before it.
    before: u32,
}

/// Gives every block of a recording.
///
/// # Errors
/// When it is not whole, or what `each` returns.
pub fn blocks<E: From<NotRead>>(
    mut from: impl Read,
    each: &mut impl FnMut(Block) -> Result<(), E>,
) -> Result<(), E> {
    let mut magic = [0; MAGIC.len()];
    if from.read_exact(&mut magic).is_err() || magic != *MAGIC {
        return Err(NotRead::Other.into());
    }
    let mut before = 0_u32;
    loop {
        let damaged = || NotRead::Damaged(u64::from(before));
        let mut head = [0; HEAD_BYTES];
        from.read_exact(&mut head).map_err(|_| damaged())?;
        let head = Head::decode(head);
        let (short, long) = (head.bytes as usize, head.raw_bytes as usize);
        if short == 0 {
            return match head.events == before {
                true => Ok(()),
                false => Err(damaged().into()),
            };
        }
        if short > BLOCK_BYTES_MAX || long > BLOCK_BYTES_MAX {
            return Err(damaged().into());
        }
        let mut packed = vec![0; short];
        from.read_exact(&mut packed).map_err(|_| damaged())?;
        each(Block {
            head,
            packed,
            before,
        })?;
        before = before.checked_add(head.events).ok_or_else(damaged)?;
    }
}

impl Block {
    /// What it takes in its file.
    pub fn bytes(&self) -> u64 {
        (HEAD_BYTES + self.packed.len()) as u64
    }

    /// Gives every event of it, as one of `tenant`.
    ///
    /// # Errors
    /// When it is damaged, or what `each` returns.
    pub fn events<E: From<NotRead>>(
        &self,
        tenant: &Name,
        each: &mut impl FnMut(Recorded) -> Result<(), E>,
    ) -> Result<(), E> {
        let damaged = || NotRead::Damaged(u64::from(self.before));
        let long = self.head.raw_bytes as usize;
        let raw = zstd::bulk::decompress(&self.packed, long).map_err(|_| damaged())?;
        if raw.len() != long {
            return Err(damaged().into());
        }
        let (mut rest, mut events) = (raw.as_slice(), 0);
        while !rest.is_empty() {
            // Reads as much as the value has, and leaves the rest.
            let packed = Packed::deserialize(&mut rmp_serde::Deserializer::new(&mut rest));
            events += 1;
            each(unpacked(packed.map_err(|_| damaged())?, tenant))?;
        }
        match events == self.head.events {
            true => Ok(()),
            false => Err(damaged().into()),
        }
    }
}

fn unpacked(packed: Packed, tenant: &Name) -> Recorded {
    let id = packed.id.parse::<EventId>();
    let event = StoredEvent {
        id: id.unwrap_or_else(|_| EventId::from_bytes(&packed.event)),
        tenant: tenant.clone(),
        // One that is no name is a file's, where each event says its own.
        source: packed.source.parse().unwrap_or_else(|_| tenant.clone()),
        kind: packed.kind,
        sender_id: None,
        verified: "recorded".to_owned(),
        received_ms: packed.received_ms,
        encoded: packed.event,
        index: packed.index,
    };
    Recorded {
        id: packed.id,
        source: packed.source,
        event,
        made: packed.made,
        place: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{self, Defaults};
    use hooksieve_sdk::wire::Value;

    fn event(json: &str) -> Recorded {
        let defaults = Defaults {
            tenant: "acme".parse().unwrap(),
            source: "shop".parse().unwrap(),
            kind: Some("orders.create".to_owned()),
        };
        replay::payload(json.as_bytes(), &defaults).unwrap()
    }

    fn written(events: &[Recorded], masked: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, masked).unwrap();
        for event in events {
            writer.recorded(event).unwrap();
        }
        assert_eq!(writer.end().unwrap(), events.len() as u64);
        bytes
    }

    fn all(bytes: &[u8]) -> Result<Vec<Recorded>, NotRead> {
        let mut found = Vec::new();
        let tenant = "acme".parse().unwrap();
        blocks::<NotRead>(bytes, &mut |block| {
            block.events(&tenant, &mut |it| {
                found.push(it);
                Ok(())
            })
        })?;
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_off_is_not() {
        let events: Vec<_> = (0..500)
            .map(|n| event(&format!(r#"{{"n":{n},"text":"{}"}}"#, "x".repeat(5_000))))
            .collect();
        let bytes = written(&events, false);
        assert!(bytes.len() < 500 * 200, "{}", bytes.len());
        let back = all(&bytes).unwrap();
        assert_eq!(back.len(), events.len());
        for (before, after) in events.iter().zip(&back) {
            assert_eq!(before.event.encoded, after.event.encoded);
            assert_eq!(before.event.index, after.event.index);
            assert_eq!(
                (&before.id, &before.event.kind),
                (&after.id, &after.event.kind)
            );
        }
        assert!(matches!(all(b"{}"), Err(NotRead::Other)));
        for end in [MAGIC.len(), bytes.len() / 2, bytes.len() - 1] {
            assert!(
                matches!(all(&bytes[..end]), Err(NotRead::Damaged(_))),
                "{end}"
            );
        }
        let mut damaged = bytes.clone();
        let at = damaged.len() / 2;
        damaged[at] ^= 0x55;
        assert!(all(&damaged).is_err());
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let events = [event(r#"{"n":1}"#), event(r#"{"n":2}"#)];
        let whole = written(&events, false);
        let same = |bytes: &[u8]| {
            all(bytes).is_ok_and(|back| {
                let pairs = back.iter().zip(&events);
                back.len() == events.len()
                    && pairs
                        .into_iter()
                        .all(|(one, other)| one.event.encoded == other.event.encoded)
            })
        };
        assert!(same(&whole));
        let mut damaged = whole.clone();
        for at in 0..whole.len() {
            for bit in 0..8 {
                damaged[at] ^= 1 << bit;
                assert!(all(&damaged).is_err() || same(&damaged), "{at} {bit}");
                damaged[at] = whole[at];
            }
            assert!(all(&whole[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn what_looks_personal_is_masked_in_its_place_and_in_decisions() {
        let json = r#"{"customer":{"first_name":"Zoë","email":"zoe@a.example","orders":3},
            "note":"for zoe@a.example","contact":"ann@b.example","billing_address":{"zip":["12345"]},
            "api_token":"abc-123","title":"First things"}"#;
        let mut before = event(json);
        before.made = vec![Made {
            rule: "one".parse().unwrap(),
            version: Some(2),
            module: String::new(),
            config: String::new(),
            fuel: 7,
            decision: Some(r#"{"reason":"from zoe@a.example","actions":[]}"#.to_owned()),
            error: None,
            prices: 1,
        }];
        let back = all(&written(std::slice::from_ref(&before), true)).unwrap();
        let after = &back[0];
        assert_eq!(before.event.encoded.len(), after.event.encoded.len());
        let data = Value::new(&after.event.encoded).get("data").unwrap();
        let text = |pointer: &str| data.pointer(pointer).and_then(|it| it.as_str());
        assert_eq!(text("/customer/first_name"), Some("xxxx"));
        assert_eq!(text("/customer/email"), Some("xxx@x.xxxxxxx"));
        assert_eq!(text("/note"), Some("for xxx@x.xxxxxxx"));
        assert_eq!(text("/contact"), Some("xxx@x.xxxxxxx"));
        assert_eq!(text("/billing_address/zip/0"), Some("xxxxx"));
        assert_eq!(text("/api_token"), Some("xxx-xxx"));
        assert_eq!(text("/title"), Some("First things"));
        let decision = after.made[0].decision.as_deref();
        assert_eq!(
            decision,
            Some(r#"{"reason":"from xxx@x.xxxxxxx","actions":[]}"#)
        );
        // Asked for, all of it is there.
        let back = all(&written(std::slice::from_ref(&before), false)).unwrap();
        assert_eq!(back[0].event.encoded, before.event.encoded);
    }
}
