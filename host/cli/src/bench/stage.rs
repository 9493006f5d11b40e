//! `millgate bench stage`: one compliance stage on one text, in a fresh sandbox a call, on a reused
//! instance, and (for a first-party plugin) the same code compiled into this binary.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use millgate_plugin_pii::Pii;
use millgate_sandbox::bench::{self, BenchOptions, Micros, StageBench};
use millgate_sdk::testing::MockContext;
use millgate_sdk::{Compliance, Context, Plugin};
use serde_json::{Value, json};

use super::text;
use crate::args::BenchStageArgs;
use crate::commands::bytes_of;
use crate::{folders, open, words};

pub fn run(args: BenchStageArgs) -> Result<ExitCode> {
    if !(0.05..=600.0).contains(&args.seconds) {
        bail!("--seconds must be from 0.05 to 600");
    }
    let config: Value = serde_json::from_str(&args.config).context("--config is not JSON")?;
    let wasm = bytes_of(&args.plugin)?;
    let text = text::english(args.bytes);
    let sandbox = open::sandbox(&folders::data(None))?;
    let time = Duration::from_secs_f64(args.seconds);
    let seen = bench::stage(&sandbox, &wasm, &config, &text, BenchOptions { time })?;
    let native = if args.plugin == "pii" {
        Some(native(&config, &text, time / 4)?)
    } else {
        None
    };
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&as_json(&args, &seen, native))?
        );
    } else {
        print!("{}", describe(&args, &seen, native));
    }
    Ok(ExitCode::SUCCESS)
}

/// Median and 99th percentile of the plugin's own code, called as Rust.
fn native(config: &Value, text: &str, time: Duration) -> Result<(f64, f64)> {
    let failed = |error: millgate_sdk::StageError| anyhow!("{}: {}", error.code, error.message);
    let config = serde_json::from_value(config.clone()).context("the config does not fit")?;
    let plugin = Pii::configure(config).map_err(failed)?;
    let source = MockContext::default();
    let chunks = [text.to_owned()];
    let once = || {
        let mut inspection = plugin.begin(&Context::new(&source));
        black_box(
            plugin
                .push(&mut inspection, black_box(&chunks))
                .map_err(failed)?,
        );
        black_box(plugin.finish(&mut inspection).map_err(failed)?);
        Ok::<(), anyhow::Error>(())
    };
    for _ in 0..1000 {
        once()?;
    }
    let mut nanos = Vec::with_capacity(1 << 20);
    let end = Instant::now() + time;
    while Instant::now() < end {
        for _ in 0..100 {
            let begin = Instant::now();
            once()?;
            nanos.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
    }
    nanos.sort_unstable();
    let at = |share: f64| {
        let place = ((nanos.len() - 1) as f64 * share) as usize;
        nanos.get(place).map_or(0.0, |&nanos| nanos as f64 / 1e3)
    };
    Ok((at(0.5), at(0.99)))
}

fn as_json(args: &BenchStageArgs, seen: &StageBench, native: Option<(f64, f64)>) -> Value {
    let pair = |micros: &Micros| json!({ "p50_us": micros.p50_us, "p99_us": micros.p99_us });
    json!({
        "plugin": args.plugin,
        "bytes": seen.text_bytes,
        "fresh": pair(&seen.fresh),
        "warm": pair(&seen.warm),
        "native": native.map(|(p50, p99)| json!({ "p50_us": p50, "p99_us": p99 })),
        "isolation_p50_us": seen.isolation_p50_us,
        "five_stages_ratio": seen.five_stages_ratio,
        "isolation_p99_us": seen.isolation_p99_us,
        "one_thread": seen.one_thread,
        "two_threads": seen.two_threads,
        "two_threads_ratio": seen.two_threads / seen.one_thread,
        "parts": {
            "instance": pair(&seen.parts.instance),
            "calls": pair(&seen.parts.calls),
            "drop": pair(&seen.parts.drop),
        },
    })
}

fn describe(args: &BenchStageArgs, seen: &StageBench, native: Option<(f64, f64)>) -> String {
    let row = |name: &str, p50: f64, p99: f64| {
        vec![name.to_owned(), format!("{p50:.2}"), format!("{p99:.2}")]
    };
    let micros = |name: &str, micros: &Micros| row(name, micros.p50_us, micros.p99_us);
    let mut rows = vec![
        ["µs a call", "p50", "p99"].map(str::to_owned).to_vec(),
        micros("fresh sandbox", &seen.fresh),
        micros("  instance", &seen.parts.instance),
        micros("  calls", &seen.parts.calls),
        micros("  drop", &seen.parts.drop),
        micros("reused instance", &seen.warm),
    ];
    if let Some((p50, p99)) = native {
        rows.push(row("native", p50, p99));
    }
    rows.push(row(
        "isolation",
        seen.isolation_p50_us,
        seen.isolation_p99_us,
    ));
    format!(
        "{} ({} KiB) on {} bytes of text, {} fresh calls\n{}five stages in a row: {:.2} times one\ntwo threads: {:.0} calls/s, {:.2} times one thread's {:.0}\n",
        args.plugin,
        seen.bytes >> 10,
        seen.text_bytes,
        seen.fresh.samples,
        words::table(&rows),
        seen.five_stages_ratio,
        seen.two_threads,
        seen.two_threads / seen.one_thread,
        seen.one_thread,
    )
}
