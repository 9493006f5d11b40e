//! What a store carries: the call that it serves, and what that call has used up.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use wasmtime::ResourceLimiter;

use crate::budget::Budget;
use crate::call::CallContext;
use crate::fault::Fault;
use crate::imports::wasi::Wasi;
use crate::services::Services;
use crate::spec::{Limits, StageSpec};
use crate::stage::StageStats;

/// The part of a stage that its instances share.
pub(crate) struct Shared {
    pub(crate) spec: StageSpec,
    pub(crate) services: Arc<dyn Services>,
    pub(crate) counters: Counters,
    /// Names of counters and gauges used so far.
    pub(crate) metric_names: Mutex<HashSet<String>>,
    /// Tokens left of the inference grant.
    pub(crate) budget: Budget,
}

/// What a stage has done; see [`StageStats`].
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) calls: AtomicU64,
    pub(crate) instances: AtomicU64,
    pub(crate) traps: AtomicU64,
    pub(crate) timeouts: AtomicU64,
    pub(crate) memory: AtomicU64,
    pub(crate) oversized: AtomicU64,
    pub(crate) invalid: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) unavailable: AtomicU64,
    pub(crate) log_dropped: AtomicU64,
    pub(crate) metrics_dropped: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) memory_peak: AtomicU64,
}

/// Adds one.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> StageStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StageStats {
            calls: read(&self.calls),
            instances: read(&self.instances),
            traps: read(&self.traps),
            timeouts: read(&self.timeouts),
            memory: read(&self.memory),
            oversized: read(&self.oversized),
            invalid: read(&self.invalid),
            errors: read(&self.errors),
            unavailable: read(&self.unavailable),
            log_dropped: read(&self.log_dropped),
            metrics_dropped: read(&self.metrics_dropped),
            restarts: read(&self.restarts),
            memory_peak: read(&self.memory_peak),
        }
    }

    /// Counts a failure under its kind.
    pub(crate) fn failed(&self, failure: &crate::Failure) {
        use crate::Failure;
        bump(match failure {
            Failure::Trap { .. } => &self.traps,
            Failure::Timeout { .. } => &self.timeouts,
            Failure::Memory { .. } => &self.memory,
            Failure::Oversized { .. } => &self.oversized,
            Failure::Invalid { .. } => &self.invalid,
            Failure::Stage(_) => &self.errors,
            Failure::Unavailable { .. } => &self.unavailable,
        });
    }
}

/// The data of a store.
pub(crate) struct CallState {
    pub(crate) shared: Arc<Shared>,
    pub(crate) context: CallContext,
    /// `configure` runs: only `log` and `metrics` are available.
    pub(crate) configuring: bool,
    pub(crate) memory: MemoryLimiter,
    pub(crate) log_lines: u32,
    pub(crate) log_bytes: u32,
    /// Ticks that an asynchronous call may still compute.
    pub(crate) ticks_left: u64,
    pub(crate) fault: Fault,
    pub(crate) wasi: Wasi,
}

impl CallState {
    pub(crate) fn new(shared: Arc<Shared>, context: CallContext, configuring: bool) -> CallState {
        CallState {
            memory: MemoryLimiter {
                used: 0,
                limit: shared.spec.limits.memory,
            },
            shared,
            wasi: Wasi::default(),
            context,
            configuring,
            log_lines: 0,
            log_bytes: 0,
            ticks_left: 0,
            fault: Fault::default(),
        }
    }

    /// Notes the most memory that an instance has had; it never shrinks.
    pub(crate) fn note_memory(&self) {
        let peak = &self.shared.counters.memory_peak;
        if self.memory.used > peak.load(Ordering::Relaxed) {
            peak.fetch_max(self.memory.used, Ordering::Relaxed);
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.spec.limits
    }

    /// Forgets what the last call has used up.
    pub(crate) fn begin_call(&mut self) {
        self.log_lines = 0;
        self.log_bytes = 0;
    }
}

/// Adds up the linear memories of a store. (The engine's own limits are for each memory alone.)
pub(crate) struct MemoryLimiter {
    used: u64,
    limit: u64,
}

/// The error by which a refused growth traps, so that the failure can name the limit.
#[derive(Debug, thiserror::Error)]
#[error("more than {limit} bytes of memory")]
pub(crate) struct OutOfMemory {
    pub(crate) limit: u64,
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // Beyond its own declared maximum the guest gets the plain refusal that it expects.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let used = self
            .used
            .saturating_add(desired.saturating_sub(current) as u64);
        if used > self.limit {
            return Err(OutOfMemory { limit: self.limit }.into());
        }
        self.used = used;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= crate::engine::MAX_TABLE_ELEMENTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_for_all_memories_together() {
        let mut limiter = MemoryLimiter {
            used: 0,
            limit: 100,
        };
        assert!(limiter.memory_growing(0, 60, None).unwrap());
        assert!(limiter.memory_growing(0, 30, None).unwrap());
        assert!(!limiter.memory_growing(30, 50, Some(40)).unwrap());
        let error = limiter.memory_growing(60, 71, None).unwrap_err();
        assert_eq!(error.downcast_ref::<OutOfMemory>().unwrap().limit, 100);
        assert!(limiter.memory_growing(60, 70, None).unwrap());
    }
}
