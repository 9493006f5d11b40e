//! The way of one choice's text from the model through the output stages: as plain text, as JSON, or with
//! calls of tools in it. Nothing leaves that the stages have not settled. In JSON (an answer that has to be
//! JSON, and the arguments of calls) they check the decoded texts one by one, so that it is JSON afterwards.

use millgate_sandbox::CallContext;
use serde::{Deserialize, Serialize};

use crate::{
    calls::{CallReader, Part},
    chain::{Chain, Flow, Placed, Released},
    leaves::{Bit, Leaves, escaped},
    trace::StageRecord,
};

/// What a model's text is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Form {
    /// Its text is JSON.
    pub json: bool,
    /// There may be calls of tools.
    pub calls: bool,
}

/// Something that may leave.
#[derive(Debug, PartialEq)]
pub(crate) enum Out {
    /// Text of the answer.
    Text(Released),
    /// A call of a tool begins.
    Call { index: u32, name: String },
    /// Arguments of the call.
    Arguments { index: u32, text: String },
}

/// The stages over one choice.
pub(crate) struct Outlet {
    form: Form,
    stages: Vec<Placed>,
    /// Whether a stage's verdict counts. If none does, the text leaves as the model said it.
    enforced: bool,
    context: CallContext,
    /// Over the text; and the account of all the others.
    chain: Option<Chain>,
    /// Over the string that is open.
    leaf: Option<Chain>,
    reader: CallReader,
    json: Leaves,
    /// Calls that have begun.
    calls: u32,
    pushed: u64,
}

impl Outlet {
    /// Over these stages.
    pub(crate) fn new(form: Form, stages: Vec<Placed>, context: &CallContext) -> Self {
        Self {
            enforced: stages.iter().any(|placed| placed.enforced),
            chain: (!stages.is_empty()).then(|| Chain::new(stages.iter().cloned(), context)),
            form,
            stages,
            context: context.clone(),
            leaf: None,
            reader: CallReader::default(),
            json: Leaves::default(),
            calls: 0,
            pushed: 0,
        }
    }

    /// Whether a call of a tool has left.
    pub(crate) fn called(&self) -> bool {
        self.calls > 0
    }

    /// More text of the model.
    pub(crate) async fn push(&mut self, text: &str, out: &mut Vec<Out>) -> Flow {
        let start = self.pushed;
        self.pushed += text.len() as u64;
        if !self.form.calls {
            return self.content(text, start, out).await;
        }
        let mut parts = Vec::new();
        self.reader.push(text, &mut parts);
        self.parts(parts, out).await
    }

    /// The model's text is complete.
    pub(crate) async fn finish(&mut self, out: &mut Vec<Out>) -> Flow {
        if self.form.calls {
            let mut parts = Vec::new();
            self.reader.finish(&mut parts);
            let flow = self.parts(parts, out).await;
            if !matches!(flow, Flow::Go) || self.calls > 0 {
                return flow;
            }
        }
        self.content_ends(out).await
    }

    /// The same text is said again from its beginning, with new stages.
    pub(crate) fn restart(&mut self, context: &CallContext) {
        if let Some(leaf) = self.leaf.take() {
            self.absorb(leaf);
        }
        if let Some(chain) = &mut self.chain {
            chain.restart(context);
        }
        self.reader = CallReader::default();
        self.json = Leaves::default();
        self.calls = 0;
        self.pushed = 0;
    }

    /// Adds what the stages did to their records in the trace.
    pub(crate) fn record(&mut self, records: &mut [StageRecord]) {
        if let Some(leaf) = self.leaf.take() {
            self.absorb(leaf);
        }
        if let Some(chain) = &mut self.chain {
            chain.record(records);
        }
    }

    async fn parts(&mut self, parts: Vec<Part>, out: &mut Vec<Out>) -> Flow {
        for part in parts {
            let flow = match part {
                Part::Text { text, start } => self.content(&text, start, out).await,
                Part::Call(name) => {
                    // What the stages hold of the text before it leaves now.
                    let flow = match self.calls {
                        0 => self.content_ends(out).await,
                        _ => Flow::Go,
                    };
                    if matches!(flow, Flow::Go) {
                        if let Some(chain) = &mut self.chain {
                            chain.passes_unseen(name.len() as u64);
                        }
                        let index = self.calls;
                        self.calls += 1;
                        out.push(Out::Call { index, name });
                    }
                    flow
                }
                Part::Arguments { text, bits } => {
                    let index = self.calls.saturating_sub(1);
                    let mut released = Released::default();
                    let mut flow = Flow::Go;
                    if self.chain.is_some() {
                        flow = self.bits(bits, &mut released).await;
                    }
                    if !self.enforced {
                        released.text = text;
                        flow = Flow::Go;
                    }
                    if !released.text.is_empty() {
                        let text = released.text;
                        out.push(Out::Arguments { index, text });
                    }
                    flow
                }
                Part::Ends => Flow::Go,
            };
            if !matches!(flow, Flow::Go) {
                return flow;
            }
        }
        Flow::Go
    }

