//! One stage on a request: validation on the whole of it, compliance on each of its texts. Whether
//! its verdict counts is the caller's business: on the way of a request it does, in the shadow it
//! does not.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use millgate_sandbox::{CallContext, Origin, Outcome, Sample, Segment as SampleSegment};

use crate::{
    chain,
    error::ApiError,
    segments::Segment,
    stage::LoadedStage,
    trace::{Finish, StageRecord, StageVerdict},
};

/// A request as a stage finds it, and leaves it.
pub(crate) struct Asked<'r> {
    /// The body with the texts as they are now.
    pub body: Bytes,
    pub segments: &'r mut [Segment],
    /// Bytes that are no text of the request.
    pub uncovered: u64,
}

/// Runs a stage on a request: validation first, then compliance.
///
/// # Errors
/// The stage refuses it, or failed and fails closed.
pub(crate) async fn request(
    stage: &Arc<LoadedStage>,
    context: &CallContext,
    mut asked: Asked<'_>,
    record: &mut StageRecord,
) -> Result<(), (Finish, ApiError)> {
    if stage.validates {
        validate(stage, context, &mut asked, record).await?;
    }
    if stage.inspects {
        inspect(stage, context, &mut asked, record).await?;
    }
    Ok(())
}

async fn validate(
    stage: &Arc<LoadedStage>,
    context: &CallContext,
    asked: &mut Asked<'_>,
    record: &mut StageRecord,
) -> Result<(), (Finish, ApiError)> {
    let Some(sandboxed) = stage.sandboxed() else {
        return Ok(());
    };
    let sample = Sample {
        origin: Origin::Request,
        body: String::from_utf8_lossy(&asked.body).into_owned(),
        segments: asked
            .segments
            .iter()
            .map(|segment| SampleSegment {
                path: segment.path.to_string(),
                role: segment.role.to_string(),
                text: segment.text.clone(),
            })
            .collect(),
    };
    let texts: u64 = asked.segments.iter().map(|it| it.text.len() as u64).sum();
    let passed = asked.uncovered + texts;
    let started = Instant::now();
    let samples = std::slice::from_ref(&sample);
    let judged = if sandboxed.is_async() {
        sandboxed.validate_async(context, samples).await
    } else {
        sandboxed.validate(context, samples)
    };
    let elapsed = started.elapsed();
    stage.metrics.time.observe_time(elapsed);
    record.passed += passed;
    record.calls += 1;
    record.micros += u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    let judgement = match judged {
        Ok(judgements) => judgements.into_iter().next(),
        Err(failure) => {
            stage.metrics.failure(failure.kind());
            tracing::warn!(stage = %stage.name, %failure, "a stage failed");
            record.fail(&failure, stage.closed);
            if stage.closed {
                return Err((Finish::Blocked, ApiError::stage_failed(&stage.name)));
            }
            return Ok(());
        }
    };
    // The whole body was given, parts that are no text included.
    record.given += passed;
    record.raise(StageVerdict::Pass);
    let Some(judgement) = judgement else {
        return Ok(());
    };
    record.add_findings(judgement.findings);
    match judgement.outcome {
        Outcome::Accept => Ok(()),
        Outcome::Reject(message) => {
            record.raise(StageVerdict::Reject);
            Err((Finish::Rejected, ApiError::rejected(&stage.name, &message)))
        }
        Outcome::Repair(repairs) => {
            record.raise(StageVerdict::Repair);
            record.edits += u32::try_from(repairs.len()).unwrap_or(u32::MAX);
            for repair in repairs {
                let place = asked
                    .segments
                    .iter_mut()
                    .find(|segment| segment.path.to_string() == repair.path);
                if let Some(segment) = place {
                    segment.text = repair.text;
                    segment.changed = true;
                }
            }
            Ok(())
        }
    }
}

async fn inspect(
    stage: &Arc<LoadedStage>,
    context: &CallContext,
    asked: &mut Asked<'_>,
    record: &mut StageRecord,
) -> Result<(), (Finish, ApiError)> {
    // What is no segment passes unseen by compliance stages, and the trace says so.
    record.passed += asked.uncovered;
    let mut context = context.clone();
    for segment in asked
        .segments
        .iter_mut()
        .filter(|segment| !segment.text.is_empty())
    {
        context.role = segment.role.clone();
        match chain::check_text(stage, &context, &segment.text, record).await {
            Ok(None) => {}
            Ok(Some(text)) => {
                segment.text = text;
                segment.changed = true;
            }
            Err(error) => return Err((Finish::Blocked, error)),
        }
    }
    Ok(())
}
