//! `hooksieve backup`: everything that a running engine's store holds, in one file.

use super::client::Remote;
use super::{Failure, style};
use hooksieve::private;
use std::io::{BufWriter, IsTerminal as _, Write, stdout};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(
    after_help = "What is written is read by `hooksieve store import`. Keep the data folder's files `secrets-key`, `link-key` and \
    `operator-token`, where it has them, in another place: with the first, the backup's secrets can be read."
)]
pub(crate) struct Args {
    /// The file; `-` is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { file, remote } = args;
    if file == Path::new("-") {
        if stdout().is_terminal() {
            return Err(Failure::Input(
                "a backup is no text for a terminal; name a file".to_owned(),
            ));
        }
        let mut to = BufWriter::new(stdout().lock());
        remote.download("/v1/backup", &mut to)?;
        return Ok(to.flush()?);
    }
    let named = |error: std::io::Error| Failure::input(format!("{}: {error}", file.display()));
    let mut to = BufWriter::new(private::create_new(&file).map_err(named)?);
    let taken = remote.download("/v1/backup", &mut to).inspect_err(|_| {
        // Half a backup is of no use, and in the way of the next try.
        let _ = std::fs::remove_file(&file);
    })?;
    let to = to.into_inner().map_err(|error| named(error.into_error()))?;
    to.sync_all().map_err(named)?;
    if remote.json {
        anstream::println!("{}", serde_json::json!({ "bytes": taken }));
    } else {
        anstream::println!("{} in {}", style::bytes(taken), file.display());
    }
    Ok(())
}
