//! A local model's answer on its way out: tokens through the output stages, choice by choice, and
//! back to the model where a stage makes it say something again.

use std::{collections::VecDeque, pin::Pin, sync::Arc, task::Poll};

use futures::{Stream as _, stream::BoxStream};
use millgate_infer::{self as infer, Token};

use crate::{
    answer::Channel,
    chain::Flow,
    error::ApiError,
    flight::Flight,
    local::{self, LocalRequest},
    model::LanguageModel,
    outlet::{Out, Outlet},
    response::{
        Choice, Completion, Delta, Event, FinishReason, TokenLogprob, ToolCall, ToolCallStart,
        Usage,
    },
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
    outlet: Outlet,
    hold: TokenHold,
    /// What the model said.
    source: String,
    /// What has left, calls of tools included: in the order that it left in.
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
    pub(crate) async fn start(&mut self, n: u32) -> infer::Result<()> {
        let echo = self.echo().await?;
        for index in 0..n {
            let request = self.asked.choice(index);
            let events = match self.asked.only_echo {
                true => local::nothing(self.usage.prompt_tokens),
                // A grammar takes time to compile: not on a thread that serves others.
                false if request.grammar.is_some() => {
                    let (model, request) = (self.model.clone(), request.clone());
                    let begun = tokio::task::spawn_blocking(move || model.generate(request)).await;
                    begun.map_err(|_| infer::Error::Stopped)??
                }
                false => self.model.generate(request.clone())?,
            };
            let placed = self.flight.placed_output();
            if let Some(recorder) = self.flight.recorder() {
                recorder.form(self.asked.form);
            }
            self.choices.push(LocalChoice {
                events: Some(events),
                request,
                outlet: Outlet::new(self.asked.form, placed, &self.flight.context),
                hold: TokenHold::default(),
                source: String::new(),
                left: String::new(),
                said_again: 0,
                tokens: 0,
                tokens_before: 0,
                regenerations: 0,
                finish: FinishReason::Stop,
            });
            if let Some((text, logprobs)) = &echo {
                self.pending.push_back(Event::Delta(Delta {
                    choice: index,
                    text: text.clone(),
                    logprobs: logprobs.clone(),
                }));
            }
        }
        Ok(())
    }

    /// The prompt as it goes out before the answer, with the likelihood of its tokens where that was asked
    /// for. It was checked on its way in.
    async fn echo(&mut self) -> infer::Result<Option<(String, Option<Vec<TokenLogprob>>)>> {
        let Some(text) = self.asked.echo.clone() else {
            return Ok(None);
        };
        if !self.asked.logprobs && !self.asked.only_echo {
            return Ok(Some((text, None)));
        }
        let top = self.asked.generate.logprobs.unwrap_or(0);
        let caller = self.asked.generate.caller();
        let scores = self.model.score(text.clone(), top, caller).await?;
        if self.asked.only_echo {
            self.usage.prompt_tokens = u32::try_from(scores.len()).unwrap_or(u32::MAX);
        }
        let tokens = scores.into_iter().map(|score| TokenLogprob {
            text: score.text,
            logprob: score.logprob,
            top: tops(score.top),
        });
        Ok(Some((text, self.asked.logprobs.then(|| tokens.collect()))))
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
            let end = choice.source.len() as u64;
            choice.hold.push(
                start..end,
                TokenLogprob {
                    text: token.text.clone(),
                    logprob: Some(token.logprob),
                    top: tops(token.top),
                },
            );
        }
        if let Some(recorder) = self.flight.recorder() {
            recorder.heard(index as u32, Channel::Content, &token.text);
        }
        let mut out = Vec::new();
        let flow = choice.outlet.push(&token.text, &mut out).await;
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
        if let Some(recorder) = self.flight.recorder() {
            recorder.ended(index as u32);
        }
        let mut out = Vec::new();
        let flow = choice.outlet.finish(&mut out).await;
        self.release(index, out);
        if matches!(flow, Flow::Go) {
            if let Some(choice) = self.choices.get_mut(index) {
                choice.events = None;
                if choice.finish == FinishReason::Stop && choice.outlet.called() {
                    choice.finish = FinishReason::ToolCalls;
                }
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
    fn release(&mut self, index: usize, outs: Vec<Out>) {
        let Some(choice) = self.choices.get_mut(index) else {
            return;
        };
        let number = index as u32;
        for out in outs {
            match out {
                Out::Text(released) => {
                    let tokens = choice.hold.release(&released.source);
                    let text = choice.new_part(released.text);
                    if text.is_empty() && tokens.is_empty() {
                        continue;
                    }
                    note_left(&mut self.flight, number, &text);
                    self.flight.leaves(number, &text);
                    self.pending.push_back(Event::Delta(Delta {
                        choice: number,
                        text,
                        logprobs: self.asked.logprobs.then_some(tokens),
                    }));
                }
                Out::Call { index: call, name } => {
                    let head = choice.new_part(call_text(&name));
                    if head.is_empty() {
                        continue;
                    }
                    note_left(&mut self.flight, number, &head);
                    let id = format!("call_{}_{number}_{call}", self.flight.trace.id);
                    self.pending.push_back(Event::ToolCall(ToolCallStart {
                        choice: number,
                        index: call,
                        id,
                        name,
                    }));
                }
                Out::Arguments { index: call, text } => {
                    let text = choice.new_part(text);
                    if text.is_empty() {
                        continue;
                    }
                    note_left(&mut self.flight, number, &text);
                    self.flight.leaves_beside(&text);
                    self.pending.push_back(Event::ToolArguments {
                        choice: number,
                        index: call,
                        text,
                    });
                }
            }
        }
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
        if let Some(recorder) = self.flight.recorder() {
            recorder.again(index as u32, &choice.source);
        }
        choice.outlet.restart(&self.flight.context);
        let mut out = Vec::new();
        let flow = choice.outlet.push(&choice.source, &mut out).await;
        let said: String = out.iter().map(text_of).collect();
        let same = said.len().min(choice.left.len());
        if !matches!(flow, Flow::Go) || said.get(..same) != choice.left.get(..same) {
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
        let finish = self.finish();
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

    fn finish(&self) -> Finish {
        let any = |reason| self.choices.iter().any(|choice| choice.finish == reason);
        if any(FinishReason::Length) {
            Finish::Length
        } else if any(FinishReason::ToolCalls) {
            Finish::ToolCalls
        } else {
            Finish::Stop
        }
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
            choice.outlet.record(&mut self.flight.trace.stages);
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
                tool_calls: Vec::new(),
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
                Event::ToolCall(start) => {
                    if let Some(choice) = choices.get_mut(start.choice as usize) {
                        choice.tool_calls.push(ToolCall {
                            id: start.id,
                            name: start.name,
                            arguments: String::new(),
                        });
                    }
                }
                Event::ToolArguments {
                    choice,
                    index,
                    text,
                } => {
                    let call = choices
                        .get_mut(choice as usize)
                        .and_then(|choice| choice.tool_calls.get_mut(index as usize));
                    if let Some(call) = call {
                        call.arguments.push_str(&text);
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

impl LocalChoice {
    /// What of this part has not left before; notes that it leaves.
    fn new_part(&mut self, mut text: String) -> String {
        let again = self.said_again.min(text.len());
        text.drain(..again);
        self.said_again -= again;
        self.left.push_str(&text);
        text
    }
}

/// Notes what leaves, calls of tools included: in the order that it leaves in.
fn note_left(flight: &mut Flight, choice: u32, text: &str) {
    if let Some(recorder) = flight.recorder() {
        recorder.left(choice, Channel::Content, text);
    }
}

/// What a call's beginning is in the account of what has left.
fn call_text(name: &str) -> String {
    format!("\0{name}\0")
}

pub(crate) fn text_of(out: &Out) -> String {
    match out {
        Out::Text(released) => released.text.clone(),
        Out::Call { name, .. } => call_text(name),
        Out::Arguments { text, .. } => text.clone(),
    }
}

fn tops(tops: Vec<infer::TopToken>) -> Vec<(String, f32)> {
    tops.into_iter()
        .map(|top| (top.text, top.logprob))
        .collect()
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
