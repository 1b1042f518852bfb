//! What the engine counts, for Prometheus.
//!
//! A counter is an atomic number that is found once for each tenant when the engine starts, so that counting
//! costs an event next to nothing. Labels have few values: kinds of channels, words for outcomes, and names of
//! tenants up to [`TENANTS_MAX`]. Nothing of an event, no other name and no address is among them.

use crate::clock::now_ms;
use crate::id::Name;
use crate::pipeline::Threads;
use crate::stats::{Made, Stats};
use crate::store::{Commit, Outcome, Usage};
use crate::telemetry::Traces;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// How many tenants are told apart; those beyond are `other`.
pub const TENANTS_MAX: usize = 1_000;
/// What stands for the tenants beyond. No tenant has this name: it has an underscore in front.
const OTHER: &str = "_other";

type Label<const N: usize> = [(&'static str, String); N];

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    tenants: RwLock<HashMap<Name, Arc<OfTenant>>>,
    /// All that have no counters of their own.
    other: OnceLock<Arc<OfTenant>>,
    /// What a tenant's counters are parts of.
    families: Families,
    /// The last hour, for people.
    pub stats: Stats,
    /// What is told of single events.
    pub(crate) traces: Traces,
    refused: Family<Label<1>, Counter>,
    failures: Family<Label<1>, Counter>,
    attempts: Family<Label<2>, Counter>,
    decide_seconds: Histogram,
    decide_fuel: Histogram,
    decide_threads: Gauge,
    decide_threads_absent: Gauge,
    decide_threads_lost: Counter,
    attempt_seconds: Histogram,
    store_rows: Gauge,
    store_file: Gauge,
    disk_free: Gauge,
    oldest: Gauge,
    resident: Gauge,
    cpu: Counter<f64, AtomicU64>,
    spans_dropped: Counter,
}

#[derive(Debug, Default)]
struct Families {
    accepted: Family<Label<1>, Counter>,
    repeated: Family<Label<1>, Counter>,
    decisions: Family<Label<2>, Counter>,
    delivered: Family<Label<1>, Counter>,
    dead: Family<Label<1>, Counter>,
}

impl Families {
    fn of_tenant(&self, name: &str) -> OfTenant {
        let tenant = || ("tenant", name.to_owned());
        let one = |family: &Family<Label<1>, Counter>| family.get_or_create_owned(&[tenant()]);
        let outcome = |word: &str| {
            let label = [tenant(), ("outcome", word.to_owned())];
            self.decisions.get_or_create_owned(&label)
        };
        OfTenant {
            accepted: one(&self.accepted),
            repeated: one(&self.repeated),
            dropped: outcome("dropped"),
            notified: outcome("notified"),
            failed: outcome("failed"),
            delivered: one(&self.delivered),
            dead: one(&self.dead),
        }
    }
}

/// What is counted for each tenant.
#[derive(Debug, Default)]
struct OfTenant {
    accepted: Counter,
    repeated: Counter,
    dropped: Counter,
    notified: Counter,
    failed: Counter,
    delivered: Counter,
    dead: Counter,
}

/// As much of a decision as is counted.
#[derive(Debug)]
pub(crate) struct Seen {
    rule: Name,
    failure: Option<String>,
    notified: bool,
    duration_us: u64,
    fuel: u64,
}

impl Seen {
    pub(crate) fn all(commits: &[Commit]) -> Vec<Self> {
        let decisions = commits.iter().flat_map(|commit| &commit.decisions);
        let seen = decisions.map(|decision| {
            let (failure, notified) = match &decision.outcome {
                Outcome::Decided(decided) => (None, !decided.actions.is_empty()),
                Outcome::Failed { kind, .. } => (Some(kind.clone()), false),
            };
            Seen {
                rule: decision.rule.clone(),
                failure,
                notified,
                duration_us: decision.duration_us,
                fuel: decision.fuel,
            }
        });
        seen.collect()
    }
}

/// How an attempt went, in the words of its label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempted {
    Delivered,
    Retried,
    Dead,
}

