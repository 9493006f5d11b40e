//! `millgate backtest`: the stages of another config over past requests, and what would change.

use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use millgate_ops::replay::{
    BacktestOptions, BacktestReport, Candidate, End, Flip, InputRange, InputSource, MEDIA_TYPE,
    Opened, RawPage, StageChange, StoredInputs, backtest, open_frame, read_frames,
};
use millgate_ops::trace::StageVerdict;
use millgate_ops::{Error, TraceId};
use serde_json::json;

use super::backtest_page;
use super::replay::range;
use super::traces::storage;
use crate::args::{BacktestArgs, TracesSource};
use crate::client::{Client, ClientError, query};
use crate::depot::Reach;
use crate::open::{self, Setup};
use crate::{folders, words};

/// Characters of the longest bar.
const BAR: u64 = 30;
/// Flips that are listed in JSON; all are counted.
const FLIPS: usize = 100_000;
/// Records of a page from a server.
const PAGE: usize = 256;

pub fn run(args: BacktestArgs) -> Result<ExitCode> {
    let range = range(args.since.as_deref())?;
    let data = folders::data(args.source.data.data.clone());
    let setup = Setup {
        config: args.config.clone(),
        data: data.clone(),
        model: None,
        reach: match args.locked {
            true => Reach::Machine,
            false => Reach::Network,
        },
    };
    let sandbox = open::sandbox(&data)?;
    let ready = setup.load_or_explain(&sandbox)?;
    let candidate = Candidate::load(&ready.config, &ready.plugins, &sandbox)?;

    let (source, total) = source_of(&args.source, range)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = BacktestOptions {
        limit: args.limit.unwrap_or(u64::MAX),
        threads: args.threads.map_or(cores, usize::from),
        show_text: args.show_text,
        examples: args.examples,
        flips: FLIPS,
    };
    let bar = bar(total.min(options.limit), "running the candidate's stages");
    let report = backtest(&candidate, &*source, options, &|done| bar.inc(done))?;
    bar.finish_and_clear();

    if let Some(path) = &args.html {
        let name = args.config.display().to_string();
        std::fs::write(path, backtest_page::page(&report, &name))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.source.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", described(&report));
        if let Some(path) = &args.html {
            println!("\nthe report with charts: {}", path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A progress bar on a terminal; nothing elsewhere.
pub(super) fn bar(total: u64, label: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template = "  {msg} [{bar:30}] {pos} of {len}, {per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(label.to_owned());
    bar
}

/// The server's records or, when none runs, those in the data folder; and how many there are.
fn source_of(source: &TracesSource, range: InputRange) -> Result<(Box<dyn InputSource>, u64)> {
    let client = Client::new(&source.server, source.key.clone());
    match client.get("/healthz") {
        Err(ClientError::NoServer(_)) => {
            let inputs = storage(source)?.inputs()?;
            let total = inputs.count_in(range, u64::MAX)?;
            Ok((Box::new(StoredInputs { inputs, range }), total))
        }
        _ => {
            let served = ServedInputs {
                client,
                range,
                first: Mutex::new(None),
            };
            let (page, total) = served.fetch(None, PAGE).map_err(|error| match error {
                ClientError::Refused { status: 404, .. } => {
                    anyhow!(
                        "the server at {} keeps no inputs; it is of another version",
                        source.server
                    )
                }
                other => other.into(),
            })?;
            if let Ok(mut first) = served.first.lock() {
                *first = Some(page);
            }
            Ok((Box::new(served), total))
        }
    }
}

/// The records of a running server.
struct ServedInputs {
    client: Client,
    range: InputRange,
    /// The first page, which was fetched for the number of all.
    first: Mutex<Option<RawPage>>,
}

impl ServedInputs {
    fn fetch(&self, cursor: Option<TraceId>, limit: usize) -> Result<(RawPage, u64), ClientError> {
        let path = format!(
            "/api/v1/inputs{}",
            query(&[
                ("limit", Some(limit.to_string())),
                ("since_ms", self.range.since_ms.map(|at| at.to_string())),
                ("cursor", cursor.map(|cursor| cursor.to_string())),
            ])?
        );
        let (bytes, headers) = self.client.get_bytes(&path)?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if header("content-type") != Some(MEDIA_TYPE) {
            return Err(anyhow!("the server did not answer with records").into());
        }
        let records = read_frames(&bytes).context("the server's records are cut off")?;
        let next = header("x-millgate-next").and_then(|next| next.parse().ok());
        let total = header("x-millgate-total").and_then(|total| total.parse().ok());
        Ok((RawPage { records, next }, total.unwrap_or(0)))
    }
}

impl InputSource for ServedInputs {
    fn page(&self, cursor: Option<TraceId>, limit: usize) -> millgate_ops::Result<RawPage> {
        let first = self.first.lock().ok().and_then(|mut first| first.take());
        if let (Some(first), None, true) = (first, cursor, limit == PAGE) {
            return Ok(first);
        }
        let fetched = self.fetch(cursor, limit);
        let (page, _) = fetched.map_err(|error| Error::Refused(error.to_string()))?;
        Ok(page)
    }

    fn open(&self, _trace: TraceId, raw: Vec<u8>) -> millgate_ops::Result<Opened> {
        Ok(open_frame(raw))
    }
}

/// The report as text.
fn described(report: &BacktestReport) -> String {
    let mut text = String::new();
    let period = match (report.from_ms, report.until_ms) {
        (Some(from), Some(until)) => format!(" from {} to {}", words::utc(from), words::utc(until)),
        _ => String::new(),
    };
    text.push_str(&format!(
        "{} requests{period}\n{:.2} s on {} threads, {:.0} requests/s\n",
        report.traces,
        report.seconds,
        report.threads,
        report.traces as f64 / report.seconds.max(1e-9)
    ));
    for (why, count) in &report.skipped {
        text.push_str(&format!("{count} could not be run: {why}\n"));
    }
    if report.traces == 0 {
        return text;
    }
    text.push_str("\nhow requests end\n");
    let most = report.ends.iter().map(|it| it.count).max().unwrap_or(1);
    let mut rows = Vec::new();
    for it in &report.ends {
        let same = it.then == it.now;
        let change = match same {
            true => format!("  {}", it.then.name()),
            false => format!("  {} -> {}", it.then.name(), it.now.name()),
        };
        rows.push(vec![
            change,
            it.count.to_string(),
            strip(it.count, most, same),
        ]);
    }
    text.push_str(&words::table(&rows));
    text.push_str(&format!(
        "  other text to the model: {}   other text to the client: {}\n",
        report.requests_changed, report.answers_changed
    ));

    text.push_str(&format!("\nverdicts that flip: {}\n", report.flips_total));
    let flips: Vec<(
        &StageChange,
        Option<StageVerdict>,
        Option<StageVerdict>,
        u64,
    )> = report
        .stages
        .iter()
        .flat_map(|stage| {
            let verdicts = stage.verdicts.iter().filter(|it| is_flip(it.then, it.now));
            verdicts.map(move |it| (stage, it.then, it.now, it.count))
        })
        .collect();
    let most = flips.iter().map(|(.., count)| *count).max().unwrap_or(1);
    let mut rows = Vec::new();
    for (stage, then, now, count) in flips {
        rows.push(vec![
            format!("  {} ({})", stage.stage, place(stage)),
            format!("{} -> {}", verdict(then), verdict(now)),
            count.to_string(),
            strip(count, most, false),
        ]);
    }
    text.push_str(&words::table(&rows));

    text.push_str("\nstages, then and now\n");
    let heads = [
        "  stage", "place", "plugin", "ran", "findings", "edits", "calls", "bytes", "p50", "p99",
        "all",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for stage in &report.stages {
        for (when, did, plugin) in [
            ("then", &stage.then, &stage.plugin_then),
            ("now", &stage.now, &stage.plugin_now),
        ] {
            let Some(plugin) = plugin else { continue };
            rows.push(vec![
                format!("  {} {when}", stage.stage),
                place(stage),
                plugin.clone(),
                did.ran.to_string(),
                did.findings.to_string(),
                did.edits.to_string(),
                did.calls.to_string(),
                did.given.to_string(),
                words::time(did.micros.p50),
                words::time(did.micros.p99),
                words::time(did.micros.total),
            ]);
        }
    }
    text.push_str(&words::table(&rows));

    if !report.examples.is_empty() {
        text.push_str("\nexamples\n");
    }
    for example in &report.examples {
        text.push_str(&format!("  {}\n", one_line(&example.flip)));
        if !example.findings.is_empty() {
            text.push_str(&format!("    finds now: {}\n", example.findings.join(", ")));
        }
        match &example.text {
            Some(shown) => {
                text.push_str(&format!("    {} B: {}\n", example.bytes, one_row(shown)));
            }
            None => text.push_str(&format!("    {} B of text (--show-text)\n", example.bytes)),
        }
    }
    text
}

/// A flip in one line.
pub(super) fn one_line(flip: &Flip) -> String {
    let place = json!(flip.place);
    format!(
        "{}  {} ({}): {} -> {}",
        flip.trace,
        flip.stage,
        place.as_str().unwrap_or_default(),
        verdict(flip.then),
        verdict(flip.now)
    )
}

pub(super) fn place(stage: &StageChange) -> String {
    json!(stage.place).as_str().unwrap_or_default().to_owned()
}

pub(super) fn verdict(verdict: Option<StageVerdict>) -> &'static str {
    verdict.map_or("no stage", StageVerdict::name)
}

/// Whether a transition is one of those that are counted as flips.
pub(super) fn is_flip(then: Option<StageVerdict>, now: Option<StageVerdict>) -> bool {
    let acts = |verdict: Option<StageVerdict>| verdict.unwrap_or(StageVerdict::Pass);
    let ran = |verdict| verdict != Some(StageVerdict::NotRun);
    ran(then) && ran(now) && acts(then) != acts(now)
}

/// Whether a transition of a whole request is a change.
pub(super) fn changes(then: End, now: End) -> bool {
    then != now
}

fn strip(count: u64, most: u64, same: bool) -> String {
    let length = (count * BAR).div_ceil(most.max(1)).min(BAR);
    let mark = if same { "." } else { "#" };
    mark.repeat(usize::try_from(length).unwrap_or(0))
}

/// A text in one row, without control characters.
fn one_row(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share_and_never_nothing() {
        assert_eq!(strip(30, 30, false).len(), 30);
        assert_eq!(strip(1, 1_000_000, false), "#");
        assert_eq!(strip(0, 5, true), "");
    }

    #[test]
    fn a_flip_is_what_the_report_counts_as_one() {
        assert!(is_flip(Some(StageVerdict::Pass), Some(StageVerdict::Block)));
        assert!(!is_flip(None, Some(StageVerdict::Pass)));
        assert!(!is_flip(
            Some(StageVerdict::NotRun),
            Some(StageVerdict::Block)
        ));
    }
}
