//! A registry that lies, stalls, floods and sends in circles: each is a clear error, soon, with
//! nothing kept.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

mod common;

use common::liar::{Liar, Say};
use common::{anonymous, cache, component, outer_address};
use millgate_registry::*;

/// A liar that tells the truth about one plugin, until it is told otherwise.
fn honest() -> (Liar, Reference, Packed) {
    let liar = Liar::start();
    let reference: Reference = format!("{}/acme/pii:1.0.0", liar.host).parse().unwrap();
    let packed = Package::new(component(b"one"), "acme-pii", "1.0.0").unwrap();
    let packed = packed.pack().unwrap();
    liar.say(
        "/v2/acme/pii/manifests/1.0.0",
        Say::ok(packed.manifest.to_vec()),
    );
    liar.say(&by_digest(&packed), Say::ok(packed.manifest.to_vec()));
    for blob in [&packed.config, &packed.component] {
        liar.say(&blob_path(blob), Say::ok(blob.to_vec()));
    }
    (liar, reference, packed)
}

fn by_digest(packed: &Packed) -> String {
    format!("/v2/acme/pii/manifests/{}", packed.digest())
}

fn blob_path(blob: &[u8]) -> String {
    format!("/v2/acme/pii/blobs/{}", Digest::of(blob))
}

/// The error of pulling, which leaves nothing that could be taken for the plugin.
async fn refused(reference: &Reference, packed: &Packed) -> Error {
    let (_dir, cache) = cache();
    let error = anonymous().pull(reference, &cache).await.unwrap_err();
    assert!(cache.plugin(&packed.digest()).is_err());
    error
}

const MANIFEST: &str = "/v2/acme/pii/manifests/1.0.0";

#[tokio::test]
async fn the_truth_is_believed() {
    let (_liar, reference, packed) = honest();
    let (_dir, cache) = cache();
    let plugin = anonymous().pull(&reference, &cache).await.unwrap();
    assert_eq!(plugin.component, packed.component);
    assert!(plugin.signatures.is_empty());
}

#[tokio::test]
async fn another_manifest_under_a_pin_is_seen() {
    let (liar, reference, packed) = honest();
    let other = Package::new(component(b"two"), "acme-pii", "1.0.0").unwrap();
    liar.say(
        &by_digest(&packed),
        Say::ok(other.pack().unwrap().manifest.to_vec()),
    );
    let error = refused(&reference.pinned(packed.digest()), &packed).await;
    assert!(
        matches!(error, Error::Mismatch { want, .. } if want == packed.digest()),
        "{error}"
    );
}

#[tokio::test]
async fn a_registry_that_contradicts_itself_is_seen() {
    let (liar, reference, packed) = honest();
    let header = format!("Docker-Content-Digest: {}\r\n", Digest::of(b"other"));
    liar.say(
        MANIFEST,
        Say::Whole("200 OK", header, packed.manifest.to_vec()),
    );
    let error = refused(&reference, &packed).await;
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn layers_of_other_bytes_or_lengths_are_seen() {
    let (liar, reference, packed) = honest();
    let path = blob_path(&packed.component);
    let mut other = packed.component.to_vec();
    *other.last_mut().unwrap() ^= 1;
    liar.say(&path, Say::ok(other.clone()));
    let error = refused(&reference, &packed).await;
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    // Less than announced by the manifest, less than announced by the answer, and more.
    let full = other.len() as u64;
    for say in [
        Say::ok(&other[..4]),
        Say::Short(full, other[..4].to_vec()),
        Say::ok([&other[..], b"more"].concat()),
        Say::Endless,
    ] {
        liar.say(&path, say);
        let error = refused(&reference, &packed).await;
        assert!(
            matches!(error, Error::Size { want, .. } if want == full),
            "{error}"
        );
    }
    liar.say(&path, Say::status("404 Not Found", ""));
    let error = refused(&reference, &packed).await;
    assert!(matches!(error, Error::BlobMissing { .. }), "{error}");
}

#[tokio::test]
async fn an_endless_manifest_is_not_read_to_its_end() {
    let (liar, reference, packed) = honest();
    liar.say(MANIFEST, Say::Endless);
    let error = refused(&reference, &packed).await;
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    liar.say(MANIFEST, Say::Short(u64::MAX / 2, Vec::new()));
    let error = refused(&reference, &packed).await;
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_component_above_the_limit_is_not_asked_for() {
    let (liar, reference, packed) = honest();
    let config = RegistryConfig {
        max_component: 8,
        ..RegistryConfig::default()
    };
    let registry = Registry::new(config, Credentials::Anonymous).unwrap();
    let (_dir, cache) = cache();
    let error = registry.pull(&reference, &cache).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 8, .. }), "{error}");
    assert!(
        error.to_string().contains("registry.max-component"),
        "{error}"
    );
    let asked = liar.seen.lock().unwrap().join("\n");
    assert!(!asked.contains(&blob_path(&packed.component)), "{asked}");
}

