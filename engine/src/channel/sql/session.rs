//! One connection to a database: made through a [`Relay`], and one statement after another on it.

use super::bind::Value;
use super::refusal::Phase;
use super::relay::{Relay, Terms};
use super::statement::{self, Driver};
use super::{Settings, Sql};
use crate::channel::outgoing::{self, Cause, Outgoing};
use crate::channel::{Failure, text};
use rustls::pki_types::ServerName;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlSslMode};
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgConnectOptions, PgConnection, PgSslMode, PgTypeInfo, Postgres,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Either, Encode, Executor as _, SqlSafeStr as _,
    Statement as _,
};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;

/// A connection whose driver has let us in.
pub(super) struct Session {
    connection: Connection,
    relay: Relay,
}

enum Connection {
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

/// The driver reads what libpq reads and lets all of it be overridden but this.
pub(super) fn check_environment(driver: Driver) -> Result<(), String> {
    let postgres = driver == Driver::Postgres;
    if postgres
        && PgConnectOptions::new_without_pgpass()
            .get_options()
            .is_some()
    {
        return Err(
            "PGOPTIONS is set in the engine's environment and would go to the database; unset it"
                .into(),
        );
    }
    Ok(())
}

impl Session {
    /// Connects to one of the host's addresses that the guard lets through, and logs in.
    pub(super) async fn open(of: &Sql, client: &Outgoing) -> Result<Self, Failure> {
        let settings = &of.settings;
        let no_tls = |error: String| Failure::later(format!("no TLS with {}: {error}", of.place));
        let tls = match settings.tls {
            false => None,
            true => {
                let name = ServerName::try_from(settings.host.clone());
                let name = name.map_err(|error| no_tls(error.to_string()))?;
                Some((client.tls(), name))
            }
        };
        let no_way = |error: io::Error| {
            let cause = text::one_line(&Cause::of(&error).text, 200);
            Failure::later(format!("no connection to {}: {cause}", of.place))
        };
        let addresses = client.resolve(&settings.host, of.port).await?;
        let server = connect(&addresses, of.timeout).await.map_err(no_way)?;
        // Small messages, each of which is waited for.
        let _ = server.set_nodelay(true);
        let terms = Terms {
            driver: settings.driver,
            place: of.place.clone(),
            tls,
            password: settings.password.clone(),
        };
        let (socket, relay) = Relay::start(server, of.port, terms).map_err(no_way)?;
        let connected = match settings.driver {
            Driver::Postgres => postgres(of, socket).await.map(Connection::Postgres),
            Driver::MySql => mysql(of, socket).await.map(Connection::MySql),
        };
        match connected {
            Ok(connection) => Ok(Self { connection, relay }),
            Err(error) => Err(of.failure(Phase::Connecting, error, relay.fault())),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.relay.is_open()
    }

    /// What the driver does not know of an error it met.
    pub(super) fn fault(&self) -> Option<Failure> {
        self.relay.fault()
    }

    /// Runs the statement in a transaction of its own; gives how many rows it touched. `sent` is set
    /// when its values go out.
    pub(super) async fn run(
        &mut self,
        settings: &Settings,
        values: Vec<Value>,
        timeout_ms: u128,
        sent: &Arc<AtomicBool>,
    ) -> Result<u64, (Phase, sqlx::Error)> {
        let preparing = |error| (Phase::Preparing, error);
        let running = |error| (Phase::Running, error);
        // The tenant's text and nothing of a rule's: that goes by `bind`.
        let sql = AssertSqlSafe(settings.statement.as_str()).into_sql_str();
        match &mut self.connection {
            Connection::Postgres(connection) => {
                let mut query = sqlx::query(sql);
                for value in values {
                    query = match value {
                        Value::Text(value) => query.bind(value),
                        Value::Integer(value) => query.bind(value),
                        Value::Float(value) => query.bind(value),
                        Value::Boolean(value) => query.bind(value),
                        Value::Json(value) => query.bind(value.map(PgJson)),
                        Value::Timestamp(value) => query.bind(value.map(PgTimestamp)),
                        Value::Bytes(value) => query.bind(value),
                    };
                }
                self.relay.watch(sent);
                let own = statement::ends_by_itself(&settings.statement);
                let run = async {
                    if own {
                        let done = query.execute(&mut *connection).await?;
                        return Ok(done.rows_affected());
                    }
                    // A pooler gives every transaction a connection of its own choice: the statement is
                    // prepared, and its values are bound, within one, and it has no name to be found by
                    // on a connection that another one prepared something on.
                    let begin = format!("BEGIN; SET LOCAL statement_timeout = {timeout_ms}");
                    connection.execute(AssertSqlSafe(begin)).await?;
                    let done = query.persistent(false).execute(&mut *connection).await?;
                    connection.execute("COMMIT").await?;
                    Ok::<_, sqlx::Error>(done.rows_affected())
                };
                run.await
                    .map_err(|error| match sent.load(Ordering::Relaxed) {
                        true => running(error),
                        false => preparing(error),
                    })
            }
            Connection::MySql(connection) => {
                let prepared = connection.prepare(sql.clone()).await.map_err(preparing)?;
                fits(prepared.parameters(), values.len()).map_err(preparing)?;
                let mut query = sqlx::query(sql);
                for value in values {
                    query = match value {
                        Value::Text(value) | Value::Json(value) => query.bind(value),
                        Value::Integer(value) => query.bind(value),
                        Value::Float(value) => query.bind(value),
                        Value::Boolean(value) => query.bind(value),
                        // As text, which every column for times takes; the session is in UTC.
                        Value::Timestamp(value) => query
                            .bind(value.map(|at| at.strftime("%Y-%m-%d %H:%M:%S%.6f").to_string())),
                        Value::Bytes(value) => query.bind(value),
                    };
                }
                sent.store(true, Ordering::Relaxed);
                let done = query.execute(connection).await.map_err(running)?;
                Ok(done.rows_affected())
            }
        }
    }
}

/// The first address that answers; each has its share of the time.
async fn connect(addresses: &[SocketAddr], timeout: Duration) -> io::Result<TcpStream> {
    let share = outgoing::share(timeout, addresses.len());
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        let connected = tokio::time::timeout(share, TcpStream::connect(address));
        match connected.await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// How long the server may try: a little less than we wait, so that its answer is heard.
pub(super) fn server_timeout(of: &Sql) -> Duration {
    of.timeout - of.timeout / 10
}

/// All that the driver would take from the environment is set here; TLS is the relay's.
async fn postgres(of: &Sql, socket: std::path::PathBuf) -> sqlx::Result<PgConnection> {
    let Settings {
        host,
        database,
        username,
        password,
        ..
    } = &of.settings;
    let password = password.as_ref().map_or("", |password| password.expose());
    let options = PgConnectOptions::new_without_pgpass()
        .host(host)
        .port(of.port)
        .socket(socket)
        .username(username)
        .password(password)
        .database(database)
        .ssl_mode(PgSslMode::Disable)
        .application_name("hooksieve")
        // It is about floats as text, which none is here, and PgBouncer refuses it.
        .extra_float_digits(None)
        .disable_statement_logging();
    // PgBouncer refuses options too. A transaction of ours sets its own; a procedure has none.
    let options = match statement::ends_by_itself(&of.settings.statement) {
        true => options.options([("statement_timeout", server_timeout(of).as_millis())]),
        false => options,
    };
    options.connect().await
}

async fn mysql(of: &Sql, socket: std::path::PathBuf) -> sqlx::Result<MySqlConnection> {
    let Settings {
        host,
        database,
        username,
        password,
        ..
    } = &of.settings;
    let mut options = MySqlConnectOptions::new()
        .host(host)
        .port(of.port)
        .socket(socket)
        .username(username)
        .database(database)
        .ssl_mode(MySqlSslMode::Disabled)
        // The statement means what it means on the tenant's server.
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .disable_statement_logging();
    if let Some(password) = password {
        options = options.password(password.expose());
    }
    let mut connection = options.connect().await?;
    // It has no timeout for statements that write; what keeps one waiting is a lock.
    let wait_s = server_timeout(of).as_secs().max(1);
    let set = format!(
        "SET SESSION autocommit = 1, innodb_lock_wait_timeout = {wait_s}, lock_wait_timeout = {wait_s}"
    );
    let set = sqlx::query(AssertSqlSafe(set)).persistent(false);
    set.execute(&mut connection).await?;
    Ok(connection)
}

/// Whether the server counts as many places as values are bound; the driver would not say which.
fn fits<T>(places: Option<Either<&[T], usize>>, values: usize) -> sqlx::Result<()> {
    let places = match places {
        Some(Either::Left(types)) => types.len(),
        Some(Either::Right(places)) => places,
        None => values,
    };
    match places == values {
        true => Ok(()),
        false => Err(sqlx::Error::InvalidArgument(format!(
            "the statement has places for {places} values, and {values} are bound"
        ))),
    }
}

/// JSON text, as Postgres' type `json`.
struct PgJson(String);

impl sqlx::Type<Postgres> for PgJson {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(114))
    }
}

impl Encode<'_, Postgres> for PgJson {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

/// A moment, as Postgres' type `timestamptz`: microseconds since 2000.
struct PgTimestamp(jiff::Timestamp);

impl sqlx::Type<Postgres> for PgTimestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1184))
    }
}

impl Encode<'_, Postgres> for PgTimestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        const YEAR_2000_US: i64 = 946_684_800_000_000;
        let since_us = self.0.as_microsecond() - YEAR_2000_US;
        buffer.extend_from_slice(&since_us.to_be_bytes());
        Ok(IsNull::No)
    }
}
