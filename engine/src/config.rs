//! The configuration: `defaults.toml`, then a file, then the environment; all of it validated before
//! a port opens. The default file is also the list of what exists, so that an unknown key can be
//! named with the nearest right one.

pub mod read;

use crate::channel::guard::Network;
use crate::dispatch::{WAIT_MS_MAX, WAITS_MAX};
use crate::pipeline::quarantine;
use crate::sandbox::{CompileLimits, Limits};
use crate::secret::Secret;
use read::{Problem, Source, did_you_mean};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The default configuration, as text.
pub const DEFAULTS: &str = include_str!("../defaults.toml");

/// What the engine runs with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: Server,
    pub log: Log,
    pub store: Store,
    pub decide: Decide,
    pub compile: CompileLimits,
    pub uploads: Uploads,
    pub quotas: Quotas,
    pub quarantine: quarantine::Settings,
    pub limits: Limits,
    pub limits_max: LimitsMax,
    pub dispatch: Dispatch,
    pub egress: Egress,
    pub telemetry: Telemetry,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Where the engine is reached from outside; empty where it is not said.
    pub public_url: String,
    pub listen: SocketAddr,
    /// Empty where TLS is somebody else's business.
    pub tls_cert: PathBuf,
    pub tls_key: PathBuf,
    pub tenants: PathBuf,
    pub data: PathBuf,
    #[serde(skip)]
    pub operator_token: Option<Secret>,
    #[serde(skip)]
    pub secrets_key: Option<Secret>,
    pub body_bytes_max: usize,
    pub request_timeout_ms: u64,
    pub requests_max: usize,
    pub connections_max: usize,
    pub calls_per_s: u32,
    pub drain_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    pub duplicate_window_s: u64,
    pub cache_bytes: u64,
    pub queue_max: usize,
    pub group_max: usize,
    pub keep_s: u64,
    pub dead_keep_s: u64,
    pub bytes_max: u64,
    pub disk_free_bytes_min: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decide {
    pub threads: usize,
    pub batch_max: usize,
    pub instances_max: usize,
    pub instances_bytes_max: usize,
}

/// What a tenant may set up over HTTP.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploads {
    pub rules_max: usize,
    pub versions_max: usize,
    pub versions_bytes_max: usize,
    pub modules_bytes_max: u64,
    pub code_bytes_max: u64,
    pub compile_s_per_hour: u64,
    pub sources_max: usize,
    pub channels_max: usize,
}

/// What a tenant may use, unless its file says otherwise; 0 is no quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quotas {
    pub events_per_s: u32,
    pub fuel_per_s: u64,
    pub deliveries_per_s: u32,
    pub stored_bytes: u64,
}

/// What one tenant's limits may be raised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsMax {
    pub fuel: u64,
    pub memory_bytes: u64,
    pub actions: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dispatch {
    pub in_flight_max: usize,
    pub in_flight_per_channel_max: usize,
    pub lease_ms: u64,
    pub timeout_ms: u64,
    pub retry_ms: Vec<u64>,
    pub disable_after_ms: u64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    pub allow: Vec<Network>,
    pub ca_file: PathBuf,
    /// What mail servers are told; empty for the host's name.
    pub name: String,
}

/// Where traces and logs go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Empty for nowhere.
    pub otlp_endpoint: String,
    pub traces_percent: u64,
}

impl Config {
    /// The defaults alone.
    pub fn built_in() -> Self {
        match Self::load(None, &BTreeMap::new()) {
            Ok(config) => config,
            Err(problem) => unreachable!("defaults.toml is part of the program: {problem}"),
        }
    }

    /// The defaults, overridden by a file and by variables of the environment.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place.
    pub fn load(file: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Self, Problem> {
        let defaults: Table = match DEFAULTS.parse() {
            Ok(table) => table,
            Err(error) => unreachable!("defaults.toml is part of the program: {error}"),
        };
        let mut settings = Settings::new(defaults);
        if let Some(path) = file {
            settings.file(&Source::open(path)?)?;
        }
        settings.environment(env)?;
        settings.finish(env)
    }
}

/// A list in a variable: its items with commas between them.
fn listed(text: &str, numbers: bool) -> Option<Value> {
    let items = text.split(',').map(str::trim);
    let read = items.filter(|item| !item.is_empty()).map(|item| {
        if numbers {
            item.replace('_', "").parse().ok().map(Value::Integer)
        } else {
            Some(Value::String(item.to_owned()))
        }
    });
    read.collect::<Option<_>>().map(Value::Array)
}

/// The merged tables, with the place where each setting was set.
struct Settings {
    table: Table,
    places: BTreeMap<(String, String), String>,
}

/// What stands behind a name of the environment or a file, in `[server]`; and the fewest characters.
const SECRETS: [(&str, usize); 2] = [
    ("operator_token", TOKEN_BYTES_MIN),
    ("secrets_key", KEY_BYTES_MIN),
];

impl Settings {
    fn new(table: Table) -> Self {
        Self {
            table,
            places: BTreeMap::new(),
        }
    }

