//! What a config's stages ask of their plugins: that there is such a plugin, that it has the
//! interface that its place needs, that its config fits its schema, that its grants are given.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{
    Config, StageConfig,
    problem::{Problems, suggest},
    tree::{
        Node,
        Step::{self, Index, Key},
    },
};

/// What a config check needs to know of a plugin; all of it stands in the plugin's manifest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PluginFacts {
    /// The plugin's own name.
    pub name: String,
    /// Any of `validation`, `compliance`, `monitoring`, `deployment`, `evaluation`.
    pub interfaces: Vec<String>,
    /// Grants that it asks for: any of `state`, `inference`, `secrets`, `http`.
    pub requests: Vec<String>,
    /// JSON Schema (2020-12) of its config.
    pub config_schema: Value,
}

/// Where a config check finds plugins.
pub trait PluginCatalog {
    /// Whether plugins from registries were looked for. Otherwise their stages are not held against
    /// anything.
    fn knows_registries(&self) -> bool {
        true
    }

    /// Names of the first-party plugins, for suggestions.
    fn names(&self) -> Vec<String>;

    /// The facts about a first-party plugin, or about one in a registry (its name has a slash).
    ///
    /// # Errors
    /// One sentence for the operator: the plugin is there and cannot be used. `None`: there is none.
    fn by_name(&self, name: &str) -> Option<Result<PluginFacts, String>>;

    /// The facts about the plugin in a file.
    ///
    /// # Errors
    /// One sentence for the operator: it cannot be read, or it is no plugin.
    fn by_path(&self, path: &Path) -> Result<PluginFacts, String>;
}

