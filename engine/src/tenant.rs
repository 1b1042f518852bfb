//! A tenant's file, `<name>.toml`: sources, rules and channels, validated as a whole before anything
//! runs. Reads files and the environment for secrets and modules; compiles nothing and opens no
//! connection.

mod described;

pub use described::Described;

use crate::channel::{Channel, discord, email, lark, pagerduty, slack, sql, teams, voice, webhook};
use crate::config::read::{Item, Located, Problem, Section, Source as File, did_you_mean, plain};
use crate::config::{FUEL_PER_S_MAX, LimitsMax, PER_S_MAX, Quotas, STORED_BYTES_MAX};
use crate::dispatch::{Pace, Rate, Schedule, WAIT_MS_MAX, WAITS_MAX};
use crate::id::{Hash, Name};
use crate::ingest::verify::{Access, SECRETS_MAX, Verify};
use crate::notice;
use crate::sandbox::{Limits, PAGE_BYTES, Sandbox};
use crate::secret::Secret;
use crate::store::Then;
use crate::whole::whole;
use hooksieve_sdk::wire::json::Data;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use toml::de::DeValue;
use utoipa::ToSchema;

/// A tenant as its file describes it.
#[derive(Debug)]
pub struct Tenant {
    pub name: Name,
    /// Whether it has a file, or was made by a call.
    pub in_file: bool,
    pub sources: BTreeMap<Name, Source>,
    /// In the order of the file.
    pub rules: Vec<Rule>,
    pub channels: BTreeMap<Name, Arc<Channel>>,
    /// How fast each channel may be used.
    pub paces: BTreeMap<Name, Pace>,
    /// Where events go that a rule with `on_error = "pass"` failed on.
    pub default_channel: Option<Name>,
    pub quotas: OwnQuotas,
    pub limits: OwnLimits,
}

/// What a tenant's file says instead of the configuration's `[limits]`, within its `[limits_max]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnLimits {
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1_000)]
    pub fuel: Option<u64>,
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 65_536)]
    pub memory_bytes: Option<u64>,
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1)]
    pub actions: Option<usize>,
}

impl OwnLimits {
    /// Whether they are within what the operator allows.
    ///
    /// # Errors
    /// One sentence that names the one that is not.
    pub fn check(&self, max: &LimitsMax) -> Result<(), String> {
        let given = [
            ("fuel", self.fuel, 1_000, max.fuel),
            (
                "memory_bytes",
                self.memory_bytes,
                PAGE_BYTES,
                max.memory_bytes,
            ),
            (
                "actions",
                self.actions.map(|it| it as u64),
                1,
                max.actions as u64,
            ),
        ];
        for (key, value, least, most) in given {
            if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
                return Err(format!(
                    "`{key}` of [limits] is {value}, and may be {least} to {most} (the operator's [limits_max])"
                ));
            }
        }
        Ok(())
    }

    /// A sandbox in which these hold.
    #[must_use]
    pub fn within(&self, sandbox: &Sandbox) -> Sandbox {
        if *self == Self::default() {
            return sandbox.clone();
        }
        let mut limits = Limits::clone(sandbox.limits());
        limits.fuel = self.fuel.unwrap_or(limits.fuel);
        limits.memory_bytes = self.memory_bytes.unwrap_or(limits.memory_bytes);
        limits.actions = self.actions.unwrap_or(limits.actions);
        sandbox.with_limits(limits)
    }
}

/// What a tenant's file says instead of the configuration's `[quotas]`; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnQuotas {
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(maximum = 1_000_000)]
    pub events_per_s: Option<u32>,
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(maximum = 1_125_899_906_842_624_i64)]
    pub fuel_per_s: Option<u64>,
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(maximum = 1_000_000)]
    pub deliveries_per_s: Option<u32>,
    #[serde(
        default,
        deserialize_with = "whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(maximum = 1_125_899_906_842_624_i64)]
    pub stored_bytes: Option<u64>,
}

impl OwnQuotas {
    /// Whether they are within what is possible.
    ///
    /// # Errors
    /// One sentence that names the one that is not.
    pub(crate) fn check(&self) -> Result<(), String> {
        let given = [
            (
                "events_per_s",
                self.events_per_s.map(u64::from),
                u64::from(PER_S_MAX),
            ),
            ("fuel_per_s", self.fuel_per_s, FUEL_PER_S_MAX),
            (
                "deliveries_per_s",
                self.deliveries_per_s.map(u64::from),
                u64::from(PER_S_MAX),
            ),
            ("stored_bytes", self.stored_bytes, STORED_BYTES_MAX),
        ];
        for (key, value, most) in given {
            if let Some(value) = value.filter(|value| *value > most) {
                return Err(format!("`{key}` is {value}, and may be 0 to {most}"));
            }
        }
        Ok(())
    }

