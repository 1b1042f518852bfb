//! The clients that all channels share: one for HTTP, and the TLS settings for all of them.
//!
//! Nothing is sent where [`Guard`] says no. No redirect is followed, no proxy is taken from the
//! environment, every request has a timeout and every answer is read to a cap, with all that comes before
//! it (`outgoing/tidied.rs`). Certificates are checked against the platform's roots and the operator's
//! extra ones, the same for all. There is no setting that skips the check.
//!
//! HTTP is hyper's client with its pool, and not reqwest, which does not let anything stand between the
//! client and its connections.

mod connector;
mod tidied;

use self::connector::Connector;
use super::guard::{Guard, Refused};
use super::{Failure, Retry};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT as AGENT,
};
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;
use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout_at};
use url::Url;

/// How much of an answer is read; what comes after it is not of interest.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long a connection may take to be made, within the whole request's timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections to one host that wait for the next request.
const IDLE_PER_HOST_MAX: usize = 64;

pub(super) const USER_AGENT: &str = concat!("hooksieve/", env!("CARGO_PKG_VERSION"));

/// The shared clients of one engine.
pub struct Outgoing {
    http: legacy::Client<Connector, Full<Bytes>>,
    guard: Guard,
    tls: Arc<rustls::ClientConfig>,
    /// What the engine calls itself where it has to say a name: to mail servers.
    name: Option<String>,
}

/// What an HTTP receiver answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    /// The body, or what came of it: up to [`ANSWER_BYTES_MAX`].
    pub(super) body: Vec<u8>,
}

impl Outgoing {
    /// Makes the clients, which connect where the guard lets them, with the operator's extra roots (PEM,
    /// one certificate or several) if there are any. Sets the process's TLS provider unless an embedding
    /// program did.
    ///
    /// # Errors
    /// When the PEM holds no certificate, or the platform has no roots and no others were given.
    pub fn new(ca_pem: Option<&[u8]>, guard: Guard) -> Result<Self, String> {
        // Fails only where a provider is installed already, and then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut extra: Vec<CertificateDer<'static>> = Vec::new();
        if let Some(pem) = ca_pem {
            extra = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|error| format!("the extra certificates cannot be read: {error}"))?;
            if extra.is_empty() {
                return Err("the extra certificates hold no PEM certificate".into());
            }
        }
        let tls = tls(extra).map_err(|error| {
            format!("the certificates for outgoing connections cannot be loaded: {error}")
        })?;
        let connector = Connector::new(guard.clone(), &tls, CONNECT_TIMEOUT);
        let http = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .build(connector);
        Ok(Self {
            http,
            guard,
            tls: Arc::new(tls),
            name: host_name(),
        })
    }

    /// With the name that the engine goes by, in the place of its host's; empty leaves that.
    ///
    /// # Errors
    /// When it is neither a host's name nor an address.
    pub fn named(mut self, name: &str) -> Result<Self, String> {
        if name.is_empty() {
            return Ok(self);
        }
        self.name = Some(match name.parse::<IpAddr>() {
            Ok(address) => address_literal(address),
            Err(_) if is_name(name) && !name.contains('_') => name.to_owned(),
            Err(_) => return Err(format!("{name:?} is neither a host's name nor an address")),
        });
        Ok(self)
    }

    /// What the engine says that it is, over a connection that begins at this address.
    pub(super) fn name(&self, local: Option<IpAddr>) -> String {
        let local = local.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let name = self.name.clone();
        name.unwrap_or_else(|| address_literal(local))
    }

    /// Sends a body and reads the answer. Failures that are not an answer are all worth a retry:
    /// hosts come back, and so do names and certificates.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &Url,
        headers: HeaderMap,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        self.may_reach(url)?;
        let request = request(method, url, headers, body)?;
        let until = Instant::now() + timeout;
        let host = host(url);
        let response = match timeout_at(until, self.http.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let sentence = sending(&host, &error, timeout);
                return Err(Failure::later(sentence).ambiguous(!error.is_connect()));
            }
            // It may not have been connected either.
            Err(_) => {
                let sentence = format!("{host} did not answer within {timeout:?}");
                return Err(Failure::later(sentence).ambiguous(true));
            }
        };
        let (head, mut rest) = response.into_parts();
        let retry_after = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, SystemTime::now()));
        let mut body = Vec::new();
        // The status has been said; a body that breaks off, drips or never ends does not unsay it.
        while body.len() < ANSWER_BYTES_MAX
            && let Ok(Some(Ok(frame))) = timeout_at(until, rest.frame()).await
        {
            // What is no data is a trailer.
            if let Ok(piece) = frame.into_data() {
                body.extend_from_slice(&piece[..piece.len().min(ANSWER_BYTES_MAX - body.len())]);
            }
        }
        Ok(Answer {
            status: head.status.as_u16(),
            retry_after,
            body,
        })
    }

    /// Posts JSON; see [`Outgoing::send`].
    pub(super) async fn post_json(
        &self,
        url: &Url,
        body: &serde_json::Value,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body = body.to_string().into_bytes();
        self.send(Method::POST, url, headers, body, timeout).await
    }

    /// An address that stands in a URL as such is never resolved, so it is checked here.
    fn may_reach(&self, url: &Url) -> Result<(), Failure> {
        let address = match url.host() {
            Some(url::Host::Ipv4(address)) => IpAddr::V4(address),
            Some(url::Host::Ipv6(address)) => IpAddr::V6(address),
            Some(url::Host::Domain(_)) | None => return Ok(()),
        };
        let checked = self.guard.check(address);
        checked.map_err(|refused| Failure::never(guarded(&host(url), &refused.to_string())))
    }

    /// Where a mail server or a database is.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let resolved = self.guard.resolve(host, port).await;
        resolved.map_err(|error| {
            let cause = Cause::of(&error);
            if !cause.guarded {
                return Failure::later(format!("no connection to {host}: {}", cause.text));
            }
            let error = guarded(host, &cause.text);
            // A name can lead elsewhere tomorrow, as for HTTP; an address stays what it is.
            match host.parse::<IpAddr>() {
                Ok(_) => Failure::never(error),
                Err(_) => Failure::later(error),
            }
        })
    }

    /// The TLS settings for a database or a mail server: roots and checks as for HTTP.
    pub(super) fn tls(&self) -> Arc<rustls::ClientConfig> {
        Arc::clone(&self.tls)
    }
}

