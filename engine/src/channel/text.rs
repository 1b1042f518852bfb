//! What several channels do with the plain text of a message. Pure, and no receiver's syntax: each
//! channel escapes for its own.

use crate::store::Delivery;
use hooksieve_sdk::wire::Link;
use url::Url;

/// The text in one line: every control character and run of white space becomes one space, so that
/// nothing in it can begin a header or a line of its own; what is invisible is left out. Cut to
/// `chars_max` characters.
pub(super) fn one_line(text: &str, chars_max: usize) -> String {
    let mut line = String::with_capacity(text.len());
    let seen: String = text.chars().filter(|c| !is_invisible(*c)).collect();
    for word in seen
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

/// The text without control characters other than the line feed and the tab, and without what is
/// invisible.
pub(super) fn lines(text: &str) -> String {
    text.replace("\r\n", "\n")
        .chars()
        .filter(|c| !(c.is_control() || is_invisible(*c)) || matches!(c, '\n' | '\t'))
        .collect()
}

/// Whether it shows nothing of its own and changes how others are shown: what turns the direction of
/// text around, so that a name reads backwards, and what hides words from people or makes two that look
/// the same. These are Unicode's `Default_Ignorable_Code_Point` (UCD, DerivedCoreProperties.txt), with
/// the interlinear marks, but for the joiners and variation selectors that letters and emoji are made of.
pub fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180e}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e00ff}'
        | '\u{e01f0}'..='\u{e0fff}')
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

/// How many characters a text has with its escapes.
pub(super) fn width(text: &str, escape: fn(char) -> Option<&'static str>) -> usize {
    text.chars().map(|c| escape(c).map_or(1, str::len)).sum()
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

/// A title in one line, and the type of the event where it says nothing: a sender's word like any other.
pub(super) fn title(delivery: &Delivery, title: &str, chars_max: usize) -> String {
    match one_line(title, chars_max) {
        title if title.is_empty() => one_line(&delivery.about.kind, chars_max),
        title => title,
    }
}

/// The last line of a message: why it was sent, and what of.
pub(super) fn footer(delivery: &Delivery) -> String {
    let about = &delivery.about;
    let kind = one_line(&about.kind, usize::MAX);
    match one_line(&delivery.reason, 500) {
        reason if reason.is_empty() => format!("{kind} from {}", about.source),
        reason => format!("{reason} · {kind} from {}", about.source),
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

    /// What turns words around, hides them or looks like nothing: "invoice\u{202e}fdp.exe".
    #[test]
    fn nothing_invisible_is_left() {
        for hidden in [
            "\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}",
            "\u{2066}\u{2067}\u{2068}\u{2069}",
            "\u{200e}\u{200f}\u{61c}",
            "\u{200b}\u{2060}\u{feff}\u{ad}\u{34f}",
            "\u{115f}\u{3164}\u{ffa0}\u{180e}",
            "\u{e0001}\u{e0041}\u{e007f}",
            "\u{fff9}\u{fffa}\u{fffb}",
        ] {
            let text = format!("a{hidden}b");
            assert_eq!(one_line(&text, 100), "ab", "{hidden:?}");
            assert_eq!(lines(&text), "ab", "{hidden:?}");
        }
        // Joiners and selectors make letters and emoji what they are.
        for whole in [
            "می\u{200c}خواهم",
            "👩\u{200d}💻",
            "❤\u{fe0f}",
            "葛\u{e0100}",
        ] {
            assert_eq!(one_line(whole, 100), whole);
            assert_eq!(lines(whole), whole);
        }
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
