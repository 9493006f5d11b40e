//! Who is computed next: the loop of the engine's thread.
//!
//! Each step takes one token of every sequence that decodes, and rows of those whose prompt is not computed yet, in
//! the order of priority and of the service that their tenants have had (continuous batching with chunked prefill).
//! How many rows depends on how long steps have taken, so that the answers under way do not stall. KV memory is
//! taken page by page; when it runs out, the sequence that came last gives its pages back and goes on later. None
//! of this changes an answer, because a row's numbers do not depend on the batch.

use std::cmp::Reverse;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::engine::{EngineOptions, Inbox, Shared};
use crate::fairness::{ANSWER_COST, PROMPT_COST};
use crate::model::Model;
use crate::network::{Outputs, Session};
use crate::ops::{Batch, Output, PAGE_TOKENS, Row};
use crate::pace::{Pace, retry_after};
use crate::prefix::Pages;
use crate::sequence::{Goal, Sequence};
use crate::{Error, ModelKind, Result};

/// Rows with an output that a step has room for, beside one for each sequence: for scores and embeddings.
const EXTRA_OUTPUTS: usize = 16;

/// Rows with an output that a step has room for.
pub(crate) fn most_outputs(model: &Model, options: &EngineOptions) -> usize {
    options.max_sequences
        + match model.kind() {
            ModelKind::Decoder => EXTRA_OUTPUTS,
            ModelKind::Encoder => options.prefill_chunk,
        }
}

/// The state of the engine's thread.
pub(crate) struct Scheduler {
    model: Arc<Model>,
    shared: Arc<Shared>,
    session: Box<dyn Session>,
    options: EngineOptions,
    pages: Pages,
    pace: Pace,
    waiting: Vec<Sequence>,
    /// In the order of priority, then arrival: the last one is set back first.
    active: Vec<Sequence>,
    /// The rows of the step, and of which active sequences in turn prompts are computed.
    rows: Vec<Row>,
    order: Vec<usize>,
}

/// Marks the engine as stopped, however its thread ends.
struct StopGuard(Arc<Shared>);

impl Drop for StopGuard {
    fn drop(&mut self) {
        let mut inbox = self.0.lock();
        inbox.stopped = true;
        inbox.arrived.clear();
    }
}

/// Why a sequence leaves before its end.
enum Leaving {
    Abandoned,
    Late,
}

impl Scheduler {
    pub(crate) fn new(
        model: Arc<Model>,
        shared: Arc<Shared>,
        session: Box<dyn Session>,
        options: EngineOptions,
    ) -> Self {
        Self {
            model,
            shared,
            pages: Pages::new(session.pages()),
            session,
            options,
            pace: Pace::default(),
            waiting: Vec::new(),
            active: Vec::new(),
            rows: Vec::new(),
            order: Vec::new(),
        }
    }

    /// Serves until the last handle of the engine is gone.
    pub(crate) fn run(mut self) {
        let _guard = StopGuard(Arc::clone(&self.shared));
        while self.receive() {
            self.drop_ended();
            self.admit();
            self.step();
            self.publish();
        }
        for sequence in self.active.drain(..).chain(self.waiting.drain(..)) {
            sequence.cancel();
        }
    }

