//! A webhook of the tenant's: JSON, by POST unless it is told otherwise, signed as Standard Webhooks version 1 describes
//! (standardwebhooks.com), so that receivers can check it with the libraries they have.
//!
//! The id is the delivery's and stays the same over its retries; the timestamp and the signature are
//! of each attempt. While a key is replaced by another, both sign. Success is 2xx and nothing else.

use super::answer::Secrets;
use super::outgoing::{self, Outgoing};
use super::preview::HIDDEN;
use super::{Failure, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use hooksieve_sdk::wire::{Message, Payload};
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use sha2::Sha256;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};
use url::Url;

/// How long a key may be, as Standard Webhooks asks.
const KEY_BYTES: RangeInclusive<usize> = 24..=64;

/// The new key and the old one.
const KEYS_MAX: usize = 2;
const METHODS: [Method; 3] = [Method::POST, Method::PUT, Method::PATCH];
const HEADERS_MAX: usize = 16;
const HEADER_BYTES_MAX: usize = 4_096;
/// What is of a connection and not of a message (RFC 9110, section 7.6.1), and what is said here.
const HEADERS_TAKEN: [&str; 12] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a tenant file says of a webhook.
#[derive(Default)]
pub struct Settings {
    pub url: String,
    /// Each `whsec_` and the key in Base64; without one, nothing is signed.
    pub secrets: Vec<Secret>,
    /// `POST` where it is left out.
    pub method: Option<String>,
    /// Headers of the tenant's own; what they say is secret.
    pub headers: Vec<(String, Secret)>,
    pub timeout_ms: u64,
}

/// A webhook with checked settings.
pub struct Webhook {
    url: Url,
    keys: Vec<Vec<u8>>,
    method: Method,
    headers: HeaderMap,
    pub(super) timeout: Duration,
}

/// What a message becomes: the shape that Standard Webhooks proposes, with the event's attributes.
#[derive(Serialize)]
struct Envelope<'a> {
    r#type: &'a str,
    timestamp: &'a str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    event: Event<'a>,
    reason: &'a str,
    message: &'a Message,
}

#[derive(Serialize)]
struct Event<'a> {
    id: String,
    source: &'a str,
    r#type: &'a str,
    subject: Option<&'a str>,
    time: &'a str,
}

impl Webhook {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the secret.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let url = outgoing::web_address(&settings.url)?;
        if settings.secrets.len() > KEYS_MAX {
            return Err(format!(
                "there are {} secrets, and at most {KEYS_MAX} sign: the new one and the old one",
                settings.secrets.len()
            ));
        }
        let keys = settings.secrets.iter().map(key).collect::<Result<_, _>>()?;
        let method = match settings.method.as_deref() {
            None => Method::POST,
            Some(given) => METHODS
                .into_iter()
                .find(|method| method.as_str() == given)
                .ok_or_else(|| format!("{given:?} is no method; there are POST, PUT and PATCH"))?,
        };
        Ok(Self {
            url,
            keys,
            method,
            headers: headers(&settings.headers)?,
            timeout: Duration::from_millis(settings.timeout_ms),
        })
    }

    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let now_s = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let body = body(delivery)
            .map_err(|error| Failure::never(format!("the body cannot become JSON: {error}")))?;
        let headers = self.headers(&delivery.id.to_string(), now_s, &body);
        let method = self.method.clone();
        let answer = client
            .send(method, &self.url, headers, body, self.timeout)
            .await?;
        let host = outgoing::host(&self.url);
        match answer.status {
            200..300 => Ok(Sent {
                status: Some(answer.status),
                refused: Vec::new(),
            }),
            300..400 => Err(answer.failure(format!(
                "{host} answered {}, a redirect, and redirects are not followed",
                answer.status
            ))),
            status => Err(answer.failure(format!("{host} answered {status}"))),
        }
    }

    fn headers(&self, id: &str, now_s: u64, body: &[u8]) -> HeaderMap {
        let mut headers = self.headers.clone();
        let mut put = |name: &'static str, value: String| {
            // Ids, digits and Base64 are all visible ASCII.
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        put(CONTENT_TYPE.as_str(), "application/json".into());
        put("webhook-id", id.into());
        put("webhook-timestamp", now_s.to_string());
        if !self.keys.is_empty() {
            let signatures = self.keys.iter().map(|key| sign(key, id, now_s, body));
            put(
                "webhook-signature",
                signatures.collect::<Vec<_>>().join(" "),
            );
        }
        headers
    }

    /// The request up to its body, as of when the delivery was decided.
    pub(super) fn head(&self, delivery: &Delivery) -> Vec<String> {
        let (url, host) = (&self.url, outgoing::host(&self.url));
        let mut head = vec![format!(
            "{} {}://{host}/{HIDDEN}",
            self.method,
            url.scheme()
        )];
        let at_s = u64::try_from(delivery.created_ms / 1_000).unwrap_or(0);
        let headers = self.headers(&delivery.id.to_string(), at_s, &[]);
        head.extend(headers.iter().map(|(name, value)| match value.to_str() {
            Ok(_) if name == "webhook-signature" => format!("{name}: v1,{HIDDEN}"),
            Ok(value) if !self.headers.contains_key(name) => format!("{name}: {value}"),
            _ => format!("{name}: {HIDDEN}"),
        }));
        head.push(format!("user-agent: {}", outgoing::USER_AGENT));
        head
    }

    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        secrets.url(&self.url);
        for key in &self.keys {
            secrets.text(&BASE64.encode(key));
        }
        for value in self.headers.values() {
            let value = String::from_utf8_lossy(value.as_bytes());
            secrets.text(&value);
            // "Bearer TOKEN" may come back as the token alone.
            if let Some((_, last)) = value.rsplit_once(' ') {
                secrets.text(last);
            }
        }
    }
}

