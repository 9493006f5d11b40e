//! `millgate explain`: which words of a prompt an answer hangs on, token by token, in the terminal or as JSON.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::chat::first_model;
use super::in_process::{Place, with_server};
use crate::args::{ExplainArgs, UnitName};
use crate::client::Client;
use crate::words;

/// Units that are printed for the whole answer, and for one token of it.
const MOST_UNITS: usize = 12;
const MOST_OF_TOKEN: usize = 3;
/// Characters of the longest bar.
const BAR: usize = 20;

pub fn run(args: ExplainArgs) -> Result<ExitCode> {
    if let Some(server) = &args.server {
        let client = Client::new(server, args.key.clone());
        return explain(&client, &args);
    }
    let place = Place {
        data: args.data.data.clone(),
        config: args.config.as_ref(),
        model_file: args.model_file.as_ref(),
        key: args.key.clone(),
    };
    with_server(place, |client| explain(client, &args))
}

fn explain(client: &Client, args: &ExplainArgs) -> Result<ExitCode> {
    let explained = match &args.trace {
        Some(id) => client.post(&format!("/api/v1/traces/{id}/explain"), &asked(args))?,
        None => {
            let mut body = asked(args);
            let model = match &args.model {
                Some(model) => model.clone(),
                None => first_model(client)?,
            };
            set(&mut body, "model", json!(model));
            let text = args.text.join(" ");
            if args.plain {
                set(&mut body, "prompt", json!(text));
            } else {
                let mut messages = Vec::new();
                if let Some(system) = &args.system {
                    messages.push(json!({ "role": "system", "content": system }));
                }
                messages.push(json!({ "role": "user", "content": text }));
                set(&mut body, "messages", messages.into());
            }
            if let Some(answer) = &args.answer {
                set(&mut body, "answer", json!(answer));
            }
            if let Some(most) = args.max_tokens {
                set(&mut body, "max_tokens", json!(most));
            }
            client.post("/api/v1/explain", &body)?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&explained)?);
    } else {
        let explained = serde_json::from_value(explained)
            .context("the explanation cannot be read; is the server of another version?")?;
        print!("{}", described(&explained));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is asked beside the prompt.
fn asked(args: &ExplainArgs) -> Value {
    let unit = match args.unit {
        UnitName::Token => "token",
        UnitName::Word => "word",
        UnitName::Sentence => "sentence",
    };
    let mut body = json!({ "unit": unit, "top": args.top });
    if !args.token.is_empty() {
        set(&mut body, "targets", json!(args.token));
    }
    body
}

fn set(body: &mut Value, name: &str, value: Value) {
    if let Some(object) = body.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

/// An explanation as the API gives it.
#[derive(Deserialize)]
struct Explained {
    model: String,
    unit: String,
    units: Vec<Part>,
    tokens: Vec<Said>,
    attributions: Vec<Attribution>,
    totals: Vec<f32>,
}

#[derive(Deserialize)]
struct Part {
    text: String,
}

#[derive(Deserialize)]
struct Said {
    text: String,
    logprob: f32,
    #[serde(default)]
    top: Vec<Alternative>,
}

#[derive(Deserialize)]
struct Alternative {
    text: String,
    logprob: f32,
}

#[derive(Deserialize)]
struct Attribution {
    token: usize,
    scores: Vec<f32>,
}

fn described(explained: &Explained) -> String {
    let answer: String = explained
        .tokens
        .iter()
        .map(|token| token.text.as_str())
        .collect();
    let mut out = format!("{}: {}\n\n", explained.model, answer.trim());
    out += &format!(
        "what it hangs on: how much less likely (in nats) {} of the answer would be without each {}\n",
        match explained.attributions.len() {
            1 => "the token".to_owned(),
            count => format!("{count} tokens"),
        },
        explained.unit
    );
    let ranked = ranked(&explained.totals);
    let most = ranked
        .iter()
        .map(|(_, score)| score.abs())
        .fold(f32::MIN_POSITIVE, f32::max);
    let mut rows = Vec::new();
    for (unit, score) in ranked.iter().take(MOST_UNITS) {
        let length = (score.abs() / most * BAR as f32).round() as usize;
        let mark = if *score < 0.0 { "-" } else { "#" };
        rows.push(vec![
            format!("  {score:+8.3}"),
            unit_text(explained, *unit),
            mark.repeat(length),
        ]);
    }
    out += &words::table(&rows);
    let left = ranked.len().saturating_sub(MOST_UNITS);
    if left > 0 {
        out += &format!("  and {left} that matter less\n");
    }
    out += "\ntoken by token\n";
    let heads = ["   #", "token", "probability", "hangs most on", "or"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for (index, token) in explained.tokens.iter().enumerate() {
        let attribution = explained.attributions.iter().find(|it| it.token == index);
        let on = attribution.map_or_else(String::new, |attribution| {
            let units = self::ranked(&attribution.scores);
            let shown = units.iter().take(MOST_OF_TOKEN);
            let shown =
                shown.map(|(unit, score)| format!("{} {score:+.2}", unit_text(explained, *unit)));
            shown.collect::<Vec<_>>().join("  ")
        });
        let others = token
            .top
            .iter()
            .filter(|other| other.text != token.text)
            .map(|other| format!("{} {}", shown(&other.text), percent(other.logprob)));
        rows.push(vec![
            format!("{index:4}"),
            shown(&token.text),
            percent(token.logprob),
            on,
            others.collect::<Vec<_>>().join("  "),
        ]);
    }
    out + &words::table(&rows)
}

/// The units by how much they matter, most first.
fn ranked(scores: &[f32]) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    ranked.sort_by(|(_, a), (_, b)| b.abs().total_cmp(&a.abs()));
    ranked
}

fn unit_text(explained: &Explained, unit: usize) -> String {
    let text = explained.units.get(unit).map_or("", |unit| &unit.text);
    let text = text.trim();
    if text.is_empty() {
        return "(white space)".to_owned();
    }
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short.replace(char::is_control, " ")
}

/// A token with its white space to be seen.
fn shown(text: &str) -> String {
    let escaped: String = text
        .chars()
        .flat_map(|c| match c {
            '\n' | '\t' | '\r' => c.escape_default().collect::<Vec<_>>(),
            c if c.is_control() => vec!['\u{fffd}'],
            c => vec![c],
        })
        .collect();
    match text.trim() == text && !text.is_empty() {
        true => escaped,
        false => format!("\"{escaped}\""),
    }
}

fn percent(logprob: f32) -> String {
    format!("{:.1} %", f64::from(logprob).exp() * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_most_comes_first_and_white_space_is_seen() {
        let explained = json!({
            "model": "m", "arm": "stable", "unit": "word", "prompt_tokens": 9,
            "units": [{ "text": "The", "tokens": { "start": 0, "end": 1 } }, { "text": " capital", "tokens": { "start": 1, "end": 2 } }],
            "tokens": [
                { "id": 1, "text": " Paris", "logprob": -0.1, "entropy": 0.2, "margin": 2.0,
                  "top": [{ "id": 1, "text": " Paris", "logprob": -0.1 }, { "id": 2, "text": "\n", "logprob": -3.0 }] },
                { "id": 3, "text": ".", "logprob": 0.0, "entropy": 0.0, "margin": 9.0, "top": [] },
            ],
            "attributions": [{ "token": 0, "text": " Paris", "scores": [-0.5, 4.0] }],
            "totals": [-0.5, 4.0],
        });
        let text = described(&serde_json::from_value(explained).unwrap());
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what}: {text}"));
        assert!(at("m: Paris.") < at("+4.000  capital"), "{text}");
        assert!(at("+4.000") < at("-0.500"), "{text}");
        assert!(
            text.contains("\" Paris\"  90.5 %") && text.contains("\"\\n\" 5.0 %"),
            "{text}"
        );
        assert!(text.contains("the token of the answer"), "{text}");
    }
}
