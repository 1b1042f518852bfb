//! Compiled modules on disk. What is loaded from here runs as native code, so every file carries an
//! HMAC under a key of this cache's own; a file that does not fit it is removed and made again.
//!
//! ```text
//! <module's SHA-256>/<key in hex>    machine code, an ELF image | mac 32 | facts, MessagePack | mac 32 | their length, u32 LE
//! secret                             the key of the HMACs, 32 bytes, readable by its owner alone
//! ```
//!
//! The first mac is over the key and the code, the second over the key and the facts: facts
//! are asked for at every start, code when a rule is first used. The code comes first because it is
//! mapped from the file.
//!
//! A module has a folder of its own, because it has a file for each set of limits, and all of them go
//! together: [`Cache::hold`], [`Cache::add_record`] and [`Cache::name_files`] say what a module is needed for,
//! and its folder goes with the last of them. Code that is mapped runs on without its file. A program
//! that embeds the sandbox without a registry says nothing of the kind, and keeps all that it used within
//! the last 30 days.
//!
//! This keeps out whoever may write the folder and not read the secret, and finds damage. Who can act
//! as the engine's own user needs no cache to do so.

use super::module::Facts;
use crate::id::Hash;
use crate::private;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

const SECRET_FILE: &str = "secret";
const MAC_BYTES: usize = 32;
/// Facts are a few numbers: with their mac they fit into this.
const TAIL_BYTES_MAX: u64 = 256;
/// What the name of a file ends in that is being written.
const UNFINISHED: &str = ".new";
/// How often it is noted that a file is in use.
const NOTED_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// How long a file is kept that nothing uses.
const UNUSED_MAX: Duration = Duration::from_secs(30 * 24 * 3_600);
/// How much of a file is read at once.
const PART_BYTES: usize = 64 << 10;

/// A folder of compiled modules.
pub struct Cache {
    folder: PathBuf,
    /// Has taken the secret, and nothing else yet.
    keyed: Hmac<Sha256>,
    needs: Mutex<Needs>,
}

/// The code of a module that one set of limits shaped.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodeFile {
    pub(super) module: Hash,
    /// A hash over all that shaped it.
    pub(super) key: Hash,
}

/// What the modules are needed for.
#[derive(Debug, Default)]
struct Needs {
    /// Whether somebody says so; otherwise nothing is known to be needless.
    known: bool,
    modules: HashMap<Hash, Need>,
}

/// What one module is needed for.
#[derive(Debug, Default)]
struct Need {
    /// Calls that are at work with it, such as an upload.
    holds: usize,
    /// Tenants that have uploaded it.
    records: usize,
    /// Whether a rule in a tenant's file has it.
    in_files: bool,
}

impl Need {
    fn is_none(&self) -> bool {
        self.holds == 0 && self.records == 0 && !self.in_files
    }
}

