//! A row in a tenant's database: one statement that the tenant wrote, with values out of what the rule
//! made. Postgres and MySQL or MariaDB, through sqlx.
//!
//! Guarantees:
//! - The statement is the tenant file's and no other. It is one, it is prepared by the server, and a
//!   rule's data is bound to its places: a value stays a value, whatever is in it.
//! - Every value has a declared type. What is of another type is sent nowhere.
//! - Delivered means that the server said so after the statement's own transaction was committed.
//! - It works through PgBouncer in transaction mode: nothing outlives the transaction, and nothing is
//!   asked for at the start that a pooler does not pass on. But for `CALL`, which may commit by itself and
//!   has no transaction around it: then a refusal says what to set.
//! - The connection goes to an address that the guard checked, and with TLS the certificate is that of
//!   the configured host, by the same roots as for HTTP. `sql/relay.rs` says how.
//! - No setting comes from the environment or a file (`PGHOST`, `~/.pgpass`), and none leads to a
//!   socket or a file.
//! - What a server answers is bounded before the driver reads it, and what the driver panics at is a
//!   broken connection: a tenant may run the server.
//!
//! What is kept of a server's errors: the code, a sentence of ours, and the name of a constraint. Its
//! own words only about the statement before a value was bound, because later they can quote values.
//!
//! A connection that breaks, or a time that ends, after the statement went out leaves open whether it
//! ran. It is tried again; a statement that binds `delivery_id` to a unique column runs once.

mod bind;
mod refusal;
mod relay;
mod session;
mod statement;

use super::answer::Secrets;
use super::outgoing::{Outgoing, is_name};
use super::{Failure, Sent};
use crate::secret::Secret;
use crate::store::Delivery;
use refusal::Phase;
use session::Session;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use bind::{Binding, Given, Type};
pub use statement::Driver;

/// Connections of one channel at a time; what comes beyond waits, within its own timeout.
const CONNECTIONS_MAX: usize = 4;
/// How long a connection waits for the next row.
const IDLE: Duration = Duration::from_secs(30);
/// As many as Postgres and MySQL allow in common.
const VALUES_MAX: usize = 1_000;

/// What a tenant file says of a database.
pub struct Settings {
    pub driver: Driver,
    /// A name or an address.
    pub host: String,
    /// Left out, the driver's own.
    pub port: Option<u16>,
    pub database: String,
    pub username: String,
    pub password: Option<Secret>,
    pub tls: bool,
    pub statement: String,
    /// What is bound to the statement's places, in their order.
    pub values: Vec<Binding>,
    pub timeout_ms: u64,
}

/// A database channel with checked settings.
pub struct Sql {
    settings: Settings,
    port: u16,
    /// The host, with its port where one was given: all of it that is told.
    place: String,
    pub(super) timeout: Duration,
    permits: Semaphore,
    idle: Arc<Mutex<Idle>>,
}

/// Connections that wait for the next row.
#[derive(Default)]
struct Idle {
    parked: Vec<(Session, Instant)>,
    /// A task is there that closes those which waited too long.
    watched: bool,
}

impl Sql {
    /// Checks the settings.
    ///
    /// # Errors
    /// One sentence that says what is wrong; it never holds the password.
    pub fn new(settings: Settings) -> Result<Self, String> {
        let host = &settings.host;
        if host.parse::<IpAddr>().is_err() && !is_name(host) {
            return Err(format!(
                "{host:?} is not a host: it takes a name or an address, and no URL or socket"
            ));
        }
        let local = matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1");
        if !settings.tls && settings.password.is_some() && !local {
            return Err(format!(
                "the password would travel unencrypted to {host:?}; leave tls at \"require\""
            ));
        }
        for (name, text) in [
            ("username", &settings.username),
            ("database", &settings.database),
        ] {
            if text.is_empty() || text.contains('\0') {
                return Err(format!("{text:?} is no {name}"));
            }
        }
        if settings
            .password
            .as_ref()
            .is_some_and(|p| p.expose().contains('\0'))
        {
            return Err("the password has a NUL in it".into());
        }
        if settings.values.len() > VALUES_MAX {
            return Err(format!(
                "there are {} values, and at most {VALUES_MAX} are bound",
                settings.values.len()
            ));
        }
        statement::check(&settings.statement, settings.driver, settings.values.len())?;
        session::check_environment(settings.driver)?;
        let place = match settings.port {
            Some(port) if host.contains(':') => format!("[{host}]:{port}"),
            Some(port) => format!("{host}:{port}"),
            None => host.clone(),
        };
        Ok(Self {
            port: settings.port.unwrap_or(settings.driver.port()),
            place,
            timeout: Duration::from_millis(settings.timeout_ms),
            permits: Semaphore::new(CONNECTIONS_MAX),
            idle: Arc::default(),
            settings,
        })
    }

