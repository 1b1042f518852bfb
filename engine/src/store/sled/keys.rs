//! The keys and the bytes of rows.
//!
//! One tree holds every kind of row, because one batch over one tree is what sled applies atomically.
//! The first byte says the kind. A tenant's name ends with a zero byte, which no name holds; moments
//! are 64-bit big-endian with the sign bit turned, so that the bytes sort like the numbers.
//!
//! ```text
//! f                                  the store's format version, as text
//! b                                  what all other rows take, in bytes (i64, big-endian)
//! s {tenant} 0                       what a tenant's events and all that became of them take (i64, big-endian)
//! e {tenant} 0 {event id}            an event
//! c {tenant} 0                       the cursor: the last event id that was committed
//! u {bucket} {hash 16}               the event id of a sender's delivery, to know duplicates by
//! r {event id}                       what was made of an event: decisions and delivery ids
//! d {delivery id}                    a delivery
//! q {tenant} 0 {channel} 0 {due} {delivery id}   a pending delivery falls due (no value)
//! k {tenant} 0 {channel} 0            a channel that is disabled
//! t {tenant} 0 {slot 16}             what timing remembers of a key
//! z {over} {tenant} 0 {slot 16}      when that may be forgotten (no value)
//! h {tenant} 0 {event id} {rule}     a held event
//! x {tenant} 0 {at} {delivery id}    a dead letter (no value)
//! p {key}                            a record: what people set up
//! + {key} {n}                        the nth further piece of a long row
//! ```
//!
//! A row begins with the number of its further pieces (u16, big-endian), then MessagePack with named
//! fields. Long rows are cut, because sled keeps a leaf of about 16 rows together, and moves one that
//! outgrows a quarter of a segment into a file of its own that it never syncs.

use crate::id::{DeliveryId, EventId, Hash, Name};
use crate::store::Line;
use crate::timing::Slot;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use sled::IVec;

pub(super) const FORMAT: &[u8] = b"f";
pub(super) const LIVE_BYTES: &[u8] = b"b";
pub(super) const STORED_BYTES: u8 = b's';
pub(super) const EVENT: u8 = b'e';
pub(super) const CURSOR: u8 = b'c';
pub(super) const DUPLICATE: u8 = b'u';
pub(super) const DUE: u8 = b'q';
pub(super) const HELD: u8 = b'h';
pub(super) const DEAD: u8 = b'x';
pub(super) const CHANNEL: u8 = b'k';
pub(super) const MEMORY: u8 = b't';
pub(super) const OVER: u8 = b'z';
pub(super) const DECISIONS: u8 = b'r';
pub(super) const DELIVERY: u8 = b'd';
pub(super) const RECORD: u8 = b'p';
pub(super) const PIECE: u8 = b'+';

/// What one row holds at most; the rest goes into further pieces.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Where rows of one tenant begin.
pub(super) fn of_tenant(kind: u8, tenant: &Name) -> Vec<u8> {
    join(kind, &[tenant.as_str().as_bytes(), &[0]])
}

/// Where rows of one tenant have ended.
pub(super) fn after_tenant(kind: u8, tenant: &Name) -> Vec<u8> {
    join(kind, &[tenant.as_str().as_bytes(), &[1]])
}

