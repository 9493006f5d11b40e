//! A tape: what the stages of one request were given, what they answered, and what the host answered
//! them, call by call. A plugin is a function of that (its clock and its random numbers follow the
//! trace), so a tape can be played again, in another process, without a model and without the
//! store: [`play`] gives the same answers, bit for bit.
//!
//! A [`Tape`] travels in the [`CallContext`]; each inspection and each validated batch is a
//! [`Session`] on it.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::call::{CallContext, Direction};
use crate::contract::compliance::Verdict;
use crate::contract::types::StageError;
use crate::contract::validation::{Judgement, Sample};
use crate::failure::Failure;
use crate::spec::StageSpec;
use crate::stage::Stage;

/// All that a stage's answers depend on beside their input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recipe {
    /// `sha256:HEX` of the plugin's bytes.
    pub plugin: String,
    /// What the operator said, the config with its defaults.
    pub spec: StageSpec,
}

impl Recipe {
    /// The recipe as JSON: the bytes that its identity is of.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Nothing in a recipe can fail to be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// `sha256:HEX` of a recipe's JSON.
    #[must_use]
    pub fn identity_of(json: &[u8]) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(json)))
    }
}

/// Which stage a session was with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapedStage {
    /// The stage's name.
    pub name: String,
    /// `sha256:HEX` of its [`Recipe`].
    pub identity: String,
    /// `sha256:HEX` of its plugin.
    pub plugin: String,
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// The stages.
    pub stages: Vec<TapedStage>,
    /// The sessions, in the order of their beginnings.
    pub sessions: Vec<Session>,
}

/// One inspection, or one validated batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Which of the recorded stages.
    pub stage: u16,
    /// Which way the text flowed.
    pub direction: Direction,
    /// The role of the segment.
    pub role: String,
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// What the stage asked the host, in order.
    pub asked: Vec<Asked>,
}

/// One call of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// What it was given.
    pub input: Input,
    /// What it answered.
    pub outcome: Outcome,
}

/// What a call was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// More text, in these chunks.
    Push(Vec<String>),
    /// The text is complete.
    Finish,
    /// A batch of samples.
    Validate(Vec<Sample>),
}

/// What a call answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// A push or a finish.
    Verdict(Verdict),
    /// A batch.
    Judgements(Vec<Judgement>),
    /// Nothing.
    Failed(Failure),
}

impl Outcome {
    /// Whether the same input gives the same outcome again: a time-out and a full pool do not
    /// depend on the input alone.
    #[must_use]
    pub fn is_determined(&self) -> bool {
        !matches!(
            self,
            Outcome::Failed(Failure::Timeout { .. } | Failure::Unavailable { .. })
        )
    }
}

/// A question to the host and its answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Such as `state.get`.
    pub function: String,
    /// The first half of the SHA-256 of what it was asked.
    pub question: [u8; 16],
    /// The answer's bytes, or the error.
    pub answer: Result<Vec<u8>, StageError>,
}

/// A place on a tape. A clone is the same place.
#[derive(Clone)]
pub struct Tape {
    reel: Arc<Reel>,
    session: usize,
}

enum Reel {
    Recording { kept: Mutex<Kept>, limit: usize },
    Playing { left: Mutex<Left> },
}

#[derive(Default)]
struct Kept {
    recorded: Recorded,
    /// Bytes of the texts on it.
    bytes: usize,
    full: bool,
}

struct Left {
    asked: Vec<Option<Asked>>,
    missed: Option<String>,
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match *self.reel {
            Reel::Recording { .. } => "recording",
            Reel::Playing { .. } => "playing",
        };
        write!(f, "Tape({what})")
    }
}

