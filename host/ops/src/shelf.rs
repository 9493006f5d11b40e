//! Models that are loaded by use, within a budget of memory: the one that was used longest ago makes room.
//!
//! A request holds a lease on its model (a clone of its `Arc`) until it ends, so a model that answers is never
//! unloaded. Loading is slow and blocks, so it runs beside the network's threads; requests for the same model wait
//! for one load.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{config::ModelConfig, error::ApiError, local::LocalModel, model::LanguageModel};

/// How long a request waits for room, or for its model to be read.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes a model. Blocking.
type Open = Box<dyn Fn() -> Result<Arc<dyn LanguageModel>, String> + Send + Sync>;

/// All models of a platform that are loaded by use, and the memory that they share.
pub(crate) struct Shelf {
    state: Mutex<State>,
    /// A model was loaded, unloaded, or failed to load.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// `None`: as much as there is.
    budget: Option<u64>,
    /// Bytes of the models that are loaded at the start and stay.
    fixed: u64,
    models: Vec<Weak<OnUse>>,
}

/// A model that is loaded when it is asked for.
pub(crate) struct OnUse {
    name: String,
    /// What it takes: its file and its key-value cache.
    bytes: u64,
    unload_after: Option<Duration>,
    open: Open,
    shelf: Arc<Shelf>,
    place: Mutex<Place>,
}

enum Place {
    Absent,
    Loading,
    Loaded {
        model: Arc<dyn LanguageModel>,
        used: Instant,
    },
}

impl Shelf {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// The memory for all local models together, of which `fixed` bytes are taken for good.
    pub(crate) fn set_budget(&self, budget: Option<u64>, fixed: u64) {
        let mut state = self.state.lock();
        (state.budget, state.fixed) = (budget, fixed);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Puts up a model. Nothing of it is read yet.
    pub(crate) fn add(
        self: &Arc<Self>,
        name: &str,
        path: PathBuf,
        config: ModelConfig,
        bytes: u64,
    ) -> Arc<OnUse> {
        let unload_after = config.unload_after.map(|time| time.0);
        let open: Open = Box::new(move || match LocalModel::start(&path, &config) {
            Ok(model) => Ok(Arc::new(model)),
            Err(error) => Err(error.to_string()),
        });
        self.put(name, bytes, unload_after, open)
    }

    fn put(
        self: &Arc<Self>,
        name: &str,
        bytes: u64,
        unload_after: Option<Duration>,
        open: Open,
    ) -> Arc<OnUse> {
        let model = Arc::new(OnUse {
            name: name.to_owned(),
            bytes,
            unload_after,
            open,
            shelf: self.clone(),
            place: Mutex::new(Place::Absent),
        });
        let mut state = self.state.lock();
        state.models.retain(|model| model.strong_count() > 0);
        state.models.push(Arc::downgrade(&model));
        model
    }

    /// Unloads the models that were idle for as long as their config says. Called now and then; blocking.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        for model in self.models() {
            let idle = |used: Instant| {
                model
                    .unload_after
                    .is_some_and(|after| now.duration_since(used) >= after)
            };
            drop(model.take_idle(idle));
        }
        self.changed.notify_waiters();
    }

    /// Names and bytes of the models that are loaded now.
    pub(crate) fn loaded(&self) -> Vec<(String, u64)> {
        let models = self.models();
        let loaded = models
            .iter()
            .filter(|model| matches!(*model.place.lock(), Place::Loaded { .. }));
        loaded
            .map(|model| (model.name.clone(), model.bytes))
            .collect()
    }

    fn models(&self) -> Vec<Arc<OnUse>> {
        let state = self.state.lock();
        state.models.iter().filter_map(Weak::upgrade).collect()
    }

    /// Takes the place of `wanted` bytes for a model, from idle ones where need be. Gives what has to be dropped, or
    /// `None` where those that answer hold too much.
    fn make_room(&self, model: &OnUse) -> Option<Vec<Arc<dyn LanguageModel>>> {
        let mut gone = Vec::new();
        let models = self.models();
        // The lock is held for the whole of the decision, so that two loads do not count the same room.
        let state = self.state.lock();
        if !matches!(*model.place.lock(), Place::Absent) {
            return None;
        }
        let limit = state.budget.unwrap_or(u64::MAX);
        loop {
            let taken: u64 = models
                .iter()
                .filter(|other| !matches!(*other.place.lock(), Place::Absent))
                .map(|other| other.bytes)
                .sum();
            if state
                .fixed
                .saturating_add(taken)
                .saturating_add(model.bytes)
                <= limit
            {
                *model.place.lock() = Place::Loading;
                return Some(gone);
            }
            let longest_ago = models
                .iter()
                .filter_map(|other| match &*other.place.lock() {
                    Place::Loaded { model, used } if Arc::strong_count(model) == 1 => {
                        Some((*used, other.clone()))
                    }
                    _ => None,
                })
                .min_by_key(|(used, _)| *used);
            let (_, idle) = longest_ago?;
            match idle.take_idle(|_| true) {
                Some(model) => gone.push(model),
                // It was taken into use in between.
                None => continue,
            }
        }
    }
}