impl Metrics {
    pub fn new<'a>(tenants: impl IntoIterator<Item = &'a Name>) -> Self {
        let mut registry = Registry::default();
        let families = Families::default();
        // From 4 µs, the fastest decisions, to 4 s, beyond the backstop.
        let decide_seconds = Histogram::new(exponential_buckets(4e-6, 4.0, 11));
        let decide_fuel = Histogram::new(exponential_buckets(1_000.0, 4.0, 10));
        // From 1 ms to 16 s, beyond the default timeout.
        let attempt_seconds = Histogram::new(exponential_buckets(1e-3, 4.0, 8));
        let metrics = Self {
            traces: Traces::default(),
            tenants: RwLock::default(),
            other: OnceLock::new(),
            families,
            stats: Stats::default(),
            refused: Family::default(),
            failures: Family::default(),
            attempts: Family::default(),
            decide_seconds,
            decide_fuel,
            decide_threads: Gauge::default(),
            decide_threads_absent: Gauge::default(),
            decide_threads_lost: Counter::default(),
            attempt_seconds,
            store_rows: Gauge::default(),
            store_file: Gauge::default(),
            disk_free: Gauge::default(),
            oldest: Gauge::default(),
            resident: Gauge::default(),
            cpu: Counter::default(),
            spans_dropped: Counter::default(),
            registry: Registry::default(),
        };
        let r = registry.sub_registry_with_prefix("hooksieve");
        let families = &metrics.families;
        let accepted = families.accepted.clone();
        r.register("events_accepted", "Events that were stored", accepted);
        r.register(
            "events_repeated",
            "Deliveries of senders that were recognised as repeated",
            families.repeated.clone(),
        );
        r.register(
            "events_refused",
            "Requests of senders that were not taken, by type of problem",
            metrics.refused.clone(),
        );
        let decisions = families.decisions.clone();
        r.register("decisions", "Decisions of rules", decisions);
        r.register(
            "decision_failures",
            "Decisions that failed, by kind of failure",
            metrics.failures.clone(),
        );
        r.register_with_unit(
            "decision_duration",
            "How long a rule ran for an event",
            Unit::Seconds,
            metrics.decide_seconds.clone(),
        );
        r.register(
            "decision_fuel",
            "What a rule burned for an event",
            metrics.decide_fuel.clone(),
        );
        r.register(
            "decide_threads",
            "Threads that run rules, those that do not come back among them",
            metrics.decide_threads.clone(),
        );
        r.register(
            "decide_threads_absent",
            "Threads that do not come back from a rule",
            metrics.decide_threads_absent.clone(),
        );
        r.register(
            "decide_threads_lost",
            "Threads that were given up because they did not come back from a rule",
            metrics.decide_threads_lost.clone(),
        );
        let (delivered, dead) = (families.delivered.clone(), families.dead.clone());
        r.register("deliveries_delivered", "Deliveries that arrived", delivered);
        r.register("deliveries_dead", "Deliveries that were given up", dead);
        r.register(
            "delivery_attempts",
            "Attempts to deliver, by kind of channel and what came of them",
            metrics.attempts.clone(),
        );
        r.register_with_unit(
            "delivery_attempt_duration",
            "How long an attempt took",
            Unit::Seconds,
            metrics.attempt_seconds.clone(),
        );
        r.register_with_unit(
            "store_rows",
            "What the store's rows take",
            Unit::Bytes,
            metrics.store_rows.clone(),
        );
        r.register_with_unit(
            "store_file",
            "What the store's file takes",
            Unit::Bytes,
            metrics.store_file.clone(),
        );
        r.register_with_unit(
            "disk_free",
            "What is free on the store's disk",
            Unit::Bytes,
            metrics.disk_free.clone(),
        );
        r.register_with_unit(
            "oldest_event_timestamp",
            "When the oldest event came in that is kept",
            Unit::Seconds,
            metrics.oldest.clone(),
        );
        r.register(
            "spans_dropped",
            "Spans of traces that the collector did not take",
            metrics.spans_dropped.clone(),
        );
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        r.register("build", "What runs", Info::new(version));
        // These have the names that every program gives them.
        registry.register_with_unit(
            "process_resident_memory",
            "Memory of this process that is in use",
            Unit::Bytes,
            metrics.resident.clone(),
        );
        registry.register_with_unit(
            "process_cpu",
            "Processor time of this process, in user and system mode",
            Unit::Seconds,
            metrics.cpu.clone(),
        );
        let metrics = Self {
            registry,
            ..metrics
        };
        metrics.tell_apart(tenants);
        metrics
    }

    /// Tells these tenants apart from now on, as far as there is room. A tenant that goes keeps its
    /// counters: they only ever grow.
    pub fn tell_apart<'a>(&self, names: impl IntoIterator<Item = &'a Name>) {
        let mut names: Vec<&Name> = names.into_iter().collect();
        names.sort_unstable();
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if tenants.len() == TENANTS_MAX {
                break;
            }
            if !tenants.contains_key(name) {
                let of = self.families.of_tenant(name.as_str());
                tenants.insert(name.clone(), Arc::new(of));
            }
        }
    }

    fn of(&self, tenant: &Name) -> Arc<OfTenant> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let other = || Arc::new(self.families.of_tenant(OTHER));
        match tenants.get(tenant) {
            Some(of) => of.clone(),
            None => self.other.get_or_init(other).clone(),
        }
    }

    /// An event was taken, or recognised as a repeated one.
    pub(crate) fn taken(&self, tenant: &Name, repeated: bool) {
        let of = self.of(tenant);
        match repeated {
            true => of.repeated.inc(),
            false => {
                self.stats.accepted(tenant, now_ms());
                of.accepted.inc()
            }
        };
    }

    /// A sender's request was not taken.
    pub(crate) fn refused(&self, problem: &'static str) {
        let label = [("reason", problem.to_owned())];
        self.refused.get_or_create(&label).inc();
    }

    /// What rules made of events that are stored now.
    pub(crate) fn decided(&self, tenant: &Name, seen: &[Seen]) {
        let of = self.of(tenant);
        let made = seen.iter().map(|seen| {
            let made = match (&seen.failure, seen.notified) {
                (Some(_), _) => Made::Failed,
                (None, true) => Made::Notified,
                (None, false) => Made::Dropped,
            };
            (&seen.rule, made, seen.fuel)
        });
        self.stats.decided(tenant, made, now_ms());
        for seen in seen {
            match &seen.failure {
                Some(kind) => {
                    of.failed.inc();
                    let label = [("kind", kind.clone())];
                    self.failures.get_or_create(&label).inc();
                }
                None if seen.notified => drop(of.notified.inc()),
                None => drop(of.dropped.inc()),
            }
            self.decide_seconds.observe(seen.duration_us as f64 / 1e6);
            self.decide_fuel.observe(seen.fuel as f64);
        }
    }

    /// An attempt came to an end.
    pub(crate) fn attempted(
        &self,
        tenant: &Name,
        channel: &'static str,
        attempted: Attempted,
        took: Duration,
    ) {
        let of = self.of(tenant);
        let outcome = match attempted {
            Attempted::Delivered => {
                self.stats.delivered(tenant, now_ms());
                of.delivered.inc();
                "delivered"
            }
            Attempted::Retried => "retried",
            Attempted::Dead => {
                self.stats.dead(tenant, now_ms());
                of.dead.inc();
                "dead"
            }
        };
        let label = [
            ("channel", channel.to_owned()),
            ("outcome", outcome.to_owned()),
        ];
        self.attempts.get_or_create(&label).inc();
        self.attempt_seconds.observe(took.as_secs_f64());
    }

    /// How the threads that run rules are doing now.
    pub(crate) fn threads(&self, threads: &Threads) {
        self.decide_threads.set(threads.count as i64);
        self.decide_threads_absent.set(threads.lost.len() as i64);
        let lost = self.decide_threads_lost.inner();
        lost.store(threads.lost_ever, Ordering::Relaxed);
    }

    /// All of it, as OpenMetrics text.
    pub(crate) fn text(&self, usage: &Usage, disk_free_bytes: u64) -> String {
        self.store_rows.set(usage.live_bytes as i64);
        self.store_file.set(usage.file_bytes as i64);
        self.disk_free.set(disk_free_bytes as i64);
        self.oldest.set(usage.oldest_ms.unwrap_or(0) / 1_000);
        let dropped = self.traces.dropped();
        self.spans_dropped.inner().store(dropped, Ordering::Relaxed);
        if let Some((resident_bytes, cpu_s)) = process() {
            self.resident.set(resident_bytes);
            self.cpu.inner().store(cpu_s.to_bits(), Ordering::Relaxed);
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Memory and processor time of this process, where the system tells them.
fn process() -> Option<(i64, f64)> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).ok();
    let pages: i64 = read("statm")?.split(' ').nth(1)?.parse().ok()?;
    let stat = read("stat")?;
    // What follows the program's name, which may hold anything, in parentheses: proc(5).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    let per_s = rustix::param::clock_ticks_per_second();
    Some((
        pages * rustix::param::page_size() as i64,
        ticks as f64 / per_s as f64,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> Usage {
        Usage {
            live_bytes: 1,
            file_bytes: 2,
            oldest_ms: Some(3_000),
        }
    }

    #[test]
    fn tenants_beyond_the_bound_are_one() {
        let name = |n: usize| format!("t{n:04}").parse::<Name>().unwrap();
        let names: Vec<Name> = (0..TENANTS_MAX + 2).map(name).collect();
        let metrics = Metrics::new(&names);
        for name in &names {
            metrics.taken(name, false);
        }
        let text = metrics.text(&usage(), 4);
        let line = |tenant: &str, count: usize| {
            format!("hooksieve_events_accepted_total{{tenant=\"{tenant}\"}} {count}\n")
        };
        assert!(text.contains(&line("t0999", 1)));
        assert!(text.contains(&line(OTHER, 2)));
        assert!(!text.contains("t1000"));
    }

    #[test]
    fn it_reads_as_openmetrics() {
        let tenant: Name = "acme".parse().unwrap();
        let metrics = Metrics::new([&tenant]);
        metrics.refused("body-too-large");
        metrics.attempted(
            &tenant,
            "slack",
            Attempted::Retried,
            Duration::from_millis(5),
        );
        metrics.threads(&Threads {
            count: 3,
            lost_ever: 2,
            ..Threads::default()
        });
        let text = metrics.text(&usage(), 4);
        assert!(text.ends_with("# EOF\n"));
        for line in [
            "hooksieve_decide_threads 3",
            "hooksieve_decide_threads_absent 0",
            "hooksieve_decide_threads_lost_total 2",
            "hooksieve_events_refused_total{reason=\"body-too-large\"} 1",
            "hooksieve_delivery_attempts_total{channel=\"slack\",outcome=\"retried\"} 1",
            "hooksieve_delivery_attempt_duration_seconds_count 1",
            "hooksieve_store_file_bytes 2",
            "hooksieve_oldest_event_timestamp_seconds 3",
            "hooksieve_decisions_total{tenant=\"acme\",outcome=\"failed\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
        let resident = text
            .lines()
            .find(|it| it.starts_with("process_resident_memory_bytes "));
        assert!(
            resident
                .unwrap()
                .rsplit(' ')
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
                > 1 << 20
        );
        // Every line is a comment or a sample with a name of ours.
        for line in text.lines().filter(|it| !it.starts_with('#')) {
            assert!(
                line.starts_with("hooksieve_") || line.starts_with("process_"),
                "{line}"
            );
        }
    }
}
