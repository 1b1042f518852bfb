//! MessagePack, as much of it as the contract needs: every value in its shortest form, so that the
//! same value always has the same bytes. Format: the MessagePack specification.

/// Writes MessagePack values in their shortest form.
// Its methods are called many times in a row, and are kept from being copied into each place.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(capacity),
        }
    }

    pub fn nil(&mut self) {
        self.push(0xc0);
    }

    pub fn bool(&mut self, value: bool) {
        self.push(if value { 0xc3 } else { 0xc2 });
    }

    pub fn u64(&mut self, value: u64) {
        match value {
            0..=0x7f => self.push(value as u8),
            0x80..=0xff => self.tagged(0xcc, value, 1),
            0x100..=0xffff => self.tagged(0xcd, value, 2),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, value, 4),
            _ => self.tagged(0xcf, value, 8),
        }
    }

    pub fn i64(&mut self, value: i64) {
        match value {
            0.. => self.u64(value as u64),
            -32..=-1 => self.push(value as u8),
            -0x80..=-33 => self.tagged(0xd0, value as u64, 1),
            -0x8000..=-0x81 => self.tagged(0xd1, value as u64, 2),
            -0x8000_0000..=-0x8001 => self.tagged(0xd2, value as u64, 4),
            _ => self.tagged(0xd3, value as u64, 8),
        }
    }

    pub fn f64(&mut self, value: f64) {
        self.tagged(0xcb, value.to_bits(), 8);
    }

    #[inline(never)]
    pub fn str(&mut self, value: &str) {
        match value.len() {
            len @ 32..=0xff => self.tagged(0xd9, len as u64, 1),
            len => self.length(len, 31, 0xa0, 0xda),
        }
        self.raw(value.as_bytes());
    }

    /// An entry of a map, with text as its value.
    #[inline(never)]
    pub(crate) fn entry(&mut self, key: &str, value: &str) {
        self.str(key);
        self.str(value);
    }

    /// Opens an array of `len` values, which must follow.
    pub fn array(&mut self, len: usize) {
        self.length(len, 15, 0x90, 0xdc);
    }

    /// Opens a map of `len` entries: that many pairs of a string and a value must follow.
    #[inline(never)]
    pub fn map(&mut self, len: usize) {
        self.length(len, 15, 0x80, 0xde);
    }

    /// Appends what is MessagePack already.
    #[inline(never)]
    pub fn raw(&mut self, encoded: &[u8]) {
        crate::text::append(&mut self.bytes, encoded);
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes the header of a container that began at `start`, before its size was known. Returns by
    /// how many bytes its content moved.
    #[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
    pub(crate) fn container_header_at(&mut self, start: usize, len: usize, is_map: bool) -> usize {
        let mut header = Writer::new();
        if is_map {
            header.map(len);
        } else {
            header.array(len);
        }
        // One byte was kept free: the common case, at most 15 entries, moves nothing.
        self.bytes
            .splice(start..start + 1, header.bytes.iter().copied());
        header.len() - 1
    }

    /// A length up to `short_max` in the tag `short` itself, others after `tag16` or the tag that
    /// follows it.
    #[inline(never)]
    fn length(&mut self, len: usize, short_max: usize, short: u8, tag16: u8) {
        if len <= short_max {
            self.push(short | len as u8);
        } else if len <= 0xffff {
            self.tagged(tag16, len as u64, 2);
        } else {
            self.tagged(tag16 + 1, len as u64, 4);
        }
    }

    /// A number in decimal: no MessagePack, but a line of the log is written by the same code.
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    pub(crate) fn decimal(&mut self, number: u32) {
        if number >= 10 {
            self.decimal(number / 10);
        }
        self.push(b'0' + (number % 10) as u8);
    }

    /// A tag, and the low `width` bytes of a number.
    #[inline(never)]
    fn tagged(&mut self, tag: u8, number: u64, width: u32) {
        self.push(tag);
        for n in (0..width).rev() {
            self.push((number >> (8 * n)) as u8);
        }
    }

    #[inline(never)]
    fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
    }
}

