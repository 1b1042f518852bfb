//! `hooksieve apply`: makes what tenants have in a running engine equal to files, so that an operator can
//! keep all of it in version control. The difference is found first, and shown; with `--dry-run` that is all.

use super::client::Remote;
use super::{Failure, environment, style};
use hooksieve::admin::{
    ModuleView, NewVersionBody, Removed, RoleWord, RuleDeleted, RuleView, SettingView, TenantSet,
    TenantView,
};
use hooksieve::config::Config;
use hooksieve::id::{Hash, Name};
use hooksieve::registry::{Change, Fileless};
use hooksieve::tenant::{self, Described};
use reqwest::Method;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(
    after_help = "The files are as those of `hooksieve serve --tenants`, and their secrets are read here. Tenants that have a file at \
    the engine are changed there. It needs an operator's token."
)]
pub(crate) struct Args {
    /// The folder with one file a tenant, <name>.toml
    #[arg(short = 'f', long = "files", value_name = "DIR")]
    files: PathBuf,
    /// Show the difference, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove tenants that have no file here, with all that they have set up
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    remote: Remote,
}

/// One difference, and the call that ends it.
#[derive(Serialize)]
struct Step {
    tenant: Name,
    change: &'static str,
    what: &'static str,
    name: Name,
    /// What is other than it was.
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    #[serde(skip)]
    call: Call,
}

enum Call {
    Put(String, Value),
    /// A version that is live at once, and the module that it may need first.
    Version(String, NewVersionBody, Option<Vec<u8>>),
    Delete(String),
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let remote = &args.remote;
    let env = environment();
    let timeout_ms = Config::load(None, &env)?.dispatch.timeout_ms;
    let described = read(&args.files, &env, timeout_ms)?;
    let there: Vec<TenantView> = remote.call(Method::GET, "/v1/tenants")?;
    let there: BTreeMap<Name, TenantView> =
        there.into_iter().map(|it| (it.name.clone(), it)).collect();
    let mut steps = Vec::new();
    for described in &described {
        let name = &described.tenant.name;
        let now = there.get(name);
        if now.is_some_and(|it| it.in_file) {
            return Err(Failure::Outcome(Some(format!(
                "the tenant {name} has a file at the engine and is changed there; nothing was changed"
            ))));
        }
        steps.extend(differences(remote, described, now)?);
    }
    let known: BTreeSet<&Name> = described.iter().map(|it| &it.tenant.name).collect();
    let surplus = there
        .values()
        .filter(|it| !it.in_file && !known.contains(&it.name));
    let surplus: Vec<&Name> = surplus.map(|it| &it.name).collect();
    if args.prune {
        steps.extend(surplus.iter().map(|name| Step {
            tenant: (*name).clone(),
            change: "remove",
            what: "tenant",
            name: (*name).clone(),
            detail: "with all that it has set up".to_owned(),
            call: Call::Delete(format!("/v1/tenants/{name}")),
        }));
    }
    if remote.json {
        let left: &[&Name] = if args.prune { &[] } else { &surplus };
        anstream::println!(
            "{}",
            serde_json::json!({ "dry_run": args.dry_run, "changes": steps, "left_alone": left })
        );
    } else {
        show(&steps);
        if !args.prune && !surplus.is_empty() {
            let names: Vec<&str> = surplus.iter().map(|it| it.as_str()).collect();
            anstream::println!(
                "left alone, without a file here: {} (--prune removes them)",
                names.join(", ")
            );
        }
    }
    if args.dry_run {
        return Ok(());
    }
    let all = steps.len();
    for (done, step) in steps.into_iter().enumerate() {
        let what = format!("{} {} of {}", step.what, step.name, step.tenant);
        make(remote, step.call).map_err(|failure| match failure {
            Failure::Outcome(Some(why)) => Failure::Outcome(Some(format!(
                "{what}: {why} ({done} of {all} changes are made; apply goes on from there when it is run again)"
            ))),
            failure => failure,
        })?;
    }
    if !remote.json && all > 0 {
        let good = style::GOOD;
        anstream::println!("{good}applied{good:#} {all} changes");
    }
    Ok(())
}

