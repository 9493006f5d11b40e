//! Why an answer: how likely each of its tokens was and what else could have stood there, and which parts of the
//! prompt a token hangs on.
//!
//! The second is found by leaving out: for each unit of the prompt the answer is scored once more behind the prompt
//! without that unit's tokens. What a token's log-probability loses is what the unit gave it. The variants are
//! requests like all others, of low priority, a few at a time so that steps hold several of them; each shares the
//! KV pages of what stands before its gap, and leaves none behind.

use std::collections::VecDeque;

use crate::engine::{answer, check_top};
use crate::sequence::Terms;
use crate::units::{Parted, PromptUnit, Unit};
use crate::{
    Engine, Error, Event, GenerateRequest, Priority, Result, Sampling, TokenScore, TopToken,
};

/// Most units that are left out, each in a variant of its own.
const MOST_UNITS: usize = 256;
/// Most tokens of an answer that are attributed at once, and the longest answer that is generated for it.
const MOST_TARGETS: usize = 64;

/// What is to be explained.
#[derive(Debug, Clone)]
pub struct ExplainRequest {
    /// The prompt, and on whose terms it is computed. Without an `answer`, what the model says to it is explained: of
    /// the likeliest tokens, and at most [`ExplainRequest::MOST_TARGETS`] of them. Its priority is taken as low.
    pub request: GenerateRequest,
    /// The answer. Its tokens are found anew: a text may be written by others than the model wrote it by.
    pub answer: Option<String>,
    /// Tokens of the answer to attribute, by their places; none attributes all, at most
    /// [`ExplainRequest::MOST_TARGETS`] from the first on.
    pub targets: Vec<usize>,
    /// What is left out at a time.
    pub unit: Unit,
    /// Alternatives wanted for each token of the answer, at most 20.
    pub top: u8,
}

/// An answer explained.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// The units of the prompt, in order.
    pub units: Vec<PromptUnit>,
    /// The answer's tokens.
    pub tokens: Vec<ExplainedToken>,
    /// What each of the wanted tokens hangs on.
    pub attributions: Vec<Attribution>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainedToken {
    /// Its id.
    pub id: u32,
    /// Its bytes as text; incomplete characters are U+FFFD.
    pub text: String,
    /// Its natural-log probability.
    pub logprob: f32,
    /// Entropy of the model's distribution at its place, in nats.
    pub entropy: f32,
    /// How much likelier the likeliest token there is than the second: the difference of their log-probabilities.
    pub margin: f32,
    /// The likeliest tokens there, best first; as many as asked for.
    pub top: Vec<TopToken>,
}

/// What a token of an answer hangs on.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribution {
    /// The token's place in the answer.
    pub token: usize,
    /// For each unit of the prompt: the token's log-probability with it, less that without it. Above 0 the unit made the
    /// token likelier. They add up to nothing in particular.
    pub scores: Vec<f32>,
}

impl ExplainRequest {
    /// Most tokens of an answer that are attributed at once.
    pub const MOST_TARGETS: usize = MOST_TARGETS;
    /// Most units of a prompt.
    pub const MOST_UNITS: usize = MOST_UNITS;

    /// Explains what the model says to a prompt, by its words.
    pub fn new(request: GenerateRequest) -> Self {
        Self {
            request,
            answer: None,
            targets: Vec::new(),
            unit: Unit::default(),
            top: 5,
        }
    }
}

