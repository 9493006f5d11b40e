//! Plugins from OCI registries: [`Reference`]s, [pull](Registry::pull) and
//! [publish](Registry::publish), [`Signature`]s and whom to [`Trust`], the [`Lock`] file, and
//! offline [`bundle`]s. It knows bytes and digests, nothing of Wasm execution or HTTP serving.
//!
//! What is pulled is believed in three steps: every byte is checked against its digest while it is
//! read; the digest is held against the lock; the signature over the digest is held against the
//! signers that the operator trusts for a plugin of that name. The last two need no network.
//!
//! A vendor publishes:
//! ```no_run
//! # use millgate_registry::*;
//! # async fn publish(component: Vec<u8>) -> Result<()> {
//! let registry = Registry::new(RegistryConfig::default(), Credentials::Docker)?;
//! let reference: Reference = "registry.example/acme/pii:1.3.0".parse()?;
//! let package = Package::new(component, "acme-pii", "1.3.0")?.licenses("Apache-2.0");
//! let published = registry.publish(&reference, &package, false).await?;
//! let key = Keys::open("keys").load("acme")?; // made by `Keys::create`
//! registry.sign(&published.reference, &published.digest, &key).await?;
//! println!("{}", published.reference); // …:1.3.0@sha256:…
//! # Ok(()) }
//! ```
//! An operator pulls, checks and locks:
//! ```no_run
//! # use millgate_registry::*;
//! # use std::path::Path;
//! # async fn update(registry: Registry, trust: Trust, name: &str, version: &str, asks: Requests) -> Result<()> {
//! let cache = Cache::open("cache");
//! let reference: Reference = "registry.example/acme/pii:1.3.0".parse()?;
//! let plugin = registry.pull(&reference, &cache).await?;
//! // `name`, `version` and what it asks for stand in the plugin's own manifest.
//! let signer = plugin.verify(name, &trust)?;
//! let mut lock = Lock::read(Path::new("millgate.lock")).or_else(Lock::or_new)?;
//! let new = LockedPlugin {
//!     source: reference.without_pin().to_string(),
//!     name: name.into(),
//!     version: version.into(),
//!     component: plugin.component_digest,
//!     manifest: Some(plugin.digest),
//!     signer: Some(signer.name.clone()),
//!     requests: asks,
//! };
//! let update = lock.compare(&new, false)?;
//! update.lines().iter().for_each(|line| println!("{name} {line}")); // and ask
//! lock.set(new);
//! lock.write(Path::new("millgate.lock"))
//! # }
//! ```
//! `serve --locked` then needs [`Lock::check`], and for each plugin [`LockedPlugin::load`].

pub mod bundle;
mod cache;
mod challenge;
mod credentials;
mod digest;
mod error;
mod fetch;
mod files;
mod key;
mod lock;
mod outward;
mod package;
mod plugin;
mod publish;
mod reference;
mod registry;
mod requests;
mod signature;
mod trust;
pub mod version;

pub use cache::Cache;
pub use credentials::{Credentials, Login};
pub use digest::Digest;
pub use error::{Error, Result};
pub use key::{KeyEntry, Keys, PublicKey, SecretKey};
pub use lock::{Lock, LockedFile, LockedPlugin, Update, Wishes};
pub use package::{CONFIG_TYPE, LAYER_TYPE, Package, Packed, VERSION};
pub use plugin::Plugin;
pub use publish::Published;
pub use reference::Reference;
pub use registry::{Registry, RegistryConfig};
pub use requests::{Change, Request, Requests, diff};
pub use signature::{PAYLOAD_TYPE, Signature};
pub use trust::{Signer, Trust, TrustConfig};