    fn file(&mut self, source: &Source) -> Result<(), Problem> {
        let parsed = source.parse()?;
        for (section, value) in parsed.get_ref() {
            let at = |message: String| source.problem(section.span(), message);
            let name = section.get_ref().as_ref();
            let Some(Value::Table(known)) = self.table.get_mut(name) else {
                let sections = self.table.keys().map(String::as_str);
                let mean = did_you_mean(name, sections);
                return Err(at(format!("there is no section `[{name}]`{mean}")));
            };
            let Some(keys) = value.get_ref().as_table() else {
                return Err(at(format!("`{name}` is a section: write [{name}]")));
            };
            for (key, value) in keys {
                let key_name = key.get_ref().as_ref();
                let Some(default) = known.get(key_name) else {
                    let mean = did_you_mean(key_name, known.keys().map(String::as_str));
                    let message = format!("[{name}] has no key `{key_name}`{mean}");
                    return Err(source.problem(key.span(), message));
                };
                let place = source.problem(value.span(), "").place;
                let new = read::plain(value.get_ref()).unwrap_or(Value::Boolean(false));
                if new.type_str() != default.type_str() {
                    let what = format!(
                        "`{key_name}` of [{name}] is {}, not {}",
                        read::with_article(new.type_str()),
                        read::with_article(default.type_str())
                    );
                    let secret = SECRETS.iter().any(|(secret, _)| *secret == key_name);
                    let message = if name == "server" && secret {
                        "a secret does not stand in the file: write { env = \"NAME\" } or { file = \"PATH\" }".to_owned()
                    } else {
                        what
                    };
                    return Err(source.problem(value.span(), message));
                }
                self.places
                    .insert((name.to_owned(), key_name.to_owned()), place);
                known.insert(key_name.to_owned(), new);
            }
        }
        Ok(())
    }

    /// Variables of the form `HOOKSIEVE_<SECTION>__<KEY>`; others with the prefix are somebody's
    /// secrets or options of the command line.
    fn environment(&mut self, env: &BTreeMap<String, String>) -> Result<(), Problem> {
        for (variable, text) in env {
            let Some((section, key)) = variable
                .strip_prefix("HOOKSIEVE_")
                .and_then(|rest| rest.split_once("__"))
            else {
                continue;
            };
            let (section, key) = (section.to_lowercase(), key.to_lowercase());
            let problem = |message: String| Problem {
                place: format!("the environment variable {variable}"),
                message,
            };
            let names = self.variables();
            let Some(Value::Table(known)) = self.table.get_mut(&section) else {
                let mean = did_you_mean(variable, names.iter().map(String::as_str));
                return Err(problem(format!("there is no section `[{section}]`{mean}")));
            };
            let Some(default) = known.get(&key) else {
                let mean = did_you_mean(variable, names.iter().map(String::as_str));
                return Err(problem(format!("[{section}] has no key `{key}`{mean}")));
            };
            let value = match default {
                Value::Integer(_) => text.replace('_', "").parse().ok().map(Value::Integer),
                Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
                Value::Array(items) => listed(text, items.first().is_some_and(Value::is_integer)),
                _ => Some(Value::String(text.clone())),
            };
            let Some(value) = value else {
                let wanted = default.type_str();
                return Err(problem(format!(
                    "{text:?} is not a value of the kind {wanted}"
                )));
            };
            self.places.insert(
                (section, key.clone()),
                format!("the environment variable {variable}"),
            );
            known.insert(key, value);
        }
        Ok(())
    }

    fn variables(&self) -> Vec<String> {
        let sections = self.table.iter();
        let pairs = sections.flat_map(|(section, keys)| {
            let keys = keys.as_table().into_iter().flat_map(Table::keys);
            keys.map(move |key| format!("HOOKSIEVE_{section}__{key}").to_uppercase())
        });
        pairs.collect()
    }

