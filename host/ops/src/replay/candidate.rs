//! A candidate: the input and output stages of a config, loaded to be run over what was kept of past
//! requests. Its models, rollouts and monitors are not: a model's answer is the one that was given.

use std::sync::Arc;

use bytes::Bytes;
use millgate_sandbox::{CallContext, Direction, MemoryServices, Sandbox, Tape, tape::Asked};

use super::record::{Heard, Source};
use crate::{
    answer::Channel,
    answer_local::text_of,
    chain::{Chain, Flow, Placed, Released},
    config::{Config, StageMode, pattern_matches},
    error::{Error, Result},
    executor::run_input,
    id::TraceId,
    loader,
    metrics::Metrics,
    outlet::Outlet,
    plugins::PluginSource,
    request::{ApiRequest, Request},
    stage::LoadedStage,
    trace::{Finish, Place, StageRecord},
};

/// The stages of a config.
pub struct Candidate {
    pipelines: Vec<Pipeline>,
    /// Whether a stage may ask the host something: then the tapes are needed.
    asks: bool,
}

struct Pipeline {
    serves: Vec<String>,
    input: Vec<Arc<LoadedStage>>,
    output: Vec<Arc<LoadedStage>>,
}

/// What a candidate did with one request.
pub(crate) struct Ran {
    /// Of the input stages, then of the output stages.
    pub records: Vec<StageRecord>,
    /// How it ended: `None` where every stage let it through.
    pub stopped: Option<Finish>,
    /// The request's texts that stages changed.
    pub changed: Vec<(u32, String)>,
    /// The answer's texts that stages changed.
    pub left: Vec<(u32, Channel, String)>,
}

impl Candidate {
    /// Loads the stages that the pipelines of a config have on requests and answers. Blocking.
    ///
    /// # Errors
    /// A stage that cannot be loaded, by name.
    pub fn load(config: &Config, plugins: &PluginSource, sandbox: &Sandbox) -> Result<Self> {
        let metrics = Metrics::new();
        let mut loaded = std::collections::BTreeMap::new();
        let mut asks = false;
        let mut stages = |names: &[String]| -> Result<Vec<Arc<LoadedStage>>> {
            let mut stages = Vec::with_capacity(names.len());
            for name in names {
                if let Some(stage) = loaded.get(name) {
                    stages.push(Arc::clone(stage));
                    continue;
                }
                let failed = |why: String| Error::Stage {
                    stage: name.clone(),
                    why,
                };
                let known = config.stages.get(name);
                let stage = known.ok_or_else(|| failed("it is not defined".to_owned()))?;
                // What a stage in the shadow says changes nothing; a canary counts as enforced.
                if stage.mode == StageMode::Shadow {
                    continue;
                }
                let bytes = plugins.of_stage(stage).map_err(failed)?;
                let spec = loader::spec(name, stage);
                asks |= spec.grant != millgate_sandbox::Grant::default();
                let services = Arc::new(MemoryServices::default());
                let made = sandbox.load(&bytes, spec, services);
                let made = made.map_err(|error| failed(error.to_string()))?;
                let made = LoadedStage::new(made, &metrics, StageMode::Enforce, None);
                loaded.insert(name.clone(), made.clone());
                stages.push(made);
            }
            Ok(stages)
        };
        let mut pipelines = Vec::with_capacity(config.pipelines.len());
        for pipeline in config.pipelines.values() {
            pipelines.push(Pipeline {
                serves: pipeline.serves.clone(),
                input: stages(&pipeline.input)?,
                output: stages(&pipeline.output)?,
            });
        }
        Ok(Self { pipelines, asks })
    }

    /// Whether the tapes are needed, for what stages ask the host.
    pub(crate) fn asks(&self) -> bool {
        self.asks
    }

    /// The pipeline for a model name, as a server picks it: an exact name before a pattern, a
    /// longer pattern before a shorter one.
    fn pipeline_for(&self, model: &str) -> Option<&Pipeline> {
        let weight = |pipeline: &Pipeline| {
            let fitting = pipeline
                .serves
                .iter()
                .filter(|pattern| pattern_matches(pattern, model));
            fitting
                .map(|pattern| match pattern.ends_with('*') {
                    true => pattern.len(),
                    false => usize::MAX,
                })
                .max()
        };
        let mut best: Option<(usize, &Pipeline)> = None;
        for pipeline in &self.pipelines {
            if let Some(weight) = weight(pipeline)
                && best.is_none_or(|(known, _)| weight > known)
            {
                best = Some((weight, pipeline));
            }
        }
        best.map(|(_, pipeline)| pipeline)
    }

    /// Reads a request; `body` is the source's. Inside: why it cannot be.
    pub(crate) fn read(&self, source: &Source<'_>, body: Bytes) -> Result<Request, String> {
        let request = Request::parse(ApiRequest {
            endpoint: source.endpoint,
            body,
            tenant: (*source.tenant).into(),
            language: (*source.language).into(),
        });
        request.map_err(|error| {
            format!(
                "its request cannot be read by this version: {}",
                error.message
            )
        })
    }

