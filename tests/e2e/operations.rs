//! What those who run the engine look at.

use super::uploads::{As, token};
use hooksieve_tests::{Receiver, Reply, Setup, TOKEN, until};
use reqwest::Method;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted_and_nothing_told() {
    let receiver = Receiver::answering(|_, received| match received.path.as_str() {
        "/gone-for-good" => Reply::status(404),
        _ => Reply::status(200),
    })
    .await;
    let setup = Setup::new()
        .config("[log]\nlevel = \"debug\"\n")
        .env("SENDERS_TOKEN", "a-planted-secret")
        .tenant(
            "acme",
            &format!(
                "[[source]]\nname = 'open'\nkind = 'json'\ntoken = {{ env = 'SENDERS_TOKEN' }}\nid_from = '/id'\n\
                 [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
                 [[channel]]\nname = 'gone'\nkind = 'webhook'\nurl = '{}'\n\
                 [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n",
                receiver.url("/hook"),
                receiver.url("/gone-for-good"),
            ),
        )
        .tenant("other", "");
    let server = setup.start().await;
    let bearer = [
        ("authorization", "Bearer a-planted-secret"),
        ("content-type", "application/json"),
    ];
    for event in [
        json!({ "id": "1", "do": "post", "payload": "a planted text" }),
        json!({ "id": "1", "do": "post", "payload": "a planted text" }),
        json!({ "id": "2", "do": "drop" }),
        json!({ "id": "3", "do": "panic" }),
        json!({ "id": "4", "do": "post", "channel": "gone", "payload": 1 }),
    ] {
        let body = event.to_string();
        let sent = server.post("/in/acme/open", &bearer, body.as_bytes()).await;
        assert_eq!(sent.status, 202);
    }
    let json_alone = [("content-type", "application/json")];
    let unsigned = server.post("/in/acme/open", &json_alone, b"{}").await;
    assert_eq!(unsigned.status, 401);
    let unknown = server.post("/in/acme/none", &json_alone, b"{}").await;
    assert_eq!(unknown.status, 404);

    let operator = As(&server, TOKEN.to_owned());
    let expected = [
        "hooksieve_events_accepted_total{tenant=\"acme\"} 4",
        "hooksieve_events_accepted_total{tenant=\"other\"} 0",
        "hooksieve_events_repeated_total{tenant=\"acme\"} 1",
        "hooksieve_events_refused_total{reason=\"unknown-source\"} 1",
        "hooksieve_decisions_total{tenant=\"acme\",outcome=\"notified\"} 2",
        "hooksieve_decisions_total{tenant=\"acme\",outcome=\"dropped\"} 1",
        "hooksieve_decisions_total{tenant=\"acme\",outcome=\"failed\"} 1",
        "hooksieve_decision_failures_total{kind=\"panicked\"} 1",
        "hooksieve_decision_duration_seconds_count 4",
        "hooksieve_decision_fuel_count 4",
        "hooksieve_deliveries_delivered_total{tenant=\"acme\"} 1",
        "hooksieve_deliveries_dead_total{tenant=\"acme\"} 1",
        "hooksieve_delivery_attempts_total{channel=\"webhook\",outcome=\"delivered\"} 1",
        "hooksieve_delivery_attempts_total{channel=\"webhook\",outcome=\"dead\"} 1",
        "hooksieve_delivery_attempt_duration_seconds_count 2",
    ];
    let text = async || {
        let got = operator.call(Method::GET, "/metrics", None).await;
        assert_eq!(got.status, 200, "{}", got.body);
        got.body
    };
    for line in expected {
        until(line, || async {
            let text = text().await;
            text.lines().any(|it| it == line).then_some(())
        })
        .await;
    }
    let text = text().await;
    for secret in ["planted", TOKEN, "\"hook\"", "gone", "probe"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let log = server.said();
    for secret in ["a-planted-secret", "a planted text"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }

    let tenants = As(&server, token(&server, Some("acme"), "tenant-admin").await);
    let refused = tenants.call(Method::GET, "/metrics", None).await;
    refused.problem(403, "not-allowed");
    let nobody = As(&server, String::new());
    let refused = nobody.call(Method::GET, "/metrics", None).await;
    refused.problem(401, "not-authorised");
    let operators = As(&server, token(&server, None, "operator").await);
    let seen = operators.call(Method::GET, "/metrics", None).await;
    assert!(
        seen.header("content-type")
            .starts_with("application/openmetrics-text")
    );
    server.end().await;
}
