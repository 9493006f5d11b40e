//! A monitor: a thread with a mailbox of finished requests, and a clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc as mailbox, oneshot};

use super::resident::Resident;
use super::{Worker, runtime, thread};
use crate::contract::monitoring::{Event, Report};
use crate::error::Result;
use crate::failure::Failure;
use crate::imports::admit_metric;
use crate::stage::StageInner;
use crate::verify;

/// How a monitor is driven.
#[derive(Clone, Copy, Debug)]
pub struct MonitorOptions {
    /// How often `tick` is called.
    pub tick: Duration,
    /// The most events in one `observe`.
    pub batch: usize,
    /// How long a batch waits to fill.
    pub linger: Duration,
    /// The most events that wait; more are dropped and counted.
    pub mailbox: usize,
    /// How often the state is saved.
    pub save: Duration,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        MonitorOptions {
            tick: Duration::from_secs(10),
            batch: 256,
            linger: Duration::from_millis(200),
            mailbox: 8192,
            save: Duration::from_secs(30),
        }
    }
}

/// A running monitor. Its reports go to [`Services::report`](crate::Services::report). When the
/// last clone is dropped it works off its mailbox, saves its state and stops, on its own thread;
/// [`shutdown`](MonitorActor::shutdown) waits for that.
#[derive(Clone)]
pub struct MonitorActor {
    inner: Arc<Inner>,
}

struct Inner {
    mailbox: mailbox::Sender<Message>,
    dropped: AtomicU64,
    worker: Worker,
}

enum Message {
    Event(Event),
    Merge(Vec<u8>, oneshot::Sender<Result<(), Failure>>),
    Save(oneshot::Sender<()>),
}

impl MonitorActor {
    pub(crate) fn start(stage: Arc<StageInner>, options: MonitorOptions) -> Result<MonitorActor> {
        let (sender, receiver) = mailbox::channel(options.mailbox.max(1));
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime()?;
        let name = stage.shared.spec.name.clone();
        let thread = thread(&name, move || {
            let Ok(keep) = stage.monitoring().map(|exports| exports.keep) else {
                return;
            };
            let resident = Resident::new(stage, keep);
            runtime.block_on(
                Loop {
                    resident,
                    receiver,
                    stopped,
                    options,
                }
                .run(),
            );
        })?;
        Ok(MonitorActor {
            inner: Arc::new(Inner {
                mailbox: sender,
                dropped: AtomicU64::new(0),
                worker: Worker::new(stop, thread),
            }),
        })
    }

    /// Hands over a finished request. Never waits: false when the mailbox is full and the event
    /// was dropped (and counted).
    pub fn observe(&self, event: Event) -> bool {
        let sent = self.inner.mailbox.try_send(Message::Event(event)).is_ok();
        if !sent {
            self.inner.dropped.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Adds another instance's saved state to this one's.
    pub async fn merge(&self, state: Vec<u8>) -> Result<(), Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Merge(state, answer)).await?;
        answered.await.map_err(|_| gone())?
    }

    /// Works off what is in the mailbox and saves the state.
    pub async fn save(&self) -> Result<(), Failure> {
        let (answer, answered) = oneshot::channel();
        self.send(Message::Save(answer)).await?;
        answered.await.map_err(|_| gone())
    }

    async fn send(&self, message: Message) -> Result<(), Failure> {
        self.inner.mailbox.send(message).await.map_err(|_| gone())
    }

    /// Events dropped because the mailbox was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Works off the mailbox, saves the state and stops. Blocking, at most `timeout`; false when
    /// that was not enough.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        self.inner.worker.shutdown(timeout)
    }
}

fn gone() -> Failure {
    Failure::Unavailable {
        why: "the monitor was shut down".into(),
    }
}

/// The monitor's thread.
struct Loop {
    resident: Resident,
    receiver: mailbox::Receiver<Message>,
    stopped: oneshot::Receiver<()>,
    options: MonitorOptions,
}

impl Loop {
    async fn run(mut self) {
        let (mut tick, mut save) = (
            Instant::now() + self.options.tick,
            Instant::now() + self.options.save,
        );
        loop {
            tokio::select! {
                biased;
                _ = &mut self.stopped => break,
                () = tokio::time::sleep_until(tick.into()) => {
                    self.tick().await;
                    tick = Instant::now() + self.options.tick;
                }
                () = tokio::time::sleep_until(save.into()) => {
                    self.resident.save().await;
                    save = Instant::now() + self.options.save;
                }
                message = self.receiver.recv() => match message {
                    Some(message) => self.take(message, self.options.linger).await,
                    None => break,
                },
            }
        }
        // No more is taken in; what is there is worked off.
        self.receiver.close();
        while let Ok(message) = self.receiver.try_recv() {
            self.take(message, Duration::ZERO).await;
        }
        self.resident.save().await;
    }

    async fn take(&mut self, message: Message, linger: Duration) {
        let mut next = Some(message);
        while let Some(message) = next.take() {
            match message {
                Message::Event(event) => next = self.batch(event, linger).await,
                Message::Merge(state, answer) => {
                    let merged = self.merge(&state).await;
                    // Whoever asked may have gone.
                    let _ = answer.send(merged);
                }
                Message::Save(answer) => {
                    self.resident.save().await;
                    let _ = answer.send(());
                }
            }
        }
    }

    /// Fills a batch and gives it to the plugin. What came in and is no event is given back.
    async fn batch(&mut self, first: Event, linger: Duration) -> Option<Message> {
        let mut events = vec![first];
        let mut other = None;
        let end = tokio::time::Instant::now() + linger;
        while events.len() < self.options.batch {
            let next = match self.receiver.try_recv() {
                Ok(message) => Some(message),
                Err(_) if linger.is_zero() => None,
                Err(_) => tokio::time::timeout_at(end, self.receiver.recv())
                    .await
                    .ok()
                    .flatten(),
            };
            match next {
                Some(Message::Event(event)) => events.push(event),
                Some(message) => {
                    other = Some(message);
                    break;
                }
                None => break,
            }
        }
        if let Some(export) = self.export(|exports| exports.observe) {
            let limits = self.resident.stage().shared.spec.limits;
            let check = |report: &Report| verify::report(report, &limits);
            let report = self
                .resident
                .call(None, &export, (events.as_slice(),), check)
                .await;
            self.report(report);
        }
        other
    }

    async fn merge(&mut self, state: &[u8]) -> Result<(), Failure> {
        let export = self.export(|exports| exports.merge).ok_or_else(gone)?;
        self.resident
            .call(None, &export, (state,), |(): &()| Ok(()))
            .await
    }

    async fn tick(&mut self) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        if let Some(export) = self.export(|exports| exports.tick) {
            let limits = self.resident.stage().shared.spec.limits;
            let check = |report: &Report| verify::report(report, &limits);
            let report = self.resident.call(None, &export, (now,), check).await;
            self.report(report);
        }
    }

    fn export<T>(&self, which: impl FnOnce(&crate::exports::MonitoringExports) -> T) -> Option<T> {
        self.resident.stage().monitoring().ok().map(which)
    }

    /// Passes a report on. Failures have been counted and logged.
    fn report(&self, report: Result<Report, Failure>) {
        let Ok(report) = report else {
            return;
        };
        let shared = &self.resident.stage().shared;
        let name = &shared.spec.name;
        for metric in &report.metrics {
            if admit_metric(shared, &metric.name) {
                shared.services.gauge(name, &metric.name, metric.value);
            }
        }
        shared.services.report(name, report);
    }
}
