//! What a rule's module is made of besides its function: the exports' bodies, a bump allocator, and
//! the panic hook. Exists on wasm32-unknown-unknown only, where there is one thread and an instance
//! serves one event at a time. The only unsafe code of the SDK is here.
//!
//! Whatever `init` leaves in memory serves any number of `decide` calls, each from that same image.
#![allow(unsafe_code)]

use crate::rule::FromConfig;
use crate::wire::{Code, Decision, Event, SkipIndex, Value, Writer, pack};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, OnceCell};
use std::panic::PanicHookInfo;

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

pub(crate) fn log(level: u32, text: &[u8]) {
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
    let start = BUMP.next(8);
    match len <= i32::MAX as u32 && BUMP.reach(start + len as usize) {
        true => heap(start) as u32,
        false => 0,
    }
}

/// Reads the configuration; 0 when it fits.
pub fn init<C: FromConfig>(slot: &'static Slot<C>, config: u32, config_len: u32) -> i64 {
    std::panic::set_hook(Box::new(report));
    let config = Value::trusted(input(config, config_len), SkipIndex::default());
    match C::from_config(config) {
        Ok(config) => match slot.0.set(config) {
            Ok(()) => 0,
            Err(_) => Code::BadConfig as i64,
        },
        Err(error) => answer(Decision::encode_error(error.message())),
    }
}

/// Tells the operator what a panic said, and where. Without `format!`, which would be half of a small
/// rule.
fn report(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("panicked");
    let mut line = Writer::new();
    line.raw(message.as_bytes());
    if let Some(at) = panic.location() {
        line.raw(b" (");
        line.raw(at.file().as_bytes());
        line.raw(b":");
        line.decimal(at.line());
        line.raw(b")");
    }
    log(LEVEL_PANIC, line.as_slice());
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

/// The bytes of a text in what [`Value::trusted`] was given, as they are: a rule that checked them
/// would spend most of its fuel there.
pub(crate) fn text(bytes: &[u8]) -> &str {
    debug_assert!(std::str::from_utf8(bytes).is_ok());
    // SAFETY: the engine converts JSON, whose text is UTF-8, and vouches for the index; any other
    // bytes were validated when `Value::new` took them.
    unsafe { std::str::from_utf8_unchecked(bytes) }
}

/// `Vec::extend_from_slice`, without the 300 bytes of code that its growth is: a failed allocation
/// does not come back here.
pub(crate) fn append(to: &mut Vec<u8>, more: &[u8]) {
    let len = to.len();
    let sum = len + more.len();
    if to.capacity() < sum {
        let mut larger: Vec<u8> = Vec::with_capacity(2 * sum);
        // SAFETY: it has room for twice as much, and is new, so the two do not overlap.
        unsafe {
            larger
                .as_mut_ptr()
                .copy_from_nonoverlapping(to.as_ptr(), len)
        };
        *to = larger;
    }
    // SAFETY: there is room for `sum`, whose first `len` bytes are written already; `more` is
    // borrowed, so it is no part of `to`.
    unsafe {
        let end = to.as_mut_ptr().add(len);
        end.copy_from_nonoverlapping(more.as_ptr(), more.len());
        to.set_len(sum);
    }
}

/// [`append`], for text.
pub(crate) fn push(to: &mut String, more: &str) {
    // SAFETY: text with text behind it is text.
    append(unsafe { to.as_mut_vec() }, more.as_bytes());
}

#[global_allocator]
static BUMP: Bump = Bump { used: Cell::new(0) };

/// Hands out memory upwards and takes none back: made for one event, after which the engine puts the
/// whole memory back. Without a `dealloc` nothing has to be dropped, which makes a rule a seventh
/// smaller, and quicker. The last block grows where it is, so that a value which grows piece by piece
/// does not leave copies behind.
struct Bump {
    /// How many bytes are handed out, from `__heap_base` on.
    used: Cell<usize>,
}

// SAFETY: a module without the threads feature has one thread.
unsafe impl Sync for Bump {}

const PAGE_BYTES: usize = 65_536;

unsafe extern "C" {
    static __heap_base: u8;
}

/// The byte at `offset` of the heap. Never null, which the compiler sees: it then drops the code for
/// allocations that fail.
fn heap(offset: usize) -> *mut u8 {
    // SAFETY: the callers made memory reach there; the linker's symbol is where the heap begins, and
    // no object with an end of its own.
    unsafe { (&raw const __heap_base).cast_mut().add(offset) }
}

impl Bump {
    /// Where a block begins that is aligned like this.
    fn next(&self, align: usize) -> usize {
        (self.used.get() + align - 1) & !(align - 1)
    }

    /// Makes the heap `used` bytes long, if there is room. Nothing here overflows: no address reaches
    /// 2 GiB, and no block is larger than that.
    #[inline(never)]
    fn reach(&self, used: usize) -> bool {
        let end = (&raw const __heap_base) as usize + used;
        let pages = end.div_ceil(PAGE_BYTES);
        let have = core::arch::wasm32::memory_size(0);
        if pages > have && core::arch::wasm32::memory_grow(0, pages - have) == usize::MAX {
            return false;
        }
        self.used.set(used);
        true
    }
}

// SAFETY: every block lies between `__heap_base`, which is aligned to 16, and the end of memory, and
// no two overlap.
unsafe impl GlobalAlloc for Bump {
    #[inline(never)]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.next(layout.align());
        if !self.reach(start + layout.size()) {
            // The engine names the growth that it refused.
            core::arch::wasm32::unreachable();
        }
        heap(start)
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let start = block as usize - (&raw const __heap_base) as usize;
        if start + layout.size() == self.used.get() {
            if !self.reach(start + new_size) {
                core::arch::wasm32::unreachable();
            }
            return heap(start);
        }
        if new_size <= layout.size() {
            return heap(start);
        }
        // SAFETY: the caller's layout is valid, and so is the same one with another size here.
        unsafe {
            let moved = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            moved.copy_from_nonoverlapping(block, layout.size());
            moved
        }
    }
}
