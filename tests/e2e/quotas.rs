//! What a tenant may use, and what its sender is told beyond it.

use hooksieve_tests::{Setup, until};

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
