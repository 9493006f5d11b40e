//! `millgate replay`: the stages of past requests once more, in the running server, or straight from
//! the data folder when none runs.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use millgate_ops::TraceId;
use millgate_ops::config::Time;
use millgate_ops::replay::{InputRange, Player, ReplayOutcome, ReplayReport};
use serde::Deserialize;
use serde_json::json;

use super::traces::storage;
use crate::args::{OrderName, ReplayArgs, TracesSource};
use crate::client::{Client, ClientError, query};
use crate::serving::runtime;
use crate::{folders, open, words};

/// Ids of one page.
const PAGE: usize = 10_000;
/// Differences that are printed; all are counted.
const SHOWN: usize = 20;

pub fn run(args: ReplayArgs) -> Result<ExitCode> {
    let range = range(args.since.as_deref())?;
    let mut given = Vec::with_capacity(args.traces.len());
    for id in &args.traces {
        given.push(id.parse().map_err(|error| anyhow!("{id}: {error}"))?);
    }
    let place = Place::find(&args.source)?;
    let mut ids = match args.all {
        true => place.ids(range, args.limit.unwrap_or(usize::MAX))?,
        false => given,
    };
    match args.order {
        OrderName::Newest => {}
        OrderName::Oldest => ids.reverse(),
        // Trace ids hold random bits; by those the order has nothing to do with time.
        OrderName::Random => ids.sort_by_key(TraceId::seed),
    }
    let mut reports = Vec::with_capacity(ids.len());
    let bar = super::backtest::bar(ids.len() as u64, "replaying");
    for id in ids {
        reports.push(place.replay(id)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let count = |outcome| {
        reports
            .iter()
            .filter(|report| report.outcome == outcome)
            .count()
    };
    let (identical, differ, impossible) = (
        count(ReplayOutcome::Identical),
        count(ReplayOutcome::Differs),
        count(ReplayOutcome::Impossible),
    );
    if args.source.json {
        let value = json!({
            "identical": identical,
            "differ": differ,
            "impossible": impossible,
            "replays": reports,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        match reports.as_slice() {
            [] => println!("no inputs are kept; set `traces.inputs = \"on\"` in the config"),
            [one] if !args.all => print!("{}", described(one)),
            many => {
                let others = many
                    .iter()
                    .filter(|report| report.outcome != ReplayOutcome::Identical);
                for report in others.take(SHOWN) {
                    println!("{}", described(report));
                }
                println!("{identical} identical, {differ} differ, {impossible} cannot be replayed");
            }
        }
    }
    Ok(match (differ, impossible) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::from(1),
    })
}

/// What arrived in the last while; everything where none is said.
pub(super) fn range(since: Option<&str>) -> Result<InputRange> {
    let Some(since) = since else {
        return Ok(InputRange::default());
    };
    let time: Time = since
        .parse()
        .map_err(|error| anyhow!("--since {since}: {error}"))?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let begin = now.unwrap_or_default().saturating_sub(time.0);
    Ok(InputRange {
        since_ms: Some(u64::try_from(begin.as_millis()).unwrap_or(u64::MAX)),
        until_ms: None,
    })
}

/// Where replays are made.
enum Place {
    Server(Client),
    Here(Box<Here>),
}

struct Here {
    player: Player,
    inputs: std::sync::Arc<millgate_ops::replay::InputStore>,
    runtime: tokio::runtime::Runtime,
}

#[derive(Deserialize)]
struct Ids {
    ids: Vec<TraceId>,
    next: Option<TraceId>,
}

impl Place {
    fn find(source: &TracesSource) -> Result<Self> {
        let client = Client::new(&source.server, source.key.clone());
        match client.get("/healthz") {
            Err(ClientError::NoServer(_)) => {}
            _ => return Ok(Place::Server(client)),
        }
        let data = folders::data(source.data.data.clone());
        let inputs = storage(source)?.inputs()?;
        let plugins = open::plugins(std::path::Path::new(""));
        Ok(Place::Here(Box::new(Here {
            player: Player::new(open::sandbox(&data)?, inputs.clone(), plugins),
            inputs,
            runtime: runtime(Some(1))?,
        })))
    }

    /// The traces that have inputs, newest first.
    fn ids(&self, range: InputRange, limit: usize) -> Result<Vec<TraceId>> {
        let (mut ids, mut cursor) = (Vec::new(), None);
        while ids.len() < limit {
            let most = PAGE.min(limit - ids.len());
            let page: Ids = match self {
                Place::Here(here) => {
                    let (ids, next) = here.inputs.ids(range, cursor, most)?;
                    Ids { ids, next }
                }
                Place::Server(client) => {
                    let path = format!(
                        "/api/v1/inputs/ids{}",
                        query(&[
                            ("limit", Some(most.to_string())),
                            ("since_ms", range.since_ms.map(|at| at.to_string())),
                            ("cursor", cursor.map(|cursor: TraceId| cursor.to_string())),
                        ])?
                    );
                    serde_json::from_value(client.get(&path)?)
                        .context("the traces cannot be read; is the server of another version?")?
                }
            };
            ids.extend(page.ids);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        Ok(ids)
    }

    fn replay(&self, id: TraceId) -> Result<ReplayReport> {
        match self {
            Place::Here(here) => Ok(here.runtime.block_on(here.player.replay(id))?),
            Place::Server(client) => {
                let report = client.post(&format!("/api/v1/traces/{id}/replay"), &json!({}))?;
                serde_json::from_value(report)
                    .context("the replay cannot be read; is the server of another version?")
            }
        }
    }
}

/// A replay as text.
fn described(report: &ReplayReport) -> String {
    let outcome = match report.outcome {
        ReplayOutcome::Identical => "identical: every call gave the same bytes",
        ReplayOutcome::Differs => "differs",
        ReplayOutcome::Impossible => "cannot be replayed",
    };
    let mut text = format!("trace {}   {outcome}\n", report.trace);
    if let Some((generation, config)) = &report.config {
        text.push_str(&format!("config {generation} ({config})\n"));
    }
    if let (Some(then), Some(now)) = (&report.digest_then, &report.digest_now) {
        text.push_str(&match then == now {
            true => format!("answers {then}\n"),
            false => format!("answers then {then}\n        now  {now}\n"),
        });
    }
    if report.stages.is_empty() {
        if let Some(why) = &report.why {
            text.push_str(&format!("  {why}\n"));
        }
        return text;
    }
    let heads = ["stage", "place", "verdict", "calls", "replay", "plugin"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for stage in &report.stages {
        let word = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        rows.push(vec![
            stage.stage.clone(),
            word(json!(stage.place)),
            stage
                .verdict
                .map_or("", |verdict| verdict.name())
                .to_owned(),
            stage.calls.to_string(),
            word(json!(stage.outcome)),
            stage.plugin.chars().take(19).collect(),
        ]);
    }
    text.push_str(&words::table(&rows));
    for stage in &report.stages {
        if let Some(found) = &stage.difference {
            text.push_str(&format!(
                "  {}: text {}, call {} ({})\n    then: {}\n    now:  {}\n",
                stage.stage, found.session, found.call, found.function, found.then, found.now
            ));
        }
        if let Some(why) = &stage.why {
            text.push_str(&format!("  {}: {why}\n", stage.stage));
        }
    }
    text
}
