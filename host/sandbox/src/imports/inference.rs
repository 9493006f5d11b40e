//! `inference.wit`: the host's own models, within a budget. Grant: `inference`.
//!
//! These are the asynchronous imports: while the model works, the guest's stack is put aside and
//! the thread serves others.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::contract::inference::{Completion, CompletionRequest};
use crate::contract::types::StageError;
use crate::state::{CallState, Shared};

type Answer<T> = wasmtime::Result<(Result<T, StageError>,)>;
type Cx<'a> = StoreContextMut<'a, CallState>;
type Later<'a, T> = Box<dyn Future<Output = Answer<T>> + Send + 'a>;

pub(super) fn link(linker: &mut Linker<CallState>) -> wasmtime::Result<()> {
    let mut inference = linker.instance(&super::interface("inference"))?;
    inference.func_wrap_async(
        "complete",
        |cx: Cx<'_>, (request,): (CompletionRequest,)| -> Later<'_, Completion> {
            let admitted = admit(&cx, &request.model);
            Box::new(async move {
                let (shared, tenant) = match admitted {
                    Ok(admitted) => admitted,
                    Err(error) => return Ok((Err(error),)),
                };
                let name = &shared.spec.name;
                let answer = shared.services.complete(name, &tenant, request).await;
                if let Ok(completion) = &answer {
                    let (read, written) = (completion.prompt_tokens, completion.completion_tokens);
                    shared
                        .budget
                        .spend(u64::from(read) + u64::from(written), Instant::now());
                }
                Ok((answer,))
            })
        },
    )?;
    inference.func_wrap_async(
        "embed",
        |cx: Cx<'_>, (model, texts): (String, Vec<String>)| -> Later<'_, Vec<Vec<f32>>> {
            let admitted = admit(&cx, &model);
            Box::new(async move {
                let (shared, tenant) = match admitted {
                    Ok(admitted) => admitted,
                    Err(error) => return Ok((Err(error),)),
                };
                let name = &shared.spec.name;
                let answer = shared.services.embed(name, &tenant, &model, texts).await;
                if let Ok((_, read)) = &answer {
                    shared.budget.spend(u64::from(*read), Instant::now());
                }
                Ok((answer.map(|(vectors, _)| vectors),))
            })
        },
    )?;
    inference.func_wrap_async(
        "score",
        |cx: Cx<'_>, (model, text): (String, String)| -> Later<'_, Vec<f64>> {
            let admitted = admit(&cx, &model);
            Box::new(async move {
                let (shared, tenant) = match admitted {
                    Ok(admitted) => admitted,
                    Err(error) => return Ok((Err(error),)),
                };
                let name = &shared.spec.name;
                let answer = shared.services.score(name, &tenant, &model, text).await;
                if let Ok(scores) = &answer {
                    shared.budget.spend(scores.len() as u64 + 1, Instant::now());
                }
                Ok((answer,))
            })
        },
    )
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
