//! The tenant's statement, looked at before a server sees it: one, of a kind that writes or calls, with
//! as many places as values are bound. Pure.
//!
//! The server is what enforces it: it prepares one statement and no more. This is for saying it with
//! file and line before a port opens, so what is not understood here is left to the server.

use std::collections::BTreeSet;

/// What a statement may begin with. Nothing that changes the connection for the next one (`SET`,
/// `BEGIN`), speaks another protocol (`COPY`) or reads a file of ours (`LOAD DATA LOCAL`).
const VERBS: [&str; 8] = [
    "call", "delete", "insert", "merge", "replace", "select", "update", "with",
];
const STATEMENT_BYTES_MAX: usize = 64 * 1024;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Postgres,
    /// MySQL or MariaDB.
    MySql,
}

impl Driver {
    /// The port that its servers listen on.
    pub fn port(self) -> u16 {
        match self {
            Driver::Postgres => 5432,
            Driver::MySql => 3306,
        }
    }
}

/// Checks a statement that so many values are bound to.
pub(super) fn check(statement: &str, driver: Driver, values: usize) -> Result<(), String> {
    if statement.len() > STATEMENT_BYTES_MAX {
        return Err(format!(
            "the statement has {} bytes, and at most {STATEMENT_BYTES_MAX} are sent",
            statement.len()
        ));
    }
    if statement.contains('\0') {
        return Err("the statement has a NUL in it".into());
    }
    let verb: String = statement
        .trim_start()
        .chars()
        .take_while(char::is_ascii_alphabetic)
        .collect();
    if !VERBS.contains(&verb.to_ascii_lowercase().as_str()) {
        return Err(format!(
            "the statement begins with {verb:?}; there are {}",
            VERBS.join(", ")
        ));
    }
    let read = read(statement, driver);
    if read.more {
        return Err("the statement is more than one; a channel runs one".into());
    }
    let places = match driver {
        Driver::MySql => read.marks,
        Driver::Postgres => {
            let last = read.numbers.last().copied().unwrap_or_default();
            if let Some(unused) = (1..=last.min(values)).find(|n| !read.numbers.contains(n)) {
                return Err(format!(
                    "value {unused} is bound and ${unused} is not in the statement"
                ));
            }
            last
        }
    };
    if places != values {
        let example = match driver {
            Driver::Postgres => "$1, $2",
            Driver::MySql => "?, ?",
        };
        return Err(format!(
            "the statement has places for {places} values ({example}), and `values` lists {values}"
        ));
    }
    Ok(())
}

/// Whether it may end transactions by itself, which a procedure may; so it has none around it.
pub(super) fn ends_by_itself(statement: &str) -> bool {
    let begins = statement.trim_start().get(.."call".len());
    begins.is_some_and(|verb| verb.eq_ignore_ascii_case("call"))
}

/// What stands in a statement outside of its strings, names and comments.
#[derive(Default)]
struct Read {
    /// How many `?`.
    marks: usize,
    /// The n of every `$n`.
    numbers: BTreeSet<usize>,
    /// Something follows a semicolon.
    more: bool,
}

fn read(statement: &str, driver: Driver) -> Read {
    let mysql = driver == Driver::MySql;
    let mut read = Read::default();
    let mut rest = statement;
    let mut ended = false;
    // The character before, which tells `a$1` from `$1` and `E'...'` from `'...'`.
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        let of = match c {
            '\'' => quoted(rest, c, mysql || matches!(before, 'e' | 'E')),
            '"' => quoted(rest, c, mysql),
            '`' if mysql => quoted(rest, c, false),
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '#' if mysql => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => past(rest, 2, "*/"),
            '$' if !mysql && !is_word(before) => dollar(rest, &mut read),
            _ => c.len_utf8(),
        };
        let comment = c.is_whitespace() || (of > 1 && matches!(c, '-' | '#' | '/'));
        read.more |= ended && !comment && c != ';';
        ended |= c == ';';
        read.marks += usize::from(mysql && c == '?');
        before = c;
        rest = &rest[of..];
    }
    read
}

