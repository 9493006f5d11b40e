//! The validator against the `jsonschema` crate, on random schemas and instances, and against the
//! official test suite.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use millgate_plugin_schema::json_schema::Schema;
use proptest::prelude::*;
use serde_json::{Value, json};

fn fits(schema: &Value, instance: &Value) -> bool {
    Schema::compile(schema)
        .unwrap()
        .violations(instance, 5)
        .is_empty()
}

fn reference_fits(schema: &Value, instance: &Value) -> bool {
    jsonschema::options()
        .with_draft(jsonschema::Draft::Draft202012)
        .should_validate_formats(true)
        .build(schema)
        .unwrap()
        .is_valid(instance)
}

/// Few names and values, so that schemas and instances meet.
fn instance() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (-3i64..6).prop_map(Value::from),
        prop::sample::select(vec![
            json!(1.0),
            json!(1.5),
            json!(0.3),
            json!(1e20),
            json!(-2.0)
        ]),
        "[ab]{0,3}".prop_map(Value::from),
        Just(json!("2026-11-24")),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn keyword(inner: BoxedStrategy<Value>) -> impl Strategy<Value = (String, Value)> {
    let name = || prop::sample::select(vec!["a", "b", "c"]);
    let named = prop::collection::btree_map("[abc]", inner.clone(), 1..3)
        .prop_map(|map| Value::Object(map.into_iter().collect()));
    let listed = prop::collection::vec(inner.clone(), 1..3).prop_map(Value::from);
    let types = prop::sample::select(vec![
        "null", "boolean", "integer", "number", "string", "array", "object",
    ]);
    let entry = |name: &'static str, value: BoxedStrategy<Value>| {
        value
            .prop_map(move |value| (name.to_string(), value))
            .boxed()
    };
    let mut choices = vec![
        entry("type", types.clone().prop_map(Value::from).boxed()),
        entry(
            "type",
            prop::collection::btree_set(types, 1..3)
                .prop_map(|set| json!(set))
                .boxed(),
        ),
        entry(
            "enum",
            prop::collection::vec(instance(), 1..4)
                .prop_map(Value::from)
                .boxed(),
        ),
        entry("const", instance().boxed()),
        entry(
            "multipleOf",
            prop::sample::select(vec![json!(2), json!(0.1), json!(1.5)]).boxed(),
        ),
        entry(
            "pattern",
            prop::sample::select(vec!["^a", "b$", "a.b", "^[^a]*$", "\\d"])
                .prop_map(Value::from)
                .boxed(),
        ),
        entry(
            "format",
            prop::sample::select(vec!["date", "unknown"])
                .prop_map(Value::from)
                .boxed(),
        ),
        entry("uniqueItems", any::<bool>().prop_map(Value::from).boxed()),
        entry(
            "required",
            prop::collection::btree_set(name(), 0..3)
                .prop_map(|set| json!(set))
                .boxed(),
        ),
        entry(
            "dependentRequired",
            (name(), name()).prop_map(|(a, b)| json!({a: [b]})).boxed(),
        ),
        entry(
            "patternProperties",
            (prop::sample::select(vec!["^a", "[bc]"]), inner.clone())
                .prop_map(|(p, s)| json!({p: s}))
                .boxed(),
        ),
        entry(
            "$ref",
            prop::sample::select(vec!["#/$defs/d", "#named"])
                .prop_map(Value::from)
                .boxed(),
        ),
    ];
    for name in ["maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum"] {
        choices.push(entry(
            name,
            prop::sample::select(vec![json!(1), json!(0.5), json!(3)]).boxed(),
        ));
    }
    for name in [
        "maxLength",
        "minLength",
        "maxItems",
        "minItems",
        "maxProperties",
        "minProperties",
        "minContains",
        "maxContains",
    ] {
        choices.push(entry(name, (0u64..4).prop_map(Value::from).boxed()));
    }
    for name in [
        "items",
        "contains",
        "additionalProperties",
        "propertyNames",
        "not",
        "if",
        "then",
        "else",
        "unevaluatedItems",
        "unevaluatedProperties",
    ] {
        choices.push(entry(name, inner.clone()));
    }
    for name in ["allOf", "anyOf", "oneOf", "prefixItems"] {
        choices.push(entry(name, listed.clone().boxed()));
    }
    for name in ["properties", "dependentSchemas"] {
        choices.push(entry(name, named.clone().boxed()));
    }
    prop::strategy::Union::new(choices)
}

fn schema() -> impl Strategy<Value = Value> {
    let leaf = any::<bool>().prop_map(Value::from).boxed();
    let object = |inner: BoxedStrategy<Value>| {
        prop::collection::vec(keyword(inner), 1..5)
            .prop_map(|keywords| Value::Object(keywords.into_iter().collect()))
            .boxed()
    };
    let one = object(leaf);
    let two = object(one.clone());
    (object(two), one).prop_map(|(mut root, definition)| {
        let definition = strip(definition);
        root["$defs"] =
            json!({"d": definition.clone(), "e": {"$anchor": "named", "allOf": [definition]}});
        root
    })
}

