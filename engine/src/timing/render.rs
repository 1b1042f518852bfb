//! What a receiver is told of the timing: a digest's lines, what was held back, where to acknowledge.
//!
//! It becomes part of the message itself, in plain text, so that every channel shows it in its own form.
//! A body that a rule made stays as it is.

use super::Line;
use crate::store::Delivery;
use hooksieve_sdk::wire::{Field, Message, Payload};
use std::fmt::Write as _;

/// How long a digest's text may become, in bytes; lines beyond it are counted.
const TEXT_BYTES_MAX: usize = 16_000;

/// The payload as it goes out, where it is not the delivery's own; `acknowledge` is the address behind
/// which it can be acknowledged.
pub fn render(delivery: &Delivery, acknowledge: Option<&str>) -> Option<Payload> {
    let Payload::Message(message) = &delivery.payload else {
        return None;
    };
    if delivery.gathered.len() <= 1 && delivery.held_back == 0 && acknowledge.is_none() {
        return None;
    }
    let mut message = message.clone();
    if delivery.gathered.len() > 1 {
        message = digest(message, &delivery.gathered);
    }
    let mut field = |name: &str, value: String| {
        message.fields.push(Field {
            name: name.to_owned(),
            value,
        });
    };
    if delivery.held_back > 0 {
        field("Held back before", delivery.held_back.to_string());
    }
    if let Some(address) = acknowledge {
        field("Acknowledge", address.to_owned());
    }
    Some(Payload::Message(message))
}

/// One message for many: the first one's title and how many more there are, then a line for each.
fn digest(first: Message, lines: &[Line]) -> Message {
    let mut text = String::new();
    let mut told = 0;
    for line in lines {
        let more = line.url.as_ref().map_or(0, String::len) + line.title.len() + 8;
        if text.len() + more > TEXT_BYTES_MAX {
            break;
        }
        let _ = write!(text, "• {}", line.title);
        if let Some(url) = &line.url {
            let _ = write!(text, "\n  {url}");
        }
        text.push('\n');
        told += 1;
    }
    if told < lines.len() {
        let _ = writeln!(text, "and {} more", lines.len() - told);
    }
    text.truncate(text.trim_end().len());
    Message {
        title: format!("{} (and {} more)", first.title, lines.len() - 1),
        text,
        link: None,
        fields: Vec::new(),
    }
}
