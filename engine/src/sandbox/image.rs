//! What an instance looks like after `init`, and how it is put back to that before the next event.
//!
//! An instance that was put back must not be told from a new one by anything a guest can do. What a
//! guest can change is its memory, its mutable globals (the meter's among them), its tables and which
//! segments are dropped. The first two are kept here. Modules that could change the others are known
//! before they run ([`super::Checked::keepable`]) and get a new instance for every event.
//!
//! The image is sparse: most of a small guest's memory is a stack that was never touched. Memory of
//! up to [`BY_HAND_MAX`] is put back by copying the image's pages and zeroing what else is not
//! zero. Larger memory shows a file of its image privately, and the system forgets what was written.
#![allow(unsafe_code)]

use super::memory::{self, BY_HAND_MAX, Linear, SYSTEM_PAGE_BYTES};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::ptr::NonNull;
use wasmer::sys::vm::VMGlobalDefinition;

const PAGE: usize = super::PAGE_BYTES as usize;

/// The value of a global of any type.
type GlobalBytes = [u8; size_of::<VMGlobalDefinition>()];

/// The state of one instance at one moment.
pub(super) struct Image {
    /// The memory's size.
    wasm_pages: u32,
    memory: Kept,
    globals: Vec<GlobalBytes>,
}

enum Kept {
    /// The system pages that are not zeros, by their number, and their bytes one after another.
    Pages { numbers: Vec<u32>, bytes: Vec<u8> },
    /// The memory itself shows the image, a file with this many bytes that are not holes.
    File { bytes: usize },
}

impl Image {
    /// Takes the image of an instance that is not running. `None` when the system has no room for
    /// it: then the instance cannot be kept.
    ///
    /// # Safety
    /// The places must be those of the instance that owns the memory, all of its globals, and its
    /// guest must not be running.
    pub(super) unsafe fn take(
        memory: &Linear,
        globals: &[NonNull<VMGlobalDefinition>],
    ) -> Option<Self> {
        // SAFETY: the guest does not run, and the slice is gone before anything is written.
        let bytes = unsafe { memory.as_slice() };
        let kept = if bytes.len() <= BY_HAND_MAX {
            let mut kept = (Vec::new(), Vec::new());
            for (number, page) in bytes.chunks(SYSTEM_PAGE_BYTES).enumerate() {
                if !memory::is_zero(page) {
                    kept.0.push(number as u32);
                    kept.1.extend_from_slice(page);
                }
            }
            Kept::Pages {
                numbers: kept.0,
                bytes: kept.1,
            }
        } else {
            let (file, kept_bytes) = file_of(bytes).ok()?;
            // SAFETY: the guest does not run, and `bytes` is not used any more. The mapping holds
            // the file's pages from here on.
            unsafe { memory.back_with(&file).ok()? };
            Kept::File { bytes: kept_bytes }
        };
        Some(Self {
            wasm_pages: memory.pages(),
            memory: kept,
            // SAFETY: the places are valid, as the caller promises.
            globals: globals
                .iter()
                .map(|place| unsafe { place.cast::<GlobalBytes>().read() })
                .collect(),
        })
    }

    /// Puts the instance back to this image. False when that failed and the instance must go.
    ///
    /// # Safety
    /// Memory and globals must be those that the image was taken of; the guest must not be running.
    pub(super) unsafe fn put_back(
        &self,
        memory: &Linear,
        globals: &[NonNull<VMGlobalDefinition>],
    ) -> bool {
        for (place, value) in globals.iter().zip(&self.globals) {
            // SAFETY: the places are valid, as the caller promises.
            unsafe { place.cast::<GlobalBytes>().write(*value) };
        }
        // SAFETY: the guest does not run, and no slice is in use.
        if !unsafe { memory.shrink(self.wasm_pages) } {
            return false;
        }
        match &self.memory {
            Kept::Pages { numbers, bytes } => {
                // SAFETY: as above; this is the only slice.
                copy_back(unsafe { memory.as_mut_slice() }, numbers, bytes);
                true
            }
            // SAFETY: as above.
            Kept::File { .. } => unsafe { memory.forget_writes() },
        }
    }

    /// What the image holds, with what the instance keeps of its memory when it ended with this
    /// many pages at most.
    pub(super) fn bytes(&self, pages_max: u32) -> usize {
        let grown = (pages_max - self.wasm_pages) as usize * PAGE;
        let own = match &self.memory {
            Kept::Pages { bytes, .. } => bytes.len() + self.wasm_pages as usize * PAGE,
            Kept::File { bytes } => *bytes,
        };
        own + grown.min(BY_HAND_MAX)
    }
}

fn copy_back(memory: &mut [u8], numbers: &[u32], bytes: &[u8]) {
    let mut next = 0;
    for (&number, page) in numbers.iter().zip(bytes.chunks(SYSTEM_PAGE_BYTES)) {
        let at = number as usize * SYSTEM_PAGE_BYTES;
        memory::clear_touched(&mut memory[next..at]);
        memory[at..at + page.len()].copy_from_slice(page);
        next = at + page.len();
    }
    memory::clear_touched(&mut memory[next..]);
}

/// A file without a name that holds these bytes, its zero pages as holes; and how many are not.
fn file_of(bytes: &[u8]) -> std::io::Result<(std::fs::File, usize)> {
    let mut file = super::child::memory_file()?;
    file.set_len(bytes.len() as u64)?;
    let mut kept_bytes = 0;
    for (number, page) in bytes.chunks(SYSTEM_PAGE_BYTES).enumerate() {
        if !memory::is_zero(page) {
            file.seek(SeekFrom::Start((number * SYSTEM_PAGE_BYTES) as u64))?;
            file.write_all(page)?;
            kept_bytes += page.len();
        }
    }
    Ok((file, kept_bytes))
}
