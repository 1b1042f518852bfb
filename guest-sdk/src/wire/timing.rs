//! When and how often an action happens: what a rule may say beside the channel and the message.

use super::decision::{Place, absent, map, set, string, unknown, wrong};
use super::{Error, Value, Writer};
use serde::{Deserialize, Serialize};
use std::cell::Cell;

/// When, how often and where else. Every part may be absent; [`Timing::default`] is "at once, every
/// time". The engine keeps the state that `digest`, `dedupe` and `throttle` need: of one rule and
/// channel, under the key that the rule gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Timing {
    /// Not before this many seconds after the event came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after_s: Option<u64>,
    /// Not before this moment (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Only within these hours; outside them it waits. "Mo-Fr 09:00-18:00 Asia/Shanghai".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Gathered with others into one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Only the first one within a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedupe: Option<Dedupe>,
    /// At most so many within a period; what is held back is counted in the next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Throttle>,
    /// To another channel as well, unless someone acknowledges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escalate: Option<Escalate>,
    /// The channel that it goes to when this one gives up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Passes the window, the digest and the throttle.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub critical: bool,
}

/// One message for all of a key that come within `window_s` of the first, or when there are `size`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    pub key: String,
    pub window_s: u64,
    pub size: u64,
}

/// What comes with a key within `window_s` of the last one that was sent is a repetition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dedupe {
    pub key: String,
    pub window_s: u64,
}

/// At most `count` of a key in `period_s`, which begins with the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    pub key: String,
    pub count: u64,
    pub period_s: u64,
}

/// To `channel` as well, `after_s` after it was due, unless it was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escalate {
    pub channel: String,
    pub after_s: u64,
}

std::thread_local! {
    /// Whether this program ever makes a timing of its own. In a rule that does not, nothing sets this,
    /// the compiler sees it, and the 2 kB that write a timing are left out of the module.
    static USED: Cell<bool> = const { Cell::new(false) };
}

impl Default for Timing {
    fn default() -> Self {
        USED.set(true);
        Self {
            after_s: None,
            at: None,
            window: None,
            digest: None,
            dedupe: None,
            throttle: None,
            escalate: None,
            fallback: None,
            critical: false,
        }
    }
}

impl Timing {
    pub(super) fn is_used() -> bool {
        // Elsewhere than in a module, which has one thread, it may have been made on another.
        USED.get() || !cfg!(all(target_arch = "wasm32", target_os = "unknown"))
    }

    pub(super) fn encode(&self, to: &mut Writer) {
        let count = [
            self.after_s.is_some(),
            self.at.is_some(),
            self.window.is_some(),
            self.digest.is_some(),
            self.dedupe.is_some(),
            self.throttle.is_some(),
            self.escalate.is_some(),
            self.fallback.is_some(),
            self.critical,
        ];
        to.map(count.into_iter().filter(|is| *is).count());
        if let Some(after_s) = self.after_s {
            number(to, "after_s", after_s);
        }
        if let Some(at) = &self.at {
            to.entry("at", at);
        }
        if let Some(window) = &self.window {
            to.entry("window", window);
        }
        if let Some(digest) = &self.digest {
            to.str("digest");
            to.map(3);
            to.entry("key", &digest.key);
            number(to, "window_s", digest.window_s);
            number(to, "size", digest.size);
        }
        if let Some(dedupe) = &self.dedupe {
            to.str("dedupe");
            to.map(2);
            to.entry("key", &dedupe.key);
            number(to, "window_s", dedupe.window_s);
        }
        if let Some(throttle) = &self.throttle {
            to.str("throttle");
            to.map(3);
            to.entry("key", &throttle.key);
            number(to, "count", throttle.count);
            number(to, "period_s", throttle.period_s);
        }
        if let Some(escalate) = &self.escalate {
            to.str("escalate");
            to.map(2);
            to.entry("channel", &escalate.channel);
            number(to, "after_s", escalate.after_s);
        }
        if let Some(fallback) = &self.fallback {
            to.entry("fallback", fallback);
        }
        if self.critical {
            to.str("critical");
            to.bool(true);
        }
    }

    pub(super) fn decode(value: Value<'_>, at: &Place<'_>) -> Result<Self, Error> {
        let mut timing = Self::default();
        let mut critical = None;
        for (key, value) in map(value, at)? {
            let place = Place::In(at, key);
            match key {
                "after_s" => set(&mut timing.after_s, whole(value, &place)?, at, key)?,
                "at" => set(&mut timing.at, string(value, &place)?, at, key)?,
                "window" => set(&mut timing.window, string(value, &place)?, at, key)?,
                "digest" => {
                    let [window_s, size] = ["window_s", "size"];
                    let (named, [window_s, size]) = keyed(value, &place, "key", [window_s, size])?;
                    let read = Digest {
                        key: named,
                        window_s,
                        size,
                    };
                    set(&mut timing.digest, read, at, key)?;
                }
                "dedupe" => {
                    let (named, [window_s]) = keyed(value, &place, "key", ["window_s"])?;
                    let read = Dedupe {
                        key: named,
                        window_s,
                    };
                    set(&mut timing.dedupe, read, at, key)?;
                }
                "throttle" => {
                    let names = ["count", "period_s"];
                    let (named, [count, period_s]) = keyed(value, &place, "key", names)?;
                    let read = Throttle {
                        key: named,
                        count,
                        period_s,
                    };
                    set(&mut timing.throttle, read, at, key)?;
                }
                "escalate" => {
                    let (channel, [after_s]) = keyed(value, &place, "channel", ["after_s"])?;
                    set(&mut timing.escalate, Escalate { channel, after_s }, at, key)?;
                }
                "fallback" => set(&mut timing.fallback, string(value, &place)?, at, key)?,
                "critical" => {
                    let read = value
                        .as_bool()
                        .ok_or_else(|| wrong(value, &place, "a boolean"))?;
                    set(&mut critical, read, at, key)?;
                }
                _ => return Err(unknown(at, key)),
            }
        }
        timing.critical = critical.unwrap_or_default();
        Ok(timing)
    }
}

fn number(to: &mut Writer, key: &str, value: u64) {
    to.str(key);
    to.u64(value);
}

fn whole(value: Value<'_>, at: &Place<'_>) -> Result<u64, Error> {
    value
        .as_u64()
        .ok_or_else(|| wrong(value, at, "a whole number of zero or more"))
}

/// A map of one string and some numbers, all of which must be there.
fn keyed<const N: usize>(
    value: Value<'_>,
    at: &Place<'_>,
    text: &'static str,
    numbers: [&'static str; N],
) -> Result<(String, [u64; N]), Error> {
    let mut named = None;
    let mut read = [None; N];
    for (key, value) in map(value, at)? {
        let place = Place::In(at, key);
        if key == text {
            set(&mut named, string(value, &place)?, at, key)?;
        } else if let Some(n) = numbers.iter().position(|number| *number == key) {
            set(&mut read[n], whole(value, &place)?, at, key)?;
        } else {
            return Err(unknown(at, key));
        }
    }
    let mut whole = [0; N];
    for (n, number) in read.into_iter().enumerate() {
        whole[n] = number.ok_or_else(|| absent(at, numbers[n]))?;
    }
    Ok((named.ok_or_else(|| absent(at, text))?, whole))
}
