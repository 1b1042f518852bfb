//! Whether a decision can be carried out, before anything of it is stored.

use crate::channel::Channel;
use crate::id::Name;
use crate::timing::Window;
use hooksieve_sdk::wire::{Action, Decision, Message, Payload, Timing};
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
    #[error("actions[{position}].timing: {why}")]
    Timing { position: usize, why: String },
}

/// How long an action may be put off: 30 days.
const WAIT_S_MAX: u64 = 30 * 86_400;
/// How long a key is remembered at most, and a digest gathers: 7 days.
const WINDOW_S_MAX: u64 = 7 * 86_400;
const DIGEST_SIZE_MAX: u64 = 100;
const THROTTLE_COUNT_MAX: u64 = 10_000;
/// The longest key of a digest, dedupe or throttle.
const KEY_BYTES_MAX: usize = 200;

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

/// The channels that a decision may name.
pub(super) struct Known<'a> {
    /// Those that the rule's settings list; empty for all.
    pub(super) allowed: &'a [Name],
    /// The tenant's; without them every name passes.
    pub(super) channels: Option<&'a BTreeMap<Name, Arc<Channel>>>,
}

pub(super) fn decision(
    decision: &Decision,
    known: &Known<'_>,
    received_ms: i64,
) -> Result<(), Invalid> {
    fits("reason", &decision.reason, MESSAGE_LIMITS.reason)?;
    for (position, action) in decision.actions.iter().enumerate() {
        known.takes(position, &action.channel, &action.payload)?;
        if let Some(timing) = &action.timing {
            self::timing(position, action, timing, known, received_ms)?;
        }
        if let Payload::Message(message) = &action.payload {
            self::message(position, message)?;
        }
    }
    Ok(())
}

impl Known<'_> {
    fn takes(&self, position: usize, channel: &str, payload: &Payload) -> Result<(), Invalid> {
        let refuse = |why: String| Invalid::Channel {
            position,
            channel: channel.chars().take(80).collect(),
            why,
        };
        let name: Name = channel
            .parse()
            .map_err(|_| refuse("which is not a channel's name".to_owned()))?;
        let Some(channels) = self.channels else {
            return Ok(());
        };
        let Some(channel) = channels.get(&name) else {
            let known = channels.keys().map(Name::as_str);
            let mean = crate::config::read::did_you_mean(name.as_str(), known);
            return Err(refuse(format!("which its tenant does not have{mean}")));
        };
        if !self.allowed.is_empty() && !self.allowed.contains(&name) {
            return Err(refuse("which is not in the rule's `channels`".to_owned()));
        }
        channel
            .takes(payload)
            .map_err(|why| Invalid::Payload { position, why })
    }
}

