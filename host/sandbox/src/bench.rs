//! What a sandbox costs: a compliance plugin on one text, in a fresh instance for each call and on
//! a reused one, part by part, on two threads, and five in a row. `millgate bench stage` prints it.
//!
//! All figures of a comparison come from one run, taken in turns, so that whatever else the
//! machine does falls on both alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::call::CallContext;
use crate::contract::compliance::Verdict;
use crate::error::{Error, Result};
use crate::failure::Failure;
use crate::imports::Context;
use crate::inspection::now;
use crate::instance::{Live, Mode};
use crate::memory::MemoryServices;
use crate::sandbox::Sandbox;
use crate::spec::{Isolation, StageSpec};
use crate::stage::Stage;

/// What to measure, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// How long each comparison runs.
    pub time: Duration,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            time: Duration::from_secs(2),
        }
    }
}

/// A distribution, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Micros {
    /// The median.
    pub p50_us: f64,
    /// The 99th percentile.
    pub p99_us: f64,
    /// How many were measured.
    pub samples: u64,
}

/// Where the time of a fresh call goes; medians and 99th percentiles.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Parts {
    /// Store and instance.
    pub instance: Micros,
    /// Constructor, push and finish.
    pub calls: Micros,
    /// The clean-up.
    pub drop: Micros,
}

/// What a stage costs.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct StageBench {
    /// The plugin's size in bytes.
    pub bytes: u64,
    /// The text's size in bytes.
    pub text_bytes: u64,
    /// Instance, constructor, push, finish, drop.
    pub fresh: Micros,
    /// Constructor, push, finish and the inspection's destructor on an instance that stays.
    pub warm: Micros,
    /// `fresh` less `warm`, medians.
    pub isolation_p50_us: f64,
    /// `fresh` less `warm`, 99th percentiles.
    pub isolation_p99_us: f64,
    /// The parts of `fresh`.
    pub parts: Parts,
    /// Fresh calls a second of one thread.
    pub one_thread: f64,
    /// Fresh calls a second of two threads, together.
    pub two_threads: f64,
    /// The time of five stages in a row over that of one, medians.
    pub five_stages_ratio: f64,
}

/// Measures a compliance plugin on a text. `config` is the plugin's.
pub fn stage(
    sandbox: &Sandbox,
    wasm: &[u8],
    config: &serde_json::Value,
    text: &str,
    options: BenchOptions,
) -> Result<StageBench> {
    let load = |name: &str, isolation| {
        let mut spec = StageSpec::new(name, config.clone());
        spec.isolation = isolation;
        // The machine's pauses are measured, not answered.
        spec.limits.deadline = Duration::from_secs(5);
        sandbox.load(wasm, spec, Arc::new(MemoryServices::default()))
    };
    let stages: Vec<Stage> = (0..5)
        .map(|i| load(&format!("bench-{i}"), Isolation::Fresh))
        .collect::<Result<_>>()?;
    let warm = load("bench-warm", Isolation::Warm)?;
    let Some(first) = stages.first() else {
        return Err(Error::Engine("no stage to measure".into()));
    };
    let failed = |failure: Failure| Error::Configure {
        stage: first.name().into(),
        plugin: first.manifest().name.clone(),
        failure,
    };
    compare(&stages, &warm, text, wasm.len() as u64, options).map_err(failed)
}

fn compare(
    stages: &[Stage],
    warm: &Stage,
    text: &str,
    bytes: u64,
    options: BenchOptions,
) -> Result<StageBench, Failure> {
    let Some(first) = stages.first() else {
        return Err(Failure::Unavailable {
            why: "no stage to measure".into(),
        });
    };
    let context = CallContext::default();
    // Until caches and slots are warm.
    for _ in 0..200 {
        for stage in stages.iter().chain([warm]) {
            once(stage, &context, text)?;
        }
    }
    let (mut fresh, mut reused, mut five) = (Vec::new(), Vec::new(), Vec::new());
    let end = Instant::now() + options.time;
    while Instant::now() < end {
        for _ in 0..50 {
            timed(&mut fresh, || once(first, &context, text))?;
        }
        for _ in 0..50 {
            timed(&mut reused, || once(warm, &context, text))?;
        }
        for _ in 0..10 {
            timed(&mut five, || {
                stages
                    .iter()
                    .try_for_each(|stage| once(stage, &context, text))
            })?;
        }
    }
    let parts = parts(first, text, options.time / 2)?;
    let one_thread = rate(first, text, 1, options.time / 2)?;
    let two_threads = rate(first, text, 2, options.time / 2)?;
    let (fresh, warm, five) = (micros(fresh), micros(reused), micros(five));
    Ok(StageBench {
        bytes,
        text_bytes: text.len() as u64,
        isolation_p50_us: fresh.p50_us - warm.p50_us,
        isolation_p99_us: fresh.p99_us - warm.p99_us,
        five_stages_ratio: five.p50_us / fresh.p50_us,
        fresh,
        warm,
        parts,
        one_thread,
        two_threads,
    })
}

