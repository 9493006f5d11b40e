//! A watch: the puts and deletes below a prefix, in order, through a bounded queue. A reader that is
//! too slow loses events and is told how many; it never slows a writer down.

use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Poll, Waker};

/// How many events a watch holds for a slow reader.
pub const WATCH_QUEUE: usize = 1024;

/// One change below the prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// `key` was set to `value`.
    Put {
        /// The whole key, prefix included.
        key: Vec<u8>,
        /// Its new value.
        value: Vec<u8>,
    },
    /// `key` was removed.
    Delete {
        /// The whole key, prefix included.
        key: Vec<u8>,
    },
    /// This many events were dropped here because the reader was too slow: scan the prefix again.
    Lagged {
        /// The number of events dropped.
        missed: u64,
    },
}

/// Follows one prefix; see [`crate::Store::watch`]. Dropping it ends it.
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// The next event, or `None` once the store is gone and the queue is empty.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        poll_fn(|context| {
            let mut queue = self.shared.queue.lock();
            match queue.pop() {
                Some(event) => Poll::Ready(Some(event)),
                None if queue.closed => Poll::Ready(None),
                None => {
                    queue.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next event if one is waiting.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        self.shared.queue.lock().pop()
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("prefix", &self.shared.prefix)
            .finish_non_exhaustive()
    }
}

struct Shared {
    prefix: Vec<u8>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<WatchEvent>,
    /// Dropped from the front since the last event was read; told before the next one.
    missed: u64,
    waker: Option<Waker>,
    closed: bool,
}

impl Queue {
    fn pop(&mut self) -> Option<WatchEvent> {
        if self.missed > 0 {
            return Some(WatchEvent::Lagged {
                missed: std::mem::take(&mut self.missed),
            });
        }
        self.events.pop_front()
    }

    fn push(&mut self, event: WatchEvent) -> Option<Waker> {
        if self.events.len() == WATCH_QUEUE {
            // The newest events are the ones that tell the present state: drop the oldest.
            self.events.pop_front();
            self.missed += 1;
        }
        self.events.push_back(event);
        self.waker.take()
    }
}

/// Every watch of one store. Stores call [`Watchers::tell`] inside the lock that orders their
/// writes, so that events come in that order.
#[derive(Default)]
pub(crate) struct Watchers {
    count: AtomicUsize,
    list: RwLock<Vec<Weak<Shared>>>,
}

impl Watchers {
    pub(crate) fn watch(&self, prefix: &[u8]) -> Watch {
        let shared = Arc::new(Shared {
            prefix: prefix.to_vec(),
            queue: Mutex::default(),
        });
        let mut list = self.list.write();
        list.retain(|watch| watch.strong_count() > 0);
        list.push(Arc::downgrade(&shared));
        self.count.store(list.len(), Ordering::Release);
        Watch { shared }
    }

    pub(crate) fn tell(&self, key: &[u8], value: Option<&[u8]>) {
        // Almost no key is watched: the common case is one load.
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        for watch in self.list.read().iter().filter_map(Weak::upgrade) {
            if !key.starts_with(&watch.prefix) {
                continue;
            }
            let event = match value {
                Some(value) => WatchEvent::Put {
                    key: key.to_vec(),
                    value: value.to_vec(),
                },
                None => WatchEvent::Delete { key: key.to_vec() },
            };
            let waker = watch.queue.lock().push(event);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        for watch in self.list.get_mut().iter().filter_map(Weak::upgrade) {
            let waker = {
                let mut queue = watch.queue.lock();
                queue.closed = true;
                queue.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
