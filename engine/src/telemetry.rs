//! Traces and logs for whoever collects them: OTLP over HTTP, as JSON (OpenTelemetry Protocol 1.x). Nothing
//! of it where no collector is named.
//!
//! One event is one trace. The trace's id is the event's, without its hyphens, so that nothing is stored
//! for it and each can be found by the other:
//!
//! ```text
//! receive {source}           from the request until the event is durable; linked to the sender's traceparent
//!   decide {rule}            one for each rule that was asked
//!   deliver {channel}        one for each attempt
//! ```
//!
//! What is told are names, numbers and words for outcomes: nothing of an event's content, no address, no
//! error's text. What the collector does not take in time is dropped and counted; the engine waits for
//! nothing.

use crate::clock::now_ms;
use crate::config;
use crate::id::EventId;
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Spans, and lines of the log, that wait for the collector.
const WAITING_MAX: usize = 8_192;
/// What is sent at once, and how long the first of it waits for others.
const BATCH_MAX: usize = 512;
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// How long the collector may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest text that a line of the log tells.
const TEXT_CHARS_MAX: usize = 1_000;
/// What the exporter itself says is not told by it.
const OWN: &str = "hooksieve::telemetry";

/// Where the engine's parts tell what they did.
#[derive(Debug, Default)]
pub struct Traces {
    to: Option<Sender<Value>>,
    percent: u64,
    dropped: Arc<AtomicU64>,
}

/// What a span was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// Something that was done with an event.
pub(crate) struct Span<'a> {
    pub kind: Kind,
    pub name: String,
    pub began_ms: i64,
    pub took: Duration,
    pub attributes: &'a [(&'static str, Value)],
    pub failed: bool,
}

impl Traces {
    /// Whether an event is traced: all of it or nothing.
    pub(crate) fn traces(&self, event: EventId) -> bool {
        // The low bits are drawn.
        self.to.is_some() && event.0.as_u128() as u64 % 100 < self.percent
    }

    /// Tells that an event came in; `headers` may name the sender's own span.
    pub(crate) fn received(&self, event: EventId, span: &Span<'_>, headers: &HeaderMap) {
        if !self.traces(event) {
            return;
        }
        let mut told = told(event, root(event), span);
        if let Some((trace, sender)) = traceparent(headers) {
            told.insert(
                "links".to_owned(),
                json!([{ "traceId": trace, "spanId": sender }]),
            );
        }
        self.send(told);
    }

    /// Tells what was done with an event after it had come in.
    pub(crate) fn did(&self, event: EventId, span: &Span<'_>) {
        if !self.traces(event) {
            return;
        }
        let id = format!("{:016x}", rand::random::<u64>().max(1));
        let mut told = told(event, id, span);
        told.insert("parentSpanId".to_owned(), root(event).into());
        self.send(told);
    }

    fn send(&self, told: Map<String, Value>) {
        if let Some(to) = &self.to
            && to.try_send(told.into()).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many spans the collector did not take.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The id of the span that an event begins with: the drawn bits of its own.
fn root(event: EventId) -> String {
    format!("{:016x}", event.0.as_u128() as u64)
}

fn told(event: EventId, id: String, span: &Span<'_>) -> Map<String, Value> {
    let began_ns = i128::from(span.began_ms) * 1_000_000;
    let ended_ns = began_ns + span.took.as_nanos() as i128;
    let mut told = json!({
        "traceId": event.0.simple().to_string(),
        "spanId": id,
        "name": span.name,
        "kind": span.kind as u8,
        "startTimeUnixNano": began_ns.to_string(),
        "endTimeUnixNano": ended_ns.to_string(),
        "attributes": attributes(span.attributes.iter().map(|(key, value)| (*key, value.clone()))),
    });
    if span.failed {
        told["status"] = json!({ "code": 2 });
    }
    match told {
        Value::Object(told) => told,
        _ => Map::new(),
    }
}

/// Attributes as OTLP has them; what is null is left out.
fn attributes<'a>(all: impl Iterator<Item = (&'a str, Value)>) -> Value {
    let one = |(key, value): (&str, Value)| {
        let value = match value {
            Value::Null => return None,
            Value::Bool(said) => json!({ "boolValue": said }),
            Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
            Value::Number(number) => json!({ "intValue": number.to_string() }),
            Value::String(text) => json!({ "stringValue": text }),
            other => json!({ "stringValue": other.to_string() }),
        };
        Some(json!({ "key": key, "value": value }))
    };
    all.filter_map(one).collect()
}

