//! GitHub notifications, sorted: bots and noise are ignored, mentions and review requests are
//! mailed, failed CI and releases go to the chat, and an incident label goes to the urgent channel.
//!
//! Who and what is configuration; `example.toml` explains every key. Payload fields follow GitHub's
//! documentation of its webhook events.

use hooksieve_sdk::prelude::*;
use hooksieve_sdk::wire::Kind;
use hooksieve_sdk::{Error, FromConfig};
use std::ops::Deref;

/// Its configuration, read by path, after its keys were looked at.
pub struct Config(Settings);

impl FromConfig for Config {
    fn from_config(config: Value<'static>) -> Result<Self, Error> {
        for (key, value) in config.entries() {
            let (fits, what) = match key {
                "mail" | "chat" | "urgent" => (value.as_str().is_some(), "the name of a channel"),
                "me" | "incident_labels" | "ci_branches" | "ignore" => {
                    let all = value.kind() == Kind::Array;
                    let texts = value.items().all(|item| item.as_str().is_some());
                    (all && texts, "a list of texts")
                }
                _ => {
                    return Err(Error::joined(&[
                        "there is no key `",
                        key,
                        "`; there are chat, ci_branches, ignore, incident_labels, mail, me and urgent",
                    ]));
                }
            };
            if !fits {
                return Err(Error::joined(&["`", key, "` has to be ", what]));
            }
        }
        Settings::from_config(config).map(Self)
    }
}

impl Deref for Config {
    type Target = Settings;

    fn deref(&self) -> &Settings {
        &self.0
    }
}

#[rule]
pub fn triage(event: &Event, config: &Config) -> Decision {
    let kind = event.kind();
    let sender = event.str("/sender/login").unwrap_or("someone");

    // An incident is an incident, whoever sets the label.
    if let Some(decision) = incident(event, config) {
        return decision;
    }
    // CI is run by a bot more often than not, so it comes before bots are ignored.
    if let Some(decision) = red_ci(event, config) {
        return decision;
    }
    if event.str("/sender/type") == Some("Bot") {
        return Decision::drop("a bot's");
    }
    if contains(config, "/ignore", sender) {
        return Decision::drop("from a sender that is ignored");
    }
    if matches!(kind, "release.published") {
        return release(event, config);
    }
    if kind == "pull_request.review_requested"
        && let Some(decision) = review_request(event, config)
    {
        return decision;
    }
    if let Some(decision) = mention(event, config, sender) {
        return decision;
    }
    Decision::drop("nothing for you")
}

/// A label that means an incident was set on an issue or a pull request, or an issue came with it.
fn incident(event: &Event, config: &Settings) -> Option<Decision> {
    let subject = match event.kind() {
        "issues.labeled" | "issues.opened" => "/issue",
        "pull_request.labeled" => "/pull_request",
        _ => return None,
    };
    let label = match event.str("/label/name") {
        Some(label) => incident_label(config, label)?,
        None => event
            .get(subject)?
            .each("/labels")
            .find_map(|label| incident_label(config, label.str("/name")?))?,
    };
    let thread = event.get(subject)?;
    let title = thread.str("/title").unwrap_or("an issue without a title");
    let message = notify(channel(config, "/urgent", "urgent"))
        .title(join(&["Incident: ", title]))
        .text(excerpt(thread.str("/body").unwrap_or("")))
        .field("Repository", repository(event))
        .field("Label", label);
    Some(linked(message, thread.str("/html_url")).because("an incident label"))
}

fn incident_label<'a>(config: &Settings, label: &'a str) -> Option<&'a str> {
    contains(config, "/incident_labels", label).then_some(label)
}

