//! A module that may run: what the check found out about it, and its machine code, which is in memory
//! while instances of it live and otherwise on disk.

use super::cache::{Cache, CodeFile};
use super::compile::{self, Code};
use super::metering::OurGlobals;
use super::{Checked, Compiler, CompilerTime, Error, Form, Limits, Refused};
use crate::id::Hash;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{ThreadId, current};

/// A module that was found within the contract and compiled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Module(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hash: Hash,
    facts: Facts,
    source: Source,
    /// Whether its calls are followed, by two imports more.
    followed: bool,
}

/// What the check and the compiler found, as far as anyone asks later. Kept in the cache with the code.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    pub(super) size_bytes: usize,
    globals: u32,
    init: bool,
    command: bool,
    keepable: bool,
    start_fuel: u64,
    instance_bytes: usize,
    /// What its machine code takes on the disk.
    code_bytes: u64,
}

impl Facts {
    fn new(checked: &Checked<'_>, artifact: &[u8]) -> Self {
        Self {
            size_bytes: checked.wasm.len(),
            globals: checked.globals,
            init: checked.init,
            command: checked.form == Form::Command,
            keepable: checked.keepable,
            start_fuel: checked.start_fuel,
            instance_bytes: checked.instance_bytes,
            code_bytes: artifact.len() as u64,
        }
    }
}

#[derive(Debug)]
enum Source {
    /// Nowhere else: the code stays in memory.
    Held(Arc<Code>),
    Cached(Cached),
}

#[derive(Debug)]
struct Cached {
    cache: Arc<Cache>,
    file: CodeFile,
    /// For the day the cache has lost the code.
    wasm: Arc<[u8]>,
    compiler: Compiler,
    limits: Arc<Limits>,
    /// For each thread its own: see [`compile::load_file`].
    loaded: Mutex<Vec<(ThreadId, Weak<Code>)>>,
}

impl Module {
    /// Compiles a module, or finds it in the cache.
    pub(super) fn get(
        wasm: Arc<[u8]>,
        compiler: Compiler,
        cache: Option<&Arc<Cache>>,
        limits: &Arc<Limits>,
    ) -> Result<Self, Refused> {
        Self::get_timed(wasm, compiler, cache, limits, &mut CompilerTime::default())
    }

    /// The same, and adds the time that the compiler took, also where it refused.
    pub(super) fn get_timed(
        wasm: Arc<[u8]>,
        compiler: Compiler,
        cache: Option<&Arc<Cache>>,
        limits: &Arc<Limits>,
        time: &mut CompilerTime,
    ) -> Result<Self, Refused> {
        let hash = Hash::of(&wasm);
        let file = file_of(hash, limits);
        let known = cache.and_then(|cache| cache.facts(file));
        let (facts, source) = match (cache, known) {
            (Some(cache), Some(facts)) => {
                // The limit may be another since it was kept.
                compiler.within(facts.code_bytes, facts.size_bytes)?;
                (facts, cached(cache, file, wasm, compiler, limits))
            }
            (cache, _) => {
                let checked = super::check::check(&wasm, limits)?;
                let artifact = compiler.compile(&checked, limits, time)?;
                let facts = Facts::new(&checked, &artifact);
                let held = Source::Held(Arc::new(load(&artifact, limits)?));
                let held = Self(Arc::new(Inner {
                    hash,
                    facts,
                    source: held,
                    followed: false,
                }));
                held.try_instance(limits)?;
                let kept = cache.filter(|cache| keep(cache, file, facts, &artifact));
                let Some(cache) = kept else {
                    return Ok(held);
                };
                (facts, cached(cache, file, wasm, compiler, limits))
            }
        };
        Ok(Self(Arc::new(Inner {
            hash,
            facts,
            source,
            followed: false,
        })))
    }

    /// Compiles a module whose calls are followed, in this process and for it alone.
    pub(super) fn followed(wasm: &[u8], limits: &Limits) -> Result<Self, Refused> {
        let checked = super::check::check(wasm, limits)?;
        let followed = super::profile::follow(wasm)?;
        let code = compile::compile(&checked.with(&followed), limits)?;
        Ok(Self(Arc::new(Inner {
            hash: Hash::of(wasm),
            facts: Facts::new(&checked, &code),
            source: Source::Held(Arc::new(load(&code, limits)?)),
            followed: true,
        })))
    }

    pub(super) fn is_followed(&self) -> bool {
        self.0.followed
    }

    /// Makes an instance, which finds segments that do not fit and imports of the wrong type.
    fn try_instance(&self, limits: &Arc<Limits>) -> Result<(), Refused> {
        let tried = if self.is_command() {
            super::command::try_instance(self, limits)
        } else {
            super::instance::try_instance(self, limits)
        };
        tried.map_err(|error| Refused::Link {
            message: match error {
                Error::Engine { message } => message,
                error => error.to_string(),
            },
        })
    }

