//! Many tenants in one engine: how long it takes until it is ready, what it takes while nothing happens, and
//! how long an upload takes until it decides.
//!
//! ```text
//! cargo run --release --example tenants -- --help
//! ```
#![allow(clippy::print_stdout, reason = "the report")]

use clap::Parser;
use hooksieve_tests::process::{cpu_s, resident_mb};
use hooksieve_tests::{Server, Setup, TOKEN, TRIAGE_COMMAND};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::time::{Duration, Instant};

/// Measures an engine of many tenants.
#[derive(Debug, Parser)]
struct Arguments {
    /// Tenants with a file each: a source, a channel, two rules.
    #[arg(long, default_value_t = 5_000)]
    tenants: usize,
    /// Modules of about 110 kB, each another, that are uploaded and made live one after the other.
    #[arg(long, default_value_t = 200)]
    uploads: usize,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let mut setup = Setup::new();
    for n in 0..arguments.tenants {
        setup = setup.tenant(&format!("t{n}"), &tenant_file(n));
    }
    let began = Instant::now();
    let server = setup.start().await;
    println!(
        "first start        {:>9.2} s",
        began.elapsed().as_secs_f64()
    );
    server.stop().await;
    let began = Instant::now();
    let server = setup.start().await;
    println!(
        "ready after restart{:>9.2} s",
        began.elapsed().as_secs_f64()
    );
    println!("resident           {:>9} MB", resident_mb(server.pid()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, began) = (cpu_s(server.pid()), Instant::now());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = (cpu_s(server.pid()) - before) / began.elapsed().as_secs_f64();
    println!("processor, idle    {:>9.2} % of one core", idle * 100.0);
    for n in 0..arguments.tenants {
        let path = format!("/in/t{n}/in");
        let sent = server.post_json(&path, r#"{"do":"drop"}"#).await;
        assert_eq!(sent.status, 202);
    }
    server.settle().await;
    println!(
        "resident after an event each {:>3} MB",
        resident_mb(server.pid())
    );
    if arguments.uploads > 0 {
        uploads(&server, arguments.uploads).await;
    }
    server.stop().await;
}

fn tenant_file(n: usize) -> String {
    format!(
        "[[source]]\nname = 'in'\nkind = 'json'\nopen = true\n\
         [[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = 'http://127.0.0.1:9/{n}'\n\
         [[rule]]\nname = 'triage'\nmodule = 'policy:github-triage'\nevents = ['issues.*']\n\
         [rule.config]\nchat = 'hook'\nmail = 'hook'\nme = ['team-{n}']\n\
         [[rule]]\nname = 'probe'\nmodule = 'probe.wasm'\nevents = ['*']\n\
         [rule.config]\ngreeting = 'tenant {n}'\n"
    )
}

/// From the first byte of the upload to the answer that says that the version is live.
async fn uploads(server: &Server, count: usize) {
    let mut took_ms = Vec::with_capacity(count);
    for n in 0..count {
        let mut wasm = TRIAGE_COMMAND.to_vec();
        // A custom section: another module, compiled anew.
        let text = format!("upload {n:09}");
        wasm.extend([0, text.len() as u8 + 2, 1, b'n']);
        wasm.extend(text.as_bytes());
        let sha256: String = Sha256::digest(&wasm)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let began = Instant::now();
        let path = format!("/v1/tenants/t{}/modules/{sha256}", n % 100);
        put(
            server,
            reqwest::Method::PUT,
            &path,
            wasm,
            "application/wasm",
        )
        .await;
        let version = json!({
            "module": sha256, "events": ["*"], "as": "live",
            "config": { "chat": "hook", "mail": "hook" },
        });
        let path = format!("/v1/tenants/t{}/rules/uploaded/versions", n % 100);
        let body = version.to_string().into_bytes();
        put(
            server,
            reqwest::Method::POST,
            &path,
            body,
            "application/json",
        )
        .await;
        took_ms.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    took_ms.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| took_ms[((took_ms.len() - 1) as f64 * share).round() as usize];
    println!(
        "upload to active   {:>9.0} ms p50, {:.0} ms p99, {:.0} ms at most, {} kB",
        at(0.5),
        at(0.99),
        at(1.0),
        TRIAGE_COMMAND.len() / 1_000
    );
}

async fn put(server: &Server, method: reqwest::Method, path: &str, body: Vec<u8>, kind: &str) {
    let url = format!("{}{path}", server.base);
    let request = server.client.request(method, url).bearer_auth(TOKEN);
    let sent = request.header("content-type", kind).body(body).send().await;
    let answer = sent.expect("the engine answers");
    let status = answer.status();
    let told: Value = answer.json().await.expect("JSON");
    assert!(status.is_success(), "{told}");
}
