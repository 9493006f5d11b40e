//! The store on disk: sled behind a journal.
//!
//! A write goes into a *table* in memory (so every reader sees it at once) and, encoded, into a
//! queue. One thread, the *committer*, takes all that is queued, writes it to the *journal* with one
//! `fdatasync`, and answers every commit in it. When the journal file is full, the table is set
//! aside and a second thread, the *checkpointer*, moves it into sled's tree, syncs that, and removes
//! the journal file. Readers look in the new table, the one set aside, and the tree, in that order.
//!
//! The rule that makes it safe: **the tree gets only what the journal has on disk.** So after a
//! crash at any instant the journal, replayed over whatever the tree kept, gives every acknowledged
//! write, and batches stay whole without leaning on sled for that.
//!
//! Folders: `lock`, `format`, `journal/`, `tree/` (sled's own).

mod checkpoint;
mod committer;
mod journal;
mod table;
mod tree;

use crate::batch::{Batch, Op, check_sizes};
use crate::blobs::sync_dir;
use crate::commit::{Commit, Ticket, block_on};
use crate::error::{Error, Result};
use crate::memory::crosses;
use crate::store::{Order, Pair, Store};
use crate::watch::{Watch, Watchers};
use committer::Committer;
use journal::{HEADER, Journal};
use parking_lot::{RwLock, RwLockWriteGuard};
use std::fs::{self, File, TryLockError};
use std::future::poll_fn;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;
use table::Table;
use tree::Tree;

/// The file that says how the folder is laid out, for the versions to come.
const FORMAT: &str = "millgate store 1\n";

/// How a store on disk behaves. The defaults suit a gateway.
#[derive(Debug, Clone)]
pub struct SledOptions {
    /// Memory for sled's page cache, in bytes.
    pub cache_bytes: u64,
    /// The size of a journal file in bytes: when it is full, its writes move into the tree. Larger
    /// means fewer moves, more memory (about twice this) and a longer start after a crash.
    pub journal_bytes: u64,
    /// The most bytes that may wait for the disk before writers wait too.
    pub queue_bytes: usize,
    /// A write that nobody commits is on disk after this long.
    pub idle_flush: Duration,
}

impl Default for SledOptions {
    fn default() -> SledOptions {
        SledOptions {
            cache_bytes: 64 << 20,
            journal_bytes: 16 << 20,
            queue_bytes: 8 << 20,
            idle_flush: Duration::from_millis(500),
        }
    }
}

/// What a store did since it was opened, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SledStats {
    /// Commits answered.
    pub commits: u64,
    /// Groups written: `commits / groups` is how many share one write.
    pub groups: u64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
    /// Tables moved into the tree.
    pub checkpoints: u64,
    /// Writes to the disk that failed.
    pub failures: u64,
}

/// The store on disk. Dropping it writes what is queued; nothing needs closing.
pub struct SledStore {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held as long as the store is open.
    _lock: File,
}

/// What the store and its two threads share.
struct Shared {
    dir: PathBuf,
    options: SledOptions,
    tree: Tree,
    state: RwLock<State>,
    watchers: Watchers,
    committer: OnceLock<Thread>,
    checkpointer: OnceLock<Thread>,
    counters: Counters,
}

/// Everything that the order of writes depends on, behind one lock.
struct State {
    /// The writes since the last rotation.
    table: Table,
    /// The table on its way into the tree.
    leaving: Option<Leaving>,
    /// The frame being filled for the committer: header space, then encoded batches.
    frame: Vec<u8>,
    batches: u32,
    /// Who waits for the frame to be durable.
    tickets: Vec<Arc<Ticket>>,
    /// The number of the next batch, and of the first that is not durable yet.
    next: u64,
    durable: u64,
    /// Bytes that the committer holds and could not write.
    unwritten: usize,
    /// Why the last write to the disk failed; `None` once one succeeds.
    failing: Option<Error>,
    /// Why the table that was set aside cannot move into the tree; `None` once it has.
    stuck: Option<Error>,
    /// Who waits for room in the queue.
    waiting: Vec<Waker>,
    closed: bool,
}

