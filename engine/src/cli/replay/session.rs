//! What is told, kept and compared while events go through a rule.

use super::differ::{self, Blessed, Expected, Made};
use super::follow::{Follower, PROFILED_MAX};
use super::report::Report;
use super::seen::Seen;
use super::threads::{Judged, Turn};
use super::{INTERRUPTED, Stop, page};
use crate::cli::{Failure, style};
use hooksieve::channel::Channel;
use hooksieve::id::Name;
use hooksieve::pipeline::Rules;
use hooksieve::recording::Personal;
use hooksieve::replay::Recorded;
use hooksieve::sandbox::PRICES_VERSION;
use hooksieve::timing::Rehearsal;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

/// Events that are listed one by one; beyond them, only those that failed or differ are.
const LISTED_MAX: u64 = 1_000;

/// What events are compared with.
pub(super) enum Compared {
    Nothing,
    /// What a file says, or is to say.
    Expected(Expected),
    Blessed(Blessed),
    /// What another module makes of them.
    Module(Rehearsal),
    /// What a rule of the recording's decided.
    Recorded(AsRecorded),
    /// What the run before this one made of them; and what this one makes.
    Last {
        last: Vec<Made>,
        now: Vec<Made>,
    },
}

/// A rule of a recording's, and whether it is there.
pub(super) struct AsRecorded {
    pub(super) rule: Name,
    found: bool,
    /// Rules that are.
    others: BTreeSet<Name>,
}

impl AsRecorded {
    pub(super) fn new(rule: Name) -> Self {
        Self {
            rule,
            found: false,
            others: BTreeSet::new(),
        }
    }

    fn note(&mut self, recorded: &Recorded) {
        for made in &recorded.made {
            self.found |= made.rule == self.rule;
            if self.others.len() < LISTED_MAX as usize && !self.others.contains(&made.rule) {
                self.others.insert(made.rule.clone());
            }
        }
    }

    /// Nothing to compare with is no agreement.
    fn check(&self) -> Result<(), Failure> {
        if self.found {
            return Ok(());
        }
        let rule = &self.rule;
        let why = match self.others.is_empty() {
            true => "they hold no decisions; `hooksieve record --tenant NAME` records an engine's with them".to_owned(),
            false => {
                let names: Vec<&str> = self.others.iter().map(Name::as_str).collect();
                format!("they are of {}", names.join(", "))
            }
        };
        Err(Failure::Input(format!(
            "nothing that the rule {rule} decided is in these events: {why}"
        )))
    }
}

pub(super) struct Session<'a, W: Write> {
    pub(super) rules: &'a Rules,
    pub(super) rehearsal: Rehearsal,
    pub(super) compared: Compared,
    /// Where the report goes as a page, and what it is made of.
    pub(super) page: Option<(PathBuf, page::Seen)>,
    pub(super) report: Report,
    /// Where the report goes as JSON.
    pub(super) report_to: Option<PathBuf>,
    /// How many percent of fuel more or less are as expected.
    pub(super) fuel_within: f64,
    /// How many events come to something else.
    pub(super) differ: u64,
    /// The version of the prices that fuel was counted in, where that is another one.
    pub(super) other_prices: Option<u64>,
    pub(super) json: bool,
    /// What was asked for.
    pub(super) rule: String,
    /// Told with each event, where there are several rules.
    pub(super) named: Option<Name>,
    /// Those of which it is shown what they would send.
    pub(super) channels: BTreeMap<Name, Arc<Channel>>,
    pub(super) follower: Follower<'a>,
    pub(super) progress: Progress,
    pub(super) out: W,
}

