//! The description of `/v1`: OpenAPI 3.1 at `/v1/openapi.json`, and the same as a page for people at `/v1`.
//!
//! What is the same for every call is added here: its path's parameters, the token, and the problem that it
//! answers with when it cannot do what was asked. Needs no token: it says nothing of any tenant.

use super::{Admin, kinds};
use crate::config::LimitsMax;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use axum::routing::get;
use maud::{DOCTYPE, Markup, html};
use serde_json::{Map, Value, json};
use std::sync::Arc;

const DESCRIPTION: &str = "What a person or a program can ask a running engine for. Every call needs a \
token, as `Authorization: Bearer TOKEN`, and says which scope it must have at least: ingest-only, \
read-only, author, tenant-admin or operator. What is another tenant's is answered like what is not there, \
with 404. A call that changes something may have an `Idempotency-Key` header of up to 255 characters: sent \
again within a day with the same key, it is not made again but answered as before, with \
`Idempotency-Replayed: true`. An answer 429 says in `Retry-After` after how many seconds to call again.";

/// The calls whose bodies are described here and not by their types.
const BODIES: [(&str, &str, &str); 3] = [
    ("/v1/tenants/{tenant}/sources/{source}", "put", "SourceBody"),
    (
        "/v1/tenants/{tenant}/channels/{channel}",
        "put",
        "ChannelBody",
    ),
    ("/v1/tenants/{tenant}/try/input", "post", "TrialInputBody"),
];

const STYLE: &str = include_str!("openapi.css");

/// A page that runs no scripts and loads nothing but its own style.
const POLICY: (HeaderName, &str) = (
    header::CONTENT_SECURITY_POLICY,
    "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);

pub(super) fn router(
    described: utoipa::openapi::OpenApi,
    limits_max: &LimitsMax,
) -> Router<Arc<Admin>> {
    let document = match serde_json::to_value(described) {
        Ok(described) => document(described, limits_max),
        Err(_) => unreachable!("a description is JSON"),
    };
    let page = page(&document).into_string();
    let json = document.to_string();
    // Whoever asks, and does not read what he is answered, shares it with all others.
    let typed = |kind: &'static str, text: Bytes| {
        get(async move || ([(header::CONTENT_TYPE, kind)], text).into_response())
    };
    let page = Bytes::from(page);
    let page = get(async move || {
        let html = (header::CONTENT_TYPE, "text/html; charset=utf-8");
        ([html, POLICY], page).into_response()
    });
    Router::new()
        .route("/v1", page)
        .route("/v1/openapi.json", typed("application/json", json.into()))
        .route(
            "/v1/openapi.css",
            typed("text/css", Bytes::from_static(STYLE.as_bytes())),
        )
}

/// Completes what the calls say of themselves.
fn document(mut described: Value, limits_max: &LimitsMax) -> Value {
    described["info"] = json!({
        "title": "Hooksieve",
        "version": env!("CARGO_PKG_VERSION"),
        "description": DESCRIPTION,
        "license": { "name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE") },
    });
    described["components"]["securitySchemes"]["token"] = json!({
        "type": "http",
        "scheme": "bearer",
        "description": "The operator's token, or one that `hooksieve tokens make` made",
    });
    described["components"]["schemas"]["Problem"] = json!({
        "type": "object",
        "description": "Why a call was not done (RFC 9457)",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string", "pattern": "^urn:hooksieve:problem:", "description": "Stable, for programs" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string", "description": "One sentence with the next step" },
        },
    });
    let schemas = &mut described["components"]["schemas"];
    // Read as the same, but what is asked of them differs.
    schemas["TrialInputBody"] = schemas["TrialBody"].clone();
    for (name, schema) in kinds::schemas() {
        schemas[name] = schema;
    }
    for (name, rules) in between_fields() {
        for (keyword, rule) in rules {
            schemas[name][keyword] = rule;
        }
    }
    let limits = &mut schemas["OwnLimits"]["properties"];
    limits["fuel"]["maximum"] = limits_max.fuel.into();
    limits["memory_bytes"]["maximum"] = limits_max.memory_bytes.into();
    limits["actions"]["maximum"] = limits_max.actions.into();
    if let Some(schemas) = schemas.as_object_mut() {
        schemas.remove("SettingsBody");
    }
    for (path, method, body) in BODIES {
        let reference = json!({ "$ref": format!("#/components/schemas/{body}") });
        described["paths"][path][method]["requestBody"]["content"]["application/json"]["schema"] =
            reference;
    }
    for (path, operations) in entries(&mut described["paths"]) {
        let of_path: Vec<Value> = path.split('/').filter_map(parameter).collect();
        for (_, operation) in entries(operations) {
            let own = operation["parameters"].take();
            let own = own.as_array().into_iter().flatten();
            operation["parameters"] = of_path.iter().chain(own).cloned().map(given).collect();
            operation["responses"]["default"] = json!({
                "description": "It was not done",
                "content": {
                    "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } }
                },
            });
            for (status, response) in entries(&mut operation["responses"]) {
                if text(&response["description"]).is_empty() {
                    let description = match status.as_str() {
                        "201" => "It was made",
                        _ => "Done",
                    };
                    response["description"] = description.into();
                }
            }
        }
    }
    described
}

