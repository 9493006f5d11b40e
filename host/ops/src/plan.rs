//! What another config would change: stages added, removed, re-pinned, configured or granted
//! otherwise, pipelines put together otherwise, and what that adds to a request's time. Two configs
//! and the plugins behind them are compared; nothing is changed by looking.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    config::{Config, PipelineConfig, StageConfig},
    generations::StagePin,
};

/// The longest value that is shown as it is.
const SHORT: usize = 80;

/// What serving another config would change.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The generation that is served now.
    pub generation: u64,
    /// Digest of what would be served.
    pub digest: String,
    /// Whether anything would change. If not, an apply makes no generation.
    pub changed: bool,
    /// What would change.
    pub changes: Vec<Change>,
    /// What the stages of each pipeline cost, before and after.
    pub costs: Vec<PipelineCost>,
    /// What an operator should know beside it.
    pub notes: Vec<String>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// What kind.
    pub kind: ChangeKind,
    /// What it is about: `stages.mask`, `pipelines.default.input`, `server.max-body`.
    pub subject: String,
    /// What it is now; left out where it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What it would be; left out where it would not be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// Kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// There is a new stage.
    StageAdded,
    /// A stage is gone.
    StageRemoved,
    /// A stage's plugin is another one, or has other bytes.
    StageRepinned,
    /// A stage's config.
    StageConfig,
    /// What a stage may use.
    StageGrants,
    /// What its plugin asks for.
    StageRequests,
    /// Whether a stage is enforced, runs in the shadow or as a canary.
    StageMode,
    /// A stage's limits, isolation or failure policy.
    StageSettings,
    /// There is a new pipeline.
    PipelineAdded,
    /// A pipeline is gone.
    PipelineRemoved,
    /// A stage was put into a pipeline.
    PipelineStageAdded,
    /// A stage was taken out of a pipeline.
    PipelineStageRemoved,
    /// Something else about a pipeline, the order of its stages say.
    PipelineChanged,
    /// There is a new model.
    ModelAdded,
    /// A model is gone.
    ModelRemoved,
    /// A model is another one.
    ModelChanged,
    /// There is a new tenant.
    TenantAdded,
    /// A tenant is gone.
    TenantRemoved,
    /// A tenant's keys.
    TenantChanged,
    /// A setting of the server, the traces, the monitoring, the registries or of whom to trust.
    Setting,
}

/// What the stages of a pipeline cost a request, measured now, in this sandbox, on 1 KiB of text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PipelineCost {
    /// The pipeline.
    pub pipeline: String,
    /// Microseconds for each KiB of text that passes all its enforced stages, as it is.
    pub now_us: f64,
    /// As it would be.
    pub then_us: f64,
    /// The difference.
    pub added_us: f64,
    /// Stages that could not be measured and are not in the sums: those that ask a model.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmeasured: Vec<String>,
}

/// A config and the plugins behind it.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub config: &'a Config,
    pub pins: &'a BTreeMap<String, StagePin>,
}

/// What differs between two configs.
pub(crate) fn changes(old: Side<'_>, new: Side<'_>) -> Vec<Change> {
    let mut found = Found(Vec::new());
    found.named(
        "stages",
        &old.config.stages,
        &new.config.stages,
        [
            ChangeKind::StageAdded,
            ChangeKind::StageRemoved,
            ChangeKind::StageSettings,
        ],
        |found, name, before, after| {
            let pins = (old.pins.get(name), new.pins.get(name));
            found.stage(name, before, after, pins);
        },
        |name, _, is_new| {
            let side = if is_new { new } else { old };
            side.pins.get(name).map_or(Value::Null, pinned)
        },
    );
    found.named(
        "pipelines",
        &old.config.pipelines,
        &new.config.pipelines,
        [
            ChangeKind::PipelineAdded,
            ChangeKind::PipelineRemoved,
            ChangeKind::PipelineChanged,
        ],
        Found::pipeline,
        |_, pipeline, _| value(pipeline),
    );
    found.named(
        "models",
        &old.config.models,
        &new.config.models,
        [
            ChangeKind::ModelAdded,
            ChangeKind::ModelRemoved,
            ChangeKind::ModelChanged,
        ],
        |found, name, before, after| {
            let subject = format!("models.{name}");
            found.leaves(
                ChangeKind::ModelChanged,
                &subject,
                value(before),
                value(after),
            );
        },
        |_, model, _| value(model),
    );
    found.named(
        "tenants",
        &old.config.tenants,
        &new.config.tenants,
        [
            ChangeKind::TenantAdded,
            ChangeKind::TenantRemoved,
            ChangeKind::TenantChanged,
        ],
        |found, name, before, after| {
            if value(before) != value(after) {
                found.add(
                    ChangeKind::TenantChanged,
                    format!("tenants.{name}"),
                    None,
                    Some("other keys".into()),
                );
            }
        },
        // Not even the digests of keys.
        |_, _, _| Value::Null,
    );
    for (section, before, after) in [
        (
            "server",
            value(&old.config.server),
            value(&new.config.server),
        ),
        (
            "traces",
            value(&old.config.traces),
            value(&new.config.traces),
        ),
        (
            "monitoring",
            value(&old.config.monitoring),
            value(&new.config.monitoring),
        ),
        (
            "registry",
            value(&old.config.registry),
            value(&new.config.registry),
        ),
        ("trust", value(&old.config.trust), value(&new.config.trust)),
    ] {
        found.leaves(ChangeKind::Setting, section, before, after);
    }
    found.0
}

