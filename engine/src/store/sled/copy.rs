//! A copy of everything as it stood at one moment, made while the writer goes on.
//!
//! The copy walks through the rows in the order of their keys. Before the writer changes a row that the walk
//! has not reached, it keeps that row as it was, and the walk takes it from there. Both hold one lock: the
//! writer while it applies a group, the walk for one step; so a step sees no half of a group.

use super::offline::{TransferError, export_rows};
use super::{Shared, SledStore};
use crate::store::Error;
use sled::IVec;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Bound;
use std::sync::{Arc, MutexGuard, PoisonError};

/// What may be kept of rows that change while a copy is made; a copy that needs more is given up.
const KEPT_BYTES_MAX: usize = 256 << 20;
/// What a kept row takes besides its bytes, about.
const KEPT_OVERHEAD: usize = 96;
/// How many rows one step takes: what the writer may have to wait for.
const STEP_ROWS: usize = 512;

/// A copy that is being made, if one is.
#[derive(Default)]
pub(super) struct Copied(Option<UnderWay>);

#[derive(Default)]
struct UnderWay {
    /// Rows before this key are copied.
    at: Vec<u8>,
    /// Rows from there on as they were; `None` where there was none.
    before: BTreeMap<Vec<u8>, Option<IVec>>,
    bytes: usize,
    given_up: bool,
}

impl Copied {
    /// Keeps a row that is about to change, where the copy has still to come by.
    pub(super) fn keep(&mut self, db: &sled::Db, key: &[u8]) -> sled::Result<()> {
        let Some(copy) = &mut self.0 else {
            return Ok(());
        };
        if copy.given_up || key < &copy.at[..] || copy.before.contains_key(key) {
            return Ok(());
        }
        let value = db.get(key)?;
        copy.bytes += size(key, &value);
        if copy.bytes > KEPT_BYTES_MAX {
            copy.given_up = true;
            copy.before.clear();
        } else {
            copy.before.insert(key.to_vec(), value);
        }
        Ok(())
    }
}

fn size(key: &[u8], value: &Option<IVec>) -> usize {
    key.len() + value.as_ref().map_or(0, |it| it.len()) + KEPT_OVERHEAD
}

/// Ends the copy, whatever came of it.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.copied().0 = None;
    }
}

type Rows = Vec<(Vec<u8>, IVec)>;

impl Shared {
    pub(super) fn copied(&self) -> MutexGuard<'_, Copied> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next rows; none when all are copied.
    fn copy_step(&self) -> Result<Rows, TransferError> {
        let mut copied = self.copied();
        let Some(copy) = &mut copied.0 else {
            return Ok(Rows::new());
        };
        if copy.given_up {
            return Err(TransferError::Busy);
        }
        let failed = |error| TransferError::Store(self.broken(error));
        loop {
            let from = Bound::Included(std::mem::take(&mut copy.at));
            let range = (from.clone(), Bound::Unbounded);
            let found = self.db.range::<Vec<u8>, _>(range).take(STEP_ROWS);
            let found: Vec<_> = found.collect::<Result<_, _>>().map_err(failed)?;
            // Just behind the last of them; there may be rows beyond it, of which some were removed.
            let last = (found.len() == STEP_ROWS).then(|| found.last()).flatten();
            let to = last.map(|(key, _)| [&key[..], &[0]].concat());
            let mut rows: BTreeMap<Vec<u8>, IVec> = found
                .into_iter()
                .map(|(key, value)| (key.to_vec(), value))
                .collect();
            let rest = to.as_ref().map(|to| copy.before.split_off(to));
            let before = std::mem::replace(&mut copy.before, rest.unwrap_or_default());
            for (key, value) in before {
                copy.bytes -= size(&key, &value);
                match value {
                    Some(value) => drop(rows.insert(key, value)),
                    None => drop(rows.remove(&key)),
                }
            }
            let over = to.is_none();
            // No key is as long as this, or as great.
            copy.at = to.unwrap_or_else(|| vec![0xff; 64]);
            if over || !rows.is_empty() {
                return Ok(rows.into_iter().collect());
            }
        }
    }
}

impl SledStore {
    /// Writes all that the store holds, as it stands now, in the form of an export.
    ///
    /// # Errors
    /// When another copy is being made, too much changes meanwhile, or what is written is not taken.
    pub(super) async fn copy(
        &self,
        mut to: Box<dyn Write + Send>,
        exported_ms: i64,
    ) -> Result<u64, TransferError> {
        self.shared.check()?;
        let shared = Arc::clone(&self.shared);
        let copied = tokio::task::spawn_blocking(move || {
            {
                let mut copied = shared.copied();
                if copied.0.is_some() {
                    return Err(TransferError::UnderWay);
                }
                copied.0 = Some(UnderWay::default());
            }
            let _ended = Ended(&shared);
            let steps = std::iter::from_fn(|| match shared.copy_step() {
                Ok(rows) if rows.is_empty() => None,
                step => Some(step),
            });
            let rows = steps.flat_map(|step| match step {
                Ok(rows) => rows.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            });
            export_rows(rows, &mut to, exported_ms, &mut |_| {})
        });
        copied.await.unwrap_or_else(|error| {
            let path = self.shared.path.clone();
            let error = error.to_string();
            Err(TransferError::Store(Error::Open { path, error }))
        })
    }
}
