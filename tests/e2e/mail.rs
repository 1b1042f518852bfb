//! Email to a real mail server (aiosmtpd), over STARTTLS with a certificate of the test's own, and
//! read back by Python's email package.

use hooksieve_tests::{PATIENCE, Python, Server, Setup, python, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const USER: &str = "hooks";
const PASSWORD: &str = "made-up, with spaces & ünïcode";

/// A mail server; it ends with this value.
struct Mail {
    child: Child,
    port: u16,
    /// What it printed after its port.
    received: Arc<Mutex<Vec<Value>>>,
    /// The authority that signed its certificate is in `ca.pem` here.
    dir: Arc<TempDir>,
}

/// A folder with an authority (`ca.pem`), a certificate of it for localhost, its key, and no records.
fn certified() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        std::fs::write(dir.path().join(name), text).unwrap();
    };
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = "an authority for tests";
    authority.distinguished_name.push(DnType::CommonName, name);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    write("ca.pem", authority.pem());
    write("certificate.pem", certificate.pem());
    write("key.pem", key.serialize_pem());
    write("records.json", "{}".into());
    dir
}

impl Mail {
    async fn start(python: &Python) -> Self {
        Self::run(python, Arc::new(certified()), 0).await
    }

    /// With these certificates, at this port; 0 is any.
    async fn run(python: &Python, dir: Arc<TempDir>, port: u16) -> Self {
        let mut child = python
            .script("smtpd.py")
            .arg(dir.path().join("certificate.pem"))
            .arg(dir.path().join("key.pem"))
            .args([USER, PASSWORD])
            .arg(dir.path().join("records.json"))
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = tokio::task::spawn_blocking(move || (lines.next(), lines));
        let (first, lines) = tokio::time::timeout(PATIENCE, first)
            .await
            .unwrap()
            .unwrap();
        let port = first.expect("a port").unwrap().parse().unwrap();
        let list = received.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                list.lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap());
            }
        });
        Self {
            child,
            port,
            received,
            dir,
        }
    }

    async fn wait_for(&self, count: usize) -> Vec<Value> {
        until("mail", || async {
            let received = self.received.lock().unwrap();
            (received.len() >= count).then(|| received.clone())
        })
        .await
    }

    /// An engine with an email channel to this server; `more` is the channel's other settings.
    async fn engine(&self, password: &str, to: &str, more: &str) -> Server {
        let tenant = format!(
            "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\n\
             [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n[rule.config]\ngreeting = 'because of the test'\n\
             [[channel]]\nname = 'mail'\nkind = 'email'\nhost = 'localhost'\nport = {}\n\
             username = '{USER}'\npassword = {{ env = 'MAIL_PASSWORD' }}\n\
             from = 'Hooks <hooks@example.com>'\nto = [{to}]\n{more}",
            self.port
        );
        let ca = self.dir.path().join("ca.pem");
        Setup::new()
            .env("MAIL_PASSWORD", password)
            .config(&format!(
                "[dispatch]\nretry_ms = [10, 20]\n[egress]\nca_file = '{}'\n",
                ca.display()
            ))
            .tenant("acme", &tenant)
            .start()
            .await
    }
}