/// A host function was asked something that is not on the tape.
#[derive(Debug, thiserror::Error)]
#[error("not on the tape: {0}")]
struct Missed(&'static str);

impl Tape {
    /// An empty tape that takes at most `limit` bytes of text.
    #[must_use]
    pub fn recording(limit: usize) -> Tape {
        Tape {
            reel: Arc::new(Reel::Recording {
                kept: Mutex::default(),
                limit,
            }),
            session: usize::MAX,
        }
    }

    /// A tape from which host functions are answered. Nothing is recorded on it, and nothing of
    /// the host is asked.
    #[must_use]
    pub fn playing(asked: Vec<Asked>) -> Tape {
        Tape {
            reel: Arc::new(Reel::Playing {
                left: Mutex::new(Left {
                    asked: asked.into_iter().map(Some).collect(),
                    missed: None,
                }),
            }),
            session: usize::MAX,
        }
    }

    /// What was recorded, taken off the tape. `None`: it was more than the tape takes, or the tape
    /// is one that plays.
    #[must_use]
    pub fn take(&self) -> Option<Recorded> {
        match &*self.reel {
            Reel::Recording { kept, .. } => {
                let kept = std::mem::take(&mut *kept.lock());
                (!kept.full).then_some(kept.recorded)
            }
            Reel::Playing { .. } => None,
        }
    }

    /// The first host function that was asked something that is not on the tape.
    #[must_use]
    pub fn missed(&self) -> Option<String> {
        match &*self.reel {
            Reel::Recording { .. } => None,
            Reel::Playing { left } => left.lock().missed.clone(),
        }
    }

    /// A new session.
    pub(crate) fn begin(&self, stage: &TapedStage, context: &CallContext) -> Tape {
        let Reel::Recording { kept, .. } = &*self.reel else {
            return self.clone();
        };
        let mut kept = kept.lock();
        let recorded = &mut kept.recorded;
        let known = recorded
            .stages
            .iter()
            .position(|known| known.identity == stage.identity);
        let index = known.unwrap_or_else(|| {
            recorded.stages.push(stage.clone());
            recorded.stages.len() - 1
        });
        recorded.sessions.push(Session {
            stage: u16::try_from(index).unwrap_or(u16::MAX),
            direction: context.direction,
            role: context.role.as_ref().to_owned(),
            calls: Vec::new(),
            asked: Vec::new(),
        });
        Tape {
            reel: self.reel.clone(),
            session: recorded.sessions.len() - 1,
        }
    }

    /// Adds `bytes` of text to the present session, by `note`.
    fn note(&self, bytes: usize, note: impl FnOnce(&mut Session)) {
        let Reel::Recording { kept, limit } = &*self.reel else {
            return;
        };
        let mut kept = kept.lock();
        kept.bytes = kept.bytes.saturating_add(bytes);
        if kept.bytes > *limit {
            // Half a tape is of no use.
            kept.full = true;
            kept.recorded = Recorded::default();
        } else if let Some(session) = kept.recorded.sessions.get_mut(self.session) {
            note(session);
        }
    }

    /// Notes a push (`Some`) or a finish.
    pub(crate) fn inspected(&self, chunks: Option<&[&str]>, answer: &Result<Verdict, Failure>) {
        if matches!(*self.reel, Reel::Playing { .. }) {
            return;
        }
        let bytes = chunks.unwrap_or_default().iter().map(|chunk| chunk.len());
        self.note(bytes.sum::<usize>() + CALL, |session| {
            let chunks = chunks.map(|chunks| chunks.iter().map(|&chunk| chunk.to_owned()));
            session.calls.push(Call {
                input: chunks.map_or(Input::Finish, |chunks| Input::Push(chunks.collect())),
                outcome: match answer {
                    Ok(verdict) => Outcome::Verdict(verdict.clone()),
                    Err(failure) => Outcome::Failed(failure.clone()),
                },
            });
        });
    }

    /// Notes a validated batch.
    pub(crate) fn validated(&self, samples: &[Sample], answer: &Result<Vec<Judgement>, Failure>) {
        if matches!(*self.reel, Reel::Playing { .. }) {
            return;
        }
        let bytes = samples.iter().map(|sample| {
            let texts = sample.segments.iter().map(|segment| segment.text.len());
            sample.body.len() + texts.sum::<usize>()
        });
        self.note(bytes.sum::<usize>() + CALL, |session| {
            session.calls.push(Call {
                input: Input::Validate(samples.to_vec()),
                outcome: match answer {
                    Ok(judgements) => Outcome::Judgements(judgements.clone()),
                    Err(failure) => Outcome::Failed(failure.clone()),
                },
            });
        });
    }
}

/// What a call counts beside its text.
const CALL: usize = 64;

/// What a host function is asked, as the tape knows it.
pub(crate) fn question(asked: &impl Serialize) -> [u8; 16] {
    let bytes = postcard::to_allocvec(asked).unwrap_or_default();
    let mut half = [0; 16];
    half.copy_from_slice(&Sha256::digest(bytes)[..16]);
    half
}

/// The answer on a tape that plays; `None` where the host has to be asked.
///
/// # Errors
/// It is not on the tape; the guest traps.
pub(crate) fn played<T: DeserializeOwned>(
    tape: Option<&Tape>,
    function: &'static str,
    asked: &impl Serialize,
) -> wasmtime::Result<Option<Result<T, StageError>>> {
    let Some(Reel::Playing { left }) = tape.map(|tape| &*tape.reel) else {
        return Ok(None);
    };
    let question = question(asked);
    let mut left = left.lock();
    let found = left.asked.iter_mut().find(|slot| {
        slot.as_ref()
            .is_some_and(|asked| asked.function == function && asked.question == question)
    });
    let answer = match found.and_then(Option::take).map(|asked| asked.answer) {
        Some(Ok(bytes)) => postcard::from_bytes(&bytes).ok().map(Ok),
        Some(Err(error)) => Some(Err(error)),
        None => None,
    };
    if answer.is_none() {
        left.missed.get_or_insert_with(|| function.to_owned());
        return Err(Missed(function).into());
    }
    Ok(answer)
}

/// Notes an answer of the host.
pub(crate) fn told<T: Serialize>(
    tape: Option<&Tape>,
    function: &'static str,
    asked: &impl Serialize,
    answer: &Result<T, StageError>,
) {
    let Some(tape) = tape.filter(|tape| matches!(*tape.reel, Reel::Recording { .. })) else {
        return;
    };
    let answer = match answer {
        Ok(value) => Ok(postcard::to_allocvec(value).unwrap_or_default()),
        Err(error) => Err(error.clone()),
    };
    let bytes = answer.as_ref().map_or(0, Vec::len) + CALL;
    tape.note(bytes, |session| {
        session.asked.push(Asked {
            function: function.to_owned(),
            question: question(asked),
            answer,
        });
    });
}

/// What a session gave when it was played.
#[derive(Clone, Debug, PartialEq)]
pub struct Played {
    /// The outcomes of its calls, in order.
    pub outcomes: Vec<Outcome>,
    /// A host function that was asked something that is not on the tape.
    pub missed: Option<String>,
}

/// Plays a session: the same calls, on this stage. `context` is that of the request; the session's
/// direction and role are put in. Under a tokio runtime.
pub async fn play(stage: &Stage, context: &CallContext, session: &Session) -> Played {
    let tape = Tape::playing(session.asked.clone());
    let context = CallContext {
        direction: session.direction,
        role: session.role.as_str().into(),
        tape: Some(tape.clone()),
        ..context.clone()
    };
    let verdict = |answer| match answer {
        Ok(verdict) => Outcome::Verdict(verdict),
        Err(failure) => Outcome::Failed(failure),
    };
    let mut outcomes = Vec::with_capacity(session.calls.len());
    let mut inspection = None;
    for call in &session.calls {
        let outcome = match &call.input {
            Input::Push(chunks) => {
                let chunks: Vec<&str> = chunks.iter().map(String::as_str).collect();
                let inspection = inspection.get_or_insert_with(|| stage.inspection(&context));
                verdict(match stage.is_async() {
                    true => inspection.push_async(&chunks).await,
                    false => inspection.push(&chunks),
                })
            }
            Input::Finish => {
                let inspection = inspection.get_or_insert_with(|| stage.inspection(&context));
                verdict(match stage.is_async() {
                    true => inspection.finish_async().await,
                    false => inspection.finish(),
                })
            }
            Input::Validate(samples) => {
                let answer = match stage.is_async() {
                    true => stage.validate_async(&context, samples).await,
                    false => stage.validate(&context, samples),
                };
                match answer {
                    Ok(judgements) => Outcome::Judgements(judgements),
                    Err(failure) => Outcome::Failed(failure),
                }
            }
        };
        outcomes.push(outcome);
    }
    Played {
        outcomes,
        missed: tape.missed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_once_and_a_new_one_is_missed() {
        let answer = postcard::to_allocvec(&Some(vec![1u8, 2])).unwrap();
        let tape = Tape::playing(vec![Asked {
            function: "state.get".into(),
            question: question(&"key"),
            answer: Ok(answer),
        }]);
        let get = |key: &str| played::<Option<Vec<u8>>>(Some(&tape), "state.get", &key);
        assert_eq!(get("key").unwrap(), Some(Ok(Some(vec![1, 2]))));
        assert!(tape.missed().is_none());
        assert!(get("key").is_err(), "it was asked once");
        assert_eq!(tape.missed().as_deref(), Some("state.get"));
        assert!(tape.take().is_none(), "nothing is recorded on it");
        assert_eq!(
            played::<bool>(None, "state.get", &"key").unwrap(),
            None,
            "without a tape the host is asked"
        );
    }

    #[test]
    fn what_is_more_than_a_tape_takes_is_not_kept_by_half() {
        let tape = Tape::recording(200);
        let stage = TapedStage {
            name: "s".into(),
            identity: "i".into(),
            plugin: "p".into(),
        };
        let session = tape.begin(&stage, &CallContext::default());
        session.inspected(Some(&["abc"]), &Ok(Verdict::default()));
        session.inspected(None, &Ok(Verdict::default()));
        let recorded = tape.take().unwrap();
        assert_eq!(recorded.sessions[0].calls.len(), 2);
        assert_eq!(
            recorded.sessions[0].calls[0].input,
            Input::Push(vec!["abc".into()])
        );
        let session = tape.begin(&stage, &CallContext::default());
        session.inspected(Some(&["x".repeat(300).as_str()]), &Ok(Verdict::default()));
        assert_eq!(tape.take(), None);
    }
}
