//! `hooksieve replay`: events through a rule, with the limits and the code of `serve`, sending
//! nothing; and how what it decides differs from what was expected.

mod differ;
mod page;

use self::differ::{Blessed, Expected, Made};
use super::{Failure, build, environment, style};
use hooksieve::channel::Channel;
use hooksieve::config::Config;
use hooksieve::config::read::{Source, did_you_mean};
use hooksieve::id::Name;
use hooksieve::pipeline::{ActiveRule, Rules};
use hooksieve::replay::{BadInput, Defaults, Recorded, read};
use hooksieve::sandbox::{Instances, Kept, Limits, Program, Run, Sandbox};
use hooksieve::store::{Delivery, Outcome, State};
use hooksieve::tenant::{Tenant, encode_config};
use hooksieve::timing::{Rehearsal, Suppressed};
use hooksieve_sdk::wire::Decision;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The rule: a module, policy:NAME, or with --tenant one of its rules [default: the tenant's, or what
    /// `hooksieve build` made here last]
    #[arg(long, value_name = "FILE.wasm|policy:NAME|RULE")]
    rule: Option<String>,
    /// A tenant's file: its limits, channels and, of its rules, configuration and channels hold
    #[arg(long, value_name = "FILE.toml")]
    tenant: Option<PathBuf>,
    /// Write the report as one page, too
    #[arg(long, value_name = "FILE", conflicts_with = "watch")]
    html: Option<PathBuf>,
    /// Compare with what this rule decided of the events in a recording
    #[arg(long, value_name = "RULE", conflicts_with_all = ["expect", "compare", "watch"])]
    recorded: Option<Name>,
    /// In a rule's folder: build and replay again whenever a file is saved, and tell what changed
    #[arg(long, conflicts_with_all = ["rule", "json", "expect", "compare", "render"])]
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
    /// The sender's event name of raw payloads, such as issues; their action is added to it
    #[arg(long = "type", value_name = "NAME")]
    kind: Option<String>,
    /// A configuration file, for limits that differ from the defaults
    #[arg(long, value_name = "FILE", env = "HOOKSIEVE_CONFIG")]
    config: Option<PathBuf>,
    /// Compare with what this file says of the events, field by field; exit code 1 where they differ
    #[arg(long, value_name = "FILE", conflicts_with = "compare")]
    expect: Option<PathBuf>,
    /// Write what the rule makes of the events now to the file of --expect
    #[arg(long, requires = "expect")]
    bless: bool,
    /// Tell on which events this rule decides otherwise: an older module, or policy:NAME
    #[arg(long, value_name = "FILE.wasm|policy:NAME")]
    compare: Option<String>,
    /// One JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// JSON files, folders, .ndjson files, or - for standard input
    #[arg(value_name = "EVENT", required = true)]
    events: Vec<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if args.watch {
        return watch(&args);
    }
    once(&args, None)
}

/// Goes through all events; `last` is what the run before made of them, and is what this one makes then.
fn once(args: &Args, last: Option<&mut Vec<Made>>) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), &environment())?;
    let tenant = args.tenant.as_deref().map(|path| tenant(path, &config));
    let tenant = tenant.transpose()?;
    let sandbox = Sandbox::new(config.limits).compile_in_child(config.compile);
    let place = Place { tenant, sandbox };
    let limits = place.limits();
    let mut session = Session {
        rule: Asked::new(args.rule.as_deref(), args, &place)?,
        before: match &args.compare {
            Some(other) => Some(Asked::new(Some(other), args, &place)?),
            None => None,
        },
        expected: match &args.expect {
            Some(path) if !args.bless => Some(Expected::open(path)?),
            _ => None,
        },
        blessed: match &args.expect {
            Some(path) if args.bless => Some(Blessed::new(path)?),
            _ => None,
        },
        page: args.html.clone().map(|path| (path, page::Seen::default())),
        recorded: args.recorded.clone(),
        last: last
            .as_ref()
            .map(|last| (**last).clone())
            .unwrap_or_default(),
        now: last.is_some().then(Vec::new),
        report: Report::default(),
        differ: 0,
        json: args.json,
        channels: match (args.render, &place.tenant) {
            (true, Some(tenant)) => tenant.channels.clone(),
            _ => BTreeMap::new(),
        },
        out: std::io::BufWriter::new(anstream::AutoStream::auto(std::io::stdout())),
    };
    let defaults = Defaults {
        tenant: session.rule.rules.tenant.clone(),
        source: args.source.clone(),
        kind: args.kind.clone(),
    };
    for path in &args.events {
        read::<Stop>(path, &defaults, &mut |recorded| session.event(&recorded))?;
    }
    if let (Some(last), Some(now)) = (last, session.now.take()) {
        *last = now;
    }
    session.end(&limits)
}

