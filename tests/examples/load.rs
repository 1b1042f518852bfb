//! The whole path under load: JSON events in over HTTP, through a rule, out as signed webhooks to a
//! receiver; everything durable, the engine a process of its own, all of it on this machine.
//!
//! ```text
//! cargo run --release --example load -- --help
//! ```
//!
//! The generator and the receiver share one thread, so that they take no more than one core from the
//! engine. Every event is counted at the receiver: one that is missing, or came twice without a crash,
//! ends the program with 1.
#![allow(clippy::print_stdout, reason = "the report")]
#![allow(clippy::print_stderr, reason = "progress")]

use clap::Parser;
use hooksieve_tests::process::{resident_mb, stat};
use hooksieve_tests::{Server, Setup, TOKEN};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Measures the whole path: one JSON event in, one HTTP delivery out, durable.
#[derive(Debug, Parser)]
struct Arguments {
    /// Events a second, in all; as fast as the engine answers where it is not given.
    #[arg(long)]
    rate: Option<f64>,
    /// How long events are sent.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Sends so many events at most.
    #[arg(long)]
    events: Option<u64>,
    /// Every event is to be delivered so long after the start, all in one second: they wait until then,
    /// and what is measured as arrival begins there.
    #[arg(long)]
    due_in_s: Option<u64>,
    /// Connections that send, each its next event when the last one was answered.
    #[arg(long, default_value_t = 128)]
    connections: usize,
    /// Bytes of an event's body.
    #[arg(long, default_value_t = 500)]
    body_bytes: usize,
    /// Tenants that share the load evenly, each with a source, a rule and a channel.
    #[arg(long, default_value_t = 1)]
    tenants: usize,
    /// The first tenant sends this many times the others' rate.
    #[arg(long, default_value_t = 1.0, requires = "rate")]
    flood: f64,
    /// Events a second that a tenant may bring in; beyond it the engine answers 429. 0 is no quota.
    #[arg(long, default_value_t = 0)]
    quota: u32,
    /// A line about memory and store this often.
    #[arg(long)]
    sample_s: Option<u64>,
    /// Further settings of the engine, as its configuration file has them.
    #[arg(long, default_value = "")]
    config: String,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// What the receiver has seen.
#[derive(Default)]
struct Seen {
    /// Microseconds from sending to arrival, by tenant.
    latencies_us: Vec<Vec<u32>>,
    /// One bit an event: its number came.
    came: Vec<u64>,
    twice: u64,
    last: Option<Instant>,
    sent: u64,
    refused: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, run(arguments))
}

