//! `hooksieve replay`: events through a rule, with the limits and the code of `serve`, sending
//! nothing; and how what it decides differs from what was expected.

mod differ;
mod follow;
mod page;
mod report;
mod seen;
mod session;
mod threads;

use self::differ::{Blessed, Expected, Made};
use self::follow::{Follower, with_names};
use self::report::Report;
use self::session::{AsRecorded, Compared, Progress, Session};
use self::threads::STOPPED;
use super::{Failure, build, environment, style};
use hooksieve::config::Config;
use hooksieve::config::read::{Source, did_you_mean};
use hooksieve::id::Name;
use hooksieve::pipeline::{ActiveRule, Rules};
use hooksieve::replay::{BadInput, Defaults, bytes};
use hooksieve::sandbox::{Limits, Program, Sandbox};
use hooksieve::tenant::{ModuleRef, Tenant, encode_config};
use hooksieve::timing::Rehearsal;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The rule: a module, policy:NAME, or with --tenant one of its rules [default: the tenant's rules, or
    /// the rule in this folder]; in a rule's folder, it is built first
    #[arg(long, value_name = "FILE.wasm|policy:NAME|RULE")]
    rule: Option<String>,
    /// A tenant's file: its limits, channels and, of its rules, configuration and channels hold
    #[arg(long, value_name = "FILE.toml")]
    tenant: Option<PathBuf>,
    /// Write the report as one page, too; with --render, with the mails as they are read
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    html: Option<PathBuf>,
    /// Write the report as JSON, too
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    report: Option<PathBuf>,
    /// Write where the fuel goes, by function, as a flame graph, too: of the first 1,000 events
    #[arg(long, value_name = "FILE.svg", conflicts_with = "watch")]
    profile: Option<PathBuf>,
    /// Compare with what this rule decided of the events in a recording
    #[arg(long, value_name = "RULE", conflicts_with_all = ["expect", "compare", "watch"])]
    recorded: Option<Name>,
    /// In a rule's folder: build and replay again whenever a file is saved, and tell what changed, or with
    /// --expect or --compare what differs
    #[arg(long, conflicts_with_all = ["rule", "json", "bless", "render"])]
    watch: bool,
    /// Show what each channel of the tenant would send, sending nothing
    #[arg(long, requires = "tenant", conflicts_with_all = ["json", "expect", "compare"])]
    render: bool,
    /// The rule's configuration, as TOML (the keys of [rule.config]) or JSON
    #[arg(long, value_name = "FILE")]
    rule_config: Option<PathBuf>,
    /// The source that raw payloads are taken to come from
    #[arg(long, value_name = "NAME", default_value = "github")]
    source: Name,
    /// The sender's event name of raw payloads, such as issues; their action is added to it [default: the
    /// folder that they are in, below the one that is given]
    #[arg(long = "type", value_name = "NAME")]
    kind: Option<String>,
    /// A configuration file, for limits that differ from the defaults
    #[arg(long, value_name = "FILE", env = "HOOKSIEVE_CONFIG")]
    config: Option<PathBuf>,
    /// Compare with what this file says of the events, found by their ids, field by field; exit code 1 where
    /// they differ
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    expect: Option<PathBuf>,
    /// Write what the rule makes of the events now to the file of --expect
    #[arg(long, requires = "expect")]
    bless: bool,
    /// How many percent more or less fuel than --expect says are no difference
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 10.0,
        requires = "expect"
    )]
    fuel_within: f64,
    /// Tell on which events this rule decides otherwise: an older module, or policy:NAME
    #[arg(long, value_name = "FILE.wasm|policy:NAME")]
    compare: Option<String>,
    /// One JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// JSON files, .ndjson files, recordings (.hsr), folders of them, or - for standard input
    #[arg(value_name = "EVENT", default_value = EVENTS)]
    events: Vec<PathBuf>,
}

/// Where a rule that `hooksieve new` made has its events.
const EVENTS: &str = "events";

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if args.watch {
        return watch(&args);
    }
    let (here, unnamed) = (Path::new("."), Path::new(EVENTS));
    if args.events == [unnamed] && !unnamed.exists() {
        return Err(Failure::Input(format!(
            "name the events, JSON files or folders: there is no folder `{EVENTS}` here"
        )));
    }
    // A tenant's rule may run what is built here.
    let named = match (&args.tenant, &args.rule) {
        (Some(_), Some(rule)) => rule.parse::<Name>().is_err(),
        (_, rule) => rule.is_some(),
    };
    if !named && build::is_rule(here) {
        // What is replayed is what is written there now.
        build::module(here)?;
    }
    stop_on_ctrl_c();
    once(&args, None).map(drop)
}