fn read(
    folder: &std::path::Path,
    env: &BTreeMap<String, String>,
    timeout_ms: u64,
) -> Result<Vec<Described>, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::Input(format!("{} cannot be read: {error}", folder.display()))
    };
    let paths = tenant::files(folder).map_err(unreadable)?;
    if paths.is_empty() {
        return Err(Failure::Input(format!(
            "there is no <tenant>.toml in {}",
            folder.display()
        )));
    }
    let load = |path: &PathBuf| Ok(Described::load(path, env, timeout_ms)?);
    paths.iter().map(load).collect()
}

/// What has to be done so that a tenant has what its file says: what is named first, what names it after
/// that, and what nothing names any more last.
fn differences(
    remote: &Remote,
    described: &Described,
    now: Option<&TenantView>,
) -> Result<Vec<Step>, Failure> {
    let tenant = &described.tenant;
    let name = &tenant.name;
    let base = format!("/v1/tenants/{name}");
    let step = |change, what, named: &Name, detail: String, call| Step {
        tenant: name.clone(),
        change,
        what,
        name: named.clone(),
        detail,
        call,
    };
    let wanted = Fileless {
        quotas: tenant.quotas,
        limits: tenant.limits,
        default_channel: tenant.default_channel.clone(),
    };
    let mut steps = Vec::new();
    if now.is_none() {
        let first = Fileless {
            default_channel: None,
            ..wanted.clone()
        };
        let call = Call::Put(base.clone(), serde_json::json!(first));
        steps.push(step("add", "tenant", name, String::new(), call));
    }
    let list = |what: &str| -> Result<Vec<SettingView>, Failure> {
        match now {
            None => Ok(Vec::new()),
            Some(_) => remote.call(Method::GET, &format!("{base}/{what}")),
        }
    };
    let (sources, channels) = (list("sources")?, list("channels")?);
    let mut set = |what: &'static str, all: &[(Name, Map<String, Value>)]| -> Result<(), Failure> {
        for (one, settings) in all {
            let path = format!("{base}/{what}s/{one}");
            let body = Value::from(settings.clone());
            let change = match now {
                None => Change::Created,
                Some(_) => {
                    let path = format!("{path}?dry_run=true");
                    let view: SettingView = remote.send(Method::PUT, &path, |it| it.json(&body))?;
                    view.change.unwrap_or(Change::Changed)
                }
            };
            let change = match change {
                Change::Unchanged => continue,
                Change::Created => "add",
                Change::Changed => "change",
            };
            let kind = settings.get("kind").and_then(Value::as_str);
            let kind = kind.unwrap_or_default().to_owned();
            steps.push(step(change, what, one, kind, Call::Put(path, body)));
        }
        Ok(())
    };
    set("channel", &described.channels)?;
    set("source", &described.sources)?;
    let settings_now = now.map(|it| it.settings.clone()).unwrap_or(Fileless {
        default_channel: None,
        ..wanted.clone()
    });
    if settings_now != wanted {
        let call = Call::Put(base.clone(), serde_json::json!(wanted));
        steps.push(step(
            "change",
            "tenant",
            name,
            "its settings".to_owned(),
            call,
        ));
    }
    rules(remote, described, now.is_some(), &mut steps)?;
    let mut gone = |what: &'static str, now: &[SettingView], wanted: &[(Name, _)]| {
        for one in now
            .iter()
            .filter(|it| !wanted.iter().any(|(name, _)| *name == it.name))
        {
            let path = format!("{base}/{what}s/{}", one.name);
            let kind = one.kind.clone();
            steps.push(step("remove", what, &one.name, kind, Call::Delete(path)));
        }
    };
    gone("source", &sources, &described.sources);
    gone("channel", &channels, &described.channels);
    Ok(steps)
}

