#![allow(missing_docs)]
pub mod id;
pub mod secret;
pub mod store;
