//! PagerDuty's Events API, version 2: a message triggers an alert; a body, made by the rule, triggers,
//! acknowledges or resolves one.
//!
//! The key of what belongs together (`dedup_key`) is the delivery's id unless the rule gives one, so a
//! retry opens no second incident. Success is the word `success` in an answer with status 202.
//!
//! Format and limits: PagerDuty's developer documents "Send an Alert Event".

use super::answer::Secrets;
use super::outgoing::{self, Outgoing};
use super::text;
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use hooksieve_sdk::wire::{Body, Message, Payload};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::Duration;
use url::Url;

const ADDRESS: &str = "https://events.pagerduty.com/v2/enqueue";
const ROUTING_KEY_CHARS: usize = 32;
const SUMMARY_CHARS_MAX: usize = 1_024;
const DEDUP_KEY_CHARS_MAX: usize = 255;
/// A request may have 512 kB.
pub(super) const TEXT_CHARS_MAX: usize = 8_000;
const FIELDS_MAX: usize = 50;
const FIELD_CHARS_MAX: usize = 500;

/// What a tenant file says of a PagerDuty channel.
pub struct Settings {
    /// The integration key of a service.
    pub routing_key: Secret,
    /// What a message's alert has; `error` where it is left out.
    pub severity: Option<String>,
    /// Another address than PagerDuty's own, such as that of its European service.
    pub url: Option<String>,
    pub timeout_ms: u64,
}

/// A PagerDuty channel with checked settings.
pub struct PagerDuty {
    url: Url,
    routing_key: Secret,
    severity: Severity,
    pub(super) timeout: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Critical,
    #[default]
    Error,
    Warning,
    Info,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    #[default]
    Trigger,
    Acknowledge,
    Resolve,
}

/// What a rule's body may say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    event_action: Action,
    dedup_key: Option<String>,
    summary: Option<String>,
    severity: Option<Severity>,
    source: Option<String>,
    component: Option<String>,
    group: Option<String>,
    class: Option<String>,
    #[serde(default)]
    custom_details: Map<String, Value>,
}

#[derive(Deserialize)]
struct Said {
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    errors: Vec<String>,
}