pub(super) fn body(delivery: &Delivery) -> Result<Vec<u8>, serde_json::Error> {
    let about = &delivery.about;
    match &delivery.payload {
        Payload::Body(body) => serde_json::to_vec(body),
        Payload::Message(message) => serde_json::to_vec(&Envelope {
            r#type: &about.kind,
            timestamp: &about.time,
            data: Data {
                event: Event {
                    id: delivery.event.to_string(),
                    source: about.source.as_str(),
                    r#type: &about.kind,
                    subject: about.subject.as_deref(),
                    time: &about.time,
                },
                reason: &delivery.reason,
                message,
            },
        }),
    }
}

fn sign(key: &[u8], id: &str, now_s: u64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(format!("{id}.{now_s}.").as_bytes());
    mac.update(body);
    format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()))
}

/// Reads the tenant's own headers. No error holds a value.
fn headers(given: &[(String, Secret)]) -> Result<HeaderMap, String> {
    if given.len() > HEADERS_MAX {
        return Err(format!(
            "there are {} headers, and at most {HEADERS_MAX} are sent",
            given.len()
        ));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name: HeaderName = name
            .parse()
            .map_err(|_| format!("{name:?} is not the name of a header"))?;
        if HEADERS_TAKEN.contains(&name.as_str()) || name.as_str().starts_with("webhook-") {
            return Err(format!("the header `{name}` is not the tenant's to set"));
        }
        let value = value.expose();
        if value.len() > HEADER_BYTES_MAX {
            return Err(format!(
                "the header `{name}` has {} bytes, and at most {HEADER_BYTES_MAX} are sent",
                value.len()
            ));
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("the header `{name}` may hold visible ASCII characters only"))?;
        value.set_sensitive(true);
        if headers.insert(&name, value).is_some() {
            return Err(format!("the header `{name}` is there twice"));
        }
    }
    Ok(headers)
}

