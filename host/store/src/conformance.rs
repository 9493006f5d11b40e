//! The promises of [`Store`] as tests. Every implementation runs them: write a test that calls
//! [`run`] with a function that makes a fresh, empty store.
//!
//! What needs a crash or a second process is not here but beside the store it concerns.

use crate::batch::{Batch, MAX_KEY, MAX_VALUE};
use crate::error::Error;
use crate::store::{Order, Pair, Store};
use crate::watch::{WATCH_QUEUE, WatchEvent};
use std::ops::Bound::{self, Excluded, Included, Unbounded};
use std::sync::Arc;
use std::thread;

/// Runs the suite.
///
/// # Panics
/// When the store breaks a promise.
pub fn run(make: impl Fn() -> Arc<dyn Store>) {
    a_key_holds_the_last_value_put(&*make());
    an_empty_key_and_an_empty_value_are_a_key_and_a_value(&*make());
    delete_says_whether_there_was_something(&*make());
    compare_and_swap_writes_only_over_what_was_expected(&*make());
    a_scan_is_ordered_bounded_and_limited(&*make());
    a_prefix_scan_ends_where_the_prefix_does(&*make());
    a_batch_applies_in_its_own_order(&*make());
    a_commit_is_visible_when_made_and_answers(&*make());
    an_empty_commit_answers(&*make());
    what_is_too_large_is_refused_and_nothing_of_its_batch_is_written(&*make());
    counters_by_compare_and_swap_lose_no_increment(&make());
    readers_never_see_half_a_batch(&make());
    a_watch_sees_its_prefix_in_order(&*make());
    a_slow_watch_is_told_how_much_it_missed(&*make());
    a_watch_ends_with_its_store(make);
}

/// A test's answer, or the error that broke it.
#[allow(clippy::expect_used, reason = "a test suite: a failure is a panic")]
fn ok<T>(result: crate::Result<T>) -> T {
    result.expect("the store answers")
}

fn pair(key: &str, value: &str) -> Pair {
    (key.into(), value.into())
}

fn a_key_holds_the_last_value_put(store: &dyn Store) {
    assert_eq!(ok(store.get(b"a")), None);
    ok(store.put(b"a", b"1"));
    ok(store.put(b"a", b"2"));
    ok(store.put(b"b", &[0xff; 300]));
    assert_eq!(ok(store.get(b"a")), Some(b"2".to_vec()));
    assert_eq!(ok(store.get(b"b")), Some(vec![0xff; 300]));
    ok(store.flush());
    assert_eq!(ok(store.get(b"a")), Some(b"2".to_vec()));
}

fn an_empty_key_and_an_empty_value_are_a_key_and_a_value(store: &dyn Store) {
    ok(store.put(b"", b"root"));
    ok(store.put(b"e", b""));
    assert_eq!(ok(store.get(b"")), Some(b"root".to_vec()));
    assert_eq!(ok(store.get(b"e")), Some(Vec::new()));
    assert_eq!(
        ok(store.scan_prefix(b"", Order::Ascending, 9)),
        [pair("", "root"), pair("e", "")]
    );
}

fn delete_says_whether_there_was_something(store: &dyn Store) {
    ok(store.put(b"a", b"1"));
    assert!(ok(store.delete(b"a")));
    assert!(!ok(store.delete(b"a")));
    assert_eq!(ok(store.get(b"a")), None);
}

fn compare_and_swap_writes_only_over_what_was_expected(store: &dyn Store) {
    assert!(!ok(store.compare_and_swap(b"a", Some(b"1"), Some(b"2"))));
    assert!(ok(store.compare_and_swap(b"a", None, Some(b"1"))));
    assert!(!ok(store.compare_and_swap(b"a", None, Some(b"2"))));
    assert!(ok(store.compare_and_swap(b"a", Some(b"1"), Some(b""))));
    // An empty value is not the same as none.
    assert!(!ok(store.compare_and_swap(b"a", None, Some(b"3"))));
    assert!(ok(store.compare_and_swap(b"a", Some(b""), None)));
    assert_eq!(ok(store.get(b"a")), None);
    assert!(ok(store.compare_and_swap(b"a", None, None)));
}

