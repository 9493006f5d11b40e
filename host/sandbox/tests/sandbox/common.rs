//! What the tests share.

use std::path::Path;
use std::sync::Arc;

use millgate_sandbox::{
    CallContext, Failure, Finding, Grant, Held, MemoryServices, Sandbox, SandboxOptions, Stage,
    StageSpec, StateGrant, Verdict,
};
use serde_json::json;

/// A sandbox whose images are shared by all tests, and by later runs.
pub fn sandbox() -> Sandbox {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    Sandbox::new(SandboxOptions {
        max_instances: 16,
        ..SandboxOptions::new(cache)
    })
    .unwrap()
}

/// The spec of a hostile stage that does wrong what `behaviour` says.
pub fn told(behaviour: &str) -> StageSpec {
    let mut spec = StageSpec::new("under-test", json!({ "behaviour": behaviour }));
    spec.grant = Grant {
        state: Some(StateGrant { bytes: 64 << 10 }),
        ..Grant::default()
    };
    spec
}

pub fn load(sandbox: &Sandbox, wasm: &[u8], spec: StageSpec) -> (Stage, Arc<MemoryServices>) {
    let services = Arc::new(MemoryServices::default());
    let stage = sandbox
        .load(wasm, spec, services.clone())
        .unwrap_or_else(|error| panic!("{error}"));
    (stage, services)
}

/// Inspects a text in one piece: the verdicts of the push and of the finish.
pub fn inspect(stage: &Stage, text: &str) -> Result<(Verdict, Verdict), Failure> {
    let mut inspection = stage.inspection(&CallContext::default());
    Ok((inspection.push(&[text])?, inspection.finish()?))
}

/// Inspects a text in one piece: what leaves.
pub fn filter(stage: &Stage, text: &str) -> Result<String, Failure> {
    let mut held = Held::default();
    held.push(text);
    let (push, finish) = inspect(stage, text)?;
    Ok(held.settle(&push) + &held.settle(&finish))
}

/// Inspects a text in one piece: the explanation of the first finding.
pub fn explanation(stage: &Stage, text: &str) -> Result<String, Failure> {
    let (push, finish) = inspect(stage, text)?;
    let first: Option<Finding> = push.findings.into_iter().chain(finish.findings).next();
    Ok(first.map(|finding| finding.explanation).unwrap_or_default())
}

/// A component with another manifest: one of its own goes before those of its modules.
pub fn with_manifest(wasm: &[u8], manifest: &[u8]) -> Vec<u8> {
    use wasm_encoder::{ComponentSection as _, CustomSection};
    let mut wasm = wasm.to_vec();
    CustomSection {
        name: millgate_sandbox::SECTION.into(),
        data: manifest.into(),
    }
    .append_to_component(&mut wasm);
    wasm
}
