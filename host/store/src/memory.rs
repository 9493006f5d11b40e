//! A store in memory, for tests and for `millgate check`: the same promises, except that nothing
//! outlives the process.

use crate::batch::{Batch, check_sizes};
use crate::commit::Commit;
use crate::error::Result;
use crate::store::{Order, Pair, Store};
use crate::watch::{Watch, Watchers};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A store in memory.
#[derive(Default)]
pub struct MemoryStore {
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    watchers: Watchers,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> MemoryStore {
        MemoryStore::default()
    }

    /// The one place where the map changes; called with its lock held.
    fn set(&self, map: &mut BTreeMap<Vec<u8>, Vec<u8>>, key: &[u8], value: Option<&[u8]>) -> bool {
        let before = match value {
            Some(value) => map.insert(key.to_vec(), value.to_vec()),
            None => map.remove(key),
        };
        self.watchers.tell(key, value);
        before.is_some()
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.map.lock().get(key).cloned())
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        check_sizes(key, value)?;
        self.set(&mut self.map.lock(), key, Some(value));
        Ok(())
    }

    fn compare_and_swap(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool> {
        check_sizes(key, new.unwrap_or_default())?;
        let mut map = self.map.lock();
        if map.get(key).map(Vec::as_slice) != expected {
            return Ok(false);
        }
        self.set(&mut map, key, new);
        Ok(true)
    }

    fn delete(&self, key: &[u8]) -> Result<bool> {
        let mut map = self.map.lock();
        // Nothing there, nothing done: no event either.
        Ok(map.contains_key(key) && self.set(&mut map, key, None))
    }

    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pair>> {
        if crosses(from, to) {
            return Ok(Vec::new());
        }
        let map = self.map.lock();
        let range = map.range::<[u8], _>((from, to));
        let copy = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
        Ok(match order {
            Order::Ascending => range.take(limit).map(copy).collect(),
            Order::Descending => range.rev().take(limit).map(copy).collect(),
        })
    }

    fn apply(&self, batch: Batch) -> Result<()> {
        batch.check()?;
        let mut map = self.map.lock();
        for op in batch.into_ops() {
            self.set(&mut map, &op.key, op.value.as_deref());
        }
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Commit {
        Commit::done(self.apply(batch))
    }

    fn watch(&self, prefix: &[u8]) -> Watch {
        self.watchers.watch(prefix)
    }

    fn disk_bytes(&self) -> Result<u64> {
        Ok(0)
    }
}

/// Whether two bounds hold no key between them. `BTreeMap::range` panics on such bounds.
pub(crate) fn crosses(from: Bound<&[u8]>, to: Bound<&[u8]>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(to) | Bound::Excluded(to),
        ) => from >= to,
    }
}