/// One inspection of the whole text, clean-up and all.
fn once(stage: &Stage, context: &CallContext, text: &str) -> Result<(), Failure> {
    let mut inspection = stage.inspection(context);
    std::hint::black_box(inspection.push(&[text])?);
    std::hint::black_box(inspection.finish()?);
    Ok(())
}

fn timed<T>(into: &mut Vec<u64>, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    let done = work()?;
    into.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
    Ok(done)
}

/// The same as [`once`], with a look at the clock between the parts.
fn parts(stage: &Stage, text: &str, time: Duration) -> Result<Parts, Failure> {
    let inner = &stage.inner;
    let exports = inner.compliance()?;
    let mode = Mode {
        is_async: inner.is_async,
        configuring: false,
    };
    let (mut making, mut calling, mut dropping) = (Vec::new(), Vec::new(), Vec::new());
    let end = Instant::now() + time;
    let context = CallContext::default();
    while Instant::now() < end {
        for _ in 0..50 {
            let mut live = timed(&mut making, || {
                let context = context.clone();
                now(Live::new(
                    &inner.engine,
                    &inner.pre,
                    &inner.shared,
                    context,
                    mode,
                    None,
                ))
            })?;
            timed(&mut calling, || {
                let inspection: wasmtime::component::ResourceAny =
                    now(live.call_plain(&exports.new, (Context::lend(),)))?;
                let chunks: &[&str] = &[text];
                let verdict: Verdict = now(live.call(&exports.push, (inspection, chunks)))?;
                std::hint::black_box(verdict);
                let verdict: Verdict = now(live.call(&exports.finish, (inspection,)))?;
                std::hint::black_box(verdict);
                Ok(())
            })?;
            timed(&mut dropping, || {
                drop(live);
                Ok(())
            })?;
        }
    }
    Ok(Parts {
        instance: micros(making),
        calls: micros(calling),
        drop: micros(dropping),
    })
}

/// Fresh calls a second of so many threads, together.
fn rate(stage: &Stage, text: &str, threads: usize, time: Duration) -> Result<f64, Failure> {
    let stop = AtomicBool::new(false);
    let begun = Instant::now();
    let counts: Vec<Result<u64, Failure>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let context = CallContext::default();
                    let mut count = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        once(stage, &context, text)?;
                        count += 1;
                    }
                    Ok(count)
                })
            })
            .collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        handles
            .into_iter()
            .map(|handle| {
                handle.join().unwrap_or_else(|_| {
                    Err(Failure::Unavailable {
                        why: "a thread of the benchmark died".into(),
                    })
                })
            })
            .collect()
    });
    let seconds = begun.elapsed().as_secs_f64();
    let mut total = 0.0;
    for count in counts {
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let count = count? as f64;
        total += count;
    }
    Ok(total / seconds)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "nanoseconds of a call are far below 2^52"
)]
fn micros(mut nanos: Vec<u64>) -> Micros {
    nanos.sort_unstable();
    let at = |share: usize| nanos.get(nanos.len() * share / 100).copied().unwrap_or(0) as f64 / 1e3;
    Micros {
        p50_us: at(50),
        p99_us: at(99),
        samples: nanos.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let micros = micros((0..1000).rev().map(|n| n * 1000).collect());
        assert_eq!(
            (micros.p50_us, micros.p99_us, micros.samples),
            (500.0, 990.0, 1000)
        );
    }
}