/// How long the quoted text is that `rest` begins with. A quote that stands twice is two texts, which
/// comes to the same.
fn quoted(rest: &str, quote: char, escapes: bool) -> usize {
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return at + c.len_utf8();
        }
        if c == '\\' && escapes {
            chars.next();
        }
    }
    rest.len()
}

/// How long `rest` is up to and with `end`.
fn past(rest: &str, from: usize, end: &str) -> usize {
    rest[from..]
        .find(end)
        .map_or(rest.len(), |at| from + at + end.len())
}

/// A place (`$1`), a quoted text (`$$...$$`, `$tag$...$tag$`), or a dollar.
fn dollar(rest: &str, read: &mut Read) -> usize {
    let word: String = rest[1..].chars().take_while(|c| is_word(*c)).collect();
    let long = 1 + word.len();
    if let Ok(number) = word.parse() {
        read.numbers.insert(number);
        return long;
    }
    match rest[long..].starts_with('$') {
        true => past(rest, long + 1, &rest[..=long]),
        false => long,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(driver: Driver, statement: &str, values: usize) -> String {
        check(statement, driver, values).expect_err(statement)
    }

    #[test]
    fn places_are_counted_where_they_are_places() {
        for (statement, values) in [
            ("INSERT INTO a VALUES ($1, $2, $1)", 2),
            ("  insert into a values ('$2', \"$3\", $1) -- $4\n", 1),
            ("INSERT INTO a VALUES ($1) /* $2; */ ;", 1),
            ("SELECT $$ it's $2; $$, $x$ $3 $y$ $x$, $1;  -- done", 1),
            (r"SELECT E'it\'s $2; ', 'a\', $1", 1),
            ("SELECT 'it''s; $2', a$2, é", 0),
            ("with a as (select 1) select * from a", 0),
        ] {
            assert_eq!(
                check(statement, Driver::Postgres, values),
                Ok(()),
                "{statement}"
            );
        }
        for (statement, values) in [
            ("INSERT INTO `a?` VALUES (?, '?', \"?\", ?) # ?\n", 2),
            (r"REPLACE INTO a VALUES ('it\'s ?; ', ?) -- ?", 1),
        ] {
            assert_eq!(
                check(statement, Driver::MySql, values),
                Ok(()),
                "{statement}"
            );
        }
    }

    #[test]
    fn what_cannot_work_is_said() {
        let one = refused(Driver::Postgres, "INSERT INTO a VALUES ($1, $2)", 1);
        assert_eq!(
            one,
            "the statement has places for 2 values ($1, $2), and `values` lists 1"
        );
        let unused = refused(Driver::Postgres, "INSERT INTO a VALUES ($1, $3)", 3);
        assert_eq!(unused, "value 2 is bound and $2 is not in the statement");
        for (driver, statement) in [
            (Driver::Postgres, "DELETE FROM a; DELETE FROM b"),
            (Driver::Postgres, "DELETE FROM a;;/**/ 'x'"),
            (Driver::MySql, "DELETE FROM a; DELETE FROM b"),
        ] {
            let two = refused(driver, statement, 0);
            assert_eq!(two, "the statement is more than one; a channel runs one");
        }
        for statement in [
            "",
            "SET a = 1",
            "BEGIN",
            "COPY a FROM STDIN",
            "-- a\nSELECT 1",
        ] {
            let verb = refused(Driver::MySql, statement, 0);
            assert!(verb.starts_with("the statement begins with "), "{verb}");
        }
        assert!(refused(Driver::MySql, "SELECT '\0'", 0).contains("NUL"));
        let long = format!("SELECT '{}'", "x".repeat(STATEMENT_BYTES_MAX));
        assert!(refused(Driver::MySql, &long, 0).contains("at most 65536"));
    }
}
