//! `hooksieve replay`: events through a rule, with the limits and the code of `serve`, sending
//! nothing.

use super::{Failure, environment, style};
use hooksieve::config::Config;
use hooksieve::config::read::did_you_mean;
use hooksieve::id::Name;
use hooksieve::pipeline::{ActiveRule, Rules};
use hooksieve::replay::{BadInput, Defaults, Recorded, read};
use hooksieve::sandbox::{Instances, Kept, Limits, Program, Sandbox};
use hooksieve::store::{Delivery, Outcome, State};
use hooksieve::tenant::encode_config;
use hooksieve::timing::{Rehearsal, Suppressed};
use hooksieve_sdk::wire::Decision;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The rule: a module, or policy:NAME
    #[arg(long, value_name = "FILE.wasm|policy:NAME")]
    rule: String,
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
    /// One JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// JSON files, folders, .ndjson files, or - for standard input
    #[arg(value_name = "EVENT", required = true)]
    events: Vec<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let config = Config::load(args.config.as_deref(), &environment())?;
    let limits = config.limits.clone();
    let rules = rules(&args, config)?;
    let defaults = Defaults {
        tenant: rules.tenant.clone(),
        source: args.source.clone(),
        kind: args.kind.clone(),
    };
    let mut report = Report::default();
    let mut instances = Instances::new(ONE);
    let mut out = std::io::BufWriter::new(anstream::AutoStream::auto(std::io::stdout()));
    for path in &args.events {
        read::<Stop>(path, &defaults, &mut |recorded| {
            let report = &mut report;
            replay(
                &rules,
                &mut instances,
                &recorded,
                report,
                args.json,
                &mut out,
            )?;
            Ok(())
        })?;
    }
    if !args.json {
        report.summary(&limits, &mut out)?;
    }
    out.flush()?;
    match report.failed {
        0 => Ok(()),
        _ => Err(Failure::Outcome(None)),
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
        }
    }
}

fn rules(args: &Args, config: Config) -> Result<Rules, Failure> {
    let wasm = match args.rule.strip_prefix("policy:") {
        Some(name) => match hooksieve_policies::get(name) {
            Some(policy) => policy.wasm.to_vec(),
            None => {
                let names = hooksieve_policies::ALL.iter().map(|policy| policy.name);
                let mean = did_you_mean(name, names);
                return Err(Failure::Input(format!("there is no policy `{name}`{mean}")));
            }
        },
        None => std::fs::read(&args.rule)
            .map_err(|error| Failure::Input(format!("the rule {}: {error}", args.rule)))?,
    };
    let settings = match &args.rule_config {
        Some(path) => rule_config(path)?,
        None => vec![0x80],
    };
    let limits = config.limits;
    let module = Sandbox::new(limits.clone())
        .compile_in_child(config.compile)
        .compile(wasm)
        .map_err(|refused| {
            Failure::Input(format!(
                "the rule {} is refused: {refused}; {}",
                args.rule,
                refused.fix()
            ))
        })?;
    let program = Program::new(module, settings, limits)
        .map_err(|error| Failure::Input(format!("the rule {}: {error}", args.rule)))?;
    let name = |text: &str| text.parse::<Name>().map_err(Failure::input);
    Ok(Rules::one(
        name("replay")?,
        ActiveRule::alone(name("rule")?, program),
    ))
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

fn replay(
    rules: &Rules,
    instances: &mut Instances,
    recorded: &Recorded,
    report: &mut Report,
    json: bool,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let Some((run, commit)) = rules.replay(&recorded.event, instances) else {
        return Ok(());
    };
    let timed: Vec<_> = commit
        .deliveries
        .into_iter()
        .map(|delivery| report.rehearsal.admit(delivery, recorded.event.received_ms))
        .flat_map(|(delivery, escalation)| [Some(delivery), escalation])
        .flatten()
        .map(|delivery| Timed::of(&delivery, recorded.event.received_ms))
        .collect();
    report.fuel.push(run.fuel);
    report.memory_bytes_max = report.memory_bytes_max.max(run.memory_bytes);
    let kind = &recorded.event.kind;
    let outcome = commit.decisions.into_iter().next().map(|it| it.outcome);
    let (decision, error) = match outcome {
        Some(Outcome::Decided(decision)) => (Some(decision), None),
        Some(Outcome::Failed { kind, error, .. }) => (None, Some((kind, error))),
        None => return Ok(()),
    };
    for timed in &timed {
        *report.timed.entry(timed.state).or_default() += 1;
    }
    match (&decision, &error) {
        (Some(decision), _) if decision.actions.is_empty() => report.dropped += 1,
        (Some(decision), _) => {
            report.notified += 1;
            for action in &decision.actions {
                *report.channels.entry(action.channel.clone()).or_default() += 1;
            }
        }
        (None, _) => report.failed += 1,
    }
    if json {
        let line = serde_json::json!({
            "event": { "id": recorded.id, "source": recorded.source, "type": kind },
            "decision": decision,
            "error": error.map(|(kind, message)| serde_json::json!({
                "kind": kind,
                "message": message,
            })),
            "deliveries": timed,
            "fuel": run.fuel,
            "memory_bytes": run.memory_bytes,
            "duration_us": run.duration.as_micros() as u64,
            "log": run.log,
        });
        return writeln!(out, "{line}");
    }
    let (good, bad, dim) = (style::GOOD, style::BAD, style::DIM);
    let used = format!(
        "{dim}{:>9} fuel {:>8} {:>7} µs{dim:#}",
        style::grouped(run.fuel),
        style::bytes(run.memory_bytes),
        run.duration.as_micros()
    );
    let kind = style::clean(kind);
    match (decision, error) {
        (Some(decision), _) if decision.actions.is_empty() => {
            let reason = style::clean(&decision.reason);
            writeln!(out, "{used}  {kind:<36} drop    {reason}")?;
        }
        (Some(decision), _) => {
            let to = channels(&decision);
            let reason = style::clean(&decision.reason);
            writeln!(
                out,
                "{used}  {kind:<36} {good}notify{good:#}  {to}: {reason}"
            )?;
        }
        (None, error) => {
            let error = error.map(|(_, error)| style::clean(&error));
            let error = error.unwrap_or_default();
            writeln!(out, "{used}  {kind:<36} {bad}failed{bad:#}  {error}")?;
        }
    }
    for timed in timed.iter().filter(|timed| timed.state != AT_ONCE) {
        let (channel, comes_to) = (style::clean(&timed.channel), timed.comes_to());
        writeln!(out, "{dim}{:>37}  {channel}: {comes_to}{dim:#}", "")?;
    }
    for line in &run.log {
        writeln!(out, "{dim}{:>37}  log: {}{dim:#}", "", style::clean(line))?;
    }
    Ok(())
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
    rehearsal: Rehearsal,
    fuel: Vec<u64>,
    memory_bytes_max: u64,
}

impl Report {
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
        let max = self.fuel.last().copied().unwrap_or(0);
        writeln!(
            out,
            "  fuel     p50 {}, p99 {}, max {} of {} ({:.1} %)",
            style::grouped(percentile(&self.fuel, 50)),
            style::grouped(percentile(&self.fuel, 99)),
            style::grouped(max),
            style::grouped(limits.fuel),
            100.0 * max as f64 / limits.fuel as f64
        )?;
        writeln!(
            out,
            "  memory   max {} of {}",
            style::bytes(self.memory_bytes_max),
            style::bytes(limits.memory_bytes)
        )
    }
}

/// The nearest-rank percentile of what is sorted; 0 of nothing.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}
