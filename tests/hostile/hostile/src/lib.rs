//! A plugin that does wrong what its config says.
#![cfg_attr(target_family = "wasm", no_std)]
#![cfg(target_family = "wasm")]
#![allow(
    unsafe_code,
    clippy::panic,
    missing_docs,
    reason = "a guest made to misbehave; generated bindings"
)]

extern crate alloc;

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::cell::{Cell, RefCell};

wit_bindgen::generate!({
    path: "../../../wit",
    inline: "
        package hostile:plugin;
        world hostile {
            include millgate:stage/host@0.1.0;
            export millgate:stage/lifecycle@0.1.0;
            export millgate:stage/validation@0.1.0;
            export millgate:stage/compliance@0.1.0;
            export millgate:stage/monitoring@0.1.0;
            export millgate:stage/deployment@0.1.0;
            export millgate:stage/evaluation@0.1.0;
        }
    ",
    world: "hostile:plugin/hostile",
    generate_all,
});

use exports::millgate::stage::compliance::{self as c, Decision, Edit, Refusal, Verdict};
use exports::millgate::stage::{
    deployment as d, evaluation as e, lifecycle, monitoring as m, validation as v,
};
use millgate::stage::types::{ErrorKind, Finding, Label, Span, StageError};
use millgate::stage::{log, metrics, state};

millgate_hostile_base::guest!();

struct Plugin;

struct Global<T>(T);
// SAFETY: a guest has one thread.
unsafe impl<T> Sync for Global<T> {}
static BEHAVIOUR: Global<RefCell<String>> = Global(RefCell::new(String::new()));
/// Calls that this instance has seen, to show what a reused instance remembers.
static CALLS: Global<Cell<u32>> = Global(Cell::new(0));

fn behaviour() -> String {
    BEHAVIOUR.0.borrow().clone()
}

fn error(code: &str) -> StageError {
    StageError {
        kind: ErrorKind::Internal,
        code: code.to_string(),
        message: "as it was told".to_string(),
    }
}

#[allow(unconditional_recursion)]
fn recurse(n: u64) -> u64 {
    core::hint::black_box(n) + recurse(core::hint::black_box(n + 1))
}

/// What any call can do wrong. Gives back whether it was told to.
fn misbehave(told: &str) -> Result<(), StageError> {
    match told {
        "loop" => loop {
            core::hint::spin_loop();
        },
        "allocate" => {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            loop {
                kept.push(vec![1; 1 << 20]);
            }
        }
        "grow" => while core::arch::wasm32::memory_grow::<0>(16) != usize::MAX {},
        "recurse" => {
            core::hint::black_box(recurse(0));
        }
        "panic" => panic!("told to panic\u{1b}[31m, in red\nand on two lines"),
        "trap" => core::arch::wasm32::unreachable(),
        "error" => return Err(error("told-to-fail")),
        "log-flood" => {
            for i in 0..10_000 {
                log::write(log::Level::Info, &format!("line {i}"));
            }
        }
        "log-bulk" => log::write(log::Level::Info, &"x".repeat(200_000)),
        "metric-flood" => {
            for i in 0..10_000 {
                metrics::count(&format!("metric-{i}"), 1);
                metrics::gauge("bad name {}", 1.0);
            }
        }
        "state-flood" => {
            let mut set = 0;
            for i in 0..10_000 {
                match state::set(&format!("key-{i}"), &[0; 1024]) {
                    Ok(()) => set += 1,
                    Err(error) => {
                        return Err(StageError {
                            message: format!("after {set}"),
                            ..error
                        });
                    }
                }
            }
        }
        "state-bulk" => state::set("bulk", &vec![0; 8 << 20])?,
        _ => {}
    }
    Ok(())
}

