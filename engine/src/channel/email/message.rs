//! A message as mail: in plain text and in HTML, signed where there is a key.

use super::{Email, HEADERS_OF_LISTS, SUBJECT_CHARS_MAX};
use crate::channel::Failure;
use crate::channel::text::{self, angle_entity, escaped};
use crate::store::Delivery;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hooksieve_sdk::wire::{Message, Payload};
use lettre::address::Envelope;
use lettre::message::header::{
    ContentTransferEncoding, ContentType, HeaderName, HeaderValue, Headers, To,
};
use lettre::message::{Body, Mailbox, Mailboxes, MultiPart, MultiPartKind, SinglePart};
use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

/// Of the text in one encoded word, which may have 75 characters with all that belongs to it.
const ENCODED_BYTES_MAX: usize = 45;

impl Email {
    /// The recipients, each on a line: lettre makes one line of them all, and one may have 998 bytes.
    fn to_header(&self) -> HeaderValue {
        let one = |to: &Mailbox| {
            let mut headers = Headers::new();
            headers.set(To::from(Mailboxes::from(to.clone())));
            let line = headers.to_string();
            let line = line.strip_prefix("To: ").unwrap_or(&line);
            line.trim_end().to_owned()
        };
        let lines: Vec<String> = self.to.iter().map(one).collect();
        let raw: Vec<String> = self.to.iter().map(ToString::to_string).collect();
        HeaderValue::dangerous_new_pre_encoded(
            HeaderName::new_from_ascii_str("To"),
            raw.join(", "),
            lines.join(",\r\n "),
        )
    }

    /// The headers of the message, without the signature.
    pub(in crate::channel) fn head(&self, delivery: &Delivery) -> Vec<String> {
        let Payload::Message(message) = &delivery.payload else {
            return Vec::new();
        };
        let to = self.to.iter().map(|to| format!("RCPT TO: {to}"));
        // As of when it was decided.
        let decided = Duration::from_millis(delivery.created_ms.max(0) as u64);
        let at = SystemTime::UNIX_EPOCH + decided;
        let source = self.source(delivery, message, at).unwrap_or_default();
        let source = String::from_utf8_lossy(&source);
        let head = source.split("\r\n\r\n").next().unwrap_or_default();
        let signature = ["DKIM-Signature"];
        let mut told: Vec<String> = to.collect();
        let mut skipped = false;
        for line in head.lines() {
            // What begins with a space goes on with the header before it.
            if !line.starts_with([' ', '\t']) {
                skipped = signature.iter().any(|it| line.starts_with(it));
            }
            if !skipped {
                told.push(line.to_owned());
            }
        }
        told
    }

    /// The message as it goes over the wire now.
    pub(super) fn source(
        &self,
        delivery: &Delivery,
        message: &Message,
        now: SystemTime,
    ) -> Result<Vec<u8>, Failure> {
        let id = delivery.id;
        let subject = text::title(delivery, &message.title, SUBJECT_CHARS_MAX);
        let to = self.to.iter().map(|to| to.email.clone()).collect();
        let envelope = Envelope::new(Some(self.from.email.clone()), to)
            .map_err(|error| Failure::never(format!("the email cannot be built: {error}")))?;
        let mut email = lettre::Message::builder()
            .envelope(envelope)
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            // When it is handed on (RFC 5322, section 3.6.1); when its event came stands in the text.
            .date(now)
            .from(self.from.clone())
            .raw_header(subject_header(subject))
            // RFC 3834: no out-of-office answers, please.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".into(),
            ));
        if let Some(reply_to) = &self.reply_to {
            email = email.reply_to(reply_to.clone());
        }
        if let Some(url) = &self.list_unsubscribe {
            let [one, post] = HEADERS_OF_LISTS.map(HeaderName::new_from_ascii_str);
            // As it is: an address that is wrapped or encoded is none.
            let address = format!("<{url}>");
            email = email.raw_header(HeaderValue::dangerous_new_pre_encoded(
                one,
                address.clone(),
                address,
            ));
            if url.scheme() == "https" {
                let click = "List-Unsubscribe=One-Click".into();
                email = email.raw_header(HeaderValue::new(post, click));
            }
        }
        email = email.raw_header(self.to_header());
        let parts = MultiPart::builder()
            .kind(MultiPartKind::Alternative)
            // Quoted-printable never writes "=_", so no text can end its part and begin another
            // (RFC 2045, section 6.7).
            .boundary(format!("=_{id}"))
            .singlepart(part(ContentType::TEXT_PLAIN, plain(delivery, message)))
            .singlepart(part(ContentType::TEXT_HTML, html(delivery, message)));
        email
            .multipart(parts)
            .map(|mut email| {
                if let Some(dkim) = &self.dkim {
                    email.sign(dkim);
                }
                email.formatted()
            })
            .map_err(|error| Failure::never(format!("the email cannot be built: {error}")))
    }
}

