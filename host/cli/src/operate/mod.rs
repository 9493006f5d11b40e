//! `millgate plan`, `apply`, `rollback` and `generations`: a running server is asked over its API.

mod args;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use millgate_ops::{Change, GenerationRecord};
use serde_json::{Value, json};

use crate::client::{Client, ClientError, query};
use crate::storage::Storage;
use crate::{folders, words};

pub use args::OperateCommand;
use args::{ApplyArgs, GenerationsArgs, PlanArgs, RollbackArgs, ServerArgs, StagesArgs};

/// Something would change.
const CHANGES: u8 = 2;

pub fn run(command: OperateCommand) -> Result<ExitCode> {
    match command {
        OperateCommand::Plan(args) => plan(&args),
        OperateCommand::Apply(args) => apply(&args),
        OperateCommand::Rollback(args) => rollback(&args),
        OperateCommand::Generations(args) => generations(&args),
        OperateCommand::Stages(args) => stages(&args),
    }
}

fn plan(args: &PlanArgs) -> Result<ExitCode> {
    let mut body = json!({});
    put_config(&mut body, args.config.as_deref())?;
    let plan = post(&args.server, "plan", &body)?;
    let changed = plan.get("changed") == Some(&Value::Bool(true));
    if args.server.json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        print!("{}", describe_plan(&plan, changed)?);
    }
    Ok(if changed {
        ExitCode::from(CHANGES)
    } else {
        ExitCode::SUCCESS
    })
}

fn describe_plan(plan: &Value, changed: bool) -> Result<String> {
    let served = number(plan, "generation");
    if !changed {
        return Ok(format!(
            "nothing would change: generation {served} goes on\n"
        ));
    }
    let mut text = format!("against generation {served}:\n");
    text.push_str(&lines(plan)?);
    let costs = plan.get("costs").and_then(Value::as_array);
    for cost in costs.into_iter().flatten() {
        let micros = |key: &str| cost.get(key).and_then(Value::as_f64).unwrap_or_default();
        let name = cost.get("pipeline").and_then(Value::as_str);
        text.push_str(&format!(
            "time: pipelines.{}: {:.1} -> {:.1} µs for each KiB of text ({:+.1})",
            name.unwrap_or_default(),
            micros("now_us"),
            micros("then_us"),
            micros("added_us"),
        ));
        if let Some(unmeasured) = cost.get("unmeasured") {
            text.push_str(&format!(", without {unmeasured}"));
        }
        text.push('\n');
    }
    Ok(text + &notes(plan))
}

fn apply(args: &ApplyArgs) -> Result<ExitCode> {
    let mut body = json!({ "write": args.write, "again": args.again });
    put_config(&mut body, args.config.as_deref())?;
    put_name(&mut body, args.by.as_deref());
    let applied = post(&args.server, "apply", &body)?;
    report(&args.server, &applied)
}

fn rollback(args: &RollbackArgs) -> Result<ExitCode> {
    let mut body = json!({ "generation": args.generation });
    put_name(&mut body, args.by.as_deref());
    let applied = post(&args.server, "rollback", &body)?;
    report(&args.server, &applied)
}

fn report(server: &ServerArgs, applied: &Value) -> Result<ExitCode> {
    if server.json {
        println!("{}", serde_json::to_string_pretty(applied)?);
        return Ok(ExitCode::SUCCESS);
    }
    let generation = number(applied, "generation");
    if applied.get("changed") == Some(&Value::Bool(true)) {
        let took = applied.get("took_ms").and_then(Value::as_f64);
        print!("{}", lines(applied)?);
        println!(
            "generation {generation} is served, {:.1} ms after its check",
            took.unwrap_or_default()
        );
    } else {
        println!("nothing changed: generation {generation} goes on");
    }
    print!("{}", notes(applied));
    Ok(ExitCode::SUCCESS)
}

