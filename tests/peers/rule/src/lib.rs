//! The rule that every runner asks: it reads three fields by path, compares two of them, and forwards.
//! `rule.js` beside it is the same in JavaScript.

use hooksieve_sdk::prelude::*;

/// Tells a channel about what people do in one repository.
pub fn decide(event: &Event<'_>) -> Decision {
    if event.str("/sender/type") == Some("Bot") {
        return Decision::drop("a bot's");
    }
    let repository = event.str("/repository/full_name").unwrap_or("");
    if repository != "Codertocat/Hello-World" {
        return Decision::drop("another repository");
    }
    let title = event
        .str("/issue/title")
        .or_else(|| event.str("/pull_request/title"))
        .unwrap_or("untitled");
    notify("mail")
        .title(title)
        .text(repository)
        .because("a person's")
}
