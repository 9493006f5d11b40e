//! How a component is packaged for a registry: one manifest, one config, one layer, as the Wasm OCI
//! artifact guidance of the CNCF (TAG Runtime) has it and as `wkg` writes and reads it. With the
//! same times and annotations the bytes are the same ones, so either tool pulls what the other
//! published.

use crate::digest::Digest;
use crate::error::{Error, Result};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::SystemTime;
use wasmparser::{Encoding, Parser, Payload};

/// The media type of the config.
pub const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
/// The media type of the layer.
pub const LAYER_TYPE: &str = "application/wasm";
/// The annotation of the version.
pub const VERSION: &str = "org.opencontainers.image.version";
const TITLE: &str = "org.opencontainers.image.title";
const DESCRIPTION: &str = "org.opencontainers.image.description";
const LICENSES: &str = "org.opencontainers.image.licenses";
const AUTHORS: &str = "org.opencontainers.image.authors";
const SOURCE: &str = "org.opencontainers.image.source";
const URL: &str = "org.opencontainers.image.url";

/// The first eight bytes of every component.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A component to publish, and what a registry shows about it.
#[derive(Clone, Debug)]
pub struct Package {
    component: Bytes,
    exports: Vec<String>,
    imports: Vec<String>,
    name: String,
    version: semver::Version,
    created: SystemTime,
    annotations: BTreeMap<String, String>,
}

/// The three parts of a packaged component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// The OCI manifest, whose digest is what others pin and what is signed.
    pub manifest: Bytes,
    /// Its config.
    pub config: Bytes,
    /// The component.
    pub component: Bytes,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WasmConfig {
    created: String,
    author: Option<String>,
    architecture: String,
    os: String,
    layer_digests: Vec<String>,
    component: Option<WasmComponent>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WasmComponent {
    exports: Vec<String>,
    imports: Vec<String>,
    target: Option<String>,
}

impl Package {
    /// A component by its plugin's name and version, both from the plugin's own manifest.
    ///
    /// The time of creation is 1970 unless it is set: the same component is then the same artifact,
    /// whoever publishes it and when.
    pub fn new(component: impl Into<Bytes>, name: &str, version: &str) -> Result<Package> {
        let component = component.into();
        let (exports, imports) = interfaces(&component)?;
        let version = crate::version::parse(version)?;
        let annotations = BTreeMap::from([(VERSION.to_owned(), version.to_string())]);
        Ok(Package {
            component,
            exports,
            imports,
            name: name.to_owned(),
            version,
            created: SystemTime::UNIX_EPOCH,
            annotations,
        })
    }

    /// When it was made.
    #[must_use]
    pub fn created(mut self, created: SystemTime) -> Package {
        self.created = created;
        self
    }

    /// One line about it.
    #[must_use]
    pub fn description(self, text: &str) -> Package {
        self.annotated(DESCRIPTION, text)
    }

    /// Its licence (SPDX expression).
    #[must_use]
    pub fn licenses(self, text: &str) -> Package {
        self.annotated(LICENSES, text)
    }

    /// Who made it.
    #[must_use]
    pub fn authors(self, text: &str) -> Package {
        self.annotated(AUTHORS, text)
    }

    /// Where its sources are.
    #[must_use]
    pub fn source(self, url: &str) -> Package {
        self.annotated(SOURCE, url)
    }

    /// Where to read about it.
    #[must_use]
    pub fn url(self, url: &str) -> Package {
        self.annotated(URL, url)
    }

    /// Any other annotation of the manifest.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Package {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The plugin's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's version.
    #[must_use]
    pub fn version(&self) -> &semver::Version {
        &self.version
    }

    /// The bytes that go to the registry.
    pub fn pack(&self) -> Result<Packed> {
        let layer = descriptor(LAYER_TYPE, &self.component);
        let created = DateTime::<Utc>::from(self.created);
        let config = WasmConfig {
            created: created.to_rfc3339_opts(SecondsFormat::AutoSi, true),
            author: None,
            architecture: "wasm".into(),
            os: "wasip2".into(),
            layer_digests: vec![layer.digest.clone()],
            component: Some(WasmComponent {
                exports: self.exports.clone(),
                imports: self.imports.clone(),
                target: None,
            }),
        };
        let config = Bytes::from(serde_json::to_vec(&config).map_err(not_json)?);
        let title = BTreeMap::from([(TITLE.to_owned(), format!("{}.wasm", self.name))]);
        let manifest = OciImageManifest {
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: descriptor(CONFIG_TYPE, &config),
            layers: vec![OciDescriptor {
                annotations: Some(title),
                ..layer
            }],
            annotations: Some(self.annotations.clone()),
            ..OciImageManifest::default()
        };
        Ok(Packed {
            manifest: canonical(&manifest)?,
            config,
            component: self.component.clone(),
        })
    }
}

impl Packed {
    /// The digest of the manifest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

/// One part of a published artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub digest: Digest,
    pub size: u64,
}

/// What a manifest says about a published plugin.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    pub config: Part,
    pub component: Part,
    pub annotations: BTreeMap<String, String>,
}