/// The platform's roots and these.
fn tls(extra: Vec<CertificateDer<'static>>) -> Result<rustls::ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new_with_extra_roots(extra, provider.clone())?;
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// How long one of so many addresses may take: the last still leaves time for what is to be said. One
/// alone has all the time that the attempt has.
pub(super) fn share(timeout: Duration, addresses: usize) -> Duration {
    let addresses = u32::try_from(addresses).unwrap_or(u32::MAX);
    match addresses {
        0 | 1 => Duration::MAX,
        more => (timeout / (more.saturating_add(1))).min(CONNECT_TIMEOUT),
    }
}

/// The request, as it goes out; a user and a password in the address go into a header of their own.
fn request(
    method: Method,
    url: &Url,
    headers: HeaderMap,
    body: Vec<u8>,
) -> Result<Request<Full<Bytes>>, Failure> {
    let mut plain = url.clone();
    plain.set_fragment(None);
    // Neither fails: it is an address of the web, and such have hosts.
    let _ = plain.set_username("");
    let _ = plain.set_password(None);
    let uri: Uri = plain.as_str().parse().map_err(|_| {
        let host = host(url);
        Failure::never(format!(
            "the url to {host} cannot stand in a request; shorten it"
        ))
    })?;
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    let sent = request.headers_mut();
    sent.insert(ACCEPT, HeaderValue::from_static("*/*"));
    sent.insert(AGENT, HeaderValue::from_static(USER_AGENT));
    if !url.username().is_empty() || url.password().is_some() {
        let (user, password) = (url.username(), url.password().unwrap_or_default());
        let mut login = percent_decoded(user);
        login.push(b':');
        login.extend(percent_decoded(password));
        if let Ok(mut value) = HeaderValue::from_str(&format!("Basic {}", BASE64.encode(login))) {
            value.set_sensitive(true);
            sent.insert(AUTHORIZATION, value);
        }
    }
    sent.extend(headers);
    Ok(request)
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let digits = digits.and_then(|two| str::from_utf8(two).ok());
        match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Whether it may be the name of a host: letters, digits, `-`, `_` and dots between them.
pub(super) fn is_name(host: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    host.len() <= 253
        && host
            .strip_suffix('.')
            .unwrap_or(host)
            .split('.')
            .all(|label| {
                (1..=63).contains(&label.len())
                    && label.chars().all(letter)
                    && !label.starts_with('-')
            })
}

/// This host's name, where it has one that tells it from others, and says it in a file: on Linux.
fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim();
    let first = name.split('.').next().unwrap_or_default();
    let tells = is_name(name) && !name.contains('_') && !first.eq_ignore_ascii_case("localhost");
    tells.then(|| name.to_owned())
}

/// An address where a name is asked for (RFC 5321, section 4.1.3).
fn address_literal(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("[{address}]"),
        IpAddr::V6(address) => format!("[IPv6:{address}]"),
    }
}

