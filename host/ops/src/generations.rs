//! The generations that were served: each one's number, who made it and when, the text of its config
//! and the bytes of its plugins, so that an operator can go back to it whatever became of the files.
//! Records stand in the store under `generation/` and the number; texts and plugins are blobs beside
//! it, each kept once.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use millgate_store::{Batch, Blobs, Digest, Order, Store};
use serde::{Deserialize, Serialize};

use crate::{
    config::Config,
    error::{Error, Result},
    plugins::KeptPlugins,
};

/// Where the number of the last generation is kept, so that it grows over restarts.
const NUMBER_KEY: &[u8] = b"generation";
const PREFIX: &[u8] = b"generation/";
/// How many generations are kept; older ones go, with what only they had.
const MAX_KEPT: usize = 200;
/// The most lines about what changed that are kept with a generation.
const MAX_LINES: usize = 200;

/// How a generation came to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// The server started, and its file was not what was served last.
    Start,
    /// An operator applied a config.
    Apply,
    /// The server was told by a signal to read its file again.
    Reload,
    /// An operator went back to an earlier generation.
    Rollback,
}

impl How {
    /// Its name in the API and in the audit log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            How::Start => "start",
            How::Apply => "apply",
            How::Reload => "reload",
            How::Rollback => "rollback",
        }
    }
}

/// A plugin of a generation, by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagePin {
    /// What the config calls it: a name, a path or a reference.
    pub source: String,
    /// The plugin's own name.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// `sha256:` of its bytes.
    pub digest: String,
    /// What it asks for: any of `state`, `inference`, `secrets`, `http`.
    pub requests: Vec<String>,
}

/// A generation that was served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Its number, which each of its traces names.
    pub number: u64,
    /// Milliseconds since 1970 at which it was first served.
    pub at_ms: u64,
    /// Who made it.
    pub by: String,
    /// How.
    pub how: How,
    /// The generation that a rollback went back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
    /// Digest of what is served: the config as it was understood, and the plugins. Two files that
    /// differ in comments only have the same.
    pub digest: Digest,
    /// The config's text, as a blob.
    pub text: Digest,
    /// The plugins, by the stage's name.
    pub stages: BTreeMap<String, StagePin>,
    /// What changed against the generation before, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
}

/// All generations of a data folder. A clone is the same.
#[derive(Clone)]
pub struct Generations {
    store: Arc<dyn Store>,
    blobs: Arc<Blobs>,
}