    async fn content(&mut self, text: &str, start: u64, out: &mut Vec<Out>) -> Flow {
        let mut released = Released::default();
        let flow = match (&mut self.chain, self.form.json) {
            (None, _) => {
                released.source.push(start..start + text.len() as u64);
                released.text = text.to_owned();
                Flow::Go
            }
            (Some(chain), false) => chain.push(text, start, &mut released).await,
            (Some(_), true) => {
                let mut bits = Vec::new();
                // What stands behind the value is white space.
                self.json.push(text, start, &mut bits);
                self.bits(bits, &mut released).await
            }
        };
        if !self.enforced {
            released = Released::default();
            own(&mut released, text, start);
        }
        leave(released, out);
        flow
    }

    async fn content_ends(&mut self, out: &mut Vec<Out>) -> Flow {
        let mut released = Released::default();
        let flow = match (&mut self.chain, self.form.json) {
            (None, _) => Flow::Go,
            (Some(chain), false) => chain.finish(&mut released).await,
            (Some(_), true) => {
                let mut bits = Vec::new();
                self.json.finish(&mut bits);
                let mut flow = self.bits(bits, &mut released).await;
                if matches!(flow, Flow::Go) {
                    // A string that is cut off.
                    flow = self.leaf_ends(&mut released).await;
                }
                flow
            }
        };
        if self.enforced {
            leave(released, out);
        }
        flow
    }

    /// Pieces of JSON through the stages.
    async fn bits(&mut self, bits: Vec<Bit>, released: &mut Released) -> Flow {
        for bit in bits {
            let flow = match bit {
                Bit::Syntax { text, start } => {
                    own(released, &text, start);
                    Flow::Go
                }
                Bit::Opens(at) => {
                    own(released, "\"", at);
                    self.leaf = Some(Chain::new(self.stages.iter().cloned(), &self.context));
                    Flow::Go
                }
                Bit::Text { text, start } => match &mut self.leaf {
                    Some(leaf) => {
                        let mut out = Released::default();
                        let flow = leaf.push(&text, start, &mut out).await;
                        take(released, out);
                        flow
                    }
                    None => Flow::Go,
                },
                Bit::Closes(at) => {
                    let flow = self.leaf_ends(released).await;
                    if matches!(flow, Flow::Go) {
                        own(released, "\"", at);
                    }
                    flow
                }
                Bit::Number { text, start } => {
                    let mut leaf = Chain::new(self.stages.iter().cloned(), &self.context);
                    let mut out = Released::default();
                    let mut flow = leaf.push(&text, start, &mut out).await;
                    if matches!(flow, Flow::Go) {
                        flow = leaf.finish(&mut out).await;
                    }
                    self.absorb(leaf);
                    if matches!(flow, Flow::Go) {
                        if out.text == text {
                            own(released, &text, start);
                        } else {
                            // What a stage wrote is no number: it stands in a string.
                            released.text += &format!("\"{}\"", escaped(&out.text));
                        }
                    }
                    flow
                }
            };
            if !matches!(flow, Flow::Go) {
                return flow;
            }
        }
        Flow::Go
    }

    async fn leaf_ends(&mut self, released: &mut Released) -> Flow {
        let Some(mut leaf) = self.leaf.take() else {
            return Flow::Go;
        };
        let mut out = Released::default();
        let flow = leaf.finish(&mut out).await;
        take(released, out);
        self.absorb(leaf);
        flow
    }

    fn absorb(&mut self, leaf: Chain) {
        if let Some(chain) = &mut self.chain {
            chain.absorb(leaf);
        }
    }
}

/// Text that no stage changed.
fn own(released: &mut Released, text: &str, start: u64) {
    released.text += text;
    let end = start + text.len() as u64;
    match released.source.last_mut() {
        Some(range) if range.end == start => range.end = end,
        _ => released.source.push(start..end),
    }
}

/// Text of a string that may leave, escaped again.
fn take(released: &mut Released, out: Released) {
    released.text += &escaped(&out.text);
    for range in out.source {
        match released.source.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => released.source.push(range),
        }
    }
}

fn leave(released: Released, out: &mut Vec<Out>) {
    if !released.text.is_empty() || !released.source.is_empty() {
        out.push(Out::Text(released));
    }
}
