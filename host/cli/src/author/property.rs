//! The properties that every plugin owes, on generated inputs: no trap on hostile text, the same
//! answer to the same input, spans in range (the sandbox checks each answer), and for compliance
//! that the answer does not depend on where the chunks break.

use std::collections::BTreeMap;

use anyhow::Result;
use millgate_sandbox::{ErrorKind, Failure, Interface, Isolation, Stage, invariance};
use serde_json::Value;

use super::Subject;
use super::call::{arms, call, context, deploy, events};
use super::fixture::{Case, Events};
use super::random::Random;

/// The most attempts at making a failing text shorter.
const SHORTENINGS: usize = 300;

/// What was tried on one config.
pub struct Tried {
    /// Inputs that held.
    pub inputs: usize,
    /// What the first that did not showed.
    pub broken: Option<String>,
}

/// Tries `cases` generated inputs on a config. `words` are texts that the fixtures use.
pub async fn check(
    subject: &Subject<'_>,
    interface: Interface,
    model: &Case,
    words: &[String],
    random: &mut Random,
    cases: usize,
) -> Result<Tried> {
    let (stage, _) = subject.load(model.config.clone(), Isolation::Fresh)?;
    let mut inputs = 0;
    // Long-lived actors take a start and a save for each input.
    let cases = match interface {
        Interface::Monitoring | Interface::Deployment => cases.div_ceil(4),
        _ => cases,
    };
    for _ in 0..cases {
        let broken = match interface {
            Interface::Compliance => {
                let text = random.text(words);
                let cuttings = cuttings(&text, random);
                match compliance(&stage, &text, &cuttings).await {
                    None => None,
                    Some(_) => Some(shortest(&stage, text, &cuttings).await),
                }
            }
            _ => {
                let case = generated(interface, model, words, random);
                let mut said = Vec::new();
                for _ in 0..2 {
                    // A new stage each time: actors take up the state that the last one saved.
                    let (stage, services) = subject.load(model.config.clone(), Isolation::Fresh)?;
                    said.push(call(&stage, &services, interface, &case).await);
                }
                twice(&case, interface, said)
            }
        };
        if broken.is_some() {
            return Ok(Tried { inputs, broken });
        }
        inputs += 1;
    }
    if interface == Interface::Deployment {
        let broken = saved(&stage, words, random).await?;
        return Ok(Tried { inputs, broken });
    }
    Ok(Tried {
        inputs,
        broken: None,
    })
}

/// Every character alone, halves, and a few cuts at random.
fn cuttings(text: &str, random: &mut Random) -> Vec<Vec<usize>> {
    let mut all = vec![vec![text.len() / 2]];
    if text.len() <= 512 {
        all.push(text.char_indices().map(|(at, _)| at).skip(1).collect());
    }
    all.extend((0..4).map(|_| random.cuts(text.len())));
    all
}

/// What is wrong with what a plugin makes of a text.
async fn compliance(stage: &Stage, text: &str, cuttings: &[Vec<usize>]) -> Option<String> {
    // The whole once more, so that a plugin that answers by chance is seen.
    let mut cuttings = cuttings.to_vec();
    cuttings.push(Vec::new());
    match invariance::check(stage, &context(None), text, &cuttings).await {
        Ok(()) => None,
        Err(invariance::Broken::Failed { failure, .. }) if is_refusal(&failure) => None,
        Err(broken) => Some(broken.to_string()),
    }
}

/// An input that the plugin says it cannot use is an answer.
fn is_refusal(failure: &Failure) -> bool {
    matches!(failure, Failure::Stage(error) if error.kind == ErrorKind::InvalidInput)
}

/// What is wrong, on the shortest text that can be found in a bounded number of attempts: parts
/// are left out, large ones first, for as long as it stays wrong.
async fn shortest(stage: &Stage, text: String, cuttings: &[Vec<usize>]) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    let mut said = String::new();
    let every = |text: &str| {
        let mut all = cuttings.to_vec();
        all.push(text.char_indices().map(|(at, _)| at).skip(1).collect());
        all
    };
    if let Some(first) = compliance(stage, &text, cuttings).await {
        said = first;
    }
    let mut attempts = 0;
    let mut size = characters.len() / 2;
    while size > 0 && attempts < SHORTENINGS {
        let mut at = 0;
        while at < characters.len() && attempts < SHORTENINGS {
            let kept = characters
                .iter()
                .take(at)
                .chain(characters.iter().skip(at + size));
            let shorter: Vec<char> = kept.copied().collect();
            let text: String = shorter.iter().collect();
            attempts += 1;
            match compliance(stage, &text, &every(&text)).await {
                Some(still) => {
                    said = still;
                    characters = shorter;
                }
                None => at += size,
            }
        }
        size /= 2;
    }
    said
}

