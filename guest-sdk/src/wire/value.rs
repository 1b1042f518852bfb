//! A lazy view of one MessagePack value: nothing is decoded before it is asked for.

use super::msgpack::{self, Head};
use super::{DEPTH_MAX, SkipIndex};
use std::fmt;

/// What could not be read, in one sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// Joins the parts without formatting, which would weigh several kilobytes in a small rule.
    pub(crate) fn joined(parts: &[&str]) -> Self {
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
    at: usize,
    /// How many containers are around it.
    depth: u32,
}

impl<'a> Value<'a> {
    /// The first value in `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self::indexed(bytes, SkipIndex::new(&[]))
    }

    /// The first value in `bytes`, with the skip index over them.
    pub const fn indexed(bytes: &'a [u8], index: SkipIndex<'a>) -> Self {
        Self {
            bytes,
            index,
            at: 0,
            depth: 0,
        }
    }

    const fn nil() -> Self {
        Self::new(&[0xc0])
    }

    /// What this value is. Bytes that end too early are [`Kind::Other`].
    pub fn kind(&self) -> Kind {
        match self.head() {
            Some((Head::Nil, _)) => Kind::Nil,
            Some((Head::Bool(_), _)) => Kind::Bool,
            Some((Head::Unsigned(_) | Head::Signed(_), _)) => Kind::Integer,
            Some((Head::Float(_), _)) => Kind::Float,
            Some((Head::Str { .. }, _)) => Kind::Str,
            Some((Head::Array { .. }, _)) => Kind::Array,
            Some((Head::Map { .. }, _)) => Kind::Map,
            Some((Head::Bin { .. } | Head::Ext { .. }, _)) | None => Kind::Other,
        }
    }

    pub fn is_nil(&self) -> bool {
        self.kind() == Kind::Nil
    }

    pub fn as_str(&self) -> Option<&'a str> {
        std::str::from_utf8(self.str_bytes()?).ok()
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self.head()? {
            (Head::Bool(value), _) => Some(value),
            _ => None,
        }
    }

    /// The value as an integer, if it is one and fits.
    pub fn as_i64(&self) -> Option<i64> {
        match self.head()? {
            (Head::Unsigned(value), _) => i64::try_from(value).ok(),
            (Head::Signed(value), _) => Some(value),
            _ => None,
        }
    }

    /// The value as an integer, if it is one and not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self.head()? {
            (Head::Unsigned(value), _) => Some(value),
            _ => None,
        }
    }

    /// The value as a number; integers count as numbers.
    pub fn as_f64(&self) -> Option<f64> {
        match self.head()? {
            (Head::Unsigned(value), _) => Some(value as f64),
            (Head::Signed(value), _) => Some(value as f64),
            (Head::Float(value), _) => Some(value),
            _ => None,
        }
    }

    /// The values of an array; empty for everything else.
    pub fn items(&self) -> Items<'a> {
        let (left, at) = match self.head() {
            Some((Head::Array { len }, at)) => (len, at),
            _ => (0, self.at),
        };
        Items {
            value: self.inside(at),
            left,
            begun: false,
        }
    }

    /// The entries of a map, in the sender's order; empty for everything else.
    pub fn entries(&self) -> Entries<'a> {
        let (left, at) = match self.head() {
            Some((Head::Map { len }, at)) => (len, at),
            _ => (0, self.at),
        };
        Entries {
            value: self.inside(at),
            left,
            begun: false,
        }
    }

    /// How many values an array or entries a map says it holds; 0 for everything else. In bytes that
    /// end too early there are fewer.
    pub fn len(&self) -> usize {
        match self.head() {
            Some((Head::Array { len } | Head::Map { len }, _)) => len,
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
            let end = tail.iter().position(|&b| b == b'/').unwrap_or(tail.len());
            let (step, after) = tail.split_at(end);
            value = value.step(step)?;
            rest = after;
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
        self.find(|name| name == key.as_bytes())
    }

    /// The bytes of this value alone, as MessagePack.
    pub fn encoded(&self) -> Option<&'a [u8]> {
        self.bytes.get(self.at..self.end()?)
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
            let (head, next) = msgpack::head(self.bytes, at).ok_or_else(|| {
                self.error(
                    at,
                    match self.bytes.get(at) {
                        Some(0xc1) => "the byte 0xc1 begins no value",
                        _ => "it ends in the middle of a value",
                    },
                )
            })?;
            if is_key && !matches!(head, Head::Str { .. }) {
                return Err(self.error(at, "a map key is not a string"));
            }
            let (len, is_map) = match head {
                Head::Array { len } => (len, false),
                Head::Map { len } => (len, true),
                Head::Str { len } => {
                    let end = next.checked_add(len);
                    let text = end.and_then(|end| self.bytes.get(next..end));
                    let text = text.ok_or_else(|| self.error(at, "it ends inside a string"))?;
                    std::str::from_utf8(text)
                        .map_err(|_| self.error(at, "a string is not UTF-8"))?;
                    at = next + len;
                    continue;
                }
                Head::Bin { .. } | Head::Ext { .. } => {
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

    fn head(&self) -> Option<(Head, usize)> {
        msgpack::head(self.bytes, self.at)
    }

    fn str_bytes(&self) -> Option<&'a [u8]> {
        match self.head()? {
            (Head::Str { len }, at) => self.bytes.get(at..at.checked_add(len)?),
            _ => None,
        }
    }

    fn step(&self, step: &[u8]) -> Option<Value<'a>> {
        match self.head()? {
            (Head::Map { .. }, _) => {
                if step.contains(&b'~') {
                    self.find(|key| unescaped_eq(step, key))
                } else {
                    self.find(|key| key == step)
                }
            }
            (Head::Array { .. }, _) => self.items().nth(array_position(step)?),
            _ => None,
        }
    }

    fn find(&self, matches: impl Fn(&[u8]) -> bool) -> Option<Value<'a>> {
        let mut entries = self.entries();
        while let Some((key, value)) = entries.next_raw() {
            if matches(key) {
                return Some(value);
            }
        }
        None
    }

    /// The offset just after this value. Walks, and never recurses.
    fn end(&self) -> Option<usize> {
        let (mut head, mut at) = self.head()?;
        if matches!(head, Head::Map { .. } | Head::Array { .. }) {
            // Only the outermost container needs a look-up: one that is too small to be listed
            // holds none that is.
            if let Some(end) = self.index.end_of(self.at)
                && end > self.at
                && end <= self.bytes.len()
            {
                return Some(end);
            }
        }
        let mut left = 0usize;
        loop {
            match head {
                Head::Str { len } | Head::Bin { len } | Head::Ext { len } => {
                    at = at.checked_add(len)?;
                    if at > self.bytes.len() {
                        return None;
                    }
                }
                Head::Array { len } => left = left.checked_add(len)?,
                Head::Map { len } => left = left.checked_add(len)?.checked_add(len)?,
                _ => {}
            }
            if left == 0 {
                return Some(at);
            }
            left -= 1;
            (head, at) = msgpack::head(self.bytes, at)?;
        }
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_too_deep() {
            return f.write_str("…");
        }
        match self.head() {
            Some((Head::Nil, _)) => f.write_str("null"),
            Some((Head::Bool(value), _)) => value.fmt(f),
            Some((Head::Unsigned(value), _)) => value.fmt(f),
            Some((Head::Signed(value), _)) => value.fmt(f),
            Some((Head::Float(value), _)) => value.fmt(f),
            Some((Head::Str { .. }, _)) => match self.as_str() {
                Some(text) => text.fmt(f),
                None => f.write_str("<not UTF-8>"),
            },
            Some((Head::Array { .. }, _)) => f.debug_list().entries(self.items()).finish(),
            Some((Head::Map { .. }, _)) => f.debug_map().entries(self.entries()).finish(),
            _ => f.write_str("<bytes>"),
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

impl<'a> Iterator for Items<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let left = self.left.checked_sub(1)?;
        self.left = 0;
        if self.begun {
            self.value.at = self.value.end()?;
        }
        self.begun = true;
        self.left = left;
        Some(self.value)
    }
}

