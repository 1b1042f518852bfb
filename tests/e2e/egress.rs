//! A tenant names receivers, and the engine stands in the operator's network: nothing is sent to what
//! is not on the internet, however its address is written, unless the operator allows it.

use hooksieve_tests::{ALLOW, PATIENCE, Receiver, Server, Setup, may_mount, python};
use serde_json::json;

/// Names are asked for again, so few times and soon.
const HASTY: &str = "[dispatch]\nretry_ms = [10]\n";

/// A tenant with these channels, all of which its rule may name.
fn tenant(channels: &[String]) -> String {
    let channels: String = channels
        .iter()
        .enumerate()
        .map(|(n, settings)| format!("[[channel]]\nname = 'c{n}'\n{settings}\n"))
        .collect();
    format!(
        "[[source]]\nname = 'open'\nkind = 'json'\nopen = true\ntype = 'test'\n{channels}
         [[rule]]\nname = 'one'\nmodule = 'probe.wasm'\nevents = ['*']\n"
    )
}

/// Has the rule tell all these channels; gives each delivery's state and reason.
async fn told(server: &Server, channels: usize) -> Vec<(String, String)> {
    let mut told = Vec::new();
    let names: Vec<String> = (0..channels).map(|n| format!("c{n}")).collect();
    // A decision has at most 16 actions.
    for names in names.chunks(16) {
        let event = json!({ "do": "everywhere", "channels": names }).to_string();
        let id = server.post_json("/in/acme/open", &event).await.id();
        let story = server.settled(&id).await;
        for delivery in story["deliveries"].as_array().unwrap() {
            let text = |key: &str| delivery[key].as_str().unwrap_or_default().to_owned();
            told.push((text("state"), text("reason")));
        }
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_to_what_is_not_on_the_internet() {
    let hook = Receiver::start().await;
    let port = hook.url("").rsplit(':').next().unwrap().to_owned();
    let port = port.trim_end_matches('/');
    // Ways to write an address at which something answers on this machine.
    let here = [
        "127.0.0.1",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "127.1",
        "127.0.1",
        "127.0.0.2",
        "127.255.255.254",
        "0x7f.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "0177.0.0.1",
        "0177.1",
        "017700000001",
        "2130706433",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "１２７.０.０.１",
        "127。0。0。1",
        "0.0.0.0",
        "0",
        "[::]",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:0.0.0.0]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "user@127.0.0.1",
        "example.com@127.0.0.1",
        "example.com:80@localhost",
    ];
    // What only the operator's network or its cloud has.
    let inside = [
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
        "http://169.254.169.254./",
        "http://0xa9fea9fe/",
        "http://2852039166/",
        "http://0251.0376.0251.0376/",
        "http://169.254.170.2/v2/credentials",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::]/",
        "http://[fd00:ec2::254]/latest/",
        "http://100.100.100.200/latest/meta-data/",
        "http://192.0.0.192/latest/",
        "http://168.63.129.16/machine",
        "http://10.0.0.1/",
        "http://10.255.255.255/",
        "http://0xa.1/",
        "http://167772161/",
        "https://10.96.0.1/",
        "http://172.16.0.1:8500/v1/kv",
        "http://172.31.255.254/",
        "http://192.168.0.1/",
        "http://192.168.255.255/",
        "http://100.64.0.1/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://239.255.255.250:1900/",
        "http://255.255.255.255/",
        "http://240.0.0.1/",
        "http://[fc00::1]/",
        "http://[fd12:3456::1]/",
        "http://[fe80::1]/",
        "http://[ff02::1]/",
        "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
        "http://[64:ff9b:1::a00:1]/",
        "https://[::1]/",
    ];
    let urls = here.map(|host| format!("http://{host}:{port}/in"));
    let urls = urls.into_iter().chain(inside.map(str::to_owned));
    let mut channels: Vec<String> = urls
        .map(|url| format!("kind = 'webhook'\nurl = '{url}'"))
        .collect();
    for host in ["localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        channels.push(format!(
            "kind = 'email'\nhost = '{host}'\nport = {port}\ntls = 'none'\nfrom = 'a@acme.example'\nto = ['b@acme.example']"
        ));
    }
    assert!(channels.len() >= 64);
    let setup = Setup::new()
        .without_env(ALLOW)
        .config(HASTY)
        .tenant("acme", &tenant(&channels));
    let server = setup.start().await;
    let told = told(&server, channels.len()).await;
    assert_eq!(told.len(), channels.len());
    for ((state, reason), channel) in told.iter().zip(&channels) {
        assert_eq!(state, "dead", "{channel}: {reason}");
        // Not every system knows this name.
        let unknown = channel.contains("localhost.") && reason.contains("no connection");
        assert!(
            unknown
                || reason.contains("nothing was sent to ")
                    && reason.contains("under [egress] allow"),
            "{channel}: {reason}"
        );
        // What a name led to is not a tenant's to know.
        for what in ["127.0.0.1 is", "loopback", "private", "link-local"] {
            assert!(!reason.contains(what), "{channel}: {reason}");
        }
    }
    server.stop().await;
    assert_eq!(hook.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_allows_a_network() {
    let hook = Receiver::start().await;
    let other = hook.url("/in").replace("127.0.0.1", "127.0.0.2");
    let channels = [hook.url("/in"), other].map(|url| format!("kind = 'webhook'\nurl = '{url}'"));
    let setup = Setup::new()
        .env(ALLOW, "127.0.0.1, 10.0.0.0/8")
        .config(HASTY)
        .tenant("acme", &tenant(&channels));
    let server = setup.start().await;
    let told = told(&server, channels.len()).await;
    assert_eq!(told[0].0, "delivered", "{told:?}");
    assert_eq!(told[1].0, "dead", "{told:?}");
    server.stop().await;
    assert_eq!(hook.count(), 1);
    let setup = Setup::new().env(ALLOW, "10.0.0.0/33");
    let (code, said) = setup.refused(&[]);
    assert_eq!(code, 2);
    assert!(said.contains("HOOKSIEVE_EGRESS__ALLOW"), "{said}");
    assert!(said.contains("\"10.0.0.0/33\" is not a network"), "{said}");
}

/// A name server that answers with another address each time; it ends with this value.
struct Names {
    child: std::process::Child,
    asked: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
}

/// An address of this machine at which nobody else has a name server.
const NAMES_AT: &str = "127.53.53.53";

impl Names {
    async fn start(python: &hooksieve_tests::Python, turns: &[&str]) -> Self {
        use std::io::BufRead as _;

        let mut child = python
            .script("nameserver.py")
            .arg(NAMES_AT)
            .args(turns)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let first = tokio::task::spawn_blocking(move || (lines.next(), lines));
        let first = tokio::time::timeout(PATIENCE, first).await.unwrap();
        let (first, lines) = first.unwrap();
        assert_eq!(first.expect("a line").unwrap(), "listens");
        let asked = std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default();
        let all = asked.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                all.lock().unwrap().push(line);
            }
        });
        Self { child, asked }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a rebinding attack does: the name has an address of the internet when it is checked, and one of
