//! `millgate plugin bench`: what a plugin costs, beside the first-party one of its kind.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use millgate_sandbox::{
    Answer, DeploymentActor, Event, Interface, Isolation, Label, Measure, MonitorActor,
    MonitorOptions, Sandbox, Stage,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::BenchArgs;
use super::call::{arms, context};
use super::project::Project;
use super::{Subject, build, fixture};
use crate::commands::{bytes_of, sample_of};
use crate::{bench, folders, open, words};

/// What one plugin costs. Times are medians of a call in microseconds.
#[derive(Debug, Serialize)]
struct Cost {
    plugin: String,
    bytes: u64,
    /// Linear memory of one instance after a call.
    memory: u64,
    /// Milliseconds from bytes to a stage; few where the compiled image was in the cache.
    load_ms: f64,
    /// A call in a sandbox of its own; none for long-lived actors.
    fresh_us: Option<f64>,
    /// A call of an instance that stays.
    warm_us: f64,
    /// `warm_us` for each KiB of text.
    us_per_kib: f64,
}

pub fn run(args: BenchArgs) -> Result<ExitCode> {
    let sandbox = open::sandbox(&folders::data(None))?;
    let (bytes, config) = subject(&args)?;
    let info = sandbox.inspect(&bytes)?;
    let interface = *info
        .interfaces
        .first()
        .context("the plugin exports no stage interface")?;
    let own = measure(&sandbox, &bytes, config, interface, &args)?;
    let first = first_party(interface);
    let known = millgate_plugins::get(first).context("the first-party plugin is missing")?;
    let theirs = measure(&sandbox, known.wasm, json!({}), interface, &args)?;
    if args.json {
        let report = json!({
            "interface": interface, "text_bytes": args.bytes, "plugin": own, "first_party": theirs,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{interface}, {} bytes of text a call, medians", args.bytes);
    let mut rows = vec![
        [
            "",
            "size",
            "memory",
            "load",
            "fresh call",
            "warm call",
            "a fresh instance",
            "µs a KiB",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    rows.extend([own, theirs].iter().map(row));
    print!("{}", words::table(&rows));
    Ok(ExitCode::SUCCESS)
}

fn row(cost: &Cost) -> Vec<String> {
    let us = |us: f64| format!("{us:.1} µs");
    vec![
        cost.plugin.clone(),
        format!("{} KiB", cost.bytes.div_ceil(1024)),
        format!("{} KiB", cost.memory.div_ceil(1024)),
        format!("{:.0} ms", cost.load_ms),
        cost.fresh_us.map_or_else(|| "-".into(), us),
        us(cost.warm_us),
        cost.fresh_us
            .map_or_else(|| "-".into(), |fresh| us(fresh - cost.warm_us)),
        format!("{:.1}", cost.us_per_kib),
    ]
}

/// The plugin's bytes, and the config that it is measured with.
fn subject(args: &BenchArgs) -> Result<(Vec<u8>, Value)> {
    let given = args
        .config
        .as_deref()
        .map(serde_json::from_str)
        .transpose()
        .context("--config is not JSON")?;
    let name = args.plugin.to_string_lossy();
    let is_dir = args.plugin.is_dir();
    if !is_dir {
        return Ok((bytes_of(&name)?, given.unwrap_or_else(|| json!({}))));
    }
    let project = Project::open(Path::new(&args.plugin))?;
    let built = if project.component().exists() {
        build::built(&project)?
    } else {
        build::build(&project)?
    };
    let first = || {
        fixture::read(&project.dir)
            .ok()
            .and_then(|cases| cases.into_iter().next())
    };
    let config = given.or_else(|| first().map(|(_, case)| case.config));
    Ok((built.bytes, config.unwrap_or_else(|| json!({}))))
}

fn first_party(interface: Interface) -> &'static str {
    match interface {
        Interface::Compliance => "pii",
        Interface::Validation => "schema",
        Interface::Monitoring => "drift",
        Interface::Deployment => "canary",
        Interface::Evaluation => "overlap",
    }
}

/// Something to call again and again.
enum Target {
    Stage(Stage),
    Monitor(MonitorActor),
    Deployment(DeploymentActor),
}

fn measure(
    sandbox: &Sandbox,
    bytes: &[u8],
    config: Value,
    interface: Interface,
    args: &BenchArgs,
) -> Result<Cost> {
    let info = sandbox.inspect(bytes)?;
    let subject = Subject {
        sandbox,
        bytes,
        info: &info,
    };
    let begin = Instant::now();
    let (fresh, _) = subject.load(config.clone(), Isolation::Fresh)?;
    let load_ms = begin.elapsed().as_secs_f64() * 1e3;
    let text = bench::english(args.bytes);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let time = Duration::from_secs_f64(args.seconds.clamp(0.05, 60.0));
    let (fresh_us, warm_us, memory) = runtime.block_on(async {
        match interface {
            Interface::Monitoring => {
                let monitor = fresh.monitor(MonitorOptions::default())?;
                let warm = median(&Target::Monitor(monitor), interface, &text, time).await?;
                Ok::<_, anyhow::Error>((None, warm, fresh.stats().memory_peak))
            }
            Interface::Deployment => {
                let actor = fresh.deployment()?;
                let warm = median(&Target::Deployment(actor), interface, &text, time).await?;
                Ok((None, warm, fresh.stats().memory_peak))
            }
            _ => {
                let (warm, _) = subject.load(config, Isolation::Warm)?;
                let memory = |stage: &Stage| stage.stats().memory_peak;
                let fresh_target = Target::Stage(fresh.clone());
                let fresh_us = median(&fresh_target, interface, &text, time).await?;
                let warm_us = median(&Target::Stage(warm), interface, &text, time).await?;
                Ok((Some(fresh_us), warm_us, memory(&fresh)))
            }
        }
    })?;
    #[allow(clippy::cast_precision_loss, reason = "a text's size")]
    let kib = (args.bytes.max(1) as f64) / 1024.0;
    Ok(Cost {
        plugin: info.manifest.name.clone(),
        bytes: info.size,
        memory,
        load_ms,
        fresh_us,
        warm_us,
        us_per_kib: warm_us / kib,
    })
}

/// The median of calls in the given time, after a few to warm up.
async fn median(target: &Target, interface: Interface, text: &str, time: Duration) -> Result<f64> {
    let mut taken = Vec::new();
    for _ in 0..5 {
        once(target, interface, text).await?;
    }
    let end = Instant::now() + time;
    while Instant::now() < end || taken.len() < 10 {
        let begin = Instant::now();
        once(target, interface, text).await?;
        taken.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    taken
        .get(taken.len() / 2)
        .copied()
        .context("nothing was measured")
}

async fn once(target: &Target, interface: Interface, text: &str) -> Result<()> {
    let context = context(None);
    match target {
        Target::Stage(stage) => match interface {
            Interface::Compliance => {
                let mut inspection = stage.inspection(&context);
                inspection.push_async(&[text]).await?;
                inspection.finish_async().await?;
            }
            Interface::Validation => {
                stage.validate_async(&context, &[sample_of(text)]).await?;
            }
            _ => {
                let answer = Answer {
                    id: "1".into(),
                    input: String::new(),
                    output: text.into(),
                    references: vec![text.into()],
                };
                stage.evaluate_async(&context, &[answer]).await?;
            }
        },
        Target::Deployment(actor) => {
            let features = [Label {
                name: "user".into(),
                value: text.into(),
            }];
            actor.route(&context, &features, &arms()).await?;
        }
        // One event, then a save, whose answer says that both are done.
        Target::Monitor(monitor) => {
            monitor.observe(Event {
                trace_id: "t".into(),
                at_ms: 0,
                labels: Vec::new(),
                measures: vec![Measure {
                    name: "completion-tokens".into(),
                    value: 12.0,
                }],
            });
            monitor.save().await?;
        }
    }
    Ok(())
}
