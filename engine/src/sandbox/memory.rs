//! Where a guest's memory comes from, and what bounds it.
//!
//! Wasmer's own memories reserve 8 GiB of addresses each, and mapping and unmapping that is most of
//! what a new instance costs. Here a thread keeps small mappings of exactly the limit's size and
//! hands them out again after clearing them. Every access is bounds-checked by the compiled code
//! (`MemoryStyle::Dynamic` without a guard), which is what makes small mappings safe; the style is
//! part of the artifact, so [`Tunables::create_vm_memory`] refuses any other.
#![allow(unsafe_code)]

use super::{Limits, PAGE_BYTES};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use wasmer::sys::vm::{
    LinearMemory, VMConfig, VMGlobal, VMGlobalDefinition, VMMemory, VMMemoryDefinition, VMTable,
    VMTableDefinition,
};
use wasmer::{GlobalType, MemoryError, MemoryStyle, MemoryType, Pages, TableStyle, TableType};

const STYLE: MemoryStyle = MemoryStyle::Dynamic {
    offset_guard_size: 0,
};

/// How many mappings a thread keeps for the next instances.
const KEPT_MAX: usize = 4;

/// This much memory is put back and cleared by hand. What lies beyond goes back to the system, which
/// hands it out as zeros again: a fault of about 1 µs for each 4 KiB that is touched again, and so
/// also the most that a waiting instance holds on to.
pub(super) const BY_HAND_MAX: usize = 1 << 20;

/// From here on memory comes in huge pages where the system has them: one fault for 2 MiB instead of
/// 512. A guest that touches all of 16 MiB then costs a quarter.
const HUGE_FROM: usize = 2 << 20;

/// The smallest unit that the system backs with memory.
pub(super) const SYSTEM_PAGE_BYTES: usize = 4_096;

thread_local! {
    static KEPT: RefCell<Vec<Mapping>> = const { RefCell::new(Vec::new()) };
    static MEMORY: Cell<Option<Arc<Linear>>> = const { Cell::new(None) };
    static GLOBALS: RefCell<Vec<NonNull<VMGlobalDefinition>>> = const { RefCell::new(Vec::new()) };
}

/// What belongs to the instance that this thread has just made: its memory, and where its own
/// globals live, in their order.
pub(super) fn take_made() -> (Option<Arc<Linear>>, Vec<NonNull<VMGlobalDefinition>>) {
    (MEMORY.take(), GLOBALS.with_borrow_mut(std::mem::take))
}

/// Gives instances their memory, tables and globals, within the limits.
pub(super) struct Tunables {
    memory_pages: u32,
    table_elements: u32,
    vm: VMConfig,
}

impl Tunables {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            memory_pages: limits.memory_pages(),
            table_elements: limits.table_elements,
            vm: VMConfig {
                wasm_stack_size: Some(limits.stack_bytes),
            },
        }
    }

    fn bounded(&self, table: &TableType) -> TableType {
        let most = table.maximum.unwrap_or(u32::MAX).min(self.table_elements);
        TableType {
            maximum: Some(most),
            ..*table
        }
    }
}

impl wasmer::sys::Tunables for Tunables {
    fn memory_style(&self, _: &MemoryType) -> MemoryStyle {
        STYLE
    }

    fn table_style(&self, _: &TableType) -> TableStyle {
        TableStyle::CallerChecksSignature
    }

    fn create_host_memory(&self, _: &MemoryType, _: &MemoryStyle) -> Result<VMMemory, MemoryError> {
        Err(MemoryError::Generic("rules import no memory".to_owned()))
    }

    unsafe fn create_vm_memory(
        &self,
        ty: &MemoryType,
        style: &MemoryStyle,
        definition: NonNull<VMMemoryDefinition>,
    ) -> Result<VMMemory, MemoryError> {
        if *style != STYLE {
            return Err(MemoryError::Generic(format!(
                "the module was compiled for memory of the style {style:?}"
            )));
        }
        let limit = self
            .memory_pages
            .min(ty.maximum.map_or(u32::MAX, |pages| pages.0));
        let linear = Linear::new(*ty, Pages(limit), self.memory_pages, definition)?;
        let linear = Arc::new(linear);
        MEMORY.set(Some(linear.clone()));
        let memory: Box<dyn LinearMemory + Send + Sync> = Box::new(GuestMemory { ty: *ty, linear });
        Ok(VMMemory::from_custom(memory))
    }