impl lifecycle::Guest for Plugin {
    fn configure(config: String) -> Result<(), StageError> {
        let told = config
            .split("\"behaviour\":\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let told = told.unwrap_or("none");
        *BEHAVIOUR.0.borrow_mut() = told.to_string();
        match told.strip_prefix("configure-") {
            Some("refuse") => Err(StageError {
                kind: ErrorKind::InvalidConfig,
                code: "refused".to_string(),
                message: "it was told to refuse".to_string(),
            }),
            Some("state") => state::set("key", b"value"),
            Some(told) => misbehave(told),
            None => Ok(()),
        }
    }
}

struct Inspection(Cell<u32>);

impl c::Guest for Plugin {
    type Inspection = Inspection;
}

fn pass(settled: u32) -> Verdict {
    Verdict {
        settled,
        edits: vec![],
        findings: vec![],
        decision: Decision::Pass,
    }
}

fn finding(start: u32, end: u32, explanation: String) -> Finding {
    Finding {
        rule: "told".to_string(),
        span: Some(Span { start, end }),
        score: 0.5,
        explanation,
    }
}

fn edit(start: u32, end: u32, replacement: String) -> Edit {
    Edit {
        span: Span { start, end },
        replacement,
    }
}

impl c::GuestInspection for Inspection {
    fn new(ctx: &c::Context) -> Self {
        if behaviour() == "keep-handles" {
            // Each is a handle that is never given back.
            loop {
                core::mem::forget(c::Inspection::new(Inspection(Cell::new(0))));
            }
        }
        core::hint::black_box(ctx.seed());
        Inspection(Cell::new(0))
    }

    fn push(&self, chunks: Vec<String>) -> Result<Verdict, StageError> {
        CALLS.0.set(CALLS.0.get() + 1);
        let before = self.0.get();
        let now = before + chunks.iter().map(|chunk| chunk.len() as u32).sum::<u32>();
        self.0.set(now);
        let told = behaviour();
        misbehave(&told)?;
        let nothing = String::new;
        Ok(match told.as_str() {
            "settle-beyond" => pass(now + 1),
            "settle-back" => pass(if before == 0 { now } else { 0 }),
            "settle-inside" => pass(now.saturating_sub(1)),
            "settle-never" => pass(0),
            "finding-beyond" => Verdict {
                findings: vec![finding(0, now + 9, nothing())],
                ..pass(now)
            },
            "finding-inside" => Verdict {
                findings: vec![finding(0, now - 1, nothing())],
                ..pass(now)
            },
            "finding-backwards" => Verdict {
                findings: vec![finding(now, 0, nothing())],
                ..pass(now)
            },
            "edit-beyond" => Verdict {
                edits: vec![edit(0, now + 1, nothing())],
                ..pass(now)
            },
            "edit-inside" => Verdict {
                edits: vec![edit(0, now - 1, nothing())],
                ..pass(now)
            },
            "edits-overlap" => Verdict {
                edits: vec![edit(0, 2, nothing()), edit(1, 3, nothing())],
                ..pass(now)
            },
            "findings-many" => Verdict {
                findings: (0..100_000).map(|_| finding(0, 0, nothing())).collect(),
                ..pass(now)
            },
            "findings-large" => Verdict {
                findings: (0..4)
                    .map(|_| finding(0, 0, "x".repeat(512 << 10)))
                    .collect(),
                ..pass(now)
            },
            "replacement-large" => Verdict {
                edits: vec![edit(0, 1, "x".repeat(600 << 10))],
                ..pass(now)
            },
            "score-wrong" => Verdict {
                findings: vec![Finding {
                    score: f32::NAN,
                    ..finding(0, 0, nothing())
                }],
                ..pass(now)
            },
            "string-wrong" => {
                // SAFETY: none; the point is to hand the host a string that is not UTF-8.
                let wrong = unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe]) };
                Verdict {
                    findings: vec![finding(0, 0, wrong)],
                    ..pass(now)
                }
            }
            "count" => Verdict {
                findings: vec![finding(now, now, format!("call {}", CALLS.0.get()))],
                ..pass(now)
            },
            "block" => Verdict {
                decision: Decision::Block(Refusal {
                    code: "told".to_string(),
                    message: "It was told to block.".to_string(),
                }),
                ..pass(before)
            },
            _ => pass(now),
        })
    }

    fn finish(&self) -> Result<Verdict, StageError> {
        Ok(pass(if behaviour() == "settle-never" {
            0
        } else {
            self.0.get()
        }))
    }
}

impl v::Guest for Plugin {
    fn validate(_: &v::Context, samples: Vec<v::Sample>) -> Result<Vec<v::Judgement>, StageError> {
        let told = behaviour();
        misbehave(&told)?;
        let accept = || v::Judgement {
            outcome: v::Outcome::Accept,
            findings: vec![],
        };
        let repair = |path: &str| v::Judgement {
            outcome: v::Outcome::Repair(vec![v::Repair {
                path: path.to_string(),
                text: "t".to_string(),
            }]),
            findings: vec![],
        };
        Ok(match told.as_str() {
            "too-few" => vec![],
            "repair-elsewhere" => samples.iter().map(|_| repair("/not/there")).collect(),
            "repair" => samples
                .iter()
                .map(|sample| repair(&sample.segments[0].path))
                .collect(),
            _ => samples.iter().map(|_| accept()).collect(),
        })
    }
}

