//! Calls about events and deliveries as lists, and about one event.

use super::view::{
    DeliveryView, OutcomeWord, StateWord, StoryView, delivery_view, outcome_word, story_view,
};
use super::{Admin, Answer, Page, Shared, Who, not_found, page_limit, parse, store_problem};
use crate::id::{EventId, Name};
use crate::problem::Problem;
use crate::registry::Scope;
use crate::store::{Seek, Story};
use crate::tenant::Pattern;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use futures_util::stream::{self, StreamExt as _};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(event))
        .routes(routes!(events))
        .routes(routes!(deliveries))
        .routes(routes!(feed))
}

/// How many items a page has, unless fewer are asked for.
const PAGE_MAX: usize = 100;
/// How many events one page looks at, where few of them are what is asked for.
const LOOKED_AT_MAX: usize = 1_000;
/// How many are read at once, with their bodies.
const READ_MAX: usize = 25;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventQuery {
    /// Also the event's headers and data.
    #[serde(default)]
    #[param(required = false)]
    data: bool,
}

/// What became of an event
///
/// Every decision with its reason, and every delivery with its attempts.
#[utoipa::path(
    get, path = "/v1/events/{event}", tag = "events",
    params(EventQuery),
    responses((status = 200, body = StoryView)),
    security(("token" = ["read-only"])),
)]
async fn event(
    State(admin): Shared,
    Extension(caller): Who,
    Path(id): Path<String>,
    query: Result<Query<EventQuery>, QueryRejection>,
) -> Answer<StoryView> {
    let Query(query) = query?;
    let id = parse::<EventId>(&id, "event")?;
    let story = admin.store.story(id).await.map_err(store_problem)?;
    let story = story.ok_or_else(|| not_found("event", &id.to_string()))?;
    caller.sees(&story.event.tenant, "event", &id.to_string())?;
    Ok(Json(story_view(&story, query.data)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Only of this type, or of all that a pattern such as `issues` or `issues.*` means.
    #[param(value_type = Option<Pattern>)]
    r#type: Option<String>,
    #[param(value_type = Option<Name>)]
    source: Option<String>,
    /// Only those that a rule made this of.
    outcome: Option<OutcomeWord>,
    /// Only those that this rule was asked about.
    #[param(value_type = Option<Name>)]
    rule: Option<String>,
    /// What an earlier page gave as `next`.
    #[param(pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    after: Option<String>,
    /// The oldest first, from the event after this one, and only what is decided: how a program
    /// follows what comes in. Where `after` is given too, that goes on with it.
    #[param(pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    since: Option<String>,
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// A tenant's events, the newest first
///
/// A page looks at 1,000 events at most, so it may have few items, or none, and not be the last.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/events", tag = "events",
    params(EventsQuery),
    responses((status = 200, body = Page<StoryView>)),
    security(("token" = ["read-only"])),
)]
async fn events(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer<Page<StoryView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let Query(query) = query?;
    let filter = Filter::new(query.r#type, query.source, query.outcome, query.rule)?;
    let (seek, follows) = match (&query.after, &query.since) {
        (Some(after), Some(since)) => {
            let (after, since) = (cursor(after, "after")?, cursor(since, "since")?);
            (Seek::After(after.max(since)), true)
        }
        (None, Some(since)) => (Seek::After(cursor(since, "since")?), true),
        (Some(after), None) => (Seek::Before(Some(cursor(after, "after")?)), false),
        (None, None) => (Seek::Before(None), false),
    };
    let limit = page_limit(query.limit, PAGE_MAX)?;
    let page = looked_at(&admin, &tenant, (seek, follows), limit, |story, items| {
        if filter.fits(&story) {
            items.push(story_view(&story, false));
        }
    });
    Ok(Json(page.await?))
}

/// Which events are wanted.
struct Filter {
    kind: Option<Pattern>,
    source: Option<Name>,
    outcome: Option<OutcomeWord>,
    rule: Option<Name>,
}

impl Filter {
    fn new(
        kind: Option<String>,
        source: Option<String>,
        outcome: Option<OutcomeWord>,
        rule: Option<String>,
    ) -> Result<Self, Problem> {
        let kind = kind
            .map(|text| Pattern::new(&text).map_err(|error| invalid(format!("`type`: {error}"))));
        Ok(Self {
            kind: kind.transpose()?,
            source: named(source.as_deref(), "source")?,
            outcome,
            rule: named(rule.as_deref(), "rule")?,
        })
    }

    fn fits(&self, story: &Story) -> bool {
        let event = &story.event;
        let (source, rule) = (self.source.as_ref(), self.rule.as_ref());
        self.kind.as_ref().is_none_or(|it| it.matches(&event.kind))
            && source.is_none_or(|it| *it == event.source)
            && rule.is_none_or(|it| story.decisions.iter().any(|d| d.rule == *it))
            && self.outcome.is_none_or(|it| {
                let mut outcomes = story.decisions.iter().map(|d| outcome_word(&d.outcome));
                outcomes.any(|outcome| outcome == it)
            })
    }
}

/// How many feeds are followed at once, and of one tenant.
pub const FEEDS_MAX: usize = 64;
pub const FEEDS_OF_TENANT_MAX: usize = 8;
/// How often a feed looks for what is new, and how many events it reads at once.
const FEED_EVERY: Duration = Duration::from_millis(500);
const FEED_READ_MAX: usize = 25;
/// How long it rests after each read: a thousand events a second are the most that it tells.
const FEED_PAUSE: Duration = Duration::from_millis(25);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct FeedQuery {
    /// Only of this type, or of all that a pattern such as `issues` or `issues.*` means.
    #[param(value_type = Option<Pattern>)]
    r#type: Option<String>,
    #[param(value_type = Option<Name>)]
    source: Option<String>,
    /// Only those that a rule made this of.
    outcome: Option<OutcomeWord>,
    /// Only those that this rule was asked about.
    #[param(value_type = Option<Name>)]
    rule: Option<String>,
    /// From the event after this one on. Left out: what comes in from now on.
    since: Option<String>,
}

/// A tenant's events as they are decided, as server-sent events
///
/// Each message is an event with what became of it, as JSON, under the event's id; who comes back with
/// that as `Last-Event-ID` misses nothing. Beyond 64 feeds at once, or 8 of a tenant, it is answered 503.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/events/feed", tag = "events",
    params(FeedQuery, ("Last-Event-ID" = Option<String>, Header, description = "The event after which it goes on")),
    responses((status = 200, content_type = "text/event-stream", body = String)),
    security(("token" = ["read-only"])),
)]
async fn feed(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    query: Result<Query<FeedQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let Query(query) = query?;
    let filter = Filter::new(query.r#type, query.source, query.outcome, query.rule)?;
    admin.registry.known(&tenant)?;
    let last = headers.get("last-event-id").and_then(|it| it.to_str().ok());
    let since = match last.map(str::to_owned).or(query.since) {
        Some(text) => cursor(&text, "since")?,
        None => {
            let newest = admin.store.stories(&tenant, Seek::Before(None), 1).await;
            let newest = newest.map_err(store_problem)?;
            let newest = newest.first().map(|it| it.event.id);
            newest.unwrap_or(EventId(Uuid::nil()))
        }
    };
    let cancel = admin.cancel.clone();
    let Some(share) = admin.feeds.take(&tenant) else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "Not now",
            format!(
                "{FEEDS_MAX} feeds are followed already, or {FEEDS_OF_TENANT_MAX} of this tenant; ask for the list of events instead"
            ),
        )
        .retry_after(30));
    };
    let state = (admin, caller, tenant, since, share);
    let told = stream::unfold(state, async move |(admin, caller, tenant, since, share)| {
        while admin.registry.still_good(&caller) {
            let seek = Seek::After(since);
            let stories = admin.store.stories(&tenant, seek, FEED_READ_MAX).await;
            let told = stories.ok()?.into_iter().take_while(|it| it.decided);
            let told: Vec<_> = told.collect();
            if let Some(last) = told.last() {
                let last = last.event.id;
                // One who goes through all that there is leaves time for others.
                tokio::time::sleep(FEED_PAUSE).await;
                return Some((told, (admin, caller, tenant, last, share)));
            }
            tokio::time::sleep(FEED_EVERY).await;
        }
        None
    });
    let told = told.flat_map(stream::iter);
    let messages = told.filter_map(move |story| {
        let message = filter.fits(&story).then(|| {
            let message = sse::Event::default().id(story.event.id.to_string());
            message.json_data(story_view(&story, false))
        });
        std::future::ready(message)
    });
    let messages = messages.take_until(cancel.cancelled_owned());
    let messages = Sse::new(messages).keep_alive(sse::KeepAlive::default());
    // nginx would keep them until it has a buffer full.
    Ok(([("x-accel-buffering", "no")], messages).into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeliveriesQuery {
    #[param(value_type = Option<Name>)]
    channel: Option<String>,
    state: Option<StateWord>,
    /// What an earlier page gave as `next`.
    #[param(pattern = "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    after: Option<String>,
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// What a tenant's newest events led to
///
/// A page looks at 1,000 events at most, so it may have few items, or none, and not be the last. An
/// event's deliveries stay together: a page may have more items than were asked for.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/deliveries", tag = "deliveries",
    params(DeliveriesQuery),
    responses((status = 200, body = Page<DeliveryView>)),
    security(("token" = ["read-only"])),
)]
async fn deliveries(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
    query: Result<Query<DeliveriesQuery>, QueryRejection>,
) -> Answer<Page<DeliveryView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let Query(query) = query?;
    let channel = named(query.channel.as_deref(), "channel")?;
    let after = query.after.as_deref();
    let after = after.map(|text| cursor(text, "after")).transpose()?;
    let fits = |it: &DeliveryView| {
        channel
            .as_ref()
            .is_none_or(|channel| *channel == it.channel)
            && query.state.is_none_or(|state| state == it.state)
    };
    let limit = page_limit(query.limit, PAGE_MAX)?;
    let seek = (Seek::Before(after), false);
    let page = looked_at(&admin, &tenant, seek, limit, |story, items| {
        let views = story.deliveries.iter().map(|it| delivery_view(it, false));
        items.extend(views.filter(|it| fits(it)));
    });
    Ok(Json(page.await?))
}

