//! A tenant's file as the calls that would set up the same: for who keeps files and applies them to a
//! running engine. Its secrets are read here, and stand in the settings as text.

use super::{Name, Problem, Tenant};
use crate::config::read::{Located, Section, Source as File, plain};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use toml::de::DeValue;

/// What a file describes. Its settings hold secrets as they are, so there is no `Debug` of them.
pub struct Described {
    pub tenant: Tenant,
    pub sources: Vec<(Name, Map<String, Value>)>,
    pub channels: Vec<(Name, Map<String, Value>)>,
    /// The configuration of each rule.
    pub configs: BTreeMap<Name, Map<String, Value>>,
}

impl Described {
    /// Reads a tenant's file.
    ///
    /// # Errors
    /// The first thing that is wrong, with file and line.
    pub fn load(
        path: &Path,
        env: &BTreeMap<String, String>,
        timeout_ms: u64,
    ) -> Result<Self, Problem> {
        Self::of(&File::open(path)?, env, timeout_ms)
    }

    /// Reads what was read of a file: its text once, and each file that it refers to once. Read again, it could
    /// be another by now, or none, and what is not described is removed where `apply` says so.
    fn of(file: &File, env: &BTreeMap<String, String>, timeout_ms: u64) -> Result<Self, Problem> {
        let tenant = Tenant::load(file, env, timeout_ms)?;
        let parsed = file.parse()?;
        let root = file.section(&parsed);
        let sections = |what: &'static str| -> Result<Vec<Settings>, Problem> {
            let described = |section: Section<'_>| {
                let name: Name = section.need("name")?.value;
                let mut settings = Map::new();
                for (key, found) in section.entries().filter(|(key, _)| *key != "name") {
                    settings.insert(key.to_owned(), as_called(key, &found, file, env)?);
                }
                Ok((name, settings))
            };
            root.sections(what)?.into_iter().map(described).collect()
        };
        let configs = sections("rule")?.into_iter().map(|(name, mut rule)| {
            // A rule without one has an empty one.
            let config = match rule.remove("config") {
                Some(Value::Object(config)) => config,
                _ => Map::new(),
            };
            (name, config)
        });
        Ok(Self {
            sources: sections("source")?,
            channels: sections("channel")?,
            configs: configs.collect(),
            tenant,
        })
    }
}

/// What is called so, and its settings.
type Settings = (Name, Map<String, Value>);

/// The value of a key as a call has it: dates as text, and secrets as what they refer to.
fn as_called(
    key: &str,
    found: &Located<'_, &DeValue<'_>>,
    file: &File,
    env: &BTreeMap<String, String>,
) -> Result<Value, Problem> {
    let literal = || {
        let value = plain(found.value).map(json);
        value.ok_or_else(|| {
            found.problem(format!(
                "`{key}` has a number that does not fit into 64 bits"
            ))
        })
    };
    // A rule's own: nothing in it is a secret, whatever it is called.
    if key == "config" {
        return literal();
    }
    if let Some(section) = found.section(key) {
        // Their names are anybody's, `env` and `file` too.
        if key != "headers"
            && let Some(secret) = referred(&section, file, env)?
        {
            return Ok(secret.into());
        }
        let mut object = Map::new();
        for (key, found) in section.entries() {
            object.insert(key.to_owned(), as_called(key, &found, file, env)?);
        }
        return Ok(object.into());
    }
    if let Some(items) = found.items() {
        let items = items.map(|item| as_called("", &item, file, env));
        return Ok(Value::Array(items.collect::<Result<_, _>>()?));
    }
    literal()
}

/// Dates are text.
fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::Table(table) => {
            let entries = table.into_iter().map(|(key, value)| (key, json(value)));
            Value::Object(entries.collect())
        }
        toml::Value::Array(items) => items.into_iter().map(json).collect(),
        toml::Value::Datetime(moment) => moment.to_string().into(),
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(said) => said.into(),
    }
}

/// The secret that `{ env = "NAME" }` or `{ file = "PATH" }` refers to.
fn referred(
    section: &Section<'_>,
    file: &File,
    env: &BTreeMap<String, String>,
) -> Result<Option<String>, Problem> {
    let mut entries = section.entries();
    let (Some((key, found)), None) = (entries.next(), entries.next()) else {
        return Ok(None);
    };
    let text = match (key, found.value.as_str()) {
        ("env", Some(name)) => env.get(name).cloned().ok_or_else(|| {
            let what = format!("the environment variable {name} is not set");
            found.problem(what)
        })?,
        ("file", Some(path)) => file.beside(path).map_err(|what| found.problem(what))?,
        _ => return Ok(None),
    };
    Ok(Some(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_and_names_are_not_taken_for_them() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("k"),
            "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM=\n",
        )
        .unwrap();
        let path = folder.path().join("acme.toml");
        let text = "[[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = 'https://a.example/'\n\
            secret = { file = 'k' }\nheaders = { env = 'plain', x-key = { env = 'KEY' } }\n\
            [[rule]]\nname = 'r'\nmodule = 'policy:github-triage'\nevents = ['*']\n\
            config = { since = 2026-01-02, env = 'x', inner = { env = 'KEY' } }\n";
        std::fs::write(&path, text).unwrap();
        let env = BTreeMap::from([("KEY".to_owned(), "from-the-environment".to_owned())]);
        let described = Described::load(&path, &env, 1_000).unwrap();
        let (_, hook) = &described.channels[0];
        let expected = serde_json::json!({
            "kind": "webhook", "url": "https://a.example/", "secret": "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM=",
            "headers": { "env": "plain", "x-key": "from-the-environment" },
        });
        assert_eq!(Value::from(hook.clone()), expected);
        let config = &described.configs[&"r".parse::<Name>().unwrap()];
        let expected = serde_json::json!({
            "since": "2026-01-02", "env": "x", "inner": { "env": "KEY" },
        });
        assert_eq!(Value::from(config.clone()), expected);
    }

    #[test]
    fn what_was_read_of_a_file_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = (folder.path().join("acme.toml"), folder.path().join("k"));
        std::fs::write(&key, "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM=").unwrap();
        let text = "[[channel]]\nname = 'hook'\nkind = 'webhook'\nurl = 'https://a.example/'\nsecret = { file = 'k' }\n";
        std::fs::write(&path, text).unwrap();
        let file = File::open(&path).unwrap();
        Tenant::load(&file, &BTreeMap::new(), 1_000).unwrap();
        // Somebody else writes them meanwhile.
        for gone in [&path, &key] {
            std::fs::remove_file(gone).unwrap();
        }
        let described = Described::of(&file, &BTreeMap::new(), 1_000).unwrap();
        let (name, hook) = &described.channels[0];
        assert_eq!(name.as_str(), "hook");
        assert_eq!(hook["secret"], "whsec_cGxhbnRlZC1zZWNyZXQtb2YtMjQtYnl0ZXM=");
    }
}
