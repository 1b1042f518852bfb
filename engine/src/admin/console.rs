//! The console at `/console`: a page that makes the same calls to `/v1` as any program, so it can do what
//! its token can do and no more.
//!
//! A browser keeps the token in a cookie that no script can read and no other site's page can use: it is
//! never sent along from there (`SameSite=Strict`), and a call that changes something is also refused
//! unless the browser says that it comes from this origin.

use super::body::Sent;
use super::{Admin, Shared, WhoView};
use crate::problem::Problem;
use crate::registry::Scope;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use cookie::{Cookie, SameSite};
use serde::Deserialize;
use std::sync::Arc;

const PAGE: &str = include_str!("console/index.html");
const SCRIPT: &str = include_str!("console/console.js");
const WORKER: &str = include_str!("console/worker.js");
const STYLE: &str = include_str!("console/console.css");

const COOKIE: &str = "hooksieve_token";
/// The same over HTTPS, in a form that no other host of the domain can set.
const HOST_COOKIE: &str = "__Host-hooksieve_token";

/// Only what this engine serves is run, loaded or called.
const HEADERS: [(HeaderName, &str); 4] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

pub(super) fn router() -> Router<Arc<Admin>> {
    let asset = |kind: &'static str, text: &'static str| {
        get(async move || ([(header::CONTENT_TYPE, kind)], HEADERS, text))
    };
    Router::new()
        .route("/console", asset("text/html; charset=utf-8", PAGE))
        .route(
            "/console/console.js",
            asset("text/javascript; charset=utf-8", SCRIPT),
        )
        .route(
            "/console/console.css",
            asset("text/css; charset=utf-8", STYLE),
        )
        .route("/console/worker.js", get(worker))
        .route("/console/session", post(sign_in).delete(sign_out))
}

/// The script that runs a rule in a thread of its own: it may compile WebAssembly, and call nobody.
async fn worker() -> impl axum::response::IntoResponse {
    let kind = (header::CONTENT_TYPE, "text/javascript; charset=utf-8");
    let mut headers = HEADERS;
    headers[0].1 = "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'";
    ([kind], headers, WORKER)
}

/// The token in a browser's cookie, unless the request may be another site's doing.
pub(super) fn token(
    method: &Method,
    headers: &HeaderMap,
    https: bool,
    public_host: &str,
) -> Option<String> {
    let cookies = headers.get_all(header::COOKIE).into_iter();
    let cookies = cookies.filter_map(|it| it.to_str().ok());
    let mut cookies = cookies.flat_map(Cookie::split_parse_encoded).flatten();
    let token = cookies.find(|it| it.name() == cookie_name(https))?;
    // Of two, one is somebody else's.
    if cookies.any(|it| it.name() == cookie_name(https)) {
        return None;
    }
    let changes = !matches!(*method, Method::GET | Method::HEAD);
    (!changes || same_origin(headers, public_host)).then(|| token.value().to_owned())
}

/// Whether a browser says that this page itself sent it. Browsers leave `Sec-Fetch-Site` out where they talk
/// to an address that is neither HTTPS nor loopback; they always say the origin of what is not a GET. The
/// host that it has to be is the one that was asked for, as the request, a proxy or the configuration says:
/// no page can have a browser say another to another site.
fn same_origin(headers: &HeaderMap, public_host: &str) -> bool {
    let text = |name| text(headers, name);
    match text("sec-fetch-site") {
        Some(site) => site == "same-origin",
        None => {
            let origin = text("origin").and_then(|it| it.split_once("://"));
            let hosts = [text("host"), text("x-forwarded-host"), Some(public_host)];
            origin.is_some_and(|(_, origin)| !origin.is_empty() && hosts.contains(&Some(origin)))
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Why one who is at the console's own page may be told that it is another's.
fn another_site(headers: &HeaderMap) -> Problem {
    let shown = |name| text(headers, name).unwrap_or("nothing").chars().take(200);
    let (origin, host): (String, String) = (shown("origin").collect(), shown("host").collect());
    Problem::new(
        StatusCode::FORBIDDEN,
        "another-site",
        "Another site",
        format!(
            "signing in is for the console's own page: the browser says that this one is {origin:?}, and the request came for {host:?}; a proxy in between has to leave the Host header as it is, or `public_url` of [server] says the address that browsers use"
        ),
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    token: String,
}

async fn sign_in(
    State(admin): Shared,
    headers: HeaderMap,
    body: Result<Sent<SignIn>, Problem>,
) -> Result<Response, Problem> {
    let Sent(SignIn { token }) = body?;
    if !same_origin(&headers, &admin.public_host) {
        return Err(another_site(&headers));
    }
    let Some(caller) = admin.caller(&token) else {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "not-a-token",
            "Not a token",
            "this token is not good here: it was mistyped, revoked or has expired",
        ));
    };
    caller.has(Scope::ReadOnly)?;
    Ok(answered(
        cookie(token, admin.behind_https),
        Json(WhoView::from(caller)).into_response(),
    ))
}

async fn sign_out(State(admin): Shared) -> Response {
    let mut cookie = cookie(String::new(), admin.behind_https);
    cookie.make_removal();
    answered(cookie, Json(serde_json::json!({})).into_response())
}

fn cookie_name(https: bool) -> &'static str {
    if https { HOST_COOKIE } else { COOKIE }
}

fn cookie(token: String, secure: bool) -> Cookie<'static> {
    Cookie::build((cookie_name(secure), token))
        .http_only(true)
        .same_site(SameSite::Strict)
        .secure(secure)
        .path("/")
        .build()
}

fn answered(cookie: Cookie<'static>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    if let Ok(cookie) = cookie.encoded().to_string().parse() {
        headers.insert(header::SET_COOKIE, cookie);
    }
    headers.insert(
        header::CACHE_CONTROL,
        axum::http::HeaderValue::from_static("no-store"),
    );
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(method: Method, headers: &[(&str, &str)]) -> Option<String> {
        let headers = headers.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            (name, value.parse().unwrap())
        });
        token(&method, &headers.collect(), false, "h.example")
    }

    #[test]
    fn a_cookie_counts_where_no_other_site_can_have_sent_it() {
        let cookie = ("cookie", "a=b; hooksieve_token=t");
        let good = Some("t".to_owned());
        assert_eq!(given(Method::GET, &[cookie]), good);
        assert_eq!(given(Method::GET, &[("cookie", "a=b")]), None);
        let two = "hooksieve_token=t; hooksieve_token=other";
        assert_eq!(given(Method::GET, &[("cookie", two)]), None);
        for (headers, counts) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[], false),
            (&[("origin", "http://h:1"), ("host", "h:1")], true),
            (&[("origin", "https://h:1"), ("host", "h")], false),
            (&[("origin", "null"), ("host", "h")], false),
            (&[("origin", "http://"), ("host", "")], false),
            // A proxy in between asked under another name.
            (&[("origin", "http://h"), ("host", "inner:8080")], false),
            (
                &[
                    ("origin", "http://h"),
                    ("host", "inner:8080"),
                    ("x-forwarded-host", "h"),
                ],
                true,
            ),
            (
                &[("origin", "http://h.example"), ("host", "inner:8080")],
                true,
            ),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("origin", "http://h"),
                    ("host", "h"),
                ],
                false,
            ),
        ] {
            let headers = [&[cookie], headers].concat();
            let expected = counts.then(|| "t".to_owned());
            assert_eq!(given(Method::POST, &headers), expected, "{headers:?}");
            assert_eq!(given(Method::DELETE, &headers), expected, "{headers:?}");
        }
    }
}
