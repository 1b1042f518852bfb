//! End-to-end tests: bytes in, receiver out. One file a theme.

mod api;
mod cli;
mod command;
mod compile;
mod console;
mod crash;
mod egress;
mod faults;
mod flow;
mod fuel;
mod guest;
mod hostile;
mod housekeeping;
mod load;
mod mail;
mod operations;
mod quarantine;
mod quotas;
mod refused;
mod senders;
mod sizes;
mod smith;
mod sql;
mod stack;
mod timing;
mod uploads;
