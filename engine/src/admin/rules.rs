//! Calls about rules: versions, what each is used for, and who changed what.
//!
//! A rule's revision is its ETag. A change with `If-Match` is made only while that is still its
//! revision.

use super::body::Sent;
use super::view::moment;
use super::{Admin, Answer, Shared, Who, parse};
use crate::id::{Hash, Name};
use crate::pipeline::quarantine::Quarantine;
use crate::pipeline::{Difference, Share};
use crate::problem::Problem;
use crate::registry::{Changed, NewVersion, Role, Scope, Version};
use crate::store::Then;
use crate::tenant::Pattern;
use crate::whole::{one_whole, whole};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn router() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new()
        .routes(routes!(list_rules))
        .routes(routes!(audit))
        .routes(routes!(rule, delete_rule))
        .routes(routes!(add_version))
        .routes(routes!(promote))
        .routes(routes!(roll_back))
        .routes(routes!(stage))
        .routes(routes!(stop))
        .routes(routes!(resume))
        .routes(routes!(shadow))
}

/// A rule with its versions and what they are used for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleView {
    pub name: Name,
    /// Whether it stands in the tenant's file: then it has no versions and no call changes it.
    pub in_file: bool,
    pub revision: u64,
    pub live: Option<u32>,
    /// What a rollback makes live.
    pub before: Option<u32>,
    pub shadow: Option<u32>,
    pub canary: Option<CanaryView>,
    /// Why it is not asked any more, where it failed again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<QuarantineView>,
    /// Newest first.
    pub versions: Vec<VersionView>,
}

/// A rule in quarantine: it is not asked, and its events are held or passed on.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct QuarantineView {
    pub since: String,
    /// Of its last `of` events it had failed on so many.
    pub failed: usize,
    pub of: usize,
    /// The last failure.
    pub error: String,
    pub version: Option<u32>,
}

/// A rule that was resumed.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Resumed {
    /// Whether it was in quarantine before.
    pub was_quarantined: bool,
}

fn quarantine_view(quarantine: &Quarantine) -> QuarantineView {
    QuarantineView {
        since: moment(quarantine.since_ms),
        failed: quarantine.failed,
        of: quarantine.of,
        error: quarantine.error.clone(),
        version: quarantine.version,
    }
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct CanaryView {
    pub version: u32,
    /// Of all subjects.
    pub percent: f64,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    pub version: u32,
    pub module: String,
    pub config: serde_json::Map<String, serde_json::Value>,
    pub events: Vec<String>,
    pub sources: Vec<Name>,
    pub channels: Vec<Name>,
    pub on_error: OnError,
    pub created: String,
    pub by: String,
}

/// What happens to an event that a rule fails on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    #[default]
    Hold,
    Pass,
    Drop,
}

impl From<OnError> for Then {
    fn from(word: OnError) -> Self {
        match word {
            OnError::Hold => Then::Held,
            OnError::Pass => Then::Passed,
            OnError::Drop => Then::Dropped,
        }
    }
}

impl From<Then> for OnError {
    fn from(then: Then) -> Self {
        match then {
            Then::Held => OnError::Hold,
            Then::Passed => OnError::Pass,
            Then::Dropped => OnError::Drop,
        }
    }
}

fn version_view(version: &Version) -> VersionView {
    VersionView {
        version: version.number,
        module: version.module.to_string(),
        config: version.config.clone(),
        events: version.events.clone(),
        sources: version.sources.clone(),
        channels: version.channels.clone(),
        on_error: version.on_error.into(),
        created: moment(version.created_ms),
        by: version.by.clone(),
    }
}

fn view(admin: &Admin, tenant: &Name, rule: &Changed) -> RuleView {
    let state = &rule.state;
    let quarantine = admin.registry.quarantine(tenant, &rule.name);
    RuleView {
        quarantine: quarantine.as_deref().map(quarantine_view),
        name: rule.name.clone(),
        in_file: false,
        revision: state.revision,
        live: state.live,
        before: state.before.last().copied(),
        shadow: state.shadow,
        canary: state.canary.as_ref().map(|canary| CanaryView {
            version: canary.version,
            percent: canary.share.as_percent(),
        }),
        versions: rule.versions.iter().rev().map(version_view).collect(),
    }
}

