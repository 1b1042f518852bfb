//! What a database's refusal means: a sentence of ours by its code, and whether trying again can help.
//! Pure.
//!
//! Codes: Postgres' "Error Codes" (SQLSTATE, the SQL standard's and its own), and MySQL's and MariaDB's
//! error numbers, whose SQLSTATE is often a bare "HY000"; those are put with what they are in Postgres.

use crate::channel::outgoing::Cause;
use crate::channel::{Failure, Retry, text};
use sqlx::mysql::MySqlDatabaseError;
use sqlx::postgres::PgDatabaseError;
use std::io;

/// How much of a server's words is kept.
const WORDS_CHARS_MAX: usize = 200;

/// How far it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    /// The server reads the statement; it has no value yet.
    Preparing,
    /// The statement went out with its values.
    Running,
}

/// The failure that a driver's error is. What may be told of it holds no value, no user and no secret.
pub(super) fn failure(
    place: &str,
    phase: Phase,
    error: &sqlx::Error,
    password: Option<&str>,
) -> Failure {
    let sqlx::Error::Database(refused) = error else {
        return lost(place, phase, error);
    };
    let (code, state, constraint) = if let Some(mysql) = refused.try_downcast_ref() {
        let mysql: &MySqlDatabaseError = mysql;
        let state = mysql_state(mysql.number(), mysql.code().unwrap_or_default());
        (format!("error {}", mysql.number()), state.to_owned(), None)
    } else {
        let postgres: Option<&PgDatabaseError> = refused.try_downcast_ref();
        let state = postgres.map_or("", PgDatabaseError::code).to_owned();
        let constraint = postgres.and_then(|error| error.constraint());
        (
            format!("SQLSTATE {}", text::one_line(&state, 5)),
            state,
            constraint,
        )
    };
    let (why, retry) = meaning(&state, phase);
    let mut error = format!(
        "{place} refused {}: {why} ({code}",
        match phase {
            Phase::Connecting => "the connection",
            Phase::Preparing => "the statement",
            Phase::Running => "the row",
        }
    );
    // A trigger could put data there, an identifier of a table's owner is none.
    if let Some(name) = constraint.filter(|name| is_identifier(name)) {
        error.push_str(&format!(", constraint {name}"));
    }
    error.push(')');
    let words = text::one_line(refused.message(), WORDS_CHARS_MAX);
    let secret = password.is_some_and(|password| refused.message().contains(password));
    if phase == Phase::Preparing && !secret && !words.is_empty() {
        error.push_str(&format!(": {words}"));
    }
    Failure::new(None, error, retry)
}

/// What it means that there was no answer, or none that makes sense.
fn lost(place: &str, phase: Phase, error: &sqlx::Error) -> Failure {
    match error {
        sqlx::Error::Configuration(_) => {
            return Failure::never(format!(
                "{place} asks for a way to log in that is not known here without TLS"
            ));
        }
        // Ours, about the number of places.
        sqlx::Error::InvalidArgument(why) => {
            return Failure::never(format!("nothing was sent to {place}: {why}"));
        }
        _ => {}
    }
    let cause = match error {
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "it was closed".to_owned()
        }
        sqlx::Error::Io(error) => text::one_line(&Cause::of(error).text, WORDS_CHARS_MAX),
        // The driver's words can hold what the server sent.
        _ => "its answer is not the protocol's".to_owned(),
    };
    Failure::later(match phase {
        Phase::Connecting => format!("no connection to {place}: {cause}"),
        Phase::Preparing => format!("the connection to {place} broke: {cause}"),
        Phase::Running => format!(
            "the connection to {place} broke: {cause}; the statement was sent, and whether it ran is not known"
        ),
    })
    .ambiguous(phase == Phase::Running)
}

/// What comes of a CALL through PgBouncer; other statements work there.
const POOLED: &str = "its pooler loses prepared statements between transactions; set pool_mode = session there, or max_prepared_statements from PgBouncer 1.21 on";

