//! A plugin as it came from a registry, the cache or a bundle: its bytes are checked against their
//! digests, its signatures are not yet checked against anybody's keys.

use crate::digest::Digest;
use crate::error::Result;
use crate::package::VERSION;
use crate::signature::Signature;
use crate::trust::{Signer, Trust};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A plugin's bytes and signatures.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// The digest of its OCI manifest: what is pinned, and what is signed.
    pub digest: Digest,
    /// The digest of the component alone.
    pub component_digest: Digest,
    /// The component.
    pub component: Bytes,
    /// What its publisher says about it. Not to be relied on before [`Plugin::verify`], and then
    /// only as far as the publisher is.
    pub annotations: BTreeMap<String, String>,
    /// The signatures beside it, which nobody has checked.
    pub signatures: Vec<Signature>,
}

impl Plugin {
    /// The version that its publisher gave it.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.annotations.get(VERSION).map(String::as_str)
    }

    /// Who signed it. `name` is the name in the plugin's own manifest (inside the component, so the
    /// signature covers it). Works offline; see [`Trust::check`].
    pub fn verify<'a>(&self, name: &str, trust: &'a Trust) -> Result<&'a Signer> {
        trust.check(name, &self.digest, &self.signatures)
    }
}
