//! Replays: the recorded calls of a request's stages, made again on the same plugins under the same
//! configs, clocks and random numbers, and held against what was answered then. Each plugin is
//! loaded by its digest from what was kept, so the present config does not matter.

use std::{collections::HashMap, sync::Arc, time::Duration};

use millgate_sandbox::{
    CallContext, Decision, Direction, MemoryServices, Outcome as Judged, Sandbox, Stage,
    tape::{Input, Outcome, Recorded, Session, play},
};
use millgate_store::Digest;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{record, record::Source, store::InputStore};
use crate::{
    error::Result,
    id::TraceId,
    plugins::PluginSource,
    trace::{Place, StageVerdict},
};

/// How long a replayed call may compute: whether it kept its deadline then is on the tape, and how
/// fast this machine is does not matter.
const DEADLINE: Duration = Duration::from_secs(60);

/// Replays traces. Stages are loaded once.
pub struct Player {
    sandbox: Sandbox,
    inputs: Arc<InputStore>,
    plugins: PluginSource,
    loaded: Mutex<HashMap<String, Loaded>>,
}

/// A stage, or why there is none.
type Loaded = Result<Stage, String>;

/// What a replay found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplayOutcome {
    /// Every call gave the same bytes.
    Identical,
    /// Some call gave others.
    Differs,
    /// Some call could not be made again, and none differed.
    Impossible,
}

/// The replay of one trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayReport {
    /// The trace.
    pub trace: TraceId,
    /// What was found.
    pub outcome: ReplayOutcome,
    /// Why nothing, or not all of it, could be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The config generation that served it, and the digest of its config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<(u64, String)>,
    /// SHA-256 over all answers of the stages, as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_then: Option<String>,
    /// The same, as they are now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_now: Option<String>,
    /// Stage by stage.
    pub stages: Vec<StageReplay>,
}

/// The replay of one stage in one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReplay {
    /// The stage's name.
    pub stage: String,
    /// Where it stood.
    pub place: Place,
    /// The plugin's digest.
    pub plugin: String,
    /// `sha256:HEX` of plugin, config, grants and limits.
    pub identity: String,
    /// What it decided, as the trace says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<StageVerdict>,
    /// Calls that were made again.
    pub calls: u64,
    /// What was found.
    pub outcome: ReplayOutcome,
    /// The first call that gave something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// Why it could not be replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A call that gave something else. Texts are not shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The text or batch, counted from 1 among those of this stage.
    pub session: usize,
    /// The call in it, counted from 1.
    pub call: usize,
    /// `push`, `finish` or `validate`.
    pub function: String,
    /// What it gave then.
    pub then: String,
    /// What it gives now.
    pub now: String,
}

impl Player {
    /// Replays what is in `inputs`. Plugins that are no longer there are looked for among the
    /// first-party ones in `plugins`.
    #[must_use]
    pub fn new(sandbox: Sandbox, inputs: Arc<InputStore>, plugins: PluginSource) -> Self {
        Self {
            sandbox,
            inputs,
            plugins,
            loaded: Mutex::default(),
        }
    }

