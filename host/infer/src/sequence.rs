//! One request inside the engine: its tokens, how far they are computed, and what becomes of the results.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::grammar::Matching;
use crate::model::Model;
use crate::ops::PAGE_TOKENS;
use crate::output::{Found, Output as Text};
use crate::prefix::{Namespace, Pages};
use crate::sampling::{Distribution, Pick, Sampler, best};
use crate::{
    Adapter, Caller, Error, Event, Finish, FinishReason, Priority, Result, Token, TokenScore,
    TopToken, Usage,
};

/// Rewinds that one generation may use to keep a banned string out.
const REWINDS: u32 = 64;

/// What a request is for.
pub(crate) enum Goal {
    /// New tokens.
    Generate(Box<Generating>),
    /// The likelihood of the tokens that are there.
    Score {
        scores: Vec<TokenScore>,
        /// A last token whose likelihood is wanted, but not its keys: it is not among the sequence's tokens.
        last: Option<u32>,
        /// Alternatives wanted with each token.
        top: usize,
        reply: Reply<Vec<TokenScore>>,
    },
    /// The mean of the hidden states.
    Embed {
        sum: Vec<f32>,
        reply: Reply<Vec<f32>>,
    },
}

/// Where an answer in one piece goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// The state of a generation.
pub(crate) struct Generating {
    pub(crate) sampler: Sampler,
    pub(crate) text: Text,
    /// Where the answer is in its grammar.
    pub(crate) grammar: Option<Matching>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    /// Length of `tokens` at which it ends.
    pub(crate) most_tokens: usize,
    /// Alternatives wanted with each token.
    pub(crate) top: usize,
    /// Tokens that may not be picked again at a place, after a rewind to it.
    pub(crate) banned: Vec<(usize, u32)>,
    pub(crate) rewinds: u32,
    pub(crate) first_token: Option<Instant>,
}

/// A request.
pub(crate) struct Sequence {
    pub(crate) goal: Goal,
    pub(crate) terms: Terms,
    /// Order of arrival.
    pub(crate) number: u64,
    /// Prompt, and the answer so far.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt: usize,
    /// Tokens whose keys and values are in the cache.
    pub(crate) computed: usize,
    /// Tokens whose results were used: a recomputation after a preemption does not use them again.
    pub(crate) used: usize,
    /// KV pages.
    pub(crate) table: Vec<u32>,
    /// Pages at the beginning of the table that are in the tree of prefixes: not to be written to.
    pub(crate) shared: usize,
    /// Prompt tokens that did not have to be computed.
    pub(crate) cached: usize,
    /// Prompt tokens that the tenant was charged for.
    pub(crate) charged: Option<usize>,
    /// Its rows in the step that is being planned.
    pub(crate) planned: usize,
    pub(crate) arrived: Instant,
    pub(crate) started: Option<Instant>,
}

/// On what terms a request is computed.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) priority: Priority,
    pub(crate) tenant: Arc<str>,
    pub(crate) namespace: Namespace,
    /// Keeps the adapter loaded as long as the request.
    pub(crate) adapter: Option<Arc<Adapter>>,
    pub(crate) deadline: Option<Instant>,
    /// Whether the pages that it fills are kept for others: off for a text that nobody will ask for again.
    pub(crate) keeps: bool,
}

impl Terms {
    /// Of a request for the model itself, or for an adapter.
    pub(crate) fn new(caller: Caller, adapter: Option<Arc<Adapter>>) -> Self {
        Self {
            priority: caller.priority,
            tenant: caller.tenant,
            namespace: Namespace {
                salt: caller.cache_salt,
                adapter: u64::from(adapter.as_ref().map_or(0, |adapter| adapter.id())),
            },
            adapter,
            deadline: caller.deadline,
            keeps: true,
        }
    }
}

impl Sequence {
    /// The number of its adapter; 0 is the model itself.
    pub(crate) fn adapter(&self) -> u32 {
        self.terms
            .adapter
            .as_ref()
            .map_or(0, |adapter| adapter.id())
    }

    /// Whether whoever asked has gone.
    pub(crate) fn abandoned(&self) -> bool {
        match &self.goal {
            Goal::Generate(generating) => generating.events.is_closed(),
            Goal::Score { reply, .. } => reply.is_closed(),
            Goal::Embed { reply, .. } => reply.is_closed(),
        }
    }

    /// Whether it is for a text that does not exist yet.
    pub(crate) fn generates(&self) -> bool {
        matches!(self.goal, Goal::Generate(_))
    }

    /// Tokens of it that need no results of their own, so that their keys and values are all that is wanted.
    pub(crate) fn reusable(&self) -> usize {
        let last = self.tokens.len().saturating_sub(1);
        if self.generates() {
            last
        } else {
            last.min(self.used)
        }
    }