    fn create_host_table(&self, ty: &TableType, style: &TableStyle) -> Result<VMTable, String> {
        VMTable::new(&self.bounded(ty), style)
    }

    unsafe fn create_vm_table(
        &self,
        ty: &TableType,
        style: &TableStyle,
        definition: NonNull<VMTableDefinition>,
    ) -> Result<VMTable, String> {
        // SAFETY: the caller's promise about `definition` is passed on.
        unsafe { VMTable::from_definition(&self.bounded(ty), style, definition) }
    }

    unsafe fn create_vm_global(
        &self,
        ty: GlobalType,
        definition: NonNull<VMGlobalDefinition>,
    ) -> Result<VMGlobal, String> {
        GLOBALS.with_borrow_mut(|globals| globals.push(definition));
        // SAFETY: the caller's promise about `definition` is passed on.
        unsafe { Ok(VMGlobal::new_instance(ty, definition)) }
    }

    fn vmconfig(&self) -> &VMConfig {
        &self.vm
    }
}

/// A private, zeroed mapping.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    /// Part of it shows a file, so it does not read as zeros when it is dropped.
    single_use: AtomicBool,
}

// SAFETY: a mapping belongs to whoever holds this value, on whatever thread.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference nothing can be read or written.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A mapping of this size, all zeros: one that was kept, or a new one.
    fn take(bytes: usize) -> Result<Self, MemoryError> {
        let kept = KEPT.with_borrow_mut(|kept| {
            let at = kept.iter().position(|mapping| mapping.bytes == bytes)?;
            Some(kept.swap_remove(at))
        });
        match kept {
            Some(mapping) => Ok(mapping),
            None => Self::map(bytes),
        }
    }

    fn map(bytes: usize) -> Result<Self, MemoryError> {
        // SAFETY: a new anonymous mapping touches no existing one.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes.max(1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(MemoryError::Region(
                std::io::Error::last_os_error().to_string(),
            ));
        }
        // A huge page for the first byte that is touched would be 2 MiB of real memory for each rule;
        // for much memory they save time. Where the system knows none, nothing is lost.
        let small = bytes.min(HUGE_FROM);
        // SAFETY: advice about the mapping that was just made.
        unsafe {
            libc::madvise(base, small.max(1), libc::MADV_NOHUGEPAGE);
            let large = base.cast::<u8>().add(small).cast();
            libc::madvise(large, bytes - small, libc::MADV_HUGEPAGE);
        }
        match NonNull::new(base.cast()) {
            Some(base) => Ok(Self {
                base,
                bytes,
                single_use: AtomicBool::new(false),
            }),
            None => Err(MemoryError::Region(
                "the system mapped address 0".to_owned(),
            )),
        }
    }

    /// Zeroes a range: by hand where that is quick, and by giving its pages back to the system where
    /// there are many. False when the system refuses.
    fn clear(&self, from: usize, to: usize) -> bool {
        let by_hand = to.min(from.saturating_add(BY_HAND_MAX));
        // SAFETY: the range lies within this mapping, which is readable and writable, and whoever
        // clears it has no other use of it.
        let near =
            unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(from), by_hand - from) };
        clear_touched(near);
        // SAFETY: as above; a private anonymous range reads as zeros afterwards.
        by_hand == to
            || unsafe {
                let far = self.base.as_ptr().add(by_hand);
                libc::madvise(far.cast(), to - by_hand, libc::MADV_DONTNEED) == 0
            }
    }

    /// Keeps the mapping for the next instance, zeroed again where it was used.
    fn give_back(self, used_bytes: usize) {
        if self.single_use.load(Ordering::Relaxed) || !self.clear(0, used_bytes.min(self.bytes)) {
            return;
        }
        // A thread that is ending keeps nothing.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT_MAX {
                kept.push(self);
            }
        });
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes.max(1)) };
    }
}