impl PagerDuty {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the key.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let key = settings.routing_key.expose();
        if key.len() != ROUTING_KEY_CHARS || !key.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(format!(
                "the routing key is not {ROUTING_KEY_CHARS} letters and digits; it is the integration key of an \"Events API V2\" integration"
            ));
        }
        let severity = settings.severity.map(|severity| {
            Severity::deserialize(Value::from(severity.as_str())).map_err(|_| {
                format!("{severity:?} is no severity; there are critical, error, warning and info")
            })
        });
        Ok(Self {
            url: outgoing::web_address(settings.url.as_deref().unwrap_or(ADDRESS))?,
            routing_key: settings.routing_key,
            severity: severity.transpose()?.unwrap_or_default(),
            timeout: Duration::from_millis(settings.timeout_ms),
        })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let mut body = match &delivery.payload {
            Payload::Message(message) => self.alert(delivery, message),
            Payload::Body(body) => self.asked(delivery, read(body).map_err(Failure::never)?),
        };
        body["routing_key"] = self.routing_key.expose().into();
        let answer = client.post_json(&self.url, &body, self.timeout).await?;
        let host = outgoing::host(&self.url);
        let said = serde_json::from_slice::<Said>(&answer.body).ok();
        match (answer.status, said) {
            (202, Some(said)) if said.status == "success" => Ok(Sent {
                status: Some(202),
                refused: Vec::new(),
            }),
            (202, _) => {
                let error = format!("{host} answered 202 without the word that it took it");
                Err(answer.failed(error, Retry::Later))
            }
            (status, Some(said)) => {
                let why = format!("{} {}", said.message, said.errors.join("; "));
                let why = text::one_line(&why, 200);
                Err(answer.failure(format!("{host} answered {status} ({why})")))
            }
            (status, None) => Err(answer.failure(format!("{host} answered {status}"))),
        }
    }

    pub(super) fn alert(&self, delivery: &Delivery, message: &Message) -> Value {
        let about = &delivery.about;
        let mut details = Map::new();
        let body = text::escaped(&text::lines(&message.text), TEXT_CHARS_MAX, |_| None);
        if !body.trim().is_empty() {
            details.insert("text".into(), body.into());
        }
        for field in message.fields.iter().take(FIELDS_MAX) {
            let part = |text| text::one_line(text, FIELD_CHARS_MAX);
            details.insert(part(&field.name), part(&field.value).into());
        }
        details.insert(
            "reason".into(),
            text::one_line(&delivery.reason, 500).into(),
        );
        let link = message.link.as_ref().and_then(text::web_link);
        json!({
            "event_action": "trigger",
            "dedup_key": delivery.id.to_string(),
            "payload": {
                "summary": summary(delivery, Some(&message.title)),
                "source": source(delivery, None),
                "severity": self.severity,
                "timestamp": about.time,
                "class": about.kind,
                "custom_details": details,
            },
            "links": link.map(|(url, label)| json!([{ "href": url.as_str(), "text": label }])),
            "client": "hooksieve",
        })
    }

    pub(super) fn asked(&self, delivery: &Delivery, asked: Asked) -> Value {
        let key = asked.dedup_key.unwrap_or_else(|| delivery.id.to_string());
        let mut body = json!({
            "event_action": asked.event_action,
            "dedup_key": text::one_line(&key, DEDUP_KEY_CHARS_MAX),
        });
        if asked.event_action == Action::Trigger {
            let part = |text: &Option<String>| {
                text.as_deref()
                    .map(|text| text::one_line(text, FIELD_CHARS_MAX))
            };
            body["payload"] = json!({
                "summary": summary(delivery, asked.summary.as_deref()),
                "source": source(delivery, asked.source.as_deref()),
                "severity": asked.severity.unwrap_or(self.severity),
                "timestamp": delivery.about.time,
                "component": part(&asked.component),
                "group": part(&asked.group),
                "class": part(&asked.class).unwrap_or_else(|| delivery.about.kind.clone()),
                "custom_details": asked.custom_details,
            });
            body["client"] = "hooksieve".into();
        }
        body
    }

    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        secrets.text(self.routing_key.expose());
        secrets.url(&self.url);
    }
}

/// What an alert says in one line; it may not be empty.
fn summary(delivery: &Delivery, title: Option<&str>) -> String {
    text::title(delivery, title.unwrap_or_default(), SUMMARY_CHARS_MAX)
}

/// What an alert is about: the rule's word, the event's subject, or where it came from.
fn source(delivery: &Delivery, given: Option<&str>) -> String {
    let about = &delivery.about;
    let source = given.or(about.subject.as_deref()).unwrap_or_default();
    match text::one_line(source, FIELD_CHARS_MAX) {
        source if source.is_empty() => about.source.to_string(),
        source => source,
    }
}

/// Whether a rule's body is one that can be sent.
pub(super) fn takes(body: &Body) -> Result<(), String> {
    read(body).map(|_| ())
}

