//! A rule that forwards fields of its event as they are. Its size is tested.

use hooksieve_sdk::prelude::*;

#[rule]
fn forward(event: &Event) -> Decision {
    if event.kind() != "issues.opened" {
        return Decision::drop("nothing for me");
    }
    notify("mail")
        .title(event.str("/issue/title").unwrap_or("an issue"))
        .because("a new issue")
}
