//! The calls of operators and tenants, and the two probes.
//!
//! `/v1` stands behind a token, compared in constant time: the operator's, or one that was made here. A
//! tenant's token sees its own tenant alone; what is another's is answered like what is not there.
//! `openapi.rs` describes every call, out of the same list that routes it; `console.rs` is a page that makes
//! them. `/healthz` says that the process
//! answers, `/readyz` that it can store and decide.

mod backup;
mod body;
mod channels;
mod console;
mod dead;
mod deliveries;
mod events;
mod held;
pub(crate) mod kinds;
mod modules;
mod once;
mod openapi;
mod recording;
mod rules;
mod settings;
mod tokens;
mod trial;
mod usage;
mod view;

pub use channels::{EnabledView, TestView};
pub use dead::Purged;
pub use deliveries::AcknowledgementView;
pub use events::{FEEDS_MAX, FEEDS_OF_TENANT_MAX};
pub use held::{HeldStory, HeldView, ReleaseBody, Released};
pub use modules::{ModuleDeleted, ModuleView};
pub use rules::{
    AuditView, CanaryView, NewVersionBody, OnError, QuarantineView, Resumed, RoleWord, RuleDeleted,
    RuleView, ShadowView, StageBody, VersionBody, VersionView,
};
pub use settings::{Removed, SettingView, SettingsBody, TenantSet};
pub use tokens::{NewTokenBody, Revoked, TenantView, TokenView, WhoView};
pub use trial::{TrialAction, TrialBody, TrialInput, TrialView};
pub use usage::{MinuteView, RateView, UsageView, UsedView};
pub use view::{
    AttemptView, DecisionView, DeliveryView, EventView, OutcomeWord, StateWord, StoryView,
};

use crate::channel::Outgoing;
use crate::clock::now_ms;
use crate::dispatch::Switches;
use crate::housekeeping::{Watermark, free_bytes};
use crate::id::Name;
use crate::ingest::full;
use crate::ingest::verify::json::{bearer, same};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, Threads};
use crate::problem::Problem;
use crate::quota::CallRates;
use crate::registry::{self, Caller, Registry, Scope};
use crate::secret::Secret;
use crate::share::Shares;
use crate::store::{self, Store};
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

/// How many calls are under way at once, and of one tenant.
pub const CALLS_MAX: usize = 256;
pub const CALLS_OF_TENANT_MAX: usize = 16;

/// What the calls need.
pub struct Admin {
    pub store: Arc<dyn Store>,
    pub pipeline: Arc<Pipeline>,
    pub live: Arc<Live>,
    pub outgoing: Arc<Outgoing>,
    pub switches: Arc<Switches>,
    pub watermark: Arc<Watermark>,
    pub registry: Arc<Registry>,
    pub metrics: Arc<Metrics>,
    /// The folder whose disk the store is on.
    pub data: PathBuf,
    pub token: Secret,
    pub module_bytes_max: usize,
    pub request_timeout: Duration,
    /// Whether people reach it over HTTPS.
    pub behind_https: bool,
    /// The host, and the port where it is not the usual one, of `public_url`; empty where there is none.
    pub public_host: String,
    /// Feeds that are followed now, and calls that are under way.
    pub feeds: Arc<Shares>,
    pub calls: Arc<Shares>,
    /// How often each of the tenants' tokens may call.
    pub(crate) rates: CallRates,
    /// Ends what would go on for ever.
    pub cancel: CancellationToken,
}

type Shared = State<Arc<Admin>>;
type Answer<T> = Result<Json<T>, Problem>;

/// A part of a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// What the next page is asked for with; absent at the end. A page may have few items, or none, and
    /// not be the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Admin {
    pub fn router(self) -> Router {
        let admin = Arc::new(self);
        let calls = OpenApiRouter::new()
            .merge(tokens::router())
            .merge(settings::router())
            .merge(usage::router())
            .merge(modules::router())
            .merge(rules::router())
            .merge(trial::router())
            .merge(events::router())
            .merge(deliveries::router())
            .merge(held::router())
            .merge(dead::router())
            .merge(channels::router())
            .merge(backup::router())
            .merge(recording::router());
        let (calls, described) = calls.split_for_parts();
        calls
            .route("/metrics", get(metrics))
            .route_layer(middleware::from_fn_with_state(
                admin.clone(),
                once::once_by_key,
            ))
            .route_layer(middleware::from_fn_with_state(admin.clone(), authorised))
            .merge(openapi::router(described, admin.registry.limits_max()))
            .merge(console::router())
            .route("/readyz", get(ready))
            .route("/healthz", get(async || "ok"))
            .with_state(admin)
    }

    /// Whose token this is, if it is good.
    fn caller(&self, token: &str) -> Option<Caller> {
        if same(token, self.token.expose()) {
            return Some(Caller::root());
        }
        self.registry.caller(token)
    }
}

