//! A store that no engine has open: writing all of it to a file, making one of such a file, and looking
//! whether its rows are whole and fit together.
//!
//! An export is MessagePack: a header, then every row with its key and its bytes as they stand in the
//! store, then how many there were and a SHA-256 over them. So it holds what the store holds, of exactly
//! one format version, and one that was cut off or changed is not taken for whole.

use super::folder::{forget_damage, panicked};
use super::row::{Made, Row};
use super::salvage::each_readable;
use super::{FORMAT, Shared, keys, open_folder};
use crate::id::{DeliveryId, EventId};
use crate::store::{Disabled, Error, Held, State, StoredEvent};
use crate::timing::Memory;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sled::IVec;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// How many rows are written to a new store at once.
const BATCH_ROWS: usize = 1_024;
/// How many faults are told in words.
const FAULTS_TOLD_MAX: usize = 100;
/// Memory for pages: each row is read once.
const CACHE_BYTES: u64 = 64 << 20;

/// The first value of an export.
#[derive(Serialize, Deserialize)]
struct Header {
    /// The version of this file's form.
    hooksieve_export: u32,
    /// The version of the store's rows.
    format: u32,
    exported_ms: i64,
}

const EXPORT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Record {
    Row(
        #[serde(with = "serde_bytes")] Vec<u8>,
        #[serde(with = "serde_bytes")] Vec<u8>,
    ),
    End {
        rows: u64,
        #[serde(with = "serde_bytes")]
        sha256: Vec<u8>,
    },
}

/// Why an export was not written, or not read.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Store(#[from] Error),
    #[error("the export cannot be written: {0}")]
    Write(String),
    #[error("this is no export of a store: {0}")]
    NoExport(String),
    #[error(
        "the export has rows of format {found}, and this version reads {FORMAT}; import it with the version that wrote it"
    )]
    Format { found: u32 },
    #[error("the export is cut off or damaged after {rows} rows: {error}; nothing was imported")]
    Damaged { rows: u64, error: String },
    #[error("there is something at {0} already; an import makes a new store")]
    Exists(std::path::PathBuf),
    #[error("another backup is being made; wait until it has ended")]
    UnderWay,
    #[error(
        "too much was stored while the backup was made: it was taken too slowly; take it again at a quieter time or to a faster disk"
    )]
    Busy,
    #[error("a store in memory has no backup")]
    InMemory,
}

/// Writes everything that the store in a folder holds; gives the number of rows. `progress` is told it
/// now and then.
///
/// # Errors
/// When the store does not open or cannot be read, or what is written is not taken.
pub fn export(
    path: &Path,
    to: &mut dyn Write,
    exported_ms: i64,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, TransferError> {
    let shared = open_folder(path, CACHE_BYTES, 0, false)?;
    readable(&shared, || export_from(&shared, to, exported_ms, progress))?
}

/// As [`export`], of a store that is damaged: all rows that can be read, and the number of gaps between them.
/// What each tenant stores is exported as it was counted, with what is lost.
///
/// # Errors
/// When the store does not open, or what is written is not taken.
pub fn export_readable(
    path: &Path,
    to: &mut dyn Write,
    exported_ms: i64,
    progress: &mut dyn FnMut(u64),
) -> Result<(u64, u64), TransferError> {
    let shared = open_folder(path, CACHE_BYTES, 0, false)?;
    let mut export = Export::begin(to, exported_ms)?;
    let mut live_bytes = 0;
    let gaps = each_readable(&shared.db, &mut |key, value| {
        if key == keys::LIVE_BYTES {
            return Ok(());
        }
        if key != keys::FORMAT && key.first() != Some(&keys::STORED_BYTES) {
            live_bytes += (key.len() + value.len()) as i64;
        }
        export.row(key, &value, progress)
    })?;
    let live_bytes = IVec::from(&live_bytes.to_be_bytes());
    export.row(keys::LIVE_BYTES.to_vec(), &live_bytes, progress)?;
    Ok((export.end()?, gaps))
}

/// sled panics on some kinds of damage that it meets only when it reads.
fn readable<T>(shared: &Shared, read: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| shared.broken(panicked()))
}

