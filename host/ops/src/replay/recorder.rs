//! Records one request while it is under way: handles are copied and texts appended, nothing else.
//! What costs (writing, compressing, sealing) is done after the answer, on a thread of its own.

use std::collections::BTreeMap;

use bytes::Bytes;
use millgate_sandbox::{Tape, tape::Recorded};

use super::record::{Heard, Source, then};
use crate::{
    answer::Channel,
    id::TraceId,
    outlet::Form,
    request::{Endpoint, Request},
    trace::Trace,
};

/// The most bytes of texts that are kept of one request, and as many again of the stages' calls.
const MAX_BYTES: usize = 8 << 20;

/// Records one request.
pub(crate) struct Recorder {
    tape: Tape,
    body: Bytes,
    endpoint: Endpoint,
    language: String,
    subject: String,
    config: std::sync::Arc<str>,
    departed: bool,
    changed: Vec<(u32, String)>,
    heard: Heard<'static>,
    left: BTreeMap<(u32, Channel), String>,
    bytes: usize,
}

/// A record that is to be kept.
pub(crate) struct Job {
    pub id: TraceId,
    /// Whose content it is, as the vault knows them.
    pub subject: String,
    pub source: Source<'static>,
    pub recorded: Recorded,
}

impl Job {
    /// The memory that it holds, about.
    pub(crate) fn bytes(&self) -> usize {
        // The tape has each text once for every stage.
        2 * self.source.body.len()
            + 2 * self
                .source
                .answer
                .as_ref()
                .map_or(0, |heard| heard.text.len())
            + 1024
    }
}

/// Whose content a request is: the tenant's, and there the end user's, where the request names one.
pub(crate) fn subject(tenant: &str, user: &str) -> String {
    format!("{tenant}\0{user}")
}

impl Recorder {
    /// For a request that no stage has seen yet.
    pub(crate) fn new(request: &Request, config: std::sync::Arc<str>) -> Self {
        let named = |field| request.value::<String>(field).ok().flatten();
        let user = named("safety_identifier").or_else(|| named("user"));
        let body = request.original_body();
        Self {
            tape: Tape::recording(MAX_BYTES),
            bytes: body.len(),
            body,
            endpoint: match request.endpoint {
                // To stages and models it is a chat.
                Endpoint::Responses => Endpoint::Chat,
                other => other,
            },
            language: request.language.to_string(),
            subject: subject(&request.tenant, &user.unwrap_or_default()),
            config,
            departed: false,
            changed: Vec::new(),
            heard: Heard::default(),
            left: BTreeMap::new(),
        }
    }

    /// What the stages' calls are recorded on.
    pub(crate) fn tape(&self) -> Tape {
        self.tape.clone()
    }

    /// The request goes to the model as it is now.
    pub(crate) fn departs(&mut self, request: &Request) {
        self.departed = true;
        for (index, segment) in request.segments.iter().enumerate() {
            if segment.changed {
                self.bytes += segment.text.len();
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                self.changed.push((index, segment.text.clone()));
            }
        }
    }

    /// The model is a local one, and its text is of this form.
    pub(crate) fn form(&mut self, form: Form) {
        self.heard.form = Some(form);
    }

    /// The model said something.
    pub(crate) fn heard(&mut self, choice: u32, channel: Channel, text: &str) {
        self.bytes += text.len() + 16;
        if self.bytes <= MAX_BYTES {
            self.heard.push(choice, channel, text);
        }
    }

    /// A choice is complete.
    pub(crate) fn ended(&mut self, choice: u32) {
        if !self.heard.ended.contains(&choice) {
            self.heard.ended.push(choice);
        }
        if self.heard.form.is_some() {
            // Also where nothing at all left.
            self.left.entry((choice, Channel::Content)).or_default();
        }
    }

    /// A choice is said again; this much of it stays.
    pub(crate) fn again(&mut self, choice: u32, text: &str) {
        self.heard.forget(choice);
        self.heard(choice, Channel::Content, text);
    }

    /// Something left for the client.
    pub(crate) fn left(&mut self, choice: u32, channel: Channel, text: &str) {
        if self.bytes <= MAX_BYTES {
            self.left
                .entry((choice, channel))
                .or_default()
                .push_str(text);
        }
    }

    /// The whole record; `None` where it is larger than what is kept.
    pub(crate) fn finish(self, trace: &Trace) -> Option<Job> {
        let recorded = self.tape.take()?;
        if self.bytes > MAX_BYTES {
            return None;
        }
        let mut heard = self.heard;
        for ((choice, channel), text) in self.left {
            if !heard.is(choice, channel, &text) {
                heard.left.push((choice, channel, text));
            }
        }
        let answered = !heard.pieces.is_empty() || !heard.ended.is_empty();
        let source = Source {
            at_ms: trace.at_ms,
            tenant: trace.tenant.to_string().into(),
            model: trace.model.to_string().into(),
            language: self.language.into(),
            endpoint: self.endpoint,
            pipeline: trace.pipeline.to_string().into(),
            generation: trace.generation,
            config: self.config.to_string().into(),
            finish: trace.finish,
            body: String::from_utf8(self.body.to_vec()).ok()?.into(),
            departed: self.departed,
            changed: self.changed,
            stages: then(trace),
            answer: answered.then_some(heard),
        };
        Some(Job {
            id: trace.id,
            subject: self.subject,
            source,
            recorded,
        })
    }
}
