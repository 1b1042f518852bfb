//! A rule that does on demand what rules can do, well or badly: the event's data says what. Built
//! from the real SDK, for tests of the engine.

use hooksieve_sdk::prelude::*;
use serde::Deserialize;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    greeting: String,
    /// A failure is repaired by a new configuration, as a person would.
    broken: bool,
}

#[derive(Debug, Deserialize)]
struct Typed<'a> {
    #[serde(borrow)]
    name: &'a str,
    count: u32,
    tags: Vec<String>,
    nested: Option<Nested>,
}

#[derive(Debug, Deserialize)]
struct Nested {
    ratio: f64,
}

/// With the timing that the event asks for, in seconds.
fn timed(mut message: hooksieve_sdk::Notify, event: &Event) -> hooksieve_sdk::Notify {
    let number = |pointer| event.i64(pointer).map(|number| number as u64);
    let seconds = |pointer| number(pointer).map(Duration::from_secs);
    let key = event.str("/key").unwrap_or("key");
    if let Some(after) = seconds("/after_s") {
        message = message.after(after);
    }
    if let Some(window) = event.str("/window") {
        message = message.within(window);
    }
    if let Some(window) = seconds("/digest_s") {
        message = message.digest(key, window, number("/size").unwrap_or(100));
    }
    if let Some(window) = seconds("/dedupe_s") {
        message = message.dedupe(key, window);
    }
    if let Some(period) = seconds("/throttle_s") {
        message = message.throttle(key, number("/count").unwrap_or(1), period);
    }
    if let Some(after) = seconds("/escalate_s") {
        message = message.escalate("boss", after);
    }
    if let Some(channel) = event.str("/fallback") {
        message = message.or_else(channel);
    }
    if event.bool("/critical") == Some(true) {
        message = message.critical();
    }
    message
}

#[rule]
fn probe(event: &Event, config: &Config) -> Result<Decision, String> {
    if config.broken {
        return Err("it is configured to fail".to_owned());
    }
    match event.str("/do").unwrap_or("drop") {
        "drop" => Ok(Decision::drop("asked to drop")),
        "error" => Err(event.str("/message").unwrap_or("no message").to_owned()),
        "panic" => panic!("asked to panic: {}", event.i64("/code").unwrap_or(0)),
        "log" => {
            for line in event.each("/lines") {
                log::line(line.as_str().unwrap_or("not text"));
            }
            Ok(Decision::drop("logged"))
        }
        "typed" => {
            let typed: Typed<'_> = event.data_as().map_err(|error| error.to_string())?;
            let ratio = typed.nested.map_or(0.0, |nested| nested.ratio);
            Ok(Decision::drop(format!(
                "{} {} {} {ratio}",
                typed.name,
                typed.count,
                typed.tags.join("+")
            )))
        }
        "notify" => {
            let mut message = notify(event.str("/channel").unwrap_or("mail"))
                .title(event.str("/title").unwrap_or(""))
                .text(event.str("/text").unwrap_or(""));
            if let Some(url) = event.str("/link") {
                message = message.link(url);
            }
            for field in event.each("/fields") {
                let part = |pointer| field.str(pointer).unwrap_or("").to_owned();
                message = message.field(part("/name"), part("/value"));
            }
            Ok(timed(message, event).because(config.greeting.as_str()))
        }
        "everywhere" => Ok(event
            .each("/channels")
            .filter_map(|channel| channel.as_str())
            .fold(Decision::default(), |decision, channel| {
                decision.and(notify(channel).title(event.str("/title").unwrap_or("hello")))
            })
            .because(match config.greeting.as_str() {
                "" => "everywhere",
                greeting => greeting,
            })),
        "post" => Ok(post(event.str("/channel").unwrap_or("hook"))
            .set("greeting", config.greeting.as_str())
            .set("kind", event.kind())
            .copy("data", event.get("/payload"))
            .because("posted")),
        "many" => Ok((0..event.i64("/count").unwrap_or(0))
            .fold(Decision::drop("many"), |decision, _| {
                decision.and(notify("mail").title("one of many"))
            })),
        "remember" => {
            use std::sync::atomic::{AtomicU32, Ordering};
            static SEEN: AtomicU32 = AtomicU32::new(0);
            let seen = SEEN.fetch_add(1, Ordering::Relaxed);
            Ok(Decision::drop(format!("seen {seen} before")))
        }
        "allocate" => {
            let bytes = event.i64("/bytes").unwrap_or(0) as usize;
            let block = vec![1u8; bytes];
            Ok(Decision::drop(format!("held {} bytes", block.len())))
        }
        "recurse" => {
            let depth = event.i64("/depth").unwrap_or(0);
            Ok(Decision::drop(format!("returned from {}", recurse(depth))))
        }
        other => Err(format!("cannot do {other:?}")),
    }
}

/// Takes 256 bytes of the rule's own stack for each step, and some more.
fn recurse(depth: i64) -> i64 {
    let room = std::hint::black_box([depth; 32]);
    match depth {
        0 => 0,
        depth => recurse(depth - 1) + std::hint::black_box(room)[0] - depth + 1,
    }
}
