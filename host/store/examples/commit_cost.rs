//! What a durable commit costs: CPU time of the whole process (both threads of the store and the
//! tree behind the journal included) for each commit, at 1, 16 and 64 commits under way, as a
//! gateway makes them: tasks on one runtime, each batch a trace of 1 KB and an index entry.
//!
//! `cargo run --release -p millgate-store --example commit_cost [-- sled]`; `sled` measures sled's
//! own flush instead, without a journal (and without a flush of the drive's cache).

use millgate_store::{Batch, SledOptions, SledStore, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs};

const SECONDS: u64 = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bare = env::args().any(|argument| argument == "sled");
    // One thread for the tasks, as in a gateway on one core.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    println!(
        "{:>11} {:>10} {:>12} {:>12} {:>8} {:>8} {:>9}",
        "connections",
        "commits/s",
        "CPU us/commit",
        "commits/group",
        "p50 us",
        "p99 us",
        "disk MiB"
    );
    for connections in [1, 16, 64] {
        let dir = env::temp_dir().join(format!("millgate-commit-cost-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let (cpu, start) = (cpu_time()?, Instant::now());
        let (mut times, groups, bytes) = if bare {
            let tree = sled::Config::new().path(&dir).flush_every_ms(None).open()?;
            let times = runtime.block_on(drive(connections, move |number| {
                let tree = tree.clone();
                async move {
                    let mut batch = sled::Batch::default();
                    batch.insert(trace_key(number), trace(number));
                    batch.insert(index_key(number), &[]);
                    // On its own thread: sled's `flush_async` never answers on a runtime of one thread.
                    let flushed = tokio::task::spawn_blocking(move || {
                        tree.apply_batch(batch).and_then(|()| tree.flush())
                    });
                    flushed.await.is_ok_and(|flushed| flushed.is_ok())
                }
            }));
            (times, 0, 0)
        } else {
            let store = Arc::new(SledStore::open(&dir, SledOptions::default())?);
            let commits = Arc::clone(&store);
            let times = runtime.block_on(drive(connections, move |number| {
                let mut batch = Batch::new();
                batch
                    .put(trace_key(number), trace(number))
                    .put(index_key(number), Vec::new());
                let commit = commits.commit(batch);
                async move { commit.await.is_ok() }
            }));
            (times, store.stats().groups, store.disk_bytes()?)
        };
        let (cpu, wall) = (cpu_time()? - cpu, start.elapsed());
        times.sort_unstable();
        let count = times.len().max(1);
        let at = |share: f64| {
            times
                .get((count as f64 * share) as usize)
                .copied()
                .unwrap_or_default()
                .as_micros()
        };
        println!(
            "{connections:>11} {:>10.0} {:>12.1} {:>12.1} {:>8} {:>8} {:>9.1}",
            count as f64 / wall.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / count as f64,
            count as f64 / groups.max(1) as f64,
            at(0.5),
            at(0.99),
            bytes as f64 / f64::from(1 << 20),
        );
        let _ = fs::remove_dir_all(&dir);
    }
    Ok(())
}

/// Keeps `connections` commits under way for some seconds; gives the time each took.
async fn drive<F, R>(connections: u64, commit: F) -> Vec<Duration>
where
    F: Fn(u64) -> R + Clone + 'static,
    R: Future<Output = bool> + 'static,
{
    let local = tokio::task::LocalSet::new();
    let end = Instant::now() + Duration::from_secs(SECONDS);
    let tasks: Vec<_> = (0..connections)
        .map(|connection| {
            let commit = commit.clone();
            local.spawn_local(async move {
                let mut times = Vec::new();
                let mut number = connection;
                while Instant::now() < end {
                    let start = Instant::now();
                    if !commit(number).await {
                        break;
                    }
                    times.push(start.elapsed());
                    number += connections;
                }
                times
            })
        })
        .collect();
    local.await;
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap_or_default());
    }
    times
}

/// Identifiers that grow with time, as traces have them, with a random tail.
fn trace_key(number: u64) -> Vec<u8> {
    format!(
        "trace/{number:016x}{:08x}",
        number.wrapping_mul(0x9e37_79b9)
    )
    .into_bytes()
}

fn index_key(number: u64) -> Vec<u8> {
    format!("trace-by-model/smollm2/{number:016x}").into_bytes()
}

fn trace(number: u64) -> Vec<u8> {
    let mut text = format!("{{\"trace\":{number},\"stages\":[");
    while text.len() < 1000 {
        text.push_str(
            "{\"stage\":\"pii\",\"verdict\":\"pass\",\"given\":1024,\"passed\":1024,\"us\":12},",
        );
    }
    text.into_bytes()
}

/// User and system time of this process.
fn cpu_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields.get(11).unwrap_or(&"0").parse::<u64>()?
        + fields.get(12).unwrap_or(&"0").parse::<u64>()?;
    // The kernel counts in hundredths of a second.
    Ok(Duration::from_millis(ticks * 10))
}
