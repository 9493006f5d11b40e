//! Holds a config against the JSON Schema that is derived from the config's own types: unknown
//! keys, wrong types, missing keys, bad sizes and times. One source of truth, every error found,
//! each with its place.

use serde_json::Value;

use super::{
    problem::{Problems, suggest},
    tree::{Entry, Kind, Node},
    units::{BYTE_SIZE_FORMAT, ByteSize, DEVICE_FORMAT, Device, TIME_FORMAT, Time},
};

/// A JSON Schema (2020-12) with its definitions.
pub(super) struct Shape<'s> {
    root: &'s Value,
}

impl<'s> Shape<'s> {
    pub(super) fn new(root: &'s Value) -> Self {
        Self { root }
    }

    /// Follows references, and leaves out the `null` that stands for an absent option.
    fn resolve(&self, mut schema: &'s Value) -> &'s Value {
        loop {
            if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
                match self.root.pointer(name.trim_start_matches('#')) {
                    Some(target) => schema = target,
                    None => return schema,
                }
            } else if let Some(Value::Array(options)) = schema.get("anyOf") {
                match options
                    .iter()
                    .find(|option| option.get("type") != Some(&Value::from("null")))
                {
                    Some(option) => schema = option,
                    None => return schema,
                }
            } else {
                return schema;
            }
        }
    }

    /// The schema below a path of keys.
    pub(super) fn below(&self, keys: &[&str]) -> &'s Value {
        let mut schema = self.resolve(self.root);
        for key in keys {
            let next = schema
                .pointer("/properties")
                .and_then(|properties| properties.get(key))
                .or_else(|| schema.get("additionalProperties"));
            match next {
                Some(next) => schema = self.resolve(next),
                None => break,
            }
        }
        schema
    }

    /// Reports everything in which `node` differs from `schema`. `path` is for the messages.
    pub(super) fn check(
        &self,
        node: &Node,
        schema: &'s Value,
        path: &str,
        problems: &mut Problems<'_>,
    ) {
        let schema = self.resolve(schema);
        match &node.kind {
            Kind::Table(_) if allows(schema, "object") => {
                self.check_table(node, schema, path, problems)
            }
            Kind::Array(items) if allows(schema, "array") => {
                if let Some(inner) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.check(item, inner, &format!("{path}[{index}]"), problems);
                    }
                }
            }
            Kind::Scalar(value) if value.is_null() => {} // already reported by the parser
            Kind::Scalar(value) => check_scalar(node, value, schema, path, problems),
            _ => problems.add(
                &node.span,
                format!("`{path}` is {}", node.type_name()),
                expected(schema),
            ),
        }
    }

    /// Whether a key of a table is known to the table's schema and fits it.
    pub(super) fn admits(&self, entry: &Entry, schema: &'s Value) -> bool {
        let known = schema
            .get("properties")
            .and_then(|properties| properties.get(&entry.key));
        let Some(inner) = known else { return false };
        let mut problems = Problems::new("", std::path::PathBuf::new());
        self.check(&entry.value, inner, "", &mut problems);
        problems.is_empty()
    }

    fn check_table(&self, node: &Node, schema: &'s Value, path: &str, problems: &mut Problems<'_>) {
        let empty = serde_json::Map::new();
        let properties = schema
            .get("properties")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        let others = schema.get("additionalProperties");
        for entry in node.entries() {
            let path = if path.is_empty() {
                entry.key.clone()
            } else {
                format!("{path}.{}", entry.key)
            };
            match (properties.get(&entry.key), others) {
                (Some(inner), _) => self.check(&entry.value, inner, &path, problems),
                (None, Some(Value::Bool(false))) => problems.add(
                    &entry.span,
                    format!("unknown key `{path}`"),
                    suggest(
                        &entry.key,
                        properties.keys().map(String::as_str),
                        "known keys",
                    ),
                ),
                (None, Some(inner)) => self.check(&entry.value, inner, &path, problems),
                (None, None) => {}
            }
        }
        let required = schema.get("required").and_then(Value::as_array);
        for key in required.into_iter().flatten().filter_map(Value::as_str) {
            if node.get(key).is_none() {
                let help = properties
                    .get(key)
                    .and_then(|inner| inner.get("description"))
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                problems.add(
                    &node.span,
                    format!("`{path}` has no `{key}`"),
                    first_sentence(help),
                );
            }
        }
    }
}