fn view_of_file(admin: &Admin, tenant: &Name, name: Name) -> RuleView {
    let quarantine = admin.registry.quarantine(tenant, &name);
    RuleView {
        quarantine: quarantine.as_deref().map(quarantine_view),
        name,
        in_file: true,
        revision: 0,
        live: None,
        before: None,
        shadow: None,
        canary: None,
        versions: Vec::new(),
    }
}

fn answer(admin: &Admin, tenant: &Name, status: StatusCode, rule: &Changed) -> Response {
    let etag = format!("\"{}\"", rule.state.revision);
    let view = view(admin, tenant, rule);
    (status, [(header::ETAG, etag)], Json(view)).into_response()
}

type RulePath = Path<(String, String)>;

fn rule_path(Path((tenant, rule)): RulePath) -> Result<(Name, Name), Problem> {
    Ok((parse(&tenant, "tenant")?, parse(&rule, "rule")?))
}

/// The revision that a change is for.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(given) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    // A shell takes the quotes off easily, and without them it means nothing else.
    let number = given.to_str().ok().and_then(|text| {
        let quoted = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        let digits = quoted.unwrap_or(text);
        let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    });
    number.map(Some).ok_or_else(|| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "invalid-if-match",
            "Invalid If-Match",
            "`If-Match` has one ETag that a call about this rule gave, as \"3\" with its quotes",
        )
    })
}

/// A tenant's rules
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/rules", tag = "rules",
    responses((status = 200, body = Vec<RuleView>)),
    security(("token" = ["read-only"])),
)]
async fn list_rules(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
) -> Answer<Vec<RuleView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let rules = admin.registry.rules(&tenant).await?;
    let of_file = admin.registry.rules_of_file(&tenant).into_iter();
    let of_file = of_file.map(|name| view_of_file(&admin, &tenant, name));
    let all = of_file.chain(rules.iter().map(|rule| view(&admin, &tenant, rule)));
    Ok(Json(all.collect()))
}

/// A rule with its versions
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/rules/{rule}", tag = "rules",
    responses((status = 200, body = RuleView, headers(("etag" = String, description = "The rule's revision")))),
    security(("token" = ["read-only"])),
)]
async fn rule(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
) -> Result<Response, Problem> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::ReadOnly, &tenant)?;
    if admin.registry.rules_of_file(&tenant).contains(&rule) {
        return Ok(Json(view_of_file(&admin, &tenant, rule)).into_response());
    }
    let rule = admin.registry.rule(&tenant, &rule).await?;
    Ok(answer(&admin, &tenant, StatusCode::OK, &rule))
}

/// What a version is used for, in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RoleWord {
    /// It decides.
    Live,
    /// It is asked as well, without effect.
    Shadow,
    /// It decides for `percent` of the subjects.
    Canary,
    /// Nothing yet.
    #[default]
    Kept,
}

fn role(word: RoleWord, percent: Option<f64>) -> Result<Role, Problem> {
    let invalid = |detail: &str| {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Err(Problem::new(status, "invalid", "Invalid", detail))
    };
    match (word, percent) {
        (RoleWord::Canary, Some(percent)) => match Share::percent(percent) {
            Some(share) => Ok(Role::Canary(share)),
            None => invalid("`percent` may be 0.01 to 100"),
        },
        (RoleWord::Canary, None) => invalid("a canary needs `percent`, its share of all subjects"),
        (_, Some(_)) => invalid("`percent` belongs to a canary"),
        (RoleWord::Live, None) => Ok(Role::Live),
        (RoleWord::Shadow, None) => Ok(Role::Shadow),
        (RoleWord::Kept, None) => Ok(Role::Kept),
    }
}

/// A version that is to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVersionBody {
    /// The SHA-256 of a module that the tenant has uploaded.
    pub module: Hash,
    #[serde(default)]
    pub config: serde_json::Map<String, serde_json::Value>,
    #[schema(value_type = Vec<Pattern>, min_items = 1, max_items = 100)]
    pub events: Vec<String>,
    #[serde(default)]
    pub sources: Vec<Name>,
    #[serde(default)]
    pub channels: Vec<Name>,
    #[serde(default)]
    pub on_error: OnError,
    /// What it is used for from now on.
    #[serde(default)]
    pub r#as: RoleWord,
    /// Of all subjects, for a canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.01, maximum = 100)]
    pub percent: Option<f64>,
}

