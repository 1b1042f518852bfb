//! The end of a guest's stack, where our own code must not be cut off.
//!
//! Compiled code calls wasmer on the guest's stack: to raise a trap, to fill memory, to drop a segment.
//! A guest decides how much of the stack is left for that. If it does not reach, the fault would be
//! taken for the guest's and the call be abandoned with whatever lock it holds (a trap takes the lock
//! of all backtraces, and then no other thread could trap again). So a fault of our code there opens
//! the guard page at the stack's end, the call goes on, and the guest has no fuel left: it ends at its
//! next check, before it could call any deeper. Whoever called then closes the page again.
//!
//! A guest that runs over the end itself is no concern of this file: wasmer ends it.
#![allow(unsafe_code)]

use super::meter::Fuel;
use std::backtrace::Backtrace;
use std::cell::{Cell, OnceCell};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;
use wasmer::Store;

/// The smallest page of every system that we run on. A trap needs less than half of it.
const GUARD_BYTES: usize = 4_096;

thread_local! {
    /// The guard page that was opened, and the fuel that the guest had left.
    static OPENED: Cell<Option<(usize, i64)>> = const { Cell::new(None) };
    /// This thread's own stack, where nothing is opened.
    static OWN_STACK: OnceCell<Range<usize>> = const { OnceCell::new() };
}

/// Where the program's and its libraries' code is. What runs elsewhere is a guest.
static OUR_CODE: OnceLock<Vec<Range<usize>>> = OnceLock::new();

/// Lets our code end what it does at the end of this store's stacks.
///
/// # Safety
/// The fuel must be that of the store's guest, which is called by [`call`] alone.
pub(super) unsafe fn watch(store: &mut Store, fuel: Fuel) {
    OUR_CODE.get_or_init(|| {
        // The first backtrace has the dynamic linker look up the unwinder's functions, which takes more
        // than a page of stack.
        let _ = Backtrace::force_capture();
        our_code()
    });
    store.set_trap_handler(Some(Box::new(move |signal, info, context| {
        // SAFETY: wasmer hands on what the kernel gave its signal handler.
        unsafe { open(signal, info, context, fuel) }
    })));
}

/// Calls into a guest. True beside its result if the call ran at the end of the stack: the guest's
/// stack was too small, whatever the result says.
pub(super) fn call<T>(fuel: Fuel, guest: impl FnOnce() -> T) -> (T, bool) {
    OWN_STACK.with(|own| {
        own.get_or_init(own_stack);
    });
    // Also if a panic of ours comes through here.
    let closing = Closing(fuel);
    let result = guest();
    (result, closing.close())
}

/// What closes the guard page again if it was opened.
struct Closing(Fuel);

impl Closing {
    /// Whether it was opened.
    fn close(&self) -> bool {
        let Some((page, left)) = OPENED.take() else {
            return false;
        };
        // SAFETY: the page is the guard of the stack that this thread keeps for its next guest.
        let closed =
            unsafe { libc::mprotect(page as *mut c_void, GUARD_BYTES, libc::PROT_NONE) } == 0;
        if !closed {
            // The next guest on this stack could write over what lies below it.
            let error = std::io::Error::last_os_error();
            tracing::error!(%error, "the guard of a stack cannot be put back");
            std::process::abort();
        }
        self.0.set(left);
        true
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.close();
    }
}

/// In a signal handler: true if the guard page was opened, and the call can go on.
///
/// # Safety
/// The arguments are those of a signal handler.
unsafe fn open(
    signal: c_int,
    info: *const libc::siginfo_t,
    context: *const c_void,
    fuel: Fuel,
) -> bool {
    if signal != libc::SIGSEGV {
        return false;
    }
    // SAFETY: the caller's promise; the kernel gives the address with this signal.
    let (fault, denied) = unsafe { ((*info).si_addr() as usize, (*info).si_code == SEGV_ACCERR) };
    // SAFETY: the caller's promise.
    let (pc, sp) = unsafe { registers(&*context.cast::<libc::ucontext_t>()) };
    let ours = |code: &Vec<Range<usize>>| code.iter().any(|range| range.contains(&pc));
    let own_stack = OWN_STACK.with(|own| own.get().is_none_or(|stack| stack.contains(&sp)));
    let at_the_end = fault < sp + GUARD_BYTES && fault + 2 * GUARD_BYTES > sp;
    if !denied
        || own_stack
        || !at_the_end
        || !OUR_CODE.get().is_some_and(ours)
        || OPENED.get().is_some()
    {
        return false;
    }
    let page = fault & !(GUARD_BYTES - 1);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a page without access that a guest's stack ran into is the guard below it.
    let opened = unsafe { libc::mprotect(page as *mut c_void, GUARD_BYTES, access) } == 0;
    if opened {
        OPENED.set(Some((page, fuel.left())));
        fuel.set(-1);
    }
    opened
}

/// The kernel's code for a page that is there and may not be touched.
const SEGV_ACCERR: c_int = 2;

/// The instruction and the stack pointer that a signal found.
#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> (usize, usize) {
    let registers = &context.uc_mcontext.gregs;
    (
        registers[libc::REG_RIP as usize] as usize,
        registers[libc::REG_RSP as usize] as usize,
    )
}

/// The instruction and the stack pointer that a signal found.
#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> (usize, usize) {
    let registers = &context.uc_mcontext;
    (registers.pc as usize, registers.sp as usize)
}

fn own_stack() -> Range<usize> {
    let mut attributes = MaybeUninit::uninit();
    let (mut start, mut bytes) = (std::ptr::null_mut(), 0);
    // SAFETY: the attributes are filled in before they are read, and given back once.
    let known = unsafe {
        libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) == 0 && {
            let known = libc::pthread_attr_getstack(attributes.as_ptr(), &mut start, &mut bytes);
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            known == 0
        }
    };
    if known {
        start as usize..start as usize + bytes
    } else {
        // Everywhere may be our own then, and nothing is opened.
        0..usize::MAX
    }
}

fn our_code() -> Vec<Range<usize>> {
    let mut code: Vec<Range<usize>> = Vec::new();
    // SAFETY: the callback is called before this returns, with a pointer to `code`.
    unsafe { libc::dl_iterate_phdr(Some(add_code), (&raw mut code).cast()) };
    code
}

/// Adds what of a loaded file is code.
///
/// # Safety
/// As [`our_code`] calls it.
unsafe extern "C" fn add_code(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    code: *mut c_void,
) -> c_int {
    // SAFETY: the dynamic linker describes a file that is loaded, and `our_code` gives the list.
    unsafe {
        let (info, code) = (&*info, &mut *code.cast::<Vec<Range<usize>>>());
        for number in 0..usize::from(info.dlpi_phnum) {
            let part = &*info.dlpi_phdr.add(number);
            if part.p_type == libc::PT_LOAD && part.p_flags & libc::PF_X != 0 {
                let start = (info.dlpi_addr + part.p_vaddr) as usize;
                code.push(start..start + part.p_memsz as usize);
            }
        }
    }
    0
}
