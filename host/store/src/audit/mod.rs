//! The audit log: append-only, in a [`Store`]. Each entry hashes the one before (a chain), all of
//! them are the leaves of a Merkle tree after RFC 6962, and every append signs the tree's head. So
//! [`verify`] names the first entry that was changed, moved or taken away, and one kept head proves
//! the past of any later log.
//!
//! What it cannot see by itself: somebody who puts back an *older copy of the whole log*, its head
//! included. Keep heads elsewhere, and give one to [`verify`].
//!
//! Keys in the store: `audit/entry/` and the number (8 bytes, big-endian), `audit/node/` and a full
//! subtree's level (1 byte) and index, `audit/head/` and the size. An append writes all three in one
//! batch.

mod canonical;
mod entry;
mod key;
pub mod merkle;
mod verify;

pub use canonical::canonical;
pub use entry::{Entry, Record, SignedHead};
pub use verify::{AuditReport, verify};

use crate::batch::Batch;
use crate::commit::Commit;
use crate::digest::Digest;
use crate::error::Result;
use crate::store::{Order, Store};
use key::AuditKey;
use merkle::{Frontier, Hash, Node, Prover, leaf_hash};
use parking_lot::Mutex;
use serde_json::Value;
use std::ops::{Bound, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Why a log cannot be trusted, opened or appended to.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// An entry is not what was written.
    #[error("the audit log was changed: entry {seq} is the first bad one: {why}")]
    Tampered {
        /// The first bad sequence number.
        seq: u64,
        /// What was found.
        why: String,
    },
    /// The signed head is not what was written.
    #[error("the signed head of the audit log cannot be trusted: {why}")]
    BadHead {
        /// What was found.
        why: String,
    },
    /// The log does not fit its own head: run a whole verification.
    #[error(
        "the audit log does not fit its signed head ({why}): run `millgate audit verify`, which names the first bad entry"
    )]
    Inconsistent {
        /// What was found.
        why: String,
    },
    /// There is a log but not the key that signed it.
    #[error("the audit log was signed with the key {public}, but {} is missing: put that file back", path.display())]
    NoKey {
        /// Where the key should be.
        path: PathBuf,
        /// The public key, in hexadecimal.
        public: String,
    },
    /// The key is not the one that signed the log.
    #[error(
        "the audit log was signed with the key {expected}, but the key is {found}: use the file that belongs to this log"
    )]
    OtherKey {
        /// The public key of the log, in hexadecimal.
        expected: String,
        /// The public key given, in hexadecimal.
        found: String,
    },
    /// A number has no exact canonical form.
    #[error("{number} has no exact form in canonical JSON: give numbers beyond 2^53 as strings")]
    Number {
        /// The number.
        number: String,
    },
    /// The store could not be read.
    #[error("the audit log cannot be read: {why}")]
    Store {
        /// The store's own message.
        why: String,
    },
}

/// The log. One for each store: it orders the appends.
pub struct AuditLog {
    store: Arc<dyn Store>,
    key: AuditKey,
    edge: Mutex<Edge>,
}

/// Where the next entry goes.
struct Edge {
    frontier: Frontier,
    last: Digest,
}

impl AuditLog {
    /// Opens the log in `store`. The signing key is in the file `key`; a new log makes that file,
    /// readable by its owner alone.
    ///
    /// Checks that the log's end fits its signed head, not every entry: that is [`verify`].
    pub fn open(store: Arc<dyn Store>, key: impl AsRef<Path>) -> Result<AuditLog> {
        let path = key.as_ref();
        let head = newest_head(&*store)?;
        let key = match (AuditKey::load(path)?, &head) {
            (Some(key), _) => key,
            (None, None) => AuditKey::create(path)?,
            (None, Some(head)) => {
                return Err(AuditError::NoKey {
                    path: path.to_path_buf(),
                    public: head.key.clone(),
                }
                .into());
            }
        };
        let edge = match head {
            Some(head) => load_edge(&*store, &head, &key)?,
            None => Edge {
                frontier: Frontier::default(),
                last: Digest([0; 32]),
            },
        };
        let log = AuditLog {
            store,
            key,
            edge: Mutex::new(edge),
        };
        if log.store.get(&entry_key(log.len()))?.is_some() {
            let why = format!("entry {} is not covered", log.len());
            return Err(AuditError::Inconsistent { why }.into());
        }
        Ok(log)
    }