/// What a code means and whether it passes. What is not known is tried again.
fn meaning(state: &str, phase: Phase) -> (&'static str, Retry) {
    let class = state.get(..2).unwrap_or_default();
    match (class, state) {
        (_, "23505") => ("a value that must be unique is there already", Retry::Never),
        (_, "23503") => ("it refers to what is not there", Retry::Never),
        (_, "23502") => ("a column may not be NULL", Retry::Never),
        (_, "23514") => ("a check of the table failed", Retry::Never),
        ("23" | "27" | "44", _) => ("a constraint of the table is violated", Retry::Never),
        ("21" | "22", _) => ("a value does not fit", Retry::Never),
        (_, "08P01") if phase == Phase::Connecting => (
            "a pooler in its place refuses such a connection; it has to know the database and the user, and for a CALL `options` has to stand in its ignore_startup_parameters",
            Retry::Later,
        ),
        (_, "08P01") if phase == Phase::Running => (
            "the statement has places for another number of values than are bound",
            Retry::Never,
        ),
        // Refused before anything ran: prepared on one connection of the pool, looked for on another.
        (_, "26000" | "42P05") => (POOLED, Retry::Later),
        (_, "22P05") => (
            "a value has a NUL in it (\\u0000), which jsonb and text cannot hold",
            Retry::Never,
        ),
        (_, "42501") => ("the user may not do that", Retry::Never),
        ("20" | "26" | "2F" | "34" | "42", _) => {
            ("the statement does not fit the database", Retry::Never)
        }
        ("28", _) => ("the username or password is not accepted", Retry::Never),
        ("3D" | "3F", _) => ("there is no such database or schema", Retry::Never),
        ("45" | "P0", _) => ("the database's own code raised an error", Retry::Never),
        (_, "25006") => ("it takes no writes now", Retry::Later),
        (_, "40P01") => ("a deadlock", Retry::Later),
        ("40", _) => ("it clashed with another transaction", Retry::Later),
        (_, "53300") => ("too many connections", Retry::Later),
        ("53", _) => ("it has no room left", Retry::Later),
        (_, "55P03") => ("what it writes to is locked", Retry::Later),
        (_, "57014") => ("the statement took too long or was cancelled", Retry::Later),
        ("57", _) => ("it is starting or stopping", Retry::Later),
        // A prepared statement can be outdated by a changed table; a new connection prepares anew.
        ("0A", _) if phase == Phase::Running => ("it cannot do that now", Retry::Later),
        ("0A", _) => ("it cannot do that", Retry::Never),
        _ => ("an error on its side", Retry::Later),
    }
}

/// The SQLSTATE that a MySQL or MariaDB error has or should have.
fn mysql_state(number: u16, state: &str) -> &str {
    match number {
        1040 | 1203 | 1226 => "53300",
        1021 | 1037 | 1038 | 1041 | 1114 => "53000",
        1044 | 1142 | 1143 | 1227 | 1370 => "42501",
        1045 | 1130 | 1251 | 1698 => "28000",
        1048 | 1364 => "23502",
        1053 | 1129 | 1927 => "57P01",
        1062 | 1586 | 1859 => "23505",
        1205 => "55P03",
        1213 => "40P01",
        1216 | 1217 | 1451 | 1452 => "23503",
        1210 | 1295 => "42000",
        1265 | 1366 | 1411 | 1525 | 1526 => "22000",
        1290 | 1792 | 1836 => "25006",
        1317 | 1969 | 3024 => "57014",
        3819 | 4025 => "23514",
        _ => state,
    }
}

/// Whether it is what people call constraints, and no data.
fn is_identifier(name: &str) -> bool {
    (1..=63).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_tried_again_and_nothing_else() {
        let retry = |state| meaning(state, Phase::Running).1;
        for state in [
            "08006", "25006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01",
            "57P03", "58030", "XX000", "HY000", "70100", "0A000", "", "é",
        ] {
            assert_eq!(retry(state), Retry::Later, "{state}");
        }
        for state in [
            "21S01", "22001", "22P02", "23000", "23505", "28000", "28P01", "3D000", "42000",
            "42501", "42601", "42P01", "42S02", "44000", "45000", "P0001",
        ] {
            assert_eq!(retry(state), Retry::Never, "{state}");
        }
        assert_eq!(meaning("0A000", Phase::Preparing).1, Retry::Never);
        // What a pooler says passes, or says what to set.
        for (state, phase) in [
            ("26000", Phase::Running),
            ("42P05", Phase::Preparing),
            ("08P01", Phase::Connecting),
        ] {
            let (why, retry) = meaning(state, phase);
            assert_eq!(retry, Retry::Later, "{state}");
            assert!(why.contains("pooler"), "{why}");
        }
        assert_eq!(meaning("08P01", Phase::Running).1, Retry::Never);
        let mysql = |number, state| retry(mysql_state(number, state));
        for (number, state) in [
            (1040, "08004"),
            (1203, "42000"),
            (1205, "HY000"),
            (1213, "40001"),
            (1290, "HY000"),
        ] {
            assert_eq!(mysql(number, state), Retry::Later, "{number}");
        }
        for (number, state) in [
            (1045, "28000"),
            (1049, "42000"),
            (1062, "23000"),
            (1064, "42000"),
            (1146, "42S02"),
            (1364, "HY000"),
            (1366, "HY000"),
            (1406, "22001"),
            (3819, "HY000"),
        ] {
            assert_eq!(mysql(number, state), Retry::Never, "{number}");
        }
    }

    #[test]
    fn a_lost_connection_leaves_open_what_is_open() {
        let reset = || sqlx::Error::Io(std::io::Error::from_raw_os_error(104));
        let told = |phase| failure("db.example", phase, &reset(), None);
        let sending = told(Phase::Running);
        assert_eq!(sending.retry, Retry::Later);
        assert_eq!(
            sending.error,
            "the connection to db.example broke: connection reset; the statement was sent, and whether it ran is not known"
        );
        assert_eq!(
            told(Phase::Connecting).error,
            "no connection to db.example: connection reset"
        );
        let protocol = sqlx::Error::Protocol("unexpected: a secret".into());
        let error = failure("db.example", Phase::Preparing, &protocol, None).error;
        assert_eq!(
            error,
            "the connection to db.example broke: its answer is not the protocol's"
        );
    }
}
