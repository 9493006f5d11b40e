//! Bundles, made, carried and broken.

use super::{BundleFile, Contents, FileKind, Loaded, create, load};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::Error;
use crate::key::Keys;
use crate::lock::{Lock, LockedFile, LockedPlugin};
use crate::package::Package;
use crate::reference::Reference;
use crate::requests::Requests;
use crate::signature::{self, Signature};
use crate::trust::{Trust, TrustConfig};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";
const MODEL: &[u8] = b"the bytes of a model";
const SOURCE: &str = "r.example/acme/pii:1.0.0";

struct Case {
    dir: TempDir,
    cache: Cache,
    contents: Contents,
    trust: Trust,
    plugin: Digest,
}

/// A cache with a signed plugin, and a config that wants it with a model and a plugin file.
fn case() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().join("cache"));
    let package = Package::new(COMPONENT, "acme-pii", "1.0.0").unwrap();
    let packed = package.pack().unwrap();
    for bytes in [&packed.manifest, &packed.config, &packed.component] {
        cache.put(bytes).unwrap();
    }
    let plugin = packed.digest();
    let key = Keys::open(dir.path().join("keys")).create("acme").unwrap();
    let reference: Reference = SOURCE.parse().unwrap();
    let signed = Signature::sign(&key, &reference, &plugin).unwrap();
    let (list, config) = signature::add_signature(None, &signed).unwrap();
    for bytes in [&signed.payload, &config] {
        cache.put(bytes).unwrap();
    }
    let list = cache.put(&list).unwrap();
    cache.set_signatures(&plugin, Some(&list)).unwrap();
    let trust = Trust::new(&[TrustConfig {
        name: "Acme".into(),
        key: key.public().pem().unwrap(),
        plugins: vec!["acme-*".into()],
    }])
    .unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let locked = |source: &str, component: &[u8], manifest| LockedPlugin {
        source: source.into(),
        name: "acme-pii".into(),
        version: "1.0.0".into(),
        component: Digest::of(component),
        manifest,
        signer: None,
        requests: Requests::default(),
    };
    let contents = Contents {
        config: "[server]\n".into(),
        lock: Lock {
            plugins: vec![
                locked(SOURCE, COMPONENT, Some(plugin)),
                locked("own.wasm", b"own", None),
                locked("canary", b"first-party: in the binary", None),
            ],
            models: vec![LockedFile {
                name: "default".into(),
                digest: Digest::of(MODEL),
            }],
            prompts: vec![],
        },
        files: vec![
            BundleFile {
                kind: FileKind::Model,
                name: "default".into(),
                path: file("model.gguf", MODEL),
            },
            BundleFile {
                kind: FileKind::Plugin,
                name: "own.wasm".into(),
                path: file("own.wasm", b"own"),
            },
        ],
    };
    Case {
        dir,
        cache,
        contents,
        trust,
        plugin,
    }
}

impl Case {
    fn make(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        create(&path, &self.cache, &self.contents).unwrap();
        path
    }

    fn fresh(&self) -> Cache {
        let name = format!("fresh-{}", fs::read_dir(self.dir.path()).unwrap().count());
        Cache::open(self.dir.path().join(name))
    }

    /// Everything is there, in a cache that had nothing.
    fn check(&self, loaded: &Loaded, cache: &Cache) {
        assert_eq!(loaded.config, self.contents.config);
        let mut sorted = loaded.lock.clone();
        sorted.plugins.sort_by(|a, b| b.source.cmp(&a.source));
        assert_eq!(loaded.lock.models, self.contents.lock.models);
        assert_eq!(sorted.plugins.len(), self.contents.lock.plugins.len());
        assert_eq!(loaded.summary.plugins, 1);
        assert_eq!(loaded.summary.signed, 1);
        assert_eq!(loaded.summary.files, 2);
        let plugin = cache.plugin(&self.plugin).unwrap();
        assert_eq!(&plugin.component[..], COMPONENT);
        assert_eq!(plugin.verify("acme-pii", &self.trust).unwrap().name, "Acme");
        let model = loaded
            .files
            .iter()
            .find(|file| file.kind == FileKind::Model);
        let model = model.unwrap();
        assert_eq!(model.name, "default");
        assert_eq!(fs::read(&model.path).unwrap(), MODEL);
    }
}