/// A guest's linear memory, in a mapping that is as large as it can ever get. Held by the instance,
/// through [`GuestMemory`], and by the host that reads, writes and puts it back.
#[derive(Debug)]
pub(super) struct Linear {
    /// `None` only while it is being dropped.
    mapping: Option<Mapping>,
    size: AtomicU32,
    limit: Pages,
    definition: NonNull<VMMemoryDefinition>,
}

// SAFETY: the definition lives in the instance that owns this memory and moves between threads with
// it; whoever writes holds the instance and its guest does not run.
unsafe impl Send for Linear {}
// SAFETY: as above.
unsafe impl Sync for Linear {}

impl Linear {
    fn new(
        ty: MemoryType,
        limit: Pages,
        mapping_pages: u32,
        definition: NonNull<VMMemoryDefinition>,
    ) -> Result<Self, MemoryError> {
        if ty.minimum > limit {
            return Err(MemoryError::MinimumMemoryTooLarge {
                min_requested: ty.minimum,
                max_allowed: limit,
            });
        }
        let mapping = Mapping::take((u64::from(mapping_pages) * PAGE_BYTES) as usize)?;
        let memory = Self {
            mapping: Some(mapping),
            size: AtomicU32::new(ty.minimum.0),
            limit,
            definition,
        };
        memory.publish();
        Ok(memory)
    }

    fn base(&self) -> *mut u8 {
        let mapping = self.mapping.as_ref();
        mapping.map_or(std::ptr::null_mut(), |mapping| mapping.base.as_ptr())
    }

    pub(super) fn pages(&self) -> u32 {
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.pages() as usize * PAGE_BYTES as usize
    }

    /// The most pages that this memory can grow to: our limit, or the module's own below it.
    pub(super) fn limit_pages(&self) -> u32 {
        self.limit.0
    }