    /// What holds for the tenant.
    pub fn over(&self, defaults: &Quotas) -> Quotas {
        Quotas {
            events_per_s: self.events_per_s.unwrap_or(defaults.events_per_s),
            fuel_per_s: self.fuel_per_s.unwrap_or(defaults.fuel_per_s),
            deliveries_per_s: self.deliveries_per_s.unwrap_or(defaults.deliveries_per_s),
            stored_bytes: self.stored_bytes.unwrap_or(defaults.stored_bytes),
        }
    }
}

/// Where events come in, and how their sender is verified.
#[derive(Clone, Debug)]
pub struct Source {
    pub name: Name,
    pub verify: Verify,
}

/// A rule before its module is compiled.
#[derive(Debug)]
pub struct Rule {
    pub name: Name,
    pub module: ModuleRef,
    pub wasm: Arc<[u8]>,
    /// Which event types it subscribes to.
    pub events: Vec<Pattern>,
    /// Which sources it listens to; empty for all.
    pub sources: Vec<Name>,
    /// Which channels it may name; empty for all of the tenant's.
    pub channels: Vec<Name>,
    /// The configuration as MessagePack.
    pub config: Vec<u8>,
    pub on_error: Then,
    /// Where it stands, for errors that show only when it is compiled.
    pub place: String,
}

/// How a rule names its module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleRef {
    Policy(String),
    File(std::path::PathBuf),
    /// Kept by the engine under its SHA-256.
    Uploaded(Hash),
}

/// A subscription: `issues.opened` is that type alone; `issues` and `issues.*` are `issues` and all
/// that begin with `issues.`; `*` is everything.
#[derive(Clone, Debug, PartialEq, Eq, ToSchema)]
#[schema(as = EventPattern, value_type = String, pattern = "^([*]|[^*]{1,200}([.][*])?)$")]
pub struct Pattern(String);

