//! Sealed bytes: personal content that only this store can read, under a key for each subject, so
//! that erasing the key erases all of the content at once.
//!
//! A subject's key is 32 random bytes, kept in the store wrapped by the root key, which is a file of
//! its own that only its owner may read. Each record is sealed with AES-256-GCM (NIST SP 800-38D)
//! under a key that HKDF-SHA256 (RFC 5869) derives from the subject's key and the record's name, so
//! no key seals two records and a record cannot be moved to another name.
//!
//! Keys in the store: `seal/key/` and a key's id holds the wrapped key, `seal/subject/` and a
//! subject's name its key's id.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk};
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::blobs::sync_dir;
use crate::error::{Error, Result};
use crate::store::{Order, Store};

/// What stands before the 64 hexadecimal digits in a root key's file.
const PREFIX: &str = "millgate-seal-key-v1 ";
/// The first byte of sealed bytes.
const VERSION: u8 = 1;
/// Bytes of a key's id.
const ID: usize = 16;
/// Bytes before the encrypted ones.
const HEAD: usize = 1 + ID + NONCE_LEN;
/// Bytes after the plain text's own: the tag.
const TAG: usize = 16;
/// Unwrapped keys that are kept at hand.
const AT_HAND: usize = 10_000;

const KEY: &[u8] = b"seal/key/";
const SUBJECT: &[u8] = b"seal/subject/";

/// Why sealed bytes stay closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The subject's key is gone, and with it the content.
    #[error("its subject's key was erased, so nobody can read it any more")]
    Erased,
    /// The subject's key was wrapped by another root key.
    #[error(
        "it was sealed under another root key: put the `seal.key` that belongs to this data folder back"
    )]
    OtherKey,
    /// The bytes are not what was sealed under this name.
    #[error("it was changed after it was written, or belongs to another record")]
    Tampered,
}

/// Seals and opens.
pub struct Vault {
    store: Arc<dyn Store>,
    path: PathBuf,
    root: Mutex<Option<Arc<LessSafeKey>>>,
    at_hand: Mutex<AtHand>,
}

#[derive(Default)]
struct AtHand {
    by_subject: HashMap<String, Arc<SubjectKey>>,
    by_id: HashMap<[u8; ID], Arc<SubjectKey>>,
}

/// A subject's key, unwrapped.
struct SubjectKey {
    id: [u8; ID],
    subject: String,
    key: Prk,
    /// The last day (since 1970) that it is known to be used on.
    used: AtomicU64,
}

/// A wrapped key in the store.
#[derive(Serialize, Deserialize)]
struct KeyRecord {
    subject: String,
    /// In hexadecimal: nonce, encrypted key, tag.
    wrapped: String,
    /// The last day (since 1970) that it was used on.
    used: u64,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("path", &self.path).finish()
    }
}

impl Vault {
    /// The vault of a store. The root key is in the file `path`; the first sealing makes it.
    ///
    /// # Errors
    /// The file cannot be read, or is no key.
    pub fn open(store: Arc<dyn Store>, path: impl Into<PathBuf>) -> Result<Vault> {
        let path = path.into();
        let root = load(&path)?;
        Ok(Vault {
            store,
            path,
            root: Mutex::new(root.map(Arc::new)),
            at_hand: Mutex::default(),
        })
    }

