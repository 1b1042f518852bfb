//! MessagePack, as much of it as the contract needs: every value in its shortest form, so that the
//! same value always has the same bytes. Format: the MessagePack specification.

/// Writes MessagePack values in their shortest form.
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
        self.bytes.push(0xc0);
    }

    pub fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0xc3 } else { 0xc2 });
    }

    pub fn u64(&mut self, value: u64) {
        match value {
            0..=0x7f => self.bytes.push(value as u8),
            0x80..=0xff => self.tagged(0xcc, &[value as u8]),
            0x100..=0xffff => self.tagged(0xcd, &(value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.tagged(0xce, &(value as u32).to_be_bytes()),
            _ => self.tagged(0xcf, &value.to_be_bytes()),
        }
    }

    pub fn i64(&mut self, value: i64) {
        match value {
            0.. => self.u64(value as u64),
            -32..=-1 => self.bytes.push(value as u8),
            -0x80..=-33 => self.tagged(0xd0, &(value as i8).to_be_bytes()),
            -0x8000..=-0x81 => self.tagged(0xd1, &(value as i16).to_be_bytes()),
            -0x8000_0000..=-0x8001 => self.tagged(0xd2, &(value as i32).to_be_bytes()),
            _ => self.tagged(0xd3, &value.to_be_bytes()),
        }
    }

    pub fn f64(&mut self, value: f64) {
        self.tagged(0xcb, &value.to_bits().to_be_bytes());
    }

    pub fn str(&mut self, value: &str) {
        let len = value.len();
        match len {
            0..=31 => self.bytes.push(0xa0 | len as u8),
            32..=0xff => self.tagged(0xd9, &[len as u8]),
            0x100..=0xffff => self.tagged(0xda, &(len as u16).to_be_bytes()),
            _ => self.tagged(0xdb, &(len as u32).to_be_bytes()),
        }
        self.bytes.extend_from_slice(value.as_bytes());
    }

    /// Opens an array of `len` values, which must follow.
    pub fn array(&mut self, len: usize) {
        self.container(len, 0x90, 0xdc);
    }

    /// Opens a map of `len` entries: that many pairs of a string and a value must follow.
    pub fn map(&mut self, len: usize) {
        self.container(len, 0x80, 0xde);
    }

    /// Appends what is MessagePack already.
    pub fn raw(&mut self, encoded: &[u8]) {
        self.bytes.extend_from_slice(encoded);
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
    #[cfg(not(target_arch = "wasm32"))]
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

    fn container(&mut self, len: usize, fix: u8, tag16: u8) {
        match len {
            0..=15 => self.bytes.push(fix | len as u8),
            16..=0xffff => self.tagged(tag16, &(len as u16).to_be_bytes()),
            _ => self.tagged(tag16 + 1, &(len as u32).to_be_bytes()),
        }
    }

    fn tagged(&mut self, tag: u8, payload: &[u8]) {
        self.bytes.push(tag);
        self.bytes.extend_from_slice(payload);
    }
}

/// The first bytes of a value: what it is, and where its content starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Head {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Str { len: usize },
    Bin { len: usize },
    Ext { len: usize },
    Array { len: usize },
    Map { len: usize },
}

/// Reads the head of the value at `at`: what it is, and the offset after the head. `None` when the
/// bytes end too early, or hold the one tag that MessagePack never uses.
pub(crate) fn head(bytes: &[u8], at: usize) -> Option<(Head, usize)> {
    let tag = *bytes.get(at)?;
    let mut at = at + 1;
    // Most values of an event are complete in their tag, or have their length in it.
    if !(0xc0..0xe0).contains(&tag) {
        let len = (tag & 0x0f) as usize;
        let head = match tag {
            0x00..=0x7f => Head::Unsigned(tag as u64),
            0x80..=0x8f => Head::Map { len },
            0x90..=0x9f => Head::Array { len },
            0xa0..=0xbf => Head::Str {
                len: (tag & 0x1f) as usize,
            },
            _ => Head::Signed(tag as i8 as i64),
        };
        return Some((head, at));
    }
    // What stands after the tag: the number itself, or a length. One place reads it for all tags.
    let width = match tag {
        0xc4 | 0xc7 | 0xcc | 0xd0 | 0xd9 => 1,
        0xc5 | 0xc8 | 0xcd | 0xd1 | 0xda | 0xdc | 0xde => 2,
        0xc6 | 0xc9 | 0xca | 0xce | 0xd2 | 0xdb | 0xdd | 0xdf => 4,
        0xcb | 0xcf | 0xd3 => 8,
        _ => 0,
    };
    let mut number = 0u64;
    let end = at.checked_add(width)?;
    for &byte in bytes.get(at..end)? {
        number = (number << 8) | byte as u64;
    }
    at = end;
    let len = number as usize;
    let head = match tag {
        0xc0 => Head::Nil,
        0xc2 | 0xc3 => Head::Bool(tag == 0xc3),
        0xc4..=0xc6 => Head::Bin { len },
        // The type byte of an extension counts as its content here.
        0xc7..=0xc9 => Head::Ext {
            len: len.checked_add(1)?,
        },
        0xca => Head::Float(f32::from_bits(number as u32) as f64),
        0xcb => Head::Float(f64::from_bits(number)),
        0xcc..=0xcf => Head::Unsigned(number),
        0xd0..=0xd3 => {
            let shift = 64 - 8 * width as u32;
            let value = ((number << shift) as i64) >> shift;
            match u64::try_from(value) {
                Ok(value) => Head::Unsigned(value),
                Err(_) => Head::Signed(value),
            }
        }
        0xd4..=0xd8 => Head::Ext {
            len: (1 << (tag - 0xd4)) + 1,
        },
        0xd9..=0xdb => Head::Str { len },
        0xdc | 0xdd => Head::Array { len },
        0xde | 0xdf => Head::Map { len },
        // 0xc1, which no value begins with.
        _ => return None,
    };
    Some((head, at))
}
