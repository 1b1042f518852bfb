fn main() {
    hooksieve_guest_build::build_programs(&["triage-command"], &["../policies/github-triage/src"]);
    hooksieve_guest_build::build(
        &[
            "probe",
            "first-rule",
            "lean-drop",
            "lean-format",
            "lean-forward",
            "lean-serde",
        ],
        &[
            "guests",
            "../examples/rules/first-rule",
            "../guest-sdk/src",
            "../guest-sdk/macros/src",
            "../Cargo.toml",
        ],
    );
}
