fn main() {
    hooksieve_guest_build::build(
        &["github-triage", "shopify-orders"],
        &[
            "github-triage",
            "shopify-orders",
            "../guest-sdk/src",
            "../guest-sdk/macros/src",
            "../Cargo.toml",
        ],
    );
}