    /// Brings the table up to date: after a rewind, pages that hold tokens which are gone leave it (what is left of
    /// the last one's tokens is computed again, into a page of its own); and pages that the tree has by now come in.
    pub(crate) fn settle(&mut self, pages: &mut Pages) {
        if self.computed < self.shared * PAGE_TOKENS {
            self.shared = self.computed / PAGE_TOKENS;
            self.computed = self.shared * PAGE_TOKENS;
            pages.release(&mut self.table, self.shared);
        }
        if self.table.len() == self.shared && self.computed == self.shared * PAGE_TOKENS {
            let wanted = &self.tokens[..self.reusable()];
            self.shared += pages.extend(self.terms.namespace, &mut self.table, wanted);
            self.computed = self.shared * PAGE_TOKENS;
        }
    }

    /// Notes that a step computed the planned rows, and shares the pages that are full now.
    pub(crate) fn advance(&mut self, pages: &mut Pages) {
        self.computed += std::mem::take(&mut self.planned);
        while self.terms.keeps && (self.shared + 1) * PAGE_TOKENS <= self.computed {
            let namespace = self.terms.namespace;
            pages.share(namespace, &mut self.table, &self.tokens, self.shared);
            self.shared += 1;
        }
    }

    /// Gives all its pages back; what the tree does not keep is computed again.
    pub(crate) fn set_back(&mut self, pages: &mut Pages) {
        pages.release(&mut self.table, 0);
        (self.computed, self.shared, self.planned) = (0, 0, 0);
    }

    /// Tokens of the answer so far; `None` before it was begun.
    pub(crate) fn generated(&self) -> Option<u32> {
        self.started
            .map(|_| (self.tokens.len() - self.prompt) as u32)
    }

    /// Ends it with an error.
    pub(crate) fn fail(self, error: Error) {
        // A receiver that has gone does not mind.
        match self.goal {
            Goal::Generate(generating) => drop(generating.events.send(Event::Failed(error))),
            Goal::Score { reply, .. } => drop(reply.send(Err(error))),
            Goal::Embed { reply, .. } => drop(reply.send(Err(error))),
        }
    }

    /// Ends it because the engine stops.
    pub(crate) fn cancel(mut self) {
        match &self.goal {
            Goal::Generate(_) => self.finish(FinishReason::Cancelled, None, None),
            _ => self.fail(Error::Stopped),
        }
    }

    /// Called when its first rows are to be computed.
    pub(crate) fn start(&mut self) {
        self.started = Some(Instant::now());
        self.cached = self.computed.min(self.prompt);
        if let Goal::Generate(generating) = &self.goal {
            let event = Event::Started {
                prompt_tokens: self.prompt as u32,
                cached_tokens: self.cached as u32,
            };
            let _ = generating.events.send(event);
        }
    }

    /// Uses the logits after the token at `position`; their distribution may be known. True at the end.
    pub(crate) fn use_logits(
        &mut self,
        position: usize,
        logits: &mut [f32],
        known: Option<Distribution>,
        model: &Model,
    ) -> Result<bool> {
        self.used = position + 1;
        let distribution = known.map_or_else(|| Distribution::of(logits), Ok)?;
        match &mut self.goal {
            Goal::Generate(_) => self.next_token(logits, distribution, model),
            Goal::Score {
                scores, top, last, ..
            } => {
                if let Some(id) = self.tokens.get(position + 1).or(last.as_ref()) {
                    let logprob = Some(distribution.logprob(logits[*id as usize]));
                    scores.push(TokenScore {
                        id: *id,
                        text: text_of(model, *id),
                        logprob,
                        entropy: distribution.entropy,
                        top: best(logits, *top)
                            .into_iter()
                            .map(|(id, logit)| TopToken {
                                id,
                                text: text_of(model, id),
                                logprob: distribution.logprob(logit),
                            })
                            .collect(),
                    });
                }
                Ok(position + 1 == self.tokens.len())
            }
            Goal::Embed { .. } => Ok(false),
        }
    }

    /// Adds the hidden state of the token at `position`. True at the end.
    pub(crate) fn use_hidden(&mut self, position: usize, hidden: &[f32]) -> bool {
        self.used = position + 1;
        if let Goal::Embed { sum, .. } = &mut self.goal {
            sum.resize(hidden.len(), 0.0);
            sum.iter_mut().zip(hidden).for_each(|(sum, x)| *sum += x);
        }
        self.used == self.tokens.len()
    }

