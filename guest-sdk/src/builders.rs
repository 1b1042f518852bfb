//! Builders for what a rule answers.

use crate::wire::{
    Action, Body, Decision, Dedupe, Digest, Escalate, Field, Link, Message, Payload, Throttle,
    Timing,
};
use core::time::Duration;

impl Decision {
    /// Nothing is done with the event; the reason is kept.
    pub fn drop(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            actions: Vec::new(),
        }
    }

    /// The same decision with another reason.
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// This decision, and one more action.
    ///
    /// ```
    /// use hooksieve_sdk::prelude::*;
    ///
    /// let decision = Decision::from(notify("mail").title("Released"))
    ///     .and(notify("chat").title("Released"))
    ///     .because("a release");
    /// assert_eq!(decision.actions.len(), 2);
    /// ```
    pub fn and(mut self, more: impl Into<Decision>) -> Self {
        let more = more.into();
        if self.reason.is_empty() {
            self.reason = more.reason;
        }
        self.actions.extend(more.actions);
        self
    }
}

/// Begins a message to a channel of the tenant.
///
/// ```
/// use hooksieve_sdk::prelude::*;
///
/// let decision: Decision = notify("oncall")
///     .title("CI is red")
///     .text("main, run 17")
///     .link("https://example.com/runs/17")
///     .field("Branch", "main")
///     .into();
/// assert_eq!(decision.actions[0].channel, "oncall");
/// ```
pub fn notify(channel: impl Into<String>) -> Notify {
    Notify {
        channel: channel.into(),
        message: Message::default(),
        timing: None,
    }
}

/// A message on its way into a [`Decision`].
#[derive(Clone, Debug)]
#[must_use = "a message does nothing before it is part of a decision: end with `.into()` or `.because(…)`"]
pub struct Notify {
    channel: String,
    message: Message,
    timing: Option<Box<Timing>>,
}

impl Notify {
    /// The subject of a mail, the headline of a chat message. Where it is left empty, the event's
    /// type stands there.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.message.title = title.into();
        self
    }

    /// The text: plain, lines separated by `\n`; the channel escapes it.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.message.text = text.into();
        self
    }

    /// Where the message leads, an `http` or `https` address.
    pub fn link(mut self, url: impl Into<String>) -> Self {
        self.message.link = Some(Link {
            url: url.into(),
            label: None,
        });
        self
    }

    /// Where the message leads, and what to call it.
    pub fn labelled_link(mut self, label: impl Into<String>, url: impl Into<String>) -> Self {
        self.message.link = Some(Link {
            url: url.into(),
            label: Some(label.into()),
        });
        self
    }

    /// A short fact beside the text.
    pub fn field(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.message.fields.push(Field {
            name: name.into(),
            value: value.into(),
        });
        self
    }

    /// The decision to send this, with its reason.
    pub fn because(self, reason: impl Into<String>) -> Decision {
        Decision::from(self).because(reason)
    }
}

impl From<Notify> for Decision {
    fn from(notify: Notify) -> Self {
        Decision {
            reason: String::new(),
            actions: vec![Action {
                channel: notify.channel,
                payload: Payload::Message(notify.message),
                timing: notify.timing,
            }],
        }
    }
}

/// Begins a body of one's own for a `webhook` channel.
///
/// ```
/// use hooksieve_sdk::prelude::*;
///
/// let recorded = hooksieve_sdk::testing::event("order.paid", r#"{"total": 12.5, "items": [1, 2]}"#);
/// let event = recorded.event();
/// let decision = post("warehouse")
///     .set("kind", event.kind())
///     .set("total", event.f64("/total").unwrap_or(0.0))
///     .copy("items", event.get("/items"))
///     .because("a paid order");
/// ```
pub fn post(channel: impl Into<String>) -> Post {
    Post {
        channel: channel.into(),
        entries: crate::Writer::new(),
        count: 0,
        timing: None,
    }
}

/// A JSON object on its way to a `webhook` channel.
#[derive(Clone, Debug)]
#[must_use = "a body does nothing before it is part of a decision: end with `.into()` or `.because(…)`"]
pub struct Post {
    channel: String,
    entries: crate::Writer,
    count: usize,
    timing: Option<Box<Timing>>,
}

impl Post {
    /// An entry of the object.
    pub fn set(mut self, key: &str, value: impl WriteTo) -> Self {
        self.entries.str(key);
        value.write_to(&mut self.entries);
        self.count += 1;
        self
    }

    /// An entry taken over from the event as it is; `null` where there is none.
    pub fn copy(mut self, key: &str, value: Option<crate::Value<'_>>) -> Self {
        self.entries.str(key);
        match value.and_then(|value| value.encoded()) {
            Some(encoded) => self.entries.raw(encoded),
            None => self.entries.nil(),
        }
        self.count += 1;
        self
    }

    /// The decision to send this, with its reason.
    pub fn because(self, reason: impl Into<String>) -> Decision {
        Decision::from(self).because(reason)
    }
}

