//! The checkpointer: moves a table that was set aside into sled's tree and then removes the journal
//! files that held it. All of sled is behind this file.

use super::table::{Layer, Table};
use super::{Shared, SledOptions, journal};
use crate::blobs::sync_dir;
use crate::error::{Error, Result};
use crate::store::Order;
use std::fs::File;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// How long to wait before a table that could not be moved is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How many writes go into the tree at a time: few enough that readers of the tree never wait long.
const STEP: usize = 64;

/// The thread's body: runs until the store is closed.
pub(super) fn run(shared: &Shared) {
    let mut told = false;
    loop {
        let ready = {
            let state = shared.state.read();
            if state.closed {
                // What is not moved yet is in the journal: the next start replays it.
                return;
            }
            let durable = state.durable;
            let leaving = state
                .leaving
                .as_ref()
                .filter(|leaving| durable >= leaving.until);
            leaving.map(|leaving| (Arc::clone(&leaving.table), leaving.journal))
        };
        let Some((table, journal)) = ready else {
            thread::park();
            continue;
        };
        match move_table(shared, &table, journal) {
            Ok(()) => {
                told = false;
                let waiting = {
                    let mut state = shared.state.write();
                    state.leaving = None;
                    std::mem::take(&mut state.waiting)
                };
                shared.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
                waiting.into_iter().for_each(|waker| waker.wake());
                // It may be waiting to set the next table aside.
                shared.wake_committer();
            }
            Err(error) => {
                if !told {
                    tracing::error!(%error, "writes stay in the journal");
                }
                told = true;
                shared.counters.failures.fetch_add(1, Ordering::Relaxed);
                thread::park_timeout(RETRY);
            }
        }
    }
}

/// Moves a table into the tree, syncs the tree, removes the journal files up to `last`.
fn move_table(shared: &Shared, table: &Table, last: u64) -> Result<()> {
    let dir = tree_dir(&shared.dir);
    let mut writes = table.iter().peekable();
    while writes.peek().is_some() {
        let mut batch = ::sled::Batch::default();
        for (key, value) in writes.by_ref().take(STEP) {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        guard(&dir, || shared.tree.apply_batch(batch))?;
    }
    guard(&dir, || shared.tree.flush())?;
    // sled's flush leaves the drive's cache and the file's metadata to the system; see `journal`.
    let file = dir.join("db");
    File::open(&file)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io("sync", &file, error))?;
    for dir in [dir.join("blobs"), dir] {
        if dir.is_dir() {
            sync_dir(&dir)?;
        }
    }
    journal::remove_through(&shared.dir.join("journal"), last)
}

/// Opens sled's tree in the store's folder.
pub(super) fn open_tree(dir: &Path, options: &SledOptions) -> Result<::sled::Db> {
    let dir = tree_dir(dir);
    let config = ::sled::Config::new()
        .path(&dir)
        .cache_capacity(options.cache_bytes)
        // The checkpointer flushes; a timer of sled's own would only write the same pages again.
        .flush_every_ms(None);
    guard(&dir, || config.open())
}

impl Shared {
    /// The tree's value of `key`.
    pub(super) fn tree_get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = guard(&tree_dir(&self.dir), || self.tree.get(key))?;
        Ok(value.map(|value| value.to_vec()))
    }

    /// The tree as the oldest layer of a scan.
    pub(super) fn tree_layer(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        order: Order,
    ) -> Layer<'_> {
        let dir = tree_dir(&self.dir);
        let own = |bound: Bound<&[u8]>| bound.map(<[u8]>::to_vec);
        let mut range = self.tree.range::<Vec<u8>, _>((own(from), own(to)));
        Box::new(std::iter::from_fn(move || {
            let mut next = || match order {
                Order::Ascending => range.next(),
                Order::Descending => range.next_back(),
            };
            let pair = guard(&dir, || next().transpose()).transpose()?;
            Some(pair.map(|(key, value)| (key.to_vec(), Some(value.to_vec()))))
        }))
    }
}

fn tree_dir(dir: &Path) -> PathBuf {
    dir.join("tree")
}

/// Calls sled: its errors as ours, and its panics (it asserts what it reads from disk) as errors.
fn guard<T>(dir: &Path, call: impl FnOnce() -> ::sled::Result<T>) -> Result<T> {
    let failed = |why: String| Error::Tree {
        path: dir.to_path_buf(),
        why,
    };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(::sled::Error::Io(error))) => Err(match Error::io("write", dir, error) {
            full @ Error::DiskFull { .. } => full,
            other => failed(other.to_string()),
        }),
        Ok(Err(::sled::Error::Corruption { at, .. })) => Err(Error::Corrupt {
            path: dir.to_path_buf(),
            why: format!("sled finds a page that is not whole ({at:?})"),
        }),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("it panicked");
            Err(failed(text.to_owned()))
        }
    }
}
