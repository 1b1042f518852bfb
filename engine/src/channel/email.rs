//! Email over SMTP: one message to several recipients, in plain text and HTML.
//!
//! Guarantees:
//! - With `starttls` or `tls`, neither a password nor a message goes out unencrypted; a password
//!   without either is taken only for a server on this machine.
//! - One refused recipient does not keep the message from the others, and whoever has it is never
//!   sent it again.
//! - The message is the same bytes at every try, with a Message-ID made from the delivery's id: where
//!   a try ends after the data was sent and before the server answered, nobody can know whether it
//!   arrived; it is sent again, and a mailbox that looks at the Message-ID shows it once.
//!
//! How recipients are kept apart: one transaction names all of them, and those the server refuses
//! are left out of it (a ready-made client gives up the whole transaction at the first one, and a
//! transaction for each recipient would cost as many copies). Then
//! - everyone accepted, or the others refused for good (5xx): sent, the refused are recorded;
//! - everyone refused for good: never tried again;
//! - someone put off (4xx), such as by greylisting or a full mailbox: to be tried again, and the
//!   attempt records who has it, so that the retry asks only for the rest. It asks again for those
//!   refused for good as well: a refusal repeated mails nobody, and the last attempt then tells all.
//!
//! What fails before the message's own transaction (connecting, TLS, the password) is tried again
//! whatever the code: it is about the server or the settings, not about this message, and the
//! schedule gives people the time to mend it.

use super::outgoing::{Cause, Outgoing};
use super::text::{self, angle_entity, escaped};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use hooksieve_sdk::wire::{Message, Payload};
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Body, Mailbox, MultiPart, MultiPartKind, SinglePart};
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::ClientId;
use std::collections::HashSet;
use std::error::Error as _;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

const RECIPIENTS_MAX: usize = 50;
const SUBJECT_CHARS_MAX: usize = 200;
/// How much of a server's words is kept for a refused recipient.
const REPLY_CHARS_MAX: usize = 200;
/// How long a connection waits for the next message, and how many do.
const IDLE: Duration = Duration::from_secs(20);
const IDLE_MAX: usize = 2;

/// What a tenant file says of an email channel.
pub struct Settings {
    pub host: String,
    pub port: u16,
    pub tls: Tls,
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// "Hooks <hooks@example.com>", or the address alone.
    pub from: String,
    pub to: Vec<String>,
    pub reply_to: Option<String>,
    pub timeout_ms: u64,
}

/// How the connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Upgraded before anything else is said; a server that cannot is not spoken to.
    StartTls,
    /// TLS from the first byte.
    Tls,
    None,
}

/// An email channel with checked settings.
pub struct Email {
    host: String,
    port: u16,
    tls: Tls,
    credentials: Option<Credentials>,
    from: Mailbox,
    to: Vec<Mailbox>,
    reply_to: Option<Mailbox>,
    timeout: Duration,
    idle: Arc<Mutex<Idle>>,
}

/// Connections that wait for the next message.
#[derive(Default)]
struct Idle {
    parked: Vec<(AsyncSmtpConnection, Instant)>,
    /// A task is there that closes those which waited too long.
    watched: bool,
}

/// What the server made of the recipients of one transaction.
#[derive(Default)]
struct Recipients {
    accepted: Vec<String>,
    /// "who: code text", for good.
    refused: Vec<String>,
    /// The same, for now.
    put_off: Vec<String>,
    code: Option<u16>,
}

