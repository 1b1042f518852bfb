//! The rule of `guest-sdk/README.md`, which tells how it is made, tested and tried.

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
            .link(event.str("/issue/html_url").unwrap_or("https://github.com"))
            .because("a new issue"),
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
