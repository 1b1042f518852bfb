//! Shopify, for a small shop: large orders, possible fraud, and products that ran out.
//!
//! Payload fields follow Shopify's documentation of its webhook topics. `example.toml` explains the
//! configuration.

use hooksieve_sdk::prelude::*;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    high_value: f64,
    high_value_channel: String,
    fraud_channel: String,
    stock_channel: String,
    stock_at_most: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            high_value: 500.0,
            high_value_channel: "chat".to_owned(),
            fraud_channel: "mail".to_owned(),
            stock_channel: "chat".to_owned(),
            stock_at_most: 0,
        }
    }
}

#[rule]
fn orders(event: &Event, config: &Config) -> Decision {
    match event.kind() {
        "orders.create" | "orders.paid" | "orders.updated" => order(event, config),
        "products.update" | "products.create" => product(event, config),
        "inventory_levels.update" => inventory(event, config),
        _ => Decision::drop("not an order, a product or stock"),
    }
}

fn order(event: &Event, config: &Config) -> Decision {
    if event.bool("/test") == Some(true) {
        return Decision::drop("a test order");
    }
    let name = event.str("/name").unwrap_or("an order");
    if let Some(why) = suspicion(event) {
        return notify(config.fraud_channel.as_str())
            .title(["Possible fraud: order ", name].concat())
            .text(why)
            .field("Total", total(event))
            .field("Customer", customer(event))
            .because("possible fraud");
    }
    // An update repeats what was reported when the order came in.
    if event.kind() != "orders.create" {
        return Decision::drop("an order that is known");
    }
    match event.str("/total_price").and_then(amount) {
        Some(amount) if amount >= config.high_value => notify(config.high_value_channel.as_str())
            .title(["Large order ", name].concat())
            .text(items(event))
            .field("Total", total(event))
            .field("Customer", customer(event))
            .because("an order of high value"),
        Some(_) => Decision::drop("an order of ordinary value"),
        None => Decision::drop("an order without a price"),
    }
}

/// A price as Shopify writes it, such as `1200.50`. Without `parse::<f64>()`, which reads every float
/// there is and would double the module; up to 15 digits the two agree.
fn amount(price: &str) -> Option<f64> {
    let (whole, part) = price.split_once('.').unwrap_or((price, ""));
    let mut number = 0u64;
    for byte in whole.bytes().chain(part.bytes()) {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number = number.checked_mul(10)?.checked_add(digit)?;
    }
    let scale = part.bytes().fold(1.0, |scale, _| scale * 10.0);
    (!whole.is_empty()).then_some(number as f64 / scale)
}

/// What makes an order suspicious: Shopify cancelled it as fraud, or the card's country and the
/// address do not go together on a first order of several of one item.
fn suspicion(event: &Event) -> Option<&'static str> {
    if event.str("/cancel_reason") == Some("fraud") {
        return Some("It was cancelled as fraud.");
    }
    let billing = event.str("/billing_address/country_code")?;
    let shipping = event.str("/shipping_address/country_code")?;
    let first = event
        .i64("/customer/orders_count")
        .is_none_or(|orders| orders <= 1);
    let bulk = event
        .each("/line_items")
        .any(|item| item.i64("/quantity").unwrap_or(1) >= 5);
    (billing != shipping && first && bulk)
        .then_some("A first order of many, billed to one country and sent to another.")
}

/// A product of which every variant that is tracked has run out.
fn product(event: &Event, config: &Config) -> Decision {
    let mut tracked = event
        .each("/variants")
        .filter(|variant| variant.str("/inventory_management").is_some())
        .filter_map(|variant| variant.i64("/inventory_quantity"))
        .peekable();
    if tracked.peek().is_none() {
        return Decision::drop("a product whose stock is not tracked");
    }
    if tracked.any(|left| left > config.stock_at_most) {
        return Decision::drop("a product in stock");
    }
    let title = event.str("/title").unwrap_or("a product");
    notify(config.stock_channel.as_str())
        .title(["Out of stock: ", title].concat())
        .field("Vendor", event.str("/vendor").unwrap_or("unknown"))
        .because("out of stock")
}

fn inventory(event: &Event, config: &Config) -> Decision {
    match event.i64("/available") {
        Some(left) if left <= config.stock_at_most => notify(config.stock_channel.as_str())
            .title("Out of stock at one location")
            .field("Inventory item", number(event, "/inventory_item_id"))
            .field("Location", number(event, "/location_id"))
            .because("out of stock"),
        _ => Decision::drop("still in stock"),
    }
}

