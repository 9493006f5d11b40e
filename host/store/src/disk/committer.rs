//! The committer: one thread that takes all queued batches, makes them durable with one write, and
//! answers every commit among them. While it writes, the next group gathers; that is all the
//! grouping there is, no timer delays a lone commit.

use super::journal::{self, HEADER, Journal};
use super::{Leaving, Shared, State};
use crate::commit::Ticket;
use crate::error::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// Uncommitted writes are written early when they are this many bytes.
const EARLY: usize = 1 << 20;
/// How long to wait before a frame that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// The thread's state.
pub(super) struct Committer<'a> {
    shared: &'a Shared,
    journal: Journal,
    /// The frame to write. After a failed write it stays, and the next group joins it: it is one
    /// frame still, because a reader takes a broken frame before a good one for damage.
    frame: Vec<u8>,
    first: u64,
    batches: u32,
    last_write: Instant,
    /// Set while no new journal file can be made.
    no_rotation_before: Option<Instant>,
    /// Whether the one write after closing was tried.
    closing: bool,
}

/// Who waits for one round, and what it makes durable.
struct Group {
    tickets: Vec<Arc<Ticket>>,
    /// Everything before this number is in this group's frame or durable.
    until: u64,
}

impl<'a> Committer<'a> {
    pub(super) fn new(shared: &'a Shared, journal: Journal) -> Committer<'a> {
        let frame = vec![0; HEADER];
        Committer {
            shared,
            journal,
            frame,
            first: 0,
            batches: 0,
            last_write: Instant::now(),
            no_rotation_before: None,
            closing: false,
        }
    }

    /// The thread's body: runs until the store is closed and the queue empty.
    pub(super) fn run(mut self) {
        while let Some(group) = self.take() {
            let result = self.write();
            self.settle(group, result);
            if self.must_rotate(&self.shared.state.read()) {
                self.rotate();
            }
        }
    }

    /// Waits for something to write and takes it. `None` when the store is closed and nothing is
    /// left, or when even the last try failed.
    fn take(&mut self) -> Option<Group> {
        loop {
            let mut state = self.shared.state.write();
            let idle = self.last_write.elapsed();
            if state.closed && (self.closing || !self.has_work(&state)) {
                return None;
            }
            let early = !state.waiting.is_empty()
                || state.frame.len() > EARLY
                || idle >= self.shared.options.idle_flush;
            let retry = self.batches > 0 && idle >= RETRY;
            let rotate = self.must_rotate(&state);
            if state.closed
                || !state.tickets.is_empty()
                || retry
                || rotate
                || (state.batches > 0 && early)
            {
                self.closing = state.closed;
                return Some(self.take_queue(&mut state));
            }
            let wait = match (self.batches > 0, state.batches > 0) {
                (true, _) => Some(RETRY.saturating_sub(idle)),
                _ if self.no_rotation_before.is_some() => Some(RETRY),
                (false, true) => Some(self.shared.options.idle_flush.saturating_sub(idle)),
                (false, false) => None,
            };
            drop(state);
            match wait {
                Some(wait) => thread::park_timeout(wait),
                None => thread::park(),
            }
        }
    }

    /// Whether the journal file or the table is full and the last table is out of the way. (While
    /// it is not, both grow; the checkpointer wakes this thread when it is done.)
    fn must_rotate(&self, state: &State) -> bool {
        let full = self.shared.options.journal_bytes;
        (self.journal.len() >= full || state.table.bytes() as u64 >= 2 * full)
            && self.batches == 0
            && state.leaving.is_none()
            && self
                .no_rotation_before
                .is_none_or(|time| Instant::now() >= time)
    }

    fn has_work(&self, state: &State) -> bool {
        self.batches > 0 || state.batches > 0 || !state.tickets.is_empty()
    }

    fn take_queue(&mut self, state: &mut State) -> Group {
        if self.batches == 0 {
            // The two buffers swap roles, so that in the steady state nothing is allocated.
            std::mem::swap(&mut self.frame, &mut state.frame);
            self.first = state.next - u64::from(state.batches);
        } else {
            self.frame
                .extend_from_slice(state.frame.get(HEADER..).unwrap_or_default());
        }
        state.frame.truncate(HEADER);
        self.batches += std::mem::take(&mut state.batches);
        state.unwritten = self.frame.len() - HEADER;
        Group {
            tickets: std::mem::take(&mut state.tickets),
            until: state.next,
        }
    }

    fn write(&mut self) -> Result<()> {
        if self.batches == 0 {
            return Ok(());
        }
        journal::seal(&mut self.frame, self.journal.id(), self.first, self.batches);
        let result = self.journal.append(&self.frame);
        self.last_write = Instant::now();
        let counters = &self.shared.counters;
        if result.is_ok() {
            counters.groups.fetch_add(1, Ordering::Relaxed);
            counters
                .journal_bytes
                .fetch_add(self.frame.len() as u64, Ordering::Relaxed);
            self.frame.truncate(HEADER);
            self.batches = 0;
        } else {
            counters.failures.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    /// Tells everybody how the write went.
    fn settle(&self, group: Group, result: Result<()>) {
        let mut table_may_leave = false;
        let waiting = {
            let mut state = self.shared.state.write();
            match &result {
                Ok(()) => {
                    state.unwritten = 0;
                    let until = state.leaving.as_ref().map(|leaving| leaving.until);
                    table_may_leave =
                        until.is_some_and(|until| state.durable < until && until <= group.until);
                    state.durable = group.until;
                    if state.failing.take().is_some() {
                        tracing::info!("the store can write to the disk again");
                    }
                }
                Err(error) => {
                    if state.failing.is_none() {
                        tracing::error!(%error, "the store cannot write to the disk");
                    }
                    state.failing = Some(error.clone());
                }
            }
            std::mem::take(&mut state.waiting)
        };
        self.shared
            .counters
            .commits
            .fetch_add(group.tickets.len() as u64, Ordering::Relaxed);
        for ticket in group.tickets {
            ticket.resolve(result.clone());
        }
        for waker in waiting {
            waker.wake();
        }
        if table_may_leave {
            self.shared.wake_checkpointer();
        }
    }

    /// Sets the table aside and begins a new journal file. What is queued now is in that table and
    /// goes into the new file; so the table may leave only when that is durable too, and those few
    /// batches may be replayed once more, which changes nothing: they are replayed in order with all
    /// that came after.
    fn rotate(&mut self) {
        let dir = self.shared.dir.join("journal");
        let new = match Journal::create(
            &dir,
            self.journal.id() + 1,
            self.shared.options.journal_bytes,
        ) {
            Ok(new) => new,
            Err(error) => {
                tracing::warn!(%error, "no new journal file: the old one grows");
                self.no_rotation_before = Some(Instant::now() + RETRY);
                return;
            }
        };
        self.no_rotation_before = None;
        let old = std::mem::replace(&mut self.journal, new);
        let mut state = self.shared.state.write();
        let table = Arc::new(std::mem::take(&mut state.table));
        state.leaving = Some(Leaving {
            table,
            until: state.next,
            journal: old.id(),
        });
        let may_leave = state.next == state.durable;
        drop(state);
        if may_leave {
            self.shared.wake_checkpointer();
        }
    }
}