/// this machine when it is connected to.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_whose_address_changes_reaches_nothing_inside() {
    let Ok(()) = may_mount() else { return };
    let Ok(python) = python() else { return };
    let names = Names::start(&python, &["1.1.1.1", "127.0.0.1"]).await;
    let inside = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = inside.local_addr().unwrap().port();
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while inside.accept().await.is_ok() {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let quick = "timeout_ms = 300\nretry_ms = [10, 10, 10]\n";
    let mut channels: Vec<_> = (0..12)
        .map(|n| format!("kind = 'webhook'\nurl = 'http://turns{n}.test:{port}/'\n{quick}"))
        .collect();
    channels.extend((0..3).map(|n| {
        format!(
            "kind = 'email'\nhost = 'mail{n}.test'\nport = {port}\ntls = 'none'\n\
             from = 'a@example.com'\nto = ['b@example.com']\n{quick}"
        )
    }));
    let setup = Setup::new()
        .without_env(ALLOW)
        .resolver(NAMES_AT)
        .tenant("acme", &tenant(&channels));
    let server = setup.start().await;
    let names_of: Vec<String> = (0..channels.len()).map(|n| format!("c{n}")).collect();
    let event = json!({ "do": "everywhere", "channels": names_of }).to_string();
    let id = server.post_json("/in/acme/open", &event).await.id();
    let story = server.settled(&id).await;
    let mut errors = Vec::new();
    for delivery in story["deliveries"].as_array().unwrap() {
        assert_eq!(delivery["state"], "dead", "{delivery}");
        let attempts = delivery["attempts"].as_array().unwrap();
        errors.extend(attempts.iter().map(|attempt| attempt["error"].to_string()));
    }
    let refused = errors
        .iter()
        .filter(|error| error.contains("nothing was sent to"));
    let refused = refused.count();
    let asked = names.asked.lock().unwrap().clone();
    let questions = asked.iter().filter(|line| line.starts_with("A ")).count();
    // Each attempt asked once: what was checked is what was connected to.
    assert_eq!(questions, errors.len(), "{asked:?}\n{errors:?}");
    assert!(errors.len() >= 30, "{errors:?}");
    // Every second answer was refused; the others went to the internet, or tried to.
    assert!(
        refused >= errors.len() / 3 && refused < errors.len(),
        "{errors:?}"
    );
    let reached = connections.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(reached, 0, "{errors:?}");
    server.end().await;
}
