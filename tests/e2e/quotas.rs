//! What a tenant may use, and what its sender is told beyond it.

use hooksieve_tests::{Receiver, Setup, until};

const TENANT: &str = "[[source]]\nname = 'in'\nkind = 'json'\nopen = true\n\
     [[source]]\nname = 'signed'\nkind = 'github'\nsecret = { env = 'GITHUB_SECRET' }\n";

#[tokio::test(flavor = "multi_thread")]
async fn events_beyond_a_tenant_s_quota_get_429_and_others_do_not_notice() {
    let setup = Setup::new()
        .env("GITHUB_SECRET", "a secret of the test")
        .tenant("acme", &format!("{TENANT}[quotas]\nevents_per_s = 2\n"))
        .tenant("other", TENANT)
        .tenant("free", &format!("{TENANT}[quotas]\nevents_per_s = 0\n"))
        .config("[quotas]\nevents_per_s = 1000\n");
    let server = setup.start().await;
    // Whoever cannot sign uses nothing up.
    for _ in 0..10 {
        let answer = server.post_json("/in/acme/signed", "{}").await;
        assert_eq!(answer.status, 401);
    }
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..30 {
        let answer = server.post_json("/in/acme/in", "{}").await;
        if answer.status == 202 {
            taken += 1;
            continue;
        }
        assert_eq!(answer.header("retry-after"), "1");
        let detail = answer.problem(429, "events-quota");
        assert!(detail.contains("2 events/s"), "{detail}");
        refused += 1;
    }
    assert!(
        taken >= 2 && refused > 0,
        "{taken} taken, {refused} refused"
    );
    for tenant in ["other", "free"] {
        for _ in 0..30 {
            server
                .post_json(&format!("/in/{tenant}/in"), "{}")
                .await
                .id();
        }
    }
    until("room for an event again", || async {
        let answer = server.post_json("/in/acme/in", "{}").await;
        (answer.status == 202).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_in_debt_for_fuel_waits_and_others_do_not() {
    let rule = "[[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n";
    let setup = Setup::new()
        .tenant(
            "acme",
            &format!("{TENANT}{rule}[quotas]\nfuel_per_s = 10\n"),
        )
        .tenant("other", &format!("{TENANT}{rule}"))
        .env("GITHUB_SECRET", "a secret of the test");
    let server = setup.start().await;
    let event = r#"{"do": "drop"}"#;
    let first = server.post_json("/in/acme/in", event).await.id();
    let first = server.settled(&first).await;
    // More than it has in minutes.
    assert!(first["decisions"][0]["fuel"].as_u64().unwrap() > 1_000);
    let second = server.post_json("/in/acme/in", event).await.id();
    for _ in 0..3 {
        let id = server.post_json("/in/other/in", event).await.id();
        let story = server.settled(&id).await;
        assert_eq!(story["decisions"][0]["outcome"], "dropped");
    }
    let second = server.story(&second).await;
    assert_eq!(second["decisions"], serde_json::json!([]));
    // It waits in the store, and nothing waits for it.
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_delivers_as_often_as_it_may() {
    let hook = Receiver::start().await;
    let setup = Setup::new()
        .tenant(
            "acme",
            &format!(
                "{TENANT}[[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = '{}'\n\
                 [[channel]]\nname = 'second'\nkind = 'webhook'\nurl = '{}'\n\
                 [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n\
                 [quotas]\ndeliveries_per_s = 1\n",
                hook.url("/hook"),
                hook.url("/second"),
            ),
        )
        .env("GITHUB_SECRET", "a secret of the test");
    let server = setup.start().await;
    for channel in ["hook", "second", "hook"] {
        let event = serde_json::json!({ "do": "post", "channel": channel, "payload": 1 });
        server
            .post_json("/in/acme/in", &event.to_string())
            .await
            .id();
    }
    hook.wait_for(3).await;
    server.settle().await;
    let events = server.get("/v1/tenants/acme/deliveries").await.json();
    let began = |delivery: &serde_json::Value| -> jiff::Timestamp {
        let attempts = delivery["attempts"].as_array().unwrap();
        assert_eq!(attempts.len(), 1, "{delivery}");
        attempts[0]["at"].as_str().unwrap().parse().unwrap()
    };
    let mut began: Vec<_> = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(began)
        .collect();
    began.sort_unstable();
    // Two pauses of a second, and what a busy machine takes from them.
    let took = began[2].duration_since(began[0]);
    assert!(took.as_millis() >= 1_000, "{took:?}");
    server.stop().await;
}
