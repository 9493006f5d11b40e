//! Is this request, or this row of a dataset, well formed? JSON Schema, sizes, roles, and the
//! characters of its texts, some of which can be repaired.
//!
//! [`json_schema`] compiles and checks schemas; [`body`] looks at JSON as text, [`chat`] at the
//! messages of a request, [`unicode`] at characters. None of them knows the SDK. This file joins
//! them into one judgement.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

pub mod body;
pub mod chat;
mod config;
pub mod json_schema;
pub mod unicode;

use millgate_sdk::prelude::*;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use chat::Broken;
pub use config::Config;
use json_schema::{Schema as JsonSchema, Violation};
use unicode::{Flaw, Policy};

/// Violations of one schema that are told.
const MAX_VIOLATIONS: usize = 5;

/// Characters of a refusal's message.
const MAX_MESSAGE: usize = 1000;

/// The plugin.
pub struct Schema {
    config: Config,
    request: Option<JsonSchema>,
    row: Option<JsonSchema>,
    text: Option<JsonSchema>,
}

impl Plugin for Schema {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, StageError> {
        let compile = |key: &str, schema: &Option<serde_json::Value>| {
            let compiled = schema.as_ref().map(JsonSchema::compile).transpose();
            compiled.map_err(|error| {
                let text = format!("`{key}` at \"{}\": {}", error.path, error.message);
                StageError::invalid_config(key, text)
            })
        };
        Ok(Self {
            request: compile("request-schema", &config.request_schema)?,
            row: compile("row-schema", &config.row_schema)?,
            text: compile("text-schema", &config.text_schema)?,
            config,
        })
    }
}

impl Validation for Schema {
    fn validate(&self, _: &Context<'_>, samples: &[Sample]) -> Result<Vec<Judgement>, StageError> {
        Ok(samples.iter().map(|sample| self.judge(sample)).collect())
    }
}

/// A judgement in the making.
#[derive(Default)]
struct Verdict {
    findings: Vec<Finding>,
    refusals: Vec<String>,
    repairs: Vec<Repair>,
}

impl Verdict {
    fn note(&mut self, rule: &str, explanation: String) {
        self.findings.push(Finding::new(rule, 1.0, explanation));
    }

    fn refuse(&mut self, rule: &str, message: String) {
        self.note(rule, message.clone());
        self.refusals.push(message);
    }

    fn broken(&mut self, broken: Option<Broken>) {
        if let Some(Broken { rule, message }) = broken {
            self.refuse(rule, message);
        }
    }

    fn judgement(self) -> Judgement {
        let outcome = if !self.refusals.is_empty() {
            let mut message = self.refusals.join("; ");
            if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
                message.truncate(end);
            }
            Outcome::Reject(message)
        } else if !self.repairs.is_empty() {
            Outcome::Repair(self.repairs)
        } else {
            Outcome::Accept
        };
        Judgement {
            outcome,
            findings: self.findings,
        }
    }
}

impl Schema {
    fn judge(&self, sample: &Sample) -> Judgement {
        let mut verdict = Verdict::default();
        if let Some(offset) = body::lone_surrogate(&sample.body) {
            let text = format!(
                "the JSON has half a surrogate pair at byte {offset}, which is no character"
            );
            verdict.refuse("surrogate", text);
            // Nothing else can read it.
            return verdict.judgement();
        }
        if !self.config.duplicate_names
            && let Err(error) = body::check_names(&sample.body)
        {
            verdict.refuse("json", format!("the JSON cannot be used: {error}"));
            return verdict.judgement();
        }
        if sample.origin == Origin::Request {
            self.chat(sample, &mut verdict);
        }
        let texts = sample
            .segments
            .iter()
            .map(|segment| (segment.path.as_str(), segment.text.as_str()));
        verdict.broken(self.config.sizes.check_texts(texts));
        for segment in &sample.segments {
            self.text(segment, sample.origin, &mut verdict);
        }
        let (schema, rule) = match sample.origin {
            Origin::Request => (&self.request, "request-schema"),
            Origin::Row => (&self.row, "row-schema"),
        };
        if let Some(schema) = schema {
            check(schema, rule, "", &sample.body, &mut verdict);
        }
        verdict.judgement()
    }

    /// The rules of roles and of the number of messages.
    fn chat(&self, sample: &Sample, verdict: &mut Verdict) {
        match serde_json::from_str::<body::Chat>(&sample.body) {
            Ok(body::Chat {
                messages: Some(messages),
            }) => {
                verdict.broken(self.config.sizes.check_count(messages.len()));
                verdict.broken(self.config.roles.check(&messages));
            }
            Ok(_) => {}
            Err(error) => {
                verdict.refuse("messages", format!("the messages cannot be read: {error}"))
            }
        }
    }

    /// The characters of one text, and its schema.
    fn text(&self, segment: &TextSegment, origin: Origin, verdict: &mut Verdict) {
        let path = shortened(&segment.path);
        let flaws = unicode::flaws(&segment.text);
        let mut text = None;
        if !flaws.is_empty() {
            let mut removes = [false; Flaw::ALL.len()];
            for flaw in Flaw::ALL {
                let (count, first) = flaws.of(flaw);
                let policy = self.config.unicode.of(flaw);
                if count == 0 || policy == Policy::Allow {
                    continue;
                }
                let found = format!(
                    "{count} {} in the text at {path}, the first at byte {first}",
                    flaw.name().replace('-', " ")
                );
                match policy {
                    Policy::Repair if self.config.repairs() => {
                        removes[flaw as usize] = true;
                        verdict.note(flaw.name(), format!("{found}; removed"));
                    }
                    Policy::Repair | Policy::Reject => verdict.refuse(flaw.name(), found),
                    Policy::Flag | Policy::Allow => verdict.note(flaw.name(), found),
                }
            }
            if removes.contains(&true) {
                text = Some(unicode::repaired(&segment.text, |flaw| {
                    removes[flaw as usize]
                }));
            }
        }
        if self.config.normalises() {
            let present = text.as_deref().unwrap_or(&segment.text);
            if is_nfc_quick(present.chars()) != IsNormalized::Yes {
                let normal: String = present.nfc().collect();
                if normal != present {
                    verdict.note(
                        "not-normal",
                        format!("the text at {path} is not in normal form C; normalised"),
                    );
                    text = Some(normal);
                }
            }
        }
        if let Some(schema) = &self.text
            && origin == Origin::Request
            && self.config.text_roles.contains(&segment.role)
        {
            let present = text.as_deref().unwrap_or(&segment.text);
            check(schema, "text-schema", &path, present, verdict);
        }
        if let Some(text) = text {
            verdict.repairs.push(Repair {
                path: segment.path.clone(),
                text,
            });
        }
    }
}

/// Holds JSON text against a schema.
fn check(schema: &JsonSchema, rule: &str, place: &str, json: &str, verdict: &mut Verdict) {
    let within = |path: &str| match (place, path) {
        ("", "") => String::from("the whole"),
        ("", path) => String::from(path),
        (place, "") => format!("the text at {place}"),
        (place, path) => format!("{path} in the text at {place}"),
    };
    match serde_json::from_str(json) {
        Ok(value) => {
            for Violation { path, expected } in schema.violations(&value, MAX_VIOLATIONS) {
                verdict.refuse(rule, format!("{}: expected {expected}", within(&path)));
            }
        }
        Err(error) => verdict.refuse(rule, format!("{} must be JSON: {error}", within(""))),
    }
}

/// A path short enough for a message.
fn shortened(path: &str) -> String {
    path.chars().take(100).collect()
}

millgate_sdk::plugin!(Schema: Validation);
