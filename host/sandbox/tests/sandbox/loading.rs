//! What is refused at load, and in which words.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use millgate_hostile::{ASKING, HOSTILE, PLAIN, SCAN};
use millgate_sandbox::{
    Error, Grant, Interface, MemoryServices, Sandbox, SandboxOptions, StageSpec,
};
use serde_json::json;

use crate::common::{filter, load, sandbox, told, with_manifest};

fn refused(sandbox: &Sandbox, wasm: &[u8], spec: StageSpec) -> Error {
    match sandbox.load(wasm, spec, Arc::new(MemoryServices::default())) {
        Ok(_) => panic!("it should be refused"),
        Err(error) => error,
    }
}

fn spec() -> StageSpec {
    StageSpec::new("mail", json!({}))
}

/// A manifest for the scan guest with a change.
fn manifest(from: &str, to: &str) -> Vec<u8> {
    let good = "name = \"scan\"\nversion = \"0.1.0\"\nlicense = \"Apache-2.0\"\nhelp = \"h\"\n\
                contract = \"0.1\"\ninterfaces = [\"compliance\"]\nrequests = []\n";
    assert!(good.contains(from));
    good.replace(from, to).into_bytes()
}

#[test]
fn a_plugin_is_described_without_running_it() {
    let info = sandbox().inspect(HOSTILE).unwrap();
    assert_eq!(info.manifest.name, "hostile");
    assert_eq!(info.interfaces.len(), 5);
    assert!(info.has(Interface::Compliance));
    assert!(
        info.imports
            .iter()
            .any(|import| import.starts_with("millgate:stage/state@"))
    );
    assert_eq!(info.size, HOSTILE.len() as u64);
    assert!(info.digest.starts_with("sha256:") && info.digest.len() == 71);
    let info = sandbox().inspect(SCAN).unwrap();
    assert!(
        info.imports
            .iter()
            .all(|import| import.starts_with("millgate:stage/")),
        "{info:?}"
    );
}

#[test]
fn no_manifest_no_load() {
    let empty = wasm_encoder::Component::new().finish();
    assert!(matches!(
        refused(&sandbox(), &empty, spec()),
        Error::NoManifest
    ));
}

#[test]
fn a_bad_manifest_is_refused_in_words() {
    let sandbox = sandbox();
    for (manifest, words) in [
        (b"\xff\xfe garbled".to_vec(), "UTF-8"),
        (b"name = ".to_vec(), "manifest"),
        (manifest("name = \"scan\"", "nome = \"scan\""), "nome"),
        (
            manifest("contract = \"0.1\"", "contract = \"0.2\""),
            "`scan` needs contract 0.2, this host speaks 0.1",
        ),
        (
            manifest("[\"compliance\"]", "[\"compliance\", \"evaluation\"]"),
            "declares evaluation but does not export it",
        ),
        (
            manifest("[\"compliance\"]", "[\"evaluation\"]"),
            "evaluation",
        ),
        (
            manifest("requests = []", "requests = [\"http\"]"),
            "`http`: it is in the contract, but not available",
        ),
        (
            manifest("requests = []", "requests = [\"secrets\"]"),
            "`secrets`: it is in the contract, but not available",
        ),
        (manifest("requests = []", "requests = [\"root\"]"), "root"),
    ] {
        let error = refused(&sandbox, &with_manifest(SCAN, &manifest), spec()).to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
    }
}

#[test]
fn what_is_asked_for_and_not_granted_is_refused_with_the_line_that_grants_it() {
    let sandbox = sandbox();
    let mut spec = told("none");
    spec.grant = Grant::default();
    let error = refused(&sandbox, HOSTILE, spec).to_string();
    for words in [
        "`hostile`",
        "`state`",
        "[stages.under-test]",
        "grant.state = { bytes = 65536 }",
    ] {
        assert!(error.contains(words), "{error}");
    }
    let error = refused(&sandbox, ASKING, StageSpec::new("judge", json!({}))).to_string();
    assert!(error.contains("grant.inference = { models = "), "{error}");
}

#[test]
fn an_import_that_the_manifest_does_not_ask_for_is_refused() {
    let quiet = manifest(
        "[\"compliance\"]",
        "[\"validation\", \"compliance\", \"monitoring\", \"deployment\", \"evaluation\"]",
    );
    let error = refused(&sandbox(), &with_manifest(HOSTILE, &quiet), told("none")).to_string();
    assert!(
        error.contains("millgate:stage/state@0.1.0") && error.contains("`requests`"),
        "{error}"
    );
}