impl Answer {
    /// The failure that this answer is, for a channel that knows it is one. A receiver that is busy
    /// or broken is asked again; one that understood and refused is not.
    pub(super) fn failure(&self, error: String) -> Failure {
        self.failed(error, self.retry(self.status))
    }

    /// Whether trying again can help after this status, be it in words.
    pub(super) fn retry(&self, status: u16) -> Retry {
        match (status, self.retry_after) {
            (408 | 425 | 429 | 500.., Some(wait)) => Retry::After(wait),
            (408 | 425 | 429 | 500.., None) => Retry::Later,
            // RFC 9110, section 15.5.11: likely for good.
            (410, _) => Retry::Gone,
            _ => Retry::Never,
        }
    }

    /// The failure that this answer is, where its status does not tell whether to try again.
    pub(super) fn failed(&self, error: String, retry: Retry) -> Failure {
        Failure::new(Some(self.status), error, retry).answered(String::from_utf8_lossy(&self.body))
    }
}

/// The host of an address, with its port where one was given: all of it that may be logged.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Reads an address that events may be posted to.
pub(super) fn web_address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("the url is not one: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "the url begins with {:?}, and only http and https are known",
            url.scheme()
        ));
    }
    Ok(url)
}

/// What lies at the bottom of an error of a client.
pub(super) struct Cause {
    /// The certificate was at fault.
    pub(super) certificate: bool,
    /// The guard said no; what it says is for operators.
    pub(super) guarded: bool,
    /// It took too long.
    late: bool,
    pub(super) text: String,
}

impl Cause {
    pub(super) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut cause = Cause {
            certificate: false,
            guarded: false,
            late: false,
            text: String::new(),
        };
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
                return Cause {
                    certificate: true,
                    guarded: false,
                    late: false,
                    text: why.to_string(),
                };
            }
            if let Some(refused) = error.downcast_ref::<Refused>() {
                return Cause {
                    certificate: false,
                    guarded: true,
                    late: false,
                    text: refused.to_string(),
                };
            }
            let io = error.downcast_ref::<io::Error>();
            // The kind reads "connection refused" where the error reads "Connection refused (os
            // error 111)".
            cause.late = io.is_some_and(|io| io.kind() == io::ErrorKind::TimedOut);
            cause.text = match io {
                Some(io) if io.raw_os_error().is_some() => io.kind().to_string(),
                _ => error.to_string(),
            };
            // An `io::Error` that wraps another steps over it in `source`.
            next = match io.and_then(io::Error::get_ref) {
                Some(inner) => Some(inner as &(dyn StdError + 'static)),
                None => error.source(),
            };
        }
        cause
    }
}

/// What went wrong before there was an answer, in one sentence. It is built from what the error is
/// and from its innermost cause: the outer texts carry the whole URL.
fn sending(host: &str, error: &legacy::Error, timeout: Duration) -> String {
    let cause = Cause::of(error);
    if cause.certificate {
        format!("the certificate of {host} is not trusted: {}", cause.text)
    } else if cause.guarded {
        guarded(host, &cause.text)
    } else if error.is_connect() && cause.late {
        format!(
            "no connection to {host} within {:?}",
            timeout.min(CONNECT_TIMEOUT)
        )
    } else if error.is_connect() {
        format!("no connection to {host}: {}", cause.text)
    } else {
        format!("the connection to {host} broke: {}", cause.text)
    }
}

