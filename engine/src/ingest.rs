//! `POST /in/{tenant}/{source}`: verify, store, answer.
//!
//! The sender gets 202 when the event is durable, and not before; rules run after the answer. The
//! size cap and the time limit hold while the body is read, the number of requests at once is
//! bounded, and an unknown tenant and an unknown source get the same answer.

pub mod verify;

use crate::clock::now_ms;
use crate::config::Config;
use crate::housekeeping::Watermark;
use crate::id::{Hash, Name};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::notice;
use crate::pipeline::Pipeline;
use crate::problem::Problem;
use crate::registry::Registry;
use crate::share::Shares;
use crate::store::{self, EventLog, NewEvent};
use crate::telemetry::{Kind, Span};
use axum::body::{Body, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use verify::Rejected;

/// What the ingest handlers share.
pub struct Ingest {
    live: Arc<Live>,
    log: Arc<dyn EventLog>,
    pipeline: Arc<Pipeline>,
    watermark: Arc<Watermark>,
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
    /// Requests that are being received.
    requests: Arc<Shares>,
    body_bytes_max: usize,
    /// What a rule is handed at most.
    input_bytes: usize,
    request_timeout: Duration,
}

/// One tenant's part of the requests that are received at once: an eighth.
const REQUESTS_SHARE: usize = 8;

/// The answer to a request that was taken.
#[derive(Debug, Serialize)]
struct Accepted {
    /// The engine's id of the event.
    id: String,
    /// Whether the sender had delivered it before; then it is not processed again.
    duplicate: bool,
}

impl Ingest {
    pub fn new(
        live: Arc<Live>,
        log: Arc<dyn EventLog>,
        pipeline: Arc<Pipeline>,
        watermark: Arc<Watermark>,
        metrics: Arc<Metrics>,
        registry: Arc<Registry>,
        config: &Config,
    ) -> Self {
        let Config { server, limits, .. } = config;
        Self {
            registry,
            live,
            log,
            pipeline,
            watermark,
            metrics,
            requests: Shares::new(
                server.requests_max,
                server.requests_max.div_ceil(REQUESTS_SHARE),
            ),
            body_bytes_max: server.body_bytes_max,
            input_bytes: limits.input_bytes,
            request_timeout: Duration::from_millis(server.request_timeout_ms),
        }
    }

    pub fn router(self) -> Router {
        Router::new()
            .route("/in/{tenant}/{source}", post(take))
            .with_state(Arc::new(self))
    }
}

type Answer = Result<(StatusCode, Json<Accepted>), Problem>;

async fn take(
    State(ingest): State<Arc<Ingest>>,
    Path(names): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let taken = taken(&ingest, names, headers, body).await;
    if let Err(problem) = &taken {
        ingest.metrics.refused(problem.kind);
    }
    taken
}

async fn taken(
    ingest: &Ingest,
    (tenant, source): (String, String),
    headers: HeaderMap,
    body: Body,
) -> Answer {
    if let Some(why) = ingest.watermark.refuses() {
        return Err(full(why));
    }
    let began = Instant::now();
    let names = tenant.parse::<Name>().ok().zip(source.parse::<Name>().ok());
    let live = names
        .as_ref()
        .and_then(|(tenant, _)| ingest.live.get(tenant));
    let known = names.as_ref().zip(live.as_deref());
    let Some(((tenant, _), source, live)) = known.and_then(|(names, live)| {
        let source = live.sources.get(&names.1)?;
        Some((names, source, live))
    }) else {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "unknown-source",
            "Unknown source",
            "there is no such tenant and source; the path is /in/{tenant}/{source}, with the names in the tenant's file",
        ));
    };
    let (quota, bytes_max) = (&live.events, live.stored_bytes);
    if bytes_max > 0 && ingest.log.stored_bytes(tenant) >= bytes_max {
        return Err(no_room(bytes_max));
    }
    // Whoever knows one source leaves room for all others, however slowly he sends.
    let Some(_share) = ingest.requests.take(tenant) else {
        let detail = "too many requests are being received; send it again later";
        return Err(busy(detail));
    };
    // Before the body is read, which a flood would otherwise cost.
    let over = |wait_s| over_quota(quota.per_s(), wait_s);
    quota.ready(now_ms()).map_err(over)?;
    let limit = ("body_bytes_max", ingest.body_bytes_max);
    let body = read(&headers, body, limit, ingest.request_timeout).await?;
    let may_send = |given: &str| ingest.registry.may_send(given, tenant);
    let incoming = source.verify.read(&headers, &body, &may_send);
    let incoming = incoming.map_err(rejected)?;
    if notice::is_own(&incoming.kind) {
        let kind = &incoming.kind;
        return Err(rejected(Rejected::Body(format!(
            "the event type is {kind:?}, and types that begin with `hooksieve.` are the engine's own"
        ))));
    }
    let received_ms = now_ms();
    let kind = incoming.kind.clone();
    let event = NewEvent {
        tenant: tenant.clone(),
        source: source.name.clone(),
        kind: incoming.kind,
        subject: incoming.subject,
        time: time(received_ms),
        headers: incoming.headers,
        data: incoming.data,
        sender_id: incoming.sender_id,
        body_hash: Hash::of(&body),
        verified: incoming.verified.to_owned(),
        received_ms,
    };
    // No rule could be asked about it, so taking it would be a promise that is not kept.
    if let Some(bytes) = event.is_over(ingest.input_bytes) {
        return Err(too_large_for_rules(bytes, ingest.input_bytes));
    }
    quota.take(received_ms).map_err(over)?;
    let appended = ingest.log.append(event).await.map_err(not_stored)?;
    ingest.metrics.taken(tenant, appended.duplicate);
    let traces = &ingest.metrics.traces;
    if !appended.duplicate && traces.traces(appended.id) {
        let took = began.elapsed();
        let attributes = [
            ("hooksieve.tenant", tenant.as_str().into()),
            ("hooksieve.source", source.name.as_str().into()),
            ("hooksieve.event.type", kind.into()),
            ("http.request.body.size", body.len().into()),
        ];
        let span = Span {
            kind: Kind::Server,
            name: format!("receive {}", source.name),
            began_ms: now_ms() - took.as_millis() as i64,
            took,
            attributes: &attributes,
            failed: false,
        };
        traces.received(appended.id, &span, &headers);
    }
    if !appended.duplicate {
        ingest.pipeline.wake(tenant);
    }
    let accepted = Accepted {
        id: appended.id.to_string(),
        duplicate: appended.duplicate,
    };
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// The form in which rules see a time: RFC 3339 in UTC, whole seconds.
pub fn time(ms: i64) -> String {
    let moment = jiff::Timestamp::from_second(ms.div_euclid(1_000)).unwrap_or_default();
    moment.to_string()
}

