//! A rule that forwards with `format!`, text and number. Its size is tested.

use hooksieve_sdk::prelude::*;

#[rule]
fn forward(event: &Event) -> Decision {
    if event.kind() != "issues.opened" {
        return Decision::drop("nothing for me");
    }
    let number = event.i64("/issue/number").unwrap_or(0);
    let title = event.str("/issue/title").unwrap_or("an issue");
    notify("mail")
        .title(format!("#{number}: {title}"))
        .because("a new issue")
}
