//! How what a rule makes of events differs from what is expected, or from what another module makes of them.

use crate::cli::{Failure, style};
use hooksieve::replay::Recorded;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::fs::{File, Permissions};
use std::io::{BufRead as _, BufReader, BufWriter, Lines, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// What one event comes to, as it is compared and kept: nothing in it is other on another machine.
pub(super) type Made = Value;

/// One field that is other than it was.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct Difference {
    pub(super) field: String,
    pub(super) before: Value,
    pub(super) after: Value,
}

/// Field by field, what is other.
pub(super) fn differences(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    differ("", before, after, &mut found);
    found
}

fn differ(at: &str, before: &Value, after: &Value, found: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    let inner = |key: &str| match at {
        "" => key.to_owned(),
        at => format!("{at}.{key}"),
    };
    // What is not there at all has none of the fields that the other has.
    let none = Value::Object(serde_json::Map::new());
    let (before, after) = match (before, after) {
        (Value::Null, Value::Object(_)) => (&none, after),
        (Value::Object(_), Value::Null) => (before, &none),
        both => both,
    };
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let new = after.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(new) {
                let value = |of: &serde_json::Map<String, Value>| {
                    of.get(key).cloned().unwrap_or(Value::Null)
                };
                differ(&inner(key), &value(before), &value(after), found);
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for at_index in 0..before.len().max(after.len()) {
                let value = |of: &[Value]| of.get(at_index).cloned().unwrap_or(Value::Null);
                let inner = format!("{at}[{at_index}]");
                differ(&inner, &value(before), &value(after), found);
            }
        }
        _ => found.push(Difference {
            field: at.to_owned(),
            before: before.clone(),
            after: after.clone(),
        }),
    }
}

/// Writes the differences of an event as a person wants to read them.
pub(super) fn show(
    of: &Recorded,
    found: &[Difference],
    out: &mut impl Write,
) -> std::io::Result<()> {
    let (bold, dim, bad, good) = (style::HEADING, style::DIM, style::BAD, style::GOOD);
    let (kind, name) = (style::clean(&of.event.kind), style::clean(of.name()));
    writeln!(out, "{bold}{kind}{bold:#} {dim}{name}{dim:#}")?;
    if let [only] = found
        && (only.field.as_str(), only.before.is_null()) == ("event", true)
    {
        return writeln!(out, "  {bad}new{bad:#}: it is not among what is expected");
    }
    for Difference {
        field,
        before,
        after,
    } in found
    {
        let (before, after) = (shown(before), shown(after));
        writeln!(
            out,
            "  {field:<32} {bad}{before}{bad:#} -> {good}{after}{good:#}"
        )?;
    }
    Ok(())
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => style::clean(text),
        other => style::clean(&other.to_string()),
    }
}

/// A file of what is expected: one JSON object a line, each an event's, found by the event's id.
pub(super) struct Expected {
    path: PathBuf,
    lines: Lines<BufReader<File>>,
    number: usize,
    /// Lines that were passed on the way to another event's. None while both are in the same order.
    passed: HashMap<String, VecDeque<Made>>,
}

impl Expected {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| {
            Failure::Input(format!(
                "{}: {error}; --bless writes what the rule makes of the events now",
                path.display()
            ))
        })?;
        Ok(Self {
            path: path.to_owned(),
            lines: BufReader::new(file).lines(),
            number: 0,
            passed: HashMap::new(),
        })
    }

    /// What an event is expected to come to; `None` of one that the file does not have.
    pub(super) fn of(&mut self, id: &str) -> Result<Option<Made>, Failure> {
        if let Some(passed) = self.passed.get_mut(id) {
            let made = passed.pop_front();
            if passed.is_empty() {
                self.passed.remove(id);
            }
            return Ok(made);
        }
        while let Some((its, made)) = self.line()? {
            if its == id {
                return Ok(Some(made));
            }
            self.passed.entry(its).or_default().push_back(made);
        }
        Ok(None)
    }

    fn line(&mut self) -> Result<Option<(String, Made)>, Failure> {
        let Some(line) = self.lines.next() else {
            return Ok(None);
        };
        self.number += 1;
        let (path, number) = (self.path.display(), self.number);
        let wrong = |why: String| {
            Failure::Input(format!(
                "{path}:{number}: not a line that --bless wrote: {why}"
            ))
        };
        let made: Made = serde_json::from_str(&line?).map_err(|error| wrong(error.to_string()))?;
        let id = made.pointer("/event/id").and_then(Value::as_str);
        let id = id.ok_or_else(|| wrong("it has no event.id".to_owned()))?;
        Ok(Some((id.to_owned(), made)))
    }

    /// The ids of what is expected beyond the events that were seen.
    pub(super) fn missing(&mut self) -> Result<Vec<String>, Failure> {
        let mut missing: Vec<String> = Vec::new();
        for (id, made) in self.passed.drain() {
            missing.extend(made.iter().map(|_| id.clone()));
        }
        missing.sort();
        while let Some((id, _)) = self.line()? {
            missing.push(id);
        }
        Ok(missing)
    }
}

