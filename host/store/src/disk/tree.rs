//! sled's tree on disk, opened again after a failure of the disk. All of sled is behind this file.
//!
//! sled remembers the first error that its file gives and answers every later call with it, so a
//! disk that was full for a moment would close the store for good. The journal holds all that the
//! tree may have lost, so the tree is dropped and opened anew.

use super::SledOptions;
use super::table::Layer;
use crate::error::{Error, Result};
use crate::store::Order;
use parking_lot::RwLock;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The tree. `None` inside: it could not be opened again yet.
pub(super) struct Tree {
    dir: PathBuf,
    options: SledOptions,
    db: RwLock<Option<::sled::Db>>,
    /// How often it was opened again.
    opened: AtomicU64,
}

impl Tree {
    /// Opens the tree in the store's folder.
    pub(super) fn open(store: &Path, options: &SledOptions) -> Result<Tree> {
        let dir = store.join("tree");
        let db = open(&dir, options)?;
        Ok(Tree {
            dir,
            options: options.clone(),
            db: RwLock::new(Some(db)),
            opened: AtomicU64::new(0),
        })
    }

    /// The tree's folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// How often the tree was opened again. Whoever writes more than once compares this before and
    /// after: a tree opened anew in between has lost what was not flushed.
    pub(super) fn opened(&self) -> u64 {
        self.opened.load(Ordering::Acquire)
    }

    /// Writes. After a failure of the disk the tree is opened anew, so that the caller can begin
    /// again from the start of what it had to write.
    pub(super) fn write<T>(
        &self,
        call: impl FnOnce(&::sled::Db) -> ::sled::Result<T>,
    ) -> Result<T> {
        let done = self.attempt(call);
        if done.as_ref().is_err_and(mends) {
            self.reopen()?;
        }
        done
    }

    /// Reads; after a failure of the disk once more, on a tree opened anew.
    fn read<T>(&self, call: impl Fn(&::sled::Db) -> ::sled::Result<T>) -> Result<T> {
        match self.attempt(&call) {
            Err(error) if mends(&error) => {
                self.reopen()?;
                self.attempt(call)
            }
            done => done,
        }
    }

    fn attempt<T>(&self, call: impl FnOnce(&::sled::Db) -> ::sled::Result<T>) -> Result<T> {
        match &*self.db.read() {
            Some(db) => guard(&self.dir, || call(db)),
            None => Err(Error::Tree {
                path: self.dir.clone(),
                why: "it is closed after a failure of the disk".into(),
            }),
        }
    }

    /// The value of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.read(|db| db.get(key))?;
        Ok(value.map(|value| value.to_vec()))
    }

    /// The tree as the oldest layer of a scan.
    pub(super) fn layer(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        order: Order,
    ) -> Result<Layer<'_>> {
        let own = |bound: Bound<&[u8]>| bound.map(<[u8]>::to_vec);
        let mut range = self.read(|db| Ok(db.range::<Vec<u8>, _>((own(from), own(to)))))?;
        Ok(Box::new(std::iter::from_fn(move || {
            let mut next = || match order {
                Order::Ascending => range.next(),
                Order::Descending => range.next_back(),
            };
            let pair = guard(&self.dir, || next().transpose()).transpose()?;
            Some(pair.map(|(key, value)| (key.to_vec(), Some(value.to_vec()))))
        })))
    }

    fn reopen(&self) -> Result<()> {
        let mut db = self.db.write();
        self.opened.fetch_add(1, Ordering::Release);
        // First away with the old one: it holds the lock on the file.
        *db = None;
        *db = Some(open(&self.dir, &self.options)?);
        Ok(())
    }
}

/// Whether opening the tree again can help.
fn mends(error: &Error) -> bool {
    !matches!(error, Error::Corrupt { .. })
}

fn open(dir: &Path, options: &SledOptions) -> Result<::sled::Db> {
    let config = ::sled::Config::new()
        .path(dir)
        .cache_capacity(options.cache_bytes)
        // The checkpointer flushes; a timer of sled's own would only write the same pages again.
        .flush_every_ms(None);
    guard(dir, || config.open())
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
