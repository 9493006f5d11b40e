//! A plugin that puts its text to a model, and reports the answer as a finding.
#![cfg(target_family = "wasm")]
#![allow(unsafe_code, missing_docs, reason = "generated bindings")]

use std::cell::RefCell;

wit_bindgen::generate!({ path: "../../../wit", world: "compliance-plugin" });

use exports::millgate::stage::compliance::{Context, Decision, Guest, GuestInspection, Verdict};
use exports::millgate::stage::lifecycle;
use millgate::stage::inference::{self, CompletionRequest};
use millgate::stage::types::{Finding, StageError};

#[used]
#[unsafe(link_section = "millgate:manifest")]
static MANIFEST: [u8; include_bytes!("../plugin.toml").len()] = *include_bytes!("../plugin.toml");

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn configure(_: String) -> Result<(), StageError> {
        Ok(())
    }
}

struct Inspection(RefCell<String>);

impl Guest for Plugin {
    type Inspection = Inspection;
}

fn ask(text: &str) -> Result<String, StageError> {
    // "MODEL:PROMPT"; a prompt of "loop" loops for ever instead.
    let (model, prompt) = text.split_once(':').unwrap_or(("default", text));
    if prompt == "loop" {
        loop {
            std::hint::spin_loop();
        }
    }
    let completion = inference::complete(&CompletionRequest {
        model: model.into(),
        prompt: prompt.into(),
        chat: false,
        max_tokens: 16,
        temperature: 0.0,
        stop: vec![],
    })?;
    let vectors = inference::embed(model, &[prompt.into()])?;
    let scores = inference::score(model, prompt)?;
    Ok(format!(
        "{} {} {}",
        completion.text,
        vectors.len(),
        scores.len()
    ))
}

impl GuestInspection for Inspection {
    fn new(_: &Context) -> Self {
        Inspection(RefCell::new(String::new()))
    }

    fn push(&self, chunks: Vec<String>) -> Result<Verdict, StageError> {
        self.0.borrow_mut().extend(chunks);
        Ok(Verdict {
            settled: 0,
            edits: vec![],
            findings: vec![],
            decision: Decision::Pass,
        })
    }

    fn finish(&self) -> Result<Verdict, StageError> {
        let text = self.0.borrow();
        let explanation = ask(&text)?;
        Ok(Verdict {
            settled: text.len() as u32,
            edits: vec![],
            findings: vec![Finding {
                rule: "answer".into(),
                span: None,
                score: 1.0,
                explanation,
            }],
            decision: Decision::Pass,
        })
    }
}

export!(Plugin);
