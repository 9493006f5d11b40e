//! The lock: read back, compared, refused.

use super::*;
use proptest::prelude::*;

const SOURCE: &str = "r.example/acme/pii:1.3.0";

fn plugin(version: &str, bytes: &str) -> LockedPlugin {
    LockedPlugin {
        source: SOURCE.into(),
        name: "acme-pii".into(),
        version: version.into(),
        component: Digest::of(bytes.as_bytes()),
        manifest: Some(Digest::of(format!("manifest of {bytes}").as_bytes())),
        signer: Some("Acme".into()),
        requests: Requests::default().with_item("http", "https://a.example"),
    }
}

fn lock() -> Lock {
    let mut lock = Lock::default();
    lock.set(plugin("1.3.0", "old"));
    lock.models.push(LockedFile {
        name: "default".into(),
        digest: Digest::of(b"model"),
    });
    lock
}

#[test]
fn a_lock_reads_back_what_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("millgate.lock");
    assert!(matches!(Lock::read(&path), Err(Error::NoLock { .. })));
    lock().write(&path).unwrap();
    assert_eq!(Lock::read(&path).unwrap(), lock());
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("# Written by"), "{text}");
    assert!(text.contains("[[plugin]]"), "{text}");
    assert!(text.contains("items = [\"https://a.example\"]"), "{text}");
}

#[test]
fn damaged_locks_are_said() {
    let good = lock().text().unwrap();
    for (text, why) in [
        ("version = 2\nnew = 1\n".to_owned(), "this millgate reads 1"),
        (good.replace("sha256:", "sha256:0"), "no digest"),
        (good.replace("signer", "singer"), "unknown field"),
        (good[..good.len() / 2].to_owned(), "no lock file"),
        ("plugin = []".to_owned(), "version"),
        (
            good.replace("1.3.0\"\ncomponent", "1.3\"\ncomponent"),
            "MAJOR.MINOR.PATCH",
        ),
        (
            format!(
                "{good}\n[[model]]\nname = \"default\"\ndigest = \"{}\"\n",
                Digest::of(b"x")
            ),
            "twice",
        ),
    ] {
        let error = Lock::parse(&text).unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[test]
fn a_lock_that_disagrees_says_where() {
    let wishes = Wishes {
        plugins: vec![(SOURCE.into(), None)],
        models: vec![("default".into(), Some(Digest::of(b"model")))],
        prompts: vec![],
    };
    lock().check(&wishes).unwrap();
    // A pin of either digest will do.
    let mut pinned = wishes.clone();
    pinned.plugins[0].1 = Some(Digest::of(b"manifest of old"));
    lock().check(&pinned).unwrap();
    pinned.plugins[0].1 = Some(Digest::of(b"old"));
    lock().check(&pinned).unwrap();
    pinned.plugins[0].1 = Some(Digest::of(b"other"));
    pinned.models = vec![("large".into(), None)];
    let Error::Disagrees { differences } = lock().check(&pinned).unwrap_err() else {
        panic!("it should disagree")
    };
    assert_eq!(differences.len(), 3, "{differences:?}");
    assert!(differences[0].contains("acme/pii:1.3.0 is sha256:"));
    assert!(differences[1].contains("wants the model large"));
    assert!(differences[2].contains("model default is locked"));
    let mut lock = lock();
    lock.retain(&pinned);
    assert!(lock.models.is_empty() && lock.plugins.len() == 1);
}

#[test]
fn an_update_shows_what_changes() {
    let mut new = plugin("1.4.0", "new");
    new.source = "r.example/acme/pii:1.4.0".into();
    new.requests = new.requests.with_item("http", "api.vendor.example");
    new.signer = Some("Acme Two".into());
    let update = lock().compare(&new, false).unwrap();
    assert_eq!(
        update.lines(),
        [
            "1.3.0 -> 1.4.0",
            "1.4.0 newly asks for http: api.vendor.example",
            "1.4.0 is signed by Acme Two (before: Acme)",
        ]
    );
    assert!(update.needs_consent());
    let same = lock().compare(&plugin("1.3.0", "old"), false).unwrap();
    assert_eq!(same.lines(), [""; 0]);
    assert!(!same.needs_consent() && !same.changed);
    let first = Lock::default()
        .compare(&plugin("1.3.0", "old"), false)
        .unwrap();
    assert_eq!(
        first.lines(),
        [
            "1.3.0 is new",
            "1.3.0 newly asks for http: https://a.example"
        ]
    );
}

#[test]
fn versions_only_go_forward_unless_allowed() {
    let back = plugin("1.2.9", "older");
    let error = lock().compare(&back, false).unwrap_err();
    assert!(matches!(error, Error::Backwards { .. }), "{error}");
    assert!(lock().compare(&back, true).unwrap().changed);
    // Of 1.10.0 and 1.9.0 the first is the later one.
    let mut lock = lock();
    lock.set(plugin("1.9.0", "old"));
    lock.compare(&plugin("1.10.0", "new"), false).unwrap();
}

#[test]
fn a_version_never_changes_its_bytes() {
    let other = plugin("1.3.0", "other");
    let error = lock().compare(&other, false).unwrap_err();
    assert!(matches!(error, Error::Republished { .. }), "{error}");
    lock().compare(&other, true).unwrap();
    // A file is rebuilt under one version all day.
    let file = LockedPlugin {
        manifest: None,
        ..other
    };
    assert!(lock().compare(&file, false).unwrap().changed);
}

#[test]
fn another_plugin_at_the_same_place_is_refused() {
    let other = LockedPlugin {
        name: "acme-logger".into(),
        ..plugin("9.0.0", "other")
    };
    let error = lock().compare(&other, true).unwrap_err();
    assert!(matches!(error, Error::Renamed { .. }), "{error}");
}

proptest! {
    #[test]
    fn any_lock_reads_back(names in proptest::collection::btree_set("\\PC{1,12}", 0..4), seed in any::<u8>()) {
        let lock = Lock {
            plugins: names.iter().map(|name| LockedPlugin {
                source: name.clone(),
                name: name.clone(),
                signer: (seed % 2 == 0).then(|| name.clone()),
                manifest: (seed % 3 == 0).then_some(Digest([seed; 32])),
                requests: Requests::default().with_item(name, name).with_limit("s", name, u64::from(seed)),
                ..plugin("1.0.0-rc.1", name)
            }).collect(),
            models: names.iter().map(|name| LockedFile { name: name.clone(), digest: Digest([seed; 32]) }).collect(),
            prompts: vec![],
        };
        let text = lock.text().unwrap();
        prop_assert_eq!(Lock::parse(&text).unwrap(), lock);
    }
}