/// What is wrong with two answers to one input.
fn twice(case: &Case, interface: Interface, said: Vec<Result<Value>>) -> Option<String> {
    let mut answers = Vec::new();
    for said in said {
        match said {
            Ok(answer) => answers.push(answer),
            Err(error) if error.downcast_ref().is_some_and(is_refusal) => return None,
            Err(error) => {
                return Some(format!(
                    "a call failed on {}: {error:#}",
                    shown(case, interface)
                ));
            }
        }
    }
    match answers.as_slice() {
        [first, second] if first != second => Some(format!(
            "the same input got two answers: {}\n  {first}\n  {second}",
            shown(case, interface)
        )),
        _ => None,
    }
}

fn shown(case: &Case, interface: Interface) -> String {
    match interface {
        Interface::Evaluation => format!(
            "input {:?}, output {:?}, references {:?}",
            case.input, case.output, case.references
        ),
        Interface::Monitoring => format!(
            "{} events such as {:?}",
            events(case).len(),
            case.events.first()
        ),
        Interface::Deployment => format!("the users {:?}", case.users),
        _ => format!("{:?}", case.text),
    }
}

/// A case with a generated input.
fn generated(interface: Interface, model: &Case, words: &[String], random: &mut Random) -> Case {
    let mut case = model.clone();
    match interface {
        Interface::Evaluation => {
            case.input = random.text(words);
            case.output = random.text(words);
            case.references = (0..random.below(3)).map(|_| random.text(words)).collect();
        }
        Interface::Monitoring => {
            // The names that the fixtures use, with other numbers.
            let known: Vec<Events> = model.events.clone();
            case.events = (0..random.below(40))
                .map(|_| {
                    let like = known.get(random.below(known.len()));
                    let measures: BTreeMap<String, f64> = like
                        .into_iter()
                        .flat_map(|like| like.measures.keys())
                        .map(|name| (name.clone(), random.measure()))
                        .collect();
                    let labels = like
                        .into_iter()
                        .flat_map(|like| like.labels.keys())
                        .map(|name| (name.clone(), random.text(words)))
                        .collect();
                    Events {
                        repeat: 1 + random.below(5),
                        labels,
                        measures,
                    }
                })
                .collect();
        }
        Interface::Deployment => {
            case.users = (0..1 + random.below(8))
                .map(|_| random.text(words))
                .collect()
        }
        // A request, a row, text that looks like neither.
        _ => {
            let text = random.text(words);
            case.text = match random.below(3) {
                0 => text,
                1 => serde_json::json!({ "messages": [{ "role": "user", "content": text }, { "content": random.text(words) }] }).to_string(),
                _ => serde_json::json!({ "text": text, "label": random.text(words), "n": random.measure() }).to_string(),
            };
        }
    }
    case
}

/// A deployment must choose alike before and after a restart of its actor.
async fn saved(stage: &Stage, words: &[String], random: &mut Random) -> Result<Option<String>> {
    let users = (0..50).map(|_| random.text(words)).collect();
    let case = Case {
        name: String::new(),
        config: Value::Null,
        text: String::new(),
        role: None,
        input: String::new(),
        output: String::new(),
        references: Vec::new(),
        events: Vec::new(),
        users,
        rollout: None,
        expect: Value::Null,
    };
    let mut answers = Vec::new();
    for _ in 0..2 {
        // The second actor takes the state that the first has saved.
        let actor = stage.deployment()?;
        answers.push(deploy(&actor, &case).await?);
        actor.shutdown(std::time::Duration::from_secs(1));
    }
    let same = answers.first() == answers.get(1);
    Ok((!same).then(|| {
        format!(
            "users of the arms {:?} came to others after a restart",
            arms().map(|arm| arm.name)
        )
    }))
}
