//! The events of the demo: made up here, after GitHub's and Shopify's documented payloads, and signed
//! as those senders sign.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

/// What must become of an event.
#[derive(Clone, Copy)]
pub(super) enum Becomes {
    Dropped,
    /// Sent to this channel alone.
    Sent(&'static str),
    /// Not taken in: its signature is wrong.
    Refused,
    /// Recognised as delivered before.
    Repeated,
}

/// A request to come in.
pub(super) struct Sample {
    pub(super) source: &'static str,
    /// The sender's event name, with the action where there is one.
    pub(super) name: &'static str,
    pub(super) body: Vec<u8>,
    pub(super) becomes: Becomes,
    sender_id: String,
}

impl Sample {
    /// The sender's headers, with its signature over the body.
    pub(super) fn headers(&self, github: &str, shopify: &str) -> Vec<(&'static str, String)> {
        let event = self.name.split('.').next().unwrap_or(self.name);
        if self.source == "github" {
            let mut signature: Vec<u8> = sign(github, &self.body);
            if let Becomes::Refused = self.becomes {
                signature[0] ^= 1;
            }
            let hex: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
            return vec![
                ("x-github-event", event.to_owned()),
                ("x-github-delivery", self.sender_id.clone()),
                ("x-hub-signature-256", format!("sha256={hex}")),
            ];
        }
        vec![
            ("x-shopify-topic", self.name.to_owned()),
            ("x-shopify-webhook-id", self.sender_id.clone()),
            ("x-shopify-shop-domain", "acme-shop.example".to_owned()),
            (
                "x-shopify-hmac-sha256",
                BASE64_STANDARD.encode(sign(shopify, &self.body)),
            ),
        ]
    }
}

fn sign(secret: &str, body: &[u8]) -> Vec<u8> {
    match Hmac::<Sha256>::new_from_slice(secret.as_bytes()) {
        Ok(mut mac) => {
            mac.update(body);
            mac.finalize().into_bytes().to_vec()
        }
        Err(_) => unreachable!("HMAC takes keys of every length"),
    }
}

pub(super) fn all() -> Vec<Sample> {
    use Becomes::{Dropped, Refused, Repeated, Sent};

    let repository = json!({ "full_name": "acme/api", "owner": { "login": "acme" } });
    let ann = json!({ "login": "ann", "type": "User" });
    let bot = json!({ "login": "renovate[bot]", "type": "Bot" });
    let github = |name: &'static str, becomes: Becomes, sender: &Value, more: Value| {
        let mut body = json!({ "repository": repository, "sender": sender });
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            if let Some((_, action)) = name.split_once('.') {
                body.insert("action".to_owned(), json!(action));
            }
            body.extend(more);
        }
        sample("github", name, becomes, &body)
    };
    let comment = |body: &str| {
        json!({
            "issue": { "number": 41, "title": "Exports time out" },
            "comment": { "body": body, "html_url": "https://github.example/acme/api/issues/41#c1" },
        })
    };
    let run = |branch: &str, conclusion: &str| {
        json!({ "workflow_run": {
            "name": "tests", "head_branch": branch, "conclusion": conclusion,
            "head_commit": { "message": "Retry exports" },
            "html_url": "https://github.example/acme/api/actions/runs/9",
        } })
    };
    let mention = github(
        "issue_comment.created",
        Sent("mail"),
        &ann,
        comment("@octocat, could you look at <this> & tell?\n\nIt fails since Monday."),
    );
    let again = Sample {
        becomes: Repeated,
        body: mention.body.clone(),
        sender_id: mention.sender_id.clone(),
        ..mention
    };
    vec![
        github(
            "issue_comment.created",
            Dropped,
            &bot,
            comment("@octocat This dependency is outdated."),
        ),
        mention,
        again,
        github(
            "issue_comment.created",
            Dropped,
            &ann,
            comment("Same here."),
        ),
        github(
            "pull_request.review_requested",
            Sent("mail"),
            &ann,
            json!({
                "requested_team": { "slug": "backend" },
                "pull_request": {
                    "title": "Stream exports", "body": "Reads rows in pages.", "user": { "login": "ann" },
                    "html_url": "https://github.example/acme/api/pull/42",
                },
            }),
        ),
        github(
            "workflow_run.completed",
            Sent("chat"),
            &bot,
            run("main", "failure"),
        ),
        github(
            "workflow_run.completed",
            Dropped,
            &bot,
            run("topic/x", "failure"),
        ),
        github(
            "release.published",
            Sent("chat"),
            &ann,
            json!({ "release": {
            "tag_name": "v2.4.0", "name": "Faster exports", "body": "Exports are streamed now.",
            "html_url": "https://github.example/acme/api/releases/v2.4.0",
        } }),
        ),
        github(
            "issues.labeled",
            Sent("urgent"),
            &ann,
            json!({
                "label": { "name": "incident" },
                "issue": {
                    "title": "Checkout answers 500", "body": "Since 10:02 UTC.",
                    "html_url": "https://github.example/acme/api/issues/43",
                },
            }),
        ),
        github("watch.started", Dropped, &ann, json!({})),
        github(
            "issues.opened",
            Refused,
            &ann,
            json!({ "issue": { "title": "Forged" } }),
        ),
        sample(
            "shopify",
            "orders/create",
            Sent("chat"),
            &order("1240.00", "DE", 3),
        ),
        sample(
            "shopify",
            "orders/create",
            Dropped,
            &order("19.90", "DE", 1),
        ),
        sample(
            "shopify",
            "orders/create",
            Sent("mail"),
            &order("310.00", "US", 8),
        ),
        sample(
            "shopify",
            "products/update",
            Sent("chat"),
            &json!({
                "title": "Enamel mug", "vendor": "Acme",
                "variants": [{ "title": "White", "inventory_management": "shopify", "inventory_quantity": 0 }],
            }),
        ),
    ]
}

fn order(total: &str, shipped_to: &str, quantity: u32) -> Value {
    json!({
        "name": "#1001", "total_price": total, "currency": "EUR", "test": false,
        "email": "buyer@shop.example",
        "customer": { "email": "buyer@shop.example", "orders_count": 1 },
        "billing_address": { "country_code": "DE" },
        "shipping_address": { "country_code": shipped_to },
        "line_items": [{ "title": "Enamel mug", "quantity": quantity }],
    })
}

fn sample(source: &'static str, name: &'static str, becomes: Becomes, body: &Value) -> Sample {
    let id: u64 = rand::random();
    Sample {
        source,
        name,
        body: body.to_string().into_bytes(),
        becomes,
        sender_id: format!("demo-{id:016x}"),
    }
}