impl OnUse {
    /// The model, loaded if need be. It stays as long as the answer is held.
    ///
    /// # Errors
    /// 503: it cannot be read, or there is no room for it while others answer.
    pub(crate) async fn lease(self: &Arc<Self>) -> Result<Arc<dyn LanguageModel>, ApiError> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let changed = self.shelf.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match &mut *self.place.lock() {
                Place::Loaded { model, used } => {
                    *used = Instant::now();
                    return Ok(model.clone());
                }
                Place::Loading | Place::Absent => {}
            }
            let absent = matches!(*self.place.lock(), Place::Absent);
            if absent && let Some(gone) = self.shelf.make_room(self) {
                return self.load(gone).await;
            }
            // A lease that ends tells nobody, so now and then it is looked again.
            let tick = tokio::time::sleep(Duration::from_millis(50));
            tokio::select! {
                () = &mut changed => {}
                () = tick => {}
                () = tokio::time::sleep_until(end) => {
                    return Err(ApiError {
                        retry_after: Some(5),
                        ..ApiError::unavailable(format!(
                            "the model `{}` finds no room while others answer; try again, or raise server.model-memory",
                            self.name
                        ))
                    });
                }
            }
        }
    }

    async fn load(
        self: &Arc<Self>,
        gone: Vec<Arc<dyn LanguageModel>>,
    ) -> Result<Arc<dyn LanguageModel>, ApiError> {
        let this = self.clone();
        // On a task of its own: a client that goes away must not leave the place half taken.
        let load = tokio::task::spawn_blocking(move || {
            drop(gone);
            let begun = Instant::now();
            let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (this.open)()))
                .unwrap_or_else(|_| Err("reading it failed; see the log".to_owned()));
            *this.place.lock() = match &opened {
                Ok(model) => {
                    tracing::info!(
                        model = this.name,
                        seconds = begun.elapsed().as_secs_f32(),
                        "model loaded by use"
                    );
                    Place::Loaded {
                        model: model.clone(),
                        used: Instant::now(),
                    }
                }
                Err(_) => Place::Absent,
            };
            this.shelf.changed.notify_waiters();
            opened
        });
        let opened = load.await.unwrap_or_else(|error| Err(error.to_string()));
        opened.map_err(|why| ApiError::unavailable(format!("model `{}`: {why}", self.name)))
    }

    /// Takes the model out, if it is loaded, nobody uses it, and `when` agrees with when it was used last.
    fn take_idle(&self, when: impl Fn(Instant) -> bool) -> Option<Arc<dyn LanguageModel>> {
        let mut place = self.place.lock();
        match &*place {
            Place::Loaded { model, used } if Arc::strong_count(model) == 1 && when(*used) => {}
            _ => return None,
        }
        match std::mem::replace(&mut *place, Place::Absent) {
            Place::Loaded { model, .. } => {
                tracing::info!(model = self.name, "model unloaded");
                Some(model)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::testing::Scripted;

    /// A model of `bytes` bytes, and how often it was opened.
    fn model(shelf: &Arc<Shelf>, name: &str, bytes: u64) -> (Arc<OnUse>, Arc<AtomicUsize>) {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = opened.clone();
        let open: Open = Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(Scripted::new([]))
        });
        (shelf.put(name, bytes, Some(Duration::ZERO), open), opened)
    }

    fn names(shelf: &Shelf) -> Vec<String> {
        shelf.loaded().into_iter().map(|(name, _)| name).collect()
    }

    #[tokio::test]
    async fn one_load_serves_all_who_wait_and_the_oldest_idle_model_makes_room() {
        let shelf = Shelf::new();
        shelf.set_budget(Some(25), 5);
        let (a, opened) = model(&shelf, "a", 10);
        let (b, _) = model(&shelf, "b", 10);
        let (c, _) = model(&shelf, "c", 10);
        let (one, two) = tokio::join!(a.lease(), a.lease());
        drop((one.unwrap(), two.unwrap()));
        assert_eq!(opened.load(Ordering::SeqCst), 1);
        drop(b.lease().await.unwrap());
        assert_eq!(names(&shelf), ["a", "b"]);
        drop(a.lease().await.unwrap());
        drop(c.lease().await.unwrap());
        assert_eq!(names(&shelf), ["a", "c"], "b was used longest ago");
        assert_eq!(opened.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_model_that_answers_stays_and_the_other_waits_for_it() {
        let shelf = Shelf::new();
        shelf.set_budget(Some(15), 0);
        let (a, _) = model(&shelf, "a", 10);
        let (b, _) = model(&shelf, "b", 10);
        let lease = a.lease().await.unwrap();
        let waiting = tokio::spawn({
            let b = b.clone();
            async move { b.lease().await.map(drop) }
        });
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert_eq!(names(&shelf), ["a"]);
        shelf.sweep();
        assert_eq!(names(&shelf), ["a"], "a sweep takes nothing that is in use");
        drop(lease);
        waiting.await.unwrap().unwrap();
        assert_eq!(names(&shelf), ["b"]);
        shelf.sweep();
        assert!(names(&shelf).is_empty());
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_read_is_said_so_and_tried_again() {
        let shelf = Shelf::new();
        let tries = AtomicUsize::new(0);
        let open: Open = Box::new(move || match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Err("no such file".to_owned()),
            1 => panic!("a bug"),
            _ => Ok(Scripted::new([])),
        });
        let model = shelf.put("m", 1, None, open);
        let error = model.lease().await.err().unwrap();
        assert_eq!(error.status, 503);
        assert!(error.message.contains("no such file"), "{error:?}");
        assert_eq!(model.lease().await.err().unwrap().status, 503);
        model.lease().await.unwrap();
    }
}