impl Pattern {
    pub fn new(text: &str) -> Result<Self, String> {
        let stem = text.strip_suffix(".*").unwrap_or(text);
        if text == "*" || (!stem.is_empty() && !stem.contains('*') && stem.chars().count() <= 200) {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!(
                "{text:?} is no pattern: write a type (`issues.opened`), a group (`issues.*`), or `*`"
            ))
        }
    }

    pub fn matches(&self, kind: &str) -> bool {
        if self.0 == "*" {
            return true;
        }
        let stem = self.0.strip_suffix(".*").unwrap_or(&self.0);
        match kind.strip_prefix(stem) {
            Some(rest) => rest.is_empty() || rest.starts_with('.'),
            None => false,
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The tenants' files of a folder, in the order of their names. What begins with a dot is no tenant's: an editor's
/// lock, or what a system keeps beside a file.
///
/// # Errors
/// When the folder cannot be read.
pub fn files(folder: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_toml = path.extension().is_some_and(|it| it == "toml");
        if !is_toml {
            continue;
        }
        if is_hidden(&path) {
            tracing::info!(file = %path.display(), "its name begins with a dot, so it is taken for no tenant's file");
            continue;
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

/// Whether a name begins with a dot, as names do of what people do not mean when they name a folder.
pub(crate) fn is_hidden(path: &Path) -> bool {
    let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes);
    name.is_some_and(|name| name.starts_with(b"."))
}

impl Tenant {
    /// One without a file, that has nothing yet.
    pub(crate) fn empty(name: Name) -> Self {
        Self {
            name,
            in_file: false,
            sources: BTreeMap::new(),
            rules: Vec::new(),
            channels: BTreeMap::new(),
            paces: BTreeMap::new(),
            default_channel: None,
            quotas: OwnQuotas::default(),
            limits: OwnLimits::default(),
        }
    }

    /// Reads every `*.toml` of a folder.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and line.
    pub fn load_all(
        folder: &Path,
        env: &BTreeMap<String, String>,
        timeout_ms: u64,
    ) -> Result<Vec<Self>, Problem> {
        let unreadable = |error: std::io::Error| Problem {
            place: folder.display().to_string(),
            message: format!(
                "the folder of tenants cannot be read: {error}; name it with --tenants, or make it and put a file <tenant>.toml there"
            ),
        };
        let paths = files(folder).map_err(unreadable)?;
        let load = |path: &std::path::PathBuf| Self::load(&File::open(path)?, env, timeout_ms);
        paths.iter().map(load).collect()
    }

    /// Reads one tenant's file; the tenant is called as the file is.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and line.
    pub fn load(
        file: &File,
        env: &BTreeMap<String, String>,
        timeout_ms: u64,
    ) -> Result<Self, Problem> {
        let parsed = file.parse()?;
        let root = file.section(&parsed);
        let stem = file.path.file_stem().unwrap_or_default().to_string_lossy();
        let name: Name = stem.parse().map_err(|error| Problem {
            place: file.path.display().to_string(),
            message: format!("the file's name is the tenant's, and {error}"),
        })?;
        let reader = Reader {
            file,
            secrets: From::Elsewhere(env),
            timeout_ms,
            found: RefCell::default(),
        };

        let mut sources = BTreeMap::new();
        for section in root.sections("source")? {
            let source = reader.source(section)?;
            let (key, section) = (source.0.name.clone(), source.1);
            unique(sources.insert(key, source.0).is_some(), &section, "source")?;
        }
        let mut channels = BTreeMap::new();
        let mut paces = BTreeMap::new();
        for section in root.sections("channel")? {
            let (key, channel, pace, section) = reader.channel(section)?;
            paces.insert(key.clone(), pace);
            unique(
                channels.insert(key, Arc::new(channel)).is_some(),
                &section,
                "channel",
            )?;
        }
        let default_channel = match root.parse::<Name>("default_channel")? {
            Some(default) => {
                known(&default.value, channels.keys(), "channel", |m| {
                    default.problem(m)
                })?;
                Some(default.value)
            }
            None => None,
        };
        let mut rules: Vec<Rule> = Vec::new();
        for section in root.sections("rule")? {
            let (rule, section) =
                reader.rule(section, &sources, &channels, default_channel.is_some())?;
            unique(
                rules.iter().any(|other| other.name == rule.name),
                &section,
                "rule",
            )?;
            rules.push(rule);
        }
        let quotas = match root.section("quotas")? {
            Some(section) => {
                let read = quotas(&section)?;
                section.finish()?;
                read
            }
            None => OwnQuotas::default(),
        };
        let limits = match root.section("limits")? {
            Some(section) => {
                let read = limits(&section)?;
                section.finish()?;
                read
            }
            None => OwnLimits::default(),
        };
        root.finish()?;
        Ok(Self {
            name,
            in_file: true,
            sources,
            rules,
            channels,
            paces,
            default_channel,
            quotas,
            limits,
        })
    }
}

/// What the operator allows is checked when that is known.
fn limits(section: &Section<'_>) -> Result<OwnLimits, Problem> {
    let read = |key: &'static str| Ok(section.u64(key)?.map(|found| found.value));
    let actions = read("actions")?;
    Ok(OwnLimits {
        fuel: read("fuel")?,
        memory_bytes: read("memory_bytes")?,
        actions: actions.map(|it| usize::try_from(it).unwrap_or(usize::MAX)),
    })
}

fn quotas(section: &Section<'_>) -> Result<OwnQuotas, Problem> {
    let read = |key: &'static str, most: u64| -> Result<Option<u64>, Problem> {
        let Some(found) = section.u64(key)? else {
            return Ok(None);
        };
        if found.value > most {
            let (title, value) = (section.title(), found.value);
            return Err(found.problem(format!(
                "`{key}` of {title} is {value}, and may be 0 to {most}"
            )));
        }
        Ok(Some(found.value))
    };
    let per_s = |key| -> Result<Option<u32>, Problem> {
        // Never more than its limit, which is a `u32`.
        Ok(read(key, PER_S_MAX.into())?.map(|it| it as u32))
    };
    Ok(OwnQuotas {
        events_per_s: per_s("events_per_s")?,
        fuel_per_s: read("fuel_per_s", FUEL_PER_S_MAX)?,
        deliveries_per_s: per_s("deliveries_per_s")?,
        stored_bytes: read("stored_bytes", STORED_BYTES_MAX)?,
    })
}

fn unique(taken: bool, section: &Section<'_>, what: &str) -> Result<(), Problem> {
    if taken {
        return Err(section.problem(format!(
            "{}: there is a {what} of that name above",
            section.title()
        )));
    }
    Ok(())
}

fn known<'n>(
    name: &Name,
    mut names: impl Iterator<Item = &'n Name> + Clone,
    what: &str,
    problem: impl FnOnce(String) -> Problem,
) -> Result<(), Problem> {
    if names.clone().any(|known| known == name) {
        return Ok(());
    }
    let mean = did_you_mean(name.as_str(), names.clone().map(Name::as_str));
    let hint = match names.next() {
        None => format!("; there is no [[{what}]] at all"),
        Some(_) => mean,
    };
    Err(problem(format!("there is no {what} `{name}`{hint}")))
}

/// The kinds of channels.
const CHANNELS: [&str; 9] = [
    "discord",
    "email",
    "lark",
    "pagerduty",
    "slack",
    "sql",
    "teams",
    "voice",
    "webhook",
];

/// What a channel of every kind may say of how fast it is used.
fn pace(section: &Section<'_>, channel: &Channel) -> Result<Pace, Problem> {
    let rates = match section.strs("rates")? {
        None => channel.rates().to_vec(),
        Some(rates) => rates
            .into_iter()
            .map(|rate| Rate::parse(rate.value).map_err(|error| rate.problem(error)))
            .collect::<Result<_, _>>()?,
    };
    let in_flight_max = match section.u64("in_flight_max")? {
        Some(max) if !(1..=1_000).contains(&max.value) => {
            return Err(max.problem("`in_flight_max` may be 1 to 1000"));
        }
        max => max.map(|max| max.value as usize),
    };
    let schedule = match section.u64s("retry_ms")? {
        None => None,
        Some(waits) => {
            if waits.len() > WAITS_MAX {
                return Err(section.problem(format!(
                    "`retry_ms` has {} waits, and {WAITS_MAX} are possible",
                    waits.len()
                )));
            }
            if let Some(wait) = waits.iter().find(|wait| wait.value > WAIT_MS_MAX) {
                return Err(wait.problem(format!("a wait may be up to {WAIT_MS_MAX} ms")));
            }
            let waits_ms = waits.into_iter().map(|wait| wait.value).collect();
            Some(Schedule { waits_ms })
        }
    };
    Ok(Pace {
        rates,
        in_flight_max,
        schedule,
    })
}

struct Reader<'a> {
    file: &'a File,
    secrets: From<'a>,
    timeout_ms: u64,
    /// The keys whose values turned out to be secrets.
    found: RefCell<Vec<String>>,
}