/// How often it is looked whether a file was saved.
const LOOK: Duration = Duration::from_millis(200);

/// Builds and replays whenever a file of the rule or an event was saved, until it is ended.
fn watch(args: &Args) -> Result<(), Failure> {
    let (mut seen, mut last) = (None, Vec::new());
    loop {
        let now = saved(args);
        if seen.replace(now.clone()) != Some(now) {
            let done = build::module(Path::new(".")).and_then(|_| once(args, Some(&mut last)));
            match done {
                Ok(()) | Err(Failure::Outcome(None)) => {}
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
            "name the rule with --rule FILE.wasm, or run `hooksieve build` here first".to_owned(),
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

/// A rule, with the instance that decides.
struct Asked {
    rules: Rules,
    instances: Instances,
    rehearsal: Rehearsal,
}

/// All that one run goes through events with.
struct Session<W: Write> {
    rule: Asked,
    /// What it is compared with.
    before: Option<Asked>,
    expected: Option<Expected>,
    blessed: Option<Blessed>,
    /// Where the report goes as a page, and what it is made of.
    page: Option<(PathBuf, page::Seen)>,
    /// The rule whose recorded decisions it is compared with.
    recorded: Option<Name>,
    /// What the run before this one made of the events, and what this one makes, where somebody watches.
    last: Vec<Made>,
    now: Option<Vec<Made>>,
    report: Report,
    /// How many events come to something else.
    differ: u64,
    json: bool,
    /// Those of which it is shown what they would send.
    channels: BTreeMap<Name, Arc<Channel>>,
    out: W,
}

impl<W: Write> Session<W> {
    fn event(&mut self, recorded: &Recorded) -> Result<(), Stop> {
        let Some(seen) = self.rule.see(recorded) else {
            return Ok(());
        };
        self.report.add(&seen, recorded);
        if let Some((_, page)) = &mut self.page {
            page.add(seen.row(recorded));
        }
        let made = seen.made(recorded);
        if let Some(blessed) = &mut self.blessed {
            blessed.add(&made)?;
        }
        let seen_last = self.now.as_mut().and_then(|now| {
            let before = self.last.get(now.len()).cloned();
            now.push(made.clone());
            before
        });
        let before = match (&mut self.expected, &mut self.before) {
            _ if seen_last.is_some() => seen_last,
            _ if self.recorded.is_some() => self.as_recorded(recorded, &made),
            (Some(expected), _) => Some(expected.next()?),
            (None, Some(before)) => before.see(recorded).map(|it| {
                let mut before = it.made(recorded);
                // Other code burns other fuel.
                before["fuel"] = made["fuel"].clone();
                before
            }),
            (None, None) => None,
        };
        let found = before.map(|before| differ::differences(&before, &made));
        self.differ += u64::from(found.as_ref().is_some_and(|it| !it.is_empty()));
        if self.json {
            let mut line = seen.line(recorded);
            if let Some(found) = found {
                line["differences"] = serde_json::json!(found);
            }
            return Ok(writeln!(self.out, "{line}")?);
        }
        match found {
            None => {
                seen.tell(recorded, &mut self.out)?;
                Ok(seen.render(&self.channels, &mut self.out)?)
            }
            Some(found) if found.is_empty() => Ok(()),
            Some(found) => Ok(differ::show(&made, &found, &mut self.out)?),
        }
    }

    /// What the recording says of an event, where its rule was asked about it. What it does not tell is taken
    /// to be the same; so is the fuel of other code.
    fn as_recorded(&self, recorded: &Recorded, made: &Made) -> Option<Made> {
        let rule = self.recorded.as_ref()?;
        let kept = recorded.made.iter().find(|it| it.rule == *rule)?;
        let mut before = made.clone();
        let decision = kept.decision.as_deref().map(serde_json::from_str);
        before["decision"] = decision.and_then(Result::ok).unwrap_or_default();
        let error = kept.error.as_ref();
        before["error"] = error
            .map(|(kind, message)| serde_json::json!({ "kind": kind, "message": message }))
            .unwrap_or_default();
        let same = self.rule.rules.program().is_some_and(|program| {
            let module = program.module().hash().to_string() == kept.module;
            module && program.config_hash().to_string() == kept.config
        });
        if same {
            before["fuel"] = kept.fuel.into();
        }
        Some(before)
    }

    fn end(mut self, limits: &Limits) -> Result<(), Failure> {
        let watched = !self.last.is_empty();
        let compared =
            self.expected.is_some() || self.before.is_some() || self.recorded.is_some() || watched;
        let missing = self.expected.map_or(0, Expected::rest);
        if !self.json {
            self.report.summary(limits, &mut self.out)?;
            if compared {
                let colour = match self.differ {
                    0 => style::GOOD,
                    _ => style::BAD,
                };
                let (differ, all) = (self.differ, self.report.fuel.len());
                writeln!(self.out, "  {colour}differ   {differ} of {all}{colour:#}")?;
            }
            if missing > 0 {
                let bad = style::BAD;
                writeln!(
                    self.out,
                    "  {bad}missing  {missing} more events are expected{bad:#}"
                )?;
            }
        }
        self.out.flush()?;
        if let Some(blessed) = self.blessed {
            blessed.keep()?;
        }
        if let Some((path, page)) = self.page {
            let written = std::fs::write(&path, page.page(limits));
            written.map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
        }
        // What fails as it is expected to is as it should be.
        let failed = self.report.failed > 0 && !compared;
        match failed || (self.differ > 0 && !watched) || missing > 0 {
            false => Ok(()),
            true => Err(Failure::Outcome(None)),
        }
    }
}

/// One rule needs one instance.
const ONE: Kept = Kept {
    count_max: 1,
    bytes_max: usize::MAX,
};

/// What ends the reading of events: bad input, or nobody who reads the report.
enum Stop {
    Input(BadInput),
    Output(std::io::Error),
    Expected(Failure),
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

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Input(bad) => Failure::input(bad),
            Stop::Output(error) => error.into(),
            Stop::Expected(failure) => failure,
        }
    }
}

impl Asked {
    fn new(rule: Option<&str>, args: &Args, place: &Place) -> Result<Self, Failure> {
        let rules = match &place.tenant {
            Some(tenant) => of_tenant(tenant, rule, args, place)?,
            None => {
                let rule = rule.map_or_else(built_here, |rule| Ok(rule.to_owned()))?;
                let name = "replay".parse::<Name>().map_err(Failure::input)?;
                Rules::one(name, alone(&rule, args, place)?)
            }
        };
        Ok(Self {
            rules,
            instances: Instances::new(ONE),
            rehearsal: Rehearsal::default(),
        })
    }

    /// What the rule makes of an event.
    fn see(&mut self, recorded: &Recorded) -> Option<Seen> {
        let (run, commit) = self.rules.replay(&recorded.event, &mut self.instances)?;
        let received_ms = recorded.event.received_ms;
        let deliveries = commit.deliveries.clone();
        let timed = commit.deliveries.into_iter();
        let timed = timed
            .map(|delivery| self.rehearsal.admit(delivery, received_ms))
            .flat_map(|(delivery, escalation)| [Some(delivery), escalation])
            .flatten()
            .map(|delivery| Timed::of(&delivery, received_ms))
            .collect();
        let (decision, error) = match commit.decisions.into_iter().next()?.outcome {
            Outcome::Decided(decision) => (Some(decision), None),
            Outcome::Failed { kind, error, .. } => (None, Some((kind, error))),
        };
        Some(Seen {
            run,
            decision,
            error,
            timed,
            deliveries,
        })
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
        (Some(rule), None) => Ok(all.instead(alone(rule, args, place)?)),
        (_, name) => all.choose(name.as_ref()).ok_or_else(|| {
            let which = match names.is_empty() {
                true => "it has none".to_owned(),
                false => format!("it has {}", names.join(", ")),
            };
            Failure::Input(format!(
                "name one rule of the tenant {} with --rule: {which}",
                tenant.name
            ))
        }),
    }
}

/// A module, with the configuration that was given.
fn alone(rule: &str, args: &Args, place: &Place) -> Result<ActiveRule, Failure> {
    let wasm = match rule.strip_prefix("policy:") {
        Some(name) => match hooksieve_policies::get(name) {
            Some(policy) => policy.wasm.to_vec(),
            None => {
                let names = hooksieve_policies::ALL.iter().map(|policy| policy.name);
                let mean = did_you_mean(name, names);
                return Err(Failure::Input(format!("there is no policy `{name}`{mean}")));
            }
        },
        None => std::fs::read(rule)
            .map_err(|error| Failure::Input(format!("the rule {rule}: {error}")))?,
    };
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

/// What a rule made of one event.
struct Seen {
    run: Run,
    decision: Option<Decision>,
    /// The kind of failure, and its text.
    error: Option<(String, String)>,
    timed: Vec<Timed>,
    deliveries: Vec<Delivery>,
}

impl Seen {
    /// What each of these channels would send.
    fn render(
        &self,
        channels: &BTreeMap<Name, Arc<Channel>>,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let (bold, bad) = (style::HEADING, style::BAD);
        for delivery in &self.deliveries {
            let Some(channel) = channels.get(&delivery.channel) else {
                continue;
            };
            let (name, kind) = (&delivery.channel, channel.kind());
            writeln!(out, "    {bold}{name}{bold:#} ({kind})")?;
            let text = match channel.preview(delivery) {
                Ok(preview) => match (preview.text, preview.json) {
                    (Some(text), _) => text,
                    (None, Some(json)) => format!("{json:#}"),
                    (None, None) => String::new(),
                },
                Err(error) => format!("{bad}{error}{bad:#}"),
            };
            for line in text.lines() {
                writeln!(out, "      {}", style::clean(line))?;
            }
        }
        Ok(())
    }

    fn row(&self, recorded: &Recorded) -> page::Row {
        let (outcome, why) = match (&self.decision, &self.error) {
            (Some(decision), _) if decision.actions.is_empty() => ("drop", &*decision.reason),
            (Some(decision), _) => ("notify", &*decision.reason),
            (None, error) => ("failed", error.as_ref().map_or("", |(_, error)| error)),
        };
        page::Row {
            kind: recorded.event.kind.clone(),
            id: recorded.id.clone(),
            outcome,
            why: why.to_owned(),
            fuel: self.run.fuel,
            took: self.run.duration,
        }
    }

    fn failure(&self) -> Option<serde_json::Value> {
        let (kind, message) = self.error.as_ref()?;
        Some(serde_json::json!({ "kind": kind, "message": message }))
    }

    /// What is the same in every run on every machine.
    fn made(&self, recorded: &Recorded) -> Made {
        serde_json::json!({
            "event": {
                "id": recorded.id,
                "source": recorded.source,
                "type": recorded.event.kind,
            },
            "decision": self.decision,
            "error": self.failure(),
            "deliveries": self.timed,
            "fuel": self.run.fuel,
        })
    }

    /// All of it.
    fn line(&self, recorded: &Recorded) -> serde_json::Value {
        let mut line = self.made(recorded);
        line["memory_bytes"] = self.run.memory_bytes.into();
        line["duration_us"] = (self.run.duration.as_micros() as u64).into();
        line["log"] = serde_json::json!(self.run.log);
        line
    }

    fn tell(&self, recorded: &Recorded, out: &mut impl Write) -> std::io::Result<()> {
        let run = &self.run;
        let (good, bad, dim) = (style::GOOD, style::BAD, style::DIM);
        let used = format!(
            "{dim}{:>9} fuel {:>8} {:>7} µs{dim:#}",
            style::grouped(run.fuel),
            style::bytes(run.memory_bytes),
            run.duration.as_micros()
        );
        let kind = style::clean(&recorded.event.kind);
        match (&self.decision, &self.error) {
            (Some(decision), _) if decision.actions.is_empty() => {
                let reason = style::clean(&decision.reason);
                writeln!(out, "{used}  {kind:<36} drop    {reason}")?;
            }
            (Some(decision), _) => {
                let to = channels(decision);
                let reason = style::clean(&decision.reason);
                writeln!(
                    out,
                    "{used}  {kind:<36} {good}notify{good:#}  {to}: {reason}"
                )?;
            }
            (None, error) => {
                let error = error.as_ref().map(|(_, error)| style::clean(error));
                let error = error.unwrap_or_default();
                writeln!(out, "{used}  {kind:<36} {bad}failed{bad:#}  {error}")?;
            }
        }
        for timed in self.timed.iter().filter(|timed| timed.state != AT_ONCE) {
            let (channel, comes_to) = (style::clean(&timed.channel), timed.comes_to());
            writeln!(out, "{dim}{:>37}  {channel}: {comes_to}{dim:#}", "")?;
        }
        for line in &run.log {
            writeln!(out, "{dim}{:>37}  log: {}{dim:#}", "", style::clean(line))?;
        }
        Ok(())
    }
}

/// A delivery that goes out as soon as it is decided.
const AT_ONCE: &str = "at-once";

/// What a delivery comes to, by its timing.
#[derive(serde::Serialize)]
struct Timed {
    channel: String,
    /// `at-once`, `later`, `digest`, `escalation`, `gathered`, `deduped`, or `throttled`.
    state: &'static str,
    /// When it is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<String>,
    /// The delivery that it is gathered in, or repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<String>,
    /// How many a throttle held back before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_back: Option<u64>,
}

impl Timed {
    fn of(delivery: &Delivery, clock_ms: i64) -> Self {
        let (state, due_ms, into) = match &delivery.state {
            State::Suppressed {
                by: Suppressed::Dedupe,
                first,
                ..
            } => ("deduped", None, *first),
            State::Suppressed { .. } => ("throttled", None, None),
            State::Gathered { into, .. } => ("gathered", None, Some(*into)),
            State::Pending { due_ms } if delivery.escalation_of.is_some() => {
                ("escalation", Some(*due_ms), None)
            }
            State::Pending { due_ms } if !delivery.gathered.is_empty() => {
                ("digest", Some(*due_ms), None)
            }
            State::Pending { due_ms } if *due_ms > clock_ms => ("later", Some(*due_ms), None),
            _ => (AT_ONCE, None, None),
        };
        let due = due_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        Self {
            channel: delivery.channel.to_string(),
            state,
            due: due.map(|due| due.to_string()),
            into: into.map(|id| id.to_string()),
            held_back: Some(delivery.held_back).filter(|held_back| *held_back > 0),
        }
    }

    fn comes_to(&self) -> String {
        let due = self.due.as_deref().unwrap_or_default();
        match self.state {
            "later" => format!("waits until {due}"),
            "digest" => format!("begins a digest, which goes out at {due}, or when it is full"),
            "escalation" => format!("told at {due}, unless someone acknowledges"),
            "gathered" => "goes into the digest that is open".to_owned(),
            "deduped" => "dropped: it repeats one that was sent".to_owned(),
            _ => "held back: enough were sent in this period".to_owned(),
        }
    }
}

fn channels(decision: &Decision) -> String {
    let names: Vec<_> = decision
        .actions
        .iter()
        .map(|action| style::clean(&action.channel))
        .collect();
    names.join(", ")
}

#[derive(Default)]
struct Report {
    dropped: u64,
    notified: u64,
    failed: u64,
    channels: BTreeMap<String, u64>,
    /// Deliveries by what their timing comes to.
    timed: BTreeMap<&'static str, u64>,
    fuel: Vec<u64>,
    memory_bytes: Vec<u64>,
    /// The event that came closest to the limit of fuel, and the one that took longest.
    nearest: (u64, String),
    slowest: (Duration, String),
}

impl Report {
    fn add(&mut self, seen: &Seen, recorded: &Recorded) {
        self.fuel.push(seen.run.fuel);
        self.memory_bytes.push(seen.run.memory_bytes);
        let which = || format!("{} {}", recorded.event.kind, recorded.id);
        if seen.run.fuel > self.nearest.0 {
            self.nearest = (seen.run.fuel, which());
        }
        if seen.run.duration > self.slowest.0 {
            self.slowest = (seen.run.duration, which());
        }
        for timed in &seen.timed {
            *self.timed.entry(timed.state).or_default() += 1;
        }
        match &seen.decision {
            Some(decision) if decision.actions.is_empty() => self.dropped += 1,
            Some(decision) => {
                self.notified += 1;
                for action in &decision.actions {
                    *self.channels.entry(action.channel.clone()).or_default() += 1;
                }
            }
            None => self.failed += 1,
        }
    }

    fn summary(&mut self, limits: &Limits, out: &mut impl Write) -> std::io::Result<()> {
        let (bold, bad) = (
            style::HEADING,
            if self.failed > 0 {
                style::BAD
            } else {
                style::GOOD
            },
        );
        self.fuel.sort_unstable();
        writeln!(
            out,
            "{bold}{} events{bold:#}: {} dropped, {} notified, {bad}{} failed{bad:#}",
            self.fuel.len(),
            self.dropped,
            self.notified,
            self.failed
        )?;
        let channels = self
            .channels
            .iter()
            .map(|(name, count)| format!("{} {count}", style::clean(name)));
        let channels: Vec<_> = channels.collect();
        if !channels.is_empty() {
            writeln!(out, "  actions  {}", channels.join(", "))?;
        }
        if self.timed.keys().any(|state| *state != AT_ONCE) {
            let timed = self.timed.iter();
            let timed: Vec<_> = timed.map(|(state, n)| format!("{state} {n}")).collect();
            writeln!(out, "  timing   {}", timed.join(", "))?;
        }
        self.memory_bytes.sort_unstable();
        let mut used = |what: &str, all: &[u64], limit: u64, shown: fn(u64) -> String| {
            let max = all.last().copied().unwrap_or(0);
            let [p50, p95, p99] = [50, 95, 99].map(|percent| shown(percentile(all, percent)));
            let share = 100.0 * max as f64 / limit as f64;
            let (max, limit) = (shown(max), shown(limit));
            writeln!(
                out,
                "  {what:<8} p50 {p50}, p95 {p95}, p99 {p99}, max {max} of {limit} ({share:.1} %)"
            )
        };
        used("fuel", &self.fuel, limits.fuel, style::grouped)?;
        used(
            "memory",
            &self.memory_bytes,
            limits.memory_bytes,
            style::bytes,
        )?;
        if self.nearest.0 > 0 {
            let left = 100.0 - 100.0 * self.nearest.0 as f64 / limits.fuel as f64;
            let which = style::clean(&self.nearest.1);
            writeln!(out, "  headroom {left:.1} % of the fuel, on {which}")?;
            let (took, which) = (self.slowest.0.as_micros(), style::clean(&self.slowest.1));
            writeln!(out, "  slowest  {took} µs, {which}")?;
        }
        Ok(())
    }
}

/// The nearest-rank percentile of what is sorted; 0 of nothing.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}
