//! What several channels do with the plain text of a message. Pure, and no receiver's syntax: each
//! channel escapes for its own.

use crate::store::Delivery;
use hooksieve_sdk::wire::Link;
use url::Url;

/// The text in one line: every control character and run of white space becomes one space, so that
/// nothing in it can begin a header or a line of its own. Cut to `chars_max` characters.
pub(super) fn one_line(text: &str, chars_max: usize) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
    {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    cut(line, chars_max)
}

/// The text without control characters other than the line feed and the tab.
pub(super) fn lines(text: &str) -> String {
    text.replace("\r\n", "\n")
        .chars()
        .filter(|c| !c.is_control() || matches!(c, '\n' | '\t'))
        .collect()
}

/// The text, escaped character by character and never longer than `chars_max` with its escapes: an
/// ellipsis stands for what was cut, and no escape is cut in two.
pub(super) fn escaped(
    text: &str,
    chars_max: usize,
    escape: fn(char) -> Option<&'static str>,
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = 0;
    // Where to cut if the whole does not fit: the longest part that leaves room for the ellipsis.
    let mut cut_at = 0;
    for c in text.chars() {
        if chars < chars_max {
            cut_at = out.len();
        }
        let wide = match escape(c) {
            Some(entity) => {
                out.push_str(entity);
                entity.len()
            }
            None => {
                out.push(c);
                1
            }
        };
        chars += wide;
        if chars > chars_max {
            out.truncate(cut_at);
            out.push('…');
            return out;
        }
    }
    out
}

/// `&`, `<` and `>`: all that Slack takes for syntax, and what HTML needs in text.
pub(super) fn angle_entity(c: char) -> Option<&'static str> {
    match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        _ => None,
    }
}

/// A link that a person may be sent to: its address, which is `http` or `https` and well formed,
/// and its label in one line. Anything else, such as `javascript:`, is no link.
pub(super) fn web_link(link: &Link) -> Option<(Url, String)> {
    let url = Url::parse(&link.url).ok()?;
    if !matches!(url.scheme(), "http" | "https") {
        return None;
    }
    let label = one_line(link.label.as_deref().unwrap_or_default(), 200);
    let label = if label.is_empty() {
        one_line(url.as_str(), 200)
    } else {
        label
    };
    Some((url, label))
}

/// The last line of a message: why it was sent, and what of.
pub(super) fn footer(delivery: &Delivery) -> String {
    let about = &delivery.about;
    match one_line(&delivery.reason, 500) {
        reason if reason.is_empty() => format!("{} from {}", about.kind, about.source),
        reason => format!("{reason} · {} from {}", about.kind, about.source),
    }
}

fn cut(mut text: String, chars_max: usize) -> String {
    if let Some((at, _)) = text.char_indices().nth(chars_max) {
        let keep = text[..at].char_indices().next_back().map_or(0, |(i, _)| i);
        text.truncate(keep);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_one_line() {
        for (text, line) in [
            ("plain", "plain"),
            ("a\r\nBcc: b@example.com", "a Bcc: b@example.com"),
            (" \0a\u{85}b\u{2028}c\t ", "a b c"),
            ("", ""),
            ("\r\n", ""),
            ("مرحبا 🚨", "مرحبا 🚨"),
        ] {
            assert_eq!(one_line(text, 100), line);
        }
        assert_eq!(one_line("abcdef", 6), "abcdef");
        assert_eq!(one_line("abcdefg", 6), "abcde…");
        assert_eq!(one_line("🚨🚨🚨", 2), "🚨…");
    }

    #[test]
    fn an_escape_is_never_cut_in_two() {
        let check = |text, max, expect| assert_eq!(escaped(text, max, angle_entity), expect);
        check("a<b", 6, "a&lt;b");
        check("a<b", 5, "a…");
        check("ab<", 6, "ab&lt;");
        check("abcd", 4, "abcd");
        check("abcde", 4, "abc…");
        check("<<<<", 9, "&lt;&lt;…");
        check("<<", 8, "&lt;&lt;");
        check("", 4, "");
    }

    #[test]
    fn only_web_addresses_are_links() {
        let link = |url: &str| {
            web_link(&Link {
                url: url.into(),
                label: None,
            })
            .map(|(url, label)| (url.to_string(), label))
        };
        for bad in [
            "javascript:alert(1)",
            "mailto:a@b",
            "/relative",
            "",
            "file:///etc/passwd",
        ] {
            assert_eq!(link(bad), None, "{bad}");
        }
        let (url, label) = link("https://example.com/a\r\nb").unwrap();
        assert_eq!(
            (url.as_str(), label.as_str()),
            ("https://example.com/ab", "https://example.com/ab")
        );
    }
}
