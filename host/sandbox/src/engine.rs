//! The engine: one `wasmtime::Config` with a reason for every line, the pool behind it, and the
//! clock that enforces deadlines.

use std::num::NonZeroUsize;
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    RegallocAlgorithm,
};

use crate::error::{Error, Result};

/// The resolution of deadlines: the engine's epoch advances once in this time.
pub(crate) const TICK: Duration = Duration::from_millis(5);

/// The most linear memory that any stage can be allowed, in bytes. A larger number costs nothing
/// (address space is reserved for 4 GiB in any case); it is here so that a slip in a config
/// cannot ask for all of the machine.
pub(crate) const MAX_MEMORY: u64 = 256 << 20;

/// Linear memories of one component. Rust needs 1, QuickJS 3.
pub(crate) const MAX_MEMORIES: u32 = 4;

/// Tables of one component. Rust needs 2, QuickJS 3.
pub(crate) const MAX_TABLES: u32 = 16;

/// Elements of one table. Rust needs 50, Python and StarlingMonkey under 8,000.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;

/// An engine and what it was able to get.
pub(crate) struct EngineAndPool {
    pub(crate) engine: Engine,
    /// How many instances can live at once.
    pub(crate) instances: u32,
}

/// Makes the engine, with a pool for `instances` instances, or for as many as the address space
/// allows, or, at the last, with no pool at all. Either retreat is logged as a warning: the
/// sandbox then works, only slower or with fewer instances.
pub(crate) fn make(instances: u32) -> Result<EngineAndPool> {
    let mut size = instances.max(1);
    loop {
        match Engine::new(&config(Some(size))) {
            Ok(engine) => {
                if size < instances {
                    tracing::warn!(
                        asked = instances,
                        got = size,
                        "too little address space for the sandbox pool; raise `ulimit -v` to serve more requests at once"
                    );
                }
                return started(engine, size);
            }
            Err(error) if size > 8 => {
                tracing::debug!(%error, size, "the pool does not fit");
                size /= 2;
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    "no address space for a sandbox pool: instances are allocated one by one, which is several times slower; raise `ulimit -v`"
                );
                let engine = Engine::new(&config(None)).map_err(Error::engine)?;
                return started(engine, instances);
            }
        }
    }
}

/// An engine for the one run of `configure` before a snapshot: it takes what the other takes, but
/// compiles as fast as it can, because that code runs once. A guest that brings an interpreter
/// along (12 MB and more) would otherwise be compiled twice with all effort.
pub(crate) fn for_configuring() -> Result<Engine> {
    let mut config = config(None);
    config.cranelift_opt_level(OptLevel::None);
    config.cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
    let engine = Engine::new(&config).map_err(Error::engine)?;
    start_ticker(&engine)?;
    Ok(engine)
}

fn started(engine: Engine, instances: u32) -> Result<EngineAndPool> {
    start_ticker(&engine)?;
    Ok(EngineAndPool { engine, instances })
}

/// How many ticks make at least this long. One is added, because the current tick has already
/// begun.
pub(crate) fn ticks(time: Duration) -> u64 {
    let tick = TICK.as_micros().max(1);
    u64::try_from(time.as_micros().div_ceil(tick))
        .unwrap_or(u64::MAX / 2)
        .saturating_add(1)
}

/// Advances the epoch for as long as the engine lives. An OS thread, because a task of the
/// asynchronous runtime would stand still exactly when guests hog its workers; a weak engine, so
/// that the thread ends with the last sandbox.
fn start_ticker(engine: &Engine) -> Result<()> {
    let weak = engine.weak();
    std::thread::Builder::new()
        .name("millgate-epoch".into())
        .spawn(move || {
            loop {
                std::thread::sleep(TICK);
                match weak.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => break,
                }
            }
        })
        .map_err(|source| Error::Io {
            doing: "starting the epoch thread".into(),
            source,
        })?;
    Ok(())
}

