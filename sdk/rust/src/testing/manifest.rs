//! Does `plugin.toml` describe this plugin? The checks that the host makes when it loads one.

use serde_json::{Map, Value};

use crate::{Installed, StageError, plugin};

/// The five stage interfaces, as manifests name them.
const INTERFACES: [&str; 5] = [
    "validation",
    "compliance",
    "monitoring",
    "deployment",
    "evaluation",
];

/// The grants that a manifest may ask for.
const REQUESTS: [&str; 4] = ["state", "inference", "secrets", "http"];

/// The manifest as JSON.
///
/// # Errors
/// When `plugin.toml` is no TOML.
pub fn manifest<P: Installed>() -> Result<Value, StageError> {
    toml::from_str(P::MANIFEST).map_err(|error| invalid(format!("plugin.toml: {error}")))
}

/// Makes a plugin from a stage's config as the host does: the schema's defaults are filled in, the
/// schema is checked, then `configure` is called.
///
/// # Errors
/// What the host would refuse the config with.
pub fn configure_checked<P: Installed>(config: &Value) -> Result<P, StageError> {
    let manifest = manifest::<P>()?;
    let empty = Value::Object(Map::new());
    let schema = manifest.get("config").unwrap_or(&empty);
    let validator = jsonschema::validator_for(schema)
        .map_err(|error| invalid(format!("the schema in plugin.toml: {error}")))?;
    let mut config = config.clone();
    fill_defaults(schema, &mut config);
    if let Some(error) = validator.iter_errors(&config).next() {
        return Err(invalid(format!("config{}: {error}", error.instance_path())));
    }
    plugin::configure(&config.to_string())
}

/// Panics unless the manifest is complete, its schema is one, every default in it is valid, and
/// `config` (usually `{}`: all defaults) is accepted by the schema and by `configure`.
#[allow(clippy::panic, reason = "an assertion for tests")]
pub fn assert_manifest<P: Installed>(config: &Value) {
    let manifest = match manifest::<P>() {
        Ok(manifest) => manifest,
        Err(error) => panic!("{}", error.message),
    };
    for key in ["name", "version", "license", "help", "contract"] {
        let value = manifest
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default();
        assert!(!value.is_empty(), "plugin.toml has no `{key}`");
    }
    let list = |key: &str| -> Vec<&str> {
        let values = manifest.get(key).and_then(Value::as_array);
        values
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    };
    let interfaces = list("interfaces");
    assert!(!interfaces.is_empty(), "plugin.toml names no `interfaces`");
    for name in interfaces {
        assert!(
            INTERFACES.contains(&name),
            "`{name}` is no interface; there are {INTERFACES:?}"
        );
    }
    for name in list("requests") {
        assert!(
            REQUESTS.contains(&name),
            "`{name}` is no grant; there are {REQUESTS:?}"
        );
    }
    if let Err(error) = configure_checked::<P>(config) {
        panic!("{config} is refused: {}: {}", error.code, error.message);
    }
}

/// Puts the schema's defaults where the config says nothing, in objects at any depth.
fn fill_defaults(schema: &Value, value: &mut Value) {
    let (Some(properties), Value::Object(object)) = (schema.get("properties"), value) else {
        return;
    };
    for (name, schema) in properties.as_object().into_iter().flatten() {
        if let Some(default) = schema.get("default") {
            object
                .entry(name.clone())
                .or_insert_with(|| default.clone());
        }
        if let Some(value) = object.get_mut(name) {
            fill_defaults(schema, value);
        }
    }
}

fn invalid(message: String) -> StageError {
    StageError::invalid_config("manifest", message)
}
