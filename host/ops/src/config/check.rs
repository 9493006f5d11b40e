//! The check of a config: read, hold against the shape, follow the references, ask the plugins.
//! Each step goes on where the one before found errors, so that one run reports all of them.

use std::path::Path;

use serde_json::Value;

use super::{
    Config, Problem,
    plugins::{self, PluginCatalog},
    problem::Problems,
    references, schema,
    shape::Shape,
    tree::{Kind, Node},
};

/// The sections whose entries stand for themselves: a bad one is left out, the others go on.
const NAMED: [&str; 4] = ["tenants", "models", "stages", "pipelines"];
/// The sections that are one thing.
const SINGLE: [&str; 4] = ["server", "traces", "monitoring", "registry"];
/// The sections that are lists of entries without names.
const LISTS: [&str; 1] = ["trust"];

/// Reads a config and reports everything that can be told without looking at its plugins.
/// `path` is only for the messages.
///
/// # Errors
/// All problems, in the order of the text.
pub fn check(text: &str, path: &Path) -> Result<Config, Vec<Problem>> {
    run(text, path, None)
}

/// Like [`check`], and holds the stages against their plugins: that they exist, that each has the
/// interface its place needs, that its config fits its schema, that its grants are given.
///
/// # Errors
/// All problems, in the order of the text.
pub fn check_with_plugins(
    text: &str,
    path: &Path,
    catalog: &dyn PluginCatalog,
) -> Result<Config, Vec<Problem>> {
    run(text, path, Some(catalog))
}

fn run(
    text: &str,
    path: &Path,
    catalog: Option<&dyn PluginCatalog>,
) -> Result<Config, Vec<Problem>> {
    let mut problems = Problems::new(text, path.to_owned());
    let document = Node::parse(text, &mut problems);
    let schema = schema();
    let shape = Shape::new(&schema);

    let config = read(&document, &shape, &mut problems);
    references::check(&document, &config, &mut problems);
    if let Some(catalog) = catalog {
        plugins::check(&document, &config, catalog, &mut problems);
    }
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems.into_sorted())
    }
}

/// Builds a config of the sound parts of a document.
fn read<'s>(document: &Node, shape: &Shape<'s>, problems: &mut Problems<'_>) -> Config {
    let mut sound = serde_json::Map::new();
    for entry in document.entries() {
        let name = entry.key.as_str();
        let is_table = matches!(entry.value.kind, Kind::Table(_));
        if NAMED.contains(&name) && is_table {
            let mut kept = serde_json::Map::new();
            for item in entry.value.entries() {
                let path = format!("{name}.{}", item.key);
                let schema = shape.below(&[name, &item.key]);
                shape.check(&item.value, schema, &path, problems);
                // What is sound of a faulty entry still counts: its references are checked too.
                let mut json = item.value.to_json();
                if let Value::Object(fields) = &mut json {
                    for field in item.value.entries() {
                        if !shape.admits(field, schema) {
                            fields.remove(&field.key);
                        }
                    }
                }
                if reads(name, &item.key, &json, &item.value, problems) {
                    kept.insert(item.key.clone(), json);
                }
            }
            sound.insert(name.to_owned(), Value::Object(kept));
        } else if SINGLE.contains(&name) && is_table {
            let before = problems.len();
            shape.check(&entry.value, shape.below(&[name]), name, problems);
            let json = entry.value.to_json();
            let mut whole = serde_json::Map::new();
            whole.insert(name.to_owned(), json.clone());
            if problems.len() == before && parses(whole, name, &entry.value, problems) {
                sound.insert(name.to_owned(), json);
            }
        } else if LISTS.contains(&name) && matches!(entry.value.kind, Kind::Array(_)) {
            let before = problems.len();
            shape.check(&entry.value, shape.below(&[name]), name, problems);
            if problems.len() == before {
                sound.insert(name.to_owned(), entry.value.to_json());
            }
        }
    }
    // What is left is about the top level: unknown sections, sections that are no tables.
    let top = Node {
        span: document.span.clone(),
        kind: Kind::Table(Vec::new()),
    };
    shape.check(&top, shape.below(&[]), "", problems);
    for entry in document.entries() {
        let name = entry.key.as_str();
        let is_list = LISTS.contains(&name);
        let known = is_list || NAMED.contains(&name) || SINGLE.contains(&name);
        let right = match entry.value.kind {
            Kind::Table(_) => !is_list,
            Kind::Array(_) => is_list,
            Kind::Scalar(_) => false,
        };
        if !known {
            let names = NAMED.into_iter().chain(SINGLE).chain(LISTS);
            let help = super::problem::suggest(&entry.key, names, "known sections");
            problems.add(
                &entry.span,
                format!("unknown section `{}`", entry.key),
                help,
            );
        } else if !right {
            shape.check(
                &entry.value,
                shape.below(&[&entry.key]),
                &entry.key,
                problems,
            );
        }
    }
    serde_json::from_value(Value::Object(sound)).unwrap_or_default()
}

/// Whether one named entry is readable on its own; catches what the schema cannot say.
fn reads(
    section: &str,
    name: &str,
    json: &Value,
    node: &Node,
    problems: &mut Problems<'_>,
) -> bool {
    let mut inner = serde_json::Map::new();
    inner.insert(name.to_owned(), json.clone());
    let mut whole = serde_json::Map::new();
    whole.insert(section.to_owned(), Value::Object(inner));
    parses(whole, &format!("{section}.{name}"), node, problems)
}

fn parses(
    whole: serde_json::Map<String, Value>,
    path: &str,
    node: &Node,
    problems: &mut Problems<'_>,
) -> bool {
    match serde_json::from_value::<Config>(Value::Object(whole)) {
        Ok(_) => true,
        // Where the shape was at fault, that has been said already.
        Err(_) if problems.any_within(&node.span) => false,
        Err(error) => {
            problems.add(&node.span, format!("`{path}`: {error}"), "");
            false
        }
    }
}
