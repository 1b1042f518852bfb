//! Write Hooksieve rules: small WebAssembly modules that decide what becomes of an event.
//!
//! A rule is one function. It gets the event, and its configuration where it has one; it returns
//! what is to be done:
//!
//! ```
//! use hooksieve_sdk::prelude::*;
//!
//! #[rule]
//! fn triage(event: &Event) -> Decision {
//!     if event.str("/sender/type") == Some("Bot") {
//!         return Decision::drop("a bot's");
//!     }
//!     match event.kind() {
//!         "workflow_run.completed" if event.str("/workflow_run/conclusion") == Some("failure") => {
//!             notify("oncall")
//!                 .title("CI is red")
//!                 .text(event.str("/workflow_run/display_title").unwrap_or("a run failed"))
//!                 .because("a failed run")
//!         }
//!         _ => Decision::drop("nothing to see"),
//!     }
//! }
//!
//! // It is an ordinary function, so an ordinary test can call it.
//! let recorded = hooksieve_sdk::testing::event(
//!     "workflow_run.completed",
//!     r#"{"sender": {"type": "User"}, "workflow_run": {"conclusion": "failure"}}"#,
//! );
//! let decision = triage(&recorded.event());
//! assert_eq!(decision.reason, "a failed run");
//! assert_eq!(decision.actions[0].channel, "oncall");
//! ```
//!
//! A rule is a pure function of its event and configuration: it has no clock, no randomness, no
//! files and no network, so a replay gives the same decision as production did. It names channels,
//! never hosts; its tenant configures where a channel leads.
//!
//! The bytes that pass between the engine and a rule are stated in `ABI.md`, for other languages.

mod builders;
mod de;
#[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
mod guest;
pub mod log;
mod rule;
#[cfg(not(all(target_arch = "wasm32", target_os = "unknown")))]
pub mod testing;
mod text;
pub mod wire;

pub use builders::{Notify, Post, days, hours, minutes, notify, post};
pub use hooksieve_sdk_macros::rule;
pub use rule::{FromConfig, IntoAnswer, Settings};
pub use wire::{Body, Decision, Error, Event, Value, Writer};

/// What a rule needs, in one line: `use hooksieve_sdk::prelude::*;`
pub mod prelude {
    pub use crate::{
        Body, Decision, Event, Settings, Value, days, hours, log, minutes, notify, post, rule,
    };
}

/// The code in README.md, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// What the expansion of `#[rule]` calls. Not for use by hand.
#[doc(hidden)]
pub mod __private {
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    pub use crate::guest::{Slot, decide, init, reserve};

    pub use crate::rule::NoConfig;

    /// Has the compiler check a configuration's type where it is named, on the host as well.
    pub const fn config<C: crate::FromConfig>() {}
}