    /// Runs a request's stages, and its answer's. Inside: why it cannot be.
    pub(crate) async fn run(
        &self,
        trace: TraceId,
        source: &Source<'_>,
        mut request: Request,
        asked: Vec<Asked>,
    ) -> Result<Ran, String> {
        let pipeline = self
            .pipeline_for(&source.model)
            .ok_or_else(|| format!("no pipeline of the candidate serves `{}`", source.model))?;
        let tape = self.asks.then(|| Tape::playing(asked));
        let mut context = CallContext {
            trace_id: trace.to_string().into(),
            tenant: request.tenant.clone(),
            model: request.model.clone(),
            language: request.language.clone(),
            now_ms: source.at_ms,
            seed: trace.seed(),
            tape: tape.clone(),
            ..CallContext::default()
        };
        let input = pipeline
            .input
            .iter()
            .map(|stage| stage.record(Place::Input));
        let output = pipeline
            .output
            .iter()
            .map(|stage| stage.record(Place::Output));
        let mut records: Vec<StageRecord> = input.chain(output).collect();
        let passed = run_input(&pipeline.input, &context, &mut request, &mut records).await;
        let changed = request.segments.iter().enumerate();
        let changed = changed
            .filter(|(_, segment)| segment.changed)
            .map(|(index, segment)| {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                (index, segment.text.clone())
            });
        let mut ran = Ran {
            changed: changed.collect(),
            records,
            stopped: passed.err().map(|(finish, _)| finish),
            left: Vec::new(),
        };
        if let (None, Some(heard)) = (ran.stopped, &source.answer) {
            context.direction = Direction::Output;
            context.role = "assistant".into();
            let first = pipeline.input.len();
            let stages = pipeline.output.iter().enumerate();
            let placed: Vec<_> = stages
                .map(|(index, stage)| Placed {
                    record: first + index,
                    stage: stage.clone(),
                    enforced: true,
                })
                .collect();
            if !placed.is_empty() {
                let stopped = match heard.form {
                    None => strands(heard, &placed, &context, &mut ran).await,
                    Some(_) => outlets(heard, &placed, &context, &mut ran).await,
                };
                ran.stopped = stopped.then_some(Finish::Blocked);
            }
        }
        match tape.and_then(|tape| tape.missed()) {
            Some(function) => Err(format!(
                "a stage asks the host what no stage asked it then ({function}), and a backtest asks no model and no state"
            )),
            None => Ok(ran),
        }
    }
}

/// An upstream's answer through the stages: one chain for each text of each choice. Whether a stage
/// stopped it.
async fn strands(
    heard: &Heard<'_>,
    placed: &[Placed],
    context: &CallContext,
    ran: &mut Ran,
) -> bool {
    struct Strand {
        key: (u32, Channel),
        chain: Chain,
        pushed: u64,
        text: String,
    }
    let mut strands: Vec<Strand> = Vec::new();
    let mut stopped = false;
    for (piece, text) in heard.pieces() {
        let key = (piece.choice, piece.channel);
        let index = match strands.iter().position(|strand| strand.key == key) {
            Some(index) => index,
            None => {
                strands.push(Strand {
                    key,
                    chain: Chain::new(placed.iter().cloned(), context),
                    pushed: 0,
                    text: String::new(),
                });
                strands.len() - 1
            }
        };
        let Some(strand) = strands.get_mut(index) else {
            continue;
        };
        let mut out = Released::default();
        let flow = strand.chain.push(text, strand.pushed, &mut out).await;
        strand.pushed += text.len() as u64;
        strand.text.push_str(&out.text);
        if !matches!(flow, Flow::Go) {
            stopped = true;
            break;
        }
    }
    for strand in &mut strands {
        if !stopped && heard.ended.contains(&strand.key.0) {
            let mut out = Released::default();
            let flow = strand.chain.finish(&mut out).await;
            strand.text.push_str(&out.text);
            stopped = !matches!(flow, Flow::Go);
        }
    }
    for mut strand in strands {
        strand.chain.record(&mut ran.records);
        let (choice, channel) = strand.key;
        if !heard.is(choice, channel, &strand.text) {
            ran.left.push((choice, channel, strand.text));
        }
    }
    stopped
}

/// A local model's answer through the stages. Whether a stage stopped it.
async fn outlets(
    heard: &Heard<'_>,
    placed: &[Placed],
    context: &CallContext,
    ran: &mut Ran,
) -> bool {
    let form = heard.form.unwrap_or_default();
    let mut choices: Vec<(u32, Outlet, String)> = Vec::new();
    let mut stopped = false;
    for (piece, text) in heard.pieces() {
        let known = choices
            .iter()
            .position(|(choice, ..)| *choice == piece.choice);
        let index = known.unwrap_or_else(|| {
            let outlet = Outlet::new(form, placed.to_vec(), context);
            choices.push((piece.choice, outlet, String::new()));
            choices.len() - 1
        });
        let Some((_, outlet, left)) = choices.get_mut(index) else {
            continue;
        };
        let mut out = Vec::new();
        let flow = outlet.push(text, &mut out).await;
        left.extend(out.iter().map(text_of));
        if !matches!(flow, Flow::Go) {
            stopped = true;
            break;
        }
    }
    for (choice, outlet, left) in &mut choices {
        if !stopped && heard.ended.contains(choice) {
            let mut out = Vec::new();
            let flow = outlet.finish(&mut out).await;
            left.extend(out.iter().map(text_of));
            stopped = !matches!(flow, Flow::Go);
        }
    }
    for (choice, mut outlet, left) in choices {
        outlet.record(&mut ran.records);
        if !heard.is(choice, Channel::Content, &left) {
            ran.left.push((choice, Channel::Content, left));
        }
    }
    stopped
}
