//! From a schema as JSON to its compiled form: every reference resolved, every pattern built.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::{Map, Number, Value};

use super::format::Format;
use super::pattern::Pattern;
use super::{Id, Keyword, Properties, Schema, SchemaError, Types};

/// Keywords whose value is one subschema, many, or many by name; for finding `$id` and `$anchor`.
const ONE: [&str; 11] = [
    "additionalProperties",
    "propertyNames",
    "items",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
const MANY: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
const NAMED: [&str; 5] = [
    "properties",
    "patternProperties",
    "dependentSchemas",
    "$defs",
    "definitions",
];

/// Compiles one document.
pub(super) struct Compiler<'a> {
    document: &'a Value,
    nodes: Vec<Vec<Keyword>>,
    /// Compiled subschemas by their place in the document.
    places: BTreeMap<String, Id>,
    /// Places by what they may be called: `$id`, and `$id#anchor`.
    names: BTreeMap<String, String>,
}

/// A subschema's place: its JSON Pointer, and the identifier of the resource that it belongs to.
struct Place<'p> {
    path: String,
    base: &'p str,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(document: &'a Value) -> Self {
        Self {
            document,
            nodes: Vec::new(),
            places: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    pub(super) fn compile(mut self) -> Result<Schema, SchemaError> {
        if let Some(version) = self.document.get("$schema")
            && !version
                .as_str()
                .is_some_and(|uri| uri.trim_end_matches('#').ends_with("draft/2020-12/schema"))
        {
            return Err(error(
                "/$schema",
                "only https://json-schema.org/draft/2020-12/schema is supported; leave it out or convert the schema",
            ));
        }
        self.find_names(self.document, "", "");
        let root = self.place("")?;
        Ok(Schema {
            nodes: self.nodes,
            root,
        })
    }

    /// Notes where `$id` and `$anchor` are.
    fn find_names(&mut self, schema: &Value, path: &str, base: &str) {
        let Value::Object(members) = schema else {
            return;
        };
        let own = members.get("$id").and_then(Value::as_str);
        let resolved = own.map(|id| resolve(base, id.trim_end_matches('#')));
        let base = resolved.as_deref().unwrap_or(base);
        if resolved.is_some() || path.is_empty() {
            self.names.insert(base.to_string(), path.to_string());
        }
        for keyword in ["$anchor", "$dynamicAnchor"] {
            if let Some(anchor) = members.get(keyword).and_then(Value::as_str) {
                self.names
                    .insert(format!("{base}#{anchor}"), path.to_string());
            }
        }
        for (keyword, value) in members {
            let place = format!("{path}/{}", escape(keyword));
            let keyword = keyword.as_str();
            match value {
                Value::Array(items) if MANY.contains(&keyword) => {
                    for (index, item) in items.iter().enumerate() {
                        self.find_names(item, &format!("{place}/{index}"), base);
                    }
                }
                Value::Object(named) if NAMED.contains(&keyword) => {
                    for (name, item) in named {
                        self.find_names(item, &format!("{place}/{}", escape(name)), base);
                    }
                }
                _ if ONE.contains(&keyword) => self.find_names(value, &place, base),
                _ => {}
            }
        }
    }

    /// The identifier of the resource that a place belongs to.
    fn base_of(&self, path: &str) -> String {
        let of = |place: &str| {
            path == place
                || path
                    .strip_prefix(place)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        let resources = self
            .names
            .iter()
            .filter(|(name, place)| !name.contains('#') && of(place));
        let nearest = resources.max_by_key(|(_, place)| place.len());
        nearest.map_or_else(String::new, |(name, _)| name.clone())
    }

    /// Compiles the subschema at a place, once.
    fn place(&mut self, path: &str) -> Result<Id, SchemaError> {
        if let Some(&id) = self.places.get(path) {
            return Ok(id);
        }
        let Some(schema) = self.document.pointer(path) else {
            return Err(error(path, "there is nothing at this place of the schema"));
        };
        let id = self.nodes.len();
        self.nodes.push(Vec::new());
        self.places.insert(path.to_string(), id);
        self.nodes[id] = match schema {
            Value::Bool(true) => Vec::new(),
            Value::Bool(false) => [Keyword::Nothing].into(),
            Value::Object(members) => {
                let base = self.base_of(path);
                self.keywords(
                    members,
                    &Place {
                        path: path.to_string(),
                        base: &base,
                    },
                )?
            }
            _ => return Err(error(path, "a schema is an object, `true` or `false`")),
        };
        Ok(id)
    }

    fn keywords(
        &mut self,
        members: &Map<String, Value>,
        place: &Place<'_>,
    ) -> Result<Vec<Keyword>, SchemaError> {
        let mut keywords = Vec::new();
        for (name, value) in members {
            let path = format!("{}/{}", place.path, escape(name));
            keywords.extend(self.keyword(name, value, members, &path, place.base)?);
        }
        keywords.extend(self.properties(members, &place.path)?);
        keywords.extend(self.items(members, &place.path)?);
        // What is unevaluated is known when all others have been looked at.
        keywords.sort_by_key(|keyword| {
            matches!(
                keyword,
                Keyword::UnevaluatedItems(_) | Keyword::UnevaluatedProperties(_)
            )
        });
        Ok(keywords)
    }

    /// A keyword that stands for itself. Unknown ones are annotations.
    fn keyword(
        &mut self,
        name: &str,
        value: &Value,
        siblings: &Map<String, Value>,
        path: &str,
        base: &str,
    ) -> Result<Option<Keyword>, SchemaError> {
        Ok(Some(match name {
            "$ref" => Keyword::Ref(self.reference(value, path, base)?),
            "$dynamicRef" | "$recursiveRef" => {
                return Err(error(
                    path,
                    "references that depend on the caller are not supported; use `$ref`",
                ));
            }
            "type" => Keyword::Type(types(value, path)?),
            "enum" => Keyword::Enum(array(value, path)?.clone()),
            "const" => Keyword::Const(value.clone()),
            "multipleOf" => {
                let divisor = number(value, path)?;
                if divisor.as_f64().is_none_or(|divisor| divisor <= 0.0) {
                    return Err(error(path, "must be above 0"));
                }
                Keyword::MultipleOf(divisor)
            }
            "maximum" => Keyword::Maximum(number(value, path)?),
            "exclusiveMaximum" => Keyword::ExclusiveMaximum(number(value, path)?),
            "minimum" => Keyword::Minimum(number(value, path)?),
            "exclusiveMinimum" => Keyword::ExclusiveMinimum(number(value, path)?),
            "maxLength" => Keyword::MaxLength(count(value, path)?),
            "minLength" => Keyword::MinLength(count(value, path)?),
            "pattern" => Keyword::Pattern(Box::new(pattern(string(value, path)?, path)?)),
            "format" => return Ok(Format::named(string(value, path)?).map(Keyword::Format)),
            "maxItems" => Keyword::MaxItems(count(value, path)?),
            "minItems" => Keyword::MinItems(count(value, path)?),
            "uniqueItems" => return Ok(boolean(value, path)?.then_some(Keyword::UniqueItems)),
            "contains" => Keyword::Contains {
                item: self.place(path)?,
                min: siblings
                    .get("minContains")
                    .map_or(Ok(1), |value| count(value, path))?,
                max: siblings
                    .get("maxContains")
                    .map(|value| count(value, path))
                    .transpose()?,
            },
            "maxProperties" => Keyword::MaxProperties(count(value, path)?),
            "minProperties" => Keyword::MinProperties(count(value, path)?),
            "required" => Keyword::Required(strings(value, path)?),
            "propertyNames" => Keyword::PropertyNames(self.place(path)?),
            "dependentRequired" => {
                let mut names = BTreeMap::new();
                for (name, value) in object(value, path)? {
                    names.insert(name.clone(), strings(value, path)?);
                }
                Keyword::DependentRequired(names)
            }
            "dependentSchemas" => Keyword::DependentSchemas(self.named(value, path)?),
            "dependencies" => {
                return Err(error(
                    path,
                    "in 2020-12 this is `dependentRequired` or `dependentSchemas`",
                ));
            }
            "allOf" => Keyword::AllOf(self.listed(value, path)?),
            "anyOf" => Keyword::AnyOf(self.listed(value, path)?),
            "oneOf" => Keyword::OneOf(self.listed(value, path)?),
            "not" => Keyword::Not(self.place(path)?),
            "if" => {
                let parent = path.strip_suffix("/if").unwrap_or(path);
                let mut branch = |name: &str| {
                    siblings
                        .contains_key(name)
                        .then(|| self.place(&format!("{parent}/{name}")))
                        .transpose()
                };
                let (then, otherwise) = (branch("then")?, branch("else")?);
                Keyword::If {
                    condition: self.place(path)?,
                    then,
                    otherwise,
                }
            }
            "unevaluatedItems" => Keyword::UnevaluatedItems(self.place(path)?),
            "unevaluatedProperties" => Keyword::UnevaluatedProperties(self.place(path)?),
            _ => return Ok(None),
        }))
    }

    fn properties(
        &mut self,
        members: &Map<String, Value>,
        path: &str,
    ) -> Result<Option<Keyword>, SchemaError> {
        let mut properties = Properties::default();
        let mut any = false;
        if let Some(value) = members.get("properties") {
            any = true;
            properties.named = self.named(value, &format!("{path}/properties"))?;
        }
        if let Some(value) = members.get("patternProperties") {
            any = true;
            let path = format!("{path}/patternProperties");
            for (source, id) in self.named(value, &path)? {
                properties.patterns.push((pattern(&source, &path)?, id));
            }
        }
        if members.contains_key("additionalProperties") {
            any = true;
            properties.additional = Some(self.place(&format!("{path}/additionalProperties"))?);
        }
        Ok(any.then_some(Keyword::Properties(properties)))
    }

    fn items(
        &mut self,
        members: &Map<String, Value>,
        path: &str,
    ) -> Result<Option<Keyword>, SchemaError> {
        let mut prefix = Vec::new();
        if let Some(value) = members.get("prefixItems") {
            prefix = self.listed(value, &format!("{path}/prefixItems"))?;
        }
        let rest = match members.get("items") {
            None => None,
            Some(Value::Array(_)) => {
                return Err(error(
                    &format!("{path}/items"),
                    "is a list: in 2020-12 that is `prefixItems`",
                ));
            }
            Some(_) => Some(self.place(&format!("{path}/items"))?),
        };
        let any = rest.is_some() || !prefix.is_empty();
        Ok(any.then_some(Keyword::Items { prefix, rest }))
    }

    fn listed(&mut self, value: &Value, path: &str) -> Result<Vec<Id>, SchemaError> {
        let count = array(value, path)?.len();
        if count == 0 {
            return Err(error(path, "needs at least one schema"));
        }
        (0..count)
            .map(|index| self.place(&format!("{path}/{index}")))
            .collect()
    }

    fn named(&mut self, value: &Value, path: &str) -> Result<BTreeMap<String, Id>, SchemaError> {
        let names = object(value, path)?.keys();
        names
            .map(|name| {
                Ok((
                    name.clone(),
                    self.place(&format!("{path}/{}", escape(name)))?,
                ))
            })
            .collect()
    }

    /// The target of a `$ref`: a place or an anchor of this document.
    fn reference(&mut self, value: &Value, path: &str, base: &str) -> Result<Id, SchemaError> {
        let target = string(value, path)?;
        let (resource, fragment) = target.split_once('#').unwrap_or((target, ""));
        let resource = resolve(base, resource);
        let place = match fragment {
            "" => self.names.get(&resource).cloned(),
            _ if fragment.starts_with('/') => {
                let pointer = decode(fragment);
                self.names
                    .get(&resource)
                    .map(|place| format!("{place}{pointer}"))
            }
            _ => self.names.get(&format!("{resource}#{fragment}")).cloned(),
        };
        match place.filter(|place| self.document.pointer(place).is_some()) {
            Some(place) => self.place(&place),
            None => Err(error(
                path,
                "refers to nothing in this schema; other documents are not fetched, put them under `$defs`",
            )),
        }
    }
}

/// An identifier relative to another, for the cases that schemas use.
fn resolve(base: &str, reference: &str) -> String {
    if reference.is_empty() {
        return base.to_string();
    }
    let is_absolute = reference
        .find(':')
        .is_some_and(|colon| !reference[..colon].contains('/'));
    if is_absolute || base.is_empty() {
        return reference.to_string();
    }
    let authority = base.find("://").map_or(0, |scheme| {
        let start = scheme + 3;
        base[start..]
            .find('/')
            .map_or(base.len(), |slash| start + slash)
    });
    if reference.starts_with('/') {
        return format!("{}{reference}", &base[..authority]);
    }
    let folder = base
        .rfind('/')
        .filter(|slash| *slash >= authority)
        .map_or(base.len(), |slash| slash + 1);
    format!("{}{reference}", &base[..folder])
}

/// A name as a part of a JSON Pointer.
pub(super) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Percent escapes of a URI fragment.
fn decode(fragment: &str) -> String {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                digit(high)
                    .zip(digit(low))
                    .map(|(high, low)| (high * 16 + low) as u8)
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[3..] } else { tail };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| fragment.to_string())
}

