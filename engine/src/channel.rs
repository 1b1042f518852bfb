//! Where deliveries go: a tenant's channels, each of one kind, built from validated settings.
//!
//! Guarantees:
//! - Nothing of an event can change what a channel does: titles, texts and links are escaped for
//!   the receiver's form, cut to its limits, and never become a header, a recipient or a mention.
//! - Whether a failure is worth a retry is decided here, where it is born.
//! - What an error says is fit for a log and for a stored attempt: the host and what happened, never
//!   a path, a query, a user or a secret. The same holds of what a receiver answered, where it is kept.
//!
//! What a channel deliberately does not do: retry, wait, know the store, or follow a redirect.

mod answer;
pub mod discord;
pub mod email;
pub mod guard;
pub mod lark;
pub mod outgoing;
pub mod pagerduty;
mod preview;
pub mod slack;
pub mod sql;
pub mod teams;
mod text;
pub mod voice;
pub mod webhook;

pub use outgoing::Outgoing;
pub use preview::Preview;
pub use text::is_invisible;

use crate::dispatch::Rate;
use crate::store::Delivery;
use crate::timing::Room;
use answer::Secrets;
use hooksieve_sdk::wire::Payload;
use std::time::Duration;

/// A destination that a tenant configured.
pub enum Channel {
    Discord(discord::Discord),
    Email(email::Email),
    Lark(lark::Lark),
    PagerDuty(pagerduty::PagerDuty),
    Slack(slack::Slack),
    Sql(Box<sql::Sql>),
    Teams(teams::Teams),
    Voice(voice::Voice),
    Webhook(webhook::Webhook),
}

/// The receiver took it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The HTTP status or SMTP code, where there was an answer.
    pub status: Option<u16>,
    /// Recipients who were refused for good while others have it: "who: code text".
    pub refused: Vec<String>,
}

/// The receiver did not take it, or not for everyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: Option<u16>,
    /// One sentence that names the host.
    pub error: String,
    pub retry: Retry,
    /// The beginning of what the receiver answered, in one line and without the channel's secrets.
    pub answer: Option<String>,
    /// The receiver may have taken it although no success was seen: it was sent, and then nothing came
    /// back. (Where a request timed out, a connection may not have come about either.)
    pub ambiguous: bool,
    /// Recipients who have it all the same: a retry must leave them out.
    pub accepted: Vec<String>,
    /// Recipients who do not, as in [`Sent::refused`].
    pub refused: Vec<String>,
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// Nor for any other delivery: the receiver says that it is gone for good.
    Gone,
    Later,
    /// The receiver said how long to stay away.
    After(Duration),
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind())
    }
}

impl Channel {
    /// Tries once to deliver. It ends within the channel's own timeout.
    ///
    /// # Errors
    /// When the receiver did not take it; the failure says whether to try again.
    pub async fn send(&self, client: &Outgoing, delivery: &Delivery) -> Result<Sent, Failure> {
        // The pipeline asked `takes` before it stored anything; the settings may have changed since.
        self.takes(&delivery.payload).map_err(Failure::never)?;
        let sent = match self {
            Channel::Discord(discord) => discord.send(client, delivery).await,
            Channel::Email(email) => email.send(client, delivery).await,
            Channel::Lark(lark) => lark.send(client, delivery).await,
            Channel::PagerDuty(pagerduty) => pagerduty.send(client, delivery).await,
            Channel::Slack(slack) => slack.send(client, delivery).await,
            Channel::Sql(sql) => sql.send(client, delivery).await,
            Channel::Teams(teams) => teams.send(client, delivery).await,
            Channel::Voice(voice) => voice.send(client, delivery).await,
            Channel::Webhook(webhook) => webhook.send(client, delivery).await,
        };
        sent.map_err(|failure| failure.without(self.secrets()))
    }

