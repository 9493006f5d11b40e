//! `millgate chat`: a conversation in the terminal. After each answer it shows what each stage
//! did, from the answer's trace.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use millgate_ops::Trace;
use serde_json::{Value, json};

use super::in_process::{Place, with_server};
use super::traces;
use crate::args::ChatArgs;
use crate::client::{Client, ClientError};
use crate::words;

pub fn run(args: ChatArgs) -> Result<ExitCode> {
    if let Some(server) = &args.server {
        let client = Client::new(server, args.key.clone());
        return converse(&client, &args);
    }
    let place = Place {
        data: args.data.data.clone(),
        config: args.config.as_ref(),
        model_file: args.model_file.as_ref(),
        key: args.key.clone(),
    };
    with_server(place, |client| converse(client, &args))
}

fn converse(client: &Client, args: &ChatArgs) -> Result<ExitCode> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => first_model(client)?,
    };
    let mut messages: Vec<Value> = Vec::new();
    if let Some(system) = &args.system {
        messages.push(json!({ "role": "system", "content": system }));
    }
    if !args.text.is_empty() {
        let answered = turn(client, args, &model, &mut messages, &args.text.join(" "))?;
        return Ok(if answered {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        println!(
            "talking to {model} at {}; an empty line or Ctrl-D ends",
            client.base()
        );
    }
    loop {
        if interactive {
            print!("\nyou> ");
            std::io::stdout().flush()?;
        }
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line)? == 0 || (interactive && line.trim().is_empty()) {
            return Ok(ExitCode::SUCCESS);
        }
        if !line.trim().is_empty() {
            turn(client, args, &model, &mut messages, line.trim())?;
        }
    }
}

pub(super) fn first_model(client: &Client) -> Result<String> {
    let models = client.get("/v1/models")?;
    let first = models.pointer("/data/0/id").and_then(Value::as_str);
    Ok(first
        .context("the server lists no model by name; name one with --model")?
        .to_owned())
}

/// One question and its answer. A refused question is taken back, so that the conversation can go
/// on without it; false then.
fn turn(
    client: &Client,
    args: &ChatArgs,
    model: &str,
    messages: &mut Vec<Value>,
    text: &str,
) -> Result<bool> {
    messages.push(json!({ "role": "user", "content": text }));
    let mut request = json!({
        "model": model,
        "messages": messages,
        "stream": true,
        "max_tokens": args.max_tokens,
    });
    if let (Some(temperature), Some(object)) = (args.temperature, request.as_object_mut()) {
        object.insert("temperature".into(), json!(temperature));
    }
    let streamed = client.stream_chat(&request, |piece| {
        print!("{piece}");
        let _ = std::io::stdout().flush();
    });
    println!();
    let (trace, answered) = match streamed {
        Ok(streamed) => {
            if let Some(error) = &streamed.error {
                println!("[the answer was cut: {error}]");
            }
            messages.push(json!({ "role": "assistant", "content": streamed.text }));
            (streamed.trace, streamed.error.is_none())
        }
        Err(ClientError::Refused {
            code,
            message,
            trace,
            ..
        }) => {
            println!("[refused: {message} ({code})]");
            messages.pop();
            (trace, false)
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(trace) = trace.and_then(|id| trace_of(client, &id)) {
        println!();
        print!("{}", indent(&summary(&trace)));
    }
    Ok(answered)
}

/// A trace by its id. It is there when the stream has ended, unless the config lets it come later.
fn trace_of(client: &Client, id: &str) -> Option<Trace> {
    for _ in 0..10 {
        match client.get(&format!("/api/v1/traces/{id}")) {
            Ok(value) => return serde_json::from_value(value).ok(),
            Err(ClientError::Refused { status: 404, .. }) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(_) => return None,
        }
    }
    None
}

fn summary(trace: &Trace) -> String {
    let decode = trace.timings.total.saturating_sub(trace.timings.ttft);
    let rate = f64::from(trace.tokens.completion) / (decode.max(1) as f64 / 1e6);
    format!(
        "{}{} tokens in, {} out, first after {}, {rate:.0} a second   trace {}\n",
        traces::stages(trace),
        trace.tokens.prompt,
        trace.tokens.completion,
        words::time(trace.timings.ttft),
        trace.id,
    )
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  | {line}\n")).collect()
}
