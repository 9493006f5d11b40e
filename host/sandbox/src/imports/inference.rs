//! `inference.wit`: the host's own models, within a budget. Grant: `inference`.
//!
//! These are the asynchronous imports: while the model works, the guest's stack is put aside and
//! the thread serves others.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::contract::inference::{Completion, CompletionRequest};
use crate::contract::types::StageError;
use crate::state::{CallState, Shared};
use crate::tape;

type Answer<T> = wasmtime::Result<(Result<T, StageError>,)>;
type Cx<'a> = StoreContextMut<'a, CallState>;
type Later<'a, T> = Box<dyn Future<Output = Answer<T>> + Send + 'a>;

pub(super) fn link(linker: &mut Linker<CallState>) -> wasmtime::Result<()> {
    let mut inference = linker.instance(&super::interface("inference"))?;
    inference.func_wrap_async(
        "complete",
        |cx: Cx<'_>, (request,): (CompletionRequest,)| -> Later<'_, Completion> {
            let asked = request.clone();
            let model = request.model.clone();
            answer(
                cx,
                "inference.complete",
                asked,
                &model,
                |shared: Arc<Shared>, tenant: Arc<str>| async move {
                    let name = &shared.spec.name;
                    let completion = shared.services.complete(name, &tenant, request).await?;
                    let (read, written) = (completion.prompt_tokens, completion.completion_tokens);
                    Ok((completion, u64::from(read) + u64::from(written)))
                },
            )
        },
    )?;
    inference.func_wrap_async(
        "embed",
        |cx: Cx<'_>, (model, texts): (String, Vec<String>)| -> Later<'_, Vec<Vec<f32>>> {
            let asked = (model.clone(), texts.clone());
            let of = model.clone();
            answer(
                cx,
                "inference.embed",
                asked,
                &of,
                |shared: Arc<Shared>, tenant: Arc<str>| async move {
                    let name = &shared.spec.name;
                    let (vectors, read) =
                        shared.services.embed(name, &tenant, &model, texts).await?;
                    Ok((vectors, u64::from(read)))
                },
            )
        },
    )?;
    inference.func_wrap_async(
        "score",
        |cx: Cx<'_>, (model, text): (String, String)| -> Later<'_, Vec<f64>> {
            let asked = (model.clone(), text.clone());
            let of = model.clone();
            answer(
                cx,
                "inference.score",
                asked,
                &of,
                |shared: Arc<Shared>, tenant: Arc<str>| async move {
                    let name = &shared.spec.name;
                    let scores = shared.services.score(name, &tenant, &model, text).await?;
                    let read = scores.len() as u64 + 1;
                    Ok((scores, read))
                },
            )
        },
    )
}

/// The answer on the call's tape, or the model's, which the tape then has. `ask` also gives the
/// tokens that it used.
fn answer<'a, T, F>(
    cx: Cx<'_>,
    function: &'static str,
    asked: impl Serialize + Send + Sync + 'a,
    model: &str,
    ask: impl FnOnce(Arc<Shared>, Arc<str>) -> F + Send + 'a,
) -> Later<'a, T>
where
    T: Serialize + DeserializeOwned + Send + Sync + 'a,
    F: Future<Output = Result<(T, u64), StageError>> + Send + 'a,
{
    let tape = cx.data().context.tape.clone();
    match tape::played(tape.as_ref(), function, &asked) {
        Ok(None) => {}
        Ok(Some(answer)) => return Box::new(std::future::ready(Ok((answer,)))),
        Err(error) => return Box::new(std::future::ready(Err(error))),
    }
    let admitted = admit(&cx, model);
    Box::new(async move {
        let answer = match admitted {
            Ok((shared, tenant)) => match ask(shared.clone(), tenant).await {
                Ok((value, used)) => {
                    shared.budget.spend(used, Instant::now());
                    Ok(value)
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        tape::told(tape.as_ref(), function, &asked, &answer);
        Ok((answer,))
    })
}

/// Whether the stage may ask this model now, and for which tenant it does.
fn admit(cx: &Cx<'_>, model: &str) -> Result<(Arc<Shared>, Arc<str>), StageError> {
    let data = cx.data();
    if data.configuring {
        return Err(StageError::denied(
            "configuring",
            "`inference` is not available in `configure`",
        ));
    }
    let shared = &data.shared;
    let Some(grant) = &shared.spec.grant.inference else {
        return Err(StageError::denied(
            "not-granted",
            "`inference` is not granted",
        ));
    };
    if !grant.models.contains(model) {
        let granted: Vec<&str> = grant.models.iter().map(String::as_str).collect();
        return Err(StageError::denied(
            "model-not-granted",
            format!(
                "stage `{}` may use the models [{}]; add {model:?} to grant.inference.models to allow it",
                shared.spec.name,
                granted.join(", ")
            ),
        ));
    }
    shared.budget.open(Instant::now()).map_err(|wait| {
        StageError::denied(
            "budget-spent",
            format!(
                "{} tokens a minute are used up; the next call may begin in {} s",
                grant.tokens_per_minute,
                wait.as_secs().saturating_add(1)
            ),
        )
    })?;
    Ok((shared.clone(), data.context.tenant.clone()))
}