/// What a timing may say, so that nothing waits or is remembered without end.
fn timing(
    position: usize,
    action: &Action,
    timing: &Timing,
    known: &Known<'_>,
    received_ms: i64,
) -> Result<(), Invalid> {
    let refuse = |why: String| Invalid::Timing { position, why };
    let within = |part: &str, value: u64, least: u64, most: u64| {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(refuse(format!(
            "{part} is {value}, and may be {least} to {most}"
        )))
    };
    let key = |part: &str, key: &str| {
        fits(
            format!("actions[{position}].timing.{part}.key"),
            key,
            KEY_BYTES_MAX,
        )
    };
    if let Some(after_s) = timing.after_s {
        within("after_s", after_s, 0, WAIT_S_MAX)?;
    }
    if let Some(at) = &timing.at {
        let moment: jiff::Timestamp = at.parse().map_err(|_| {
            let at: String = at.chars().take(80).collect();
            refuse(format!("at is {at:?}, which is no RFC 3339 moment"))
        })?;
        let ahead_s = moment.as_millisecond().saturating_sub(received_ms) / 1_000;
        if ahead_s > WAIT_S_MAX as i64 {
            let days = WAIT_S_MAX / 86_400;
            return Err(refuse(format!(
                "at is more than {days} days after the event"
            )));
        }
    }
    if let Some(window) = &timing.window {
        Window::parse(window).map_err(|why| refuse(format!("window: {why}")))?;
    }
    if let Some(digest) = &timing.digest {
        key("digest", &digest.key)?;
        within("digest.window_s", digest.window_s, 1, WINDOW_S_MAX)?;
        within("digest.size", digest.size, 1, DIGEST_SIZE_MAX)?;
        if matches!(action.payload, Payload::Body(_)) {
            return Err(refuse(
                "a digest gathers messages, and this is a body".to_owned(),
            ));
        }
        if timing.escalate.is_some() {
            return Err(refuse(
                "a digest cannot be escalated: nobody would know what was acknowledged".to_owned(),
            ));
        }
    }
    if let Some(dedupe) = &timing.dedupe {
        key("dedupe", &dedupe.key)?;
        within("dedupe.window_s", dedupe.window_s, 1, WINDOW_S_MAX)?;
    }
    if let Some(throttle) = &timing.throttle {
        key("throttle", &throttle.key)?;
        within("throttle.count", throttle.count, 1, THROTTLE_COUNT_MAX)?;
        within("throttle.period_s", throttle.period_s, 1, WINDOW_S_MAX)?;
    }
    if let Some(escalate) = &timing.escalate {
        within("escalate.after_s", escalate.after_s, 1, WAIT_S_MAX)?;
        known.takes(position, &escalate.channel, &action.payload)?;
    }
    if let Some(fallback) = &timing.fallback {
        known.takes(position, fallback, &action.payload)?;
        if *fallback == action.channel {
            return Err(refuse(format!(
                "the channel {fallback:?} cannot be its own fallback"
            )));
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
    use hooksieve_sdk::{Notify, days, hours, minutes, notify, post};

    fn check(decision: impl Into<Decision>, expected: &str) {
        let anything = Known {
            allowed: &[],
            channels: None,
        };
        let result = super::decision(&decision.into(), &anything, 1_770_000_000_000);
        assert_eq!(
            result.map_or_else(|error| error.to_string(), |()| "valid".to_owned()),
            expected
        );
    }

    #[test]
    fn nothing_waits_or_is_remembered_without_end() {
        let timed = |timing: fn(Notify) -> Notify, expected: &str| {
            let expected = match expected {
                "valid" => "valid".to_owned(),
                why => format!("actions[0].timing: {why}"),
            };
            check(timing(notify("a")), &expected);
        };
        timed(|it| it.after(days(30)), "valid");
        timed(
            |it| it.after(days(31)),
            "after_s is 2678400, and may be 0 to 2592000",
        );
        timed(|it| it.at("2026-02-02T02:40:00Z"), "valid");
        timed(
            |it| it.at("tomorrow"),
            "at is \"tomorrow\", which is no RFC 3339 moment",
        );
        timed(
            |it| it.at("2026-03-05T02:40:00Z"),
            "at is more than 30 days after the event",
        );
        timed(|it| it.within("Mo-Fr 09:00-18:00 Asia/Shanghai"), "valid");
        timed(
            |it| it.within("Mo-Fr 09:00-18:00 Asia/Schanghai"),
            "window: \"Asia/Schanghai\" is no time zone; a window is written as \"Mo-Fr 09:00-18:00 Asia/Shanghai\"",
        );
        timed(|it| it.digest("k", days(7), 100), "valid");
        timed(
            |it| it.digest("k", minutes(5), 101),
            "digest.size is 101, and may be 1 to 100",
        );
        timed(
            |it| it.digest("k", days(8), 5),
            "digest.window_s is 691200, and may be 1 to 604800",
        );
        timed(
            |it| it.digest("k", hours(1), 5).escalate("b", hours(1)),
            "a digest cannot be escalated: nobody would know what was acknowledged",
        );
        timed(
            |it| it.dedupe("k", minutes(0)),
            "dedupe.window_s is 0, and may be 1 to 604800",
        );
        timed(|it| it.throttle("k", 10_000, hours(1)), "valid");
        timed(
            |it| it.throttle("k", 0, hours(1)),
            "throttle.count is 0, and may be 1 to 10000",
        );
        timed(
            |it| it.or_else("a"),
            "the channel \"a\" cannot be its own fallback",
        );
        check(
            notify("a").or_else("no channel's name"),
            "actions[0] names the channel \"no channel's name\", which is not a channel's name",
        );
        check(
            notify("a").dedupe("k".repeat(201), hours(1)),
            "actions[0].timing.dedupe.key is 201 bytes, the limit is 200",
        );
        check(
            post("a").digest("k", hours(1), 5),
            "actions[0].timing: a digest gathers messages, and this is a body",
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
