//! A lazy view of one MessagePack value: nothing is decoded before it is asked for.

use super::msgpack::{self, Head, What};
use super::{DEPTH_MAX, SkipIndex};
use std::fmt;
use std::num::NonZeroUsize;

/// What could not be read, in one sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// One sentence of these parts, without a full stop. They are joined without formatting, which would weigh
    /// several kilobytes in a small rule.
    pub fn joined(parts: &[&str]) -> Self {
        Self(crate::text::joined(parts))
    }

    /// What was wrong, and where as far as that is known.
    pub fn message(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nil,
    Bool,
    Integer,
    Float,
    Str,
    Array,
    Map,
    /// Bytes or an extension: MessagePack has them, events and decisions do not.
    Other,
}

impl Kind {
    /// The kind with its article, for messages: "an integer".
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Nil => "nothing",
            Kind::Bool => "a boolean",
            Kind::Integer => "an integer",
            Kind::Float => "a number",
            Kind::Str => "a string",
            Kind::Array => "an array",
            Kind::Map => "a map",
            Kind::Other => "bytes",
        }
    }
}

/// One value inside a MessagePack document: a place in its bytes, copied for free.
///
/// Nothing here panics or recurses, whatever the bytes are; they are checked as far as they are
/// read. What does recurse (`Debug`, and serde in both directions) stops at [`DEPTH_MAX`] levels
/// below the document.
///
/// ```
/// let recorded = hooksieve_sdk::testing::event(
///     "push",
///     r#"{"commits": [{"id": "c0ffee", "added": []}], "a/b": true, "size": 1}"#,
/// );
/// let data = recorded.event().data();
/// assert_eq!(data.str("/commits/0/id"), Some("c0ffee"));
/// assert_eq!(data.bool("/a~1b"), Some(true));
/// assert_eq!(data.get("a/b").and_then(|value| value.as_bool()), Some(true));
/// assert_eq!(data.f64("/size"), Some(1.0));
/// assert_eq!(data.each("/commits").count(), 1);
/// assert_eq!(data.entries().map(|(key, _)| key).collect::<Vec<_>>(), ["commits", "a/b", "size"]);
/// ```
#[derive(Clone, Copy)]
pub struct Value<'a> {
    bytes: &'a [u8],
    index: SkipIndex<'a>,
    pub(super) at: usize,
    /// How many containers are around it.
    depth: u32,
}

impl<'a> Value<'a> {
    /// The first value in `bytes`.
    ///
    /// In a rule's module they must be one whole document, which is checked here and now, and are
    /// taken for none otherwise: only what the engine wrote is read there as it is.
    pub fn new(bytes: &'a [u8]) -> Self {
        let value = Self::trusted(bytes, SkipIndex::default());
        #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
        if value.validate().is_err() {
            return Self::nil();
        }
        value
    }

    /// The first value in `bytes`, with the skip index over them.
    #[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
    pub const fn indexed(bytes: &'a [u8], index: SkipIndex<'a>) -> Self {
        Self::trusted(bytes, index)
    }

    /// In a module, only for bytes whose every text is UTF-8, with an index that is true.
    pub(crate) const fn trusted(bytes: &'a [u8], index: SkipIndex<'a>) -> Self {
        Self {
            bytes,
            index,
            at: 0,
            depth: 0,
        }
    }

    const fn nil() -> Self {
        Self::trusted(&[0xc0], SkipIndex::new(&[]))
    }

    /// What this value is. Bytes that end too early are [`Kind::Other`].
    pub fn kind(&self) -> Kind {
        let Some(head) = self.head() else {
            return Kind::Other;
        };
        match head.what {
            What::Nil => Kind::Nil,
            What::Bool => Kind::Bool,
            What::Unsigned | What::Signed => Kind::Integer,
            What::Float => Kind::Float,
            What::Str => Kind::Str,
            What::Bytes => Kind::Other,
            What::Array => Kind::Array,
            What::Map => Kind::Map,
        }
    }

    pub fn is_nil(&self) -> bool {
        self.kind() == Kind::Nil
    }

