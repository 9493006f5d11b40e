//! A model that can run, and what runs its steps, whatever graph and device it has.

use std::sync::Arc;

use crate::adapter::AdapterFile;
use crate::ops::Batch;
use crate::sampling::Distribution;
use crate::{Error, Result};

/// A model that can run.
pub(crate) trait Network: Send + Sync {
    /// What one step at a time runs on: its own threads, buffers and KV pages.
    fn session(self: Arc<Self>, options: SessionOptions) -> Result<Box<dyn Session>>;

    /// Puts an adapter beside the weights, and gives its number, which no other adapter of this model ever has.
    fn load_adapter(&self, _file: AdapterFile) -> Result<u32> {
        Err(Error::Unsupported(
            "adapters on models that generate no text".into(),
        ))
    }

    /// Takes an adapter away; steps under way keep it. False where there is none.
    fn unload_adapter(&self, _adapter: u32) -> bool {
        false
    }

    /// Whether there is an adapter of this number.
    fn has_adapter(&self, _adapter: u32) -> bool {
        false
    }
}

/// The limits of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SessionOptions {
    /// 0: one for each core.
    pub(crate) threads: usize,
    /// Most rows of a step.
    pub(crate) rows: usize,
    /// Most rows of a step that have an output.
    pub(crate) outputs: usize,
    /// Memory for keys and values; at least one page is made.
    pub(crate) kv_bytes: usize,
}

/// Runs steps.
pub(crate) trait Session: Send {
    /// KV pages that there are.
    fn pages(&self) -> usize;
    /// Bytes of a KV page.
    fn page_bytes(&self) -> usize;
    /// Computes the rows, and gives their outputs in their order.
    fn step(&mut self, batch: Batch<'_>) -> Result<Outputs<'_>>;
}

/// What a step gives.
pub(crate) struct Outputs<'a> {
    /// The logits of those rows that were to have some, one row after the other.
    pub(crate) logits: &'a mut [f32],
    /// Their distributions, where the step formed them; else shorter. `None` for logits that are not finite.
    pub(crate) distributions: &'a [Option<Distribution>],
    /// The hidden states of those rows that were to have some.
    pub(crate) hidden: &'a [f32],
}
