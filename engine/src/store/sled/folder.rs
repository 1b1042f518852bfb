//! The folder of a store: made for its owner alone, locked, rid of what a kill left unfinished, opened.
//!
//! ```text
//! lock         ours: held while the store is open, since sled reports another's lock as any other error
//! damaged      ours: what was found that cannot be read, until a check finds all of it whole
//! set-aside/   ours: files of sled's that were not finished, which nothing needs any more
//! db           sled's log, with all rows
//! conf         sled's parameters: the same ones in every store of ours
//! snap.{lsn}   where everything is in `db`, so that a start need not read all of it; a start makes it anew
//! blobs/       what sled does not put into `db`: nothing of ours, see [`super::keys`]
//! ```
//!
//! A kill may leave what sled does not expect to find. It writes a snapshot under the name
//! `snap.{lsn}.generating`, and takes the greatest name that begins with `snap.` for the newest snapshot: then
//! a part of one, though the older one and the log that it is made of are whole. And it writes `conf` in two
//! steps before there is a `db`. Both are moved into `set-aside` under the lock, before sled looks. They are
//! not deleted, so that a person can look at them should that ever be wrong.

use super::{Cause, FORMAT, Shared, keys};
use crate::private;
use crate::store::Error;
use lru::LruCache;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;

/// sled's unit of writing. A quarter of it is what a leaf may take before sled gives it a file of
/// its own; see [`keys`] for the other half of that calculation. It cannot change in a store.
pub(super) const SEGMENT_BYTES: usize = 4 << 20;

/// How often sled frees segments of its file of which little is in use. The thread that does it also flushes,
/// which nothing here waits for; without it the file grows for as long as rows come and go.
const TIDY_EVERY_MS: u64 = 500;

/// How long the lock is waited for. A process that was just started from this one holds copies of
/// its handles, the lock's too, until it runs its own program; and one that is ending needs a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The file that says what was found that cannot be read.
const DAMAGED: &str = "damaged";
/// Where files go that were not finished.
const SET_ASIDE: &str = "set-aside";
/// How many are kept there: the last ones.
const SET_ASIDE_MAX: usize = 8;
/// How the names of snapshots begin, and how that of an unfinished one ends.
const SNAPSHOT: &str = "snap.";
const UNFINISHED: &str = ".generating";

/// Opens the database in a folder, and keeps others from it.
pub(super) fn open_folder(
    path: &Path,
    cache_bytes: u64,
    loaded_max: usize,
    create: bool,
) -> Result<Shared, Error> {
    let not_open = |error: &dyn Display| Error::Open {
        path: path.to_owned(),
        error: error.to_string(),
    };
    if create {
        private::create_folder(path).map_err(|error| not_open(&error))?;
    } else if !["db", "conf"].iter().any(|file| path.join(file).exists()) {
        return Err(not_open(&"there is no store here"));
    }
    private::close_to_others(path);
    let patience = Instant::now() + LOCK_PATIENCE;
    let lock = locked(path, patience)?;
    if create && let Some(what) = remembered_damage(path) {
        return Err(Error::Damaged {
            path: path.to_owned(),
            what,
        });
    }
    set_aside_unfinished(path)?;
    if !create && !path.join("db").exists() {
        return Err(not_open(&"there is no store here"));
    }
    let db = open_sled(path, cache_bytes, patience)?;
    check_format(&db, path, &not_open)?;
    Ok(Shared {
        file: File::open(path.join("db")).map_err(|error| not_open(&error))?,
        db,
        path: path.to_owned(),
        broken: OnceLock::new(),
        due: Mutex::new(super::Due::new(loaded_max, [])),
        fresh: Mutex::new(LruCache::new(super::FRESH_MAX)),
        changed: Arc::new(Notify::new()),
        live_bytes: AtomicI64::new(0),
        stored_bytes: RwLock::default(),
        copy: Mutex::default(),
        flushes: AtomicU64::new(0),
        _lock: lock,
    })
}