fn types(value: &Value, path: &str) -> Result<Types, SchemaError> {
    let named = |value: &Value| {
        let name = value.as_str().unwrap_or_default();
        Types::named(name).ok_or_else(|| {
            error(path, "expected null, boolean, integer, number, string, array or object, or a list of them")
        })
    };
    match value {
        Value::Array(names) => names
            .iter()
            .try_fold(Types::NONE, |types, name| Ok(types.with(named(name)?))),
        one => named(one),
    }
}

fn pattern(source: &str, path: &str) -> Result<Pattern, SchemaError> {
    Pattern::compile(source).map_err(|message| error(path, &message))
}

fn number(value: &Value, path: &str) -> Result<Number, SchemaError> {
    match value {
        Value::Number(number) => Ok(number.clone()),
        _ => Err(error(path, "expected a number")),
    }
}

/// A whole number from 0; `2.0` is one too.
fn count(value: &Value, path: &str) -> Result<u64, SchemaError> {
    let whole = value.as_u64().or_else(|| {
        let float = value.as_f64()?;
        (float >= 0.0 && libm::trunc(float) == float).then_some(float as u64)
    });
    whole.ok_or_else(|| error(path, "expected a whole number from 0"))
}

fn string<'v>(value: &'v Value, path: &str) -> Result<&'v str, SchemaError> {
    value
        .as_str()
        .ok_or_else(|| error(path, "expected a string"))
}

fn strings(value: &Value, path: &str) -> Result<Vec<String>, SchemaError> {
    let items = array(value, path)?.iter();
    items
        .map(|item| string(item, path).map(str::to_string))
        .collect()
}

fn boolean(value: &Value, path: &str) -> Result<bool, SchemaError> {
    value
        .as_bool()
        .ok_or_else(|| error(path, "expected true or false"))
}

fn array<'v>(value: &'v Value, path: &str) -> Result<&'v Vec<Value>, SchemaError> {
    value
        .as_array()
        .ok_or_else(|| error(path, "expected a list"))
}

fn object<'v>(value: &'v Value, path: &str) -> Result<&'v Map<String, Value>, SchemaError> {
    value
        .as_object()
        .ok_or_else(|| error(path, "expected an object"))
}

fn error(path: &str, message: &str) -> SchemaError {
    SchemaError {
        path: path.to_string(),
        message: message.to_string(),
    }
}