    /// What no stored attempt may say.
    pub(super) fn secrets(&self, secrets: &mut Secrets) {
        if let Some(password) = &self.settings.password {
            secrets.text(password.expose());
        }
    }

    pub(super) async fn send(
        &self,
        client: &Outgoing,
        delivery: &Delivery,
    ) -> Result<Sent, Failure> {
        let (driver, bindings) = (self.settings.driver, &self.settings.values);
        let values = bind::values(driver, bindings, delivery).map_err(|error| {
            Failure::never(format!("nothing was sent to {}: {error}", self.place))
        })?;
        let sent = Arc::new(AtomicBool::new(false));
        let attempt = quiet(&self.place, self.attempt(client, values, &sent));
        let rows = match tokio::time::timeout(self.timeout, attempt).await {
            Ok(outcome) => outcome?,
            Err(_) => return Err(self.late(sent.load(Ordering::Relaxed))),
        };
        // Nobody but the tenant knows how many it should be: none is right where the row is there.
        tracing::debug!(delivery = %delivery.id, rows, "the statement ran");
        Ok(Sent::default())
    }

    /// Runs the statement once; gives how many rows it touched.
    async fn attempt(
        &self,
        client: &Outgoing,
        values: Vec<bind::Value>,
        sent: &Arc<AtomicBool>,
    ) -> Result<u64, Failure> {
        // It is never closed.
        let _permit = self.permits.acquire().await;
        let mut session = match self.unpark() {
            Some(session) => session,
            None => Session::open(self, client).await?,
        };
        let timeout_ms = session::server_timeout(self).as_millis();
        let ran = session.run(&self.settings, values, timeout_ms, sent).await;
        match ran {
            Ok(rows) => {
                // Only after a statement that went well is the connection in a known state.
                self.park(session);
                Ok(rows)
            }
            Err((phase, error)) => Err(self.failure(phase, error, session.fault())),
        }
    }

    /// What came of a driver's error.
    fn failure(&self, phase: Phase, error: sqlx::Error, fault: Option<Failure>) -> Failure {
        match fault {
            Some(fault) => fault,
            None => {
                let secret = self.settings.password.as_ref().map(Secret::expose);
                refusal::failure(&self.place, phase, &error, secret)
            }
        }
    }

    fn late(&self, sent: bool) -> Failure {
        let (place, timeout) = (&self.place, self.timeout);
        Failure::later(match sent {
            true => format!(
                "{place} did not answer within {timeout:?}; the statement was sent, and whether it ran is not known"
            ),
            false => format!("{place} did not take the row within {timeout:?}"),
        })
        .ambiguous(sent)
    }

    /// A connection that waited, unless its server closed it meanwhile.
    fn unpark(&self) -> Option<Session> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.parked.retain(|(session, _)| session.is_open());
        idle.parked.pop().map(|(session, _)| session)
    }

    fn park(&self, session: Session) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.parked.push((session, Instant::now()));
        if !idle.watched {
            idle.watched = true;
            tokio::spawn(watch(Arc::downgrade(&self.idle)));
        }
    }
}

/// Closes connections that waited too long, and ends with the last of them.
async fn watch(idle: std::sync::Weak<Mutex<Idle>>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(idle) = idle.upgrade() else {
            return;
        };
        let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.parked
            .retain(|(session, since)| session.is_open() && since.elapsed() < IDLE);
        if idle.parked.is_empty() {
            idle.watched = false;
            return;
        }
    }
}

/// Takes a panic of the driver, which trusts its server's bytes in places, for a broken connection.
async fn quiet<T>(
    place: &str,
    attempt: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut attempt = pin!(attempt);
    std::future::poll_fn(|context| {
        // After a panic the connection is dropped and never looked at again.
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| attempt.as_mut().poll(context)));
        polled.unwrap_or_else(|_| {
            let error = format!("{place} answered what the driver cannot read");
            Poll::Ready(Err(Failure::later(error)))
        })
    })
    .await
}

#[cfg(test)]
mod tests;
