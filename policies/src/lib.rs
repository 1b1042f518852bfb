//! Ready-made rules, each a crate of its own in a folder beside this one, compiled by the build
//! script. A tenant names one as `module = "policy:github-triage"`.

/// A ready-made rule.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Its name, after `policy:`.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The compiled module.
    pub wasm: &'static [u8],
    /// The `[[rule]]` of a tenant file with every key of its configuration, explained.
    pub example: &'static str,
}

/// All of them.
pub const ALL: [Policy; 2] = [
    Policy {
        name: "github-triage",
        summary: "GitHub: mail for mentions and reviews, chat for red CI and releases, the urgent channel for incidents",
        wasm: include_bytes!(concat!(env!("OUT_DIR"), "/github_triage.wasm")),
        example: include_str!("../github-triage/example.toml"),
    },
    Policy {
        name: "shopify-orders",
        summary: "Shopify: large orders, possible fraud, products out of stock",
        wasm: include_bytes!(concat!(env!("OUT_DIR"), "/shopify_orders.wasm")),
        example: include_str!("../shopify-orders/example.toml"),
    },
];

/// The policy of that name.
pub fn get(name: &str) -> Option<&'static Policy> {
    ALL.iter().find(|policy| policy.name == name)
}
