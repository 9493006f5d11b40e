//! What the audit log holds: entries, each hashing the one before, and signed heads.

use super::AuditError;
use super::canonical::canonical;
use super::key::{AuditKey, check_signature};
use crate::digest::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What stands before a head's canonical JSON when it is signed, so that the key's signatures can
/// never be taken for signatures over something else.
const HEAD_CONTEXT: &[u8] = b"millgate audit head v1\n";

/// What somebody did: the part of an entry that the caller gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Who did it: `cli`, `key:ab12`, `rollout:default`.
    pub actor: String,
    /// What was done: `config.apply`, `request.block`.
    pub action: String,
    /// To what: `pipeline:default`, `trace:01J…`.
    pub subject: String,
    /// The facts. **No personal content**: an entry is never erased.
    pub body: Value,
    /// The digest of personal content that is kept elsewhere, encrypted under its subject's own key:
    /// erasing that key erases the content, and the chain, which holds this digest alone, still
    /// verifies. (The digest is of the encrypted bytes, so that it gives nothing away.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Digest>,
}

/// One entry of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 0.
    pub seq: u64,
    /// When, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub record: Record,
    /// The hash of the entry before; all zeros for the first.
    pub prev: Digest,
    /// SHA-256 over the 32 bytes of `prev` and the canonical JSON of all members but `prev` and this.
    pub hash: Digest,
}

impl Entry {
    /// The entry number `seq`, behind the one with hash `prev`.
    pub(super) fn new(
        seq: u64,
        at_ms: u64,
        record: Record,
        prev: Digest,
    ) -> Result<Entry, AuditError> {
        let mut entry = Entry {
            seq,
            at_ms,
            record,
            prev,
            hash: Digest([0; 32]),
        };
        entry.hash = entry.compute_hash()?;
        Ok(entry)
    }

    /// What `hash` must be.
    pub fn compute_hash(&self) -> Result<Digest, AuditError> {
        let mut value = self.to_value()?;
        if let Value::Object(members) = &mut value {
            members.remove("prev");
            members.remove("hash");
        }
        let hash = Sha256::new()
            .chain_update(self.prev.0)
            .chain_update(canonical(&value)?)
            .finalize();
        Ok(Digest(hash.into()))
    }

    /// Its bytes in the store: canonical JSON.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, AuditError> {
        canonical(&self.to_value()?)
    }

    fn to_value(&self) -> Result<Value, AuditError> {
        serde_json::to_value(self).map_err(|error| AuditError::Number {
            number: error.to_string(),
        })
    }
}

/// The state of the whole log at one size: its Merkle root, signed. Who keeps a head can tell later
/// that nothing before it was changed or taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHead {
    /// How many entries it covers.
    pub size: u64,
    /// The RFC 6962 root over them; a leaf's data are the 32 bytes of an entry's hash.
    pub root: Digest,
    /// The hash of the last entry.
    pub last: Digest,
    /// When it was signed, in milliseconds since 1970 (UTC).
    pub at_ms: u64,
    /// The Ed25519 public key, in hexadecimal.
    pub key: String,
    /// The Ed25519 signature, in hexadecimal, over a fixed line and the canonical JSON of the rest.
    pub signature: String,
}

impl SignedHead {
    pub(super) fn sign(
        size: u64,
        root: Digest,
        last: Digest,
        at_ms: u64,
        key: &AuditKey,
    ) -> Result<SignedHead, AuditError> {
        let mut head = SignedHead {
            size,
            root,
            last,
            at_ms,
            key: key.public(),
            signature: String::new(),
        };
        head.signature = key.sign(&head.message()?);
        Ok(head)
    }

    /// Checks the signature against the head's own key. Whether that is the right key is for the
    /// caller to know.
    pub fn check_signature(&self) -> Result<(), AuditError> {
        check_signature(&self.key, &self.signature, &self.message()?)
    }

    fn message(&self) -> Result<Vec<u8>, AuditError> {
        let rest = json!({
            "size": self.size,
            "root": self.root,
            "last": self.last,
            "at_ms": self.at_ms,
            "key": self.key,
        });
        let mut message = HEAD_CONTEXT.to_vec();
        message.extend(canonical(&rest)?);
        Ok(message)
    }
}
