//! The events: GitHub's own examples of its webhooks, trimmed or lengthened to three sizes.

use anyhow::{Context as _, Result};
use hooksieve_sdk::wire::json::Data;
use hooksieve_sdk::wire::{Event, EventHead, SkipIndex};
use serde_json::{Value, json};
use std::path::Path;

const EXAMPLES: &str = "../js/node_modules/@octokit/webhooks-examples/api.github.com/index.json";

/// One event in the forms that the runners take.
pub(crate) struct Input {
    /// As MessagePack, with its skip index.
    pub(crate) event: Vec<u8>,
    pub(crate) index: Vec<u8>,
    /// As JSON, with the same keys.
    pub(crate) json: String,
    /// What an Extism plugin gets: the event's length, the event, the index.
    pub(crate) framed: Vec<u8>,
    /// Where it comes from, for the report.
    pub(crate) what: &'static str,
}

impl Input {
    pub(crate) fn event(&self) -> Event<'_> {
        match Event::decode(&self.event, SkipIndex::new(&self.index)) {
            Ok(event) => event,
            Err(error) => panic!("an event that was just encoded: {error}"),
        }
    }
}

/// The events of about 500 B, 8 kB and 28 kB, in this order.
pub(crate) fn all() -> Result<Vec<Input>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(EXAMPLES);
    let examples = std::fs::read(&path).with_context(|| {
        format!(
            "{}: GitHub's examples are not there; run `npm ci --prefix tests/js` in the repository",
            path.display()
        )
    })?;
    let examples: Value = serde_json::from_slice(&examples)?;
    let pinned = example(&examples, "issues", "pinned")?;
    let mut labeled = example(&examples, "pull_request", "labeled")?;
    describe(&mut labeled, 28_000)?;
    Ok(vec![
        input(
            "issues.pinned, of its issue, repository and sender only the fields that name them",
            "issues.pinned",
            &names(&pinned),
        )?,
        input("issues.pinned as it is", "issues.pinned", &pinned)?,
        input(
            "pull_request.labeled, the longest there is, with a description of some paragraphs",
            "pull_request.labeled",
            &labeled,
        )?,
    ])
}

/// The longest example of an event with an action.
fn example(examples: &Value, name: &str, action: &str) -> Result<Value> {
    let of_name = examples
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["name"] == name);
    of_name
        .filter_map(|entry| entry["examples"].as_array())
        .flatten()
        .filter(|example| example["action"] == action)
        .max_by_key(|example| example.to_string().len())
        .cloned()
        .with_context(|| format!("there is no example of {name}.{action}"))
}

fn names(full: &Value) -> Value {
    let (issue, repository, sender) = (&full["issue"], &full["repository"], &full["sender"]);
    json!({
        "action": full["action"],
        "issue": {
            "html_url": issue["html_url"],
            "number": issue["number"],
            "title": issue["title"],
        },
        "repository": {"id": repository["id"], "full_name": repository["full_name"]},
        "sender": {"login": sender["login"], "id": sender["id"], "type": sender["type"]},
    })
}

/// Lengthens the description of a pull request until the payload is about so long as MessagePack.
fn describe(payload: &mut Value, bytes: usize) -> Result<()> {
    const SENTENCE: &str = "This is a pretty simple change that we need to pull into main. ";
    let have = Data::from_json(payload.to_string().as_bytes())?
        .bytes()
        .len();
    let missing = bytes.saturating_sub(have) / SENTENCE.len();
    payload["pull_request"]["body"] = Value::String(SENTENCE.repeat(missing));
    Ok(())
}

fn input(what: &'static str, kind: &str, payload: &Value) -> Result<Input> {
    let text = payload.to_string();
    let name = kind.split('.').next().unwrap_or(kind);
    let headers = [
        ("x-github-event".to_owned(), name.to_owned()),
        (
            "x-github-delivery".to_owned(),
            "72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned(),
        ),
    ];
    let head = EventHead {
        id: "01890a5d-ac96-774b-bcce-b302099a8057",
        source: "github",
        kind,
        subject: payload["repository"]["full_name"].as_str(),
        time: "2026-01-01T00:00:00Z",
        headers: &headers,
    };
    let (event, index) = head.encode(&Data::from_json(text.as_bytes())?);
    let length = u32::try_from(event.len())?.to_le_bytes();
    let json = json!({
        "id": head.id,
        "source": head.source,
        "type": head.kind,
        "subject": head.subject,
        "time": head.time,
        "headers": headers.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "data": payload,
    });
    Ok(Input {
        framed: [&length, event.as_slice(), &index].concat(),
        json: json.to_string(),
        event,
        index,
        what,
    })
}