impl From<Post> for Decision {
    fn from(post: Post) -> Self {
        let mut body = crate::Writer::with_capacity(post.entries.len() + 5);
        body.map(post.count);
        body.raw(post.entries.as_slice());
        Decision {
            reason: String::new(),
            actions: vec![Action {
                channel: post.channel,
                payload: Payload::Body(Body::from_msgpack(body.into_bytes())),
                timing: post.timing,
            }],
        }
    }
}

/// Minutes, for the timing of an action.
pub const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count.saturating_mul(60))
}

/// Hours, for the timing of an action.
pub const fn hours(count: u64) -> Duration {
    Duration::from_secs(count.saturating_mul(3_600))
}

/// Days of 24 hours, for the timing of an action.
pub const fn days(count: u64) -> Duration {
    Duration::from_secs(count.saturating_mul(86_400))
}

/// When and how often: the same for messages and bodies. Times are rounded down to whole seconds; the
/// clock is when the event came in, so that a replay comes to the same.
macro_rules! timing {
    ($($builder:ty),*) => {$(
        impl $builder {
            fn timing(&mut self) -> &mut Timing {
                self.timing.get_or_insert_default()
            }

            /// Not before this time has passed since the event came in.
            pub fn after(mut self, wait: Duration) -> Self {
                self.timing().after_s = Some(wait.as_secs());
                self
            }

            /// Not before this moment, as RFC 3339: "2026-03-01T09:30:00Z".
            pub fn at(mut self, moment: impl Into<String>) -> Self {
                self.timing().at = Some(moment.into());
                self
            }

            /// Only within these hours, such as "Mo-Fr 09:00-18:00 Asia/Shanghai"; outside them it
            /// waits until they begin.
            pub fn within(mut self, hours: impl Into<String>) -> Self {
                self.timing().window = Some(hours.into());
                self
            }

            /// Gathered into one message with all that come under this key within `window` of the
            /// first, or as soon as there are `size`.
            pub fn digest(mut self, key: impl Into<String>, window: Duration, size: u64) -> Self {
                self.timing().digest = Some(Digest {
                    key: key.into(),
                    window_s: window.as_secs(),
                    size,
                });
                self
            }

            /// Not again under this key within `window` of the one that was sent.
            pub fn dedupe(mut self, key: impl Into<String>, window: Duration) -> Self {
                self.timing().dedupe = Some(Dedupe {
                    key: key.into(),
                    window_s: window.as_secs(),
                });
                self
            }

            /// At most `count` under this key in `period`; how many were held back is told with the
            /// next one.
            pub fn throttle(mut self, key: impl Into<String>, count: u64, period: Duration) -> Self {
                self.timing().throttle = Some(Throttle {
                    key: key.into(),
                    count,
                    period_s: period.as_secs(),
                });
                self
            }

            /// To another channel as well, `after` this one was due, unless someone acknowledges it.
            pub fn escalate(mut self, channel: impl Into<String>, after: Duration) -> Self {
                self.timing().escalate = Some(Escalate {
                    channel: channel.into(),
                    after_s: after.as_secs(),
                });
                self
            }

            /// To another channel when this one gives up.
            pub fn or_else(mut self, channel: impl Into<String>) -> Self {
                self.timing().fallback = Some(channel.into());
                self
            }

            /// Passes windows, digests and throttles.
            pub fn critical(mut self) -> Self {
                self.timing().critical = true;
                self
            }
        }
    )*};
}

timing!(Notify, Post);

/// What can stand in a body that [`post`] makes.
pub trait WriteTo {
    fn write_to(&self, to: &mut crate::Writer);
}

macro_rules! write_to {
    ($($type:ty => $method:ident as $as:ty),* $(,)?) => {$(
        impl WriteTo for $type {
            fn write_to(&self, to: &mut crate::Writer) {
                to.$method(*self as $as);
            }
        }
    )*};
}

write_to!(
    u8 => u64 as u64, u16 => u64 as u64, u32 => u64 as u64, u64 => u64 as u64, usize => u64 as u64,
    i8 => i64 as i64, i16 => i64 as i64, i32 => i64 as i64, i64 => i64 as i64,
    f32 => f64 as f64, f64 => f64 as f64, bool => bool as bool,
);

impl WriteTo for str {
    fn write_to(&self, to: &mut crate::Writer) {
        to.str(self);
    }
}

impl WriteTo for String {
    fn write_to(&self, to: &mut crate::Writer) {
        to.str(self);
    }
}

impl<T: WriteTo + ?Sized> WriteTo for &T {
    fn write_to(&self, to: &mut crate::Writer) {
        (**self).write_to(to);
    }
}

impl<T: WriteTo> WriteTo for Option<T> {
    fn write_to(&self, to: &mut crate::Writer) {
        match self {
            Some(value) => value.write_to(to),
            None => to.nil(),
        }
    }
}

impl<T: WriteTo> WriteTo for [T] {
    fn write_to(&self, to: &mut crate::Writer) {
        to.array(self.len());
        for value in self {
            value.write_to(to);
        }
    }
}

impl<T: WriteTo> WriteTo for Vec<T> {
    fn write_to(&self, to: &mut crate::Writer) {
        self.as_slice().write_to(to);
    }
}
