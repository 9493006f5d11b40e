//! The traces of all requests in the store: appended with a group commit, listed newest first,
//! bounded by age and number.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use millgate_store::{Batch, Blobs, Commit, Order, Store};

use crate::{
    config::TracesConfig,
    error::{Error, Result},
    id::TraceId,
    trace::{StageVerdict, Trace},
};

const PREFIX: &[u8] = b"trace/";
/// Records read from the store in one step.
const PAGE: usize = 256;
/// Records that one call of [`Traces::list`] looks at before it hands back what it found so far.
const LOOK: usize = 20_000;

/// The traces of all requests. A clone is the same.
#[derive(Clone)]
pub struct Traces {
    store: Arc<dyn Store>,
    blobs: Arc<Blobs>,
    /// How many there are, as far as this process knows.
    count: Arc<AtomicU64>,
}

/// Which traces to list.
#[derive(Clone, Debug, Default)]
pub struct TraceFilter {
    /// Only those of this model name.
    pub model: Option<String>,
    /// Only those in which this stage ran; with a verdict: in which it had that verdict.
    pub stage: Option<String>,
    /// Only those in which some stage (or `stage`) had this verdict.
    pub verdict: Option<StageVerdict>,
    /// Only those that ended like this: a name of [`Finish`](crate::trace::Finish).
    pub finish: Option<String>,
    /// Only those that arrived at or after this time, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Only those that arrived before this time, in milliseconds since 1970.
    pub until_ms: Option<u64>,
    /// At most this many; 0 is 100.
    pub limit: usize,
    /// Go on after this trace: the `next` of the page before.
    pub cursor: Option<TraceId>,
}

/// A page of traces, newest first.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TracePage {
    /// The traces.
    pub traces: Vec<Trace>,
    /// Where the next page begins; `None`: this was the last. A page may be short, or empty, and
    /// still have a next one, where the filter left out many.
    pub next: Option<TraceId>,
}

impl TraceFilter {
    fn admits(&self, trace: &Trace) -> bool {
        let by_stage = |record: &crate::trace::StageRecord| {
            self.stage
                .as_deref()
                .is_none_or(|stage| *record.stage == *stage)
                && self.verdict.is_none_or(|verdict| record.verdict == verdict)
                // A verdict that did not count is only asked for by the stage's name.
                && (self.stage.is_some() || record.enforced)
        };
        self.model
            .as_deref()
            .is_none_or(|model| *trace.model == *model)
            && self
                .finish
                .as_deref()
                .is_none_or(|finish| trace.finish.name() == finish)
            && ((self.stage.is_none() && self.verdict.is_none())
                || trace.stages.iter().any(by_stage))
    }
}

