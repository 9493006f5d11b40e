//! `millgate plugin run`: one call of a plugin on a text, through the same sandbox that serves.

use std::io::Read as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use millgate_sandbox::{
    Answer, Arm, ArmRole, CallContext, Capability, Decision, Event, Finding, Held, Interface,
    Label, MemoryServices, MonitorOptions, Origin, Outcome, Sample, Segment, Stage, StageSpec,
    StateGrant,
};
use serde_json::{Value, json};

use crate::args::{InterfaceName, PluginRunArgs};
use crate::{folders, open, words};

/// What a stage with the grant `state` gets here. It lives as long as the run.
const STATE_BYTES: u64 = 1 << 20;
/// How long a monitor's report is waited for.
const REPORT_WAIT: Duration = Duration::from_secs(10);

/// What a call gave: for machines and for people.
struct Told {
    json: Value,
    text: String,
    /// Whether the stage let it pass.
    passed: bool,
}

pub fn run(args: PluginRunArgs) -> Result<ExitCode> {
    let bytes = super::bytes_of(&args.plugin)?;
    let sandbox = open::sandbox(&folders::data(None))?;
    let info = sandbox.inspect(&bytes)?;
    let interface = match args.interface {
        Some(name) => interface_of(name),
        None => *info
            .interfaces
            .first()
            .context("the plugin exports no stage interface")?,
    };
    if !info.interfaces.contains(&interface) {
        let has: Vec<&str> = info.interfaces.iter().map(|has| has.name()).collect();
        bail!(
            "{} has no {interface} interface; it has: {}",
            info.manifest.name,
            has.join(", ")
        );
    }
    let config = serde_json::from_str(&args.config).context("--config is not JSON")?;
    let mut spec = StageSpec::new(&info.manifest.name, config);
    if info.manifest.requests.contains(&Capability::State) {
        spec.grant.state = Some(StateGrant { bytes: STATE_BYTES });
    }
    let services = Arc::new(MemoryServices::default());
    let begin = Instant::now();
    let stage = sandbox.load(&bytes, spec, services.clone())?;
    let loaded = begin.elapsed();
    let text = text_of(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let begin = Instant::now();
    let told = runtime.block_on(async {
        match interface {
            Interface::Compliance => comply(&stage, &text, args.chunk).await,
            Interface::Validation => validate(&stage, &text).await,
            Interface::Evaluation => evaluate(&stage, &text, &args).await,
            Interface::Deployment => route(&stage, &text).await,
            Interface::Monitoring => observe(&stage, &text, &services).await,
        }
    })?;
    let called = begin.elapsed();
    for (_, level, line) in services.lines() {
        eprintln!("log {}: {line}", format!("{level:?}").to_lowercase());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&told.json)?);
    } else {
        print!("{}", told.text);
        eprintln!(
            "({} {interface}; loaded in {}, called in {})",
            info.manifest.name,
            micros(loaded),
            micros(called)
        );
    }
    Ok(if told.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

fn interface_of(name: InterfaceName) -> Interface {
    match name {
        InterfaceName::Validation => Interface::Validation,
        InterfaceName::Compliance => Interface::Compliance,
        InterfaceName::Monitoring => Interface::Monitoring,
        InterfaceName::Deployment => Interface::Deployment,
        InterfaceName::Evaluation => Interface::Evaluation,
    }
}

fn text_of(args: &PluginRunArgs) -> Result<String> {
    if !args.text.is_empty() {
        return Ok(args.text.join(" "));
    }
    if let Some(file) = &args.file {
        return std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()));
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("standard input is not UTF-8 text")?;
    Ok(text)
}

fn micros(time: Duration) -> String {
    words::time(time.as_micros().try_into().unwrap_or(u64::MAX))
}