    fn finish(mut self, env: &BTreeMap<String, String>) -> Result<Config, Problem> {
        let [token, key] = SECRETS.map(|secret| self.secret(secret, env));
        let (token, key) = (token?, key?);
        self.check()?;
        // Section by section, so that a value which does not fit is named with its place.
        let mut config: Config = match self.table.clone().try_into() {
            Ok(config) => config,
            Err(error) => return Err(self.misfit(&error)),
        };
        config.server.operator_token = token;
        config.server.secrets_key = key;
        Ok(config)
    }

    fn secret(
        &mut self,
        (key, bytes_min): (&str, usize),
        env: &BTreeMap<String, String>,
    ) -> Result<Option<Secret>, Problem> {
        let section = "server";
        let value = self
            .table
            .get_mut(section)
            .and_then(Value::as_table_mut)
            .and_then(|keys| keys.remove(key));
        let problem = |message: String| self.problem(section, key, message);
        let token = match value {
            Some(Value::String(text)) => Some(text),
            Some(Value::Table(from)) => match (from.get("env"), from.get("file"), from.len()) {
                (Some(Value::String(name)), None, 1) => env.get(name).cloned(),
                (None, Some(Value::String(path)), 1) => match std::fs::read_to_string(path) {
                    Ok(text) => Some(text),
                    Err(error) => return Err(problem(format!("{path} cannot be read: {error}"))),
                },
                _ => {
                    return Err(problem(format!(
                        "`{key}` is {{ env = \"NAME\" }} or {{ file = \"PATH\" }}"
                    )));
                }
            },
            _ => None,
        };
        let token = token
            .map(|text| text.trim_start_matches('\u{feff}').trim().to_owned())
            .filter(|text| !text.is_empty());
        let short = token.as_ref().is_some_and(|text| match key {
            "secrets_key" => text.split(',').any(|one| one.trim().len() < bytes_min),
            _ => text.len() < bytes_min,
        });
        if short {
            return Err(problem(format!(
                "`{key}` is shorter than {bytes_min} characters"
            )));
        }
        Ok(token.map(Secret::new))
    }

    /// Finds the setting that does not fit, by trying each alone on top of the defaults.
    fn misfit(&self, error: &toml::de::Error) -> Problem {
        for (section, key) in self.places.keys() {
            let mut alone: Table = DEFAULTS.parse().unwrap_or_default();
            let value = self.table.get(section).and_then(|keys| keys.get(key));
            if let (Some(Value::Table(keys)), Some(value)) = (alone.get_mut(section), value) {
                keys.insert(key.clone(), value.clone());
            }
            if let Some(Value::Table(server)) = alone.get_mut("server") {
                for (secret, _) in SECRETS {
                    server.remove(secret);
                }
            }
            if let Err(error) = alone.try_into::<Config>() {
                let message = format!("`{key}` of [{section}]: {}", error.message());
                return self.problem(section, key, message);
            }
        }
        Problem {
            place: "the configuration".to_owned(),
            message: error.message().to_owned(),
        }
    }

    /// Numbers within their ranges, and those that belong together.
    fn check(&self) -> Result<(), Problem> {
        let number = |section: &str, key: &str| self.table.get(section)?.get(key)?.as_integer();
        for (section, key, least, most) in RANGES {
            let value = number(section, key).unwrap_or_default();
            if !(least..=most).contains(&value) {
                let message =
                    format!("`{key}` of [{section}] is {value}, and may be {least} to {most}");
                return Err(self.problem(section, key, message));
            }
        }
        let waits = self.table.get("dispatch").and_then(|it| it.get("retry_ms"));
        let waits = waits.and_then(Value::as_array).into_iter().flatten();
        let wrong = |wait: &&Value| {
            let range = 1..=WAIT_MS_MAX as i64;
            !wait.as_integer().is_some_and(|ms| range.contains(&ms))
        };
        if waits.clone().count() > WAITS_MAX || waits.clone().any(|wait| wrong(&wait)) {
            let message = format!(
                "`retry_ms` of [dispatch] is a list of up to {WAITS_MAX} waits, each of 1 to {WAIT_MS_MAX}"
            );
            return Err(self.problem("dispatch", "retry_ms", message));
        }
        for (section, key) in [("server", "public_url"), ("telemetry", "otlp_endpoint")] {
            let address = self.table.get(section).and_then(|it| it.get(key));
            let address = address.and_then(Value::as_str).unwrap_or_default();
            let web = url::Url::parse(address);
            let web = web.is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
            if !address.is_empty() && !web {
                let message = format!("{address:?} is no http or https address");
                return Err(self.problem(section, key, message));
            }
        }
        let given = |key: &str| {
            let path = self.table.get("server").and_then(|it| it.get(key));
            path.and_then(Value::as_str)
                .is_some_and(|path| !path.is_empty())
        };
        for (one, other) in [("tls_cert", "tls_key"), ("tls_key", "tls_cert")] {
            if given(one) && !given(other) {
                let message = format!("`{one}` of [server] needs `{other}` beside it");
                return Err(self.problem("server", one, message));
            }
        }
        if number("dispatch", "lease_ms") <= number("dispatch", "timeout_ms") {
            let message = "`lease_ms` of [dispatch] must be longer than `timeout_ms`, or a slow delivery is sent twice";
            return Err(self.problem("dispatch", "lease_ms", message.to_owned()));
        }
        Ok(())
    }

