//! Lines for the rule's author and operator: `replay` prints them, `explain` keeps them. How much a
//! rule may log for an event is limited; what goes beyond is cut off, and costs fuel like the rest.

/// Writes one line to the rule's log. On the host, in native tests, it goes to standard error.
///
/// ```
/// use hooksieve_sdk::prelude::*;
///
/// #[rule]
/// fn watch(event: &Event) -> Decision {
///     log::line(event.kind());
///     Decision::drop("only watched")
/// }
/// ```
#[allow(clippy::print_stderr, reason = "native tests have no other log")]
pub fn line(text: &str) {
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    crate::guest::log(crate::guest::LEVEL_LINE, text.as_bytes());
    #[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
    eprintln!("rule: {text}");
}