impl<W: Write> Session<'_, W> {
    pub(super) fn turn(&mut self, turn: Turn) -> Result<(), Stop> {
        match turn {
            Turn::Done(done) => {
                let events = done.events.len() as u64;
                done.events.into_iter().try_for_each(|it| self.event(it))?;
                self.progress.add(done.bytes, events);
                Ok(())
            }
            Turn::Waiting => Ok(self.out.flush()?),
            Turn::Stopped => {
                self.tell(false)?;
                let dim = style::DIM;
                anstream::eprintln!("{dim}interrupted: this is of the events until then{dim:#}");
                std::process::exit(INTERRUPTED);
            }
        }
    }

    fn event(&mut self, judged: Judged) -> Result<(), Stop> {
        let Judged {
            recorded,
            answer,
            before,
        } = judged;
        let seen = answer.and_then(|it| Seen::new(it, &recorded.event, &mut self.rehearsal));
        let Some(seen) = seen else {
            self.report.unasked();
            return Ok(());
        };
        self.report.add(&seen, &recorded);
        let encoded = &recorded.event.encoded;
        if let Some((_, page)) = &mut self.page {
            page.add(seen.row(&recorded), encoded);
            if !self.channels.is_empty() && page.has_room() {
                let sent = seen.sent(&self.channels, Some(&Personal::of(encoded)));
                page.sends(Report::which(&recorded), sent);
            }
        }
        if self.follower.profiles() && self.report.asked() <= PROFILED_MAX {
            self.follower.profile(&recorded.event);
        }
        let made = || seen.made(&recorded);
        let found = match &mut self.compared {
            Compared::Nothing => None,
            Compared::Blessed(blessed) => {
                blessed.add(&made())?;
                None
            }
            Compared::Expected(expected) => {
                let after = made();
                Some(match expected.of(&recorded.id)? {
                    None => differ::new(&after),
                    Some(mut before) => {
                        let other = differ::in_same_prices(&mut before, &after);
                        self.other_prices = self.other_prices.or(other);
                        let mut found = differ::differences(&before, &after);
                        found.retain(|it| !differ::about_as_much_fuel(it, self.fuel_within));
                        found
                    }
                })
            }
            Compared::Module(rehearsal) => {
                let before = before.and_then(|it| Seen::new(it, &recorded.event, rehearsal));
                before.map(|before| match before.same(&seen) {
                    true => Vec::new(),
                    false => {
                        let after = made();
                        let mut before = before.made(&recorded);
                        // Other code burns other fuel.
                        before["fuel"] = after["fuel"].clone();
                        differ::differences(&before, &after)
                    }
                })
            }
            Compared::Recorded(kept) => {
                kept.note(&recorded);
                let before = as_recorded(&kept.rule, self.rules, &recorded, made());
                let before = before.map(|mut before| {
                    let other = differ::in_same_prices(&mut before, &made());
                    self.other_prices = self.other_prices.or(other);
                    before
                });
                before.map(|before| differ::differences(&before, &made()))
            }
            Compared::Last { last, now } => {
                let before = last.get(now.len());
                let found = before.map(|before| differ::differences(before, &made()));
                now.push(made());
                found
            }
        };
        let differs = found.as_ref().is_some_and(|it| !it.is_empty());
        self.differ += u64::from(differs);
        if let (Some((_, page)), Some(found)) = (&mut self.page, found.as_ref().filter(|_| differs))
        {
            page.differs(Report::which(&recorded), found, encoded);
        }
        if self.json {
            let mut line = seen.line(&recorded);
            if let Some(name) = &self.named {
                line["rule"] = name.as_str().into();
            }
            if let Some(found) = found {
                line["differences"] = serde_json::json!(found);
            }
            return Ok(writeln!(self.out, "{line}")?);
        }
        let asked = self.report.asked();
        let listed = asked <= LISTED_MAX;
        if asked == LISTED_MAX + 1 && found.is_none() {
            let dim = style::DIM;
            writeln!(
                self.out,
                "{dim}... {LISTED_MAX} events are listed; from here on those that fail, and --json lists all{dim:#}"
            )?;
        }
        match found {
            None if listed || seen.failed() => {
                self.progress.hide();
                seen.tell(&recorded, &mut self.out)?;
                if seen.failed_within() {
                    self.follower.tell(&recorded.event, &mut self.out)?;
                }
                Ok(seen.render(&self.channels, &mut self.out)?)
            }
            Some(found) if differs => {
                self.progress.hide();
                Ok(differ::show(&recorded, &found, &mut self.out)?)
            }
            _ => Ok(()),
        }
    }

    /// Ends it: whether all is as it should be, and what is kept for the next run.
    pub(super) fn end(mut self) -> Result<(bool, Vec<Made>), Failure> {
        if self.report.all() == 0 {
            return Err(Failure::Input(
                "there is no event to replay: give JSON files, .ndjson or .hsr files, or folders of them"
                    .to_owned(),
            ));
        }
        if let Compared::Recorded(kept) = &self.compared {
            kept.check()?;
        }
        let good = self.tell(true)?;
        let now = match self.compared {
            Compared::Blessed(blessed) => blessed.keep().map(|()| Vec::new())?,
            Compared::Last { now, .. } => now,
            _ => Vec::new(),
        };
        Ok((good, now))
    }

    /// Tells what it came to, of all events or of those so far; whether that is as it should be.
    fn tell(&mut self, all: bool) -> Result<bool, Failure> {
        self.progress.end();
        let (watched, compared) = match &self.compared {
            Compared::Nothing | Compared::Blessed(_) => (false, false),
            Compared::Last { last, .. } => (true, !last.is_empty()),
            _ => (false, true),
        };
        let missing = match &mut self.compared {
            Compared::Expected(expected) if all => expected.missing()?,
            _ => Vec::new(),
        };
        if !self.json {
            self.report.summary(&mut self.out)?;
            if compared {
                let colour = match self.differ {
                    0 => style::GOOD,
                    _ => style::BAD,
                };
                let counts = [self.differ, self.report.asked()];
                let [differ, all] = counts.map(style::grouped);
                let since = if watched { " since the last save" } else { "" };
                writeln!(
                    self.out,
                    "  {colour}differ   {differ} of {all}{since}{colour:#}"
                )?;
            }
            if let Some(version) = self.other_prices {
                let dim = style::DIM;
                writeln!(
                    self.out,
                    "  {dim}fuel is not compared: it was counted in prices of version {version}, and these are of version {PRICES_VERSION}; --bless keeps the new{dim:#}"
                )?;
            }
            if let Some(first) = missing.first() {
                let (bad, count) = (style::BAD, style::counted(missing.len() as u64, "event"));
                let first = style::clean(first);
                writeln!(
                    self.out,
                    "  {bad}missing  {count} more expected, the first is {first}{bad:#}"
                )?;
            }
            if let Compared::Blessed(blessed) = &self.compared
                && all
            {
                let kept = style::counted(blessed.events, "event");
                let failed = match self.report.failed {
                    0 => String::new(),
                    failed => format!(", {failed} of them as failing"),
                };
                writeln!(self.out, "  kept     {kept}{failed}")?;
            }
        }
        self.out.flush()?;
        self.follower.end()?;
        if let Some(path) = &self.report_to {
            let differ = compared.then_some(self.differ);
            let report = self.report.json(&self.rule, differ);
            let written = std::fs::write(path, format!("{report:#}\n"));
            written.map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
        }
        if let Some((path, page)) = &self.page {
            let module = self
                .rules
                .program()
                .map(|it| it.module().hash().to_string());
            let module = module.unwrap_or_default();
            let written = std::fs::write(path, page.page(&self.report, &self.rule, &module));
            written.map_err(|error| Failure::input(format!("{}: {error}", path.display())))?;
        }
        // What fails as it is expected to is as it should be.
        let blessed = matches!(self.compared, Compared::Blessed(_));
        let failed = self.report.failed > 0 && !compared && !blessed;
        Ok(!failed && (self.differ == 0 || watched) && missing.is_empty())
    }
}