/// The body of a request, within its size and time; the limit is named by its setting.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    (setting, bytes_max): (&str, usize),
    timeout: Duration,
) -> Result<Vec<u8>, Problem> {
    let too_large = || {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body-too-large",
            "Body too large",
            format!(
                "the body is larger than {bytes_max} bytes, the limit of this server ({setting})"
            ),
        )
    };
    let announced = headers
        .get("content-length")
        .and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(timeout, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes.into()),
        Ok(Err(error)) => {
            // axum wraps the cause, which is either the cap or the sender's connection.
            let capped = std::error::Error::source(&error)
                .is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
            if capped {
                return Err(too_large());
            }
            let detail = "the body ended before it was complete; send it again";
            Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "body-incomplete",
                "Incomplete body",
                detail,
            ))
        }
        Err(_) => {
            let detail = format!(
                "the body did not arrive within {} ms; send it again",
                timeout.as_millis()
            );
            Err(Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "body-timeout",
                "Request timeout",
                detail,
            ))
        }
    }
}

fn rejected(rejected: Rejected) -> Problem {
    let detail = rejected.to_string();
    match rejected {
        Rejected::Unsigned { .. } | Rejected::BadSignature { .. } | Rejected::BadToken => {
            let detail = format!("{detail}; check that both sides hold the same secret");
            Problem::new(
                StatusCode::UNAUTHORIZED,
                "not-verified",
                "Sender not verified",
                detail,
            )
        }
        Rejected::MediaType { .. } | Rejected::Encoding { .. } => Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            "Unsupported media type",
            detail,
        ),
        Rejected::Body(_) => Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-body",
            "Invalid body",
            detail,
        ),
    }
}

fn too_large_for_rules(bytes: usize, limit: usize) -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "event-too-large",
        "Event too large",
        format!(
            "the event is {bytes} bytes in the form that rules get, and the limit of this server is {limit} (input_bytes of [limits])"
        ),
    )
}

fn not_stored(error: store::Error) -> Problem {
    match error {
        store::Error::Busy(_) => busy("the store is busy; send it again later"),
        error => {
            tracing::error!(%error, "an event could not be stored");
            busy("the event could not be stored, and was not taken; send it again later")
        }
    }
}

fn over_quota(per_s: u32, wait_s: u32) -> Problem {
    Problem::new(
        StatusCode::TOO_MANY_REQUESTS,
        "events-quota",
        "Too many events",
        format!(
            "this tenant may take in {per_s} events/s (events_per_s of [quotas]); send it again later"
        ),
    )
    .retry_after(wait_s)
}

fn no_room(bytes_max: u64) -> Problem {
    let detail = format!(
        "what this tenant stores takes {bytes_max} bytes, which is what it may (stored_bytes of [quotas]), and nothing can be forgotten yet: they wait to be decided or delivered, are held or dead letters; send it again later"
    );
    let status = StatusCode::TOO_MANY_REQUESTS;
    Problem::new(status, "stored-bytes-quota", "No room", detail).retry_after(10)
}

/// Nothing is taken until there is room again.
pub(crate) fn full(why: &str) -> Problem {
    let detail = format!("{why}, so no event is taken; send it again later");
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "store-full",
        "No room",
        detail,
    )
    .retry_after(60)
}

fn busy(detail: &str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "Not now", detail).retry_after(5)
}
