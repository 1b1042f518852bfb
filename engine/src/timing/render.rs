//! What a receiver is told of the timing: a digest's lines, what was held back, where to acknowledge.
//!
//! It becomes part of the message itself, in plain text, so that every channel shows it in its own form.
//! A body that a rule made stays as it is.

use super::Line;
use crate::store::Delivery;
use hooksieve_sdk::wire::{Field, Message, Payload};
use std::fmt::Write as _;

/// How long a digest's text may become where its channel takes all of it, in bytes.
const TEXT_BYTES_MAX: usize = 16_000;
/// What a digest keeps of its first title: the count behind it is to be seen in the shortest of titles.
const TITLE_CHARS_MAX: usize = 120;

/// How much text of a message a channel shows: what goes beyond it would be cut, in the middle of a line.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    max: usize,
    /// What a text takes of it, with the channel's escapes.
    cost: fn(&str) -> usize,
}

impl Room {
    pub const fn new(max: usize, cost: fn(&str) -> usize) -> Self {
        Self { max, cost }
    }

    fn left(&self, used: &str) -> usize {
        self.max.saturating_sub((self.cost)(used))
    }
}

/// For channels that cut nothing.
impl Default for Room {
    fn default() -> Self {
        Self::new(TEXT_BYTES_MAX, str::len)
    }
}

/// The payload as it goes out, where it is not the delivery's own; `acknowledge` is the address behind
/// which it can be acknowledged, `room` what its channel shows.
pub fn render(delivery: &Delivery, acknowledge: Option<&str>, room: &Room) -> Option<Payload> {
    let Payload::Message(message) = &delivery.payload else {
        return None;
    };
    if delivery.gathered.len() <= 1 && delivery.held_back == 0 && acknowledge.is_none() {
        return None;
    }
    let mut message = message.clone();
    if delivery.gathered.len() > 1 {
        message = digest(message, &delivery.gathered, room);
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

/// One message for many: the first one's title and how many more there are, then a line for each. Lines
/// that have no room are counted, and none is cut.
fn digest(first: Message, lines: &[Line], room: &Room) -> Message {
    let mut text = String::new();
    for (told, line) in lines.iter().enumerate() {
        let left = lines.len() - told - 1;
        // An address that takes much of the room would keep out the lines after it.
        let url = line
            .url
            .as_deref()
            .filter(|url| (room.cost)(url) <= room.max / 4);
        let mut added = format!("• {}", one_line(&line.title, TITLE_CHARS_MAX));
        if let Some(url) = url {
            let _ = write!(added, "\n  {url}");
        }
        added.push('\n');
        let last = match left {
            0 => String::new(),
            left => more(left),
        };
        if room.left(&text) < (room.cost)(&added) + (room.cost)(&last) {
            text.push_str(&more(left + 1));
            break;
        }
        text.push_str(&added);
    }
    text.truncate(text.trim_end().len());
    let title = one_line(&first.title, TITLE_CHARS_MAX);
    Message {
        title: format!("{title} (and {} more)", lines.len() - 1),
        text,
        link: None,
        fields: Vec::new(),
    }
}

fn more(count: usize) -> String {
    format!("and {count} more")
}

/// A title as one line, cut to so many characters and saying so.
pub(super) fn one_line(title: &str, chars_max: usize) -> String {
    let mut line = title.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(chars_max) {
        let keep = line[..end]
            .char_indices()
            .next_back()
            .map_or(0, |(at, _)| at);
        line.truncate(keep);
        line.push('…');
    }
    line
}
