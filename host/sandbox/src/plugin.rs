//! A plugin's bytes: what is read and checked before anything of it runs.

use sha2::{Digest as _, Sha256};
use wasmparser::{Parser, Payload, Validator, WasmFeatures};

use crate::contract::{Interface, PACKAGE, VERSION};
use crate::error::{Error, Result};
use crate::manifest::{Capability, Manifest, SECTION};
use crate::spec::Grant;

/// The most bytes that a plugin may have. Python guests have 18 MB.
const MAX_BYTES: usize = 64 << 20;

/// What can be said about a plugin without configuring it.
#[derive(Clone, Debug)]
pub struct PluginInfo {
    /// Its manifest.
    pub manifest: Manifest,
    /// `sha256:HEX` of its bytes.
    pub digest: String,
    /// The names of its imports.
    pub imports: Vec<String>,
    /// The stage interfaces that it exports.
    pub interfaces: Vec<Interface>,
    /// Its size in bytes.
    pub size: u64,
}

/// Reads a plugin: a valid component with a manifest that agrees with its imports and exports.
pub(crate) fn inspect(bytes: &[u8]) -> Result<PluginInfo> {
    if bytes.len() > MAX_BYTES {
        return Err(Error::NotAComponent(format!(
            "it is larger than {MAX_BYTES} bytes"
        )));
    }
    let outline = Outline::read(bytes)?;
    Validator::new_with_features(features())
        .validate_all(bytes)
        .map_err(|error| Error::NotAComponent(error.to_string()))?;
    let manifest = Manifest::parse(outline.manifest()?)?;
    check_exports(&manifest, &outline.exports)?;
    check_imports(&manifest, &outline.imports)?;
    Ok(PluginInfo {
        digest: format!("sha256:{}", hex::encode(Sha256::digest(bytes))),
        imports: outline.imports,
        interfaces: manifest.interfaces.clone(),
        size: bytes.len() as u64,
        manifest,
    })
}

/// The Wasm that a plugin may be made of; the engine has the same bounds.
fn features() -> WasmFeatures {
    let mut features = WasmFeatures::default();
    for unwanted in [
        WasmFeatures::THREADS,
        WasmFeatures::MEMORY64,
        WasmFeatures::MULTI_MEMORY,
        WasmFeatures::RELAXED_SIMD,
        WasmFeatures::CUSTOM_PAGE_SIZES,
        WasmFeatures::CM_ASYNC,
        WasmFeatures::GC,
        WasmFeatures::EXCEPTIONS,
    ] {
        features.remove(unwanted);
    }
    features
}

/// The parts of a component that matter here.
#[derive(Default)]
struct Outline<'a> {
    imports: Vec<String>,
    exports: Vec<String>,
    /// Manifests of the component itself, and of modules in it.
    own: Vec<&'a [u8]>,
    inner: Vec<&'a [u8]>,
}