/// The entries of a map. One whose key is not a string, or that is cut off, ends it.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    /// The value that was given last, once one was; walked over only when another is asked for.
    value: Value<'a>,
    left: usize,
    begun: bool,
}

impl<'a> Entries<'a> {
    pub(crate) fn next_raw(&mut self) -> Option<(&'a [u8], Value<'a>)> {
        let left = self.left.checked_sub(1)?;
        self.left = 0;
        if self.begun {
            self.value.at = self.value.end()?;
        }
        let (Head::Str { len }, at) = self.value.head()? else {
            return None;
        };
        let end = at.checked_add(len)?;
        let key = self.value.bytes.get(at..end)?;
        self.value.at = end;
        self.begun = true;
        self.left = left;
        Some((key, self.value))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, value) = self.next_raw()?;
        match std::str::from_utf8(key) {
            Ok(key) => Some((key, value)),
            Err(_) => {
                self.left = 0;
                None
            }
        }
    }
}

/// Whether an escaped step of a JSON pointer names this key: `~1` is `/`, `~0` is `~`.
fn unescaped_eq(step: &[u8], key: &[u8]) -> bool {
    let mut key = key.iter();
    let mut step = step.iter();
    while let Some(&byte) = step.next() {
        let wanted = match byte {
            b'~' => match step.next() {
                Some(b'0') => b'~',
                Some(b'1') => b'/',
                _ => return false,
            },
            byte => byte,
        };
        if key.next() != Some(&wanted) {
            return false;
        }
    }
    key.next().is_none()
}

/// The array position a step names: digits, without leading zeros.
fn array_position(step: &[u8]) -> Option<usize> {
    if step.is_empty() || step.len() > 9 || (step.len() > 1 && step[0] == b'0') {
        return None;
    }
    step.iter().try_fold(0usize, |position, &byte| {
        byte.is_ascii_digit()
            .then(|| position * 10 + (byte - b'0') as usize)
    })
}
