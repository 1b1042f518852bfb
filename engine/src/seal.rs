//! Secrets at rest: what tenants set up over HTTP is sealed before it reaches the store, with a key that
//! the store does not hold. ChaCha20-Poly1305 of ring, with a nonce made for each record; a record opens
//! under its own key in the store alone, so that nobody can put one in another's place.
//!
//! ```text
//! 1 byte 0x01 | 4 bytes of the key's id | 12 bytes nonce | sealed | 16 bytes tag
//! ```

use crate::secret::Secret;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

const FORMAT: u8 = 1;
const ID_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + ID_BYTES + NONCE_LEN;

/// Why something sealed stays closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotOpened {
    #[error("it was sealed with a key that is not among those given")]
    Key,
    #[error("it was changed since it was sealed, or belongs to another record")]
    Changed,
}

/// Keys: the first seals, all of them open.
pub(crate) struct Seal {
    keys: Vec<([u8; ID_BYTES], LessSafeKey)>,
}

impl Seal {
    /// Of one text or several with commas between them, the newest first.
    pub(crate) fn new(text: &Secret) -> Self {
        let texts = text.expose().split(',').map(str::trim);
        let keys = texts.filter(|text| !text.is_empty()).map(|text| {
            let bytes: [u8; 32] = Sha256::digest(text).into();
            let id = Sha256::digest(bytes);
            let mut short = [0; ID_BYTES];
            short.copy_from_slice(&id[..ID_BYTES]);
            let key = match UnboundKey::new(&CHACHA20_POLY1305, &bytes) {
                Ok(key) => LessSafeKey::new(key),
                Err(_) => unreachable!("a key of this algorithm has 32 bytes"),
            };
            (short, key)
        });
        Self {
            keys: keys.collect(),
        }
    }

    /// Seals what is kept under this name.
    pub(crate) fn seal(&self, name: &str, open: &[u8]) -> Vec<u8> {
        let Some((id, key)) = self.keys.first() else {
            unreachable!("there is a key: configuration sees to it");
        };
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = open.to_vec();
        let aad = Aad::from(name.as_bytes());
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        if key
            .seal_in_place_append_tag(nonce_of, aad, &mut sealed)
            .is_err()
        {
            unreachable!("a record is shorter than 256 GiB");
        }
        let mut all = Vec::with_capacity(HEAD_BYTES + sealed.len());
        all.push(FORMAT);
        all.extend_from_slice(id);
        all.extend_from_slice(&nonce);
        all.extend_from_slice(&sealed);
        all
    }

    /// Opens it; and whether it was sealed with another key than the first.
    ///
    /// # Errors
    /// When it does not open.
    pub(crate) fn open(&self, name: &str, all: &[u8]) -> Result<(Vec<u8>, bool), NotOpened> {
        let (Some(head), Some(sealed)) = (all.get(..HEAD_BYTES), all.get(HEAD_BYTES..)) else {
            return Err(NotOpened::Changed);
        };
        let (id, nonce) = head[1..].split_at(ID_BYTES);
        if head[0] != FORMAT {
            return Err(NotOpened::Changed);
        }
        let at = self.keys.iter().position(|(known, _)| known == id);
        let at = at.ok_or(NotOpened::Key)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened::Changed)?;
        let mut open = sealed.to_vec();
        let aad = Aad::from(name.as_bytes());
        let opened = self.keys[at].1.open_in_place(nonce, aad, &mut open);
        let length = opened.map_err(|_| NotOpened::Changed)?.len();
        open.truncate(length);
        Ok((open, at > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_under_its_name_with_any_of_the_keys() {
        let old = Seal::new(&Secret::new("an old key of 32 characters and more"));
        let sealed = old.seal("channel/acme/hook", b"a secret");
        assert!(!sealed.windows(6).any(|it| it == b"secret"));
        assert_ne!(sealed, old.seal("channel/acme/hook", b"a secret"));
        let opened = old.open("channel/acme/hook", &sealed);
        assert_eq!(opened, Ok((b"a secret".to_vec(), false)));
        let other = old.open("channel/other/hook", &sealed);
        assert_eq!(other, Err(NotOpened::Changed));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(old.open("channel/acme/hook", &changed).is_err(), "{at}");
            assert!(old.open("channel/acme/hook", &sealed[..at]).is_err());
        }
        let both = "a new key of 32 characters and more, an old key of 32 characters and more";
        let both = Seal::new(&Secret::new(both));
        let opened = both.open("channel/acme/hook", &sealed);
        assert_eq!(opened, Ok((b"a secret".to_vec(), true)));
        let new = both.seal("channel/acme/hook", b"a secret");
        assert_eq!(old.open("channel/acme/hook", &new), Err(NotOpened::Key));
    }
}
