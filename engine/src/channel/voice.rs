//! A phone call that reads a message out, through Twilio or a service with the same REST API.
//!
//! Guarantees:
//! - Only the numbers of the tenant's file are ever called. Nothing of an event becomes a number, an
//!   address or an instruction: what is said is text, and stays text in the TwiML.
//! - No more than `calls_per_hour_max` calls are asked for in any hour, however many events there are;
//!   what is over it waits until there is room. The count is of this process: a restart forgets it.
//! - Who was called for a delivery is not called for it again. Where the service falls silent after it
//!   was asked, it is asked again and the phone may ring twice: the API has no key for what is one call.
//!
//! Success is that the service took the call (201 with its `sid`), not that somebody answered it.
//!
//! Format and limits: Twilio's documents "Call resource", "TwiML for Programmable Voice: Say" and
//! "Twilio's response" (errors).

use super::answer::Secrets;
use super::outgoing::{self, Outgoing};
use super::text::{self, angle_entity, escaped};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hooksieve_sdk::wire::{Message, Payload};
use hyper::Method;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;
use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use url::Url;

const ADDRESS: &str = "https://api.twilio.com";
const ACCOUNT_CHARS_MAX: usize = 64;
const NUMBERS_MAX: usize = 10;
/// Digits of a number with its country (ITU-T E.164, section 6); no service has one of fewer than seven.
const DIGITS: std::ops::RangeInclusive<usize> = 7..=15;
const CALLS_PER_HOUR: u64 = 10;
const CALLS_PER_HOUR_MAX: u64 = 1_000;
const HOUR: Duration = Duration::from_secs(3_600);
const LANGUAGE: &str = "en-US";
const LANGUAGE_CHARS_MAX: usize = 20;
/// Whoever picks up has often missed the beginning.
const REPEAT: u64 = 2;
const REPEAT_MAX: u64 = 5;
/// What is said at once, a good minute of it; with its escapes. The TwiML around it and it may have 4,000
/// characters ("Call resource", the parameter `Twiml`).
pub(super) const SPOKEN_CHARS_MAX: usize = 1_500;
/// Of them for a digest's title and the footer.
pub(super) const AROUND_CHARS: usize = 500;

/// What a tenant file says of a voice channel.
pub struct Settings {
    pub account_sid: String,
    pub auth_token: Secret,
    /// The number that calls, as the service knows it.
    pub from: String,
    /// The numbers that are called: `+`, country and number.
    pub to: Vec<String>,
    /// Another address than Twilio's own.
    pub url: Option<String>,
    pub calls_per_hour_max: Option<u64>,
    /// How it is read out, such as `de-DE`; `en-US` where it is left out.
    pub language: Option<String>,
    /// How often it is read out.
    pub repeat: Option<u64>,
    pub timeout_ms: u64,
}

/// A voice channel with checked settings.
pub struct Voice {
    url: Url,
    account_sid: String,
    auth_token: Secret,
    from: String,
    to: Vec<String>,
    language: String,
    repeat: u64,
    calls_per_hour_max: usize,
    pub(super) timeout: Duration,
    calls: Mutex<Calls>,
}

/// The calls of the last hour, oldest first.
#[derive(Default)]
struct Calls(VecDeque<Instant>);

/// The call, or what was wrong with it.
#[derive(Deserialize)]
struct Said {
    sid: Option<String>,
    code: Option<u32>,
    #[serde(default)]
    message: String,
}

impl Calls {
    /// Takes a place for one more call, or says how long it is until there is one.
    fn take(&mut self, max: usize, now: Instant) -> Result<(), Duration> {
        while self.0.front().is_some_and(|at| *at + HOUR <= now) {
            self.0.pop_front();
        }
        match self.0.front() {
            Some(oldest) if self.0.len() >= max => Err(*oldest + HOUR - now),
            _ => {
                self.0.push_back(now);
                Ok(())
            }
        }
    }

    /// Gives a place back: nobody was called.
    fn give_back(&mut self) {
        self.0.pop_back();
    }
}

