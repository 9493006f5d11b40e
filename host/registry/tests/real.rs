//! Against a real registry: publish, sign, pull, check, update, with and without a login.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

mod common;

use common::{Real, anonymous, cache, component, docker_config, outer_address};
use millgate_registry::*;
use std::fs;

fn trust(name: &str, key: &SecretKey, plugins: &[&str]) -> Trust {
    Trust::new(&[TrustConfig {
        name: name.into(),
        key: key.public().pem().unwrap(),
        plugins: plugins.iter().map(|&plugin| plugin.to_owned()).collect(),
    }])
    .unwrap()
}

#[tokio::test]
async fn what_is_published_is_pulled_and_verified() {
    let Some(real) = Real::start(false) else {
        return;
    };
    let registry = anonymous();
    let reference: Reference = format!("{}/acme/pii:1.0.0", real.host).parse().unwrap();
    let bytes = component(b"one");
    let package = Package::new(bytes.clone(), "acme-pii", "1.0.0")
        .unwrap()
        .licenses("Apache-2.0");
    let published = registry.publish(&reference, &package, false).await.unwrap();
    assert!(!published.unchanged);
    assert_eq!(published.reference, reference.pinned(published.digest));

    let (_dir, cache) = cache();
    let pulled = registry.pull(&published.reference, &cache).await.unwrap();
    assert_eq!(pulled.component, bytes);
    assert_eq!(pulled.digest, published.digest);
    assert_eq!(pulled.component_digest, Digest::of(&bytes));
    assert_eq!(pulled.version(), Some("1.0.0"));
    let keys = tempfile::tempdir().unwrap();
    let keys = Keys::open(keys.path());
    let (acme, other) = (keys.create("acme").unwrap(), keys.create("other").unwrap());
    let ours = trust("Acme", &acme, &["acme-*"]);
    let error = pulled.verify("acme-pii", &ours).unwrap_err();
    assert!(matches!(error, Error::Unsigned { .. }), "{error}");

    // Two signers: both stay, and each is enough.
    for key in [&other, &acme, &acme] {
        registry
            .sign(&reference, &published.digest, key)
            .await
            .unwrap();
    }
    let pulled = registry.pull(&reference, &cache).await.unwrap();
    assert_eq!(pulled.signatures.len(), 2);
    assert_eq!(pulled.verify("acme-pii", &ours).unwrap().name, "Acme");
    let theirs = trust("Other", &other, &["*"]);
    assert_eq!(pulled.verify("acme-pii", &theirs).unwrap().name, "Other");
    let error = pulled.verify("pii", &ours).unwrap_err();
    assert!(matches!(error, Error::NotAllowed { .. }), "{error}");

    // Offline: the same from the cache, when the registry is gone.
    drop(real);
    let offline = cache.plugin(&published.digest).unwrap();
    assert_eq!(offline.component, bytes);
    assert_eq!(offline.verify("acme-pii", &ours).unwrap().name, "Acme");
    let error = registry.pull(&reference, &cache).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_published_version_stays() {
    let Some(real) = Real::start(false) else {
        return;
    };
    let registry = anonymous();
    let reference: Reference = format!("{}/acme/pii:1.0.0", real.host).parse().unwrap();
    let package = |seed: &[u8]| Package::new(component(seed), "acme-pii", "1.0.0").unwrap();
    let first = registry
        .publish(&reference, &package(b"one"), false)
        .await
        .unwrap();
    let again = registry
        .publish(&reference, &package(b"one"), false)
        .await
        .unwrap();
    assert!(again.unchanged);
    assert_eq!(again.digest, first.digest);
    let error = registry
        .publish(&reference, &package(b"two"), false)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert_eq!(registry.resolve(&reference).await.unwrap(), first.digest);
    let over = registry
        .publish(&reference, &package(b"two"), true)
        .await
        .unwrap();
    assert_ne!(over.digest, first.digest);
    // What was pinned is still there.
    let (_dir, cache) = cache();
    let old = registry.pull(&first.reference, &cache).await.unwrap();
    assert_eq!(old.component, component(b"one"));
    let error = registry
        .publish(&first.reference.without_pin(), &package(b"one"), false)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Exists { .. }), "{error}");
}

#[tokio::test]
async fn a_component_of_several_pieces_goes_up_and_comes_down() {
    let Some(real) = Real::start(false) else {
        return;
    };
    // More than two of the pieces that an upload is cut into.
    let seed: Vec<u8> = (0..9_000_000u32).map(|n| (n % 251) as u8).collect();
    let bytes = component(&seed);
    let reference: Reference = format!("{}/acme/large:1.0.0", real.host).parse().unwrap();
    let package = Package::new(bytes.clone(), "large", "1.0.0").unwrap();
    anonymous()
        .publish(&reference, &package, false)
        .await
        .unwrap();
    let (_dir, cache) = cache();
    let pulled = anonymous().pull(&reference, &cache).await.unwrap();
    assert_eq!(pulled.component, bytes);
}