#[test]
fn a_bundle_carries_everything() {
    let case = case();
    for name in ["bundle", "bundle.tar"] {
        let path = case.make(name);
        let cache = case.fresh();
        let loaded = load(&path, &cache).unwrap();
        case.check(&loaded, &cache);
        // Loading again changes nothing, and what was loaded can be bundled again.
        case.check(&load(&path, &cache).unwrap(), &cache);
        let again = case.dir.path().join(format!("again-{name}"));
        create(&again, &cache, &case.contents).unwrap();
        if name == "bundle.tar" {
            assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
        }
        // What is there is never written over.
        let error = create(&path, &cache, &case.contents).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
    // No draft is left behind.
    let drafts = fs::read_dir(case.dir.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".part")
    });
    assert_eq!(drafts.count(), 0);
}

#[test]
fn a_locked_plugin_is_loaded_offline_or_refused() {
    let case = case();
    let mut locked = case.contents.lock.plugins[0].clone();
    locked.signer = Some("Acme".into());
    let load = |locked: &LockedPlugin, trust: &Trust| locked.load(&case.cache, trust);
    let plugin = load(&locked, &case.trust).unwrap().unwrap();
    assert_eq!(plugin.component, COMPONENT);
    // Files have no manifest, and are the caller's.
    let file = &case.contents.lock.plugins[1];
    assert!(load(file, &case.trust).unwrap().is_none());
    let error = load(&locked, &Trust::default()).unwrap_err();
    assert!(matches!(error, Error::UnknownKey { .. }), "{error}");
    let mut other = locked.clone();
    other.signer = None;
    other.component = Digest::of(b"other");
    let Error::Disagrees { differences } = load(&other, &case.trust).unwrap_err() else {
        panic!("it should disagree")
    };
    assert_eq!(differences.len(), 2, "{differences:?}");
    case.cache.set_signatures(&case.plugin, None).unwrap();
    let error = load(&locked, &case.trust).unwrap_err();
    assert!(matches!(error, Error::Unsigned { .. }), "{error}");
    locked.manifest = Some(Digest::of(b"nowhere"));
    let error = load(&locked, &case.trust).unwrap_err();
    assert!(matches!(error, Error::Absent { .. }), "{error}");
}

#[test]
fn a_bundle_is_not_made_without_all_that_is_locked() {
    let mut case = case();
    let path = case.dir.path().join("bundle");
    case.contents.files.remove(0);
    let error = create(&path, &case.cache, &case.contents)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the model default is locked and has no file"),
        "{error}"
    );
    fs::write(case.dir.path().join("own.wasm"), b"changed").unwrap();
    let error = create(&path, &case.cache, &case.contents)
        .unwrap_err()
        .to_string();
    assert!(error.contains("own.wasm"), "{error}");
    fs::remove_file(case.cache.path(&Digest::of(COMPONENT))).unwrap();
    let error = create(&path, &case.cache, &case.contents).unwrap_err();
    assert!(matches!(error, Error::Absent { .. }), "{error}");
    assert!(!path.exists());
}

