//! Who is computed next: the loop of the engine's thread.
//!
//! Each step takes one token of every sequence that decodes, and up to `prefill_chunk` tokens of those whose
//! prompt is not computed yet, in the order of priority and arrival (continuous batching with chunked
//! prefill). KV memory is taken page by page; when it runs out, the sequence that came last gives its pages
//! back and is computed anew later, which changes nothing in its answer, because a row's numbers do not
//! depend on the batch.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::engine::{EngineOptions, Shared};
use crate::model::Model;
use crate::network::Session;
use crate::ops::{Batch, Output, PAGE_TOKENS, Row};
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
    free_pages: Vec<u32>,
    /// Both in the order of priority, then arrival.
    waiting: Vec<Sequence>,
    active: Vec<Sequence>,
}

/// Marks the engine as stopped, however its thread ends.
struct StopGuard(Arc<Shared>);

impl Drop for StopGuard {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.stopped = true;
        inbox.arrived.clear();
    }
}

impl Scheduler {
    pub(crate) fn new(
        model: Arc<Model>,
        shared: Arc<Shared>,
        session: Box<dyn Session>,
        options: EngineOptions,
    ) -> Self {
        let free_pages = (0..session.pages() as u32).rev().collect();
        Self {
            model,
            shared,
            session,
            options,
            free_pages,
            waiting: Vec::new(),
            active: Vec::new(),
        }
    }