/// What the recording says of an event, where its rule was asked about it. What it does not tell is taken
/// to be the same; so is the fuel of other code.
fn as_recorded(rule: &Name, rules: &Rules, recorded: &Recorded, made: Made) -> Option<Made> {
    let kept = recorded.made.iter().find(|it| it.rule == *rule)?;
    let mut before = made;
    let decision = kept.decision.as_deref().map(serde_json::from_str);
    before["decision"] = decision.and_then(Result::ok).unwrap_or_default();
    let error = kept.error.as_ref();
    before["error"] = error
        .map(|(kind, message)| serde_json::json!({ "kind": kind, "message": message }))
        .unwrap_or_default();
    let same = rules.program().is_some_and(|program| {
        let module = program.module().hash().to_string() == kept.module;
        module && program.config_hash().to_string() == kept.config
    });
    if same {
        before["fuel"] = kept.fuel.into();
        before["prices"] = kept.prices.into();
    }
    Some(before)
}

/// How far it is, on a terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    events: u64,
}

impl Progress {
    /// Of so many bytes, where that is known.
    pub(super) fn new(bytes: Option<u64>) -> Self {
        let bar = match bytes {
            Some(bytes) => ProgressBar::new(bytes),
            None => ProgressBar::new_spinner(),
        };
        let shown = match bytes {
            Some(_) => "{bar:30} {percent:>3} % {msg}",
            None => "{spinner} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(shown) {
            bar.set_style(style);
        }
        Self { bar, events: 0 }
    }

    fn add(&mut self, bytes: u64, events: u64) {
        self.events += events;
        let seconds = self.bar.elapsed().as_secs_f64();
        if seconds > SHOWN_AFTER_S {
            let rate = style::grouped((self.events as f64 / seconds) as u64);
            let events = style::grouped(self.events);
            self.bar
                .set_message(format!("{events} events, {rate} a second"));
            self.bar.inc(bytes);
        } else {
            self.bar.update(|state| state.set_pos(state.pos() + bytes));
        }
    }

    /// Makes room for a line.
    fn hide(&self) {
        self.bar.suspend(|| ());
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// What is done sooner needs no bar.
const SHOWN_AFTER_S: f64 = 0.5;
