//! Precision and recall on labelled texts in the format of presidio-research, and the speed of the
//! scan: `cargo run --release -p millgate-plugin-pii --example score -- FILE [--errors]`.
//!
//! A match is right when it overlaps a label of its entity; a label is found when a match of its
//! entity overlaps it. Entities that the plugin does not look for are left out.

use std::collections::BTreeMap;
use std::time::Instant;

use millgate_plugin_pii::{Config, Entity, Scanner};
use serde::Deserialize;

#[derive(Deserialize)]
struct Sample {
    full_text: String,
    spans: Vec<Label>,
}

#[derive(Deserialize)]
struct Label {
    entity_type: String,
    /// In characters.
    start_position: usize,
    end_position: usize,
}

fn entity(label: &str) -> Option<Entity> {
    Some(match label {
        "CREDIT_CARD" => Entity::PaymentCard,
        "EMAIL_ADDRESS" => Entity::Email,
        "IBAN_CODE" => Entity::Iban,
        "US_SSN" => Entity::UsSsn,
        "PHONE_NUMBER" => Entity::Phone,
        "IP_ADDRESS" => Entity::IpAddress,
        "CRYPTO" => Entity::CryptoAddress,
        _ => return None,
    })
}

#[derive(Default)]
struct Tally {
    labels: usize,
    labels_found: usize,
    labels_exact: usize,
    matches: usize,
    matches_right: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: score FILE [--errors]")?;
    let errors = arguments.next().as_deref() == Some("--errors");
    let samples: Vec<Sample> = serde_json::from_slice(&std::fs::read(path)?)?;
    let scanner = Scanner::new(&Config::default());

    let mut tallies: BTreeMap<Entity, Tally> = BTreeMap::new();
    for sample in &samples {
        let text = sample.full_text.as_str();
        let byte = |position: usize| {
            text.char_indices()
                .nth(position)
                .map_or(text.len(), |(at, _)| at)
        };
        let labels: Vec<(Entity, usize, usize)> = sample
            .spans
            .iter()
            .filter_map(|label| {
                Some((
                    entity(&label.entity_type)?,
                    byte(label.start_position),
                    byte(label.end_position),
                ))
            })
            .collect();
        let found = scanner.scan(text);
        for &(entity, start, end) in &labels {
            let tally = tallies.entry(entity).or_default();
            tally.labels += 1;
            let hit = found
                .iter()
                .find(|found| found.entity == entity && found.start < end && start < found.end);
            match hit {
                Some(found) => {
                    tally.labels_found += 1;
                    tally.labels_exact += usize::from((found.start, found.end) == (start, end));
                }
                None if errors => {
                    println!("missed {entity:?}: {:?} in {text:?}", text.get(start..end))
                }
                None => {}
            }
        }
        for found in &found {
            let tally = tallies.entry(found.entity).or_default();
            tally.matches += 1;
            let right = labels.iter().any(|&(entity, start, end)| {
                entity == found.entity && found.start < end && start < found.end
            });
            tally.matches_right += usize::from(right);
            if errors && !right {
                println!(
                    "wrong {:?} {}: {:?} in {text:?}",
                    found.entity,
                    found.score,
                    text.get(found.start..found.end)
                );
            }
        }
    }
    println!(
        "{:<16}{:>8}{:>11}{:>8}{:>8}",
        "entity", "labels", "precision", "recall", "exact"
    );
    for (entity, tally) in &tallies {
        let ratio = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        println!(
            "{:<16}{:>8}{:>11.3}{:>8.3}{:>8.3}",
            entity.name(),
            tally.labels,
            ratio(tally.matches_right, tally.matches),
            ratio(tally.labels_found, tally.labels),
            ratio(tally.labels_exact, tally.labels),
        );
    }

    let whole: String = samples
        .iter()
        .map(|sample| sample.full_text.as_str())
        .collect::<Vec<_>>()
        .join("\n");
    let prose: String = whole
        .chars()
        .filter(|character| !character.is_ascii_digit() && *character != '@')
        .collect();
    for (name, text) in [
        ("labelled text", &whole),
        ("the same without digits and @", &prose),
    ] {
        let mut best = f64::INFINITY;
        let mut matches = 0;
        for _ in 0..20 {
            let start = Instant::now();
            matches = scanner.scan(text).len();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!(
            "{name}: {:.0} MB/s ({} bytes, {matches} matches)",
            text.len() as f64 / best / 1e6,
            text.len()
        );
    }
    Ok(())
}