impl Traces {
    /// The traces in a store; texts are in `blobs`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(store: Arc<dyn Store>, blobs: Arc<Blobs>) -> Result<Self> {
        let traces = Self {
            store,
            blobs,
            count: Arc::default(),
        };
        traces.count.store(traces.recount()?, Ordering::Relaxed);
        Ok(traces)
    }

    fn recount(&self) -> Result<u64> {
        let mut count = 0;
        let mut from = PREFIX.to_vec();
        loop {
            let page = self.range(Bound::Excluded(&from), None, Order::Ascending, 4096)?;
            count += page.len() as u64;
            match page.last() {
                Some((key, _)) => from.clone_from(key),
                None => return Ok(count),
            }
        }
    }

    fn range(
        &self,
        from: Bound<&[u8]>,
        to: Option<&[u8]>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let end = millgate_store::prefix_end(PREFIX).unwrap_or_default();
        let to = to.unwrap_or(&end);
        Ok(self.store.scan(from, Bound::Excluded(to), order, limit)?)
    }

    /// Appends a trace. The answer resolves when it is on disk.
    pub(crate) fn append(&self, trace: &Trace) -> Commit {
        let value = match encode(trace) {
            Ok(value) => value,
            Err(error) => {
                tracing::error!(trace = %trace.id, %error, "a trace could not be encoded");
                Vec::new()
            }
        };
        let mut batch = Batch::new();
        batch.put(key(trace.id), value);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.store.commit(batch)
    }

    /// Writes a changed trace in place of the old one, if it is still there.
    pub(crate) fn update(&self, trace: &Trace) -> Result<()> {
        let key = key(trace.id);
        if self.store.get(&key)?.is_some() {
            self.store.put(&key, &encode(trace)?)?;
        }
        Ok(())
    }

    /// One trace.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, id: TraceId) -> Result<Option<Trace>> {
        self.store
            .get(&key(id))?
            .map(|value| decode(id, &value))
            .transpose()
    }

    /// The texts of a trace, where the config keeps them: the request and the answer.
    ///
    /// # Errors
    /// A blob cannot be read.
    pub fn texts(&self, trace: &Trace) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let Some(texts) = &trace.texts else {
            return Ok(None);
        };
        Ok(Some((
            self.blobs.get(&texts.input)?,
            self.blobs.get(&texts.output)?,
        )))
    }

    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// How many traces there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The oldest trace.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn oldest(&self) -> Result<Option<TraceId>> {
        let first = self.range(Bound::Included(PREFIX), None, Order::Ascending, 1)?;
        Ok(first.first().and_then(|(key, _)| id_of(key)))
    }

    /// A page of traces, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self, filter: &TraceFilter) -> Result<TracePage> {
        let limit = if filter.limit == 0 {
            100
        } else {
            filter.limit.min(1000)
        };
        let from = key(TraceId::first_at(filter.since_ms.unwrap_or(0)));
        let mut to = match (filter.cursor, filter.until_ms) {
            (Some(cursor), _) => Some(key(cursor)),
            (None, Some(until)) => Some(key(TraceId::first_at(until))),
            (None, None) => None,
        };
        let mut found = Vec::new();
        let mut looked = 0;
        loop {
            let page = self.range(
                Bound::Included(&from),
                to.as_deref(),
                Order::Descending,
                PAGE.min(limit.max(16)),
            )?;
            let Some((last, _)) = page.last() else {
                return Ok(TracePage {
                    traces: found,
                    next: None,
                });
            };
            to = Some(last.clone());
            for (key, value) in &page {
                let Some(id) = id_of(key) else { continue };
                looked += 1;
                let trace = decode(id, value)?;
                if filter.admits(&trace) {
                    found.push(trace);
                }
                if found.len() == limit || looked == LOOK {
                    return Ok(TracePage {
                        traces: found,
                        next: Some(id),
                    });
                }
            }
        }
    }

    /// Removes what is too old or too much, oldest first, with its texts. Returns how many went.
    ///
    /// # Errors
    /// The store failed; what was removed before stays removed.
    pub fn enforce(&self, config: &TracesConfig, now_ms: u64) -> Result<u64> {
        let age = u64::try_from(config.max_age.0.as_millis()).unwrap_or(u64::MAX);
        let oldest = key(TraceId::first_at(now_ms.saturating_sub(age)));
        let mut removed = 0;
        loop {
            let beyond = self.count().saturating_sub(config.max_count);
            let page = match beyond {
                0 => self.range(
                    Bound::Included(PREFIX),
                    Some(&oldest),
                    Order::Ascending,
                    PAGE,
                )?,
                some => self.range(
                    Bound::Included(PREFIX),
                    None,
                    Order::Ascending,
                    PAGE.min(some as usize),
                )?,
            };
            if page.is_empty() {
                return Ok(removed);
            }
            let mut batch = Batch::new();
            for (key, value) in &page {
                batch.delete(key.clone());
                let texts = serde_json::from_slice::<Trace>(value)
                    .ok()
                    .and_then(|trace| trace.texts);
                for digest in texts.iter().flat_map(|texts| [texts.input, texts.output]) {
                    // Two traces with the same text share its blob; a text that is gone is said to
                    // be gone, which is what retention asks for.
                    self.blobs.delete(&digest)?;
                }
            }
            self.store.apply(batch)?;
            removed += page.len() as u64;
            let _ = self
                .count
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                    Some(count.saturating_sub(page.len() as u64))
                });
        }
    }
}

fn key(id: TraceId) -> Vec<u8> {
    let mut key = Vec::with_capacity(PREFIX.len() + 16);
    key.extend_from_slice(PREFIX);
    key.extend_from_slice(id.bytes());
    key
}

fn id_of(key: &[u8]) -> Option<TraceId> {
    let bytes = key.strip_prefix(PREFIX)?;
    Some(TraceId::from_bytes(bytes.try_into().ok()?))
}

fn encode(trace: &Trace) -> Result<Vec<u8>> {
    let mut value = Vec::with_capacity(1024);
    serde_json::to_writer(&mut value, trace).map_err(|error| Error::Record {
        key: format!("trace/{}", trace.id),
        why: error.to_string(),
    })?;
    Ok(value)
}