#[tokio::test]
async fn versions_are_listed_the_highest_first() {
    let Some(real) = Real::start(false) else {
        return;
    };
    let registry = anonymous();
    let at = |tag: &str| {
        format!("{}/acme/pii:{tag}", real.host)
            .parse::<Reference>()
            .unwrap()
    };
    for version in ["1.9.0", "1.10.0", "2.0.0-rc.1"] {
        let package = Package::new(component(version.as_bytes()), "acme-pii", version).unwrap();
        registry
            .publish(&at(version), &package, false)
            .await
            .unwrap();
    }
    let package = Package::new(component(b"x"), "acme-pii", "1.9.0").unwrap();
    registry
        .publish(&at("latest"), &package, false)
        .await
        .unwrap();
    let versions = registry.versions(&at("1.9.0")).await.unwrap();
    let versions: Vec<String> = versions.into_iter().map(|(_, tag)| tag).collect();
    assert_eq!(versions, ["2.0.0-rc.1", "1.10.0", "1.9.0"]);
    for (tag, newest) in [("1.9.0", "1.10.0"), ("1.0.0-beta.1", "2.0.0-rc.1")] {
        let found = registry.newest(&at(tag)).await.unwrap();
        assert_eq!(found, Some(at(newest)));
    }
    let none: Reference = format!("{}/acme/none:1.0.0", real.host).parse().unwrap();
    for error in [
        registry.versions(&none).await.unwrap_err(),
        registry.resolve(&none).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_private_registry_takes_the_login_of_the_docker_config() {
    let Some(real) = Real::start(true) else {
        return;
    };
    let reference: Reference = format!("{}/acme/pii:1.0.0", real.host).parse().unwrap();
    let package = Package::new(component(b"one"), "acme-pii", "1.0.0").unwrap();
    let (_config, credentials) = docker_config(&real.host, common::LOGIN);
    let registry = Registry::new(RegistryConfig::default(), credentials).unwrap();
    let published = registry.publish(&reference, &package, false).await.unwrap();
    let keys = tempfile::tempdir().unwrap();
    let key = Keys::open(keys.path()).create("acme").unwrap();
    registry
        .sign(&reference, &published.digest, &key)
        .await
        .unwrap();
    let (_dir, cache) = cache();
    let pulled = registry.pull(&reference, &cache).await.unwrap();
    pulled
        .verify("acme-pii", &trust("Acme", &key, &["*"]))
        .unwrap();

    let error = anonymous().pull(&reference, &cache).await.unwrap_err();
    assert!(
        matches!(&error, Error::Denied { user: None, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("docker login"), "{error}");
    let (_config, credentials) = docker_config(&real.host, "ann:wrong");
    let registry = Registry::new(RegistryConfig::default(), credentials).unwrap();
    for error in [
        registry.pull(&reference, &cache).await.unwrap_err(),
        registry
            .publish(&reference, &package, false)
            .await
            .unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::Denied { user: Some(user), .. } if user == "ann"),
            "{error}"
        );
        assert!(!error.to_string().contains("wrong"), "{error}");
    }
}

#[tokio::test]
async fn damage_in_the_registrys_storage_is_seen() {
    let Some(real) = Real::start(false) else {
        return;
    };
    let registry = anonymous();
    let reference: Reference = format!("{}/acme/pii:1.0.0", real.host).parse().unwrap();
    let bytes = component(b"one");
    let package = Package::new(bytes.clone(), "acme-pii", "1.0.0").unwrap();
    registry.publish(&reference, &package, false).await.unwrap();
    let blob = real.blob(&Digest::of(&bytes).hex());
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    let (_dir, cache) = cache();

    fs::write(&blob, &other).unwrap();
    let error = registry.pull(&reference, &cache).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    fs::write(&blob, &bytes[..bytes.len() - 1]).unwrap();
    let error = registry.pull(&reference, &cache).await.unwrap_err();
    assert!(matches!(error, Error::Size { .. }), "{error}");
    fs::remove_file(&blob).unwrap();
    let error = registry.pull(&reference, &cache).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::BlobMissing {
                what: "component",
                ..
            }
        ),
        "{error}"
    );
    // Nothing half-done is left: the cache has no plugin of it.
    assert!(!cache.contains(&Digest::of(&bytes)));
    fs::write(&blob, &bytes).unwrap();
    assert_eq!(
        registry.pull(&reference, &cache).await.unwrap().component,
        bytes
    );
}