/// A table that was set aside.
struct Leaving {
    table: Arc<Table>,
    /// It may enter the tree when everything before this number is durable.
    until: u64,
    /// The journal files up to this one hold nothing else.
    journal: u64,
}

#[derive(Default)]
struct Counters {
    commits: AtomicU64,
    groups: AtomicU64,
    journal_bytes: AtomicU64,
    checkpoints: AtomicU64,
    failures: AtomicU64,
}

impl SledStore {
    /// Opens the store in the folder `dir`, creates it where it is missing, and replays the journal.
    ///
    /// Errors: [`Error::Locked`] if another process has it, [`Error::Corrupt`] if the journal or the
    /// tree is damaged, [`Error::DiskFull`] or [`Error::Io`] from the file system.
    pub fn open(dir: impl AsRef<Path>, options: SledOptions) -> Result<SledStore> {
        let dir = dir.as_ref().to_path_buf();
        let journals = dir.join("journal");
        fs::create_dir_all(&journals).map_err(|error| Error::io("create", &journals, error))?;
        let lock = take_lock(&dir)?;
        check_format(&dir)?;
        let tree = Tree::open(&dir, &options)?;
        let replay = journal::replay(&journals)?;
        let mut table = Table::default();
        for op in replay.ops {
            table.set(&op.key, op.value.as_deref());
        }
        let next = replay.next;
        let leaving = Some(Leaving {
            table: Arc::new(table),
            until: next,
            journal: replay.newest,
        });
        let journal = Journal::create(&journals, replay.newest + 1, options.journal_bytes)?;
        sync_dir(&dir)?;
        let state = State {
            table: Table::default(),
            leaving,
            frame: vec![0; HEADER],
            batches: 0,
            tickets: Vec::new(),
            next,
            durable: next,
            unwritten: 0,
            failing: None,
            stuck: None,
            waiting: Vec::new(),
            closed: false,
        };
        let shared = Arc::new(Shared {
            dir,
            options,
            tree,
            state: RwLock::new(state),
            watchers: Watchers::default(),
            committer: OnceLock::new(),
            checkpointer: OnceLock::new(),
            counters: Counters::default(),
        });
        let mut threads = Vec::new();
        let committer = spawn("store-commit", Arc::clone(&shared), move |shared| {
            Committer::new(shared, journal).run()
        })?;
        let _ = shared.committer.set(committer.thread().clone());
        threads.push(committer);
        let checkpointer = spawn("store-tree", Arc::clone(&shared), checkpoint::run);
        let store = SledStore {
            shared,
            threads,
            _lock: lock,
        };
        // From here on a failure drops `store`, which stops the committer.
        let checkpointer = checkpointer?;
        let _ = store.shared.checkpointer.set(checkpointer.thread().clone());
        checkpointer.thread().unpark();
        let mut store = store;
        store.threads.push(checkpointer);
        Ok(store)
    }

    /// What it did since it was opened.
    pub fn stats(&self) -> SledStats {
        let counters = &self.shared.counters;
        SledStats {
            commits: counters.commits.load(Ordering::Relaxed),
            groups: counters.groups.load(Ordering::Relaxed),
            journal_bytes: counters.journal_bytes.load(Ordering::Relaxed),
            checkpoints: counters.checkpoints.load(Ordering::Relaxed),
            failures: counters.failures.load(Ordering::Relaxed),
        }
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.shared.state.write().closed = true;
        self.shared.wake_committer();
        self.shared.wake_checkpointer();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(
                    "a thread of the store panicked; the journal keeps what was acknowledged"
                );
            }
        }
    }
}

