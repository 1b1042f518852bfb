//! What is printed: tables for people, or one JSON object a line.
#![allow(clippy::print_stdout, reason = "this is the program's output")]

use crate::events::Input;
use crate::holds::{Counts, Held};
use crate::measure::Times;
use crate::runners::{REFERENCE, Row};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::process::Command;

pub(crate) struct Report {
    json: bool,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// The machine, the events, and how much is measured. Not in JSON.
    pub(crate) fn machine(&self, inputs: &[Input], counts: &Counts) {
        if self.json {
            return;
        }
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        println!("{}", said("date", &["-u", "+%F %R UTC"]));
        println!(
            "{}, {cores} cores, {}, {}",
            cpu(),
            said("uname", &["-sr"]),
            said("rustc", &["--version"])
        );
        for input in inputs {
            println!(
                "event of {} bytes, index of {}: {}",
                input.event.len(),
                input.index.len(),
                input.what
            );
        }
        println!("{counts}");
    }

    /// What is made anew for each event, and what serves them all. Not in JSON.
    pub(crate) fn runners(&self, rows: &[Row]) {
        if self.json {
            return;
        }
        let mut table = table(&["runner", "version", "how"]);
        for row in rows {
            table.add_row([row.name, &row.version, row.how]);
        }
        println!("\n{table}");
    }

    /// All rows' times for one payload.
    pub(crate) fn times(&self, times: &[Times]) {
        if self.json {
            return lines(times);
        }
        let reference = times.iter().find(|row| row.runner == REFERENCE);
        let mut table = table(&[
            "runner",
            "bytes",
            "mean µs",
            "p50 µs",
            "p99 µs",
            "per second",
            "isolated",
            "to warm reset",
        ]);
        for column in [1, 2, 3, 4, 5, 7] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for row in times {
            let ratio = reference.map_or(String::new(), |reference| {
                format!("{:.2}", row.mean_us / reference.mean_us)
            });
            table.add_row([
                row.runner.to_owned(),
                row.payload_bytes.to_string(),
                format!("{:.2}", row.mean_us),
                format!("{:.2}", row.p50_us),
                format!("{:.2}", row.p99_us),
                format!("{:.0}", row.per_second),
                if row.isolated { "yes" } else { "no" }.to_owned(),
                ratio,
            ]);
        }
        println!("\n{table}");
    }

    /// What must hold, and what was reached.
    pub(crate) fn held(&self, held: &[Held]) {
        if self.json {
            return lines(held);
        }
        let mut table = table(&["what must hold", "target", "reached", "", "how"]);
        for row in held {
            let verdict = match row.holds {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            };
            table.add_row([&row.what, &row.target, &row.reached, verdict, &row.how]);
        }
        println!("\n{table}");
    }
}

fn lines<T: Serialize>(rows: &[T]) {
    for row in rows {
        match serde_json::to_string(row) {
            Ok(line) => println!("{line}"),
            Err(error) => unreachable!("plain figures: {error}"),
        }
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(header);
    table
}

/// The first line that a command prints, or that it is not known.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map_or_else(|_| Vec::new(), |output| output.stdout);
    match String::from_utf8_lossy(&text).lines().next() {
        Some(line) => line.to_owned(),
        None => format!("unknown ({program} says nothing)"),
    }
}

fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split(": ").nth(1))
            .unwrap_or("?")
            .to_owned()
    };
    format!(
        "{} (family {}, model {})",
        of("model name"),
        of("cpu family"),
        of("model\t")
    )
}