    /// What no stored attempt may say.
    fn secrets(&self) -> Secrets {
        let mut secrets = Secrets::default();
        match self {
            Channel::Discord(discord) => discord.secrets(&mut secrets),
            Channel::Email(email) => email.secrets(&mut secrets),
            Channel::Lark(lark) => lark.secrets(&mut secrets),
            Channel::PagerDuty(pagerduty) => pagerduty.secrets(&mut secrets),
            Channel::Slack(slack) => slack.secrets(&mut secrets),
            Channel::Sql(sql) => sql.secrets(&mut secrets),
            Channel::Teams(teams) => teams.secrets(&mut secrets),
            Channel::Voice(voice) => voice.secrets(&mut secrets),
            Channel::Webhook(webhook) => webhook.secrets(&mut secrets),
        }
        secrets
    }

    /// What its service lets through, as its documentation says it; a tenant may set others.
    pub fn rates(&self) -> &'static [Rate] {
        match self {
            // 30 a minute for a webhook's channel.
            Channel::Discord(_) => const { &[Rate::new(30, 60)] },
            // "100 per minute, 5 per second" for a custom bot.
            Channel::Lark(_) => const { &[Rate::new(5, 1), Rate::new(100, 60)] },
            // 120 a minute for an integration key.
            Channel::PagerDuty(_) => const { &[Rate::new(120, 60)] },
            // "1 per second" for an incoming webhook.
            Channel::Slack(_) => const { &[Rate::new(1, 1)] },
            // Messages to a flow, and calls: 4 and 1 a second.
            Channel::Teams(_) => const { &[Rate::new(4, 1)] },
            Channel::Voice(_) => const { &[Rate::new(1, 1)] },
            Channel::Email(_) | Channel::Sql(_) | Channel::Webhook(_) => &[],
        }
    }

    /// How much text of a message it shows before it cuts.
    pub(crate) fn room(&self) -> Room {
        let chars = |text: &str| text.chars().count();
        match self {
            Channel::Discord(_) => discord::ROOM,
            Channel::Lark(_) => Room::new(lark::TEXT_CHARS_MAX, chars),
            Channel::PagerDuty(_) => Room::new(pagerduty::TEXT_CHARS_MAX, chars),
            Channel::Slack(_) => slack::ROOM,
            Channel::Teams(_) => teams::ROOM,
            // All that is read out together; what stands around a digest is short.
            Channel::Voice(_) => Room::new(voice::SPOKEN_CHARS_MAX - voice::AROUND_CHARS, chars),
            Channel::Email(_) | Channel::Sql(_) | Channel::Webhook(_) => Room::default(),
        }
    }

    /// How long one attempt may take.
    pub fn timeout(&self) -> Duration {
        match self {
            Channel::Discord(discord) => discord.timeout,
            Channel::Email(email) => email.timeout,
            Channel::Lark(lark) => lark.timeout,
            Channel::PagerDuty(pagerduty) => pagerduty.timeout,
            Channel::Slack(slack) => slack.timeout,
            Channel::Sql(sql) => sql.timeout,
            Channel::Teams(teams) => teams.timeout,
            Channel::Voice(voice) => voice.timeout,
            Channel::Webhook(webhook) => webhook.timeout,
        }
    }

    /// The name of its kind, as tenant files spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Channel::Discord(_) => "discord",
            Channel::Email(_) => "email",
            Channel::Lark(_) => "lark",
            Channel::PagerDuty(_) => "pagerduty",
            Channel::Slack(_) => "slack",
            Channel::Sql(_) => "sql",
            Channel::Teams(_) => "teams",
            Channel::Voice(_) => "voice",
            Channel::Webhook(_) => "webhook",
        }
    }

    /// Whether this kind of channel can send this payload.
    ///
    /// # Errors
    /// One sentence that says what it takes instead.
    pub fn takes(&self, payload: &Payload) -> Result<(), String> {
        match (self, payload) {
            (Channel::Sql(_) | Channel::Webhook(_), _) | (_, Payload::Message(_)) => Ok(()),
            (Channel::PagerDuty(_), Payload::Body(body)) => pagerduty::takes(body),
            (_, Payload::Body(_)) => Err(format!(
                "channel kind {} takes a message, not a body",
                self.kind()
            )),
        }
    }
}