/// Keeps a module's code from being removed while somebody is at work with it. Whoever lets go last
/// removes it, unless a record or a file has it by then.
#[derive(Debug)]
pub(crate) struct Hold {
    cache: Arc<Cache>,
    module: Hash,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.cache.need(self.module, |need| need.holds -= 1);
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the folder, making it and its secret where they are missing.
    ///
    /// # Errors
    /// When it cannot be made, read or written.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let secret = match secret(folder)? {
            Some(secret) => secret,
            None => {
                let fresh: [u8; 32] = rand::random();
                write(folder, SECRET_FILE, &[&fresh])?;
                // What stands there now counts, should two have made one at once.
                secret(folder)?.unwrap_or(fresh)
            }
        };
        sweep(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            keyed: Hmac::new_from_slice(&secret).map_err(io::Error::other)?,
            needs: Mutex::default(),
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps a module's code while a call is at work with it.
    pub(crate) fn hold(self: &Arc<Self>, module: Hash) -> Hold {
        self.need(module, |need| need.holds += 1);
        Hold {
            cache: self.clone(),
            module,
        }
    }

    /// Notes that a tenant has uploaded a module.
    pub(crate) fn add_record(&self, module: Hash) {
        self.need(module, |need| need.records += 1);
    }

    /// Notes that a tenant has deleted a module: its code goes at once, unless somebody else needs it.
    pub(crate) fn remove_record(&self, module: Hash) {
        self.need(module, |need| need.records = need.records.saturating_sub(1));
    }

    /// Notes which modules the rules in the tenants' files have, instead of those of before.
    pub(crate) fn name_files(&self, modules: &HashSet<Hash>) {
        let before: Vec<Hash> = {
            let needs = self.needs();
            let in_files = needs.modules.iter().filter(|(_, need)| need.in_files);
            in_files.map(|(module, _)| *module).collect()
        };
        for module in before.iter().chain(modules) {
            self.need(*module, |need| need.in_files = modules.contains(module));
        }
    }

    /// Removes the code of all modules that nothing needs, once it is known what is needed; how many they
    /// were. From then on such code goes as soon as nothing needs it.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn remove_needless(&self) -> io::Result<usize> {
        let mut needs = self.needs();
        needs.known = true;
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let module = name.to_str().and_then(|name| name.parse::<Hash>().ok());
            let is_needed = module.is_some_and(|module| needs.modules.contains_key(&module));
            if is_needed || name == SECRET_FILE {
                continue;
            }
            let path = entry.path();
            // An earlier engine kept its files here, without a folder for each module.
            let gone = match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            match gone {
                Ok(()) => removed += 1,
                Err(error) => not_removed(&path, &error),
            }
        }
        Ok(removed)
    }

    /// Whether code of this module, where it is missing, is worth to be made and kept again.
    pub(super) fn needs_module(&self, module: Hash) -> bool {
        let needs = self.needs();
        !needs.known || needs.modules.contains_key(&module)
    }

    fn needs(&self) -> MutexGuard<'_, Needs> {
        self.needs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what a module is needed for, and removes its code when that is nothing any more. Both are one
    /// step, so that nobody finds code that goes the next moment; it is a few calls to the system, none
    /// of which waits for the disk.
    fn need(&self, module: Hash, change: impl FnOnce(&mut Need)) {
        let mut needs = self.needs();
        let need = needs.modules.entry(module).or_default();
        change(need);
        if !need.is_none() {
            return;
        }
        needs.modules.remove(&module);
        if !needs.known {
            return;
        }
        let path = self.module_folder(module);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => not_removed(&path, &error),
            _ => {}
        }
    }

    /// What is known of a module whose code is kept.
    pub(super) fn facts(&self, code: CodeFile) -> Option<Facts> {
        let file = File::open(self.path(code)).ok()?;
        match self.tail(code.key, &file) {
            Ok(Some((facts, _))) => {
                in_use(&file);
                Some(facts)
            }
            Ok(None) => self.damaged(code),
            Err(_) => None,
        }
    }

    /// A file that begins with this machine code. `None` when there is none, or only a damaged one.
    pub(super) fn artifact(&self, code: CodeFile) -> io::Result<Option<File>> {
        let file = match File::open(self.path(code)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        Ok(if self.fits(code.key, &file)? {
            Some(file)
        } else {
            self.damaged(code)
        })
    }

    pub(super) fn keep(&self, code: CodeFile, facts: Facts, artifact: &[u8]) -> io::Result<()> {
        let key = code.key;
        let facts = rmp_serde::to_vec(&facts).map_err(io::Error::other)?;
        let mac = |what, bytes| {
            self.mac(key, what)
                .chain_update(bytes)
                .finalize()
                .into_bytes()
        };
        let parts: [&[u8]; 5] = [
            artifact,
            &mac(b"code", artifact),
            &facts,
            &mac(b"facts", &facts),
            &(facts.len() as u32).to_le_bytes(),
        ];
        let folder = self.module_folder(code.module);
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        write(&folder, &key.to_string(), &parts)
    }

    /// The facts at the end of a file, and where they begin. `None` when they were not kept here.
    fn tail(&self, key: Hash, file: &File) -> io::Result<Option<(Facts, u64)>> {
        let length = file.metadata()?.len();
        let tail_len = length.min(TAIL_BYTES_MAX);
        let mut tail = vec![0; tail_len as usize];
        file.read_exact_at(&mut tail, length - tail_len)?;
        Ok((|| {
            let (rest, facts_len) = tail.split_last_chunk::<4>()?;
            let (rest, mac) = rest.split_last_chunk::<MAC_BYTES>()?;
            let facts_len = u32::from_le_bytes(*facts_len) as usize;
            let facts = rest.get(rest.len().checked_sub(facts_len)?..)?;
            let kept = self
                .mac(key, b"facts")
                .chain_update(facts)
                .verify_slice(mac);
            kept.ok()?;
            let facts = rmp_serde::from_slice(facts).ok()?;
            let at = length - (facts_len + MAC_BYTES + 4) as u64;
            Some((facts, at))
        })())
    }

    /// Whether the code in this file was kept here.
    fn fits(&self, key: Hash, file: &File) -> io::Result<bool> {
        let Some((_, end)) = self.tail(key, file)? else {
            return Ok(false);
        };
        let Some(end) = end.checked_sub(MAC_BYTES as u64) else {
            return Ok(false);
        };
        let mut mac = self.mac(key, b"code");
        let mut part = vec![0; PART_BYTES];
        let mut at = 0;
        while at < end {
            let part = &mut part[..PART_BYTES.min((end - at) as usize)];
            file.read_exact_at(part, at)?;
            mac.update(part);
            at += part.len() as u64;
        }
        let mut kept = [0; MAC_BYTES];
        file.read_exact_at(&mut kept, end)?;
        Ok(mac.verify_slice(&kept).is_ok())
    }

    fn mac(&self, key: Hash, what: &[u8]) -> Hmac<Sha256> {
        self.keyed.clone().chain_update(what).chain_update(key.0)
    }

    /// Removes a file that is not what was kept.
    fn damaged<T>(&self, code: CodeFile) -> Option<T> {
        let path = self.path(code);
        tracing::warn!(file = %path.display(), "a compiled module in the cache is damaged or was not made here: removing it");
        let _ = std::fs::remove_file(path);
        None
    }

    fn module_folder(&self, module: Hash) -> PathBuf {
        self.folder.join(module.to_string())
    }

    fn path(&self, code: CodeFile) -> PathBuf {
        self.module_folder(code.module).join(code.key.to_string())
    }
}

