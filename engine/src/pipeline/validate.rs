//! Whether a decision can be carried out, before anything of it is stored.

use crate::channel::Channel;
use crate::id::Name;
use hooksieve_sdk::wire::{Decision, Message, Payload};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is wrong with a decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("{what} is {bytes} bytes, the limit is {limit}")]
    TooLong {
        what: String,
        bytes: usize,
        limit: usize,
    },
    #[error("actions[{position}] has {count} fields, the limit is {limit}")]
    Fields {
        position: usize,
        count: usize,
        limit: usize,
    },
    #[error("actions[{position}] names the channel {channel:?}, {why}")]
    Channel {
        position: usize,
        channel: String,
        why: String,
    },
    #[error("actions[{position}].{why}")]
    Link { position: usize, why: String },
    #[error("actions[{position}]: {why}")]
    Payload { position: usize, why: String },
}

/// The longest that each part of a decision may be, in bytes of UTF-8, and how many fields a message
/// may have.
pub const MESSAGE_LIMITS: Limits = Limits {
    reason: 1_000,
    title: 1_000,
    text: 20_000,
    url: 2_000,
    label: 200,
    fields: 50,
    field_name: 200,
    field_value: 2_000,
};

/// See [`MESSAGE_LIMITS`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub reason: usize,
    pub title: usize,
    pub text: usize,
    pub url: usize,
    pub label: usize,
    pub fields: usize,
    pub field_name: usize,
    pub field_value: usize,
}

pub(super) fn decision(
    decision: &Decision,
    allowed: &[Name],
    channels: Option<&BTreeMap<Name, Arc<Channel>>>,
) -> Result<(), Invalid> {
    fits("reason", &decision.reason, MESSAGE_LIMITS.reason)?;
    for (position, action) in decision.actions.iter().enumerate() {
        let refuse = |why: String| Invalid::Channel {
            position,
            channel: action.channel.chars().take(80).collect(),
            why,
        };
        let name: Name = action
            .channel
            .parse()
            .map_err(|_| refuse("which is not a channel's name".to_owned()))?;
        if let Some(channels) = channels {
            let Some(channel) = channels.get(&name) else {
                let known = channels.keys().map(Name::as_str);
                let mean = crate::config::read::did_you_mean(name.as_str(), known);
                return Err(refuse(format!("which its tenant does not have{mean}")));
            };
            if !allowed.is_empty() && !allowed.contains(&name) {
                return Err(refuse("which is not in the rule's `channels`".to_owned()));
            }
            channel
                .takes(&action.payload)
                .map_err(|why| Invalid::Payload { position, why })?;
        }
        if let Payload::Message(message) = &action.payload {
            self::message(position, message)?;
        }
    }
    Ok(())
}

fn message(position: usize, message: &Message) -> Result<(), Invalid> {
    let at = |part: &str| format!("actions[{position}].message.{part}");
    fits(at("title"), &message.title, MESSAGE_LIMITS.title)?;
    fits(at("text"), &message.text, MESSAGE_LIMITS.text)?;
    if let Some(link) = &message.link {
        fits(at("link.url"), &link.url, MESSAGE_LIMITS.url)?;
        fits(
            at("link.label"),
            link.label.as_deref().unwrap_or(""),
            MESSAGE_LIMITS.label,
        )?;
        let web =
            url::Url::parse(&link.url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !web {
            return Err(Invalid::Link {
                position,
                why: "message.link.url is not an http or https address".to_owned(),
            });
        }
    }
    if message.fields.len() > MESSAGE_LIMITS.fields {
        return Err(Invalid::Fields {
            position,
            count: message.fields.len(),
            limit: MESSAGE_LIMITS.fields,
        });
    }
    for (n, field) in message.fields.iter().enumerate() {
        fits(
            at(&format!("fields[{n}].name")),
            &field.name,
            MESSAGE_LIMITS.field_name,
        )?;
        fits(
            at(&format!("fields[{n}].value")),
            &field.value,
            MESSAGE_LIMITS.field_value,
        )?;
    }
    Ok(())
}

fn fits(what: impl Into<String>, text: &str, limit: usize) -> Result<(), Invalid> {
    if text.len() <= limit {
        return Ok(());
    }
    Err(Invalid::TooLong {
        what: what.into(),
        bytes: text.len(),
        limit,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooksieve_sdk::{notify, post};

    fn check(decision: impl Into<Decision>, expected: &str) {
        let result = super::decision(&decision.into(), &[], None);
        assert_eq!(
            result.map_or_else(|error| error.to_string(), |()| "valid".to_owned()),
            expected
        );
    }

    #[test]
    fn each_limit_holds_from_both_sides() {
        let fits = |n| "x".repeat(n);
        check(notify("a").title(fits(1_000)).text(fits(20_000)), "valid");
        check(
            notify("a").title(fits(1_001)),
            "actions[0].message.title is 1001 bytes, the limit is 1000",
        );
        check(
            notify("a").text(fits(20_001)),
            "actions[0].message.text is 20001 bytes, the limit is 20000",
        );
        check(Decision::drop(fits(1_000)), "valid");
        check(
            Decision::drop(fits(1_001)),
            "reason is 1001 bytes, the limit is 1000",
        );
        let fields = |n: usize| (0..n).fold(notify("a"), |m, _| m.field("n", "v"));
        check(fields(50), "valid");
        check(fields(51), "actions[0] has 51 fields, the limit is 50");
        check(
            notify("a").field(fits(201), ""),
            "actions[0].message.fields[0].name is 201 bytes, the limit is 200",
        );
    }

    #[test]
    fn links_lead_to_the_web_and_channels_have_names() {
        check(notify("a").link("https://a.example/?q=1"), "valid");
        for url in [
            "javascript:alert(1)",
            "file:///etc/passwd",
            "//a.example",
            "data:text/html,x",
            "",
        ] {
            check(
                notify("a").link(url),
                "actions[0].message.link.url is not an http or https address",
            );
        }
        check(
            post("A b"),
            "actions[0] names the channel \"A b\", which is not a channel's name",
        );
    }
}