/// A run that failed, on a branch that is watched.
fn red_ci(event: &Event, config: &Settings) -> Option<Decision> {
    let (run, name) = match event.kind() {
        "workflow_run.completed" => ("/workflow_run", "/name"),
        "check_suite.completed" => ("/check_suite", "/app/name"),
        _ => return None,
    };
    let run = event.get(run)?;
    let conclusion = run.str("/conclusion")?;
    if !matches!(conclusion, "failure" | "timed_out" | "startup_failure") {
        return None;
    }
    let branch = run.str("/head_branch").unwrap_or("");
    let watched = config.each("/ci_branches");
    if watched.clone().next().is_some() && !watched.clone().any(|b| b.as_str() == Some(branch)) {
        return Some(Decision::drop("failed CI on a branch that is not watched"));
    }
    let message = notify(channel(config, "/chat", "chat"))
        .title(join(&[
            "CI is red: ",
            run.str(name).unwrap_or("a run"),
            " on ",
            branch,
        ]))
        .text(excerpt(
            run.str("/head_commit/message")
                .or(event.str("/head_commit/message"))
                .unwrap_or(""),
        ))
        .field("Repository", repository(event))
        .field("Result", conclusion);
    Some(linked(message, run.str("/html_url")).because("failed CI"))
}

fn release(event: &Event, config: &Settings) -> Decision {
    let tag = event.str("/release/tag_name").unwrap_or("a release");
    let name = event.str("/release/name").filter(|name| *name != tag);
    let mut title = join(&[repository(event), " ", tag]);
    if let Some(name) = name {
        title.push_str(": ");
        title.push_str(name);
    }
    let message = notify(channel(config, "/chat", "chat"))
        .title(title)
        .text(excerpt(event.str("/release/body").unwrap_or("")));
    linked(message, event.str("/release/html_url")).because("a release")
}

/// A review that was asked of me or of one of my teams.
fn review_request(event: &Event, config: &Settings) -> Option<Decision> {
    let asked = event
        .str("/requested_reviewer/login")
        .is_some_and(|login| is_me(config, login))
        || event.str("/requested_team/slug").is_some_and(|slug| {
            let owner = event
                .str("/organization/login")
                .or(event.str("/repository/owner/login"));
            is_me(config, &join(&[owner.unwrap_or(""), "/", slug]))
        });
    if !asked {
        return Some(Decision::drop("a review asked of others"));
    }
    let title = event.str("/pull_request/title").unwrap_or("a pull request");
    let message = notify(channel(config, "/mail", "mail"))
        .title(join(&["Review asked: ", title]))
        .text(excerpt(event.str("/pull_request/body").unwrap_or("")))
        .field("Repository", repository(event))
        .field(
            "From",
            event.str("/pull_request/user/login").unwrap_or("someone"),
        );
    Some(linked(message, event.str("/pull_request/html_url")).because("a review asked of you"))
}

/// A new text that names me with an `@`.
fn mention(event: &Event, config: &Settings, sender: &str) -> Option<Decision> {
    // Where the text stands, what it is part of, and where it leads.
    let (text, thread, link) = match event.kind() {
        "issue_comment.created" => ("/comment/body", "/issue/title", "/comment/html_url"),
        "pull_request_review_comment.created" => {
            ("/comment/body", "/pull_request/title", "/comment/html_url")
        }
        "commit_comment.created" => ("/comment/body", "/comment/commit_id", "/comment/html_url"),
        "discussion_comment.created" => ("/comment/body", "/discussion/title", "/comment/html_url"),
        "pull_request_review.submitted" => {
            ("/review/body", "/pull_request/title", "/review/html_url")
        }
        "issues.opened" => ("/issue/body", "/issue/title", "/issue/html_url"),
        "pull_request.opened" => (
            "/pull_request/body",
            "/pull_request/title",
            "/pull_request/html_url",
        ),
        "discussion.created" => (
            "/discussion/body",
            "/discussion/title",
            "/discussion/html_url",
        ),
        _ => return None,
    };
    let text = event.str(text)?;
    // What one writes oneself is no news.
    if is_me(config, sender) || !mentions_me(config, text) {
        return None;
    }
    let message = notify(channel(config, "/mail", "mail"))
        .title(join(&[
            sender,
            " mentioned you: ",
            event.str(thread).unwrap_or("a thread"),
        ]))
        .text(excerpt(text))
        .field("Repository", repository(event));
    Some(linked(message, event.str(link)).because("a mention"))
}

