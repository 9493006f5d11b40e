//! Holds an instance against a compiled schema.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::cmp::Ordering;

use serde_json::{Map, Value};

use super::compile::escape;
use super::values::{all_differ, compare, equal, is_multiple};
use super::{Id, Keyword, Properties, Schema, Types, Violation};

/// Schemas within schemas that are followed; a schema that refers to itself in a circle ends here.
const MAX_DEPTH: usize = 512;

/// The longest path and the longest expectation that are told, in bytes.
const MAX_TEXT: usize = 160;

/// See [`Schema::violations`].
pub(super) fn violations(schema: &Schema, instance: &Value, limit: usize) -> Vec<Violation> {
    let mut walk = Walk {
        schema,
        violations: Vec::new(),
        limit,
        depth: 0,
    };
    walk.check(schema.root, instance, &Path::Root, None, false);
    walk.violations
}

/// Where in the instance.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn write(&self, text: &mut String) {
        match self {
            Self::Root => {}
            Self::Key(parent, key) => {
                parent.write(text);
                text.push('/');
                text.push_str(&escape(shortened(key, 40)));
            }
            Self::Index(parent, index) => {
                parent.write(text);
                text.push_str(&format!("/{index}"));
            }
        }
    }
}

/// The beginning of a text, cut between characters.
fn shortened(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Which members and items of one value some subschema has looked at and accepted.
struct Seen {
    /// In the order of the value.
    parts: Vec<bool>,
}

impl Seen {
    fn of(value: &Value) -> Self {
        let count = match value {
            Value::Array(items) => items.len(),
            Value::Object(members) => members.len(),
            _ => 0,
        };
        Self {
            parts: vec![false; count],
        }
    }

    fn mark(&mut self, index: usize) {
        if let Some(part) = self.parts.get_mut(index) {
            *part = true;
        }
    }

    fn merge(&mut self, other: &Self) {
        for (part, other) in self.parts.iter_mut().zip(&other.parts) {
            *part |= other;
        }
    }
}

struct Walk<'s> {
    schema: &'s Schema,
    violations: Vec<Violation>,
    limit: usize,
    depth: usize,
}

impl<'s> Walk<'s> {
    /// Whether the value fits; if not, and unless `quiet`, notes why. `seen` collects what was
    /// looked at, where somebody asks.
    fn check(
        &mut self,
        id: Id,
        value: &Value,
        path: &Path<'_>,
        seen: Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        let schema: &'s Schema = self.schema;
        if self.depth >= MAX_DEPTH {
            return self.fail(path, quiet, || {
                "a value that is less deeply nested".to_string()
            });
        }
        self.depth += 1;
        let keywords: &'s [Keyword] = &schema.nodes[id];
        let asks = |keyword: &Keyword| {
            matches!(
                keyword,
                Keyword::UnevaluatedItems(_) | Keyword::UnevaluatedProperties(_)
            )
        };
        let mut own = (seen.is_some() || keywords.iter().any(asks)).then(|| Seen::of(value));
        let mut fits = true;
        for keyword in keywords {
            fits &= self.keyword(keyword, value, path, own.as_mut(), quiet);
            if !fits && (quiet || self.violations.len() >= self.limit) {
                break;
            }
        }
        self.depth -= 1;
        if let (Some(seen), Some(own), true) = (seen, own, fits) {
            seen.merge(&own);
        }
        fits
    }

    fn keyword(
        &mut self,
        keyword: &'s Keyword,
        value: &Value,
        path: &Path<'_>,
        seen: Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        match keyword {
            Keyword::Nothing => self.fail(path, quiet, || {
                "nothing: this is not allowed here".to_string()
            }),
            Keyword::Type(types) => {
                let found = Types::of(value);
                found.intersects(*types) || self.fail(path, quiet, || types.describe())
            }
            Keyword::Enum(values) => {
                values.iter().any(|one| equal(one, value))
                    || self.fail(path, quiet, || {
                        let values: Vec<String> = values.iter().map(Value::to_string).collect();
                        format!("one of {}", values.join(", "))
                    })
            }
            Keyword::Const(one) => equal(one, value) || self.fail(path, quiet, || one.to_string()),
            Keyword::Ref(id) => self.check(*id, value, path, seen, quiet),
            Keyword::AllOf(ids) => self.all(ids, value, path, seen, quiet),
            Keyword::AnyOf(ids) => {
                let fit = self.count_fitting(ids, value, path, seen);
                fit > 0
                    || self.fail(path, quiet, || {
                        format!("a fit with one of the {} schemas of `anyOf`", ids.len())
                    })
            }
            Keyword::OneOf(ids) => {
                let fit = self.count_fitting(ids, value, path, seen);
                fit == 1
                    || self.fail(path, quiet, || {
                        format!("a fit with exactly one schema of `oneOf`, not {fit}")
                    })
            }
            Keyword::Not(id) => {
                !self.check(*id, value, path, None, true)
                    || self.fail(path, quiet, || {
                        "no fit with the schema of `not`".to_string()
                    })
            }
            Keyword::If {
                condition,
                then,
                otherwise,
            } => self.branch(*condition, *then, *otherwise, value, path, seen, quiet),
            _ => match value {
                Value::Number(_) => self.number(keyword, value, path, quiet),
                Value::String(text) => self.string(keyword, text, path, quiet),
                Value::Array(items) => self.array(keyword, items, path, seen, quiet),
                Value::Object(members) => self.object(keyword, value, members, path, seen, quiet),
                _ => true,
            },
        }
    }

