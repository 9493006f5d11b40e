//! A local model's answer on its way out: tokens through the output stages, choice by choice, and
//! back to the model where a stage makes it say something again.

use std::{collections::VecDeque, pin::Pin, sync::Arc, task::Poll};

use futures::{Stream as _, stream::BoxStream};
use millgate_infer::{self as infer, Token};

use crate::{
    chain::{Chain, Flow, Released},
    error::ApiError,
    flight::Flight,
    local::{self, LocalRequest},
    model::LanguageModel,
    response::{Choice, Completion, Delta, Event, FinishReason, TokenLogprob, Usage},
    tokens::TokenHold,
    trace::Finish,
};

/// How often one choice may be told to say something again before it is refused.
const MAX_REGENERATIONS: u32 = 4;

/// A local model's answer.
pub(crate) struct LocalAnswer {
    pub flight: Flight,
    model: Arc<dyn LanguageModel>,
    asked: LocalRequest,
    include_usage: bool,
    choices: Vec<LocalChoice>,
    pending: VecDeque<Event>,
    usage: Usage,
    entropy: (f64, u32),
    ended: bool,
}

/// One of `n` answers.
struct LocalChoice {
    /// `None`: finished.
    events: Option<BoxStream<'static, infer::Event>>,
    request: infer::GenerateRequest,
    chain: Option<Chain>,
    hold: TokenHold,
    /// What the model said.
    source: String,
    /// What has left.
    left: String,
    /// Bytes that a restarted chain still has to say again before anything new leaves.
    said_again: usize,
    /// Tokens sampled so far, taken-back ones included.
    tokens: u32,
    /// Of those, the ones before the present attempt.
    tokens_before: u32,
    regenerations: u32,
    finish: FinishReason,
}

impl LocalAnswer {
    pub(crate) fn new(
        flight: Flight,
        model: Arc<dyn LanguageModel>,
        asked: LocalRequest,
        include_usage: bool,
    ) -> Self {
        Self {
            flight,
            model,
            asked,
            include_usage,
            choices: Vec::new(),
            pending: VecDeque::new(),
            usage: Usage::default(),
            entropy: (0.0, 0),
            ended: false,
        }
    }

