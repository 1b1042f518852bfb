//! The exports that make a function a reactor module; on the host, the function alone.

use crate::parse::Rule;
use proc_macro2::TokenStream;
use quote::quote;

pub(crate) fn rule(rule: Rule) -> TokenStream {
    let Rule { function, config } = rule;
    let name = &function.sig.ident;
    let (config_type, call) = match &config {
        Some(config) => (
            quote!(#config),
            quote!(|event, config| #name(event, config)),
        ),
        // Without a configuration there is still an `init`: it refuses one that was given in error.
        None => (
            quote!(::hooksieve_sdk::Settings),
            quote!(|event, _| #name(event)),
        ),
    };
    quote! {
        #function

        #[cfg(target_arch = "wasm32")]
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
                    #call,
                )
            }
        };

        // Names the function on the host as well, where nothing else may call it.
        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            let _ = #name;
        };
    }
}
