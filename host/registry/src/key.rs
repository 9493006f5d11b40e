//! Signing keys: Ed25519, as PEM files that OpenSSL and cosign read. `NAME.key` holds the private
//! key (PKCS#8, readable by its owner only), `NAME.pub` the public one (SubjectPublicKeyInfo).

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::files::{self, Draft};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The largest key file, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    id: String,
}

impl PublicKey {
    /// Reads a PEM public key (`-----BEGIN PUBLIC KEY-----`). `name` is for errors.
    pub fn parse(name: &str, pem: &str) -> Result<PublicKey> {
        let bad = |why: &str| Error::Key {
            name: name.to_owned(),
            why: why.to_owned(),
        };
        let pem = pem.trim();
        if pem.contains("PRIVATE KEY") {
            return Err(bad(
                "this is a private key: give the public one (NAME.pub), and keep this one secret",
            ));
        }
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|_| {
            bad("it is no Ed25519 public key in PEM (-----BEGIN PUBLIC KEY-----); other kinds are not supported")
        })?;
        if key.is_weak() {
            return Err(bad("it is a weak key, which many signatures fit"));
        }
        PublicKey::new(name, key)
    }

    fn new(name: &str, key: VerifyingKey) -> Result<PublicKey> {
        let der = key.to_public_key_der().map_err(|error| Error::Key {
            name: name.to_owned(),
            why: format!("it cannot be written: {error}"),
        })?;
        Ok(PublicKey {
            key,
            id: Digest::of(der.as_bytes()).to_string(),
        })
    }

    /// Its id: the SHA-256 of its SubjectPublicKeyInfo.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// It in PEM.
    pub fn pem(&self) -> Result<String> {
        self.key
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| Error::Key {
                name: self.id.clone(),
                why: format!("it cannot be written: {error}"),
            })
    }

    /// Whether `signature` is this key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature)
            .is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PublicKey").field(&self.id).finish()
    }
}

/// A key to sign with.
pub struct SecretKey {
    name: String,
    key: SigningKey,
    public: PublicKey,
}

impl SecretKey {
    fn new(name: &str, key: SigningKey) -> Result<SecretKey> {
        Ok(SecretKey {
            name: name.to_owned(),
            public: PublicKey::new(name, key.verifying_key())?,
            key,
        })
    }

    /// The name of its files.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key that others check with.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The signature of `message`, 64 bytes.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey")
            .field("name", &self.name)
            .field("id", &self.public.id)
            .finish_non_exhaustive()
    }
}

/// A key pair in a folder of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEntry {
    /// Its name.
    pub name: String,
    /// Its id: the SHA-256 of its SubjectPublicKeyInfo.
    pub id: String,
    /// The file of the public key, to give to others.
    pub public: PathBuf,
    /// Whether the private key is here as well.
    pub secret: bool,
}

/// A folder of keys.
#[derive(Clone, Debug)]
pub struct Keys {
    dir: PathBuf,
}

impl Keys {
    /// The keys in `dir`, which is made when the first key is.
    pub fn open(dir: impl Into<PathBuf>) -> Keys {
        Keys { dir: dir.into() }
    }

    /// Makes a key pair. A name that is taken is an error: nobody's key is ever overwritten.
    pub fn create(&self, name: &str) -> Result<SecretKey> {
        check_name(name)?;
        let mut seed = [0; 32];
        OsRng
            .try_fill_bytes(&mut seed)
            .map_err(|error| Error::Key {
                name: name.to_owned(),
                why: format!("the system has no random bytes: {error}"),
            })?;
        let key = SecretKey::new(name, SigningKey::from_bytes(&seed))?;
        let pem = key
            .key
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| Error::Key {
                name: name.to_owned(),
                why: format!("it cannot be written: {error}"),
            })?;
        let path = self.secret_path(name);
        if path.exists() || self.public_path(name).exists() {
            return Err(taken(name, &self.dir));
        }
        write_new(&path, pem.as_bytes(), 0o600, name, &self.dir)?;
        let public = key.public.pem()?;
        write_new(
            &self.public_path(name),
            public.as_bytes(),
            0o644,
            name,
            &self.dir,
        )?;
        Ok(key)
    }

    /// Reads a private key by its name, or from a file where `name` has a slash.
    pub fn load(&self, name: &str) -> Result<SecretKey> {
        let path = if name.contains('/') {
            PathBuf::from(name)
        } else {
            check_name(name)?;
            self.secret_path(name)
        };
        let bad = |why: String| Error::Key {
            name: name.to_owned(),
            why,
        };
        let bytes = files::read(&path, MAX_FILE)?.ok_or_else(|| {
            bad(format!(
                "there is no {}: make it with `millgate keys new {name}`",
                path.display()
            ))
        })?;
        let mode = fs::metadata(&path)
            .map_err(|error| Error::io("look at", &path, error))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(bad(format!(
                "others may read it: run `chmod 600 {}`, and make another key if they could",
                path.display()
            )));
        }
        let text = String::from_utf8(bytes).unwrap_or_default();
        if text.contains("ENCRYPTED") {
            return Err(bad(
                "it is encrypted (a key of cosign's own form?): give it as plain PKCS#8 PEM".into(),
            ));
        }
        let key = SigningKey::from_pkcs8_pem(text.trim()).map_err(|_| {
            bad(format!(
                "{} is no Ed25519 private key in PEM (-----BEGIN PRIVATE KEY-----)",
                path.display()
            ))
        })?;
        SecretKey::new(name, key)
    }

    /// The keys, by name. Public keys alone (of others) are listed too.
    pub fn list(&self) -> Result<Vec<KeyEntry>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.dir, error)),
        };
        let mut keys = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|error| Error::io("list", &self.dir, error))?
                .path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            if path.extension().is_none_or(|kind| kind != "pub") || check_name(&name).is_err() {
                continue;
            }
            let Some(pem) = files::read(&path, MAX_FILE)? else {
                continue; // Removed in this moment.
            };
            let name = name.into_owned();
            let key = PublicKey::parse(&name, &String::from_utf8_lossy(&pem))?;
            keys.push(KeyEntry {
                secret: self.secret_path(&name).is_file(),
                id: key.id,
                name,
                public: path,
            });
        }
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(keys)
    }

    fn secret_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.key"))
    }

    fn public_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pub"))
    }
}