fn export_from(
    shared: &Shared,
    to: &mut dyn Write,
    exported_ms: i64,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, TransferError> {
    let rows = shared.db.iter().map(|row| match row {
        Ok((key, value)) => Ok((key.to_vec(), value)),
        Err(error) => Err(TransferError::Store(shared.broken(error))),
    });
    export_rows(rows, to, exported_ms, progress)
}

/// Writes rows as an export.
pub(super) fn export_rows(
    all: impl Iterator<Item = Result<(Vec<u8>, IVec), TransferError>>,
    to: &mut dyn Write,
    exported_ms: i64,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, TransferError> {
    let mut export = Export::begin(to, exported_ms)?;
    for row in all {
        let (key, value) = row?;
        export.row(key, &value, progress)?;
    }
    export.end()
}

/// An export that is being written.
struct Export<'a> {
    to: &'a mut dyn Write,
    rows: u64,
    hash: Sha256,
}

impl<'a> Export<'a> {
    fn begin(to: &'a mut dyn Write, exported_ms: i64) -> Result<Self, TransferError> {
        let header = Header {
            hooksieve_export: EXPORT,
            format: FORMAT,
            exported_ms,
        };
        write(to, &header)?;
        Ok(Self {
            to,
            rows: 0,
            hash: Sha256::new(),
        })
    }

    fn row(
        &mut self,
        key: Vec<u8>,
        value: &IVec,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), TransferError> {
        add(&mut self.hash, &key, value);
        write(self.to, &Record::Row(key, value.to_vec()))?;
        self.rows += 1;
        if self.rows.is_multiple_of(BATCH_ROWS as u64) {
            progress(self.rows);
        }
        Ok(())
    }

    /// How many rows there are.
    fn end(self) -> Result<u64, TransferError> {
        let Self { to, rows, hash } = self;
        let sha256 = hash.finalize().to_vec();
        write(to, &Record::End { rows, sha256 })?;
        to.flush()
            .map_err(|error| TransferError::Write(error.to_string()))?;
        Ok(rows)
    }
}

fn write<T: Serialize>(to: &mut dyn Write, value: &T) -> Result<(), TransferError> {
    let written = value.serialize(&mut rmp_serde::Serializer::new(to).with_struct_map());
    written.map_err(|error| TransferError::Write(error.to_string()))
}

/// Makes a new store in a folder of what [`export`] wrote; gives the number of rows.
///
/// # Errors
/// When there is something in the folder, or the export is not whole; then no store is left there.
pub fn import(
    path: &Path,
    from: &mut dyn Read,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, TransferError> {
    if path.exists() {
        return Err(TransferError::Exists(path.to_owned()));
    }
    // Elsewhere until it is whole.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".importing");
    let unfinished = path.with_file_name(name);
    let io_failed = |error: std::io::Error| Error::Open {
        path: unfinished.clone(),
        error: error.to_string(),
    };
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(io_failed)?;
    }
    let imported = open_folder(&unfinished, CACHE_BYTES, 0, true)
        .map_err(TransferError::from)
        .and_then(|shared| read_into(&shared, from, progress));
    match imported {
        Ok(rows) => {
            fs::rename(&unfinished, path).map_err(io_failed)?;
            let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
            let parent = fs::File::open(parent.unwrap_or(Path::new(".")));
            parent.and_then(|it| it.sync_all()).map_err(io_failed)?;
            Ok(rows)
        }
        Err(error) => {
            // What is left is swept away before the next import.
            let _ = fs::remove_dir_all(&unfinished);
            Err(error)
        }
    }
}

fn read_into(
    shared: &Shared,
    from: &mut dyn Read,
    progress: &mut dyn FnMut(u64),
) -> Result<u64, TransferError> {
    let mut from = rmp_serde::Deserializer::new(from);
    let header = Header::deserialize(&mut from)
        .map_err(|error| TransferError::NoExport(error.to_string()))?;
    if header.hooksieve_export != EXPORT || header.format != FORMAT {
        return Err(TransferError::Format {
            found: header.format,
        });
    }
    let (mut rows, mut hash, mut batch) = (0, Sha256::new(), sled::Batch::default());
    let failed = |error| TransferError::Store(shared.broken(error));
    loop {
        let damaged = |error: &dyn std::fmt::Display| TransferError::Damaged {
            rows,
            error: error.to_string(),
        };
        match Record::deserialize(&mut from).map_err(|error| damaged(&error))? {
            Record::Row(key, value) => {
                add(&mut hash, &key, &value);
                batch.insert(key, value);
                rows += 1;
                if rows % BATCH_ROWS as u64 == 0 {
                    let full = std::mem::take(&mut batch);
                    shared.db.apply_batch(full).map_err(failed)?;
                    progress(rows);
                }
            }
            Record::End {
                rows: expected,
                sha256,
            } => {
                if expected != rows || sha256[..] != hash.finalize()[..] {
                    return Err(damaged(&"its rows are not those that were exported"));
                }
                shared.db.apply_batch(batch).map_err(failed)?;
                shared.db.flush().map_err(failed)?;
                (shared.file.sync_all()).map_err(|error| shared.broken(error))?;
                return Ok(rows);
            }
        }
    }
}

fn add(hash: &mut Sha256, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
}

/// What a store was found to hold.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub kinds: BTreeMap<&'static str, Kind>,
    pub file_bytes: u64,
    /// How many rows cannot be read or do not fit to others.
    pub faults: u64,
    /// The first of them in words: the row and what is wrong.
    pub told: Vec<String>,
}