fn a_scan_is_ordered_bounded_and_limited(store: &dyn Store) {
    for key in ["b", "a", "d", "c", "ab"] {
        ok(store.put(key.as_bytes(), key.as_bytes()));
    }
    let keys = |from: Bound<&[u8]>, to: Bound<&[u8]>, order, limit| -> String {
        let pairs = ok(store.scan(from, to, order, limit));
        assert!(pairs.iter().all(|(key, value)| key == value));
        pairs
            .iter()
            .map(|(key, _)| String::from_utf8_lossy(key) + ",")
            .collect()
    };
    assert_eq!(
        keys(Unbounded, Unbounded, Order::Ascending, 9),
        "a,ab,b,c,d,"
    );
    assert_eq!(
        keys(Unbounded, Unbounded, Order::Descending, 9),
        "d,c,b,ab,a,"
    );
    assert_eq!(
        keys(Included(b"ab"), Included(b"c"), Order::Ascending, 9),
        "ab,b,c,"
    );
    assert_eq!(
        keys(Excluded(b"ab"), Excluded(b"c"), Order::Ascending, 9),
        "b,"
    );
    assert_eq!(
        keys(Excluded(b"ab"), Included(b"zz"), Order::Descending, 2),
        "d,c,"
    );
    assert_eq!(keys(Unbounded, Unbounded, Order::Ascending, 0), "");
    assert_eq!(
        keys(Included(b"c"), Included(b"c"), Order::Ascending, 9),
        "c,"
    );
    // Bounds that hold nothing between them, or cross.
    assert_eq!(
        keys(Excluded(b"c"), Excluded(b"c"), Order::Ascending, 9),
        ""
    );
    assert_eq!(
        keys(Included(b"d"), Included(b"a"), Order::Descending, 9),
        ""
    );
    assert_eq!(keys(Excluded(b"z"), Unbounded, Order::Ascending, 9), "");
}

fn a_prefix_scan_ends_where_the_prefix_does(store: &dyn Store) {
    for key in [
        &b"a/1"[..],
        b"a/2",
        b"a0",
        b"b",
        &[0xff, 0xff],
        &[0xff, 0xff, 1],
        &[0xff],
    ] {
        ok(store.put(key, b""));
    }
    let count = |prefix: &[u8]| ok(store.scan_prefix(prefix, Order::Descending, 99)).len();
    assert_eq!(count(b"a/"), 2);
    assert_eq!(count(b"a"), 3);
    assert_eq!(count(&[0xff, 0xff]), 2);
    assert_eq!(count(b""), 7);
    assert_eq!(count(b"c"), 0);
}

fn a_batch_applies_in_its_own_order(store: &dyn Store) {
    ok(store.put(b"a", b"0"));
    let mut batch = Batch::new();
    batch
        .put("a", "1")
        .delete("a")
        .put("b", "1")
        .put("b", "2")
        .delete("c");
    assert_eq!(batch.len(), 5);
    ok(store.apply(batch));
    assert_eq!(
        ok(store.scan_prefix(b"", Order::Ascending, 9)),
        [pair("b", "2")]
    );
}

fn a_commit_is_visible_when_made_and_answers(store: &dyn Store) {
    let mut batch = Batch::new();
    batch.put("a", "1");
    let commit = store.commit(batch);
    assert_eq!(ok(store.get(b"a")), Some(b"1".to_vec()));
    ok(commit.wait());
    // Not waiting takes nothing back.
    let mut batch = Batch::new();
    batch.put("b", "1");
    drop(store.commit(batch));
    assert_eq!(ok(store.get(b"b")), Some(b"1".to_vec()));
}

fn an_empty_commit_answers(store: &dyn Store) {
    ok(store.commit(Batch::new()).wait());
    ok(store.put(b"a", b"1"));
    ok(store.commit(Batch::new()).wait());
    ok(store.commit(Batch::new()).wait());
}

