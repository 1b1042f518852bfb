//! `hooksieve demo`: the main job in one command. The engine as `serve` runs it, the ready-made
//! rules, a small SMTP server and an HTTP receiver on loopback; signed GitHub and Shopify events come
//! in over HTTP, and what came out is checked and shown.

mod events;
mod receivers;

use super::{Failure, block_on, style};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use events::{Becomes, Sample};
use hooksieve::admin::{OutcomeWord, StateWord, StoryView};
use hooksieve::config::Config;
use hooksieve::config::read::Source;
use hooksieve::serve::Engine;
use hooksieve::tenant::Tenant;
use receivers::{Mail, Mailbox, Posts};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave the engine running until Ctrl-C, and say how to look around
    #[arg(long)]
    keep: bool,
    /// One JSON object a line instead of the report
    #[arg(long, conflicts_with = "keep")]
    json: bool,
}

/// How long the whole of it may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    block_on(demo(args))
}

async fn demo(args: Args) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let mailbox = Mailbox::start().await?;
    let secrets = Secrets::random();
    let posts = Posts::start(secrets.signing_key.clone()).await?;
    let (engine, config) = start(folder.path(), &mailbox, &posts, &secrets).await?;
    let base = format!("http://{}", engine.addr);
    if !args.json {
        let dim = style::DIM;
        anstream::println!(
            "The engine listens on {base}, a mail server on {}, a receiver for chat and webhooks on {}.",
            mailbox.addr,
            posts.addr
        );
        anstream::println!(
            "{dim}Tenant acme: sources github and shopify; rules triage and orders; channels mail, chat and urgent.{dim:#}\n"
        );
    }

    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(10))
        .build()
        .map_err(Failure::outcome)?;
    let mut rows = Vec::new();
    for sample in events::all() {
        let answer = send(&client, &base, &sample, &secrets).await?;
        rows.push((sample, answer));
    }
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for (sample, answer) in rows {
        let story = match &answer.id {
            Some(id) => Some(settled(&client, &base, engine.token.expose(), id, started).await?),
            None => None,
        };
        outcomes.push(Outcome {
            sample,
            answer,
            story,
        });
    }

    let mails = mailbox.received();
    let checks = check(&outcomes, &mails, &posts);
    if args.json {
        print_json(&outcomes, &checks);
    } else {
        print_report(&outcomes, &mails, &posts);
        print_checks(&checks);
    }
    if args.keep {
        let data = config.server.data.display();
        anstream::println!("\nThe engine keeps running; end it with Ctrl-C. Look around with:");
        let event = outcomes
            .iter()
            .find_map(|outcome| outcome.answer.id.clone());
        for call in [
            format!("explain {}", event.unwrap_or_default()),
            "held list".to_owned(),
            "dead list".to_owned(),
        ] {
            anstream::println!("  hooksieve {call} --url {base} --data {data}");
        }
        tokio::signal::ctrl_c().await?;
    }
    engine.stop().await;
    if checks.iter().all(|check| check.good) {
        Ok(())
    } else {
        Err(Failure::Outcome(None))
    }
}

/// Made anew for each run.
struct Secrets {
    github: String,
    shopify: String,
    /// The key of the outgoing webhooks.
    signing_key: Vec<u8>,
}

impl Secrets {
    fn random() -> Self {
        let text = || {
            let bytes: [u8; 16] = rand::random();
            BASE64_STANDARD.encode(bytes)
        };
        let key: [u8; 32] = rand::random();
        Self {
            github: text(),
            shopify: text(),
            signing_key: key.to_vec(),
        }
    }
}

