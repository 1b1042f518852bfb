//! The `#[rule]` attribute: parse, expand, and this thin surface.

use proc_macro::TokenStream;

mod expand;
mod parse;

/// Marks the one function that is the crate's rule.
///
/// Its forms:
///
/// ```text
/// #[rule]
/// fn name(event: &Event) -> Decision
///
/// #[rule]
/// fn name(event: &Event, config: &MyConfig) -> Result<Decision, MyError>
/// ```
///
/// The configuration is `Settings`, or any type that implements `serde::Deserialize`. The function
/// stays an ordinary function, which native tests call.
#[proc_macro_attribute]
pub fn rule(attributes: TokenStream, item: TokenStream) -> TokenStream {
    let parsed = parse::rule(attributes.into(), item.clone().into());
    match parsed {
        Ok(rule) => expand::rule(rule).into(),
        Err(error) => {
            // The function itself stays, so that its callers are not reported as well.
            let mut tokens: TokenStream = error.to_compile_error().into();
            tokens.extend(item);
            tokens
        }
    }
}