/// Reads a manifest; `what` names the plugin in errors.
pub(crate) fn read_manifest(what: &str, manifest: &[u8]) -> Result<Contents> {
    let bad = |why: String| Error::NotAPlugin {
        reference: what.to_owned(),
        why,
    };
    let json: serde_json::Value = serde_json::from_slice(manifest)
        .map_err(|error| bad(format!("its manifest is not JSON ({error})")))?;
    if json.get("manifests").is_some() {
        return Err(bad(
            "it is an index of images for several platforms; a plugin is one component".into(),
        ));
    }
    let manifest: OciImageManifest = serde_json::from_value(json)
        .map_err(|error| bad(format!("its manifest is no OCI manifest ({error})")))?;
    if let Some(other) = manifest
        .media_type
        .as_deref()
        .filter(|kind| *kind != OCI_IMAGE_MEDIA_TYPE)
    {
        return Err(bad(format!(
            "its manifest has the media type {other:?} in place of {OCI_IMAGE_MEDIA_TYPE}"
        )));
    }
    if manifest.config.media_type != CONFIG_TYPE {
        return Err(bad(format!(
            "its config has the media type {:?} in place of {CONFIG_TYPE}",
            manifest.config.media_type
        )));
    }
    let [layer] = manifest.layers.as_slice() else {
        return Err(bad(format!(
            "it has {} layers in place of one",
            manifest.layers.len()
        )));
    };
    if layer.media_type != LAYER_TYPE {
        return Err(bad(format!(
            "its layer has the media type {:?} in place of {LAYER_TYPE}",
            layer.media_type
        )));
    }
    Ok(Contents {
        config: part(&manifest.config).map_err(bad)?,
        component: part(layer).map_err(bad)?,
        annotations: manifest.annotations.unwrap_or_default(),
    })
}

/// Holds the config and the component against each other.
pub(crate) fn check_parts(
    what: &str,
    contents: &Contents,
    config: &[u8],
    component: &[u8],
) -> Result<()> {
    let bad = |why: String| Error::NotAPlugin {
        reference: what.to_owned(),
        why,
    };
    let config: WasmConfig = serde_json::from_slice(config)
        .map_err(|error| bad(format!("its config is not that of a component ({error})")))?;
    if config.layer_digests != [contents.component.digest.to_string()] {
        return Err(bad("its config is that of other bytes".into()));
    }
    if !component.starts_with(COMPONENT) {
        return Err(bad("its layer is no WebAssembly component".into()));
    }
    Ok(())
}

pub(crate) fn part(descriptor: &OciDescriptor) -> std::result::Result<Part, String> {
    Ok(Part {
        digest: descriptor
            .digest
            .parse()
            .map_err(|error: Error| error.to_string())?,
        size: u64::try_from(descriptor.size)
            .map_err(|_| format!("it names a size of {} bytes", descriptor.size))?,
    })
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> OciDescriptor {
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: Digest::of(bytes).to_string(),
        // No buffer has more than i64::MAX bytes.
        size: i64::try_from(bytes.len()).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    }
}

/// The JSON whose digest is the same whoever writes it.
pub(crate) fn canonical(value: &impl Serialize) -> Result<Bytes> {
    let mut bytes = Vec::new();
    let formatter = olpc_cjson::CanonicalFormatter::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value.serialize(&mut serializer).map_err(not_json)?;
    Ok(bytes.into())
}

fn not_json(error: serde_json::Error) -> Error {
    Error::NotAComponent {
        why: format!("its manifest cannot be written: {error}"),
    }
}

/// The names of a component's exports and imports, in their order.
fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    let bad = |why: String| Error::NotAComponent { why };
    let (mut exports, mut imports) = (Vec::new(), Vec::new());
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(|error| bad(error.to_string()))? {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } if depth == 0 => {
                return Err(bad(
                    "it is a core module: make it a component (target wasm32-wasip2)".into(),
                ));
            }
            // What is nested has versions, imports and exports of its own.
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.push(
                        import
                            .map_err(|error| bad(error.to_string()))?
                            .name
                            .name
                            .to_owned(),
                    );
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    exports.push(
                        export
                            .map_err(|error| bad(error.to_string()))?
                            .name
                            .name
                            .to_owned(),
                    );
                }
            }
            _ => {}
        }
    }
    Ok((exports, imports))
}
