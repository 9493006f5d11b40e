//! The audit log. (Interim: signatures; the bodies follow.)
use crate::{Digest, Result, Store};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// What somebody did: the part of an entry that the caller gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Who did it: `cli`, `key:ab12`, `rollout:default`.
    pub actor: String,
    /// What was done: `config.apply`, `request.block`.
    pub action: String,
    /// To what: `pipeline:default`, `trace:01J…`.
    pub subject: String,
    /// The facts, with no personal content.
    pub body: Value,
    /// The digest of personal content that is kept elsewhere under its subject's own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
}
/// One entry of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 0.
    pub seq: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub record: Record,
    /// The hash of the entry before; all zeros for the first.
    pub prev: Digest,
    /// SHA-256 over `prev` and the entry's canonical JSON.
    pub hash: Digest,
}
/// A signed Merkle head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHead {
    /// How many entries.
    pub size: u64,
    /// The RFC 6962 root.
    pub root: Digest,
    /// The hash of the last entry.
    pub last: Digest,
    /// When signed.
    pub at_ms: u64,
    /// The Ed25519 public key, in hexadecimal.
    pub key: String,
    /// The Ed25519 signature, in hexadecimal.
    pub signature: String,
}
/// What a clean verification saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// How many entries were checked.
    pub entries: u64,
    /// The head they lead to; `None` for an empty log.
    pub head: Option<SignedHead>,
}
/// Why a log cannot be trusted.
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
}
/// The log.
pub struct AuditLog;
impl AuditLog {
    /// Opens the log in `store`; the signing key is in the file `key`, created if there is neither file nor log.
    pub fn open(_store: Arc<dyn Store>, _key: impl AsRef<Path>) -> Result<AuditLog> {
        Ok(AuditLog)
    }
    /// Appends one entry; durable when it returns.
    pub fn append(
        &self,
        _actor: &str,
        _action: &str,
        _subject: &str,
        _body: Value,
    ) -> Result<Entry> {
        Err(crate::Error::Closed)
    }
    /// Appends several entries in one step; durable when it returns.
    pub fn append_all(&self, _records: Vec<Record>) -> Result<Vec<Entry>> {
        Err(crate::Error::Closed)
    }
    /// Entries by number.
    pub fn entries(&self, _range: Range<u64>) -> Result<Vec<Entry>> {
        Ok(Vec::new())
    }
    /// How many entries there are.
    pub fn len(&self) -> u64 {
        0
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        true
    }
    /// The newest signed head.
    pub fn head(&self) -> Result<Option<SignedHead>> {
        Ok(None)
    }
    /// Checks every entry, the chain, the tree and the signature.
    pub fn verify(&self) -> Result<AuditReport, AuditError> {
        Ok(AuditReport {
            entries: 0,
            head: None,
        })
    }
}
