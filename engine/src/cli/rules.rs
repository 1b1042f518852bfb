//! `hooksieve push`, `promote`, `rollback` and `rules`: a tenant's own rules in a running engine.

use super::client::Remote;
use super::{Failure, style};
use hooksieve::admin::{
    AuditView, ModuleView, NewVersionBody, OnError, QuarantineView, Resumed, RoleWord, RuleDeleted,
    RuleView, ShadowView, VersionBody, VersionView, WhoView,
};
use hooksieve::id::{Hash, Name};
use hooksieve::pipeline::Short;
use reqwest::Method;
use std::path::{Path, PathBuf};

/// Which tenant is meant.
#[derive(clap::Args)]
pub(super) struct Whose {
    /// The tenant [default: the token's]
    #[arg(long, value_name = "NAME", env = "HOOKSIEVE_TENANT", global = true)]
    tenant: Option<String>,
    #[command(flatten)]
    pub(super) remote: Remote,
}

impl Whose {
    /// Where the tenant's calls are.
    pub(super) fn base(&self) -> Result<String, Failure> {
        Ok(format!("/v1/tenants/{}", self.tenant()?))
    }

    pub(super) fn tenant(&self) -> Result<Name, Failure> {
        match &self.tenant {
            Some(tenant) => tenant.parse::<Name>().map_err(Failure::input),
            None => {
                let who: WhoView = self.remote.call(Method::GET, "/v1/whoami")?;
                who.tenant.ok_or_else(|| {
                    Failure::Input("an operator names the tenant: --tenant NAME".to_owned())
                })
            }
        }
    }

    fn rule(&self, rule: &str) -> Result<String, Failure> {
        let rule = rule.parse::<Name>().map_err(Failure::input)?;
        Ok(format!("{}/rules/{rule}", self.base()?))
    }
}