/// Where secrets come from.
enum From<'a> {
    /// The environment or files of their own: the operator's text names them.
    Elsewhere(&'a BTreeMap<String, String>),
    /// The text itself, which is a tenant's call and names nothing of this machine's.
    Here,
}

/// What a tenant has set up in a call instead of a file.
#[derive(Clone, Debug)]
pub struct Given<T> {
    pub made: T,
    /// The keys whose values are secrets.
    pub secrets: Vec<String>,
}

/// A channel as a call describes it: what would be its `[[channel]]`, with secrets as text.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn channel(
    name: &Name,
    settings: &serde_json::Map<String, serde_json::Value>,
    timeout_ms: u64,
) -> Result<Given<(Arc<Channel>, Pace)>, String> {
    given("channel", name, settings, timeout_ms, |reader, section| {
        let (_, channel, pace, _) = reader.channel(section)?;
        Ok((Arc::new(channel), pace))
    })
}

/// A source as a call describes it: what would be its `[[source]]`, with secrets as text.
///
/// # Errors
/// One sentence that says what is wrong.
pub fn source(
    name: &Name,
    settings: &serde_json::Map<String, serde_json::Value>,
) -> Result<Given<Source>, String> {
    given("source", name, settings, 0, |reader, section| {
        Ok(reader.source(section)?.0)
    })
}

/// A source or channel has no fractions: what JSON writes as `5.0` is 5 in TOML.
fn plain_numbers(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Number(number) => {
            let whole = whole(&*number).ok().flatten();
            *number = whole.map_or_else(|| number.clone(), |it: u64| it.into());
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(plain_numbers),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(plain_numbers),
        _ => {}
    }
}

fn given<T>(
    what: &'static str,
    name: &Name,
    settings: &serde_json::Map<String, serde_json::Value>,
    timeout_ms: u64,
    read: impl for<'a> FnOnce(&Reader<'a>, Section<'a>) -> Result<T, Problem>,
) -> Result<Given<T>, String> {
    if settings.contains_key("name") {
        return Err(format!(
            "the {what}'s name stands in the path, so `name` is left out"
        ));
    }
    let mut table = settings.clone();
    table.values_mut().for_each(plain_numbers);
    table.insert("name".to_owned(), name.as_str().into());
    let whole = BTreeMap::from([(what, [table])]);
    let text = toml::to_string(&whole).map_err(|error| format!("{what} `{name}`: {error}"))?;
    let file = File::new("the body", text);
    let told = |problem: Problem| problem.message;
    let parsed = file.parse().map_err(told)?;
    let root = file.section(&parsed);
    let reader = Reader {
        file: &file,
        secrets: From::Here,
        timeout_ms,
        found: RefCell::default(),
    };
    let section = root.sections(what).map_err(told)?.pop();
    let section = section.ok_or_else(|| format!("there is no {what}"))?;
    let made = read(&reader, section).map_err(told)?;
    Ok(Given {
        made,
        secrets: reader.found.take(),
    })
}

impl<'a> Reader<'a> {
    fn source(&self, section: Section<'a>) -> Result<(Source, Section<'a>), Problem> {
        let (name, section) = named(section, "source")?;
        if name.as_str() == notice::SOURCE {
            return Err(section.problem(format!(
                "a source cannot be named `{name}`: that is where the engine's own events come from"
            )));
        }
        let kind = section.need_str("kind")?;
        let verify = match kind.value {
            "github" => Verify::GitHub {
                secrets: self.need_secrets(&section, "secret")?,
            },
            "shopify" => Verify::Shopify {
                secrets: self.need_secrets(&section, "secret")?,
            },
            "json" => self.json_source(&section)?,
            other => {
                let mean = did_you_mean(other, ["github", "shopify", "json"]);
                return Err(kind.problem(format!(
                    "{} has the kind {other:?}; there are `github`, `shopify` and `json`{mean}",
                    section.title()
                )));
            }
        };
        section.finish()?;
        Ok((Source { name, verify }, section))
    }

