//! A core for tests: hand-made stages, a scripted model or a scripted upstream, a store in memory.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use millgate_infer as infer;
use millgate_store::{AuditLog, Blobs, MemoryStore, Store};
use parking_lot::Mutex;

use crate::{
    config::{Config, check},
    core::Core,
    metrics::Metrics,
    model::{Backend, LanguageModel},
    pipeline::{Generation, Pipeline, PipelineMetrics, ReadyArm},
    replay::InputStore,
    request::{ApiRequest, Endpoint},
    rollout::Rollout,
    stage::LoadedStage,
    traces::Traces,
};

/// A model that says what it is told to, token by token, and keeps what it was asked.
#[derive(Default)]
pub(crate) struct Scripted {
    /// What to say to each request, in order.
    answers: Mutex<VecDeque<Vec<&'static str>>>,
    pub asked: Mutex<Vec<infer::GenerateRequest>>,
    /// Who asked for scores and embeddings.
    pub callers: Mutex<Vec<infer::Caller>>,
    /// Tokens that were taken.
    pub taken: Arc<AtomicUsize>,
}

impl Scripted {
    pub(crate) fn new<const N: usize>(answers: [&[&'static str]; N]) -> Arc<Self> {
        let answers = answers.iter().map(|answer| answer.to_vec()).collect();
        Arc::new(Self {
            answers: Mutex::new(answers),
            ..Self::default()
        })
    }
}

impl LanguageModel for Scripted {
    fn generate(
        &self,
        request: infer::GenerateRequest,
    ) -> infer::Result<BoxStream<'static, infer::Event>> {
        self.asked.lock().push(request);
        let answer = self
            .answers
            .lock()
            .pop_front()
            .ok_or(infer::Error::QueueFull {
                waiting: 0,
                retry_after: std::time::Duration::from_secs(1),
            })?;
        let usage = infer::Usage {
            prompt_tokens: 7,
            cached_tokens: 2,
            completion_tokens: answer.len() as u32 + 1,
        };
        let tokens = answer.into_iter().enumerate().map(|(id, text)| {
            infer::Event::Token(infer::Token {
                id: id as u32,
                text: text.to_owned(),
                logprob: -0.5,
                top: vec![infer::TopToken {
                    id: 0,
                    text: text.to_owned(),
                    logprob: -0.5,
                }],
                entropy: 2.0,
            })
        });
        let finish = infer::Event::Finished(infer::Finish {
            reason: infer::FinishReason::Stop,
            usage,
            queue_time: Duration::from_micros(5),
            prefill_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            stop_text: None,
        });
        let started = infer::Event::Started {
            prompt_tokens: 7,
            cached_tokens: 2,
        };
        let events: Vec<infer::Event> = [started]
            .into_iter()
            .chain(tokens)
            .chain([finish])
            .collect();
        let taken = self.taken.clone();
        let counted = move |event: infer::Event| {
            taken.fetch_add(
                usize::from(matches!(event, infer::Event::Token(_))),
                Ordering::Relaxed,
            );
            event
        };
        Ok(futures::stream::iter(events).map(counted).boxed())
    }

    /// Each word is a token.
    fn score(
        &self,
        text: String,
        top: u8,
        caller: infer::Caller,
    ) -> BoxFuture<'_, infer::Result<Vec<infer::TokenScore>>> {
        self.callers.lock().push(caller);
        let scores = text.split_inclusive(' ').enumerate().map(|(at, word)| {
            let alternative = infer::TopToken {
                id: 0,
                text: word.to_owned(),
                logprob: -0.5,
            };
            infer::TokenScore {
                id: at as u32,
                text: word.to_owned(),
                logprob: (at > 0).then_some(-0.5),
                entropy: 0.0,
                top: vec![alternative; usize::from(top.min(1))],
            }
        });
        let scores = scores.collect();
        async move { Ok(scores) }.boxed()
    }

    /// A text's length is its vector.
    fn embed(
        &self,
        texts: Vec<String>,
        caller: infer::Caller,
    ) -> BoxFuture<'_, infer::Result<(Vec<Vec<f32>>, u32)>> {
        self.callers.lock().push(caller);
        let vectors = texts.iter().map(|text| vec![text.len() as f32, 0.5]);
        let answer = (vectors.collect(), texts.len() as u32);
        async move { Ok(answer) }.boxed()
    }

    fn embed_tokens(
        &self,
        texts: Vec<Vec<u32>>,
        _caller: infer::Caller,
    ) -> BoxFuture<'_, infer::Result<Vec<Vec<f32>>>> {
        let vectors = texts.iter().map(|text| vec![text.len() as f32, 0.5]);
        let vectors = vectors.collect();
        async move { Ok(vectors) }.boxed()
    }
}

/// A config with one pipeline for the model name `m`.
pub(crate) fn config(more: &str) -> Config {
    let text = format!(
        "[models.m]\npath = \"m.gguf\"\n[pipelines.p]\nserves = [\"m\"]\narms = [{{ name = \"stable\", model = \"m\" }}]\n{more}"
    );
    check(&text, "test.toml".as_ref()).unwrap()
}

/// A core with one pipeline over these stages.
pub(crate) fn core_with(
    config: Config,
    input: Vec<Arc<LoadedStage>>,
    output: Vec<Arc<LoadedStage>>,
    backend: Backend,
) -> Arc<Core> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let folder = tempfile::tempdir().unwrap().keep();
    let audit = Arc::new(AuditLog::open(store.clone(), folder.join("audit.key")).unwrap());
    let metrics = Metrics::new();
    let blobs = Arc::new(Blobs::open(folder.join("blobs")).unwrap());
    let traces = Traces::open(store.clone(), blobs.clone()).unwrap();
    let inputs = InputStore::serve(store.clone(), blobs, folder, &metrics).unwrap();
    let name: Arc<str> = "p".into();
    let pipeline = config.pipelines["p"].clone();
    let pipeline = Pipeline {
        input,
        output,
        deployment: None,
        monitors: Vec::new(),
        evaluation: None,
        arms: vec![ReadyArm {
            name: "stable".into(),
            model: "m".into(),
            adapter: None,
            backend,
        }],
        rollout: Arc::new(Rollout::open(&name, &pipeline, store).unwrap()),
        metrics: PipelineMetrics::new(&metrics, &name),
        name,
        config: pipeline,
    };
    let generation = Generation {
        number: 3,
        digest: millgate_store::Digest::of(b""),
        tenants: crate::tenants::Tenants::of(&config).unwrap(),
        config: Arc::new(config),
        pipelines: vec![Arc::new(pipeline)],
    };
    Core::new(generation, traces, inputs, metrics, audit)
}

/// A core with the usual config.
pub(crate) fn core(
    input: Vec<Arc<LoadedStage>>,
    output: Vec<Arc<LoadedStage>>,
    backend: Backend,
) -> Arc<Core> {
    core_with(config(""), input, output, backend)
}

/// A chat request with this body.
pub(crate) fn chat(body: impl Into<String>) -> ApiRequest {
    ApiRequest {
        endpoint: Endpoint::Chat,
        body: Bytes::from(body.into()),
        tenant: "default".into(),
        language: "".into(),
    }
}

/// Runs a future to its end on a runtime of its own.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