impl Drop for Mail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A message in which every part tries to be more than text.
fn hostile() -> String {
    json!({
        "do": "notify",
        "title": "🚨 Disk full\r\nBcc: everyone@example.com\r\n\r\nbody",
        "text": "Grüße 💥 <script>alert(1)</script>\r\n.\r\nQUIT\r\nsecond line",
        "link": "https://example.com/?a=1&b=<2>",
        "fields": [{ "name": "Host\r\nX-Evil: 1", "value": "db-1 <b>" }],
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_message_arrives_as_text() {
    let Ok(python) = python() else { return };
    let mail = Mail::start(&python).await;
    let server = mail
        .engine(
            PASSWORD,
            "'Ops <ops@example.com>', 'dev@example.com'",
            "reply_to = 'team@example.com'\n",
        )
        .await;
    let taken = server.post_json("/in/acme/open", &hostile()).await;
    let story = server.settled(&taken.id()).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "delivered", "{delivery}");
    assert_eq!(delivery["attempts"][0]["status"], 250);
    let got = mail.wait_for(1).await;
    let got = &got[0];
    assert_eq!((&got["tls"], &got["user"]), (&json!(true), &json!(USER)));
    assert_eq!(got["mail_from"], "hooks@example.com");
    assert_eq!(
        got["recipients"],
        json!(["ops@example.com", "dev@example.com"])
    );
    assert_eq!(
        got["subject"],
        "🚨 Disk full Bcc: everyone@example.com body"
    );
    assert_eq!(got["from"], "Hooks <hooks@example.com>");
    assert_eq!(got["to"], "Ops <ops@example.com>, dev@example.com");
    assert_eq!(got["reply_to"], "team@example.com");
    let id = format!("<{}@example.com>", delivery["id"].as_str().unwrap());
    assert_eq!(got["message_id"], id);
    assert_eq!(got["content_type"], "multipart/alternative");
    assert_eq!(got["defects"], json!([]));
    let headers = got["headers"].as_array().unwrap();
    for header in headers {
        let name = header[0].as_str().unwrap().to_lowercase();
        assert!(
            !["bcc", "cc", "x-evil"].contains(&name.as_str()),
            "{headers:?}"
        );
    }
    let text = got["text"].as_str().unwrap().replace("\r\n", "\n");
    assert!(
        text.contains("Grüße 💥 <script>alert(1)</script>\n.\nQUIT\nsecond line"),
        "{text}"
    );
    assert!(text.contains("because of the test"), "{text}");
    let html = got["html"].as_str().unwrap();
    assert!(
        html.contains("Grüße 💥 &lt;script&gt;alert(1)&lt;/script&gt;"),
        "{html}"
    );
    assert!(!html.contains("<script") && !html.contains("<b>"), "{html}");
    assert!(
        html.contains("href=\"https://example.com/?a=1&amp;b=%3C2%3E\""),
        "{html}"
    );
    // A second one over the connection that waits.
    let taken = server
        .post_json("/in/acme/open", r#"{"do": "notify", "title": "again"}"#)
        .await;
    server.settled(&taken.id()).await;
    assert_eq!(mail.wait_for(2).await[1]["subject"], "again");
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_recorded() {
    let Ok(python) = python() else { return };
    let mail = Mail::start(&python).await;
    let server = mail.engine("wrong", "'ops@example.com'", "").await;
    let taken = server.post_json("/in/acme/open", &hostile()).await;
    let story = server.settled(&taken.id()).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "dead");
    let attempts = delivery["attempts"].as_array().unwrap();
    assert_eq!(
        attempts.len(),
        3,
        "settings can be mended, so it is tried again"
    );
    for attempt in attempts {
        assert_eq!(attempt["status"], 535);
        let error = attempt["error"].as_str().unwrap();
        assert!(
            error.starts_with("localhost refused the username or password: 535 "),
            "{error}"
        );
        assert!(!error.contains("wrong"), "{error}");
    }
    assert_eq!(mail.received.lock().unwrap().len(), 0);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_refused_recipient_does_not_keep_it_from_the_others() {
    let Ok(python) = python() else { return };
    let mail = Mail::start(&python).await;
    let server = mail
        .engine(
            PASSWORD,
            "'ops@example.com', 'nobody@example.com', 'later@example.com'",
            "",
        )
        .await;
    let taken = server
        .post_json("/in/acme/open", r#"{"do": "notify", "title": "hello"}"#)
        .await;
    let story = server.settled(&taken.id()).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "delivered", "{delivery}");
    let attempts = delivery["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    assert_eq!(
        attempts[0]["refused"],
        json!([
            "nobody@example.com: 550 5.1.1 there is no such user",
            "later@example.com: 451 4.7.1 come back later",
        ])
    );
    assert_eq!(
        attempts[1]["refused"],
        json!(["nobody@example.com: 550 5.1.1 there is no such user"])
    );
    // Whoever has it is not sent it again.
    let got = mail.wait_for(2).await;
    assert_eq!(got[0]["recipients"], json!(["ops@example.com"]));
    assert_eq!(got[1]["recipients"], json!(["later@example.com"]));
    assert_eq!(got[0]["message_id"], got[1]["message_id"]);
    server.end().await;
}

/// A server whose certificate nobody vouches for is told nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_no_mail() {
    let Ok(python) = python() else { return };
    let (mail, other) = (Mail::start(&python).await, Mail::start(&python).await);
    std::fs::copy(
        other.dir.path().join("ca.pem"),
        mail.dir.path().join("ca.pem"),
    )
    .unwrap();
    let server = mail.engine(PASSWORD, "'ops@example.com'", "").await;
    let taken = server.post_json("/in/acme/open", &hostile()).await;
    let story = server.settled(&taken.id()).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "dead");
    let error = delivery["attempts"][0]["error"].as_str().unwrap();
    assert!(
        error.starts_with("the certificate of localhost is not trusted: "),
        "{error}"
    );
    assert_eq!(mail.received.lock().unwrap().len(), 0);
    server.end().await;
}

/// What is signed here is verified by another's library, with either kind of key, and not once a word
/// of it has changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_mail_verifies() {
    let Ok(python) = python() else { return };
    let made = python.script("dkimkeys.py").output().unwrap();
    let keys: Value = serde_json::from_slice(&made.stdout).unwrap();
    let mail = Mail::start(&python).await;
    let records = json!({
        "rsa._domainkey.example.com": keys["rsa"]["record"],
        "ed25519._domainkey.example.com": keys["ed25519"]["record"],
    });
    std::fs::write(mail.dir.path().join("records.json"), records.to_string()).unwrap();
    // Headers that are signed need not be there.
    let full =
        "reply_to = 'team@example.com'\nlist_unsubscribe = 'https://example.com/stop?who=ops'\n";
    let cases = [("rsa", full), ("ed25519", full), ("rsa", "")];
    for (n, (kind, more)) in cases.into_iter().enumerate() {
        let path = mail.dir.path().join(kind);
        std::fs::write(&path, keys[kind]["key"].as_str().unwrap()).unwrap();
        let settings = format!(
            "{more}dkim = {{ domain = 'example.com', selector = '{kind}', key = {{ file = '{}' }} }}\n",
            path.display()
        );
        let server = mail.engine(PASSWORD, "'ops@example.com'", &settings).await;
        let taken = server.post_json("/in/acme/open", &hostile()).await;
        let story = server.settled(&taken.id()).await;
        let delivery = &story["deliveries"][0];
        assert_eq!(delivery["state"], "delivered", "{delivery}");
        let got = &mail.wait_for(n + 1).await[n];
        assert_eq!(got["dkim"], true, "{kind}: {got}");
        if more.is_empty() {
            server.end().await;
            continue;
        }
        for changed in got["dkim_changed"].as_array().unwrap() {
            assert_ne!(changed, true, "{kind}: {got}");
        }
        let header = |name: &str| -> String {
            let headers = got["headers"].as_array().unwrap();
            let found = headers.iter().find(|header| {
                let found = header[0].as_str().unwrap();
                found.eq_ignore_ascii_case(name)
            });
            found.map_or_else(String::new, |it| it[1].as_str().unwrap().to_owned())
        };
        assert_eq!(
            header("List-Unsubscribe"),
            "<https://example.com/stop?who=ops>"
        );
        assert_eq!(
            header("List-Unsubscribe-Post"),
            "List-Unsubscribe=One-Click"
        );
        let signature = header("DKIM-Signature");
        assert!(signature.contains("d=example.com"), "{signature}");
        server.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_after_the_data_gets_the_same_message_again() {
    let Ok(python) = python() else { return };
    let mail = Mail::start(&python).await;
    let server = mail.engine(PASSWORD, "'dies@example.com'", "").await;
    let taken = server.post_json("/in/acme/open", &hostile()).await;
    let story = server.settled(&taken.id()).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "delivered", "{delivery}");
    let attempts = delivery["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2);
    assert_eq!(attempts[0]["ambiguous"], true, "{delivery}");
    // Whoever reads it can tell that it is one message.
    let received = mail.wait_for(2).await;
    assert_eq!(received[0]["message_id"], received[1]["message_id"]);
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_the_message_ends_it() {
    let Ok(python) = python() else { return };
    let mail = Mail::start(&python).await;
    let server = mail.engine(PASSWORD, "'refuses@example.com'", "").await;
    let taken = server.post_json("/in/acme/open", &hostile()).await;
    let story = server.settled(&taken.id()).await;
    let delivery = &story["deliveries"][0];
    assert_eq!(delivery["state"], "dead");
    let attempts = delivery["attempts"].as_array().unwrap();
    assert_eq!((attempts.len(), &attempts[0]["status"]), (1, &json!(554)));
    server.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_waits_for_a_server_that_is_down() {
    let Ok(python) = python() else { return };
    let mail = Mail::start(&python).await;
    let retry = "retry_ms = [100, 200, 400, 800, 1600, 3200, 3200, 3200, 3200, 3200]";
    let server = mail.engine(PASSWORD, "'ops@example.com'", retry).await;
    let (dir, port) = (mail.dir.clone(), mail.port);
    drop(mail);
    let taken = server.post_json("/in/acme/open", &hostile()).await.id();
    until("an attempt fails", || async {
        let story = server.story(&taken).await;
        let attempts = story["deliveries"][0]["attempts"].as_array()?.len();
        (attempts > 0).then_some(())
    })
    .await;
    // Another one in its place has another certificate: it gets nothing.
    let stranger = Mail::run(&python, Arc::new(certified()), port).await;
    until("an attempt at a stranger", || async {
        let story = server.story(&taken).await;
        let last = story["deliveries"][0]["attempts"]
            .as_array()?
            .last()?
            .clone();
        let error = last["error"].as_str()?;
        error.contains("certificate").then_some(())
    })
    .await;
    assert_eq!(stranger.received.lock().unwrap().len(), 0);
    drop(stranger);
    let mail = Mail::run(&python, dir, port).await;
    let story = server.settled(&taken).await;
    assert_eq!(story["deliveries"][0]["state"], "delivered");
    assert_eq!(mail.wait_for(1).await.len(), 1);
    server.end().await;
}