/// All settings of the engine. The measured worth of each is in `docs/performance.md`.
fn config(pool_of: Option<u32>) -> Config {
    let mut config = Config::new();

    // The pool: memories, tables and stacks are reserved once and handed out again, so that a
    // call makes no mmap. Where the address space is too small, `pool_of` is `None` and instances
    // are allocated on demand.
    if let Some(instances) = pool_of {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(instances)));
    }

    // The component model's own concurrency (async functions, streams) is not in the contract,
    // and its bookkeeping would make every plain call three times as dear.
    config.concurrency_support(false);

    // Deadlines. Each loop and function entry compares a counter that the ticker advances; on
    // code that uses SIMD this costs a few per cent, where counting fuel would cost as much again
    // and more.
    config.epoch_interruption(true);

    // What the contract does not need is not there to be attacked: memories over 4 GiB (which
    // also lose the guard pages that make bounds checks free), several memories in one module,
    // relaxed SIMD (whose results differ between machines, so a trace could not be replayed),
    // custom page sizes. Threads and garbage collection are not compiled into this engine.
    config.wasm_memory64(false);
    config.wasm_multi_memory(false);
    config.wasm_relaxed_simd(false);
    config.wasm_custom_page_sizes(false);

    // Guests are built with SIMD: `memchr` and the automata are twice as fast with it.
    config.wasm_simd(true);

    // Initialised memory is mapped copy-on-write from the image, up to this size even where it
    // is sparse: a snapshot with room in its heap is one mapping, not many copies.
    config.memory_init_cow(true);
    config.memory_guaranteed_dense_image_size(16 << 20);

    // The full 4 GiB reservation with guard pages for each memory: bounds checks then cost
    // nothing. (The guard sizes are the engine's defaults.)
    config.memory_reservation(4 << 30);

    // A table's function references are filled in when they are first used: most calls touch a
    // handful of them.
    config.table_lazy_init(true);

    // The stack that a guest may use, and the whole stack of an asynchronous call, which must
    // also hold the host functions that the guest calls.
    config.max_wasm_stack(512 << 10);
    config.async_stack_size(1 << 20);

    // Unwind tables are registered with the system per module and searched linearly: with many
    // plugins that is quadratic, and the engine unwinds by frame pointers without them.
    config.native_unwind_info(false);

    // Where a trap happened, for the plugin's author. Costs nothing until a trap.
    config.generate_address_map(true);
    config.wasm_backtrace_max_frames(NonZeroUsize::new(20));

    // Compiled once, run many times.
    config.cranelift_opt_level(OptLevel::Speed);

    config
}

/// The sizes of the pool, all from one number: how many instances live at once.
fn pool(instances: u32) -> PoolingAllocationConfig {
    let n = instances;
    let mut pool = PoolingAllocationConfig::new();

    // A Rust guest takes 3 core instances, 1 memory and 2 tables; QuickJS takes 13, 3 and 3,
    // Python 14, 1 and 2. Core instances are only counted; memories are 4 GiB of address space
    // each, so the pool fits the common case three times over and the permits in front of it
    // (`permits.rs`) bound the sum.
    pool.total_component_instances(n)
        .total_core_instances(n.saturating_mul(16))
        .total_memories(n.saturating_mul(3))
        .total_tables(n.saturating_mul(4))
        .total_stacks(n);

    // What one component may take; checked at load, where the error can name the plugin.
    pool.max_memories_per_component(MAX_MEMORIES)
        .max_tables_per_component(MAX_TABLES)
        .table_elements(MAX_TABLE_ELEMENTS)
        .max_memory_size(usize::try_from(MAX_MEMORY).unwrap_or(usize::MAX));

    // Interpreters have thousands of functions and globals; this is the size of the record that
    // holds them, allocated as needed.
    pool.max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20);

    // A slot that last held an instance of the same image keeps its mapping, so that the next
    // one needs no mmap. With as many warm slots as instances every plugin keeps its own.
    pool.max_unused_warm_slots(n);

    // How a slot is cleaned when its instance is dropped. The pages that the guest wrote to are
    // asked of the kernel (one ioctl, Linux 6.7 and later) and copied back from the image; up to
    // this size no page is given back, so nothing faults in again and no madvise is made.
    // Without the scan the same setting would be a blind copy of the whole range, which is why it
    // is `Auto` and the size moderate: on an older kernel a slot is at worst a 1 MiB copy.
    pool.linear_memory_keep_resident(1 << 20)
        .table_keep_resident(64 << 10)
        .async_stack_keep_resident(64 << 10)
        .pagemap_scan(Enabled::Auto);

    // No batches. A slot that waits for its batch cannot be used, so the next call would take
    // another one, with colder memory; and the system call at a batch's end is made even where,
    // as here, there is nothing to give back. Alone, an empty range costs nothing and its slot is
    // free at once.
    pool.decommit_batch_size(1);

    pool
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_shorter_than_asked() {
        for ms in [0u64, 1, 4, 5, 6, 50, 1000] {
            let time = Duration::from_millis(ms);
            // The first tick may come at once, hence one less.
            assert!(TICK * u32::try_from(ticks(time) - 1).unwrap() >= time);
        }
        assert!(ticks(Duration::MAX) > 1 << 60);
    }

    #[test]
    fn the_engine_takes_the_configuration_of_small_and_large_pools() {
        for n in [1, 16, 256] {
            assert!(Engine::new(&config(Some(n))).is_ok(), "{n}");
        }
        assert!(Engine::new(&config(None)).is_ok());
    }
}
