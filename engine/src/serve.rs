//! The running engine: the parts wired together, started and stopped as one. What `hooksieve serve`
//! runs, what the demo and the tests run, and what an embedding program calls.
//!
//! Everything that can be wrong is found before the port opens: configuration, tenants, modules,
//! certificates, the store.

mod listener;
mod pieces;
mod rest;
mod tls;

use crate::acknowledge::Links;
use crate::admin;
use crate::channel::Outgoing;
use crate::channel::guard::Guard;
use crate::clock::now_ms;
use crate::config::Config;
use crate::config::read::Problem;
use crate::dispatch::{self, Dispatcher, Switches};
use crate::housekeeping::{self, Housekeeper, Watermark};
use crate::id::Name;
use crate::ingest::Ingest;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::pipeline::{Pipeline, Rules, Workers};
use crate::private;
use crate::quota::CallRates;
use crate::registry::{self, Registry};
use crate::sandbox::{Cache, Kept, Sandbox};
use crate::secret::Secret;
use crate::share::Shares;
use crate::store::{self, SledStore, Store};
use crate::telemetry;
use crate::tenant::Tenant;
use axum::Router;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tls::Tls;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] Problem),
    #[error(
        "{listen} is a public address, and the engine has no operator token: set HOOKSIEVE_OPERATOR_TOKEN to a long random text, or listen on 127.0.0.1"
    )]
    NeedsToken { listen: SocketAddr },
    #[error(
        "the source `{source_name}` of tenant `{tenant}` is open to everyone, and {listen} is not a loopback address: give it a `token`"
    )]
    OpenSource {
        tenant: Name,
        source_name: Name,
        listen: SocketAddr,
    },
    #[error("cannot listen on {listen}: {error}; choose another address with --listen")]
    Bind {
        listen: SocketAddr,
        error: std::io::Error,
    },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("{path}: {error}", path = path.display())]
    File { path: PathBuf, error: String },
    #[error("the system gives no thread: {0}")]
    Threads(std::io::Error),
}

/// A running engine.
pub struct Engine {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The token behind which `/v1` stands.
    pub token: Secret,
    /// How many tenants and rules it runs.
    pub counts: (usize, usize),
    tls: Option<Arc<Tls>>,
    ingest: Stage,
    pipeline: Stage,
    dispatch: Stage,
    telemetry: Stage,
    drain: Duration,
    store: Arc<dyn Store>,
    tenants: Tenants,
}