fn context() -> CallContext {
    CallContext {
        trace_id: Arc::from("plugin-run"),
        role: Arc::from("user"),
        now_ms: now_ms(),
        ..CallContext::default()
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}

fn findings(findings: &[Finding], source: &str) -> String {
    let mut text = String::new();
    for finding in findings {
        let place = finding.span.map_or_else(String::new, |span| {
            let found = source
                .get(span.start as usize..span.end as usize)
                .unwrap_or_default();
            format!(" {}..{} {found:?}", span.start, span.end)
        });
        text.push_str(&format!(
            "  {}{place}, score {:.2}: {}\n",
            finding.rule, finding.score, finding.explanation
        ));
    }
    text
}

async fn comply(stage: &Stage, text: &str, chunk: Option<usize>) -> Result<Told> {
    let mut inspection = stage.inspection(&context());
    let mut held = Held::default();
    let (mut output, mut edits, mut found) = (String::new(), Vec::new(), Vec::new());
    let pieces = pieces(text, chunk.unwrap_or(usize::MAX).max(1));
    let pushes = pieces.len();
    let mut decision = Decision::Pass;
    // Each piece is a push; after the last one comes the finish.
    for piece in pieces.into_iter().map(Some).chain([None]) {
        let verdict = match piece {
            Some(piece) => {
                held.push(piece);
                inspection.push_async(&[piece]).await?
            }
            None => inspection.finish_async().await?,
        };
        output.push_str(&held.settle(&verdict));
        edits.extend(verdict.edits);
        found.extend(verdict.findings);
        decision = verdict.decision;
        if decision != Decision::Pass {
            break;
        }
    }
    let passed = decision == Decision::Pass;
    let said = match &decision {
        Decision::Pass => format!("pass, {} edits, {pushes} pushes\n", edits.len()),
        Decision::Block(refusal) => format!("block: {} ({})\n", refusal.message, refusal.code),
        Decision::Regenerate(again) => format!(
            "regenerate from byte {}: {} ({}), banned: {}\n",
            again.keep,
            again.reason.message,
            again.reason.code,
            again.ban.join(", ")
        ),
    };
    Ok(Told {
        text: format!("{output}\n\n{said}{}", findings(&found, text)),
        json: json!({ "decision": decision, "output": output, "edits": edits, "findings": found }),
        passed,
    })
}

/// The text in pieces of so many characters.
fn pieces(text: &str, characters: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest
            .char_indices()
            .nth(characters)
            .map_or(rest.len(), |(at, _)| at);
        let (piece, tail) = rest.split_at(end);
        pieces.push(piece);
        rest = tail;
    }
    pieces
}

async fn validate(stage: &Stage, text: &str) -> Result<Told> {
    let sample = sample_of(text);
    let judgements = stage
        .validate_async(&context(), std::slice::from_ref(&sample))
        .await?;
    let judgement = judgements.first().context("the stage gave no judgement")?;
    let (said, passed) = match &judgement.outcome {
        Outcome::Accept => ("accept\n".to_owned(), true),
        Outcome::Reject(why) => (format!("reject: {why}\n"), false),
        Outcome::Repair(repairs) => {
            let lines: Vec<String> = repairs
                .iter()
                .map(|repair| format!("  {} = {:?}\n", repair.path, repair.text))
                .collect();
            (format!("repair\n{}", lines.concat()), true)
        }
    };
    Ok(Told {
        text: format!("{said}{}", findings(&judgement.findings, "")),
        json: json!(judgement),
        passed,
    })
}

/// A request's JSON as it is, a row's JSON as it is, or any other text as a request's one message.
pub fn sample_of(text: &str) -> Sample {
    let parsed: Option<Value> = serde_json::from_str(text).ok().filter(Value::is_object);
    let body =
        parsed.unwrap_or_else(|| json!({ "messages": [{ "role": "user", "content": text }] }));
    let mut segments = Vec::new();
    let messages = body.get("messages").and_then(Value::as_array);
    let origin = if messages.is_some() {
        Origin::Request
    } else {
        Origin::Row
    };
    for (place, message) in messages.into_iter().flatten().enumerate() {
        if let Some(content) = message.get("content").and_then(Value::as_str) {
            let role = message
                .get("role")
                .and_then(Value::as_str)
                .unwrap_or_default();
            segments.push(Segment {
                path: format!("/messages/{place}/content"),
                role: role.to_owned(),
                text: content.to_owned(),
            });
        }
    }
    if origin == Origin::Row {
        for (name, value) in body.as_object().into_iter().flatten() {
            if let Some(value) = value.as_str() {
                segments.push(Segment {
                    path: format!("/{}", name.replace('~', "~0").replace('/', "~1")),
                    role: String::new(),
                    text: value.to_owned(),
                });
            }
        }
    }
    Sample {
        origin,
        body: body.to_string(),
        segments,
    }
}

