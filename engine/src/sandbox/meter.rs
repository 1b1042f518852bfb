//! The meter of one instance: its fuel, what growth it was refused, and from these what ended it.
#![allow(unsafe_code)]

use super::memory::Linear;
use super::metering::OurGlobals;
use super::{Error, Limits, prices, watchdog};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use wasmer::RuntimeError;
use wasmer::sys::vm::{TrapCode, VMGlobalDefinition};

/// Kept beside its instance: the places lie in there.
pub(super) struct Meter {
    pub(super) fuel: Fuel,
    given: u64,
    past: Cell<u64>,
    refused_memory: Place,
    refused_table: Place,
    linear: Arc<Linear>,
    limits: Arc<Limits>,
}

impl Meter {
    /// The meter of the instance that has this memory and these globals.
    pub(super) fn new(
        linear: Arc<Linear>,
        globals: &[NonNull<VMGlobalDefinition>],
        ours: OurGlobals,
        limits: Arc<Limits>,
    ) -> Result<Self, Error> {
        let place = |at: u32| match globals.get(at as usize) {
            Some(&place) => Ok(Place(place.cast())),
            None => Err(Error::Engine {
                message: format!(
                    "the instance has {} globals, and global {at} is ours",
                    globals.len()
                ),
            }),
        };
        Ok(Self {
            fuel: Fuel {
                left: place(ours.fuel)?,
                floor: place(ours.floor)?,
            },
            given: 0,
            past: Cell::new(0),
            refused_memory: place(ours.refused_memory)?,
            refused_table: place(ours.refused_table)?,
            linear,
            limits,
        })
    }

    /// Fills the fuel up, less what the input costs and what comes before it.
    pub(super) fn give(&mut self, limit: u64, input_bytes: usize, base: u64) -> Result<(), Error> {
        self.given = limit;
        self.past.set(0);
        let price = (input_bytes as u64).div_ceil(prices::INPUT_BYTES) + base;
        self.fuel.set(limit.min(FUEL_MAX) as i64);
        self.fuel.spend(price).map_err(|_| self.exhausted())
    }

    /// What was burned of what was given.
    pub(super) fn used(&self) -> u64 {
        self.given - self.fuel.left().max(0) as u64
    }

    /// What was burned after all that was given: see [`metering::burned_past_max`].
    pub(super) fn used_past(&self) -> u64 {
        self.past.get()
    }

    /// More was burned than was given: all of that is used, then.
    fn exhausted(&self) -> Error {
        self.past.set(self.fuel.left().min(0).unsigned_abs());
        self.fuel.set(0);
        Error::Fuel { limit: self.given }
    }

    /// A guest that came to its end can have burned too much since its last check.
    pub(super) fn ended_well(&self) -> Result<(), Error> {
        if self.fuel.left() < 0 {
            return Err(self.exhausted());
        }
        Ok(())
    }

    /// Names what ended the guest. A panic's message was logged just before, if there was one.
    pub(super) fn ended_by(&self, error: RuntimeError, panic: Option<String>) -> Error {
        let error = match error.downcast::<Error>() {
            Ok(ours) => ours,
            Err(error) => match (error.to_trap(), panic) {
                _ if self.fuel.left() < 0 => return self.exhausted(),
                (Some(TrapCode::UnreachableCodeReached), Some(message)) => {
                    Error::Panicked { message }
                }
                (Some(TrapCode::StackOverflow), _) => return self.stack_overflow(),
                (Some(code), _) => Error::Trapped {
                    what: trap_name(code),
                },
                (None, _) => Error::Trapped {
                    what: "for a reason the engine does not know",
                },
            },
        };
        match error {
            Error::Fuel { .. } => self.exhausted(),
            error => self.after_refusal(error),
        }
    }

    /// The guest needed more stack than there is.
    pub(super) fn stack_overflow(&self) -> Error {
        self.after_refusal(Error::Stack {
            limit_bytes: self.limits.stack_bytes,
        })
    }

