//! A rule with libraries in it: patterns that are compiled, and JSON within a text. It is here for its
//! size, about 100 kB.

use hooksieve_sdk::prelude::*;
use regex_lite::Regex;

#[rule]
fn decide(event: &Event) -> Decision {
    let title = event.str("/issue/title").unwrap_or("");
    let Ok(pattern) = Regex::new(r"(?i)^(?:fix|feat)(?:\((\w+)\))?: (.+)$") else {
        return Decision::drop("a broken pattern");
    };
    let Some(found) = pattern.captures(title) else {
        return Decision::drop("another title");
    };
    let body = event.str("/issue/body").unwrap_or("");
    let Ok(fields) = serde_json::from_str::<serde_json::Value>(body) else {
        return Decision::drop("no fields");
    };
    let scope = found.get(1).map_or("all", |scope| scope.as_str());
    notify("mail")
        .title(format!("{scope}: {}", &found[2]))
        .text(fields.to_string())
        .because("a titled change")
}
