//! The way of a request: parse, pipeline by the model name asked for, input stages, the arm, the
//! model, output stages on the answer. All in the caller's task: no spawn, no lock held over a wait.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use bytes::Bytes;
use millgate_sandbox::{ArmRole, CallContext, Label};

use crate::{
    answer_local::LocalAnswer,
    answer_upstream::{self, UpstreamAnswer},
    checks::{self, Asked},
    core::Core,
    embeddings,
    error::ApiError,
    flight::Flight,
    local::{self, LocalRequest},
    model::Ready,
    request::{ApiRequest, Endpoint, Request},
    response::{Body, Event, Response},
    responses,
    shadow::Tapped,
    stage::LoadedStage,
    trace::{Finish, Place, StageRecord, StageVerdict},
};

/// A streamed answer. Dropping it cancels the request; its trace is written all the same.
pub struct ResponseStream {
    source: Source,
    /// Where an upstream's chunks are wanted as events: those that are read and not given yet.
    translated: Option<VecDeque<Event>>,
}

pub(crate) enum Source {
    Local(Box<LocalAnswer>),
    Upstream(Box<UpstreamAnswer>),
}

impl ResponseStream {
    /// The next event, as soon as there is one; `None` after [`Event::Done`].
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.translated.as_mut().and_then(VecDeque::pop_front) {
                return Some(event);
            }
            let event = match &mut self.source {
                Source::Local(answer) => answer.next().await,
                Source::Upstream(answer) => answer.next().await,
            };
            match (event, &mut self.translated) {
                (Some(Event::Raw(blocks)), Some(translated)) => {
                    translated.extend(responses::events(&blocks));
                }
                (event, _) => return event,
            }
        }
    }

    pub(crate) fn new(source: Source) -> Self {
        Self {
            source,
            translated: None,
        }
    }

    /// For a request that was no chat where it came from.
    fn translated(self, endpoint: Endpoint) -> Self {
        Self {
            translated: (endpoint == Endpoint::Responses).then(VecDeque::new),
            ..self
        }
    }
}

/// Answers a request.
pub(crate) async fn handle(core: &Arc<Core>, request: ApiRequest) -> Result<Response, ApiError> {
    let refused = |error: ApiError| {
        core.refused.add(1);
        error
    };
    let mut request = Request::parse(request).map_err(refused)?;
    let generation = core.generation.load_full();
    let pipeline = generation
        .pipeline_for(&request.model)
        .cloned()
        .ok_or_else(|| refused(ApiError::unknown_model(&request.model)))?;
    let mut flight = Flight::new(core.clone(), generation, pipeline, &request);

    let pipeline = flight.pipeline.clone();
    let records = &mut flight.trace.stages;
    let passed = run_input(&pipeline.input, &flight.context, &mut request, records).await;
    if let Err((finish, error)) = passed {
        return Err(flight.fail(finish, error).await);
    }
    let arm = route(&mut flight, &request).await;
    flight.departs(&request, arm);

    let (trace, model, endpoint) = (flight.trace.id, request.model.clone(), request.endpoint);
    let (include_usage, echoed) = (request.include_usage, request.echoed.take());
    let created = flight.trace.at_ms / 1000;
    let arm = flight.pipeline.arms.get(arm);
    let backend = arm.map(|arm| arm.backend.clone());
    let adapter = arm.and_then(|arm| arm.adapter.clone());
    let backend = match backend {
        Some(backend) => {
            // A model that is loaded by use may take its time, too.
            let ready = tokio::time::timeout_at(flight.deadline.into(), backend.ready()).await;
            match ready.unwrap_or_else(|_| Err(ApiError::late())) {
                Ok(ready) => Some(ready),
                Err(error) => return Err(flight.fail(Finish::Error, error).await),
            }
        }
        None => None,
    };
    let body = match backend {
        Some(Ready::Local(model)) if endpoint == Endpoint::Embeddings => {
            Body::Embeddings(embeddings::local(flight, model, &request).await?)
        }
        Some(Ready::Local(model)) => {
            let stream = request.stream;
            let asked = match LocalRequest::read(&request, &model.sampling()) {
                Ok(mut asked) => {
                    asked.generate.deadline = Some(flight.deadline);
                    asked.generate.adapter = adapter.and_then(|name| model.adapter(&name));
                    asked
                }
                Err(error) => return Err(flight.fail(Finish::Error, error).await),
            };
            let mut answer = LocalAnswer::new(flight, model, asked, include_usage);
            if let Err(error) = answer.start(request.n).await {
                return Err(answer
                    .flight
                    .fail(Finish::Error, local::api_error(&error))
                    .await);
            }
            if stream {
                Body::Stream(Box::new(ResponseStream::new(Source::Local(Box::new(
                    answer,
                )))))
            } else {
                Body::Completion(answer.whole().await?)
            }
        }
        Some(Ready::Upstream(upstream)) => {
            let body = request.upstream_body(upstream.model.as_deref());
            let stream = request.stream && endpoint != Endpoint::Embeddings;
            drop(request);
            match upstream.send(endpoint, body, flight.deadline).await {
                Err(error) => return Err(flight.fail(Finish::Error, error).await),
                Ok(answer) if stream && answer.events => {
                    let source = Source::Upstream(Box::new(UpstreamAnswer::new(flight, answer)));
                    Body::Stream(Box::new(ResponseStream::new(source).translated(endpoint)))
                }
                Ok(answer) => {
                    let json = answer_upstream::whole(flight, answer).await?;
                    match endpoint {
                        Endpoint::Responses => Body::Completion(responses::completion(&json)?),
                        _ => Body::Json(json),
                    }
                }
            }
        }
        None => {
            return Err(flight
                .fail(Finish::Error, ApiError::internal("the pipeline has no arm"))
                .await);
        }
    };
    Ok(Response {
        trace,
        model,
        created,
        endpoint,
        include_usage,
        echoed,
        body,
    })
}

