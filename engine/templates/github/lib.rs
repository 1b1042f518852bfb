//! Which GitHub events I want to hear about, and where.
//!
//! An event's type is GitHub's name of it with its action: `issues.opened`, `star.created`, `push`. `notify`
//! sends a message to a channel of yours; `post("board").set("name", value)` sends a JSON body of your own, to a
//! webhook alone.

use hooksieve_sdk::prelude::*;

#[rule]
fn triage(event: &Event) -> Decision {
    if event.str("/sender/type") == Some("Bot") {
        return Decision::drop("a bot's");
    }
    match event.kind() {
        "issues.opened" => {
            // An item of an array is read as the event is.
            let mut labels = event.each("/issue/labels");
            let bug = labels.any(|label| label.str("/name") == Some("bug"));
            notify("mail")
                .title(event.str("/issue/title").unwrap_or("an issue"))
                .text(event.str("/issue/body").unwrap_or(""))
                .because(if bug { "a new bug" } else { "a new issue" })
        }
        "workflow_run.completed"
            if event.str("/workflow_run/conclusion") == Some("failure") =>
        {
            let name = event.str("/workflow_run/name").unwrap_or("a run");
            notify("chat")
                .title(["CI is red: ", name].concat())
                .because("failed CI")
        }
        _ => Decision::drop("nothing for me"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooksieve_sdk::testing;

    #[test]
    fn new_issues_are_mailed() {
        let event = testing::event("issues.opened", r#"{"issue": {"title": "It fails"}}"#);
        let decision = triage(&event.event());
        assert_eq!(decision.reason, "a new issue");
        assert_eq!(decision.actions[0].channel, "mail");
    }

    #[test]
    fn bugs_are_told_apart() {
        let labelled = r#"{"issue": {"labels": [{"name": "ui"}, {"name": "bug"}]}}"#;
        let event = testing::event("issues.opened", labelled);
        assert_eq!(triage(&event.event()).reason, "a new bug");
    }

    #[test]
    fn bots_are_not() {
        let event = testing::event("issues.opened", r#"{"sender": {"type": "Bot"}}"#);
        assert!(triage(&event.event()).actions.is_empty());
    }
}
