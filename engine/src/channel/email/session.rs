//! The conversation with a mail server: one transaction over a connection that waited or a new one.

use super::bounded::Bounded;
use super::{Email, IDLE, IDLE_MAX, Idle, REPLY_CHARS_MAX, Recipients, Tls};
use crate::channel::outgoing::{Cause, Outgoing};
use crate::channel::{Failure, Retry, text};
use lettre::message::Mailbox;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::ClientId;
use rustls::pki_types::ServerName;
use std::error::Error as _;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

impl Email {
    /// One SMTP transaction, over a connection that waited or a new one. `sent` is set before the
    /// message itself goes out: from then on, only the server knows whether it took it.
    pub(super) async fn transact(
        &self,
        client: &Outgoing,
        to: &[&Mailbox],
        source: &[u8],
        sent: &AtomicBool,
    ) -> Result<Recipients, Failure> {
        let mut connection = match self.unpark().await {
            Some(connection) => connection,
            None => self.connect(client).await?,
        };
        let recipients = self.converse(&mut connection, to, source, sent).await?;
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
            let sentence = match code {
                _ if cause.certificate => {
                    format!("the certificate of {} is not trusted: {text}", self.host)
                }
                Some(code) => format!("{} {what}: {code} {text}", self.host),
                None => format!("no connection to {}: {text}", self.host),
            };
            let failure = Failure::new(code, sentence, Retry::Later);
            match code {
                Some(_) => failure.answered(words(error)),
                None => failure,
            }
        };
        let upgrade = match self.tls {
            Tls::StartTls => Some(client.smtp_tls(&self.host)?),
            Tls::Tls | Tls::None => None,
        };
        let stream = self.stream(client).await?;
        let mut connection = AsyncSmtpConnection::connect_with_transport(stream, &me)
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
        if let Some((user, password)) = &self.login {
            let credentials = Credentials::new(user.clone(), password.expose().to_owned());
            connection
                .auth(DEFAULT_MECHANISMS, &credentials)
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

    /// A connection to the server, in TLS where that comes first.
    async fn stream(&self, client: &Outgoing) -> Result<Box<dyn AsyncTokioStream>, Failure> {
        let broken = |error: &dyn std::error::Error| {
            Failure::later(format!("no connection to {}: {error}", self.host))
        };
        let addresses = client.resolve(&self.host, self.port).await?;
        let connecting = async {
            let stream = TcpStream::connect(addresses.as_slice()).await?;
            let peer = stream.peer_addr()?;
            Ok::<_, io::Error>((stream, peer))
        };
        let connected = timeout(self.timeout, connecting).await;
        let late = || {
            let within = self.timeout;
            Failure::later(format!("no connection to {} within {within:?}", self.host))
        };
        let (stream, peer) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                let text = text::one_line(&Cause::of(&error).text, REPLY_CHARS_MAX);
                return Err(broken(&io::Error::other(text)));
            }
            Err(_) => return Err(late()),
        };
        if self.tls != Tls::Tls {
            return Ok(Box::new(Bounded::new(stream, peer)));
        }
        let config = client.tls().map_err(Failure::later)?;
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|error| Failure::never(format!("{}: {error}", self.host)))?;
        let shaking = TlsConnector::from(config).connect(name, stream);
        match timeout(self.timeout, shaking).await {
            Ok(Ok(stream)) => Ok(Box::new(Bounded::new(stream, peer))),
            Ok(Err(error)) => {
                let cause = Cause::of(&error);
                let text = text::one_line(&cause.text, REPLY_CHARS_MAX);
                Err(match cause.certificate {
                    true => Failure::later(format!(
                        "the certificate of {} is not trusted: {text}",
                        self.host
                    )),
                    false => broken(&io::Error::other(text)),
                })
            }
            Err(_) => Err(late()),
        }
    }

    async fn converse(
        &self,
        connection: &mut AsyncSmtpConnection,
        to: &[&Mailbox],
        source: &[u8],
        sent: &AtomicBool,
    ) -> Result<Recipients, Failure> {
        // A refusal here is about the message or its sender, for all recipients alike.
        let refused = |what: &str, error: lettre::transport::smtp::Error| {
            let Some((code, text)) = reply(&error) else {
                let error = format!(
                    "the connection to {} broke: {}",
                    self.host,
                    text::one_line(&Cause::of(&error).text, REPLY_CHARS_MAX)
                );
                return Failure::later(error).ambiguous(sent.load(Ordering::Relaxed));
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
            .answered(words(&error))
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
        sent.store(true, Ordering::Relaxed);
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
}

fn locked(idle: &Mutex<Idle>) -> std::sync::MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The code and the words of a server's refusal; `None` when the error is something else.
fn reply(error: &lettre::transport::smtp::Error) -> Option<(u16, String)> {
    let code = error.status()?.into();
    Some((code, text::one_line(&words(error), REPLY_CHARS_MAX)))
}

/// What a server said when it refused.
fn words(error: &lettre::transport::smtp::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}