/// Has the next start know what was found. Otherwise it would take events until somebody meets the damage again.
pub(super) fn remember_damage(path: &Path, what: &str) {
    if let Err(error) = private::write(&path.join(DAMAGED), what.as_bytes()) {
        tracing::error!(path = %path.display(), %error, "that the store is damaged cannot be kept for the next start");
    }
}

/// What was found before. A file that cannot be read itself says so much that there was something.
fn remembered_damage(path: &Path) -> Option<String> {
    match private::read(&path.join(DAMAGED)) {
        Ok(what) => Some(what),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("its file `{DAMAGED}` is there and says: {error}")),
    }
}

/// Lets the next start go on: all of the store is whole.
///
/// # Errors
/// When the file cannot be removed.
pub(super) fn forget_damage(path: &Path) -> io::Result<()> {
    match fs::remove_file(path.join(DAMAGED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The lock of a folder, waited for until then.
fn locked(path: &Path, patience: Instant) -> Result<File, Error> {
    let failed = |error: io::Error| Error::Open {
        path: path.to_owned(),
        error: format!("`lock`: {error}"),
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    let lock = private::open(&path.join("lock"), &mut options).map_err(failed)?;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Moves away what an earlier start did not finish. Refuses links in the place of sled's files, which sled
/// would follow, and a folder whose log is gone, which sled would take for a new store.
fn set_aside_unfinished(path: &Path) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Open {
        path: path.to_owned(),
        error: format!("what a kill left unfinished cannot be set aside: {error}"),
    };
    let mut snapshots = false;
    let mut unfinished = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type().map_err(failed)?.is_symlink() {
            return Err(Error::Open {
                path: path.to_owned(),
                error: format!(
                    "`{name}` is a symbolic link, which is not followed here; put the file itself in its place"
                ),
            });
        }
        match name.strip_prefix(SNAPSHOT) {
            Some(rest) if rest.ends_with(UNFINISHED) => unfinished.push(entry.path()),
            Some(_) => snapshots = true,
            None => {}
        }
    }
    let begun = fs::metadata(path.join("db")).is_ok_and(|about| about.len() > 0);
    if !begun && snapshots {
        return Err(Error::Open {
            path: path.to_owned(),
            error: format!("its file `db`, which holds everything, is missing or empty; {RESTORE}"),
        });
    }
    // Without a log, sled's parameters are about nothing, and it writes the same ones again.
    let conf = path.join("conf");
    if !begun && conf.exists() {
        unfinished.push(conf);
    }
    for file in unfinished {
        set_aside(path, &file).map_err(failed)?;
        tracing::warn!(
            file = %file.display(),
            "an earlier start was killed while it wrote this file; it is in `{SET_ASIDE}`, and nothing is lost with it"
        );
    }
    Ok(())
}

/// Moves a file into the folder of those that nothing needs, of which the last ones are kept.
fn set_aside(path: &Path, file: &Path) -> io::Result<()> {
    let folder = path.join(SET_ASIDE);
    private::create_folder(&folder)?;
    let Some(name) = file.file_name() else {
        return Ok(());
    };
    fs::rename(file, folder.join(name))?;
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        kept.push((entry.metadata()?.modified()?, entry.path()));
    }
    kept.sort();
    let surplus = kept.len().saturating_sub(SET_ASIDE_MAX);
    for (_, oldest) in kept.into_iter().take(surplus) {
        fs::remove_file(oldest)?;
    }
    Ok(())
}

fn open_sled(path: &Path, cache_bytes: u64, patience: Instant) -> Result<::sled::Db, Error> {
    loop {
        // sled panics on some kinds of damage.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            ::sled::Config::new()
                .path(path)
                .cache_capacity(cache_bytes)
                .segment_size(SEGMENT_BYTES)
                .flush_every_ms(Some(TIDY_EVERY_MS))
                .open()
        }));
        let cause = match opened {
            Ok(Ok(db)) => return Ok(db),
            // A copy of sled's own handle may outlive the copy of ours by a moment. It says so in words
            // only.
            Ok(Err(::sled::Error::Io(error)))
                if error.to_string().contains("could not acquire lock")
                    && Instant::now() < patience =>
            {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            Ok(Err(error)) => Cause::from(error),
            Err(_) => panicked(),
        };
        return Err(Error::Open {
            path: path.to_owned(),
            error: match (cause, damaged_snapshot(path)) {
                (Cause::Failed(error), _) => error,
                (Cause::Damaged(_), Some(name)) => format!(
                    "its file `{name}` is not as it was written, and `db`, which holds everything, may be whole; copy the folder, then move `{name}` out of it and start again: it is made anew of `db`"
                ),
                (Cause::Damaged(what), None) => format!("{what}; {RESTORE}"),
            },
        });
    }
}

