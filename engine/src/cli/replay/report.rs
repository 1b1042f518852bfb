//! What all events of a replay came to.

use super::seen::{AT_ONCE, Seen};
use crate::cli::style;
use hdrhistogram::Histogram;
use hooksieve::replay::Recorded;
use hooksieve::sandbox::{Limits, PAGE_BYTES};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// Events that are named for how long they took.
const SLOWEST_MAX: usize = 3;

/// What events used of one thing that is limited, as it is shown.
pub(super) struct Used {
    pub(super) what: &'static str,
    /// p50, p95, p99, the highest, and the limit.
    pub(super) shown: [String; 5],
    /// The highest, in percent of the limit.
    pub(super) share: f64,
}

/// What events came to, in as much memory for a million as for one.
pub(super) struct Report {
    limits: Arc<Limits>,
    /// Whether decisions were held against a tenant's channels.
    channels_known: bool,
    /// Events that the rule was not asked about: they are of a type or source that it does not want.
    pub(super) unasked: u64,
    pub(super) dropped: u64,
    pub(super) notified: u64,
    pub(super) failed: u64,
    pub(super) channels: BTreeMap<String, u64>,
    /// Deliveries by what their timing comes to.
    timed: BTreeMap<&'static str, u64>,
    fuel: Histogram<u64>,
    memory_pages: Histogram<u64>,
    /// The event that came closest to the limit of fuel.
    nearest: (u64, String),
    /// Those that took longest, the longest first.
    pub(super) slowest: Vec<(Duration, String)>,
}