    fn json_source(&self, section: &Section<'a>) -> Result<Verify, Problem> {
        let tokens = self.one_or_two(section, "token")?;
        let says = |key: &'static str| -> Result<bool, Problem> {
            Ok(section.bool(key)?.is_some_and(|said| said.value))
        };
        let access = match (&tokens[..], says("access_tokens")?, says("open")?) {
            ([_, ..], false, false) => Access::Tokens(tokens),
            ([], true, false) => Access::AccessTokens,
            ([], false, true) => Access::Open,
            _ => {
                let token = match self.secrets {
                    From::Elsewhere(_) => "token = { env = \"NAME\" }",
                    From::Here => "token",
                };
                return Err(section.problem(format!(
                    "{} needs one of `{token}`, `access_tokens = true`, and `open = true` (on a loopback address only)",
                    section.title()
                )));
            }
        };
        let pointer = |key: &'static str| -> Result<Option<String>, Problem> {
            let Some(found) = section.str(key)? else {
                return Ok(None);
            };
            if found.value.starts_with('/') {
                Ok(Some(found.value.to_owned()))
            } else {
                Err(found.problem(format!(
                    "`{key}` of {} is a JSON pointer such as \"/{}\"",
                    section.title(),
                    found.value
                )))
            }
        };
        Ok(Verify::Json {
            access,
            kind: match section.str("type")? {
                Some(kind) if notice::is_own(kind.value) => {
                    return Err(kind.problem(format!(
                        "`type` of {} is {:?}, and types that begin with `hooksieve.` are the engine's own",
                        section.title(),
                        kind.value
                    )));
                }
                kind => kind.map_or("json", |kind| kind.value).to_owned(),
            },
            kind_from: pointer("type_from")?,
            id_from: pointer("id_from")?,
            subject_from: pointer("subject_from")?,
        })
    }

    fn channel(&self, section: Section<'a>) -> Result<(Name, Channel, Pace, Section<'a>), Problem> {
        let (name, section) = named(section, "channel")?;
        let kind = section.need_str("kind")?;
        let timeout_ms = match section.u64("timeout_ms")? {
            Some(timeout) if !(100..=600_000).contains(&timeout.value) => {
                return Err(timeout.problem("`timeout_ms` may be 100 to 600000"));
            }
            Some(timeout) => timeout.value,
            None => self.timeout_ms,
        };
        let made = match kind.value {
            "discord" => discord::Discord::new(discord::Settings {
                url: self.need_secret(&section, "url")?,
                timeout_ms,
            })
            .map(Channel::Discord),
            "email" => email::Email::new(self.email(&section, timeout_ms)?).map(Channel::Email),
            "lark" => lark::Lark::new(lark::Settings {
                url: self.need_secret(&section, "url")?,
                secret: self.secret(&section, "secret")?,
                timeout_ms,
            })
            .map(Channel::Lark),
            "pagerduty" => pagerduty::PagerDuty::new(pagerduty::Settings {
                routing_key: self.need_secret(&section, "routing_key")?,
                severity: section.str("severity")?.map(|given| given.value.to_owned()),
                url: section.str("url")?.map(|given| given.value.to_owned()),
                timeout_ms,
            })
            .map(Channel::PagerDuty),
            "slack" => slack::Slack::new(slack::Settings {
                url: self.need_secret(&section, "url")?,
                timeout_ms,
            })
            .map(Channel::Slack),
            "sql" => sql::Sql::new(self.sql(&section, timeout_ms)?)
                .map(|sql| Channel::Sql(Box::new(sql))),
            "teams" => teams::Teams::new(teams::Settings {
                url: self.need_secret(&section, "url")?,
                timeout_ms,
            })
            .map(Channel::Teams),
            "voice" => voice::Voice::new(self.voice(&section, timeout_ms)?).map(Channel::Voice),
            "webhook" => webhook::Webhook::new(webhook::Settings {
                url: section.need_str("url")?.value.to_owned(),
                secrets: self.secrets(&section, "secret")?,
                method: section.str("method")?.map(|given| given.value.to_owned()),
                headers: self.headers(&section)?,
                timeout_ms,
            })
            .map(Channel::Webhook),
            other => {
                let mean = did_you_mean(other, CHANNELS);
                return Err(kind.problem(format!(
                    "{} has the kind {other:?}; there are `{}`{mean}",
                    section.title(),
                    CHANNELS.join("`, `")
                )));
            }
        };
        let channel =
            made.map_err(|error| section.problem(format!("{}: {error}", section.title())))?;
        let pace = pace(&section, &channel)?;
        section.finish()?;
        Ok((name, channel, pace, section))
    }

    fn email(&self, section: &Section<'a>, timeout_ms: u64) -> Result<email::Settings, Problem> {
        let tls = match section.str("tls")? {
            None => email::Tls::StartTls,
            Some(tls) => match tls.value {
                "starttls" => email::Tls::StartTls,
                "tls" => email::Tls::Tls,
                "none" => email::Tls::None,
                other => {
                    return Err(tls.problem(format!(
                        "`tls` of {} is {other:?}; there are `starttls`, `tls` and `none`",
                        section.title()
                    )));
                }
            },
        };
        let port = match section.u64("port")? {
            None if tls == email::Tls::Tls => 465,
            None => 587,
            Some(port) => u16::try_from(port.value)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| port.problem("`port` may be 1 to 65535"))?,
        };
        let to = section
            .strs("to")?
            .ok_or_else(|| section.problem(format!("{} has no `to`", section.title())))?;
        Ok(email::Settings {
            host: section.need_str("host")?.value.to_owned(),
            port,
            tls,
            username: section.str("username")?.map(|user| user.value.to_owned()),
            password: self.secret(section, "password")?,
            from: section.need_str("from")?.value.to_owned(),
            to: to.into_iter().map(|to| to.value.to_owned()).collect(),
            reply_to: section
                .str("reply_to")?
                .map(|reply_to| reply_to.value.to_owned()),
            list_unsubscribe: section
                .str("list_unsubscribe")?
                .map(|address| address.value.to_owned()),
            dkim: self.dkim(section)?,
            timeout_ms,
        })
    }

    fn sql(&self, section: &Section<'a>, timeout_ms: u64) -> Result<sql::Settings, Problem> {
        let drivers = [
            ("mysql", sql::Driver::MySql),
            ("postgres", sql::Driver::Postgres),
        ];
        let tls = match section.str("tls")? {
            None => true,
            Some(tls) => one_of(&tls, section, "tls", &[("none", false), ("require", true)])?,
        };
        let port = section.u64("port")?.map(|port| {
            let given = u16::try_from(port.value).ok().filter(|port| *port > 0);
            given.ok_or_else(|| port.problem("`port` may be 1 to 65535"))
        });
        let values = section
            .items("values")?
            .ok_or_else(|| section.problem(format!("{} has no `values`", section.title())))?;
        Ok(sql::Settings {
            driver: one_of(&section.need_str("driver")?, section, "driver", &drivers)?,
            host: section.need_str("host")?.value.to_owned(),
            port: port.transpose()?,
            database: section.need_str("database")?.value.to_owned(),
            username: section.need_str("username")?.value.to_owned(),
            password: self.secret(section, "password")?,
            tls,
            statement: section.need_str("statement")?.value.to_owned(),
            values: values
                .iter()
                .map(|item| sql_value(item, section))
                .collect::<Result<_, _>>()?,
            timeout_ms,
        })
    }

    fn voice(&self, section: &Section<'a>, timeout_ms: u64) -> Result<voice::Settings, Problem> {
        let text = |key| -> Result<Option<String>, Problem> {
            Ok(section.str(key)?.map(|given| given.value.to_owned()))
        };
        let number = |key| -> Result<Option<u64>, Problem> {
            Ok(section.u64(key)?.map(|given| given.value))
        };
        let to = section
            .strs("to")?
            .ok_or_else(|| section.problem(format!("{} has no `to`", section.title())))?;
        Ok(voice::Settings {
            account_sid: section.need_str("account_sid")?.value.to_owned(),
            auth_token: self.need_secret(section, "auth_token")?,
            from: section.need_str("from")?.value.to_owned(),
            to: to.into_iter().map(|to| to.value.to_owned()).collect(),
            url: text("url")?,
            calls_per_hour_max: number("calls_per_hour_max")?,
            language: text("language")?,
            repeat: number("repeat")?,
            timeout_ms,
        })
    }

    fn dkim(&self, section: &Section<'a>) -> Result<Option<email::dkim::Settings>, Problem> {
        let Some(dkim) = section.section("dkim")? else {
            return Ok(None);
        };
        let settings = email::dkim::Settings {
            domain: dkim.need_str("domain")?.value.to_owned(),
            selector: dkim.need_str("selector")?.value.to_owned(),
            key: self.need_secret(&dkim, "key")?,
        };
        dkim.finish()?;
        Ok(Some(settings))
    }

    fn rule(
        &self,
        section: Section<'a>,
        sources: &BTreeMap<Name, Source>,
        channels: &BTreeMap<Name, Arc<Channel>>,
        has_default: bool,
    ) -> Result<(Rule, Section<'a>), Problem> {
        let (name, section) = named(section, "rule")?;
        let (module, wasm) = self.module(section.need_str("module")?)?;
        let events = match section.strs("events")? {
            None => {
                return Err(section.problem(format!(
                    "{} has no `events`; write events = [\"*\"] for all",
                    section.title()
                )));
            }
            Some(patterns) => patterns
                .into_iter()
                .map(|pattern| Pattern::new(pattern.value).map_err(|error| pattern.problem(error)))
                .collect::<Result<Vec<_>, _>>()?,
        };
        let on_error = match section.str("on_error")? {
            None => Then::Held,
            Some(found) => match found.value {
                "hold" => Then::Held,
                "pass" if has_default => Then::Passed,
                "pass" => {
                    return Err(found.problem(
                        "`on_error = \"pass\"` sends to the tenant's `default_channel`, which is not set",
                    ));
                }
                "drop" => Then::Dropped,
                other => {
                    let mean = did_you_mean(other, ["hold", "pass", "drop"]);
                    return Err(found.problem(format!(
                        "`on_error` of {} is {other:?}; there are `hold`, `pass` and `drop`{mean}",
                        section.title()
                    )));
                }
            },
        };
        let rule = Rule {
            module,
            wasm,
            events,
            sources: names(&section, "sources", sources.keys(), "source")?,
            channels: names(&section, "channels", channels.keys(), "channel")?,
            config: config_bytes(&section)?,
            on_error,
            place: section.problem("").place,
            name,
        };
        section.finish()?;
        Ok((rule, section))
    }

    /// The bytes of a module: a ready-made one, or a file beside the tenant's.
    fn module(&self, module: Located<'a, &'a str>) -> Result<(ModuleRef, Arc<[u8]>), Problem> {
        if let Some(name) = module.value.strip_prefix("policy:") {
            return match hooksieve_policies::get(name) {
                Some(policy) => Ok((ModuleRef::Policy(name.to_owned()), policy.wasm.into())),
                None => {
                    let names = hooksieve_policies::ALL.iter().map(|policy| policy.name);
                    let mean = did_you_mean(name, names);
                    Err(module.problem(format!(
                        "there is no policy `{name}`{mean} (`hooksieve policies list` shows them)"
                    )))
                }
            };
        }
        let folder = self.file.path.parent().unwrap_or(Path::new(""));
        let path = folder.join(module.value);
        match std::fs::read(&path) {
            Ok(wasm) => Ok((ModuleRef::File(path), wasm.into())),
            Err(error) => Err(module.problem(format!(
                "the module {} cannot be read: {error}; paths count from the tenant's file",
                path.display()
            ))),
        }
    }

    fn need_secret(&self, section: &Section<'a>, key: &'static str) -> Result<Secret, Problem> {
        self.secret(section, key)?.ok_or_else(|| {
            let title = section.title();
            section.problem(match self.secrets {
                From::Elsewhere(_) => format!(
                    "{title} has no `{key}`; write {key} = {{ env = \"NAME\" }} or {{ file = \"PATH\" }}"
                ),
                From::Here => format!("{title} has no `{key}`"),
            })
        })
    }

    /// A secret, from where the file says it is. It never stands in the file itself.
    fn secret(&self, section: &Section<'a>, key: &'static str) -> Result<Option<Secret>, Problem> {
        let found = section.value(key);
        found
            .map(|found| self.secret_at(section, key, &found))
            .transpose()
    }

    /// The secrets of a source: one, or the new one and the old one; none where the key is left out.
    fn one_or_two(&self, section: &Section<'a>, key: &'static str) -> Result<Vec<Secret>, Problem> {
        let secrets = self.secrets(section, key)?;
        if secrets.len() > SECRETS_MAX {
            return Err(section.problem(format!(
                "{} has {} secrets under `{key}`, and may have {SECRETS_MAX}: the new one and the old one",
                section.title(),
                secrets.len()
            )));
        }
        Ok(secrets)
    }

    fn need_secrets(
        &self,
        section: &Section<'a>,
        key: &'static str,
    ) -> Result<Vec<Secret>, Problem> {
        match section.value(key) {
            Some(_) => self.one_or_two(section, key),
            None => self.need_secret(section, key).map(|one| vec![one]),
        }
    }

    /// One secret or a list of them; none where the key is left out.
    fn secrets(&self, section: &Section<'a>, key: &'static str) -> Result<Vec<Secret>, Problem> {
        let Some(found) = section.value(key) else {
            return Ok(Vec::new());
        };
        let Some(items) = found.items() else {
            return Ok(vec![self.secret_at(section, key, &found)?]);
        };
        let read: Vec<_> = items
            .map(|item| self.secret_at(section, key, &item))
            .collect::<Result<_, _>>()?;
        if read.is_empty() {
            let empty = format!("`{key}` of {} is an empty list", section.title());
            return Err(found.problem(empty));
        }
        Ok(read)
    }

    /// The `headers` of a webhook: what they say stands in the file or is a secret.
    fn headers(&self, section: &Section<'a>) -> Result<Vec<(String, Secret)>, Problem> {
        let Some(table) = section.section("headers")? else {
            return Ok(Vec::new());
        };
        let read = table.entries().map(|(name, found)| {
            let value = match (found.value.as_str(), &self.secrets) {
                (Some(text), From::Elsewhere(_)) => Secret::new(text),
                _ => self.secret_at(&table, name, &found)?,
            };
            Ok((name.to_owned(), value))
        });
        read.collect()
    }

    fn secret_at(
        &self,
        section: &Section<'a>,
        key: &str,
        found: &Located<'a, &'a DeValue<'a>>,
    ) -> Result<Secret, Problem> {
        let env = match &self.secrets {
            From::Elsewhere(env) => *env,
            From::Here => {
                let title = section.title();
                let text = found.value.as_str().map(str::trim).unwrap_or_default();
                if text.is_empty() {
                    let wrong = format!("`{key}` of {title} is a secret: give its text");
                    return Err(found.problem(wrong));
                }
                self.found.borrow_mut().push(key.to_owned());
                return Ok(Secret::new(text));
            }
        };
        let Some(from) = found.section(format!("`{key}` of {}", section.title())) else {
            return Err(found.problem(format!(
                "`{key}` of {} is a secret and does not stand in the file: write {key} = {{ env = \"NAME\" }} or {{ file = \"PATH\" }}",
                section.title()
            )));
        };
        let (variable, file) = (from.str("env")?, from.str("file")?);
        from.finish()?;
        let text = match (variable, file) {
            (Some(variable), None) => env.get(variable.value).cloned().ok_or_else(|| {
                variable.problem(format!(
                    "the environment variable {} for {} is not set",
                    variable.value,
                    from.title()
                ))
            })?,
            (None, Some(file)) => self
                .file
                .beside(file.value)
                .map_err(|message| file.problem(message))?,
            _ => {
                return Err(from.problem(format!(
                    "{} is {{ env = \"NAME\" }} or {{ file = \"PATH\" }}",
                    from.title()
                )));
            }
        };
        let text = text.trim();
        if text.is_empty() {
            return Err(from.problem(format!("{} is empty", from.title())));
        }
        Ok(Secret::new(text))
    }
}

