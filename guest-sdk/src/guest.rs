//! What a rule's module is made of besides its function: the exports' bodies, a bump allocator, and
//! the panic hook. Exists on wasm32 only, where there is one thread and an instance serves one event
//! at a time. The only unsafe code of the SDK is here.
#![allow(unsafe_code)]

use crate::rule::FromConfig;
use crate::text;
use crate::wire::{Code, Decision, Event, SkipIndex, Value, pack};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, OnceCell};

/// An ordinary line of the rule's log.
pub(crate) const LEVEL_LINE: u32 = 0;
/// The message and place of a panic, just before the module traps.
const LEVEL_PANIC: u32 = 1;

mod imports {
    #[link(wasm_import_module = "hooksieve")]
    unsafe extern "C" {
        pub(super) fn log(level: u32, text: *const u8, len: usize);
    }
}

pub(crate) fn log(level: u32, text: &str) {
    // SAFETY: the engine reads `len` bytes from `text` and keeps neither.
    unsafe { imports::log(level, text.as_ptr(), text.len()) }
}

/// The rule's configuration, read by `init`.
pub struct Slot<C>(OnceCell<C>);

// SAFETY: a module without the threads feature has one thread.
unsafe impl<C> Sync for Slot<C> {}

impl<C> Slot<C> {
    #[allow(
        clippy::new_without_default,
        reason = "const, and called by the macro alone"
    )]
    pub const fn new() -> Self {
        Self(OnceCell::new())
    }
}

/// Room for `len` bytes of input, aligned to 8, or 0 when there is none.
pub fn reserve(len: u32) -> u32 {
    match Layout::from_size_align(len.max(1) as usize, 8) {
        // SAFETY: the layout has a size. The buffer is never freed: it lasts as long as the event.
        Ok(layout) => unsafe { BUMP.alloc(layout) as u32 },
        Err(_) => 0,
    }
}

/// Reads the configuration; 0 when it fits.
pub fn init<C: FromConfig>(slot: &'static Slot<C>, config: u32, config_len: u32) -> i64 {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("panicked");
        match panic.location() {
            // Without `format!`, which would be half of a small rule.
            Some(at) => {
                let line = text::decimal(at.line().into());
                let place = text::joined(&[message, " (", at.file(), ":", &line, ")"]);
                log(LEVEL_PANIC, &place);
            }
            None => log(LEVEL_PANIC, message),
        }
    }));
    let config = Value::new(input(config, config_len));
    match C::from_config(config) {
        Ok(config) => match slot.0.set(config) {
            Ok(()) => 0,
            Err(_) => Code::BadConfig as i64,
        },
        Err(error) => answer(Decision::encode_error(error.message())),
    }
}

/// Reads the event, asks the rule, and leaves its answer in memory.
pub fn decide<C>(
    slot: &'static Slot<C>,
    event: (u32, u32),
    index: (u32, u32),
    rule: impl FnOnce(&Event<'_>, &C) -> Vec<u8>,
) -> i64 {
    let Some(config) = slot.0.get() else {
        return Code::BadConfig as i64;
    };
    let index = SkipIndex::new(input(index.0, index.1));
    match Event::read(input(event.0, event.1), index) {
        Ok(event) => answer(rule(&event, config)),
        Err(_) => Code::BadInput as i64,
    }
}

fn input(pointer: u32, len: u32) -> &'static [u8] {
    if len == 0 {
        return &[];
    }
    // SAFETY: the engine passes what it wrote into a buffer that `reserve` returned and nobody frees.
    unsafe { std::slice::from_raw_parts(pointer as *const u8, len as usize) }
}

fn answer(bytes: Vec<u8>) -> i64 {
    let bytes = bytes.leak();
    pack(bytes.as_ptr() as u32, bytes.len() as u32)
}

#[global_allocator]
static BUMP: Bump = Bump { next: Cell::new(0) };

/// Hands out memory upwards and takes back only what was handed out last: made for one event, after
/// which the engine puts the whole memory back.
struct Bump {
    /// The first free byte; 0 before the first allocation.
    next: Cell<usize>,
}

// SAFETY: a module without the threads feature has one thread.
unsafe impl Sync for Bump {}

const PAGE_BYTES: usize = 65_536;

impl Bump {
    fn next(&self) -> usize {
        unsafe extern "C" {
            static __heap_base: u8;
        }
        match self.next.get() {
            0 => (&raw const __heap_base) as usize,
            next => next,
        }
    }

    /// Makes memory reach to `end`.
    fn reach(&self, end: usize) -> bool {
        let have = core::arch::wasm32::memory_size(0) * PAGE_BYTES;
        if end <= have {
            return true;
        }
        let pages = (end - have).div_ceil(PAGE_BYTES);
        core::arch::wasm32::memory_grow(0, pages) != usize::MAX
    }
}

// SAFETY: every block lies between `__heap_base` and the end of memory, and no two overlap.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = (self.next() + layout.align() - 1) & !(layout.align() - 1);
        match start.checked_add(layout.size()) {
            Some(end) if self.reach(end) => {
                self.next.set(end);
                start as *mut u8
            }
            _ => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if block as usize + layout.size() == self.next.get() {
            self.next.set(block as usize);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if block as usize + layout.size() == self.next.get() {
            // The last block grows and shrinks where it is.
            return match (block as usize).checked_add(new_size) {
                Some(end) if self.reach(end) => {
                    self.next.set(end);
                    block
                }
                _ => std::ptr::null_mut(),
            };
        }
        if new_size <= layout.size() {
            return block;
        }
        // SAFETY: the caller's layout is valid, and so is the same one with another size here.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(block, moved, layout.size());
            }
            moved
        }
    }
}