/// What fields of a body ask of each other, which their types do not say.
fn between_fields() -> [(&'static str, Map<String, Value>); 5] {
    let canary = json!({
        "oneOf": [
            {
                "required": ["as", "percent"],
                "properties": { "as": { "const": "canary" }, "percent": { "type": "number" } },
            },
            {
                "properties": { "as": { "not": { "const": "canary" } }, "percent": { "type": "null" } },
            },
        ],
    });
    let text = || json!({ "type": "string" });
    let none = || json!({ "type": "null" });
    let a_rule =
        json!({ "required": ["rule"], "properties": { "rule": text(), "module": none() } });
    let module =
        json!({ "required": ["module"], "properties": { "module": text(), "rule": none() } });
    let mut module_run = module.clone();
    module_run["properties"]["answer"] = none();
    let answer = json!({
        "required": ["answer"], "properties": { "answer": text(), "rule": none(), "module": none() },
    });
    let neither = json!({ "properties": { "rule": none(), "module": none() } });
    let on = json!({
        "oneOf": [
            { "required": ["event"], "properties": { "event": text(), "payload": none() } },
            {
                "required": ["payload", "source"],
                "properties": { "payload": { "type": "object" }, "source": text(), "event": none() },
            },
        ],
    });
    let trial = json!({ "allOf": [{ "oneOf": [a_rule.clone(), module_run, answer] }, on.clone()] });
    let input = json!({ "allOf": [{ "oneOf": [a_rule, module, neither] }, on] });
    let token = json!({
        "oneOf": [
            { "properties": { "scope": { "const": "operator" }, "tenant": { "type": "null" } } },
            {
                "required": ["tenant"],
                "properties": { "scope": { "not": { "const": "operator" } }, "tenant": text() },
            },
        ],
    });
    let of = |value: Value| value.as_object().cloned().unwrap_or_default();
    [
        ("NewVersionBody", of(canary.clone())),
        ("StageBody", of(canary)),
        ("TrialBody", of(trial)),
        ("TrialInputBody", of(input)),
        ("NewTokenBody", of(token)),
    ]
}

/// A parameter is text or it is not there: none of them is ever null.
fn given(mut parameter: Value) -> Value {
    if let Some(kind) = parameter.pointer_mut("/schema/type")
        && let Some(kinds) = kind.as_array()
    {
        let one = kinds.iter().find(|it| **it != "null");
        *kind = one.cloned().unwrap_or_default();
    }
    parameter
}

fn entries(value: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    value.as_object_mut().into_iter().flat_map(Map::iter_mut)
}

/// What a part of a path in braces stands for.
fn parameter(part: &str) -> Option<Value> {
    let name = part.strip_prefix('{')?.strip_suffix('}')?;
    let (schema, description) = match name {
        "event" => (
            json!({ "type": "string", "format": "uuid" }),
            "The event's id",
        ),
        "delivery" => (
            json!({ "type": "string", "format": "uuid" }),
            "The delivery's id",
        ),
        "sha256" => (
            json!({ "$ref": "#/components/schemas/Hash" }),
            "The module's SHA-256, in hexadecimal",
        ),
        "token" => (
            json!({ "type": "string", "maxLength": 80 }),
            "The token's id, which is not its text",
        ),
        _ => (json!({ "$ref": "#/components/schemas/Name" }), "Its name"),
    };
    Some(json!({
        "name": name, "in": "path", "required": true, "description": description, "schema": schema,
    }))
}

/// A call's method, path and description.
type Call<'a> = (&'a str, &'a str, &'a Value);

