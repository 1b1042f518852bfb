//! Texts that look personal, and their masks.

use super::Packed;
use hooksieve_sdk::wire::{Kind, Value};
use std::cmp::Reverse;
use std::ops::Range;

/// Keys under which texts look personal, in lower case and without `_` and `-`.
const PERSONAL: [&str; 22] = [
    "address1",
    "address2",
    "birthday",
    "browserip",
    "cookie",
    "dateofbirth",
    "email",
    "firstname",
    "iban",
    "ip",
    "ipaddress",
    "lastname",
    "mail",
    "mobile",
    "passport",
    "password",
    "phone",
    "postcode",
    "secret",
    "surname",
    "token",
    "zip",
];

/// The shortest text that is looked for in decisions: shorter ones are in everything.
const TOLD_BYTES_MIN: usize = 4;

/// Texts of an event that look personal, each with its mask: for what is told of the event elsewhere.
pub struct Personal {
    /// The longest first, so that no part of one is masked before the whole.
    pairs: Vec<(String, String)>,
}

impl Personal {
    /// Those of an event, as MessagePack.
    pub fn of(event: &[u8]) -> Self {
        Self::at(event, &places(event))
    }

    fn at(event: &[u8], places: &[Range<usize>]) -> Self {
        let texts = places.iter().filter_map(|it| event.get(it.clone()));
        let texts = texts.filter_map(|text| std::str::from_utf8(text).ok());
        let long = texts.filter(|text| text.len() >= TOLD_BYTES_MIN);
        let mut pairs: Vec<_> = long.map(|text| (text.to_owned(), masked(text))).collect();
        pairs.sort_by_key(|(text, _)| Reverse(text.len()));
        pairs.dedup();
        Self { pairs }
    }

    /// Masks them in a text.
    pub fn hide(&self, text: &mut String) {
        for (before, after) in &self.pairs {
            if text.contains(before.as_str()) {
                *text = text.replace(before.as_str(), after);
            }
        }
    }

    /// Masks them in all texts of a value.
    pub fn hide_in(&self, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => self.hide(text),
            serde_json::Value::Array(items) => items.iter_mut().for_each(|it| self.hide_in(it)),
            serde_json::Value::Object(all) => all.values_mut().for_each(|it| self.hide_in(it)),
            _ => {}
        }
    }
}

/// Masks what is personal in an event, and in what was made of it.
pub(super) fn mask(packed: &mut Packed) {
    let found = places(&packed.event);
    let personal = Personal::at(&packed.event, &found);
    for place in found {
        if let Some(text) = packed.event.get_mut(place) {
            text.iter_mut().for_each(|byte| *byte = masked_byte(*byte));
        }
    }
    // What was found somewhere may stand in other texts of the payload, too.
    let mut texts = Vec::new();
    if let Some(data) = Value::new(&packed.event).get("data") {
        each_place(data, &packed.event, &mut texts);
    }
    for place in texts {
        for (before, after) in &personal.pairs {
            let text = &mut packed.event[place.clone()];
            let mut from = 0;
            while let Some(at) = find(&text[from..], before.as_bytes()) {
                let at = from + at;
                from = at + before.len();
                text[at..from].copy_from_slice(after.as_bytes());
            }
        }
    }
    for made in &mut packed.made {
        if let Some((_, error)) = &mut made.error {
            personal.hide(error);
        }
        let read = made.decision.as_deref().map(serde_json::from_str);
        if let Some(Ok(mut decision)) = read {
            personal.hide_in(&mut decision);
            made.decision = serde_json::to_string(&decision).ok();
        }
    }
}

/// Where personal texts stand in an event.
fn places(event: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    look(Value::new(event), false, event, &mut found);
    found
}

fn look(value: Value<'_>, personal: bool, all: &[u8], found: &mut Vec<Range<usize>>) {
    match value.kind() {
        Kind::Str => {
            let text = value.as_str().unwrap_or_default();
            // An empty one may stand nowhere.
            if !text.is_empty() && (personal || is_mail(text)) {
                // It is a part of these bytes.
                let at = text.as_ptr() as usize - all.as_ptr() as usize;
                found.push(at..at + text.len());
            }
        }
        Kind::Array => value
            .items()
            .for_each(|item| look(item, personal, all, found)),
        Kind::Map => value.entries().for_each(|(key, item)| {
            let personal = personal || is_personal(key);
            look(item, personal, all, found);
        }),
        _ => {}
    }
}

/// Where texts stand in a value.
fn each_place(value: Value<'_>, all: &[u8], found: &mut Vec<Range<usize>>) {
    match value.kind() {
        Kind::Str => {
            if let Some(text) = value.as_str().filter(|it| !it.is_empty()) {
                let at = text.as_ptr() as usize - all.as_ptr() as usize;
                found.push(at..at + text.len());
            }
        }
        Kind::Array => value.items().for_each(|it| each_place(it, all, found)),
        Kind::Map => value
            .entries()
            .for_each(|(_, it)| each_place(it, all, found)),
        _ => {}
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|it| it == what)
}

fn is_personal(key: &str) -> bool {
    let letters = key.chars().filter(|it| !matches!(it, '_' | '-' | ' '));
    let plain: String = letters.map(|it| it.to_ascii_lowercase()).collect();
    PERSONAL.iter().any(|it| plain == *it)
        || ["email", "phone", "password", "secret", "token"]
            .iter()
            .any(|it| plain.ends_with(it))
}

/// Whether all of a text is a mail address.
fn is_mail(text: &str) -> bool {
    text.split_once('@').is_some_and(|(name, host)| {
        let fits = |it: char| it.is_alphanumeric() || "._%+-".contains(it);
        !name.is_empty() && host.contains('.') && name.chars().all(fits) && host.chars().all(fits)
    })
}

fn masked(text: &str) -> String {
    text.bytes().map(|it| char::from(masked_byte(it))).collect()
}

/// Letters and digits become `x`; what they are separated by stays.
fn masked_byte(byte: u8) -> u8 {
    match byte {
        byte if byte.is_ascii_alphanumeric() || !byte.is_ascii() => b'x',
        byte => byte,
    }
}