    pub fn as_str(&self) -> Option<&'a str> {
        let mut value = *self;
        text(value.take_str()?)
    }

    pub fn as_bool(&self) -> Option<bool> {
        let head = self.head()?;
        (head.what == What::Bool).then_some(head.len != 0)
    }

    /// The value as an integer, if it is one and fits.
    pub fn as_i64(&self) -> Option<i64> {
        match self.number()? {
            Number::Unsigned(value) => i64::try_from(value).ok(),
            Number::Signed(value) => Some(value),
            Number::Float(_) => None,
        }
    }

    /// The value as an integer, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self.number()? {
            Number::Unsigned(value) => Some(value),
            Number::Signed(value) => u64::try_from(value).ok(),
            Number::Float(_) => None,
        }
    }

    /// The value as a number; integers count as numbers.
    pub fn as_f64(&self) -> Option<f64> {
        match self.number()? {
            Number::Unsigned(value) => Some(value as f64),
            Number::Signed(value) => Some(value as f64),
            Number::Float(value) => Some(value),
        }
    }

    /// The values of an array; empty for everything else.
    pub fn items(&self) -> Items<'a> {
        self.content(What::Array)
    }

    /// The entries of a map, in the sender's order; empty for everything else.
    pub fn entries(&self) -> Entries<'a> {
        Entries(self.content(What::Map))
    }

    /// How many values an array or entries a map says it holds; 0 for everything else. In bytes that
    /// end too early there are fewer.
    pub fn len(&self) -> usize {
        match self.head() {
            Some(head) if matches!(head.what, What::Array | What::Map) => head.len as usize,
            _ => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value at a JSON pointer (RFC 6901): `"/issue/labels/0/name"`. The empty pointer is this
    /// value itself; where a key stands twice, the first counts.
    pub fn pointer(&self, pointer: &str) -> Option<Value<'a>> {
        let mut value = *self;
        let mut rest = pointer.as_bytes();
        while let [b'/', tail @ ..] = rest {
            rest = value.step(tail)?;
        }
        rest.is_empty().then_some(value)
    }

    /// The string at a JSON pointer.
    pub fn str(&self, pointer: &str) -> Option<&'a str> {
        self.pointer(pointer)?.as_str()
    }

    /// The integer at a JSON pointer.
    pub fn i64(&self, pointer: &str) -> Option<i64> {
        self.pointer(pointer)?.as_i64()
    }

    /// The number at a JSON pointer; integers count as numbers.
    pub fn f64(&self, pointer: &str) -> Option<f64> {
        self.pointer(pointer)?.as_f64()
    }

    /// The boolean at a JSON pointer.
    pub fn bool(&self, pointer: &str) -> Option<bool> {
        self.pointer(pointer)?.as_bool()
    }

    /// The values of the array at a JSON pointer; empty when there is none.
    pub fn each(&self, pointer: &str) -> Items<'a> {
        self.pointer(pointer).unwrap_or(Value::nil()).items()
    }

    /// The entry of a map with exactly this key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let mut entries = self.entries();
        while let Some(name) = entries.advance() {
            if name == key.as_bytes() {
                return Some(entries.value());
            }
        }
        None
    }

    /// The bytes of this value alone, as MessagePack.
    pub fn encoded(&self) -> Option<&'a [u8]> {
        self.bytes.get(self.at..self.end()?.get())
    }

    /// Checks the whole document: one value and nothing after it, no map key but strings, every
    /// string UTF-8, no bytes or extensions, nested at most [`DEPTH_MAX`] deep.
    pub fn validate(&self) -> Result<(), Error> {
        // For each level that is open: how many values are still to come, and whether it is a map,
        // whose keys are met whenever that number is even.
        let mut open = [(0usize, false); DEPTH_MAX + 1];
        let mut depth = 0;
        open[0] = (1, false);
        let mut at = self.at;
        loop {
            while open[depth].0 == 0 {
                if depth == 0 {
                    if at != self.bytes.len() {
                        return Err(self.error(at, "bytes follow after its end"));
                    }
                    return Ok(());
                }
                depth -= 1;
            }
            let (left, in_map) = open[depth];
            let is_key = in_map && left % 2 == 0;
            open[depth].0 = left - 1;
            let head = msgpack::head(self.bytes, at).ok_or_else(|| {
                self.error(
                    at,
                    match self.bytes.get(at) {
                        Some(0xc1) => "the byte 0xc1 begins no value",
                        _ => "it ends in the middle of a value",
                    },
                )
            })?;
            if is_key && head.what != What::Str {
                return Err(self.error(at, "a map key is not a string"));
            }
            let (len, next) = (head.len as usize, at + head.size as usize);
            let is_map = match head.what {
                What::Array => false,
                What::Map => true,
                What::Str => {
                    let end = next.checked_add(len);
                    let text = end.and_then(|end| self.bytes.get(next..end));
                    let text = text.ok_or_else(|| self.error(at, "it ends inside a string"))?;
                    std::str::from_utf8(text)
                        .map_err(|_| self.error(at, "a string is not UTF-8"))?;
                    at = next + len;
                    continue;
                }
                What::Bytes => {
                    return Err(self.error(at, "bytes and extensions are not allowed"));
                }
                _ => {
                    at = next;
                    continue;
                }
            };
            // Each entry takes at least a byte, so a length beyond what is left is a lie.
            if len > self.bytes.len() - next {
                return Err(self.error(at, "a length reaches past the end"));
            }
            if depth == DEPTH_MAX {
                return Err(self.error(at, &format!("it nests deeper than {DEPTH_MAX} levels")));
            }
            depth += 1;
            open[depth] = (if is_map { len * 2 } else { len }, is_map);
            at = next;
        }
    }

    fn error(&self, at: usize, what: &str) -> Error {
        Error::new(format!("{what} (byte {at})"))
    }

    /// The value at `at`, one container further in.
    fn inside(&self, at: usize) -> Self {
        Self {
            at,
            depth: self.depth.saturating_add(1),
            ..*self
        }
    }

    /// Whether this stands so deep that what recurses must stop. An event's data may nest
    /// [`DEPTH_MAX`] levels, and stands one level inside the event.
    pub(crate) fn is_too_deep(&self) -> bool {
        self.depth > DEPTH_MAX as u32 + 1
    }

    fn head(&self) -> Option<Head> {
        msgpack::head(self.bytes, self.at)
    }

    pub(crate) fn number(&self) -> Option<Number> {
        let head = self.head()?;
        let number = msgpack::number(self.bytes, self.at, head.size)?;
        // By how much a shorter number is moved to the left, to be extended on its way back.
        let shift = match head.size {
            1 => 0,
            size => 64 - 8 * (size as u32 - 1),
        };
        match head.what {
            What::Unsigned => Some(Number::Unsigned(number)),
            What::Signed => Some(Number::Signed((number << shift) as i64 >> shift)),
            What::Float if shift > 0 => {
                let short = f32::from_bits(number as u32);
                Some(Number::Float(short as f64))
            }
            What::Float => Some(Number::Float(f64::from_bits(number))),
            _ => None,
        }
    }

    /// What a container of this kind holds; nothing where it is none.
    #[inline(never)]
    fn content(&self, what: What) -> Items<'a> {
        let (left, size) = match self.head() {
            Some(head) if head.what == what => (head.len, head.size),
            _ => (0, 0),
        };
        Items {
            value: self.inside(self.at + size as usize),
            left: left as usize,
            begun: false,
        }
    }

    /// The bytes of a string, behind which this then stands.
    #[inline(never)]
    fn take_str(&mut self) -> Option<&'a [u8]> {
        let head = self.head()?;
        if head.what != What::Str {
            return None;
        }
        let start = self.at + head.size as usize;
        self.at = start.checked_add(head.len as usize)?;
        self.bytes.get(start..self.at)
    }

    /// Takes the first step of what is left of a JSON pointer, and gives what is left then.
    fn step<'p>(&mut self, pointer: &'p [u8]) -> Option<&'p [u8]> {
        let what = self.head()?.what;
        let (mut position, after) = match what {
            What::Map => (0, pointer),
            What::Array => array_position(pointer)?,
            _ => return None,
        };
        let mut content = self.content(what);
        while content.advance() {
            let rest = if what == What::Map {
                after_key(pointer, content.value.take_str()?)
            } else if position == 0 {
                Some(after)
            } else {
                position -= 1;
                None
            };
            if rest.is_some() {
                *self = content.value;
                return rest;
            }
        }
        None
    }

    /// The offset just after this value. Walks, and never recurses.
    fn end(&self) -> Option<NonZeroUsize> {
        let mut at = self.at;
        // Only the outermost container needs a look-up: one that is too small to be listed holds
        // none that is.
        if matches!(self.bytes.get(at)?, 0x80..=0x9f | 0xdc..=0xdf)
            && let Some(end) = self.index.end_of(at)
            && end > at
            && end <= self.bytes.len()
        {
            return NonZeroUsize::new(end);
        }
        let mut left = 1u64;
        while left > 0 {
            let head = msgpack::head(self.bytes, at)?;
            at += head.size as usize;
            left -= 1;
            match head.what {
                What::Str | What::Bytes => at = at.checked_add(head.len as usize)?,
                What::Array => left += head.len as u64,
                What::Map => left += 2 * head.len as u64,
                _ => {}
            }
        }
        if at > self.bytes.len() {
            return None;
        }
        NonZeroUsize::new(at)
    }
}