impl Store for SledStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let state = self.shared.state.read();
        if let Some(known) = state.known(key) {
            return Ok(known.map(<[u8]>::to_vec));
        }
        // The tree may move on meanwhile; for one key a newer value is as good.
        drop(state);
        self.shared.tree.get(key)
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<()> {
        check_sizes(key, value)?;
        let state = self.shared.admit()?;
        self.shared
            .write(state, [(key, Some(value))].into_iter(), None);
        Ok(())
    }

    fn compare_and_swap(
        &self,
        key: &[u8],
        expected: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<bool> {
        check_sizes(key, new.unwrap_or_default())?;
        let state = self.shared.admit()?;
        let same = match state.known(key) {
            Some(known) => known == expected,
            None => self.shared.tree.get(key)?.as_deref() == expected,
        };
        if same {
            self.shared.write(state, [(key, new)].into_iter(), None);
        }
        Ok(same)
    }

    fn delete(&self, key: &[u8]) -> Result<bool> {
        let state = self.shared.admit()?;
        let there = match state.known(key) {
            Some(known) => known.is_some(),
            None => self.shared.tree.get(key)?.is_some(),
        };
        if there {
            self.shared.write(state, [(key, None)].into_iter(), None);
        }
        Ok(there)
    }

    fn scan(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Pair>> {
        if crosses(from, to) || limit == 0 {
            return Ok(Vec::new());
        }
        // Held to the end: the tables and the tree then show one instant.
        let state = self.shared.state.read();
        let mut layers = vec![state.table.layer(from, to, order)];
        if let Some(leaving) = &state.leaving {
            layers.push(leaving.table.layer(from, to, order));
        }
        layers.push(self.shared.tree.layer(from, to, order)?);
        table::merge(layers, order, limit)
    }

    fn apply(&self, batch: Batch) -> Result<()> {
        batch.check()?;
        let state = self.shared.admit()?;
        self.shared.write(state, pairs(&batch.into_ops()), None);
        Ok(())
    }

    fn commit(&self, batch: Batch) -> Commit {
        if let Err(error) = batch.check() {
            return Commit::done(Err(error));
        }
        let ops = batch.into_ops();
        let ticket = Arc::new(Ticket::default());
        match self.shared.try_admit(None) {
            Poll::Ready(Ok(state)) => {
                self.shared
                    .write(state, pairs(&ops), Some(Arc::clone(&ticket)));
                Commit::ticket(ticket)
            }
            Poll::Ready(Err(error)) => Commit::done(Err(error)),
            Poll::Pending => {
                let shared = Arc::clone(&self.shared);
                Commit::later(async move {
                    poll_fn(|context| shared.write_when_admitted(&ops, &ticket, context)).await?;
                    Commit::ticket(ticket).await
                })
            }
        }
    }

    fn watch(&self, prefix: &[u8]) -> Watch {
        // Inside the lock, so that "from now on" is one place in the order of writes.
        let _state = self.shared.state.write();
        self.shared.watchers.watch(prefix)
    }

    fn disk_bytes(&self) -> Result<u64> {
        size_of(&self.shared.dir)
    }
}

impl State {
    /// What the tables know of `key`; see [`Table::get`].
    fn known(&self, key: &[u8]) -> Option<Option<&[u8]>> {
        self.table
            .get(key)
            .or_else(|| self.leaving.as_ref()?.table.get(key))
    }

    /// Whether another batch fits. An empty queue takes any, so a large one does not wait for ever.
    fn has_room(&self, options: &SledOptions) -> bool {
        let queued = self.frame.len() - HEADER + self.unwritten;
        (queued == 0 || queued < options.queue_bytes)
            && self.table.bytes() < 4 * options.journal_bytes as usize
    }
}

impl Shared {
    /// The lock to write under, when there is room; else registers `context` to be woken. While the
    /// disk fails and the queue is full, waiting could take for ever: that is an error.
    fn try_admit(
        &self,
        context: Option<&Context<'_>>,
    ) -> Poll<Result<RwLockWriteGuard<'_, State>>> {
        let mut state = self.state.write();
        if state.closed {
            return Poll::Ready(Err(Error::Closed));
        }
        if state.has_room(&self.options) {
            return Poll::Ready(Ok(state));
        }
        if let Some(error) = &state.failing {
            return Poll::Ready(Err(error.clone()));
        }
        if let Some(error) = &state.stuck {
            // The checkpointer tries again on its own, but whoever made room need not wait for that.
            let waits = state.leaving.as_ref().map(|leaving| &leaving.table);
            if waits.is_none_or(|table| checkpoint::has_room(self, table).is_err()) {
                return Poll::Ready(Err(error.clone()));
            }
            state.stuck = None;
            self.wake_checkpointer();
        }
        if let Some(context) = context {
            state.waiting.push(context.waker().clone());
            drop(state);
            // Room comes only from a write or a rotation: see that one is on its way.
            self.wake_committer();
        }
        Poll::Pending
    }

    /// The lock to write under; blocks this thread while there is no room.
    fn admit(&self) -> Result<RwLockWriteGuard<'_, State>> {
        loop {
            if let Poll::Ready(admitted) = self.try_admit(None) {
                return admitted;
            }
            block_on(poll_fn(|context| self.try_admit(Some(context)).map(drop)));
        }
    }

    fn write_when_admitted(
        &self,
        ops: &[Op],
        ticket: &Arc<Ticket>,
        context: &Context<'_>,
    ) -> Poll<Result<()>> {
        self.try_admit(Some(context))
            .map_ok(|state| self.write(state, pairs(ops), Some(Arc::clone(ticket))))
    }

    /// Makes a batch visible and queues it. The one place where the store changes.
    fn write<'a>(
        &self,
        mut state: RwLockWriteGuard<'_, State>,
        ops: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
        ticket: Option<Arc<Ticket>>,
    ) {
        // The committer takes all that is queued at once, so it is woken for the first alone.
        let mut wake = ticket.is_some() && state.tickets.is_empty();
        if ops.len() > 0 {
            wake |= state.batches == 0;
            journal::encode(&mut state.frame, ops.clone());
            state.batches += 1;
            state.next += 1;
            for (key, value) in ops {
                state.table.set(key, value);
                self.watchers.tell(key, value);
            }
        }
        state.tickets.extend(ticket);
        drop(state);
        if wake {
            self.wake_committer();
        }
    }

    fn wake_committer(&self) {
        if let Some(thread) = self.committer.get() {
            thread.unpark();
        }
    }

    fn wake_checkpointer(&self) {
        if let Some(thread) = self.checkpointer.get() {
            thread.unpark();
        }
    }
}

