//! What keeps the store from growing for ever: old events are forgotten, old dead letters and held
//! events are given up, and ingest is told to refuse events before the disk is full.
//!
//! Guarantees:
//! - Nothing is forgotten that is still to be decided, delivered, released or redriven: see
//!   [`crate::store::History`].
//! - Events are refused while decisions and deliveries go on, so what was accepted gets done with the
//!   room that is left; and taken again as soon as there is room.

#[cfg(test)]
mod tests;

use crate::clock::now_ms;
use crate::id::Name;
use crate::live::Live;
use crate::pipeline::{Pipeline, ReleaseError};
use crate::store::{Error, Mark, Store, Usage, Which};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often the disk is looked at: often enough that what is written meanwhile is little beside
/// `disk_free_bytes_min`.
const LOOK: Duration = Duration::from_millis(100);
/// How long a sweep rests at least, and by how much longer than what it did in vain.
const REST: Duration = Duration::from_secs(10);
const REST_FACTOR: f64 = 10.0;
/// Held events and dead letters that are given up in one go.
const PAGE: usize = 500;

/// How long things are kept, and how much room they may take.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder whose disk is watched.
    pub path: PathBuf,
    pub keep_ms: i64,
    pub dead_keep_ms: i64,
    pub bytes_max: u64,
    pub disk_free_bytes_min: u64,
}

/// Whether events are taken.
#[derive(Debug, Default)]
pub struct Watermark {
    why: RwLock<Option<&'static str>>,
    /// The store has more than it may, after all that can be forgotten was.
    over_full: AtomicBool,
}

impl Watermark {
    /// Why no event is taken, if none is: half a sentence for the sender.
    pub fn refuses(&self) -> Option<&'static str> {
        *self.why.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the disk and says whether events are taken.
    fn look(&self, settings: &Settings) {
        let free = free_bytes(&settings.path);
        let least = settings.disk_free_bytes_min;
        // A little more than was too little, so that it does not change with every event.
        let enough = match self.refuses() {
            Some(DISK) => least.saturating_add(least / 10),
            _ => least,
        };
        let why = match self.over_full.load(Ordering::Relaxed) {
            _ if free < enough => Some(DISK),
            true => Some(STORE),
            false => None,
        };
        let mut now = self.why.write().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *now, why) == why {
            return;
        }
        drop(now);
        match why {
            Some(why) => tracing::error!(
                free_bytes = free,
                disk_free_bytes_min = least,
                "no event is taken: {why}; free space, or see bytes_max and keep_s of [store]"
            ),
            None => tracing::warn!(free_bytes = free, "events are taken again"),
        }
    }
}

/// What is free on the disk of a folder; as much as there can be where it does not say.
pub(crate) fn free_bytes(path: &Path) -> u64 {
    match rustix::fs::statvfs(path) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the disk cannot be looked at");
            u64::MAX
        }
    }
}

const DISK: &str = "the disk is nearly full";
const STORE: &str = "the store is full";

/// Looks after the store for as long as the engine runs.
pub struct Housekeeper {
    store: Arc<dyn Store>,
    pipeline: Arc<Pipeline>,
    watermark: Arc<Watermark>,
    settings: Settings,
    /// Up to when events are forgotten before their time, since they take too much room.
    early_ms: Option<i64>,
    live: Arc<Live>,
    /// Tenants whose room is used up by what cannot be forgotten, and when to look again.
    in_vain: HashMap<Name, Instant>,
}

impl Housekeeper {
    pub fn new(
        store: Arc<dyn Store>,
        pipeline: Arc<Pipeline>,
        watermark: Arc<Watermark>,
        live: Arc<Live>,
        settings: Settings,
    ) -> Self {
        Self {
            live,
            in_vain: HashMap::new(),
            store,
            pipeline,
            watermark,
            settings,
            early_ms: None,
        }
    }

