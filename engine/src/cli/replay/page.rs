//! A replay's report as one page that needs nothing else: for a mail, a ticket, a release.

use super::differ::{self, Difference};
use super::report::Report;
use super::seen::Sent;
use crate::cli::style;
use hooksieve::recording::Personal;
use maud::{DOCTYPE, Markup, html};
use std::collections::BTreeMap;
use std::time::Duration;

/// Events that are listed in each of the tables: those that burned most, that failed, that differ.
const LISTED_MAX: usize = 100;
/// Bars of the chart of fuel: each is twice as far as the one before.
const BARS: usize = 24;

const STYLE: &str = ":root{color-scheme:light dark;--ink:light-dark(#1c2430,#e6e9ee);--soft:light-dark(#566170,#a9b3c0);--line:light-dark(#d5dbe3,#39424e);--good:light-dark(#1a6b35,#7fd69b);--bad:light-dark(#a8231c,#ff9d94)}\
body{margin:0 auto;max-width:64rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;color:var(--ink)}\
table{width:100%;border-collapse:collapse;font-size:.92rem}th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}\
pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.6rem;border:1px solid var(--line);font-size:.85rem}iframe{box-sizing:border-box;width:100%;height:16rem;border:1px solid var(--line);background:#fff;resize:vertical}\
th,.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}.number{text-align:right}svg{width:100%;height:9rem}svg text{font-size:9px;fill:currentColor}rect.good{fill:var(--good)}";

/// An event as it is listed.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) kind: String,
    /// What it is known by: its id, or where it stands.
    pub(super) name: String,
    /// `drop`, `notify` or `failed`.
    pub(super) outcome: &'static str,
    /// The channels.
    pub(super) to: String,
    /// The decision's reason, or the failure.
    pub(super) why: String,
    pub(super) fuel: u64,
    pub(super) took: Duration,
}

/// What a page is made of, besides the report. Texts that look personal are masked in it.
#[derive(Default)]
pub(super) struct Seen {
    /// By type: how many were dropped, notified, failed.
    kinds: BTreeMap<String, [u64; 3]>,
    /// How many events burned up to so much, by powers of two.
    fuel: [u64; BARS],
    hungriest: Vec<Row>,
    failed: Vec<Row>,
    /// By event, what is other than what it was compared with.
    differ: Vec<(String, Vec<Difference>)>,
    /// By event, what would go out.
    sent: Vec<(String, Vec<Sent>)>,
}

impl Seen {
    /// Adds what became of an event, which is given as MessagePack.
    pub(super) fn add(&mut self, mut row: Row, event: &[u8]) {
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
        let failed = at == 2 && self.failed.len() < LISTED_MAX;
        let place = self.hungriest.partition_point(|it| it.fuel >= row.fuel);
        if failed || place < LISTED_MAX {
            Personal::of(event).hide(&mut row.why);
        }
        if failed {
            self.failed.push(row.clone());
        }
        if place < LISTED_MAX {
            self.hungriest.insert(place, row);
            self.hungriest.truncate(LISTED_MAX);
        }
    }

    /// Adds how an event differs.
    pub(super) fn differs(&mut self, which: String, found: &[Difference], event: &[u8]) {
        if self.differ.len() == LISTED_MAX {
            return;
        }
        let masks = Personal::of(event);
        let masked = found.iter().cloned().map(|mut it| {
            masks.hide_in(&mut it.before);
            masks.hide_in(&mut it.after);
            it
        });
        self.differ.push((which, masked.collect()));
    }

    /// Whether it can still be told what would go out for an event.
    pub(super) fn has_room(&self) -> bool {
        self.sent.len() < LISTED_MAX
    }

    /// Adds what would go out for an event.
    pub(super) fn sends(&mut self, which: String, sent: Vec<Sent>) {
        if !sent.is_empty() {
            self.sent.push((which, sent));
        }
    }

