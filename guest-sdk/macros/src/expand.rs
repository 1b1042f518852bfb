//! The exports that make a function a reactor module; on the host, the function alone, with the same
//! types checked.

use crate::parse::Rule;
use proc_macro2::TokenStream;
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;

pub(crate) fn rule(rule: Rule) -> TokenStream {
    let Rule {
        function,
        event,
        config,
    } = rule;
    // Each part of the call carries the span of what the author wrote for it, so that a type that
    // does not fit is reported there and not at the attribute.
    let output = match &function.sig.output {
        syn::ReturnType::Default => function.sig.output.to_token_stream(),
        syn::ReturnType::Type(_, output) => output.to_token_stream(),
    };
    let mut name = function.sig.ident.clone();
    name.set_span(output.span());
    let event = spanned(event.span(), "event");
    let (config_type, config_name, arguments) = match &config {
        Some(config) => {
            let name = spanned(config.span(), "config");
            (
                config.to_token_stream(),
                name.clone(),
                quote!(#event, #name),
            )
        }
        // Without a configuration there is still an `init`: it refuses one that was given in error.
        None => (
            quote!(::hooksieve_sdk::__private::NoConfig),
            quote!(_),
            quote!(#event),
        ),
    };
    let answer =
        quote_spanned!(output.span()=> ::hooksieve_sdk::IntoAnswer::into_answer(#name(#arguments)));
    let config_fits =
        quote_spanned!(config_type.span()=> ::hooksieve_sdk::__private::config::<#config_type>());
    quote! {
        // Inlined, it would have no name in backtraces and profiles.
        #[cfg_attr(all(target_arch = "wasm32", target_os = "unknown"), inline(never))]
        #function

        const _: () = {
            fn answer(
                #event: &::hooksieve_sdk::Event<'_>,
                #config_name: &#config_type,
            ) -> ::std::vec::Vec<u8> {
                #answer
            }
            #config_fits;
            // Native builds have no other use for it.
            let _ = answer;

            #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
            #[allow(unsafe_code)]
            const _: () = {
                static CONFIG: ::hooksieve_sdk::__private::Slot<#config_type> =
                    ::hooksieve_sdk::__private::Slot::new();

                #[unsafe(no_mangle)]
                extern "C" fn hooksieve_abi_1() {}

                #[unsafe(no_mangle)]
                extern "C" fn hooksieve_reserve(len: u32) -> u32 {
                    ::hooksieve_sdk::__private::reserve(len)
                }

                #[unsafe(no_mangle)]
                extern "C" fn hooksieve_init(config: u32, config_len: u32) -> i64 {
                    ::hooksieve_sdk::__private::init(&CONFIG, config, config_len)
                }

                #[unsafe(no_mangle)]
                extern "C" fn hooksieve_decide(
                    event: u32,
                    event_len: u32,
                    index: u32,
                    index_len: u32,
                ) -> i64 {
                    ::hooksieve_sdk::__private::decide(
                        &CONFIG,
                        (event, event_len),
                        (index, index_len),
                        answer,
                    )
                }
            };
        };
    }
}

fn spanned(span: proc_macro2::Span, name: &str) -> TokenStream {
    syn::Ident::new(name, span).to_token_stream()
}