/// The trace and the span that a sender names (W3C Trace Context, version 00).
fn traceparent(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length: usize| {
        let digits = text
            .bytes()
            .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        digits && text.len() == length && text.bytes().any(|it| it != b'0')
    };
    let known = version.len() == 2 && version != "ff";
    (known && hex(trace, 32) && hex(span, 16)).then(|| (trace.to_owned(), span.to_owned()))
}

/// A layer of the log that tells the collector, too.
pub struct LogLayer {
    to: Sender<Value>,
}

/// What [`LogLayer`] told, on its way to the collector.
pub struct Logs(Receiver<Value>);

/// The layer, where a collector is named, and what has to be given to the engine with it.
pub fn logs(config: &config::Telemetry) -> Option<(LogLayer, Logs)> {
    if config.otlp_endpoint.is_empty() {
        return None;
    }
    let (to, from) = channel(WAITING_MAX);
    Some((LogLayer { to }, Logs(from)))
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        // Only what is our own: a library may tell what it was given.
        if !metadata.target().starts_with("hooksieve") || metadata.target() == OWN {
            return;
        }
        let mut told = Told::default();
        event.record(&mut told);
        let (number, word) = match *metadata.level() {
            Level::TRACE => (1, "TRACE"),
            Level::DEBUG => (5, "DEBUG"),
            Level::INFO => (9, "INFO"),
            Level::WARN => (13, "WARN"),
            Level::ERROR => (17, "ERROR"),
        };
        let named = told
            .event
            .as_deref()
            .and_then(|it| it.parse::<EventId>().ok());
        let mut line = json!({
            "timeUnixNano": (i128::from(now_ms()) * 1_000_000).to_string(),
            "severityNumber": number,
            "severityText": word,
            "body": { "stringValue": told.message },
            "attributes": attributes(
                told.fields.iter().map(|(key, value)| (*key, value.clone()))
                    .chain([("code.namespace", metadata.target().into())]),
            ),
        });
        if let Some(event) = named {
            line["traceId"] = event.0.simple().to_string().into();
            line["spanId"] = root(event).into();
        }
        // A log that waits for its reader would stop the engine.
        let _ = self.to.try_send(line);
    }
}

/// The fields of a line of the log.
#[derive(Default)]
struct Told {
    message: String,
    event: Option<String>,
    fields: Vec<(&'static str, Value)>,
}

impl Told {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => {
                if name == "event" {
                    self.event = value.as_str().map(str::to_owned);
                }
                self.fields.push((name, value));
            }
        }
    }
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text: String = format!("{value:?}").chars().take(TEXT_CHARS_MAX).collect();
        self.add(field, text.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text: String = value.chars().take(TEXT_CHARS_MAX).collect();
        self.add(field, text.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }
}

/// What brings spans and lines of the log to the collector.
pub(crate) struct Exporter {
    client: reqwest::Client,
    endpoint: String,
    spans: Receiver<Value>,
    dropped: Arc<AtomicU64>,
}

/// Where the engine tells what it does, and what brings that to the collector, where one is named.
///
/// # Errors
/// When no HTTP client can be made.
pub(crate) fn start(config: &config::Telemetry) -> Result<(Traces, Option<Exporter>), String> {
    if config.otlp_endpoint.is_empty() {
        return Ok((Traces::default(), None));
    }
    // Fails only where a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build();
    let client = client.map_err(|error| error.to_string())?;
    let (to, spans) = channel(WAITING_MAX);
    let dropped = Arc::new(AtomicU64::new(0));
    let traces = Traces {
        to: Some(to),
        percent: config.traces_percent,
        dropped: dropped.clone(),
    };
    let exporter = Exporter {
        client,
        endpoint: config.otlp_endpoint.trim_end_matches('/').to_owned(),
        spans,
        dropped,
    };
    Ok((traces, Some(exporter)))
}