impl Voice {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the token.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let sid = &settings.account_sid;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if sid.is_empty() || sid.len() > ACCOUNT_CHARS_MAX || !sid.bytes().all(fits) {
            return Err(format!("{sid:?} is not an account_sid"));
        }
        let mut url = outgoing::web_address(settings.url.as_deref().unwrap_or(ADDRESS))?;
        let host = url.host_str().unwrap_or_default();
        let local = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
        if url.scheme() != "https" && !local {
            return Err(format!(
                "the auth_token would travel unencrypted to {host:?}; the url must begin with https"
            ));
        }
        let path = url.path().trim_end_matches('/');
        let path = format!("{path}/2010-04-01/Accounts/{sid}/Calls.json");
        url.set_path(&path);
        number(&settings.from)?;
        if settings.to.is_empty() {
            return Err("there is no number to call".into());
        }
        if settings.to.len() > NUMBERS_MAX {
            return Err(format!(
                "there are {} numbers to call, and at most {NUMBERS_MAX} are taken",
                settings.to.len()
            ));
        }
        let mut seen = HashSet::new();
        for to in &settings.to {
            number(to)?;
            if !seen.insert(to) {
                return Err(format!("{to:?} is there twice"));
            }
        }
        let language = settings.language.unwrap_or_else(|| LANGUAGE.to_owned());
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(2..=LANGUAGE_CHARS_MAX).contains(&language.len()) || !language.bytes().all(fits) {
            return Err(format!(
                "{language:?} is not a language; write it as in \"en-US\""
            ));
        }
        Ok(Self {
            url,
            account_sid: settings.account_sid,
            auth_token: settings.auth_token,
            from: settings.from,
            to: settings.to,
            language,
            repeat: within("repeat", settings.repeat, REPEAT, REPEAT_MAX)?,
            calls_per_hour_max: within(
                "calls_per_hour_max",
                settings.calls_per_hour_max,
                CALLS_PER_HOUR,
                CALLS_PER_HOUR_MAX,
            )? as usize,
            timeout: Duration::from_millis(settings.timeout_ms),
            calls: Mutex::default(),
        })
    }

    /// Calls everyone who was not called yet, one after the other. Who cannot be called at all does not
    /// keep the call from the others; what stands in the way of all ends it, to be tried again.
    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let Payload::Message(message) = &delivery.payload else {
            return Err(Failure::never("voice takes a message, not a body"));
        };
        let twiml = self.twiml(delivery, message);
        let ends = Instant::now() + self.timeout;
        let called: HashSet<&str> = delivery.accepted().collect();
        let to = self.to.iter().filter(|to| !called.contains(to.as_str()));
        let mut accepted = Vec::new();
        let mut refused = Vec::new();
        let mut status = None;
        let mut last = None;
        for to in to {
            match self.call(client, to, &twiml, ends).await {
                Ok(code) => {
                    status = Some(code);
                    accepted.push(to.clone());
                }
                Err(failure) if matches!(failure.retry, Retry::Never) => {
                    refused.push(format!("{to}: {}", failure.error));
                    last = Some(failure);
                }
                Err(failure) => {
                    return Err(Failure {
                        accepted,
                        refused,
                        ..failure
                    });
                }
            }
        }
        match last {
            Some(failure) if called.is_empty() && accepted.is_empty() => {
                Err(Failure { refused, ..failure })
            }
            _ => Ok(Sent { status, refused }),
        }
    }

    /// Asks for one call.
    async fn call(
        &self,
        client: &Outgoing,
        to: &str,
        twiml: &str,
        ends: Instant,
    ) -> Result<u16, Failure> {
        let host = outgoing::host(&self.url);
        let room = self.calls().take(self.calls_per_hour_max, Instant::now());
        room.map_err(|wait| {
            let error = format!(
                "{host} was asked for {} calls within an hour, which is all it may be (calls_per_hour_max)",
                self.calls_per_hour_max
            );
            Failure::new(None, error, Retry::After(wait))
        })?;
        let asked = self.ask(client, &host, to, twiml, ends).await;
        if asked.as_ref().is_err_and(|failure| !failure.ambiguous) {
            self.calls().give_back();
        }
        asked
    }

    async fn ask(
        &self,
        client: &Outgoing,
        host: &str,
        to: &str,
        twiml: &str,
        ends: Instant,
    ) -> Result<u16, Failure> {
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::later(format!(
                "{host} did not take all calls within {:?}",
                self.timeout
            )));
        }
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("To", to)
            .append_pair("From", &self.from)
            .append_pair("Twiml", twiml)
            .finish();
        let answer = client
            .send(
                Method::POST,
                &self.url,
                self.headers(),
                form.into_bytes(),
                left,
            )
            .await?;
        let said = serde_json::from_slice::<Said>(&answer.body).ok();
        match (answer.status, said) {
            (201, Some(Said { sid: Some(_), .. })) => Ok(201),
            (201, _) => {
                let error = format!("{host} answered 201 without the call that it began");
                Err(answer.failed(error, Retry::Later).ambiguous(true))
            }
            (
                status,
                Some(Said {
                    code: Some(code),
                    message,
                    ..
                }),
            ) => {
                let why = text::one_line(&message, 200);
                Err(answer.failure(format!("{host} answered {status} ({code}: {why})")))
            }
            (status, _) => Err(answer.failure(format!("{host} answered {status}"))),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        let login = format!("{}:{}", self.account_sid, self.auth_token.expose());
        // Base64 is visible ASCII.
        if let Ok(mut login) = HeaderValue::from_str(&format!("Basic {}", BASE64.encode(login))) {
            login.set_sensitive(true);
            headers.insert(AUTHORIZATION, login);
        }
        headers
    }

    fn twiml(&self, delivery: &Delivery, message: &Message) -> String {
        let spoken = spoken(delivery, message);
        format!(
            "<Response><Say language=\"{}\" loop=\"{}\">{}</Say></Response>",
            self.language,
            self.repeat,
            escaped(&spoken, SPOKEN_CHARS_MAX, |c| match c {
                '"' => Some("&quot;"),
                '\'' => Some("&apos;"),
                c => angle_entity(c),
            })
        )
    }

    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        secrets.login(&self.account_sid, self.auth_token.expose());
        secrets.url(&self.url);
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is read out: all but the link, which nobody can follow.
pub(super) fn spoken(delivery: &Delivery, message: &Message) -> String {
    let fields = message
        .fields
        .iter()
        .map(|field| format!("{}: {}", field.name, field.value));
    let parts = [message.title.clone(), message.text.clone()];
    let parts = parts.into_iter().chain(fields);
    let parts: Vec<String> = parts
        .chain([text::footer(delivery)])
        .map(|part| text::one_line(&part, SPOKEN_CHARS_MAX))
        .filter(|part| !part.is_empty())
        .collect();
    // Control characters are gone; these two are no characters of XML either (XML 1.0, section 2.2).
    parts.join(". ").replace(['\u{fffe}', '\u{ffff}'], "")
}

