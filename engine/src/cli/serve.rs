//! `hooksieve serve`: runs the engine until it is told to stop.

use super::{Failure, block_on, environment};
use hooksieve::config::{Config, Log, LogFormat, Telemetry};
use hooksieve::serve::Engine;
use hooksieve::telemetry::{self, Logs};
use hooksieve::tenant::Tenant;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A file that overrides the defaults (engine/defaults.toml explains every setting)
    #[arg(long, value_name = "FILE", env = "HOOKSIEVE_CONFIG")]
    config: Option<PathBuf>,
    /// The folder with a file for each tenant, <name>.toml [default: tenants]
    #[arg(long, value_name = "DIR")]
    tenants: Option<PathBuf>,
    /// The folder of the store [default: hooksieve-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one [default: 127.0.0.1:8646]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let env = environment();
    let mut config = Config::load(args.config.as_deref(), &env)?;
    if let Some(tenants) = args.tenants {
        config.server.tenants = tenants;
    }
    if let Some(data) = args.data {
        config.server.data = data;
    }
    if let Some(listen) = args.listen {
        config.server.listen = listen;
    }
    let logs = start_log(&config.log, &config.telemetry)?;
    allow_open_files();
    let tenants = Tenant::load_all(&config.server.tenants, &env, config.dispatch.timeout_ms)?;
    block_on(async {
        // Asked for before anything starts, so that no signal is missed.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let engine = Engine::start_told(&config, tenants, logs).await?;
        let (tenants, rules) = engine.counts;
        anstream::println!(
            "hooksieve {} listens on {} (tenants: {tenants}, rules: {rules}, data: {})",
            env!("CARGO_PKG_VERSION"),
            engine.base(),
            config.server.data.display()
        );
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => reload(&engine, &config, &env).await,
            }
        }
        tracing::info!("stopping: what is under way is finished first");
        if engine.stop().await {
            Ok(())
        } else {
            Err(Failure::outcome(
                "some deliveries were still under way when the drain time ended; they go on at the next start",
            ))
        }
    })
}

/// Reads the certificate and the tenants' files again. Whatever is wrong in either leaves it as it was.
async fn reload(engine: &Engine, config: &Config, env: &BTreeMap<String, String>) {
    if let Err(error) = engine.reload_certificate() {
        tracing::error!(%error, "the certificate is not taken; the one of before stays");
    }
    let (folder, timeout_ms) = (config.server.tenants.clone(), config.dispatch.timeout_ms);
    let env = env.clone();
    let read = tokio::task::spawn_blocking(move || Tenant::load_all(&folder, &env, timeout_ms));
    let reloaded = match read.await {
        Ok(Ok(tenants)) => engine.reload(tenants).await.map_err(|it| it.to_string()),
        Ok(Err(problem)) => Err(problem.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match reloaded {
        Ok((tenants, rules)) => tracing::info!(tenants, rules, "the tenants' files are read again"),
        Err(error) => {
            tracing::error!(
                error,
                "the tenants' files are not taken; the tenants stay as they were"
            );
        }
    }
}

/// Connections and loaded modules each hold an open file, and the usual limit of 1,024 is meant for
/// other programs: takes as many as this process may have.
#[allow(unsafe_code)]
fn allow_open_files() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure lives until both calls have returned.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// The log goes to standard error, and to the collector where one is named.
pub(super) fn start_log(log: &Log, telemetry: &Telemetry) -> Result<Option<Logs>, Failure> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|error| Failure::Input(format!("`level` of [log]: {error}")))?;
    let (layer, logs) = telemetry::logs(telemetry).unzip();
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .with(layer)
        .init();
    Ok(logs)
}