#[derive(clap::Args)]
pub(crate) struct Push {
    /// The module
    #[arg(value_name = "FILE.wasm")]
    module: PathBuf,
    /// The rule that it becomes a version of; it is made where there is none
    #[arg(long, value_name = "NAME")]
    rule: String,
    /// Event types it subscribes to, such as issues.opened,push or '*' [default: as the newest version]
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    events: Option<Vec<String>>,
    /// Its configuration, a TOML or JSON file [default: as the newest version]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Channels it may name [default: as the newest version, else all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    channels: Option<Vec<Name>>,
    /// Sources it listens to [default: as the newest version, else all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    sources: Option<Vec<Name>>,
    /// What happens to an event it fails on [default: as the newest version, else hold]
    #[arg(long, value_enum)]
    on_error: Option<OnErrorWord>,
    /// Have it decide beside the live version, without effect
    #[arg(long, conflicts_with_all = ["canary", "keep"])]
    shadow: bool,
    /// Have it decide for a share of the events' subjects
    #[arg(long, value_name = "PERCENT", conflicts_with = "keep")]
    canary: Option<String>,
    /// Keep it, and use it for nothing yet
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum OnErrorWord {
    Hold,
    Pass,
    Drop,
}

impl From<OnErrorWord> for OnError {
    fn from(word: OnErrorWord) -> Self {
        match word {
            OnErrorWord::Hold => OnError::Hold,
            OnErrorWord::Pass => OnError::Pass,
            OnErrorWord::Drop => OnError::Drop,
        }
    }
}

pub(crate) fn push(args: Push) -> Result<(), Failure> {
    let whose = &args.whose;
    let wasm = std::fs::read(&args.module).map_err(|error| {
        Failure::Input(format!("{} cannot be read: {error}", args.module.display()))
    })?;
    let (role, percent) = match (&args.canary, args.shadow, args.keep) {
        (Some(percent), ..) => {
            let number = percent.trim().trim_end_matches('%').parse::<f64>();
            let number = number.map_err(|_| {
                Failure::Input(format!("{percent:?} is no percentage; write --canary 5%"))
            })?;
            (RoleWord::Canary, Some(number))
        }
        (_, true, _) => (RoleWord::Shadow, None),
        (_, _, true) => (RoleWord::Kept, None),
        _ => (RoleWord::Live, None),
    };
    let config = args.config.as_deref().map(read_config).transpose()?;
    let base = whose.base()?;
    let rule = args.rule.parse::<Name>().map_err(Failure::input)?;
    let rules: Vec<RuleView> = whose.remote.call(Method::GET, &format!("{base}/rules"))?;
    let before = rules.into_iter().find(|it| it.name == rule);
    let newest = before.and_then(|it| it.versions.into_iter().next());
    let events = args
        .events
        .or_else(|| newest.as_ref().map(|it| it.events.clone()));
    let events = events.ok_or_else(|| {
        Failure::Input(format!(
            "the rule {rule} has no version yet: say what it subscribes to, as --events '*'"
        ))
    })?;
    let hash = Hash::of(&wasm);
    let path = format!("{base}/modules/{hash}");
    let module: ModuleView = whose.remote.send(Method::PUT, &path, |it| it.body(wasm))?;
    let taken = |of: fn(&VersionView) -> Vec<Name>| newest.as_ref().map(of).unwrap_or_default();
    let body = NewVersionBody {
        module: hash,
        config: config
            .or_else(|| newest.as_ref().map(|it| it.config.clone()))
            .unwrap_or_default(),
        events,
        sources: args
            .sources
            .unwrap_or_else(|| taken(|it| it.sources.clone())),
        channels: args
            .channels
            .unwrap_or_else(|| taken(|it| it.channels.clone())),
        on_error: match args.on_error {
            Some(word) => word.into(),
            None => newest.as_ref().map_or(OnError::Hold, |it| it.on_error),
        },
        r#as: role,
        percent,
    };
    let path = format!("{base}/rules/{rule}/versions");
    let made: RuleView = whose
        .remote
        .send(Method::POST, &path, |it| it.json(&body))?;
    if whose.remote.json {
        anstream::println!("{}", serde_json::json!(made));
        return Ok(());
    }
    let (good, dim) = (style::GOOD, style::DIM);
    let number = made.versions.first().map_or(0, |it| it.version);
    let what = match role {
        RoleWord::Live => "is live",
        RoleWord::Shadow => "decides in the shadow, without effect",
        RoleWord::Canary => "is the canary",
        RoleWord::Kept => "is kept",
    };
    anstream::println!("{good}version {number}{good:#} of {rule} {what}");
    anstream::println!(
        "  {dim}module {hash}, {}, checked and compiled in {} ms{dim:#}",
        style::bytes(module.size_bytes),
        module.compiled_ms.unwrap_or_default()
    );
    Ok(())
}

pub(super) fn read_config(
    path: &Path,
) -> Result<serde_json::Map<String, serde_json::Value>, Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::Input(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    let json = path.extension().is_some_and(|it| it == "json");
    if json {
        return serde_json::from_str(&text).map_err(|error| wrong(&error));
    }
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| wrong(&error.message()))?;
    // A date becomes text, as it does in a tenant's file.
    fn plain(value: toml::Value) -> serde_json::Value {
        match value {
            toml::Value::Datetime(moment) => moment.to_string().into(),
            toml::Value::Array(items) => items.into_iter().map(plain).collect(),
            toml::Value::Table(table) => table
                .into_iter()
                .map(|(key, value)| (key, plain(value)))
                .collect(),
            toml::Value::String(text) => text.into(),
            toml::Value::Integer(number) => number.into(),
            toml::Value::Float(number) => number.into(),
            toml::Value::Boolean(value) => value.into(),
        }
    }
    Ok(table
        .into_iter()
        .map(|(key, value)| (key, plain(value)))
        .collect())
}

