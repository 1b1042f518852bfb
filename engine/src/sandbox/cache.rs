//! Compiled modules on disk. What is loaded from here runs as native code, so every file carries an
//! HMAC under a key of this cache's own; a file that does not fit it is removed and made again.
//!
//! ```text
//! <key in hex>    machine code, an ELF image | mac 32 | facts, MessagePack | mac 32 | their length, u32 LE
//! secret          the key of the HMACs, 32 bytes, readable by its owner alone
//! ```
//!
//! The first mac is over the file's name and the code, the second over the name and the facts: facts
//! are asked for at every start, code when a rule is first used. The code comes first because it is
//! mapped from the file.
//!
//! This keeps out whoever may write the folder and not read the secret, and finds damage. Who can act
//! as the engine's own user needs no cache to do so.

use super::module::Facts;
use crate::id::Hash;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
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
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is known of the module whose code is kept under this key.
    pub(super) fn facts(&self, key: Hash) -> Option<Facts> {
        let file = File::open(self.path(key)).ok()?;
        match self.tail(key, &file) {
            Ok(Some((facts, _))) => {
                in_use(&file);
                Some(facts)
            }
            Ok(None) => self.damaged(key),
            Err(_) => None,
        }
    }

    /// A file that begins with the machine code that is kept under this key. `None` when there is
    /// none, or only a damaged one.
    pub(super) fn artifact(&self, key: Hash) -> io::Result<Option<File>> {
        let file = match File::open(self.path(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        Ok(if self.fits(key, &file)? {
            Some(file)
        } else {
            self.damaged(key)
        })
    }

    pub(super) fn keep(&self, key: Hash, facts: Facts, artifact: &[u8]) -> io::Result<()> {
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
        write(&self.folder, &key.to_string(), &parts)
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
    fn damaged<T>(&self, key: Hash) -> Option<T> {
        let path = self.path(key);
        tracing::warn!(file = %path.display(), "a compiled module in the cache is damaged or was not made here: removing it");
        let _ = std::fs::remove_file(path);
        None
    }

    fn path(&self, key: Hash) -> PathBuf {
        self.folder.join(key.to_string())
    }
}

/// `None` where there is none. One that is damaged, as by a power cut, is as good as none: every module
/// is compiled once more.
fn secret(folder: &Path) -> io::Result<Option<[u8; 32]>> {
    let path = folder.join(SECRET_FILE);
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
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

/// Removes what no start asked for in a long time: modules that rules no longer use, code that another
/// version of the engine or other limits shaped, and files that were not written to their end.
fn sweep(folder: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
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
    use std::sync::Arc;

    /// Damage anywhere in a file, a file under another's name, and another cache's secret are all
    /// found; the module is compiled again and kept again.
    #[test]
    fn what_was_not_kept_here_is_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(folder.path()).unwrap());
        let limits = Arc::new(Limits::default());
        let wasm: Arc<[u8]> = hooksieve_policies::ALL[0].wasm.into();
        let get = |cache: &Arc<Cache>| {
            Module::get(wasm.clone(), Compiler::Here, Some(cache), &limits).unwrap()
        };
        let module = get(&cache);
        let key = super::super::compile::key(module.hash(), &limits);
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
        let other = Hash::of(b"another");
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
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(days(age)).unwrap();
        };
        std::fs::write(folder.path().join(SECRET_FILE), [7; 32]).unwrap();
        file("used", 29);
        file("unused", 31);
        file("a.new", 2);
        file("b.new", 0);
        Cache::open(folder.path()).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["b.new", "secret", "used"]);
        let used = File::open(folder.path().join("used")).unwrap();
        in_use(&used);
        assert!(used.metadata().unwrap().modified().unwrap() > days(1));
    }
}