/// What a database's place gets: "delivery_id", "/pointer", or { pointer = "/pointer", type = "..." }.
fn sql_value(item: &Item<'_>, channel: &Section<'_>) -> Result<sql::Binding, Problem> {
    let pointer = |found: &Located<'_, &str>| match found.value {
        "" => Ok(String::new()),
        pointer if pointer.starts_with('/') => Ok(pointer.to_owned()),
        other => Err(found.problem(format!(
            "{other:?} in `values` of {} is no JSON pointer; write \"/{other}\"",
            channel.title()
        ))),
    };
    let table = match item {
        Item::Str(found) if found.value.starts_with('/') => {
            return Ok(sql::Binding::Pointer {
                pointer: pointer(found)?,
                r#type: sql::Type::Text,
                required: false,
            });
        }
        Item::Str(found) => {
            let given = one_of(found, channel, "values", &sql::Given::ALL);
            return given.map(sql::Binding::Given);
        }
        Item::Section(table) => table,
    };
    let read = sql::Binding::Pointer {
        pointer: pointer(&table.need_str("pointer")?)?,
        r#type: one_of(&table.need_str("type")?, table, "type", &sql::Type::ALL)?,
        required: table.bool("required")?.is_some_and(|given| given.value),
    };
    table.finish()?;
    Ok(read)
}