    /// Appends one entry; it is durable when this returns. Blocks: call it from a thread that may.
    pub fn append(&self, actor: &str, action: &str, subject: &str, body: Value) -> Result<Entry> {
        let record = Record {
            actor: actor.into(),
            action: action.into(),
            subject: subject.into(),
            body,
            content: None,
        };
        let (entry, commit) = self.append_one(record)?;
        commit.wait()?;
        Ok(entry)
    }

    /// Appends several entries in one step, under one head; durable when this returns.
    pub fn append_all(&self, records: Vec<Record>) -> Result<Vec<Entry>> {
        let (entries, commit) = self.append_later(records)?;
        commit.wait()?;
        Ok(entries)
    }

    /// Appends entries in one step; they are durable when the commit answers.
    ///
    /// Errors: a body with a number that has no canonical form, an entry too large for the store, or
    /// a store that takes no writes; the log is then as before.
    pub fn append_later(&self, records: Vec<Record>) -> Result<(Vec<Entry>, Commit)> {
        let mut edge = self.edge.lock();
        let (mut frontier, mut last) = (edge.frontier.clone(), edge.last);
        let (mut batch, mut entries) = (Batch::new(), Vec::with_capacity(records.len()));
        let at_ms = now_ms();
        for record in records {
            let entry = Entry::new(frontier.size(), at_ms, record, last)?;
            batch.put(entry_key(entry.seq), entry.to_bytes()?);
            last = entry.hash;
            // Leaves are not stored: their hashes follow from the entries.
            for (node, hash) in frontier.push(leaf_hash(&entry.hash.0)).into_iter().skip(1) {
                batch.put(node_key(node), hash);
            }
            entries.push(entry);
        }
        if !entries.is_empty() {
            let head = SignedHead::sign(
                frontier.size(),
                Digest(frontier.root()),
                last,
                at_ms,
                &self.key,
            )?;
            let bytes = serde_json::to_vec(&head).map_err(|error| AuditError::Store {
                why: error.to_string(),
            })?;
            batch.put(head_key(head.size), bytes);
            // Applied inside the lock, so that entries become durable in the order of the chain.
            self.store.apply(batch)?;
            *edge = Edge { frontier, last };
        }
        drop(edge);
        Ok((entries, self.store.commit(Batch::new())))
    }

    /// The entries with numbers in `range`, as far as they exist. They are read, not verified.
    pub fn entries(&self, range: Range<u64>) -> Result<Vec<Entry>> {
        let (from, to) = (entry_key(range.start), entry_key(range.end));
        let limit = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let pairs = self.store.scan(
            Bound::Included(&from),
            Bound::Excluded(&to),
            Order::Ascending,
            limit,
        )?;
        let parse = |(key, value): &(Vec<u8>, Vec<u8>)| {
            serde_json::from_slice(value).map_err(|error| {
                let seq = seq_of(key).unwrap_or_default();
                AuditError::Tampered {
                    seq,
                    why: format!("it is no entry ({error})"),
                }
                .into()
            })
        };
        pairs.iter().map(parse).collect()
    }

