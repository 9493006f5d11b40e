//! Tests that lie to the audit log: whatever is changed, moved or taken away, the verification says
//! so and names the first bad entry.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests: a failure is a panic"
)]

use millgate_store::audit::{canonical, merkle, verify};
use millgate_store::{
    AuditError, AuditLog, Batch, Entry, Error, MemoryStore, Order, Record, SignedHead, Store,
};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;

struct Case {
    store: Arc<dyn Store>,
    log: AuditLog,
    dir: tempfile::TempDir,
}

/// A log of `count` entries in memory.
fn log_of(count: u64) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let log = AuditLog::open(Arc::clone(&store), dir.path().join("key")).unwrap();
    for number in 0..count {
        log.append(
            "tester",
            "count",
            &format!("number:{number}"),
            json!({"n": number, "half": number as f64 / 2.0}),
        )
        .unwrap();
    }
    Case { store, log, dir }
}

fn key_of(kind: &str, number: u64) -> Vec<u8> {
    [format!("audit/{kind}/").as_bytes(), &number.to_be_bytes()].concat()
}

fn first_bad(case: &Case) -> u64 {
    match case.log.verify() {
        Err(AuditError::Tampered { seq, .. }) => seq,
        other => panic!("expected a bad entry, got {other:?}"),
    }
}

#[test]
fn a_log_verifies_and_goes_on_after_it_is_opened_again() {
    let case = log_of(5);
    let report = case.log.verify().unwrap();
    assert_eq!((report.entries, report.head.unwrap().size), (5, 5));
    drop(case.log);
    let log = AuditLog::open(Arc::clone(&case.store), case.dir.path().join("key")).unwrap();
    let entry = log.append("tester", "again", "log", json!(null)).unwrap();
    assert_eq!(entry.seq, 5);
    assert_eq!(log.verify().unwrap().entries, 6);
    let entries = log.entries(0..99).unwrap();
    assert_eq!(entries.len(), 6);
    assert!(entries.windows(2).all(|pair| pair[1].prev == pair[0].hash));
    assert_eq!(log.entries(4..5).unwrap()[0], entries[4]);
    let crossed = std::ops::Range { start: 9, end: 3 };
    assert!(log.entries(crossed).unwrap().is_empty());
}

#[test]
fn an_empty_log_verifies() {
    let case = log_of(0);
    assert!(case.log.is_empty());
    assert_eq!(case.log.verify().unwrap().entries, 0);
    assert_eq!(case.log.head().unwrap(), None);
}

#[test]
fn any_flipped_bit_of_an_entry_is_named() {
    let case = log_of(7);
    for seq in 0..7 {
        let key = key_of("entry", seq);
        let good = case.store.get(&key).unwrap().unwrap();
        for at in 0..good.len() {
            for bit in [0x01, 0x20, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= bit;
                case.store.put(&key, &bad).unwrap();
                assert_eq!(first_bad(&case), seq, "byte {at} of entry {seq}");
            }
        }
        case.store.put(&key, &good).unwrap();
    }
    case.log.verify().unwrap();
}

#[test]
fn any_flipped_bit_of_the_newest_head_is_noticed() {
    let case = log_of(3);
    let key = key_of("head", 3);
    let good = case.store.get(&key).unwrap().unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x01;
        case.store.put(&key, &bad).unwrap();
        assert!(case.log.verify().is_err(), "byte {at}");
    }
}

#[test]
fn a_deleted_entry_is_named() {
    for seq in 0..6 {
        let case = log_of(6);
        case.store.delete(&key_of("entry", seq)).unwrap();
        assert_eq!(first_bad(&case), seq);
    }
}

#[test]
fn two_entries_that_change_places_are_named() {
    let case = log_of(6);
    let (a, b) = (key_of("entry", 2), key_of("entry", 4));
    let (first, second) = (
        case.store.get(&a).unwrap().unwrap(),
        case.store.get(&b).unwrap().unwrap(),
    );
    let mut batch = Batch::new();
    batch.put(a, second).put(b, first);
    case.store.apply(batch).unwrap();
    assert_eq!(first_bad(&case), 2);
}

#[test]
fn a_shortened_log_is_named_by_its_signed_head() {
    let case = log_of(6);
    for seq in [4, 5] {
        case.store.delete(&key_of("entry", seq)).unwrap();
    }
    assert_eq!(first_bad(&case), 4);
    let error = AuditLog::open(Arc::clone(&case.store), case.dir.path().join("key"))
        .err()
        .unwrap();
    assert!(
        matches!(error, Error::Audit(AuditError::Inconsistent { .. })),
        "{error}"
    );
}

#[test]
fn an_entry_behind_the_signed_head_is_named() {
    let case = log_of(3);
    case.store.delete(&key_of("head", 3)).unwrap();
    assert_eq!(first_bad(&case), 2);
}

/// Writes the chain anew from `seq` on, with right hashes, as one can who has the data but no key.
fn rewrite(store: &dyn Store, seq: u64) {
    let pairs = store
        .scan_prefix(b"audit/entry/", Order::Ascending, usize::MAX)
        .unwrap();
    let mut entries: Vec<Entry> = pairs
        .iter()
        .map(|(_, value)| serde_json::from_slice(value).unwrap())
        .collect();
    entries[seq as usize].record.actor = "nobody".into();
    for index in seq as usize..entries.len() {
        if index > 0 {
            entries[index].prev = entries[index - 1].hash;
        }
        entries[index].hash = entries[index].compute_hash().unwrap();
        let value = canonical(&serde_json::to_value(&entries[index]).unwrap()).unwrap();
        store.put(&key_of("entry", index as u64), &value).unwrap();
    }
}

