//! The trait every store implements: ordered keys, atomic batches, durable commits, watches. What
//! it promises is written as tests in [`crate::conformance`], which runs against each one.

use crate::batch::Batch;
use crate::commit::Commit;
use crate::error::Result;
use crate::watch::Watch;
use std::ops::Bound;

/// The direction of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the smallest key to the largest.
    Ascending,
    /// From the largest key to the smallest.
    Descending,
}

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// An ordered key-value store. Keys are compared byte by byte. Every method is safe to call from
/// many threads; each is one atomic step, a scan too: it sees one instant.
///
/// Writes are **visible at once** to every reader and **durable later**: when a commit made after
/// them resolves, or [`Store::flush`] returns. Writes become durable in the order they were made,
/// so that after a crash the store is as it was at some instant no earlier than the last
/// acknowledged commit.
///
/// Sizes: a key at most [`crate::MAX_KEY`], a value at most [`crate::MAX_VALUE`], a batch at most
/// [`crate::MAX_BATCH`] bytes; larger is [`crate::Error::TooLarge`].
pub trait Store: Send + Sync + 'static {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Sets `key` to `value`.
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Sets `key` to `new` (`None` removes it) if it is `expected` now (`None`: absent). Says
    /// whether it did.
    fn compare_and_swap(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool>;

    /// Removes `key`. Says whether it was there.
    fn delete(&self, key: &[u8]) -> Result<bool>;

    /// At most `limit` pairs between two bounds. `from` is the lower bound and `to` the upper one
    /// in either order; bounds that cross give nothing. Page through a large range: a store may
    /// hold up its writers while it scans.
    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pair>>;

    /// At most `limit` pairs whose keys begin with `prefix`.
    fn scan_prefix(&self, prefix: &[u8], order: Order, limit: usize) -> Result<Vec<Pair>> {
        match prefix_end(prefix) {
            Some(end) => self.scan(Bound::Included(prefix), Bound::Excluded(&end), order, limit),
            None => self.scan(Bound::Included(prefix), Bound::Unbounded, order, limit),
        }
    }

    /// Applies a batch in one step: readers and crashes see all of it or nothing.
    fn apply(&self, batch: Batch) -> Result<()>;

    /// Applies a batch like [`Store::apply`] and answers when it is durable. Commits that are under
    /// way at the same time share one write to the disk.
    ///
    /// Back-pressure: when too much is waiting for the disk, the batch is applied not here but when
    /// the commit is polled and there is room again; dropped before that, it is not applied at all.
    fn commit(&self, batch: Batch) -> Commit;

    /// Follows the puts and deletes of keys that begin with `prefix`, from now on.
    fn watch(&self, prefix: &[u8]) -> Watch;

    /// Returns when everything written before is durable.
    fn flush(&self) -> Result<()> {
        self.commit(Batch::new()).wait()
    }

    /// The bytes the store takes on disk (0 for one in memory).
    fn disk_bytes(&self) -> Result<u64>;
}

/// The smallest key above every key that begins with `prefix`; `None` if there is none, because
/// the prefix is empty or all 0xff.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix.get(..=kept)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::prefix_end;

    #[test]
    fn the_end_of_a_prefix_is_the_next_key_that_does_not_begin_with_it() {
        assert_eq!(prefix_end(b"a/"), Some(b"a0".to_vec()));
        assert_eq!(prefix_end(&[1, 0xff, 0xff]), Some(vec![2]));
        assert_eq!(prefix_end(&[0xff]), None);
        assert_eq!(prefix_end(b""), None);
    }
}
