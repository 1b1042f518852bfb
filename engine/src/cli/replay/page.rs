//! A replay's report as one page that needs nothing else: for a mail, a ticket, a release.

use crate::cli::style;
use hooksieve::sandbox::Limits;
use maud::{DOCTYPE, Markup, html};
use std::collections::BTreeMap;
use std::time::Duration;

/// Events that are listed: those that burned most, and those that failed.
const LISTED_MAX: usize = 100;
/// Bars of the chart of fuel: each is twice as far as the one before.
const BARS: usize = 24;

const STYLE: &str = ":root{color-scheme:light dark;--ink:light-dark(#1c2430,#e6e9ee);--soft:light-dark(#566170,#a9b3c0);--line:light-dark(#d5dbe3,#39424e);--good:light-dark(#1a6b35,#7fd69b);--bad:light-dark(#a8231c,#ff9d94)}\
body{margin:0 auto;max-width:64rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink)}\
table{width:100%;border-collapse:collapse;font-size:.92rem}th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}\
th,.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}.number{text-align:right}svg{width:100%;height:9rem}svg text{font-size:9px;fill:currentColor}rect.good{fill:var(--good)}";

/// An event as it is listed.
pub(super) struct Row {
    pub(super) kind: String,
    pub(super) id: String,
    /// `drop`, `notify` or `failed`.
    pub(super) outcome: &'static str,
    /// The channels.
    pub(super) to: String,
    /// The decision's reason, or the failure.
    pub(super) why: String,
    pub(super) fuel: u64,
    pub(super) took: Duration,
}

/// What a page is made of.
#[derive(Default)]
pub(super) struct Seen {
    /// By type: how many were dropped, notified, failed.
    kinds: BTreeMap<String, [u64; 3]>,
    /// How many events burned up to so much, by powers of two.
    fuel: [u64; BARS],
    hungriest: Vec<Row>,
    failed: Vec<Row>,
}

impl Seen {
    pub(super) fn add(&mut self, row: Row) {
        let at = match row.outcome {
            "drop" => 0,
            "notify" => 1,
            _ => 2,
        };
        // Types are the senders': a page has room for so many.
        let kind = match self.kinds.len() < 1_000 || self.kinds.contains_key(&row.kind) {
            true => row.kind.clone(),
            false => "others".to_owned(),
        };
        self.kinds.entry(kind).or_default()[at] += 1;
        let power = (u64::BITS - row.fuel.leading_zeros()) as usize;
        self.fuel[power.min(BARS - 1)] += 1;
        if at == 2 && self.failed.len() < LISTED_MAX {
            self.failed.push(Row {
                kind: row.kind.clone(),
                id: row.id.clone(),
                to: row.to.clone(),
                why: row.why.clone(),
                ..row
            });
        }
        let place = self.hungriest.partition_point(|it| it.fuel >= row.fuel);
        if place < LISTED_MAX {
            self.hungriest.insert(place, row);
            self.hungriest.truncate(LISTED_MAX);
        }
    }

    /// The page.
    pub(super) fn page(&self, limits: &Limits, rule: &str, module: &str) -> String {
        let total = |at: usize| self.kinds.values().map(|counts| counts[at]).sum::<u64>();
        let (dropped, notified, failed) = (total(0), total(1), total(2));
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                    title { "Replay of " (rule) }
                    style { (STYLE) }
                }
                body {
                    h1 { (style::counted(dropped + notified + failed, "event")) }
                    p.soft { "Rule " (rule) ", module " (module) ", " (jiff::Timestamp::now().strftime("%F %T UTC").to_string()) }
                    p {
                        (dropped) " dropped, " span.good { (notified) " notified" } ", "
                        span.bad[failed > 0] { (failed) " failed" }
                    }
                    h2 { "Fuel of each event" }
                    (self.chart(limits.fuel))
                    h2 { "By type" }
                    table {
                        tr { th { "Type" } th.number { "dropped" } th.number { "notified" } th.number { "failed" } }
                        @for (kind, counts) in &self.kinds {
                            tr { td { (kind) } @for count in counts { td.number { (count) } } }
                        }
                    }
                    @if !self.failed.is_empty() {
                        h2 { "Failed" }
                        (listed(&self.failed))
                    }
                    h2 { "Events, most fuel first" }
                    (listed(&self.hungriest))
                }
            }
        };
        page.into_string()
    }

    /// Bars up to the limit: how many events burned between one power of two and the next.
    fn chart(&self, limit: u64) -> Markup {
        let most = self.fuel.iter().copied().max().unwrap_or(0).max(1);
        let first = self.fuel.iter().position(|it| *it > 0).unwrap_or(0);
        let last = self.fuel.iter().rposition(|it| *it > 0).unwrap_or(0);
        let bars = (first..=last).map(|at| {
            let high = (self.fuel[at] as f64 / most as f64 * 100.0).max(0.5);
            let x = (at - first) * 50;
            (at, x, high)
        });
        let wide = (last - first + 1) * 50;
        html! {
            svg viewBox={ "0 0 " (wide) " 130" } role="img" aria-label="How many events burned how much fuel" preserveAspectRatio="xMinYMid" {
                @for (at, x, high) in bars {
                    rect.good x=(x) y=(110.0 - high) width="46" height=(high) {}
                    text x=(x) y="122" { "to " (1_u64 << at) }
                    text x=(x) y=(106.0 - high) { (self.fuel[at]) }
                }
            }
            p.soft { "The limit is " (style::grouped(limit)) "." }
        }
    }
}

fn listed(rows: &[Row]) -> Markup {
    html! {
        table {
            tr { th { "Event" } th { "Outcome" } th { "To" } th { "Why" } th.number { "Fuel" } th.number { "µs" } }
            @for row in rows {
                tr {
                    td { (row.kind) br; span.soft { (row.id) } }
                    td { (row.outcome) }
                    td { (row.to) }
                    td { (row.why) }
                    td.number { (row.fuel) }
                    td.number { (row.took.as_micros()) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_escapes_and_keeps_what_burned_most() {
        let mut seen = Seen::default();
        for fuel in 0..500 {
            seen.add(Row {
                kind: "a<b>".to_owned(),
                id: fuel.to_string(),
                outcome: if fuel % 100 == 0 { "failed" } else { "drop" },
                to: "mail".to_owned(),
                why: "<script>alert(1)</script>".to_owned(),
                fuel,
                took: Duration::from_micros(3),
            });
        }
        let page = seen.page(&Limits::default(), "a.wasm", "00");
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        assert!(page.contains("500 events") && page.contains("5 failed"));
        assert_eq!(seen.hungriest.len(), LISTED_MAX);
        assert_eq!(
            (seen.hungriest[0].fuel, seen.hungriest[99].fuel),
            (499, 400)
        );
    }
}
