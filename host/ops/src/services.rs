//! What the host does for its plugins: log lines, numbers, a key-value space, the host's own
//! models. The sandbox has checked the grants before any of this is called.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use arc_swap::ArcSwap;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use millgate_infer::{self as infer, Caller, ChatMessage, GenerateRequest, Priority, Prompt};
use millgate_sandbox::{
    Completion, CompletionRequest, ErrorKind, Level, Report, Services, StageError,
};
use millgate_store::{Order, Store};
use parking_lot::Mutex;

use crate::{
    local::cache_salt, metrics::Metrics, model::Backend, model::LanguageModel, monitor::AlertBook,
};

/// The effects that stages may have.
pub(crate) struct HostServices {
    store: Arc<dyn Store>,
    metrics: Metrics,
    pub alerts: AlertBook,
    /// The models of the present config.
    models: ArcSwap<BTreeMap<String, Backend>>,
    /// Bytes that each stage's space holds; counted at the first write of a stage.
    used: Mutex<HashMap<String, u64>>,
}

impl HostServices {
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Metrics, alerts: AlertBook) -> Self {
        Self {
            store,
            metrics,
            alerts,
            models: ArcSwap::default(),
            used: Mutex::default(),
        }
    }

    /// The models that stages may ask, from now on.
    pub(crate) fn set_models(&self, models: BTreeMap<String, Backend>) {
        self.models.store(Arc::new(models));
    }

    async fn local(&self, model: &str) -> Result<Arc<dyn LanguageModel>, StageError> {
        let found = self.models.load().get(model).cloned();
        match found {
            Some(Backend::Local(model)) => Ok(model),
            Some(Backend::OnUse(model)) => model
                .lease()
                .await
                .map_err(|error| StageError::unavailable("not-loaded", error.message)),
            Some(Backend::Upstream(_)) => Err(StageError::unavailable(
                "not-local",
                format!(
                    "the model `{model}` is remote; stages can only use models in this process"
                ),
            )),
            None => Err(StageError::unavailable(
                "no-such-model",
                format!("there is no model `{model}`"),
            )),
        }
    }

    /// Writes under the bound; `write` says whether it wrote.
    fn bounded(
        &self,
        stage: &str,
        key: &str,
        value: &[u8],
        limit: u64,
        write: impl FnOnce(&[u8]) -> Result<bool, StageError>,
    ) -> Result<bool, StageError> {
        let full = state_key(stage, key);
        let mut used = self.used.lock();
        let known = match used.get(stage) {
            Some(known) => *known,
            None => self.measure(stage)?,
        };
        let old = self.store.get(&full).map_err(broken)?;
        let freed = old.map_or(0, |old| (key.len() + old.len()) as u64);
        let after = known.saturating_sub(freed) + (key.len() + value.len()) as u64;
        if after > limit {
            used.insert(stage.to_owned(), known);
            return Err(StageError::denied(
                "state-full",
                format!(
                    "{after} bytes would be more than the {limit} granted; raise `grant.state.bytes`"
                ),
            ));
        }
        let wrote = write(&full)?;
        used.insert(stage.to_owned(), if wrote { after } else { known });
        Ok(wrote)
    }

    /// Counts the bytes of a stage's space.
    fn measure(&self, stage: &str) -> Result<u64, StageError> {
        let prefix = state_key(stage, "");
        let all = self
            .store
            .scan_prefix(&prefix, Order::Ascending, usize::MAX)
            .map_err(broken)?;
        Ok(all
            .iter()
            .map(|(key, value)| (key.len() - prefix.len() + value.len()) as u64)
            .sum())
    }
}

/// Stage names hold no NUL, so no stage's space reaches into another's.
fn state_key(stage: &str, key: &str) -> Vec<u8> {
    [b"state/", stage.as_bytes(), b"\0", key.as_bytes()].concat()
}

fn actor_key(stage: &str) -> Vec<u8> {
    [b"actor/", stage.as_bytes()].concat()
}

/// A stage's call is work for the tenant whose request it serves, which waits behind that tenant's and all others'
/// own requests.
fn caller(tenant: &str) -> Caller {
    Caller {
        priority: Priority::Low,
        tenant: tenant.into(),
        cache_salt: cache_salt(tenant),
        deadline: None,
    }
}

fn broken(error: millgate_store::Error) -> StageError {
    tracing::error!(%error, "the store failed a stage");
    StageError::unavailable("store", "the host's store does not answer")
}