/// All that a change of the tenants' files reaches.
struct Tenants {
    config: Config,
    sandbox: Sandbox,
    lanes: Arc<Pipeline>,
    registry: Arc<Registry>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

/// One part that runs until it is told to end.
struct Stage {
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl Stage {
    fn new() -> Self {
        Self {
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    async fn end(&self, within: Duration) -> bool {
        self.cancel.cancel();
        self.tasks.close();
        tokio::time::timeout(within, self.tasks.wait())
            .await
            .is_ok()
    }
}

impl Engine {
    /// Starts everything; when this returns, the port is open.
    ///
    /// # Errors
    /// The first thing that is wrong; then nothing runs.
    pub async fn start(config: &Config, tenants: Vec<Tenant>) -> Result<Self, StartError> {
        Self::start_told(config, tenants, None).await
    }

    /// The same, and what the log says goes to the collector as well.
    ///
    /// # Errors
    /// The first thing that is wrong; then nothing runs.
    pub async fn start_told(
        config: &Config,
        tenants: Vec<Tenant>,
        logs: Option<telemetry::Logs>,
    ) -> Result<Self, StartError> {
        let listen = config.server.listen;
        if config.server.operator_token.is_none() && !listen.ip().is_loopback() {
            return Err(StartError::NeedsToken { listen });
        }
        check(&tenants, config)?;
        let sandbox = sandbox(config)?;
        let rules = rules(&tenants, &sandbox, config)?;
        let live = Arc::new(Live::default());
        let counts = counts(&tenants);
        let outgoing = Arc::new(outgoing(config)?);
        let tls = Tls::open(&config.server)?;

        let store = open_store(config).await?;
        let token = match &config.server.operator_token {
            Some(token) => token.clone(),
            None => kept_secret(&config.server.data, LOCAL_TOKEN_FILE)?,
        };
        // Validated with the configuration.
        let base = url::Url::parse(&config.server.public_url).ok();
        let links = Links::new(base, kept_secret(&config.server.data, LINK_KEY_FILE)?);
        let listener = TcpListener::bind(listen)
            .await
            .map_err(|error| StartError::Bind { listen, error })?;
        let addr = listener
            .local_addr()
            .map_err(|error| StartError::Bind { listen, error })?;
        let kept = Kept {
            count_max: config.decide.instances_max,
            bytes_max: config.decide.instances_bytes_max,
        };
        let workers = Workers::start(config.decide.threads, kept).map_err(StartError::Threads)?;

        let (traces, exporter) =
            telemetry::start(&config.telemetry).map_err(|error| StartError::File {
                path: "otlp_endpoint".into(),
                error,
            })?;
        let mut metrics = Metrics::new(tenants.iter().map(|tenant| &tenant.name));
        metrics.traces = traces;
        let metrics = Arc::new(metrics);
        let pipeline = Pipeline::new(
            store.clone(),
            Arc::new(workers),
            metrics.clone(),
            config.decide.batch_max,
        );
        let pipeline = Arc::new(pipeline);
        let secrets_key = match &config.server.secrets_key {
            Some(key) => key.clone(),
            None => kept_secret(&config.server.data, SECRETS_KEY_FILE)?,
        };
        let parts = registry::Parts {
            store: store.clone(),
            pipeline: pipeline.clone(),
            live: live.clone(),
            sandbox: sandbox.clone(),
            secrets_key,
            limits: config.uploads.clone(),
            bounds: bounds(config),
            room: registry::Room {
                path: config.server.data.clone(),
                disk_free_bytes_min: config.store.disk_free_bytes_min,
                code_bytes_max: config.compile.code_bytes_max,
            },
        };
        let registry = Arc::new(Registry::open(parts, tenants, rules).await?);
        let wake: dispatch::Wake = {
            let pipeline = pipeline.clone();
            Arc::new(move |tenant: &Name| pipeline.wake(tenant))
        };
        let switches = Arc::new(Switches::load(store.clone(), wake).await?);
        let watermark = Arc::new(Watermark::default());
        let ingest = Ingest::new(
            live.clone(),
            store.clone(),
            pipeline.clone(),
            watermark.clone(),
            metrics.clone(),
            registry.clone(),
            config,
        );
        let ingest_stage = Stage::new();
        let admin = admin::Admin {
            store: store.clone(),
            pipeline: pipeline.clone(),
            live: live.clone(),
            outgoing: outgoing.clone(),
            switches: switches.clone(),
            watermark: watermark.clone(),
            registry: registry.clone(),
            metrics: metrics.clone(),
            data: config.server.data.clone(),
            token: token.clone(),
            module_bytes_max: config.limits.module_bytes,
            request_timeout: Duration::from_millis(config.server.request_timeout_ms),
            public_host: public_host(&config.server.public_url),
            behind_https: tls.is_some() || config.server.public_url.starts_with("https://"),
            feeds: Shares::new(admin::FEEDS_MAX, admin::FEEDS_OF_TENANT_MAX),
            rates: CallRates::new(config.server.calls_per_s),
            calls: Shares::new(admin::CALLS_MAX, admin::CALLS_OF_TENANT_MAX),
            cancel: ingest_stage.cancel.clone(),
        };
        let app = Router::new()
            .merge(ingest.router())
            .merge(links.clone().router(store.clone()))
            .merge(admin.router())
            .fallback(admin::unknown)
            .method_not_allowed_fallback(admin::wrong_method);

        let engine = Self {
            addr,
            token,
            counts,
            tls: tls.clone(),
            ingest: ingest_stage,
            pipeline: Stage::new(),
            dispatch: Stage::new(),
            telemetry: Stage::new(),
            drain: Duration::from_millis(config.server.drain_ms),
            store: store.clone(),
            tenants: Tenants {
                config: config.clone(),
                sandbox,
                lanes: pipeline.clone(),
                registry,
                changing: tokio::sync::Mutex::default(),
            },
        };
        if let Some(exporter) = exporter {
            let exported = exporter.run(logs, engine.telemetry.cancel.clone());
            engine.telemetry.tasks.spawn(exported);
        }
        let housekeeper = Housekeeper::new(
            store.clone(),
            pipeline.clone(),
            watermark,
            live.clone(),
            housekeeping_settings(config),
        );
        engine
            .dispatch
            .tasks
            .spawn(housekeeper.run(engine.dispatch.cancel.clone()));
        let dispatcher = Dispatcher::new(
            store,
            live,
            outgoing,
            links,
            switches,
            dispatch_settings(config, metrics),
            Arc::new(now_ms),
        );
        engine
            .dispatch
            .tasks
            .spawn(dispatcher.run(engine.dispatch.cancel.clone()));
        engine
            .pipeline
            .tasks
            .spawn(pipeline.run(engine.pipeline.cancel.clone()));
        let (registry, cancel) = (
            engine.tenants.registry.clone(),
            engine.pipeline.cancel.clone(),
        );
        engine.pipeline.tasks.spawn(async move {
            loop {
                let ends = tokio::time::timeout(TALLIES_EVERY, cancel.cancelled()).await;
                if let Err(error) = registry.keep_tallies().await {
                    tracing::error!(%error, "what shadows decide is not kept");
                }
                if ends.is_ok() {
                    return;
                }
            }
        });
        let cancel = engine.ingest.cancel.clone();
        let connections_max = config.server.connections_max;
        let headers_timeout = Duration::from_millis(config.server.request_timeout_ms);
        engine.ingest.tasks.spawn(async move {
            let served =
                listener::serve(listener, tls, app, connections_max, headers_timeout, cancel);
            served.await;
        });
        Ok(engine)
    }

    /// Its address as a URL.
    pub fn base(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.addr)
    }

    /// The store, for a program that embeds the engine.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Reads the certificate and its key again, for the connections to come.
    ///
    /// # Errors
    /// When they cannot be used; then those of before stay.
    pub fn reload_certificate(&self) -> Result<(), StartError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.reload())
    }