/// The first Ctrl-C ends the replay with what it has, the second at once.
fn stop_on_ctrl_c() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            if tokio::signal::ctrl_c().await.is_ok() {
                STOPPED.store(true, Ordering::Relaxed);
                let _ = tokio::signal::ctrl_c().await;
                std::process::exit(INTERRUPTED);
            }
        });
    });
}

/// As a shell tells that a program was interrupted.
const INTERRUPTED: i32 = 130;

/// Goes through all events, with each rule; `last` is what the run before made of them, where somebody
/// watches. Gives what this one makes, then.
fn once(args: &Args, last: Option<Vec<Made>>) -> Result<Vec<Made>, Failure> {
    let config = Config::load(args.config.as_deref(), &environment())?;
    let tenant = args.tenant.as_deref().map(|path| tenant(path, &config));
    let tenant = tenant.transpose()?;
    let sandbox = Sandbox::new(config.limits).compile_in_child(config.compile);
    let place = Place { tenant, sandbox };
    let all = match (&place.tenant, &args.rule) {
        (Some(tenant), None) if args.every() && tenant.rules.len() > 1 => tenant
            .rules
            .iter()
            .map(|it| Some(it.name.clone()))
            .collect(),
        _ => vec![None],
    };
    let (mut good, mut now) = (true, Vec::new());
    for named in all {
        if let Some(name) = named.as_ref().filter(|_| !args.json) {
            let bold = style::HEADING;
            anstream::println!("{bold}rule {name}{bold:#}");
        }
        let (as_expected, made) = with(args, &place, named, last.clone())?;
        good &= as_expected;
        now = made;
    }
    match good {
        true => Ok(now),
        // Watched, it goes on.
        false if last.is_some() => Ok(now),
        false => Err(Failure::Outcome(None)),
    }
}

fn with(
    args: &Args,
    place: &Place,
    named: Option<Name>,
    last: Option<Vec<Made>>,
) -> Result<(bool, Vec<Made>), Failure> {
    let own = match &place.tenant {
        Some(tenant) if tenant.rules.is_empty() && args.rule.is_none() => Some(built_here()?),
        _ => None,
    };
    let rule = args.rule.as_deref().or(own.as_deref());
    let rule = named.as_ref().map(Name::as_str).or(rule);
    let rules = asked(rule, args, place)?;
    let before = args.compare.as_deref();
    let before = before.map(|it| asked(Some(it), args, place)).transpose()?;
    let compared = match (&args.expect, &args.recorded, last) {
        (Some(path), ..) if args.bless => Compared::Blessed(Blessed::new(path)?),
        (Some(path), ..) => Compared::Expected(Expected::open(path)?),
        (_, Some(rule), _) => Compared::Recorded(AsRecorded::new(rule.clone())),
        _ if before.is_some() => Compared::Module(Rehearsal::default()),
        (.., Some(last)) => Compared::Last {
            last,
            now: Vec::new(),
        },
        _ => Compared::Nothing,
    };
    let sizes = args.events.iter().map(|path| bytes(path));
    let mut session = Session {
        rules: &rules,
        rehearsal: Rehearsal::default(),
        compared,
        page: args.html.clone().map(|path| (path, page::Seen::default())),
        report: Report::new(place.limits(), place.tenant.is_some()),
        report_to: args.report.clone(),
        fuel_within: args.fuel_within,
        rule: rule.map_or_else(|| built_here().unwrap_or_default(), str::to_owned),
        differ: 0,
        other_prices: None,
        json: args.json,
        named: named.clone(),
        channels: match (args.render, &place.tenant) {
            (true, Some(tenant)) => tenant.channels.clone(),
            _ => BTreeMap::new(),
        },
        follower: Follower::new(&rules, wasm(rule, place)?, args.profile.clone()),
        progress: Progress::new(sizes.sum()),
        out: std::io::BufWriter::new(anstream::AutoStream::auto(std::io::stdout())),
    };
    let defaults = Defaults {
        tenant: rules.tenant.clone(),
        source: args.source.clone(),
        kind: args.kind.clone(),
    };
    // A profile runs them again, and a page masks what in them is personal.
    let keep = session.follower.profiles() || session.page.is_some();
    let all = &args.events;
    let judged = threads::judge(&rules, before.as_ref(), all, &defaults, keep, |turn| {
        session.turn(turn)
    });
    match judged {
        Ok(()) | Err(Stop::Asked) => session.end(),
        Err(Stop::Input(bad)) => {
            // What came before it was told.
            session.out.flush()?;
            Err(Failure::input(bad))
        }
        Err(Stop::Output(error)) => Err(error.into()),
        Err(Stop::Expected(failure)) => Err(failure),
    }
}

