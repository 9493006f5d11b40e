//! A plugin with its language's standard library, allocator and WASI: what someone writes who does
//! not know about sandboxes. What it does depends on the text that it is given.
#![cfg(target_family = "wasm")]
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test guest; generated bindings"
)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Mutex;

wit_bindgen::generate!({ path: "../../../wit", world: "compliance-plugin" });

use exports::millgate::stage::compliance::{Context, Decision, Guest, GuestInspection, Verdict};
use exports::millgate::stage::lifecycle;
use millgate::stage::types::{Finding, StageError};

#[used]
#[unsafe(link_section = "millgate:manifest")]
static MANIFEST: [u8; include_bytes!("../plugin.toml").len()] = *include_bytes!("../plugin.toml");

struct Plugin;

static CONFIG: Mutex<String> = Mutex::new(String::new());

impl lifecycle::Guest for Plugin {
    fn configure(config: String) -> Result<(), StageError> {
        *CONFIG.lock().unwrap() = config.trim_end().to_owned();
        Ok(())
    }
}

struct Inspection(RefCell<String>);

impl Guest for Plugin {
    type Inspection = Inspection;
}

fn finding(explanation: String) -> Finding {
    Finding {
        rule: "told".into(),
        span: None,
        score: 1.0,
        explanation,
    }
}

fn answer(told: &str) -> String {
    match told {
        "config" => CONFIG.lock().unwrap().clone(),
        "environment" => format!("{} {}", std::env::vars().count(), std::env::args().count()),
        "time" => {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.unwrap().as_millis().to_string()
        }
        "random" => {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(1u8).to_string()
        }
        "print" => {
            println!("to the console");
            "printed".into()
        }
        "stdin" => std::io::stdin().lines().count().to_string(),
        "file" => format!(
            "{:?}",
            std::fs::read("/etc/passwd").map_err(|error| error.kind())
        ),
        "connect" => format!(
            "{:?}",
            std::net::TcpStream::connect("127.0.0.1:80").map_err(|e| e.kind())
        ),
        "panic" => panic!("told to panic"),
        "exit" => std::process::exit(3),
        _ => {
            // Some work on the heap.
            let mut words: HashMap<&str, usize> = HashMap::new();
            for word in told.split_whitespace() {
                *words.entry(word).or_default() += 1;
            }
            words.values().max().copied().unwrap_or(0).to_string()
        }
    }
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
        Ok(Verdict {
            settled: text.len() as u32,
            edits: vec![],
            findings: vec![finding(answer(&text))],
            decision: Decision::Pass,
        })
    }
}

export!(Plugin);
