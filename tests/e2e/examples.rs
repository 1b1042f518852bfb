//! What stands in `examples` does what its README says.

use hooksieve_tests::{cli_with, tests_folder};
use std::process::Command;

fn example(path: &str) -> String {
    let path = tests_folder().join("../examples").join(path);
    path.to_str().expect("a path of text").to_owned()
}

#[test]
fn recorded_events_are_replayed_with_a_configuration() {
    let (config, events) = (example("rule-config.toml"), example("events"));
    let rule = "policy:github-triage";
    let args = ["replay", "--rule", rule, "--rule-config", &config, &events];
    let done = cli_with(&args, &[], b"");
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains("notify"), "{}", done.stdout);
}

/// Its secrets are in the environment, and all of its rules are asked.
#[test]
fn the_tenant_with_everything_is_taken() {
    let key = "bWFkZS11cC1mb3ItdGVzdHMtYWxvbmUtMzItYnl0ZXM=";
    let secret = format!("whsec_{key}");
    let env = [
        ("ACME_GITHUB_SECRET", "made up"),
        ("ACME_SHOPIFY_SECRET", "made up"),
        ("ACME_ALERTS_TOKEN", "made-up-and-long-enough-to-be-taken"),
        ("ACME_SMTP_PASSWORD", "made up"),
        ("ACME_DKIM_KEY", key),
        ("ACME_SLACK_URL", "https://hooks.example/slack"),
        ("ACME_DISCORD_URL", "https://hooks.example/discord"),
        ("ACME_FEISHU_URL", "https://hooks.example/feishu"),
        ("ACME_FEISHU_SECRET", "made up"),
        ("ACME_PAGERDUTY_KEY", "0123456789abcdef0123456789abcdef"),
        ("ACME_DB_PASSWORD", "made up"),
        ("ACME_TEAMS_URL", "https://hooks.example/teams"),
        ("ACME_TWILIO_TOKEN", "made up"),
        ("ACME_HOOK_SECRET", secret.as_str()),
    ];
    let (tenant, events) = (example("tenants/acme.toml"), example("events"));
    let done = cli_with(&["replay", "--tenant", &tenant, &events], &env, b"");
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
}

#[test]
fn the_rule_that_was_written_by_hand_decides() {
    let dir = tempfile::tempdir().expect("a folder");
    let module = dir.path().join("forward.wasm");
    let wasm = wat::parse_file(example("rules/forward.wat")).expect("a module");
    std::fs::write(&module, wasm).expect("it is written");
    let rule = module.to_str().expect("a path of text");
    for (kind, told) in [("ping", "a ping"), ("push", "mail: forwarded")] {
        let args = ["replay", "--rule", rule, "--type", kind, "-"];
        let done = cli_with(&args, &[], b"{}");
        assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
        assert!(done.stdout.contains(told), "{}", done.stdout);
    }
}

#[test]
fn another_program_runs_the_engine() {
    let own = std::env::current_exe().expect("the tests' executable has a path");
    let done = Command::new(own.with_file_name("../examples/embed"))
        .output()
        .expect("cargo builds examples with the tests");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}");
    assert!(
        said.contains("answered 202") && said.contains("a bot's"),
        "{said}"
    );
}