    fn number(&mut self, keyword: &Keyword, value: &Value, path: &Path<'_>, quiet: bool) -> bool {
        let Value::Number(number) = value else {
            return true;
        };
        let (fits, words, bound) = match keyword {
            Keyword::MultipleOf(divisor) => {
                (is_multiple(number, divisor), "a multiple of", divisor)
            }
            Keyword::Maximum(bound) => (
                compare(number, bound) != Ordering::Greater,
                "at most",
                bound,
            ),
            Keyword::ExclusiveMaximum(bound) => {
                (compare(number, bound) == Ordering::Less, "less than", bound)
            }
            Keyword::Minimum(bound) => {
                (compare(number, bound) != Ordering::Less, "at least", bound)
            }
            Keyword::ExclusiveMinimum(bound) => (
                compare(number, bound) == Ordering::Greater,
                "more than",
                bound,
            ),
            _ => return true,
        };
        fits || self.fail(path, quiet, || format!("{words} {bound}"))
    }

    fn string(&mut self, keyword: &Keyword, text: &str, path: &Path<'_>, quiet: bool) -> bool {
        match keyword {
            // A text has at most as many characters as bytes: most need not be counted.
            Keyword::MaxLength(most) => {
                text.len() as u64 <= *most
                    || text.chars().count() as u64 <= *most
                    || self.fail(path, quiet, || format!("at most {most} characters"))
            }
            Keyword::MinLength(least) => {
                text.chars().count() as u64 >= *least
                    || self.fail(path, quiet, || format!("at least {least} characters"))
            }
            Keyword::Pattern(pattern) => {
                pattern.is_match(text)
                    || self.fail(path, quiet, || format!("a match of /{}/", pattern.source()))
            }
            Keyword::Format(format) => {
                format.fits(text) || self.fail(path, quiet, || format.describe().to_string())
            }
            _ => true,
        }
    }

    fn array(
        &mut self,
        keyword: &'s Keyword,
        items: &[Value],
        path: &Path<'_>,
        mut seen: Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        let count = items.len() as u64;
        match keyword {
            Keyword::MaxItems(most) => {
                count <= *most || self.fail(path, quiet, || format!("at most {most} items"))
            }
            Keyword::MinItems(least) => {
                count >= *least || self.fail(path, quiet, || format!("at least {least} items"))
            }
            Keyword::UniqueItems => {
                all_differ(items) || self.fail(path, quiet, || "items that all differ".to_string())
            }
            Keyword::Items { prefix, rest } => {
                let mut fits = true;
                for (index, item) in items.iter().enumerate() {
                    let Some(id) = prefix.get(index).or(rest.as_ref()) else {
                        break;
                    };
                    fits &= self.part(
                        *id,
                        item,
                        index,
                        &Path::Index(path, index),
                        &mut seen,
                        quiet,
                    );
                    if self.enough(fits, quiet) {
                        break;
                    }
                }
                fits
            }
            Keyword::Contains { item, min, max } => {
                let mut found = 0;
                for (index, value) in items.iter().enumerate() {
                    if self.part(
                        *item,
                        value,
                        index,
                        &Path::Index(path, index),
                        &mut seen,
                        true,
                    ) {
                        found += 1;
                    }
                }
                let fits = found >= *min && max.is_none_or(|max| found <= max);
                fits || self.fail(path, quiet, || match max {
                    Some(max) => format!("{min} to {max} items that fit `contains`, not {found}"),
                    None => format!("at least {min} items that fit `contains`, not {found}"),
                })
            }
            Keyword::UnevaluatedItems(id) => {
                let Some(mut seen) = seen else {
                    return true;
                };
                let mut fits = true;
                for (index, item) in items.iter().enumerate() {
                    if seen.parts.get(index) == Some(&false) {
                        fits &= self.part(
                            *id,
                            item,
                            index,
                            &Path::Index(path, index),
                            &mut Some(&mut seen),
                            quiet,
                        );
                    }
                }
                fits
            }
            _ => true,
        }
    }

