#![allow(missing_docs)]
pub mod channel;
pub mod dispatch;
pub mod id;
pub mod secret;
pub mod store;