/// It is found again at the next start.
fn not_removed(path: &Path, error: &io::Error) {
    tracing::warn!(%error, path = %path.display(), "machine code that nothing needs cannot be removed");
}

/// `None` where there is none. One that is damaged, as by a power cut, is as good as none: every module
/// is compiled once more.
fn secret(folder: &Path) -> io::Result<Option<[u8; 32]>> {
    let path = folder.join(SECRET_FILE);
    let bytes = match private::read_bytes(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|error| io::Error::other(format!("`{SECRET_FILE}`: {error}")))?,
    };
    let secret = bytes.try_into().ok();
    if secret.is_none() {
        tracing::warn!(file = %path.display(), "the secret of the cache of compiled modules is damaged: making a new one, and every module is compiled once more");
    }
    Ok(secret)
}

/// Notes that a file is in use, about once a day.
fn in_use(file: &File) {
    let now = SystemTime::now();
    let noted = file.metadata().and_then(|about| about.modified());
    if noted.is_ok_and(|noted| now.duration_since(noted).is_ok_and(|age| age > NOTED_EVERY)) {
        // Otherwise it is compiled once more some day.
        let _ = file.set_modified(now);
    }
}

/// Removes what no start asked for in a long time: code that another version of the engine or other limits
/// shaped, files that were not written to their end, and folders in which nothing is left.
fn sweep(folder: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sweep(&entry.path())?;
            // Which takes none that has something in it.
            let _ = std::fs::remove_dir(entry.path());
            continue;
        }
        let kept_for = match entry.file_name().to_string_lossy() {
            name if name == SECRET_FILE => continue,
            name if name.ends_with(UNFINISHED) => NOTED_EVERY,
            _ => UNUSED_MAX,
        };
        let changed = entry.metadata().and_then(|about| about.modified());
        if changed.is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age > kept_for)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Writes a file whole or not at all. It is not flushed to the disk: what a power cut damages is