impl Exporter {
    /// Runs until cancelled, and then until what waits is sent.
    pub(crate) async fn run(self, logs: Option<Logs>, cancel: CancellationToken) {
        let Self {
            client,
            endpoint,
            mut spans,
            dropped,
        } = self;
        let to = |path: &str| format!("{endpoint}/v1/{path}");
        let spans = bring(
            &client,
            to("traces"),
            &mut spans,
            &cancel,
            Some(&dropped),
            |batch| {
                json!({ "resourceSpans": [{
                "resource": resource(),
                "scopeSpans": [{ "scope": scope(), "spans": batch }],
            }] })
            },
        );
        let logs = async {
            if let Some(Logs(mut lines)) = logs {
                bring(&client, to("logs"), &mut lines, &cancel, None, |batch| {
                    json!({ "resourceLogs": [{
                        "resource": resource(),
                        "scopeLogs": [{ "scope": scope(), "logRecords": batch }],
                    }] })
                })
                .await;
            }
        };
        tokio::join!(spans, logs);
    }
}

fn resource() -> Value {
    let name = [
        ("service.name", Value::from("hooksieve")),
        ("service.version", env!("CARGO_PKG_VERSION").into()),
        ("process.pid", std::process::id().into()),
    ];
    json!({ "attributes": attributes(name.into_iter()) })
}

fn scope() -> Value {
    json!({ "name": "hooksieve", "version": env!("CARGO_PKG_VERSION") })
}

/// Sends what comes, in batches.
async fn bring(
    client: &reqwest::Client,
    url: String,
    from: &mut Receiver<Value>,
    cancel: &CancellationToken,
    dropped: Option<&AtomicU64>,
    whole: impl Fn(Vec<Value>) -> Value,
) {
    let mut said: Option<Instant> = None;
    let mut ends = false;
    while !ends {
        let mut batch = Vec::new();
        tokio::select! {
            count = from.recv_many(&mut batch, BATCH_MAX) => ends = count == 0,
            () = cancel.cancelled() => ends = true,
        }
        let full = tokio::time::sleep(BATCH_EVERY);
        tokio::pin!(full);
        while !ends && batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            tokio::select! {
                count = from.recv_many(&mut batch, room) => if count == 0 { break },
                () = &mut full => break,
                () = cancel.cancelled() => ends = true,
            }
        }
        loop {
            while ends && batch.len() < BATCH_MAX {
                match from.try_recv() {
                    Ok(told) => batch.push(told),
                    Err(_) => break,
                }
            }
            if batch.is_empty() {
                break;
            }
            let count = batch.len();
            let sent = client.post(&url).json(&whole(std::mem::take(&mut batch)));
            let answered = sent.send().await.and_then(|it| it.error_for_status());
            if let Err(error) = answered {
                if let Some(dropped) = dropped {
                    dropped.fetch_add(count as u64, Ordering::Relaxed);
                }
                // Once a minute: a collector that is away is away for all.
                if said.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
                    said = Some(Instant::now());
                    let error = error.without_url();
                    tracing::warn!(target: OWN, %error, count, "the collector of traces and logs does not take them; they are dropped");
                }
                if ends {
                    return;
                }
            }
            if !ends {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_s_span_is_taken_where_it_is_one() {
        let read = |text: &'static str| {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static("traceparent"),
                axum::http::HeaderValue::from_static(text),
            )]);
            traceparent(&headers).map(|(trace, span)| format!("{trace} {span}"))
        };
        assert_eq!(
            read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").as_deref(),
            Some("0af7651916cd43dd8448eb211c80319c b7ad6b7169203331")
        );
        for wrong in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_share_of_the_events_is_traced_as_a_whole() {
        let (to, mut from) = channel(10);
        let traces = Traces {
            to: Some(to),
            percent: 30,
            dropped: Arc::default(),
        };
        let ids: Vec<_> = (0..1_000_u32)
            .map(|n| EventId::from_bytes(&n.to_be_bytes()))
            .collect();
        let traced = ids.iter().filter(|it| traces.traces(**it)).count();
        assert!((200..400).contains(&traced), "{traced}");
        let span = Span {
            kind: Kind::Internal,
            name: "decide x".to_owned(),
            began_ms: 5,
            took: Duration::from_micros(7),
            attributes: &[("a", 1.into()), ("b", Value::Null)],
            failed: true,
        };
        for id in &ids {
            traces.did(*id, &span);
        }
        assert_eq!(
            traces.dropped() as usize,
            traced - 10,
            "the engine waits for nothing"
        );
        let first = from.try_recv().unwrap();
        assert_eq!(first["endTimeUnixNano"], "5007000");
        assert_eq!(
            first["attributes"],
            json!([{ "key": "a", "value": { "intValue": "1" } }])
        );
        assert_eq!(first["status"]["code"], 2);
    }
}
