//! A backtest: a candidate's stages over what was kept of past requests, on all cores. One thread
//! reads pages, newest first; the others open the records and run them; each counts for itself.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    time::Instant,
};

use bytes::Bytes;
use millgate_sandbox::tape::Asked;
use parking_lot::Mutex;

use super::{
    candidate::Candidate,
    record::{self, Source},
    store::{InputRange, InputStore},
    tally::{BacktestReport, Keep, Tally},
};
use crate::{
    error::{Error, Result},
    id::TraceId,
    request::Request,
};

/// Records of one page.
const PAGE: usize = 256;
/// Records that one thread takes at once.
const SHARE_LEN: usize = 32;

/// What one thread takes at once: records as they are stored.
type Share = Vec<(TraceId, Vec<u8>)>;

/// The opened bytes of a record, or why there are none.
pub type Opened = Result<Vec<u8>, String>;

/// A page of records as they are stored.
#[derive(Debug, Default)]
pub struct RawPage {
    /// Each with its trace.
    pub records: Vec<(TraceId, Vec<u8>)>,
    /// Where the next page begins.
    pub next: Option<TraceId>,
}

/// Where records come from.
pub trait InputSource: Sync {
    /// A page, newest first; `cursor` is the `next` of the page before. Called on one thread.
    ///
    /// # Errors
    /// They cannot be read.
    fn page(&self, cursor: Option<TraceId>, limit: usize) -> Result<RawPage>;

    /// Opens a record of a page. Called on many threads.
    ///
    /// # Errors
    /// The store cannot be read.
    fn open(&self, trace: TraceId, raw: Vec<u8>) -> Result<Opened>;
}

/// What a store keeps, as a source.
pub struct StoredInputs {
    /// The store.
    pub inputs: Arc<InputStore>,
    /// Which of them.
    pub range: InputRange,
}

impl InputSource for StoredInputs {
    fn page(&self, cursor: Option<TraceId>, limit: usize) -> Result<RawPage> {
        let page = self.inputs.page(self.range, cursor, limit)?;
        Ok(RawPage {
            records: page.records,
            next: page.next,
        })
    }

    fn open(&self, trace: TraceId, raw: Vec<u8>) -> Result<Opened> {
        self.inputs.unseal(trace, &raw)
    }
}

/// How a backtest is to be run.
#[derive(Clone, Copy, Debug)]
pub struct BacktestOptions {
    /// At most this many requests, the newest.
    pub limit: u64,
    /// Threads that run stages.
    pub threads: usize,
    /// Whether examples show their texts.
    pub show_text: bool,
    /// Examples of each kind.
    pub examples: usize,
    /// Flips that are listed; all are counted.
    pub flips: usize,
}

/// Runs a candidate over a source. `progress` is told how many more requests are done. Blocking.
///
/// # Errors
/// The source cannot be read; a thread cannot be started.
pub fn backtest(
    candidate: &Candidate,
    source: &dyn InputSource,
    options: BacktestOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<BacktestReport> {
    let keep = Keep {
        flips: options.flips,
        examples: options.examples,
        text: options.show_text,
    };
    let threads = options.threads.max(1);
    let begun = Instant::now();
    let (send, receive) = sync_channel::<Share>(threads * 4);
    let receive = Mutex::new(receive);
    let failed = AtomicBool::new(false);
    let mut whole = Tally::new(keep);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let done = work(candidate, source, &receive, keep, progress);
                    if done.is_err() {
                        failed.store(true, Ordering::Relaxed);
                        // Whoever reads must not wait for a place.
                        while receive.lock().recv().is_ok() {}
                    }
                    done
                })
            })
            .collect();
        let read = (|| -> Result<()> {
            let (mut cursor, mut left) = (None, options.limit);
            while left > 0 && !failed.load(Ordering::Relaxed) {
                let limit = PAGE.min(usize::try_from(left).unwrap_or(PAGE));
                let page = source.page(cursor, limit)?;
                left -= page.records.len() as u64;
                let mut records = page.records;
                while !records.is_empty() {
                    let rest = records.split_off(records.len().min(SHARE_LEN));
                    if send.send(std::mem::replace(&mut records, rest)).is_err() {
                        return Ok(());
                    }
                }
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            Ok(())
        })();
        drop(send);
        for worker in workers {
            let done = worker.join();
            let done = done.unwrap_or_else(|_| {
                Err(Error::Refused("a thread of the backtest died".to_owned()))
            });
            whole.absorb(done?);
        }
        read
    })?;
    Ok(whole.report(begun.elapsed().as_secs_f64(), threads))
}

fn work(
    candidate: &Candidate,
    source: &dyn InputSource,
    receive: &Mutex<Receiver<Share>>,
    keep: Keep,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Tally> {
    // Stages that ask the host have a time-out.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.map_err(|error| {
        Error::Refused(format!("a thread of the backtest did not start: {error}"))
    })?;
    let mut tally = Tally::new(keep);
    runtime
        .block_on(async {
            loop {
                let next = receive.lock().recv();
                let Ok(records) = next else {
                    return Ok(());
                };
                let count = records.len() as u64;
                batch(candidate, source, records, &mut tally).await?;
                progress(count);
            }
        })
        .map(|()| tally)
}

/// Some records: all are opened, all are read, all are run, all are counted. One after the other
/// would have the caches forget each step before it comes again.
async fn batch(
    candidate: &Candidate,
    source: &dyn InputSource,
    records: Vec<(TraceId, Vec<u8>)>,
    tally: &mut Tally,
) -> Result<()> {
    let mut opened = Vec::with_capacity(records.len());
    for (trace, raw) in records {
        let read = match source.open(trace, raw)? {
            Ok(bytes) => record::source_bytes(&bytes).map(|plain| (plain, bytes)),
            Err(why) => Err(why),
        };
        match read {
            Ok((plain, bytes)) => opened.push((trace, plain, bytes)),
            Err(why) => tally.skip(why),
        }
    }
    let mut ready = Vec::with_capacity(opened.len());
    for (trace, plain, bytes) in &opened {
        match one(candidate, plain, bytes) {
            Ok((source, request, asked)) => ready.push((*trace, source, request, asked)),
            Err(why) => tally.skip(why),
        }
    }
    let mut ran = Vec::with_capacity(ready.len());
    for (trace, source, request, asked) in ready {
        match candidate.run(trace, &source, request, asked).await {
            Ok(done) => ran.push((trace, source, done)),
            Err(why) => tally.skip(why),
        }
    }
    for (trace, source, done) in ran {
        tally.add(trace, &source, done);
    }
    Ok(())
}

/// One record, read: its source, its request, and what its stages asked the host.
fn one<'a>(
    candidate: &Candidate,
    plain: &'a Bytes,
    bytes: &[u8],
) -> Result<(Source<'a>, Request, Vec<Asked>), String> {
    let source = record::source(plain)?;
    let body = match &source.body {
        Cow::Borrowed(body) => plain.slice_ref(body.as_bytes()),
        Cow::Owned(body) => Bytes::copy_from_slice(body.as_bytes()),
    };
    let request = candidate.read(&source, body)?;
    let asked = match candidate.asks() {
        true => {
            let sessions = record::recorded(bytes)?.sessions.into_iter();
            sessions.flat_map(|session| session.asked).collect()
        }
        false => Vec::new(),
    };
    Ok((source, request, asked))
}