fn key(secret: &Secret) -> Result<Vec<u8>, String> {
    let encoded = secret
        .expose()
        .strip_prefix("whsec_")
        .ok_or("the secret does not begin with whsec_")?;
    let key = BASE64
        .decode(encoded)
        .map_err(|_| "the secret is not Base64 after whsec_")?;
    if !KEY_BYTES.contains(&key.len()) {
        return Err(format!(
            "the secret holds {} bytes, and {} to {} are asked for; `openssl rand -base64 32` makes one",
            key.len(),
            KEY_BYTES.start(),
            KEY_BYTES.end()
        ));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::{delivery, hostile_message, outgoing};
    use crate::channel::{Channel, Retry};
    use axum::Router;
    use axum::extract::{Request, State};
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use hooksieve_sdk::wire::Body;
    use hooksieve_sdk::wire::json::Data as JsonData;
    use std::sync::{Arc, Mutex};

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn webhook(url: &str, secret: Option<&str>) -> Result<Webhook, String> {
        Webhook::new(Settings {
            url: url.into(),
            secrets: secret.map(Secret::new).into_iter().collect(),
            timeout_ms: 500,
            ..Settings::default()
        })
    }

    fn body_of(json: &str) -> Payload {
        let data = JsonData::from_json(json.as_bytes()).unwrap();
        Payload::Body(Body::from_msgpack(data.bytes().to_vec()))
    }

    async fn serve(app: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        format!("http://{address}")
    }

    /// What one attempt comes to when the receiver answers with `answer`.
    async fn answered(
        answer: impl IntoResponse + Clone + Send + Sync + 'static,
    ) -> Result<Sent, Failure> {
        let url = serve(Router::new().fallback(move || async move { answer })).await;
        let channel =
            Channel::Webhook(webhook(&format!("{url}/hidden?token=hidden"), None).unwrap());
        let client = outgoing(None);
        let result = channel.send(&client, &delivery(body_of("{}"))).await;
        if let Err(failure) = &result {
            assert!(failure.error.starts_with("127.0.0.1:"), "{}", failure.error);
            assert!(!failure.error.contains("hidden"), "{}", failure.error);
        }
        result
    }

    /// The example in the documents of Standard Webhooks' reference libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let key = key(&Secret::new(SECRET)).unwrap();
        assert_eq!(
            sign(
                &key,
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let short = format!("whsec_{}", BASE64.encode([7; 23]));
        for (url, secret, error) in [
            (
                "example.com",
                None,
                "the url is not one: relative URL without a base",
            ),
            (
                "ftp://example.com",
                None,
                "the url begins with \"ftp\", and only http and https are known",
            ),
            (
                "https://example.com",
                Some("MfKQ9r8G"),
                "the secret does not begin with whsec_",
            ),
            (
                "https://example.com",
                Some("whsec_!"),
                "the secret is not Base64 after whsec_",
            ),
            (
                "https://example.com",
                Some(short.as_str()),
                "the secret holds 23 bytes, and 24 to 64 are asked for; `openssl rand -base64 32` makes one",
            ),
        ] {
            assert_eq!(webhook(url, secret).err().as_deref(), Some(error));
        }
    }

    #[test]
    fn own_headers_are_checked_and_their_values_never_told() {
        let refused = |headers: &[(&str, &str)]| {
            let headers = headers.iter();
            Webhook::new(Settings {
                url: "https://example.com".into(),
                headers: headers
                    .map(|(name, value)| ((*name).to_owned(), Secret::new(*value)))
                    .collect(),
                ..Settings::default()
            })
            .err()
        };
        let long = "x".repeat(4_097);
        let many: Vec<String> = (0..17).map(|n| format!("x-{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "v")).collect();
        for (headers, error) in [
            (
                &[("X Name", "hidden")][..],
                "\"X Name\" is not the name of a header",
            ),
            (
                &[("Host", "hidden")],
                "the header `host` is not the tenant's to set",
            ),
            (
                &[("Transfer-Encoding", "chunked")],
                "the header `transfer-encoding` is not the tenant's to set",
            ),
            (
                &[("Webhook-Id", "hidden")],
                "the header `webhook-id` is not the tenant's to set",
            ),
            (
                &[("X-A", "hidden\r\nX-B: 1")],
                "the header `x-a` may hold visible ASCII characters only",
            ),
            (
                &[("X-A", &long)],
                "the header `x-a` has 4097 bytes, and at most 4096 are sent",
            ),
            (
                &[("X-A", "hidden"), ("x-a", "hidden")],
                "the header `x-a` is there twice",
            ),
            (&many, "there are 17 headers, and at most 16 are sent"),
        ] {
            assert_eq!(refused(headers).as_deref(), Some(error));
        }
        assert_eq!(refused(&many[..16]), None);
        assert_eq!(refused(&[("X-A", &long[..4_096])]), None);
    }

    #[test]
    fn methods_and_keys_are_few() {
        let refused = |method: &str, keys: usize| {
            Webhook::new(Settings {
                url: "https://example.com".into(),
                method: Some(method.into()),
                secrets: vec![Secret::new(SECRET); keys],
                ..Settings::default()
            })
            .err()
        };
        for method in ["POST", "PUT", "PATCH"] {
            assert_eq!(refused(method, 2), None);
        }
        for method in ["GET", "DELETE", "post", ""] {
            let error = format!("{method:?} is no method; there are POST, PUT and PATCH");
            assert_eq!(refused(method, 0), Some(error));
        }
        assert_eq!(
            refused("POST", 3).as_deref(),
            Some("there are 3 secrets, and at most 2 sign: the new one and the old one")
        );
    }

    #[test]
    fn a_message_becomes_an_event_with_its_reason() {
        let body = body(&delivery(Payload::Message(hostile_message()))).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&body).unwrap());
    }

    #[tokio::test]
    async fn a_body_arrives_as_it_is_and_signed() {
        type Seen = Arc<Mutex<Vec<(HeaderMap, Vec<u8>)>>>;
        async fn take(State(seen): State<Seen>, request: Request) -> StatusCode {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            seen.lock().unwrap().push((head.headers, body.to_vec()));
            StatusCode::ACCEPTED
        }
        let seen = Seen::default();
        let url = serve(Router::new().fallback(take).with_state(seen.clone())).await;
        let json = r#"{"z":1,"a":["<&>",null,1.5],"ä":true}"#;
        let delivery = delivery(body_of(json));
        let channel = Channel::Webhook(webhook(&url, Some(SECRET)).unwrap());
        let client = outgoing(None);
        let sent = channel.send(&client, &delivery).await.unwrap();
        assert_eq!(sent.status, Some(202));

        let (headers, body) = seen.lock().unwrap().pop().unwrap();
        assert_eq!(std::str::from_utf8(&body).unwrap(), json);
        let text = |name: &str| headers[name].to_str().unwrap();
        assert_eq!(text("content-type"), "application/json");
        assert_eq!(
            text("user-agent"),
            concat!("hooksieve/", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(text("webhook-id"), delivery.id.to_string());
        let at: u64 = text("webhook-timestamp").parse().unwrap();
        let key = key(&Secret::new(SECRET)).unwrap();
        assert_eq!(
            text("webhook-signature"),
            sign(&key, text("webhook-id"), at, &body)
        );
    }

    #[tokio::test]
    async fn the_status_decides_whether_to_try_again() {
        for (status, retry) in [
            (301, Retry::Never),
            (304, Retry::Never),
            (400, Retry::Never),
            (404, Retry::Never),
            (408, Retry::Later),
            (410, Retry::Gone),
            (425, Retry::Later),
            (429, Retry::Later),
            (500, Retry::Later),
            (503, Retry::Later),
        ] {
            let failure = answered(StatusCode::from_u16(status).unwrap())
                .await
                .unwrap_err();
            assert_eq!((failure.status, failure.retry), (Some(status), retry));
            assert!(!failure.ambiguous);
        }
        for status in [200, 204, 299] {
            let sent = answered(StatusCode::from_u16(status).unwrap())
                .await
                .unwrap();
            assert_eq!(sent.status, Some(status));
        }
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let elsewhere = [("location", "http://127.0.0.1:1/elsewhere")];
        let failure = answered((StatusCode::TEMPORARY_REDIRECT, elsewhere))
            .await
            .unwrap_err();
        assert!(
            failure
                .error
                .ends_with("answered 307, a redirect, and redirects are not followed"),
            "{}",
            failure.error
        );
    }

    #[tokio::test]
    async fn a_receiver_may_ask_for_patience() {
        let busy = (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "120")]);
        let failure = answered(busy).await.unwrap_err();
        assert_eq!(failure.retry, Retry::After(Duration::from_secs(120)));
        // Where trying again is of no use, the header changes nothing.
        let gone = (StatusCode::GONE, [("retry-after", "120")]);
        assert_eq!(answered(gone).await.unwrap_err().retry, Retry::Gone);
    }

    #[tokio::test]
    async fn the_beginning_of_a_failures_answer_is_kept() {
        let busy = (StatusCode::BAD_GATEWAY, "<h1>\r\nbusy</h1>".repeat(1_000));
        let answer = answered(busy).await.unwrap_err().answer.unwrap();
        assert!(answer.starts_with("<h1> busy</h1><h1> "), "{answer}");
        assert_eq!(answer.len(), 1_024);
        let silent = answered(StatusCode::BAD_GATEWAY).await.unwrap_err();
        assert_eq!(silent.answer, None);
    }

    #[tokio::test]
    async fn an_endless_answer_is_read_to_a_cap() {
        let endless = Router::new().fallback(|| async {
            let body = axum::body::Body::from(vec![b'x'; 8 << 20]);
            Response::new(body)
        });
        let url = serve(endless).await;
        let channel = webhook(&url, None).unwrap();
        let sent = channel
            .send(&outgoing(None), &delivery(body_of("{}")))
            .await;
        assert_eq!(sent.unwrap().status, Some(200));
    }

    #[tokio::test]
    async fn silence_refusal_and_bad_certificates_are_told_apart() {
        async fn failure(url: String) -> Failure {
            let channel = webhook(&url, None).unwrap();
            let client = outgoing(None);
            channel
                .send(&client, &delivery(body_of("{}")))
                .await
                .unwrap_err()
        }
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent_at = silent.local_addr().unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed_at = closed.local_addr().unwrap();
        drop(closed);
        let tls_at = self_signed().await.0;
        for (url, ambiguous, error) in [
            (
                format!("http://{silent_at}/a"),
                true,
                format!("{silent_at} did not answer within 500ms"),
            ),
            (
                format!("http://{closed_at}/a"),
                false,
                format!("no connection to {closed_at}: connection refused"),
            ),
            (
                format!("https://localhost:{tls_at}/a"),
                false,
                format!("the certificate of localhost:{tls_at} is not trusted: UnknownIssuer"),
            ),
        ] {
            let failure = failure(url).await;
            assert_eq!((failure.retry, failure.error), (Retry::Later, error));
            assert_eq!((failure.ambiguous, failure.answer), (ambiguous, None));
        }
        let unknown = failure("http://no-such-host.invalid/a".into()).await;
        assert_eq!((unknown.retry, unknown.ambiguous), (Retry::Later, false));
        assert!(
            unknown
                .error
                .starts_with("no connection to no-such-host.invalid: "),
            "{}",
            unknown.error
        );
    }

    /// With the operator's extra root, the same server is trusted.
    #[tokio::test]
    async fn an_extra_root_is_trusted() {
        let (port, pem) = self_signed().await;
        let channel = webhook(&format!("https://localhost:{port}/a"), None).unwrap();
        let client = outgoing(Some(pem.as_bytes()));
        let failure = channel
            .send(&client, &delivery(body_of("{}")))
            .await
            .unwrap_err();
        // The peer speaks TLS and no HTTP: the handshake went through.
        assert!(
            failure
                .error
                .starts_with(&format!("the connection to localhost:{port} broke")),
            "{}",
            failure.error
        );
        assert!(failure.ambiguous);
    }

    /// A TLS server for localhost that shakes hands and then closes.
    async fn self_signed() -> (u16, String) {
        use std::io::{Read as _, Write as _};
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let pem = made.cert.pem();
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::StreamOwned::new(connection, socket);
                let _ = stream.read(&mut [0; 1024]);
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        (port, pem)
    }
}
