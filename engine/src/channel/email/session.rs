//! The conversation with a mail server: one transaction over a connection that waited or a new one.

use super::connection::{Connection, Error, Reply};
use super::{ADDRESSES_MAX, Email, IDLE, IDLE_MAX, Idle, REPLY_CHARS_MAX, Recipients, Tls};
use crate::channel::outgoing::{self, Cause, Outgoing};
use crate::channel::{Failure, Retry, text};
use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lettre::message::Mailbox;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

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

    async fn connect(&self, client: &Outgoing) -> Result<Connection, Failure> {
        let addresses = client.resolve(&self.host, self.port).await?;
        let (mut connection, local) = self.greeted(client, &addresses).await?;
        let hello = format!("EHLO {}", client.name(local));
        let mut offers = self
            .asked(&mut connection, &hello, "refused to talk")
            .await?;
        if self.tls == Tls::StartTls {
            if offers.extension("STARTTLS").is_none() {
                return Err(Failure::later(format!(
                    "{} does not offer STARTTLS, so nothing was sent",
                    self.host
                )));
            }
            self.asked(&mut connection, "STARTTLS", "refused STARTTLS")
                .await?;
            let encrypted = connection.encrypt(client.tls(), self.server_name()?).await;
            connection = encrypted.map_err(|error| self.unreached(&error))?;
            // What was said in the open may have been a stranger's.
            offers = self
                .asked(&mut connection, &hello, "refused to talk")
                .await?;
        }
        if let Some((user, password)) = &self.login {
            self.log_in(&mut connection, &offers, user, password)
                .await?;
        }
        Ok(connection)
    }

    /// A connection to the first of these addresses that greets, and the address at this end. Each has
    /// its share of the time, so that one that is silent does not keep us from the others.
    pub(super) async fn greeted(
        &self,
        client: &Outgoing,
        addresses: &[SocketAddr],
    ) -> Result<(Connection, Option<IpAddr>), Failure> {
        let addresses = &addresses[..addresses.len().min(ADDRESSES_MAX)];
        let share = outgoing::share(self.timeout, addresses.len());
        let mut last = None;
        for address in addresses {
            match timeout(share, self.greeted_by(client, *address)).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(failure)) => last = Some(failure),
                Err(_) => {
                    let error = format!("no connection to {} within {share:?}", self.host);
                    last = Some(Failure::later(error));
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            Failure::later(format!("no connection to {}: it has no address", self.host))
        }))
    }

    async fn greeted_by(
        &self,
        client: &Outgoing,
        address: SocketAddr,
    ) -> Result<(Connection, Option<IpAddr>), Failure> {
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| self.unreached(&error.into()))?;
        // One line, one answer: each goes out at once.
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().ok().map(|local| local.ip());
        let mut connection = Connection::new(stream);
        if self.tls == Tls::Tls {
            let encrypted = connection.encrypt(client.tls(), self.server_name()?).await;
            connection = encrypted.map_err(|error| self.unreached(&error))?;
        }
        let greeting = connection.reply().await;
        let greeting = greeting.map_err(|error| self.unreached(&error))?;
        match greeting.is_good() {
            true => Ok((connection, local)),
            false => Err(self.turned_away("turned the connection away", &greeting)),
        }
    }

    fn server_name(&self) -> Result<ServerName<'static>, Failure> {
        let name = ServerName::try_from(self.host.clone());
        name.map_err(|error| Failure::never(format!("{}: {error}", self.host)))
    }

    /// A command before the message's own transaction, which has to go well.
    async fn asked(
        &self,
        connection: &mut Connection,
        command: &str,
        what: &str,
    ) -> Result<Reply, Failure> {
        let reply = connection.command(command).await;
        let reply = reply.map_err(|error| self.unreached(&error))?;
        match reply.is_good() {
            true => Ok(reply),
            false => Err(self.turned_away(what, &reply)),
        }
    }

    async fn log_in(
        &self,
        connection: &mut Connection,
        offers: &Reply,
        user: &str,
        password: &Secret,
    ) -> Result<(), Failure> {
        let ways = offers.extension("AUTH").unwrap_or_default();
        let offered = |way: &str| ways.iter().any(|it| it == way);
        let password = password.expose();
        let (command, asked_for) = if offered("PLAIN") {
            let login = BASE64.encode(format!("\0{user}\0{password}"));
            (format!("AUTH PLAIN {login}"), Vec::new())
        } else if offered("LOGIN") {
            ("AUTH LOGIN".to_owned(), vec![user, password])
        } else {
            return Err(Failure::later(format!(
                "{} offers no way to log in that is known here (PLAIN, LOGIN)",
                self.host
            )));
        };
        let broke = |error: Error| self.unreached(&error);
        let mut reply = connection.command(&command).await.map_err(broke)?;
        for answer in asked_for {
            if reply.code == 334 {
                let answer = BASE64.encode(answer);
                reply = connection.command(&answer).await.map_err(broke)?;
            }
        }
        match reply.is_good() {
            true => Ok(()),
            false => Err(self.turned_away("refused the username or password", &reply)),
        }
    }

    /// Nothing was asked of it yet: what is wrong is wrong with the server, the way to it, or the settings.
    fn unreached(&self, error: &Error) -> Failure {
        let cause = cause(error);
        let text = text::one_line(&cause.text, REPLY_CHARS_MAX);
        Failure::later(match cause.certificate {
            true => format!("the certificate of {} is not trusted: {text}", self.host),
            false => format!("no connection to {}: {text}", self.host),
        })
    }

    fn turned_away(&self, what: &str, reply: &Reply) -> Failure {
        let sentence = format!("{} {what}: {reply}", self.host);
        Failure::new(Some(reply.code), sentence, Retry::Later).answered(reply.text())
    }

    async fn converse(
        &self,
        connection: &mut Connection,
        to: &[&Mailbox],
        source: &[u8],
        sent: &AtomicBool,
    ) -> Result<Recipients, Failure> {
        // A refusal here is about the message or its sender, for all recipients alike.
        let refused = |what: &str, reply: &Reply| {
            let retry = match reply.is_final() {
                true => Retry::Never,
                false => Retry::Later,
            };
            let sentence = format!("{} refused {what}: {reply}", self.host);
            Failure::new(Some(reply.code), sentence, retry).answered(reply.text())
        };
        let broke = |error: Error| {
            let text = text::one_line(&cause(&error).text, REPLY_CHARS_MAX);
            Failure::later(format!("the connection to {} broke: {text}", self.host))
                .ambiguous(sent.load(Ordering::Relaxed))
        };
        let from = format!("MAIL FROM:<{}>", self.from.email);
        let reply = connection.command(&from).await.map_err(broke)?;
        if !reply.is_good() {
            return Err(refused("the sender", &reply));
        }
        let mut recipients = Recipients::default();
        for to in to {
            let address = to.email.to_string();
            let rcpt = format!("RCPT TO:<{address}>");
            let reply = connection.command(&rcpt).await.map_err(broke)?;
            if reply.is_good() {
                recipients.accepted.push(address);
                continue;
            }
            if reply.code == 421 {
                // The server is closing the connection: nobody has anything yet.
                return Err(refused("further commands", &reply));
            }
            let line = format!("{address}: {reply}");
            match reply.is_final() {
                true => recipients.refused.push(line),
                false => recipients.put_off.push(line),
            }
            recipients.code = Some(reply.code);
        }
        if recipients.accepted.is_empty() {
            let reply = connection.command("RSET").await.map_err(broke)?;
            if !reply.is_good() {
                return Err(refused("a new beginning", &reply));
            }
            return Ok(recipients);
        }
        let reply = connection.command("DATA").await.map_err(broke)?;
        // Any other good word than this one answers something else.
        if reply.code / 100 != 3 {
            return Err(refused("the message", &reply));
        }
        sent.store(true, Ordering::Relaxed);
        let reply = connection.message(source).await.map_err(broke)?;
        if !reply.is_good() {
            // Neither yes nor no.
            let unclear = reply.code / 100 == 3;
            return Err(refused("the message", &reply).ambiguous(unclear));
        }
        recipients.code = Some(reply.code);
        Ok(recipients)
    }

    /// A connection that waited and still answers.
    async fn unpark(&self) -> Option<Connection> {
        loop {
            let (mut connection, _) = locked(&self.idle).parked.pop()?;
            let awake = connection.command("NOOP").await;
            if awake.is_ok_and(|reply| reply.is_good()) && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next message, or drops it where enough are kept. One task for all
    /// of a channel's connections closes them when no message came: thousands of channels would
    /// else each keep a socket at their mail server for nothing.
    fn park(&self, connection: Connection) {
        let mut idle = locked(&self.idle);
        if idle.parked.len() >= IDLE_MAX || !connection.is_quiet() {
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
                    let _ = timeout(IDLE, connection.command("QUIT")).await;
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

/// What lies at the bottom of it.
fn cause(error: &Error) -> Cause {
    match error {
        Error::Io(error) => Cause::of(error),
        error => Cause::of(error),
    }
}