/// What is told of an event that the file does not have.
pub(super) fn new(made: &Made) -> Vec<Difference> {
    vec![Difference {
        field: "event".to_owned(),
        before: Value::Null,
        after: made.get("event").cloned().unwrap_or_default(),
    }]
}

/// Leaves fuel out of a comparison where it was counted in prices of another version; gives that version.
pub(super) fn in_same_prices(before: &mut Made, after: &Made) -> Option<u64> {
    // What was kept before prices had a version is of the first.
    let version = before.get("prices").and_then(Value::as_u64).unwrap_or(1);
    before["prices"] = after["prices"].clone();
    (after["prices"] != version).then(|| {
        before["fuel"] = after["fuel"].clone();
        version
    })
}

/// Whether a difference is of fuel alone, and of at most so many percent.
pub(super) fn about_as_much_fuel(difference: &Difference, percent: f64) -> bool {
    let numbers = difference.before.as_f64().zip(difference.after.as_f64());
    difference.field == "fuel"
        && numbers.is_some_and(|(before, after)| (after - before).abs() <= before * percent / 100.0)
}

/// What is expected from now on, in place of the file only when all of it is written.
pub(super) struct Blessed {
    path: PathBuf,
    to: BufWriter<tempfile::NamedTempFile>,
    pub(super) events: u64,
}

impl Blessed {
    pub(super) fn new(path: &Path) -> Result<Self, Failure> {
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
        // As any file that is made, and not for its owner alone: it is kept beside the rule.
        let file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder.unwrap_or(Path::new(".")));
        let file = file.map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
        Ok(Self {
            path: path.to_owned(),
            to: BufWriter::new(file),
            events: 0,
        })
    }

    pub(super) fn add(&mut self, made: &Made) -> std::io::Result<()> {
        self.events += 1;
        writeln!(self.to, "{made}")
    }

    pub(super) fn keep(self) -> Result<(), Failure> {
        let failed = |error: String| Failure::input(format!("{}: {error}", self.path.display()));
        let file = self
            .to
            .into_inner()
            .map_err(|error| failed(error.to_string()))?;
        let kept = file.persist(&self.path);
        kept.map(drop).map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fuel_of_other_prices_is_not_compared() {
        let after = json!({ "fuel": 50, "prices": 2 });
        let compared = |mut before: Value| {
            let version = in_same_prices(&mut before, &after);
            (version, differences(&before, &after).len())
        };
        assert_eq!(compared(json!({ "fuel": 20 })), (Some(1), 0));
        assert_eq!(compared(json!({ "fuel": 20, "prices": 3 })), (Some(3), 0));
        assert_eq!(compared(json!({ "fuel": 20, "prices": 2 })), (None, 1));
        assert_eq!(compared(json!({ "fuel": 50, "prices": 2 })), (None, 0));
    }

    #[test]
    fn each_field_that_is_other_is_named() {
        let before = json!({ "a": 1, "b": { "c": [1, 2] }, "gone": true });
        let after = json!({ "a": 1, "b": { "c": [1, 3, 4] }, "new": "x" });
        let found = differences(&before, &after);
        let told: Vec<String> = found
            .iter()
            .map(|it| format!("{} {} {}", it.field, it.before, it.after))
            .collect();
        assert_eq!(
            told,
            [
                "b.c[1] 2 3",
                "b.c[2] null 4",
                "gone true null",
                "new null \"x\""
            ]
        );
        assert_eq!(differences(&after, &after), []);
        let fuel = |before: u64, after: u64| Difference {
            field: "fuel".to_owned(),
            before: before.into(),
            after: after.into(),
        };
        assert!(about_as_much_fuel(&fuel(1_000, 1_100), 10.0));
        assert!(!about_as_much_fuel(&fuel(1_000, 1_101), 10.0));
        assert!(!about_as_much_fuel(&fuel(1_000, 1_001), 0.0));
        let appeared = differences(&json!({ "d": null }), &json!({ "d": { "e": 5 } }));
        assert_eq!((appeared.len(), &*appeared[0].field), (1, "d.e"));
    }
}
