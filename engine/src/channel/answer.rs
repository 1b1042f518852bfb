//! What is kept of a receiver's answer, and what is hidden of it: a receiver may repeat what it was
//! sent, and with it the address, key or password that a channel has to keep to itself.
//!
//! What is hidden is the text of a secret, also in the forms that it has in JSON and in basic
//! authentication; a receiver that means to betray its channel can say it in another way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use url::Url;

/// How much of an answer is kept with an attempt.
pub(super) const KEPT_BYTES_MAX: usize = 1_024;
/// What stands where a secret stood.
const HIDDEN: &str = "[secret]";
/// Anything shorter is no secret, and hiding it would blot out words.
const SECRET_CHARS_MIN: usize = 4;
/// A part of a path is no secret where it is shorter.
const PART_CHARS_MIN: usize = 8;
/// Small letters alone are a word up to here, and no secret.
const WORD_CHARS_MAX: usize = 15;

/// What a channel keeps to itself.
#[derive(Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// A key, a token, a password.
    pub(super) fn text(&mut self, text: &str) {
        if text.chars().count() < SECRET_CHARS_MIN {
            return;
        }
        let json = serde_json::Value::from(text).to_string();
        self.0.push(json[1..json.len() - 1].to_owned());
        self.0.push(text.to_owned());
    }

    /// A user's name, which is no secret, with a password, which goes out in Base64.
    pub(super) fn login(&mut self, user: &str, password: &str) {
        self.text(password);
        for sent in [
            format!("{user}:{password}"),
            format!("\0{user}\0{password}"),
            password.to_owned(),
        ] {
            self.text(&BASE64.encode(sent));
        }
    }

    /// All of an address but its host.
    pub(super) fn url(&mut self, url: &Url) {
        let path = url.path();
        if path != "/" {
            self.text(path);
        }
        let word = |part: &str| {
            part.len() <= WORD_CHARS_MAX && part.bytes().all(|byte| byte.is_ascii_lowercase())
        };
        for part in path.split('/') {
            if part.len() >= PART_CHARS_MIN && !word(part) {
                self.text(part);
            }
        }
        let query = url.query().unwrap_or_default();
        self.text(query);
        let raw = query.split('&').filter_map(|pair| pair.split_once('='));
        for value in raw
            .map(|(_, value)| value.into())
            .chain(url.query_pairs().map(|(_, value)| value))
        {
            if !word(&value) {
                self.text(&value);
            }
        }
        if let Some(password) = url.password() {
            self.login(url.username(), password);
        }
    }

    /// The text without secrets.
    pub(super) fn hide(&mut self, text: &str) -> String {
        // The whole of an address goes before its parts.
        self.0.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        self.0.dedup();
        let mut text = text.to_owned();
        for secret in &self.0 {
            if text.contains(secret) {
                text = text.replace(secret, HIDDEN);
            }
            // What breaks off may do so within a secret.
            let begun = (SECRET_CHARS_MIN..secret.len())
                .rev()
                .filter_map(|end| secret.get(..end))
                .find(|begun| text.ends_with(begun));
            if let Some(begun) = begun {
                text.truncate(text.len() - begun.len());
                text.push_str(HIDDEN);
            }
        }
        text
    }

    /// The beginning of an answer, in one line, without secrets; `None` where it says nothing.
    pub(super) fn kept(&mut self, answer: &[u8]) -> Option<String> {
        let shown = self.hide(&String::from_utf8_lossy(answer));
        let mut line = super::text::one_line(&shown, usize::MAX);
        line.truncate(line.floor_char_boundary(KEPT_BYTES_MAX));
        (!line.is_empty()).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        let mut secrets = Secrets::default();
        let url =
            "https://me:pass-word@hooks.example.com/services/T0123ABCD/x9x9x9x9?key=a%2Bb+c&n=1";
        secrets.url(&Url::parse(url).unwrap());
        secrets.text("with \"quotes\"");
        secrets
    }

    #[test]
    fn no_secret_is_kept_in_any_of_its_forms() {
        for (answer, kept) in [
            ("fine", "fine"),
            (
                "POST /services/T0123ABCD/x9x9x9x9?key=a%2Bb+c&n=1 HTTP/1.1",
                "POST [secret]?[secret] HTTP/1.1",
            ),
            (
                r#"{"url":"\/services\/T0123ABCD\/x9x9x9x9"}"#,
                r#"{"url":"\/services\/[secret]\/[secret]"}"#,
            ),
            ("key is a+b c", "key is [secret]"),
            (
                "Basic bWU6cGFzcy13b3Jk and pass-word",
                "Basic [secret] and [secret]",
            ),
            (r#"{"s":"with \"quotes\""}"#, r#"{"s":"[secret]"}"#),
            // A word of the path is no secret, and the host never is.
            (
                "hooks.example.com has no such services",
                "hooks.example.com has no such services",
            ),
            ("cut off: x9x9x", "cut off: [secret]"),
        ] {
            assert_eq!(secrets().kept(answer.as_bytes()).as_deref(), Some(kept));
        }
    }

    #[test]
    fn what_is_kept_is_one_line_of_so_many_bytes() {
        let kept = |answer: &[u8]| Secrets::default().kept(answer);
        assert_eq!(
            kept(b"<html>\r\n\t<b>no\x1b[31m\0</b>\xff").as_deref(),
            Some("<html> <b>no [31m </b>\u{fffd}")
        );
        assert_eq!(kept(b" \r\n "), None);
        assert_eq!(kept(&[b'x'; 1_024]).unwrap().len(), 1_024);
        assert_eq!(kept(&[b'x'; 1_025]).unwrap().len(), 1_024);
        let wide = "ä".repeat(2_000);
        assert_eq!(kept(format!("x{wide}").as_bytes()).unwrap().len(), 1_023);
    }
}
