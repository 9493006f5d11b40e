//! The door in front of the pool: as many callers get in as the pool has instances, the others
//! wait a bounded time. (An exhausted pool would be an error at once.)

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;

/// The right to hold one instance.
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
}

/// How a caller waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// The thread stands still.
    Block,
    /// The task is suspended.
    Await,
}

/// Counts the instances that live.
#[derive(Clone)]
pub(crate) struct Permits {
    semaphore: Arc<Semaphore>,
    total: u32,
}

impl Permits {
    pub(crate) fn new(total: u32) -> Permits {
        Permits {
            semaphore: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// Gets in, now or within `wait`.
    pub(crate) async fn acquire(&self, wait: Duration, how: Waiting) -> Result<Permit, Failure> {
        if let Ok(permit) = self.semaphore.clone().try_acquire_owned() {
            return Ok(Permit { _permit: permit });
        }
        let next = self.semaphore.clone().acquire_owned();
        let got = match how {
            Waiting::Await => tokio::time::timeout(wait, next).await.ok(),
            Waiting::Block => block_until(next, Instant::now() + wait),
        };
        match got {
            Some(Ok(permit)) => Ok(Permit { _permit: permit }),
            _ => Err(Failure::Unavailable {
                why: format!("all {} were in use for {} ms", self.total, wait.as_millis()),
            }),
        }
    }
}

/// Wakes a parked thread.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives a future on this thread until it is ready or the time is over. It needs no runtime.
fn block_until<F: Future>(future: F, end: Instant) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let now = Instant::now();
        if now >= end {
            return None;
        }
        std::thread::park_timeout(end - now);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn now(permits: &Permits, wait: Duration) -> Result<Permit, Failure> {
        permits
            .acquire(wait, Waiting::Block)
            .now_or_never()
            .unwrap()
    }

    #[test]
    fn a_full_house_is_an_answer_and_a_leaver_lets_the_next_one_in() {
        let permits = Permits::new(1);
        let first = now(&permits, Duration::ZERO).unwrap();
        assert!(matches!(
            now(&permits, Duration::ZERO),
            Err(Failure::Unavailable { .. })
        ));
        let second = {
            let permits = permits.clone();
            std::thread::spawn(move || now(&permits, Duration::from_secs(60)).is_ok())
        };
        drop(first);
        assert!(second.join().unwrap());
    }

    #[tokio::test]
    async fn a_task_waits_without_its_thread() {
        let permits = Permits::new(1);
        let first = permits
            .acquire(Duration::ZERO, Waiting::Await)
            .await
            .unwrap();
        let (second, ()) = tokio::join!(
            permits.acquire(Duration::from_secs(60), Waiting::Await),
            async { drop(first) }
        );
        assert!(second.is_ok());
    }
}