/// The tenant in a key that [`of_tenant`] begins.
pub(super) fn tenant(key: &[u8]) -> Option<Name> {
    let name = key.get(1..)?.split(|&byte| byte == 0).next()?;
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// To whose `stored_bytes` a row counts, if to anybody's: `of` where its key does not say whose it is.
pub(super) fn owner(key: &[u8], of: Option<&Name>) -> Option<Name> {
    let first = match key {
        [PIECE, first @ ..] => first,
        first => first,
    };
    match first.first()? {
        &EVENT | &HELD | &DUE | &DEAD | &MEMORY => tenant(first),
        &DECISIONS | &DELIVERY => of.cloned(),
        _ => None,
    }
}

pub(super) fn stored_bytes(tenant: &Name) -> Vec<u8> {
    of_tenant(STORED_BYTES, tenant)
}

pub(super) fn event(tenant: &Name, id: EventId) -> Vec<u8> {
    join(
        EVENT,
        &[tenant.as_str().as_bytes(), &[0], id.0.as_bytes().as_slice()],
    )
}

pub(super) fn cursor(tenant: &Name) -> Vec<u8> {
    of_tenant(CURSOR, tenant)
}

pub(super) fn decisions(event: EventId) -> Vec<u8> {
    join(DECISIONS, &[event.0.as_bytes()])
}

pub(super) fn delivery(id: DeliveryId) -> Vec<u8> {
    join(DELIVERY, &[id.0.as_bytes()])
}

pub(super) fn due(line: &Line, (due_ms, id): (i64, DeliveryId)) -> Vec<u8> {
    let mut key = of_line(line);
    key.extend_from_slice(&sortable(due_ms));
    key.extend_from_slice(id.0.as_bytes());
    key
}

pub(super) fn channel(line: &Line) -> Vec<u8> {
    let (tenant, channel) = (line.tenant.as_str(), line.channel.as_str());
    join(
        CHANNEL,
        &[tenant.as_bytes(), &[0], channel.as_bytes(), &[0]],
    )
}

/// Where what is due in a line begins.
fn of_line(line: &Line) -> Vec<u8> {
    let (tenant, channel) = (line.tenant.as_str(), line.channel.as_str());
    join(DUE, &[tenant.as_bytes(), &[0], channel.as_bytes(), &[0]])
}

/// Where what is due in a line has ended.
pub(super) fn after_line(line: &Line) -> Vec<u8> {
    let (tenant, channel) = (line.tenant.as_str(), line.channel.as_str());
    join(DUE, &[tenant.as_bytes(), &[0], channel.as_bytes(), &[1]])
}

/// The line of a key that [`due`] or [`channel`] made.
pub(super) fn line(key: &[u8]) -> Option<Line> {
    let mut names = key.get(1..)?.split(|&byte| byte == 0);
    let mut name = || std::str::from_utf8(names.next()?).ok()?.parse().ok();
    Some(Line {
        tenant: name()?,
        channel: name()?,
    })
}

/// The moment and the id that a key ends with, of [`due`] or [`dead`].
pub(super) fn moment_and_id(key: &[u8]) -> Option<(i64, DeliveryId)> {
    let (rest, id) = key.split_last_chunk::<16>()?;
    let moment = rest.last_chunk::<8>()?;
    let due_ms = (u64::from_be_bytes(*moment) ^ SIGN) as i64;
    Some((due_ms, DeliveryId(uuid::Uuid::from_bytes(*id))))
}

pub(super) fn memory(tenant: &Name, slot: &Slot) -> Vec<u8> {
    join(MEMORY, &[tenant.as_str().as_bytes(), &[0], slot])
}

pub(super) fn memory_is_over(over_ms: i64, tenant: &Name, slot: &Slot) -> Vec<u8> {
    let tenant = tenant.as_str().as_bytes();
    join(OVER, &[&sortable(over_ms), tenant, &[0], slot])
}

/// Where what may be forgotten from a moment on begins.
pub(super) fn over(over_ms: i64) -> Vec<u8> {
    join(OVER, &[&sortable(over_ms)])
}

/// The key of what a key of [`memory_is_over`] says may be forgotten.
pub(super) fn memory_over(key: &[u8]) -> Option<Vec<u8>> {
    key.get(9..).map(|rest| join(MEMORY, &[rest]))
}

pub(super) fn held(tenant: &Name, event: EventId, rule: &Name) -> Vec<u8> {
    let mut key = held_of(tenant, event);
    key.extend_from_slice(rule.as_str().as_bytes());
    key
}

/// Where the rows of one held event begin.
pub(super) fn held_of(tenant: &Name, event: EventId) -> Vec<u8> {
    let mut key = of_tenant(HELD, tenant);
    key.extend_from_slice(event.0.as_bytes());
    key
}

pub(super) fn dead(tenant: &Name, at_ms: i64, id: DeliveryId) -> Vec<u8> {
    let mut key = dead_at(tenant, at_ms);
    key.extend_from_slice(id.0.as_bytes());
    key
}

/// Where the dead letters of a tenant from a moment on begin.
pub(super) fn dead_at(tenant: &Name, at_ms: i64) -> Vec<u8> {
    let mut key = of_tenant(DEAD, tenant);
    key.extend_from_slice(&sortable(at_ms));
    key
}

pub(super) fn record(key: &str) -> Vec<u8> {
    join(RECORD, &[key.as_bytes()])
}

/// The id that a key ends with.
pub(super) fn last_id(key: &[u8]) -> Option<uuid::Uuid> {
    key.last_chunk::<16>().map(|id| uuid::Uuid::from_bytes(*id))
}

pub(super) fn duplicate(bucket: i64, fingerprint: &[u8; 16]) -> Vec<u8> {
    join(DUPLICATE, &[&sortable(bucket), fingerprint])
}

/// Where the duplicates of a bucket begin.
pub(super) fn bucket(bucket: i64) -> Vec<u8> {
    join(DUPLICATE, &[&sortable(bucket)])
}

/// What makes two deliveries by a sender the same one. 128 bits of SHA-256: nobody finds a second
/// body for a tenant's event within the window.
pub(super) fn fingerprint(
    tenant: &Name,
    source: &Name,
    sender_id: &str,
    body_hash: &Hash,
) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in [tenant.as_str(), source.as_str(), sender_id] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(body_hash.0);
    let mut short = [0; 16];
    short.copy_from_slice(&hash.finalize()[..16]);
    short
}