impl Report {
    pub(super) fn new(limits: Arc<Limits>, channels_known: bool) -> Self {
        // Five digits are exact up to 262,143 fuel, and to the hundred-thousandth beyond.
        let counts = |highest: u64, digits| match Histogram::new_with_bounds(1, highest, digits) {
            Ok(counts) => counts,
            Err(_) => unreachable!("the bounds are in order and the digits at most 5"),
        };
        Self {
            fuel: counts(limits.fuel.max(2), 5),
            memory_pages: counts((limits.memory_bytes / PAGE_BYTES).max(2), 5),
            limits,
            channels_known,
            unasked: 0,
            dropped: 0,
            notified: 0,
            failed: 0,
            channels: BTreeMap::new(),
            timed: BTreeMap::new(),
            nearest: Default::default(),
            slowest: Vec::new(),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How many events the rule was asked about.
    pub(super) fn asked(&self) -> u64 {
        self.dropped + self.notified + self.failed
    }

    pub(super) fn all(&self) -> u64 {
        self.asked() + self.unasked
    }

    pub(super) fn unasked(&mut self) {
        self.unasked += 1;
    }

    /// An event as it is named.
    pub(super) fn which(recorded: &Recorded) -> String {
        format!("{} {}", recorded.event.kind, recorded.name())
    }

    pub(super) fn add(&mut self, seen: &Seen, recorded: &Recorded) {
        let (fuel, duration) = (seen.run.fuel, seen.run.duration);
        self.fuel.saturating_record(fuel);
        self.memory_pages
            .saturating_record(seen.run.memory_bytes / PAGE_BYTES);
        let which = || Self::which(recorded);
        if fuel > self.nearest.0 {
            self.nearest = (fuel, which());
        }
        let place = self.slowest.partition_point(|(took, _)| *took >= duration);
        if place < SLOWEST_MAX {
            self.slowest.insert(place, (duration, which()));
            self.slowest.truncate(SLOWEST_MAX);
        }
        for timed in &seen.timed {
            *self.timed.entry(timed.state).or_default() += 1;
        }
        match &seen.decision {
            Some(decision) if decision.actions.is_empty() => self.dropped += 1,
            Some(decision) => {
                self.notified += 1;
                for action in &decision.actions {
                    match self.channels.get_mut(&action.channel) {
                        Some(count) => *count += 1,
                        None => drop(self.channels.insert(action.channel.clone(), 1)),
                    }
                }
            }
            None => self.failed += 1,
        }
    }

    pub(super) fn summary(&self, out: &mut impl Write) -> std::io::Result<()> {
        let (bold, dim) = (style::HEADING, style::DIM);
        let bad = match self.failed {
            0 => style::GOOD,
            _ => style::BAD,
        };
        let all = style::counted(self.all(), "event");
        let [dropped, notified, failed] =
            [self.dropped, self.notified, self.failed].map(style::grouped);
        writeln!(
            out,
            "{bold}{all}{bold:#}: {dropped} dropped, {notified} notified, {bad}{failed} failed{bad:#}"
        )?;
        if self.asked() == 0 && self.unasked > 0 {
            let bad = style::BAD;
            return writeln!(
                out,
                "  {bad}never matched{bad:#}: the rule's `events` and `sources` want none of them"
            );
        }
        if self.unasked > 0 {
            let unasked = style::grouped(self.unasked);
            writeln!(
                out,
                "  unasked  {unasked} {dim}of other types or sources than the rule wants{dim:#}"
            )?;
        }
        let counts = |(name, count): (&str, &u64)| format!("{name} {}", style::grouped(*count));
        let channels = self.channels.iter();
        let channels: Vec<_> = channels
            .map(|(name, count)| counts((&style::clean(name), count)))
            .collect();
        if !channels.is_empty() {
            let unchecked = match self.channels_known {
                true => "",
                false => " (whether there are such channels is known with --tenant)",
            };
            let channels = channels.join(", ");
            writeln!(out, "  actions  {channels}{dim}{unchecked}{dim:#}")?;
        }
        if self.timed.keys().any(|state| *state != AT_ONCE) {
            let timed = self.timed.iter();
            let timed: Vec<_> = timed.map(|(state, n)| counts((state, n))).collect();
            writeln!(out, "  timing   {}", timed.join(", "))?;
        }
        if self.failed > 0 && !self.channels_known {
            writeln!(
                out,
                "  {dim}an engine holds what a rule fails on, or passes or drops it, as its on_error says{dim:#}"
            )?;
        }
        for used in self.used() {
            let (what, share) = (used.what, used.share);
            let [p50, p95, p99, max, limit] = used.shown;
            writeln!(
                out,
                "  {what:<8} p50 {p50}, p95 {p95}, p99 {p99}, max {max} of {limit} ({share:.1} %)"
            )?;
        }
        if let Some((left, which)) = self.headroom() {
            let which = style::clean(which);
            writeln!(out, "  headroom {left:.1} % of the fuel, on {which}")?;
        }
        for (n, (took, which)) in self.slowest.iter().enumerate() {
            let what = if n == 0 { "slowest" } else { "" };
            let (took, which) = (took.as_micros(), style::clean(which));
            writeln!(out, "  {what:<8} {took} µs, {which}")?;
        }
        Ok(())
    }

    /// What events used of what is limited.
    pub(super) fn used(&self) -> [Used; 2] {
        let used = |what, of: [u64; 4], limit: u64, shown: fn(u64) -> String| {
            let [p50, p95, p99, max] = of;
            Used {
                what,
                share: 100.0 * max as f64 / limit as f64,
                shown: [p50, p95, p99, max, limit].map(shown),
            }
        };
        let [fuel, pages] = self.quantiles();
        let limit_pages = self.limits.memory_bytes / PAGE_BYTES;
        let shown = |pages: u64| style::bytes(pages * PAGE_BYTES);
        [
            used("fuel", fuel, self.limits.fuel, style::grouped),
            used("memory", pages, limit_pages, shown),
        ]
    }

    /// p50, p95, p99 and the highest of fuel and of pages.
    fn quantiles(&self) -> [[u64; 4]; 2] {
        let of = |all: &Histogram<u64>, max: u64| {
            // A quantile is the highest of its class, which may be more than there was.
            let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|q| all.value_at_quantile(q).min(max));
            [p50, p95, p99, max]
        };
        [
            of(&self.fuel, self.nearest.0),
            of(&self.memory_pages, self.memory_pages.max()),
        ]
    }

    /// What percentage of the fuel was left at least, and on which event.
    pub(super) fn headroom(&self) -> Option<(f64, &str)> {
        let (most, which) = &self.nearest;
        let left = 100.0 - 100.0 * *most as f64 / self.limits.fuel as f64;
        (*most > 0).then_some((left, which))
    }

    /// The same for programs.
    pub(super) fn json(&self, rule: &str, differ: Option<u64>) -> serde_json::Value {
        let used = |of: [u64; 4], unit: u64, limit: u64| {
            let [p50, p95, p99, max] = of.map(|it| it * unit);
            json!({ "p50": p50, "p95": p95, "p99": p99, "max": max, "limit": limit })
        };
        let [fuel, pages] = self.quantiles();
        let slowest = self.slowest.iter();
        let slowest: Vec<_> = slowest
            .map(|(took, which)| json!({ "duration_us": took.as_micros() as u64, "event": which }))
            .collect();
        json!({
            "rule": rule,
            "events": self.all(),
            "unasked": self.unasked,
            "dropped": self.dropped,
            "notified": self.notified,
            "failed": self.failed,
            "differ": differ,
            "actions": self.channels,
            "timing": self.timed,
            "fuel": used(fuel, 1, self.limits.fuel),
            "memory_bytes": used(pages, PAGE_BYTES, self.limits.memory_bytes),
            "nearest": { "fuel": self.nearest.0, "event": self.nearest.1 },
            "slowest": slowest,
        })
    }
}
