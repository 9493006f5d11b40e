//! A server from its start to its orderly end, for the commands that serve.

use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millgate_ops::Platform;
use millgate_sandbox::Sandbox;
use millgate_server::{Handle, Server};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::{LogFormat, ProcessArgs};
use crate::open::{self, Reader, Ready, Setup};
use crate::{memory, storage};

/// How many ports after a taken one are tried.
const NEXT_PORTS: u16 = 50;
/// Threads that still block when everything is over are given this long.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// Where to listen.
#[derive(Clone, Copy, Debug)]
pub enum Listen {
    /// Where the config says.
    AsConfigured,
    /// Here and nowhere else.
    At(SocketAddr),
    /// Here or on one of the next ports.
    AtOrNear(SocketAddr),
}

/// A tokio runtime as the command line asks for it.
pub fn runtime(workers: Option<u16>) -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers.into());
    }
    builder
        .thread_name("millgate")
        .enable_all()
        .build()
        .context("cannot start the network threads")
}

/// Log lines go to standard error.
pub fn log(args: &ProcessArgs) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).with_context(|| {
        format!(
            "--log {} is no filter; try `info` or `millgate_ops=debug`",
            args.log
        )
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second subscriber is only ever asked for by tests.
    let _ = match args.log_format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    Ok(())
}

/// Serves until a signal; `ready` is called with the address once requests are answered.
pub fn serve(
    setup: &Setup,
    listen: Listen,
    workers: Option<u16>,
    ready: impl FnOnce(SocketAddr),
) -> Result<ExitCode> {
    let runtime = runtime(workers)?;
    let code = runtime.block_on(async {
        let begin = Instant::now();
        let mut signals = Signals::new()?;
        let sandbox = open::sandbox(&setup.data)?;
        let load = load(setup, &sandbox);
        let ready_config = tokio::select! {
            loaded = load => loaded?,
            () = signals.stop() => return Ok(ExitCode::SUCCESS),
        };
        let listen = match listen {
            Listen::AsConfigured => Listen::At(ready_config.config.server.listen),
            other => other,
        };
        let running = Running::bind(listen).await?;
        let address = running.address;
        say(format_args!("listening on http://{address}"));
        let start = start_platform(setup, ready_config, sandbox);
        let platform = tokio::select! {
            platform = start => platform?,
            () = signals.stop() => return Ok(ExitCode::SUCCESS),
        };
        running.handle.attach(platform.clone());
        let seconds = begin.elapsed().as_secs_f64();
        let models = platform.models().join(", ");
        say(format_args!("ready in {seconds:.2} s, serving {models}"));
        ready(address);
        signals.wait(&platform).await;
        running.end(&platform, &mut signals).await;
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_timeout(LAST_CALLS);
    code
}

/// A server in this process, for commands that talk to one.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    handle: Handle,
    stop: CancellationToken,
    drain: tokio::sync::watch::Sender<Duration>,
    task: JoinHandle<millgate_server::Drained>,
}

impl Running {
    /// Listens and answers health checks; nothing else is answered before a platform is attached.
    pub async fn bind(listen: Listen) -> Result<Self> {
        let server = bind(listen).await?;
        let address = server.local_addr()?;
        let handle = server.handle();
        let stop = CancellationToken::new();
        let (drain, wanted) = tokio::sync::watch::channel(Duration::ZERO);
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            server
                .run(stopped.cancelled_owned(), move || *wanted.borrow())
                .await
        });
        Ok(Self {
            address,
            handle,
            stop,
            drain,
            task,
        })
    }

    /// Loads the setup and serves it.
    pub async fn start(setup: &Setup, listen: Listen) -> Result<(Self, Platform)> {
        let sandbox = open::sandbox(&setup.data)?;
        let ready = load(setup, &sandbox).await?;
        let running = Self::bind(listen).await?;
        let platform = start_platform(setup, ready, sandbox).await?;
        running.handle.attach(platform.clone());
        Ok((running, platform))
    }

    /// Finishes what is in flight, for as long as the config grants, and closes the store. A second
    /// signal cuts it short.
    async fn end(self, platform: &Platform, signals: &mut Signals) {
        let drain = platform.config().0.server.drain.0;
        let _ = self.drain.send(drain);
        self.stop.cancel();
        say(format_args!(
            "stopping: no new connections; requests in flight have {} s",
            drain.as_secs()
        ));
        tokio::select! {
            drained = self.task => {
                let cut = drained.map_or(0, |drained| drained.cut);
                if cut > 0 {
                    tracing::warn!(cut, "requests did not finish in time and were cut");
                }
            }
            () = signals.stop() => tracing::warn!("a second signal: requests in flight are cut"),
        }
        close_store(platform).await;
        say(format_args!("stopped"));
    }

    /// [`end`](Self::end) with no time granted and no signals.
    pub async fn close(self, platform: &Platform) {
        self.stop.cancel();
        let _ = self.task.await;
        close_store(platform).await;
    }
}