impl Email {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the password.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let local = matches!(settings.host.as_str(), "localhost" | "127.0.0.1" | "::1");
        let credentials = match (settings.username, settings.password) {
            (Some(_), Some(_)) if settings.tls == Tls::None && !local => {
                return Err(format!(
                    "the password would travel unencrypted to {:?}; set tls to \"starttls\" or \"tls\"",
                    settings.host
                ));
            }
            (Some(user), Some(password)) => {
                Some(Credentials::new(user, password.expose().to_owned()))
            }
            (None, None) => None,
            (Some(_), None) => return Err("there is a username and no password".into()),
            (None, Some(_)) => return Err("there is a password and no username".into()),
        };
        if settings.host.is_empty() || settings.host.contains(|c: char| c.is_whitespace()) {
            return Err(format!("{:?} is not a host", settings.host));
        }
        if settings.to.is_empty() {
            return Err("there is no recipient".into());
        }
        if settings.to.len() > RECIPIENTS_MAX {
            return Err(format!(
                "there are {} recipients, and at most {RECIPIENTS_MAX} are taken; use a mailing list",
                settings.to.len()
            ));
        }
        let to = settings.to.iter().map(|to| mailbox(to));
        Ok(Self {
            from: mailbox(&settings.from)?,
            to: to.collect::<Result<_, _>>()?,
            reply_to: settings.reply_to.as_deref().map(mailbox).transpose()?,
            host: settings.host,
            port: settings.port,
            tls: settings.tls,
            credentials,
            timeout: Duration::from_millis(settings.timeout_ms),
            idle: Arc::default(),
        })
    }

    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let Payload::Message(message) = &delivery.payload else {
            return Err(Failure::never("email takes a message, not a body"));
        };
        let have_it: HashSet<&str> = delivery
            .attempts
            .iter()
            .flat_map(|attempt| attempt.accepted.iter().map(String::as_str))
            .collect();
        let to: Vec<&Mailbox> = self
            .to
            .iter()
            .filter(|to| !have_it.contains(to.email.as_ref() as &str))
            .collect();
        if to.is_empty() {
            // Those who did not have it were taken out of the settings since.
            return Ok(Sent::default());
        }
        let source = self.source(delivery, message)?;
        let limit = tokio::time::timeout(self.timeout, self.transact(client, &to, &source));
        let recipients = limit.await.unwrap_or_else(|_| {
            Err(Failure::later(format!(
                "{} did not take the message within {:?}",
                self.host, self.timeout
            )))
        })?;
        self.outcome(recipients, !have_it.is_empty())
    }

    /// What the recipients' lots come to.
    fn outcome(&self, mut of: Recipients, some_have_it: bool) -> Result<Sent, Failure> {
        let reached = some_have_it || !of.accepted.is_empty();
        if of.put_off.is_empty() && reached {
            return Ok(Sent {
                status: of.code,
                refused: of.refused,
            });
        }
        let retry = match of.put_off.is_empty() {
            true => Retry::Never,
            false => Retry::Later,
        };
        let all = of.accepted.len() + of.refused.len() + of.put_off.len();
        let error = match (of.put_off.first(), of.refused.first()) {
            (Some(first), _) => format!(
                "{} put off {} of {all} recipients: {first}",
                self.host,
                of.put_off.len()
            ),
            (None, Some(first)) => format!("{} refused every recipient: {first}", self.host),
            (None, None) => format!("{} was given no recipient", self.host),
        };
        of.refused.append(&mut of.put_off);
        Err(Failure {
            status: of.code,
            error,
            retry,
            accepted: of.accepted,
            refused: of.refused,
        })
    }

    /// One SMTP transaction, over a connection that waited or a new one.
    async fn transact(
        &self,
        client: &Outgoing,
        to: &[&Mailbox],
        source: &[u8],
    ) -> Result<Recipients, Failure> {
        let mut connection = match self.unpark().await {
            Some(connection) => connection,
            None => self.connect(client).await?,
        };
        let recipients = self.converse(&mut connection, to, source).await?;
        // Only after a whole conversation is the connection in a known state.
        self.park(connection);
        Ok(recipients)
    }

    async fn connect(&self, client: &Outgoing) -> Result<AsyncSmtpConnection, Failure> {
        let me = ClientId::default();
        let failed = |what: &str, error: &lettre::transport::smtp::Error| {
            let cause = Cause::of(error);
            let text = text::one_line(&cause.text, REPLY_CHARS_MAX);
            let code = error.status().map(u16::from);
            let error = match code {
                _ if cause.certificate => {
                    format!("the certificate of {} is not trusted: {text}", self.host)
                }
                Some(code) => format!("{} {what}: {code} {text}", self.host),
                None => format!("no connection to {}: {text}", self.host),
            };
            Failure::new(code, error, Retry::Later)
        };
        let tls = match self.tls {
            Tls::None => None,
            Tls::StartTls | Tls::Tls => Some(client.smtp_tls(&self.host)?),
        };
        let (wrapper, upgrade) = match self.tls {
            Tls::StartTls => (None, tls),
            Tls::Tls | Tls::None => (tls, None),
        };
        let server = (self.host.as_str(), self.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(server, Some(self.timeout), &me, wrapper, None)
                .await
                .map_err(|error| failed("turned the connection away", &error))?;
        if let Some(tls) = upgrade {
            if !connection.can_starttls() {
                return Err(Failure::later(format!(
                    "{} does not offer STARTTLS, so nothing was sent",
                    self.host
                )));
            }
            connection
                .starttls(tls, &me)
                .await
                .map_err(|error| failed("refused STARTTLS", &error))?;
        }
        if let Some(credentials) = &self.credentials {
            connection
                .auth(DEFAULT_MECHANISMS, credentials)
                .await
                .map_err(|error| match error.is_client() {
                    true => Failure::later(format!(
                        "{} offers no way to log in that is known here (PLAIN, LOGIN)",
                        self.host
                    )),
                    false => failed("refused the username or password", &error),
                })?;
        }
        Ok(connection)
    }

    async fn converse(
        &self,
        connection: &mut AsyncSmtpConnection,
        to: &[&Mailbox],
        source: &[u8],
    ) -> Result<Recipients, Failure> {
        // A refusal here is about the message or its sender, for all recipients alike.
        let refused = |what: &str, error: lettre::transport::smtp::Error| {
            let Some((code, text)) = reply(&error) else {
                return Failure::later(format!(
                    "the connection to {} broke: {}",
                    self.host,
                    text::one_line(&Cause::of(&error).text, REPLY_CHARS_MAX)
                ));
            };
            let retry = match error.is_permanent() {
                true => Retry::Never,
                false => Retry::Later,
            };
            Failure::new(
                Some(code),
                format!("{} refused {what}: {code} {text}", self.host),
                retry,
            )
        };
        let from = Mail::new(Some(self.from.email.clone()), Vec::new());
        connection
            .command(from)
            .await
            .map_err(|error| refused("the sender", error))?;
        let mut recipients = Recipients::default();
        for to in to {
            let address = to.email.to_string();
            match connection
                .command(Rcpt::new(to.email.clone(), Vec::new()))
                .await
            {
                Ok(_) => recipients.accepted.push(address),
                Err(error) => {
                    let Some((code, text)) = reply(&error) else {
                        return Err(refused("a recipient", error));
                    };
                    if code == 421 {
                        // The server is closing the connection: nobody has anything yet.
                        return Err(refused("further commands", error));
                    }
                    let line = format!("{address}: {code} {text}");
                    if error.is_permanent() {
                        recipients.refused.push(line);
                    } else {
                        recipients.put_off.push(line);
                    }
                    recipients.code = Some(code);
                }
            }
        }
        if recipients.accepted.is_empty() {
            connection
                .command(Rset)
                .await
                .map_err(|error| refused("a new beginning", error))?;
            return Ok(recipients);
        }
        connection
            .command(Data)
            .await
            .map_err(|error| refused("the message", error))?;
        let answer = connection
            .message(source)
            .await
            .map_err(|error| refused("the message", error))?;
        recipients.code = Some(answer.code().into());
        Ok(recipients)
    }

    /// A connection that waited and still answers.
    async fn unpark(&self) -> Option<AsyncSmtpConnection> {
        loop {
            let (mut connection, _) = locked(&self.idle).parked.pop()?;
            if connection.test_connected().await {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next message, or drops it where enough are kept. One task for all
    /// of a channel's connections closes them when no message came: thousands of channels would
    /// else each keep a socket at their mail server for nothing.
    fn park(&self, connection: AsyncSmtpConnection) {
        let mut idle = locked(&self.idle);
        if idle.parked.len() >= IDLE_MAX {
            return;
        }
        idle.parked.push((connection, Instant::now()));
        if std::mem::replace(&mut idle.watched, true) {
            return;
        }
        let watched = Arc::clone(&self.idle);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE).await;
                let (expired, last): (Vec<_>, bool) = {
                    let mut idle = locked(&watched);
                    let parked = std::mem::take(&mut idle.parked);
                    let (expired, fresh) = parked
                        .into_iter()
                        .partition(|(_, since)| since.elapsed() >= IDLE);
                    idle.parked = fresh;
                    idle.watched = !idle.parked.is_empty();
                    (expired, !idle.watched)
                };
                for (mut connection, _) in expired {
                    // Politeness; the socket closes either way.
                    let _ = tokio::time::timeout(IDLE, connection.quit()).await;
                }
                if last {
                    return;
                }
            }
        });
    }

    /// The message as it goes over the wire.
    fn source(&self, delivery: &Delivery, message: &Message) -> Result<Vec<u8>, Failure> {
        let id = delivery.id;
        let subject = match text::one_line(&message.title, SUBJECT_CHARS_MAX) {
            subject if subject.is_empty() => delivery.about.kind.clone(),
            subject => subject,
        };
        let decided = Duration::from_millis(delivery.created_ms.max(0) as u64);
        let mut email = lettre::Message::builder()
            .message_id(Some(format!("<{id}@{}>", self.from.email.domain())))
            .date(SystemTime::UNIX_EPOCH + decided)
            .from(self.from.clone())
            .subject(subject)
            // RFC 3834: no out-of-office answers, please.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".into(),
            ));
        if let Some(reply_to) = &self.reply_to {
            email = email.reply_to(reply_to.clone());
        }
        for to in &self.to {
            email = email.to(to.clone());
        }
        let parts = MultiPart::builder()
            .kind(MultiPartKind::Alternative)
            // Quoted-printable never writes "=_", so no text can end its part and begin another
            // (RFC 2045, section 6.7).
            .boundary(format!("=_{id}"))
            .singlepart(part(ContentType::TEXT_PLAIN, plain(delivery, message)))
            .singlepart(part(ContentType::TEXT_HTML, html(delivery, message)));
        email
            .multipart(parts)
            .map(|email| email.formatted())
            .map_err(|error| Failure::never(format!("the email cannot be built: {error}")))
    }
}

