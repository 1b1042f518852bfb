//! The driver's way to the server. sqlx resolves a host by itself and connects to what it finds, which
//! would be another look-up than the one that was checked, and it cannot be handed a connection. It does
//! take a Unix socket. So the channel connects to the checked address, does TLS as HTTP does, and gives
//! the driver a socket of this process on which it relays.
//!
//! Invariants:
//! - The socket takes one connection, and only from this process (the kernel says who is there). On
//!   Linux it has an abstract name of 128 random bits; elsewhere it lies in a folder that only this
//!   user can enter, for as long as it takes to connect.
//! - No byte of the driver goes out before the server's certificate was checked, where TLS is required;
//!   for MySQL, the server's greeting comes before.
//! - No message of the server reaches the driver before it was seen whole and not too long, and between
//!   two of the driver's there are at most [`ANSWER_BYTES_MAX`] of them. The driver believes lengths: it
//!   would set aside what a message claims, and a tenant may run the server.
//!
//! Formats: Postgres' "Frontend/Backend Protocol" (message formats, SSL session encryption); MySQL's
//! "Client/Server Protocol" (packets, connection phase, caching_sha2_password).

use super::statement::Driver;
use crate::channel::outgoing::Cause;
use crate::channel::{Failure, text};
use crate::secret::Secret;
use rustls::pki_types::ServerName;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// How much a server may say to one message of the driver.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// The driver's messages are read in pieces of this.
const PIECE_BYTES: usize = 16 * 1024;

/// What is to be spoken, and with whom.
pub(super) struct Terms {
    pub(super) driver: Driver,
    /// What may be told of the host.
    pub(super) place: String,
    /// With TLS: the settings, and whose certificate it must be.
    pub(super) tls: Option<(Arc<rustls::ClientConfig>, ServerName<'static>)>,
    pub(super) password: Option<Secret>,
}

/// A relay between one connection of the driver and one to the server; it ends with this value.
pub(super) struct Relay {
    task: AbortOnDropHandle<()>,
    fault: Arc<OnceLock<Failure>>,
    bound: Bound,
}

/// What is set when values go out.
type Bound = Arc<Mutex<Option<Arc<AtomicBool>>>>;

/// Why a relay ends.
enum End {
    /// One of them closed or broke; the driver sees it and tells.
    Closed,
    /// The driver cannot know it.
    Fault(Failure),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        End::Closed
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Relay {
    /// Begins to relay; gives what the driver is told as its socket: for Postgres the folder.
    pub(super) fn start(server: TcpStream, port: u16, terms: Terms) -> io::Result<(PathBuf, Self)> {
        let private = format!("hooksieve-{:032x}", rand::random::<u128>());
        let (folder, removed_later) = match cfg!(target_os = "linux") {
            true => (PathBuf::from(format!("\0{private}")), None),
            false => {
                let made = tempfile::Builder::new().prefix("hooksieve-").tempdir()?;
                (made.path().to_owned(), Some(made))
            }
        };
        let socket = folder.join(format!(".s.PGSQL.{port}"));
        let listener = UnixListener::bind(&socket)?;
        let given = match terms.driver {
            Driver::Postgres => folder,
            Driver::MySql => socket,
        };
        let fault = Arc::new(OnceLock::new());
        let told = Arc::clone(&fault);
        let bound = Bound::default();
        let watched = Arc::clone(&bound);
        let task = tokio::spawn(async move {
            // Open until the fault is told: the driver's error leads to the question what it was.
            let Ok(mut driver) = accept(listener).await else {
                return;
            };
            drop(removed_later);
            let relayed = terms.relay(&mut driver, server, &watched).await;
            if let Err(End::Fault(failure)) = relayed {
                // There is no other.
                let _ = told.set(failure);
            }
        });
        let task = AbortOnDropHandle::new(task);
        Ok((given, Self { task, fault, bound }))
    }

    pub(super) fn is_open(&self) -> bool {
        !self.task.is_finished()
    }

    /// Has this set when the driver sends a statement's values to a Postgres server: it prepares and binds
    /// in one call, and whether a value went out decides what may be told of an error.
    pub(super) fn watch(&self, sent: &Arc<AtomicBool>) {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        *bound = Some(Arc::clone(sent));
    }

    /// Why it ended, where that was not the server's or the driver's doing.
    pub(super) fn fault(&self) -> Option<Failure> {
        self.fault.get().cloned()
    }
}

/// The one connection, which comes from this process.
async fn accept(listener: UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        let process = stream.peer_cred()?.pid();
        if process.is_some_and(|id| u32::try_from(id) == Ok(std::process::id())) {
            return Ok(stream);
        }
    }
}

impl Terms {
    async fn relay(
        &self,
        driver: &mut UnixStream,
        server: TcpStream,
        bound: &Bound,
    ) -> Result<(), End> {
        match self.driver {
            Driver::Postgres => {
                let server = self.ask_postgres(server).await?;
                self.pump(driver, server, bound).await
            }
            Driver::MySql => {
                let server = self.greet_mysql(driver, server).await?;
                self.pump(driver, server, bound).await
            }
        }
    }