/// Whether it is a number as E.164 writes it.
fn number(text: &str) -> Result<(), String> {
    let digits = text.strip_prefix('+').unwrap_or_default();
    let fits = DIGITS.contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0');
    match fits {
        true => Ok(()),
        false => Err(format!(
            "{text:?} is not a phone number; write it with its country, as in \"+12025550123\""
        )),
    }
}

fn within(what: &str, given: Option<u64>, default: u64, max: u64) -> Result<u64, String> {
    let value = given.unwrap_or(default);
    match (1..=max).contains(&value) {
        true => Ok(value),
        false => Err(format!("{what} is {value}, and may be 1 to {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::channel::tests::{attempted, delivery, hostile_message, outgoing};
    use crate::store::Attempt;
    use axum::extract::{Request, State};
    use axum::http::StatusCode;
    use std::sync::Arc;

    const ANN: &str = "+12025550101";
    const BOB: &str = "+12025550102";

    fn settings(url: &str) -> Settings {
        Settings {
            account_sid: "AC0123".into(),
            auth_token: Secret::new("the-hidden-token"),
            from: "+12025550100".into(),
            to: vec![ANN.into(), BOB.into()],
            url: Some(url.into()),
            calls_per_hour_max: None,
            language: None,
            repeat: None,
            timeout_ms: 2000,
        }
    }

    fn voice(url: &str) -> Voice {
        Voice::new(settings(url)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn hostile() -> Delivery {
        delivery(Payload::Message(hostile_message()))
    }

    /// A service that takes calls, but for the numbers that it has another answer for.
    #[derive(Clone, Default)]
    struct Service {
        answers: Arc<Mutex<Vec<Answer>>>,
        seen: Arc<Mutex<Vec<Seen>>>,
    }

    /// What to answer for a number: status and body.
    type Answer = (&'static str, u16, &'static str);

    /// A path, a login, and the form.
    type Seen = (String, String, Vec<(String, String)>);

    impl Service {
        async fn start(&self) -> String {
            async fn take(State(it): State<Service>, request: Request) -> (StatusCode, String) {
                let (head, body) = request.into_parts();
                let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
                let form = url::form_urlencoded::parse(&body).into_owned();
                let form: Vec<(String, String)> = form.collect();
                let to = form[0].1.clone();
                let login = head.headers["authorization"].to_str().unwrap().to_owned();
                let seen = (head.uri.path().to_owned(), login, form);
                it.seen.lock().unwrap().push(seen);
                let answers = it.answers.lock().unwrap();
                match answers.iter().find(|(number, ..)| *number == to) {
                    Some((_, status, body)) => {
                        (StatusCode::from_u16(*status).unwrap(), (*body).to_owned())
                    }
                    None => (StatusCode::CREATED, r#"{"sid":"CA1"}"#.to_owned()),
                }
            }
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let app = axum::Router::new().fallback(take).with_state(self.clone());
            tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
            format!("http://{address}/base/")
        }

        fn called(&self) -> Vec<String> {
            let mut seen = self.seen.lock().unwrap();
            seen.drain(..).map(|(.., form)| form[0].1.clone()).collect()
        }
    }

    #[test]
    fn a_hostile_message_stays_text() {
        insta::assert_snapshot!(voice(ADDRESS).twiml(&hostile(), &hostile_message()));
    }

    #[test]
    fn the_longest_message_fits_the_parameter() {
        for wide in ["&", "💥", "\"", "\u{ffff}\u{fffe}\u{0}x", "a b "] {
            let mut message = hostile_message();
            message.title = wide.repeat(10_000);
            message.text = wide.repeat(100_000);
            let twiml = voice(ADDRESS).twiml(&hostile(), &message);
            assert!(twiml.chars().count() <= 4_000);
            assert!(twiml.ends_with("…</Say></Response>"), "{twiml}");
            assert!(!twiml.contains(['\0', '\u{fffe}', '\u{ffff}']));
        }
    }

    #[tokio::test]
    async fn everyone_is_called_once() {
        let service = Service::default();
        let voice = voice(&service.start().await);
        let sent = voice.send(&outgoing(None), &hostile()).await.unwrap();
        assert_eq!((sent.status, sent.refused), (Some(201), Vec::new()));
        let seen = service.seen.lock().unwrap().clone();
        assert_eq!(seen.len(), 2);
        for ((path, login, form), to) in seen.iter().zip([ANN, BOB]) {
            assert_eq!(path, "/base/2010-04-01/Accounts/AC0123/Calls.json");
            let expected = BASE64.encode("AC0123:the-hidden-token");
            assert_eq!(*login, format!("Basic {expected}"));
            let twiml = voice.twiml(&hostile(), &hostile_message());
            let expected = [("To", to), ("From", "+12025550100"), ("Twiml", &twiml)];
            let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
            assert_eq!(*form, expected);
        }
    }

    #[tokio::test]
    async fn who_was_called_is_not_called_again() {
        let service = Service::default();
        let busy = r#"{"code":20429,"message":"Too Many Requests","status":429}"#;
        service.answers.lock().unwrap().push((BOB, 429, busy));
        let voice = voice(&service.start().await);
        let mut delivery = hostile();
        let failure = voice.send(&outgoing(None), &delivery).await.unwrap_err();
        assert_eq!((failure.status, failure.retry), (Some(429), Retry::Later));
        assert!(
            failure
                .error
                .ends_with("answered 429 (20429: Too Many Requests)"),
            "{}",
            failure.error
        );
        assert_eq!(failure.accepted, [ANN]);
        assert_eq!(service.called(), [ANN, BOB]);
        delivery.attempts.push(Attempt {
            accepted: failure.accepted,
            ..Attempt::default()
        });
        service.answers.lock().unwrap().clear();
        voice.send(&outgoing(None), &delivery).await.unwrap();
        assert_eq!(service.called(), [BOB]);
    }

    #[tokio::test]
    async fn one_bad_number_keeps_the_call_from_nobody_else() {
        let service = Service::default();
        let bad = r#"{"code":21211,"message":"Invalid 'To' Phone Number","status":400}"#;
        service.answers.lock().unwrap().push((ANN, 400, bad));
        let voice = voice(&service.start().await);
        let sent = voice.send(&outgoing(None), &hostile()).await.unwrap();
        assert_eq!(service.called(), [ANN, BOB]);
        assert_eq!(sent.refused.len(), 1);
        let refused = &sent.refused[0];
        assert!(
            refused.starts_with(&format!("{ANN}: 127.0.0.1:")),
            "{refused}"
        );
        assert!(
            refused.ends_with("answered 400 (21211: Invalid 'To' Phone Number)"),
            "{refused}"
        );
        // Refused for all, it is final.
        service.answers.lock().unwrap().push((BOB, 400, bad));
        let failure = voice.send(&outgoing(None), &hostile()).await.unwrap_err();
        assert_eq!((failure.status, failure.retry), (Some(400), Retry::Never));
        assert_eq!(failure.refused.len(), 2);
    }

    #[tokio::test]
    async fn calls_over_the_hours_number_wait_for_room() {
        let service = Service::default();
        let voice = Voice::new(Settings {
            calls_per_hour_max: Some(3),
            ..settings(&service.start().await)
        })
        .unwrap_or_else(|error| panic!("{error}"));
        let client = outgoing(None);
        voice.send(&client, &hostile()).await.unwrap();
        let failure = voice.send(&client, &hostile()).await.unwrap_err();
        assert_eq!(failure.accepted, [ANN]);
        let Retry::After(wait) = failure.retry else {
            panic!("{failure:?}");
        };
        assert!(
            wait <= HOUR && wait > HOUR - Duration::from_secs(60),
            "{wait:?}"
        );
        assert!(
            failure.error.ends_with(
                "was asked for 3 calls within an hour, which is all it may be (calls_per_hour_max)"
            ),
            "{}",
            failure.error
        );
        assert_eq!(service.called(), [ANN, BOB, ANN]);
    }

    #[test]
    fn places_come_free_an_hour_after_they_were_taken() {
        let mut calls = Calls::default();
        let start = Instant::now();
        let minute = |n: u64| start + Duration::from_secs(60 * n);
        assert_eq!(calls.take(2, minute(0)), Ok(()));
        assert_eq!(calls.take(2, minute(10)), Ok(()));
        let wait = |n: u64| Err(Duration::from_secs(60 * n));
        assert_eq!(calls.take(2, minute(20)), wait(40));
        assert_eq!(calls.take(2, minute(59)), wait(1));
        assert_eq!(calls.take(2, minute(60)), Ok(()));
        assert_eq!(calls.take(2, minute(60)), wait(10));
        calls.give_back();
        assert_eq!(calls.take(2, minute(61)), Ok(()));
    }

    #[tokio::test]
    async fn only_a_call_with_its_sid_is_success() {
        let channel = |url: String| Channel::Voice(voice(&url));
        for (status, body, retry, ambiguous, error) in [
            (
                201,
                "{}",
                Retry::Later,
                true,
                "answered 201 without the call that it began",
            ),
            (200, r#"{"sid":"CA1"}"#, Retry::Never, false, "answered 200"),
            (
                401,
                r#"{"code":20003,"message":"Authenticate","status":401}"#,
                Retry::Never,
                false,
                "answered 401 (20003: Authenticate)",
            ),
            (503, "<html>", Retry::Later, false, "answered 503"),
        ] {
            let failure = attempted(status, body, channel).await.unwrap_err();
            assert_eq!((failure.status, failure.retry), (Some(status), retry));
            assert_eq!(failure.ambiguous, ambiguous);
            assert!(failure.error.ends_with(error), "{}", failure.error);
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = settings("https://voice.example.com");
            change(&mut settings);
            Voice::new(settings).err()
        };
        assert_eq!(refused(|_| ()), None);
        for (change, error) in [
            (
                (|it| it.account_sid = "AC/../x".into()) as fn(&mut Settings),
                "\"AC/../x\" is not an account_sid",
            ),
            (
                |it| it.url = Some("http://voice.example.com".into()),
                "the auth_token would travel unencrypted to \"voice.example.com\"; the url must begin with https",
            ),
            (|it| it.to.clear(), "there is no number to call"),
            (
                |it| it.to = vec![ANN.into(); 11],
                "there are 11 numbers to call, and at most 10 are taken",
            ),
            (
                |it| it.to = vec![ANN.into(); 2],
                "\"+12025550101\" is there twice",
            ),
            (
                |it| it.to = vec!["2025550101".into()],
                "\"2025550101\" is not a phone number; write it with its country, as in \"+12025550123\"",
            ),
            (
                |it| it.from = "+1 202 555".into(),
                "\"+1 202 555\" is not a phone number; write it with its country, as in \"+12025550123\"",
            ),
            (
                |it| it.language = Some("en\"><Dial>".into()),
                "\"en\\\"><Dial>\" is not a language; write it as in \"en-US\"",
            ),
            (|it| it.repeat = Some(6), "repeat is 6, and may be 1 to 5"),
            (
                |it| it.calls_per_hour_max = Some(0),
                "calls_per_hour_max is 0, and may be 1 to 1000",
            ),
        ] {
            assert_eq!(refused(change).as_deref(), Some(error));
        }
    }
}