#[derive(clap::Args)]
pub(crate) struct Promote {
    #[arg(value_name = "RULE")]
    rule: String,
    /// Which version [default: the canary, else the shadow]
    #[arg(long, value_name = "N")]
    version: Option<u32>,
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn promote(args: Promote) -> Result<(), Failure> {
    let path = format!("{}/promote", args.whose.rule(&args.rule)?);
    let body = VersionBody {
        version: args.version,
    };
    let rule: RuleView = (args.whose.remote).send(Method::POST, &path, |it| it.json(&body))?;
    changed(&args.whose, &rule);
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct Rollback {
    #[arg(value_name = "RULE")]
    rule: String,
    #[command(flatten)]
    whose: Whose,
}

pub(crate) fn roll_back(args: Rollback) -> Result<(), Failure> {
    let path = format!("{}/rollback", args.whose.rule(&args.rule)?);
    let rule: RuleView = args.whose.remote.call(Method::POST, &path)?;
    changed(&args.whose, &rule);
    Ok(())
}

fn changed(whose: &Whose, rule: &RuleView) {
    if whose.remote.json {
        anstream::println!("{}", serde_json::json!(rule));
        return;
    }
    let good = style::GOOD;
    match rule.live {
        Some(live) => anstream::println!("{good}version {live}{good:#} of {} is live", rule.name),
        None => anstream::println!("no version of {} is live", rule.name),
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    whose: Whose,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List them, with what is in use
    List,
    /// Show one with its versions, and how its shadow compares
    Show(Which),
    /// End its shadow and its canary
    Stop(Which),
    /// Have one asked again that is in quarantine
    Resume(Which),
    /// Delete one with all its versions
    Delete(Which),
    /// Who changed what, newest first
    Audit,
}

#[derive(clap::Args)]
struct Which {
    #[arg(value_name = "RULE")]
    rule: String,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, whose } = args;
    match command {
        Command::List => list(&whose),
        Command::Show(which) => show(&whose, &which.rule),
        Command::Stop(which) => {
            let path = format!("{}/stop", whose.rule(&which.rule)?);
            let rule: RuleView = whose.remote.call(Method::POST, &path)?;
            changed(&whose, &rule);
            Ok(())
        }
        Command::Resume(which) => {
            let path = format!("{}/resume", whose.rule(&which.rule)?);
            let resumed: Resumed = whose.remote.call(Method::POST, &path)?;
            if whose.remote.json {
                anstream::println!("{}", serde_json::json!(resumed));
            } else if resumed.was_quarantined {
                anstream::println!(
                    "{} is asked again; `hooksieve held release-all` has it decide what is held",
                    which.rule
                );
            } else {
                anstream::println!("{} was not in quarantine", which.rule);
            }
            Ok(())
        }
        Command::Delete(which) => {
            let path = whose.rule(&which.rule)?;
            let gone: RuleDeleted = whose.remote.call(Method::DELETE, &path)?;
            if whose.remote.json {
                anstream::println!("{}", serde_json::json!(gone));
            } else {
                anstream::println!("deleted {}", gone.deleted);
            }
            Ok(())
        }
        Command::Audit => audit(&whose),
    }
}

fn list(whose: &Whose) -> Result<(), Failure> {
    let path = format!("{}/rules", whose.base()?);
    let rules: Vec<RuleView> = whose.remote.call(Method::GET, &path)?;
    if whose.remote.json {
        anstream::println!("{}", serde_json::json!(rules));
        return Ok(());
    }
    if rules.is_empty() {
        anstream::println!("There is no rule. `hooksieve push` makes one.");
        return Ok(());
    }
    let mut table = style::table(&["rule", "live", "shadow", "canary", "before", "versions"]);
    let number = |it: Option<u32>| it.map(|it| it.to_string()).unwrap_or_default();
    for rule in &rules {
        let live = match rule.in_file {
            true => "in the file".to_owned(),
            false => number(rule.live),
        };
        let live = match &rule.quarantine {
            Some(_) => format!("{live}, in quarantine"),
            None => live,
        };
        let canary = rule.canary.as_ref();
        table.add_row([
            rule.name.to_string(),
            live,
            number(rule.shadow),
            canary
                .map(|it| format!("{} ({} %)", it.version, it.percent))
                .unwrap_or_default(),
            number(rule.before),
            rule.versions.len().to_string(),
        ]);
    }
    anstream::println!("{table}");
    Ok(())
}

fn show(whose: &Whose, rule: &str) -> Result<(), Failure> {
    let path = whose.rule(rule)?;
    let rule: RuleView = whose.remote.call(Method::GET, &path)?;
    let shadow: Option<ShadowView> = match rule.shadow {
        Some(_) => Some(whose.remote.call(Method::GET, &format!("{path}/shadow"))?),
        None => None,
    };
    if whose.remote.json {
        let all = serde_json::json!({ "rule": rule, "shadow": shadow });
        anstream::println!("{all}");
        return Ok(());
    }
    let (bold, dim) = (style::HEADING, style::DIM);
    if rule.in_file {
        anstream::println!(
            "{bold}{}{bold:#} stands in the tenant's file, and is changed there.",
            rule.name
        );
        quarantine(&rule);
        return Ok(());
    }
    anstream::println!(
        "{bold}{}{bold:#} {dim}revision {}{dim:#}",
        rule.name,
        rule.revision
    );
    let mut table = style::table(&["version", "in use", "module", "events", "made", "by"]);
    for version in &rule.versions {
        let n = Some(version.version);
        let canary = rule.canary.as_ref().filter(|it| Some(it.version) == n);
        let used = match canary {
            _ if rule.live == n => "live".to_owned(),
            Some(canary) => format!("canary, {} %", canary.percent),
            None if rule.shadow == n => "shadow".to_owned(),
            None if rule.before == n => "before".to_owned(),
            None => String::new(),
        };
        table.add_row([
            version.version.to_string(),
            used,
            version.module.chars().take(12).collect(),
            version.events.join(", "),
            version.created.clone(),
            style::clean(&version.by),
        ]);
    }
    anstream::println!("{table}");
    quarantine(&rule);
    if let Some(shadow) = shadow {
        anstream::println!(
            "{bold}shadow{bold:#} version {}: {} of {} events differ since {}",
            shadow.version,
            style::grouped(shadow.differed),
            style::grouped(shadow.compared),
            shadow.since
        );
        for difference in &shadow.differences {
            let kind = style::clean(&difference.kind);
            anstream::println!("  {kind} {dim}{}{dim:#}", difference.event);
            anstream::println!("    live    {}", line(&difference.live));
            anstream::println!("    shadow  {}", line(&difference.shadow));
        }
    }
    Ok(())
}

fn quarantine(rule: &RuleView) {
    let Some(QuarantineView {
        since,
        failed,
        of,
        error,
        ..
    }) = &rule.quarantine
    else {
        return;
    };
    let bad = style::BAD;
    anstream::println!(
        "{bad}in quarantine{bad:#} since {since}, when it had failed on {failed} of its last {of} events: {}",
        style::clean(error)
    );
    anstream::println!(
        "  `hooksieve rules resume {}` has it asked again",
        rule.name
    );
}

fn line(short: &Short) -> String {
    let mut line = short.outcome.clone();
    if !short.channels.is_empty() {
        line = format!("{line} {}", short.channels.join(", "));
    }
    if !short.reason.is_empty() {
        line = format!("{line}, {}", style::clean(&short.reason));
    }
    line
}

fn audit(whose: &Whose) -> Result<(), Failure> {
    let path = format!("{}/audit", whose.base()?);
    let entries: Vec<AuditView> = whose.remote.call(Method::GET, &path)?;
    if whose.remote.json {
        anstream::println!("{}", serde_json::json!(entries));
        return Ok(());
    }
    let number = |it: Option<u32>| it.map_or_else(|| "none".to_owned(), |it| it.to_string());
    let mut table = style::table(&["at", "of", "what", "version", "live", "who"]);
    for entry in &entries {
        table.add_row([
            entry.at.clone(),
            match &entry.thing {
                Some(thing) => format!("{thing} {}", entry.rule),
                None => entry.rule.to_string(),
            },
            entry.what.clone(),
            entry.version.map(|it| it.to_string()).unwrap_or_default(),
            format!("{} -> {}", number(entry.from), number(entry.to)),
            style::clean(&entry.who),
        ]);
    }
    anstream::println!("{table}");
    Ok(())
}