async fn start(
    folder: &Path,
    mailbox: &Mailbox,
    posts: &Posts,
    secrets: &Secrets,
) -> Result<(Engine, Config), Failure> {
    let mut config = Config::built_in();
    config.server.listen.set_port(0);
    config.server.data = folder.join("data");
    // The demo's receivers are on this machine, where nothing is sent otherwise.
    config.egress.allow = vec!["127.0.0.1".parse().map_err(Failure::Input)?];
    let env = BTreeMap::from([
        ("DEMO_GITHUB".to_owned(), secrets.github.clone()),
        ("DEMO_SHOPIFY".to_owned(), secrets.shopify.clone()),
        (
            "DEMO_CHAT".to_owned(),
            format!("http://{}/services/T0/B0/demo", posts.addr),
        ),
        (
            "DEMO_SIGNING".to_owned(),
            format!("whsec_{}", BASE64_STANDARD.encode(&secrets.signing_key)),
        ),
    ]);
    let text = include_str!("demo/acme.toml")
        .replace("{smtp_host}", &mailbox.addr.ip().to_string())
        .replace("\"{smtp_port}\"", &mailbox.addr.port().to_string())
        .replace("{hook}", &format!("http://{}/hook", posts.addr));
    let source = Source::new(folder.join("acme.toml"), text);
    let tenant = Tenant::load(&source, &env, config.dispatch.timeout_ms)?;
    let engine = Engine::start(&config, vec![tenant]).await?;
    Ok((engine, config))
}

/// How the engine answered the sender.
struct Answer {
    status: u16,
    id: Option<String>,
    duplicate: bool,
}

async fn send(
    client: &reqwest::Client,
    base: &str,
    sample: &Sample,
    secrets: &Secrets,
) -> Result<Answer, Failure> {
    #[derive(Deserialize)]
    struct Accepted {
        id: String,
        duplicate: bool,
    }

    let mut request = client
        .post(format!("{base}/in/acme/{}", sample.source))
        .header("content-type", "application/json")
        .body(sample.body.clone());
    for (name, value) in sample.headers(&secrets.github, &secrets.shopify) {
        request = request.header(name, value);
    }
    let response = request.send().await.map_err(Failure::outcome)?;
    let status = response.status().as_u16();
    let accepted: Option<Accepted> = response.json().await.ok();
    Ok(Answer {
        status,
        duplicate: accepted.as_ref().is_some_and(|accepted| accepted.duplicate),
        id: accepted.map(|accepted| accepted.id),
    })
}