    fn problem(&self, section: &str, key: &str, message: String) -> Problem {
        let set = self.places.get(&(section.to_owned(), key.to_owned()));
        Problem {
            place: set.cloned().unwrap_or_else(|| "the defaults".to_owned()),
            message,
        }
    }
}

/// What each number may be: section, key, least, most.
#[rustfmt::skip]
const RANGES: [(&str, &str, i64, i64); 56] = [
    ("server", "body_bytes_max", 1_024, 32 << 20),
    ("server", "request_timeout_ms", 100, 600_000),
    ("server", "requests_max", 1, 1_000_000),
    ("server", "connections_max", 1, 1_000_000),
    ("server", "calls_per_s", 0, PER_S_MAX as i64),
    ("server", "drain_ms", 0, 3_600_000),
    ("store", "duplicate_window_s", 0, 31 * 86_400),
    ("store", "cache_bytes", 1 << 20, 1 << 40),
    ("store", "queue_max", 1, 1_000_000),
    ("store", "group_max", 1, 100_000),
    ("store", "keep_s", 1, 100 * 366 * 86_400),
    ("store", "dead_keep_s", 1, 100 * 366 * 86_400),
    ("store", "bytes_max", 16 << 20, 1 << 50),
    ("store", "disk_free_bytes_min", 0, 1 << 50),
    ("decide", "threads", 0, 1_024),
    ("decide", "batch_max", 1, 10_000),
    ("decide", "instances_max", 0, 1_000_000),
    ("decide", "instances_bytes_max", 0, 1 << 40),
    ("compile", "cpu_s", 1, 3_600),
    ("compile", "memory_bytes", 256 << 20, 1 << 40),
    ("compile", "wall_clock_ms", 100, 3_600_000),
    ("compile", "code_bytes_max", 64 << 10, 1 << 32),
    ("uploads", "rules_max", 0, 1_000_000),
    ("uploads", "versions_max", 2, 10_000),
    ("uploads", "versions_bytes_max", 0, 1 << 40),
    ("uploads", "modules_bytes_max", 0, 1 << 40),
    ("uploads", "code_bytes_max", 0, 1 << 40),
    ("uploads", "compile_s_per_hour", 1, 1_000_000),
    ("uploads", "sources_max", 0, 1_000_000),
    ("uploads", "channels_max", 0, 1_000_000),
    ("quotas", "events_per_s", 0, PER_S_MAX as i64),
    ("quotas", "fuel_per_s", 0, FUEL_PER_S_MAX as i64),
    ("quotas", "deliveries_per_s", 0, PER_S_MAX as i64),
    ("quotas", "stored_bytes", 0, STORED_BYTES_MAX as i64),
    ("quarantine", "last_events", 0, quarantine::LAST_EVENTS_MAX as i64),
    ("quarantine", "failed_percent", 1, 100),
    ("limits", "fuel", 1_000, 1 << 40),
    ("limits", "init_fuel", 1_000, 1 << 40),
    ("limits", "wall_clock_ms", 10, 600_000),
    ("limits", "memory_bytes", 65_536, 1 << 30),
    ("limits", "table_elements", 1, 1_000_000),
    ("limits", "stack_bytes", 16_384, 64 << 20),
    ("limits", "module_bytes", 1_024, 256 << 20),
    ("limits", "input_bytes", 1_024, 64 << 20),
    ("limits", "output_bytes", 64, 16 << 20),
    ("limits", "log_bytes", 0, 1 << 20),
    ("limits", "actions", 1, 1_000),
    ("limits_max", "fuel", 1_000, 1 << 40),
    ("limits_max", "memory_bytes", 65_536, 1 << 30),
    ("limits_max", "actions", 1, 1_000),
    ("dispatch", "in_flight_max", 1, 100_000),
    ("dispatch", "in_flight_per_channel_max", 1, 100_000),
    ("dispatch", "disable_after_ms", 1, 31_536_000_000),
    ("dispatch", "lease_ms", 1_000, 86_400_000),
    ("dispatch", "timeout_ms", 100, 600_000),
    ("telemetry", "traces_percent", 0, 100),
];

/// The largest quota that is taken.
pub const PER_S_MAX: u32 = 1_000_000;
pub const FUEL_PER_S_MAX: u64 = 1 << 50;
pub const STORED_BYTES_MAX: u64 = 1 << 50;
/// The shortest operator token that is taken.
const TOKEN_BYTES_MIN: usize = 16;
/// The shortest key that seals secrets.
const KEY_BYTES_MIN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn load(file: &str, env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("h.toml");
        std::fs::write(&path, file).unwrap();
        let env = env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let shown = format!("{}/", dir.path().display());
        Config::load(Some(&path), &env).map_err(|problem| problem.to_string().replace(&shown, ""))
    }

