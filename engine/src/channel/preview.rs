//! What a channel would send, without sending it: for people who try a rule. Holds no secret.

use super::{Channel, discord, email, lark, outgoing, pagerduty, slack, teams, voice, webhook};
use crate::store::Delivery;
use hooksieve_sdk::wire::Payload;
use serde::{Deserialize, Serialize};
use url::Url;
use utoipa::ToSchema;

/// In place of what is secret.
pub(super) const HIDDEN: &str = "...";

/// What would be sent.
#[derive(Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Preview {
    /// The body of a request, or the values of a statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub json: Option<serde_json::Value>,
    /// A mail's plain part, or what a call reads out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// A mail's other part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub html: Option<String>,
}

impl Channel {
    /// What stands before the body: a request's line and headers, or a mail's headers. What is secret in it is
    /// masked: all of an address but the host, what the tenant's own headers say, signatures.
    pub fn head(&self, delivery: &Delivery) -> Vec<String> {
        let posts = |url: &Url| {
            vec![
                format!("POST {}://{}/{HIDDEN}", url.scheme(), outgoing::host(url)),
                "content-type: application/json".to_owned(),
                format!("user-agent: {}", outgoing::USER_AGENT),
            ]
        };
        match self {
            Channel::Discord(it) => posts(it.url()),
            Channel::Lark(it) => posts(it.url()),
            Channel::PagerDuty(it) => posts(it.url()),
            Channel::Slack(it) => posts(it.url()),
            Channel::Teams(it) => posts(it.url()),
            Channel::Webhook(it) => it.head(delivery),
            Channel::Email(it) => it.head(delivery),
            Channel::Sql(_) | Channel::Voice(_) => Vec::new(),
        }
    }

    /// What would go out for a delivery.
    ///
    /// # Errors
    /// When the channel does not take such a payload.
    pub fn preview(&self, delivery: &Delivery) -> Result<Preview, String> {
        self.takes(&delivery.payload)?;
        let json = match (self, &delivery.payload) {
            (Channel::Email(_), Payload::Message(message)) => {
                return Ok(Preview {
                    text: Some(email::message::plain(delivery, message)),
                    html: Some(email::message::html(delivery, message)),
                    ..Preview::default()
                });
            }
            (Channel::Voice(_), Payload::Message(message)) => {
                return Ok(Preview {
                    text: Some(voice::spoken(delivery, message)),
                    ..Preview::default()
                });
            }
            (Channel::Discord(_), Payload::Message(message)) => discord::payload(delivery, message),
            (Channel::Lark(_), Payload::Message(message)) => lark::payload(delivery, message),
            (Channel::PagerDuty(it), Payload::Message(message)) => it.alert(delivery, message),
            (Channel::PagerDuty(it), Payload::Body(body)) => {
                it.asked(delivery, pagerduty::read(body)?)
            }
            (Channel::Slack(_), Payload::Message(message)) => slack::payload(delivery, message),
            (Channel::Teams(_), Payload::Message(message)) => teams::payload(delivery, message),
            (_, payload) => {
                let body = match self {
                    Channel::Webhook(_) => webhook::body(delivery),
                    _ => serde_json::to_vec(payload),
                };
                let json = body.and_then(|body| serde_json::from_slice(&body));
                json.map_err(|error| error.to_string())?
            }
        };
        Ok(Preview {
            json: Some(json),
            ..Preview::default()
        })
    }
}