    /// Replays one trace. Loads plugins, so not on a thread that serves the network; under a tokio
    /// runtime.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn replay(&self, trace: TraceId) -> Result<ReplayReport> {
        let impossible = |why: String| ReplayReport {
            trace,
            outcome: ReplayOutcome::Impossible,
            why: Some(why),
            config: None,
            digest_then: None,
            digest_now: None,
            stages: Vec::new(),
        };
        let bytes = match self.inputs.get(trace)? {
            Ok(bytes) => bytes,
            Err(why) => return Ok(impossible(why)),
        };
        let read =
            record::source_bytes(&bytes).and_then(|plain| Ok((plain, record::recorded(&bytes)?)));
        let (plain, recorded) = match read {
            Ok(read) => read,
            Err(why) => return Ok(impossible(why)),
        };
        match record::source(&plain) {
            Ok(source) => self.play(trace, &source, &recorded).await,
            Err(why) => Ok(impossible(why)),
        }
    }

    async fn play(
        &self,
        trace: TraceId,
        source: &Source<'_>,
        recorded: &Recorded,
    ) -> Result<ReplayReport> {
        let context = CallContext {
            trace_id: trace.to_string().into(),
            tenant: (*source.tenant).into(),
            model: (*source.model).into(),
            language: (*source.language).into(),
            now_ms: source.at_ms,
            seed: trace.seed(),
            ..CallContext::default()
        };
        let mut stages: Vec<StageReplay> = Vec::new();
        let mut counts: Vec<usize> = Vec::new();
        let (mut then, mut now) = (Vec::new(), Vec::new());
        for session in &recorded.sessions {
            let Some(taped) = recorded.stages.get(usize::from(session.stage)) else {
                continue;
            };
            let place = match session.direction {
                Direction::Output => Place::Output,
                _ => Place::Input,
            };
            let known = stages
                .iter()
                .position(|stage| stage.identity == taped.identity && stage.place == place);
            let index = known.unwrap_or_else(|| {
                let record = source
                    .stages
                    .iter()
                    .find(|then| then.stage == taped.name && then.place == place);
                stages.push(StageReplay {
                    stage: taped.name.clone(),
                    place,
                    plugin: taped.plugin.clone(),
                    identity: taped.identity.clone(),
                    verdict: record.map(|then| then.verdict),
                    calls: 0,
                    outcome: ReplayOutcome::Identical,
                    difference: None,
                    why: None,
                });
                counts.push(0);
                stages.len() - 1
            });
            let (Some(report), Some(count)) = (stages.get_mut(index), counts.get_mut(index)) else {
                continue;
            };
            *count += 1;
            for call in &session.calls {
                then.extend(bytes_of(&call.outcome));
            }
            match self.stage(&taped.identity)? {
                Ok(stage) => {
                    report
                        .replay(&stage, &context, session, *count, &mut now)
                        .await
                }
                Err(why) => report.fail(why),
            }
        }
        let any = |wanted| stages.iter().any(|stage| stage.outcome == wanted);
        let outcome = if any(ReplayOutcome::Differs) {
            ReplayOutcome::Differs
        } else if any(ReplayOutcome::Impossible) {
            ReplayOutcome::Impossible
        } else {
            ReplayOutcome::Identical
        };
        let why = stages.iter().find_map(|stage| {
            let why = stage.why.as_ref()?;
            Some(format!("stage `{}`: {why}", stage.stage))
        });
        Ok(ReplayReport {
            trace,
            outcome,
            why,
            config: Some((source.generation, source.config.to_string())),
            digest_then: Some(Digest::of(&then).to_string()),
            digest_now: (outcome != ReplayOutcome::Impossible)
                .then(|| Digest::of(&now).to_string()),
            stages,
        })
    }

    /// A stage by its identity.
    fn stage(&self, identity: &str) -> Result<Loaded> {
        if let Some(known) = self.loaded.lock().get(identity) {
            return Ok(known.clone());
        }
        let loaded = self.load(identity)?;
        let mut known = self.loaded.lock();
        if known.len() >= 256 {
            known.clear();
        }
        known.insert(identity.to_owned(), loaded.clone());
        Ok(loaded)
    }

    fn load(&self, identity: &str) -> Result<Loaded> {
        let recipe = match self.inputs.recipe(identity)? {
            Ok(recipe) => recipe,
            Err(why) => return Ok(Err(why)),
        };
        let bytes = match self.inputs.plugin(&recipe.plugin) {
            Ok(bytes) => bytes,
            Err(why) => match self.first_party(&recipe.plugin) {
                Some(bytes) => bytes,
                None => return Ok(Err(why)),
            },
        };
        let mut spec = recipe.spec;
        for (granted, what) in [
            (spec.grant.http.is_some(), "http"),
            (spec.grant.secrets.is_some(), "secrets"),
        ] {
            if granted {
                return Ok(Err(format!(
                    "it was granted `{what}`, and what that gave it is not recorded"
                )));
            }
        }
        spec.limits.deadline = spec.limits.deadline.max(DEADLINE);
        spec.limits.wait = DEADLINE;
        let services = Arc::new(MemoryServices::default());
        let stage = self.sandbox.load(&bytes, spec, services);
        Ok(stage.map_err(|error| format!("its plugin cannot be loaded: {error}")))
    }

    /// The plugin of this digest, if it is one of the binary's own.
    fn first_party(&self, digest: &str) -> Option<Vec<u8>> {
        let named = self
            .plugins
            .names()
            .filter_map(|name| self.plugins.named(name));
        let mut own = named.filter(|bytes| Digest::of(bytes).to_string() == digest);
        own.next().map(<[u8]>::to_vec)
    }
}