fn blobs(bundle: &Path) -> Vec<PathBuf> {
    fs::read_dir(bundle.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn every_missing_and_every_changed_blob_is_named() {
    let case = case();
    let bundle = case.make("bundle");
    for blob in blobs(&bundle) {
        let bytes = fs::read(&blob).unwrap();
        let digest = format!("sha256:{}", blob.file_name().unwrap().to_string_lossy());
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        let longer = [&bytes[..], b" "].concat();
        for (damage, why) in [
            (None, "is missing"),
            (Some(changed), "was changed"),
            (Some(longer), " bytes in place of "),
            (
                Some(bytes[..bytes.len() - 1].to_vec()),
                " bytes in place of ",
            ),
        ] {
            match damage {
                None => fs::remove_file(&blob).unwrap(),
                Some(bytes) => fs::write(&blob, bytes).unwrap(),
            }
            let cache = case.fresh();
            match load(&bundle, &cache) {
                Err(error @ Error::Bundle { .. }) => {
                    let text = error.to_string();
                    assert!(text.contains(&digest) && text.contains(why), "{text}");
                    assert!(!cache.dir().exists(), "nothing is loaded");
                }
                // The empty config of our own manifest, and that of the signatures, serve only
                // other tools.
                Ok(loaded) => {
                    let optional = bytes == b"{}" || bytes.starts_with(b"{\"architecture\":\"\"");
                    assert!(optional, "{digest} {why}");
                    case.check(&loaded, &cache);
                }
                Err(error) => panic!("{error}"),
            }
        }
        fs::write(&blob, &bytes).unwrap();
    }
    load(&bundle, &case.fresh()).unwrap();
}

#[test]
fn a_damaged_tar_is_refused() {
    let case = case();
    let path = case.make("bundle.tar");
    let bytes = fs::read(&path).unwrap();
    for keep in [0, 10, 600, bytes.len() / 3, bytes.len() / 2] {
        fs::write(&path, &bytes[..keep]).unwrap();
        let cache = case.fresh();
        load(&path, &cache).unwrap_err();
        assert!(!cache.dir().exists());
    }
    fs::write(&path, b"no tar at all".repeat(100)).unwrap();
    load(&path, &case.fresh()).unwrap_err();
    let error = load(&case.dir.path().join("none.tar"), &case.fresh()).unwrap_err();
    assert!(error.to_string().contains("none.tar"), "{error}");
}

#[test]
fn a_folder_that_is_no_bundle_is_said() {
    let case = case();
    let error = load(case.dir.path(), &case.fresh())
        .unwrap_err()
        .to_string();
    assert!(error.contains("oci-layout is missing"), "{error}");
    let bundle = case.make("bundle");
    for (name, text, why) in [
        ("oci-layout", "{}", "not that of an OCI image layout"),
        ("index.json", "{", "no OCI index"),
        (
            "index.json",
            r#"{"schemaVersion":2,"manifests":[]}"#,
            "has no config",
        ),
    ] {
        let good = fs::read(bundle.join(name)).unwrap();
        fs::write(bundle.join(name), text).unwrap();
        let error = load(&bundle, &case.fresh()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        fs::write(bundle.join(name), good).unwrap();
    }
}

#[test]
fn a_lock_that_names_more_than_the_bundle_has_is_seen() {
    let case = case();
    let bundle = case.make("bundle");
    // The index without its plugin: all blobs are there and fit, and yet it is not complete.
    let index = fs::read_to_string(bundle.join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&index).unwrap();
    index["manifests"].as_array_mut().unwrap().remove(0);
    fs::write(bundle.join("index.json"), index.to_string()).unwrap();
    let error = load(&bundle, &case.fresh()).unwrap_err().to_string();
    assert!(
        error.contains("the plugin r.example/acme/pii:1.0.0 is locked and not in it"),
        "{error}"
    );
}

#[test]
fn names_in_a_tar_never_become_paths() {
    let case = case();
    let good = case.make("bundle.tar");
    let evil = case.dir.path().join("evil.tar");
    let mut tar = tar::Builder::new(fs::File::create(&evil).unwrap());
    for (name, bytes) in [
        ("../../escaped", b"x"),
        ("blobs/sha256/../../escaped", b"y"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(1);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, &bytes[..]).unwrap();
    }
    let mut archive = tar::Archive::new(fs::File::open(&good).unwrap());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut header = entry.header().clone();
        let path = entry.path().unwrap().into_owned();
        tar.append_data(&mut header, path, &mut entry).unwrap();
    }
    tar.into_inner().unwrap();
    let cache = case.fresh();
    case.check(&load(&evil, &cache).unwrap(), &cache);
    assert!(!case.dir.path().join("escaped").exists());
    assert!(!cache.dir().join("escaped").exists());
}