    #[test]
    fn the_environment_overrides_the_file_and_the_file_the_defaults() {
        let config = load(
            "[server]\nlisten = '127.0.0.1:1'\nbody_bytes_max = 2048\n",
            &[
                ("HOOKSIEVE_SERVER__LISTEN", "127.0.0.1:2"),
                ("HOOKSIEVE_OTHER", "x"),
            ],
        )
        .unwrap();
        assert_eq!(config.server.listen.port(), 2);
        assert_eq!(config.server.body_bytes_max, 2048);
        assert_eq!(config.limits.actions, 16);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let check = |file: &str, env: &[(&str, &str)], expected: &str| {
            assert_eq!(load(file, env).unwrap_err(), expected);
        };
        check(
            "\n[server]\nlisen = ''",
            &[],
            "h.toml:3: [server] has no key `lisen`; did you mean `listen`?",
        );
        check(
            "[sever]",
            &[],
            "h.toml:1: there is no section `[sever]`; did you mean `[server]`?"
                .replace("`[server]`", "`server`")
                .as_str(),
        );
        check(
            "[server]\nlisten = 5",
            &[],
            "h.toml:2: `listen` of [server] is an integer, not a string",
        );
        check(
            "[server]\nlisten = 'here'",
            &[],
            "h.toml:2: `listen` of [server]: invalid socket address syntax",
        );
        check(
            "[limits]\nactions = 0",
            &[],
            "h.toml:2: `actions` of [limits] is 0, and may be 1 to 1000",
        );
        check(
            "[log]\nformat = 'xml'",
            &[],
            "h.toml:2: `format` of [log]: unknown variant `xml`, expected `text` or `json`",
        );
        check(
            "[server]\noperator_token = 'abc'",
            &[],
            "h.toml:2: a secret does not stand in the file: write { env = \"NAME\" } or { file = \"PATH\" }",
        );
        check(
            "",
            &[("HOOKSIEVE_SERVER__LISEN", "x")],
            "the environment variable HOOKSIEVE_SERVER__LISEN: [server] has no key `lisen`; did you mean `HOOKSIEVE_SERVER__LISTEN`?",
        );
        check(
            "",
            &[("HOOKSIEVE_LIMITS__FUEL", "lots")],
            "the environment variable HOOKSIEVE_LIMITS__FUEL: \"lots\" is not a value of the kind integer",
        );
        check(
            "[server",
            &[],
            "h.toml:1: not TOML: unclosed table, expected `]`",
        );
    }

    #[test]
    fn every_number_has_a_range() {
        let defaults: Table = DEFAULTS.parse().unwrap();
        let numbers = defaults.iter().flat_map(|(section, keys)| {
            let keys = keys.as_table().unwrap().iter();
            let numbers = keys.filter(|(_, value)| value.is_integer());
            numbers.map(move |(key, _)| (section.as_str(), key.as_str()))
        });
        let numbers: BTreeSet<_> = numbers.collect();
        let ranged = RANGES.iter().map(|(section, key, ..)| (*section, *key));
        assert_eq!(numbers, ranged.collect());
    }

    #[test]
    fn the_operator_token_comes_from_the_environment_and_is_never_shown() {
        let config = load("", &[("HOOKSIEVE_OPERATOR_TOKEN", "0123456789abcdef")]).unwrap();
        assert_eq!(
            config.server.operator_token.as_ref().map(Secret::expose),
            Some("0123456789abcdef")
        );
        assert!(!format!("{config:?}").contains("0123456789"));
        let short = load("", &[("HOOKSIEVE_OPERATOR_TOKEN", "short")]).unwrap_err();
        assert!(short.ends_with("shorter than 16 characters"), "{short}");
    }
}
