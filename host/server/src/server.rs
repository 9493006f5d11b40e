//! The listener: connections in, and an orderly end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use millgate_ops::Platform;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::service::{ConnectionService, Shared};

/// A client must send its request's head within this time, or the connection is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept (no file descriptors left, say): long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener that is not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

/// Gives a server its platform. Until then it answers health checks and says that it is loading.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// How the end of a server went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had not finished when the time was over, and were cut.
    pub cut: usize,
}

impl Server {
    /// Listens. Connections wait until [`run`](Self::run).
    ///
    /// # Errors
    /// The address is in use, or not ours to use.
    pub async fn bind(listen: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(listen).await?,
            shared: Arc::default(),
        })
    }

    /// The address, with the port that was taken.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// For giving it the platform while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            shared: self.shared.clone(),
        }
    }

    /// Serves until `stop` resolves. Then no connection is accepted, idle ones are closed, and
    /// requests in flight, streams among them, have until `drain` gives its time to finish.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        drain: impl FnOnce() -> Duration,
    ) -> Drained {
        let Self { listener, shared } = self;
        let graceful = GracefulShutdown::new();
        let cut = CancellationToken::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT);
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, _)) => serve(stream, &shared, &http, &graceful, &cut),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        shared.drain();
        let open = graceful.count();
        let finished = tokio::time::timeout(drain(), graceful.shutdown()).await;
        if finished.is_ok() {
            return Drained { cut: 0 };
        }
        let left = shared.in_flight().min(open);
        cut.cancel();
        Drained { cut: left }
    }
}

impl Handle {
    /// From now on requests are answered by this platform.
    pub fn attach(&self, platform: Platform) {
        self.shared.attach(platform);
    }
}

/// Serves one connection in a task of its own.
fn serve(
    stream: TcpStream,
    shared: &Arc<Shared>,
    http: &http1::Builder,
    graceful: &GracefulShutdown,
    cut: &CancellationToken,
) {
    // Each chunk of a stream leaves at once: without this the kernel holds small writes back
    // until the client acknowledges the one before.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let service = ConnectionService::new(shared.clone());
    let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
    let cut = cut.clone();
    tokio::spawn(async move {
        tokio::select! {
            // A client that goes away in the middle is everyday life.
            result = connection => if let Err(error) = result {
                tracing::debug!(%error, "a connection ended early");
            },
            () = cut.cancelled_owned() => {}
        }
    });
}
