//! End-to-end tests: bytes in, receiver out. One file a theme.

mod cli;
mod command;
mod compile;
mod crash;
mod flow;
mod fuel;
mod hostile;
mod mail;
mod senders;
mod sizes;
mod smith;