/// Runs input stages in order. Those whose verdict does not count get to see the request later, as
/// it stands at their place now. `records` begins with theirs.
pub(crate) async fn run_input(
    stages: &[Arc<LoadedStage>],
    context: &CallContext,
    request: &mut Request,
    records: &mut [StageRecord],
) -> Result<(), (Finish, ApiError)> {
    for (stage, record) in stages.iter().zip(records) {
        // Only validation looks at the body.
        let body = match stage.validates {
            true => request.current_body(),
            false => Bytes::new(),
        };
        if !record.enforced {
            record.tapped.push(Tapped::Request {
                body,
                segments: request.segments.clone(),
                uncovered: request.uncovered,
            });
            continue;
        }
        let asked = Asked {
            body,
            uncovered: request.uncovered,
            segments: &mut request.segments,
        };
        checks::request(stage, context, asked, record).await?;
    }
    Ok(())
}

/// Picks the arm. Where only one takes traffic there is nothing to pick.
async fn route(flight: &mut Flight, request: &Request) -> usize {
    let pipeline = flight.pipeline.clone();
    let arms = pipeline.rollout.arms();
    let stable = arms
        .iter()
        .position(|arm| arm.role == ArmRole::Stable)
        .unwrap_or(0);
    let mut open = arms.iter().enumerate().filter(|(_, arm)| arm.weight > 0.0);
    let only = match (open.next(), open.next()) {
        (Some((only, _)), None) => Some(only),
        (None, _) => Some(stable),
        _ => None,
    };
    let (Some(deployment), None) = (&pipeline.deployment, only) else {
        return only.unwrap_or(stable);
    };

    let mut features = vec![Label {
        name: "tenant".to_owned(),
        value: request.tenant.to_string(),
    }];
    let user = request.value::<String>("user").ok().flatten();
    features.extend(user.map(|value| Label {
        name: "user".to_owned(),
        value,
    }));
    features.extend(request.session().map(|value| Label {
        name: "session".to_owned(),
        value,
    }));

    let started = Instant::now();
    let chosen = deployment
        .actor
        .route(&flight.context, &features, &arms)
        .await;
    let elapsed = started.elapsed();
    deployment.stage.metrics.time.observe_time(elapsed);
    let mut record: StageRecord = deployment.stage.record(Place::Deployment);
    record.calls = 1;
    record.micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    let picked = match chosen {
        Ok(choice) => {
            record.raise(StageVerdict::Pass);
            flight.trace.propensity = choice.propensity;
            flight.trace.route = choice.reason;
            arms.iter()
                .position(|arm| arm.name == choice.arm)
                .unwrap_or(stable)
        }
        Err(failure) => {
            // A strategy that fails never refuses a request: the stable arm serves when in doubt.
            deployment.stage.metrics.failure(failure.kind());
            record.fail(&failure, false);
            flight.trace.route = "the deployment stage failed: stable arm".to_owned();
            stable
        }
    };
    deployment.stage.metrics.count(&record);
    flight.trace.stages.push(record);
    picked
}