async fn run(arguments: Arguments) -> ExitCode {
    let began = Instant::now();
    let seen = Rc::new(RefCell::new(Seen {
        latencies_us: vec![Vec::new(); arguments.tenants],
        ..Seen::default()
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let receiver = listener.local_addr().expect("an address");
    tokio::task::spawn_local(receive(listener, began, seen.clone()));

    // What is measured is the engine, not its quotas, but for the one that is asked for.
    let mut setup = Setup::new()
        .config(&arguments.config)
        .env(
            "HOOKSIEVE_QUOTAS__EVENTS_PER_S",
            &arguments.quota.to_string(),
        )
        .env("HOOKSIEVE_QUOTAS__FUEL_PER_S", "0")
        .env("HOOKSIEVE_QUOTAS__DELIVERIES_PER_S", "0");
    for tenant in 0..arguments.tenants {
        setup = setup.tenant(&format!("t{tenant}"), &tenant_file(receiver));
    }
    let server = setup.start().await;
    let pid = server.pid();
    let before = Cpu::of(pid);
    let own_before = Cpu::of(std::process::id());

    let first = Instant::now();
    let until = first + Duration::from_secs(arguments.seconds);
    let address = server.base.trim_start_matches("http://").to_owned();
    let mut senders = Vec::new();
    let shares = shares(&arguments);
    for connection in 0..arguments.connections {
        let sender = Sender {
            address: address.clone(),
            began,
            until,
            events_max: arguments.events.unwrap_or(u64::MAX),
            due: arguments.due_in_s.map(|s| first + Duration::from_secs(s)),
            body_bytes: arguments.body_bytes,
            seen: seen.clone(),
        };
        senders.push(tokio::task::spawn_local(
            sender.run(shares[connection % shares.len()], connection),
        ));
    }
    let data = setup.data();
    if let Some(every) = arguments.sample_s {
        let seen = seen.clone();
        let data = data.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(every)).await;
                let sent = seen.borrow().sent;
                eprintln!(
                    "{:>6} s  {sent:>10} events  {:>5} MB resident  {:>6} MB in the store",
                    first.elapsed().as_secs(),
                    resident_mb(pid),
                    folder_mb(&data.join("store"))
                );
            }
        });
    }
    for sender in senders {
        sender.await.expect("a sender does not panic");
    }
    let sending = first.elapsed();
    // What was taken arrives, or the count below says what did not.
    let due = arguments.due_in_s.map(|s| first + Duration::from_secs(s));
    let mut patience = Instant::now().max(due.unwrap_or(first));
    let mut arrived = 0;
    while Instant::now().saturating_duration_since(patience) < Duration::from_secs(20) {
        let (sent, now) = {
            let seen = seen.borrow();
            (seen.sent, count(&seen))
        };
        if now == sent {
            break;
        }
        if now > arrived {
            arrived = now;
            patience = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let report = Report::new(
        &arguments,
        &seen.borrow(),
        first,
        sending,
        pid,
        &before,
        &own_before,
        &data,
    );
    report.print(arguments.json);
    end(server).await;
    if report.lost == 0 && report.twice == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn end(server: Server) {
    server.terminate();
    server.ended().await;
}

fn tenant_file(receiver: std::net::SocketAddr) -> String {
    format!(
        r#"
        [[source]]
        name = "in"
        kind = "json"
        token = {{ env = "HOOKSIEVE_OPERATOR_TOKEN" }}

        [[rule]]
        name = "forward"
        module = "probe.wasm"
        events = ["*"]

        [[channel]]
        name = "hook"
        kind = "webhook"
        url = "http://{receiver}/"
        "#
    )
}

/// What one connection sends: for which tenant, and how many a second.
#[derive(Clone, Copy)]
struct Share {
    tenant: usize,
    rate: Option<f64>,
}

/// The load, spread over connections: each belongs to one tenant.
fn shares(arguments: &Arguments) -> Vec<Share> {
    let tenants = arguments.tenants;
    let connections = arguments.connections.max(tenants);
    let weight = |tenant: usize| if tenant == 0 { arguments.flood } else { 1.0 };
    let mut shares = Vec::with_capacity(connections);
    for connection in 0..connections {
        let tenant = connection % tenants;
        let own = (connections - tenant).div_ceil(tenants) as f64;
        let rate = arguments
            .rate
            .map(|rate| rate / tenants as f64 * weight(tenant) / own);
        shares.push(Share { tenant, rate });
    }
    shares
}

struct Sender {
    address: String,
    began: Instant,
    until: Instant,
    events_max: u64,
    due: Option<Instant>,
    body_bytes: usize,
    seen: Rc<RefCell<Seen>>,
}

impl Sender {
    async fn run(self, share: Share, connection: usize) {
        let mut stream = connect(&self.address).await;
        let gap = share.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        // Connections do not send at the same moment.
        let mut next = Instant::now()
            + gap
                .unwrap_or_default()
                .mul_f64((connection % 97) as f64 / 97.0);
        let mut answer = Vec::with_capacity(1024);
        while Instant::now() < self.until {
            if let Some(gap) = gap {
                tokio::time::sleep_until(next.into()).await;
                next += gap;
            }
            let number = {
                let mut seen = self.seen.borrow_mut();
                if seen.sent == self.events_max {
                    return;
                }
                seen.sent += 1;
                seen.sent - 1
            };
            // An event that waits behind a slow answer is late: it counts from when it was to be sent.
            let at = gap.map_or_else(Instant::now, |gap| next - gap);
            let sent_us = at.max(self.began).duration_since(self.began).as_micros();
            let request = self.request(share.tenant, number, sent_us);
            stream.write_all(&request).await.expect("the engine reads");
            let status = status(&mut stream, &mut answer).await;
            if status != 202 {
                let mut seen = self.seen.borrow_mut();
                seen.refused += 1;
                set(&mut seen.came, number);
            }
        }
    }

    fn request(&self, tenant: usize, number: u64, sent_us: u128) -> Vec<u8> {
        let start = match self.due {
            None => format!(
                r#"{{"do":"post","channel":"hook","payload":{{"tenant":{tenant},"number":{number},"sent_us":{sent_us}}},"text":""#
            ),
            Some(due) => {
                let after_s = due.saturating_duration_since(Instant::now()).as_secs();
                let due_us = sent_us + u128::from(after_s) * 1_000_000;
                format!(
                    r#"{{"do":"notify","channel":"hook","after_s":{after_s},"title":"tenant {tenant} number {number} sent_us {due_us}","text":""#
                )
            }
        };
        let fill = self.body_bytes.saturating_sub(start.len() + 2);
        let length = start.len() + fill + 2;
        let mut request = format!(
            "POST /in/t{tenant}/in HTTP/1.1\r\nhost: load\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{start}"
        )
        .into_bytes();
        request.resize(request.len() + fill, b'x');
        request.extend_from_slice(b"\"}");
        request
    }
}

async fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address)
        .await
        .expect("the engine listens");
    stream.set_nodelay(true).expect("a TCP option");
    stream
}