    fn object(
        &mut self,
        keyword: &'s Keyword,
        value: &Value,
        members: &Map<String, Value>,
        path: &Path<'_>,
        mut seen: Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        let count = members.len() as u64;
        match keyword {
            Keyword::MaxProperties(most) => {
                count <= *most || self.fail(path, quiet, || format!("at most {most} properties"))
            }
            Keyword::MinProperties(least) => {
                count >= *least || self.fail(path, quiet, || format!("at least {least} properties"))
            }
            Keyword::Required(names) => self.required(names, members, path, quiet),
            Keyword::DependentRequired(names) => {
                let present = names.iter().filter(|(name, _)| members.contains_key(*name));
                present.fold(true, |fits, (_, names)| {
                    self.required(names, members, path, quiet) && fits
                })
            }
            Keyword::DependentSchemas(schemas) => {
                let ids = schemas
                    .iter()
                    .filter(|(name, _)| members.contains_key(*name))
                    .map(|(_, id)| *id);
                self.all(&ids.collect::<Vec<_>>(), value, path, seen, quiet)
            }
            Keyword::PropertyNames(id) => members.keys().fold(true, |fits, name| {
                let named = self.check(
                    *id,
                    &Value::String(name.clone()),
                    &Path::Key(path, name),
                    None,
                    true,
                );
                (named
                    || self.fail(&Path::Key(path, name), quiet, || {
                        "a name that fits `propertyNames`".to_string()
                    }))
                    && fits
            }),
            Keyword::Properties(properties) => {
                self.properties(properties, members, path, seen, quiet)
            }
            Keyword::UnevaluatedProperties(id) => {
                let mut fits = true;
                for (index, (name, value)) in members.iter().enumerate() {
                    let unseen = seen
                        .as_ref()
                        .is_some_and(|seen| seen.parts.get(index) == Some(&false));
                    if unseen {
                        fits &=
                            self.part(*id, value, index, &Path::Key(path, name), &mut seen, quiet);
                    }
                }
                fits
            }
            _ => true,
        }
    }

    fn properties(
        &mut self,
        properties: &Properties,
        members: &Map<String, Value>,
        path: &Path<'_>,
        mut seen: Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        let mut fits = true;
        for (index, (name, value)) in members.iter().enumerate() {
            let place = Path::Key(path, name);
            let mut known = false;
            let named = properties.named.get(name).copied();
            let patterns = properties
                .patterns
                .iter()
                .filter(|(pattern, _)| pattern.is_match(name))
                .map(|(_, id)| *id);
            for id in named.into_iter().chain(patterns) {
                known = true;
                fits &= self.part(id, value, index, &place, &mut seen, quiet);
            }
            if let Some(id) = properties.additional.filter(|_| !known) {
                fits &= self.part(id, value, index, &place, &mut seen, quiet);
            }
            if self.enough(fits, quiet) {
                break;
            }
        }
        fits
    }

    /// Checks a member or an item, and notes that it was looked at.
    fn part(
        &mut self,
        id: Id,
        value: &Value,
        index: usize,
        path: &Path<'_>,
        seen: &mut Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        let fits = self.check(id, value, path, None, quiet);
        if fits && let Some(seen) = seen {
            seen.mark(index);
        }
        fits
    }

    fn required(
        &mut self,
        names: &[String],
        members: &Map<String, Value>,
        path: &Path<'_>,
        quiet: bool,
    ) -> bool {
        let missing = names.iter().filter(|name| !members.contains_key(*name));
        missing.fold(true, |_, name| {
            self.fail(path, quiet, || format!("the property `{name}`"))
        })
    }

    fn all(
        &mut self,
        ids: &[Id],
        value: &Value,
        path: &Path<'_>,
        mut seen: Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        // Not `Iterator::all`: every schema is to be looked at, for its errors and what it has seen.
        let mut fits = true;
        for id in ids {
            fits &= self.check(*id, value, path, seen.as_deref_mut(), quiet);
        }
        fits
    }

    fn count_fitting(
        &mut self,
        ids: &[Id],
        value: &Value,
        path: &Path<'_>,
        mut seen: Option<&mut Seen>,
    ) -> usize {
        ids.iter()
            .filter(|id| self.check(**id, value, path, seen.as_deref_mut(), true))
            .count()
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the three parts of one keyword, and what every check is given"
    )]
    fn branch(
        &mut self,
        condition: Id,
        then: Option<Id>,
        otherwise: Option<Id>,
        value: &Value,
        path: &Path<'_>,
        mut seen: Option<&mut Seen>,
        quiet: bool,
    ) -> bool {
        let holds = self.check(condition, value, path, seen.as_deref_mut(), true);
        let next = if holds { then } else { otherwise };
        next.is_none_or(|id| self.check(id, value, path, seen, quiet))
    }

    /// Whether looking further cannot change or add anything.
    fn enough(&self, fits: bool, quiet: bool) -> bool {
        !fits && (quiet || self.violations.len() >= self.limit)
    }

    fn fail(&mut self, path: &Path<'_>, quiet: bool, expected: impl FnOnce() -> String) -> bool {
        if !quiet && self.violations.len() < self.limit {
            let mut place = String::new();
            path.write(&mut place);
            let expected = expected();
            self.violations.push(Violation {
                path: shortened(&place, MAX_TEXT).to_string(),
                expected: shortened(&expected, MAX_TEXT).to_string(),
            });
        }
        false
    }
}
