//! A commit: the future of a batch that is durable. It needs no runtime: `.await` it, or `.wait()`
//! on a thread.

use crate::error::Result;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// Resolves when the batch it stands for, and everything written before it, is on disk: it then
/// survives a kill of the process and a loss of power.
///
/// An error means *not known to be durable*: the batch is visible, and is written by the next
/// commit that succeeds, but a crash before that loses it. Dropping a commit gives up waiting, not
/// the write (but see [`crate::Store::commit`] for a full queue).
#[must_use = "a commit that nobody waits for acknowledges nothing"]
pub struct Commit(State);

enum State {
    Done(Result<()>),
    Ticket(Arc<Ticket>),
    Later(Pin<Box<dyn Future<Output = Result<()>> + Send>>),
}

impl Commit {
    /// A commit whose answer is known.
    pub fn done(result: Result<()>) -> Commit {
        Commit(State::Done(result))
    }

    /// A commit that some other future answers, for a store over a network.
    pub fn later(future: impl Future<Output = Result<()>> + Send + 'static) -> Commit {
        Commit(State::Later(Box::pin(future)))
    }

    pub(crate) fn ticket(ticket: Arc<Ticket>) -> Commit {
        Commit(State::Ticket(ticket))
    }

    /// Blocks this thread until the batch is durable. Not for asynchronous tasks.
    pub fn wait(self) -> Result<()> {
        block_on(self)
    }
}

/// Runs a future on this thread, which sleeps in between.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(result) => return result,
            Poll::Pending => std::thread::park(),
        }
    }
}

impl Future for Commit {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        match &mut self.0 {
            State::Done(result) => Poll::Ready(result.clone()),
            State::Ticket(ticket) => ticket.poll(context),
            State::Later(future) => future.as_mut().poll(context),
        }
    }
}

impl std::fmt::Debug for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Commit")
    }
}

/// Wakes a thread that waits in [`Commit::wait`].
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Where the committer leaves the answer for one commit.
#[derive(Default)]
pub(crate) struct Ticket(Mutex<Answer>);

#[derive(Default)]
struct Answer {
    result: Option<Result<()>>,
    waker: Option<Waker>,
}

impl Ticket {
    /// Gives the answer and wakes who waits for it.
    pub(crate) fn resolve(&self, result: Result<()>) {
        let waker = {
            let mut answer = self.0.lock();
            answer.result = Some(result);
            answer.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let mut answer = self.0.lock();
        if let Some(result) = &answer.result {
            return Poll::Ready(result.clone());
        }
        match &mut answer.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}
