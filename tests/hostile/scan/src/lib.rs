//! A well-behaved compliance plugin, as small as can be. It masks e-mail addresses in a stream:
//! it settles up to the last byte that cannot be part of an address.
#![cfg_attr(target_family = "wasm", no_std)]
#![cfg(target_family = "wasm")]
#![allow(unsafe_code, missing_docs, reason = "generated bindings")]

extern crate alloc;

use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;

wit_bindgen::generate!({ path: "../../../wit", world: "compliance-plugin" });

use exports::millgate::stage::compliance::{
    Context, Decision, Edit, Guest, GuestInspection, Verdict,
};
use exports::millgate::stage::lifecycle;
use millgate::stage::types::{Finding, Span, StageError};

millgate_hostile_base::guest!();

struct Plugin;

struct Mask(RefCell<String>);
// SAFETY: a guest has one thread.
unsafe impl Sync for Mask {}
static MASK: Mask = Mask(RefCell::new(String::new()));

impl lifecycle::Guest for Plugin {
    fn configure(config: String) -> Result<(), StageError> {
        let mask = config
            .split("\"mask\":\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        *MASK.0.borrow_mut() = mask.unwrap_or("[email]").to_string();
        Ok(())
    }
}

/// The unsettled text, and where it begins in the segment.
struct Inspection(RefCell<(String, u32)>);

impl Guest for Plugin {
    type Inspection = Inspection;
}

impl GuestInspection for Inspection {
    fn new(_: &Context) -> Self {
        Inspection(RefCell::new((String::new(), 0)))
    }

    fn push(&self, chunks: Vec<String>) -> Result<Verdict, StageError> {
        let (held, start) = &mut *self.0.borrow_mut();
        for chunk in &chunks {
            held.push_str(chunk);
        }
        let end = held
            .bytes()
            .rposition(|b| !is_part(b))
            .map_or(0, |at| at + 1);
        Ok(settle(held, start, end))
    }

    fn finish(&self) -> Result<Verdict, StageError> {
        let (held, start) = &mut *self.0.borrow_mut();
        let end = held.len();
        Ok(settle(held, start, end))
    }
}

/// Bytes that can be part of an address.
fn is_part(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'%' | b'+' | b'-' | b'@')
}

/// Looks through the first `end` bytes of the held text, which end where a word does.
fn settle(held: &mut String, start: &mut u32, end: usize) -> Verdict {
    let text = &held.as_bytes()[..end];
    let (mut edits, mut findings) = (vec![], vec![]);
    let mut from = 0;
    while let Some(at) = text[from..]
        .iter()
        .position(|&b| b == b'@')
        .map(|at| from + at)
    {
        let word = text[..at]
            .iter()
            .rposition(|&b| !is_part(b))
            .map_or(0, |w| w + 1);
        let stop = text[at..]
            .iter()
            .position(|&b| !is_part(b))
            .map_or(end, |s| at + s);
        from = stop;
        if word < at && text[at + 1..stop].contains(&b'.') {
            let span = Span {
                start: *start + word as u32,
                end: *start + stop as u32,
            };
            edits.push(Edit {
                span,
                replacement: MASK.0.borrow().clone(),
            });
            findings.push(Finding {
                rule: "email".to_string(),
                span: Some(span),
                score: 0.9,
                explanation: String::new(),
            });
        }
    }
    held.drain(..end);
    *start += end as u32;
    Verdict {
        settled: *start,
        edits,
        findings,
        decision: Decision::Pass,
    }
}

export!(Plugin);
