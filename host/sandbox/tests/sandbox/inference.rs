//! A stage that asks a model: it waits without holding a thread, within its grant.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use millgate_hostile::ASKING;
use millgate_sandbox::{
    CallContext, Completion, CompletionRequest, Failure, Grant, InferenceGrant, Level,
    MemoryServices, Report, Services, Stage, StageError, StageSpec,
};
use serde_json::json;

use crate::common::sandbox;

/// A model that repeats, after a pause; `never` never answers.
#[derive(Default)]
pub struct Echo {
    rest: MemoryServices,
    asked: AtomicU32,
    tenants: std::sync::Mutex<Vec<String>>,
}

impl Services for Echo {
    fn complete(
        &self,
        _: &str,
        tenant: &str,
        request: CompletionRequest,
    ) -> BoxFuture<'_, Result<Completion, StageError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.tenants.lock().unwrap().push(tenant.to_owned());
        async move {
            if request.prompt == "never" {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok(Completion {
                text: request.prompt,
                prompt_tokens: 40,
                completion_tokens: 10,
                mean_log_probability: -1.0,
            })
        }
        .boxed()
    }
    fn embed(
        &self,
        _: &str,
        _: &str,
        _: &str,
        texts: Vec<String>,
    ) -> BoxFuture<'_, Result<(Vec<Vec<f32>>, u32), StageError>> {
        std::future::ready(Ok((texts.iter().map(|_| vec![1.0]).collect(), 5))).boxed()
    }
    fn score(
        &self,
        _: &str,
        _: &str,
        _: &str,
        _: String,
    ) -> BoxFuture<'_, Result<Vec<f64>, StageError>> {
        std::future::ready(Ok(vec![-1.0; 4])).boxed()
    }
    fn log(&self, stage: &str, trace: &str, level: Level, message: &str) {
        self.rest.log(stage, trace, level, message);
    }
    fn count(&self, stage: &str, name: &str, add: u64) {
        self.rest.count(stage, name, add);
    }
    fn gauge(&self, stage: &str, name: &str, value: f64) {
        self.rest.gauge(stage, name, value);
    }
    fn state_get(&self, stage: &str, key: &str) -> Result<Option<Vec<u8>>, StageError> {
        self.rest.state_get(stage, key)
    }
    fn state_set(&self, s: &str, key: &str, value: &[u8], limit: u64) -> Result<(), StageError> {
        self.rest.state_set(s, key, value, limit)
    }
    fn state_compare_and_swap(
        &self,
        stage: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        limit: u64,
    ) -> Result<bool, StageError> {
        self.rest
            .state_compare_and_swap(stage, key, expected, value, limit)
    }
    fn state_delete(&self, stage: &str, key: &str) -> Result<(), StageError> {
        self.rest.state_delete(stage, key)
    }
    fn state_keys(&self, stage: &str, prefix: &str, limit: u32) -> Result<Vec<String>, StageError> {
        self.rest.state_keys(stage, prefix, limit)
    }
    fn save_actor(&self, stage: &str, state: &[u8]) -> Result<(), StageError> {
        self.rest.save_actor(stage, state)
    }
    fn load_actor(&self, stage: &str) -> Result<Option<Vec<u8>>, StageError> {
        self.rest.load_actor(stage)
    }
    fn report(&self, stage: &str, report: Report) {
        self.rest.report(stage, report);
    }
}

fn asking(tokens_per_minute: u64) -> (Stage, Arc<Echo>) {
    let mut spec = StageSpec::new("judge", json!({}));
    spec.grant = Grant {
        inference: Some(InferenceGrant {
            models: ["small".into()].into(),
            tokens_per_minute,
        }),
        ..Grant::default()
    };
    spec.limits.call_timeout = Duration::from_secs(2);
    spec.limits.deadline = Duration::from_millis(100);
    let echo = Arc::new(Echo::default());
    (sandbox().load(ASKING, spec, echo.clone()).unwrap(), echo)
}

async fn ask(stage: &Stage, text: &str) -> Result<String, Failure> {
    let mut inspection = stage.inspection(&CallContext::default());
    inspection.push_async(&[text]).await?;
    Ok(inspection.finish_async().await?.findings[0]
        .explanation
        .clone())
}

#[tokio::test]
async fn a_stage_asks_a_model_and_many_wait_on_one_thread() {
    let (stage, echo) = asking(1_000_000);
    assert!(stage.is_async());
    let answers = futures::future::join_all((0..12).map(|_| ask(&stage, "small:hello"))).await;
    for answer in answers {
        assert_eq!(answer.unwrap(), "hello 1 4");
    }
    assert_eq!(echo.asked.load(Ordering::Relaxed), 12);
}

#[tokio::test]
async fn a_call_is_for_the_tenant_whose_request_it_serves() {
    let (stage, echo) = asking(1_000_000);
    let context = CallContext {
        tenant: "ann".into(),
        ..CallContext::default()
    };
    let mut inspection = stage.inspection(&context);
    inspection.push_async(&["small:hello"]).await.unwrap();
    inspection.finish_async().await.unwrap();
    ask(&stage, "small:hello").await.unwrap();
    assert_eq!(*echo.tenants.lock().unwrap(), ["ann", "default"]);
}

#[tokio::test]
async fn a_model_outside_the_grant_is_denied() {
    let (stage, echo) = asking(1_000_000);
    match ask(&stage, "large:hello").await {
        Err(Failure::Stage(error)) => {
            assert_eq!(error.code, "model-not-granted");
            assert!(error.message.contains("grant.inference.models"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(echo.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_spent_budget_is_denied() {
    let (stage, _) = asking(70);
    assert!(ask(&stage, "small:hello").await.is_ok());
    // 60 of 70 are used; the next one begins, overdraws, and is cut off within.
    let answers = [
        ask(&stage, "small:hello").await,
        ask(&stage, "small:hello").await,
    ];
    assert!(
        answers.iter().any(
            |answer| matches!(answer, Err(Failure::Stage(error)) if error.code == "budget-spent")
        ),
        "{answers:?}"
    );
}

#[tokio::test]
async fn a_model_that_does_not_answer_is_a_timeout() {
    let (stage, _) = asking(1_000_000);
    assert!(matches!(
        ask(&stage, "small:never").await,
        Err(Failure::Timeout { .. })
    ));
    assert_eq!(ask(&stage, "small:hello").await.unwrap(), "hello 1 4");
}

#[tokio::test]
async fn a_loop_ends_at_its_deadline_and_lets_others_run() {
    let (stage, _) = asking(1_000_000);
    let (looping, good) = tokio::join!(ask(&stage, "small:loop"), ask(&stage, "small:hello"));
    assert!(
        matches!(looping, Err(Failure::Timeout { .. })),
        "{looping:?}"
    );
    assert_eq!(good.unwrap(), "hello 1 4");
}

#[test]
fn a_plain_call_of_such_a_stage_says_what_to_do() {
    let (stage, _) = asking(1);
    match stage.inspection(&CallContext::default()).push(&["x"]) {
        Err(Failure::Invalid { why }) => assert!(why.contains("_async"), "{why}"),
        other => panic!("{other:?}"),
    }
}
