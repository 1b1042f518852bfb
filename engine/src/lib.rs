pub mod config;
pub mod id;
pub mod sandbox;
pub mod secret;
pub mod store;