#[test]
fn a_config_is_checked_and_completed() {
    let sandbox = sandbox();
    let error = refused(
        &sandbox,
        SCAN,
        StageSpec::new("mail", json!({ "mask": 1, "x": 2 })),
    );
    let Error::Config { stage, problems } = &error else {
        panic!("{error}")
    };
    assert_eq!(stage, "mail");
    assert!(
        problems
            .iter()
            .any(|p| p.starts_with("/mask: ") && p.contains("string")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|p| p.contains("'x'")), "{problems:?}");

    let (stage, _) = load(&sandbox, SCAN, spec());
    assert_eq!(stage.spec().config, json!({ "mask": "[email]" }));
    let (other, _) = load(
        &sandbox,
        SCAN,
        StageSpec::new("mail", json!({ "mask": "***" })),
    );
    assert_eq!(filter(&other, "a@b.cd.").unwrap(), "***");
    assert_eq!(filter(&stage, "a@b.cd ").unwrap(), "[email] ");
}

#[test]
fn a_truncated_plugin_is_refused() {
    let sandbox = sandbox();
    for length in [0, 4, 8, 100, SCAN.len() / 2, SCAN.len() - 1] {
        refused(&sandbox, &SCAN[..length], spec());
    }
}

#[test]
fn damaged_plugins_never_panic() {
    // Every 97th byte, one bit: whatever comes of it, it is an answer.
    let sandbox = sandbox();
    for at in (8..SCAN.len()).step_by(97) {
        let mut damaged = SCAN.to_vec();
        damaged[at] ^= 1 << (at % 8);
        let _ = sandbox.inspect(&damaged);
    }
}

#[test]
fn limits_beyond_the_pool_are_refused_by_name() {
    let sandbox = sandbox();
    let mut large = spec();
    large.limits.memory = 1 << 40;
    assert!(
        refused(&sandbox, SCAN, large)
            .to_string()
            .contains("limits.memory")
    );
    let mut small = spec();
    small.limits.memory = 64 << 10;
    assert!(
        refused(&sandbox, SCAN, small)
            .to_string()
            .contains("limits.memory")
    );
}

#[test]
fn a_cached_image_is_used_only_while_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("images");
    let open = || {
        Sandbox::new(SandboxOptions {
            max_instances: 4,
            ..SandboxOptions::new(&cache)
        })
        .unwrap()
    };
    let works = || {
        let (stage, _) = load(&open(), SCAN, spec());
        assert_eq!(filter(&stage, "a@b.cd ").unwrap(), "[email] ");
    };
    works();
    assert_eq!(
        fs::metadata(&cache).unwrap().permissions().mode() & 0o777,
        0o700
    );
    let image = || {
        fs::read_dir(&cache)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "cwasm"))
            .unwrap()
    };
    let whole = fs::read(image()).unwrap();
    works();

    // Damaged, cut short, foreign with the right digest, without a digest: made again.
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for bytes in [damaged, whole[..whole.len() / 3].to_vec(), Vec::new()] {
        fs::write(image(), bytes).unwrap();
        works();
        assert_eq!(fs::read(image()).unwrap().len(), whole.len());
    }
    let foreign = b"not an image at all".to_vec();
    fs::write(image(), &foreign).unwrap();
    fs::write(
        image().with_extension("sha256"),
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&foreign)),
    )
    .unwrap();
    works();
    fs::remove_file(image().with_extension("sha256")).unwrap();
    works();
}

#[test]
fn a_cache_that_others_may_write_to_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let Err(error) = Sandbox::new(SandboxOptions::new(dir.path())) else {
        panic!("it should be refused")
    };
    assert!(error.to_string().contains("chmod 700"), "{error}");
}

#[test]
fn without_a_cache_it_works_as_well() {
    let sandbox = Sandbox::new(SandboxOptions {
        cache_dir: None,
        max_instances: 2,
    })
    .unwrap();
    let (stage, _) = load(&sandbox, SCAN, spec());
    assert_eq!(filter(&stage, "a@b.cd ").unwrap(), "[email] ");
    let (plain, _) = load(&sandbox, PLAIN, StageSpec::new("plain", json!({})));
    assert_eq!(filter(&plain, "x").unwrap(), "x");
}
