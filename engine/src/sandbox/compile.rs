//! From a checked module to machine code. [`engine`] holds every compiler setting.

use super::memory::Tunables;
use super::metering::Metering;
use super::{Checked, Limits, Refused};
use crate::id::Hash;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd as _;
use std::sync::{OnceLock, PoisonError, RwLock};
use wasmer::sys::{
    CompilerConfig, Cranelift, CraneliftOptLevel, EngineBuilder, Features, NativeEngineExt,
};

/// The machine code of a module, as [`load`] takes it.
pub(super) fn compile(checked: &Checked<'_>, limits: &Limits) -> Result<Vec<u8>, Refused> {
    let engine = engine(limits, checked);
    let refused = |message: String| Refused::Compiler { message };
    // Names and other custom sections would be kept beside every copy of the code, however many there are.
    let wasm = super::profile::strip(checked.wasm).map_err(refused)?;
    let code = Code::map(engine, |engine| wasmer::Module::new(engine, &wasm));
    let code = code.map_err(|error| refused(error.to_string()))?;
    let artifact = code
        .module
        .serialize()
        .map_err(|error| refused(error.to_string()))?;
    Ok(artifact.to_vec())
}

/// How much machine code a module may become for its size, and how much besides. Twenty times is much for
/// what compilers write; hundreds of times is what somebody wrote who wants it.
const CODE_BYTES_PER_BYTE: u64 = 32;
const CODE_BYTES_BASE: u64 = 256 << 10;

/// How much machine code a module of this size may become, of `most` that any may.
pub(super) fn code_bytes_max(wasm_bytes: usize, most: u64) -> u64 {
    let for_size = (wasm_bytes as u64).saturating_mul(CODE_BYTES_PER_BYTE);
    for_size.saturating_add(CODE_BYTES_BASE).min(most)
}

/// That a module of this size may become so much machine code.
pub(super) fn within(bytes: u64, wasm_bytes: usize, most: u64) -> Result<(), Refused> {
    let limit = code_bytes_max(wasm_bytes, most);
    if bytes > limit {
        return Err(Refused::Code { bytes, limit });
    }
    Ok(())
}

/// An engine for one module: every setting of the compiler is here. Metering is made for
/// one module, and an engine frees code only when it is dropped: so, one each.
fn engine(limits: &Limits, checked: &Checked<'_>) -> wasmer::Engine {
    let mut compiler = Cranelift::new();
    compiler.opt_level(CraneliftOptLevel::Speed);
    // NaN bit patterns are the one thing in which processors differ.
    compiler.canonicalize_nans(true);
    // An ELF image can be mapped from its file; wasmer's own format is read into memory whole.
    compiler.experimental_artifact(true);
    compiler.push_middleware(Metering::new(checked, limits));
    let mut features = Features::none();
    features.bulk_memory(true);
    features.multi_value(true);
    features.reference_types(true);
    let mut engine: wasmer::Engine = EngineBuilder::new(compiler)
        .set_features(Some(features))
        .engine()
        .into();
    engine.set_tunables(Tunables::new(limits));
    engine
}

/// Machine code with the engine that owns it: it lives as long as both.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) module: ManuallyDrop<wasmer::Module>,
    engine: ManuallyDrop<wasmer::Engine>,
}

/// Written while code is unmapped, read while it is mapped. Wasmer unmaps code and only then takes it
/// out of its table of what is where; new code that another thread maps there in between would be
/// found to overlap, and the table be unusable for the whole process.
static UNMAPPING: RwLock<()> = RwLock::new(());

impl Code {
    fn map<E>(
        engine: wasmer::Engine,
        module: impl FnOnce(&wasmer::Engine) -> Result<wasmer::Module, E>,
    ) -> Result<Self, E> {
        let _mapping = UNMAPPING.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Self {
            module: ManuallyDrop::new(module(&engine)?),
            engine: ManuallyDrop::new(engine),
        })
    }

    /// For one instance, which must go before this.
    pub(super) fn store(&self) -> wasmer::Store {
        wasmer::Store::new(wasmer::Engine::clone(&self.engine))
    }
}

#[allow(unsafe_code)]
impl Drop for Code {
    fn drop(&mut self) {
        let _unmapping = UNMAPPING.write().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: neither is used again.
        unsafe {
            ManuallyDrop::drop(&mut self.module);
            ManuallyDrop::drop(&mut self.engine);
        }
    }
}

/// Loads what [`compile`] made.
///
/// # Safety
/// It is run as native code: the bytes must be what [`compile`] gave for these limits.
#[allow(unsafe_code)]
pub(super) unsafe fn load(artifact: &[u8], limits: &Limits) -> Result<Code, String> {
    // SAFETY: the caller's promise.
    let code = Code::map(headless(limits), |engine| unsafe {
        wasmer::Module::deserialize(engine, artifact)
    });
    code.map_err(|error| error.to_string())
}

/// As [`load`], from a file that begins with it. The file is mapped: of the code, only what runs is in
/// memory, a tenth of what [`load`] takes.
///
/// # Safety
/// As for [`load`]; nobody may write to the file while the code lives. And the code must stay on one
/// thread: when it traps, wasmer looks the place up in the file through one descriptor, whose
/// position two threads would move under each other.
#[allow(unsafe_code)]
pub(super) unsafe fn load_file(file: &File, limits: &Limits) -> Result<Code, String> {
    // The very file that was looked at, whatever its name leads to by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the caller's promise.
    let code = Code::map(headless(limits), |engine| unsafe {
        wasmer::Module::deserialize_from_file(engine, path)
    });
    code.map_err(|error| error.to_string())
}

/// An engine without a compiler, which costs little to make: one for each module.
fn headless(limits: &Limits) -> wasmer::Engine {
    let mut engine: wasmer::Engine = EngineBuilder::headless().engine().into();
    engine.set_tunables(Tunables::new(limits));
    engine
}

/// The name of a module's machine code: a hash over everything that shaped it. What shapes it beside
/// the module and the limits is the source of this folder's compiling half, wasmer, and this machine.
pub(super) fn key(module: Hash, limits: &Limits) -> Hash {
    const SHAPED_BY: [&str; 6] = [
        include_str!("compile.rs"),
        include_str!("command.rs"),
        include_str!("metering.rs"),
        include_str!("prices.rs"),
        include_str!("check.rs"),
        include_str!("memory.rs"),
    ];
    /// Has taken what is the same for every module: the sources are ten times the size of a rule.
    static SAME: OnceLock<Sha256> = OnceLock::new();
    let same = SAME.get_or_init(|| {
        let mut hasher = Sha256::new();
        for text in SHAPED_BY {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        let target = wasmer::sys::Target::default();
        hasher.chain_update(format!(
            "wasmer {}, {} with {:?}",
            wasmer::sys::vm::VERSION,
            target.triple(),
            target.cpu_features(),
        ))
    });
    let hasher = same.clone().chain_update(format!(
        ", {} pages, {} elements, {} bytes, {module}",
        limits.memory_pages(),
        limits.table_elements,
        limits.module_bytes,
    ));
    Hash(hasher.finalize().into())
}