/// The cost of each pipeline, from the microseconds of each stage, of either side. Shadows and
/// canaries are not in it.
pub(crate) fn costs(
    old: &Config,
    new: &Config,
    before: &BTreeMap<String, Option<f64>>,
    after: &BTreeMap<String, Option<f64>>,
) -> Vec<PipelineCost> {
    let names: BTreeSet<&String> = old.pipelines.keys().chain(new.pipelines.keys()).collect();
    let sum = |config: &Config,
               name: &str,
               times: &BTreeMap<String, Option<f64>>,
               unmeasured: &mut Vec<String>| {
        let Some(pipeline) = config.pipelines.get(name) else {
            return 0.0;
        };
        let mut sum = 0.0;
        for stage in pipeline.input.iter().chain(&pipeline.output) {
            // What does not always count is not on the way of every request.
            let counts = config
                .stages
                .get(stage)
                .is_some_and(|stage| stage.mode.is_enforce());
            match times.get(stage) {
                _ if !counts => {}
                Some(Some(micros)) => sum += micros,
                _ if unmeasured.contains(stage) => {}
                _ => unmeasured.push(stage.clone()),
            }
        }
        sum
    };
    let round = |micros: f64| (micros * 10.0).round() / 10.0;
    let cost = |name: &String| {
        let mut unmeasured = Vec::new();
        let now_us = round(sum(old, name, before, &mut unmeasured));
        let then_us = round(sum(new, name, after, &mut unmeasured));
        PipelineCost {
            pipeline: name.clone(),
            now_us,
            then_us,
            added_us: round(then_us - now_us),
            unmeasured,
        }
    };
    names.into_iter().map(cost).collect()
}

struct Found(Vec<Change>);

impl Found {
    fn add(&mut self, kind: ChangeKind, subject: String, from: Option<Value>, to: Option<Value>) {
        self.0.push(Change {
            kind,
            subject,
            from,
            to,
        });
    }

    /// What differs between two tables of named things: added, removed, changed.
    fn named<T>(
        &mut self,
        section: &str,
        old: &BTreeMap<String, T>,
        new: &BTreeMap<String, T>,
        [added, removed, _]: [ChangeKind; 3],
        changed: impl Fn(&mut Self, &str, &T, &T),
        shown: impl Fn(&str, &T, bool) -> Value,
    ) {
        let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let some = |value: Value| (!value.is_null()).then_some(value);
        for name in names {
            let subject = format!("{section}.{name}");
            match (old.get(name), new.get(name)) {
                (None, Some(it)) => self.add(added, subject, None, some(shown(name, it, true))),
                (Some(it), None) => self.add(removed, subject, some(shown(name, it, false)), None),
                (Some(before), Some(after)) => changed(self, name, before, after),
                (None, None) => {}
            }
        }
    }

