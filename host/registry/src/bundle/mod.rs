//! Offline bundles: everything that a config needs, as one folder or one tar file, to carry to a
//! machine without a network.
//!
//! The form is an OCI image layout (`oci-layout`, `index.json`, `blobs/sha256/…`), so that other
//! tools can look into it and push its plugins to a registry over there. The index names each plugin's
//! manifest by its reference, the manifests of signatures beside them, and one manifest of our own,
//! which holds the config, the lock, models, prompts and plugin files.

mod create;
mod load;
mod source;

use crate::digest::Digest;
use crate::lock::Lock;
use std::path::PathBuf;

pub use create::create;
pub use load::load;

/// The artifact type of the manifest that holds the config and its files.
const BUNDLE_TYPE: &str = "application/vnd.millgate.bundle.v1+json";
/// The media type of an empty config (image specification 1.1).
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
/// The annotation that names a manifest by its reference.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation that names a file.
const TITLE: &str = "org.opencontainers.image.title";
/// The annotation of a manifest of signatures: the digest of what they sign.
const SIGNS: &str = "dev.millgate.signatures/of";
const LAYOUT: &str = "oci-layout";
const LAYOUT_TEXT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "index.json";
/// The largest index, manifest, config and lock, in bytes.
const MAX_TEXT: u64 = 16 << 20;

/// What a file in a bundle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileKind {
    /// The config, `millgate.toml`.
    Config,
    /// The lock, `millgate.lock`.
    Lock,
    /// A model, by its name in the config.
    Model,
    /// A prompt, by its name in the config.
    Prompt,
    /// A plugin that the config names by its file.
    Plugin,
}

impl FileKind {
    const ALL: [FileKind; 5] = [
        FileKind::Config,
        FileKind::Lock,
        FileKind::Model,
        FileKind::Prompt,
        FileKind::Plugin,
    ];

    /// The word for messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            FileKind::Config => "config",
            FileKind::Lock => "lock",
            FileKind::Model => "model",
            FileKind::Prompt => "prompt",
            FileKind::Plugin => "plugin file",
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            FileKind::Config => "application/vnd.millgate.config.v1+toml",
            FileKind::Lock => "application/vnd.millgate.lock.v1+toml",
            FileKind::Model => "application/vnd.millgate.model.v1",
            FileKind::Prompt => "application/vnd.millgate.prompt.v1",
            FileKind::Plugin => "application/vnd.millgate.plugin.v1+wasm",
        }
    }
}

/// A file to put into a bundle.
#[derive(Clone, Debug)]
pub struct BundleFile {
    /// What it is: a model, a prompt or a plugin file.
    pub kind: FileKind,
    /// Its name in the lock: a model's or prompt's name, or a plugin's source.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// What a bundle is made of.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The text of the config.
    pub config: String,
    /// Its lock: which plugins, models and prompts go in.
    pub lock: Lock,
    /// The files of its models and prompts, and of plugins that it names by file.
    pub files: Vec<BundleFile>,
}

/// What a bundle holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Plugins from registries.
    pub plugins: usize,
    /// Those of them with signatures.
    pub signed: usize,
    /// Models, prompts and plugin files.
    pub files: usize,
    /// All blobs together, in bytes.
    pub bytes: u64,
}

/// A bundle whose blobs are in the cache now.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The text of the config.
    pub config: String,
    /// Its lock.
    pub lock: Lock,
    /// Models, prompts and plugin files, at their places in the cache.
    pub files: Vec<LoadedFile>,
    /// How much it was.
    pub summary: Summary,
}

/// A file from a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedFile {
    /// What it is.
    pub kind: FileKind,
    /// Its name in the lock.
    pub name: String,
    /// The digest of its bytes, which the lock names too.
    pub digest: Digest,
    /// Where it is in the cache.
    pub path: PathBuf,
}

#[cfg(test)]
mod tests;
