//! The store on disk. (Interim: signatures; the bodies follow.)
use crate::*;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

/// How a store on disk behaves.
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// Memory for sled's page cache, in bytes.
    pub cache_bytes: u64,
    /// The journal's size, in bytes, at which its records are moved into the tree.
    pub journal_bytes: u64,
    /// The most bytes that may wait for the disk before writers wait too.
    pub queue_bytes: usize,
    /// How long a write that nobody commits may stay in memory only.
    pub idle_flush: Duration,
}
impl Default for SledOptions {
    fn default() -> Self {
        SledOptions {
            cache_bytes: 64 << 20,
            journal_bytes: 16 << 20,
            queue_bytes: 8 << 20,
            idle_flush: Duration::from_millis(500),
        }
    }
}
/// Counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SledStats {
    /// Batches committed.
    pub commits: u64,
    /// Groups written.
    pub groups: u64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
    /// Checkpoints.
    pub checkpoints: u64,
}
/// The store on disk.
pub struct SledStore(MemoryStore);
impl SledStore {
    /// Opens.
    pub fn open(_dir: impl AsRef<Path>, _options: SledOptions) -> Result<SledStore> {
        Ok(SledStore(MemoryStore::new()))
    }
    /// Counters.
    pub fn stats(&self) -> SledStats {
        SledStats::default()
    }
}
impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.0.get(key)
    }
    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        self.0.put(key, value)
    }
    fn compare_and_swap(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool> {
        self.0.compare_and_swap(key, expected, new)
    }
    fn delete(&self, key: &[u8]) -> Result<bool> {
        self.0.delete(key)
    }
    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pair>> {
        self.0.scan(from, to, order, limit)
    }
    fn apply(&self, batch: Batch) -> Result<()> {
        self.0.apply(batch)
    }
    fn commit(&self, batch: Batch) -> Commit {
        self.0.commit(batch)
    }
    fn watch(&self, prefix: &[u8]) -> Watch {
        self.0.watch(prefix)
    }
    fn disk_bytes(&self) -> Result<u64> {
        self.0.disk_bytes()
    }
}
