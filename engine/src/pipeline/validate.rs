//! Whether a decision can be carried out, before anything of it is stored.
//!
//! What a rule's author wrote has to be right: channels, times, windows. What a payload brought has to fit:
//! its texts are cut where they are too long, so that nobody can make a rule fail by the length of what he
//! writes.

use crate::channel::Channel;
use crate::id::{Hash, Name};
use crate::timing::Window;
use hooksieve_sdk::wire::{Decision, Message, Payload, Timing};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is wrong with a decision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("actions[{position}] names the channel {channel:?}, {why}")]
    Channel {
        position: usize,
        channel: String,
        why: String,
    },
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
const WINDOW_BYTES_MAX: usize = 200;
/// The longest key of a digest, dedupe or throttle; a longer one stands as its hash.
const KEY_BYTES_MAX: usize = 200;

/// The longest that each part of a decision may be, in bytes of UTF-8, and how many fields a message
/// may have. What is longer is cut.
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

/// Checks a decision, and has its texts fit. Returns what was cut, as a line for its log.
pub(super) fn decision(
    decision: &mut Decision,
    known: &Known<'_>,
    received_ms: i64,
) -> Result<Option<String>, Invalid> {
    let mut cut = Cut::default();
    cut.text(
        || "reason".to_owned(),
        &mut decision.reason,
        MESSAGE_LIMITS.reason,
    );
    for (position, action) in decision.actions.iter_mut().enumerate() {
        known.takes(position, &action.channel, &action.payload)?;
        if let Some(timing) = &mut action.timing {
            keys(timing);
            let (channel, payload) = (&action.channel, &action.payload);
            self::timing(position, (channel, payload), timing, known, received_ms)?;
        }
        if let Payload::Message(message) = &mut action.payload {
            self::message(position, message, &mut cut);
        }
    }
    Ok(cut.told())
}

/// Cuts a text that is too long at a character, and says so with an ellipsis.
pub(super) fn cut(text: &mut String, limit: usize) {
    const ELLIPSIS: &str = "…";
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit - ELLIPSIS.len()));
        text.push_str(ELLIPSIS);
    }
}

/// What was cut of a decision.
#[derive(Default)]
struct Cut {
    parts: Vec<String>,
    count: usize,
}

impl Cut {
    /// How many parts are named.
    const NAMED: usize = 3;

    fn note(&mut self, part: impl FnOnce() -> String) {
        self.count += 1;
        if self.parts.len() < Self::NAMED {
            self.parts.push(part());
        }
    }

    /// Cuts a text that is too long at a character, and says so with an ellipsis.
    fn text(&mut self, part: impl FnOnce() -> String, text: &mut String, limit: usize) {
        let bytes = text.len();
        if bytes <= limit {
            return;
        }
        cut(text, limit);
        self.note(|| format!("{} ({bytes} bytes, the limit is {limit})", part()));
    }

    fn told(self) -> Option<String> {
        let more = self.count - self.parts.len();
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (self.count > 0).then(|| format!("hooksieve cut {}{more}", self.parts.join(", ")))
    }
}

