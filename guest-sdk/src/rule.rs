//! What a rule's function may take and return.

use crate::builders::{Notify, Post};
use crate::wire::{Decision, Error, Value};
use std::fmt::Display;

/// What a rule's function may return: a [`Decision`], what [`notify`](crate::notify) and
/// [`post`](crate::post) begin, or a `Result` of one of these, whose error fails the rule with that
/// message: the rule's `on_error` then says what happens.
// Listed type by type: behind a blanket impl for `Into<Decision>` the compiler would speak of `From`.
#[diagnostic::on_unimplemented(
    message = "a rule cannot return `{Self}`",
    label = "a rule returns `Decision`, or `Result<Decision, E>` where `E` can be printed",
    note = "end with `Decision::drop(\"why\")`, `notify(\"channel\")…because(\"why\")`, or `.into()`"
)]
pub trait IntoAnswer {
    /// The answer as MessagePack.
    fn into_answer(self) -> Vec<u8>;
}

impl IntoAnswer for Decision {
    fn into_answer(self) -> Vec<u8> {
        self.encode()
    }
}

impl IntoAnswer for Notify {
    fn into_answer(self) -> Vec<u8> {
        Decision::from(self).encode()
    }
}

impl IntoAnswer for Post {
    fn into_answer(self) -> Vec<u8> {
        Decision::from(self).encode()
    }
}

impl<T: IntoAnswer, E: Display> IntoAnswer for Result<T, E> {
    fn into_answer(self) -> Vec<u8> {
        match self {
            Ok(answer) => answer.into_answer(),
            Err(error) => Decision::encode_error(&error.to_string()),
        }
    }
}

/// What a rule's second parameter may be: [`Settings`], or any type that serde can read.
#[diagnostic::on_unimplemented(
    message = "a rule's configuration cannot be `{Self}`",
    label = "put `#[derive(serde::Deserialize)]` on it, or take `&Settings` and read by path"
)]
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

/// The configuration of a rule that has none.
#[derive(Clone, Copy, Debug)]
pub struct NoConfig;

impl FromConfig for NoConfig {
    fn from_config(config: Value<'static>) -> Result<Self, Error> {
        match config.entries().next() {
            None => Ok(Self),
            Some((key, _)) => Err(Error::joined(&[
                "this rule takes no configuration, and `",
                key,
                "` was given",
            ])),
        }
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
