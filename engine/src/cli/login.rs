//! `hooksieve login`: an engine's address and a token for it, kept for the other commands.

use super::client::send;
use super::{Failure, style};
use hooksieve::admin::WhoView;
use hooksieve::private;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::io::IsTerminal as _;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the engine is, such as https://hooks.example.com
    #[arg(value_name = "URL", env = "HOOKSIEVE_URL")]
    url: String,
    /// A file with the token [default: standard input]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// What is kept of a login.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) url: String,
    pub(crate) token: String,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let url = args.url.trim_end_matches('/').to_owned();
    let web = url::Url::parse(&url).is_ok_and(|it| matches!(it.scheme(), "http" | "https"));
    if !web {
        let sentence = format!("{:?} is no http or https address", args.url);
        return Err(Failure::Input(sentence));
    }
    let token = match &args.token_file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::Input(format!("{} cannot be read: {error}", path.display()))
        })?,
        None => {
            if std::io::stdin().is_terminal() {
                anstream::eprintln!("Paste the token, then press Enter:");
            }
            let mut line = String::new();
            std::io::stdin().read_line(&mut line)?;
            line
        }
    };
    let token = token.trim().to_owned();
    if token.is_empty() {
        return Err(Failure::Input("the token is empty".to_owned()));
    }
    // Only what works is kept.
    let who: WhoView = send(&url, &token, Method::GET, "/v1/whoami", |it| it)?;
    let path = path()?;
    let unwritable = |error: std::io::Error| {
        Failure::Outcome(Some(format!(
            "{} cannot be written: {error}",
            path.display()
        )))
    };
    if let Some(folder) = path.parent() {
        private::create_folder(folder).map_err(unwritable)?;
    }
    let text = toml::to_string(&Kept { url, token }).map_err(Failure::outcome)?;
    private::write(&path, text.as_bytes()).map_err(unwritable)?;
    let good = style::GOOD;
    let of = who
        .tenant
        .map(|tenant| format!(" of the tenant {tenant}"))
        .unwrap_or_default();
    anstream::println!(
        "{good}signed in{good:#} as {}, {}{of}; kept in {}",
        style::clean(&who.who),
        who.scope,
        path.display()
    );
    Ok(())
}

/// What the last login has kept.
pub(crate) fn kept() -> Result<Option<Kept>, Failure> {
    let Ok(path) = path() else {
        return Ok(None);
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map(Some).map_err(|error| {
            Failure::Input(format!(
                "{} is not what `hooksieve login` writes: {}; sign in again",
                path.display(),
                error.message()
            ))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Input(format!(
            "{} cannot be read: {error}",
            path.display()
        ))),
    }
}

/// In the folder that the XDG rules name.
fn path() -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).filter(|it| !it.is_empty());
    let folder = set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config")));
    let folder = folder.ok_or_else(|| {
        Failure::Input(
            "neither XDG_CONFIG_HOME nor HOME is set: where is the token to be kept?".to_owned(),
        )
    })?;
    Ok(folder.join("hooksieve").join("login.toml"))
}