    /// Serves until the last handle of the engine is gone.
    pub(crate) fn run(mut self) {
        let _guard = StopGuard(Arc::clone(&self.shared));
        while self.receive() {
            self.drop_abandoned();
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
        let mut inbox = self
            .shared
            .inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while inbox.arrived.is_empty()
            && self.active.is_empty()
            && self.waiting.is_empty()
            && !inbox.closing
        {
            inbox = self
                .shared
                .wake
                .wait(inbox)
                .unwrap_or_else(PoisonError::into_inner);
        }
        for sequence in std::mem::take(&mut inbox.arrived) {
            insert(&mut self.waiting, sequence);
        }
        !inbox.closing
    }

    /// Drops the requests that nobody waits for.
    fn drop_abandoned(&mut self) {
        let before = self.active.len() + self.waiting.len();
        self.waiting.retain(|sequence| !sequence.abandoned());
        let free = &mut self.free_pages;
        self.active.retain_mut(|sequence| {
            let stays = !sequence.abandoned();
            if !stays {
                free.append(&mut sequence.table);
            }
            stays
        });
        let gone = before - self.active.len() - self.waiting.len();
        self.shared
            .counts
            .cancelled
            .fetch_add(gone as u64, Ordering::Relaxed);
        self.leave(gone);
    }

    /// Moves waiting requests to the active ones while there is room, best first.
    fn admit(&mut self) {
        let mut reserved: usize = self
            .active
            .iter()
            .map(|s| pages_for(s.tokens.len() + 1).saturating_sub(s.table.len()))
            .sum();
        while let Some(next) = self.waiting.first() {
            reserved += pages_for(next.tokens.len() + 1);
            let room =
                self.active.len() < self.options.max_sequences && reserved <= self.free_pages.len();
            if !room && !self.active.is_empty() {
                return;
            }
            let mut sequence = self.waiting.remove(0);
            if sequence.started.is_none() {
                sequence.start();
            }
            insert(&mut self.active, sequence);
        }
    }

    /// Plans a step, computes it, and uses its results.
    fn step(&mut self) {
        let (rows, planned) = self.plan();
        if rows.is_empty() {
            return;
        }
        let tables: Vec<&[u32]> = self
            .active
            .iter()
            .map(|sequence| sequence.table.as_slice())
            .collect();
        let width = self.model.vocabulary();
        let outcome = self.session.step(Batch {
            rows: &rows,
            tables: &tables,
        });
        let (logits, hidden) = match outcome {
            Ok(outputs) => outputs,
            Err(error) => {
                // The device failed for the whole batch; those that were in it are told, the others go on.
                tracing::error!(%error, "a step failed");
                let message = error.to_string();
                for index in (0..planned.len()).rev().filter(|index| planned[*index] > 0) {
                    self.end(index, Some(Error::Device(message.clone())));
                }
                return;
            }
        };
        let mut logits = logits.chunks_exact_mut(width);
        let hidden_width = hidden.len()
            / rows
                .iter()
                .filter(|row| row.output == Output::Hidden)
                .count()
                .max(1);
        let mut hidden = hidden.chunks_exact(hidden_width.max(1));
        let mut ended: Vec<(usize, Option<Error>)> = Vec::new();
        for (index, count) in planned.iter().enumerate() {
            self.active[index].computed += count;
        }
        for row in &rows {
            let (index, position) = (row.table as usize, row.position as usize);
            let outcome: Result<bool> = match row.output {
                Output::None => continue,
                Output::Logits => match logits.next() {
                    Some(logits) => self.active[index].use_logits(position, logits, &self.model),
                    None => continue,
                },
                Output::Hidden => match hidden.next() {
                    Some(hidden) => Ok(self.active[index].use_hidden(position, hidden)),
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
        let count_rows = |which: &dyn Fn(&Sequence, &Row) -> bool| {
            rows.iter()
                .filter(|row| which(&self.active[row.table as usize], row))
                .count() as u64
        };
        let prompt = count_rows(&|sequence, row| (row.position as usize) < sequence.prompt);
        let generated = count_rows(&|sequence, row| {
            row.output == Output::Logits && matches!(sequence.goal, Goal::Generate(_))
        });
        self.shared
            .counts
            .prompt_tokens
            .fetch_add(prompt, Ordering::Relaxed);
        self.shared
            .counts
            .generated_tokens
            .fetch_add(generated, Ordering::Relaxed);
        for (index, error) in ended.into_iter().rev() {
            self.end(index, error);
        }
    }

    /// The rows of the next step, and how many of them are each active sequence's.
    fn plan(&mut self) -> (Vec<Row>, Vec<usize>) {
        let (mut rows, mut planned) = (Vec::new(), Vec::new());
        let mut prefill = self.options.prefill_chunk;
        let mut outputs = most_outputs(&self.model, &self.options);
        let mut index = 0;
        while index < self.active.len() {
            let sequence = &self.active[index];
            let needed = sequence.tokens.len() - sequence.computed;
            let generates = matches!(sequence.goal, Goal::Generate(_));
            let mut count = if needed == 1 && generates {
                1
            } else {
                needed.min(prefill)
            };
            if !generates {
                // Each row has an output; the later sequences keep one each.
                count = count.min(outputs.saturating_sub(self.active.len() - index));
            }
            if self.model.kind() == ModelKind::Encoder && count < needed {
                // A text is computed in one step: this one waits for a step with room for all of it.
                count = 0;
            }
            let end = sequence.computed + count;
            if !self.take_pages(index, pages_for(end)) {
                // It was set back itself: those before it hold the memory.
                continue;
            }
            let sequence = &self.active[index];
            if !(needed == 1 && generates) {
                prefill -= count;
            }
            for position in sequence.computed..end {
                let output = match &sequence.goal {
                    Goal::Generate(_) if position + 1 == sequence.tokens.len() => Output::Logits,
                    Goal::Score { .. } if position >= sequence.used => Output::Logits,
                    Goal::Embed { .. } if position >= sequence.used => Output::Hidden,
                    _ => Output::None,
                };
                outputs -= usize::from(output != Output::None);
                rows.push(Row {
                    token: sequence.tokens[position],
                    position: position as u32,
                    table: index as u32,
                    output,
                });
            }
            planned.push(count);
            index += 1;
        }
        (rows, planned)
    }

    /// Gives the sequence at `index` this many pages, from later ones where none are free. False where it had to
    /// give up its own.
    fn take_pages(&mut self, index: usize, pages: usize) -> bool {
        loop {
            let missing = pages.saturating_sub(self.active[index].table.len());
            if missing <= self.free_pages.len() {
                let from = self.free_pages.len() - missing;
                self.active[index]
                    .table
                    .extend(self.free_pages.drain(from..).rev());
                return true;
            }
            let last = self.active.len() - 1;
            let mut victim = self.active.remove(last);
            self.free_pages.append(&mut victim.table);
            victim.computed = 0;
            insert(&mut self.waiting, victim);
            self.shared.counts.preempted.fetch_add(1, Ordering::Relaxed);
            if last == index {
                return false;
            }
        }
    }

    /// Takes a sequence out, and hands in its result or its error.
    fn end(&mut self, index: usize, error: Option<Error>) {
        let mut sequence = self.active.remove(index);
        self.free_pages.append(&mut sequence.table);
        match error {
            Some(error) => sequence.fail(error),
            None => sequence.reply(),
        }
        self.leave(1);
    }

    /// Notes that requests have left the engine.
    fn leave(&self, count: usize) {
        let mut inbox = self
            .shared
            .inbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        inbox.inside -= count.min(inbox.inside);
        self.shared
            .counts
            .finished
            .fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Sets the gauges.
    fn publish(&self) {
        let counts = &self.shared.counts;
        counts.active.store(self.active.len(), Ordering::Relaxed);
        let used = self.session.pages() - self.free_pages.len();
        counts
            .kv_bytes_used
            .store(used * self.session.page_bytes(), Ordering::Relaxed);
    }
}

/// Puts a sequence behind those of its priority that came before it.
fn insert(into: &mut Vec<Sequence>, sequence: Sequence) {
    let key = |s: &Sequence| (std::cmp::Reverse(s.priority), s.number);
    let at = into.partition_point(|other| key(other) < key(&sequence));
    into.insert(at, sequence);
}

/// Pages that this many tokens need.
pub(crate) fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}
