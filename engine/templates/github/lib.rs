//! Which GitHub events I want to hear about, and where.

use hooksieve_sdk::prelude::*;

#[rule]
fn triage(event: &Event) -> Decision {
    if event.str("/sender/type") == Some("Bot") {
        return Decision::drop("a bot's");
    }
    match event.kind() {
        "issues.opened" => notify("mail")
            .title(event.str("/issue/title").unwrap_or("an issue"))
            .text(event.str("/issue/body").unwrap_or(""))
            .because("a new issue"),
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
    fn bots_are_not() {
        let event = testing::event("issues.opened", r#"{"sender": {"type": "Bot"}}"#);
        assert!(triage(&event.event()).actions.is_empty());
    }
}
