//! The console in a real browser.

use super::uploads::{As, token};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use hooksieve_tests::{PROBE, Receiver, Reply, Setup, browser, say};
use reqwest::Method;
use serde_json::json;

/// A rule that never answers.
pub(crate) const ENDLESS: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "hooksieve_abi_1"))
    (func (export "hooksieve_reserve") (param i32) (result i32) (i32.const 1024))
    (func (export "hooksieve_decide") (param i32 i32 i32 i32) (result i64) (loop (br 0)) (i64.const 0)))"#;

/// The flows are in `tests/js/console.js`. `HOOKSIEVE_SCREENSHOTS=FOLDER` keeps its pictures.
#[tokio::test(flavor = "multi_thread")]
async fn everything_in_the_console_works_in_a_browser() {
    let Ok(browser) = browser() else { return };
    let receiver = Receiver::answering(|_, received| match received.path.as_str() {
        "/gone" => Reply::status(500),
        _ => Reply::status(200),
    })
    .await;
    let setup = Setup::new()
        .env("CHAT_URL", &receiver.url("/chat"))
        .config("[dispatch]\nretry_ms = [10]\n[quarantine]\nlast_events = 10\n")
        .tenant(
            "acme",
            &format!(
                "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\nsubject_from = '/subject'\n\
                 [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
                 [[channel]]\nname = 'gone'\nkind = 'webhook'\nurl = '{}'\n\
                 [[channel]]\nname = 'mail'\nkind = 'email'\nhost = 'mail.example'\nfrom = 'a@mail.example'\nto = ['b@mail.example']\n\
                 [[channel]]\nname = 'chat'\nkind = 'slack'\nurl = {{ env = 'CHAT_URL' }}\n",
                receiver.url("/hook"),
                receiver.url("/gone"),
            ),
        );
    let server = setup.start().await;
    let token = token(&server, Some("acme"), "tenant-admin").await;
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("probe.wasm");
    std::fs::write(&wasm, PROBE).unwrap();
    let pictures = match std::env::var("HOOKSIEVE_SCREENSHOTS") {
        Ok(folder) => folder.into(),
        Err(_) => dir.path().join("pictures"),
    };
    std::fs::create_dir_all(&pictures).unwrap();
    let mut script = browser.script("console.js");
    let endless = wat::parse_str(ENDLESS).unwrap();
    script
        .args([&server.base, &token])
        .arg(&wasm)
        .arg(&pictures)
        .arg(BASE64_STANDARD.encode(endless));
    let done = tokio::task::spawn_blocking(move || script.output().unwrap());
    let done = done.await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        done.status.success(),
        "{}{}",
        text(&done.stdout),
        text(&done.stderr)
    );
    say(text(&done.stdout).trim());
    server.end().await;
}

/// What a browser says of who sends it decides whether its cookie counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_serves_the_console_alone() {
    let setup = Setup::new().tenant("acme", "");
    let server = setup.start().await;
    let token = token(&server, Some("acme"), "author").await;
    let nobody = As(&server, String::new());
    let cookie = format!("hooksieve_token={token}");
    let body = || Some(json!({ "token": token }));
    let own = ("sec-fetch-site", "same-origin");
    let foreign = ("sec-fetch-site", "cross-site");

    let signed_in = nobody
        .with(Method::POST, "/console/session", &[own], body())
        .await;
    assert_eq!(signed_in.status, 200, "{}", signed_in.body);
    let set = signed_in.header("set-cookie").to_owned();
    for part in [&*cookie, "HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(set.contains(part), "{part} in {set}");
    }
    assert!(!signed_in.body.contains(&token));
    nobody
        .with(Method::POST, "/console/session", &[foreign], body())
        .await
        .problem(403, "another-site");
    let wrong = Some(json!({ "token": "hooksieve_0_0" }));
    nobody
        .with(Method::POST, "/console/session", &[own], wrong)
        .await
        .problem(422, "not-a-token");

    let with = ("cookie", cookie.as_str());
    let stop = "/v1/tenants/acme/rules/own/stop";
    let seen = nobody.with(Method::GET, "/v1/whoami", &[with], None).await;
    assert_eq!(seen.status, 200, "{}", seen.body);
    nobody
        .with(Method::POST, stop, &[with, own], None)
        .await
        .problem(404, "not-found");
    for headers in [&[with][..], &[with, foreign]] {
        nobody
            .with(Method::POST, stop, headers, None)
            .await
            .problem(401, "not-authorised");
    }
    let page = nobody.call(Method::GET, "/console", None).await;
    let policy = page.header("content-security-policy");
    assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe"));
    server.end().await;
}
