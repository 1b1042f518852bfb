//! Measures rows in rounds: each round gives every row a batch of events, in an order that rotates, so
//! that what else the machine does hits all alike.

use crate::events::Input;
use crate::runners::Row;
use anyhow::{Context as _, Result, ensure};
use hooksieve_sdk::wire::Decision;
use serde::Serialize;
use std::time::{Duration, Instant};

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    /// About how long one row's batch takes.
    pub(crate) batch: Duration,
}

/// One row's times for one payload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Times {
    pub(crate) runner: &'static str,
    pub(crate) payload_bytes: usize,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) per_second: f64,
    pub(crate) isolated: bool,
}

pub(crate) fn measure(rows: &mut [Row], input: &Input, effort: Effort) -> Result<Vec<Times>> {
    let expected = peers_rule::decide(&input.event());
    let mut batches = Vec::new();
    let mut times: Vec<Vec<u32>> = Vec::new();
    for row in &mut *rows {
        let took = warm_up(row, input, &expected, effort.batch)
            .with_context(|| format!("{} cannot decide", row.name))?;
        let batch = (effort.batch.as_nanos() / took.as_nanos().max(1)).clamp(3, 100_000) as usize;
        batches.push(batch);
        times.push(Vec::with_capacity(batch * effort.rounds));
    }
    for round in 0..effort.rounds {
        for place in 0..rows.len() {
            let at = (round + place) % rows.len();
            run(&mut rows[at], input, batches[at], &mut times[at])?;
        }
    }
    Ok(rows
        .iter()
        .zip(times)
        .map(|(row, times)| summary(row, input, times))
        .collect())
}

/// Runs for as long as a batch will take; gives the time of one event.
fn warm_up(row: &mut Row, input: &Input, expected: &Decision, batch: Duration) -> Result<Duration> {
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed() < batch || times.len() < 3 {
        let decision = row.runner.decide(input)?;
        ensure!(decision == *expected, "it decides otherwise: {decision:?}");
        row.runner.between(input);
        run(row, input, 16, &mut times)?;
    }
    times.sort_unstable();
    Ok(Duration::from_nanos(times[times.len() / 2].into()))
}

/// A batch of events. An event's time is from the end of the one before to its own end, so that the
/// clock is read once for each.
fn run(row: &mut Row, input: &Input, batch: usize, times: &mut Vec<u32>) -> Result<()> {
    let mut left = batch;
    while left > 0 {
        let in_a_row = row.runner.in_a_row(input).min(left);
        let mut last = Instant::now();
        for _ in 0..in_a_row {
            std::hint::black_box(row.runner.decide(input)?);
            let now = Instant::now();
            times.push((now - last).as_nanos().try_into().unwrap_or(u32::MAX));
            last = now;
        }
        row.runner.between(input);
        left -= in_a_row;
    }
    Ok(())
}

fn summary(row: &Row, input: &Input, mut times: Vec<u32>) -> Times {
    times.sort_unstable();
    let total: u64 = times.iter().copied().map(u64::from).sum();
    let mean_us = total as f64 / times.len() as f64 / 1e3;
    let quantile = |share: f64| {
        let at = (times.len() as f64 * share) as usize;
        f64::from(times[at.min(times.len() - 1)]) / 1e3
    };
    Times {
        runner: row.name,
        payload_bytes: input.event.len(),
        mean_us,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        per_second: 1e6 / mean_us,
        isolated: row.isolated,
    }
}