#[tokio::test]
async fn a_registry_with_a_certificate_of_its_own_is_reached_by_its_ca() {
    let Some(ip) = outer_address() else {
        eprintln!("left out: this machine has no address but loopback");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (key, ca) = (dir.path().join("key.pem"), dir.path().join("ca.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=test",
            "-addext",
            &format!("subjectAltName=IP:{ip}"),
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&ca)
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("left out: openssl is not installed");
        return;
    }
    let tls = format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        ca.display(),
        key.display()
    );
    let Some(real) = Real::start_with(&ip.to_string(), &tls, "") else {
        return;
    };
    let reference: Reference = format!("{}/acme/pii:1.0.0", real.host).parse().unwrap();
    let config = RegistryConfig {
        ca: Some(ca),
        ..RegistryConfig::default()
    };
    let registry = Registry::new(config, Credentials::Anonymous).unwrap();
    let package = Package::new(component(b"one"), "acme-pii", "1.0.0").unwrap();
    let published = registry.publish(&reference, &package, false).await.unwrap();
    let (_dir, cache) = cache();
    let pulled = registry.pull(&reference, &cache).await.unwrap();
    assert_eq!(pulled.digest, published.digest);
    let error = anonymous().pull(&reference, &cache).await.unwrap_err();
    assert!(error.to_string().contains("registry.ca"), "{error}");
    let error = anonymous()
        .publish(&reference, &package, false)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("registry.ca"), "{error}");
}

#[test]
fn openssl_makes_and_checks_the_same_signatures() {
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let openssl = |arguments: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(dir.path());
        command.output().is_ok_and(|output| output.status.success())
    };
    if !openssl(&["version"]) {
        eprintln!("left out: openssl is not installed");
        return;
    }
    let keys = Keys::open(dir.path());
    let key = keys.create("acme").unwrap();
    let reference = "r.example/acme/pii:1.0.0".parse().unwrap();
    let signature = Signature::sign(&key, &reference, &Digest::of(b"manifest")).unwrap();
    fs::write(file("payload"), &signature.payload).unwrap();
    fs::write(file("signature"), &signature.signature).unwrap();
    let check = [
        "pkeyutl", "-verify", "-pubin", "-inkey", "acme.pub", "-rawin", "-in", "payload",
    ];
    let check = [&check[..], &["-sigfile", "signature"]].concat();
    assert!(openssl(&check));
    fs::write(file("payload"), b"other").unwrap();
    assert!(!openssl(&check));
    // And the other way round: its key, its signature.
    assert!(openssl(&[
        "genpkey",
        "-algorithm",
        "ed25519",
        "-out",
        "theirs.key"
    ]));
    assert!(openssl(&[
        "pkey",
        "-in",
        "theirs.key",
        "-pubout",
        "-out",
        "theirs.pub"
    ]));
    let sign = [
        "pkeyutl",
        "-sign",
        "-inkey",
        "theirs.key",
        "-rawin",
        "-in",
        "payload",
    ];
    assert!(openssl(&[&sign[..], &["-out", "signature"]].concat()));
    let theirs = fs::read_to_string(file("theirs.pub")).unwrap();
    let theirs = PublicKey::parse("theirs", &theirs).unwrap();
    let signed = fs::read(file("signature")).unwrap();
    assert!(theirs.verifies(b"other", &signed));
    assert_eq!(keys.load("theirs").unwrap().public(), &theirs);
    assert_eq!(keys.list().unwrap().len(), 2);
}

#[tokio::test]
#[ignore = "needs `wkg` on the PATH (cargo install wkg), which takes long to build"]
async fn wkg_pulls_what_was_published_and_the_other_way_round() {
    use std::process::Command;
    let Some(real) = Real::start(false) else {
        return;
    };
    let registry = anonymous();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let wkg = |arguments: &[&str]| {
        let mut command = Command::new("wkg");
        command
            .arg("oci")
            .args(arguments)
            .args(["--insecure", &real.host]);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let bytes = fs::read("tests/golden/component.wasm").unwrap();
    fs::write(file("in.wasm"), &bytes).unwrap();
    let ours = format!("{}/acme/ours:1.2.0", real.host);
    let package = Package::new(bytes.clone(), "probe", "1.2.0").unwrap();
    registry
        .publish(&ours.parse().unwrap(), &package, false)
        .await
        .unwrap();
    wkg(&[
        "pull",
        &ours,
        "--output",
        file("out.wasm").to_str().unwrap(),
    ]);
    assert_eq!(fs::read(file("out.wasm")).unwrap(), bytes);
    let theirs = format!("{}/acme/theirs:1.2.0", real.host);
    wkg(&["push", &theirs, file("in.wasm").to_str().unwrap()]);
    let (_dir, cache) = cache();
    let pulled = registry
        .pull(&theirs.parse().unwrap(), &cache)
        .await
        .unwrap();
    assert_eq!(pulled.component, bytes);
}
