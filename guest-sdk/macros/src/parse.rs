//! From the marked function to the few facts its expansion needs, or one line that shows the right
//! form.

use proc_macro2::TokenStream;
use quote::ToTokens;
use std::sync::Mutex;
use syn::{Error, FnArg, GenericParam, ItemFn, ReturnType, Type};

const FORM: &str = "a rule is `fn name(event: &Event) -> Decision`, with `config: &MyConfig` as second parameter where it has a configuration";

pub(crate) struct Rule {
    pub(crate) function: ItemFn,
    /// The type of the event's parameter, without its `&`.
    pub(crate) event: Type,
    /// The type of the configuration, without its `&`.
    pub(crate) config: Option<Type>,
}

pub(crate) fn rule(attributes: TokenStream, item: TokenStream) -> Result<Rule, Error> {
    if !attributes.is_empty() {
        return Err(wrong(&attributes, "`#[rule]` takes no arguments"));
    }
    let function: ItemFn = match syn::parse2(item.clone()) {
        Ok(function) => function,
        Err(_) => return Err(wrong(&item, "`#[rule]` belongs on a function")),
    };
    let signature = &function.sig;
    if let Some(asyncness) = &signature.asyncness {
        return Err(wrong(asyncness, "a rule is not async"));
    }
    if let syn::Safety::Unsafe(unsafety) = &signature.safety {
        return Err(wrong(unsafety, "a rule is not unsafe"));
    }
    let is_lifetime = |parameter: &GenericParam| matches!(parameter, GenericParam::Lifetime(_));
    if !signature.generics.params.iter().all(is_lifetime) {
        return Err(wrong(
            &signature.generics,
            "a rule has no generic parameters",
        ));
    }
    if matches!(signature.output, ReturnType::Default) {
        return Err(wrong(signature, "a rule returns a `Decision`"));
    }
    let mut references = Vec::new();
    for input in &signature.inputs {
        match input {
            FnArg::Typed(parameter) => match &*parameter.ty {
                Type::Reference(reference) if reference.mutability.is_none() => {
                    references.push((*reference.elem).clone());
                }
                other => return Err(wrong(other, "a rule takes its parameters by `&`")),
            },
            receiver => return Err(wrong(receiver, "a rule is a free function")),
        }
    }
    let mut references = references.into_iter();
    let (Some(event), config, None) = (references.next(), references.next(), references.next())
    else {
        return Err(wrong(signature, "a rule takes one or two parameters"));
    };
    only_rule_in_crate(&signature.ident)?;
    Ok(Rule {
        function,
        event,
        config,
    })
}

fn wrong(at: &impl ToTokens, what: &str) -> Error {
    Error::new_spanned(at, format!("{what}: {FORM}"))
}

/// A crate becomes one module, and a module has one `decide`. The compiler loads this macro once for
/// a crate, so a static is enough to notice a second rule; an editor's server keeps it loaded and
/// expands again and again, so there the check is left to the compiler.
fn only_rule_in_crate(name: &syn::Ident) -> Result<(), Error> {
    static FIRST: Mutex<Option<String>> = Mutex::new(None);
    if std::env::var_os("RUST_ANALYZER_INTERNALS_DO_NOT_USE").is_some() {
        return Ok(());
    }
    let mut first = FIRST
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    match &*first {
        None => {
            *first = Some(name.to_string());
            Ok(())
        }
        Some(first) => Err(Error::new(
            name.span(),
            format!(
                "a crate holds one rule, and `{first}` is it: put `{name}` into a crate of its own"
            ),
        )),
    }
}