/// What helps where a store does not open.
const RESTORE: &str = "its files are left as they are: copy the folder, move it out of the way, and `hooksieve store import FILE` makes a new store of the last backup or export";

/// The newest snapshot, where it is not as sled wrote it: with its length and a CRC-32 at its end.
fn damaged_snapshot(path: &Path) -> Option<String> {
    let entries = fs::read_dir(path).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let newest = names.filter(|name| name.starts_with(SNAPSHOT)).max()?;
    let bytes = fs::read(path.join(&newest)).ok()?;
    let whole = bytes.split_last_chunk::<4>().is_some_and(|(rest, sum)| {
        let written = rest.split_last_chunk::<8>().map(|(written, _)| written);
        written.is_some_and(|it| !it.is_empty() && crc32fast::hash(it).to_le_bytes() == *sum)
    });
    (!whole).then_some(newest)
}

/// What cannot be read, where that is what an error of sled's says.
pub(super) fn unreadable(error: &::sled::Error) -> Option<String> {
    match error {
        ::sled::Error::Corruption { at: Some(at), .. } => {
            Some(format!("its file `db` cannot be read at byte {}", at.lid()))
        }
        // Neither a snapshot nor `conf` has a place.
        ::sled::Error::Corruption { at: None, .. } => Some(
            "one of its files `conf` and `db` is not as it was written; sled does not say where"
                .to_owned(),
        ),
        // In a folder of ours, that is damage too.
        ::sled::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Some("its file `db` is shorter than it was".to_owned())
        }
        ::sled::Error::Unsupported(what) => {
            Some(format!("its file `conf` is not as it was written: {what}"))
        }
        _ => None,
    }
}

/// What is told where sled panics over what it reads.
pub(super) fn panicked() -> Cause {
    Cause::Damaged("sled panicked over what it read, where standard error says".to_owned())
}

/// Refuses what another version wrote, and marks a new store as ours.
fn check_format(
    db: &::sled::Db,
    path: &Path,
    not_open: &dyn Fn(&dyn Display) -> Error,
) -> Result<(), Error> {
    let row = db.get(keys::FORMAT).map_err(|error| not_open(&error))?;
    let found = match row {
        Some(row) if row == FORMAT.to_string().as_bytes() => return Ok(()),
        Some(row) => row.escape_ascii().to_string(),
        None if db.is_empty() && db.tree_names().len() == 1 => {
            db.insert(keys::FORMAT, FORMAT.to_string().as_bytes())
                .and_then(|_| db.flush())
                .map_err(|error| not_open(&error))?;
            // The names of sled's files have to survive a power cut too.
            for file in ["db", "conf", "."] {
                let synced = File::open(path.join(file)).and_then(|file| file.sync_all());
                synced.map_err(|error| not_open(&error))?;
            }
            return Ok(());
        }
        None => "of something else".to_owned(),
    };
    Err(Error::Format {
        path: path.to_owned(),
        found,
        known: FORMAT,
    })
}