/// Whether the text has `@name` for one of my names, as a whole word and in any case, as GitHub
/// reads it.
fn mentions_me(config: &Settings, text: &str) -> bool {
    let mut rest = text;
    let mut before = None;
    while let Some(at) = rest.find('@') {
        let preceding = rest[..at].bytes().next_back().or(before);
        rest = &rest[at + 1..];
        before = Some(b'@');
        // An address such as me@example.com is no mention.
        if preceding.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            continue;
        }
        let end = rest
            .bytes()
            .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/')))
            .unwrap_or(rest.len());
        // No name ends with `_`, and italics do.
        if is_me(config, rest[..end].trim_end_matches('_')) {
            return true;
        }
    }
    false
}

fn is_me(config: &Settings, login: &str) -> bool {
    contains(config, "/me", login)
}

fn contains(config: &Settings, list: &str, wanted: &str) -> bool {
    config.each(list).any(|item| {
        item.as_str()
            .is_some_and(|item| item.eq_ignore_ascii_case(wanted))
    })
}

fn channel<'a>(config: &Settings, key: &str, default: &'a str) -> &'a str
where
    'static: 'a,
{
    config.str(key).unwrap_or(default)
}

fn repository<'a>(event: &Event<'a>) -> &'a str {
    event.str("/repository/full_name").unwrap_or("a repository")
}

fn linked(message: hooksieve_sdk::Notify, url: Option<&str>) -> hooksieve_sdk::Notify {
    match url {
        Some(url) => message.link(url),
        None => message,
    }
}

/// The beginning of a text, at most this many bytes.
const EXCERPT_BYTES: usize = 600;

fn excerpt(text: &str) -> String {
    if text.len() <= EXCERPT_BYTES {
        return text.to_owned();
    }
    let mut end = EXCERPT_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    join(&[&text[..end], "…"])
}