/// What a word stands for, of those that there are.
fn one_of<T: Copy>(
    found: &Located<'_, &str>,
    section: &Section<'_>,
    key: &str,
    all: &[(&'static str, T)],
) -> Result<T, Problem> {
    if let Some((_, meant)) = all.iter().find(|(name, _)| *name == found.value) {
        return Ok(*meant);
    }
    let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
    Err(found.problem(format!(
        "`{key}` of {} has {:?}; there are `{}`{}",
        section.title(),
        found.value,
        names.join("`, `"),
        did_you_mean(found.value, names.iter().copied())
    )))
}

fn named<'a>(section: Section<'a>, what: &str) -> Result<(Name, Section<'a>), Problem> {
    let name = section.need::<Name>("name")?.value;
    let title = format!("{what} `{name}`");
    Ok((name, section.titled(title)))
}

fn names<'n>(
    section: &Section<'_>,
    key: &'static str,
    all: impl Iterator<Item = &'n Name> + Clone,
    what: &str,
) -> Result<Vec<Name>, Problem> {
    let Some(listed) = section.strs(key)? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::with_capacity(listed.len());
    for item in listed {
        let name: Name = item
            .value
            .parse()
            .map_err(|error| item.problem(format!("{error}")))?;
        known(&name, all.clone(), what, |message| {
            item.problem(format!("{}: {message}", section.title()))
        })?;
        names.push(name);
    }
    Ok(names)
}