    /// Seals `bytes` for `subject`, under the name `record`.
    ///
    /// # Errors
    /// The store or the key's file failed.
    pub fn seal(&self, subject: &str, record: &[u8], bytes: &[u8]) -> Result<Vec<u8>> {
        let key = self.key_of(subject)?;
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut out = Vec::with_capacity(HEAD + bytes.len() + TAG);
        out.push(VERSION);
        out.extend_from_slice(&key.id);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(bytes);
        let sealing = record_key(&key.key, record);
        let plain = out.get_mut(HEAD..).unwrap_or_default();
        let tag = sealing.and_then(|sealing| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            sealing.seal_in_place_separate_tag(nonce, Aad::from(record), plain)
        });
        // Only more than 64 GiB in one record cannot be sealed.
        let tag = tag.map_err(|_| Error::TooLarge {
            what: "sealed record",
            size: bytes.len(),
            limit: usize::MAX,
        })?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Opens what was sealed under the name `record`.
    ///
    /// # Errors
    /// The store failed; inside: the bytes stay closed.
    pub fn open_sealed(
        &self,
        record: &[u8],
        sealed: &[u8],
    ) -> Result<std::result::Result<Vec<u8>, SealError>> {
        let (Some(&VERSION), Some(id), Some(nonce), Some(rest)) = (
            sealed.first(),
            sealed.get(1..=ID),
            sealed.get(1 + ID..HEAD),
            sealed.get(HEAD..),
        ) else {
            return Ok(Err(SealError::Tampered));
        };
        let (Ok(id), Ok(nonce)) = (id.try_into(), nonce.try_into()) else {
            return Ok(Err(SealError::Tampered));
        };
        let key = match self.key_by_id(id)? {
            Ok(key) => key,
            Err(error) => return Ok(Err(error)),
        };
        let mut bytes = rest.to_vec();
        let opened = record_key(&key.key, record).and_then(|sealing| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let plain = sealing.open_in_place(nonce, Aad::from(record), &mut bytes)?;
            Ok(plain.len())
        });
        Ok(match opened {
            Ok(length) => {
                bytes.truncate(length);
                Ok(bytes)
            }
            Err(ring::error::Unspecified) => Err(SealError::Tampered),
        })
    }

    /// Erases the key of `subject` or, with `below`, of every subject whose name begins with it.
    /// What was sealed for them cannot be opened any more. Durable when it returns. Says how many
    /// keys there were.
    ///
    /// # Errors
    /// The store failed.
    pub fn erase(&self, subject: &str, below: bool) -> Result<u64> {
        let mut erased = 0;
        // With the lock held nobody takes a key that is about to go.
        let mut at_hand = self.at_hand.lock();
        loop {
            let prefix = [SUBJECT, subject.as_bytes()].concat();
            let found = match below {
                true => self.store.scan_prefix(&prefix, Order::Ascending, 256)?,
                false => {
                    let id = self.store.get(&prefix)?;
                    id.map(|id| (prefix.clone(), id)).into_iter().collect()
                }
            };
            if found.is_empty() {
                break;
            }
            let mut batch = Batch::new();
            for (name, id) in found {
                batch.delete([KEY, &id].concat());
                batch.delete(name);
                erased += 1;
            }
            self.store.apply(batch)?;
        }
        *at_hand = AtHand::default();
        drop(at_hand);
        self.store.flush()?;
        Ok(erased)
    }

    /// Removes the keys that were last used more than `days` ago: of what has been removed since.
    /// Says how many.
    ///
    /// # Errors
    /// The store failed.
    pub fn sweep(&self, days: u64) -> Result<u64> {
        let mut from = KEY.to_vec();
        let mut swept = 0;
        let end = crate::store::prefix_end(KEY).unwrap_or_default();
        loop {
            use std::ops::Bound;
            let (low, high) = (Bound::Excluded(&*from), Bound::Excluded(&*end));
            let page = self.store.scan(low, high, Order::Ascending, 256)?;
            let Some((last, _)) = page.last() else {
                return Ok(swept);
            };
            from.clone_from(last);
            for (key, value) in &page {
                let Ok(record) = serde_json::from_slice::<KeyRecord>(value) else {
                    continue;
                };
                if record.used + days < today() {
                    let mut at_hand = self.at_hand.lock();
                    let mut batch = Batch::new();
                    batch.delete(key.clone());
                    batch.delete([SUBJECT, record.subject.as_bytes()].concat());
                    self.store.apply(batch)?;
                    *at_hand = AtHand::default();
                    swept += 1;
                }
            }
        }
    }

    /// The root key; made where there is none yet.
    fn root(&self) -> Result<Arc<LessSafeKey>> {
        let mut root = self.root.lock();
        if let Some(root) = &*root {
            return Ok(root.clone());
        }
        let made = Arc::new(create(&self.path)?);
        *root = Some(made.clone());
        Ok(made)
    }

    /// The key that a subject's content is sealed with now.
    fn key_of(&self, subject: &str) -> Result<Arc<SubjectKey>> {
        let mut at_hand = self.at_hand.lock();
        let known = match at_hand.by_subject.get(subject) {
            Some(known) => Some(known.clone()),
            None => match self.store.get(&[SUBJECT, subject.as_bytes()].concat())? {
                Some(id) => match <[u8; ID]>::try_from(id) {
                    Ok(id) => self.unwrapped(id)?.ok(),
                    Err(_) => None,
                },
                None => None,
            },
        };
        let key = match known {
            Some(key) => key,
            None => self.new_key(subject)?,
        };
        let today = today();
        if key.used.swap(today, Ordering::Relaxed) < today {
            self.keep(&key, None)?;
        }
        at_hand.put(&key);
        Ok(key)
    }

    fn key_by_id(&self, id: [u8; ID]) -> Result<std::result::Result<Arc<SubjectKey>, SealError>> {
        let mut at_hand = self.at_hand.lock();
        if let Some(key) = at_hand.by_id.get(&id) {
            return Ok(Ok(key.clone()));
        }
        let found = self.unwrapped(id)?;
        if let Ok(key) = &found {
            at_hand.put(key);
        }
        Ok(found)
    }

    /// Reads a key from the store.
    fn unwrapped(&self, id: [u8; ID]) -> Result<std::result::Result<Arc<SubjectKey>, SealError>> {
        let Some(value) = self.store.get(&[KEY, &id].concat())? else {
            return Ok(Err(SealError::Erased));
        };
        let Some(root) = self.root.lock().clone() else {
            return Ok(Err(SealError::OtherKey));
        };
        let Ok(record) = serde_json::from_slice::<KeyRecord>(&value) else {
            return Ok(Err(SealError::Tampered));
        };
        let Some(key) = unwrap(&root, &id, &record.wrapped) else {
            return Ok(Err(SealError::OtherKey));
        };
        Ok(Ok(Arc::new(SubjectKey {
            id,
            subject: record.subject,
            key: Prk::new_less_safe(HKDF_SHA256, &key),
            used: AtomicU64::new(record.used),
        })))
    }

    fn new_key(&self, subject: &str) -> Result<Arc<SubjectKey>> {
        let mut key = [0; 32];
        fill(&mut key, &self.path)?;
        let made = Arc::new(SubjectKey {
            id: rand::random(),
            subject: subject.to_owned(),
            key: Prk::new_less_safe(HKDF_SHA256, &key),
            used: AtomicU64::new(today()),
        });
        self.keep(&made, Some(&key))?;
        Ok(made)
    }

    /// Writes a key's record; without `fresh` only the day of its last use changes.
    fn keep(&self, key: &SubjectKey, fresh: Option<&[u8; 32]>) -> Result<()> {
        let name = [KEY, &key.id].concat();
        let wrapped = match fresh {
            Some(plain) => wrap(&*self.root()?, &key.id, plain),
            None => {
                let value = self.store.get(&name)?;
                let record =
                    value.and_then(|value| serde_json::from_slice::<KeyRecord>(&value).ok());
                match record {
                    Some(record) => record.wrapped,
                    None => return Ok(()),
                }
            }
        };
        let record = KeyRecord {
            subject: key.subject.clone(),
            wrapped,
            used: key.used.load(Ordering::Relaxed),
        };
        let mut batch = Batch::new();
        batch.put(name, serde_json::to_vec(&record).unwrap_or_default());
        batch.put([SUBJECT, key.subject.as_bytes()].concat(), key.id.to_vec());
        self.store.apply(batch)
    }
}