    /// Runs until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let (watermark, settings) = (self.watermark.clone(), self.settings.clone());
        // However long a sweep takes, the disk is looked at.
        let watch = async {
            while !cancel.is_cancelled() {
                watermark.look(&settings);
                pause(LOOK, &cancel).await;
            }
        };
        tokio::join!(watch, self.sweeps(&cancel));
    }

    async fn sweeps(mut self, cancel: &CancellationToken) {
        while !cancel.is_cancelled() {
            let rest = match self.sweep(cancel).await {
                Ok(rest) => rest,
                Err(error) => {
                    tracing::error!(%error, "nothing can be forgotten");
                    REST
                }
            };
            pause(rest, cancel).await;
        }
    }

    /// One sweep through everything that is old; how long to rest after it.
    async fn sweep(&mut self, cancel: &CancellationToken) -> Result<Duration, Error> {
        let clock_ms = now_ms();
        self.give_up(clock_ms - self.settings.dead_keep_ms, cancel)
            .await?;
        let began = Instant::now();
        let old_ms = clock_ms - self.settings.keep_ms;
        let before_ms = self
            .early_ms
            .map_or(old_ms, |early_ms| early_ms.max(old_ms));
        let (mut seen, mut forgotten) = (0_usize, 0);
        let mut from: Option<Mark> = None;
        loop {
            let swept = self.store.forget(before_ms, None, from.take()).await?;
            seen += swept.seen;
            forgotten += swept.forgotten;
            from = swept.next;
            if from.is_none() || cancel.is_cancelled() {
                break;
            }
            // A step is a few thousand rows for the writer, and others want it too.
            tokio::task::yield_now().await;
        }
        let in_vain = 1.0 - forgotten as f64 / seen.max(1) as f64;
        let for_nothing = began
            .elapsed()
            .mul_f64(if seen == 0 { 0.0 } else { in_vain });
        if forgotten > 0 {
            tracing::debug!(forgotten, seen, "old events are forgotten");
        }
        self.bound(&self.store.usage().await?, clock_ms);
        let crowded = self.make_room(clock_ms, cancel).await?;
        // What is kept for seconds is not looked at every ten; nor is a store that has to become smaller.
        let keep_ms = self.settings.keep_ms.min(self.settings.dead_keep_ms);
        let rest = match self.early_ms {
            None if !crowded => REST,
            _ => REST / 10,
        };
        let rest = rest.min(Duration::from_millis(keep_ms as u64 / 2));
        // Where a sweep has much to forget, the next one follows at once: more comes in meanwhile.
        let rest = rest.saturating_sub(began.elapsed());
        Ok(rest + for_nothing.mul_f64(REST_FACTOR))
    }

    /// Forgets the oldest events of tenants that have nearly as many as they may have; whether some tenant
    /// comes close to that.
    async fn make_room(
        &mut self,
        clock_ms: i64,
        cancel: &CancellationToken,
    ) -> Result<bool, Error> {
        let mut crowded = false;
        for (tenant, most) in self.live.stored_bytes() {
            let taken = self.store.stored_bytes(&tenant);
            crowded |= taken > most / 2;
            let rests = self.in_vain.get(&tenant);
            if taken <= most / 100 * 95 || rests.is_some_and(|until| Instant::now() < *until) {
                continue;
            }
            let (began, mut from, mut forgotten) = (Instant::now(), None, 0);
            while self.store.stored_bytes(&tenant) > most / 10 * 9 && !cancel.is_cancelled() {
                let swept = self
                    .store
                    .forget(clock_ms, Some(&tenant), from.take())
                    .await?;
                forgotten += swept.forgotten;
                from = swept.next;
                if from.is_none() {
                    let rest = began.elapsed().mul_f64(REST_FACTOR).max(REST);
                    self.in_vain.insert(tenant.clone(), Instant::now() + rest);
                    break;
                }
                tokio::task::yield_now().await;
            }
            tracing::info!(%tenant, forgotten, stored_bytes = most, "the tenant's events nearly take what they may: its oldest are forgotten before their time");
        }
        self.in_vain.retain(|_, until| Instant::now() < *until);
        Ok(crowded)
    }

    /// Compares what the store takes with what it may.
    fn bound(&mut self, usage: &Usage, clock_ms: i64) {
        let free = free_bytes(&self.settings.path);
        let most = bytes_max(usage, free, &self.settings);
        let early_ms = early(usage, most, self.early_ms, clock_ms);
        if early_ms.is_some() && self.early_ms.is_none() {
            tracing::warn!(
                live_bytes = usage.live_bytes,
                bytes_max = most,
                "the store is nearly full: the oldest events are forgotten before their time"
            );
        }
        self.early_ms = early_ms;
        let over_full = usage.live_bytes > most;
        self.watermark.over_full.store(over_full, Ordering::Relaxed);
    }

    /// Purges dead letters and drops held events that have waited too long for somebody.
    async fn give_up(&self, before_ms: i64, cancel: &CancellationToken) -> Result<(), Error> {
        let which = Which {
            before_ms: Some(before_ms),
            ..Which::default()
        };
        while !cancel.is_cancelled() {
            let page = self.store.dead(&which, PAGE).await?;
            if page.deliveries.is_empty() {
                break;
            }
            let ids = page.deliveries.iter().map(|dead| dead.id).collect();
            let purged = self.store.purge(ids).await?;
            tracing::info!(purged, "old dead letters are purged");
        }
        while !cancel.is_cancelled() {
            let held = self.store.held(None, None, PAGE).await?;
            let mut old = held.iter().filter(|held| held.since_ms < before_ms);
            let mut dropped = 0;
            for held in &mut old {
                match (self.pipeline)
                    .drop_held(&held.tenant, held.event, &held.rule)
                    .await
                {
                    Ok(_) => dropped += 1,
                    Err(ReleaseError::Store(error)) => return Err(error),
                    Err(_) => {} // Somebody was quicker.
                }
            }
            if dropped == 0 {
                break;
            }
            tracing::info!(dropped, "old held events are dropped");
        }
        Ok(())
    }
}

async fn pause(time: Duration, cancel: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = cancel.cancelled() => {}
    }
}

/// How much the rows may take: as configured, and no more than half of what the disk has for them,
/// because a file holds room for rows that were removed as well.
fn bytes_max(usage: &Usage, free: u64, settings: &Settings) -> u64 {
    let least = settings.disk_free_bytes_min;
    let disk = usage.file_bytes.saturating_add(free.saturating_sub(least));
    settings.bytes_max.min(disk / 2)
}

/// Up to when events are to be forgotten before their time: a tenth further with each sweep, until a
/// tenth of the room is free again.
fn early(usage: &Usage, most: u64, before: Option<i64>, clock_ms: i64) -> Option<i64> {
    let enough = most / 10 * 9;
    let is_over = match before {
        Some(_) => usage.live_bytes > enough,
        None => usage.live_bytes > enough.midpoint(most),
    };
    let oldest_ms = usage.oldest_ms.filter(|_| is_over)?;
    let from_ms = before.unwrap_or(oldest_ms).max(oldest_ms);
    Some(from_ms + (clock_ms - from_ms).max(10) / 10)
}