#[tokio::test]
async fn what_is_no_plugin_is_said() {
    let (liar, reference, packed) = honest();
    let manifest = String::from_utf8(packed.manifest.to_vec()).unwrap();
    for (body, why) in [
        ("{".to_owned(), "not JSON"),
        ("{}".to_owned(), "no OCI manifest"),
        (
            r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(),
            "several platforms",
        ),
        (
            manifest.replace(CONFIG_TYPE, "application/vnd.oci.image.config.v1+json"),
            "its config has the media type",
        ),
        (
            manifest.replace(LAYER_TYPE, "application/vnd.oci.image.layer.v1.tar"),
            "its layer has the media type",
        ),
        (
            manifest.replace(
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            ),
            "its manifest has the media type",
        ),
        (manifest.replace("sha256:", "sha512:"), "no digest"),
        (manifest.replace("\"size\":", "\"size\":-"), "a size of -"),
    ] {
        liar.say(MANIFEST, Say::ok(body));
        let error = refused(&reference, &packed).await;
        assert!(matches!(error, Error::NotAPlugin { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    // A layer that fits its digest and is no component; a config of other bytes.
    for (config, layer, why) in [
        (
            String::from_utf8(packed.config.to_vec()).unwrap(),
            b"\0asm\x01\0\0\0".to_vec(),
            "that of other bytes",
        ),
        (
            String::from_utf8(packed.config.to_vec()).unwrap().replace(
                &Digest::of(&packed.component).to_string(),
                &Digest::of(b"\0asm\x01\0\0\0").to_string(),
            ),
            b"\0asm\x01\0\0\0".to_vec(),
            "no WebAssembly component",
        ),
        (
            "[]".into(),
            packed.component.to_vec(),
            "its config is not that",
        ),
    ] {
        let mut json: serde_json::Value = serde_json::from_slice(&packed.manifest).unwrap();
        for (place, bytes) in [("/config", config.as_bytes()), ("/layers/0", &layer)] {
            let part = json.pointer_mut(place).unwrap();
            part["digest"] = Digest::of(bytes).to_string().into();
            part["size"] = bytes.len().into();
            liar.say(&blob_path(bytes), Say::ok(bytes));
        }
        liar.say(MANIFEST, Say::ok(json.to_string()));
        let error = refused(&reference, &packed).await;
        assert!(error.to_string().contains(why), "{error}");
    }
    let header = "Content-Type: text/html\r\n".to_owned();
    liar.say(MANIFEST, Say::Whole("200 OK", header, b"<html>".to_vec()));
    let error = refused(&reference, &packed).await;
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn faults_of_the_registry_are_told() {
    let (liar, reference, packed) = honest();
    for (status, body, says) in [
        ("500 Internal Server Error", "", "a fault of the registry"),
        ("503 Service Unavailable", "<html>\x1b[31mbusy", "busy"),
        (
            "429 Too Many Requests",
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
            "slow down",
        ),
        ("418 I'm a teapot", "", "418"),
    ] {
        liar.say(MANIFEST, Say::status(status, body));
        let error = refused(&reference, &packed).await;
        assert!(matches!(error, Error::Status { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(says), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
    }
    liar.say(MANIFEST, Say::status("404 Not Found", ""));
    let error = refused(&reference, &packed).await;
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_is_down_is_named() {
    let (liar, _, packed) = honest();
    // A port that nobody listens at.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = free.local_addr().unwrap().to_string();
    drop((free, liar));
    let reference = format!("{host}/acme/pii:1.0.0").parse().unwrap();
    let error = refused(&reference, &packed).await;
    assert!(
        matches!(&error, Error::Unreachable { registry, .. } if *registry == host),
        "{error}"
    );
}

#[tokio::test]
async fn silence_is_not_waited_for_for_ever() {
    let (liar, reference, _) = honest();
    liar.say(MANIFEST, Say::Silence);
    let config = RegistryConfig {
        timeout: 1,
        ..RegistryConfig::default()
    };
    let registry = Registry::new(config, Credentials::Anonymous).unwrap();
    let (_dir, cache) = cache();
    let error = registry.pull(&reference, &cache).await.unwrap_err();
    assert!(matches!(error, Error::Slow { seconds: 1, .. }), "{error}");
}

#[tokio::test]
async fn redirects_are_followed_with_suspicion() {
    let (liar, reference, packed) = honest();
    let path = blob_path(&packed.component);
    // To another place of the same kind: as registries do for their storage.
    let storage = Liar::start();
    storage.say("/stored", Say::ok(packed.component.to_vec()));
    liar.say(
        &path,
        Say::redirect(&format!("http://{}/stored", storage.host)),
    );
    let (_dir, cache) = cache();
    anonymous().pull(&reference, &cache).await.unwrap();
    for (to, why) in [
        (format!("http://{}{path}", liar.host), "loop"),
        ("ftp://storage.example/x".to_owned(), "not https"),
        ("file:///etc/passwd".to_owned(), "not https"),
    ] {
        liar.say(&path, Say::redirect(&to));
        let error = refused(&reference, &packed).await;
        assert!(matches!(error, Error::Redirect { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_does_not_carry_the_password_along() {
    let (liar, reference, packed) = honest();
    let storage = Liar::start();
    storage.say("/stored", Say::ok(packed.component.to_vec()));
    let path = blob_path(&packed.component);
    let redirect = Say::redirect(&format!("http://{}/stored", storage.host));
    liar.say(&path, Say::Guarded(Box::new(redirect)));
    let login = Login {
        user: "ann".into(),
        password: "secret".into(),
    };
    let registry = Registry::new(RegistryConfig::default(), Credentials::Login(login)).unwrap();
    let (_dir, cache) = cache();
    registry.pull(&reference, &cache).await.unwrap();
    let with_login = |liar: &Liar| {
        let seen = liar.seen.lock().unwrap();
        seen.iter()
            .filter(|line| line.to_lowercase().contains("authorization"))
            .count()
    };
    assert!(with_login(&liar) > 0);
    assert_eq!(storage.seen.lock().unwrap().len(), 1);
    assert_eq!(with_login(&storage), 0);
}

#[tokio::test]
async fn a_registry_elsewhere_cannot_send_us_to_this_machine() {
    let (liar, _, packed) = honest();
    let (_, port) = liar.host.rsplit_once(':').unwrap();
    // The machine's own address that is no loopback one: a registry "elsewhere" for the client.
    let Some(outer) = outer_address() else {
        eprintln!("left out: this machine has no address but loopback");
        return;
    };
    let outer = Liar::start_at(outer);
    let reference: Reference = format!("{}/acme/pii:1.0.0", outer.host).parse().unwrap();
    let config = RegistryConfig {
        insecure: vec![outer.host.clone()],
        ..RegistryConfig::default()
    };
    let registry = Registry::new(config, Credentials::Anonymous).unwrap();
    let (_dir, cache) = cache();
    for to in [
        format!("http://127.0.0.1:{port}{MANIFEST}"),
        format!("http://localhost:{port}{MANIFEST}"),
        format!("http://[::ffff:127.0.0.1]:{port}{MANIFEST}"),
        format!("http://0.0.0.0:{port}{MANIFEST}"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ] {
        outer.say(MANIFEST, Say::redirect(&to));
        let error = registry.pull(&reference, &cache).await.unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{to}: {error}");
    }
    assert!(liar.seen.lock().unwrap().is_empty());
    // Without the operator's word it is not even asked in clear.
    let seen = outer.seen.lock().unwrap().len();
    let error = anonymous().pull(&reference, &cache).await.unwrap_err();
    assert!(error.to_string().contains("registry.insecure"), "{error}");
    assert!(
        !outer.seen.lock().unwrap()[seen..]
            .iter()
            .any(|line| line.starts_with("GET"))
    );
    drop(packed);
}

#[tokio::test]
async fn tokens_are_asked_for_where_the_challenge_says() {
    let (liar, reference, _) = honest();
    let challenge = format!(
        "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\",scope=\"x\"\r\n",
        liar.host
    );
    liar.say(
        MANIFEST,
        Say::Whole("401 Unauthorized", challenge, Vec::new()),
    );
    liar.say("/token", Say::ok(r#"{"token":"t0k3n"}"#));
    let login = Login {
        user: "ann".into(),
        password: "secret".into(),
    };
    let registry = Registry::new(RegistryConfig::default(), Credentials::Login(login)).unwrap();
    let (_dir, cache) = cache();
    // It asks again, with the token; this liar never lets anybody in.
    let error = registry.pull(&reference, &cache).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    let seen = liar.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(
        seen[1].contains("/token?service=s&scope=repository%3Aacme%2Fpii%3Apull "),
        "{seen:?}"
    );
    assert!(
        seen[1].to_lowercase().contains("basic yw5uonnly3jlda=="),
        "{seen:?}"
    );
    assert!(seen[2].to_lowercase().contains("bearer t0k3n"), "{seen:?}");
    for (say, why) in [
        (Say::Endless, "larger than"),
        (Say::ok("{}"), "empty"),
        (Say::ok("<html>"), "not the JSON"),
        (Say::ok(r#"{"token":"a\nb"}"#), "no text for a header"),
        (Say::status("500 Oh", "no"), "500"),
        (Say::status("401 No", "no"), "refuses"),
    ] {
        liar.say("/token", say);
        let error = registry
            .pull(&reference, &cache)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for (challenge, why) in [
        ("WWW-Authenticate: Bearer service=\"s\"\r\n", "no realm"),
        (
            "WWW-Authenticate: Bearer realm=\"gopher://x\"\r\n",
            "not https",
        ),
        ("WWW-Authenticate: Negotiate\r\n", "refuses"),
        ("", "refuses"),
    ] {
        liar.say(
            MANIFEST,
            Say::Whole("401 Unauthorized", challenge.into(), Vec::new()),
        );
        let error = registry
            .pull(&reference, &cache)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn signatures_that_are_damaged_are_seen() {
    let (liar, reference, packed) = honest();
    let keys = tempfile::tempdir().unwrap();
    let key = Keys::open(keys.path()).create("acme").unwrap();
    let good = Signature::sign(&key, &reference, &packed.digest()).unwrap();
    let place = format!(
        "/v2/acme/pii/manifests/sha256-{}.sig",
        packed.digest().hex()
    );
    let list = |payload: &[u8], size: u64| {
        use base64::Engine;
        let signature = base64::engine::general_purpose::STANDARD.encode(&good.signature);
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(b"none").to_string(), "size": 4},
            "layers": [{"mediaType": PAYLOAD_TYPE, "digest": Digest::of(payload).to_string(),
                "size": size, "annotations": {"dev.cosignproject.cosign/signature": signature}}],
        })
        .to_string()
    };
    let trust = Trust::new(&[TrustConfig {
        name: "Acme".into(),
        key: key.public().pem().unwrap(),
        plugins: vec!["*".into()],
    }])
    .unwrap();
    let size = good.payload.len() as u64;
    liar.say(&blob_path(&good.payload), Say::ok(good.payload.to_vec()));
    liar.say(&place, Say::ok(list(&good.payload, size)));
    let (_dir, cache) = cache();
    let plugin = anonymous().pull(&reference, &cache).await.unwrap();
    plugin.verify("acme-pii", &trust).unwrap();
    // The payload of another plugin, under the signature of this one.
    let other = Signature::sign(&key, &reference, &Digest::of(b"other")).unwrap();
    liar.say(&blob_path(&other.payload), Say::ok(other.payload.to_vec()));
    liar.say(&place, Say::ok(list(&other.payload, size)));
    let plugin = anonymous().pull(&reference, &cache).await.unwrap();
    assert!(matches!(
        plugin.verify("acme-pii", &trust),
        Err(Error::UnknownKey { .. })
    ));
    for (say, kind) in [
        (Say::ok("{}"), "tampered"),
        (Say::ok(list(&good.payload, 1 << 30)), "larger than"),
        (Say::ok(list(b"nowhere", 7)), "incomplete"),
        (Say::status("500 Oh", ""), "500"),
    ] {
        liar.say(&place, say);
        let error = anonymous()
            .pull(&reference, &cache)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(kind), "{error}");
    }
}
