//! Email over SMTP: one message to several recipients, in plain text and HTML.
//!
//! Guarantees:
//! - With `starttls` or `tls`, neither a password nor a message goes out unencrypted; a password
//!   without either is taken only for a server on this machine.
//! - One refused recipient does not keep the message from the others, and whoever has it is never
//!   sent it again.
//! - The message is the same bytes at every try (but for its `Date` and its DKIM signature, which are of
//!   the moment it is sent), with a Message-ID made from the delivery's id: where a try ends after the
//!   data was sent and before the server answered, nobody can know whether it arrived; it is sent again,
//!   and a mailbox that looks at the Message-ID shows it once.
//! - A server's reply counts by its code, whatever its text is.
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

mod connection;
pub mod dkim;
pub(super) mod message;
mod session;
#[cfg(test)]
mod tests;

use super::answer::Secrets;
use super::outgoing::{Outgoing, is_name};
use super::{Failure, Retry, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use connection::Connection;
use hooksieve_sdk::wire::Payload;
use lettre::message::Mailbox;
use lettre::message::dkim::DkimConfig;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;
use url::Url;

const RECIPIENTS_MAX: usize = 50;
const SUBJECT_CHARS_MAX: usize = 200;
/// One line of a header may have 998 (RFC 5322, section 2.1.1): what cannot be folded has to fit.
const UNSUBSCRIBE_BYTES_MAX: usize = 900;
const MAILBOX_BYTES_MAX: usize = 900;
/// Of a host with many addresses so many are tried.
const ADDRESSES_MAX: usize = 8;
/// RFC 2369, and RFC 8058, which wants both signed.
const HEADERS_OF_LISTS: [&str; 2] = ["List-Unsubscribe", "List-Unsubscribe-Post"];
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
    /// Where a reader says that he wants no more: an `https` or a `mailto` address.
    pub list_unsubscribe: Option<String>,
    pub dkim: Option<dkim::Settings>,
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
    login: Option<(String, Secret)>,
    from: Mailbox,
    to: Vec<Mailbox>,
    reply_to: Option<Mailbox>,
    list_unsubscribe: Option<Url>,
    dkim: Option<Box<DkimConfig>>,
    pub(super) timeout: Duration,
    idle: Arc<Mutex<Idle>>,
}

/// Connections that wait for the next message.
#[derive(Default)]
struct Idle {
    parked: Vec<(Connection, Instant)>,
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
        let host = host(&settings.host)?;
        let local = matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1");
        let login = match (settings.username, settings.password) {
            (Some(_), Some(_)) if settings.tls == Tls::None && !local => {
                return Err(format!(
                    "the password would travel unencrypted to {host:?}; set tls to \"starttls\" or \"tls\""
                ));
            }
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (Some(_), None) => return Err("there is a username and no password".into()),
            (None, Some(_)) => return Err("there is a password and no username".into()),
        };
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
            list_unsubscribe: settings
                .list_unsubscribe
                .as_deref()
                .map(unsubscribe)
                .transpose()?,
            dkim: settings
                .dkim
                .as_ref()
                .map(dkim::config)
                .transpose()?
                .map(Box::new),
            host,
            port: settings.port,
            tls: settings.tls,
            login,
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
        let have_it: HashSet<&str> = delivery.accepted().collect();
        let to: Vec<&Mailbox> = self
            .to
            .iter()
            .filter(|to| !have_it.contains(to.email.as_ref() as &str))
            .collect();
        if to.is_empty() {
            // Those who did not have it were taken out of the settings since.
            return Ok(Sent::default());
        }
        let source = self.source(delivery, message, SystemTime::now())?;
        let sent = AtomicBool::new(false);
        let transaction = self.transact(client, &to, &source, &sent);
        let limit = tokio::time::timeout(self.timeout, transaction);
        let recipients = limit.await.unwrap_or_else(|_| {
            let error = format!(
                "{} did not take the message within {:?}",
                self.host, self.timeout
            );
            Err(Failure::later(error).ambiguous(sent.load(Ordering::Relaxed)))
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
            accepted: of.accepted,
            refused: of.refused,
            ..Failure::new(of.code, error, retry)
        })
    }

    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        if let Some((user, password)) = &self.login {
            secrets.login(user, password.expose());
        }
    }
}

/// The host as it is looked up: a name, or an address without the brackets that it has in URLs.
fn host(text: &str) -> Result<String, String> {
    let inner = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    match inner {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => return Ok(inner.to_owned()),
        None if text.parse::<IpAddr>().is_ok() || is_name(text) => return Ok(text.to_owned()),
        _ => {}
    }
    Err(format!(
        "{text:?} is not a host: it takes a name (its xn-- form where it has one) or an address, and the port stands in `port`"
    ))
}

fn unsubscribe(text: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|error| format!("the list_unsubscribe address is not one: {error}"))?;
    if !matches!(url.scheme(), "https" | "mailto") {
        return Err(format!(
            "the list_unsubscribe address begins with {:?}, and only https and mailto are taken",
            url.scheme()
        ));
    }
    if url.scheme() == "mailto" {
        mailbox(url.path())?;
    }
    // What stands between angle brackets, among commas (RFC 2369, section 2).
    let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b',');
    if url.as_str().len() > UNSUBSCRIBE_BYTES_MAX || !url.as_str().bytes().all(fits) {
        return Err(format!(
            "the list_unsubscribe address may have {UNSUBSCRIBE_BYTES_MAX} bytes, and neither `<`, `>` nor a comma"
        ));
    }
    Ok(url)
}

fn mailbox(text: &str) -> Result<Mailbox, String> {
    let mailbox: Mailbox = text
        .parse()
        .map_err(|error| format!("{text:?} is not an email address: {error}"))?;
    if text.len() > MAILBOX_BYTES_MAX {
        return Err(format!(
            "an email address has {} bytes with its name, and at most {MAILBOX_BYTES_MAX} are taken",
            text.len()
        ));
    }
    // Few servers speak SMTPUTF8, and one that does not would only show at the first event.
    if !(mailbox.email.as_ref() as &str).is_ascii() {
        return Err(format!(
            "{text:?} has letters outside of ASCII in its address; write its domain in the xn-- form"
        ));
    }
    Ok(mailbox)
}
