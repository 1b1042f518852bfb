//! The engine inside another program: start it, post an event, read what became of it, stop it.
//!
//! Run it with `cargo run --example embed`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use hooksieve::config::Config;
use hooksieve::config::read::Source;
use hooksieve::serve::Engine;
use hooksieve::tenant::Tenant;
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

const TENANT: &str = r#"
[[source]]
name = "alerts"
kind = "json"
open = true

[[channel]]
name = "mail"
kind = "email"
host = "127.0.0.1"
port = 2525
tls = "none"
from = "hooks@acme.example"
to = "team@acme.example"

[[rule]]
name = "triage"
module = "policy:github-triage"
events = ["*"]
"#;

fn main() -> Result<(), Box<dyn Error>> {
    // Rules are compiled by this same program, started once more for that.
    hooksieve::sandbox::compile_if_asked();
    run()
}

#[tokio::main]
async fn run() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut config = Config::built_in();
    config.server.listen.set_port(0);
    config.server.data = folder.path().join("data");

    let source = Source::new("acme.toml", TENANT);
    let tenant = Tenant::load(&source, &BTreeMap::new(), config.dispatch.timeout_ms)?;
    let engine = Engine::start(&config, vec![tenant]).await?;

    let answer = reqwest::Client::new()
        .post(format!("http://{}/in/acme/alerts", engine.addr))
        .json(&serde_json::json!({ "sender": { "type": "Bot" } }))
        .send()
        .await?;
    println!("answered {}", answer.status());
    let accepted: serde_json::Value = answer.json().await?;
    let id = accepted["id"].as_str().unwrap_or_default().parse()?;
    loop {
        let story = engine.store().story(id).await?;
        if let Some(story) = story.filter(|story| story.decided) {
            println!("{:#?}", story.decisions);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    engine.stop().await;
    Ok(())
}