/// What a tenant is told; what the name led to is for the operator's log alone.
fn guarded(host: &str, refused: &str) -> String {
    tracing::info!(host, refused, "nothing is sent there");
    format!(
        "nothing was sent to {host}: it is not on the internet; an operator can allow its network under [egress] allow"
    )
}

/// Reads a Retry-After: seconds or an HTTP date (RFC 9110, section 10.2.3). A date that has passed
/// asks for no wait; what is neither is ignored.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value.trim()).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::outgoing;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
        ] {
            assert_eq!(
                retry_after(value, now),
                seconds.map(Duration::from_secs),
                "{value:?}"
            );
        }
    }

    #[test]
    fn a_host_is_all_that_is_told_of_an_address() {
        let url = web_address("https://user:pass@Example.com:8443/path?token=1#x").unwrap();
        assert_eq!(host(&url), "example.com:8443");
        assert_eq!(
            host(&web_address("https://example.com/a").unwrap()),
            "example.com"
        );
    }

    /// A receiver on this machine that answers every request with these bytes and goes on listening; it
    /// counts connections and requests.
    async fn saying(answer: &[u8], then_close: bool) -> (Url, Arc<[AtomicUsize; 2]>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let (answer, counted): (Arc<[u8]>, _) = (answer.into(), Arc::clone(&counts));
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                counted[0].fetch_add(1, Ordering::Relaxed);
                let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
                tokio::spawn(async move {
                    let mut piece = [0; 4_096];
                    while socket.read(&mut piece).await.is_ok_and(|long| long > 0) {
                        counted[1].fetch_add(1, Ordering::Relaxed);
                        if socket.write_all(&answer).await.is_err() || then_close {
                            return;
                        }
                    }
                });
            }
        });
        (url.parse().unwrap(), counts)
    }

    async fn post(client: &Outgoing, url: &Url) -> Result<Answer, Failure> {
        let timeout = Duration::from_secs(5);
        let body = b"{}".to_vec();
        client
            .send(Method::POST, url, HeaderMap::new(), body, timeout)
            .await
    }

    #[tokio::test]
    async fn a_receiver_that_only_says_to_go_on_is_left() {
        for begun in [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
            "HTTP/1.1 100 Continue\r\nx: ",
            "HTTP/1.1 102 Processing\r\nx: y\r\n",
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url: Url = format!("http://{}/", listener.local_addr().unwrap())
                .parse()
                .unwrap();
            let again = match begun.rsplit_once("\r\n") {
                Some((_, "")) if begun.ends_with("\r\n\r\n") => begun.repeat(100),
                _ => "x: y\r\n".repeat(1_000),
            };
            let said = tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.write_all(begun.as_bytes()).await.unwrap();
                let mut said = begun.len();
                while socket.write_all(again.as_bytes()).await.is_ok() {
                    said += again.len();
                }
                said
            });
            let began = std::time::Instant::now();
            let failure = post(&outgoing(None), &url).await.err().unwrap();
            assert!(began.elapsed() < Duration::from_secs(3), "{begun:?}");
            assert_eq!((failure.status, failure.retry), (None, Retry::Later));
            assert!(failure.ambiguous);
            assert!(
                failure.error.contains("before its answer"),
                "{}",
                failure.error
            );
            // What the kernel holds of it was written and never read.
            let said = said.await.unwrap();
            assert!(said < 16 << 20, "{said} bytes were taken");
        }
    }

    #[tokio::test]
    async fn an_answer_counts_by_its_status_however_odd_its_headers() {
        let many = format!(
            "HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok",
            (0..150)
                .map(|n| format!("x-{n}: y\r\n"))
                .collect::<String>()
        );
        let very_many = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{}\r\nok",
            (0..5_000)
                .map(|n| format!("x-{n}: y\r\n"))
                .collect::<String>()
        );
        let far_too_many = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{}\r\nok",
            (0..9_000)
                .map(|n| format!("x-{n}: y\r\n"))
                .collect::<String>()
        );
        for (answer, body) in [
            ("HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok", "ok"),
            (
                "HTTP/1.1 200 OK\r\nX-Odd : 1\r\ncontent-length: 2\r\n\r\nok",
                "ok",
            ),
            (
                "HTTP/1.1 200 OK\r\nno colon here\r\ncontent-length: 2\r\n\r\nok",
                "ok",
            ),
            (
                "HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\ncontent-length: 2\r\n\r\nok",
                "ok",
            ),
            (
                "HTTP/1.1 200 OK\r\nX\u{fc}: 1\r\ncontent-length: 2\r\n\r\nok",
                "ok",
            ),
            (&many, "ok"),
            (&very_many, "ok"),
            // More than is read.
            (&far_too_many, ""),
            // Neither says where it ends: what there is of a body is not told apart from the next answer.
            ("HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok", ""),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
                "",
            ),
            (
                "HTTP/1.1 100 Continue\r\nodd\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
                "ok",
            ),
        ] {
            let (url, counts) = saying(answer.as_bytes(), false).await;
            let client = outgoing(None);
            let shown = &answer[..answer.len().min(60)];
            for _ in 0..2 {
                let got = post(&client, &url).await.map_err(|failure| failure.error);
                let got = got.unwrap_or_else(|error| panic!("{shown:?}: {error}"));
                let got_body = String::from_utf8_lossy(&got.body);
                assert_eq!((got.status, &*got_body), (200, body), "{shown:?}");
            }
            // Who answers so may mean something else by the next bytes.
            assert_eq!(counts[0].load(Ordering::Relaxed), 2, "{shown:?}");
        }
    }

    #[tokio::test]
    async fn an_odd_refusal_is_one_and_says_how_long_to_wait() {
        for (answer, retry) in [
            (
                "HTTP/1.1 404 Not Found\r\nodd\r\ncontent-length: 0\r\n\r\n",
                Retry::Never,
            ),
            (
                "HTTP/1.1 429 Slow Down\r\nRetry-After : 30\r\ncontent-length: x\r\n\r\n",
                Retry::After(Duration::from_secs(30)),
            ),
        ] {
            let (url, _) = saying(answer.as_bytes(), false).await;
            let got = post(&outgoing(None), &url).await;
            let got = got.map_err(|failure| failure.error).unwrap();
            assert_eq!(got.failure(String::new()).retry, retry, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn what_has_no_clear_status_is_no_answer() {
        for answer in ["hello\r\n\r\n", "HTTP/1.1 2OO OK\r\n\r\n", "HTTP/1.1 20"] {
            let (url, _) = saying(answer.as_bytes(), true).await;
            let failure = post(&outgoing(None), &url).await.err().unwrap();
            assert_eq!((failure.status, failure.retry), (None, Retry::Later));
            assert!(failure.ambiguous, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_serves_again_after_a_plain_answer() {
        let answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        let (url, counts) = saying(answer, false).await;
        let client = outgoing(None);
        for _ in 0..3 {
            assert_eq!(post(&client, &url).await.ok().unwrap().status, 200);
        }
        assert_eq!(counts[0].load(Ordering::Relaxed), 1);
    }

    /// Tenants would map the operator's network by it.
    #[tokio::test]
    async fn a_refusal_does_not_tell_the_address_that_was_found() {
        let client = Outgoing::new(None, Guard::default()).unwrap();
        let sentence = |host: &str| {
            format!(
                "nothing was sent to {host}: it is not on the internet; an operator can allow its network under [egress] allow"
            )
        };
        for host in ["localhost", "10.0.0.1", "169.254.169.254", "[::1]"] {
            let url = format!("http://{host}/").parse().unwrap();
            let failure = post(&client, &url).await.err().unwrap();
            assert_eq!(failure.error, sentence(host));
        }
        // As mail servers and databases are looked up.
        let failure = client.resolve("localhost", 25).await.err().unwrap();
        assert_eq!(failure.error, sentence("localhost"));
    }

    #[test]
    fn extra_certificates_must_be_certificates() {
        let refused = |pem: &[u8]| Outgoing::new(Some(pem), Guard::default()).err().unwrap();
        assert_eq!(
            refused(b"no pem at all"),
            "the extra certificates hold no PEM certificate"
        );
        let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(
            refused(broken).contains("certificates"),
            "{}",
            refused(broken)
        );
    }
}