impl Generations {
    /// The generations in a store; texts and plugins are kept below the data folder `data`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(store: Arc<dyn Store>, data: &Path) -> Result<Self> {
        Ok(Self {
            store,
            blobs: Arc::new(Blobs::open(data.join("generations"))?),
        })
    }

    /// The last one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn last(&self) -> Result<Option<GenerationRecord>> {
        Ok(self.list(1)?.pop())
    }

    /// The last ones, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self, limit: usize) -> Result<Vec<GenerationRecord>> {
        let pairs = self.store.scan_prefix(PREFIX, Order::Descending, limit)?;
        pairs.iter().map(|(key, value)| read(key, value)).collect()
    }

    /// One by its number.
    ///
    /// # Errors
    /// There is none with this number, or the store cannot be read.
    pub fn get(&self, number: u64) -> Result<GenerationRecord> {
        let key = key(number);
        match self.store.get(&key)? {
            Some(value) => read(&key, &value),
            None => Err(Error::Refused(format!(
                "there is no generation {number}; `millgate generations` lists them"
            ))),
        }
    }

    /// The one to go back to where nobody named one: the generation before the present one, or
    /// before the one that the present one went back to.
    ///
    /// # Errors
    /// There is none before, or the store cannot be read.
    pub fn before(&self, present: u64) -> Result<u64> {
        let now = self.get(present)?;
        let base = now.of.unwrap_or(now.number);
        let pairs = self.store.scan(
            std::ops::Bound::Included(PREFIX),
            std::ops::Bound::Excluded(&key(base)),
            Order::Descending,
            1,
        )?;
        match pairs.first() {
            Some((key, value)) => Ok(read(key, value)?.number),
            None => Err(Error::Refused(format!(
                "there is no generation before {base} to go back to"
            ))),
        }
    }

    /// The text of a generation's config.
    ///
    /// # Errors
    /// It was lost.
    pub fn text(&self, record: &GenerationRecord) -> Result<String> {
        let bytes = self.blobs.get(&record.text)?;
        String::from_utf8(bytes).map_err(|error| Error::Record {
            key: format!("generation/{}", record.number),
            why: error.to_string(),
        })
    }

    /// The plugins of a generation, by what its config calls them.
    ///
    /// # Errors
    /// One was lost.
    pub fn plugins(&self, record: &GenerationRecord) -> Result<KeptPlugins> {
        let mut kept = KeptPlugins::new();
        for (stage, pin) in &record.stages {
            if !kept.contains_key(&pin.source) {
                let bytes = pin
                    .digest
                    .parse()
                    .and_then(|digest| self.blobs.get(&digest));
                let bytes = bytes.map_err(|error| Error::Stage {
                    stage: stage.clone(),
                    why: format!(
                        "the plugin of generation {} was lost: {error}",
                        record.number
                    ),
                })?;
                kept.insert(pin.source.clone(), Bytes::from(bytes));
            }
        }
        Ok(kept)
    }

    /// Keeps a generation; durable when this returns. Its number is the next one.
    pub(crate) fn keep<'b>(
        &self,
        mut record: GenerationRecord,
        text: &str,
        plugins: impl IntoIterator<Item = &'b [u8]>,
    ) -> Result<u64> {
        for plugin in plugins {
            self.blobs.put(plugin)?;
        }
        self.blobs.put(text.as_bytes())?;
        record.number = self.next_number()?;
        if record.changes.len() > MAX_LINES {
            let more = record.changes.len() - MAX_LINES;
            record.changes.truncate(MAX_LINES);
            record.changes.push(format!("and {more} more changes"));
        }
        let value = serde_json::to_vec(&record).map_err(|error| Error::Record {
            key: format!("generation/{}", record.number),
            why: error.to_string(),
        })?;
        let mut batch = Batch::new();
        batch.put(key(record.number), value);
        self.store.commit(batch).wait()?;
        if let Err(error) = self.prune(MAX_KEPT) {
            tracing::warn!(%error, "old generations could not be removed");
        }
        Ok(record.number)
    }

    /// Removes all but the last `keep` generations, and the texts and plugins that none of these has.
    fn prune(&self, keep: usize) -> Result<()> {
        let keys = self
            .store
            .scan_prefix(PREFIX, Order::Descending, keep + 1)?;
        if keys.len() <= keep {
            return Ok(());
        }
        let all = self
            .store
            .scan_prefix(PREFIX, Order::Descending, usize::MAX)?;
        let (kept, old) = all.split_at(keep.min(all.len()));
        let mut live = HashSet::new();
        for (key, value) in kept {
            let record = read(key, value)?;
            live.insert(record.text);
            live.extend(
                record
                    .stages
                    .values()
                    .filter_map(|pin| pin.digest.parse::<Digest>().ok()),
            );
        }
        let mut batch = Batch::new();
        for (key, _) in old {
            batch.delete(key.clone());
        }
        self.store.commit(batch).wait()?;
        // Generations are kept one at a time, so nothing that is not live is on its way into one.
        for digest in self.blobs.garbage(&live, Duration::ZERO)? {
            self.blobs.delete(&digest)?;
        }
        Ok(())
    }

    /// The next generation's number: it grows over restarts.
    fn next_number(&self) -> Result<u64> {
        loop {
            let known = self.store.get(NUMBER_KEY)?;
            let last = known
                .as_deref()
                .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
            let next = last.unwrap_or(0) + 1;
            if self.store.compare_and_swap(
                NUMBER_KEY,
                known.as_deref(),
                Some(&next.to_be_bytes()),
            )? {
                return Ok(next);
            }
        }
    }
}

/// The digest of what is served: the config as it was understood, and its plugins.
pub(crate) fn digest(config: &Config, stages: &BTreeMap<String, StagePin>) -> Digest {
    let plugins: BTreeMap<&String, &String> = stages
        .iter()
        .map(|(name, pin)| (name, &pin.digest))
        .collect();
    let config = serde_json::to_value(config).unwrap_or_default();
    // Through a value: its keys have one order.
    Digest::of(
        serde_json::json!({ "config": config, "plugins": plugins })
            .to_string()
            .as_bytes(),
    )
}

