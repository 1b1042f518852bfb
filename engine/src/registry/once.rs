//! Calls that were sent with an `Idempotency-Key`, and what they were answered: a client that did not see
//! the answer sends the call again, and gets it. Kept for a day, sealed, since an answer may show a token.

use super::{Error, Registry};
use crate::clock::now_ms;
use crate::id::{Hash, Name};
use crate::store::{self, Changes};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// For how long an answer is kept.
pub(crate) const KEPT_MS: i64 = 24 * 3_600 * 1_000;
/// How many answers of a tenant are kept: the last ones.
pub(crate) const KEPT_MAX: usize = 1_000;
/// The longest answer that is kept whole; of a longer one, that there was one.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What a call was, and what it was answered, which may be a token's text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Of its method, path and body.
    pub call: Hash,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// None where it was too long.
    pub body: Option<String>,
}

/// Whose key it is: a caller's, of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OnceKey {
    tenant: Option<Name>,
    hash: Hash,
}

/// What is known of a key.
pub(crate) enum Known<'a> {
    /// Nothing: the call is made, and told before this is dropped.
    New(UnderWay<'a>),
    /// The same call is being answered now.
    UnderWay,
    Told(Told),
}

/// A call that is being answered.
pub(crate) struct UnderWay<'a> {
    registry: &'a Registry,
    key: OnceKey,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.registry.once.lock().under_way.remove(&self.key);
    }
}

/// Which answers there are; they themselves are in the store.
#[derive(Default)]
pub(super) struct Once(Mutex<Index>);

#[derive(Default)]
struct Index {
    under_way: BTreeSet<OnceKey>,
    /// Oldest first.
    kept: BTreeMap<Option<Name>, VecDeque<(i64, Hash)>>,
}

impl Once {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget(&self, tenant: &Name) {
        self.lock().kept.remove(&Some(tenant.clone()));
    }
}

impl OnceKey {
    /// `token` is the id of the caller's, so that nobody meets another's key.
    pub(crate) fn new(tenant: Option<Name>, token: &str, key: &str) -> Self {
        let hash = Hash::of(format!("{token} {key}").as_bytes());
        Self { tenant, hash }
    }

    fn at(&self, at_ms: i64) -> String {
        record_key(self.tenant.as_ref(), at_ms, &self.hash)
    }
}

fn record_key(tenant: Option<&Name>, at_ms: i64, hash: &Hash) -> String {
    // No name is a dot.
    let tenant = tenant.map_or(".", Name::as_str);
    format!("once/{tenant}/{at_ms:015}-{hash}")
}

impl Registry {
    pub(super) async fn load_once(&self) -> Result<(), store::Error> {
        let mut gone = Changes::new();
        let oldest_ms = now_ms() - KEPT_MS;
        // In the order of their keys, so that each tenant's are oldest first.
        for (key, _) in self.store.records("once/").await? {
            let parts = key
                .strip_prefix("once/")
                .and_then(|rest| rest.split_once('/'))
                .and_then(|(tenant, rest)| Some((tenant, rest.split_once('-')?)));
            let read = parts.and_then(|(tenant, (at_ms, hash))| {
                Some((tenant, at_ms.parse::<i64>().ok()?, hash.parse().ok()?))
            });
            match read {
                Some((tenant, at_ms, hash)) if at_ms > oldest_ms => {
                    let mut index = self.once.lock();
                    let own = index.kept.entry(tenant.parse().ok()).or_default();
                    own.push_back((at_ms, hash));
                }
                _ => gone.push((key, None)),
            }
        }
        if !gone.is_empty() {
            self.store.set_records(gone).await?;
        }
        Ok(())
    }

    /// What is known of a key; where that is nothing, the caller has it until it is told.
    ///
    /// # Errors
    /// When the store fails, or what it holds does not open.
    pub(crate) async fn once(&self, key: &OnceKey) -> Result<Known<'_>, Error> {
        let at_ms = {
            let mut index = self.once.lock();
            if index.under_way.contains(key) {
                return Ok(Known::UnderWay);
            }
            let own = index.kept.get(&key.tenant).into_iter().flatten();
            let found = own.rev().find(|(_, hash)| *hash == key.hash);
            let at_ms = found.map(|(at_ms, _)| *at_ms);
            let at_ms = at_ms.filter(|at_ms| *at_ms > now_ms() - KEPT_MS);
            if at_ms.is_none() {
                index.under_way.insert(key.clone());
            }
            at_ms
        };
        let Some(at_ms) = at_ms else {
            return Ok(Known::New(UnderWay {
                registry: self,
                key: key.clone(),
            }));
        };
        let name = key.at(at_ms);
        let told = match self.store.record(&name).await? {
            Some(sealed) => self.told(&name, &sealed),
            None => Err("it is gone".to_owned()),
        };
        told.map(Known::Told).map_err(|error| {
            tracing::error!(record = name, error, "a kept answer cannot be read");
            Error::Conflict(
                "a call with this Idempotency-Key was answered, and the answer cannot be read any more; look what it did, and take another key".to_owned(),
            )
        })
    }

    fn told(&self, name: &str, sealed: &[u8]) -> Result<Told, String> {
        let (open, _) = self
            .seal
            .open(name, sealed)
            .map_err(|error| error.to_string())?;
        serde_json::from_slice(&open).map_err(|error| error.to_string())
    }
}

impl UnderWay<'_> {
    /// Keeps what the call was answered.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn tell(self, told: &Told) -> Result<(), Error> {
        let now_ms = now_ms();
        let Registry {
            once, seal, store, ..
        } = self.registry;
        let name = self.key.at(now_ms);
        let open = serde_json::to_vec(told).unwrap_or_default();
        let mut changes = vec![(name.clone(), Some(seal.seal(&name, &open)))];
        let tenant = &self.key.tenant;
        let surplus: Vec<(i64, Hash)> = {
            let index = once.lock();
            let own = index.kept.get(tenant).map(VecDeque::iter);
            let own = own.into_iter().flatten();
            let over = (own.clone().count() + 1).saturating_sub(KEPT_MAX);
            let old = own
                .clone()
                .take_while(|it| it.0 <= now_ms - KEPT_MS)
                .count();
            own.take(over.max(old)).copied().collect()
        };
        let gone = surplus
            .iter()
            .map(|(at_ms, hash)| record_key(tenant.as_ref(), *at_ms, hash));
        changes.extend(gone.map(|key| (key, None)));
        store.set_records(changes).await?;
        let mut index = once.lock();
        let own = index.kept.entry(tenant.clone()).or_default();
        own.retain(|it| !surplus.contains(it));
        own.push_back((now_ms, self.key.hash));
        Ok(())
    }
}
