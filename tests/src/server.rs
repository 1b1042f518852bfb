//! The engine as a child process, on a folder of its own.

use crate::program::{command, program};
use crate::{Absent, PATIENCE, PROBE, Traced, sign, until};
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A folder that an engine runs on: `tenants/`, `data/`, `hooksieve.toml`, and `probe.wasm` beside
/// the tenants. It outlives the engines, so that a test can restart.
pub struct Setup {
    dir: Arc<TempDir>,
    config: String,
    env: Vec<(String, String)>,
    /// The name server that the engine asks, where it is not the machine's.
    resolver: Option<String>,
}

/// The operator token of every test's engine. Made up, like every secret here.
pub const TOKEN: &str = "a-token-for-tests-alone";

/// The variable that says where an engine may send to besides the internet: every test's receivers are
/// on this machine.
pub const ALLOW: &str = "HOOKSIEVE_EGRESS__ALLOW";

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("tenants")).expect("a folder for tenants");
        Self {
            dir: Arc::new(dir),
            config: String::new(),
            env: vec![
                ("HOOKSIEVE_OPERATOR_TOKEN".into(), TOKEN.into()),
                (ALLOW.into(), "127.0.0.0/8, ::1".into()),
            ],
            resolver: None,
        }
        .file("probe.wasm", PROBE)
    }

    /// Writes (or rewrites) a tenant's file.
    pub fn tenant(self, name: &str, toml: &str) -> Self {
        self.file(&format!("{name}.toml"), toml.as_bytes())
    }

    /// Writes a file beside the tenants', such as a module.
    pub fn file(self, name: &str, bytes: &[u8]) -> Self {
        let path = self.tenants().join(name);
        std::fs::write(path, bytes).expect("the folder takes a file");
        self
    }

    /// Settings that differ from the defaults.
    pub fn config(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.config);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Takes a variable away again, the operator token among them.
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self
    }

    /// Has the engine ask this name server. Takes the right to mount a file over `/etc/resolv.conf`,
    /// which the engine alone sees.
    pub fn resolver(mut self, address: &str) -> Self {
        self.resolver = Some(address.to_owned());
        self
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn tenants(&self) -> PathBuf {
        self.dir.path().join("tenants")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self, more: &[&str]) -> std::process::Command {
        let config = self.dir.path().join("hooksieve.toml");
        std::fs::write(&config, &self.config).expect("the folder takes a file");
        let mut command = command(&["serve"]);
        command
            .arg("--config")
            .arg(config)
            // Not as options, which a test may want to give itself.
            .env("HOOKSIEVE_SERVER__TENANTS", self.tenants())
            .env("HOOKSIEVE_SERVER__DATA", self.data())
            .args(more)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(address) = &self.resolver {
            command = self.resolving_at(address, &command);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn resolving_at(&self, address: &str, inner: &std::process::Command) -> std::process::Command {
        let conf = self.dir.path().join("resolv.conf");
        let text = format!("nameserver {address}\noptions attempts:1 timeout:2\n");
        std::fs::write(&conf, text).expect("the folder takes a file");
        let mut command = std::process::Command::new("unshare");
        let script = r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#;
        command.args(["--mount", "sh", "-c", script]);
        command.arg(conf).arg(inner.get_program());
        command.args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Runs `serve` where it must not start: its exit code and what it said.
    pub fn refused(&self, more: &[&str]) -> (i32, String) {
        let child = self.command(more).spawn().expect("the program starts");
        let mut child = Running(child);
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.0.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(started.elapsed() < PATIENCE, "it started all the same");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        let stderr = child.0.stderr.as_mut().expect("standard error is a pipe");
        stderr
            .read_to_string(&mut said)
            .expect("what it says is text");
        (status.code().unwrap_or(-1), said)
    }

    /// Starts the engine as one that is killed at the `kill_at`th call that changes the data folder; see [`Traced`].
    ///
    /// # Errors
    /// When this user may not trace it.
    pub fn start_traced(&self, kill_at: usize) -> Result<Traced, Absent> {
        program();
        let mut command = self.command(&["--listen", "127.0.0.1:0"]);
        command.stderr(Stdio::null());
        std::fs::create_dir_all(self.data()).expect("the folder takes a folder");
        Traced::start(command, &self.data(), kill_at)
    }

    /// Starts the engine; when this returns, its port is open.
    pub async fn start(&self) -> Server {
        program();
        let child = self
            .command(&["--listen", "127.0.0.1:0"])
            .spawn()
            .expect("the program starts");
        let mut child = Running(child);
        let said = Arc::new(Mutex::new(String::new()));
        let stderr = child.0.stderr.take().expect("standard error is a pipe");
        let log = said.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut stdout = BufReader::new(child.0.stdout.take().expect("standard output is a pipe"));
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).map(|_| (line, stdout))
        });
        let (line, stdout) = first.await.expect("reading").expect("a first line");
        let base = line
            .split_once("listens on ")
            .and_then(|(_, rest)| rest.split(' ').next());
        let Some(base) = base else {
            // It ended; what it said comes through the thread.
            let _ = child.0.wait();
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            panic!("the engine did not start: {line}{said}");
        };
        Server {
            base: base.to_owned(),
            client: client(),
            said,
            accepted: Mutex::default(),
            child: Some(child),
            _stdout: stdout,
            _dir: self.dir.clone(),
        }
    }
}

fn client() -> reqwest::Client {
    // Fails only where a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .expect("a client")
}