/// A subject in which nothing is an encoded word (RFC 2047) but those that are made here: a reader
/// decodes what looks like one, line feeds and right-to-left overrides included. lettre encodes what is
/// not ASCII, and would leave it standing.
fn subject_header(subject: String) -> HeaderValue {
    let name = HeaderName::new_from_ascii_str("Subject");
    if !subject.contains("=?") {
        return HeaderValue::new(name, subject);
    }
    let mut encoded = String::new();
    let mut word = String::new();
    let mut end = |word: &mut String| {
        if !encoded.is_empty() {
            encoded.push_str("\r\n ");
        }
        let _ = write!(encoded, "=?utf-8?b?{}?=", BASE64.encode(&*word));
        word.clear();
    };
    for c in subject.chars() {
        if word.len() + c.len_utf8() > ENCODED_BYTES_MAX {
            end(&mut word);
        }
        word.push(c);
    }
    end(&mut word);
    HeaderValue::dangerous_new_pre_encoded(name, subject, encoded)
}

fn part(kind: ContentType, text: String) -> SinglePart {
    let body = Body::new_with_encoding(text, ContentTransferEncoding::QuotedPrintable)
        .expect("quoted-printable carries every text");
    SinglePart::builder().content_type(kind).body(body)
}

pub(in crate::channel) fn plain(delivery: &Delivery, message: &Message) -> String {
    let mut out = text::one_line(&message.title, usize::MAX);
    let body = text::lines(&message.text);
    if !body.is_empty() {
        let _ = write!(out, "\n\n{body}");
    }
    if !message.fields.is_empty() {
        out.push('\n');
    }
    for field in &message.fields {
        let name = text::one_line(&field.name, usize::MAX);
        let _ = write!(out, "\n{name}: {}", text::lines(&field.value));
    }
    if let Some((url, label)) = message.link.as_ref().and_then(text::web_link) {
        let _ = match label == url.as_str() {
            true => write!(out, "\n\n{url}"),
            false => write!(out, "\n\n{label}: {url}"),
        };
    }
    let _ = write!(out, "\n\n-- \n{}\n", footer(delivery));
    out
}

pub(in crate::channel) fn html(delivery: &Delivery, message: &Message) -> String {
    let line = |text: &str| html_escape(&text::one_line(text, usize::MAX));
    let block = |text: &str| html_escape(&text::lines(text));
    let mut out = format!(
        "<!doctype html>\n<html><body style=\"font-family:sans-serif\">\n<h2>{}</h2>\n",
        line(&message.title)
    );
    if !message.text.is_empty() {
        let text = block(&message.text);
        let _ = writeln!(out, "<p style=\"white-space:pre-wrap\">{text}</p>");
    }
    if !message.fields.is_empty() {
        out.push_str("<table>\n");
        for field in &message.fields {
            let _ = writeln!(
                out,
                "<tr><th align=\"left\" valign=\"top\">{}</th><td style=\"white-space:pre-wrap\">{}</td></tr>",
                line(&field.name),
                block(&field.value)
            );
        }
        out.push_str("</table>\n");
    }
    if let Some((url, label)) = message.link.as_ref().and_then(text::web_link) {
        let url = html_escape(url.as_str());
        let _ = writeln!(out, "<p><a href=\"{url}\">{}</a></p>", html_escape(&label));
    }
    let footer = html_escape(&footer(delivery));
    let _ = writeln!(out, "<p style=\"color:#666;font-size:small\">{footer}</p>");
    out.push_str("</body></html>\n");
    out
}

/// Why the reader got it, and of what.
fn footer(delivery: &Delivery) -> String {
    let about = &delivery.about;
    let (kind, time) = (&about.kind, &about.time);
    let event = text::one_line(&format!("{kind} from {}, {time}", about.source), usize::MAX);
    match text::one_line(&delivery.reason, 500) {
        reason if reason.is_empty() => event,
        reason => format!("{reason} · {event}"),
    }
}

fn html_escape(text: &str) -> String {
    escaped(text, usize::MAX, |c| match c {
        '"' => Some("&quot;"),
        '\'' => Some("&#39;"),
        c => angle_entity(c),
    })
}