impl AtHand {
    fn put(&mut self, key: &Arc<SubjectKey>) {
        if self.by_id.len() >= AT_HAND {
            *self = AtHand::default();
        }
        if self.by_id.insert(key.id, key.clone()).is_none() {
            self.by_subject.insert(key.subject.clone(), key.clone());
        }
    }
}

/// The key of one record.
fn record_key(key: &Prk, record: &[u8]) -> Result<LessSafeKey, ring::error::Unspecified> {
    let info = [b"millgate record v1", record];
    let derived = key.expand(&info, &AES_256_GCM)?;
    Ok(LessSafeKey::new(UnboundKey::from(derived)))
}

/// A subject's key under the root key, in hexadecimal.
fn wrap(root: &LessSafeKey, id: &[u8; ID], plain: &[u8; 32]) -> String {
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut out = plain.to_vec();
    let sealed =
        root.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(id), &mut out);
    match sealed {
        Ok(()) => hex::encode([&nonce[..], &out].concat()),
        // 32 bytes can always be sealed.
        Err(ring::error::Unspecified) => String::new(),
    }
}

fn unwrap(root: &LessSafeKey, id: &[u8; ID], wrapped: &str) -> Option<Vec<u8>> {
    let bytes = hex::decode(wrapped).ok()?;
    let (nonce, rest) = bytes.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::assume_unique_for_key(nonce.try_into().ok()?);
    let mut rest = rest.to_vec();
    let plain = root.open_in_place(nonce, Aad::from(id), &mut rest).ok()?;
    Some(plain.to_vec())
}

fn root_of(bytes: &[u8; 32], path: &Path) -> Result<LessSafeKey> {
    let key = UnboundKey::new(&AES_256_GCM, bytes);
    let key = key.map_err(|_| Error::Corrupt {
        path: path.to_path_buf(),
        why: "it is no key".to_owned(),
    })?;
    Ok(LessSafeKey::new(key))
}

/// Reads a root key; `None` if there is no file.
fn load(path: &Path) -> Result<Option<LessSafeKey>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let mut bytes = [0; 32];
    let digits = text.trim_end().strip_prefix(PREFIX).unwrap_or_default();
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| Error::Corrupt {
        path: path.to_path_buf(),
        why: format!("it should hold `{PREFIX}` and 64 hexadecimal digits"),
    })?;
    root_of(&bytes, path).map(Some)
}