/// What became of an event, once nothing of it is under way any more.
async fn settled(
    client: &reqwest::Client,
    base: &str,
    token: &str,
    id: &str,
    started: Instant,
) -> Result<StoryView, Failure> {
    loop {
        let request = client
            .get(format!("{base}/v1/events/{id}"))
            .bearer_auth(token);
        let response = request.send().await.map_err(Failure::outcome)?;
        let story: StoryView = response.json().await.map_err(Failure::outcome)?;
        let pending = story
            .deliveries
            .iter()
            .any(|delivery| delivery.state == StateWord::Pending);
        if story.decided && !pending {
            return Ok(story);
        }
        if started.elapsed() > PATIENCE {
            return Err(Failure::outcome(format!(
                "the event {id} is not settled after {} s",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One event's way through.
struct Outcome {
    sample: Sample,
    answer: Answer,
    story: Option<StoryView>,
}

/// One thing that must be so.
struct Check {
    what: String,
    good: bool,
}

fn check(outcomes: &[Outcome], mails: &[Mail], posts: &Posts) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut expected: BTreeMap<&str, usize> = BTreeMap::new();
    let mut as_expected = 0;
    for outcome in outcomes {
        let channels: Vec<&str> = match &outcome.story {
            Some(story) => story
                .deliveries
                .iter()
                .map(|d| d.channel.as_str())
                .collect(),
            None => Vec::new(),
        };
        let mut deliveries = outcome.story.iter().flat_map(|story| &story.deliveries);
        let all_delivered = deliveries.all(|delivery| delivery.state == StateWord::Delivered);
        let good = match outcome.sample.becomes {
            Becomes::Refused => outcome.answer.status == 401,
            Becomes::Repeated => outcome.answer.status == 202 && outcome.answer.duplicate,
            Becomes::Dropped => outcome.answer.status == 202 && channels.is_empty(),
            Becomes::Sent(channel) => {
                *expected.entry(channel).or_default() += 1;
                outcome.answer.status == 202 && channels == [channel] && all_delivered
            }
        };
        as_expected += usize::from(good);
    }
    checks.push(Check {
        what: format!(
            "{as_expected} of {} events became what they should",
            outcomes.len()
        ),
        good: as_expected == outcomes.len(),
    });
    let count = |channel: &str| expected.get(channel).copied().unwrap_or(0);
    checks.push(Check {
        what: format!("{} mails arrived, {} expected", mails.len(), count("mail")),
        good: mails.len() == count("mail"),
    });
    let (chat, hooks, bad) = (
        posts.chat().len(),
        posts.hooks().len(),
        posts.badly_signed(),
    );
    checks.push(Check {
        what: format!("{chat} chat messages arrived, {} expected", count("chat")),
        good: chat == count("chat"),
    });
    checks.push(Check {
        what: format!(
            "{hooks} webhooks arrived, {} expected, {bad} with a wrong signature",
            count("urgent")
        ),
        good: hooks == count("urgent") && bad == 0,
    });
    checks
}

fn print_report(outcomes: &[Outcome], mails: &[Mail], posts: &Posts) {
    let header = [
        "event",
        "rule",
        "decision",
        "reason",
        "fuel",
        "time",
        "delivered",
    ];
    let mut table = style::table(&header);
    for outcome in outcomes {
        let name = format!("{} {}", outcome.sample.source, outcome.sample.name);
        let Some(story) = &outcome.story else {
            let status = format!("answered {}", outcome.answer.status);
            table.add_row([
                name.as_str(),
                "",
                "refused",
                "the signature does not fit",
                "",
                "",
                &status,
            ]);
            continue;
        };
        if outcome.answer.duplicate {
            table.add_row([
                name.as_str(),
                "",
                "repeated",
                "delivered before: not decided again",
                "",
                "",
                "",
            ]);
            continue;
        }
        for decision in &story.decisions {
            let delivered = story.deliveries.iter().filter(|d| d.rule == decision.rule);
            let delivered = delivered.map(|delivery| {
                let took = delivery
                    .attempts
                    .last()
                    .map_or(0, |attempt| attempt.duration_ms);
                format!("{} in {took} ms", delivery.channel)
            });
            let what = match decision.outcome {
                OutcomeWord::Dropped => "drop",
                OutcomeWord::Notified => "notify",
                OutcomeWord::Failed => "failed",
            };
            table.add_row([
                name.as_str(),
                decision.rule.as_str(),
                what,
                decision
                    .reason
                    .as_deref()
                    .or(decision.error.as_deref())
                    .unwrap_or(""),
                &style::grouped(decision.fuel),
                &format!("{} µs", decision.duration_us),
                &delivered.collect::<Vec<_>>().join(", "),
            ]);
        }
    }
    anstream::println!("{table}");
    if let Some(mail) = mails.first() {
        section("One of the mails, as the server received it");
        anstream::println!("{}", indented(&mail.data));
    }
    if let Some(message) = posts.chat().first() {
        section("One of the chat messages, as the receiver got it");
        let json = serde_json::to_string_pretty(message).unwrap_or_default();
        anstream::println!("{}", indented(&json));
    }
}

fn section(title: &str) {
    let bold = style::HEADING;
    anstream::println!("\n{bold}{title}{bold:#}");
}

fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| format!("  {}", style::clean(line)));
    lines.collect::<Vec<_>>().join("\n")
}

fn print_checks(checks: &[Check]) {
    section("Checked");
    for check in checks {
        let (mark, colour) = if check.good {
            ("ok ", style::GOOD)
        } else {
            ("BAD", style::BAD)
        };
        anstream::println!("  {colour}{mark}{colour:#} {}", check.what);
    }
}

fn print_json(outcomes: &[Outcome], checks: &[Check]) {
    for outcome in outcomes {
        let line = serde_json::json!({
            "source": outcome.sample.source,
            "name": outcome.sample.name,
            "status": outcome.answer.status,
            "duplicate": outcome.answer.duplicate,
            "story": outcome.story,
        });
        anstream::println!("{line}");
    }
    for check in checks {
        anstream::println!(
            "{}",
            serde_json::json!({ "check": check.what, "good": check.good })
        );
    }
}