fn failed(error: infer::Error) -> StageError {
    match error {
        infer::Error::QueueFull { .. } => StageError::unavailable("busy", error.to_string()),
        infer::Error::Invalid(_)
        | infer::Error::ContextExceeded { .. }
        | infer::Error::KvTooSmall { .. }
        | infer::Error::Template(_) => StageError::new(
            ErrorKind::InvalidInput,
            "invalid-request",
            error.to_string(),
        ),
        error => StageError::unavailable("model", error.to_string()),
    }
}

impl Services for HostServices {
    fn log(&self, stage: &str, trace_id: &str, level: Level, message: &str) {
        match level {
            Level::Debug => tracing::debug!(stage, trace = trace_id, "{message}"),
            Level::Info => tracing::info!(stage, trace = trace_id, "{message}"),
            Level::Warn => tracing::warn!(stage, trace = trace_id, "{message}"),
            Level::Error => tracing::error!(stage, trace = trace_id, "{message}"),
        }
    }

    fn count(&self, stage: &str, name: &str, add: u64) {
        let labels = [("stage", stage), ("name", name)];
        self.metrics
            .counter("millgate_plugin_counter", "Counters of plugins.", &labels)
            .add(add);
    }

    fn gauge(&self, stage: &str, name: &str, value: f64) {
        let labels = [("stage", stage), ("name", name)];
        self.metrics
            .gauge("millgate_plugin_gauge", "Gauges of plugins.", &labels)
            .set(value);
    }

    fn state_get(&self, stage: &str, key: &str) -> Result<Option<Vec<u8>>, StageError> {
        self.store.get(&state_key(stage, key)).map_err(broken)
    }

    fn state_set(
        &self,
        stage: &str,
        key: &str,
        value: &[u8],
        limit: u64,
    ) -> Result<(), StageError> {
        self.bounded(stage, key, value, limit, |full| {
            self.store.put(full, value).map_err(broken)?;
            Ok(true)
        })?;
        Ok(())
    }

    fn state_compare_and_swap(
        &self,
        stage: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        limit: u64,
    ) -> Result<bool, StageError> {
        self.bounded(stage, key, value, limit, |full| {
            self.store
                .compare_and_swap(full, expected, Some(value))
                .map_err(broken)
        })
    }

    fn state_delete(&self, stage: &str, key: &str) -> Result<(), StageError> {
        let mut used = self.used.lock();
        self.store.delete(&state_key(stage, key)).map_err(broken)?;
        used.remove(stage); // counted again at the next write
        Ok(())
    }

    fn state_keys(&self, stage: &str, prefix: &str, limit: u32) -> Result<Vec<String>, StageError> {
        let space = state_key(stage, "");
        let from = state_key(stage, prefix);
        let end = millgate_store::prefix_end(&from);
        let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let found = self
            .store
            .scan(Bound::Included(&from), to, Order::Ascending, limit as usize)
            .map_err(broken)?;
        let keys = found
            .into_iter()
            .filter_map(|(key, _)| String::from_utf8(key.get(space.len()..)?.to_vec()).ok());
        Ok(keys.collect())
    }