/// Joins without formatting, which would more than double the module.
fn join(parts: &[&str]) -> String {
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooksieve_sdk::testing::{self, event};

    fn config() -> Config {
        let config = testing::config(
            r#"{"me": ["octocat", "octo-org/backend", "ada_acme"], "mail": "inbox", "ignore": ["noisy"],
                "incident_labels": ["incident"], "ci_branches": ["main"]}"#,
        );
        config.unwrap()
    }

    #[test]
    fn what_it_does_not_understand_is_no_configuration() {
        for (config, part) in [
            (r#"{"mails": "inbox"}"#, "there is no key `mails`"),
            (r#"{"me": "octocat"}"#, "`me` has to be a list of texts"),
            (
                r#"{"me": ["octocat", 7]}"#,
                "`me` has to be a list of texts",
            ),
            (
                r#"{"chat": ["chat"]}"#,
                "`chat` has to be the name of a channel",
            ),
        ] {
            let error = testing::config::<Config>(config).map(drop).unwrap_err();
            assert!(error.message().starts_with(part), "{error}");
        }
        assert!(testing::config::<Config>("{}").is_ok());
    }

    #[track_caller]
    fn check(kind: &str, payload: &str, channel: Option<&str>, reason: &str) -> Decision {
        let decision = triage(&event(kind, payload).event(), &config());
        assert_eq!(decision.reason, reason);
        let channels: Vec<_> = decision
            .actions
            .iter()
            .map(|a| a.channel.as_str())
            .collect();
        assert_eq!(channels, channel.into_iter().collect::<Vec<_>>());
        decision
    }

    #[test]
    fn bots_and_noise_are_ignored() {
        check(
            "issue_comment.created",
            r#"{"sender": {"type": "Bot", "login": "x[bot]"}, "comment": {"body": "@octocat"}}"#,
            None,
            "a bot's",
        );
        check(
            "issue_comment.created",
            r#"{"sender": {"login": "noisy"}, "comment": {"body": "@octocat"}}"#,
            None,
            "from a sender that is ignored",
        );
        check(
            "watch.started",
            r#"{"sender": {"login": "a"}}"#,
            None,
            "nothing for you",
        );
    }

    #[test]
    fn mentions_are_mailed() {
        let comment = |body: &str| {
            format!(
                r#"{{"sender": {{"login": "ann"}}, "issue": {{"title": "Slow"}}, "comment": {{"body": "{body}"}}}}"#
            )
        };
        for body in [
            "@octocat look",
            "cc @OctoCat.",
            "(@octo-org/backend)",
            "a@b.c @octocat",
            "ask @ada_acme",
            "_ask @ada_acme_",
        ] {
            check(
                "issue_comment.created",
                &comment(body),
                Some("inbox"),
                "a mention",
            );
        }
        for body in [
            "octocat",
            "me@octocat",
            "@octocats",
            "@octocat_acme",
            "@octocat-acme",
            "@octo-org",
            "@octocat/else",
            "@",
        ] {
            check(
                "issue_comment.created",
                &comment(body),
                None,
                "nothing for you",
            );
        }
        check(
            "issue_comment.created",
            r#"{"sender": {"login": "octocat"}, "comment": {"body": "@octocat"}}"#,
            None,
            "nothing for you",
        );
    }

    #[test]
    fn reviews_asked_of_me_or_my_team_are_mailed() {
        check(
            "pull_request.review_requested",
            r#"{"requested_reviewer": {"login": "octocat"}}"#,
            Some("inbox"),
            "a review asked of you",
        );
        check(
            "pull_request.review_requested",
            r#"{"requested_team": {"slug": "backend"}, "organization": {"login": "octo-org"}}"#,
            Some("inbox"),
            "a review asked of you",
        );
        check(
            "pull_request.review_requested",
            r#"{"requested_reviewer": {"login": "ann"}}"#,
            None,
            "a review asked of others",
        );
    }

    #[test]
    fn red_ci_goes_to_the_chat_even_from_a_bot() {
        let run = |branch: &str, conclusion: &str| {
            format!(
                r#"{{"sender": {{"type": "Bot"}}, "workflow_run": {{"name": "ci", "head_branch": "{branch}", "conclusion": "{conclusion}"}}}}"#
            )
        };
        let decision = check(
            "workflow_run.completed",
            &run("main", "failure"),
            Some("chat"),
            "failed CI",
        );
        let hooksieve_sdk::wire::Payload::Message(message) = &decision.actions[0].payload else {
            panic!("a message");
        };
        assert_eq!(message.title, "CI is red: ci on main");
        check(
            "workflow_run.completed",
            &run("topic", "failure"),
            None,
            "failed CI on a branch that is not watched",
        );
        check(
            "workflow_run.completed",
            &run("main", "success"),
            None,
            "a bot's",
        );
    }

    #[test]
    fn releases_go_to_the_chat() {
        check(
            "release.published",
            r#"{"release": {"tag_name": "v1"}}"#,
            Some("chat"),
            "a release",
        );
        check(
            "release.edited",
            r#"{"release": {"tag_name": "v1"}}"#,
            None,
            "nothing for you",
        );
    }

    #[test]
    fn incidents_are_urgent() {
        check(
            "issues.labeled",
            r#"{"label": {"name": "Incident"}, "issue": {"title": "Down"}}"#,
            Some("urgent"),
            "an incident label",
        );
        check(
            "issues.opened",
            r#"{"issue": {"title": "Down", "labels": [{"name": "bug"}, {"name": "incident"}]}}"#,
            Some("urgent"),
            "an incident label",
        );
        check(
            "issues.labeled",
            r#"{"label": {"name": "bug"}, "issue": {"title": "Down", "labels": [{"name": "incident"}]}}"#,
            None,
            "nothing for you",
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(excerpt(&"ä".repeat(400)), format!("{}…", "ä".repeat(300)));
        assert_eq!(excerpt("short"), "short");
    }
}