/// Makes a version, and the rule with its first one
///
/// What does not start is not kept.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/rules/{rule}/versions", tag = "rules",
    params(("If-Match" = Option<String>, Header, description = "The rule's ETag: the change is made only while it is still this", pattern = "^(\"[0-9]{1,19}\"|[0-9]{1,19})$")),
    request_body = NewVersionBody,
    responses((status = 201, body = RuleView, headers(("etag" = String, description = "The rule's revision")))),
    security(("token" = ["author"])),
)]
async fn add_version(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
    headers: HeaderMap,
    body: Result<Sent<NewVersionBody>, Problem>,
) -> Result<Response, Problem> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    let Sent(body) = body?;
    let role = role(body.r#as, body.percent)?;
    let new = NewVersion {
        module: body.module,
        config: body.config,
        events: body.events,
        sources: body.sources,
        channels: body.channels,
        on_error: body.on_error.into(),
    };
    let expected = expected(&headers)?;
    let at = (&tenant, &rule);
    let made = admin
        .registry
        .add_version(at, new, role, expected, &caller.who);
    let status = StatusCode::CREATED;
    Ok(answer(&admin, &tenant, status, &made.await?))
}

/// Which version is meant.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VersionBody {
    /// Left out: the canary, else the shadow.
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    pub version: Option<u32>,
}

/// Makes a version live
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/rules/{rule}/promote", tag = "rules",
    params(("If-Match" = Option<String>, Header, description = "The rule's ETag: the change is made only while it is still this", pattern = "^(\"[0-9]{1,19}\"|[0-9]{1,19})$")),
    request_body = Option<VersionBody>,
    responses((status = 200, body = RuleView, headers(("etag" = String, description = "The rule's revision")))),
    security(("token" = ["author"])),
)]
async fn promote(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
    headers: HeaderMap,
    body: Result<Option<Sent<VersionBody>>, Problem>,
) -> Result<Response, Problem> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    // None at all means what an empty one does.
    let body = body?.map_or_else(VersionBody::default, |Sent(body)| body);
    let expected = expected(&headers)?;
    let at = (&tenant, &rule);
    let promoted = (admin.registry).give_role(at, body.version, Role::Live, expected, &caller.who);
    Ok(answer(&admin, &tenant, StatusCode::OK, &promoted.await?))
}

/// What a version is to be used for.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StageBody {
    #[serde(deserialize_with = "one_whole")]
    pub version: u32,
    pub r#as: RoleWord,
    /// Of all subjects, for a canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.01, maximum = 100)]
    pub percent: Option<f64>,
}

/// Gives a version a role
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/rules/{rule}/stage", tag = "rules",
    params(("If-Match" = Option<String>, Header, description = "The rule's ETag: the change is made only while it is still this", pattern = "^(\"[0-9]{1,19}\"|[0-9]{1,19})$")),
    request_body = StageBody,
    responses((status = 200, body = RuleView, headers(("etag" = String, description = "The rule's revision")))),
    security(("token" = ["author"])),
)]
async fn stage(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
    headers: HeaderMap,
    body: Result<Sent<StageBody>, Problem>,
) -> Result<Response, Problem> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    let Sent(body) = body?;
    let role = role(body.r#as, body.percent)?;
    let expected = expected(&headers)?;
    let at = (&tenant, &rule);
    let staged = (admin.registry).give_role(at, Some(body.version), role, expected, &caller.who);
    Ok(answer(&admin, &tenant, StatusCode::OK, &staged.await?))
}

/// Makes live what was live before
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/rules/{rule}/rollback", tag = "rules",
    params(("If-Match" = Option<String>, Header, description = "The rule's ETag: the change is made only while it is still this", pattern = "^(\"[0-9]{1,19}\"|[0-9]{1,19})$")),
    responses((status = 200, body = RuleView, headers(("etag" = String, description = "The rule's revision")))),
    security(("token" = ["author"])),
)]
async fn roll_back(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    let expected = expected(&headers)?;
    let done = (admin.registry).roll_back((&tenant, &rule), expected, &caller.who);
    Ok(answer(&admin, &tenant, StatusCode::OK, &done.await?))
}