/// What ends the reading of events.
enum Stop {
    Input(BadInput),
    /// Nobody reads the report.
    Output(std::io::Error),
    Expected(Failure),
    /// Somebody wants it to end.
    Asked,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Expected(failure)
    }
}

impl From<BadInput> for Stop {
    fn from(bad: BadInput) -> Self {
        Stop::Input(bad)
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Stop::Output(error)
    }
}

impl Args {
    /// Whether all of a tenant's rules can be asked, one after another.
    fn every(&self) -> bool {
        let file = self.html.is_some() || self.report.is_some() || self.profile.is_some();
        let one = file || self.expect.is_some() || self.recorded.is_some();
        let read_once = self.events.iter().any(|it| it == Path::new("-"));
        !one && !read_once && self.compare.is_none()
    }
}

/// How often it is looked whether a file was saved.
const LOOK: Duration = Duration::from_millis(200);

/// Builds and replays whenever a file of the rule or an event was saved, until it is ended.
fn watch(args: &Args) -> Result<(), Failure> {
    let (mut seen, mut last) = (None, Vec::new());
    loop {
        let now = saved(args);
        if seen.replace(now.clone()) != Some(now) {
            let done = build::module(Path::new(".")).and_then(|_| once(args, Some(last.clone())));
            match done {
                Ok(made) => last = made,
                Err(Failure::Outcome(None)) => {}
                Err(Failure::Pipe) => return Ok(()),
                Err(Failure::Outcome(Some(why)) | Failure::Input(why)) => {
                    let error = style::ERROR;
                    anstream::eprintln!("{error}error:{error:#} {why}");
                }
            }
            let dim = style::DIM;
            anstream::println!("{dim}waiting for a file to be saved{dim:#}");
        }
        std::thread::sleep(LOOK);
    }
}

/// The files that a replay depends on, and when each was saved.
fn saved(args: &Args) -> Vec<(PathBuf, Option<SystemTime>)> {
    fn add(path: &Path, found: &mut Vec<(PathBuf, Option<SystemTime>)>) {
        if path.is_dir() {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.for_each(|entry| add(&entry.path(), found));
        } else {
            let saved = std::fs::metadata(path).and_then(|it| it.modified());
            found.push((path.to_owned(), saved.ok()));
        }
    }
    let mut found = Vec::new();
    let own = ["src", "Cargo.toml"].map(PathBuf::from);
    let named = args.rule_config.iter().chain(&args.tenant);
    for path in own.iter().chain(&args.events).chain(named) {
        add(path, &mut found);
    }
    found.sort();
    found
}

/// The module that `hooksieve build` put here.
fn built_here() -> Result<String, Failure> {
    let built = build::last(Path::new("."));
    let built = built.ok_or_else(|| {
        Failure::Input(
            "name the rule with --rule FILE.wasm, or go to the folder of one that `hooksieve new` made".to_owned(),
        )
    })?;
    Ok(built.display().to_string())
}

/// What rules run with: a tenant's settings, where one is named.
struct Place {
    tenant: Option<Tenant>,
    sandbox: Sandbox,
}

impl Place {
    fn sandbox(&self) -> Sandbox {
        match &self.tenant {
            Some(tenant) => tenant.limits.within(&self.sandbox),
            None => self.sandbox.clone(),
        }
    }

    fn limits(&self) -> Arc<Limits> {
        self.sandbox().limits().clone()
    }
}

fn tenant(path: &Path, config: &Config) -> Result<Tenant, Failure> {
    let tenant = Tenant::load(
        &Source::open(path)?,
        &environment(),
        config.dispatch.timeout_ms,
    )?;
    let limits = tenant.limits.check(&config.limits_max);
    limits.map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
    Ok(tenant)
}