    /// Takes what arrived; sleeps while there is nothing to do. False at the end.
    fn receive(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut inbox = shared.lock();
        while inbox.arrived.is_empty()
            && self.active.is_empty()
            && self.waiting.is_empty()
            && !inbox.closing
        {
            inbox = shared
                .wake
                .wait(inbox)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.waiting.append(&mut inbox.arrived);
        let closing = inbox.closing;
        self.make_room(&mut inbox);
        !closing
    }

    /// Turns requests away whose tenant has more than its share of a queue that is full.
    fn make_room(&mut self, inbox: &mut Inbox) {
        for (tenant, count) in inbox.tenants.take_displaced() {
            for _ in 0..count {
                // The newest of the lowest priority. Those that were set back have had work done.
                let newest = (0..self.waiting.len())
                    .filter(|at| {
                        let sequence = &self.waiting[*at];
                        sequence.terms.tenant == tenant && sequence.charged.is_none()
                    })
                    .max_by_key(|at| {
                        let sequence = &self.waiting[*at];
                        (Reverse(sequence.terms.priority), sequence.number)
                    });
                let Some(newest) = newest else {
                    break;
                };
                let sequence = self.waiting.remove(newest);
                inbox.tenants.give_up(&tenant);
                inbox.inside -= 1;
                let waiting = self.waiting.len();
                self.shared.counts.refused.fetch_add(1, Ordering::Relaxed);
                sequence.fail(Error::QueueFull {
                    waiting,
                    retry_after: retry_after(self.shared.counts.next_place(), waiting),
                });
            }
        }
    }

    /// Drops the requests that nobody waits for, and ends those that are late.
    fn drop_ended(&mut self) {
        let now = Instant::now();
        let leaving = |sequence: &Sequence| {
            if sequence.abandoned() {
                Some(Leaving::Abandoned)
            } else {
                let late = sequence.terms.deadline.is_some_and(|at| at <= now);
                late.then_some(Leaving::Late)
            }
        };
        let mut gone = Vec::new();
        for sequence in self
            .waiting
            .extract_if(.., |sequence| leaving(sequence).is_some())
        {
            self.shared.lock().tenants.give_up(&sequence.terms.tenant);
            gone.push(sequence);
        }
        for mut sequence in self
            .active
            .extract_if(.., |sequence| leaving(sequence).is_some())
        {
            sequence.set_back(&mut self.pages);
            gone.push(sequence);
        }
        self.leave(gone.len());
        for sequence in gone {
            let counts = &self.shared.counts;
            match leaving(&sequence) {
                Some(Leaving::Late) => {
                    counts.late.fetch_add(1, Ordering::Relaxed);
                    let generated = sequence.generated();
                    sequence.fail(Error::DeadlineExceeded { generated });
                }
                _ => {
                    counts.cancelled.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Moves waiting requests to the active ones while there is room, best first.
    fn admit(&mut self) {
        let mut reserved: usize = self
            .active
            .iter()
            .map(|s| pages_for(s.tokens.len() + 1).saturating_sub(s.table.len()))
            .sum();
        while self.active.len() < self.options.max_sequences && !self.waiting.is_empty() {
            let mut inbox = self.shared.lock();
            let Some(best) = (0..self.waiting.len()).min_by_key(|at| {
                let Sequence { terms, number, .. } = &self.waiting[*at];
                let counter = inbox.tenants.counter(&terms.tenant);
                (Reverse(terms.priority), counter, *number)
            }) else {
                return;
            };
            let next = &self.waiting[best];
            let pages = pages_for(next.tokens.len() + 1);
            let wanted = &next.tokens[..next.reusable()];
            let (found, idle) = self.pages.find(next.terms.namespace, wanted);
            // A page without a user is one fewer to take, once it has one.
            if reserved + pages - found + idle > self.pages.available() && !self.active.is_empty() {
                return;
            }
            let mut sequence = self.waiting.remove(best);
            sequence.settle(&mut self.pages);
            reserved += pages - sequence.table.len();
            inbox.tenants.serve(&sequence.terms.tenant);
            if sequence.charged.is_none() {
                let tokens = sequence.prompt.saturating_sub(sequence.computed);
                let cost = tokens as u64 * PROMPT_COST;
                inbox.tenants.charge(&sequence.terms.tenant, cost);
                sequence.charged = Some(tokens);
            }
            drop(inbox);
            insert(&mut self.active, sequence);
        }
    }

    /// Plans a step, computes it, and uses its results.
    fn step(&mut self) {
        let prefill = self.plan();
        if self.rows.is_empty() {
            return;
        }
        let began = Instant::now();
        let tables: Vec<&[u32]> = self.active.iter().map(|s| s.table.as_slice()).collect();
        let adapters: Vec<u32> = self.active.iter().map(Sequence::adapter).collect();
        let outcome = self.session.step(Batch {
            rows: &self.rows,
            tables: &tables,
            adapters: &adapters,
        });
        let Outputs {
            logits,
            distributions,
            hidden,
        } = match outcome {
            Ok(outputs) => outputs,
            Err(error) => {
                // The device failed for the whole batch; those that were in it are told, the others go on.
                tracing::error!(%error, "a step failed");
                let message = error.to_string();
                for index in (0..self.active.len()).rev() {
                    if self.active[index].planned > 0 {
                        self.end(index, Some(Error::Device(message.clone())));
                    }
                }
                return;
            }
        };
        // Before a result takes a sequence back: what was computed is right, whatever becomes of it.
        for sequence in &mut self.active {
            sequence.advance(&mut self.pages);
        }
        let logits = logits.chunks_exact_mut(self.model.vocabulary());
        let known = distributions.iter().copied().chain(std::iter::repeat(None));
        let mut logits = logits.zip(known);
        let states = self
            .rows
            .iter()
            .filter(|row| row.output == Output::Hidden)
            .count();
        let mut hidden = hidden.chunks_exact((hidden.len() / states.max(1)).max(1));
        let mut ended: Vec<(usize, Option<Error>)> = Vec::new();
        for row in &self.rows {
            let (index, position) = (row.table as usize, row.position as usize);
            let sequence = &mut self.active[index];
            let outcome: Result<bool> = match row.output {
                Output::None => continue,
                Output::Logits => match logits.next() {
                    Some((logits, known)) => {
                        sequence.use_logits(position, logits, known, &self.model)
                    }
                    None => continue,
                },
                Output::Hidden => match hidden.next() {
                    Some(hidden) => Ok(sequence.use_hidden(position, hidden)),
                    None => continue,
                },
            };
            match outcome {
                _ if ended.last().is_some_and(|(other, _)| *other == index) => {}
                Ok(false) => {}
                Ok(true) => ended.push((index, None)),
                Err(error) => ended.push((index, Some(error))),
            }
        }
        self.count();
        self.pace
            .note(self.rows.len() - prefill, prefill, began.elapsed());
        for (index, error) in ended.into_iter().rev() {
            self.pace.finished();
            self.end(index, error);
        }
    }

    /// Counts what the step computed, and charges the tenants for their tokens.
    fn count(&self) {
        let (mut prompt, mut generated) = (0, 0);
        let mut inbox = self.shared.lock();
        for row in &self.rows {
            let sequence = &self.active[row.table as usize];
            prompt += u64::from((row.position as usize) < sequence.prompt);
            if row.output == Output::Logits && sequence.generates() {
                generated += 1;
                inbox.tenants.charge(&sequence.terms.tenant, ANSWER_COST);
            }
        }
        let counts = &self.shared.counts;
        counts.prompt_tokens.fetch_add(prompt, Ordering::Relaxed);
        counts
            .generated_tokens
            .fetch_add(generated, Ordering::Relaxed);
    }

    /// Fills `rows` with those of the next step, and gives how many of them are of prompts.
    fn plan(&mut self) -> usize {
        for sequence in &mut self.active {
            sequence.planned = 0;
            sequence.settle(&mut self.pages);
        }
        let decoding = self.plan_decodes();
        self.plan_prefill(decoding);
        self.rows.clear();
        let mut prefill = 0;
        for (index, sequence) in self.active.iter().enumerate() {
            // Counted now: some that were planned may have been set back for others.
            if !decodes(sequence) {
                prefill += sequence.planned;
            }
            for position in sequence.computed..sequence.computed + sequence.planned {
                let output = match &sequence.goal {
                    Goal::Generate(_) if position + 1 == sequence.tokens.len() => Output::Logits,
                    Goal::Score { .. } if position >= sequence.used => Output::Logits,
                    Goal::Embed { .. } if position >= sequence.used => Output::Hidden,
                    _ => Output::None,
                };
                self.rows.push(Row {
                    token: sequence.tokens[position],
                    position: position as u32,
                    table: index as u32,
                    output,
                });
            }
        }
        prefill
    }

    /// Plans the next token of each answer under way, and gives their number.
    fn plan_decodes(&mut self) -> usize {
        let (mut index, mut count) = (0, 0);
        while index < self.active.len() {
            let sequence = &self.active[index];
            let pages = pages_for(sequence.tokens.len());
            if !decodes(sequence) {
                index += 1;
            } else if self.take_pages(index, pages) {
                self.begin(index, 1);
                (index, count) = (index + 1, count + 1);
            }
            // Else it was set back itself, being the last.
        }
        count
    }

    /// Plans rows of prompts.
    fn plan_prefill(&mut self, decoding: usize) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend((0..self.active.len()).filter(|index| !decodes(&self.active[*index])));
        if order.len() > 1 {
            let inbox = self.shared.lock();
            order.sort_by_key(|index| {
                let Sequence { terms, number, .. } = &self.active[*index];
                let counter = inbox.tenants.counter(&terms.tenant);
                (Reverse(terms.priority), counter, *number)
            });
        }
        let most = self.options.prefill_chunk;
        let mut budget = match decoding {
            0 => most,
            _ => self.pace.rows(decoding, self.options.max_step).min(most),
        };
        let encoder = self.model.kind() == ModelKind::Encoder;
        let mut outputs = most_outputs(&self.model, &self.options) - self.options.max_sequences;
        for index in order.iter().copied() {
            // Those at the end may have been set back meanwhile.
            if budget == 0 || index >= self.active.len() || self.follows_another(index) {
                continue;
            }
            let sequence = &self.active[index];
            let mut count = (sequence.tokens.len() - sequence.computed).min(budget);
            // Each row has an output but those before the first that is wanted.
            let plain = sequence.used.saturating_sub(sequence.computed);
            if !sequence.generates() {
                count = count.min(plain + 1 + outputs);
            }
            if encoder && count < sequence.tokens.len() - sequence.computed {
                // A text is computed in one step: this one waits for a step with room for all of it.
                continue;
            }
            if !self.take_pages(index, pages_for(sequence.computed + count)) {
                continue;
            }
            if !self.active[index].generates() {
                outputs -= count.saturating_sub(plain + 1);
            }
            budget -= count;
            self.begin(index, count);
        }
        self.order = order;
    }

    /// Plans so many rows of a sequence, perhaps its first ones.
    fn begin(&mut self, index: usize, rows: usize) {
        let sequence = &mut self.active[index];
        sequence.planned = rows;
        if sequence.started.is_some() {
            return;
        }
        sequence.start();
        let hits = &self.shared.counts.hit_tokens;
        hits.fetch_add(sequence.cached as u64, Ordering::Relaxed);
        // Others may have computed some of it since it was charged.
        let needless =
            (sequence.charged.unwrap_or(0) + sequence.cached).checked_sub(sequence.prompt);
        if let Some(tokens) = needless.filter(|tokens| *tokens > 0) {
            let cost = tokens as u64 * PROMPT_COST;
            let mut inbox = self.shared.lock();
            inbox.tenants.refund(&sequence.terms.tenant, cost);
        }
    }

    /// Whether the next page of a prompt is being filled for another sequence in this very step: it is to be had
    /// for nothing in the next one.
    fn follows_another(&self, index: usize) -> bool {
        let sequence = &self.active[index];
        let (from, to) = (sequence.computed, sequence.computed + PAGE_TOKENS);
        if from != sequence.shared * PAGE_TOKENS
            || sequence.table.len() != sequence.shared
            || to > sequence.reusable()
        {
            return false;
        }
        self.active.iter().enumerate().any(|(at, other)| {
            at != index
                && other.planned > 0
                && other.terms.keeps
                && other.computed < to
                && other.computed + other.planned >= to
                && other.shared == sequence.shared
                && other.terms.namespace == sequence.terms.namespace
                && other.table[..other.shared] == sequence.table[..]
                && other.tokens[from..to] == sequence.tokens[from..to]
        })
    }

    /// Gives the sequence at `index` this many pages, from later ones where none are to be had. False where it had to
    /// give up its own.
    fn take_pages(&mut self, index: usize, pages: usize) -> bool {
        loop {
            let missing = pages.saturating_sub(self.active[index].table.len());
            if missing <= self.pages.available() {
                for _ in 0..missing {
                    self.active[index].table.extend(self.pages.take());
                }
                return true;
            }
            let last = self.active.len() - 1;
            let mut victim = self.active.remove(last);
            victim.set_back(&mut self.pages);
            self.shared.lock().tenants.come_back(&victim.terms.tenant);
            self.waiting.push(victim);
            self.shared.counts.preempted.fetch_add(1, Ordering::Relaxed);
            if last == index {
                return false;
            }
        }
    }

    /// Takes a sequence out, and hands in its result or its error.
    fn end(&mut self, index: usize, error: Option<Error>) {
        let mut sequence = self.active.remove(index);
        sequence.set_back(&mut self.pages);
        match error {
            Some(error) => sequence.fail(error),
            None => sequence.reply(),
        }
        self.leave(1);
    }

    /// Notes that requests have left the engine.
    fn leave(&self, count: usize) {
        if count == 0 {
            return;
        }
        let mut inbox = self.shared.lock();
        inbox.inside -= count.min(inbox.inside);
        self.shared
            .counts
            .finished
            .fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Sets the gauges.
    fn publish(&self) {
        let counts = &self.shared.counts;
        let set = |gauge: &std::sync::atomic::AtomicUsize, value| {
            gauge.store(value, Ordering::Relaxed);
        };
        set(&counts.active, self.active.len());
        set(
            &counts.kv_bytes_used,
            self.pages.used() * self.session.page_bytes(),
        );
        set(&counts.cached_pages, self.pages.cached());
        counts
            .evictions
            .store(self.pages.evictions(), Ordering::Relaxed);
        let fewest_steps = self.active.iter().filter_map(|s| match &s.goal {
            Goal::Generate(generating) => {
                Some(generating.most_tokens - s.tokens.len().min(generating.most_tokens))
            }
            _ => None,
        });
        let next_place = self.pace.next_place(fewest_steps.min().unwrap_or(0));
        counts.set_next_place(next_place);
    }
}

/// Whether all that a sequence lacks is its next token.
fn decodes(sequence: &Sequence) -> bool {
    sequence.generates() && sequence.computed + 1 == sequence.tokens.len()
}

/// Puts a sequence behind those of its priority that came before it.
fn insert(into: &mut Vec<Sequence>, sequence: Sequence) {
    let key = |s: &Sequence| (Reverse(s.terms.priority), s.number);
    let at = into.partition_point(|other| key(other) < key(&sequence));
    into.insert(at, sequence);
}

/// Pages that this many tokens need.
fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}
