//! Fixtures: `fixtures/*.toml`, inputs with the results that a plugin must give.
//!
//! A file holds `[[case]]` tables: a name, a config, the input in the words of the plugin's
//! interface, and `expect`, which the result must contain: each member of a table, each element of
//! a list in its place. The results are those of `call.rs`; docs/plugins/rust.md describes both.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    case: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Case {
    /// What it shows, for the report.
    pub name: String,
    /// The stage's config.
    #[serde(default = "empty")]
    pub config: Value,
    /// compliance, validation: the text; a request or a row as JSON is taken as such.
    #[serde(default)]
    pub text: String,
    /// compliance: the segment's role.
    #[serde(default)]
    pub role: Option<String>,
    /// evaluation: what the model was asked.
    #[serde(default)]
    pub input: String,
    /// evaluation: what it answered.
    #[serde(default)]
    pub output: String,
    /// evaluation: what would have been right.
    #[serde(default)]
    pub references: Vec<String>,
    /// monitoring: finished requests.
    #[serde(default)]
    pub events: Vec<Events>,
    /// deployment: one request for each user.
    #[serde(default)]
    pub users: Vec<String>,
    /// deployment: the rollout to review.
    #[serde(default)]
    pub rollout: Option<Rollout>,
    /// What the result must contain.
    pub expect: Value,
}

/// The same event several times.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    #[serde(default = "once")]
    pub repeat: usize,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub measures: BTreeMap<String, f64>,
}

/// A rollout with one stable arm and one candidate.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    pub stable: ArmRecord,
    pub candidate: ArmRecord,
}

/// What an arm has done.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmRecord {
    pub requests: u64,
    /// The mean of each metric; those of 0 and 1 get the variance that such have.
    #[serde(default)]
    pub means: BTreeMap<String, f64>,
}

fn empty() -> Value {
    Value::Object(Map::new())
}

fn once() -> usize {
    1
}

/// All cases of a project, by file name, with the file's name.
pub fn read(dir: &Path) -> Result<Vec<(String, Case)>> {
    let folder = dir.join("fixtures");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        bail!("there is no folder `fixtures`: put at least one FILE.toml with a [[case]] there");
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    paths.sort();
    let mut cases = Vec::new();
    for path in paths {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read fixtures/{name}"))?;
        let file: File =
            toml::from_str(&text).with_context(|| format!("fixtures/{name} is not sound"))?;
        cases.extend(file.case.into_iter().map(|case| (name.clone(), case)));
    }
    if cases.is_empty() {
        bail!("the files in fixtures/ hold no [[case]]");
    }
    Ok(cases)
}

/// Where `got` does not contain `expected`: paths, with what stands there.
pub fn differences(expected: &Value, got: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", expected, got, &mut found);
    found
}

fn compare(path: &str, expected: &Value, got: &Value, found: &mut Vec<String>) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            for (name, value) in expected {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match got.get(name) {
                    Some(got) => compare(&path, value, got, found),
                    None => found.push(format!("{path}: expected {value}, and it is not there")),
                }
            }
        }
        (Value::Array(expected), Value::Array(items)) => {
            if expected.len() != items.len() {
                found.push(format!(
                    "{path}: expected {} elements, got {}: {got}",
                    expected.len(),
                    items.len()
                ));
            }
            for (at, (expected, got)) in expected.iter().zip(items).enumerate() {
                compare(&format!("{path}[{at}]"), expected, got, found);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (
                a.as_f64().unwrap_or(f64::NAN),
                b.as_f64().unwrap_or(f64::NAN),
            );
            // Written by hand, so not to the last bit.
            let near = (a - b).abs() <= 1e-6 * a.abs().max(1.0);
            if !near {
                found.push(format!("{path}: expected {expected}, got {got}"));
            }
        }
        _ if expected == got => {}
        _ => found.push(format!("{path}: expected {expected}, got {got}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_result_contains_what_is_expected_or_the_place_is_named() {
        let got = json!({ "decision": "pass", "findings": [{ "rule": "word", "score": 0.5 }] });
        assert!(differences(&json!({ "findings": [{ "rule": "word" }] }), &got).is_empty());
        assert!(differences(&json!({ "findings": [{ "score": 0.500_000_01 }] }), &got).is_empty());
        for (expected, at) in [
            (
                json!({ "decision": "block" }),
                "decision: expected \"block\", got \"pass\"",
            ),
            (json!({ "findings": [] }), "findings: expected 0 elements"),
            (json!({ "findings": [{ "score": 1 }] }), "findings[0].score"),
            (
                json!({ "code": "x" }),
                "code: expected \"x\", and it is not there",
            ),
        ] {
            let found = differences(&expected, &got);
            assert!(found[0].starts_with(at), "{found:?}");
        }
    }
}