/// The rule that was named.
fn asked(rule: Option<&str>, args: &Args, place: &Place) -> Result<Rules, Failure> {
    match &place.tenant {
        Some(tenant) => of_tenant(tenant, rule, args, place),
        None => {
            let rule = rule.map_or_else(built_here, |rule| Ok(rule.to_owned()))?;
            let name = "replay".parse::<Name>().map_err(Failure::input)?;
            Ok(Rules::one(name, alone(&rule, args, place)?))
        }
    }
}

/// A rule of the tenant's, or a module in its place.
fn of_tenant(
    tenant: &Tenant,
    rule: Option<&str>,
    args: &Args,
    place: &Place,
) -> Result<Rules, Failure> {
    let mut all = Rules::compile(std::slice::from_ref(tenant), &place.sandbox)?;
    let Some(all) = all.pop() else {
        unreachable!("one tenant has one set of rules");
    };
    let names: Vec<&str> = tenant.rules.iter().map(|it| it.name.as_str()).collect();
    let named = rule.and_then(|rule| rule.parse::<Name>().ok());
    let known = named.filter(|name| names.contains(&name.as_str()));
    match (rule, known) {
        (Some(rule), None) if rule.parse::<Name>().is_ok() && !Path::new(rule).exists() => {
            let mean = did_you_mean(rule, names);
            Err(Failure::Input(format!(
                "the tenant {} has no rule `{rule}`{mean}",
                tenant.name
            )))
        }
        (Some(rule), None) => Ok(all.instead(alone(rule, args, place)?)),
        (_, name) => all.choose(name.as_ref()).ok_or_else(|| {
            Failure::Input(format!(
                "name one rule of the tenant {} with --rule: it has {}",
                tenant.name,
                names.join(", ")
            ))
        }),
    }
}

/// The module that a rule runs, with the names of its functions where they are known.
fn wasm(rule: Option<&str>, place: &Place) -> Result<Vec<u8>, Failure> {
    let rules = place.tenant.as_ref().map(|it| it.rules.as_slice());
    let known = match (rules, rule) {
        (Some([only]), None) => Some(only),
        (Some(rules), Some(rule)) => rules.iter().find(|it| it.name.as_str() == rule),
        _ => None,
    };
    if let Some(rule) = known {
        let wasm = rule.wasm.to_vec();
        return Ok(match &rule.module {
            ModuleRef::File(path) => with_names(path, wasm),
            _ => wasm,
        });
    }
    let rule = rule.map_or_else(built_here, |rule| Ok(rule.to_owned()))?;
    Ok(with_names(Path::new(&rule), module(&rule)?))
}

/// The module of a file, or of a policy.
fn module(rule: &str) -> Result<Vec<u8>, Failure> {
    match rule.strip_prefix("policy:") {
        Some(name) => match hooksieve_policies::get(name) {
            Some(policy) => Ok(policy.wasm.to_vec()),
            None => {
                let names = hooksieve_policies::ALL.iter().map(|policy| policy.name);
                let mean = did_you_mean(name, names);
                Err(Failure::Input(format!("there is no policy `{name}`{mean}")))
            }
        },
        None => {
            std::fs::read(rule).map_err(|error| Failure::Input(format!("the rule {rule}: {error}")))
        }
    }
}

/// A module, with the configuration that was given.
fn alone(rule: &str, args: &Args, place: &Place) -> Result<ActiveRule, Failure> {
    let wasm = module(rule)?;
    let settings = match &args.rule_config {
        Some(path) => rule_config(path)?,
        None => vec![0x80],
    };
    let sandbox = place.sandbox();
    let limits = sandbox.limits().clone();
    let module = sandbox.compile(wasm).map_err(|refused| {
        Failure::Input(format!(
            "the rule {rule} is refused: {refused}; {}",
            refused.fix()
        ))
    })?;
    let program = Program::new(module, settings, limits)
        .map_err(|error| Failure::Input(format!("the rule {rule}: {error}")))?;
    let name = "rule".parse::<Name>().map_err(Failure::input)?;
    Ok(ActiveRule::alone(name, program))
}

fn rule_config(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: String| Failure::Input(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let value: toml::Value = if path
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        serde_json::from_str(&text).map_err(|error| failed(format!("not JSON: {error}")))?
    } else {
        let table: toml::Table = toml::from_str(&text)
            .map_err(|error| failed(format!("not TOML: {}", error.message())))?;
        toml::Value::Table(table)
    };
    encode_config(&value).map_err(failed)
}