    /// Hands in the result of a score or an embedding.
    pub(crate) fn reply(self) {
        match self.goal {
            Goal::Generate(_) => {}
            Goal::Score { scores, reply, .. } => drop(reply.send(Ok(scores))),
            Goal::Embed { mut sum, reply } => {
                // The length of the mean is that of the sum: one division makes it 1.
                let length = sum
                    .iter()
                    .map(|x| f64::from(*x) * f64::from(*x))
                    .sum::<f64>()
                    .sqrt();
                if length > 0.0 {
                    sum.iter_mut()
                        .for_each(|x| *x = (f64::from(*x) / length) as f32);
                }
                let _ = reply.send(Ok(sum));
            }
        }
    }

    /// Picks the next token and sends what may leave. True at the end.
    fn next_token(
        &mut self,
        logits: &mut [f32],
        distribution: Distribution,
        model: &Model,
    ) -> Result<bool> {
        let Goal::Generate(generating) = &mut self.goal else {
            return Ok(false);
        };
        let tokenizer = model.tokenizer();
        let place = self.tokens.len();
        let banned: Vec<u32> = generating
            .banned
            .iter()
            .filter(|(at, _)| *at == place)
            .map(|(_, id)| *id)
            .collect();
        let Pick {
            id,
            logprob,
            entropy,
            top,
        } = match &mut generating.grammar {
            None => generating
                .sampler
                .pick_from(distribution, logits, &banned, generating.top)?,
            Some(grammar) => {
                let ends = |id| tokenizer.is_end(id);
                generating.sampler.pick_of(
                    distribution,
                    logits,
                    &banned,
                    generating.top,
                    grammar,
                    &ends,
                )?
            }
        };
        generating.first_token.get_or_insert_with(Instant::now);
        self.tokens.push(id);
        if tokenizer.is_end(id) {
            self.finish(FinishReason::Stop, None, None);
            return Ok(true);
        }
        generating.sampler.note(id);
        let mut complete = false;
        if let Some(grammar) = &mut generating.grammar {
            grammar.take(id)?;
            complete = grammar.complete();
        }
        let bytes = if tokenizer.is_control(id) {
            &[]
        } else {
            tokenizer.token_bytes(id)
        };
        let top = top
            .into_iter()
            .map(|(id, logprob)| TopToken {
                id,
                text: text_of(model, id),
                logprob,
            })
            .collect();
        match generating.text.push(
            Token {
                id,
                text: String::new(),
                logprob,
                top,
                entropy,
            },
            bytes,
        ) {
            Found::Nothing => {}
            Found::Stop { at, text } => {
                self.finish(FinishReason::Stop, Some(at), Some(text));
                return Ok(true);
            }
            Found::Banned { token } => {
                generating.rewinds += 1;
                if generating.rewinds > REWINDS {
                    return Err(Error::BanExhausted(REWINDS));
                }
                generating.text.rewind(token);
                let place = self.prompt + token;
                for id in &self.tokens[place..] {
                    generating.sampler.forget(*id);
                }
                if let Some(grammar) = &mut generating.grammar {
                    grammar.take_back(self.tokens.len() - place)?;
                }
                // Bans further on were made after tokens that are gone now.
                generating.banned.retain(|(at, _)| *at <= place);
                generating.banned.push((place, self.tokens[place]));
                self.tokens.truncate(place);
                // The last token that stays is computed again, for its logits.
                self.computed = self.computed.min(place - 1);
                self.used = self.used.min(place - 1);
                return Ok(false);
            }
        }
        while let Some(token) = generating.text.next() {
            let _ = generating.events.send(Event::Token(token));
        }
        if complete {
            // Nothing but the end could follow: it is not worth a step.
            self.finish(FinishReason::Stop, None, None);
            return Ok(true);
        }
        if self.tokens.len() >= generating.most_tokens {
            self.finish(FinishReason::Length, None, None);
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends what is held, up to the byte `cut`, and the end.
    fn finish(&mut self, reason: FinishReason, cut: Option<usize>, stop_text: Option<String>) {
        let Goal::Generate(generating) = &mut self.goal else {
            return;
        };
        let cut = cut.unwrap_or(generating.text.len());
        while let Some(token) = generating.text.next_at_end(cut) {
            let _ = generating.events.send(Event::Token(token));
        }
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first = generating.first_token.unwrap_or(now);
        let _ = generating.events.send(Event::Finished(Finish {
            reason,
            usage: Usage {
                prompt_tokens: self.prompt as u32,
                cached_tokens: self.cached as u32,
                completion_tokens: (self.tokens.len() - self.prompt) as u32,
            },
            queue_time: started - self.arrived,
            prefill_time: first.saturating_duration_since(started),
            decode_time: if generating.first_token.is_some() {
                now - first
            } else {
                Duration::ZERO
            },
            stop_text,
        }));
    }
}

/// A token's own text.
pub(crate) fn text_of(model: &Model, id: u32) -> String {
    String::from_utf8_lossy(model.tokenizer().token_bytes(id)).into_owned()
}