    fn stage(
        &mut self,
        name: &str,
        before: &StageConfig,
        after: &StageConfig,
        pins: (Option<&StagePin>, Option<&StagePin>),
    ) {
        let subject = format!("stages.{name}");
        if let (Some(old), Some(new)) = pins {
            if old.digest != new.digest || old.source != new.source {
                let (from, to) = (Some(pinned(old)), Some(pinned(new)));
                self.add(ChangeKind::StageRepinned, subject.clone(), from, to);
            }
            if old.requests != new.requests {
                self.add(
                    ChangeKind::StageRequests,
                    subject.clone(),
                    Some(value(&old.requests)),
                    Some(value(&new.requests)),
                );
            }
        }
        let part = |stage: &StageConfig, key: &str| {
            let whole = value(stage);
            whole.get(key).cloned().unwrap_or_default()
        };
        for (key, kind) in [
            ("config", ChangeKind::StageConfig),
            ("grant", ChangeKind::StageGrants),
            ("mode", ChangeKind::StageMode),
            ("canary", ChangeKind::StageMode),
            ("on-failure", ChangeKind::StageSettings),
            ("isolation", ChangeKind::StageSettings),
            ("limits", ChangeKind::StageSettings),
        ] {
            let subject = format!("{subject}.{key}");
            self.leaves(kind, &subject, part(before, key), part(after, key));
        }
    }

    fn pipeline(&mut self, name: &str, before: &PipelineConfig, after: &PipelineConfig) {
        let subject = format!("pipelines.{name}");
        for (key, old, new) in [
            ("input", &before.input, &after.input),
            ("output", &before.output, &after.output),
            ("monitors", &before.monitors, &after.monitors),
        ] {
            let subject = format!("{subject}.{key}");
            for stage in old.iter().filter(|stage| !new.contains(stage)) {
                let from = Some(stage.as_str().into());
                self.add(
                    ChangeKind::PipelineStageRemoved,
                    subject.clone(),
                    from,
                    None,
                );
            }
            for stage in new.iter().filter(|stage| !old.contains(stage)) {
                let to = Some(stage.as_str().into());
                self.add(ChangeKind::PipelineStageAdded, subject.clone(), None, to);
            }
            let common = |side: &[String], other: &[String]| -> Vec<String> {
                side.iter()
                    .filter(|stage| other.contains(stage))
                    .cloned()
                    .collect()
            };
            let (from, to) = (common(old, new), common(new, old));
            if from != to {
                self.add(
                    ChangeKind::PipelineChanged,
                    subject,
                    Some(value(&from)),
                    Some(value(&to)),
                );
            }
        }
        let rest = |pipeline: &PipelineConfig| {
            let mut rest = value(pipeline);
            if let Value::Object(fields) = &mut rest {
                for key in ["input", "output", "monitors"] {
                    fields.remove(key);
                }
            }
            rest
        };
        self.leaves(
            ChangeKind::PipelineChanged,
            &subject,
            rest(before),
            rest(after),
        );
    }

    /// One change for each leaf of two values that differs. Lists are leaves.
    fn leaves(&mut self, kind: ChangeKind, subject: &str, from: Value, to: Value) {
        match (from, to) {
            (from, to) if from == to => {}
            (Value::Object(from), Value::Object(to)) => {
                let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
                for key in keys {
                    let of = |side: &serde_json::Map<String, Value>| {
                        side.get(key).cloned().unwrap_or_default()
                    };
                    self.leaves(kind, &format!("{subject}.{key}"), of(&from), of(&to));
                }
            }
            (from, to) => {
                let some = |value: Value| (!value.is_null()).then_some(value);
                self.add(kind, subject.to_owned(), some(from), some(to));
            }
        }
    }
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).unwrap_or_default()
}

/// A plugin as a plan shows it: `pii 0.1.0 sha256:…`.
fn pinned(pin: &StagePin) -> Value {
    format!("{} {} {}", pin.plugin, pin.version, pin.digest).into()
}

