//! What a config says about itself: names that must exist, places that must be filled, numbers that
//! must add up.

use super::{
    Config, GrantConfig, Load, ModelConfig, PipelineConfig, StageConfig, StageMode,
    problem::{Problems, suggest},
    tree::{
        Node,
        Step::{Index, Key},
    },
};

/// Reports references to what does not exist, and what does not make sense together.
pub(super) fn check(document: &Node, config: &Config, problems: &mut Problems<'_>) {
    for section in ["tenants", "models", "stages", "pipelines"] {
        for entry in document.get(section).map(Node::entries).unwrap_or_default() {
            // Names become keys in the store, labels of metrics and parts of URLs.
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if entry.key.is_empty() || entry.key.len() > 64 || !entry.key.chars().all(plain) {
                problems.add(
                    &entry.span,
                    format!("`{}` is no name", entry.key),
                    "a name has 1 to 64 letters, digits, `-`, `_` or `.`",
                );
            }
        }
    }
    for (name, tenant) in &config.tenants {
        let here = document.span_of(&[Key("tenants"), Key(name)]);
        if tenant.key_env.is_none() && tenant.key_sha256.is_empty() {
            problems.add(
                &here,
                format!("`tenants.{name}` has no key"),
                "write key-env = \"VARIABLE\", or key-sha256 = [\"…\"] with the output of: printf %s KEY | sha256sum",
            );
        }
        for (index, hash) in tenant.key_sha256.iter().enumerate() {
            if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                problems.add(
                    &document.span_of(&[
                        Key("tenants"),
                        Key(name),
                        Key("key-sha256"),
                        Index(index),
                    ]),
                    format!("`tenants.{name}.key-sha256` holds what is no SHA-256"),
                    "write the 64 hexadecimal digits of: printf %s KEY | sha256sum",
                );
            }
        }
    }
    for (name, model) in &config.models {
        check_model(document, name, model, problems);
    }
    for (name, stage) in &config.stages {
        let given = |key: &str| document.has(&["stages", name, key]);
        if given("plugin") == given("path") {
            problems.add(
                &document.span_of(&[Key("stages"), Key(name)]),
                format!("`stages.{name}` needs exactly one of `plugin` and `path`"),
                "write plugin = \"pii\" for a first-party plugin, or path = \"my.wasm\"",
            );
        }
        check_grant(document, name, &stage.grant, config, problems);
        check_mode(document, name, stage, problems);
    }
    for (name, pipeline) in &config.pipelines {
        check_pipeline(document, name, pipeline, config, problems);
    }
    check_serves(document, config, problems);
    check_deployments(document, config, problems);
}

fn check_grant(
    document: &Node,
    name: &str,
    grant: &GrantConfig,
    config: &Config,
    problems: &mut Problems<'_>,
) {
    let models = grant
        .inference
        .iter()
        .flat_map(|inference| &inference.models);
    for (index, model) in models.enumerate() {
        let place = [
            Key("stages"),
            Key(name),
            Key("grant"),
            Key("inference"),
            Key("models"),
            Index(index),
        ];
        defined(document, "models", model, &place, problems);
        if config
            .models
            .get(model)
            .is_some_and(|model| model.upstream.is_some())
        {
            problems.add(
                &document.span_of(&place),
                format!(
                    "`{model}` is remote, and stages can only be granted models in this process"
                ),
                "name a model with `pull` or `path`",
            );
        }
    }
    for (capability, given) in [
        ("secrets", !grant.secrets.is_empty()),
        ("http", !grant.http.is_empty()),
    ] {
        if given {
            problems.add(
                &document.span_of(&[Key("stages"), Key(name), Key("grant"), Key(capability)]),
                format!("the grant `{capability}` is not available in this version"),
                "remove it; `state` and `inference` can be granted",
            );
        }
    }
}