/// Makes a root key and its file.
fn create(path: &Path) -> Result<LessSafeKey> {
    let failed = |error| Error::io("create", path, error);
    let mut bytes = [0; 32];
    fill(&mut bytes, path)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let written = writeln!(file, "{PREFIX}{}", hex::encode(bytes)).and_then(|()| file.sync_all());
    if let Err(error) = written {
        // Half a key would be taken for a damaged one at the next start.
        let _ = fs::remove_file(path);
        return Err(failed(error));
    }
    sync_dir(
        path.parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new(".")),
    )?;
    root_of(&bytes, path)
}

fn fill(bytes: &mut [u8; 32], path: &Path) -> Result<()> {
    OsRng
        .try_fill_bytes(bytes)
        .map_err(|error| Error::io("create", path, io::Error::other(error)))
}

/// Days since 1970.
fn today() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() / 86_400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryStore;

    fn vault(dir: &Path, store: &Arc<dyn Store>) -> Vault {
        Vault::open(store.clone(), dir.join("seal.key")).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_in_another_process_and_under_its_own_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let sealed = vault(dir.path(), &store)
            .seal("ann", b"trace-1", b"a secret")
            .unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        // Another vault over the same store and file.
        let vault = vault(dir.path(), &store);
        let open = |name: &[u8], bytes: &[u8]| vault.open_sealed(name, bytes).unwrap();
        assert_eq!(open(b"trace-1", &sealed).unwrap(), b"a secret");
        assert_eq!(open(b"trace-2", &sealed), Err(SealError::Tampered));
        for at in HEAD - 1..sealed.len() {
            let mut other = sealed.clone();
            other[at] ^= 1;
            assert_eq!(open(b"trace-1", &other), Err(SealError::Tampered), "{at}");
        }
        assert_eq!(open(b"trace-1", &sealed[..20]), Err(SealError::Tampered));
        assert_eq!(open(b"trace-1", b""), Err(SealError::Tampered));
    }

    #[test]
    fn an_erased_subject_is_gone_and_the_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let vault = vault(dir.path(), &store);
        let seal = |subject: &str| vault.seal(subject, b"r", b"text").unwrap();
        let open = |sealed: &[u8]| vault.open_sealed(b"r", sealed).unwrap();
        let (ann, bob, annie) = (seal("t\0ann"), seal("t\0bob"), seal("t\0annie"));
        assert_eq!(vault.erase("t\0ann", false).unwrap(), 1);
        assert_eq!(open(&ann), Err(SealError::Erased));
        assert!(open(&bob).is_ok() && open(&annie).is_ok());
        // The same subject again gets a key of its own.
        let again = seal("t\0ann");
        assert!(open(&again).is_ok() && open(&ann).is_err());
        assert_eq!(vault.erase("t\0", true).unwrap(), 3);
        assert_eq!(open(&bob), Err(SealError::Erased));
        assert!(
            store
                .scan_prefix(b"seal/", Order::Ascending, 9)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn keys_go_when_nothing_can_be_left_of_what_they_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let vault = vault(dir.path(), &store);
        let sealed = vault.seal("ann", b"r", b"text").unwrap();
        assert_eq!(vault.sweep(7).unwrap(), 0);
        let (key, value) = store
            .scan_prefix(KEY, Order::Ascending, 1)
            .unwrap()
            .remove(0);
        let mut record: KeyRecord = serde_json::from_slice(&value).unwrap();
        record.used -= 8;
        store
            .put(&key, &serde_json::to_vec(&record).unwrap())
            .unwrap();
        assert_eq!(vault.sweep(7).unwrap(), 1);
        assert_eq!(
            vault.open_sealed(b"r", &sealed).unwrap(),
            Err(SealError::Erased)
        );
    }

    #[test]
    fn a_lost_root_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let sealed = vault(dir.path(), &store)
            .seal("ann", b"r", b"text")
            .unwrap();
        fs::remove_file(dir.path().join("seal.key")).unwrap();
        let vault = vault(dir.path(), &store);
        assert_eq!(
            vault.open_sealed(b"r", &sealed).unwrap(),
            Err(SealError::OtherKey)
        );
        // New content gets new keys.
        let new = vault.seal("bob", b"r", b"text").unwrap();
        assert!(vault.open_sealed(b"r", &new).unwrap().is_ok());
        assert_eq!(
            vault.open_sealed(b"r", &sealed).unwrap(),
            Err(SealError::OtherKey)
        );
    }
}
