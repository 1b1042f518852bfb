fn main() {
    hooksieve_guest_build::build(
        &["peers-guest", "peers-guest-large", "peers-guest-extism"],
        &[
            "rule",
            "guests",
            "../../guest-sdk/src",
            "../../guest-sdk/macros/src",
            "Cargo.toml",
            "Cargo.lock",
        ],
    );
}