fn rules(
    remote: &Remote,
    described: &Described,
    is_there: bool,
    steps: &mut Vec<Step>,
) -> Result<(), Failure> {
    let tenant = &described.tenant;
    let base = format!("/v1/tenants/{}", tenant.name);
    let (now, modules): (Vec<RuleView>, Vec<ModuleView>) = match is_there {
        true => (
            remote.call(Method::GET, &format!("{base}/rules"))?,
            remote.call(Method::GET, &format!("{base}/modules"))?,
        ),
        false => Default::default(),
    };
    let mut uploaded: BTreeSet<String> = modules.into_iter().map(|it| it.sha256).collect();
    for rule in &tenant.rules {
        let wanted = NewVersionBody {
            module: Hash::of(&rule.wasm),
            config: described
                .configs
                .get(&rule.name)
                .cloned()
                .unwrap_or_default(),
            events: rule.events.iter().map(ToString::to_string).collect(),
            sources: rule.sources.clone(),
            channels: rule.channels.clone(),
            on_error: rule.on_error.into(),
            r#as: RoleWord::Live,
            percent: None,
        };
        let before = now.iter().find(|it| it.name == rule.name);
        let live = before.and_then(|it| it.versions.iter().find(|v| Some(v.version) == it.live));
        let (change, detail) = match live {
            None => ("add", String::new()),
            Some(live) => {
                let others = [
                    ("module", live.module != wanted.module.to_string()),
                    ("config", live.config != wanted.config),
                    ("events", live.events != wanted.events),
                    ("sources", live.sources != wanted.sources),
                    ("channels", live.channels != wanted.channels),
                    ("on_error", live.on_error != wanted.on_error),
                ];
                let others = others.iter().filter(|(_, other)| *other);
                let others: Vec<&str> = others.map(|(what, _)| *what).collect();
                if others.is_empty() {
                    continue;
                }
                ("change", others.join(", "))
            }
        };
        let new = uploaded.insert(wanted.module.to_string());
        let wasm = new.then(|| rule.wasm.to_vec());
        let path = format!("{base}/rules/{}/versions", rule.name);
        steps.push(Step {
            tenant: tenant.name.clone(),
            change,
            what: "rule",
            name: rule.name.clone(),
            detail,
            call: Call::Version(path, wanted, wasm),
        });
    }
    let is_wanted = |name: &Name| tenant.rules.iter().any(|rule| rule.name == *name);
    for rule in now.iter().filter(|it| !is_wanted(&it.name)) {
        steps.push(Step {
            tenant: tenant.name.clone(),
            change: "remove",
            what: "rule",
            name: rule.name.clone(),
            detail: String::new(),
            call: Call::Delete(format!("{base}/rules/{}", rule.name)),
        });
    }
    Ok(())
}

fn show(steps: &[Step]) {
    if steps.is_empty() {
        anstream::println!("No difference.");
        return;
    }
    let mut table = style::table(&["", "tenant", "what", "name", ""]);
    for step in steps {
        table.add_row([
            step.change,
            step.tenant.as_str(),
            step.what,
            step.name.as_str(),
            &style::clean(&step.detail),
        ]);
    }
    anstream::println!("{table}");
}

fn make(remote: &Remote, call: Call) -> Result<(), Failure> {
    match call {
        Call::Put(path, body) if body.get("kind").is_none() => {
            remote.send::<TenantSet>(Method::PUT, &path, |it| it.json(&body))?;
        }
        Call::Put(path, body) => {
            remote.send::<SettingView>(Method::PUT, &path, |it| it.json(&body))?;
        }
        Call::Version(path, body, wasm) => {
            if let Some(wasm) = wasm {
                let modules = path.split("/rules/").next().unwrap_or_default();
                let path = format!("{modules}/modules/{}", body.module);
                remote.send::<ModuleView>(Method::PUT, &path, |it| it.body(wasm))?;
            }
            remote.send::<RuleView>(Method::POST, &path, |it| it.json(&body))?;
        }
        Call::Delete(path) if path.contains("/rules/") => {
            remote.call::<RuleDeleted>(Method::DELETE, &path)?;
        }
        Call::Delete(path) => {
            remote.call::<Removed>(Method::DELETE, &path)?;
        }
    }
    Ok(())
}