/// A child process that does not outlive its test, ended by its own id.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the engine answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub(crate) async fn of(response: reqwest::Response) -> reqwest::Result<Self> {
        Ok(Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await?,
        })
    }

    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {}", self.body),
        }
    }

    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The event's id, of an answer that took one.
    #[track_caller]
    pub fn id(&self) -> String {
        assert_eq!(self.status, 202, "{}", self.body);
        self.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Checks that it is a problem of this kind, in the form that all problems have; gives its detail.
    #[track_caller]
    pub fn problem(&self, status: u16, kind: &str) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let json = self.json();
        assert_eq!(json["status"], status);
        assert_eq!(json["type"], format!("urn:hooksieve:problem:{kind}"));
        assert!(
            json["title"]
                .as_str()
                .is_some_and(|title| !title.is_empty())
        );
        json["detail"].as_str().expect("a detail").to_owned()
    }
}

/// A running engine.
pub struct Server {
    pub base: String,
    pub client: reqwest::Client,
    said: Arc<Mutex<String>>,
    accepted: Mutex<Vec<String>>,
    /// `None` once it was ended.
    child: Option<Running>,
    // Closed, it would turn every later line into a broken pipe.
    _stdout: BufReader<std::process::ChildStdout>,
    /// The folder lasts as long as whoever runs on it.
    _dir: Arc<TempDir>,
}

impl Server {
    /// Posts these bytes with these headers.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        match self.try_post(path, headers, body).await {
            Ok(answer) => answer,
            Err(error) => panic!("POST {path}: {error:?}\n{}", self.said()),
        }
    }

    /// The same, where the engine may be killed meanwhile.
    pub async fn try_post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> reqwest::Result<Answer> {
        let mut request = self.client.post(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = Answer::of(request.body(body.to_vec()).send().await?).await?;
        if answer.status == 202 {
            let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
            accepted.push(answer.id());
        }
        Ok(answer)
    }

    pub async fn post_json(&self, path: &str, body: &str) -> Answer {
        let json = [("content-type", "application/json")];
        self.post(path, &json, body.as_bytes()).await
    }

    /// An event as GitHub sends it.
    pub async fn post_github(
        &self,
        path: &str,
        secret: &str,
        (event, delivery): (&str, &str),
        body: &str,
    ) -> Answer {
        let signature = sign::github(secret, body.as_bytes());
        let headers = [
            ("content-type", "application/json"),
            ("x-github-event", event),
            ("x-github-delivery", delivery),
            ("x-hub-signature-256", &signature),
        ];
        self.post(path, &headers, body.as_bytes()).await
    }

    /// An operator's call.
    pub async fn call(&self, method: Method, path: &str) -> Answer {
        self.call_with(method, path, Some(TOKEN)).await
    }

    pub async fn call_with(&self, method: Method, path: &str, token: Option<&str>) -> Answer {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        match request.send().await {
            Ok(response) => Answer::of(response).await.expect("a whole answer"),
            Err(error) => panic!("{path}: {error:?}\n{}", self.said()),
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path).await
    }

    /// The ids of the events that were taken, in the order of the answers.
    pub fn accepted(&self) -> Vec<String> {
        let accepted = self.accepted.lock();
        accepted.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it logged so far.
    pub fn said(&self) -> String {
        let said = self.said.lock();
        said.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What became of an event so far.
    pub async fn story(&self, event: &str) -> Value {
        let answer = self.get(&format!("/v1/events/{event}?data=true")).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    }

    /// Waits until every rule has seen an event and none of its deliveries waits; gives its story.
    pub async fn settled(&self, event: &str) -> Value {
        until(&format!("the event {event} to settle"), || async {
            let story = self.story(event).await;
            let waits = |delivery: &Value| delivery["state"] == "pending";
            let deliveries = story["deliveries"].as_array().expect("deliveries");
            let settled = story["decided"] == true && !deliveries.iter().any(waits);
            settled.then_some(story)
        })
        .await
    }

    /// Waits until that is true of every event that was taken.
    pub async fn settle(&self) {
        for event in self.accepted() {
            self.settled(&event).await;
        }
    }

    fn running(&self) -> &Running {
        self.child.as_ref().expect("it was not ended")
    }

    /// The process, to measure it.
    pub fn pid(&self) -> u32 {
        self.running().0.id()
    }

    /// Asks it to read its files again.
    pub fn hang_up(&self) {
        self.signal(libc::SIGHUP);
    }

    /// Asks it to stop, as a service manager does.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// SIGKILL while others still hold it; [`Server::kill`] is due afterwards.
    pub fn kill_now(&self) {
        self.signal(libc::SIGKILL);
    }

    fn signal(&self, signal: i32) {
        let id = i32::try_from(self.running().0.id()).expect("process ids are small");
        // SAFETY: a signal to a child of ours that was not waited for, so its id is its own.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::kill(id, signal) };
        assert_eq!(sent, 0, "the signal was not sent");
    }

    /// Waits for it to end by itself.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let mut child = self.child.take().expect("it was not ended");
        let status = until("the engine to end", || {
            let status = child.0.try_wait().expect("a child can be waited for");
            async move { status }
        })
        .await;
        (status, self.said())
    }

    /// Ends a test: everything that was taken is settled, and the engine stops as it should.
    pub async fn end(self) {
        self.settle().await;
        self.stop().await;
    }

    /// Stops it where something may still wait.
    pub async fn stop(self) {
        self.terminate();
        let (status, said) = self.ended().await;
        assert!(status.success(), "{status}: {said}");
    }

    /// SIGKILL: no goodbye.
    pub fn kill(mut self) {
        let mut child = self.child.take().expect("it was not ended");
        child.0.kill().expect("a child can be killed");
        child.0.wait().expect("a killed child ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.take().is_some() && !std::thread::panicking() {
            panic!("the test left its engine running: call end, stop or kill");
        }
    }
}
