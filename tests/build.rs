fn main() {
    hooksieve_guest_build::build(
        &["probe"],
        &[
            "guests",
            "../guest-sdk/src",
            "../guest-sdk/macros/src",
            "../Cargo.toml",
        ],
    );
}