/// The `config` table as MessagePack; an empty map where there is none.
fn config_bytes(section: &Section<'_>) -> Result<Vec<u8>, Problem> {
    let Some(found) = section.value("config") else {
        return Ok(vec![0x80]);
    };
    let (Some(_), Some(value)) = (found.value.as_table(), plain(found.value)) else {
        return Err(found.problem(format!("`config` of {} is not a table", section.title())));
    };
    encode_config(&value)
        .map_err(|error| found.problem(format!("`config` of {}: {error}", section.title())))
}

/// A configuration as rules read it. Dates become strings, as MessagePack here has none.
pub fn encode_config(value: &toml::Value) -> Result<Vec<u8>, String> {
    fn dates_as_text(value: &toml::Value) -> toml::Value {
        match value {
            toml::Value::Datetime(moment) => toml::Value::String(moment.to_string()),
            toml::Value::Array(items) => {
                toml::Value::Array(items.iter().map(dates_as_text).collect())
            }
            toml::Value::Table(table) => toml::Value::Table(
                table
                    .iter()
                    .map(|(key, value)| (key.clone(), dates_as_text(value)))
                    .collect(),
            ),
            other => other.clone(),
        }
    }
    Data::from_deserializer(dates_as_text(value))
        .map(|data| data.bytes().to_vec())
        .map_err(|error| error.message().to_owned())
}