fn key(number: u64) -> Vec<u8> {
    [PREFIX, &number.to_be_bytes()].concat()
}

fn read(key: &[u8], value: &[u8]) -> Result<GenerationRecord> {
    serde_json::from_slice(value).map_err(|error| Error::Record {
        key: String::from_utf8_lossy(key).into_owned(),
        why: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use millgate_store::MemoryStore;

    fn record(of: Option<u64>) -> GenerationRecord {
        let pin = StagePin {
            source: "pii".into(),
            plugin: "pii".into(),
            version: "0.1.0".into(),
            digest: Digest::of(b"wasm").to_string(),
            requests: Vec::new(),
        };
        GenerationRecord {
            number: 0,
            at_ms: 7,
            by: "test".into(),
            how: How::Apply,
            of,
            digest: Digest::of(b"served"),
            text: Digest::of(b"text"),
            stages: [("mask".to_owned(), pin)].into(),
            changes: vec!["+ stage mask".into()],
        }
    }

    #[test]
    fn what_was_served_is_there_again_after_a_restart() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let folder = tempfile::tempdir().unwrap();
        let open = || Generations::open(store.clone(), folder.path()).unwrap();
        assert_eq!(open().last().unwrap(), None);
        for expected in 1..=3 {
            let number = open().keep(record(None), "text", [&b"wasm"[..]]).unwrap();
            assert_eq!(number, expected);
        }
        let again = open();
        let last = again.last().unwrap().unwrap();
        assert_eq!((last.number, last.by.as_str()), (3, "test"));
        assert_eq!(again.text(&last).unwrap(), "text");
        assert_eq!(again.plugins(&last).unwrap()["pii"], &b"wasm"[..]);
        assert_eq!(again.list(2).unwrap().len(), 2);
        let missing = again.get(9).unwrap_err().to_string();
        assert!(missing.contains("millgate generations"), "{missing}");
    }

    #[test]
    fn going_back_twice_goes_back_two_generations() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let folder = tempfile::tempdir().unwrap();
        let all = Generations::open(store, folder.path()).unwrap();
        let keep = |of| all.keep(record(of), "text", [&b"wasm"[..]]).unwrap();
        assert_eq!([keep(None), keep(None), keep(None)], [1, 2, 3]);
        assert_eq!(all.before(3).unwrap(), 2);
        assert_eq!(keep(Some(2)), 4);
        assert_eq!(all.before(4).unwrap(), 1);
        assert_eq!(keep(Some(1)), 5);
        assert!(all.before(5).is_err());
    }

    #[test]
    fn old_generations_go_with_what_only_they_had() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let folder = tempfile::tempdir().unwrap();
        let all = Generations::open(store, folder.path()).unwrap();
        let mut first = record(None);
        first.text = Digest::of(b"first");
        all.keep(first, "first", [&b"wasm"[..]]).unwrap();
        all.keep(record(None), "text", [&b"wasm"[..]]).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        all.prune(1).unwrap();
        let left = all.list(9).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(all.text(&left[0]).unwrap(), "text");
        assert!(all.plugins(&left[0]).is_ok());
        assert_eq!(all.blobs.digests().unwrap().len(), 2);
    }

    #[test]
    fn a_digest_is_of_what_is_served_and_not_of_how_it_is_written() {
        let read = |text: &str| crate::config::check(text, "t".as_ref()).unwrap();
        let body = "[models.m]\npath = \"m.gguf\"\n[pipelines.p]\nserves = [\"m\"]\narms = [{ name = \"a\", model = \"m\" }]\n";
        let stages = record(None).stages;
        let plain = digest(&read(body), &stages);
        assert_eq!(
            digest(&read(&format!("# a comment\n{body}")), &stages),
            plain
        );
        let more = format!("{body}[traces]\nmax-count = 5\n");
        assert_ne!(digest(&read(&more), &stages), plain);
        let mut other = stages.clone();
        other.get_mut("mask").unwrap().digest = Digest::of(b"other").to_string();
        assert_ne!(digest(&read(body), &other), plain);
    }
}