#[test]
fn a_chain_that_was_written_anew_is_named_from_where() {
    for seq in 0..9 {
        let case = log_of(9);
        rewrite(&*case.store, seq);
        assert_eq!(first_bad(&case), seq);
    }
}

#[test]
fn an_older_copy_of_the_whole_log_is_caught_by_a_head_that_was_kept() {
    let case = log_of(4);
    let kept = case.log.head().unwrap().unwrap();
    let key = case.log.public_key();
    assert!(verify(&*case.store, Some(&key), Some(&kept)).is_ok());
    case.log.append("tester", "more", "log", json!({})).unwrap();
    assert!(verify(&*case.store, Some(&key), Some(&kept)).is_ok());
    for seq in [3, 4] {
        case.store.delete(&key_of("entry", seq)).unwrap();
        case.store.delete(&key_of("head", seq + 1)).unwrap();
    }
    assert!(verify(&*case.store, Some(&key), None).is_ok());
    let error = verify(&*case.store, Some(&key), Some(&kept)).unwrap_err();
    assert!(
        matches!(error, AuditError::Tampered { seq: 3, .. }),
        "{error}"
    );
}

#[test]
fn a_log_signed_by_somebody_else_is_refused() {
    let (ours, theirs) = (log_of(2), log_of(2));
    let error = verify(&*theirs.store, Some(&ours.log.public_key()), None).unwrap_err();
    assert!(matches!(error, AuditError::OtherKey { .. }));
    let error = AuditLog::open(Arc::clone(&theirs.store), ours.dir.path().join("key"))
        .err()
        .unwrap();
    assert!(matches!(error, Error::Audit(AuditError::OtherKey { .. })));
    let error = AuditLog::open(Arc::clone(&theirs.store), ours.dir.path().join("none"))
        .err()
        .unwrap();
    assert!(matches!(error, Error::Audit(AuditError::NoKey { .. })));
    assert!(!ours.dir.path().join("none").exists());
}

#[test]
fn only_its_owner_may_read_the_key_file() {
    let case = log_of(1);
    let mode = std::fs::metadata(case.dir.path().join("key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn concurrent_appends_form_one_chain() {
    let case = log_of(0);
    thread::scope(|scope| {
        for thread in 0..8 {
            let log = &case.log;
            scope.spawn(move || {
                for number in 0..25 {
                    log.append(
                        &format!("thread:{thread}"),
                        "count",
                        &number.to_string(),
                        json!([]),
                    )
                    .unwrap();
                }
            });
        }
    });
    assert_eq!(case.log.verify().unwrap().entries, 200);
}

#[test]
fn a_batch_of_entries_has_one_head() {
    let case = log_of(1);
    let record = |number: u64| Record {
        actor: "tester".into(),
        action: "batch".into(),
        subject: number.to_string(),
        body: json!({"text": "\u{1f600} \u{0007}"}),
        content: Some(millgate_store::Digest::of(b"elsewhere")),
    };
    let entries = case.log.append_all((0..20).map(record).collect()).unwrap();
    assert_eq!(entries.last().unwrap().seq, 20);
    assert!(case.log.append_all(Vec::new()).unwrap().is_empty());
    assert_eq!(case.log.verify().unwrap().entries, 21);
    assert_eq!(
        case.store
            .scan_prefix(b"audit/head/", Order::Ascending, 99)
            .unwrap()
            .len(),
        2
    );
    rewrite(&*case.store, 7);
    // Within one append the heads cannot tell which: the first entry of it is named.
    assert_eq!(first_bad(&case), 1);
}

#[test]
fn a_body_without_canonical_form_changes_nothing() {
    let case = log_of(2);
    let error = case
        .log
        .append("tester", "big", "number", json!({"n": u64::MAX}))
        .unwrap_err();
    assert!(error.to_string().contains("as strings"), "{error}");
    assert_eq!(
        case.log
            .append("tester", "next", "number", json!(1))
            .unwrap()
            .seq,
        2
    );
    case.log.verify().unwrap();
}

#[test]
fn proofs_convince_somebody_who_has_only_two_heads() {
    let case = log_of(13);
    let old = case.log.head().unwrap().unwrap();
    case.log
        .append_all((0..8).map(|_| record_of("x")).collect())
        .unwrap();
    let new: SignedHead = case.log.head().unwrap().unwrap();
    new.check_signature().unwrap();
    let hashes = |proof: Vec<millgate_store::Digest>| {
        proof.into_iter().map(|digest| digest.0).collect::<Vec<_>>()
    };
    let proof = hashes(case.log.consistency_proof(old.size, new.size).unwrap());
    assert!(merkle::verify_consistency(
        old.size,
        &old.root.0,
        new.size,
        &new.root.0,
        &proof
    ));
    for entry in case.log.entries(0..new.size).unwrap() {
        let proof = hashes(case.log.inclusion_proof(entry.seq, new.size).unwrap());
        let leaf = merkle::leaf_hash(&entry.hash.0);
        assert!(merkle::verify_inclusion(
            &leaf,
            entry.seq,
            new.size,
            &proof,
            &new.root.0
        ));
    }
}

fn record_of(subject: &str) -> Record {
    Record {
        actor: "a".into(),
        action: "b".into(),
        subject: subject.into(),
        body: json!({}),
        content: None,
    }
}