impl fmt::Display for Change {
    /// As a line for people: `~ stages.mask.config.action: "mask" -> "block"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |value: &Value| {
            let text = match value {
                Value::String(text) if text.contains(" sha256:") => {
                    // Enough of a digest to tell it from others.
                    let digits = text.find("sha256:").map_or(text.len(), |at| at + 19);
                    text.chars().take(digits).collect()
                }
                other => other.to_string(),
            };
            match text.char_indices().nth(SHORT) {
                Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
                None => text,
            }
        };
        let subject = &self.subject;
        match (&self.from, &self.to) {
            (None, None) => match self.kind {
                ChangeKind::TenantRemoved => write!(f, "- {subject}"),
                _ => write!(f, "+ {subject}"),
            },
            (None, Some(to)) => match self.kind {
                ChangeKind::TenantChanged => write!(f, "~ {subject}: {}", short(to)),
                _ => write!(f, "+ {subject}: {}", short(to)),
            },
            (Some(from), None) => write!(f, "- {subject}: {}", short(from)),
            (Some(from), Some(to)) => write!(f, "~ {subject}: {} -> {}", short(from), short(to)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check;

    const BASE: &str = r#"
[models.m]
path = "m.gguf"
[stages.mask]
plugin = "pii"
config = { action = "mask" }
[stages.old]
plugin = "schema"
[pipelines.p]
serves = ["m"]
input = ["old", "mask"]
arms = [{ name = "a", model = "m" }]
"#;

    fn pins(version: &str) -> BTreeMap<String, StagePin> {
        let pin = |name: &str| StagePin {
            source: name.into(),
            plugin: name.into(),
            version: version.into(),
            digest: format!("sha256:{version}{}", "0".repeat(59)),
            requests: Vec::new(),
        };
        [("mask", "pii"), ("old", "schema"), ("new", "schema")]
            .map(|(stage, plugin)| (stage.to_owned(), pin(plugin)))
            .into()
    }

    fn lines(old: &str, new: &str, pins_of_new: &str) -> Vec<String> {
        let read = |text: &str| check(text, "t".as_ref()).unwrap();
        let (old, new) = (read(old), read(new));
        let (before, after) = (pins("0.1.0"), pins(pins_of_new));
        let old = Side {
            config: &old,
            pins: &before,
        };
        let new = Side {
            config: &new,
            pins: &after,
        };
        changes(old, new).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_config_changes_nothing() {
        assert!(lines(BASE, &format!("# a comment\n{BASE}"), "0.1.0").is_empty());
    }

    #[test]
    fn a_plan_names_each_thing_that_differs_once() {
        let new = BASE
            .replace("action = \"mask\"", "action = \"block\"")
            .replace("[stages.old]", "[stages.new]")
            .replace("[\"old\", \"mask\"]", "[\"mask\", \"new\"]")
            + "[traces]\nmax-count = 5\n[tenants.t]\nkey-env = \"K\"\n";
        let zeros = "0".repeat(7);
        assert_eq!(
            lines(BASE, &new, "0.1.0"),
            [
                "~ stages.mask.config.action: \"mask\" -> \"block\"".to_owned(),
                format!("+ stages.new: schema 0.1.0 sha256:0.1.0{zeros}"),
                format!("- stages.old: schema 0.1.0 sha256:0.1.0{zeros}"),
                "- pipelines.p.input: \"old\"".to_owned(),
                "+ pipelines.p.input: \"new\"".to_owned(),
                "+ tenants.t".to_owned(),
                "~ traces.max-count: 1000000 -> 5".to_owned(),
            ]
        );
    }

    #[test]
    fn other_bytes_of_a_plugin_are_a_change_though_the_text_is_the_same() {
        let found = lines(BASE, BASE, "0.2.0");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("~ stages.mask: pii 0.1.0 sha256:0.1.0"));
        assert!(found[0].contains("-> pii 0.2.0 sha256:0.2.0"));
    }

    #[test]
    fn grants_are_shown_and_orders_count() {
        let old = BASE.replace(
            "config = { action = \"mask\" }",
            "grant = { state = { bytes = 10 } }",
        );
        let new = BASE
            .replace(
                "config = { action = \"mask\" }",
                "grant = { inference = { models = [\"m\"], tokens-per-minute = 7 } }",
            )
            .replace("[\"old\", \"mask\"]", "[\"mask\", \"old\"]");
        assert_eq!(
            lines(&old, &new, "0.1.0"),
            [
                "+ stages.mask.grant.inference: {\"models\":[\"m\"],\"tokens-per-minute\":7}",
                "- stages.mask.grant.state: {\"bytes\":\"10B\"}",
                "~ pipelines.p.input: [\"old\",\"mask\"] -> [\"mask\",\"old\"]",
            ]
        );
    }

    #[test]
    fn costs_add_up_over_a_pipelines_stages() {
        let read = |text: &str| check(text, "t".as_ref()).unwrap();
        let old = read(BASE);
        let new = read(&BASE.replace("[\"old\", \"mask\"]", "[\"mask\"]"));
        let times = [
            ("mask".to_owned(), Some(7.04)),
            ("old".to_owned(), Some(2.0)),
        ];
        let times: BTreeMap<String, Option<f64>> = times.into();
        let found = costs(&old, &new, &times, &times);
        assert_eq!(
            (found[0].now_us, found[0].then_us, found[0].added_us),
            (9.0, 7.0, -2.0)
        );
        let times = [("mask".to_owned(), None)].into();
        assert_eq!(
            costs(&old, &new, &times, &times)[0].unmeasured,
            ["old", "mask"]
        );
    }
}
