//! The skip index: where each larger container of an event ends.
//!
//! Beside the event the engine hands over pairs of little-endian `u32`: the offset at which a map or
//! an array starts, and the offset just after it, both counted from the event's first byte, sorted
//! by start. Containers shorter than [`INDEXED_BYTES_MIN`] are left out: walking them is as quick as
//! looking them up. A reader may ignore the index; it changes the speed of a look-up, never its
//! result.

/// Containers that are shorter than this many bytes are not in the index.
pub const INDEXED_BYTES_MIN: usize = 64;

/// A view of the index's bytes, as the engine wrote them.
#[derive(Clone, Copy, Debug, Default)]
pub struct SkipIndex<'a> {
    bytes: &'a [u8],
}

impl<'a> SkipIndex<'a> {
    /// An index over `bytes`; what does not fill a whole pair at the end is not looked at.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many containers are listed.
    pub fn len(&self) -> usize {
        self.bytes.len() / 8
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `n`th pair: where a container starts, and the offset just after it.
    pub fn get(&self, n: usize) -> Option<(usize, usize)> {
        self.pairs().get(n).map(pair)
    }

    /// The offset just after the container that starts at `start`, if it is listed.
    pub fn end_of(&self, start: usize) -> Option<usize> {
        let pairs = self.pairs();
        let found = pairs.binary_search_by_key(&start, |listed| pair(listed).0);
        self.get(found.ok()?).map(|(_, end)| end)
    }

    fn pairs(&self) -> &'a [[u8; 8]] {
        self.bytes.as_chunks().0
    }
}

fn pair(bytes: &[u8; 8]) -> (usize, usize) {
    let [a, b, c, d, e, f, g, h] = *bytes;
    (
        u32::from_le_bytes([a, b, c, d]) as usize,
        u32::from_le_bytes([e, f, g, h]) as usize,
    )
}