/// A canary has a share, and nothing else has one.
fn check_mode(document: &Node, name: &str, stage: &StageConfig, problems: &mut Problems<'_>) {
    let at = |key: &str| document.span_of(&[Key("stages"), Key(name), Key(key)]);
    let given = document.has(&["stages", name, "canary"]);
    let Some(canary) = &stage.canary else {
        if stage.mode == StageMode::Canary && !given {
            problems.add(
                &at("mode"),
                format!("`stages.{name}` is a canary without a share"),
                "add canary = { share = 0.1 }: the share of requests for which its verdict counts",
            );
        }
        return;
    };
    if stage.mode != StageMode::Canary {
        problems.add(
            &at("canary"),
            format!("`stages.{name}.canary` is for mode = \"canary\""),
            "write mode = \"canary\" beside it, or remove it",
        );
    }
    let inside = |value: f64| value > 0.0 && value < 1.0;
    let place = |key: &str| document.span_of(&[Key("stages"), Key(name), Key("canary"), Key(key)]);
    if !inside(canary.share) {
        problems.add(
            &place("share"),
            format!("`stages.{name}.canary.share` leaves nothing to compare with"),
            "write a share above 0 and below 1; for all requests write mode = \"enforce\", for none mode = \"shadow\"",
        );
    }
    for (key, value) in [
        ("failed", canary.failed),
        ("blocked", canary.blocked),
        ("alpha", canary.alpha),
    ] {
        if !inside(value) {
            problems.add(
                &place(key),
                format!("`stages.{name}.canary.{key}` must lie between 0 and 1"),
                "two sides are never found to be exactly alike: leave some room, such as 0.01",
            );
        }
    }
    if canary.latency <= 1.0 {
        problems.add(
            &place("latency"),
            format!("`stages.{name}.canary.latency` must be above 1"),
            "two sides are never found to be exactly alike: leave some room, such as 1.2",
        );
    }
}

/// A stage whose verdict does not always count stands where verdicts count.
fn always_counts(
    document: &Node,
    name: &str,
    place: &[super::tree::Step<'_>],
    config: &Config,
    problems: &mut Problems<'_>,
) {
    let mode = config
        .stages
        .get(name)
        .map_or(StageMode::Enforce, |it| it.mode);
    if mode != StageMode::Enforce {
        problems.add(
            &document.span_of(place),
            format!(
                "`{name}` has mode = \"{}\", which is for stages in `input` and `output`",
                mode.name()
            ),
            "use a stage with mode = \"enforce\" here",
        );
    }
}

/// A deployment stage keeps the state of one rollout.
fn check_deployments(document: &Node, config: &Config, problems: &mut Problems<'_>) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (name, pipeline) in &config.pipelines {
        let Some(stage) = &pipeline.deployment else {
            continue;
        };
        match seen.iter().find(|(known, _)| known == stage) {
            Some((_, other)) => problems.add(
                &document.span_of(&[Key("pipelines"), Key(name), Key("deployment")]),
                format!("`{stage}` already deploys `pipelines.{other}`"),
                "give each pipeline a deployment stage of its own",
            ),
            None => seen.push((stage, name)),
        }
    }
}