    /// A failure after growth was refused is told as that: what the guest did next hides the cause.
    pub(super) fn after_refusal(&self, error: Error) -> Error {
        let then = error.to_string();
        if let requested @ 1.. = self.refused_memory.u32() {
            return Error::Memory {
                requested_pages: u64::from(requested),
                limit_pages: self.linear.limit_pages(),
                then,
            };
        }
        if let requested @ 1.. = self.refused_table.u32() {
            return Error::Table {
                requested: u64::from(requested),
                limit: self.limits.table_elements,
                then,
            };
        }
        error
    }
}

/// Where one of the instance's globals lives: 8 bytes that compiled code reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Place(NonNull<u64>);

// SAFETY: a place is used by the thread that runs its instance; the store that owns both moves to
// another thread only as a whole.
unsafe impl Send for Place {}
// SAFETY: as above; the signal handler that also holds one runs on that thread.
unsafe impl Sync for Place {}

impl Place {
    fn u32(self) -> u32 {
        // SAFETY: the instance is alive as long as whoever holds this place; see `Meter`.
        unsafe { self.0.cast::<u32>().read() }
    }

    /// Atomic, because the watchdog may write.
    fn i64<'a>(self) -> &'a AtomicI64 {
        // SAFETY: as above.
        unsafe { AtomicI64::from_ptr(self.0.as_ptr().cast()) }
    }
}

const _: () = assert!(size_of::<VMGlobalDefinition>() == 16);

/// The most fuel that an event can be given: what is left is a signed number.
const FUEL_MAX: u64 = i64::MAX as u64;

/// What is left of one instance's fuel, in its own globals.
#[derive(Clone, Copy)]
pub(super) struct Fuel {
    left: Place,
    /// Fuel below this is none.
    floor: Place,
}

impl Fuel {
    /// Runs what calls into the guest, for at most this time: the watchdog strikes then.
    pub(super) fn guarded<T>(
        self,
        limit_ms: u64,
        calls: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let limit = Duration::from_millis(limit_ms);
        // SAFETY: the fuel lives in the instance, which outlives the calls into it.
        let (result, struck) = unsafe { watchdog::guarded(self, limit, calls) };
        if struck {
            self.floor.i64().store(0, Ordering::Relaxed);
            self.set(0);
            return Err(Error::WallClock { limit_ms });
        }
        result
    }

    pub(super) fn left(self) -> i64 {
        self.left.i64().load(Ordering::Relaxed)
    }

    pub(super) fn set(self, left: i64) {
        self.left.i64().store(left, Ordering::Relaxed);
    }

    /// Has the guest end at its next check. The guest itself never writes the floor, so whatever it is in
    /// the middle of, this stays.
    pub(super) fn strike(self) {
        self.floor.i64().store(i64::MAX, Ordering::Relaxed);
    }

    /// Takes what a host call costs.
    pub(super) fn spend(self, price: u64) -> Result<(), Error> {
        let (left, floor) = (self.left(), self.floor.i64().load(Ordering::Relaxed));
        let then = left.saturating_sub_unsigned(price);
        if then < floor {
            // What is not done is not burned.
            self.set(left.min(-1));
            // The limit is put in by `Meter::ended_by`, which knows it.
            return Err(Error::Fuel { limit: 0 });
        }
        self.set(then);
        Ok(())
    }
}

fn trap_name(code: TrapCode) -> &'static str {
    match code {
        TrapCode::StackOverflow => "stack overflow",
        TrapCode::HeapAccessOutOfBounds => "it reached outside its memory",
        TrapCode::TableAccessOutOfBounds => "it reached outside a table",
        TrapCode::IndirectCallToNull => "it called through an empty table entry",
        TrapCode::BadSignature => "it called through a table entry of another type",
        TrapCode::IntegerOverflow => "an integer overflowed in a division",
        TrapCode::IntegerDivisionByZero => "it divided an integer by zero",
        TrapCode::BadConversionToInteger => "it converted a number that no integer can hold",
        TrapCode::UnreachableCodeReached => "it reached `unreachable`, as an abort does",
        _ => "for a reason that the contract's features cannot cause",
    }
}
