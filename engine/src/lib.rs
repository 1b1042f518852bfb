//! Hooksieve: users' notification rules, small WebAssembly modules, run on every event a platform
//! produces; what they decide is delivered.
//!
//! # The map
//!
//! One direction, from bytes to a delivery:
//!
//! ```text
//! bytes -> ingest -> store::EventLog -> pipeline (rules -> sandbox -> decision) -> store::Outbox -> dispatch -> channel
//!          verify     append, flush      one MessagePack encoding, shared           delivery id =        retry,
//!          size cap   then 202           by every rule that reads it                event+rule+position  dead letter
//! ```
//!
//! | module | what it does |
//! |---|---|
//! | [`config`], [`tenant`] | files and environment, validated whole before a port opens |
//! | [`ingest`] | verifies a sender, stores its event, answers |
//! | [`store`] | the seam behind which events and deliveries are durable |
//! | [`sandbox`] | checks, compiles and runs a module within its limits |
//! | [`pipeline`] | events through rules to commits |
//! | [`timing`] | when and how often what was decided goes out |
//! | [`dispatch`], [`channel`] | commits to receivers |
//! | [`housekeeping`] | what is old goes, and events are refused before the disk is full |
//! | [`private`] | files and folders that are their owner's alone |
//! | [`live`] | what each tenant has at this moment: sources, channels, quotas |
//! | [`metrics`], [`stats`], [`telemetry`] | what is counted, for Prometheus; the last hour, for people; traces and logs, for a collector |
//! | [`share`] | how much one tenant takes of what all share |
//! | [`clock`] | the one clock, which does not jump |
//! | [`acknowledge`] | links by which people stop an escalation |
//! | [`registry`] | access tokens, uploaded modules, rules as histories of versions; tenants, sources and channels set up by calls |
//! | [`admin`] | operators' and tenants' calls over HTTP, their description, and the console |
//! | [`replay`], [`recording`] | recorded events, read as the engine would have stored them; their file |
//! | [`serve`] | all of it wired together |
//!
//! # Invariants
//!
//! - A sender gets 202 only when its event is durable; rules run after the answer.
//! - `sandbox` knows the wire contract and its limits, nothing else. `store` knows no time and
//!   decides nothing. `pipeline` delivers nothing. `channel` retries nothing.
//! - A delivery has one id from its decision to its last attempt.
//! - Secrets are [`secret::Secret`], which prints as `<secret>`; rules never see one.
//!
//! # Embedding
//!
//! [`serve::Engine`] is the whole engine as a value: start it with a [`config::Config`] and tenants,
//! stop it when done. `examples/embed.rs` is a program that does. To check or run a module alone,
//! [`sandbox::Sandbox`] is enough.

pub mod acknowledge;
pub mod admin;
pub mod channel;
pub mod clock;
pub mod config;
pub mod dispatch;
pub mod housekeeping;
pub mod id;
pub mod ingest;
pub mod live;
pub mod metrics;
mod notice;
pub mod pipeline;
pub mod private;
mod problem;
mod quota;
pub mod recording;
pub mod registry;
pub mod replay;
pub mod sandbox;
mod seal;
pub mod secret;
pub mod serve;
pub mod share;
pub mod stats;
pub mod store;
pub mod telemetry;
pub mod tenant;
pub mod timing;
mod whole;
