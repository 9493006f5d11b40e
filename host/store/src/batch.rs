//! A batch: puts and deletes that happen together or not at all.

use crate::error::{Error, Result};

/// The longest key, in bytes.
pub const MAX_KEY: usize = 4 << 10;
/// The longest value, in bytes. What is larger belongs in a blob.
pub const MAX_VALUE: usize = 1 << 20;
/// The most bytes of keys and values in one batch.
pub const MAX_BATCH: usize = 8 << 20;

/// Puts and deletes that happen together or not at all, in the order given.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    ops: Vec<Op>,
    bytes: usize,
}

/// One write: `value` is `None` for a delete.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

impl Batch {
    /// An empty batch. Committing one waits until everything written before is durable.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Sets `key` to `value`.
    pub fn put(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Batch {
        self.push(key.into(), Some(value.into()))
    }

    /// Removes `key`, whether it exists or not.
    pub fn delete(&mut self, key: impl Into<Vec<u8>>) -> &mut Batch {
        self.push(key.into(), None)
    }

    /// How many puts and deletes it holds.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// The bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    /// Every implementation keeps the same limits, so that what one store takes another takes too.
    pub(crate) fn check(&self) -> Result<()> {
        for op in &self.ops {
            check_sizes(&op.key, op.value.as_deref().unwrap_or_default())?;
        }
        at_most("batch", self.bytes, MAX_BATCH)
    }

    fn push(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> &mut Batch {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.ops.push(Op { key, value });
        self
    }
}

/// Checks one key and value against the limits.
pub(crate) fn check_sizes(key: &[u8], value: &[u8]) -> Result<()> {
    at_most("key", key.len(), MAX_KEY)?;
    at_most("value", value.len(), MAX_VALUE)
}

fn at_most(what: &'static str, size: usize, limit: usize) -> Result<()> {
    if size > limit {
        Err(Error::TooLarge { what, size, limit })
    } else {
        Ok(())
    }
}