fn check_model(document: &Node, name: &str, model: &ModelConfig, problems: &mut Problems<'_>) {
    let here = document.span_of(&[Key("models"), Key(name)]);
    let sources = ["pull", "path", "upstream"].map(|key| document.has(&["models", name, key]));
    if sources.iter().filter(|given| **given).count() != 1 {
        problems.add(
            &here,
            format!("`models.{name}` needs exactly one of `pull`, `path` and `upstream`"),
            "write pull = \"smollm2-135m-instruct\", path = \"model.gguf\" or upstream = { url = \"http://…/v1\" }",
        );
    }
    if model.unload_after.is_some() && model.load == Load::Start {
        problems.add(
            &document.span_of(&[Key("models"), Key(name), Key("unload-after")]),
            format!("`models.{name}.unload-after` is for models that are loaded by use"),
            "write load = \"on-use\" beside it",
        );
    }
    let Some(upstream) = &model.upstream else {
        return;
    };
    let local = [
        "device",
        "threads",
        "max-sequences",
        "queue",
        "kv-cache",
        "load",
        "unload-after",
        "sampling",
        "adapters",
    ];
    for key in local
        .into_iter()
        .filter(|key| document.has(&["models", name, key]))
    {
        problems.add(
            &document.span_of(&[Key("models"), Key(name), Key(key)]),
            format!("`models.{name}.{key}` is for local models"),
            "remove it: an upstream decides this itself",
        );
    }
    let place = document.span_of(&[Key("models"), Key(name), Key("upstream"), Key("url")]);
    match upstream.url.parse::<http::Uri>() {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => {
            if uri.query().is_some() || uri.authority().is_some_and(|it| it.as_str().contains('@'))
            {
                problems.add(
                    &place,
                    format!(
                        "`models.{name}.upstream.url` may have neither a query nor credentials"
                    ),
                    "name the environment variable that holds the key in `key-env`",
                );
            }
        }
        _ => problems.add(
            &place,
            format!("`models.{name}.upstream.url` is no http or https URL"),
            "write it with its version, such as \"https://api.openai.com/v1\"",
        ),
    }
}