    /// The memory as it stands.
    ///
    /// # Safety
    /// The guest must not run, and nothing may write while the slice is in use.
    pub(super) unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping reaches at least to the limit, which the size never exceeds.
        unsafe { std::slice::from_raw_parts(self.base(), self.bytes()) }
    }

    /// As [`Linear::as_slice`], to write to.
    ///
    /// # Safety
    /// The guest must not run, and no other slice of this memory may be in use.
    #[allow(
        clippy::mut_from_ref,
        reason = "the memory is the guest's, not this value's"
    )]
    pub(super) unsafe fn as_mut_slice(&self) -> &mut [u8] {
        // SAFETY: as for `as_slice`.
        unsafe { std::slice::from_raw_parts_mut(self.base(), self.bytes()) }
    }

    /// Gives up what was grown since it had this many pages, zeroed. False when the system refuses.
    ///
    /// # Safety
    /// The guest must not run, and no slice of this memory may be in use.
    pub(super) unsafe fn shrink(&self, pages: u32) -> bool {
        let (from, to) = (pages as usize * PAGE_BYTES as usize, self.bytes());
        if from >= to {
            return true;
        }
        let cleared = self
            .mapping
            .as_ref()
            .is_some_and(|mapping| mapping.clear(from, to));
        if cleared {
            self.size.store(pages, Ordering::Relaxed);
            self.publish();
        }
        cleared
    }

    /// Puts the file's first bytes in the place of the memory's own, privately: what the guest
    /// writes stays its own until [`Linear::forget_writes`].
    ///
    /// # Safety
    /// As for [`Linear::shrink`].
    pub(super) unsafe fn back_with(&self, file: &std::fs::File) -> std::io::Result<()> {
        use std::os::fd::AsRawFd as _;
        // SAFETY: replaces pages of our own mapping; the caller holds no slice of it.
        let mapped = unsafe {
            libc::mmap(
                self.base().cast(),
                self.bytes(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        if let Some(mapping) = &self.mapping {
            mapping.single_use.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Drops every page that was written, so that the file's (or zeros) show again. False when the
    /// system refuses.
    ///
    /// # Safety
    /// As for [`Linear::shrink`].
    pub(super) unsafe fn forget_writes(&self) -> bool {
        // SAFETY: the range lies within this private mapping.
        unsafe { libc::madvise(self.base().cast(), self.bytes(), libc::MADV_DONTNEED) == 0 }
    }

    /// Tells the compiled code where the memory is and how long.
    fn publish(&self) {
        // SAFETY: the definition is a valid place in the instance's context, as `create_vm_memory`
        // was promised, and no compiled code runs while the host is here.
        unsafe {
            self.definition.as_ptr().write(VMMemoryDefinition {
                base: self.base(),
                current_length: self.bytes(),
            });
        }
    }
}

impl Drop for Linear {
    fn drop(&mut self) {
        let used = self.bytes();
        if let Some(mapping) = self.mapping.take() {
            mapping.give_back(used);
        }
    }
}

/// The instance's hold of its memory.
#[derive(Debug)]
struct GuestMemory {
    ty: MemoryType,
    linear: Arc<Linear>,
}

impl LinearMemory for GuestMemory {
    fn ty(&self) -> MemoryType {
        self.ty
    }

    fn size(&self) -> Pages {
        Pages(self.linear.pages())
    }

    fn style(&self) -> MemoryStyle {
        STYLE
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let before = self.size();
        match before.checked_add(delta) {
            Some(after) if after <= self.linear.limit => {
                self.linear.size.store(after.0, Ordering::Relaxed);
                self.linear.publish();
                Ok(before)
            }
            _ => Err(MemoryError::CouldNotGrow {
                current: before,
                attempted_delta: delta,
            }),
        }
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.linear.definition
    }

    fn try_clone(&self) -> Result<Box<dyn LinearMemory + Send + Sync>, MemoryError> {
        Err(MemoryError::InvalidMemory {
            reason: "a rule's memory belongs to one instance".to_owned(),
        })
    }

    fn copy(&self) -> Result<Box<dyn LinearMemory + Send + Sync>, MemoryError> {
        self.try_clone()
    }
}

/// Zeroes what is not zero already, a page of the system at a time: a page that was never touched
/// is only read, and stays unbacked.
pub(super) fn clear_touched(memory: &mut [u8]) {
    for page in memory.chunks_mut(SYSTEM_PAGE_BYTES) {
        if !is_zero(page) {
            page.fill(0);
        }
    }
}

/// Whether all bytes are zero: looked at for every page of every instance after every event, so as
/// quickly as the processor can read.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function needs.
        return unsafe { is_zero_avx2(bytes) };
    }
    is_zero_plain(bytes)
}

/// Compares with zeros as the C library does: it reads twice as much as it has to.
fn is_zero_plain(bytes: &[u8]) -> bool {
    static ZEROS: [u8; SYSTEM_PAGE_BYTES] = [0; SYSTEM_PAGE_BYTES];
    bytes
        .chunks(SYSTEM_PAGE_BYTES)
        .all(|part| *part == ZEROS[..part.len()])
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn is_zero_avx2(bytes: &[u8]) -> bool {
    use std::arch::x86_64::{_mm256_loadu_si256, _mm256_or_si256, _mm256_testz_si256};

    let mut blocks = bytes.chunks_exact(128);
    for block in &mut blocks {
        let at = |offset: usize| {
            // SAFETY: four times 32 bytes of the block, at any alignment.
            unsafe { _mm256_loadu_si256(block.as_ptr().add(offset).cast()) }
        };
        let any = _mm256_or_si256(
            _mm256_or_si256(at(0), at(32)),
            _mm256_or_si256(at(64), at(96)),
        );
        if _mm256_testz_si256(any, any) == 0 {
            return false;
        }
    }
    is_zero_plain(blocks.remainder())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One byte anywhere is seen, whatever the length.
    #[test]
    fn a_byte_anywhere_is_not_zero() {
        for length in [0, 1, 31, 127, 128, 129, 4_095, 4_096, 10_000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes) && is_zero_plain(&bytes));
            for at in (0..length).step_by(37).chain(length.checked_sub(1)) {
                bytes[at] = 1;
                assert!(
                    !is_zero(&bytes) && !is_zero_plain(&bytes),
                    "{at} of {length}"
                );
                bytes[at] = 0;
            }
        }
    }
}
