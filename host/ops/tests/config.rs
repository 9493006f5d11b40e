//! Configs with what is said about them: each folder of `tests/config` holds a `millgate.toml` and
//! the `expected.txt` that its check prints. `MILLGATE_BLESS=1` writes the latter anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};

use millgate_ops::config::{self, PluginCatalog, PluginFacts, check, check_with_plugins};
use serde_json::json;

/// A few plugins, by their manifests.
struct Catalog;

fn facts(name: &str, interfaces: &[&str], requests: &[&str]) -> PluginFacts {
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    PluginFacts {
        name: name.to_owned(),
        interfaces: words(interfaces),
        requests: words(requests),
        config_schema: json!({
            "type": "object",
            "additionalProperties": false,
            "properties": { "action": { "enum": ["mask", "pseudonym", "block"] } },
        }),
    }
}

impl PluginCatalog for Catalog {
    fn names(&self) -> Vec<String> {
        ["pii", "overlap", "canary", "drift"]
            .map(str::to_owned)
            .to_vec()
    }

    fn by_name(&self, name: &str) -> Option<Result<PluginFacts, String>> {
        if name == "registry.example/acme/missing:1.0.0" {
            return Some(Err(format!("{name} is not in the registry")));
        }
        Some(Ok(match name {
            "registry.example/acme/pii:1.0.0" => facts("acme-pii", &["compliance"], &[]),
            "pii" => facts("pii", &["compliance"], &[]),
            "overlap" => facts("overlap", &["evaluation"], &[]),
            "canary" => facts("canary", &["deployment"], &[]),
            "drift" => facts("drift", &["monitoring"], &[]),
            _ => return None,
        }))
    }

    fn by_path(&self, path: &Path) -> Result<PluginFacts, String> {
        match path.to_str() {
            Some("judge.wasm") => Ok(facts(
                "judge",
                &["compliance", "validation"],
                &["inference", "state"],
            )),
            _ => Err(format!("the plugin {} has no manifest", path.display())),
        }
    }
}

#[test]
fn each_config_is_told_all_that_is_wrong_with_it_and_where() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 5);
    for case in cases {
        let text = std::fs::read_to_string(case.join("millgate.toml")).unwrap();
        let found = match check_with_plugins(&text, "millgate.toml".as_ref(), &Catalog) {
            Ok(_) => String::new(),
            Err(problems) => problems
                .iter()
                .map(|problem| format!("{problem}\n"))
                .collect(),
        };
        let expected = case.join("expected.txt");
        if std::env::var_os("MILLGATE_BLESS").is_some() {
            std::fs::write(&expected, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(found, expected, "{}", case.display());
    }
}

#[test]
fn an_empty_config_is_sound_and_has_defaults() {
    let config = check("", "millgate.toml".as_ref()).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.server.max_body.0, 4 << 20);
}

#[test]
fn a_sound_config_reads_back_from_its_own_json() {
    let text = include_str!("config/sound/millgate.toml");
    let config = check(text, "millgate.toml".as_ref()).unwrap();
    let json = serde_json::to_value(&config).unwrap();
    let again: config::Config = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), json);
}

#[test]
fn the_schema_admits_what_the_check_admits() {
    let schema = config::schema();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let text = include_str!("config/sound/millgate.toml");
    let value: serde_json::Value = toml::from_str(text).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    assert!(!validator.is_valid(&json!({ "servr": {} })));
}

#[test]
fn patterns_match_beginnings() {
    assert!(config::pattern_matches("gpt-*", "gpt-4") && config::pattern_matches("*", "x"));
    assert!(config::pattern_matches("gpt", "gpt") && !config::pattern_matches("gpt", "gpt-4"));
}

#[test]
fn plugins_from_registries_are_held_against_nothing_where_nobody_looked_for_them() {
    struct Offline;
    impl PluginCatalog for Offline {
        fn knows_registries(&self) -> bool {
            false
        }
        fn names(&self) -> Vec<String> {
            Vec::new()
        }
        fn by_name(&self, name: &str) -> Option<Result<PluginFacts, String>> {
            panic!("{name} was asked for")
        }
        fn by_path(&self, path: &Path) -> Result<PluginFacts, String> {
            panic!("{} was asked for", path.display())
        }
    }
    let text = r#"
[models.m]
upstream = { url = "http://127.0.0.1:1/v1" }
[stages.mask]
plugin = "registry.example/acme/pii:1.0.0"
[pipelines.default]
serves = ["m"]
input = ["mask"]
arms = [{ name = "stable", model = "m" }]
[[trust]]
name = "Acme"
key = "acme.pub"
plugins = ["acme-*"]
"#;
    let config = check_with_plugins(text, "millgate.toml".as_ref(), &Offline).unwrap();
    let stage = &config.stages["mask"];
    assert_eq!(stage.reference(), Some("registry.example/acme/pii:1.0.0"));
    assert_eq!(config.trust[0].plugins, ["acme-*"]);
    assert_eq!(config.registry.max_component.0, 256 << 20);
}
