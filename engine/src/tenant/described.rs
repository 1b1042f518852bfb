//! A tenant's file as the calls that would set up the same: for who keeps files and applies them to a
//! running engine. Its secrets are read here, and stand in the settings as text.

use super::{Name, Problem, Tenant};
use crate::config::read::Source as File;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What a file describes.
#[derive(Debug)]
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
        let file = File::open(path)?;
        let tenant = Tenant::load(&file, env, timeout_ms)?;
        // It is well-formed: what is not would not have come so far.
        let table: toml::Table = std::fs::read_to_string(path)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_default();
        let folder = path.parent().unwrap_or(Path::new(""));
        let sections = |what: &str| -> Vec<(Name, Map<String, Value>)> {
            let sections = table.get(what).and_then(toml::Value::as_array);
            let sections = sections.into_iter().flatten();
            sections
                .filter_map(|section| {
                    let mut settings = match plain(section, folder, env) {
                        Value::Object(settings) => settings,
                        _ => return None,
                    };
                    let name = settings.remove("name")?.as_str()?.parse().ok()?;
                    Some((name, settings))
                })
                .collect()
        };
        let configs = sections("rule").into_iter().map(|(name, mut rule)| {
            let config = rule.remove("config");
            let config = config.and_then(|it| it.as_object().cloned());
            (name, config.unwrap_or_default())
        });
        Ok(Self {
            sources: sections("source"),
            channels: sections("channel"),
            configs: configs.collect(),
            tenant,
        })
    }
}

/// A value as a call has it: dates as text, and secrets as what they refer to.
fn plain(value: &toml::Value, folder: &Path, env: &BTreeMap<String, String>) -> Value {
    let all = |table: &toml::Table| -> Map<String, Value> {
        let entries = table.iter().map(|(key, value)| {
            // Their names are anybody's, `env` and `file` too.
            let value = match (key.as_str(), value) {
                ("headers" | "config", toml::Value::Table(inner)) => inner
                    .iter()
                    .map(|(name, value)| (name.clone(), plain(value, folder, env)))
                    .collect(),
                _ => plain(value, folder, env),
            };
            (key.clone(), value)
        });
        entries.collect()
    };
    match value {
        toml::Value::Table(table) => match referred(table, folder, env) {
            Some(secret) => secret.into(),
            None => all(table).into(),
        },
        toml::Value::Array(items) => items.iter().map(|it| plain(it, folder, env)).collect(),
        toml::Value::Datetime(moment) => moment.to_string().into(),
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Float(number) => (*number).into(),
        toml::Value::Boolean(said) => (*said).into(),
    }
}

/// The secret that `{ env = "NAME" }` or `{ file = "PATH" }` refers to.
fn referred(table: &toml::Table, folder: &Path, env: &BTreeMap<String, String>) -> Option<String> {
    let (key, value) = table.iter().next().filter(|_| table.len() == 1)?;
    let text = match (key.as_str(), value.as_str()?) {
        ("env", name) => env.get(name)?.clone(),
        ("file", path) => std::fs::read_to_string(folder.join(path)).ok()?,
        _ => return None,
    };
    Some(text.trim().to_owned())
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
            config = { since = 2026-01-02, env = 'x' }\n";
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
        let expected = serde_json::json!({ "since": "2026-01-02", "env": "x" });
        assert_eq!(Value::from(config.clone()), expected);
    }
}