async fn authorised(
    State(admin): Shared,
    mut request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let headers = request.headers();
    let given = match bearer(headers) {
        Some(given) => Some(given.to_owned()),
        None => {
            let public_host = &admin.public_host;
            console::token(request.method(), headers, admin.behind_https, public_host)
        }
    };
    let caller = given.and_then(|given| admin.caller(&given));
    let Some(caller) = caller else {
        return Err(Problem::new(
            StatusCode::UNAUTHORIZED,
            "not-authorised",
            "Not authorised",
            "send a token that is good as `Authorization: Bearer TOKEN`",
        ));
    };
    // Whoever may only send events has one call here: to see whose token it is.
    if request.uri().path() != "/v1/whoami" {
        caller.has(Scope::ReadOnly)?;
    }
    // A tenant that asks for much at once leaves room for the others.
    let share = match &caller.tenant {
        None => None,
        Some(tenant) => Some(admin.calls.take(tenant).ok_or_else(too_many)?),
    };
    if caller.tenant.is_some() {
        let taken = admin.rates.take(caller.token_id(), now_ms());
        taken.map_err(|wait_s| too_fast(admin.rates.per_s(), wait_s))?;
    }
    request.extensions_mut().insert(caller);
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    let call = async move {
        let answered = next.run(request).await;
        // It is taken until the answer is read: who does not read takes no more of it.
        answered.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _held = &share;
                frame
            }))
        })
    };
    // A change is made to its end though the client goes away: one that is stored and not yet in effect
    // would stay so until the next start.
    let mut response = if changes {
        tokio::spawn(call).await.map_err(|_| {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            let detail = "the engine panicked over this call; its log says where";
            Problem::new(status, "panicked", "The engine panicked", detail)
        })?
    } else {
        call.await
    };
    // Whatever it is, it is for this caller alone.
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn too_many() -> Problem {
    let detail = format!("{CALLS_OF_TENANT_MAX} calls of the tenant are under way; send it again");
    let status = StatusCode::TOO_MANY_REQUESTS;
    Problem::new(status, "too-many-calls", "Too many calls", detail).retry_after(1)
}

fn too_fast(per_s: u32, wait_s: u32) -> Problem {
    let detail = format!(
        "this token may make {per_s} calls/s (calls_per_s of [server]); send it again later"
    );
    let status = StatusCode::TOO_MANY_REQUESTS;
    Problem::new(status, "calls-quota", "Too many calls", detail).retry_after(wait_s)
}

impl Caller {
    /// Whether it may do what needs this scope with this tenant's things. Another tenant's are not
    /// there.
    fn may(&self, scope: Scope, tenant: &Name) -> Result<(), Problem> {
        if self.tenant.as_ref().is_some_and(|own| own != tenant) {
            return Err(not_found("tenant", tenant.as_str()));
        }
        self.has(scope)
    }

    fn has(&self, scope: Scope) -> Result<(), Problem> {
        if self.scope >= scope {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "not-allowed",
            "Not allowed",
            format!(
                "this call needs the scope {scope}, and the token has {}",
                self.scope
            ),
        ))
    }

    /// The tenant that a list is of: its own, or whichever an operator asks for.
    fn listed(&self, asked: Option<Name>) -> Result<Option<Name>, Problem> {
        match (&self.tenant, asked) {
            (Some(own), Some(asked)) if *own != asked => Err(not_found("tenant", asked.as_str())),
            (Some(own), _) => Ok(Some(own.clone())),
            (None, asked) => Ok(asked),
        }
    }

    /// Whether a thing of this tenant is there for it; `what` and `id` are what was asked for.
    fn sees(&self, tenant: &Name, what: &str, id: &str) -> Result<(), Problem> {
        match &self.tenant {
            Some(own) if own != tenant => Err(not_found(what, id)),
            _ => Ok(()),
        }
    }
}

type Who = Extension<Caller>;

pub(crate) async fn unknown() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "unknown-path",
        "Unknown path",
        "there is nothing here; events go to /in/{tenant}/{source}, calls to /v1, which /v1 describes",
    )
}

pub(crate) async fn wrong_method() -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong-method",
        "Wrong method",
        "this path is there, and takes another method; see its Allow header; events are sent by POST",
    )
}

