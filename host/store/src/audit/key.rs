//! The signing key of the audit log: an Ed25519 key in a file that only its owner may read.

use super::AuditError;
use crate::blobs::sync_dir;
use crate::error::{Error, Result};
use ed25519_dalek::{Signature, Signer, SigningKey, Verifier, VerifyingKey};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What stands before the 64 hexadecimal digits of the seed in a key file.
const PREFIX: &str = "millgate-audit-key-v1 ";

/// A key that signs heads.
pub struct AuditKey(SigningKey);

impl AuditKey {
    /// Reads a key file; `None` if there is none.
    pub fn load(path: &Path) -> Result<Option<AuditKey>> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path, error)),
        };
        let mode = fs::metadata(path)
            .map_err(|error| Error::io("look at", path, error))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            let path = path.display();
            tracing::warn!("others may read the audit key: run `chmod 600 {path}`");
        }
        let mut seed = [0; 32];
        let digits = text.trim_end().strip_prefix(PREFIX).unwrap_or_default();
        hex::decode_to_slice(digits, &mut seed).map_err(|_| Error::Corrupt {
            path: path.to_path_buf(),
            why: format!("it should hold `{PREFIX}` and 64 hexadecimal digits"),
        })?;
        Ok(Some(AuditKey(SigningKey::from_bytes(&seed))))
    }

    /// Makes a key and its file, which must not exist.
    pub fn create(path: &Path) -> Result<AuditKey> {
        let failed = |error| Error::io("create", path, error);
        let mut seed = [0; 32];
        OsRng
            .try_fill_bytes(&mut seed)
            .map_err(|error| failed(io::Error::other(error)))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        let written =
            writeln!(file, "{PREFIX}{}", hex::encode(seed)).and_then(|()| file.sync_all());
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
        Ok(AuditKey(SigningKey::from_bytes(&seed)))
    }

    /// The public key, in hexadecimal.
    pub fn public(&self) -> String {
        hex::encode(self.0.verifying_key().as_bytes())
    }

    /// The signature of `message`, in hexadecimal.
    pub fn sign(&self, message: &[u8]) -> String {
        hex::encode(self.0.sign(message).to_bytes())
    }
}

/// Whether `signature` is `key`'s over `message`; both in hexadecimal.
pub fn check_signature(key: &str, signature: &str, message: &[u8]) -> Result<(), AuditError> {
    let bad = |why: &str| AuditError::BadHead {
        why: why.to_owned(),
    };
    let (mut key_bytes, mut signature_bytes) = ([0; 32], [0; 64]);
    hex::decode_to_slice(key, &mut key_bytes)
        .map_err(|_| bad("its key is not 64 hexadecimal digits"))?;
    hex::decode_to_slice(signature, &mut signature_bytes)
        .map_err(|_| bad("its signature is not 128 hexadecimal digits"))?;
    let key = VerifyingKey::from_bytes(&key_bytes).map_err(|_| bad("its key is no Ed25519 key"))?;
    key.verify(message, &Signature::from_bytes(&signature_bytes))
        .map_err(|_| bad("its signature does not match"))
}