/// A number as it stands there.
pub(crate) enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_too_deep() {
            return f.write_str("…");
        }
        let Some(head) = self.head() else {
            return f.write_str("<bytes>");
        };
        match head.what {
            What::Nil => f.write_str("null"),
            What::Bool => (head.len != 0).fmt(f),
            What::Unsigned | What::Signed | What::Float => match self.number() {
                Some(Number::Unsigned(value)) => value.fmt(f),
                Some(Number::Signed(value)) => value.fmt(f),
                Some(Number::Float(value)) => value.fmt(f),
                None => f.write_str("<bytes>"),
            },
            What::Str => match self.as_str() {
                Some(text) => text.fmt(f),
                None => f.write_str("<not UTF-8>"),
            },
            What::Array => f.debug_list().entries(self.items()).finish(),
            What::Map => f.debug_map().entries(self.entries()).finish(),
            What::Bytes => f.write_str("<bytes>"),
        }
    }
}

/// The values of an array. One that is cut off is the last.
#[derive(Clone, Debug)]
pub struct Items<'a> {
    /// The value that was given last, once one was; walked over only when another is asked for.
    value: Value<'a>,
    left: usize,
    begun: bool,
}

impl Items<'_> {
    /// Puts `value` onto the next one, if there is one.
    fn advance(&mut self) -> bool {
        let Some(left) = self.left.checked_sub(1) else {
            return false;
        };
        if self.begun {
            let Some(end) = self.value.end() else {
                self.left = 0;
                return false;
            };
            self.value.at = end.get();
        }
        self.begun = true;
        self.left = left;
        true
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.advance().then_some(self.value)
    }
}