fn generations(args: &GenerationsArgs) -> Result<ExitCode> {
    let client = Client::new(&args.server.server, args.server.key.clone());
    let path = match args.generation {
        Some(number) => format!("/api/v1/generations/{number}"),
        None => {
            let limit = ("limit", Some(args.limit.to_string()));
            format!("/api/v1/generations{}", query(&[limit])?)
        }
    };
    let value = match client.get(&path) {
        Ok(value) => value,
        Err(ClientError::NoServer(_)) => at_rest(args)?,
        Err(error) => return Err(error.into()),
    };
    if args.server.json {
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let record = |value: Value| -> Result<GenerationRecord> {
        serde_json::from_value(value)
            .context("the generations cannot be read; is the server of another version?")
    };
    if args.generation.is_some() {
        let text = value.get("config").and_then(Value::as_str);
        let text = text.unwrap_or_default().to_owned();
        print!("{}", describe(&record(value)?, &text));
        return Ok(ExitCode::SUCCESS);
    }
    let served = value.get("served").and_then(Value::as_u64);
    let list = value.get("generations").and_then(Value::as_array).cloned();
    let list = list.unwrap_or_default();
    if list.is_empty() {
        println!("no generations yet");
        return Ok(ExitCode::SUCCESS);
    }
    let heads = ["", "generation", "at", "how", "by", "changes"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for value in list {
        rows.push(row(&record(value)?, served));
    }
    print!("{}", words::table(&rows));
    Ok(ExitCode::SUCCESS)
}

fn stages(args: &StagesArgs) -> Result<ExitCode> {
    let client = Client::new(&args.server.server, args.server.key.clone());
    let value = client.get("/api/v1/stages")?;
    if args.server.json {
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(ExitCode::SUCCESS);
    }
    let heads = ["stage", "plugin", "mode", "stands in", "verdicts"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for stage in value.as_array().into_iter().flatten() {
        let text = |pointer: &str| {
            let value = stage.pointer(pointer).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let places = stage.get("places").and_then(Value::as_array);
        let places = places.into_iter().flatten().map(|place| {
            let part = |key: &str| place.get(key).and_then(Value::as_str).unwrap_or_default();
            format!("{}.{}", part("pipeline"), part("place"))
        });
        let mut mode = text("/mode");
        if let Some(share) = stage.pointer("/canary/share").and_then(Value::as_f64) {
            mode.push_str(&format!(", {:.1} %", share * 100.0));
        }
        rows.push(vec![
            text("/stage"),
            text("/plugin"),
            mode,
            places.collect::<Vec<_>>().join(", "),
            verdicts(stage),
        ]);
    }
    print!("{}", words::table(&rows));
    Ok(ExitCode::SUCCESS)
}

/// How a stage's verdicts compare where they do not count, and where it stands as a canary.
fn verdicts(stage: &Value) -> String {
    let mut parts = Vec::new();
    let text = |pointer: &str| stage.pointer(pointer).and_then(Value::as_str);
    if let Some(answer) = text("/canary/answer") {
        let reason = text("/canary/reason").unwrap_or_default();
        parts.push(format!("{answer}: {reason}"));
    }
    if let Some(Value::Object(shadow)) = stage.get("shadow") {
        let counts = shadow.iter().filter_map(|(name, count)| {
            let count = count.as_u64().filter(|&count| count > 0)?;
            Some(format!("{count} {name}"))
        });
        parts.extend(counts);
    }
    if parts.is_empty() && stage.get("mode") == Some(&Value::from("enforce")) {
        return "count".to_owned();
    }
    parts.join(", ")
}

/// The same from the data folder of a server that does not run.
fn at_rest(args: &GenerationsArgs) -> Result<Value> {
    let storage = Storage::open(&folders::data(args.data.data.clone())).with_context(|| {
        format!(
            "there is no server at {}, and its data cannot be read directly",
            args.server.server
        )
    })?;
    let generations = storage.generations()?;
    let Some(number) = args.generation else {
        let list = generations.list(usize::try_from(args.limit)?)?;
        return Ok(json!({ "served": null, "generations": list }));
    };
    let record = generations.get(number)?;
    let mut value = json!(record);
    if let Some(fields) = value.as_object_mut() {
        fields.insert("config".to_owned(), generations.text(&record)?.into());
    }
    Ok(value)
}

fn row(record: &GenerationRecord, served: Option<u64>) -> Vec<String> {
    let how = match record.of {
        Some(of) => format!("{} to {of}", record.how.name()),
        None => record.how.name().to_owned(),
    };
    let changes = match record.changes.as_slice() {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    };
    vec![
        if served == Some(record.number) {
            "*".to_owned()
        } else {
            String::new()
        },
        record.number.to_string(),
        words::utc(record.at_ms),
        how,
        record.by.clone(),
        changes,
    ]
}

fn describe(record: &GenerationRecord, text: &str) -> String {
    let mut out = format!(
        "generation {}   {}   {} by {}\n{}\n",
        record.number,
        words::utc(record.at_ms),
        record.how.name(),
        record.by,
        record.digest
    );
    for change in &record.changes {
        out.push_str(&format!("{change}\n"));
    }
    for (stage, pin) in &record.stages {
        out.push_str(&format!(
            "stage {stage}: {} {} {}\n",
            pin.plugin, pin.version, pin.digest
        ));
    }
    out + "\n" + text
}

fn post(server: &ServerArgs, operation: &str, body: &Value) -> Result<Value> {
    let client = Client::new(&server.server, server.key.clone());
    Ok(client.post(&format!("/api/v1/{operation}"), body)?)
}

fn put_config(body: &mut Value, file: Option<&Path>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read {}; name another --config", file.display()))?;
    put(body, "config", text);
    Ok(())
}

/// Whoever runs the command; the server only has the key, which is everybody's.
fn put_name(body: &mut Value, given: Option<&str>) {
    let name = given
        .map(str::to_owned)
        .or_else(|| std::env::var("USER").ok().filter(|name| !name.is_empty()));
    if let Some(name) = name {
        put(body, "by", name);
    }
}

fn put(body: &mut Value, key: &str, text: String) {
    if let Some(fields) = body.as_object_mut() {
        fields.insert(key.to_owned(), text.into());
    }
}

/// The changes, a line each.
fn lines(value: &Value) -> Result<String> {
    let changes = value.get("changes").cloned().unwrap_or_default();
    let changes: Vec<Change> = serde_json::from_value(changes)
        .context("the changes cannot be read; is the server of another version?")?;
    Ok(changes.iter().map(|change| format!("{change}\n")).collect())
}

fn notes(value: &Value) -> String {
    let notes = value.get("notes").and_then(Value::as_array);
    let notes = notes.into_iter().flatten().filter_map(Value::as_str);
    notes.map(|note| format!("note: {note}\n")).collect()
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}