    /// Postgres is asked for TLS before anything else.
    async fn ask_postgres(&self, mut server: TcpStream) -> Result<Box<dyn Stream>, End> {
        if self.tls.is_none() {
            return Ok(Box::new(server));
        }
        server
            .write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f])
            .await?;
        // One byte: what a stranger sent along in the open would otherwise count as the server's.
        match server.read_u8().await? {
            b'S' => self.encrypt(server).await,
            _ => Err(self.no_tls()),
        }
    }

    /// MySQL greets first; TLS begins with a beginning of the driver's answer, and then all of it is
    /// sent again. Until the server has let the driver in, each speaks in turn.
    async fn greet_mysql(
        &self,
        driver: &mut UnixStream,
        mut server: TcpStream,
    ) -> Result<Box<dyn Stream>, End> {
        let mut greeting = self.packet(&mut server).await?;
        if greeting[4..].first() == Some(&0xff) {
            driver.write_all(&greeting).await?;
            return Ok(Box::new(server));
        }
        let mut server: Box<dyn Stream> = match &self.tls {
            None => {
                driver.write_all(&greeting).await?;
                let answer = self.packet(driver).await?;
                server.write_all(&answer).await?;
                Box::new(server)
            }
            Some(_) => {
                const SSL: u8 = 0x08; // in the second byte of the flags
                // Protocol, version up to a NUL, connection id, 8 bytes of a nonce, a filler.
                let version = greeting.iter().skip(5).position(|byte| *byte == 0);
                let flags = version.map_or(usize::MAX, |long| 5 + long + 1 + 4 + 8 + 1 + 1);
                if greeting.get(flags).is_none_or(|byte| byte & SSL == 0) {
                    return Err(self.no_tls());
                }
                // Counted one further, the driver's answer has the number that it has after TLS.
                greeting[3] = 1;
                driver.write_all(&greeting).await?;
                let mut answer = self.packet(driver).await?;
                if answer.len() < 4 + 32 {
                    return Err(End::Closed);
                }
                answer[5] |= SSL;
                let mut request = vec![32, 0, 0, 1];
                request.extend_from_slice(&answer[4..4 + 32]);
                server.write_all(&request).await?;
                let mut server = self.encrypt(server).await?;
                server.write_all(&answer).await?;
                server
            }
        };
        loop {
            server.flush().await?;
            let packet = self.packet(&mut server).await?;
            let answer = match (&packet[4..], &self.password, &self.tls) {
                // It wants the password itself, which TLS keeps. The driver knows of no TLS.
                ([0x01, 0x04], Some(password), Some(_)) => {
                    let password = password.expose().as_bytes();
                    let long = u32::try_from(password.len() + 1)
                        .unwrap_or(u32::MAX)
                        .to_le_bytes();
                    let mut answer = vec![long[0], long[1], long[2], packet[3].wrapping_add(1)];
                    answer.extend_from_slice(password);
                    answer.push(0);
                    answer
                }
                (body, _, _) => {
                    driver.write_all(&packet).await?;
                    match body {
                        // It is in, or turned away.
                        [0x00 | 0xff, ..] => return Ok(server),
                        // The password is known already; the word that it is in follows.
                        [0x01, 0x03] => continue,
                        _ => self.packet(driver).await?,
                    }
                }
            };
            server.write_all(&answer).await?;
        }
    }

    async fn encrypt(&self, server: TcpStream) -> Result<Box<dyn Stream>, End> {
        let Some((config, name)) = &self.tls else {
            return Ok(Box::new(server));
        };
        let connector = TlsConnector::from(Arc::clone(config));
        match connector.connect(name.clone(), server).await {
            Ok(server) => Ok(Box::new(server)),
            Err(error) => {
                let place = &self.place;
                let cause = Cause::of(&error);
                Err(fault(match cause.certificate {
                    true => format!("the certificate of {place} is not trusted: {}", cause.text),
                    false => format!("no TLS with {place}: {}", text::one_line(&cause.text, 200)),
                }))
            }
        }
    }

    fn no_tls(&self) -> End {
        fault(format!(
            "{} does not offer TLS, so nothing was sent",
            self.place
        ))
    }

    fn too_much(&self) -> End {
        fault(format!(
            "{} answered more than the {ANSWER_BYTES_MAX} bytes that are read",
            self.place
        ))
    }

    /// Both ways until one ends.
    async fn pump(
        &self,
        driver: &mut UnixStream,
        server: Box<dyn Stream>,
        bound: &Bound,
    ) -> Result<(), End> {
        let (mut from_driver, mut to_driver) = driver.split();
        let (mut from_server, mut to_server) = tokio::io::split(server);
        let answered = AtomicUsize::new(0);
        let up = async {
            let mut piece = vec![0; PIECE_BYTES];
            loop {
                match from_driver.read(&mut piece).await? {
                    0 => break to_server.shutdown().await?,
                    long => {
                        answered.store(0, Ordering::Relaxed);
                        // Bind, which the driver sends when all before it was answered. A piece of a
                        // longer message may begin so too; then less is told of an error.
                        if self.driver == Driver::Postgres && piece[0] == b'B' {
                            let bound = bound.lock().unwrap_or_else(PoisonError::into_inner);
                            if let Some(sent) = &*bound {
                                sent.store(true, Ordering::Relaxed);
                            }
                        }
                        to_server.write_all(&piece[..long]).await?;
                        to_server.flush().await?;
                    }
                }
            }
            Err(End::Closed)
        };
        let down = async {
            loop {
                let message = match self.driver {
                    Driver::Postgres => self.message(&mut from_server).await?,
                    Driver::MySql => self.packet(&mut from_server).await?,
                };
                let so_far = answered.fetch_add(message.len(), Ordering::Relaxed);
                if so_far + message.len() > ANSWER_BYTES_MAX {
                    return Err(self.too_much());
                }
                match self.driver {
                    // The driver logs notices, and a trigger's can hold data.
                    Driver::Postgres if message[0] == b'N' => continue,
                    Driver::MySql if !is_expected(&message[4..]) => {
                        let place = &self.place;
                        return Err(fault(format!(
                            "{place} answered what no statement here asks for"
                        )));
                    }
                    Driver::Postgres | Driver::MySql => to_driver.write_all(&message).await?,
                }
            }
        };
        tokio::select! {
            ended = up => ended,
            ended = down => ended,
        }
    }

    /// One message of a Postgres server: its type, its length with the length's own bytes, the rest.
    async fn message(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, End> {
        let mut head = [0; 5];
        from.read_exact(&mut head).await?;
        let long = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let long = usize::try_from(long).unwrap_or(usize::MAX).checked_sub(4);
        self.whole(from, &head, long.ok_or(End::Closed)?).await
    }

    /// One packet of MySQL, of either side: the length of its body, its number, the body.
    async fn packet(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, End> {
        let mut head = [0; 4];
        from.read_exact(&mut head).await?;
        let long = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        self.whole(from, &head, usize::try_from(long).unwrap_or(usize::MAX))
            .await
    }

    async fn whole(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        head: &[u8],
        long: usize,
    ) -> Result<Vec<u8>, End> {
        if long > ANSWER_BYTES_MAX {
            return Err(self.too_much());
        }
        let mut message = head.to_vec();
        message.resize(head.len() + long, 0);
        from.read_exact(&mut message[head.len()..]).await?;
        Ok(message)
    }
}

/// Whether it is a packet that answers a prepared statement: no request for a file of ours (0xfb), and
/// no count of columns so large (0xfd, 0xfe) that the driver would set memory aside by the gigabyte.
fn is_expected(body: &[u8]) -> bool {
    match body.first() {
        Some(0xfb | 0xfd) => false,
        Some(0xfe) => body.len() < 9,
        _ => true,
    }
}

fn fault(error: String) -> End {
    End::Fault(Failure::later(error))
}