    /// The page.
    pub(super) fn page(&self, report: &Report, rule: &str, module: &str) -> String {
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
                    h1 { (style::counted(report.all(), "event")) }
                    p.soft { "Rule " (rule) ", module " (module) ", " (jiff::Timestamp::now().strftime("%F %T UTC").to_string()) }
                    p {
                        (report.dropped) " dropped, " span.good { (report.notified) " notified" } ", "
                        span.bad[report.failed > 0] { (report.failed) " failed" }
                        @if report.unasked > 0 { ", " (report.unasked) " of other types or sources than the rule wants" }
                    }
                    @if !report.channels.is_empty() {
                        p { "To " @for (n, (channel, count)) in report.channels.iter().enumerate() {
                            @if n > 0 { ", " } (channel) " " (count)
                        } }
                    }
                    (used(report))
                    h2 { "Fuel of each event" }
                    (self.chart(report.limits().fuel))
                    h2 { "By type" }
                    table {
                        tr { th { "Type" } th.number { "dropped" } th.number { "notified" } th.number { "failed" } }
                        @for (kind, counts) in &self.kinds {
                            tr { td { (kind) } @for count in counts { td.number { (count) } } }
                        }
                    }
                    @if !self.differ.is_empty() {
                        h2 { "What differs" }
                        (differ(&self.differ))
                    }
                    @if !self.failed.is_empty() {
                        h2 { "Failed" }
                        (listed(&self.failed))
                    }
                    @if !self.sent.is_empty() {
                        h2 { "What would go out" }
                        (sent(&self.sent))
                    }
                    h2 { "Events, most fuel first" }
                    (listed(&self.hungriest))
                    p.soft { "At most " (LISTED_MAX) " events stand in each list. Texts that look personal are masked." }
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
            svg viewBox={ "0 -6 " (wide) " 136" } role="img" aria-label="How many events burned how much fuel" preserveAspectRatio="xMinYMid" {
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

fn used(report: &Report) -> Markup {
    html! {
        table {
            tr { th { "Of an event" } th.number { "p50" } th.number { "p95" } th.number { "p99" } th.number { "most" } th.number { "limit" } th.number { "most, of the limit" } }
            @for used in report.used() {
                tr {
                    td { (used.what) }
                    @for shown in &used.shown { td.number { (shown) } }
                    td.number { (format!("{:.1} %", used.share)) }
                }
            }
        }
        @if let Some((left, which)) = report.headroom() {
            p { "Headroom: " (format!("{left:.1} %")) " of the fuel was left at least, on " (which) "." }
        }
        p { "Slowest: " @for (n, (took, which)) in report.slowest.iter().enumerate() {
            @if n > 0 { ", " } (style::grouped(took.as_micros() as u64)) " µs " (which)
        } }
    }
}

fn differ(events: &[(String, Vec<Difference>)]) -> Markup {
    html! {
        table {
            tr { th { "Event" } th { "Field" } th { "Before" } th { "After" } }
            @for (which, found) in events {
                @for (n, one) in found.iter().enumerate() {
                    tr {
                        td { @if n == 0 { (which) } }
                        td { (one.field) }
                        td.bad { (differ::shown(&one.before)) }
                        td.good { (differ::shown(&one.after)) }
                    }
                }
            }
        }
    }
}

fn sent(events: &[(String, Vec<Sent>)]) -> Markup {
    html! {
        @for (which, all) in events {
            h3 { (which) }
            @for sent in all {
                p { b { (sent.channel) } " (" (sent.kind) ")" }
                @match &sent.body {
                    Ok(body) => {
                        pre { (sent.text(body)) }
                        // It is a tenant's and a sender's text: nothing in it runs.
                        @if let Some(mail) = &body.html {
                            iframe sandbox="" title={ "The mail to " (sent.channel) } srcdoc=(mail) {}
                        }
                    }
                    Err(error) => p.bad { (error) },
                }
            }
        }
    }
}

fn listed(rows: &[Row]) -> Markup {
    html! {
        table {
            tr { th { "Event" } th { "Outcome" } th { "To" } th { "Why" } th.number { "Fuel" } th.number { "µs" } }
            @for row in rows {
                tr {
                    td { (row.kind) br; span.soft { (row.name) } }
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
    use hooksieve::sandbox::Limits;
    use std::sync::Arc;

    #[test]
    fn the_page_escapes_masks_and_keeps_what_burned_most() {
        let mut seen = Seen::default();
        let event = rmp_serde::to_vec_named(&serde_json::json!({ "email": "ann@acme.example" }));
        let event = event.unwrap();
        for fuel in 0..500 {
            let row = Row {
                kind: "a<b>".to_owned(),
                name: fuel.to_string(),
                outcome: if fuel % 100 == 0 { "failed" } else { "drop" },
                to: "mail".to_owned(),
                why: "<script>alert(1)</script> ann@acme.example".to_owned(),
                fuel,
                took: Duration::from_micros(3),
            };
            seen.add(row, &event);
        }
        let other = Difference {
            field: "decision.reason".to_owned(),
            before: "of ann@acme.example".into(),
            after: serde_json::Value::Null,
        };
        seen.differs("a<b> 7".to_owned(), &[other], &event);
        let report = Report::new(Arc::new(Limits::default()), false);
        let page = seen.page(&report, "a.wasm", "00");
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        assert!(!page.contains("ann@") && page.contains("of xxx@xxxx.xxxxxxx"));
        assert_eq!(seen.hungriest.len(), LISTED_MAX);
        assert_eq!(
            (seen.hungriest[0].fuel, seen.hungriest[99].fuel),
            (499, 400)
        );
    }
}
