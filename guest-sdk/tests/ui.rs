//! What the compiler says about a rule that is written wrong: one line, with the right form.

use std::time::Instant;

#[test]
#[allow(clippy::print_stderr, reason = "the time it takes is worth a line")]
fn mistakes() {
    let started = Instant::now();
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
    cases.pass("tests/ui-pass/*.rs");
    drop(cases);
    eprintln!("mistakes: {} ms", started.elapsed().as_millis());
}
