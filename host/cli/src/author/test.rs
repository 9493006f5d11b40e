//! `millgate plugin test`: fixtures, then properties.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use millgate_sandbox::{Interface, Isolation};
use serde_json::Value;

use super::args::TestArgs;
use super::fixture::{self, Case, differences};
use super::project::Project;
use super::random::Random;
use super::{Subject, build, call, property};
use crate::{folders, open};

pub fn run(args: TestArgs) -> Result<ExitCode> {
    let project = Project::open(&args.dir)?;
    let cases = fixture::read(&project.dir)?;
    let built = if args.no_build {
        build::built(&project)?
    } else {
        build::build(&project)?
    };
    let sandbox = open::sandbox(&folders::data(None))?;
    let subject = Subject {
        sandbox: &sandbox,
        bytes: &built.bytes,
        info: &built.info,
    };
    let seed = args.seed.unwrap_or_else(new_seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let failures = runtime.block_on(async {
        let mut failures = 0;
        for interface in &built.info.interfaces {
            failures += fixtures(&subject, *interface, &cases).await?;
            failures += properties(&subject, *interface, &cases, seed, args.cases).await?;
        }
        Ok::<usize, anyhow::Error>(failures)
    })?;
    if failures > 0 {
        println!("\nFAILED: {failures} of the checks above");
        return Ok(ExitCode::FAILURE);
    }
    println!("\nok");
    Ok(ExitCode::SUCCESS)
}

/// Runs each case; how many failed.
async fn fixtures(
    subject: &Subject<'_>,
    interface: Interface,
    cases: &[(String, Case)],
) -> Result<usize> {
    println!("{interface}: {} fixtures", cases.len());
    let mut failures = 0;
    for (file, case) in cases {
        let problems = match subject.load(case.config.clone(), Isolation::Fresh) {
            Ok((stage, services)) => match call::call(&stage, &services, interface, case).await {
                Ok(got) => differences(&case.expect, &got),
                Err(error) => vec![format!("the call failed: {error:#}")],
            },
            Err(error) => vec![format!("it does not load with this config: {error:#}")],
        };
        if problems.is_empty() {
            println!("  ok      {}", case.name);
            continue;
        }
        failures += 1;
        println!("  FAILED  {} ({file})", case.name);
        for problem in problems {
            println!("            {problem}");
        }
    }
    Ok(failures)
}

/// Tries generated inputs on each config of the fixtures; how many configs failed.
async fn properties(
    subject: &Subject<'_>,
    interface: Interface,
    cases: &[(String, Case)],
    seed: u64,
    count: usize,
) -> Result<usize> {
    println!("{interface}: properties on {count} generated inputs for each config (--seed {seed})");
    let words = words(cases);
    let mut seen: Vec<&Value> = Vec::new();
    let mut failures = 0;
    for (_, case) in cases {
        if seen.contains(&&case.config) {
            continue;
        }
        seen.push(&case.config);
        // Each config by the seed alone, so that a failure comes again whatever else is tried.
        let mut random = Random::new(seed);
        let tried = property::check(subject, interface, case, &words, &mut random, count).await;
        let broken = match tried {
            Ok(tried) => match tried.broken {
                None => {
                    println!("  ok      {} inputs, config {}", tried.inputs, case.config);
                    continue;
                }
                Some(broken) => broken,
            },
            Err(error) => format!("{error:#}"),
        };
        failures += 1;
        println!("  FAILED  config {}", case.config);
        for line in broken.lines() {
            println!("            {line}");
        }
    }
    Ok(failures)
}

/// The texts of the fixtures, whole and in words, and the strings of their configs: what the
/// plugin looks for is likely to be among them.
fn words(cases: &[(String, Case)]) -> Vec<String> {
    let mut words = Vec::new();
    for (_, case) in cases {
        for text in [&case.text, &case.input, &case.output]
            .into_iter()
            .chain(&case.users)
            .chain(&case.references)
        {
            words.extend(text.split_whitespace().map(str::to_owned));
            if !text.is_empty() {
                words.push(text.clone());
            }
        }
        strings(&case.config, &mut words);
    }
    words
}

fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, into)),
        Value::Object(members) => members.values().for_each(|member| strings(member, into)),
        _ => {}
    }
}

fn new_seed() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(1, |since| u64::from(since.subsec_nanos()))
}
