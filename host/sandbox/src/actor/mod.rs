//! Long-lived plugins: monitors and deployment strategies. Each is one instance that keeps its
//! memory between calls; when it fails it is started again, after a pause that doubles each time,
//! from the state that was last saved.

mod deployment;
mod monitor;
mod resident;

pub use deployment::DeploymentActor;
pub use monitor::{MonitorActor, MonitorOptions};

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::error::{Error, Result};

/// A runtime for one thread, so that an actor may wait for the host like any other call.
fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io {
            doing: "making an actor's runtime".into(),
            source,
        })
}

fn thread(stage: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(format!("millgate-actor-{stage}"))
        .spawn(body)
        .map_err(|source| Error::Io {
            doing: format!("starting the actor of stage {stage}"),
            source,
        })
}

/// The thread of an actor, and how it is told to stop.
struct Worker {
    /// When this is dropped, the thread stops.
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    fn new(stop: oneshot::Sender<()>, thread: JoinHandle<()>) -> Worker {
        Worker {
            stop: Mutex::new(Some(stop)),
            thread: Mutex::new(Some(thread)),
        }
    }

    /// Tells the thread to stop, and waits for it at most `timeout`. False: it is still busy.
    fn shutdown(&self, timeout: Duration) -> bool {
        drop(self.stop.lock().take());
        let Some(thread) = self.thread.lock().take() else {
            return true;
        };
        let end = Instant::now() + timeout;
        while !thread.is_finished() {
            if Instant::now() >= end {
                *self.thread.lock() = Some(thread);
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        thread.join().is_ok()
    }
}
