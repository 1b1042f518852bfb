//! `hooksieve store`: a store that no engine has open, as a whole.

use super::{Failure, environment, style};
use hooksieve::clock::now_ms;
use hooksieve::config::Config;
use hooksieve::{private, store};
use std::fs::File;
use std::io::{BufReader, BufWriter, IsTerminal, Read, Write, stderr, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a terminal is told how far it came.
const TOLD_EVERY: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
#[command(after_help = "The engine must not be running: one process has a store open at a time.")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    /// The engine's data folder [default: as configured]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Read every row, and say what is broken or does not fit together
    Check {
        /// One JSON value instead of text
        #[arg(long)]
        json: bool,
    },
    /// Write everything in it to a file
    Export {
        /// The file; `-` is standard output
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Leave out what cannot be read, where the store is damaged
        #[arg(long)]
        readable: bool,
    },
    /// Make a new store of an exported file
    Import {
        /// The file; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let data = match args.data {
        Some(data) => data,
        None => Config::load(None, &environment())?.server.data,
    };
    let path = data.join("store");
    match args.command {
        Command::Check { json } => check(&path, json),
        Command::Export { file, readable } => export(&path, &file, readable),
        Command::Import { file } => import(&path, &file),
    }
}

fn check(path: &Path, json: bool) -> Result<(), Failure> {
    // What cannot be read is in the report; sled's own words would come a hundred times over.
    std::panic::set_hook(Box::new(|_| {}));
    let mut progress = Progress::new("rows read");
    let report = store::check(path, &mut |rows| progress.tell(rows)).map_err(Failure::input)?;
    progress.end();
    if json {
        anstream::println!("{}", serde_json::json!(report));
    } else {
        let mut table = style::table(&["rows of", "number", "bytes"]);
        for (kind, found) in &report.kinds {
            table.add_row([
                *kind,
                &style::grouped(found.rows),
                &style::bytes(found.bytes),
            ]);
        }
        anstream::println!("{table}");
        anstream::println!("on disk: {}", style::bytes(report.file_bytes));
        for told in &report.told {
            anstream::println!(
                "{bad}fault{bad:#}  {}",
                style::clean(told),
                bad = style::BAD
            );
        }
    }
    match report.faults {
        0 => {
            if !json {
                let good = style::GOOD;
                anstream::println!("{good}The store is whole.{good:#}");
            }
            Ok(())
        }
        faults => Err(Failure::Outcome(Some(format!(
            "the store at {} has {faults} faults; what else it holds can be exported and is served on",
            path.display()
        )))),
    }
}

fn export(path: &Path, file: &Path, readable: bool) -> Result<(), Failure> {
    let mut progress = Progress::new("rows written");
    let mut tell = |rows| progress.tell(rows);
    let mut write = |to: &mut dyn Write| match readable {
        false => store::export(path, to, now_ms(), &mut tell).map(|rows| (rows, 0)),
        true => store::export_readable(path, to, now_ms(), &mut tell),
    };
    if readable {
        // Each place that cannot be read would say so, a hundred times over.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let failed = |error: store::TransferError| match error {
        store::TransferError::Write(_) => Failure::outcome(error),
        error => Failure::input(error),
    };
    let (rows, gaps) = if file == Path::new("-") {
        if stdout().is_terminal() {
            return Err(Failure::Input(
                "an export is no text for a terminal; name a file".to_owned(),
            ));
        }
        let mut to = BufWriter::new(stdout().lock());
        write(&mut to).map_err(failed)?
    } else {
        let named = |error: std::io::Error| Failure::input(format!("{}: {error}", file.display()));
        let mut to = BufWriter::new(private::create_new(file).map_err(named)?);
        let rows = write(&mut to).inspect_err(|_| {
            // Half an export is of no use, and in the way of the next try.
            let _ = std::fs::remove_file(file);
        });
        let rows = rows.map_err(failed)?;
        to.into_inner()
            .map_err(|error| named(error.into_error()))?
            .sync_all()
            .map_err(named)?;
        rows
    };
    progress.end();
    anstream::eprintln!("Rows exported: {}.", style::grouped(rows));
    match gaps {
        0 => Ok(()),
        gaps => Err(Failure::Outcome(Some(format!(
            "the store at {} cannot be read in {gaps} places, and what stood there is not in the export; `hooksieve store import FILE --data NEW` makes a new store of it, of which `hooksieve store check` says what does not fit together",
            path.display()
        )))),
    }
}

fn import(path: &Path, file: &Path) -> Result<(), Failure> {
    let mut from: Box<dyn Read> = if file == Path::new("-") {
        Box::new(stdin().lock())
    } else {
        let opened = File::open(file);
        let named = |error| Failure::input(format!("{}: {error}", file.display()));
        Box::new(BufReader::new(opened.map_err(named)?))
    };
    let mut progress = Progress::new("rows read");
    let rows = store::import(path, &mut from, &mut |rows| progress.tell(rows));
    let rows = rows.map_err(Failure::input)?;
    progress.end();
    anstream::println!(
        "Rows imported into {}: {}.",
        path.display(),
        style::grouped(rows)
    );
    Ok(())
}

/// One line on a terminal that says how far it came.
struct Progress {
    what: &'static str,
    told: Option<Instant>,
    shown: bool,
}

impl Progress {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            told: Some(Instant::now()).filter(|_| stderr().is_terminal()),
            shown: false,
        }
    }

    fn tell(&mut self, rows: u64) {
        if let Some(told) = &mut self.told
            && told.elapsed() >= TOLD_EVERY
        {
            *told = Instant::now();
            self.shown = true;
            let _ = write!(stderr(), "\r{} {}", style::grouped(rows), self.what);
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}
