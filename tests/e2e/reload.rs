//! Files that are read again while the engine runs: tenants, and the certificate.

use super::uploads::{As, token};
use hooksieve_tests::{PROBE, Receiver, Server, Setup, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use std::path::Path;

fn tenant(hook: &Receiver, channels: &[&str], rules: &[&str]) -> String {
    let mut file = "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n".to_owned();
    for channel in channels {
        let url = hook.url(&format!("/{channel}"));
        file += &format!("[[channel]]\nname = '{channel}'\nkind = 'webhook'\nurl = '{url}'\n");
    }
    for rule in rules {
        file += &format!(
            "[[rule]]\nname = '{rule}'\nmodule = 'probe.wasm'\nevents = ['*']\n\
             [rule.config]\ngreeting = '{rule}'\n"
        );
    }
    file
}

async fn post(server: &Server, tenant: &str, channel: &str) -> Value {
    let event = json!({ "do": "post", "channel": channel, "payload": 1 }).to_string();
    let path = format!("/in/{tenant}/open");
    let id = server.post_json(&path, &event).await.id();
    server.settled(&id).await
}

/// Asks for the files to be read, and waits until the log says so often that they were, or were not.
async fn hang_up(server: &Server, says: &str, times: usize) {
    server.hang_up();
    until(says, || async {
        (server.said().matches(says).count() == times).then_some(())
    })
    .await;
}

const TAKEN: &str = "the tenants' files are read again";
const NOT_TAKEN: &str = "the tenants' files are not taken";

#[tokio::test(flavor = "multi_thread")]
async fn tenants_come_change_and_go_without_a_restart() {
    let hook = Receiver::start().await;
    let setup = Setup::new().tenant("acme", &tenant(&hook, &["hook"], &["one"]));
    let file = |name: &str| setup.tenants().join(format!("{name}.toml"));
    let server = setup.start().await;
    let author = As(&server, token(&server, Some("acme"), "author").await);
    assert_eq!(author.upload("acme", PROBE).await.status, 201);
    let made = author.version("uploaded", json!({ "as": "live" })).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let rules = |story: &Value| -> Vec<String> {
        let decisions = story["decisions"].as_array().unwrap();
        let rules = decisions
            .iter()
            .map(|it| it["rule"].as_str().unwrap().to_owned());
        let mut rules: Vec<_> = rules.collect();
        rules.sort_unstable();
        rules
    };
    assert_eq!(rules(&post(&server, "acme", "hook").await), ["one", "own"]);
    hook.wait_for(2).await;

    // A channel and a rule more, and a tenant that was not there before.
    let changed = tenant(&hook, &["hook", "second"], &["one", "two"]);
    std::fs::write(file("acme"), changed).unwrap();
    std::fs::write(file("late"), tenant(&hook, &["hook"], &["first"])).unwrap();
    server
        .post_json("/in/late/open", "{}")
        .await
        .problem(404, "unknown-source");
    hang_up(&server, TAKEN, 1).await;
    let story = post(&server, "acme", "second").await;
    assert_eq!(rules(&story), ["one", "own", "two"]);
    for delivery in story["deliveries"].as_array().unwrap() {
        assert_eq!(
            (&delivery["channel"], &delivery["state"]),
            (&json!("second"), &json!("delivered"))
        );
    }
    assert_eq!(rules(&post(&server, "late", "hook").await), ["first"]);
    hook.wait_for(6).await;
    let listed = server.get("/v1/tenants").await.json();
    assert_eq!(listed[1]["name"], "late");

    // A mistake is told with its place, and changes nothing.
    std::fs::write(
        file("late"),
        "[[rule]]\nname = 'first'\nmodul = 'probe.wasm'\n",
    )
    .unwrap();
    hang_up(&server, NOT_TAKEN, 1).await;
    let said = server.said();
    let told = said.lines().find(|line| line.contains(NOT_TAKEN)).unwrap();
    assert!(told.contains("late.toml:"), "{told}");
    assert_eq!(rules(&post(&server, "late", "hook").await), ["first"]);
    let module = "[[rule]]\nname = 'first'\nmodule = 'bad.wasm'\nevents = ['*']\n";
    std::fs::write(setup.tenants().join("bad.wasm"), b"no wasm").unwrap();
    std::fs::write(file("late"), module).unwrap();
    hang_up(&server, NOT_TAKEN, 2).await;
    assert_eq!(rules(&post(&server, "late", "hook").await), ["first"]);

    // A tenant that is gone takes nothing any more; the other goes on.
    std::fs::remove_file(file("late")).unwrap();
    std::fs::write(file("acme"), tenant(&hook, &["hook"], &["one"])).unwrap();
    hang_up(&server, TAKEN, 2).await;
    server
        .post_json("/in/late/open", "{}")
        .await
        .problem(404, "unknown-source");
    let gone = server.get("/v1/tenants/late/rules").await;
    gone.problem(404, "not-found");
    assert_eq!(rules(&post(&server, "acme", "hook").await), ["one", "own"]);
    // And comes back.
    std::fs::write(file("late"), tenant(&hook, &["hook"], &["again"])).unwrap();
    hang_up(&server, TAKEN, 3).await;
    assert_eq!(rules(&post(&server, "late", "hook").await), ["again"]);
    server.end().await;
}

/// A certificate for this machine of an authority of its own; returns the authority's.
fn certify(folder: &Path) -> String {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = "an authority for tests";
    authority.distinguished_name.push(DnType::CommonName, name);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    authority.pem()
}

fn trusting(authority: &str) -> reqwest::Client {
    let authority = reqwest::Certificate::from_pem(authority.as_bytes()).unwrap();
    reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([authority])
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_speaks_tls_and_takes_a_renewed_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let first = certify(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let hook = Receiver::start().await;
    let setup = Setup::new()
        .tenant("acme", &tenant(&hook, &["hook"], &["one"]))
        .config(&format!(
            "[server]\nrequest_timeout_ms = 500\ntls_cert = '{cert}'\ntls_key = '{key}'\n"
        ));
    let server = setup.start().await;
    assert!(
        server.base.starts_with("https://127.0.0.1:"),
        "{}",
        server.base
    );
    let health = format!("{}/healthz", server.base);
    let asked = async |client: reqwest::Client| {
        let answer = client.get(&health).send().await.ok()?;
        (answer.status() == 200).then_some(())
    };
    asked(trusting(&first)).await.expect("it is trusted");
    // A client without TLS, and one that says nothing, are let go.
    let addr = server.base.strip_prefix("https://").unwrap();
    let plain = trusting(&first)
        .get(format!("http://{addr}/healthz"))
        .send()
        .await;
    assert!(plain.is_err(), "{plain:?}");
    let mut silent = tokio::net::TcpStream::connect(addr).await.unwrap();
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut rest)
        .await
        .unwrap();
    assert_eq!(rest, b"");

    let second = certify(folder.path());
    assert!(asked(trusting(&second)).await.is_none());
    hang_up(&server, TAKEN, 1).await;
    asked(trusting(&second))
        .await
        .expect("the renewed one is there");
    assert!(asked(trusting(&first)).await.is_none());
    // Half of a renewal is not taken.
    std::fs::write(&key, "no key").unwrap();
    hang_up(&server, "the certificate is not taken", 1).await;
    assert!(server.said().contains("tls_key cannot be read"));
    asked(trusting(&second)).await.expect("it is still there");
    server.stop().await;

    let (code, said) = setup.refused(&[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("tls_key cannot be read"), "{said}");
    let half = Setup::new()
        .tenant("acme", &tenant(&hook, &["hook"], &["one"]))
        .config(&format!("[server]\ntls_cert = '{cert}'\n"));
    let (code, said) = half.refused(&[]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("`tls_cert` of [server] needs `tls_key` beside it"),
        "{said}"
    );
}