/// Reads one answer and gives its status.
async fn status(stream: &mut TcpStream, answer: &mut Vec<u8>) -> u16 {
    answer.clear();
    loop {
        let read = stream.read_buf(answer).await.expect("the engine answers");
        assert!(read > 0, "the engine closed the connection");
        if let Some((status, end)) = head(answer, true)
            && answer.len() >= end
        {
            return status;
        }
    }
}

/// The status (of an answer; 0 of a request) and where the message ends, once its head is there.
fn head(bytes: &[u8], answer: bool) -> Option<(u16, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let (status, start, headers) = if answer {
        let mut parsed = httparse::Response::new(&mut headers);
        let start = match parsed.parse(bytes).expect("HTTP") {
            httparse::Status::Complete(start) => start,
            httparse::Status::Partial => return None,
        };
        (parsed.code?, start, parsed.headers)
    } else {
        let mut parsed = httparse::Request::new(&mut headers);
        let start = match parsed.parse(bytes).expect("HTTP") {
            httparse::Status::Complete(start) => start,
            httparse::Status::Partial => return None,
        };
        (0, start, parsed.headers)
    };
    let length = headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| {
            std::str::from_utf8(header.value)
                .ok()?
                .parse::<usize>()
                .ok()
        })
        .unwrap_or(0);
    Some((status, start + length))
}

/// The receiver: answers 200 and notes what came.
async fn receive(listener: TcpListener, began: Instant, seen: Rc<RefCell<Seen>>) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let seen = seen.clone();
        tokio::task::spawn_local(async move {
            let _ = stream.set_nodelay(true);
            let mut bytes = Vec::with_capacity(4096);
            loop {
                match stream.read_buf(&mut bytes).await {
                    Ok(read) if read > 0 => {}
                    _ => return,
                }
                while let Some((_, end)) = head(&bytes, false) {
                    if bytes.len() < end {
                        break;
                    }
                    seen.borrow_mut().note(&bytes[..end], began);
                    bytes.drain(..end);
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                    if bytes.is_empty() {
                        break;
                    }
                }
            }
        });
    }
}

impl Seen {
    fn note(&mut self, request: &[u8], began: Instant) {
        let now = Instant::now();
        let tenant = number(request, b"tenant") as usize;
        let event = number(request, b"number");
        let sent_us = number(request, b"sent_us");
        let took_us = ((now - began).as_micros() as u64).saturating_sub(sent_us);
        if set(&mut self.came, event) {
            self.latencies_us[tenant].push(took_us as u32);
        } else {
            self.twice += 1;
        }
        self.last = Some(now);
    }
}

/// The number after a word that stands somewhere in a body of ours.
fn number(bytes: &[u8], key: &[u8]) -> u64 {
    let at = bytes.windows(key.len()).position(|window| window == key);
    let digits = &bytes[at.expect("what was sent comes back") + key.len()..];
    digits
        .iter()
        .skip_while(|byte| !byte.is_ascii_digit())
        .take_while(|byte| byte.is_ascii_digit())
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Sets a bit; `false` when it was set.
fn set(bits: &mut Vec<u64>, n: u64) -> bool {
    let (word, bit) = ((n / 64) as usize, 1 << (n % 64));
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    let new = bits[word] & bit == 0;
    bits[word] |= bit;
    new
}

fn count(seen: &Seen) -> u64 {
    seen.came
        .iter()
        .map(|word| u64::from(word.count_ones()))
        .sum()
}

/// Processor time of a process, by thread name.
struct Cpu {
    all_s: f64,
    threads: BTreeMap<String, f64>,
}

impl Cpu {
    fn of(pid: u32) -> Self {
        let own = stat(Path::new(&format!("/proc/{pid}/stat")));
        let mut threads = BTreeMap::new();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        for task in tasks.flatten() {
            if let Some((name, seconds)) = stat(&task.path().join("stat")) {
                *threads.entry(name).or_insert(0.0) += seconds;
            }
        }
        Self {
            all_s: own.map_or(0.0, |(_, seconds)| seconds),
            threads,
        }
    }
}

fn folder_mb(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(if meta.is_dir() {
            folder_mb(&entry.path()) * 1_000_000
        } else {
            meta.blocks() * 512
        })
    });
    bytes.sum::<u64>() / 1_000_000
}

