//! Which orders I want to hear about, and where.

use hooksieve_sdk::prelude::*;

#[rule]
fn orders(event: &Event) -> Decision {
    if event.kind() != "orders.create" {
        return Decision::drop("no order");
    }
    // Shopify writes amounts as text.
    let total = event.str("/total_price").unwrap_or("0");
    let amount: f64 = total.parse().unwrap_or(0.0);
    if amount < 500.0 {
        return Decision::drop("a small order");
    }
    let name = event.str("/name").unwrap_or("an order");
    notify("chat")
        .title(["Large order: ", name].concat())
        .field("Total", total)
        .because("a large order")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooksieve_sdk::testing;

    #[test]
    fn large_orders_go_to_the_chat() {
        let event = testing::event("orders.create", r##"{"name": "#1001", "total_price": "612.00"}"##);
        let decision = orders(&event.event());
        assert_eq!(decision.actions[0].channel, "chat");
    }

    #[test]
    fn small_ones_do_not() {
        let event = testing::event("orders.create", r#"{"total_price": "12.50"}"#);
        assert!(orders(&event.event()).actions.is_empty());
    }
}
