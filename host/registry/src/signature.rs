//! Signatures in the form that cosign uses for keys (sigstore/cosign, SIGNATURE_SPEC.md): the
//! "simple signing" payload names the digest of a manifest, the signature is over the payload's
//! bytes, and both are an artifact of their own beside the plugin, at the tag `sha256-….sig`. No
//! transparency log is asked or written. The scheme is pure Ed25519 (RFC 8032), not Ed25519ph.
//!
//! The manifest names the component by its digest, and the component carries the plugin's own
//! manifest, so that a signature covers all of it.

use crate::digest::Digest;
use crate::error::Result;
use crate::key::SecretKey;
use crate::package::{Part, canonical, descriptor, part};
use crate::reference::Reference;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The media type of a payload.
pub const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation that holds the signature, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Our annotation beside it: the id of the key, so that a damaged signature is told from one by
/// an unknown key.
const KEY: &str = "dev.millgate.signature/key";
/// What the payload must say it is.
const KIND: &str = "cosign container image signature";
/// The most signatures that are read.
pub(crate) const MAX_SIGNATURES: usize = 32;
/// The longest payload, in bytes.
pub(crate) const MAX_PAYLOAD: u64 = 64 << 10;

/// A signature as it is stored: nothing about it is believed yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The bytes that are signed.
    pub payload: Bytes,
    /// The signature, 64 bytes if it is one of ours.
    pub signature: Vec<u8>,
    /// The id of the key that is said to have made it.
    pub key: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Payload {
    critical: Critical,
    optional: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Serialize, Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

impl Signature {
    /// Signs the manifest with the digest `manifest`, which is at `reference`.
    pub fn sign(key: &SecretKey, reference: &Reference, manifest: &Digest) -> Result<Signature> {
        let payload = canonical(&Payload {
            critical: Critical {
                identity: Identity {
                    reference: format!("{}/{}", reference.registry(), reference.repository()),
                },
                image: Image {
                    digest: manifest.to_string(),
                },
                kind: KIND.to_owned(),
            },
            optional: None,
        })?;
        Ok(Signature {
            signature: key.sign(&payload).to_vec(),
            payload,
            key: Some(key.public().id().to_owned()),
        })
    }

    /// The manifest that the payload says was signed; what is wrong with it otherwise.
    pub(crate) fn signed(&self) -> std::result::Result<Digest, String> {
        let payload: Payload = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("its signed text is no signing payload ({error})"))?;
        if payload.critical.kind != KIND {
            return Err(format!(
                "its signed text is a {:?}, not a {KIND:?}",
                payload.critical.kind
            ));
        }
        payload
            .critical
            .image
            .digest
            .parse()
            .map_err(|error: crate::Error| error.to_string())
    }

    /// Its entry in the manifest of signatures.
    pub(crate) fn descriptor(&self) -> OciDescriptor {
        let mut annotations =
            BTreeMap::from([(SIGNATURE.to_owned(), STANDARD.encode(&self.signature))]);
        if let Some(key) = &self.key {
            annotations.insert(KEY.to_owned(), key.clone());
        }
        OciDescriptor {
            annotations: Some(annotations),
            ..descriptor(PAYLOAD_TYPE, &self.payload)
        }
    }
}

/// A signature of which the payload is still to be read.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub payload: Digest,
    pub size: u64,
    signature: Vec<u8>,
    key: Option<String>,
}

impl Stored {
    pub(crate) fn with(self, payload: Bytes) -> Signature {
        Signature {
            payload,
            signature: self.signature,
            key: self.key,
        }
    }
}

/// The config of an artifact of signatures. Checking needs none; a complete image layout does.
pub(crate) fn config_of(manifest: &[u8]) -> Option<Part> {
    let manifest: OciImageManifest = serde_json::from_slice(manifest).ok()?;
    let part = part(&manifest.config).ok()?;
    (part.size <= MAX_PAYLOAD).then_some(part)
}

/// Reads the manifest of an artifact of signatures; what is wrong with it otherwise. Layers of
/// other kinds are left alone.
pub(crate) fn read_signatures(manifest: &[u8]) -> std::result::Result<Vec<Stored>, String> {
    let manifest: OciImageManifest = serde_json::from_slice(manifest)
        .map_err(|error| format!("the manifest of its signatures is none ({error})"))?;
    let mut found = Vec::new();
    for layer in &manifest.layers {
        let annotations = layer.annotations.as_ref();
        let word = |key: &str| annotations.and_then(|all| all.get(key));
        let Some(signature) = word(SIGNATURE).filter(|_| layer.media_type == PAYLOAD_TYPE) else {
            continue;
        };
        if found.len() == MAX_SIGNATURES {
            return Err(format!("it has more than {MAX_SIGNATURES} signatures"));
        }
        let part = part(layer)?;
        if part.size > MAX_PAYLOAD {
            return Err(format!("a signed text is larger than {MAX_PAYLOAD} bytes"));
        }
        found.push(Stored {
            payload: part.digest,
            size: part.size,
            // What is no base64 verifies by no key.
            signature: STANDARD.decode(signature.trim()).unwrap_or_default(),
            key: word(KEY).map(|key| key.chars().take(80).collect()),
        });
    }
    Ok(found)
}

/// The manifest and the config of an artifact with `signature` beside those that `old` has.
pub(crate) fn add_signature(old: Option<&[u8]>, signature: &Signature) -> Result<(Bytes, Bytes)> {
    let mut layers = old
        .and_then(|old| serde_json::from_slice::<OciImageManifest>(old).ok())
        .map(|old| old.layers)
        .unwrap_or_default();
    let new = signature.descriptor();
    let same =
        |layer: &OciDescriptor| layer.digest == new.digest && layer.annotations == new.annotations;
    if !layers.iter().any(same) {
        layers.push(new);
    }
    // The form that cosign gives to the config: an image of nothing.
    let config = canonical(&serde_json::json!({
        "architecture": "",
        "config": {},
        "created": "0001-01-01T00:00:00Z",
        "history": layers
            .iter()
            .map(|_| serde_json::json!({"created": "0001-01-01T00:00:00Z"}))
            .collect::<Vec<_>>(),
        "os": "",
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>(),
        },
    }))?;
    let manifest = OciImageManifest {
        media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
        config: descriptor(IMAGE_CONFIG_MEDIA_TYPE, &config),
        layers,
        ..OciImageManifest::default()
    };
    Ok((canonical(&manifest)?, config))
}