fn what_is_too_large_is_refused_and_nothing_of_its_batch_is_written(store: &dyn Store) {
    let (key, value) = (vec![b'k'; MAX_KEY], vec![b'v'; MAX_VALUE]);
    ok(store.put(&key, &value));
    assert_eq!(
        ok(store.get(&key)).map(|value| value.len()),
        Some(MAX_VALUE)
    );
    let long = vec![b'k'; MAX_KEY + 1];
    assert!(matches!(
        store.put(&long, b""),
        Err(Error::TooLarge { what: "key", .. })
    ));
    let mut batch = Batch::new();
    batch.put("a", "1").put("b", vec![0; MAX_VALUE + 1]);
    assert!(matches!(
        store.apply(batch.clone()),
        Err(Error::TooLarge { what: "value", .. })
    ));
    assert!(matches!(
        store.commit(batch).wait(),
        Err(Error::TooLarge { .. })
    ));
    let mut batch = Batch::new();
    for index in 0..9u8 {
        batch.put([index], vec![0; MAX_VALUE]);
    }
    assert!(matches!(
        store.apply(batch),
        Err(Error::TooLarge { what: "batch", .. })
    ));
    assert_eq!(ok(store.get(b"a")), None);
}

fn counters_by_compare_and_swap_lose_no_increment(store: &Arc<dyn Store>) {
    const EACH: u64 = 200;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..EACH {
                    loop {
                        let old = ok(store.get(b"n"));
                        let number: u64 = old
                            .as_deref()
                            .map_or(0, |old| String::from_utf8_lossy(old).parse().unwrap_or(0));
                        let new = (number + 1).to_string();
                        if ok(store.compare_and_swap(b"n", old.as_deref(), Some(new.as_bytes()))) {
                            break;
                        }
                    }
                }
            });
        }
    });
    assert_eq!(
        ok(store.get(b"n")),
        Some((4 * EACH).to_string().into_bytes())
    );
}

fn readers_never_see_half_a_batch(store: &Arc<dyn Store>) {
    ok(store.apply(both("0")));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 0..500 {
                ok(store.apply(both(&number.to_string())));
            }
        });
        while !writer.is_finished() {
            let pairs = ok(store.scan_prefix(b"", Order::Ascending, 9));
            let values: Vec<_> = pairs.iter().map(|(_, value)| value).collect();
            assert_eq!(values.len(), 2);
            assert_eq!(values.first(), values.last());
        }
    });
}

fn both(value: &str) -> Batch {
    let mut batch = Batch::new();
    batch.put("x", value).put("y", value);
    batch
}

fn a_watch_sees_its_prefix_in_order(store: &dyn Store) {
    ok(store.put(b"w/0", b"before"));
    let mut watch = store.watch(b"w/");
    ok(store.put(b"w/1", b"1"));
    ok(store.put(b"v/1", b"other"));
    assert!(!ok(store.delete(b"w/none")));
    assert!(!ok(store.compare_and_swap(b"w/1", None, Some(b"no"))));
    assert!(ok(store.compare_and_swap(b"w/1", Some(b"1"), Some(b"2"))));
    let mut batch = Batch::new();
    batch.put("w/2", "3").delete("w/1");
    ok(store.commit(batch).wait());
    let put = |key: &str, value: &str| WatchEvent::Put {
        key: key.into(),
        value: value.into(),
    };
    let expected = [
        put("w/1", "1"),
        put("w/1", "2"),
        put("w/2", "3"),
        WatchEvent::Delete {
            key: b"w/1".to_vec(),
        },
    ];
    for event in expected {
        assert_eq!(watch.try_next(), Some(event));
    }
    assert_eq!(watch.try_next(), None);
}

fn a_slow_watch_is_told_how_much_it_missed(store: &dyn Store) {
    let mut watch = store.watch(b"");
    let total = WATCH_QUEUE + 10;
    for number in 0..total {
        ok(store.put(b"k", number.to_string().as_bytes()));
    }
    assert_eq!(watch.try_next(), Some(WatchEvent::Lagged { missed: 10 }));
    let mut last = None;
    while let Some(event) = watch.try_next() {
        last = Some(event);
    }
    let value = (total - 1).to_string().into_bytes();
    assert_eq!(
        last,
        Some(WatchEvent::Put {
            key: b"k".to_vec(),
            value
        })
    );
}

fn a_watch_ends_with_its_store(make: impl Fn() -> Arc<dyn Store>) {
    let store = make();
    let mut watch = store.watch(b"");
    let waiting = thread::spawn(move || {
        let mut events = 0;
        while crate::commit::block_on(watch.next()).is_some() {
            events += 1;
        }
        events
    });
    ok(store.put(b"a", b"1"));
    drop(store);
    assert_eq!(waiting.join().ok(), Some(1));
}