async fn evaluate(stage: &Stage, text: &str, args: &PluginRunArgs) -> Result<Told> {
    let answer = Answer {
        id: "1".to_owned(),
        input: args.input.clone(),
        output: text.to_owned(),
        references: args.reference.clone(),
    };
    let evaluation = stage.evaluate_async(&context(), &[answer]).await?;
    let mut rows = Vec::new();
    let scores = evaluation.cases.iter().flat_map(|case| &case.scores);
    for score in scores.chain(&evaluation.aggregate) {
        rows.push(vec![
            score.name.clone(),
            format!("{:.6}", score.value),
            score.explanation.clone(),
        ]);
    }
    let mut said = words::table(&rows);
    if rows.is_empty() {
        said = "no scores; most scores need a --reference\n".to_owned();
    }
    Ok(Told {
        text: said,
        json: json!(evaluation),
        passed: true,
    })
}

/// Routes one request for each line of the text, which names its user.
async fn route(stage: &Stage, text: &str) -> Result<Told> {
    let arms = [
        ("stable", ArmRole::Stable, 0.9),
        ("candidate", ArmRole::Candidate, 0.1),
    ];
    let arms = arms.map(|(name, role, weight)| Arm {
        name: name.to_owned(),
        role,
        weight,
    });
    let actor = stage.deployment()?;
    let (mut said, mut choices) = (String::new(), Vec::new());
    let users: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    for user in if users.is_empty() {
        vec!["anyone"]
    } else {
        users
    } {
        let features = [Label {
            name: "user".to_owned(),
            value: user.to_owned(),
        }];
        let choice = actor.route(&context(), &features, &arms).await?;
        said.push_str(&format!(
            "{user}: {} (propensity {:.2}): {}\n",
            choice.arm, choice.propensity, choice.reason
        ));
        choices.push(json!({ "user": user, "choice": choice }));
    }
    actor.shutdown(Duration::from_secs(1));
    Ok(Told {
        text: said,
        json: json!({ "arms": arms, "choices": choices }),
        passed: true,
    })
}

/// Shows a monitor the events in the text, one JSON object a line, and prints its last report.
async fn observe(stage: &Stage, text: &str, services: &MemoryServices) -> Result<Told> {
    let events: Vec<Event> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| {
                anyhow!(
                    "line {}: {error}; an event is {{\"trace_id\":\"…\",\"at_ms\":0,\"labels\":[{{\"name\":\"model\",\"value\":\"m\"}}],\"measures\":[{{\"name\":\"latency-ms\",\"value\":12}}]}}",
                    number + 1
                )
            })
        })
        .collect::<Result<_>>()?;
    let count = events.len();
    let monitor = stage.monitor(MonitorOptions {
        tick: Duration::from_millis(50),
        batch: count.clamp(1, 8192),
        linger: Duration::from_millis(1),
        mailbox: count.max(1),
        ..MonitorOptions::default()
    })?;
    for event in events {
        if !monitor.observe(event) {
            bail!("the monitor takes no more events");
        }
    }
    // The first report may come before the last event; the one after a further tick has seen all.
    let begin = Instant::now();
    while services.reports().len() < 3 && begin.elapsed() < REPORT_WAIT {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    monitor.shutdown(Duration::from_secs(5));
    let reports = services.reports();
    let (_, last) = reports.last().context("the monitor reported nothing")?;
    let rows = last.alerts.iter().map(|alert| {
        vec![
            alert.rule.clone(),
            format!("{:?}", alert.severity).to_lowercase(),
            format!("{:.4} of {:.4}", alert.value, alert.threshold),
            alert.message.clone(),
        ]
    });
    let said = words::table(&rows.collect::<Vec<_>>());
    Ok(Told {
        text: format!("{count} events\n{said}"),
        json: json!({ "events": count, "report": last }),
        passed: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_break_between_characters_and_lose_nothing() {
        assert_eq!(pieces("aé\u{1F600}b", 2), ["aé", "\u{1F600}b"]);
        assert_eq!(pieces("abc", usize::MAX), ["abc"]);
        assert!(pieces("", 3).is_empty());
    }

    #[test]
    fn plain_text_becomes_a_request_and_json_stays_what_it_is() {
        let sample = sample_of("hello");
        assert_eq!(sample.origin, Origin::Request);
        assert_eq!(sample.segments[0].path, "/messages/0/content");
        let row = sample_of(r#"{"a/b":"x","n":1}"#);
        assert_eq!(row.origin, Origin::Row);
        assert_eq!(row.segments[0].path, "/a~1b");
    }
}
