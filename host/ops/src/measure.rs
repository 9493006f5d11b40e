//! How long a stage takes, measured here and now: for what a plan says about added time. The state
//! that a stage is granted is a scratch one, and models are not asked.

use std::time::{Duration, Instant};

use millgate_sandbox::{CallContext, Interface, Origin, Sample, Segment, Stage};

/// One stage is measured for no longer than this.
const TIME: Duration = Duration::from_millis(40);
/// And no more often than this.
const CALLS: usize = 300;
const WORDS: &str = "The ferry leaves at nine from the north pier, and whoever misses it waits until \
the tide is back. Bring a coat, something to read and the two letters for the harbour office. ";

/// Median microseconds of one request's worth of work on 1 KiB of plain English text, in the
/// sandbox. `None`: it asks a model, or it gave no answer.
pub(crate) fn micros(stage: &Stage) -> Option<f64> {
    if stage.is_async() {
        return None;
    }
    let text: String = WORDS.chars().cycle().take(1024).collect();
    let context = CallContext::default();
    let sample = sample(&text);
    let interfaces = &stage.manifest().interfaces;
    let once = || -> Option<()> {
        if interfaces.contains(&Interface::Validation) {
            stage
                .validate(&context, std::slice::from_ref(&sample))
                .ok()?;
        }
        if interfaces.contains(&Interface::Compliance) {
            let mut inspection = stage.inspection(&context);
            inspection.push(&[&text]).ok()?;
            // Whoever refused the text at once is not asked again.
            let _ = inspection.finish();
        }
        Some(())
    };
    for _ in 0..5 {
        once()?;
    }
    let end = Instant::now() + TIME;
    let mut nanos = Vec::with_capacity(CALLS);
    while nanos.len() < CALLS && (nanos.len() < 3 || Instant::now() < end) {
        let begin = Instant::now();
        once()?;
        nanos.push(begin.elapsed().as_nanos());
    }
    nanos.sort_unstable();
    nanos.get(nanos.len() / 2).map(|nanos| *nanos as f64 / 1e3)
}

fn sample(text: &str) -> Sample {
    let message = serde_json::json!({ "role": "user", "content": text });
    Sample {
        origin: Origin::Request,
        body: serde_json::json!({ "model": "m", "messages": [message] }).to_string(),
        segments: vec![Segment {
            path: "/messages/0/content".to_owned(),
            role: "user".to_owned(),
            text: text.to_owned(),
        }],
    }
}