    /// Begins all choices.
    pub(crate) fn start(&mut self, n: u32) -> infer::Result<()> {
        for index in 0..n {
            let request = self.asked.choice(index);
            let events = self.model.generate(request.clone())?;
            let stages = self.flight.pipeline.output.iter().enumerate();
            let chain = (!self.flight.pipeline.output.is_empty()).then(|| {
                let placed: Vec<_> = stages
                    .map(|(index, stage)| (self.flight.output_record(index), stage.clone()))
                    .collect();
                Chain::new(placed, &self.flight.context)
            });
            self.choices.push(LocalChoice {
                events: Some(events),
                request,
                chain,
                hold: TokenHold::default(),
                source: String::new(),
                left: String::new(),
                said_again: 0,
                tokens: 0,
                tokens_before: 0,
                regenerations: 0,
                finish: FinishReason::Stop,
            });
            // The prompt was checked on its way in.
            if let Some(text) = &self.asked.echo {
                self.pending.push_back(Event::Delta(Delta {
                    choice: index,
                    text: text.clone(),
                    logprobs: None,
                }));
            }
        }
        Ok(())
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            if self.choices.iter().all(|choice| choice.events.is_none()) {
                self.complete().await;
                continue;
            }
            let (index, event) = self.any_event().await;
            match event {
                Some(infer::Event::Started {
                    prompt_tokens,
                    cached_tokens,
                }) => {
                    if self.usage.prompt_tokens == 0 {
                        self.usage.prompt_tokens = prompt_tokens;
                        self.usage.cached_tokens = cached_tokens;
                    }
                }
                Some(infer::Event::Token(token)) => self.token(index, token).await,
                Some(infer::Event::Finished(finish)) => self.finished(index, &finish).await,
                Some(infer::Event::Failed(error)) => {
                    self.stop(index, Finish::Error, local::api_error(&error))
                        .await
                }
                None => {
                    let error =
                        ApiError::unavailable("the model stopped in the middle of the answer");
                    self.stop(index, Finish::Error, error).await;
                }
            }
        }
    }

    /// Whichever choice has something first.
    async fn any_event(&mut self) -> (usize, Option<infer::Event>) {
        let choices = &mut self.choices;
        std::future::poll_fn(move |context| {
            for (index, choice) in choices.iter_mut().enumerate() {
                if let Some(events) = &mut choice.events
                    && let Poll::Ready(event) = Pin::new(events).poll_next(context)
                {
                    return Poll::Ready((index, event));
                }
            }
            Poll::Pending
        })
        .await
    }

    async fn token(&mut self, index: usize, token: Token) {
        self.flight.first_token();
        self.entropy.0 += f64::from(token.entropy);
        self.entropy.1 += 1;
        let logprobs = self.asked.logprobs;
        let Some(choice) = self.choices.get_mut(index) else {
            return;
        };
        choice.tokens += 1;
        let start = choice.source.len() as u64;
        choice.source.push_str(&token.text);
        if logprobs {
            let top = token
                .top
                .into_iter()
                .map(|top| (top.text, top.logprob))
                .collect();
            let end = choice.source.len() as u64;
            choice.hold.push(
                start..end,
                TokenLogprob {
                    text: token.text.clone(),
                    logprob: token.logprob,
                    top,
                },
            );
        }
        let mut out = Released::default();
        let flow = match &mut choice.chain {
            Some(chain) => chain.push(&token.text, start, &mut out).await,
            None => {
                out.source.push(start..start + token.text.len() as u64);
                out.text = token.text;
                Flow::Go
            }
        };
        self.release(index, out);
        self.follow(index, flow).await;
    }

    async fn finished(&mut self, index: usize, finish: &infer::Finish) {
        let Some(choice) = self.choices.get_mut(index) else {
            return;
        };
        if index == 0 && choice.regenerations == 0 {
            self.flight.trace.timings.queue =
                u64::try_from(finish.queue_time.as_micros()).unwrap_or(u64::MAX);
        }
        // Tokens without an event of their own (the end of the turn, a stop string) count as well.
        choice.tokens = choice
            .tokens
            .max(choice.tokens_before + finish.usage.completion_tokens);
        choice.finish = match finish.reason {
            infer::FinishReason::Stop => FinishReason::Stop,
            infer::FinishReason::Length => FinishReason::Length,
            infer::FinishReason::Cancelled => {
                let error = ApiError::unavailable("the server is stopping");
                return self.stop(index, Finish::Error, error).await;
            }
        };
        let mut out = Released::default();
        let flow = match &mut choice.chain {
            Some(chain) => chain.finish(&mut out).await,
            None => Flow::Go,
        };
        self.release(index, out);
        if matches!(flow, Flow::Go) {
            if let Some(choice) = self.choices.get_mut(index) {
                choice.events = None;
                self.pending.push_back(Event::Finished {
                    choice: index as u32,
                    reason: choice.finish,
                });
            }
        } else {
            self.follow(index, flow).await;
        }
    }

    /// Hands out what may leave.
    fn release(&mut self, index: usize, out: Released) {
        let Some(choice) = self.choices.get_mut(index) else {
            return;
        };
        let tokens = choice.hold.release(&out.source);
        let mut text = out.text;
        if choice.said_again > 0 {
            let again = choice.said_again.min(text.len());
            text.drain(..again);
            choice.said_again -= again;
        }
        if text.is_empty() && tokens.is_empty() {
            return;
        }
        choice.left.push_str(&text);
        let choice = index as u32;
        self.flight.leaves(choice, &text);
        let logprobs = self.asked.logprobs.then_some(tokens);
        self.pending.push_back(Event::Delta(Delta {
            choice,
            text,
            logprobs,
        }));
    }

    async fn follow(&mut self, index: usize, flow: Flow) {
        match flow {
            Flow::Go => {}
            Flow::Stop(error) => self.stop(index, Finish::Blocked, error).await,
            Flow::Again { keep, ban, reason } => {
                let refused = ApiError::blocked(&reason.code, &reason.message);
                if let Err(error) = self.say_again(index, keep, ban, refused).await {
                    self.stop(index, Finish::Blocked, error).await;
                }
            }
        }
    }

    /// Takes the text back to `keep` and samples again from there, under a ban.
    async fn say_again(
        &mut self,
        index: usize,
        keep: u64,
        ban: Vec<String>,
        refused: ApiError,
    ) -> Result<(), ApiError> {
        let Some(choice) = self.choices.get_mut(index) else {
            return Err(refused);
        };
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        choice.regenerations += 1;
        if choice.regenerations > MAX_REGENERATIONS || !choice.source.is_char_boundary(keep) {
            return Err(refused);
        }
        choice.events = None; // stops the model
        choice.source.truncate(keep);
        choice.hold.rewind(keep as u64);

        // The stages forget what was taken back: they get the kept text again from its beginning.
        // What they let out of it has left already, and must be the same.
        let Some(chain) = &mut choice.chain else {
            return Err(refused);
        };
        chain.restart(&self.flight.context);
        let mut out = Released::default();
        let flow = chain.push(&choice.source, 0, &mut out).await;
        let same = out.text.len().min(choice.left.len());
        if !matches!(flow, Flow::Go) || out.text.get(..same) != choice.left.get(..same) {
            return Err(refused);
        }
        choice.said_again = choice.left.len();

        choice.request.continuation.clone_from(&choice.source);
        choice.request.ban.extend(ban);
        if let Some(most) = self.asked.generate.max_tokens {
            let rest = most.saturating_sub(choice.tokens);
            if rest == 0 {
                return Err(refused);
            }
            choice.request.max_tokens = Some(rest);
        }
        choice.tokens_before = choice.tokens;
        let events = self
            .model
            .generate(choice.request.clone())
            .map_err(|error| local::api_error(&error))?;
        choice.events = Some(events);
        self.release(index, out);
        Ok(())
    }

    /// Every choice is complete.
    async fn complete(&mut self) {
        self.ended = true;
        let length = self
            .choices
            .iter()
            .any(|choice| choice.finish == FinishReason::Length);
        let finish = if length { Finish::Length } else { Finish::Stop };
        self.account();
        match self.flight.end(finish, None).await {
            Ok(()) if self.include_usage => self.pending.push_back(Event::Usage(self.usage)),
            Ok(()) => {}
            Err(error) => self
                .pending
                .push_back(Event::Error(error.with_trace(self.flight.trace.id))),
        }
        self.pending.push_back(Event::Done);
    }

    /// The answer ends here, for all choices.
    async fn stop(&mut self, index: usize, finish: Finish, error: ApiError) {
        self.ended = true;
        for choice in &mut self.choices {
            choice.events = None;
        }
        self.account();
        let error = self.flight.fail(finish, error).await;
        let blocked = finish == Finish::Blocked;
        self.pending.push_back(match blocked {
            true => Event::Blocked {
                choice: index as u32,
                error,
            },
            false => Event::Error(error),
        });
        self.pending.push_back(Event::Done);
    }

    /// Puts what happened into the trace.
    fn account(&mut self) {
        for choice in &mut self.choices {
            if let Some(chain) = &mut choice.chain {
                chain.record(&mut self.flight.trace.stages);
            }
        }
        self.usage.completion_tokens = self.choices.iter().map(|choice| choice.tokens).sum();
        self.flight.set_usage(self.usage);
        if self.entropy.1 > 0 {
            self.flight.trace.entropy = Some(self.entropy.0 / f64::from(self.entropy.1));
        }
    }

    /// The whole answer at once.
    ///
    /// # Errors
    /// The answer was refused or broke off.
    pub(crate) async fn whole(mut self) -> Result<Completion, ApiError> {
        let mut choices: Vec<Choice> = (0..self.choices.len() as u32)
            .map(|index| Choice {
                index,
                text: String::new(),
                logprobs: self.asked.logprobs.then(Vec::new),
                finish: FinishReason::Stop,
            })
            .collect();
        while let Some(event) = self.next().await {
            match event {
                Event::Delta(delta) => {
                    if let Some(choice) = choices.get_mut(delta.choice as usize) {
                        choice.text.push_str(&delta.text);
                        if let (Some(all), Some(more)) = (&mut choice.logprobs, delta.logprobs) {
                            all.extend(more);
                        }
                    }
                }
                Event::Finished { choice, reason } => {
                    if let Some(choice) = choices.get_mut(choice as usize) {
                        choice.finish = reason;
                    }
                }
                Event::Blocked { error, .. } | Event::Error(error) => return Err(error),
                Event::Usage(_) | Event::Raw(_) | Event::Done => {}
            }
        }
        Ok(Completion {
            choices,
            usage: self.usage,
        })
    }
}

impl Drop for LocalAnswer {
    /// The client went away: the trace that the flight writes now says what was done so far.
    fn drop(&mut self) {
        if !self.ended {
            for choice in &mut self.choices {
                choice.events = None;
            }
            self.account();
        }
    }
}