/// What was measured.
#[derive(serde::Serialize)]
struct Report {
    sent: u64,
    refused: u64,
    lost: u64,
    twice: u64,
    accepted_per_second: f64,
    delivered_per_second: f64,
    engine_cpu_us_per_event: f64,
    engine_cpu_by_thread_us: BTreeMap<String, f64>,
    load_cpu_us_per_event: f64,
    /// From when an event was to be sent to its arrival at the receiver.
    latency_us: Latency,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    latency_by_tenant_us: Vec<Latency>,
    resident_mb: u64,
    store_mb: u64,
    body_bytes: usize,
    tenants: usize,
}

#[derive(Clone, Copy, Default, serde::Serialize)]
struct Latency {
    count: usize,
    mean: u64,
    p50: u32,
    p99: u32,
    max: u32,
}

impl Latency {
    fn of(mut all: Vec<u32>) -> Self {
        if all.is_empty() {
            return Self::default();
        }
        all.sort_unstable();
        let at = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        Self {
            count: all.len(),
            mean: all.iter().map(|us| u64::from(*us)).sum::<u64>() / all.len() as u64,
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

impl Report {
    #[allow(
        clippy::too_many_arguments,
        reason = "it is where everything comes together"
    )]
    fn new(
        arguments: &Arguments,
        seen: &Seen,
        first: Instant,
        sending: Duration,
        pid: u32,
        before: &Cpu,
        own_before: &Cpu,
        data: &Path,
    ) -> Self {
        let taken = seen.sent - seen.refused;
        let arrived = count(seen) - seen.refused;
        let due = arguments.due_in_s.map(|s| first + Duration::from_secs(s));
        let whole = (seen.last).map_or(sending, |last| last - due.unwrap_or(first));
        let cpu = Cpu::of(pid);
        let each = |seconds: f64| (seconds * 1e6 / taken.max(1) as f64 * 10.0).round() / 10.0;
        let threads = cpu.threads.iter().map(|(name, seconds)| {
            (
                name.clone(),
                each(seconds - before.threads.get(name).unwrap_or(&0.0)),
            )
        });
        let by_tenant = seen.latencies_us.iter().map(|all| Latency::of(all.clone()));
        Self {
            sent: seen.sent,
            refused: seen.refused,
            lost: taken - arrived,
            twice: seen.twice,
            accepted_per_second: (taken as f64 / sending.as_secs_f64()).round(),
            delivered_per_second: (arrived as f64 / whole.as_secs_f64()).round(),
            engine_cpu_us_per_event: each(cpu.all_s - before.all_s),
            engine_cpu_by_thread_us: threads.filter(|(_, us)| *us > 0.0).collect(),
            load_cpu_us_per_event: each(Cpu::of(std::process::id()).all_s - own_before.all_s),
            latency_us: Latency::of(seen.latencies_us.concat()),
            latency_by_tenant_us: if arguments.tenants > 1 {
                by_tenant.collect()
            } else {
                Vec::new()
            },
            resident_mb: resident_mb(pid),
            store_mb: folder_mb(&data.join("store")),
            body_bytes: arguments.body_bytes,
            tenants: arguments.tenants,
        }
    }

    fn print(&self, json: bool) {
        if json {
            println!(
                "{}",
                serde_json::to_string(self).expect("numbers become JSON")
            );
            return;
        }
        let Latency {
            mean,
            p50,
            p99,
            max,
            ..
        } = self.latency_us;
        println!(
            "events sent             {:>10}   ({} refused, {} lost, {} twice)",
            self.sent, self.refused, self.lost, self.twice
        );
        println!(
            "accepted                {:>10} /s",
            self.accepted_per_second
        );
        println!(
            "delivered               {:>10} /s",
            self.delivered_per_second
        );
        println!(
            "engine CPU              {:>10} us an event",
            self.engine_cpu_us_per_event
        );
        for (name, us) in &self.engine_cpu_by_thread_us {
            println!("  {name:<21} {us:>10} us");
        }
        println!(
            "load and receiver CPU   {:>10} us an event",
            self.load_cpu_us_per_event
        );
        println!("send to arrival         {mean:>10} us mean, p50 {p50}, p99 {p99}, max {max}");
        if let Some((first, others)) = self.latency_by_tenant_us.split_first() {
            let worst = others.iter().map(|it| it.p99).max().unwrap_or_default();
            println!(
                "  the first tenant      {:>10} us mean, p99 {} ({} events)",
                first.mean, first.p99, first.count
            );
            println!("  the others            {worst:>10} us p99 of the worst one");
        }
        println!("resident                {:>10} MB", self.resident_mb);
        println!("store on disk           {:>10} MB", self.store_mb);
    }
}