fn pairs(ops: &[Op]) -> impl ExactSizeIterator<Item = (&[u8], Option<&[u8]>)> + Clone {
    ops.iter()
        .map(|op| (op.key.as_slice(), op.value.as_deref()))
}

fn spawn(
    name: &str,
    shared: Arc<Shared>,
    run: impl FnOnce(&Shared) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let dir = shared.dir.clone();
    let spawned = thread::Builder::new()
        .name(name.into())
        .spawn(move || run(&shared));
    spawned.map_err(|error| Error::io("start a thread for", &dir, error))
}

/// One process at a time: two would each think that they own the journal.
fn take_lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let lock = lock.map_err(|error| Error::io("open", &path, error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::Locked {
            path: dir.to_path_buf(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", &path, error)),
    }
}

fn check_format(dir: &Path) -> Result<()> {
    let path = dir.join("format");
    match fs::read_to_string(&path) {
        Ok(text) if text == FORMAT => Ok(()),
        // An empty one: the process died when it made the folder.
        Ok(text) if !text.is_empty() => {
            let why = format!(
                "it says {:?}, this version knows {FORMAT:?}: use the version that wrote it",
                text.trim()
            );
            Err(Error::Corrupt { path, why })
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("read", &path, error))
        }
        _ => fs::write(&path, FORMAT)
            .and_then(|()| File::open(&path)?.sync_all())
            .map_err(|error| Error::io("write", &path, error)),
    }
}

/// The bytes of all files below a folder. Files that vanish meanwhile count as nothing.
fn size_of(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for path in crate::blobs::list(dir)? {
        match fs::symlink_metadata(&path) {
            Ok(data) if data.is_dir() => total += size_of(&path)?,
            Ok(data) => total += data.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", &path, error)),
        }
    }
    Ok(total)
}