    /// How many entries there are.
    pub fn len(&self) -> u64 {
        self.edge.lock().frontier.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest signed head; `None` for an empty log.
    pub fn head(&self) -> Result<Option<SignedHead>> {
        newest_head(&*self.store)
    }

    /// The public key that signs the heads, in hexadecimal.
    pub fn public_key(&self) -> String {
        self.key.public()
    }

    /// Checks every entry, the chain, the tree and the signature; see [`verify`].
    pub fn verify(&self) -> Result<AuditReport, AuditError> {
        verify(&*self.store, Some(&self.key.public()), None)
    }

    /// The proof that entry `seq` is in the log of the first `size` entries; check it with
    /// [`merkle::verify_inclusion`], where the leaf is [`merkle::leaf_hash`] of the entry's hash.
    pub fn inclusion_proof(&self, seq: u64, size: u64) -> Result<Vec<Digest>> {
        let proof =
            Prover(|node| stored_node(&*self.store, node)).inclusion(seq, size.min(self.len()))?;
        Ok(proof.into_iter().map(Digest).collect())
    }

    /// The proof that the log of the first `old` entries is a beginning of that of the first `new`;
    /// check it with [`merkle::verify_consistency`].
    pub fn consistency_proof(&self, old: u64, new: u64) -> Result<Vec<Digest>> {
        let proof =
            Prover(|node| stored_node(&*self.store, node)).consistency(old, new.min(self.len()))?;
        Ok(proof.into_iter().map(Digest).collect())
    }

    fn append_one(&self, record: Record) -> Result<(Entry, Commit)> {
        let (entries, commit) = self.append_later(vec![record])?;
        let lost = || AuditError::Store {
            why: "an append gave no entry".into(),
        };
        Ok((entries.into_iter().next().ok_or_else(lost)?, commit))
    }
}

/// The public key (hexadecimal) of the signing key in the file `key`; `None` if there is none. For
/// [`verify`] where no log is open.
pub fn public_key(key: impl AsRef<Path>) -> Result<Option<String>> {
    Ok(AuditKey::load(key.as_ref())?.map(|key| key.public()))
}

/// Loads the log's end and compares it with its head.
fn load_edge(store: &dyn Store, head: &SignedHead, key: &AuditKey) -> Result<Edge> {
    head.check_signature()?;
    if head.key != key.public() {
        return Err(AuditError::OtherKey {
            expected: head.key.clone(),
            found: key.public(),
        }
        .into());
    }
    let frontier = Frontier::load(head.size, |node| stored_node(store, node))?;
    if frontier.root() != head.root.0 {
        return Err(AuditError::Inconsistent {
            why: "the tree's root is another".into(),
        }
        .into());
    }
    let last = store.get(&entry_key(head.size.saturating_sub(1)))?;
    let last = last.and_then(|value| serde_json::from_slice::<Entry>(&value).ok());
    if last.is_none_or(|entry| entry.hash != head.last) {
        return Err(AuditError::Inconsistent {
            why: "the last entry is missing or another".into(),
        }
        .into());
    }
    Ok(Edge {
        frontier,
        last: head.last,
    })
}

/// The head of the largest size.
fn newest_head(store: &dyn Store) -> Result<Option<SignedHead>> {
    let heads = store.scan_prefix(HEAD, Order::Descending, 1)?;
    let Some((key, value)) = heads.first() else {
        return Ok(None);
    };
    let head: SignedHead = serde_json::from_slice(value).map_err(|error| AuditError::BadHead {
        why: format!("it is no head ({error})"),
    })?;
    if seq_of(key) != Some(head.size) {
        return Err(AuditError::BadHead {
            why: "it is filed under another size".into(),
        }
        .into());
    }
    Ok(Some(head))
}

/// The hash of a full subtree.
fn stored_node(store: &dyn Store, node: Node) -> Result<Hash> {
    let missing = |why: String| crate::Error::from(AuditError::Inconsistent { why });
    if node.level == 0 {
        let value = store.get(&entry_key(node.index))?;
        let entry = value.and_then(|value| serde_json::from_slice::<Entry>(&value).ok());
        let entry = entry
            .ok_or_else(|| missing(format!("entry {} is missing or unreadable", node.index)))?;
        return Ok(leaf_hash(&entry.hash.0));
    }
    let value = store.get(&node_key(node))?;
    let hash = value.and_then(|value| value.try_into().ok());
    hash.ok_or_else(|| {
        missing(format!(
            "the tree's node {}/{} is missing",
            node.level, node.index
        ))
    })
}

const ENTRY: &[u8] = b"audit/entry/";
const NODE: &[u8] = b"audit/node/";
const HEAD: &[u8] = b"audit/head/";

fn entry_key(seq: u64) -> Vec<u8> {
    [ENTRY, &seq.to_be_bytes()].concat()
}

fn node_key(node: Node) -> Vec<u8> {
    [NODE, &[node.level as u8], &node.index.to_be_bytes()].concat()
}

fn head_key(size: u64) -> Vec<u8> {
    [HEAD, &size.to_be_bytes()].concat()
}

/// The number at the end of an entry's or a head's key.
fn seq_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.last_chunk()?))
}

fn now_ms() -> u64 {
    // A clock before 1970 is not worth an error: the order is in the chain, not in the times.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
