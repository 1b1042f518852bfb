//! Where a guest's memory comes from, and what bounds it.
//!
//! Wasmer's own memories reserve 8 GiB of addresses each, and mapping and unmapping that is most of
//! what a new instance costs. Here a thread keeps small mappings of exactly the limit's size and
//! hands them out again after clearing them. Every access is bounds-checked by the compiled code
//! (`MemoryStyle::Dynamic` without a guard), which is what makes small mappings safe; the style is
//! part of the artifact, so [`Tunables::create_vm_memory`] refuses any other.
#![allow(unsafe_code)]

use super::{Limits, PAGE_BYTES};
use std::cell::RefCell;
use std::ptr::NonNull;
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

/// Above this, cleared pages go back to the system, which hands them out as zeros again.
const CLEAR_BY_HAND_MAX: usize = 1 << 20;

thread_local! {
    static KEPT: RefCell<Vec<Mapping>> = const { RefCell::new(Vec::new()) };
    /// Where the globals of the instance that was made last live, in their order.
    static GLOBALS: RefCell<Vec<NonNull<VMGlobalDefinition>>> = const { RefCell::new(Vec::new()) };
}

/// The places of the globals of the instance that this thread has just made.
pub(super) fn take_globals() -> Vec<NonNull<VMGlobalDefinition>> {
    GLOBALS.with_borrow_mut(std::mem::take)
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
        let memory = GuestMemory::new(*ty, Pages(limit), self.memory_pages, definition)?;
        let memory: Box<dyn LinearMemory + Send + Sync> = Box::new(memory);
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
        match NonNull::new(base.cast()) {
            Some(base) => Ok(Self { base, bytes }),
            None => Err(MemoryError::Region(
                "the system mapped address 0".to_owned(),
            )),
        }
    }

    /// Keeps the mapping for the next instance, zeroed again where it was used.
    fn give_back(self, used_bytes: usize) {
        let used = used_bytes.min(self.bytes);
        if used > CLEAR_BY_HAND_MAX {
            // SAFETY: the range lies within this private mapping, and reads as zeros afterwards.
            let dropped =
                unsafe { libc::madvise(self.base.as_ptr().cast(), used, libc::MADV_DONTNEED) };
            if dropped != 0 {
                return;
            }
        } else {
            // SAFETY: the range lies within this mapping, which is readable and writable.
            unsafe { self.base.as_ptr().write_bytes(0, used) };
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

/// A guest's linear memory, in a mapping that is as large as it can ever get.
#[derive(Debug)]
struct GuestMemory {
    ty: MemoryType,
    /// `None` only while it is being dropped.
    mapping: Option<Mapping>,
    size: Pages,
    limit: Pages,
    definition: NonNull<VMMemoryDefinition>,
}

// SAFETY: the definition lives in the instance that owns this memory and moves between threads with
// it; nothing here is shared.
unsafe impl Send for GuestMemory {}
// SAFETY: through a shared reference nothing is written.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
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
            ty,
            mapping: Some(mapping),
            size: ty.minimum,
            limit,
            definition,
        };
        memory.publish();
        Ok(memory)
    }

    /// Tells the compiled code where the memory is and how long.
    fn publish(&self) {
        let base = self
            .mapping
            .as_ref()
            .map_or(std::ptr::null_mut(), |mapping| mapping.base.as_ptr());
        // SAFETY: the definition is a valid place in the instance's context, as `create_vm_memory`
        // was promised, and no compiled code runs while the host is here.
        unsafe {
            self.definition.as_ptr().write(VMMemoryDefinition {
                base,
                current_length: self.size.bytes().0,
            });
        }
    }
}

impl LinearMemory for GuestMemory {
    fn ty(&self) -> MemoryType {
        self.ty
    }

    fn size(&self) -> Pages {
        self.size
    }

    fn style(&self) -> MemoryStyle {
        STYLE
    }

    fn grow(&mut self, delta: Pages) -> Result<Pages, MemoryError> {
        let before = self.size;
        match before.checked_add(delta) {
            Some(after) if after <= self.limit => {
                self.size = after;
                self.publish();
                Ok(before)
            }
            _ => Err(MemoryError::CouldNotGrow {
                current: before,
                attempted_delta: delta,
            }),
        }
    }

    fn vmmemory(&self) -> NonNull<VMMemoryDefinition> {
        self.definition
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

impl Drop for GuestMemory {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping.take() {
            mapping.give_back(self.size.bytes().0);
        }
    }
}