/// Saves what long-lived stages know and flushes the store.
async fn close_store(platform: &Platform) {
    let platform = platform.clone();
    match tokio::task::spawn_blocking(move || platform.shutdown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the data could not be closed in order"),
        Err(error) => tracing::error!(%error, "closing the data was cut off"),
    }
}

/// Reads the config and gets its plugins on a thread that may block.
async fn load(setup: &Setup, sandbox: &Sandbox) -> Result<Ready> {
    let (setup, sandbox) = (setup.clone(), sandbox.clone());
    tokio::task::spawn_blocking(move || setup.load_or_explain(&sandbox))
        .await
        .context("loading was cut off")?
}

/// Loads models and plugins on a thread that may block.
async fn start_platform(setup: &Setup, ready: Ready, sandbox: Sandbox) -> Result<Platform> {
    let setup = setup.clone();
    let start = move || {
        let environment = setup.environment();
        let store = storage::open_store(&environment.data)?;
        let reader = Reader {
            setup: setup.clone(),
            sandbox: sandbox.clone(),
        };
        let candidate = ready.candidate(&setup);
        let platform = Platform::start_from(candidate, environment, store, sandbox);
        memory::give_back();
        let platform = platform?;
        platform.read_configs_with(Arc::new(reader));
        Ok(platform)
    };
    tokio::task::spawn_blocking(start)
        .await
        .context("loading was cut off")?
}

async fn bind(listen: Listen) -> Result<Server> {
    let (first, more) = match listen {
        Listen::At(address) => (address, 0),
        Listen::AtOrNear(address) => (address, NEXT_PORTS),
        Listen::AsConfigured => (SocketAddr::from(([127, 0, 0, 1], 8080)), 0),
    };
    let mut failure = None;
    for step in 0..=more {
        let mut address = first;
        address.set_port(first.port().saturating_add(step));
        match Server::bind(address).await {
            Ok(server) => {
                if step > 0 {
                    say(format_args!(
                        "port {} is taken; using {}",
                        first.port(),
                        address.port()
                    ));
                }
                return Ok(server);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                failure.get_or_insert(error);
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    let error = failure.unwrap_or_else(|| std::io::Error::other("no port"));
    Err(error).with_context(|| {
        format!(
            "cannot listen on {first}; choose another address with --listen, such as 127.0.0.1:0"
        )
    })
}

/// The signals that a server knows.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves when the process is told to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The same, and takes a new config at each SIGHUP.
    async fn wait(&mut self, platform: &Platform) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hang_up.recv() => reload(platform).await,
            }
        }
    }
}

/// Reads the config again. One that cannot be used changes nothing.
async fn reload(platform: &Platform) {
    let platform = platform.clone();
    let done = tokio::task::spawn_blocking(move || platform.apply_file("signal:hangup"));
    match done.await {
        Ok(Ok(applied)) if applied.changed => {
            for note in &applied.notes {
                tracing::warn!("{note}");
            }
            let generation = applied.generation;
            tracing::info!(generation, "the new config is served");
        }
        Ok(Ok(applied)) => tracing::info!(
            generation = applied.generation,
            "nothing changed in the config; its generation goes on"
        ),
        Ok(Err(error)) => tracing::error!("the last good config stays: {error}"),
        Err(error) => tracing::error!(%error, "the last good config stays: the reload was cut off"),
    }
}

/// A line on standard output, at once: whoever started the process may be waiting for it.
fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "millgate: {line}");
    let _ = out.flush();
}