/// Keys are as long as what they were made of.
fn keys(timing: &mut Timing) {
    let keys = [
        timing.digest.as_mut().map(|it| &mut it.key),
        timing.dedupe.as_mut().map(|it| &mut it.key),
        timing.throttle.as_mut().map(|it| &mut it.key),
    ];
    for key in keys.into_iter().flatten() {
        if key.len() > KEY_BYTES_MAX {
            *key = format!("sha256:{}", Hash::of(key.as_bytes()));
        }
    }
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
    (channel, payload): (&str, &Payload),
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
        if window.len() > WINDOW_BYTES_MAX {
            let bytes = window.len();
            return Err(refuse(format!(
                "window is {bytes} bytes, the limit is {WINDOW_BYTES_MAX}"
            )));
        }
        Window::parse(window).map_err(|why| refuse(format!("window: {why}")))?;
    }
    if let Some(digest) = &timing.digest {
        within("digest.window_s", digest.window_s, 1, WINDOW_S_MAX)?;
        within("digest.size", digest.size, 1, DIGEST_SIZE_MAX)?;
        if matches!(payload, Payload::Body(_)) {
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
        within("dedupe.window_s", dedupe.window_s, 1, WINDOW_S_MAX)?;
    }
    if let Some(throttle) = &timing.throttle {
        within("throttle.count", throttle.count, 1, THROTTLE_COUNT_MAX)?;
        within("throttle.period_s", throttle.period_s, 1, WINDOW_S_MAX)?;
    }
    if let Some(escalate) = &timing.escalate {
        within("escalate.after_s", escalate.after_s, 1, WAIT_S_MAX)?;
        known.takes(position, &escalate.channel, payload)?;
    }
    if let Some(fallback) = &timing.fallback {
        known.takes(position, fallback, payload)?;
        if fallback == channel {
            return Err(refuse(format!(
                "the channel {fallback:?} cannot be its own fallback"
            )));
        }
    }
    Ok(())
}

fn message(position: usize, message: &mut Message, cut: &mut Cut) {
    let at = |part: &str| format!("actions[{position}].message.{part}");
    if let Some(link) = message.link.take_if(|link| !leads_to_the_web(&link.url)) {
        // What is no address is a text like any other.
        cut.note(|| {
            format!(
                "{} (no http or https address, so it stands in the text)",
                at("link")
            )
        });
        let parts = [Some(link.url), link.label];
        for part in parts.into_iter().flatten().filter(|part| !part.is_empty()) {
            if !message.text.is_empty() {
                message.text.push('\n');
            }
            message.text.push_str(&part);
        }
    }
    cut.text(|| at("title"), &mut message.title, MESSAGE_LIMITS.title);
    cut.text(|| at("text"), &mut message.text, MESSAGE_LIMITS.text);
    if let Some(label) = message.link.as_mut().and_then(|link| link.label.as_mut()) {
        cut.text(|| at("link.label"), label, MESSAGE_LIMITS.label);
    }
    let count = message.fields.len();
    if count > MESSAGE_LIMITS.fields {
        message.fields.truncate(MESSAGE_LIMITS.fields);
        let limit = MESSAGE_LIMITS.fields;
        cut.note(|| format!("{} ({count}, the limit is {limit})", at("fields")));
    }
    for (n, field) in message.fields.iter_mut().enumerate() {
        let (name, value) = (&mut field.name, &mut field.value);
        cut.text(
            || at(&format!("fields[{n}].name")),
            name,
            MESSAGE_LIMITS.field_name,
        );
        cut.text(
            || at(&format!("fields[{n}].value")),
            value,
            MESSAGE_LIMITS.field_value,
        );
    }
}