impl e::Guest for Plugin {
    fn evaluate(_: &e::Context, answers: Vec<e::Answer>) -> Result<e::Evaluation, StageError> {
        let told = behaviour();
        misbehave(&told)?;
        let value = if told == "score-wrong" { f64::NAN } else { 1.0 };
        let score = || e::Score {
            name: "told".to_string(),
            value,
            explanation: String::new(),
        };
        let id = |answer: &e::Answer| {
            if told == "wrong-ids" {
                String::new()
            } else {
                answer.id.clone()
            }
        };
        Ok(e::Evaluation {
            cases: answers
                .iter()
                .map(|a| e::CaseScores {
                    id: id(a),
                    scores: vec![score()],
                })
                .collect(),
            aggregate: vec![score()],
        })
    }
}

/// Events or requests that the actor has seen; this is the state that it saves.
static SEEN: Global<Cell<u64>> = Global(Cell::new(0));

fn save() -> Result<Vec<u8>, StageError> {
    match behaviour().as_str() {
        "save-large" => Ok(vec![0; 6 << 20]),
        _ => Ok(SEEN.0.get().to_le_bytes().to_vec()),
    }
}

fn number(bytes: &[u8]) -> Result<u64, StageError> {
    Ok(u64::from_le_bytes(
        bytes.try_into().map_err(|_| error("bad-state"))?,
    ))
}

impl m::Guest for Plugin {
    fn observe(events: Vec<m::Event>) -> Result<m::Report, StageError> {
        misbehave(&behaviour())?;
        SEEN.0.set(SEEN.0.get() + events.len() as u64);
        if events.iter().any(|event| event.trace_id == "poison") {
            panic!("a poisonous event");
        }
        report()
    }
    fn tick(_: u64) -> Result<m::Report, StageError> {
        report()
    }
    fn save() -> Result<Vec<u8>, StageError> {
        save()
    }
    fn restore(state: Vec<u8>) -> Result<(), StageError> {
        SEEN.0.set(number(&state)?);
        Ok(())
    }
    fn merge(state: Vec<u8>) -> Result<(), StageError> {
        SEEN.0.set(SEEN.0.get() + number(&state)?);
        Ok(())
    }
}

fn report() -> Result<m::Report, StageError> {
    let seen = SEEN.0.get();
    Ok(m::Report {
        alerts: vec![m::Alert {
            rule: "seen".to_string(),
            severity: m::Severity::Ok,
            value: seen as f64,
            threshold: 0.0,
            message: format!("seen {seen}"),
        }],
        metrics: vec![m::Measure {
            name: "seen".to_string(),
            value: seen as f64,
        }],
    })
}

impl d::Guest for Plugin {
    fn route(
        _: &d::Context,
        features: Vec<Label>,
        arms: Vec<d::Arm>,
    ) -> Result<d::Choice, StageError> {
        misbehave(&behaviour())?;
        if features.iter().any(|feature| feature.name == "poison") {
            panic!("a poisonous request");
        }
        SEEN.0.set(SEEN.0.get() + 1);
        let arm = match behaviour().as_str() {
            "arm-unknown" => "nowhere".to_string(),
            _ => arms[0].name.clone(),
        };
        Ok(d::Choice {
            arm,
            propensity: 1.0,
            reason: format!("seen {}", SEEN.0.get()),
        })
    }
    fn review(_: d::Rollout) -> Result<d::Recommendation, StageError> {
        let action = match behaviour().as_str() {
            "shift-wrong" => d::Action::Shift(7.0),
            _ => d::Action::Hold,
        };
        Ok(d::Recommendation {
            action,
            reason: String::new(),
            evidence: vec![],
        })
    }
    fn save() -> Result<Vec<u8>, StageError> {
        save()
    }
    fn restore(state: Vec<u8>) -> Result<(), StageError> {
        <Plugin as m::Guest>::restore(state)
    }
}

export!(Plugin);