fn number(event: &Event, pointer: &str) -> String {
    event
        .i64(pointer)
        .map(|number| number.to_string())
        .unwrap_or_default()
}

fn total(event: &Event) -> String {
    let price = event.str("/total_price").unwrap_or("?");
    let currency = event.str("/currency").unwrap_or("");
    [price, " ", currency].concat()
}

fn customer<'a>(event: &Event<'a>) -> &'a str {
    event
        .str("/customer/email")
        .or(event.str("/email"))
        .unwrap_or("unknown")
}

/// One line an item, the first ten.
fn items(event: &Event) -> String {
    let lines = event.each("/line_items").take(10).map(|item| {
        let quantity = item.i64("/quantity").unwrap_or(1).to_string();
        [&quantity, " x ", item.str("/title").unwrap_or("an item")].concat()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hooksieve_sdk::testing::event;

    #[track_caller]
    fn check(kind: &str, payload: &str, channel: Option<&str>, reason: &str) {
        let decision = orders(&event(kind, payload).event(), &Config::default());
        assert_eq!(decision.reason, reason);
        let channels: Vec<_> = decision
            .actions
            .iter()
            .map(|a| a.channel.as_str())
            .collect();
        assert_eq!(channels, channel.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn large_orders_are_reported_once() {
        check(
            "orders.create",
            r#"{"total_price": "500.00"}"#,
            Some("chat"),
            "an order of high value",
        );
        check(
            "orders.create",
            r#"{"total_price": "499.99"}"#,
            None,
            "an order of ordinary value",
        );
        check(
            "orders.create",
            r#"{"total_price": "free"}"#,
            None,
            "an order without a price",
        );
        check(
            "orders.updated",
            r#"{"total_price": "500.00"}"#,
            None,
            "an order that is known",
        );
        check(
            "orders.create",
            r#"{"total_price": "500.00", "test": true}"#,
            None,
            "a test order",
        );
    }

    #[test]
    fn prices_are_read_as_floats_are() {
        for price in ["0.00", "0.1", "19.99", "1200.50", "500", "9999999999999.99"] {
            assert_eq!(amount(price), price.parse().ok(), "{price}");
        }
        for no_price in ["", ".", ".5", "-1", "1e3", "1.2.3", "free", "1 000.00"] {
            assert_eq!(amount(no_price), None, "{no_price:?}");
        }
    }

    #[test]
    fn possible_fraud_is_mailed() {
        let order = |shipping: &str, quantity: u32, orders: u32| {
            format!(
                r#"{{"total_price": "90.00", "billing_address": {{"country_code": "DE"}},
                "shipping_address": {{"country_code": "{shipping}"}}, "customer": {{"orders_count": {orders}}},
                "line_items": [{{"quantity": {quantity}}}]}}"#
            )
        };
        check(
            "orders.create",
            &order("US", 5, 1),
            Some("mail"),
            "possible fraud",
        );
        check(
            "orders.create",
            &order("DE", 5, 1),
            None,
            "an order of ordinary value",
        );
        check(
            "orders.create",
            &order("US", 1, 1),
            None,
            "an order of ordinary value",
        );
        check(
            "orders.create",
            &order("US", 5, 9),
            None,
            "an order of ordinary value",
        );
        check(
            "orders.updated",
            r#"{"cancel_reason": "fraud"}"#,
            Some("mail"),
            "possible fraud",
        );
    }

    #[test]
    fn a_product_is_out_of_stock_when_every_tracked_variant_is() {
        let product = |a: i64, b: i64| {
            format!(
                r#"{{"variants": [{{"inventory_management": "shopify", "inventory_quantity": {a}}},
                {{"inventory_management": "shopify", "inventory_quantity": {b}}}, {{"inventory_quantity": 0}}]}}"#
            )
        };
        check(
            "products.update",
            &product(0, -1),
            Some("chat"),
            "out of stock",
        );
        check(
            "products.update",
            &product(0, 1),
            None,
            "a product in stock",
        );
        check(
            "products.update",
            r#"{"variants": []}"#,
            None,
            "a product whose stock is not tracked",
        );
        check(
            "inventory_levels.update",
            r#"{"available": 0}"#,
            Some("chat"),
            "out of stock",
        );
        check(
            "inventory_levels.update",
            r#"{"available": 3}"#,
            None,
            "still in stock",
        );
        check(
            "carts.update",
            "{}",
            None,
            "not an order, a product or stock",
        );
    }
}