/// Reports what does not fit between stages, their places and their plugins.
pub(super) fn check(
    document: &Node,
    config: &Config,
    catalog: &dyn PluginCatalog,
    problems: &mut Problems<'_>,
) {
    let mut facts = BTreeMap::new();
    for (name, stage) in &config.stages {
        if let Some(found) = find(document, name, stage, catalog, problems) {
            check_config(document, name, stage, &found, problems);
            check_grants(document, name, stage, &found, problems);
            facts.insert(name.as_str(), found);
        }
    }
    for (name, pipeline) in &config.pipelines {
        let place =
            |stage: &str, steps: &[Step<'_>], wanted: &[&str], problems: &mut Problems<'_>| {
                let Some(found) = facts.get(stage) else {
                    return;
                };
                if !found
                    .interfaces
                    .iter()
                    .any(|interface| wanted.contains(&interface.as_str()))
                {
                    let mut path = vec![Key("pipelines"), Key(name)];
                    path.extend_from_slice(steps);
                    let key = match steps.first() {
                        Some(Key(key)) => *key,
                        _ => "it",
                    };
                    problems.add(
                        &document.span_of(&path),
                        format!(
                            "`{stage}` cannot stand in `{key}`: its plugin has no {} interface",
                            wanted.join(" or ")
                        ),
                        format!("`{}` has: {}", found.name, found.interfaces.join(", ")),
                    );
                }
            };
        for (index, stage) in pipeline.input.iter().enumerate() {
            place(
                stage,
                &[Key("input"), Index(index)],
                &["validation", "compliance"],
                problems,
            );
        }
        for (index, stage) in pipeline.output.iter().enumerate() {
            place(
                stage,
                &[Key("output"), Index(index)],
                &["compliance"],
                problems,
            );
        }
        for (index, stage) in pipeline.monitors.iter().enumerate() {
            place(
                stage,
                &[Key("monitors"), Index(index)],
                &["monitoring"],
                problems,
            );
        }
        if let Some(stage) = &pipeline.deployment {
            place(stage, &[Key("deployment")], &["deployment"], problems);
        }
        if let Some(evaluation) = &pipeline.evaluation {
            place(
                &evaluation.stage,
                &[Key("evaluation"), Key("stage")],
                &["evaluation"],
                problems,
            );
        }
    }
}

fn find(
    document: &Node,
    name: &str,
    stage: &StageConfig,
    catalog: &dyn PluginCatalog,
    problems: &mut Problems<'_>,
) -> Option<PluginFacts> {
    if stage.reference().is_some() && !catalog.knows_registries() {
        return None;
    }
    let (key, found) = match (&stage.plugin, &stage.path) {
        (Some(plugin), None) => match catalog.by_name(plugin) {
            Some(found) => ("plugin", found),
            None => {
                let names = catalog.names();
                problems.add(
                    &document.span_of(&[Key("stages"), Key(name), Key("plugin")]),
                    format!("there is no first-party plugin `{plugin}`"),
                    format!(
                        "{}; for a file of your own write path = \"…\", for one in a registry its whole reference",
                        suggest(
                            plugin,
                            names.iter().map(String::as_str),
                            "first-party plugins"
                        )
                    ),
                );
                return None;
            }
        },
        (None, Some(path)) => ("path", catalog.by_path(path)),
        _ => return None, // reported with the references
    };
    match found {
        Ok(facts) => Some(facts),
        Err(why) => {
            problems.add(
                &document.span_of(&[Key("stages"), Key(name), Key(key)]),
                why,
                "",
            );
            None
        }
    }
}

fn check_config(
    document: &Node,
    name: &str,
    stage: &StageConfig,
    facts: &PluginFacts,
    problems: &mut Problems<'_>,
) {
    if facts.config_schema.is_null() {
        return;
    }
    let validator = match jsonschema::validator_for(&facts.config_schema) {
        Ok(validator) => validator,
        Err(error) => {
            problems.add(
                &document.span_of(&[Key("stages"), Key(name)]),
                format!(
                    "the manifest of `{}` has a broken config schema: {error}",
                    facts.name
                ),
                "this is a fault of the plugin: tell its author",
            );
            return;
        }
    };
    let config = Value::Object(stage.config.clone());
    for error in validator.iter_errors(&config) {
        let pointer = error.instance_path().as_str().to_owned();
        let parts: Vec<String> = pointer
            .split('/')
            .skip(1)
            .map(|part| part.replace("~1", "/").replace("~0", "~"))
            .collect();
        let mut path = vec![Key("stages"), Key(name), Key("config")];
        for part in &parts {
            path.push(part.parse().map_or(Key(part), Index));
        }
        let dotted: Vec<&str> = ["stages", name, "config"]
            .into_iter()
            .chain(parts.iter().map(String::as_str))
            .collect();
        problems.add(
            &document.span_of(&path),
            format!("`{}`: {error}", dotted.join(".")),
            format!(
                "`millgate plugin inspect {}` shows the config that it takes",
                facts.name
            ),
        );
    }
}

fn check_grants(
    document: &Node,
    name: &str,
    stage: &StageConfig,
    facts: &PluginFacts,
    problems: &mut Problems<'_>,
) {
    let grant = &stage.grant;
    let given = [
        ("state", grant.state.is_some(), "state = { bytes = 65536 }"),
        (
            "inference",
            grant.inference.is_some(),
            "inference = { models = [\"…\"], tokens-per-minute = 20000 }",
        ),
        ("secrets", !grant.secrets.is_empty(), "secrets = [\"…\"]"),
        ("http", !grant.http.is_empty(), "http = [\"https://…\"]"),
    ];
    for (capability, granted, example) in given {
        let asked = facts.requests.iter().any(|request| request == capability);
        if asked && !granted {
            problems.add(
                &document.span_of(&[Key("stages"), Key(name)]),
                format!(
                    "`{}` asks for `{capability}`, which `stages.{name}` does not grant",
                    facts.name
                ),
                format!("if you trust it with that, add grant = {{ {example} }}"),
            );
        }
        if granted && !asked {
            problems.add(
                &document.span_of(&[Key("stages"), Key(name), Key("grant"), Key(capability)]),
                format!(
                    "`stages.{name}` grants `{capability}`, which `{}` does not ask for",
                    facts.name
                ),
                "remove it",
            );
        }
    }
}
