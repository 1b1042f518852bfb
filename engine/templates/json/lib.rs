//! Which alerts I want to hear about, and where.

use hooksieve_sdk::prelude::*;

#[rule]
fn alerts(event: &Event) -> Decision {
    let host = event.str("/host").unwrap_or("a host");
    match event.str("/severity") {
        Some("critical") => notify("pager")
            .title([event.kind(), " on ", host].concat())
            .text(event.str("/message").unwrap_or(""))
            .because("critical"),
        Some("warning") => notify("chat")
            .title([event.kind(), " on ", host].concat())
            .because("a warning"),
        _ => Decision::drop("nothing to do"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooksieve_sdk::testing;

    #[test]
    fn critical_alerts_go_to_the_pager() {
        let event = testing::event("disk.full", r#"{"host": "db1", "severity": "critical"}"#);
        assert_eq!(alerts(&event.event()).actions[0].channel, "pager");
    }

    #[test]
    fn others_are_dropped() {
        let event = testing::event("disk.full", r#"{"severity": "info"}"#);
        assert!(alerts(&event.event()).actions.is_empty());
    }
}