fn decode(id: TraceId, value: &[u8]) -> Result<Trace> {
    serde_json::from_slice(value).map_err(|error| Error::Record {
        key: format!("trace/{id}"),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        request::Endpoint,
        trace::{Finish, Place, StageRecord, Timings, Tokens},
    };
    use millgate_store::MemoryStore;
    use std::time::Duration;

    fn trace(at_ms: u64, model: &str, verdict: StageVerdict) -> Trace {
        Trace {
            id: TraceId::new(at_ms),
            at_ms,
            tenant: "default".into(),
            endpoint: Endpoint::Chat,
            stream: false,
            model: model.into(),
            pipeline: "p".into(),
            generation: 1,
            arm: "stable".into(),
            arm_model: "m".into(),
            propensity: 1.0,
            route: String::new(),
            stages: vec![StageRecord {
                stage: "pii".into(),
                plugin: "pii 0.1.0".into(),
                digest: "sha256:00".into(),
                place: Place::Input,
                mode: crate::config::StageMode::Enforce,
                enforced: true,
                compared: None,
                tapped: Vec::new(),
                verdict,
                passed: 10,
                given: 10,
                edits: 0,
                findings: Vec::new(),
                findings_dropped: 0,
                calls: 2,
                micros: 9,
                failure: None,
            }],
            tokens: Tokens::default(),
            timings: Timings::default(),
            finish: Finish::Stop,
            error: None,
            entropy: None,
            cost: 0.0,
            prompt_chars: 0,
            completion_chars: 0,
            scores: Vec::new(),
            no_scores: None,
            texts: None,
        }
    }

    fn traces() -> Traces {
        let folder = tempfile::tempdir().unwrap().keep();
        Traces::open(
            Arc::new(MemoryStore::new()),
            Arc::new(Blobs::open(folder).unwrap()),
        )
        .unwrap()
    }

    fn times(page: &TracePage) -> Vec<u64> {
        page.traces.iter().map(|trace| trace.at_ms).collect()
    }

    #[test]
    fn a_trace_reads_back_as_it_was_written() {
        let traces = traces();
        let written = trace(5, "m", StageVerdict::Edit);
        traces.append(&written).wait().unwrap();
        assert_eq!(traces.get(written.id).unwrap(), Some(written));
        assert_eq!(traces.get(TraceId::new(5)).unwrap(), None);
    }

    #[test]
    fn traces_are_listed_newest_first_page_by_page_and_filtered() {
        let traces = traces();
        for at in 1..=600 {
            let verdict = if at % 100 == 0 {
                StageVerdict::Block
            } else {
                StageVerdict::Pass
            };
            traces
                .append(&trace(
                    at,
                    if at % 2 == 0 { "even" } else { "odd" },
                    verdict,
                ))
                .wait()
                .unwrap();
        }
        let filter = TraceFilter {
            limit: 2,
            ..TraceFilter::default()
        };
        let first = traces.list(&filter).unwrap();
        assert_eq!(times(&first), [600, 599]);
        let second = traces
            .list(&TraceFilter {
                cursor: first.next,
                ..filter
            })
            .unwrap();
        assert_eq!(times(&second), [598, 597]);

        let blocked = TraceFilter {
            stage: Some("pii".into()),
            verdict: Some(StageVerdict::Block),
            since_ms: Some(200),
            until_ms: Some(500),
            ..TraceFilter::default()
        };
        assert_eq!(times(&traces.list(&blocked).unwrap()), [400, 300, 200]);
        let odd = TraceFilter {
            model: Some("odd".into()),
            limit: 3,
            ..TraceFilter::default()
        };
        assert_eq!(times(&traces.list(&odd).unwrap()), [599, 597, 595]);
        let none = TraceFilter {
            stage: Some("other".into()),
            ..TraceFilter::default()
        };
        let page = traces.list(&none).unwrap();
        assert!(page.traces.is_empty() && page.next.is_none());
    }

    #[test]
    fn what_is_too_old_or_too_much_is_removed_oldest_first() {
        let traces = traces();
        for at in 1..=1000 {
            traces
                .append(&trace(at * 1000, "m", StageVerdict::Pass))
                .wait()
                .unwrap();
        }
        let mut config = TracesConfig {
            max_count: 400,
            ..TracesConfig::default()
        };
        config.max_age.0 = Duration::from_secs(300);
        assert_eq!(traces.enforce(&config, 1_000_000).unwrap(), 699);
        assert_eq!(traces.count(), 301);
        config.max_count = 10;
        traces.enforce(&config, 1_000_000).unwrap();
        let left = traces
            .list(&TraceFilter {
                limit: 1000,
                ..TraceFilter::default()
            })
            .unwrap();
        assert_eq!((left.traces.len(), left.traces[9].at_ms), (10, 991_000));
    }
}