/// Writes a row, in as many pieces as it takes.
pub(super) fn encode<T: Serialize + ?Sized>(
    key: Vec<u8>,
    row: &T,
    mut put: impl FnMut(Vec<u8>, Vec<u8>),
) -> Result<(), rmp_serde::encode::Error> {
    let mut bytes = vec![0; 2];
    row.serialize(&mut rmp_serde::Serializer::new(&mut bytes).with_struct_map())?;
    if bytes.len() > PIECE_BYTES_MAX {
        let rest = bytes.split_off(PIECE_BYTES_MAX);
        let pieces = rest.chunks(PIECE_BYTES_MAX);
        let count = u16::try_from(pieces.len()).map_err(|_| {
            rmp_serde::encode::Error::Syntax(format!("{} bytes are too many", rest.len()))
        })?;
        bytes[..2].copy_from_slice(&count.to_be_bytes());
        for (n, bytes) in pieces.enumerate() {
            put(piece(&key, n as u16), bytes.to_vec());
        }
    }
    put(key, bytes);
    Ok(())
}

/// Reads a row; `get` fetches its further pieces.
pub(super) fn decode<T: DeserializeOwned, E>(
    key: &[u8],
    first: &[u8],
    get: impl Fn(&[u8]) -> Result<Option<IVec>, E>,
) -> Result<Result<T, String>, E> {
    let Some((count, start)) = first.split_first_chunk::<2>() else {
        return Ok(Err("it is cut off".to_owned()));
    };
    let read = |bytes: &[u8]| rmp_serde::from_slice(bytes).map_err(|error| error.to_string());
    let count = u16::from_be_bytes(*count);
    if count == 0 {
        return Ok(read(start));
    }
    let mut whole = start.to_vec();
    for n in 0..count {
        match get(&piece(key, n))? {
            Some(bytes) => whole.extend_from_slice(&bytes),
            None => return Ok(Err(format!("piece {n} of {count} is missing"))),
        }
    }
    Ok(read(&whole))
}

/// The keys of a row's further pieces.
pub(super) fn pieces(key: &[u8], first: &[u8], mut each: impl FnMut(Vec<u8>)) {
    if let Some(count) = first.first_chunk::<2>() {
        (0..u16::from_be_bytes(*count)).for_each(|n| each(piece(key, n)));
    }
}

/// The key of the row that a further piece continues.
pub(super) fn piece_of(key: &[u8]) -> Option<&[u8]> {
    key.get(1..key.len().checked_sub(2)?)
}

fn piece(key: &[u8], n: u16) -> Vec<u8> {
    join(PIECE, &[key, &n.to_be_bytes()])
}

const SIGN: u64 = 1 << 63;

fn sortable(number: i64) -> [u8; 8] {
    (number as u64 ^ SIGN).to_be_bytes()
}

fn join(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(kind);
    parts.iter().for_each(|part| key.extend_from_slice(part));
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn moments_sort_like_their_numbers() {
        let keys = [i64::MIN, -1, 0, 1, 1_700_000_000_000, i64::MAX].map(sortable);
        assert!(keys.is_sorted());
        let id = DeliveryId(uuid::Uuid::from_u128(7));
        let of = Line {
            tenant: "octo".parse().unwrap(),
            channel: "mail".parse().unwrap(),
        };
        assert_eq!(moment_and_id(&due(&of, (-5, id))), Some((-5, id)));
        assert_eq!(line(&due(&of, (-5, id))), Some(of));
    }

    #[test]
    fn long_rows_are_cut_and_joined() {
        for length in [0, PIECE_BYTES_MAX, 5 * PIECE_BYTES_MAX + 1] {
            let row = "x".repeat(length);
            let mut rows = HashMap::new();
            encode(b"k".to_vec(), &row, |key, value| {
                assert!(value.len() <= PIECE_BYTES_MAX);
                rows.insert(key, value);
            })
            .unwrap();
            let get = |key: &[u8]| Ok::<_, ()>(rows.get(key).map(|value| value.as_slice().into()));
            assert_eq!(decode(b"k", &rows[b"k".as_slice()], get), Ok(Ok(row)));
        }
    }
}
