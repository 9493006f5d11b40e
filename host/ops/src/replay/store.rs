//! Where records are kept: sealed, in the store beside the traces, large ones as blobs. Written in
//! groups by a thread of its own, removed by age and by size, oldest first. The plugins and the
//! configs that the stages had are kept beside them, by digest.
//!
//! Keys: `inputs/at/` and a trace's id holds a record's size, `inputs/of/` its sealed bytes,
//! `inputs/recipe/` and a stage's identity its recipe.

use std::{
    ops::Bound,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use millgate_sandbox::{Stage, tape::Recipe};
use millgate_store::{Batch, Blobs, Digest, Order, SealError, Store, Vault};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{record, recorder::Job, recorder::subject};
use crate::{
    config::TracesConfig,
    error::{Error, Result},
    id::TraceId,
    metrics::{Counter, Metrics},
};

const AT: &[u8] = b"inputs/at/";
const OF: &[u8] = b"inputs/of/";
const RECIPE: &[u8] = b"inputs/recipe/";
/// Sealed bytes beyond this go into a blob.
const INLINE: usize = 256 << 10;
/// Records that are written in one group.
const GROUP: usize = 64;
/// Bytes of records that may wait to be written; what comes beyond them is dropped and counted.
const WAITING: usize = 64 << 20;
/// How long a recipe is kept beyond the records that may need it: it is stamped once an hour.
const SLACK_MS: u64 = 2 * 3_600_000;
const STAMP_MS: u64 = 3_600_000;
const PAGE: usize = 256;

/// The records of requests, for replays and backtests.
pub struct InputStore {
    store: Arc<dyn Store>,
    blobs: Arc<Blobs>,
    vault: Vault,
    count: AtomicU64,
    bytes: AtomicU64,
    waiting: AtomicUsize,
    writer: Mutex<Option<Writer>>,
    metrics: Option<InputMetrics>,
}

struct Writer {
    jobs: SyncSender<Job>,
    thread: JoinHandle<()>,
}

struct InputMetrics {
    kept: Counter,
    dropped: Counter,
}

/// A stage's recipe in the store.
#[derive(Serialize, Deserialize)]
struct KeptRecipe {
    /// When a stage of this recipe was last served.
    used_ms: u64,
    /// The recipe's JSON, as its identity is of it.
    recipe: String,
}

/// Sealed records, as a page of them is read.
#[derive(Debug, Default)]
pub struct SealedPage {
    /// Each with its trace.
    pub records: Vec<(TraceId, Vec<u8>)>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<TraceId>,
}

/// Which records.
#[derive(Clone, Copy, Debug, Default)]
pub struct InputRange {
    /// Of requests that arrived at or after this time, in milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// Of those that arrived before this time.
    pub until_ms: Option<u64>,
}

impl InputStore {
    /// The records in a store, to read. The root key is in `data`.
    ///
    /// # Errors
    /// The store or the key's file cannot be read.
    pub fn open(store: Arc<dyn Store>, blobs: Arc<Blobs>, data: PathBuf) -> Result<Arc<Self>> {
        Self::open_with(store, blobs, data, None).map(Arc::new)
    }

    /// The same, to write as well.
    pub(crate) fn serve(
        store: Arc<dyn Store>,
        blobs: Arc<Blobs>,
        data: PathBuf,
        metrics: &Metrics,
    ) -> Result<Arc<Self>> {
        let metrics = InputMetrics {
            kept: metrics.counter(
                "millgate_inputs_kept_total",
                "Requests whose inputs were kept for replays.",
                &[],
            ),
            dropped: metrics.counter(
                "millgate_inputs_dropped_total",
                "Requests whose inputs were to be kept and were not: too large, too many at once, or the store failed.",
                &[],
            ),
        };
        let inputs = Arc::new(Self::open_with(store, blobs, data, Some(metrics))?);
        let (jobs, receiver) = sync_channel(16 << 10);
        let weak = Arc::downgrade(&inputs);
        let work = move || {
            while let Some(group) = group(&receiver) {
                match weak.upgrade() {
                    Some(inputs) => inputs.write(group),
                    None => return,
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("millgate-inputs".into())
            .spawn(work);
        let thread = thread.map_err(|error| {
            Error::Refused(format!(
                "the thread that keeps inputs did not start: {error}"
            ))
        })?;
        *inputs.writer.lock() = Some(Writer { jobs, thread });
        Ok(inputs)
    }

    fn open_with(
        store: Arc<dyn Store>,
        blobs: Arc<Blobs>,
        data: PathBuf,
        metrics: Option<InputMetrics>,
    ) -> Result<Self> {
        let inputs = Self {
            vault: Vault::open(store.clone(), data.join("seal.key"))?,
            store,
            blobs,
            count: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            writer: Mutex::new(None),
            metrics,
        };
        let mut from = AT.to_vec();
        loop {
            let page = inputs.index(Bound::Excluded(&from), 4096)?;
            let Some((last, _)) = page.last() else {
                return Ok(inputs);
            };
            from.clone_from(last);
            let bytes = page.iter().map(|(_, size)| size_of(size)).sum();
            inputs.count.fetch_add(page.len() as u64, Ordering::Relaxed);
            inputs.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn index(&self, from: Bound<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let end = millgate_store::prefix_end(AT).unwrap_or_default();
        Ok(self
            .store
            .scan(from, Bound::Excluded(&end), Order::Ascending, limit)?)
    }

    /// How many records there are, as far as this process knows.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Their sealed bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes a record to be written soon. Never waits.
    pub(crate) fn keep(&self, job: Option<Job>) {
        let sent = job.is_some_and(|job| {
            let bytes = job.bytes();
            if self.waiting.fetch_add(bytes, Ordering::Relaxed) > WAITING {
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
                return false;
            }
            let sent = match &*self.writer.lock() {
                Some(writer) => writer.jobs.try_send(job),
                None => Err(TrySendError::Disconnected(job)),
            };
            if sent.is_err() {
                self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            }
            sent.is_ok()
        });
        if let (false, Some(metrics)) = (sent, &self.metrics) {
            metrics.dropped.add(1);
        }
    }

    /// Writes what waits, and ends the writing. Blocking.
    pub(crate) fn close(&self) {
        let writer = self.writer.lock().take();
        if let Some(Writer { jobs, thread }) = writer {
            drop(jobs);
            if thread.join().is_err() {
                tracing::error!("the thread that keeps inputs died");
            }
        }
    }

    fn write(&self, jobs: Vec<Job>) {
        let (mut kept, mut dropped) = (0, 0);
        let mut batch = Batch::new();
        let mut sizes = Vec::with_capacity(jobs.len());
        let mut held = 0;
        for job in jobs {
            self.waiting.fetch_sub(job.bytes(), Ordering::Relaxed);
            match self.sealed(&job) {
                Ok(value) => {
                    if held + value.len() > 4 << 20 {
                        kept += self.commit(std::mem::take(&mut batch), &mut sizes);
                        held = 0;
                    }
                    held += value.len();
                    let size = value.len() as u64;
                    batch.put(key(AT, job.id), size.to_be_bytes().to_vec());
                    batch.put(key(OF, job.id), value);
                    sizes.push(size);
                }
                Err(error) => {
                    dropped += 1;
                    tracing::error!(trace = %job.id, %error, "inputs could not be kept");
                }
            }
        }
        let waiting = sizes.len() as u64;
        let written = self.commit(batch, &mut sizes);
        dropped += waiting - written;
        kept += written;
        if let Some(metrics) = &self.metrics {
            metrics.kept.add(kept);
            metrics.dropped.add(dropped);
        }
    }

    /// Says how many were written.
    fn commit(&self, batch: Batch, sizes: &mut Vec<u64>) -> u64 {
        let sizes = std::mem::take(sizes);
        if sizes.is_empty() {
            return 0;
        }
        match self.store.commit(batch).wait() {
            Ok(()) => {
                self.count.fetch_add(sizes.len() as u64, Ordering::Relaxed);
                self.bytes.fetch_add(sizes.iter().sum(), Ordering::Relaxed);
                sizes.len() as u64
            }
            Err(error) => {
                tracing::error!(%error, "inputs could not be kept");
                0
            }
        }
    }

    fn sealed(&self, job: &Job) -> Result<Vec<u8>> {
        let bytes = record::encode(&job.source, &job.recorded).map_err(|why| Error::Record {
            key: format!("inputs/of/{}", job.id),
            why,
        })?;
        let sealed = self.vault.seal(&job.subject, job.id.bytes(), &bytes)?;
        Ok(match sealed.len() > INLINE {
            false => [&[0], sealed.as_slice()].concat(),
            true => [&[1], self.blobs.put(&sealed)?.0.as_slice()].concat(),
        })
    }

    /// Whether there is a record of this trace.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn has(&self, id: TraceId) -> Result<bool> {
        Ok(self.store.get(&key(AT, id))?.is_some())
    }

    /// The opened bytes of a record; inside: why there are none.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn get(&self, id: TraceId) -> Result<Result<Vec<u8>, String>> {
        match self.store.get(&key(OF, id))? {
            Some(value) => self.unseal(id, &value),
            None => Ok(Err(
                "its inputs were not kept: `traces.inputs` was off or its share did not take it, the process ended before they were written, or they were removed by `traces.inputs-max-age` or `inputs-max-bytes`"
                    .to_owned(),
            )),
        }
    }

    /// Opens what a page has.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn unseal(&self, id: TraceId, value: &[u8]) -> Result<Result<Vec<u8>, String>> {
        let blob;
        let sealed = match value {
            [0, sealed @ ..] => sealed,
            [1, digest @ ..] => match <[u8; 32]>::try_from(digest) {
                Ok(digest) => match self.blobs.get(&Digest(digest)) {
                    Ok(bytes) => {
                        blob = bytes;
                        blob.as_slice()
                    }
                    Err(error) => return Ok(Err(error.to_string())),
                },
                Err(_) => return Ok(Err(SealError::Tampered.to_string())),
            },
            _ => return Ok(Err(SealError::Tampered.to_string())),
        };
        let opened = self.vault.open_sealed(id.bytes(), sealed)?;
        Ok(opened.map_err(|error| error.to_string()))
    }

    /// A page of sealed records, newest first; `cursor` is the `next` of the page before.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn page(
        &self,
        range: InputRange,
        cursor: Option<TraceId>,
        limit: usize,
    ) -> Result<SealedPage> {
        let page = self.scan(OF, range, cursor, limit)?;
        let whole = page.len() == limit;
        let records: Vec<(TraceId, Vec<u8>)> = page
            .into_iter()
            .filter_map(|(key, value)| Some((id_of(OF, &key)?, value)))
            .collect();
        Ok(SealedPage {
            next: records.last().filter(|_| whole).map(|(id, _)| *id),
            records,
        })
    }

    /// A page of the traces that have a record, newest first, and where the next one begins.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn ids(
        &self,
        range: InputRange,
        cursor: Option<TraceId>,
        limit: usize,
    ) -> Result<(Vec<TraceId>, Option<TraceId>)> {
        let page = self.scan(AT, range, cursor, limit)?;
        let whole = page.len() == limit;
        let ids: Vec<TraceId> = page.iter().filter_map(|(key, _)| id_of(AT, key)).collect();
        let next = ids.last().copied().filter(|_| whole);
        Ok((ids, next))
    }

    fn scan(
        &self,
        prefix: &[u8],
        range: InputRange,
        cursor: Option<TraceId>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let from = key(prefix, TraceId::first_at(range.since_ms.unwrap_or(0)));
        let end = match (cursor, range.until_ms) {
            (Some(cursor), _) => key(prefix, cursor),
            (None, Some(until)) => key(prefix, TraceId::first_at(until)),
            (None, None) => millgate_store::prefix_end(prefix).unwrap_or_default(),
        };
        let (from, end) = (Bound::Included(&*from), Bound::Excluded(&*end));
        Ok(self.store.scan(from, end, Order::Descending, limit)?)
    }

    /// How many records there are in a range, at most `most`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn count_in(&self, range: InputRange, most: u64) -> Result<u64> {
        let mut from = key(AT, TraceId::first_at(range.since_ms.unwrap_or(0)));
        let until = range.until_ms.map(TraceId::first_at);
        let mut count = 0;
        let mut bound = Bound::Included(&*from);
        loop {
            let page = self.index(bound, 4096)?;
            let Some((last, _)) = page.last() else {
                return Ok(count);
            };
            for (key, _) in &page {
                let id = id_of(AT, key);
                if until.is_some_and(|until| id.is_some_and(|id| id >= until)) || count == most {
                    return Ok(count);
                }
                count += 1;
            }
            from = last.clone();
            bound = Bound::Excluded(&*from);
        }
    }

    /// Erases all records of a tenant or, with `user`, of one of its end users. Durable when it
    /// returns. Says how many keys there were; the sealed bytes go with the retention.
    ///
    /// # Errors
    /// The store failed.
    pub fn erase(&self, tenant: &str, user: Option<&str>) -> Result<u64> {
        Ok(match user {
            Some(user) => self.vault.erase(&subject(tenant, user), false)?,
            None => self.vault.erase(&subject(tenant, ""), true)?,
        })
    }

    /// Removes what is too old or too much, oldest first, and what belongs to traces that are gone
    /// (older than `oldest`). Returns how many went.
    ///
    /// # Errors
    /// The store failed; what was removed before stays removed.
    pub(crate) fn enforce(
        &self,
        config: &TracesConfig,
        now_ms: u64,
        oldest: Option<TraceId>,
    ) -> Result<u64> {
        let age = u64::try_from(config.inputs_max_age.0.as_millis()).unwrap_or(u64::MAX);
        let bound = TraceId::first_at(now_ms.saturating_sub(age));
        let bound = oldest.map_or(bound, |oldest| bound.max(oldest));
        let mut removed = 0;
        loop {
            let page = self.index(Bound::Included(AT), PAGE)?;
            let mut excess = self.bytes().saturating_sub(config.inputs_max_bytes.0);
            let mut batch = Batch::new();
            let (mut count, mut bytes) = (0, 0);
            for (index, size) in &page {
                let Some(id) = id_of(AT, index) else { continue };
                if id >= bound && excess == 0 {
                    break;
                }
                let of = key(OF, id);
                // Only what is large enough to be a blob's name has to be looked at.
                if size_of(size) == 33
                    && let Some([1, digest @ ..]) = self.store.get(&of)?.as_deref()
                    && let Ok(digest) = <[u8; 32]>::try_from(digest)
                {
                    self.blobs.delete(&Digest(digest))?;
                }
                batch.delete(index.clone());
                batch.delete(of);
                count += 1;
                bytes += size_of(size);
                excess = excess.saturating_sub(size_of(size));
            }
            if count == 0 {
                break;
            }
            self.store.apply(batch)?;
            removed += count;
            less(&self.count, count);
            less(&self.bytes, bytes);
        }
        let days = age / 86_400_000 + 2;
        self.vault.sweep(days)?;
        self.sweep_recipes(now_ms, age)?;
        Ok(removed)
    }

    /// Keeps all that a stage's answers depend on: its plugin, and what the operator said.
    pub(crate) fn keep_recipe(&self, wasm: &[u8], stage: &Stage, now_ms: u64) -> Result<()> {
        let name = recipe_key(stage.identity());
        if self.store.get(&name)?.is_none() {
            self.blobs.put(wasm)?;
            let recipe = String::from_utf8_lossy(&stage.recipe().to_json()).into_owned();
            self.put_recipe(
                &name,
                &KeptRecipe {
                    used_ms: now_ms,
                    recipe,
                },
            )?;
        }
        self.stamp(stage.identity(), now_ms)
    }

    /// Notes that a stage is served now.
    pub(crate) fn stamp(&self, identity: &str, now_ms: u64) -> Result<()> {
        let name = recipe_key(identity);
        let Some(value) = self.store.get(&name)? else {
            return Ok(());
        };
        if let Ok(mut kept) = serde_json::from_slice::<KeptRecipe>(&value)
            && kept.used_ms + STAMP_MS < now_ms
        {
            kept.used_ms = now_ms;
            self.put_recipe(&name, &kept)?;
        }
        Ok(())
    }

    fn put_recipe(&self, name: &[u8], kept: &KeptRecipe) -> Result<()> {
        let value = serde_json::to_vec(kept).map_err(|error| Error::Record {
            key: String::from_utf8_lossy(name).into_owned(),
            why: error.to_string(),
        })?;
        Ok(self.store.put(name, &value)?)
    }

    /// A stage's recipe; inside: why there is none.
    pub(crate) fn recipe(&self, identity: &str) -> Result<Result<Recipe, String>> {
        let Some(value) = self.store.get(&recipe_key(identity))? else {
            return Ok(Err(
                "its plugin and config are no longer in the store".to_owned()
            ));
        };
        let kept = serde_json::from_slice::<KeptRecipe>(&value).ok();
        let kept = kept.filter(|kept| Recipe::identity_of(kept.recipe.as_bytes()) == identity);
        let recipe = kept.and_then(|kept| serde_json::from_str::<Recipe>(&kept.recipe).ok());
        Ok(recipe
            .ok_or_else(|| format!("what is kept of its config is not {identity}: it was changed")))
    }

    /// The bytes of a plugin that was kept.
    pub(crate) fn plugin(&self, digest: &str) -> Result<Vec<u8>, String> {
        let found = digest.parse().and_then(|digest| self.blobs.get(&digest));
        found.map_err(|error| format!("its plugin {digest} is gone: {error}"))
    }

    /// Removes the recipes that no record can need any more, with their plugins.
    fn sweep_recipes(&self, now_ms: u64, age_ms: u64) -> Result<()> {
        let all = self
            .store
            .scan_prefix(RECIPE, Order::Ascending, usize::MAX)?;
        let read = |value: &[u8]| {
            let kept: KeptRecipe = serde_json::from_slice(value).ok()?;
            let recipe: Recipe = serde_json::from_str(&kept.recipe).ok()?;
            Some((kept.used_ms, recipe.plugin))
        };
        let (mut old, mut needed) = (Vec::new(), std::collections::HashSet::new());
        for (name, value) in &all {
            let Some((used_ms, plugin)) = read(value) else {
                continue;
            };
            if used_ms.saturating_add(age_ms).saturating_add(SLACK_MS) < now_ms {
                old.push((name, plugin));
            } else {
                needed.insert(plugin);
            }
        }
        for (name, plugin) in old {
            self.store.delete(name)?;
            if let (false, Ok(digest)) = (needed.contains(&plugin), plugin.parse::<Digest>()) {
                self.blobs.delete(&digest)?;
            }
        }
        Ok(())
    }
}

