//! The clients that all channels share: one for HTTP, and the TLS settings for SMTP and databases.
//!
//! Nothing is sent where [`Guard`] says no. No redirect is followed, no proxy is taken from the
//! environment, every request has a timeout and every answer is read to a cap. Certificates are checked
//! against the platform's roots and the operator's extra ones, the same for all. There is no setting
//! that skips the check.

use super::guard::{Guard, Refused};
use super::{Failure, Retry};
use lettre::transport::smtp::client as smtp;
use lru::LruCache;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls_platform_verifier::Verifier;
use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};
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
    http: reqwest::Client,
    guard: Guard,
    ca: Option<smtp::Certificate>,
    /// By host: each holds the parsed roots, so making one costs milliseconds.
    smtp_tls: Mutex<LruCache<String, smtp::TlsParameters>>,
    /// The operator's extra roots.
    extra: Vec<CertificateDer<'static>>,
    /// Made when a database first needs it: reading the platform's roots takes milliseconds.
    tls: OnceLock<Arc<rustls::ClientConfig>>,
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
        let mut roots = Vec::new();
        let mut ca = None;
        let mut extra = Vec::new();
        if let Some(pem) = ca_pem {
            let bad =
                |error: &dyn StdError| format!("the extra certificates cannot be read: {error}");
            roots = reqwest::Certificate::from_pem_bundle(pem).map_err(|error| bad(&error))?;
            if roots.is_empty() {
                return Err("the extra certificates hold no PEM certificate".into());
            }
            ca = Some(smtp::Certificate::from_pem(pem).map_err(|error| bad(&error))?);
            extra = CertificateDer::pem_slice_iter(pem)
                .collect::<Result<_, _>>()
                .map_err(|error| bad(&error))?;
        }
        let http = reqwest::Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(guard.clone()))
            // The schedule is what retries.
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .tls_certs_merge(roots)
            .build()
            .map_err(|error| {
                format!(
                    "the certificates for outgoing connections cannot be loaded: {}",
                    Cause::of(&error).text
                )
            })?;
        Ok(Self {
            http,
            guard,
            ca,
            smtp_tls: Mutex::new(LruCache::new(SMTP_HOSTS_KEPT)),
            extra,
            tls: OnceLock::new(),
        })
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
        let request = self.http.request(method, url.clone());
        let request = request.headers(headers).body(body);
        let mut response = request.timeout(timeout).send().await.map_err(|error| {
            let failure = Failure::later(sending(&host(url), &error, timeout));
            failure.ambiguous(!error.is_connect() && !error.is_builder())
        })?;
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, SystemTime::now()));
        let mut body = Vec::new();
        // The status has been said; a body that breaks off, drips or never ends does not unsay it.
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_BYTES_MAX - body.len())]);
            if body.len() == ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok(Answer {
            status: response.status().as_u16(),
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

    /// The TLS settings for a database: roots and checks as for HTTP.
    pub(super) fn tls(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        if let Some(tls) = self.tls.get() {
            return Ok(tls.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new_with_extra_roots(self.extra.iter().cloned(), provider.clone());
        let verifier = verifier.map_err(|error| error.to_string())?;
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Ok(self.tls.get_or_init(|| Arc::new(config)).clone())
    }

    /// The TLS settings for a mail server.
    pub(super) fn smtp_tls(&self, host: &str) -> Result<smtp::TlsParameters, Failure> {
        let known = || self.smtp_tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parameters) = known().get(host) {
            return Ok(parameters.clone());
        }
        let mut builder = smtp::TlsParameters::builder(host.to_owned());
        if let Some(ca) = &self.ca {
            builder = builder.add_root_certificate(ca.clone());
        }
        let parameters = builder.build().map_err(|error| {
            Failure::later(format!("no TLS for {host}: {}", Cause::of(&error).text))
        })?;
        known().put(host.to_owned(), parameters.clone());
        Ok(parameters)
    }
}

/// For how many mail servers the TLS settings are kept: each holds all the roots.
const SMTP_HOSTS_KEPT: NonZeroUsize = NonZeroUsize::new(64).unwrap();

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
    /// The guard said no.
    pub(super) guarded: bool,
    pub(super) text: String,
}

impl Cause {
    pub(super) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut cause = Cause {
            certificate: false,
            guarded: false,
            text: String::new(),
        };
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
                return Cause {
                    certificate: true,
                    guarded: false,
                    text: why.to_string(),
                };
            }
            if let Some(refused) = error.downcast_ref::<Refused>() {
                return Cause {
                    certificate: false,
                    guarded: true,
                    text: refused.to_string(),
                };
            }
            let io = error.downcast_ref::<io::Error>();
            // The kind reads "connection refused" where the error reads "Connection refused (os
            // error 111)".
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
fn sending(host: &str, error: &reqwest::Error, timeout: Duration) -> String {
    let cause = Cause::of(error);
    if cause.certificate {
        format!("the certificate of {host} is not trusted: {}", cause.text)
    } else if cause.guarded {
        guarded(host, &cause.text)
    } else if error.is_timeout() && error.is_connect() {
        format!(
            "no connection to {host} within {:?}",
            timeout.min(CONNECT_TIMEOUT)
        )
    } else if error.is_timeout() {
        format!("{host} did not answer within {timeout:?}")
    } else if error.is_connect() {
        format!("no connection to {host}: {}", cause.text)
    } else {
        format!("the connection to {host} broke: {}", cause.text)
    }
}

fn guarded(host: &str, refused: &str) -> String {
    format!("nothing was sent to {host}: {refused}")
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
