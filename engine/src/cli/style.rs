//! How output looks: colours where it is a terminal, tables for people.

use super::Failure;
use anstyle::{AnsiColor, Effects, Style};
use clap::builder::Styles;
use comfy_table::{ContentArrangement, LineStyle, Table, presets};
use std::fmt::Write as _;

pub(crate) const ERROR: Style = AnsiColor::Red.on_default().effects(Effects::BOLD);
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();
pub(crate) const DIM: Style = Style::new().effects(Effects::DIMMED);
pub(crate) const HEADING: Style = Style::new().effects(Effects::BOLD);

pub(crate) const HELP: Styles = Styles::styled()
    .header(HEADING)
    .usage(HEADING)
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(DIM);

/// A table that fits the terminal, without lines between rows.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')))
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// Text from an event or a rule, made safe for a terminal: no control character gets through, and
/// nothing that turns text around or hides it.
pub(crate) fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| !hooksieve::channel::is_invisible(*c))
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// JSON for people, made safe for a terminal: it escapes most control characters by itself, and what is
/// invisible is written as an escape, too, so that nothing is lost.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::outcome)?;
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push(c),
            c if c.is_control() || hooksieve::channel::is_invisible(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
            c => shown.push(c),
        }
    }
    Ok(shown)
}

/// A number with thin groups: 12_345_678 as "12 345 678".
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// Bytes as people read them.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.0} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// "1 event", "2 events".
pub(crate) fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        count => format!("{} {what}s", grouped(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_shown_nothing_that_turns_words_around() {
        assert_eq!(clean("invoice\u{202e}fdp.exe\u{200b}"), "invoicefdp.exe");
        assert_eq!(clean("a\x1b[31mb\n"), "a [31mb ");
        let data = serde_json::json!({ "name": "a\u{202e}b\u{7f}\u{e0041}" });
        let shown = json(&data).unwrap();
        assert_eq!(
            shown,
            "{\n  \"name\": \"a\\u202eb\\u007f\\udb40\\udc41\"\n}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            data
        );
        assert_eq!(clean("👩\u{200d}💻 naïve"), "👩\u{200d}💻 naïve");
    }
}