    /// The SHA-256 of the wasm: the module's name.
    pub fn hash(&self) -> Hash {
        self.0.hash
    }

    /// The size of the wasm.
    pub fn size_bytes(&self) -> usize {
        self.0.facts.size_bytes
    }

    /// What its machine code takes on the disk.
    pub fn code_bytes(&self) -> u64 {
        self.0.facts.code_bytes
    }

    /// Whether an instance can be put back and serve one event after another. A module that changes
    /// its tables or drops segments gets a new instance for every event.
    pub fn keepable(&self) -> bool {
        self.0.facts.keepable
    }

    /// What a new instance costs an event of a module that cannot be put back.
    pub(super) fn start_fuel(&self) -> u64 {
        self.0.facts.start_fuel
    }

    /// What an instance and its code hold in memory besides linear memory, about.
    pub(super) fn instance_bytes(&self) -> usize {
        self.0.facts.instance_bytes
    }

    /// Whether it is a WASI program and not a reactor.
    pub(super) fn is_command(&self) -> bool {
        self.0.facts.command
    }

    pub(super) fn has_init(&self) -> bool {
        self.0.facts.init
    }

    pub(super) fn globals(&self) -> OurGlobals {
        OurGlobals::after(self.0.facts.globals)
    }

    /// The machine code, loaded where it is not.
    pub(super) fn code(&self) -> Result<Arc<Code>, Error> {
        match &self.0.source {
            Source::Held(code) => Ok(code.clone()),
            Source::Cached(cached) => cached.code(self),
        }
    }
}

impl Cached {
    fn code(&self, module: &Module) -> Result<Arc<Code>, Error> {
        let here = current().id();
        let known = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            loaded.retain(|(_, code)| code.strong_count() > 0);
            let known = loaded.iter().find(|(thread, _)| *thread == here);
            known.and_then(|(_, code)| code.upgrade())
        };
        if let Some(code) = known {
            return Ok(code);
        }
        let code = self.load(module);
        let code = Arc::new(code.map_err(|message| Error::Engine { message })?);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.push((here, Arc::downgrade(&code)));
        Ok(code)
    }

    #[allow(unsafe_code)]
    fn load(&self, module: &Module) -> Result<Code, String> {
        let kept = self.cache.artifact(self.file);
        let kept = kept.map_err(|error| format!("its machine code cannot be read: {error}"))?;
        if let Some(file) = kept {
            // SAFETY: the cache gives back only what it can authenticate, under a key that holds the
            // limits; it never writes to a file that it has kept. `code` keeps the threads apart.
            return unsafe { compile::load_file(&file, &self.limits) };
        }
        // Its code is not lost but gone with it. Made again for the events that are still under way, it would
        // be compiled at nobody's cost, and stay.
        if !self.cache.needs_module(self.file.module) {
            return Err("its module was deleted".to_owned());
        }
        tracing::warn!(module = %module.hash(), "the cache of compiled modules has lost it: compiling it again");
        let made = super::check::check(&self.wasm, &self.limits).and_then(|checked| {
            let compiler = self.compiler;
            let artifact =
                compiler.compile(&checked, &self.limits, &mut CompilerTime::default())?;
            keep(&self.cache, self.file, module.0.facts, &artifact);
            load(&artifact, &self.limits)
        });
        made.map_err(|refused| refused.to_string())
    }
}

/// Where the code of a module is under these limits.
pub(super) fn file_of(module: Hash, limits: &Limits) -> CodeFile {
    let key = compile::key(module, limits);
    CodeFile { module, key }
}

fn cached(
    cache: &Arc<Cache>,
    file: CodeFile,
    wasm: Arc<[u8]>,
    compiler: Compiler,
    limits: &Arc<Limits>,
) -> Source {
    Source::Cached(Cached {
        cache: cache.clone(),
        file,
        wasm,
        compiler,
        limits: limits.clone(),
        loaded: Mutex::default(),
    })
}

/// Whether the code is in the cache now. A cache that cannot be written makes nothing fail.
fn keep(cache: &Cache, file: CodeFile, facts: Facts, artifact: &[u8]) -> bool {
    match cache.keep(file, facts, artifact) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, folder = %cache.folder().display(), "a compiled module could not be cached: it stays in memory");
            false
        }
    }
}

#[allow(unsafe_code)]
fn load(artifact: &[u8], limits: &Limits) -> Result<Code, Refused> {
    // SAFETY: the bytes come from our compiler.
    unsafe { compile::load(artifact, limits) }.map_err(|message| Refused::Compiler { message })
}