    /// Takes these tenants instead of those that it has, without a pause: each event is decided by the
    /// rules of before or by the new ones. What is under way goes on; rules that were uploaded stay.
    /// Returns how many tenants and rules there are.
    ///
    /// # Errors
    /// The first thing that is wrong; then all stays as it was.
    pub async fn reload(&self, tenants: Vec<Tenant>) -> Result<(usize, usize), StartError> {
        let Tenants {
            config,
            sandbox,
            lanes,
            registry,
            changing,
        } = &self.tenants;
        let _changing = changing.lock().await;
        check(&tenants, config)?;
        let (sandbox, settings) = (sandbox.clone(), config.clone());
        // Compiling blocks.
        let compiled = tokio::task::spawn_blocking(move || {
            let rules = rules(&tenants, &sandbox, &settings);
            rules.map(|rules| (tenants, rules))
        });
        let (tenants, rules) = compiled
            .await
            .map_err(|error| StartError::Threads(std::io::Error::other(error)))??;
        let counts = counts(&tenants);
        registry.replace(tenants, rules).await?;
        lanes.begin_lanes();
        Ok(counts)
    }

    /// Stops in the order of the flow: no new events, then no new decisions, then no new deliveries;
    /// what is under way is waited for, each for at most the drain time. Whatever is left is in the
    /// store and goes on at the next start. Returns whether everything ended in time.
    pub async fn stop(self) -> bool {
        let mut in_time = true;
        for stage in [
            &self.ingest,
            &self.pipeline,
            &self.dispatch,
            &self.telemetry,
        ] {
            in_time &= stage.end(self.drain).await;
        }
        in_time
    }
}

/// How many tenants these are, and how many rules.
fn counts(tenants: &[Tenant]) -> (usize, usize) {
    let rules = tenants.iter().map(|tenant| tenant.rules.len());
    (tenants.len(), rules.sum())
}

fn bounds(config: &Config) -> registry::Bounds {
    registry::Bounds {
        quotas: config.quotas,
        limits_max: config.limits_max,
        quarantine: config.quarantine,
        timeout_ms: config.dispatch.timeout_ms,
        lease_ms: config.dispatch.lease_ms,
        loopback: config.server.listen.ip().is_loopback(),
    }
}

fn rules(tenants: &[Tenant], sandbox: &Sandbox, config: &Config) -> Result<Vec<Rules>, StartError> {
    let rules = Rules::compile(tenants, sandbox)?;
    let bounded = tenants.iter().zip(rules).map(|(tenant, rules)| {
        let quotas = tenant.quotas.over(&config.quotas);
        rules.bounded(quotas.fuel_per_s, config.quarantine)
    });
    Ok(bounded.collect())
}

/// What fits the tenants alone, and not how the engine is configured.
fn check(tenants: &[Tenant], config: &Config) -> Result<(), StartError> {
    let listen = config.server.listen;
    let lease_ms = config.dispatch.lease_ms;
    for tenant in tenants {
        let open = tenant
            .sources
            .values()
            .find(|source| source.verify.is_open());
        if let (Some(source), false) = (open, listen.ip().is_loopback()) {
            return Err(StartError::OpenSource {
                tenant: tenant.name.clone(),
                source_name: source.name.clone(),
                listen,
            });
        }
        tenant.limits.check(&config.limits_max).map_err(|message| {
            StartError::Config(Problem {
                place: format!("tenant `{}`", tenant.name),
                message,
            })
        })?;
        // An attempt that outlasts its lease would be made twice at once.
        for (name, channel) in &tenant.channels {
            if channel.timeout() >= Duration::from_millis(lease_ms) {
                return Err(StartError::Config(Problem {
                    place: format!("channel `{name}` of tenant `{}`", tenant.name),
                    message: format!(
                        "its timeout_ms must be shorter than the {lease_ms} ms of `lease_ms` in [dispatch]"
                    ),
                }));
            }
        }
    }
    Ok(())
}

fn outgoing(config: &Config) -> Result<Outgoing, StartError> {
    let path = &config.egress.ca_file;
    let failed = |error: String| StartError::File {
        path: path.clone(),
        error,
    };
    let pem = if path.as_os_str().is_empty() {
        None
    } else {
        Some(
            std::fs::read(path)
                .map_err(|error| failed(format!("ca_file cannot be read: {error}")))?,
        )
    };
    let guard = Guard::new(&config.egress.allow);
    let outgoing = Outgoing::new(pem.as_deref(), guard).map_err(failed)?;
    outgoing.named(&config.egress.name).map_err(|message| {
        StartError::Config(Problem {
            place: "`name` of [egress]".into(),
            message,
        })
    })
}

/// Modules are compiled in processes of their own and kept in the data folder.
fn sandbox(config: &Config) -> Result<Sandbox, StartError> {
    let folder = config.server.data.join("modules");
    private::close_to_others(&folder);
    let cache = Cache::open(&folder).map_err(|error| StartError::File {
        path: folder,
        error: format!("the cache of compiled modules cannot be used: {error}"),
    })?;
    Ok(Sandbox::new(config.limits.clone())
        .compile_in_child(config.compile)
        .cached(cache))
}

fn dispatch_settings(config: &Config, metrics: Arc<Metrics>) -> dispatch::Settings {
    let dispatch = &config.dispatch;
    dispatch::Settings {
        in_flight_max: dispatch.in_flight_max,
        in_flight_per_channel_max: dispatch.in_flight_per_channel_max,
        lease_ms: dispatch.lease_ms as i64,
        disable_after_ms: dispatch.disable_after_ms as i64,
        metrics,
        schedule: dispatch::Schedule {
            waits_ms: dispatch.retry_ms.clone(),
        },
    }
}

fn housekeeping_settings(config: &Config) -> housekeeping::Settings {
    let store = &config.store;
    housekeeping::Settings {
        path: config.server.data.clone(),
        keep_ms: store.keep_s as i64 * 1_000,
        dead_keep_ms: store.dead_keep_s as i64 * 1_000,
        bytes_max: store.bytes_max,
        disk_free_bytes_min: store.disk_free_bytes_min,
    }
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StartError> {
    let path = config.server.data.clone();
    let options = store::Options {
        duplicate_window_ms: config.store.duplicate_window_s as i64 * 1_000,
        cache_bytes: config.store.cache_bytes,
        queue_max: config.store.queue_max,
        group_max: config.store.group_max,
        due_loaded_max: DUE_LOADED_MAX,
    };
    // Payloads stand there as they came: they are its owner's alone to read.
    private::create_folder(&path).map_err(|error| StartError::File {
        path: path.clone(),
        error: format!("the data folder cannot be made: {error}; name another with --data"),
    })?;
    private::warn_of_open_folder(&path);
    // Opening reads from disk, for long where the store is large.
    let opened = tokio::task::spawn_blocking(move || SledStore::open(&path.join("store"), options));
    match opened.await {
        Ok(store) => Ok(Arc::new(store?)),
        Err(error) => Err(StartError::File {
            path: config.server.data.clone(),
            error: error.to_string(),
        }),
    }
}

/// How often it is kept what shadows were found to decide.
const TALLIES_EVERY: Duration = Duration::from_secs(20);

/// Due deliveries of one channel that are kept in memory; what waits beyond them waits on disk.
const DUE_LOADED_MAX: usize = 1_024;

/// The file with the token of an engine that was given none.
pub const LOCAL_TOKEN_FILE: &str = "operator-token";

/// The file with the key that seals secrets, where none is configured.
const SECRETS_KEY_FILE: &str = "secrets-key";

/// The file with the key that signs the links in messages.
const LINK_KEY_FILE: &str = "link-key";

/// A secret of the engine's own: made once, kept in the data folder for its owner alone.
fn kept_secret(data: &Path, name: &str) -> Result<Secret, StartError> {
    let path = data.join(name);
    let failed = |error: String| StartError::File {
        path: path.clone(),
        error,
    };
    private::close_to_others(&path);
    match private::read(&path) {
        Ok(text) if text.trim().len() >= KEPT_SECRET_BYTES_MIN => {
            return Ok(Secret::new(text.trim()));
        }
        // A power cut may have left that of an earlier version.
        Ok(text) if text.trim().is_empty() => {}
        Ok(text) => {
            return Err(failed(format!(
                "it holds a secret of {} bytes, and {KEPT_SECRET_BYTES_MIN} are the least; give it a longer one, or remove the file, and another is made",
                text.trim().len()
            )));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error.to_string())),
    }
    let bytes: [u8; 24] = rand::random();
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    private::write(&path, token.as_bytes()).map_err(|error| failed(error.to_string()))?;
    Ok(Secret::new(token))
}

/// The host of an address as browsers write it in `Origin`.
fn public_host(url: &str) -> String {
    let url = url::Url::parse(url).ok();
    let origin = url.map(|url| url.origin().ascii_serialization());
    let host = origin.as_deref().and_then(|it| it.split_once("://"));
    host.map(|(_, host)| host.to_owned()).unwrap_or_default()
}

/// The shortest secret that a file of ours may hold.
const KEPT_SECRET_BYTES_MIN: usize = 16;