/// Reports a name that its section does not define. A name whose entry is itself faulty counts as
/// defined: its own problem is reported already.
fn defined(
    document: &Node,
    section: &str,
    name: &str,
    place: &[super::tree::Step<'_>],
    problems: &mut Problems<'_>,
) {
    let entries = document.get(section).map(Node::entries).unwrap_or_default();
    if !entries.iter().any(|entry| entry.key == name) {
        let what = section.trim_end_matches('s');
        let mut help = suggest(
            name,
            entries.iter().map(|entry| entry.key.as_str()),
            &format!("known {section}"),
        );
        if entries.is_empty() {
            help = format!("add [{section}.{name}]");
        }
        problems.add(
            &document.span_of(place),
            format!("there is no {what} `{name}`"),
            help,
        );
    }
}

fn check_pipeline(
    document: &Node,
    name: &str,
    pipeline: &PipelineConfig,
    config: &Config,
    problems: &mut Problems<'_>,
) {
    let at = |steps: &[super::tree::Step<'_>]| {
        let mut path = vec![Key("pipelines"), Key(name)];
        path.extend_from_slice(steps);
        document.span_of(&path)
    };
    for (key, stages) in [
        ("input", &pipeline.input),
        ("output", &pipeline.output),
        ("monitors", &pipeline.monitors),
    ] {
        for (index, stage) in stages.iter().enumerate() {
            let place = [Key("pipelines"), Key(name), Key(key), Index(index)];
            defined(document, "stages", stage, &place, problems);
            if key == "monitors" {
                always_counts(document, stage, &place, config, problems);
            }
            if stages.iter().take(index).any(|other| other == stage) {
                problems.add(
                    &at(&[Key(key), Index(index)]),
                    format!("`{stage}` stands twice in `{key}`"),
                    "remove one",
                );
            }
        }
    }
    if let Some(stage) = &pipeline.deployment {
        let place = [Key("pipelines"), Key(name), Key("deployment")];
        defined(document, "stages", stage, &place, problems);
        always_counts(document, stage, &place, config, problems);
    }
    if let Some(evaluation) = &pipeline.evaluation {
        let place = [Key("pipelines"), Key(name), Key("evaluation"), Key("stage")];
        defined(document, "stages", &evaluation.stage, &place, problems);
        always_counts(document, &evaluation.stage, &place, config, problems);
    }
    if pipeline.serves.is_empty() && !faulty(document, name, "serves") {
        problems.add(
            &at(&[]),
            format!("`pipelines.{name}` serves no model name"),
            "add serves = [\"…\"]: the names that clients ask for",
        );
    }
    for (index, pattern) in pipeline.serves.iter().enumerate() {
        if pattern.is_empty()
            || pattern.trim_end_matches('*').contains('*')
            || pattern.ends_with("**")
        {
            problems.add(
                &at(&[Key("serves"), Index(index)]),
                format!("`{pattern}` is no pattern"),
                "write a name, or the beginning of one and a `*`",
            );
        }
    }
    check_arms(document, name, pipeline, config, problems);
}

/// Whether a key of a pipeline was left out of the config because of what it holds.
fn faulty(document: &Node, pipeline: &str, key: &str) -> bool {
    let node = document
        .get("pipelines")
        .and_then(|all| all.get(pipeline))
        .and_then(|one| one.get(key));
    node.is_some_and(|node| node.type_name() != "an array" || !node.items().is_empty())
}

fn check_arms(
    document: &Node,
    name: &str,
    pipeline: &PipelineConfig,
    config: &Config,
    problems: &mut Problems<'_>,
) {
    let at = |steps: &[super::tree::Step<'_>]| {
        let mut path = vec![Key("pipelines"), Key(name)];
        path.extend_from_slice(steps);
        document.span_of(&path)
    };
    if pipeline.arms.is_empty() && !faulty(document, name, "arms") {
        let what = if pipeline.deployment.is_some() {
            "a deployment but no arms"
        } else {
            "no arms"
        };
        problems.add(
            &at(&[Key("arms")]),
            format!("`pipelines.{name}` has {what}"),
            "add arms = [{ name = \"stable\", model = \"…\" }]",
        );
    }
    if pipeline.arms.len() > 1 && !document.has(&["pipelines", name, "deployment"]) {
        problems.add(
            &at(&[Key("arms")]),
            format!("`pipelines.{name}` has several arms and nothing that picks one"),
            "add deployment = \"…\": a stage whose plugin has the deployment interface",
        );
    }
    let mut given = 0.0;
    for (index, arm) in pipeline.arms.iter().enumerate() {
        let place = [
            Key("pipelines"),
            Key(name),
            Key("arms"),
            Index(index),
            Key("model"),
        ];
        defined(document, "models", &arm.model, &place, problems);
        if let (Some(adapter), Some(model)) = (&arm.adapter, config.models.get(&arm.model))
            && !model.adapters.contains_key(adapter)
        {
            let known = model.adapters.keys().map(String::as_str);
            problems.add(
                &at(&[Key("arms"), Index(index), Key("adapter")]),
                format!("`models.{}` has no adapter `{adapter}`", arm.model),
                suggest(adapter, known, "its adapters"),
            );
        }
        if pipeline
            .arms
            .iter()
            .take(index)
            .any(|other| other.name == arm.name)
        {
            let place = at(&[Key("arms"), Index(index), Key("name")]);
            problems.add(
                &place,
                format!("two arms are called `{}`", arm.name),
                "give each arm a name of its own",
            );
        }
        match arm.weight {
            Some(_) if index == pipeline.stable_arm() => problems.add(
                &at(&[Key("arms"), Index(index), Key("weight")]),
                format!(
                    "`{}` is the stable arm and takes what the candidates leave",
                    arm.name
                ),
                "remove its weight",
            ),
            Some(weight) => given += weight,
            None => {}
        }
    }
    if given > 1.0 + 1e-9 {
        problems.add(
            &at(&[Key("arms")]),
            format!("the candidates' weights add up to {given}"),
            "together they can take 1 at most",
        );
    }
}

/// Two pipelines may not claim the same name.
fn check_serves(document: &Node, config: &Config, problems: &mut Problems<'_>) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (name, pipeline) in &config.pipelines {
        for (index, pattern) in pipeline.serves.iter().enumerate() {
            match seen.iter().find(|(known, _)| known == pattern) {
                Some((_, other)) => problems.add(
                    &document.span_of(&[Key("pipelines"), Key(name), Key("serves"), Index(index)]),
                    format!("`{pattern}` is already served by `pipelines.{other}`"),
                    "a model name belongs to one pipeline",
                ),
                None => seen.push((pattern, name)),
            }
        }
    }
}