/// The rows of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Kind {
    pub rows: u64,
    /// Of keys and values.
    pub bytes: u64,
}

/// Reads every row of the store in a folder, and whether those that belong together do. A store in which damage was
/// met is served again once nothing is found.
///
/// # Errors
/// When the store does not open.
pub fn check(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Report, Error> {
    let shared = open_folder(path, CACHE_BYTES, 0, false)?;
    let report = readable(&shared, || check_all(&shared, progress))??;
    if report.faults == 0 {
        forget_damage(path).map_err(|error| shared.broken(error))?;
    }
    Ok(report)
}

fn check_all(shared: &Shared, progress: &mut dyn FnMut(u64)) -> Result<Report, Error> {
    let mut report = Report {
        file_bytes: shared
            .db
            .size_on_disk()
            .map_err(|error| shared.broken(error))?,
        ..Report::default()
    };
    let mut rows = 0;
    let Ok(gaps) = each_readable::<Infallible>(&shared.db, &mut |key, value| {
        // What belongs to it may be where nothing can be read.
        let looked = catch_unwind(AssertUnwindSafe(|| shared.look_at(&key, &value)));
        let (kind, looked) = looked.unwrap_or_else(|_| {
            let wrong = "what belongs to it cannot be read".to_owned();
            ("unknown", Err(wrong))
        });
        let of_kind = report.kinds.entry(kind).or_default();
        of_kind.rows += 1;
        of_kind.bytes += (key.len() + value.len()) as u64;
        if let Err(wrong) = looked {
            report.faults += 1;
            if report.told.len() < FAULTS_TOLD_MAX {
                report.told.push(format!("{kind} {}: {wrong}", shown(&key)));
            }
        }
        rows += 1;
        if rows % BATCH_ROWS as u64 == 0 {
            progress(rows);
        }
        Ok(())
    });
    if gaps > 0 {
        report.faults += gaps;
        let told = format!(
            "its file `db` cannot be read in {gaps} places, and what is lost there is not known; all else is counted above, and `hooksieve store export --readable FILE` saves it"
        );
        report.told.insert(0, told);
        // The figures are of what there was.
        return Ok(report);
    }
    let counted = shared.counted_bytes()?;
    let known = report.kinds.iter();
    let known = known.filter(|(kind, _)| !["format", "size"].contains(*kind));
    let found: u64 = known.map(|(_, kind)| kind.bytes).sum();
    if counted != found as i64 {
        report.faults += 1;
        report.told.push(format!(
            "size: it says {counted} bytes, and there are {found}"
        ));
    }
    Ok(report)
}

/// A key for a person who looks, without its kind: names as text, other bytes as hexadecimal.
fn shown(key: &[u8]) -> String {
    let text = |byte: &u8| match byte {
        b'-' | b'_' | b'.' | b'a'..=b'z' | b'0'..=b'9' => char::from(*byte).to_string(),
        byte => format!("\\{byte:02x}"),
    };
    key.iter().skip(1).map(text).collect()
}

/// What is wrong with a row, in half a sentence.
type Looked = Result<(), String>;

impl Shared {
    fn look_at(&self, key: &[u8], value: &IVec) -> (&'static str, Looked) {
        match key.first() {
            Some(&keys::EVENT) => ("event", self.event_is_whole(key, value)),
            Some(&keys::DECISIONS) => ("decisions", self.decisions_are_whole(key, value)),
            Some(&keys::DELIVERY) => ("delivery", self.delivery_is_whole(key, value)),
            Some(&keys::DUE) => ("due", self.is_due(key)),
            Some(&keys::DEAD) => ("dead letter", self.is_dead(key)),
            Some(&keys::HELD) => ("held event", self.held_is_whole(key, value)),
            Some(&keys::CURSOR) => ("cursor", ends_with_id(value)),
            Some(&keys::DUPLICATE) => ("known sender's id", ends_with_id(value)),
            Some(&keys::CHANNEL) => (
                "disabled channel",
                self.reads::<Disabled>(key, value).map(drop),
            ),
            Some(&keys::MEMORY) => ("timing", self.reads::<Memory>(key, value).map(drop)),
            Some(&keys::OVER) => {
                let memory = keys::memory_over(key).ok_or("its key is short".to_owned());
                let there = memory.and_then(|memory| self.has(&memory, "what it is the end of"));
                ("timing's end", there)
            }
            Some(&keys::RECORD) => (
                "record",
                self.reads::<serde_bytes::ByteBuf>(key, value).map(drop),
            ),
            Some(&keys::PIECE) => ("further piece", self.piece_is_of(key)),
            _ if key == keys::FORMAT => ("format", Ok(())),
            _ if key == keys::LIVE_BYTES => ("size", Ok(())),
            Some(&keys::STORED_BYTES) => ("size", Ok(())),
            _ => ("unknown", Err("there is no such kind of row".to_owned())),
        }
    }

    fn reads<T: DeserializeOwned>(&self, key: &[u8], value: &IVec) -> Result<T, String> {
        self.decode(key, value).map_err(|error| match error {
            Error::Row { error, .. } => error,
            error => error.to_string(),
        })
    }

    fn found<T: DeserializeOwned>(&self, key: &[u8], what: &str) -> Result<T, String> {
        let row = self.row(key).map_err(|error| error.to_string())?;
        row.ok_or_else(|| format!("{what} is missing"))
    }

    fn has(&self, key: &[u8], what: &str) -> Looked {
        let row = self.get(key).map_err(|error| error.to_string())?;
        row.map(drop).ok_or_else(|| format!("{what} is missing"))
    }

    fn event_is_whole(&self, key: &[u8], value: &IVec) -> Looked {
        let event: StoredEvent = self.reads(key, value)?;
        match keys::event(&event.tenant, event.id) == key {
            true => Ok(()),
            false => Err(format!("it says that it is event {}", event.id)),
        }
    }

    fn decisions_are_whole(&self, key: &[u8], value: &IVec) -> Looked {
        let made: Made = self.reads(key, value)?;
        for id in made.deliveries {
            self.has(&keys::delivery(id), &format!("its delivery {id}"))?;
        }
        Ok(())
    }

    fn delivery_is_whole(&self, key: &[u8], value: &IVec) -> Looked {
        let row: Row = self.reads(key, value)?;
        let id = DeliveryId(keys::last_id(key).ok_or("its key is short")?);
        let made: Made = self.found(&keys::decisions(row.event), "its event's decisions")?;
        if !made.deliveries.contains(&id) {
            return Err(format!("its event {} does not know it", row.event));
        }
        self.has(&keys::event(&row.tenant, row.event), "its event")?;
        match row.state {
            State::Pending { due_ms } => self.has(
                &keys::due(&row.line(), (due_ms, id)),
                "the row that says when it falls due",
            ),
            State::Dead { at_ms, .. } => self.has(
                &keys::dead(&row.tenant, at_ms, id),
                "its row among the dead letters",
            ),
            _ => Ok(()),
        }
    }

    fn is_due(&self, key: &[u8]) -> Looked {
        let (due_ms, id) = keys::moment_and_id(key).ok_or("its key is short")?;
        let row: Row = self.found(&keys::delivery(id), "its delivery")?;
        match row.state {
            State::Pending { due_ms: really } if really == due_ms => Ok(()),
            state => Err(format!("its delivery {id} is {state:?}")),
        }
    }

    fn is_dead(&self, key: &[u8]) -> Looked {
        let (at_ms, id) = keys::moment_and_id(key).ok_or("its key is short")?;
        let row: Row = self.found(&keys::delivery(id), "its delivery")?;
        match row.state {
            State::Dead { at_ms: really, .. } if really == at_ms => Ok(()),
            state => Err(format!("its delivery {id} is {state:?}")),
        }
    }

    fn held_is_whole(&self, key: &[u8], value: &IVec) -> Looked {
        let held: Held = self.reads(key, value)?;
        self.has(&keys::event(&held.tenant, held.event), "its event")
    }

    fn piece_is_of(&self, key: &[u8]) -> Looked {
        let of = keys::piece_of(key).ok_or("its key is short")?;
        let first = self.get(of).map_err(|error| error.to_string())?;
        let first = first.ok_or("the row that it continues is missing")?;
        let mut known = false;
        keys::pieces(of, &first, |piece| known |= piece == key);
        match known {
            true => Ok(()),
            false => Err("the row that it continues does not know it".to_owned()),
        }
    }
}

fn ends_with_id(value: &IVec) -> Looked {
    match keys::last_id(value).map(EventId) {
        Some(_) => Ok(()),
        None => Err("it holds no id".to_owned()),
    }
}
