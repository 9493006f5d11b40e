#![allow(
    unsafe_code,
    reason = "a borrowed closure is lent to threads that outlive the borrow; see `Pool::run`"
)]
//! A few threads that wait for one loop at a time. A token is several hundred short loops, so the threads
//! spin briefly between them and sleep only when the engine has nothing to do.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::{Error, Result};

/// How long a thread spins before it sleeps, in turns of some 15 ns.
const SPINS: u32 = 6000;

type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// The state word: bit 0 says that the job is open, bits 1 to 15 count the workers inside it, the rest number it.
const OPEN: u64 = 1;
const ENTERED: u64 = 2;
const INSIDE: u64 = 0xfffe;
const NUMBER: u64 = 0x1_0000;

struct Shared {
    state: AtomicU64,
    /// Written only while the state is closed and nobody is inside.
    body: UnsafeCell<Option<&'static Body<'static>>>,
    tasks: AtomicUsize,
    next: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `body` is the one field that is not `Sync`; the protocol of `state` orders its writes and reads.
unsafe impl Sync for Shared {}
// SAFETY: as above; the closure behind it is `Sync`.
unsafe impl Send for Shared {}

/// A pool; the calling thread is one of its threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// Closes the job and waits for those inside, even when the caller's own task panics.
struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins > SPINS {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller among them; 0 takes one for each core.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let threads = if threads == 0 {
            physical_cores()
        } else {
            threads.min(1024)
        };
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            body: UnsafeCell::new(None),
            tasks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("infer-{index}"))
                .spawn(move || shared.work());
            pool.workers
                .push(worker.map_err(|error| Error::Device(format!("no thread: {error}")))?);
        }
        Ok(pool)
    }

    /// Threads, the caller among them.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` with each number below `tasks`, on all threads. Returns when every call has returned.
    /// `&mut`: one loop at a time.
    pub(crate) fn run(&mut self, tasks: usize, body: &Body<'_>) -> Result<()> {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(body);
            return Ok(());
        }
        let shared = &*self.shared;
        // SAFETY: the reference is widened to 'static, but no worker keeps it past this function: a worker
        // reads it only after it entered an open job, and `Close` shuts the job and waits until nobody is
        // inside before this function returns or unwinds. Nobody is inside now, so nobody reads `body`.
        unsafe {
            *shared.body.get() = Some(std::mem::transmute::<&Body<'_>, &'static Body<'static>>(
                body,
            ));
        }
        shared.tasks.store(tasks, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        let number = shared.state.load(Ordering::Relaxed) & !(NUMBER - 1);
        shared
            .state
            .store(number.wrapping_add(NUMBER) | OPEN, Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
            shared.wake.notify_all();
        }
        let close = Close(shared);
        shared.take_tasks(body);
        drop(close);
        if shared.failed.swap(false, Ordering::AcqRel) {
            return Err(Error::Device("a thread of the pool panicked".into()));
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = self
                .shared
                .lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn take_tasks(&self, body: &Body<'_>) {
        let tasks = self.tasks.load(Ordering::Relaxed);
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            body(task);
        }
    }

    fn work(&self) {
        let mut done = 0;
        while let Some(state) = self.wait(done) {
            // Enter, unless the job closed or another worker was faster to change the word.
            if self
                .state
                .compare_exchange(state, state + ENTERED, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            done = state / NUMBER;
            // SAFETY: the job is open and this worker is inside, so `body` is set and stays until it leaves.
            let body = unsafe { *self.body.get() };
            if let Some(body) = body {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    self.take_tasks(body)
                }));
                if outcome.is_err() {
                    self.failed.store(true, Ordering::Release);
                }
            }
            self.state.fetch_sub(ENTERED, Ordering::AcqRel);
        }
    }

    /// The state word once it shows an open job other than `done`; `None` at the pool's end.
    fn wait(&self, done: u64) -> Option<u64> {
        let news = || {
            let state = self.state.load(Ordering::SeqCst);
            (state & OPEN != 0 && state / NUMBER != done).then_some(state)
        };
        loop {
            for _ in 0..SPINS {
                if let Some(state) = news() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while news().is_none() && !self.stop.load(Ordering::SeqCst) {
                guard = self
                    .wake
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
        }
    }
}

/// Cores that this process may use, counted once where they run two threads each.
pub(crate) fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let mut cores = std::collections::HashSet::new();
    for cpu in 0..1024 {
        let siblings = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(siblings) {
            Ok(list) => cores.insert(list),
            Err(_) => break,
        };
    }
    if cores.is_empty() {
        logical
    } else {
        logical.min(cores.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_over_many_jobs() {
        let mut pool = Pool::new(3).unwrap();
        for round in 0..3000 {
            let tasks = round % 17;
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert!(
                counts
                    .iter()
                    .all(|count| count.load(Ordering::Relaxed) == 1),
                "round {round}"
            );
        }
    }

    #[test]
    fn sleeping_threads_wake_up() {
        let mut pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(30));
            let sum = AtomicUsize::new(0);
            pool.run(100, &|task| {
                sum.fetch_add(task, Ordering::Relaxed);
            })
            .unwrap();
            assert_eq!(sum.into_inner(), 4950);
        }
    }

    #[test]
    fn a_panic_in_a_worker_is_an_error_or_the_callers_own_panic_and_the_pool_goes_on() {
        let mut pool = Pool::new(2).unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, &|task| {
                std::thread::sleep(std::time::Duration::from_micros(50));
                assert!(task != 40, "wanted");
            })
        }));
        assert!(matches!(outcome, Err(_) | Ok(Err(_))));
        assert!(pool.run(4, &|_| ()).is_ok());
    }
}
