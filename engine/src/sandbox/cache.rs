//! Compiled modules on disk. What is loaded from here runs as native code, so every file carries an
//! HMAC under a key of this cache's own; a file that does not fit it is removed and made again.
//!
//! ```text
//! <key in hex>    mac 32 | length of the facts, u32 LE | facts, MessagePack | mac 32 | machine code
//! secret          the key of the HMACs, 32 bytes, readable by its owner alone
//! ```
//!
//! The first mac is over the file's name and the facts, the second over the name and the code: facts
//! are asked for at every start, code when a rule is first used.
//!
//! This keeps out whoever may write the folder and not read the secret, and finds damage. Who can act
//! as the engine's own user needs no cache to do so.

use super::module::Facts;
use crate::id::Hash;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const SECRET_FILE: &str = "secret";
const MAC_BYTES: usize = 32;
/// Facts are a few numbers.
const FACTS_BYTES_MAX: usize = 1_024;

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
        let secret = match secret(folder) {
            Ok(secret) => secret,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fresh: [u8; 32] = rand::random();
                write(folder, SECRET_FILE, &[&fresh])?;
                // What stands there now counts, should two have made one at once.
                secret(folder)?
            }
            Err(error) => return Err(error),
        };
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
        let mut file = File::open(self.path(key)).ok()?;
        let mut head = vec![0; MAC_BYTES + 4 + FACTS_BYTES_MAX];
        let read = read_up_to(&mut file, &mut head).ok()?;
        let (facts, _) = self
            .split(key, &head[..read])
            .or_else(|| self.damaged(key))?;
        Some(facts)
    }

    /// The machine code that is kept under this key.
    pub(super) fn artifact(&self, key: Hash) -> Option<Vec<u8>> {
        let mut bytes = std::fs::read(self.path(key)).ok()?;
        let start = self.split(key, &bytes).and_then(|(_, at)| {
            let (mac, code) = bytes.get(at..)?.split_at_checked(MAC_BYTES)?;
            self.fits(key, b"code", code, mac).then_some(at + MAC_BYTES)
        });
        match start {
            Some(start) => {
                bytes.drain(..start);
                Some(bytes)
            }
            None => self.damaged(key),
        }
    }

    pub(super) fn keep(&self, key: Hash, facts: Facts, artifact: &[u8]) -> io::Result<()> {
        let facts = rmp_serde::to_vec(&facts).map_err(io::Error::other)?;
        let parts: [&[u8]; 5] = [
            &self.mac(key, b"facts", &facts).finalize().into_bytes(),
            &(facts.len() as u32).to_le_bytes(),
            &facts,
            &self.mac(key, b"code", artifact).finalize().into_bytes(),
            artifact,
        ];
        write(&self.folder, &key.to_string(), &parts)
    }

    /// The facts at the beginning of a file, and where they end.
    fn split(&self, key: Hash, bytes: &[u8]) -> Option<(Facts, usize)> {
        let (mac, rest) = bytes.split_at_checked(MAC_BYTES)?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let facts = rest.get(..length)?;
        if !self.fits(key, b"facts", facts, mac) {
            return None;
        }
        let facts = rmp_serde::from_slice(facts).ok()?;
        Some((facts, MAC_BYTES + 4 + length))
    }

    fn mac(&self, key: Hash, what: &[u8], bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(what);
        mac.update(&key.0);
        mac.update(bytes);
        mac
    }

    fn fits(&self, key: Hash, what: &[u8], bytes: &[u8], mac: &[u8]) -> bool {
        self.mac(key, what, bytes).verify_slice(mac).is_ok()
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

fn secret(folder: &Path) -> io::Result<[u8; 32]> {
    let path = folder.join(SECRET_FILE);
    let bytes = std::fs::read(&path)?;
    bytes.try_into().map_err(|_| {
        io::Error::other(format!(
            "{} is damaged; remove it, and every module is compiled once more",
            path.display()
        ))
    })
}

/// Writes a file whole or not at all. It is not flushed to the disk: what a power cut damages is
/// found by its mac.
fn write(folder: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    let fresh = folder.join(format!("{name}.{:016x}.new", rand::random::<u64>()));
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

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    loop {
        match file.read(&mut buffer[read..])? {
            0 => return Ok(read),
            more => read += more,
        }
    }
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
        assert!(cache.artifact(key).is_some());

        for at in [0, 33, 40, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(cache.artifact(key).is_none(), "byte {at}");
            assert!(!path.exists());
        }
        for length in [0, 31, 35, 60, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(cache.artifact(key).is_none(), "{length} bytes");
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
        assert!(cache.artifact(key).is_some());
    }

    #[test]
    fn a_damaged_secret_is_said() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(SECRET_FILE), "short").unwrap();
        let error = Cache::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is damaged; remove it"), "{error}");
    }
}