impl Failure {
    fn new(status: Option<u16>, error: impl Into<String>, retry: Retry) -> Self {
        Self {
            status,
            error: error.into(),
            retry,
            answer: None,
            ambiguous: false,
            accepted: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub(crate) fn never(error: impl Into<String>) -> Self {
        Self::new(None, error, Retry::Never)
    }

    fn later(error: impl Into<String>) -> Self {
        Self::new(None, error, Retry::Later)
    }

    /// With what the receiver answered, as it came.
    fn answered(self, answer: impl Into<String>) -> Self {
        Self {
            answer: Some(answer.into()),
            ..self
        }
    }

    /// Whether the receiver may have it all the same.
    fn ambiguous(self, ambiguous: bool) -> Self {
        Self { ambiguous, ..self }
    }

    /// As it may be kept: receivers repeat what they were sent, in whatever they say.
    fn without(self, mut secrets: Secrets) -> Self {
        let refused = self.refused.iter().map(|who| secrets.hide(who)).collect();
        Self {
            error: secrets.hide(&self.error),
            answer: self
                .answer
                .and_then(|answer| secrets.kept(answer.as_bytes())),
            refused,
            ..self
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::channel::guard::Guard;
    use crate::id::{DeliveryId, EventId};
    use crate::secret::Secret;
    use crate::store::{About, State};
    use hooksieve_sdk::wire::json::Data;
    use hooksieve_sdk::wire::{Body, Field, Link, Message};

    /// A message with everything in it that a receiver could take for its own syntax.
    pub(super) fn hostile_message() -> Message {
        Message {
            title: "Build <!channel> failed\r\nBcc: everyone@example.com\0 \u{202e}🚨 & more"
                .into(),
            text: "<script>alert(1)</script> & <!here>\r\n.\r\nsecond \"line\" with `ticks`".into(),
            link: Some(Link {
                url: "https://ci.example.com/run|x>y?a=1&b=\"2\"".into(),
                label: Some("Run | <b>42</b>\nnow".into()),
            }),
            fields: vec![
                Field {
                    name: "Repository".into(),
                    value: "octo/<api> & co".into(),
                },
                Field {
                    name: "Branch\r\nX-Evil: 1".into(),
                    value: String::new(),
                },
            ],
        }
    }

    /// A receiver on this machine that answers everything alike; gives its address.
    pub(super) async fn answering(
        answer: impl axum::response::IntoResponse + Clone + Send + Sync + 'static,
    ) -> String {
        let app = axum::Router::new().fallback(move || async move { answer });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        format!("http://{address}")
    }

    /// What one attempt comes to through the channel that is made for a receiver's address, when the
    /// receiver answers this. Whatever it comes to, no part of an address but its host is told.
    pub(super) async fn attempted(
        status: u16,
        body: &'static str,
        channel: impl FnOnce(String) -> Channel,
    ) -> Result<Sent, Failure> {
        let status = axum::http::StatusCode::from_u16(status).unwrap();
        let url = answering((status, body)).await;
        let delivery = delivery(Payload::Message(hostile_message()));
        let sent = channel(format!("{url}/hidden"))
            .send(&outgoing(None), &delivery)
            .await;
        if let Err(failure) = &sent {
            assert!(!failure.error.contains("hidden"), "{}", failure.error);
        }
        sent
    }

    /// Clients for receivers on this machine.
    pub(crate) fn outgoing(ca_pem: Option<&[u8]>) -> Outgoing {
        let here = Guard::new(&["127.0.0.0/8".parse().unwrap()]);
        Outgoing::new(ca_pem, here).unwrap()
    }

    pub(super) fn delivery(payload: Payload) -> Delivery {
        let event = EventId::from_bytes(b"an event");
        let rule = "triage".parse().unwrap();
        Delivery {
            id: DeliveryId::new(event, &rule, 0),
            tenant: "octo".parse().unwrap(),
            event,
            rule,
            position: 0,
            channel: "team".parse().unwrap(),
            reason: "the build of <main> failed".into(),
            payload,
            about: About {
                source: "github".parse().unwrap(),
                kind: "workflow_run.completed".into(),
                subject: Some("octo/api".into()),
                time: "2025-06-01T12:00:00Z".into(),
            },
            state: State::Pending { due_ms: 0 },
            attempts: Vec::new(),
            created_ms: 1_748_779_201_000,
            timing: None,
            held_back: 0,
            gathered: Vec::new(),
            redrive_of: None,
            fallback_of: None,
            escalation_of: None,
        }
    }

    /// A receiver that repeats the whole request, and nothing of its secrets is kept.
    #[tokio::test]
    async fn an_answer_that_repeats_the_request_betrays_nothing() {
        async fn repeat(request: axum::extract::Request) -> (axum::http::StatusCode, String) {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let head = format!("{} {} {:?}", head.method, head.uri, head.headers);
            let answer = format!("{head} {}", String::from_utf8_lossy(&body));
            (axum::http::StatusCode::INTERNAL_SERVER_ERROR, answer)
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(repeat);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        // Whatever is secret has this in it.
        const HIDDEN: &str = "0123456789abcdef0123456789abcdef";
        let url = format!("http://me:{HIDDEN}@{address}/a/{HIDDEN}/b?key={HIDDEN}");
        let secret = || Secret::new(&url);
        let timeout_ms = 2000;
        let made: Vec<Result<Channel, String>> = vec![
            discord::Discord::new(discord::Settings {
                url: secret(),
                timeout_ms,
            })
            .map(Channel::Discord),
            lark::Lark::new(lark::Settings {
                url: secret(),
                secret: None,
                timeout_ms,
            })
            .map(Channel::Lark),
            pagerduty::PagerDuty::new(pagerduty::Settings {
                routing_key: Secret::new(HIDDEN),
                severity: None,
                url: Some(url.clone()),
                timeout_ms,
            })
            .map(Channel::PagerDuty),
            slack::Slack::new(slack::Settings {
                url: secret(),
                timeout_ms,
            })
            .map(Channel::Slack),
            teams::Teams::new(teams::Settings {
                url: secret(),
                timeout_ms,
            })
            .map(Channel::Teams),
            voice::Voice::new(voice::Settings {
                account_sid: "AC1".into(),
                auth_token: Secret::new(HIDDEN),
                from: "+12025550100".into(),
                to: vec!["+12025550101".into()],
                url: Some(format!("http://{address}/a/{HIDDEN}")),
                calls_per_hour_max: None,
                language: None,
                repeat: None,
                timeout_ms,
            })
            .map(Channel::Voice),
            webhook::Webhook::new(webhook::Settings {
                url: url.clone(),
                secrets: vec![Secret::new(format!("whsec_{HIDDEN}"))],
                headers: vec![("X-Token".into(), Secret::new(format!("Bearer {HIDDEN}")))],
                timeout_ms,
                ..webhook::Settings::default()
            })
            .map(Channel::Webhook),
        ];
        for channel in made {
            let channel = channel.unwrap_or_else(|error| panic!("{error}"));
            let delivery = delivery(Payload::Message(Message::default()));
            let failure = channel.send(&outgoing(None), &delivery).await.unwrap_err();
            let answer = failure.answer.clone().unwrap();
            assert!(answer.starts_with("POST [secret]"), "{answer}");
            // What it was told otherwise is there.
            assert!(answer.contains("user-agent"), "{answer}");
            let all = format!("{failure:?}");
            assert!(!all.contains(&HIDDEN[..8]), "{channel:?}: {all}");
            for login in ["Basic bW", "Basic QU"] {
                assert!(!all.contains(login), "{channel:?}: {all}");
            }
        }
    }

    #[test]
    fn a_chat_takes_no_body() {
        let slack = Channel::Slack(
            slack::Slack::new(slack::Settings {
                url: Secret::new("https://hooks.slack.com/services/T/B/x"),
                timeout_ms: 1000,
            })
            .unwrap_or_else(|error| panic!("{error}")),
        );
        let webhook = Channel::Webhook(
            webhook::Webhook::new(webhook::Settings {
                url: "https://example.com/in".into(),
                ..webhook::Settings::default()
            })
            .unwrap_or_else(|error| panic!("{error}")),
        );
        let data = Data::from_json(b"{}").unwrap();
        let body = Payload::Body(Body::from_msgpack(data.bytes().to_vec()));
        let message = Payload::Message(Message::default());
        assert_eq!(
            slack.takes(&body).unwrap_err(),
            "channel kind slack takes a message, not a body"
        );
        assert!(slack.takes(&message).is_ok());
        assert!(webhook.takes(&body).is_ok());
        assert!(webhook.takes(&message).is_ok());
    }
}