/// A page of what `add` makes of each event.
async fn looked_at<T>(
    admin: &Admin,
    tenant: &Name,
    (mut seek, follows): (Seek, bool),
    limit: usize,
    add: impl Fn(Story, &mut Vec<T>),
) -> Result<Page<T>, Problem> {
    admin.registry.known(tenant)?;
    let (mut items, mut looked_at, mut last) = (Vec::new(), 0, None);
    let mut ended = false;
    while !ended && items.len() < limit && looked_at < LOOKED_AT_MAX {
        let stories = admin.store.stories(tenant, seek, READ_MAX).await;
        let stories = stories.map_err(store_problem)?;
        ended = stories.len() < READ_MAX;
        for story in stories {
            // What is decided later would be missed by one who asks for what comes after.
            if items.len() >= limit || (follows && !story.decided) {
                ended |= items.len() < limit;
                break;
            }
            looked_at += 1;
            last = Some(story.event.id);
            add(story, &mut items);
        }
        let Some(last) = last else { break };
        seek = match seek {
            Seek::Before(_) => Seek::Before(Some(last)),
            Seek::After(_) => Seek::After(last),
        };
    }
    // Who follows goes on from the last one whenever there may be more.
    let next = last.filter(|_| follows || !ended || items.len() >= limit);
    Ok(Page {
        items,
        next: next.map(|id| id.to_string()),
    })
}

fn cursor(text: &str, key: &str) -> Result<EventId, Problem> {
    let id = text.parse();
    id.map_err(|_| invalid(format!("`{key}` is not the id of an event")))
}

fn named(text: Option<&str>, what: &str) -> Result<Option<Name>, Problem> {
    text.map(|name| parse(name, what)).transpose()
}

fn invalid(detail: String) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "invalid-query",
        "Invalid query",
        detail,
    )
}