impl<'a> Outline<'a> {
    fn read(bytes: &'a [u8]) -> Result<Outline<'a>> {
        if !Parser::is_component(bytes) {
            return Err(Error::NotAComponent(if Parser::is_core_wasm(bytes) {
                "it is a core module; build for the target wasm32-wasip2".into()
            } else {
                "it does not begin as one".into()
            }));
        }
        let bad = |error: wasmparser::BinaryReaderError| Error::NotAComponent(error.to_string());
        let mut outline = Outline::default();
        let mut depth = 0usize;
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(bad)? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::CustomSection(section) if section.name() == SECTION => {
                    let list = if depth == 0 {
                        &mut outline.own
                    } else {
                        &mut outline.inner
                    };
                    list.push(section.data());
                }
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        outline
                            .imports
                            .push(import.map_err(bad)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        outline
                            .exports
                            .push(export.map_err(bad)?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(outline)
    }

    /// The component's own manifest, else the one that a module in it carries (where linkers
    /// leave what a source file puts into a section).
    fn manifest(&self) -> Result<&'a [u8]> {
        match (self.own.as_slice(), self.inner.as_slice()) {
            ([one], _) | ([], [one]) => Ok(one),
            ([], []) => Err(Error::NoManifest),
            _ => Err(Error::Manifest(
                "there are several `millgate:manifest` sections; the component needs one of its own"
                    .into(),
            )),
        }
    }
}

/// `millgate:stage/NAME@VERSION` as (NAME, VERSION).
fn contract_name(full: &str) -> Option<(&str, &str)> {
    full.strip_prefix(PACKAGE)?
        .strip_prefix('/')?
        .split_once('@')
}

/// Whether `version` is on this host's track: additions keep `0.1`.
fn same_track(version: &str) -> bool {
    let track = |v: &str| v.rsplit_once('.').map(|(track, _)| track.to_owned());
    track(version) == track(VERSION)
}

fn check_version(plugin: &str, version: &str) -> Result<()> {
    if same_track(version) {
        return Ok(());
    }
    Err(Error::Contract {
        plugin: plugin.into(),
        needs: version.into(),
    })
}

fn check_exports(manifest: &Manifest, exports: &[String]) -> Result<()> {
    let plugin = &manifest.name;
    let problem = |why: String| Error::Interfaces {
        plugin: plugin.clone(),
        why,
    };
    let mut found = Vec::new();
    let mut lifecycle = false;
    for (name, version) in exports.iter().filter_map(|export| contract_name(export)) {
        check_version(plugin, version)?;
        lifecycle |= name == "lifecycle";
        found.extend(
            Interface::ALL
                .into_iter()
                .filter(|interface| interface.name() == name),
        );
    }
    if !lifecycle {
        return Err(problem(format!(
            "does not export {PACKAGE}/lifecycle@{VERSION}"
        )));
    }
    if let Some(missing) = manifest.interfaces.iter().find(|i| !found.contains(i)) {
        return Err(problem(format!(
            "declares {missing} but does not export it"
        )));
    }
    if let Some(extra) = found.iter().find(|i| !manifest.interfaces.contains(i)) {
        return Err(problem(format!(
            "exports {extra} but does not declare it in its manifest"
        )));
    }
    Ok(())
}

fn check_imports(manifest: &Manifest, imports: &[String]) -> Result<()> {
    let plugin = &manifest.name;
    for import in imports {
        let refuse = |why: &str| {
            Err(Error::Import {
                plugin: plugin.clone(),
                import: import.clone(),
                why: why.into(),
            })
        };
        if import.starts_with("wasi:http/") {
            return Err(Error::NotAvailable {
                plugin: plugin.clone(),
                capability: "http",
            });
        }
        if import.starts_with("wasi:") {
            continue;
        }
        let Some((name, version)) = contract_name(import) else {
            return refuse("which is not in the contract");
        };
        check_version(plugin, version)?;
        match name {
            "types" | "context" | "fault" | "log" | "metrics" => {}
            // The types of the exports may be imported back; they carry no functions.
            name if Interface::ALL.iter().any(|i| i.name() == name) => {}
            name => match Capability::ALL.into_iter().find(|c| c.name() == name) {
                Some(capability) if manifest.requests.contains(&capability) => {}
                Some(_) => return refuse("but its manifest does not list it in `requests`"),
                None => return refuse("which is not in the contract"),
            },
        }
    }
    Ok(())
}

/// Checks that all that the plugin asks for is granted. What is granted but not asked for stays
/// unlinked: a grant is the intersection of the two.
pub(crate) fn check_grant(manifest: &Manifest, stage: &str, grant: &Grant) -> Result<()> {
    for capability in &manifest.requests {
        let granted = match capability {
            Capability::State => grant.state.is_some(),
            Capability::Inference => grant.inference.is_some(),
            Capability::Secrets | Capability::Http => {
                return Err(Error::NotAvailable {
                    plugin: manifest.name.clone(),
                    capability: capability.name(),
                });
            }
        };
        if !granted {
            return Err(Error::NotGranted {
                stage: stage.into(),
                plugin: manifest.name.clone(),
                capability: capability.name(),
                line: capability.line(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_keep_the_track() {
        assert!(same_track("0.1.0") && same_track("0.1.7"));
        assert!(!same_track("0.2.0") && !same_track("1.1.0") && !same_track("0.1"));
    }

    #[test]
    fn what_is_no_component_is_refused_in_words() {
        let words = |bytes: &[u8]| inspect(bytes).unwrap_err().to_string();
        assert!(words(b"").contains("not a valid Wasm component"));
        assert!(words(b"MZ\x90\x00").contains("not a valid Wasm component"));
        assert!(words(b"\0asm\x01\0\0\0").contains("core module"));
        assert!(matches!(
            inspect(b"\0asm\x0d\0\x01\0"),
            Err(Error::NoManifest)
        ));
        assert!(inspect(b"\0asm\x0d\0\x01\0\x07").is_err());
    }
}