/// The next jobs; `None` when there will be no more.
fn group(jobs: &Receiver<Job>) -> Option<Vec<Job>> {
    let mut group = vec![jobs.recv().ok()?];
    while group.len() < GROUP
        && let Ok(job) = jobs.try_recv()
    {
        group.push(job);
    }
    Some(group)
}

fn key(prefix: &[u8], id: TraceId) -> Vec<u8> {
    [prefix, id.bytes()].concat()
}

fn id_of(prefix: &[u8], key: &[u8]) -> Option<TraceId> {
    let bytes = key.strip_prefix(prefix)?;
    Some(TraceId::from_bytes(bytes.try_into().ok()?))
}

fn recipe_key(identity: &str) -> Vec<u8> {
    [RECIPE, identity.as_bytes()].concat()
}

fn size_of(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_be_bytes)
}

fn less(number: &AtomicU64, by: u64) {
    let _ = number.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
        Some(now.saturating_sub(by))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        answer::Channel,
        replay::record::{Heard, Source},
        request::Endpoint,
        trace::Finish,
    };
    use millgate_sandbox::tape::Recorded;
    use millgate_store::MemoryStore;

    struct Place {
        folder: tempfile::TempDir,
        store: Arc<dyn Store>,
        inputs: Arc<InputStore>,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let inputs = open(folder.path(), &store);
        Place {
            folder,
            store,
            inputs,
        }
    }

    fn open(folder: &std::path::Path, store: &Arc<dyn Store>) -> Arc<InputStore> {
        let blobs = Arc::new(Blobs::open(folder.join("blobs")).unwrap());
        InputStore::serve(store.clone(), blobs, folder.to_owned(), &Metrics::new()).unwrap()
    }

    fn job(at_ms: u64, tenant: &str, text: &str) -> Job {
        let mut heard = Heard::default();
        heard.push(0, Channel::Content, text);
        Job {
            id: TraceId::new(at_ms),
            subject: subject(tenant, ""),
            source: Source {
                at_ms,
                tenant: tenant.to_owned().into(),
                model: "m".into(),
                language: "".into(),
                endpoint: Endpoint::Chat,
                pipeline: "p".into(),
                generation: 1,
                config: "sha256:00".into(),
                finish: Finish::Stop,
                body: "{}".into(),
                departed: true,
                changed: Vec::new(),
                stages: Vec::new(),
                answer: Some(heard),
            },
            recorded: Recorded::default(),
        }
    }

    fn text_of(inputs: &InputStore, id: TraceId) -> Result<String, String> {
        let bytes = inputs.get(id).unwrap()?;
        let plain = record::source_bytes(&bytes)?;
        Ok(record::source(&plain)?.answer.unwrap().text.into_owned())
    }

    #[test]
    fn what_was_kept_is_there_in_another_process_and_pages_come_newest_first() {
        let Place {
            folder,
            store,
            inputs,
        } = place();
        let jobs: Vec<Job> = (1..=10)
            .map(|at| job(at, "t", &format!("text {at}")))
            .collect();
        let ids: Vec<TraceId> = jobs.iter().map(|job| job.id).collect();
        jobs.into_iter().for_each(|job| inputs.keep(Some(job)));
        inputs.close();
        drop(inputs);
        let inputs = open(folder.path(), &store);
        assert_eq!(inputs.count(), 10);
        assert!(inputs.bytes() > 0);
        assert_eq!(text_of(&inputs, ids[3]).unwrap(), "text 4");
        let range = InputRange {
            since_ms: Some(3),
            until_ms: Some(9),
        };
        assert_eq!(inputs.count_in(range, u64::MAX).unwrap(), 6);
        let (first, next) = inputs.ids(range, None, 4).unwrap();
        assert_eq!(first, [ids[7], ids[6], ids[5], ids[4]]);
        let page = inputs.page(range, next, 4).unwrap();
        let rest: Vec<TraceId> = page.records.iter().map(|(id, _)| *id).collect();
        assert_eq!((rest, page.next), (vec![ids[3], ids[2]], None));
    }

    #[test]
    fn what_was_changed_or_moved_is_refused() {
        let Place {
            folder: _folder,
            store,
            inputs,
        } = place();
        let (one, two) = (job(1, "t", "one"), job(2, "t", "two"));
        let (a, b) = (one.id, two.id);
        inputs.keep(Some(one));
        inputs.keep(Some(two));
        inputs.close();
        let sealed = store.get(&key(OF, a)).unwrap().unwrap();
        store.put(&key(OF, b), &sealed).unwrap();
        assert!(
            text_of(&inputs, b)
                .unwrap_err()
                .contains("belongs to another")
        );
        let mut other = sealed.clone();
        *other.last_mut().unwrap() ^= 1;
        store.put(&key(OF, a), &other).unwrap();
        assert!(text_of(&inputs, a).unwrap_err().contains("changed"));
        store.put(&key(OF, a), &sealed).unwrap();
        assert_eq!(text_of(&inputs, a).unwrap(), "one");
    }

    #[test]
    fn the_oldest_go_first_large_ones_with_their_blobs_and_erased_ones_are_gone() {
        let Place {
            folder,
            store: _store,
            inputs,
        } = place();
        // Text that does not compress to less than a record may have in the store.
        let large: String = (0..400_000).map(|_| rand::random::<char>()).collect();
        let (old, mid, new) = (
            job(1_000, "a", &large),
            job(2_000, "a", "mid"),
            job(9_000, "b", "new"),
        );
        let ids = [old.id, mid.id, new.id];
        [old, mid, new]
            .into_iter()
            .for_each(|job| inputs.keep(Some(job)));
        inputs.close();
        let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        assert_eq!(blobs.digests().unwrap().len(), 1);
        assert_eq!(text_of(&inputs, ids[0]).unwrap(), large);
        let mut config = TracesConfig::default();
        config.inputs_max_age.0 = std::time::Duration::from_secs(7);
        assert_eq!(inputs.enforce(&config, 8_500, None).unwrap(), 1);
        assert_eq!(blobs.digests().unwrap().len(), 0);
        assert!(
            text_of(&inputs, ids[0])
                .unwrap_err()
                .contains("inputs-max-age")
        );
        assert_eq!(text_of(&inputs, ids[1]).unwrap(), "mid");
        // Never longer than their traces.
        let oldest = TraceId::first_at(3_000);
        assert_eq!(inputs.enforce(&config, 8_500, Some(oldest)).unwrap(), 1);
        assert_eq!(inputs.count(), 1);
        assert_eq!(inputs.erase("b", None).unwrap(), 1);
        assert!(text_of(&inputs, ids[2]).unwrap_err().contains("erased"));
        config.inputs_max_bytes.0 = 0;
        assert_eq!(inputs.enforce(&config, 8_500, None).unwrap(), 1);
        assert_eq!((inputs.count(), inputs.bytes()), (0, 0));
    }
}