fn locked(idle: &Mutex<Idle>) -> std::sync::MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mailbox(text: &str) -> Result<Mailbox, String> {
    let mailbox: Mailbox = text
        .parse()
        .map_err(|error| format!("{text:?} is not an email address: {error}"))?;
    // Few servers speak SMTPUTF8, and one that does not would only show at the first event.
    if !(mailbox.email.as_ref() as &str).is_ascii() {
        return Err(format!(
            "{text:?} has letters outside of ASCII in its address; write its domain in the xn-- form"
        ));
    }
    Ok(mailbox)
}

/// The code and the words of a server's refusal; `None` when the error is something else.
fn reply(error: &lettre::transport::smtp::Error) -> Option<(u16, String)> {
    let code = error.status()?.into();
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    Some((code, text::one_line(&text, REPLY_CHARS_MAX)))
}

fn part(kind: ContentType, text: String) -> SinglePart {
    let body = Body::new_with_encoding(text, ContentTransferEncoding::QuotedPrintable)
        .expect("quoted-printable carries every text");
    SinglePart::builder().content_type(kind).body(body)
}

fn plain(delivery: &Delivery, message: &Message) -> String {
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

fn html(delivery: &Delivery, message: &Message) -> String {
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
    let event = format!("{} from {}, {}", about.kind, about.source, about.time);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::tests::{delivery, hostile_message};
    use crate::store::Attempt;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    /// What a scripted mail server does: how it answers each recipient, and the data.
    #[derive(Clone, Default)]
    struct Script {
        recipients: Vec<(&'static str, &'static str)>,
        sender: Option<&'static str>,
        /// `None` closes the connection once the data has come.
        data: Option<&'static str>,
    }

    /// All that clients said, by line, and every message as it was received.
    #[derive(Default)]
    struct Heard {
        connections: usize,
        commands: Vec<String>,
        messages: Vec<String>,
    }

    async fn server(script: Script) -> (u16, Arc<Mutex<Heard>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let all = Arc::clone(&heard);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                all.lock().unwrap().connections += 1;
                tokio::spawn(talk(socket, script.clone(), Arc::clone(&all)));
            }
        });
        (port, heard)
    }

    async fn talk(socket: tokio::net::TcpStream, script: Script, heard: Arc<Mutex<Heard>>) {
        let (read, mut write) = socket.into_split();
        let mut lines = BufReader::new(read).lines();
        write.write_all(b"220 test ESMTP\r\n").await.unwrap();
        while let Ok(Some(line)) = lines.next_line().await {
            heard.lock().unwrap().commands.push(line.clone());
            let answer = match line.split(' ').next().unwrap() {
                "EHLO" => "250-test\r\n250 8BITMIME",
                "MAIL" => script.sender.unwrap_or("250 sender ok"),
                "RCPT" => script
                    .recipients
                    .iter()
                    .find(|(who, _)| line.contains(who))
                    .map_or("250 recipient ok", |(_, answer)| answer),
                "DATA" => {
                    write.write_all(b"354 go on\r\n").await.unwrap();
                    let mut message = String::new();
                    while let Ok(Some(line)) = lines.next_line().await {
                        if line == "." {
                            break;
                        }
                        message.push_str(line.strip_prefix('.').unwrap_or(&line));
                        message.push('\n');
                    }
                    heard.lock().unwrap().messages.push(message);
                    match script.data {
                        Some(answer) => answer,
                        None => return,
                    }
                }
                _ => "250 ok",
            };
            write
                .write_all(format!("{answer}\r\n").as_bytes())
                .await
                .unwrap();
        }
    }

    fn settings(port: u16, to: &[&str]) -> Settings {
        Settings {
            host: "127.0.0.1".into(),
            port,
            tls: Tls::None,
            username: None,
            password: None,
            from: "Hooks <hooks@example.com>".into(),
            to: to.iter().map(|&to| to.into()).collect(),
            reply_to: Some("Team <team@example.com>".into()),
            timeout_ms: 2000,
        }
    }

    fn email(port: u16) -> Email {
        let to = [
            "ann@example.com",
            "Bob <bob@example.com>",
            "eve@example.com",
        ];
        Email::new(settings(port, &to)).unwrap()
    }

    async fn send(email: &Email, delivery: &Delivery) -> Result<Sent, Failure> {
        email.send(&Outgoing::new(None).unwrap(), delivery).await
    }

    fn hostile() -> Delivery {
        delivery(Payload::Message(hostile_message()))
    }

    fn attempt_of(failure: &Failure) -> Attempt {
        Attempt {
            at_ms: 0,
            duration_ms: 0,
            status: failure.status,
            error: Some(failure.error.clone()),
            refused: failure.refused.clone(),
            accepted: failure.accepted.clone(),
        }
    }

    fn source(delivery: &Delivery) -> String {
        let Payload::Message(message) = &delivery.payload else {
            panic!("not a message");
        };
        String::from_utf8(email(25).source(delivery, message).unwrap()).unwrap()
    }

    #[test]
    fn a_hostile_message_stays_text() {
        insta::assert_snapshot!(source(&hostile()).replace("\r\n", "\n"));
    }

    #[test]
    fn no_title_makes_a_header() {
        let plain = source(&hostile());
        let names = |source: &str| -> Vec<String> {
            let (head, _) = source.split_once("\r\n\r\n").unwrap();
            head.split("\r\n")
                .filter(|line| !line.starts_with(' '))
                .map(|line| line.split(':').next().unwrap().to_owned())
                .collect()
        };
        for title in [
            "a\r\nBcc: b@example.com",
            "a\nBcc: b@example.com",
            "a\rBcc: b@example.com",
            "a\r\n\r\n<script>",
            "a\0b\u{0b}c\u{85}d\u{2028}Bcc: e",
            "\r\n",
            "",
            "🚨\r\nBcc: b@example.com",
            "مرحبا \u{202e}dlrow",
            "=?utf-8?q?=0D=0ABcc:_b=40example.com?=",
            &"x".repeat(100_000),
            &"x y ".repeat(10_000),
            &"🚨".repeat(10_000),
        ] {
            let mut message = hostile_message();
            message.title = title.to_owned();
            let source = source(&delivery(Payload::Message(message)));
            assert_eq!(names(&source), names(&plain), "{title:?}");
            let (head, _) = source.split_once("\r\n\r\n").unwrap();
            assert!(!head.replace("\r\n", "").contains(['\r', '\n', '\0']));
            for line in source.split("\r\n") {
                assert!(line.len() <= 998, "{title:?}: a line of {}", line.len());
            }
        }
    }

    #[test]
    fn no_text_ends_its_part() {
        let id = hostile().id;
        let mut message = hostile_message();
        message.text = format!("--=_{id}\r\nContent-Type: text/html\r\n\r\n<b>\r\n--=_{id}--");
        let source = source(&delivery(Payload::Message(message)));
        assert_eq!(source.matches(&format!("\r\n--=_{id}")).count(), 3);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = settings(25, &["ann@example.com"]);
            change(&mut settings);
            Email::new(settings).err().unwrap()
        };
        for (change, error) in [
            (
                (|it| it.to.clear()) as fn(&mut Settings),
                "there is no recipient",
            ),
            (
                |it| it.host = "mail example".into(),
                "\"mail example\" is not a host",
            ),
            (
                |it| it.to = vec!["ann@example.com".into(); 51],
                "there are 51 recipients, and at most 50 are taken; use a mailing list",
            ),
            (
                |it| it.username = Some("ann".into()),
                "there is a username and no password",
            ),
            (
                |it| it.password = Some(Secret::new("hidden")),
                "there is a password and no username",
            ),
            (
                |it| it.from = "ann@exämple.com".into(),
                "\"ann@exämple.com\" has letters outside of ASCII in its address; write its domain in the xn-- form",
            ),
            (
                |it| {
                    it.host = "mail.example.com".into();
                    it.username = Some("ann".into());
                    it.password = Some(Secret::new("hidden"));
                },
                "the password would travel unencrypted to \"mail.example.com\"; set tls to \"starttls\" or \"tls\"",
            ),
        ] {
            assert_eq!(refused(change), error);
        }
        for bad in [
            "ann",
            "ann@",
            "ann@example.com\r\nBcc: b@example.com",
            "a@b, c@d",
        ] {
            assert!(mailbox(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn one_message_goes_to_all_and_the_connection_serves_the_next() {
        let (port, heard) = server(Script {
            data: Some("250 queued"),
            ..Script::default()
        })
        .await;
        let email = email(port);
        let delivery = hostile();
        for _ in 0..2 {
            let sent = send(&email, &delivery).await.unwrap();
            assert_eq!((sent.status, sent.refused), (Some(250), Vec::new()));
        }
        let heard = heard.lock().unwrap();
        assert_eq!((heard.connections, heard.messages.len()), (1, 2));
        // What arrives is what was built, dots at line starts included, and the same every time.
        let Payload::Message(message) = &delivery.payload else {
            panic!("not a message");
        };
        let source = email.source(&delivery, message).unwrap();
        let source = String::from_utf8(source).unwrap().replace("\r\n", "\n");
        for message in &heard.messages {
            assert_eq!(message.trim_end(), source.trim_end());
        }
    }

    #[tokio::test]
    async fn one_refusal_keeps_the_message_from_nobody_else() {
        let (port, heard) = server(Script {
            recipients: vec![("bob", "550-5.1.1 no such\r\n550 5.1.1 user")],
            data: Some("250 queued"),
            ..Script::default()
        })
        .await;
        let sent = send(&email(port), &hostile()).await.unwrap();
        assert_eq!(sent.status, Some(250));
        assert_eq!(sent.refused, ["bob@example.com: 550 5.1.1 no such user"]);
        assert_eq!(heard.lock().unwrap().messages.len(), 1);
    }

    #[tokio::test]
    async fn refused_by_all_is_final_and_the_connection_stays_good() {
        let (port, heard) = server(Script {
            recipients: vec![("example.com", "550 no")],
            ..Script::default()
        })
        .await;
        let email = email(port);
        for _ in 0..2 {
            let failure = send(&email, &hostile()).await.unwrap_err();
            assert_eq!((failure.status, failure.retry), (Some(550), Retry::Never));
            assert_eq!(
                failure.error,
                "127.0.0.1 refused every recipient: ann@example.com: 550 no"
            );
            assert_eq!(failure.refused.len(), 3);
        }
        let heard = heard.lock().unwrap();
        assert_eq!((heard.connections, heard.messages.len()), (1, 0));
    }

    #[tokio::test]
    async fn who_has_it_is_not_mailed_again() {
        let script = |recipients| Script {
            recipients,
            data: Some("250 queued"),
            ..Script::default()
        };
        let refusals = vec![("bob", "451 later"), ("eve", "550 no")];
        let (port, heard) = server(script(refusals)).await;
        let mut delivery = hostile();
        let failure = send(&email(port), &delivery).await.unwrap_err();
        assert_eq!(failure.retry, Retry::Later);
        assert_eq!(
            failure.error,
            "127.0.0.1 put off 1 of 3 recipients: bob@example.com: 451 later"
        );
        assert_eq!(failure.accepted, ["ann@example.com"]);
        assert_eq!(
            failure.refused,
            ["eve@example.com: 550 no", "bob@example.com: 451 later"]
        );
        assert_eq!(heard.lock().unwrap().messages.len(), 1);

        // Now the server takes Bob too: Ann is not asked for again.
        delivery.attempts.push(attempt_of(&failure));
        let (port, heard) = server(script(vec![("eve", "550 no")])).await;
        let sent = send(&email(port), &delivery).await.unwrap();
        assert_eq!(sent.refused, ["eve@example.com: 550 no"]);
        let recipients: Vec<_> = {
            let heard = heard.lock().unwrap();
            let rcpt = heard.commands.iter().filter(|it| it.starts_with("RCPT"));
            rcpt.cloned().collect()
        };
        assert_eq!(
            recipients,
            ["RCPT TO:<bob@example.com>", "RCPT TO:<eve@example.com>"]
        );

        // Or it refuses Bob for good: it is delivered all the same, as Ann has it.
        let (port, heard) = server(script(vec![("example.com", "550 no")])).await;
        let sent = send(&email(port), &delivery).await.unwrap();
        assert_eq!(sent.refused.len(), 2);
        assert_eq!(heard.lock().unwrap().messages.len(), 0);
    }

    #[tokio::test]
    async fn what_the_server_says_of_the_message_decides() {
        for (sender, data, status, retry, error) in [
            (
                Some("550 not you"),
                None,
                Some(550),
                Retry::Never,
                "127.0.0.1 refused the sender: 550 not you",
            ),
            (
                Some("451 busy"),
                None,
                Some(451),
                Retry::Later,
                "127.0.0.1 refused the sender: 451 busy",
            ),
            (
                None,
                Some("554 spam"),
                Some(554),
                Retry::Never,
                "127.0.0.1 refused the message: 554 spam",
            ),
            (
                None,
                Some("452 full"),
                Some(452),
                Retry::Later,
                "127.0.0.1 refused the message: 452 full",
            ),
            (
                None,
                None,
                None,
                Retry::Later,
                "the connection to 127.0.0.1 broke: incomplete response",
            ),
        ] {
            let (port, _) = server(Script {
                sender,
                data,
                ..Script::default()
            })
            .await;
            let failure = send(&email(port), &hostile()).await.unwrap_err();
            assert_eq!((failure.status, failure.retry), (status, retry));
            assert_eq!(failure.error, error);
            assert!(failure.accepted.is_empty());
        }
    }

    #[tokio::test]
    async fn a_server_without_starttls_gets_nothing() {
        let (port, heard) = server(Script::default()).await;
        let mut settings = settings(port, &["ann@example.com"]);
        settings.tls = Tls::StartTls;
        settings.username = Some("ann".into());
        settings.password = Some(Secret::new("hidden"));
        let failure = send(&Email::new(settings).unwrap(), &hostile())
            .await
            .unwrap_err();
        assert_eq!(failure.retry, Retry::Later);
        assert_eq!(
            failure.error,
            "127.0.0.1 does not offer STARTTLS, so nothing was sent"
        );
        assert_eq!(heard.lock().unwrap().commands, ["EHLO [127.0.0.1]"]);
    }

    #[tokio::test]
    async fn a_silent_server_is_left_in_time() {
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut settings = settings(silent.local_addr().unwrap().port(), &["ann@example.com"]);
        settings.timeout_ms = 100;
        let failure = send(&Email::new(settings).unwrap(), &hostile())
            .await
            .unwrap_err();
        assert_eq!(failure.retry, Retry::Later);
        assert_eq!(
            failure.error,
            "127.0.0.1 did not take the message within 100ms"
        );
    }
}