impl From<registry::Error> for Problem {
    fn from(error: registry::Error) -> Self {
        use registry::Error;
        let detail = error.to_string();
        let (status, kind, title) = match error {
            Error::Store(error) => return store_problem(error),
            Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not-found", "Not found"),
            Error::Invalid(_) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid", "Invalid"),
            Error::Refused(_) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "module-refused",
                "Module refused",
            ),
            Error::Conflict(_) => (StatusCode::CONFLICT, "conflict", "Conflict"),
            Error::Revision { .. } => (
                StatusCode::PRECONDITION_FAILED,
                "changed-meanwhile",
                "Changed meanwhile",
            ),
            Error::Quota { .. } => (StatusCode::FORBIDDEN, "quota", "Limit reached"),
            Error::Fuel(wait_s) => return held::no_fuel(&detail, wait_s),
            Error::CompileTime(wait_s) => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let problem = Problem::new(status, "compile-quota", "Too much to compile", detail);
                return problem.retry_after(wait_s);
            }
            Error::Disk {
                free_bytes,
                least_bytes,
            } => {
                tracing::error!(
                    free_bytes,
                    least_bytes,
                    "no module is compiled: the disk is nearly full; free space, or see disk_free_bytes_min of [store] and code_bytes_max of [compile]"
                );
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return Problem::new(status, "store-full", "No room", detail).retry_after(60);
            }
            Error::Busy(_) => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                return Problem::new(status, "busy", "Not now", detail).retry_after(2);
            }
        };
        Problem::new(status, kind, title, detail)
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejected: QueryRejection) -> Self {
        let detail = rejected.body_text();
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-query",
            "Invalid query",
            detail,
        )
    }
}

/// For Prometheus: no tenant's business.
async fn metrics(
    State(admin): Shared,
    Extension(caller): Who,
) -> Result<impl IntoResponse, Problem> {
    caller.has(Scope::Operator)?;
    let usage = admin.store.usage().await.map_err(store_problem)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    admin.metrics.threads(&admin.pipeline.threads());
    let text = admin.metrics.text(&usage, free_bytes(&admin.data));
    Ok(([(header::CONTENT_TYPE, kind)], text))
}

async fn ready(State(admin): Shared) -> Result<String, Problem> {
    // A balancer is to send nothing more while what is under way is finished.
    if admin.cancel.is_cancelled() {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Err(Problem::new(
            status,
            "stopping",
            "Stopping",
            "the engine is stopping",
        ));
    }
    admin.store.ready().await.map_err(store_problem)?;
    if let Some(why) = admin.watermark.refuses() {
        return Err(full(why));
    }
    decides(&admin.pipeline.threads())
}

/// Whether there is somebody to decide what comes in, and how many threads do not come back from a rule.
/// Whose rule it is stands in the log and not here, where anybody may ask.
fn decides(threads: &Threads) -> Result<String, Problem> {
    let lost = match threads.lost.len() {
        0 if threads.decides => return Ok("ready".to_owned()),
        0 => "the system gives no threads that run rules".to_owned(),
        1 => "1 decide thread does not come back; the log says from which rule".to_owned(),
        count => {
            format!("{count} decide threads do not come back; the log says from which rules")
        }
    };
    if threads.decides {
        return Ok(format!("ready; {lost}"));
    }
    Err(Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "nothing-decides",
        "Nothing decides",
        format!("no thread is left to run rules: {lost}; restart the engine"),
    ))
}

/// How many a page has: as many as were asked for, or as it may have.
fn page_limit(asked: Option<usize>, most: usize) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(most);
    if (1..=most).contains(&limit) {
        return Ok(limit);
    }
    Err(Problem::new(
        StatusCode::BAD_REQUEST,
        "invalid-query",
        "Invalid query",
        format!("`limit` may be 1 to {most}"),
    ))
}

fn parse<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Problem> {
    text.parse().map_err(|_| {
        let text: String = text.chars().take(80).collect();
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-id",
            "Invalid id",
            format!("{text:?} is not the id or name of {what}"),
        )
    })
}

fn not_found(what: &str, id: &str) -> Problem {
    let detail = format!("there is no {what} {id}");
    Problem::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
}

fn store_problem(error: store::Error) -> Problem {
    tracing::error!(%error, "a call failed");
    let detail = error.to_string();
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "store",
        "The store failed",
        detail,
    )
    .retry_after(5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::LostThread;

    #[test]
    fn who_asks_whether_it_is_ready_learns_of_threads_that_do_not_come_back() {
        let lost = |rule: &str| LostThread {
            tenant: "acme".parse().unwrap(),
            rule: rule.parse().unwrap(),
            since_ms: 0,
        };
        let with = |lost: Vec<LostThread>, decides| Threads {
            count: 2,
            lost_ever: lost.len() as u64,
            lost,
            decides,
        };
        assert_eq!(decides(&with(Vec::new(), true)).unwrap(), "ready");
        assert_eq!(
            decides(&with(vec![lost("one")], true)).unwrap(),
            "ready; 1 decide thread does not come back; the log says from which rule"
        );
        let many = vec![lost("one"); 9];
        let told = decides(&with(many.clone(), true)).unwrap();
        assert!(told.contains("9 decide threads"), "{told}");
        assert!(!told.contains("acme") && !told.contains("one of"), "{told}");
        let answer = decides(&with(many, false)).unwrap_err().into_response();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        let none = decides(&with(Vec::new(), false)).unwrap_err();
        assert_eq!(none.into_response().status(), 503);
    }
}
