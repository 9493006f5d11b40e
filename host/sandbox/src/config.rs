//! A stage's config: checked against the plugin's JSON Schema, with its defaults filled in.

use serde_json::Value;

/// Checks `config` against `schema` and fills in the schema's defaults. The problems, where there
/// are any, say where (as a JSON Pointer) and what was expected.
pub(crate) fn complete(schema: &Value, config: &Value) -> Result<Value, Vec<String>> {
    let mut config = match config {
        Value::Null => Value::Object(serde_json::Map::new()),
        other => other.clone(),
    };
    if schema.is_null() {
        return Ok(config);
    }
    let validator = jsonschema::draft202012::new(schema).map_err(|error| {
        vec![format!(
            "the plugin's own config schema is not valid: {error}"
        )]
    })?;
    fill(schema, &mut config);
    let problems: Vec<String> = validator
        .iter_errors(&config)
        .take(20)
        .map(|error| {
            let at = error.instance_path().to_string();
            format!("{}: {error}", if at.is_empty() { "/" } else { &at })
        })
        .collect();
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

/// Whether a schema is itself valid.
pub(crate) fn check_schema(schema: &Value) -> Result<(), String> {
    jsonschema::draft202012::new(schema)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// Puts the defaults of absent members in place, in objects and in the items of arrays. Only
/// plain `properties` and `items` are followed: what stands under `oneOf` or `$ref` depends on
/// the value, and a plugin that uses those sets its defaults itself.
fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(members) => {
            let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
                return;
            };
            for (name, property) in properties {
                if let (false, Some(default)) =
                    (members.contains_key(name), property.get("default"))
                {
                    members.insert(name.clone(), default.clone());
                }
                if let Some(member) = members.get_mut(name) {
                    fill(property, member);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for item in items {
                    fill(schema, item);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "required": ["words"],
            "properties": {
                "words": { "type": "array", "items": { "type": "string" } },
                "action": { "type": "string", "enum": ["mask", "block"], "default": "mask" },
                "rules": { "type": "array", "items": {
                    "type": "object",
                    "properties": { "score": { "type": "number", "default": 0.5 } }
                } }
            }
        })
    }

    #[test]
    fn absent_members_get_their_defaults() {
        let full = complete(&schema(), &json!({ "words": [], "rules": [{}] })).unwrap();
        assert_eq!(
            full,
            json!({ "words": [], "action": "mask", "rules": [{ "score": 0.5 }] })
        );
    }

    #[test]
    fn no_config_is_an_empty_one() {
        assert_eq!(complete(&Value::Null, &Value::Null).unwrap(), json!({}));
    }

    #[test]
    fn every_problem_is_told_with_its_place() {
        let problems = complete(
            &schema(),
            &json!({ "words": [1], "action": "shout", "colour": 1 }),
        )
        .unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("/words/0: ") && p.contains("string"))
        );
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with("/action: ") && p.contains("mask"))
        );
        assert!(problems.iter().any(|p| p.contains("colour")));
    }

    #[test]
    fn a_missing_member_is_named() {
        let problems = complete(&schema(), &json!({})).unwrap_err();
        assert!(problems[0].contains("words"), "{problems:?}");
    }
}