impl StageReplay {
    fn fail(&mut self, why: String) {
        if self.outcome == ReplayOutcome::Identical {
            self.outcome = ReplayOutcome::Impossible;
        }
        self.why.get_or_insert(why);
    }

    async fn replay(
        &mut self,
        stage: &Stage,
        context: &CallContext,
        session: &Session,
        number: usize,
        now: &mut Vec<u8>,
    ) {
        let played = play(stage, context, session).await;
        self.calls += played.outcomes.len() as u64;
        for (index, (call, outcome)) in session.calls.iter().zip(&played.outcomes).enumerate() {
            let (then, is) = (bytes_of(&call.outcome), bytes_of(outcome));
            if !call.outcome.is_determined() {
                let what = described(&call.outcome);
                self.fail(format!(
                    "a call ended by {what}, which depends on the machine and its load, not on the input alone"
                ));
                now.extend(then);
                continue;
            }
            if then != is && self.difference.is_none() {
                self.outcome = ReplayOutcome::Differs;
                self.difference = Some(Difference {
                    session: number,
                    call: index + 1,
                    function: match call.input {
                        Input::Push(_) => "push",
                        Input::Finish => "finish",
                        Input::Validate(_) => "validate",
                    }
                    .to_owned(),
                    then: described(&call.outcome),
                    now: match &played.missed {
                        Some(function) => format!(
                            "it asked the host something that it did not ask then: {function}"
                        ),
                        None => described(outcome),
                    },
                });
            }
            now.extend(is);
        }
    }
}

fn bytes_of(outcome: &Outcome) -> Vec<u8> {
    postcard::to_allocvec(outcome).unwrap_or_default()
}

/// An outcome in words, without its texts.
fn described(outcome: &Outcome) -> String {
    let count = |number: usize, what: &str| match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    match outcome {
        Outcome::Verdict(verdict) => {
            let decision = match &verdict.decision {
                Decision::Pass => "pass".to_owned(),
                Decision::Block(refusal) => format!("block ({})", refusal.code),
                Decision::Regenerate(again) => format!("regenerate ({})", again.reason.code),
            };
            let rules: Vec<String> = verdict
                .findings
                .iter()
                .take(4)
                .map(|finding| match finding.span {
                    Some(span) => format!("{} at {}..{}", finding.rule, span.start, span.end),
                    None => finding.rule.clone(),
                })
                .collect();
            format!(
                "{decision}, settled to {}, {}, {} [{}]",
                verdict.settled,
                count(verdict.edits.len(), "edit"),
                count(verdict.findings.len(), "finding"),
                rules.join(", ")
            )
        }
        Outcome::Judgements(judgements) => {
            let each = judgements.iter().map(|judgement| {
                let outcome = match &judgement.outcome {
                    Judged::Accept => "accept".to_owned(),
                    Judged::Repair(repairs) => count(repairs.len(), "repair"),
                    Judged::Reject(_) => "reject".to_owned(),
                };
                format!("{outcome}, {}", count(judgement.findings.len(), "finding"))
            });
            each.collect::<Vec<_>>().join("; ")
        }
        Outcome::Failed(failure) => format!("a failure ({}): {failure}", failure.kind()),
    }
}
