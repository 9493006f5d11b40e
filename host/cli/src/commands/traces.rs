//! `millgate traces list` and `millgate traces show`: from the running server, or straight from
//! the data folder when none runs.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use millgate_ops::trace::{StageVerdict, Trace};
use millgate_ops::{TraceFilter, TraceId};
use serde_json::{Value, json};

use crate::args::{TracesCommand, TracesEraseArgs, TracesListArgs, TracesShowArgs, TracesSource};
use crate::client::{Client, ClientError, query};
use crate::storage::Storage;
use crate::{folders, words};

pub fn run(command: TracesCommand) -> Result<ExitCode> {
    match command {
        TracesCommand::List(args) => list(args),
        TracesCommand::Show(args) => show(args),
        TracesCommand::EraseInputs(args) => erase(args),
    }
}

fn list(args: TracesListArgs) -> Result<ExitCode> {
    let path = format!(
        "/api/v1/traces{}",
        query(&[
            ("limit", Some(args.limit.to_string())),
            ("model", args.model.clone()),
            ("stage", args.stage.clone()),
            ("verdict", args.verdict.clone()),
            ("finish", args.finish.clone()),
        ])?
    );
    let page = match asked(&args.source, &path)? {
        Some(page) => page,
        None => {
            let verdict = args.verdict.as_deref().map(verdict_of).transpose()?;
            let filter = TraceFilter {
                model: args.model,
                stage: args.stage,
                verdict,
                finish: args.finish,
                limit: args.limit,
                ..TraceFilter::default()
            };
            json!(storage(&args.source)?.traces()?.list(&filter)?)
        }
    };
    if args.source.json {
        println!("{}", serde_json::to_string_pretty(&page)?);
        return Ok(ExitCode::SUCCESS);
    }
    let traces: Vec<Trace> =
        serde_json::from_value(page.get("traces").cloned().unwrap_or_default())
            .context("the traces cannot be read; is the server of another version?")?;
    if traces.is_empty() {
        println!("no traces yet");
        return Ok(ExitCode::SUCCESS);
    }
    let heads = [
        "trace",
        "at",
        "model",
        "end",
        "tokens",
        "total",
        "stages that acted",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(traces.iter().map(row));
    print!("{}", words::table(&rows));
    Ok(ExitCode::SUCCESS)
}

fn row(trace: &Trace) -> Vec<String> {
    let acted: Vec<String> = trace
        .stages
        .iter()
        .filter(|stage| stage.enforced && stage.verdict > StageVerdict::Pass)
        .map(|stage| format!("{}: {}", stage.stage, stage.verdict.name()))
        .collect();
    vec![
        trace.id.to_string(),
        words::utc(trace.at_ms),
        trace.model.to_string(),
        trace.finish.name().to_owned(),
        format!("{}+{}", trace.tokens.prompt, trace.tokens.completion),
        words::time(trace.timings.total),
        acted.join(", "),
    ]
}

fn show(args: TracesShowArgs) -> Result<ExitCode> {
    let id: TraceId = args.id.parse().map_err(|error| anyhow!("{error}"))?;
    let value = match asked(&args.source, &format!("/api/v1/traces/{id}"))? {
        Some(value) => value,
        None => {
            let storage = storage(&args.source)?;
            let found = storage.traces()?.get(id)?;
            let mut value = json!(found.with_context(|| format!("there is no trace {id}"))?);
            if let Some(object) = value.as_object_mut() {
                object.insert("inputs".into(), storage.inputs()?.has(id)?.into());
            }
            value
        }
    };
    if args.source.json {
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let texts = ["input_text", "output_text"].map(|name| value.get(name).cloned());
    let inputs = value.get("inputs").and_then(Value::as_bool);
    let trace: Trace = serde_json::from_value(value)
        .context("the trace cannot be read; is the server of another version?")?;
    print!("{}", describe(&trace));
    if inputs == Some(true) {
        println!("its inputs are kept: millgate replay {id}");
    }
    for (title, text) in ["request", "answer"].iter().zip(texts) {
        if let Some(Value::String(text)) = text {
            println!("\n{title}\n  {}", text.replace('\n', "\n  "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn erase(args: TracesEraseArgs) -> Result<ExitCode> {
    let path = format!(
        "/api/v1/inputs{}",
        query(&[
            ("tenant", Some(args.tenant.clone())),
            ("user", args.user.clone())
        ])?
    );
    let client = Client::new(&args.source.server, args.source.key.clone());
    let keys = match client.delete(&path) {
        Ok(value) => value.get("keys").and_then(Value::as_u64).unwrap_or(0),
        Err(ClientError::NoServer(_)) => {
            storage(&args.source)?.erase_inputs(&args.tenant, args.user.as_deref())?
        }
        Err(error) => return Err(error.into()),
    };
    if args.source.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json!({ "keys": keys }))?
        );
    } else {
        match keys {
            0 => println!("nothing is kept of them"),
            keys => println!("erased: nobody can read it any more ({keys} keys)"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A trace as text: the request, its end, and what each stage did.
pub fn describe(trace: &Trace) -> String {
    let stream = if trace.stream { ", streamed" } else { "" };
    let mut text = format!(
        "trace {}   {}{stream}\nmodel {}   pipeline {} (config {})   arm {} ({}), propensity {:.2}\n",
        trace.id,
        words::utc(trace.at_ms),
        trace.model,
        trace.pipeline,
        trace.generation,
        if trace.arm.is_empty() {
            "none"
        } else {
            &trace.arm
        },
        trace.arm_model,
        trace.propensity,
    );
    if !trace.route.is_empty() {
        text.push_str(&format!("route {}\n", trace.route));
    }
    text.push_str(&format!(
        "end {}   {} prompt tokens ({} from cache), {} answered   queue {}, first token {}, total {}\n",
        trace.finish.name(),
        trace.tokens.prompt,
        trace.tokens.cached,
        trace.tokens.completion,
        words::time(trace.timings.queue),
        words::time(trace.timings.ttft),
        words::time(trace.timings.total),
    ));
    if let Some(error) = &trace.error {
        text.push_str(&format!(
            "error {} {}: {}\n",
            error.status, error.code, error.message
        ));
    }
    for score in &trace.scores {
        text.push_str(&format!("score {} = {:.4}\n", score.name, score.value));
    }
    if let Some(why) = &trace.no_scores {
        text.push_str(&format!("no scores: {why}\n"));
    }
    text.push_str(&stages(trace));
    text
}

/// What each stage did, as a table and its findings.
pub fn stages(trace: &Trace) -> String {
    if trace.stages.is_empty() {
        return "no stages\n".to_owned();
    }
    let heads = [
        "stage",
        "place",
        "plugin",
        "verdict",
        "given of passed",
        "edits",
        "calls",
        "time",
    ];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for stage in &trace.stages {
        let place = json!(stage.place).as_str().unwrap_or_default().to_owned();
        let place = match (stage.enforced, stage.compared) {
            (true, _) => place,
            (false, None) => format!("{place} (shadow)"),
            (false, Some(compared)) => format!("{place} (shadow: {})", compared.name()),
        };
        rows.push(vec![
            stage.stage.to_string(),
            place,
            stage.plugin.to_string(),
            stage.verdict.name().to_owned(),
            format!("{} of {} B", stage.given, stage.passed),
            stage.edits.to_string(),
            stage.calls.to_string(),
            words::time(stage.micros),
        ]);
    }
    let mut text = words::table(&rows);
    for stage in &trace.stages {
        for finding in &stage.findings {
            let span = finding.span.map_or_else(String::new, |span| {
                format!(" at {}..{}", span.start, span.end)
            });
            text.push_str(&format!(
                "  {}: {}{span}, score {:.2}: {}\n",
                stage.stage, finding.rule, finding.score, finding.explanation
            ));
        }
        if stage.findings_dropped > 0 {
            text.push_str(&format!(
                "  {}: {} more findings\n",
                stage.stage, stage.findings_dropped
            ));
        }
        if let Some(failure) = &stage.failure {
            text.push_str(&format!(
                "  {}: {}: {}\n",
                stage.stage, failure.kind, failure.message
            ));
        }
    }
    text
}

/// Asks the server; `None` when none runs there.
fn asked(source: &TracesSource, path: &str) -> Result<Option<Value>> {
    let client = Client::new(&source.server, source.key.clone());
    match client.get(path) {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::NoServer(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn storage(source: &TracesSource) -> Result<Storage> {
    Storage::open(&folders::data(source.data.data.clone())).with_context(|| {
        format!(
            "there is no server at {}, and its data cannot be read directly",
            source.server
        )
    })
}

fn verdict_of(name: &str) -> Result<StageVerdict> {
    let known = StageVerdict::ALL
        .into_iter()
        .find(|verdict| verdict.name() == name);
    let Some(verdict) = known else {
        let names = StageVerdict::ALL.map(StageVerdict::name);
        bail!("--verdict {name}: it must be one of {}", names.join(", "));
    };
    Ok(verdict)
}