impl Engine {
    /// Explains an answer. Dropping the future stops the work.
    ///
    /// # Errors
    /// As [`Engine::generate`]; and [`Error::Invalid`] where the prompt has too many units or none, the answer is empty,
    /// or a target is beyond it.
    pub async fn explain(&self, asked: ExplainRequest) -> Result<Explanation> {
        check_top(asked.top)?;
        self.check_request(&asked.request)?;
        if asked.targets.len() > MOST_TARGETS {
            return Err(Error::Invalid(format!(
                "{} targets are too many: at most {MOST_TARGETS} tokens are attributed at once",
                asked.targets.len()
            )));
        }
        let Parted { tokens, units } = Parted::of(self, &asked.request.prompt, asked.unit)?;
        check_units(&units, tokens.len(), asked.unit)?;
        let caller = crate::Caller {
            priority: Priority::Low,
            ..asked.request.caller()
        };
        let adapter = asked.request.adapter.clone();
        let terms = Terms::new(caller, adapter);

        let (all, from) = self.with_answer(&asked, tokens).await?;
        let prompt_tokens = from;
        let count = all.len() - from;
        let targets = match asked.targets.as_slice() {
            [] => (0..count.min(MOST_TARGETS)).collect(),
            targets => targets.to_vec(),
        };
        if let Some(beyond) = targets.iter().find(|target| **target >= count) {
            return Err(Error::Invalid(format!(
                "there is no token {beyond}: the answer has {count}, from 0 to {}",
                count - 1
            )));
        }

        // First, so that its pages are there for the variants.
        let top = usize::from(asked.top);
        let full = self.begin_score(all.clone(), from, top.max(2), terms.clone())?;
        let full = answer(full).await?;
        let last = targets.iter().max().map_or(0, |last| last + 1);
        let mut attributions: Vec<Attribution> = targets
            .into_iter()
            .map(|token| Attribution {
                token,
                scores: Vec::with_capacity(units.len()),
            })
            .collect();
        let terms = Terms {
            keeps: false,
            ..terms
        };
        let mut note = |scores: Vec<TokenScore>| {
            for attribution in &mut attributions {
                let at = |scores: &[TokenScore]| {
                    scores
                        .get(attribution.token)
                        .and_then(|score| score.logprob)
                };
                let both = at(&full).zip(at(&scores));
                let score = both.map_or(0.0, |(with, without)| with - without);
                attribution.scores.push(score);
            }
        };
        // Half of the engine at most: who comes meanwhile finds a place.
        let at_once = (self.max_sequences() / 2).max(1);
        let mut waiting = VecDeque::with_capacity(at_once);
        for unit in &units {
            if waiting.len() >= at_once
                && let Some(first) = waiting.pop_front()
            {
                note(answer(first).await?);
            }
            let mut variant = Vec::with_capacity(all.len());
            variant.extend_from_slice(&all[..unit.tokens.start]);
            variant.extend_from_slice(&all[unit.tokens.end..from + last]);
            let from = from - unit.tokens.len();
            waiting.push_back(self.begin_score(variant, from, 0, terms.clone())?);
        }
        for variant in waiting {
            note(answer(variant).await?);
        }
        Ok(Explanation {
            units,
            tokens: full
                .into_iter()
                .map(|score| explained(score, top))
                .collect(),
            attributions,
            prompt_tokens,
        })
    }

    /// The prompt with its answer behind it, and where that begins.
    async fn with_answer(
        &self,
        asked: &ExplainRequest,
        mut tokens: Vec<u32>,
    ) -> Result<(Vec<u32>, usize)> {
        let tokenizer = self.model().tokenizer();
        self.check_length(asked.request.continuation.len())?;
        tokens.extend(tokenizer.encode_rest(&asked.request.continuation));
        let from = tokens.len();
        self.room(&tokens)?;
        match &asked.answer {
            Some(text) => {
                self.check_length(text.len())?;
                tokens.extend(tokenizer.encode_rest(text));
            }
            None => {
                let most = asked.request.max_tokens.unwrap_or(MOST_TARGETS as u32);
                let mut generation = self.generate(GenerateRequest {
                    max_tokens: Some(most.min(MOST_TARGETS as u32)),
                    sampling: Sampling {
                        temperature: 0.0,
                        ..asked.request.sampling.clone()
                    },
                    logprobs: None,
                    priority: Priority::Low,
                    ..asked.request.clone()
                })?;
                while let Some(event) = generation.next().await {
                    match event {
                        Event::Token(token) => tokens.push(token.id),
                        Event::Failed(error) => return Err(error),
                        Event::Started { .. } | Event::Finished(_) => {}
                    }
                }
            }
        }
        if tokens.len() == from {
            let whose = match asked.answer {
                Some(_) => "the answer",
                None => "what the model says to this prompt",
            };
            return Err(Error::Invalid(format!(
                "{whose} is empty: there is nothing to explain"
            )));
        }
        Ok((tokens, from))
    }
}

fn check_units(units: &[PromptUnit], tokens: usize, unit: Unit) -> Result<()> {
    if units.is_empty() {
        return Err(Error::Invalid("the prompt is empty".into()));
    }
    if units.len() > MOST_UNITS {
        let (what, instead) = match unit {
            Unit::Token => (
                "tokens",
                "choose a coarser unit: `unit` = \"word\" or \"sentence\"",
            ),
            Unit::Word => ("words", "choose a coarser unit: `unit` = \"sentence\""),
            Unit::Sentence => ("sentences", "shorten the prompt"),
        };
        return Err(Error::Invalid(format!(
            "the prompt has {} {what}, and each costs a computation; at most {MOST_UNITS} are left out in turn: {instead}",
            units.len()
        )));
    }
    if units.iter().any(|unit| unit.tokens.len() == tokens) {
        return Err(Error::Invalid(
            "the prompt is one unit, and nothing is left without it; choose a finer `unit`, or a longer prompt"
                .into(),
        ));
    }
    Ok(())
}

fn explained(score: TokenScore, top: usize) -> ExplainedToken {
    let mut best = score.top;
    let margin = match best.as_slice() {
        [first, second, ..] => first.logprob - second.logprob,
        _ => f32::INFINITY,
    };
    best.truncate(top);
    ExplainedToken {
        id: score.id,
        text: score.text,
        logprob: score.logprob.unwrap_or_default(),
        entropy: score.entropy,
        margin,
        top: best,
    }
}