/// found by its mac.
fn write(folder: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    let fresh = folder.join(format!("{name}.{:016x}{UNFINISHED}", rand::random::<u64>()));
    let written = (|| {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        for part in parts {
            file.write_all(part)?;
        }
        std::fs::rename(&fresh, folder.join(name))
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Compiler, Limits, Module};
    use std::collections::BTreeSet;

    /// The code of this module in this cache, under these limits.
    fn file_of(wasm: &[u8], limits: &Limits) -> CodeFile {
        let module = Hash::of(wasm);
        let key = super::super::compile::key(module, limits);
        CodeFile { module, key }
    }

    /// What stands in the folder: the modules that have code, for the secret is always there.
    fn modules(cache: &Cache) -> BTreeSet<String> {
        let entries = std::fs::read_dir(cache.folder()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != SECRET_FILE).collect()
    }

    /// Damage anywhere in a file, a file under another's name, and another cache's secret are all
    /// found; the module is compiled again and kept again.
    #[test]
    fn what_was_not_kept_here_is_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(folder.path()).unwrap());
        let limits = Arc::new(Limits::default());
        let wasm: Arc<[u8]> = hooksieve_policies::ALL[0].wasm.into();
        let get = |cache: &Arc<Cache>| {
            Module::get(wasm.clone(), Compiler::HERE, Some(cache), &limits).unwrap()
        };
        let module = get(&cache);
        let key = file_of(&wasm, &limits);
        let path = cache.path(key);
        let good = std::fs::read(&path).unwrap();
        assert!(cache.facts(key).is_some());
        assert!(cache.artifact(key).unwrap().is_some());

        let end = good.len();
        for at in [0, 4_000, end / 2, end - 80, end - 40, end - 30, end - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(cache.artifact(key).unwrap().is_none(), "byte {at}");
            assert!(!path.exists());
        }
        for length in [0, 3, 35, 60, end / 2, end - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(cache.artifact(key).unwrap().is_none(), "{length} bytes");
        }
        let other = CodeFile {
            key: Hash::of(b"another"),
            ..key
        };
        std::fs::write(cache.path(other), &good).unwrap();
        assert!(cache.facts(other).is_none());

        // The module that was found before comes back by itself.
        assert!(module.code().is_ok());
        assert_eq!(std::fs::read(&path).unwrap().len(), good.len());

        std::fs::remove_file(folder.path().join(SECRET_FILE)).unwrap();
        let cache = Arc::new(Cache::open(folder.path()).unwrap());
        assert!(cache.facts(key).is_none());
        assert!(get(&cache).code().is_ok());
        assert!(cache.artifact(key).unwrap().is_some());
    }

    #[test]
    fn a_damaged_secret_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SECRET_FILE);
        std::fs::write(&path, "short").unwrap();
        Cache::open(folder.path()).unwrap();
        let fresh = std::fs::read(&path).unwrap();
        assert_eq!(fresh.len(), 32);
        Cache::open(folder.path()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), fresh);
    }

    #[test]
    fn what_nothing_uses_is_removed_some_day() {
        let folder = tempfile::tempdir().unwrap();
        let days = |days: u64| SystemTime::now() - Duration::from_secs(days * 24 * 3_600);
        let file = |name: &str, age: u64| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::create(path).unwrap();
            file.set_modified(days(age)).unwrap();
        };
        std::fs::write(folder.path().join(SECRET_FILE), [7; 32]).unwrap();
        file("one/used", 29);
        file("one/unused", 31);
        file("one/a.new", 2);
        file("one/b.new", 0);
        file("two/unused", 31);
        file("of an earlier engine", 31);
        let cache = Cache::open(folder.path()).unwrap();
        assert_eq!(modules(&cache), BTreeSet::from(["one".to_owned()]));
        let mut left: Vec<_> = std::fs::read_dir(folder.path().join("one"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["b.new", "used"]);
        let used = File::open(folder.path().join("one/used")).unwrap();
        in_use(&used);
        assert!(used.metadata().unwrap().modified().unwrap() > days(1));
    }

    /// Machine code goes with the last thing that needs its module, whatever that is, and all files of the
    /// module go together.
    #[test]
    fn code_goes_with_the_last_that_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(folder.path()).unwrap());
        let module = Hash::of(b"a module");
        let make = || {
            let path = folder.path().join(module.to_string());
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("under some limits"), "code").unwrap();
            std::fs::write(path.join("under other limits"), "code").unwrap();
        };
        let is_kept = || !modules(&cache).is_empty();
        make();
        // Nobody has said what is needed.
        drop(cache.hold(module));
        assert!(is_kept() && cache.needs_module(module));
        cache.add_record(module);
        cache.remove_needless().unwrap();
        assert!(is_kept());

        // Two tenants.
        cache.add_record(module);
        cache.remove_record(module);
        assert!(is_kept());
        cache.remove_record(module);
        assert!(!is_kept() && !cache.needs_module(module));

        // An upload that is refused, beside another that is not.
        let (one, other) = (cache.hold(module), cache.hold(module));
        make();
        cache.add_record(module);
        drop(one);
        assert!(is_kept());
        cache.remove_record(module);
        assert!(is_kept(), "the other is at work with it");
        drop(other);
        assert!(!is_kept());

        // A rule in a file, also while a tenant uploads and deletes the same module.
        cache.name_files(&HashSet::from([module]));
        make();
        cache.add_record(module);
        cache.remove_record(module);
        assert!(is_kept());
        cache.name_files(&HashSet::from([module]));
        assert!(is_kept());
        cache.name_files(&HashSet::new());
        assert!(!is_kept());
    }

    #[test]
    fn what_nothing_needs_is_removed_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(folder.path()).unwrap());
        let limits = Arc::new(Limits::default());
        let [one, two] = [0, 1].map(|at| -> Arc<[u8]> { hooksieve_policies::ALL[at].wasm.into() });
        for wasm in [&one, &two] {
            Module::get(wasm.clone(), Compiler::HERE, Some(&cache), &limits).unwrap();
        }
        std::fs::write(folder.path().join("a".repeat(64)), "of an earlier engine").unwrap();
        std::fs::write(folder.path().join("b.new"), "not whole").unwrap();
        cache.add_record(Hash::of(&one));
        assert_eq!(cache.remove_needless().unwrap(), 3);
        assert_eq!(
            modules(&cache),
            BTreeSet::from([Hash::of(&one).to_string()])
        );
        assert!(cache.facts(file_of(&one, &limits)).is_some());
        // A module that is gone is not compiled for the events that were still to be asked of it.
        let two = Module::get(two, Compiler::HERE, Some(&cache), &limits).unwrap();
        cache.remove_needless().unwrap();
        let error = two.code().unwrap_err().to_string();
        assert!(error.contains("its module was deleted"), "{error}");
        assert_eq!(modules(&cache).len(), 1);
    }
}
