//! Traps do not cost what a hostile rule makes them cost.
//!
//! Wasmer registers the unwinding tables of every module with the C runtime, and takes a backtrace at
//! every trap. With tables registered, a trap 10,000 frames deep takes milliseconds, and with 10,000
//! modules loaded the runtime searches them one after another. So this program registers none: these
//! two definitions take the place of the C runtime's, a backtrace ends where compiled code begins, and
//! a trap costs the same everywhere. What a trap *is* comes from the address it happened at and does
//! not need the tables. A panic of ours inside an import is caught before it reaches compiled code.
//!
//! Tables of ordinary code are found by the dynamic linker and are not concerned. But a program that
//! embeds this engine beside another compiler of its own loses backtraces through that one's code.
#![allow(unsafe_code)]

#[unsafe(no_mangle)]
extern "C" fn __register_frame(_: *const u8) {}

#[unsafe(no_mangle)]
extern "C" fn __deregister_frame(_: *const u8) {}