/// The description for people.
fn page(document: &Value) -> Markup {
    let mut tags: Vec<(&str, Vec<Call<'_>>)> = Vec::new();
    let paths = document["paths"].as_object().into_iter().flatten();
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let tag = operation["tags"][0].as_str().unwrap_or_default();
            let call = (method.as_str(), path.as_str(), operation);
            match tags.iter_mut().find(|(name, _)| *name == tag) {
                Some((_, calls)) => calls.push(call),
                None => tags.push((tag, vec![call])),
            }
        }
    }
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Hooksieve: the HTTP API" }
                link rel="stylesheet" href="/v1/openapi.css";
            }
            body {
                header {
                    h1 { "Hooksieve: the HTTP API" }
                    p { (prose(DESCRIPTION)) }
                    p { "Errors are " code { "application/problem+json" } ". For programs: "
                        a href="/v1/openapi.json" { "OpenAPI " (text(&document["openapi"])) } "." }
                    nav aria-label="Calls" { ul {
                        @for (tag, _) in &tags { li { a href={ "#" (anchor(tag)) } { (tag) } } }
                    } }
                }
                main {
                    @for (tag, calls) in &tags {
                        section id=(anchor(tag)) {
                            h2 { (tag) }
                            @for call in calls { (described(*call, document)) }
                        }
                    }
                }
            }
        }
    }
}

fn described((method, path, operation): Call<'_>, document: &Value) -> Markup {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let parameters: Vec<&Value> = parameters.collect();
    let content = operation["requestBody"]["content"].as_object();
    let body = content.and_then(|content| content.iter().next());
    let responses = operation["responses"].as_object().into_iter().flatten();
    html! {
        article id=(text(&operation["operationId"])) {
            h3 { code { (method.to_uppercase()) " " (path) } }
            p { strong { (text(&operation["summary"])) } " "
                span.scope { (text(&operation["security"][0]["token"][0])) } }
            @if let Some(more) = operation["description"].as_str() { p { (prose(more)) } }
            @if !parameters.is_empty() {
                dl {
                    @for parameter in parameters {
                        dt { code { (text(&parameter["name"])) }
                            @if parameter["in"] != "path" { " " small { (text(&parameter["in"])) } } }
                        dd { (prose(text(&parameter["description"]))) }
                    }
                }
            }
            @if let Some((kind, content)) = body {
                details {
                    summary { "Body: " code { (kind) } }
                    (schema(&content["schema"], document))
                }
            }
            @for (status, response) in responses {
                @if let Some(content) = response["content"].as_object().and_then(|it| it.values().next())
                    && status != "default" {
                    details {
                        summary { "Answer " code { (status) } ": " (text(&response["description"])) }
                        (schema(&content["schema"], document))
                    }
                }
            }
        }
    }
}

/// The fields of a body, as the schema names them; of each kind, where there are several.
fn schema(schema: &Value, document: &Value) -> Markup {
    let mut schema = schema;
    let mut list = "";
    if schema["type"] == "array" {
        (schema, list) = (&schema["items"], "A list of: ");
    }
    if let Some(name) = referred(schema) {
        schema = &document["components"]["schemas"][name];
    }
    let fields = schema["properties"].as_object();
    let required = schema["required"].as_array();
    let needed = |name: &str| required.is_some_and(|all| all.iter().any(|it| it == name));
    let kinds = schema["oneOf"].as_array().into_iter().flatten();
    let kinds = kinds.filter(|it| fields.is_none() && it["type"] != "null");
    html! {
        p { (list) (prose(text(&schema["description"]))) }
        @if let Some(fields) = fields {
            dl {
                @for (name, field) in fields {
                    @let described = &document["components"]["schemas"][referred(field).unwrap_or_default()];
                    dt { code { (name) } }
                    dd {
                        (prose(field["description"].as_str().unwrap_or(text(&described["description"]))))
                        " " small { (kind(field)) @if !needed(name) { ", optional" } }
                    }
                }
            }
        }
        @for kind in kinds {
            @if let Some(name) = referred(kind) { h4 { (name) } }
            (self::schema(kind, document))
        }
    }
}

/// A text with what stands in it between backticks as code.
fn prose(text: &str) -> Markup {
    html! {
        @for (n, part) in text.split('`').enumerate() {
            @if n % 2 == 0 { (part) } @else { code { (part) } }
        }
    }
}

fn referred(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

fn kind(schema: &Value) -> String {
    if let Some(name) = referred(schema) {
        return name.to_owned();
    }
    if let Some(all) = schema["oneOf"].as_array() {
        return all.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    if let Some(one) = schema["const"].as_str() {
        return format!("{one:?}");
    }
    if let Some(words) = schema["enum"].as_array() {
        let words = words.iter().map(Value::to_string);
        return words.collect::<Vec<_>>().join(" or ");
    }
    match &schema["type"] {
        Value::Array(all) => {
            let all = all.iter().filter_map(Value::as_str);
            all.collect::<Vec<_>>().join(" or ")
        }
        Value::String(one) if one == "array" => format!("list of {}", kind(&schema["items"])),
        one => text(one).to_owned(),
    }
}

fn anchor(tag: &str) -> String {
    tag.replace(' ', "-")
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
