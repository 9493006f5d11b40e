//! A TOML document as a tree in which every key and every value knows where it stands.

use std::ops::Range;

use serde_json::{Map, Value};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::Problems;

/// A value and its place in the text.
#[derive(Debug)]
pub(super) struct Node {
    pub span: Range<usize>,
    pub kind: Kind,
}

/// What a [`Node`] holds.
#[derive(Debug)]
pub(super) enum Kind {
    Table(Vec<Entry>),
    Array(Vec<Node>),
    Scalar(Value),
}

/// A key of a table, and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub span: Range<usize>,
    pub value: Node,
}

/// A step from a node to one below it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl Node {
    /// Parses a document. What cannot be read is left out and becomes a problem.
    pub(super) fn parse(text: &str, problems: &mut Problems<'_>) -> Node {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            problems.add(&span, error.message(), "");
        }
        let span = table.span();
        from_table(span, table.get_ref(), problems)
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Table(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.kind {
            Kind::Array(items) => items,
            _ => &[],
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key)
            .map(|entry| &entry.value)
    }

    /// Whether a table has something at a path of keys, sound or not.
    pub(super) fn has(&self, path: &[&str]) -> bool {
        let mut node = Some(self);
        for key in path {
            node = node.and_then(|node| node.get(key));
        }
        node.is_some()
    }

    /// The place of a path's end, or of its deepest part that exists.
    pub(super) fn span_of(&self, path: &[Step<'_>]) -> Range<usize> {
        let mut node = self;
        let mut span = self.span.clone();
        for step in path {
            match step {
                Step::Key(key) => match node.entries().iter().find(|entry| entry.key == *key) {
                    Some(entry) => {
                        span = entry.span.clone();
                        node = &entry.value;
                    }
                    None => break,
                },
                Step::Index(index) => match node.items().get(*index) {
                    Some(item) => {
                        span = item.span.clone();
                        node = item;
                    }
                    None => break,
                },
            }
        }
        span
    }

    /// The same as JSON.
    pub(super) fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::Array(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Kind::Table(entries) => Value::Object(
                entries
                    .iter()
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    /// What kind of value this is, in TOML's words.
    pub(super) fn type_name(&self) -> &'static str {
        match &self.kind {
            Kind::Table(_) => "a table",
            Kind::Array(_) => "an array",
            Kind::Scalar(Value::String(_)) => "a string",
            Kind::Scalar(Value::Bool(_)) => "a boolean",
            Kind::Scalar(Value::Number(number)) if number.is_f64() => "a float",
            Kind::Scalar(Value::Number(_)) => "an integer",
            Kind::Scalar(_) => "nothing",
        }
    }
}

fn from_table(span: Range<usize>, table: &DeTable<'_>, problems: &mut Problems<'_>) -> Node {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            span: key.span(),
            value: from_value(value, problems),
        })
        .collect();
    entries.sort_by_key(|entry| entry.span.start);
    Node {
        span,
        kind: Kind::Table(entries),
    }
}

fn from_value(value: &Spanned<DeValue<'_>>, problems: &mut Problems<'_>) -> Node {
    let span = value.span();
    let scalar = match value.get_ref() {
        DeValue::Table(table) => return from_table(span, table, problems),
        DeValue::Array(array) => {
            let items = array
                .iter()
                .map(|item| from_value(item, problems))
                .collect();
            return Node {
                span,
                kind: Kind::Array(items),
            };
        }
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => number.into(),
            Err(_) => {
                problems.add(
                    &span,
                    format!("`{}` is too large for an integer", integer.as_str()),
                    "",
                );
                Value::Null
            }
        },
        DeValue::Float(float) => match float
            .as_str()
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
        {
            Some(number) => Value::Number(number),
            None => {
                problems.add(
                    &span,
                    format!("`{}` is no finite number", float.as_str()),
                    "",
                );
                Value::Null
            }
        },
        DeValue::Datetime(datetime) => Value::String(datetime.to_string()),
    };
    Node {
        span,
        kind: Kind::Scalar(scalar),
    }
}