fn first_sentence(text: &str) -> String {
    text.lines()
        .take_while(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Whether the schema admits a JSON type; one that names none admits all.
fn allows(schema: &Value, kind: &str) -> bool {
    match schema.get("type") {
        None => !options(schema).is_some_and(|_| kind == "object" || kind == "array"),
        Some(Value::Array(kinds)) => kinds.iter().any(|name| name == kind),
        Some(name) => name == kind,
    }
}

/// The words that an enumeration admits, whether written as `enum` or as `oneOf` constants.
fn options(schema: &Value) -> Option<Vec<&str>> {
    if let Some(Value::Array(words)) = schema.get("enum") {
        return Some(words.iter().filter_map(Value::as_str).collect());
    }
    let words = schema.get("oneOf")?.as_array()?.iter().flat_map(|option| {
        let many = option
            .get("enum")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        option.get("const").into_iter().chain(many)
    });
    Some(words.filter_map(Value::as_str).collect())
}

fn check_scalar(
    node: &Node,
    value: &Value,
    schema: &Value,
    path: &str,
    problems: &mut Problems<'_>,
) {
    if let Some(words) = options(schema) {
        if !value.as_str().is_some_and(|word| words.contains(&word)) {
            let help = match value.as_str() {
                Some(word) => suggest(word, words.iter().copied(), "possible values"),
                None => format!("possible values: {}", words.join(", ")),
            };
            problems.add(&node.span, format!("`{path}` cannot be {value}"), help);
        }
        return;
    }
    let fits = match value {
        Value::String(_) => allows(schema, "string"),
        Value::Bool(_) => allows(schema, "boolean"),
        Value::Number(number) if number.is_f64() => allows(schema, "number"),
        _ => allows(schema, "integer") || allows(schema, "number"),
    };
    if !fits {
        problems.add(
            &node.span,
            format!("`{path}` is {}", node.type_name()),
            expected(schema),
        );
        return;
    }
    if let Value::String(text) = value {
        let bad = match schema.get("format").and_then(Value::as_str) {
            Some(BYTE_SIZE_FORMAT) => text.parse::<ByteSize>().err(),
            Some(TIME_FORMAT) => text.parse::<Time>().err(),
            Some(DEVICE_FORMAT) => text.parse::<Device>().err(),
            _ => None,
        };
        if let Some(error) = bad {
            problems.add(&node.span, format!("`{path}`: {error}"), "");
        }
    }
    if let Some(number) = value.as_f64() {
        let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
        if bound("minimum").is_some_and(|least| number < least)
            || bound("maximum").is_some_and(|most| number > most)
        {
            let text = match (bound("minimum"), bound("maximum")) {
                (Some(least), Some(most)) => format!("a number from {least} to {most}"),
                (Some(least), None) => format!("a number from {least}"),
                (_, most) => format!("a number up to {}", most.unwrap_or_default()),
            };
            problems.add(
                &node.span,
                format!("`{path}` cannot be {value}"),
                format!("expected {text}"),
            );
        }
    }
}

/// What a schema admits, in words, with an example where it has one.
fn expected(schema: &Value) -> String {
    let word = |kind: &str| match kind {
        "object" => Some("a table"),
        "array" => Some("an array"),
        "string" => Some("a string"),
        "boolean" => Some("true or false"),
        "integer" => Some("an integer"),
        "number" => Some("a number"),
        _ => None,
    };
    let words: Vec<&str> = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .filter_map(word)
            .collect(),
        Some(Value::String(kind)) => word(kind).into_iter().collect(),
        _ => options(schema)
            .map(|_| "one of the words below")
            .into_iter()
            .collect(),
    };
    let example = schema
        .get("examples")
        .and_then(|examples| examples.get(0))
        .map(|example| format!(", such as {example}"))
        .unwrap_or_default();
    match options(schema) {
        Some(words) => format!("expected one of: {}", words.join(", ")),
        None if words.is_empty() => String::new(),
        None => format!("expected {}{example}", words.join(" or ")),
    }
}