pub(super) fn read(body: &Body) -> Result<Asked, String> {
    let value = serde_json::to_value(body).map_err(|error| error.to_string())?;
    let asked: Asked = serde_json::from_value(value)
        .map_err(|error| format!("channel kind pagerduty cannot take this body: {error}"))?;
    if asked.event_action != Action::Trigger && asked.dedup_key.is_none() {
        return Err("channel kind pagerduty needs a dedup_key to acknowledge or resolve".into());
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Channel;
    use crate::channel::tests::{attempted, delivery, hostile_message};
    use hooksieve_sdk::wire::json::Data;

    fn pagerduty(url: &str) -> PagerDuty {
        PagerDuty::new(Settings {
            routing_key: Secret::new("0123456789abcdef0123456789abcdef"),
            severity: Some("warning".into()),
            url: Some(url.into()),
            timeout_ms: 2000,
        })
        .unwrap()
    }

    fn body(json: &str) -> Body {
        let data = Data::from_json(json.as_bytes()).unwrap();
        Body::from_msgpack(data.bytes().to_vec())
    }

    #[test]
    fn a_message_triggers_an_alert() {
        let message = hostile_message();
        let alert = pagerduty("https://example.com")
            .alert(&delivery(Payload::Message(message.clone())), &message);
        insta::assert_snapshot!(serde_json::to_string_pretty(&alert).unwrap());
    }

    #[test]
    fn a_body_says_what_becomes_of_an_alert() {
        let channel = pagerduty("https://example.com");
        let of = |json: &str| {
            let delivery = delivery(Payload::Body(body(json)));
            read(&body(json)).map(|asked| channel.asked(&delivery, asked))
        };
        let resolved = of(r#"{"event_action": "resolve", "dedup_key": "disk-7"}"#).unwrap();
        assert_eq!(
            resolved,
            json!({ "event_action": "resolve", "dedup_key": "disk-7" })
        );
        let json = r#"{"summary": "disk 7 is full", "severity": "critical", "custom_details": {"free": 0}}"#;
        let triggered = of(json).unwrap();
        assert_eq!(triggered["event_action"], "trigger");
        assert_eq!(triggered["payload"]["severity"], "critical");
        assert_eq!(triggered["payload"]["custom_details"]["free"], 0);
        assert_eq!(triggered["payload"]["source"], "octo/api");
        for (json, error) in [
            (r#"{"event_action": "resolve"}"#, "needs a dedup_key"),
            (r#"{"event_action": "close"}"#, "unknown variant `close`"),
            (r#"{"severity": "bad"}"#, "unknown variant `bad`"),
            (
                r#"{"routing_key": "another"}"#,
                "unknown field `routing_key`",
            ),
            ("[1]", "cannot take this body"),
        ] {
            let refused = of(json).unwrap_err();
            assert!(refused.contains(error), "{refused}");
            assert!(takes(&body(json)).is_err());
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let refused = |key: &str, severity: Option<&str>| {
            PagerDuty::new(Settings {
                routing_key: Secret::new(key),
                severity: severity.map(str::to_owned),
                url: None,
                timeout_ms: 1000,
            })
            .err()
        };
        let short = refused("short", None).unwrap();
        assert!(short.contains("is not 32 letters"), "{short}");
        assert!(!short.contains("short"));
        let key = "0123456789abcdef0123456789abcdef";
        let severity = refused(key, Some("fatal")).unwrap();
        assert!(severity.contains("\"fatal\" is no severity"), "{severity}");
        assert_eq!(refused(key, None), None);
    }

    #[tokio::test]
    async fn only_the_word_success_is_success() {
        let channel = |url: String| Channel::PagerDuty(pagerduty(&url));
        let good = r#"{"status":"success","message":"Event processed","dedup_key":"x"}"#;
        assert_eq!(
            attempted(202, good, channel).await.unwrap().status,
            Some(202)
        );
        let invalid = r#"{"status":"invalid event","message":"Event object is invalid","errors":["'summary' is missing"]}"#;
        for (status, body, retry, error) in [
            (
                400,
                invalid,
                Retry::Never,
                "answered 400 (Event object is invalid 'summary' is missing)",
            ),
            (429, "", Retry::Later, "answered 429"),
            (500, "<html>", Retry::Later, "answered 500"),
            (202, "{}", Retry::Later, "without the word"),
            (200, good, Retry::Never, "answered 200"),
        ] {
            let failure = attempted(status, body, channel).await.unwrap_err();
            assert_eq!((failure.status, failure.retry), (Some(status), retry));
            assert!(failure.error.contains(error), "{}", failure.error);
            assert!(!failure.error.contains("0123456789abcdef"));
        }
    }
}
