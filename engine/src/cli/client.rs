//! Calls to a running engine, which owns its store: the token, the address, and its errors as they
//! are.

use super::{Failure, block_on, environment, login};
use hooksieve::config::Config;
use hooksieve::private;
use hooksieve::serve::LOCAL_TOKEN_FILE;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Where the engine is, and what it asks for.
#[derive(clap::Args)]
pub(crate) struct Remote {
    /// Where the engine listens [default: http:// and the configured address]
    #[arg(long, value_name = "URL", env = "HOOKSIEVE_URL", global = true)]
    url: Option<String>,
    /// A file with a token [default: HOOKSIEVE_TOKEN, HOOKSIEVE_OPERATOR_TOKEN, what `hooksieve login`
    /// has kept, then <data>/operator-token]
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// The engine's data folder, where its own token is
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// One JSON value instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What problem+json is read for.
#[derive(Deserialize)]
struct Problem {
    title: String,
    detail: String,
}

impl Remote {
    /// One call, and its answer as JSON of a known shape.
    pub(crate) fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, Failure> {
        self.send(method, path, |request| request)
    }

    /// One call with a body or headers.
    pub(crate) fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<T, Failure> {
        let (base, token) = self.place()?;
        send(&base, &token, method, path, with)
    }

    /// Writes what a call is answered, however long it is; gives its length.
    pub(crate) fn download(&self, path: &str, to: &mut dyn Write) -> Result<u64, Failure> {
        let (base, token) = self.place()?;
        block_on(async {
            let request = client(None)?
                .get(format!("{base}{path}"))
                .bearer_auth(token);
            let mut response = answered(&base, request).await?;
            let mut bytes = 0;
            while let Some(chunk) = response.chunk().await.map_err(|error| {
                Failure::outcome(format!("{base} broke off: {error}; its log says why"))
            })? {
                to.write_all(&chunk)?;
                bytes += chunk.len() as u64;
            }
            Ok(bytes)
        })
    }

    /// Where the engine is, and with which token it is asked. A token that was kept for one engine is
    /// not sent to another.
    fn place(&self) -> Result<(String, String), Failure> {
        let config = Config::load(None, &environment())?;
        let kept = if self.data.is_some() || self.token_file.is_some() {
            None
        } else {
            login::kept()?
        };
        let base = match (&self.url, &kept) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(kept)) => kept.url.clone(),
            (None, None) => format!("http://{}", config.server.listen),
        };
        let kept = kept.filter(|kept| kept.url == base);
        let token = match std::env::var("HOOKSIEVE_TOKEN") {
            Ok(token) if self.token_file.is_none() && self.data.is_none() => token,
            _ => match (kept, &config.server.operator_token) {
                (Some(kept), None) => kept.token,
                _ => self.token(&config)?,
            },
        };
        Ok((base, token.trim().to_owned()))
    }

    fn token(&self, config: &Config) -> Result<String, Failure> {
        let (path, read) = match (&self.token_file, &config.server.operator_token) {
            // Where that leads is for whoever names it to say.
            (Some(path), _) => (path.clone(), std::fs::read_to_string(path)),
            (None, Some(token)) if self.data.is_none() => return Ok(token.expose().to_owned()),
            _ => {
                let data = self.data.as_ref().unwrap_or(&config.server.data);
                let path = data.join(LOCAL_TOKEN_FILE);
                let read = private::read(&path);
                (path, read)
            }
        };
        match read {
            Ok(token) => Ok(token.trim().to_owned()),
            Err(error) => Err(Failure::Input(format!(
                "the operator token cannot be read from {}: {error}; set HOOKSIEVE_OPERATOR_TOKEN, name the engine's data folder with --data, or sign in with `hooksieve login`",
                path.display()
            ))),
        }
    }
}

/// One call to an engine.
pub(crate) fn send<T: DeserializeOwned>(
    base: &str,
    token: &str,
    method: Method,
    path: &str,
    with: impl FnOnce(RequestBuilder) -> RequestBuilder,
) -> Result<T, Failure> {
    block_on(async {
        let request = client(Some(TIMEOUT))?
            .request(method, format!("{base}{path}"))
            .bearer_auth(token);
        let response = answered(base, with(request)).await?;
        let body = response.bytes().await.map_err(Failure::outcome)?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::outcome(format!("the answer of {base} is not understood: {error}"))
        })
    })
}

/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often, and for how long at most, is waited where an engine says that calls come too fast.
const PATIENCE: u32 = 5;
const RETRY_AFTER_S_MAX: u64 = 10;

fn client(timeout: Option<Duration>) -> Result<reqwest::Client, Failure> {
    // Fails only where a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .connect_timeout(TIMEOUT)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    match timeout {
        Some(timeout) => client.timeout(timeout),
        None => client.read_timeout(TIMEOUT),
    }
    .build()
    .map_err(Failure::outcome)
}

/// What a call was answered, if that is a success.
async fn answered(base: &str, request: RequestBuilder) -> Result<reqwest::Response, Failure> {
    for patience in (0..=PATIENCE).rev() {
        // Bodies are bytes in memory, so there is always a copy.
        let Some(copy) = request.try_clone() else {
            break;
        };
        let response = copy.send().await.map_err(|error| {
            if error.is_connect() {
                Failure::Outcome(Some(format!(
                    "no engine answers at {base}: start it with `hooksieve serve`, or name it with --url"
                )))
            } else {
                Failure::outcome(error)
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait_s = response.headers().get(reqwest::header::RETRY_AFTER);
        let wait_s = wait_s.and_then(|it| it.to_str().ok()?.parse::<u64>().ok());
        if let (StatusCode::TOO_MANY_REQUESTS, Some(wait_s), true) = (status, wait_s, patience > 0)
        {
            tokio::time::sleep(Duration::from_secs(wait_s.min(RETRY_AFTER_S_MAX))).await;
            continue;
        }
        let body = response.bytes().await.map_err(Failure::outcome)?;
        return match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(Failure::outcome(format!(
                "{}: {}",
                problem.title, problem.detail
            ))),
            Err(_) => Err(Failure::outcome(format!("{base} answered {status}"))),
        };
    }
    Err(Failure::outcome(format!("{base} did not take the call")))
}