/// Ends a rule's shadow and canary
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/rules/{rule}/stop", tag = "rules",
    params(("If-Match" = Option<String>, Header, description = "The rule's ETag: the change is made only while it is still this", pattern = "^(\"[0-9]{1,19}\"|[0-9]{1,19})$")),
    responses((status = 200, body = RuleView, headers(("etag" = String, description = "The rule's revision")))),
    security(("token" = ["author"])),
)]
async fn stop(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    let expected = expected(&headers)?;
    let done = (admin.registry).stop((&tenant, &rule), expected, &caller.who);
    Ok(answer(&admin, &tenant, StatusCode::OK, &done.await?))
}

/// Has a rule asked again that is in quarantine
///
/// What is held for it stays held until somebody releases it.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/rules/{rule}/resume", tag = "rules",
    responses((status = 200, body = Resumed)),
    security(("token" = ["author"])),
)]
async fn resume(State(admin): Shared, Extension(caller): Who, path: RulePath) -> Answer<Resumed> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    let was_quarantined = (admin.registry).resume(&tenant, &rule, &caller.who).await?;
    Ok(Json(Resumed { was_quarantined }))
}

/// A rule that is gone.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct RuleDeleted {
    pub deleted: Name,
}

/// Deletes a rule with its versions
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/rules/{rule}", tag = "rules",
    params(("If-Match" = Option<String>, Header, description = "The rule's ETag: the change is made only while it is still this", pattern = "^(\"[0-9]{1,19}\"|[0-9]{1,19})$")),
    responses((status = 200, body = RuleDeleted)),
    security(("token" = ["author"])),
)]
async fn delete_rule(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
    headers: HeaderMap,
) -> Answer<RuleDeleted> {
    let (tenant, rule) = rule_path(path)?;
    caller.may(Scope::Author, &tenant)?;
    let expected = expected(&headers)?;
    let done = (admin.registry).delete_rule((&tenant, &rule), expected, &caller.who);
    done.await?;
    Ok(Json(RuleDeleted { deleted: rule }))
}

/// How a version in the shadow compares with what is live.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ShadowView {
    pub version: u32,
    /// When it began.
    pub since: String,
    /// Events that either of the two was asked about.
    pub compared: u64,
    pub differed: u64,
    /// The last of those on which they differ, newest first.
    pub differences: Vec<Difference>,
}

/// How the version in the shadow compares with what is live
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/rules/{rule}/shadow", tag = "rules",
    responses((status = 200, body = ShadowView)),
    security(("token" = ["read-only"])),
)]
async fn shadow(
    State(admin): Shared,
    Extension(caller): Who,
    path: RulePath,
) -> Answer<ShadowView> {
    let (tenant, name) = rule_path(path)?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let rule = admin.registry.rule(&tenant, &name).await?;
    let Some(version) = rule.state.shadow else {
        return Err(super::not_found("shadow of the rule", name.as_str()));
    };
    let (compared, differed, differences) = rule.tally.counts();
    Ok(Json(ShadowView {
        version,
        since: moment(rule.tally.since_ms),
        compared,
        differed,
        differences,
    }))
}

/// A change of a rule.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    pub at: String,
    pub who: String,
    /// `version`, `promote`, `rollback`, `shadow`, `canary`, `stop`, `resume` or `delete`; `set` or
    /// `remove` of a source or channel.
    pub what: String,
    /// The rule, source or channel.
    pub rule: Name,
    /// `source` or `channel`, where it was about no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thing: Option<String>,
    /// What was live before, and from then on.
    pub from: Option<u32>,
    pub to: Option<u32>,
    /// The version that it was about.
    pub version: Option<u32>,
}

/// Who changed which rule, the last 1,000 changes
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/audit", tag = "rules",
    responses((status = 200, body = Vec<AuditView>)),
    security(("token" = ["read-only"])),
)]
async fn audit(
    State(admin): Shared,
    Extension(caller): Who,
    Path(tenant): Path<String>,
) -> Answer<Vec<AuditView>> {
    let tenant = parse::<Name>(&tenant, "tenant")?;
    caller.may(Scope::ReadOnly, &tenant)?;
    let entries = admin.registry.audit(&tenant).await?.into_iter();
    let view = |entry: crate::registry::AuditEntry| AuditView {
        at: moment(entry.at_ms),
        who: entry.who,
        what: entry.what,
        rule: entry.rule,
        thing: entry.thing,
        from: entry.from,
        to: entry.to,
        version: entry.version,
    };
    Ok(Json(entries.map(view).collect()))
}
