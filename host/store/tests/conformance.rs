//! Both stores keep the promises of the trait, and both behave as a `BTreeMap` does, whatever the
//! operations, through checkpoints and reopenings.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests: a failure is a panic"
)]

use millgate_store::{Batch, MemoryStore, Order, SledOptions, SledStore, Store, conformance};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A store whose journal is so small that writes move into the tree all the time.
fn restless(dir: &Path) -> SledStore {
    let options = SledOptions {
        journal_bytes: 2048,
        cache_bytes: 1 << 20,
        ..SledOptions::default()
    };
    SledStore::open(dir, options).unwrap()
}

#[test]
fn the_memory_store_conforms() {
    conformance::run(|| Arc::new(MemoryStore::new()));
}

#[test]
fn the_sled_store_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    conformance::run(|| {
        let name = count.fetch_add(1, Ordering::Relaxed).to_string();
        Arc::new(SledStore::open(dir.path().join(name), SledOptions::default()).unwrap())
    });
}

#[test]
fn the_sled_store_conforms_while_it_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    conformance::run(|| {
        let name = count.fetch_add(1, Ordering::Relaxed).to_string();
        Arc::new(restless(&dir.path().join(name)))
    });
}

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    Swap(Vec<u8>, bool, Option<Vec<u8>>),
    Batch(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Commit(Vec<(Vec<u8>, Option<Vec<u8>>)>),
    Scan(Bound<Vec<u8>>, Bound<Vec<u8>>, bool, usize),
    Get(Vec<u8>),
    Flush,
    Reopen,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    // Few keys, so that operations meet; bytes at the edges, for the order and the prefixes.
    proptest::collection::vec(
        prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xff)],
        0..4,
    )
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..20),
        1 => (any::<u8>(), 500..6000usize).prop_map(|(byte, size)| vec![byte; size]),
    ]
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        key().prop_map(Bound::Included),
        key().prop_map(Bound::Excluded)
    ]
}

fn writes() -> impl Strategy<Value = Vec<(Vec<u8>, Option<Vec<u8>>)>> {
    proptest::collection::vec((key(), proptest::option::of(value())), 0..6)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (key(), value()).prop_map(|(key, value)| Step::Put(key, value)),
        3 => key().prop_map(Step::Delete),
        3 => (key(), any::<bool>(), proptest::option::of(value())).prop_map(|(k, same, new)| Step::Swap(k, same, new)),
        2 => writes().prop_map(Step::Batch),
        3 => writes().prop_map(Step::Commit),
        4 => (bound(), bound(), any::<bool>(), 0..12usize).prop_map(|(from, to, up, limit)| Step::Scan(from, to, up, limit)),
        3 => key().prop_map(Step::Get),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

/// Runs `steps` on a store and on a map, and compares every answer.
fn compare(
    mut store: Box<dyn Store>,
    steps: Vec<Step>,
    mut reopen: impl FnMut(Box<dyn Store>) -> Box<dyn Store>,
) {
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let set = |model: &mut BTreeMap<_, _>, key: Vec<u8>, value: Option<Vec<u8>>| match value {
        Some(value) => model.insert(key, value),
        None => model.remove(&key),
    };
    for step in steps {
        match step {
            Step::Put(key, value) => {
                store.put(&key, &value).unwrap();
                set(&mut model, key, Some(value));
            }
            Step::Delete(key) => {
                assert_eq!(
                    store.delete(&key).unwrap(),
                    set(&mut model, key, None).is_some()
                );
            }
            Step::Swap(key, same, new) => {
                let expected = if same {
                    model.get(&key).cloned()
                } else {
                    Some(b"something else".to_vec())
                };
                let swapped = store
                    .compare_and_swap(&key, expected.as_deref(), new.as_deref())
                    .unwrap();
                assert_eq!(swapped, same);
                if same {
                    set(&mut model, key, new);
                }
            }
            Step::Batch(writes) | Step::Commit(writes) if writes.is_empty() => {
                store.commit(Batch::new()).wait().unwrap();
            }
            Step::Batch(writes) => {
                store.apply(batch(&writes)).unwrap();
                writes
                    .into_iter()
                    .for_each(|(key, value)| drop(set(&mut model, key, value)));
            }
            Step::Commit(writes) => {
                store.commit(batch(&writes)).wait().unwrap();
                writes
                    .into_iter()
                    .for_each(|(key, value)| drop(set(&mut model, key, value)));
            }
            Step::Scan(from, to, up, limit) => {
                let order = if up {
                    Order::Ascending
                } else {
                    Order::Descending
                };
                let inside = |key: &Vec<u8>| (from.as_ref(), to.as_ref()).contains_key(key);
                let mut expected: Vec<_> = model.iter().filter(|(key, _)| inside(key)).collect();
                if !up {
                    expected.reverse();
                }
                expected.truncate(limit);
                let found = store
                    .scan(
                        from.as_ref().map(Vec::as_slice),
                        to.as_ref().map(Vec::as_slice),
                        order,
                        limit,
                    )
                    .unwrap();
                assert_eq!(
                    found.iter().map(|(k, v)| (k, v)).collect::<Vec<_>>(),
                    expected
                );
            }
            Step::Get(key) => assert_eq!(store.get(&key).unwrap().as_ref(), model.get(&key)),
            Step::Flush => store.flush().unwrap(),
            Step::Reopen => store = reopen(store),
        }
    }
    let all = store
        .scan_prefix(b"", Order::Ascending, usize::MAX)
        .unwrap();
    assert_eq!(all, model.into_iter().collect::<Vec<_>>());
}

fn batch(writes: &[(Vec<u8>, Option<Vec<u8>>)]) -> Batch {
    let mut batch = Batch::new();
    for (key, value) in writes {
        match value {
            Some(value) => batch.put(key.clone(), value.clone()),
            None => batch.delete(key.clone()),
        };
    }
    batch
}

trait Contains {
    fn contains_key(&self, key: &[u8]) -> bool;
}

impl Contains for (Bound<&Vec<u8>>, Bound<&Vec<u8>>) {
    fn contains_key(&self, key: &[u8]) -> bool {
        let above = match self.0 {
            Bound::Included(from) => key >= from.as_slice(),
            Bound::Excluded(from) => key > from.as_slice(),
            Bound::Unbounded => true,
        };
        let below = match self.1 {
            Bound::Included(to) => key <= to.as_slice(),
            Bound::Excluded(to) => key < to.as_slice(),
            Bound::Unbounded => true,
        };
        above && below
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn the_memory_store_behaves_as_a_map(steps in proptest::collection::vec(step(), 0..60)) {
        compare(Box::new(MemoryStore::new()), steps, |store| store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_sled_store_behaves_as_a_map(steps in proptest::collection::vec(step(), 0..60)) {
        let dir = tempfile::tempdir().unwrap();
        let open = || -> Box<dyn Store> { Box::new(restless(dir.path())) };
        compare(open(), steps, |store| { drop(store); open() });
    }
}
