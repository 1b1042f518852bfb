//! What a rule's function may take and return.

use crate::wire::{Decision, Error, Value};
use std::fmt::Display;

/// What a rule's function may return: a [`Decision`], what becomes one, or a `Result` of it, whose
/// error fails the rule with that message: the rule's `on_error` then says what happens.
pub trait IntoAnswer {
    /// The answer as MessagePack.
    fn into_answer(self) -> Vec<u8>;
}

impl<T: Into<Decision>> IntoAnswer for T {
    fn into_answer(self) -> Vec<u8> {
        self.into().encode()
    }
}

impl<T: Into<Decision>, E: Display> IntoAnswer for Result<T, E> {
    fn into_answer(self) -> Vec<u8> {
        match self {
            Ok(decision) => decision.into().encode(),
            Err(error) => Decision::encode_error(&error.to_string()),
        }
    }
}

/// What a rule's second parameter may be: [`Settings`], or any type that serde can read.
pub trait FromConfig: Sized {
    /// Reads the configuration, once, before the first event.
    ///
    /// # Errors
    /// When the configuration does not fit; the rule is then refused with that message.
    fn from_config(config: Value<'static>) -> Result<Self, Error>;
}

impl<T: serde::Deserialize<'static>> FromConfig for T {
    fn from_config(config: Value<'static>) -> Result<Self, Error> {
        T::deserialize(config)
    }
}

/// A rule's configuration, read by path: smaller than a serde type, and as quick as an event.
///
/// ```
/// use hooksieve_sdk::prelude::*;
///
/// #[rule]
/// fn forward(event: &Event, settings: &Settings) -> Decision {
///     let channel = settings.str("/channel").unwrap_or("mail");
///     notify(channel).title(event.kind()).because("forwarded")
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Settings(Value<'static>);

impl FromConfig for Settings {
    fn from_config(config: Value<'static>) -> Result<Self, Error> {
        Ok(Self(config))
    }
}

impl std::ops::Deref for Settings {
    type Target = Value<'static>;

    fn deref(&self) -> &Value<'static> {
        &self.0
    }
}
