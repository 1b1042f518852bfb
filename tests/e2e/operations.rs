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

/// Spans and lines of the log, read as OpenTelemetry's own messages.
#[tokio::test(flavor = "multi_thread")]
async fn one_event_is_one_trace_from_its_request_to_its_last_attempt() {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::Span;
    let collector = Receiver::start().await;
    let hook = Receiver::answering(|n, _| Reply::status(if n == 0 { 503 } else { 200 })).await;
    let tenant = format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\nsubject_from = '/subject'\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\nretry_ms = [10]\n\
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n",
        hook.url("/planted-path")
    );
    let setup = Setup::new()
        .config(&format!(
            "[telemetry]\notlp_endpoint = '{}'\n[log]\nlevel = 'debug'\n",
            collector.url("")
        ))
        .tenant("acme", &tenant);
    let server = setup.start().await;
    let parent = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";
    let traced = format!("00-{parent}-01");
    let headers = [
        ("content-type", "application/json"),
        ("traceparent", traced.as_str()),
    ];
    let body = json!({ "do": "post", "subject": "planted-subject", "payload": "planted-text" });
    let body = body.to_string();
    let sent = server.post("/in/acme/open", &headers, body.as_bytes());
    let event = sent.await.id();
    server.settled(&event).await;
    let failed = json!({ "do": "panic", "code": 5, "subject": "planted-subject" }).to_string();
    let failed = server.post_json("/in/acme/open", &failed).await.id();
    server.settled(&failed).await;
    // What waits is sent before it ends.
    server.stop().await;

    let (mut spans, mut lines): (Vec<Span>, Vec<_>) = (Vec::new(), Vec::new());
    for got in collector.received() {
        let text = String::from_utf8(got.body.clone()).unwrap();
        assert!(!text.contains("planted"), "{text}");
        assert_eq!(got.header("content-type"), "application/json");
        match got.path.as_str() {
            "/v1/traces" => {
                let told: ExportTraceServiceRequest = serde_json::from_str(&text).unwrap();
                let scopes = told
                    .resource_spans
                    .into_iter()
                    .flat_map(|it| it.scope_spans);
                spans.extend(scopes.flat_map(|it| it.spans));
            }
            "/v1/logs" => {
                let told: ExportLogsServiceRequest = serde_json::from_str(&text).unwrap();
                let scopes = told.resource_logs.into_iter().flat_map(|it| it.scope_logs);
                lines.extend(scopes.flat_map(|it| it.log_records));
            }
            other => panic!("{other}"),
        }
    }
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|it| format!("{it:02x}")).collect() };
    let trace = |id: &str| -> Vec<&Span> {
        let id = id.replace('-', "");
        spans.iter().filter(|it| hex(&it.trace_id) == id).collect()
    };
    let own = trace(&event);
    let mut names: Vec<_> = own.iter().map(|it| it.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["decide one", "deliver hook", "deliver hook", "receive open"]
    );
    let root = own.iter().find(|it| it.name == "receive open").unwrap();
    assert!(root.parent_span_id.is_empty());
    let link = &root.links[0];
    assert_eq!(
        format!("{}-{}", hex(&link.trace_id), hex(&link.span_id)),
        parent
    );
    for span in &own {
        assert!(
            span.end_time_unix_nano >= span.start_time_unix_nano,
            "{span:?}"
        );
        if span.name != "receive open" {
            assert_eq!(span.parent_span_id, root.span_id, "{span:?}");
        }
    }
    let failures = own
        .iter()
        .filter(|it| it.status.as_ref().is_some_and(|it| it.code == 2));
    assert_eq!(failures.count(), 1, "the first attempt");
    let second = trace(&failed);
    assert_eq!(second.len(), 2, "{second:?}");
    let line = lines
        .iter()
        .find(|it| hex(&it.trace_id) == failed.replace('-', ""));
    let line = line.expect("the failure is in the log, under its trace");
    assert_eq!(line.severity_text, "WARN");
}
