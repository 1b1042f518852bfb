//! `hooksieve record`: events with what was decided of them, in one file for `hooksieve replay`.

use super::rules::Whose;
use super::{Failure, style};
use hooksieve::id::Name;
use hooksieve::private;
use hooksieve::recording::Writer;
use hooksieve::replay::{BadInput, Defaults, read};
use std::io::{self, BufWriter, IsTerminal as _, Write, stdout};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(
    after_help = "Texts under keys such as email or phone, and texts that are mail addresses, are masked letter by letter unless \
    --personal is given; decisions are masked alike. Signatures, tokens and cookies never were in an event."
)]
pub(crate) struct Args {
    /// The file, such as events.hsr; `-` is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Events that came in since then: a time such as 2026-03-01T00:00:00Z, or 30m, 24h, 7d [default: all]
    #[arg(long, value_name = "TIME", conflicts_with = "from")]
    since: Option<String>,
    /// Only events that this rule was asked about
    #[arg(long, value_name = "NAME", conflicts_with = "from")]
    rule: Option<Name>,
    /// JSON files instead of an engine: a file, or a folder
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
    /// The source that raw payloads are taken to come from
    #[arg(long, value_name = "NAME", default_value = "github", requires = "from")]
    source: Name,
    /// The sender's event name of raw payloads, such as issues; their action is added to it [default: the
    /// folder that they are in, below the one that is given]
    #[arg(long = "type", value_name = "NAME", requires = "from")]
    kind: Option<String>,
    /// With what looks personal
    #[arg(long)]
    personal: bool,
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let file = &args.file;
    if file == Path::new("-") {
        if stdout().is_terminal() {
            return Err(Failure::Input(
                "a recording is no text for a terminal; name a file".to_owned(),
            ));
        }
        return write(&args, &mut stdout().lock());
    }
    let named = |error: io::Error| Failure::input(format!("{}: {error}", file.display()));
    if file.exists() {
        let file = file.display();
        return Err(Failure::Input(format!(
            "there is {file} already; name another file, or remove it"
        )));
    }
    let mut to = BufWriter::new(private::create_new(file).map_err(named)?);
    write(&args, &mut to).inspect_err(|_| {
        // Half a recording is of no use, and in the way of the next try.
        let _ = std::fs::remove_file(file);
    })?;
    to.flush().map_err(named)?;
    let bytes = std::fs::metadata(file).map_err(named)?.len();
    if args.whose.remote.json {
        anstream::println!("{}", serde_json::json!({ "bytes": bytes }));
    } else {
        anstream::println!("{} in {}", style::bytes(bytes), file.display());
    }
    Ok(())
}

fn write(args: &Args, to: &mut dyn Write) -> Result<(), Failure> {
    let Some(from) = &args.from else {
        let mut path = format!(
            "{}/recording?personal={}",
            args.whose.base()?,
            args.personal
        );
        if let Some(since) = &args.since {
            path += &format!("&since={}", moment(since)?);
        }
        if let Some(rule) = &args.rule {
            path += &format!("&rule={rule}");
        }
        return args.whose.remote.download(&path, to).map(drop);
    };
    let defaults = Defaults {
        tenant: "recorded".parse().map_err(Failure::input)?,
        source: args.source.clone(),
        kind: args.kind.clone(),
    };
    let mut writer = Writer::new(to, !args.personal)?;
    read::<Stop>(from, &defaults, &mut |recorded| {
        Ok(writer.recorded(&recorded)?)
    })?;
    writer.end()?;
    Ok(())
}

/// A moment that is named, or that long ago.
fn moment(text: &str) -> Result<String, Failure> {
    if let Ok(moment) = text.parse::<jiff::Timestamp>() {
        return Ok(moment.to_string());
    }
    let wrong = || {
        Failure::Input(format!(
            "--since {text:?} is no time: write 2026-03-01T00:00:00Z, or 30m, 24h, 7d"
        ))
    };
    let unit = text.chars().last().ok_or_else(wrong)?;
    let number = text
        .strip_suffix(unit)
        .and_then(|it| it.parse::<i64>().ok());
    let minutes = match unit {
        'm' => 1,
        'h' => 60,
        'd' => 24 * 60,
        _ => return Err(wrong()),
    };
    let ago = number
        .filter(|it| (0..=1_000_000).contains(it))
        .ok_or_else(wrong)?
        * minutes;
    let span = jiff::Span::new().minutes(ago);
    let moment = jiff::Timestamp::now().checked_sub(span);
    Ok(moment.map_err(Failure::input)?.to_string())
}

/// What ends the reading of files.
enum Stop {
    Input(BadInput),
    Output(io::Error),
}

impl From<BadInput> for Stop {
    fn from(bad: BadInput) -> Self {
        Stop::Input(bad)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Output(error)
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Input(bad) => Failure::input(bad),
            Stop::Output(error) => error.into(),
        }
    }
}