fn leads_to_the_web(url: &str) -> bool {
    let web = |url: url::Url| matches!(url.scheme(), "http" | "https");
    url.len() <= MESSAGE_LIMITS.url && url::Url::parse(url).is_ok_and(web)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooksieve_sdk::{Notify, days, hours, minutes, notify, post};

    /// The decision as it is carried out, and what is said of it.
    fn fitted(decision: impl Into<Decision>) -> (Decision, Result<Option<String>, Invalid>) {
        let anything = Known {
            allowed: &[],
            channels: None,
        };
        let mut decision = decision.into();
        let result = super::decision(&mut decision, &anything, 1_770_000_000_000);
        (decision, result)
    }

    fn check(decision: impl Into<Decision>, expected: &str) {
        let said = match fitted(decision).1 {
            Ok(None) => "valid".to_owned(),
            Ok(Some(cut)) => cut,
            Err(error) => error.to_string(),
        };
        assert_eq!(said, expected);
    }

    fn message(decision: &Decision) -> &Message {
        match &decision.actions[0].payload {
            Payload::Message(message) => message,
            Payload::Body(_) => panic!("a message"),
        }
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
        let long = ["Mo,".repeat(100).as_str(), "Tu 01:00-02:00 UTC"].concat();
        check(
            notify("a").within(long),
            "actions[0].timing: window is 318 bytes, the limit is 200",
        );
        check(
            notify("a").or_else("no channel's name"),
            "actions[0] names the channel \"no channel's name\", which is not a channel's name",
        );
        check(
            post("a").digest("k", hours(1), 5),
            "actions[0].timing: a digest gathers messages, and this is a body",
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_that_is_said() {
        let fits = |n| "x".repeat(n);
        check(notify("a").title(fits(1_000)).text(fits(20_000)), "valid");
        check(
            notify("a").title(fits(1_001)),
            "hooksieve cut actions[0].message.title (1001 bytes, the limit is 1000)",
        );
        check(
            notify("a").text(fits(20_001)),
            "hooksieve cut actions[0].message.text (20001 bytes, the limit is 20000)",
        );
        check(Decision::drop(fits(1_000)), "valid");
        check(
            Decision::drop(fits(1_001)),
            "hooksieve cut reason (1001 bytes, the limit is 1000)",
        );
        let fields = |n: usize| (0..n).fold(notify("a"), |m, _| m.field("n", "v"));
        check(fields(50), "valid");
        check(
            fields(51),
            "hooksieve cut actions[0].message.fields (51, the limit is 50)",
        );
        let long = (0..51).fold(notify("a"), |m, _| m.field(fits(201), fits(2_001)));
        let long = long
            .title(fits(1_001))
            .labelled_link(fits(201), "https://a.example");
        check(
            long.clone(),
            "hooksieve cut actions[0].message.title (1001 bytes, the limit is 1000), actions[0].message.link.label (201 bytes, the limit is 200), actions[0].message.fields (51, the limit is 50) and 100 more",
        );
        let (decision, _) = fitted(long);
        let message = message(&decision);
        assert_eq!(message.fields.len(), 50);
        assert!(
            message
                .fields
                .iter()
                .all(|it| it.name.len() == 200 && it.value.len() == 2_000)
        );
        // Between characters: what four bytes a character come to is less than the limit.
        let (decision, _) = fitted(notify("a").title(["Incident: ", &"🔥".repeat(256)].concat()));
        let title = &self::message(&decision).title;
        assert!(
            title.starts_with("Incident: 🔥") && title.ends_with("🔥…"),
            "{title}"
        );
        assert!((996..=1_000).contains(&title.len()));
    }

    #[test]
    fn keys_that_are_too_long_stay_different() {
        let key = |end: &str| {
            let key = ["k".repeat(200).as_str(), end].concat();
            let (decision, said) = fitted(notify("a").dedupe(key, hours(1)));
            assert_eq!(said, Ok(None));
            let timing = decision.actions[0].timing.clone().unwrap();
            timing.dedupe.unwrap().key
        };
        assert_eq!(key(""), "k".repeat(200));
        let (one, other) = (key("a"), key("b"));
        assert!(one.len() <= 200 && other.len() <= 200 && one != other);
        assert_eq!(one, key("a"));
    }

    #[test]
    fn links_lead_to_the_web_or_are_text() {
        check(notify("a").link("https://a.example/?q=1"), "valid");
        for url in [
            "javascript:alert(1)",
            "file:///etc/passwd",
            "//a.example",
            "data:text/html,x",
            "",
            &["https://a.example/", &"x".repeat(2_000)].concat(),
        ] {
            let (decision, said) =
                fitted(notify("a").text("It burns.").labelled_link("there", url));
            assert_eq!(
                said.unwrap().unwrap(),
                "hooksieve cut actions[0].message.link (no http or https address, so it stands in the text)"
            );
            let message = message(&decision);
            assert_eq!(message.link, None);
            let expected = match url {
                "" => "It burns.\nthere".to_owned(),
                url => format!("It burns.\n{url}\nthere"),
            };
            assert_eq!(message.text, expected);
        }
    }

    #[test]
    fn channels_have_names() {
        check(
            post("A b"),
            "actions[0] names the channel \"A b\", which is not a channel's name",
        );
    }
}
