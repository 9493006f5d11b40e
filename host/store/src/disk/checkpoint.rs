//! The checkpointer: moves a table that was set aside into sled's tree and then removes the journal
//! files that held it.

use super::table::Table;
use super::{Shared, journal};
use crate::blobs::sync_dir;
use crate::error::{Error, Result};
use std::fs::File;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// How long to wait before a table that could not be moved is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How many writes go into the tree at a time: few enough that readers of the tree never wait long.
const STEP: usize = 64;

/// Room that must be free on the disk beyond what a table can need, in bytes: sled takes segments
/// of half a MiB ahead.
const SPARE: u64 = 2 << 20;

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
                    state.stuck = None;
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
                let waiting = {
                    let mut state = shared.state.write();
                    state.stuck = Some(error);
                    std::mem::take(&mut state.waiting)
                };
                // They wait for room that may not come: each is told.
                waiting.into_iter().for_each(|waker| waker.wake());
                shared.counters.failures.fetch_add(1, Ordering::Relaxed);
                thread::park_timeout(RETRY);
            }
        }
    }
}

/// Whether the disk has room for a table to move into the tree. A disk that fills up under sled makes
/// it useless until it is opened again, and opening needs room too: then even reads would fail. So
/// the table waits in memory and in the journal.
pub(super) fn has_room(shared: &Shared, table: &Table) -> Result<()> {
    let dir = shared.tree.dir();
    let free =
        fs2::available_space(dir).map_err(|error| Error::io("ask for the room in", dir, error))?;
    if free < 4 * table.bytes() as u64 + SPARE {
        return Err(Error::DiskFull {
            path: dir.to_path_buf(),
            source: Arc::new(ErrorKind::StorageFull.into()),
        });
    }
    Ok(())
}

/// Moves a table into the tree, syncs the tree, removes the journal files up to `last`.
fn move_table(shared: &Shared, table: &Table, last: u64) -> Result<()> {
    let dir = shared.tree.dir();
    has_room(shared, table)?;
    let opened = shared.tree.opened();
    let mut writes = table.iter().peekable();
    while writes.peek().is_some() {
        let mut batch = ::sled::Batch::default();
        for (key, value) in writes.by_ref().take(STEP) {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        shared.tree.write(|db| db.apply_batch(batch))?;
    }
    shared.tree.write(|db| db.flush())?;
    if shared.tree.opened() != opened {
        return Err(Error::Tree {
            path: shared.tree.dir().to_path_buf(),
            why: "it was opened again while a table moved into it".into(),
        });
    }
    // sled's flush leaves the drive's cache and the file's metadata to the system; see `journal`.
    let file = dir.join("db");
    File::open(&file)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io("sync", &file, error))?;
    let values = dir.join("blobs");
    if values.is_dir() {
        sync_dir(&values)?;
    }
    sync_dir(dir)?;
    journal::remove_through(&shared.dir.join("journal"), last)
}
