//! Blobs: what is read is what was put, or an error.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests: a failure is a panic"
)]

use millgate_store::{Blobs, Digest, Error};
use proptest::prelude::*;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn file_of(dir: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    dir.join(&hex[..2]).join(&hex[2..])
}

#[test]
fn a_blob_is_there_until_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let text = "all work and no play ".repeat(1000);
    let digest = blobs.put(text.as_bytes()).unwrap();
    assert_eq!(digest, Digest::of(text.as_bytes()));
    assert_eq!(blobs.put(text.as_bytes()).unwrap(), digest);
    assert_eq!(blobs.get(&digest).unwrap(), text.as_bytes());
    assert!(
        fs::metadata(file_of(dir.path(), &digest)).unwrap().len() < 200,
        "compressed"
    );
    let empty = blobs.put(b"").unwrap();
    assert_eq!(blobs.get(&empty).unwrap(), b"");
    assert_eq!(blobs.digests().unwrap().len(), 2);
    assert!(blobs.delete(&digest).unwrap());
    assert!(!blobs.delete(&digest).unwrap());
    assert!(!blobs.contains(&digest));
    assert!(matches!(blobs.get(&digest), Err(Error::NoBlob { .. })));
}

#[test]
fn damage_is_an_error_when_read_and_in_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let good = blobs.put(b"good").unwrap();
    let text: Vec<u8> = (0..3000u32).flat_map(u32::to_le_bytes).collect();
    let bad = blobs.put(&text).unwrap();
    let path = file_of(dir.path(), &bad);
    let whole = fs::read(&path).unwrap();
    for at in [0, 5, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        fs::write(&path, flipped).unwrap();
        assert!(
            matches!(blobs.get(&bad), Err(Error::Corrupt { .. })),
            "byte {at}"
        );
    }
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(
            matches!(blobs.get(&bad), Err(Error::Corrupt { .. })),
            "cut at {length}"
        );
    }
    // Another blob's file under this name.
    fs::copy(file_of(dir.path(), &good), &path).unwrap();
    let report = blobs.verify().unwrap();
    assert_eq!(report.count, 2);
    assert_eq!(report.damaged.len(), 1);
    assert_eq!(report.damaged[0].0, bad);
    fs::write(&path, whole).unwrap();
    assert!(blobs.verify().unwrap().damaged.is_empty());
}

#[test]
fn garbage_is_what_is_not_live_and_not_young() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let (live, dead) = (blobs.put(b"live").unwrap(), blobs.put(b"dead").unwrap());
    let alive = HashSet::from([live]);
    assert!(
        blobs
            .garbage(&alive, Duration::from_secs(3600))
            .unwrap()
            .is_empty()
    );
    let old = std::time::SystemTime::now() - Duration::from_secs(7200);
    for digest in [live, dead] {
        fs::File::options()
            .append(true)
            .open(file_of(dir.path(), &digest))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    assert_eq!(
        blobs.garbage(&alive, Duration::from_secs(3600)).unwrap(),
        [dead]
    );
    // Putting it again makes it young.
    blobs.put(b"dead").unwrap();
    assert!(
        blobs
            .garbage(&alive, Duration::from_secs(3600))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_a_crash_left_behind_is_swept_and_strangers_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    let digest = blobs.put(b"kept").unwrap();
    fs::write(dir.path().join("tmp/half"), b"half").unwrap();
    fs::write(dir.path().join("README"), b"hello").unwrap();
    fs::write(
        file_of(dir.path(), &digest).with_file_name("notes.txt"),
        b"hello",
    )
    .unwrap();
    let blobs = Blobs::open(dir.path()).unwrap();
    assert!(!dir.path().join("tmp/half").exists());
    assert_eq!(blobs.digests().unwrap(), [digest]);
    assert!(dir.path().join("README").exists());
}

proptest! {
    #[test]
    fn any_bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let digest = blobs.put(&bytes).unwrap();
        prop_assert_eq!(blobs.get(&digest).unwrap(), bytes);
    }
}