/// The entries of a map. One whose key is not a string, or that is cut off, ends it.
#[derive(Clone, Debug)]
pub struct Entries<'a>(
    /// Its `left` counts entries. Its `value` is put from the key, which it gave, onto the entry's
    /// value, so that it goes on behind that one.
    Items<'a>,
);

impl<'a> Entries<'a> {
    /// Moves on to the next entry: its key, whose value [`Entries::value`] then is.
    pub(crate) fn advance(&mut self) -> Option<&'a [u8]> {
        if !self.0.advance() {
            return None;
        }
        let left = std::mem::take(&mut self.0.left);
        let key = self.0.value.take_str()?;
        self.0.left = left;
        Some(key)
    }

    pub(crate) fn value(&self) -> Value<'a> {
        self.0.value
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = text(self.advance()?);
        if key.is_none() {
            self.0.left = 0;
        }
        Some((key?, self.value()))
    }
}

#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
fn text(bytes: &[u8]) -> Option<&str> {
    Some(crate::guest::text(bytes))
}

#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// What follows the first step of a JSON pointer if that step names this key; in a step `~1` is `/`,
/// and `~0` is `~`.
fn after_key<'p>(pointer: &'p [u8], key: &[u8]) -> Option<&'p [u8]> {
    let mut step = pointer.iter();
    for &byte in key {
        let named = match *step.next()? {
            b'/' => return None,
            b'~' => match *step.next()? {
                b'0' => b'~',
                b'1' => b'/',
                _ => return None,
            },
            named => named,
        };
        if named != byte {
            return None;
        }
    }
    after_step(step)
}

/// The array position that the first step of a JSON pointer names, and what follows: digits, without
/// leading zeros.
fn array_position(pointer: &[u8]) -> Option<(usize, &[u8])> {
    const FAR: usize = 100_000_000;
    let mut step = pointer.iter();
    let mut position = digit(*step.next()?)?;
    while position > 0
        && position < FAR
        && let Some(next) = step.as_slice().first().and_then(|&byte| digit(byte))
    {
        position = position * 10 + next;
        step.next();
    }
    Some((position, after_step(step)?))
}

fn digit(byte: u8) -> Option<usize> {
    byte.is_ascii_digit().then(|| (byte - b'0') as usize)
}

/// What is left of a pointer, if a step ends here.
fn after_step<'p>(rest: std::slice::Iter<'p, u8>) -> Option<&'p [u8]> {
    let rest = rest.as_slice();
    matches!(rest.first(), None | Some(b'/')).then_some(rest)
}