    fn complete(
        &self,
        _stage: &str,
        tenant: &str,
        request: CompletionRequest,
    ) -> BoxFuture<'_, Result<Completion, StageError>> {
        let caller = caller(tenant);
        async move {
            let model = self.local(&request.model).await?;
            let prompt = match request.chat {
                true => Prompt::Chat(vec![ChatMessage::new("user", request.prompt)]),
                false => Prompt::Text(request.prompt),
            };
            let mut generate = GenerateRequest::new(prompt);
            generate.max_tokens = Some(request.max_tokens.max(1));
            generate.sampling.temperature = request.temperature;
            generate.stop = request.stop;
            generate.priority = caller.priority;
            generate.cache_salt = caller.cache_salt;
            generate.tenant = caller.tenant;
            let mut events = model.generate(generate).map_err(failed)?;
            let mut completion = Completion {
                text: String::new(),
                prompt_tokens: 0,
                completion_tokens: 0,
                mean_log_probability: 0.0,
            };
            let (mut sum, mut count) = (0.0, 0u32);
            while let Some(event) = events.next().await {
                match event {
                    infer::Event::Started { prompt_tokens, .. } => {
                        completion.prompt_tokens = prompt_tokens
                    }
                    infer::Event::Token(token) => {
                        completion.text.push_str(&token.text);
                        sum += f64::from(token.logprob);
                        count += 1;
                    }
                    infer::Event::Finished(finish) => {
                        completion.completion_tokens = finish.usage.completion_tokens
                    }
                    infer::Event::Failed(error) => return Err(failed(error)),
                }
            }
            if count > 0 {
                completion.mean_log_probability = sum / f64::from(count);
            }
            Ok(completion)
        }
        .boxed()
    }

    fn embed(
        &self,
        _stage: &str,
        tenant: &str,
        model: &str,
        texts: Vec<String>,
    ) -> BoxFuture<'_, Result<(Vec<Vec<f32>>, u32), StageError>> {
        let (model, caller) = (model.to_owned(), caller(tenant));
        async move {
            let model = self.local(&model).await?;
            model.embed(texts, caller).await.map_err(failed)
        }
        .boxed()
    }

    fn score(
        &self,
        _stage: &str,
        tenant: &str,
        model: &str,
        text: String,
    ) -> BoxFuture<'_, Result<Vec<f64>, StageError>> {
        let (model, caller) = (model.to_owned(), caller(tenant));
        async move {
            let scores = self
                .local(&model)
                .await?
                .score(text, 0, caller)
                .await
                .map_err(failed)?;
            Ok(scores
                .into_iter()
                .filter_map(|score| score.logprob.map(f64::from))
                .collect())
        }
        .boxed()
    }

    fn save_actor(&self, stage: &str, state: &[u8]) -> Result<(), StageError> {
        self.store.put(&actor_key(stage), state).map_err(broken)
    }

    fn load_actor(&self, stage: &str) -> Result<Option<Vec<u8>>, StageError> {
        self.store.get(&actor_key(stage)).map_err(broken)
    }

    fn report(&self, stage: &str, report: Report) {
        for change in self.alerts.report(stage, report.alerts) {
            let (rule, severity, message) = (&change.rule, change.severity, &change.message);
            tracing::warn!(
                stage,
                rule,
                ?severity,
                value = change.value,
                threshold = change.threshold,
                "{message}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millgate_store::MemoryStore;

    fn services() -> HostServices {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let metrics = Metrics::new();
        let alerts = AlertBook::open(store.clone(), metrics.clone()).unwrap();
        HostServices::new(store, metrics, alerts)
    }

    #[tokio::test]
    async fn a_stages_calls_are_its_tenants_and_wait_behind_clients() {
        let (services, model) = (services(), crate::testing::Scripted::new([&["yes"]]));
        services.set_models([("m".to_owned(), Backend::Local(model.clone()))].into());
        let request = CompletionRequest {
            model: "m".into(),
            prompt: "is it?".into(),
            chat: false,
            max_tokens: 4,
            temperature: 0.0,
            stop: Vec::new(),
        };
        services.complete("judge", "ann", request).await.unwrap();
        services
            .embed("judge", "ann", "m", vec!["a".into()])
            .await
            .unwrap();
        services
            .score("judge", "bob", "m", "a b".into())
            .await
            .unwrap();
        let asked = model.asked.lock()[0].caller();
        let callers = model.callers.lock();
        let said = [asked]
            .into_iter()
            .chain(callers.iter().cloned())
            .map(|caller| {
                assert_eq!(caller.cache_salt, cache_salt(&caller.tenant));
                (caller.tenant.to_string(), caller.priority)
            });
        let low = |name: &str| (name.to_owned(), Priority::Low);
        assert_eq!(
            said.collect::<Vec<_>>(),
            [low("ann"), low("ann"), low("bob")]
        );
    }

    #[test]
    fn a_stage_sees_its_own_space_only_and_cannot_outgrow_it() {
        let services = services();
        services.state_set("a", "k1", b"12345678", 20).unwrap();
        services.state_set("ab", "k1", b"other", 20).unwrap();
        assert_eq!(
            services
                .state_set("a", "k2", b"12345678901", 20)
                .unwrap_err()
                .code,
            "state-full"
        );
        services
            .state_set("a", "k1", b"123456789012345678", 20)
            .unwrap(); // replaces: 2 + 18 bytes
        assert!(services.state_set("a", "k2", b"", 20).is_err());
        services.state_delete("a", "k1").unwrap();
        assert!(
            services
                .state_compare_and_swap("a", "k2", None, b"x", 20)
                .unwrap()
        );
        assert!(
            !services
                .state_compare_and_swap("a", "k2", Some(b"y"), b"z", 20)
                .unwrap()
        );
        assert_eq!(services.state_keys("a", "k", 10).unwrap(), ["k2"]);
        assert_eq!(services.state_get("ab", "k1").unwrap().unwrap(), b"other");
    }
}