fn check_name(name: &str) -> Result<()> {
    let fits = !name.is_empty()
        && name.len() <= 64
        && !name.starts_with(['-', '.'])
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if fits {
        return Ok(());
    }
    Err(Error::Key {
        name: name.chars().take(64).collect(),
        why: "its name must be 1 to 64 letters, digits, `-`, `_` and `.`".into(),
    })
}

fn taken(name: &str, dir: &Path) -> Error {
    Error::Key {
        name: name.to_owned(),
        why: format!(
            "there is one of this name in {}: choose another",
            dir.display()
        ),
    }
}

fn write_new(path: &Path, bytes: &[u8], mode: u32, name: &str, dir: &Path) -> Result<()> {
    let mut draft = Draft::new(path, mode)?;
    let written = draft.file().write_all(bytes);
    written.map_err(|error| draft.failed(error))?;
    match draft.put_new() {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            Err(taken(name, dir))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `openssl pkey -pubout` of the key of RFC 8032, section 7.1, test 1.
    const RFC_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";
    /// The seed of the same, as `openssl pkey` writes it.
    const RFC_SECRET: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path().join("keys"));
        assert_eq!(keys.list().unwrap(), []);
        let made = keys.create("acme").unwrap();
        let read = keys.load("acme").unwrap();
        assert_eq!(made.public(), read.public());
        assert!(read.public().verifies(b"text", &made.sign(b"text")));
        assert!(!read.public().verifies(b"other", &made.sign(b"text")));
        let path = dir.path().join("keys/acme.key");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = keys.create("acme").unwrap_err().to_string();
        assert!(error.contains("choose another"), "{error}");
        assert_eq!(keys.load("acme").unwrap().public(), made.public());
        let listed = keys.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].name, "acme");
        assert_eq!(listed[0].id, made.public().id());
        assert!(listed[0].secret);
        // No draft is left behind.
        assert_eq!(fs::read_dir(dir.path().join("keys")).unwrap().count(), 2);
    }

    #[test]
    fn keys_of_other_tools_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rfc.key");
        fs::write(&path, RFC_SECRET).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let key = Keys::open(dir.path()).load("rfc").unwrap();
        let public = PublicKey::parse("rfc", RFC_PUBLIC).unwrap();
        assert_eq!(key.public(), &public);
        assert_eq!(public.pem().unwrap(), RFC_PUBLIC);
        // RFC 8032, section 7.1, test 1: the signature of the empty message.
        assert!(hex::encode(key.sign(b"")).starts_with("e5564300c360ac729086e2cc806e828a"));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path());
        keys.create("acme").unwrap();
        let path = dir.path().join("acme.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = keys.load("acme").unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn what_is_no_key_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path());
        for (name, why) in [
            ("none", "keys new none"),
            ("../acme", "there is no"),
            ("", "its name"),
        ] {
            let error = keys.load(name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        for (pem, why) in [
            ("", "no Ed25519 public key"),
            (RFC_SECRET, "private key"),
            // P-256.
            (
                "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEgrdxRJNJm9SZ9GP8pLk6gRBZsUVT\nZ4AJmB7Dys+pHLXGXOnTbZrdGqNfdm/yg6OLNtqYE5aLeZR3Tdq+0bB2bQ==\n-----END PUBLIC KEY-----\n",
                "no Ed25519 public key",
            ),
        ] {
            let error = PublicKey::parse("k", pem).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