/// The first bytes of a value: what it is, and how much of it. Numbers are read separately, by
/// [`number`]: most values are stepped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// How many bytes of text, values of an array or entries of a map follow; 1 for `true`.
    pub(crate) len: u32,
    /// How many bytes the head has, an integer or a float included.
    pub(crate) size: u8,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Nil,
    Bool,
    Unsigned,
    Signed,
    Float,
    Str,
    /// A bin or an ext, whose type byte counts as its content here.
    Bytes,
    Array,
    Map,
}

/// The tags from 0xc0 to 0xdf: what the value is, how many bytes of number follow the tag, and what
/// is to be added to that number. A table is a third of the code that the same as a `match` becomes.
const TAGS: [(What, u8, u8); 32] = [
    (What::Nil, 0, 0),      // nil
    (What::Nil, 0, 0),      // never used
    (What::Bool, 0, 0),     // false
    (What::Bool, 0, 1),     // true
    (What::Bytes, 1, 0),    // bin 8
    (What::Bytes, 2, 0),    // bin 16
    (What::Bytes, 4, 0),    // bin 32
    (What::Bytes, 1, 1),    // ext 8
    (What::Bytes, 2, 1),    // ext 16
    (What::Bytes, 4, 1),    // ext 32
    (What::Float, 4, 0),    // float 32
    (What::Float, 8, 0),    // float 64
    (What::Unsigned, 1, 0), // uint 8
    (What::Unsigned, 2, 0), // uint 16
    (What::Unsigned, 4, 0), // uint 32
    (What::Unsigned, 8, 0), // uint 64
    (What::Signed, 1, 0),   // int 8
    (What::Signed, 2, 0),   // int 16
    (What::Signed, 4, 0),   // int 32
    (What::Signed, 8, 0),   // int 64
    (What::Bytes, 0, 2),    // fixext 1
    (What::Bytes, 0, 3),    // fixext 2
    (What::Bytes, 0, 5),    // fixext 4
    (What::Bytes, 0, 9),    // fixext 8
    (What::Bytes, 0, 17),   // fixext 16
    (What::Str, 1, 0),      // str 8
    (What::Str, 2, 0),      // str 16
    (What::Str, 4, 0),      // str 32
    (What::Array, 2, 0),    // array 16
    (What::Array, 4, 0),    // array 32
    (What::Map, 2, 0),      // map 16
    (What::Map, 4, 0),      // map 32
];

/// Reads the head of the value at `at`. `None` when the bytes end too early, or hold the one tag that
/// MessagePack never uses.
#[inline(never)]
pub(crate) fn head(bytes: &[u8], at: usize) -> Option<Head> {
    let tag = *bytes.get(at)?;
    // Most values of an event are complete in their tag, or have their length in it.
    let (what, len) = match tag {
        0x00..=0x7f => (What::Unsigned, 0),
        0x80..=0x8f => (What::Map, tag & 0x0f),
        0x90..=0x9f => (What::Array, tag & 0x0f),
        0xa0..=0xbf => (What::Str, tag & 0x1f),
        0xc0..=0xdf => return tagged(bytes, at),
        0xe0..=0xff => (What::Signed, 0),
    };
    Some(Head {
        len: len as u32,
        size: 1,
        what,
    })
}

fn tagged(bytes: &[u8], at: usize) -> Option<Head> {
    const NEVER_USED: u8 = 0xc1;
    let tag = *bytes.get(at)?;
    if tag == NEVER_USED {
        return None;
    }
    let (what, width, plus) = TAGS[(tag & 0x1f) as usize];
    let mut len = 0u32;
    for &byte in bytes.get(at + 1..)?.get(..width as usize)? {
        len = (len << 8) | byte as u32;
    }
    Some(Head {
        // One byte short for an ext of 4 GiB, which no event holds and no memory of a module.
        len: len.saturating_add(plus as u32),
        size: 1 + width,
        what,
    })
}

/// The integer, or the bits of the float, that is in a head of `size` bytes at `at`: as it stands
/// there, so a negative one is yet to be extended, unless it is in the tag itself.
pub(crate) fn number(bytes: &[u8], at: usize, size: u8) -> Option<u64> {
    let (&tag, digits) = bytes.get(at..)?.get(..size as usize)?.split_first()?;
    if digits.is_empty() {
        return Some(tag as i8 as u64);
    }
    let mut number = 0;
    for &byte in digits {
        number = (number << 8) | byte as u64;
    }
    Some(number)
}