/// Without references, so that a definition does not refer to itself for ever.
fn strip(mut value: Value) -> Value {
    if let Value::Object(members) = &mut value {
        members.remove("$ref");
        for member in members.values_mut() {
            *member = strip(member.take());
        }
    }
    if let Value::Array(items) = &mut value {
        for item in items.iter_mut() {
            *item = strip(item.take());
        }
    }
    value
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn random_schemas_judge_as_the_reference_does(schema in schema(), instances in prop::collection::vec(instance(), 4)) {
        for instance in instances {
            prop_assert_eq!(fits(&schema, &instance), reference_fits(&schema, &instance), "{} {}", schema, instance);
        }
    }
}

#[test]
fn violations_say_where_and_what_and_never_echo() {
    let schema = json!({
        "type": "object",
        "required": ["model"],
        "properties": {"n": {"type": "integer", "maximum": 4}, "user": {"enum": ["a", "b"]}},
        "additionalProperties": false,
    });
    let long = "secret".repeat(1000);
    let violations = Schema::compile(&schema)
        .unwrap()
        .violations(&json!({"n": 9, "user": long, "x": 1}), 10);
    let told: Vec<String> = violations
        .iter()
        .map(|v| format!("{}: {}", v.path, v.expected))
        .collect();
    assert!(told.contains(&"/n: at most 4".to_string()), "{told:?}");
    assert!(
        told.contains(&"/user: one of \"a\", \"b\"".to_string()),
        "{told:?}"
    );
    assert!(
        told.contains(&"/x: nothing: this is not allowed here".to_string()),
        "{told:?}"
    );
    assert!(
        told.contains(&": the property `model`".to_string()),
        "{told:?}"
    );
    assert!(told.iter().all(|text| !text.contains("secret")));
    let name = "n".repeat(5000);
    let violations = Schema::compile(&schema)
        .unwrap()
        .violations(&json!({"model": 1, name: 1}), 1);
    assert!(violations[0].path.len() <= 160);
}

#[test]
fn schemas_that_cannot_be_used_are_refused_with_their_place() {
    for (schema, path) in [
        (
            json!({"properties": {"a/b": {"type": "text"}}}),
            "/properties/a~1b/type",
        ),
        (json!({"items": [{}]}), "/items"),
        (json!({"$ref": "https://example.org/other"}), "/$ref"),
        (json!({"$ref": "#/nowhere"}), "/$ref"),
        (json!({"$dynamicRef": "#x"}), "/$dynamicRef"),
        (json!({"pattern": "(?=x)"}), "/pattern"),
        (json!({"allOf": []}), "/allOf"),
        (json!({"minLength": -1}), "/minLength"),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
            "/$schema",
        ),
        (json!(3), ""),
    ] {
        assert_eq!(Schema::compile(&schema).unwrap_err().path, path, "{schema}");
    }
}

#[test]
fn a_schema_that_refers_to_itself_works_and_a_circle_ends() {
    let list = json!({"$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": false}}, "$ref": "#/$defs/node"});
    assert!(fits(&list, &json!({"next": {"next": {}}})));
    assert!(!fits(&list, &json!({"next": {"last": {}}})));
    assert!(!fits(&json!({"$ref": "#"}), &json!(1)));
}

/// `JSON_SCHEMA_TEST_SUITE=path/to/tests/draft2020-12 cargo test … -- --ignored`; the suite is
/// github.com/json-schema-org/JSON-Schema-Test-Suite.
#[test]
#[ignore = "needs the official test suite: set JSON_SCHEMA_TEST_SUITE"]
fn the_official_test_suite_passes_but_for_what_is_refused() {
    let folder = std::env::var("JSON_SCHEMA_TEST_SUITE").unwrap();
    let (mut passed, mut refused, mut failed) = (0, 0, Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // There formats are annotations; here they are asserted, as the suite's optional part has it.
        if path.extension().is_none_or(|extension| extension != "json")
            || path.ends_with("format.json")
        {
            continue;
        }
        let groups: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for group in groups.as_array().unwrap() {
            let schema = match Schema::compile(&group["schema"]) {
                Ok(schema) => schema,
                Err(error) => {
                    refused += 1;
                    println!(
                        "refused: {} {}: {} {}",
                        path.display(),
                        group["description"],
                        error.path,
                        error.message
                    );
                    continue;
                }
            };
            for test in group["tests"].as_array().unwrap() {
                let fits = schema.violations(&test["data"], 1).is_empty();
                if test["valid"] == fits {
                    passed += 1;
                } else {
                    failed.push(format!(
                        "{} {} {}",
                        path.display(),
                        group["description"],
                        test["description"]
                    ));
                }
            }
        }
    }
    println!("{passed} passed, {refused} groups refused");
    assert!(failed.is_empty(), "{}\n{}", failed.len(), failed.join("\n"));
}
