//! JSON Schema 2020-12, compiled once into an immutable form and then only read.
//!
//! The usual crates were tried first: they make a guest of 4.5 MB that imports WASI and writes to
//! lazily built caches in every fresh copy of its memory. This one is the core, applicator,
//! unevaluated, validation and format vocabularies over `serde_json` values, with patterns as dense
//! automata; the tests hold it against the `jsonschema` crate and the official test suite. What it
//! does not have is refused when the schema is compiled, never ignored: references to other
//! documents, `$dynamicRef`, and patterns that no automaton can match.

mod compile;
mod format;
mod pattern;
mod values;
mod walk;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Number, Value};

use format::Format;
use pattern::Pattern;

/// A compiled schema.
#[derive(Debug)]
pub struct Schema {
    nodes: Vec<Vec<Keyword>>,
    root: Id,
}

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// JSON Pointer to the place in the instance; empty for the whole. Shortened where it is long.
    pub path: String,
    /// What was expected. Never what was found, but for its type.
    pub expected: String,
}

/// A schema that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaError {
    /// JSON Pointer to the place in the schema.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The place of a compiled subschema.
type Id = usize;

/// A compiled keyword.
#[derive(Debug)]
enum Keyword {
    /// The schema `false`.
    Nothing,
    Type(Types),
    Enum(Vec<Value>),
    Const(Value),
    MultipleOf(Number),
    Maximum(Number),
    ExclusiveMaximum(Number),
    Minimum(Number),
    ExclusiveMinimum(Number),
    MaxLength(u64),
    MinLength(u64),
    Pattern(Box<Pattern>),
    Format(Format),
    MaxItems(u64),
    MinItems(u64),
    UniqueItems,
    Items {
        prefix: Vec<Id>,
        rest: Option<Id>,
    },
    Contains {
        item: Id,
        min: u64,
        max: Option<u64>,
    },
    MaxProperties(u64),
    MinProperties(u64),
    Required(Vec<String>),
    Properties(Properties),
    PropertyNames(Id),
    DependentRequired(BTreeMap<String, Vec<String>>),
    DependentSchemas(BTreeMap<String, Id>),
    AllOf(Vec<Id>),
    AnyOf(Vec<Id>),
    OneOf(Vec<Id>),
    Not(Id),
    If {
        condition: Id,
        then: Option<Id>,
        otherwise: Option<Id>,
    },
    Ref(Id),
    UnevaluatedItems(Id),
    UnevaluatedProperties(Id),
}

/// `properties`, `patternProperties` and `additionalProperties`, which depend on each other.
#[derive(Debug, Default)]
struct Properties {
    named: BTreeMap<String, Id>,
    patterns: Vec<(Pattern, Id)>,
    additional: Option<Id>,
}

/// A set of JSON types, in the order of [`TYPE_NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Types(u8);

/// The names of the types, by bit.
const TYPE_NAMES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// When a keyword has a value that it cannot have, or is one that is not supported.
    pub fn compile(schema: &Value) -> Result<Self, SchemaError> {
        compile::Compiler::new(schema).compile()
    }

    /// What does not fit, at most `limit` violations.
    pub fn violations(&self, instance: &Value, limit: usize) -> Vec<Violation> {
        walk::violations(self, instance, limit)
    }
}
