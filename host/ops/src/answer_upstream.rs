//! An upstream's answer on its way out. Where no output stage stands, its bytes are passed on as
//! they come and only glanced at for the trace. Where stages stand, texts are replaced in place;
//! what they hold back leaves in chunks made after the upstream's own.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use bytes::Bytes;

use crate::{
    answer::{Answer, AnswerChoice, Channel, Glance},
    chain::{Chain, Flow, Released},
    error::ApiError,
    flight::Flight,
    response::Event,
    splice::Splice,
    sse::{SseEvent, SseReader},
    trace::Finish,
    upstream::UpstreamBody,
};

/// The stages over one text of one choice.
struct Strand {
    chain: Chain,
    pushed: u64,
}

/// The stages over all texts of an answer.
#[derive(Default)]
struct Strands(BTreeMap<(u32, Channel), Strand>);

impl Strands {
    fn of(&mut self, flight: &Flight, choice: u32, channel: Channel) -> &mut Strand {
        self.0.entry((choice, channel)).or_insert_with(|| Strand {
            chain: Chain::new(flight.placed_output(), &flight.context),
            pushed: 0,
        })
    }

    /// Puts what the stages did into the trace.
    fn account(&mut self, flight: &mut Flight) {
        for strand in self.0.values_mut() {
            strand.chain.record(&mut flight.trace.stages);
        }
        self.0.clear();
    }
}

/// Counts what no output stage sees as passed.
fn uncovered(flight: &mut Flight, bytes: u64) {
    let first = flight.output_record(0);
    let count = flight.pipeline.output.len();
    for record in flight.trace.stages.iter_mut().skip(first).take(count) {
        record.passed += bytes;
    }
}

/// Notes what the model said.
fn heard(flight: &mut Flight, choice: u32, channel: Channel, text: &str) {
    if let Some(recorder) = flight.recorder() {
        recorder.heard(choice, channel, text);
    }
}

/// Notes that a choice is complete.
fn ended(flight: &mut Flight, choice: u32) {
    if let Some(recorder) = flight.recorder() {
        recorder.ended(choice);
    }
}

/// Notes text that leaves.
fn leaves(flight: &mut Flight, choice: u32, channel: Channel, text: &str) {
    if let Some(recorder) = flight.recorder() {
        recorder.left(choice, channel, text);
    }
    match channel {
        Channel::Content | Channel::Text => flight.leaves(choice, text),
        _ => flight.leaves_beside(text),
    }
}

fn refusal(flow: Flow) -> Option<ApiError> {
    match flow {
        Flow::Go => None,
        Flow::Stop(error) => Some(error),
        // A remote model cannot be made to say it again: the wish is a refusal.
        Flow::Again { reason, .. } => Some(ApiError::blocked(&reason.code, &reason.message)),
    }
}

/// Reads a whole answer and checks it.
///
/// # Errors
/// It cannot be read, or a stage refused it; the trace is written then.
pub(crate) async fn whole(mut flight: Flight, body: UpstreamBody) -> Result<Bytes, ApiError> {
    let json = match body.whole().await {
        Ok(json) => json,
        Err(error) => return Err(flight.fail(Finish::Error, error).await),
    };
    flight.first_token();
    if flight.pipeline.output.is_empty() && !flight.wants_text() {
        let glance = Glance::parse(&json).unwrap_or_default();
        if let Some(usage) = glance.usage {
            flight.set_usage(usage);
        }
        let finish = glance
            .finish
            .as_deref()
            .map_or(Finish::Other, Finish::of_reason);
        return match flight.end(finish, None).await {
            Ok(()) => Ok(json),
            Err(error) => Err(error.with_trace(flight.trace.id)),
        };
    }
    let mut strands = Strands::default();
    let checked = check_whole(&mut flight, &mut strands, &json).await;
    strands.account(&mut flight);
    match checked {
        Ok((json, finish)) => match flight.end(finish, None).await {
            Ok(()) => Ok(json),
            Err(error) => Err(error.with_trace(flight.trace.id)),
        },
        Err((finish, error)) => Err(flight.fail(finish, error).await),
    }
}

async fn check_whole(
    flight: &mut Flight,
    strands: &mut Strands,
    json: &Bytes,
) -> Result<(Bytes, Finish), (Finish, ApiError)> {
    let nonsense = |why: String| {
        (
            Finish::Error,
            ApiError::upstream(format!("the upstream's answer cannot be read: {why}")),
        )
    };
    let parsed = std::str::from_utf8(json)
        .map_err(|error| error.to_string())
        .and_then(|text| Answer::parse(text).map_err(|error| error.to_string()));
    let answer = match parsed {
        Ok(answer) => answer,
        // No verdict counts: it leaves as it came.
        Err(_) if !flight.must_read() => return Ok((json.clone(), Finish::Other)),
        Err(why) => return Err(nonsense(why)),
    };
    if let Some(usage) = answer.usage {
        flight.set_usage(usage);
    }
    let mut splice = Splice::default();
    let mut finish = Finish::Other;
    for choice in &answer.choices {
        if let Some(reason) = &choice.finish {
            finish = Finish::of_reason(reason);
        }
        uncovered(flight, choice.uncovered);
        let mut changed = false;
        ended(flight, choice.index);
        for found in &choice.texts {
            heard(flight, choice.index, found.channel, &found.text);
            let mut out = Released::default();
            let strand = strands.of(flight, choice.index, found.channel);
            let mut flow = strand
                .chain
                .push(&found.text, strand.pushed, &mut out)
                .await;
            strand.pushed += found.text.len() as u64;
            if matches!(flow, Flow::Go) {
                flow = strand.chain.finish(&mut out).await;
            }
            if let Some(error) = refusal(flow) {
                return Err((Finish::Blocked, error));
            }
            leaves(flight, choice.index, found.channel, &out.text);
            if out.text != found.text {
                changed = true;
                splice.replace_text(found.span.clone(), &out.text);
            }
        }
        if let Some(span) = choice.logprobs.clone().filter(|_| changed) {
            splice.replace(span, "null");
        }
    }
    Ok((splice.apply(json), finish))
}

/// An upstream's stream.
pub(crate) struct UpstreamAnswer {
    flight: Flight,
    body: Option<UpstreamBody>,
    reader: SseReader,
    pending: VecDeque<Event>,
    strands: Strands,
    /// Whether texts have to be looked at.
    reads: bool,
    finish: Option<Finish>,
    /// The last chunk with choices, and where they stand in it: the pattern for chunks of our own.
    pattern: Option<(Bytes, Range<usize>)>,
    ended: bool,
}

impl UpstreamAnswer {
    pub(crate) fn new(flight: Flight, body: UpstreamBody) -> Self {
        let reads = !flight.pipeline.output.is_empty() || flight.wants_text();
        Self {
            flight,
            body: Some(body),
            reader: SseReader::default(),
            pending: VecDeque::new(),
            strands: Strands::default(),
            reads,
            finish: None,
            pattern: None,
            ended: false,
        }
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.reader.next() {
                Ok(Some(event)) => {
                    self.event(event).await;
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    self.stop(Finish::Error, 0, ApiError::upstream(error.to_string()))
                        .await;
                    continue;
                }
            }
            let Some(body) = &mut self.body else {
                // The stream ended without `[DONE]`.
                let rest = std::mem::take(&mut self.reader).rest();
                match rest {
                    Some(event) => self.event(event).await,
                    None if self.finish.is_some() => self.complete().await,
                    None => {
                        let error = ApiError::upstream("the upstream broke off its answer");
                        self.stop(Finish::Error, 0, error).await;
                    }
                }
                continue;
            };
            match body.next().await {
                Ok(Some(piece)) => {
                    self.flight.first_token();
                    self.reader.push(&piece);
                }
                Ok(None) => self.body = None,
                Err(error) => self.stop(Finish::Error, 0, error).await,
            }
        }
    }

    async fn event(&mut self, event: SseEvent) {
        let Some(data) = &event.data else {
            self.pending.push_back(Event::Raw(event.raw)); // a comment: keeps the connection open
            return;
        };
        if data.as_ref() == b"[DONE]" {
            return self.complete().await;
        }
        if !self.reads {
            self.glance(data);
            self.pending.push_back(Event::Raw(event.raw));
            return;
        }
        let data = data.clone();
        let answer = match std::str::from_utf8(&data).ok().map(Answer::parse) {
            Some(Ok(answer)) => answer,
            _ if !self.flight.must_read() => {
                self.glance(&data);
                self.pending.push_back(Event::Raw(event.raw));
                return;
            }
            _ => {
                let error =
                    ApiError::upstream("the upstream's stream holds something that cannot be read");
                return self.stop(Finish::Error, 0, error).await;
            }
        };
        if answer.error.is_some() && !self.flight.must_read() {
            self.finish = Some(Finish::Error);
            self.pending.push_back(Event::Raw(event.raw));
            return;
        }
        if answer.error.is_some() {
            let error = ApiError::upstream("the upstream broke off its answer with an error");
            return self.stop(Finish::Error, 0, error).await;
        }
        self.chunk(event.raw, &data, answer).await;
    }

    /// Notes what a trace needs of a chunk that is passed on.
    fn glance(&mut self, data: &[u8]) {
        if data.starts_with(b"{\"error\"") {
            self.finish = Some(Finish::Error);
            return;
        }
        // Almost every chunk has neither: a look for the words is cheaper than reading it.
        let Some(glance) = worth_reading(data).then(|| Glance::parse(data)).flatten() else {
            return;
        };
        if let Some(usage) = glance.usage {
            self.flight.set_usage(usage);
        }
        if let Some(reason) = glance.finish {
            self.finish = Some(Finish::of_reason(&reason));
        }
    }

    /// A chunk through the stages.
    async fn chunk(&mut self, raw: Bytes, data: &Bytes, answer: Answer) {
        if let Some(usage) = answer.usage {
            self.flight.set_usage(usage);
        }
        if let Some(span) = answer
            .choices_span
            .clone()
            .filter(|_| !answer.choices.is_empty())
        {
            let mut pattern = Splice::default();
            let mut shift = 0;
            if let Some(usage) = answer.usage_span.clone() {
                // A chunk of our own must not say the usage a second time.
                if usage.start < span.start {
                    shift = usage.len() as isize - 4;
                }
                pattern.replace(usage, "null");
            }
            let start = span.start.saturating_add_signed(-shift);
            self.pattern = Some((pattern.apply(data), start..start + span.len()));
        }
        let mut splice = Splice::default();
        let mut worth = answer.usage.is_some() || answer.choices.is_empty();
        let mut stop = None;
        for choice in &answer.choices {
            worth |= choice.others || choice.finish.is_some();
            uncovered(&mut self.flight, choice.uncovered);
            worth |= self.choice(choice, &mut splice, &mut stop).await;
            if let Some(reason) = &choice.finish {
                self.finish = Some(Finish::of_reason(reason));
            }
            if stop.is_some() {
                break;
            }
        }
        if stop.is_some() {
            // What the choices after this one said was not looked at: only what was released may
            // leave, in chunks of our own.
            worth = false;
        }
        if worth {
            self.pending.push_back(Event::Raw(if splice.is_empty() {
                raw
            } else {
                frame(splice, data)
            }));
        }
        if let Some((choice, error)) = stop {
            self.stop(Finish::Blocked, choice, error).await;
        }
    }

    /// One choice of a chunk through the stages. Whether the chunk is worth sending for it.
    async fn choice(
        &mut self,
        choice: &AnswerChoice,
        splice: &mut Splice,
        stop: &mut Option<(u32, ApiError)>,
    ) -> bool {
        let mut worth = false;
        let mut clean = true;
        let mut released: Vec<(Channel, String)> = Vec::new();
        if choice.finish.is_some() {
            ended(&mut self.flight, choice.index);
        }
        for found in &choice.texts {
            heard(&mut self.flight, choice.index, found.channel, &found.text);
            let mut out = Released::default();
            let strand = self.strands.of(&self.flight, choice.index, found.channel);
            let held_nothing = strand.chain.holds_nothing();
            let mut flow = strand
                .chain
                .push(&found.text, strand.pushed, &mut out)
                .await;
            strand.pushed += found.text.len() as u64;
            if choice.finish.is_some() && matches!(flow, Flow::Go) {
                flow = strand.chain.finish(&mut out).await;
                self.retire(choice.index, found.channel);
            } else {
                clean &= held_nothing && strand.chain.holds_nothing();
            }
            clean &= out.text == found.text;
            leaves(&mut self.flight, choice.index, found.channel, &out.text);
            worth |= !out.text.is_empty() || found.text.is_empty();
            if out.text != found.text {
                splice.replace_text(found.span.clone(), &out.text);
            }
            released.push((found.channel, out.text));
            if let Some(error) = refusal(flow) {
                *stop = Some((choice.index, error));
                break;
            }
        }
        // Token probabilities leave only with text that left whole and unchanged.
        if let Some(span) = choice.logprobs.clone().filter(|_| !clean) {
            splice.replace(span, "null");
        }
        if stop.is_some() {
            for (channel, text) in released {
                self.send_alone(choice.index, channel, &text);
            }
        } else if choice.finish.is_some() {
            self.finish_choice(Some(choice.index), stop).await;
        }
        worth
    }

    /// The stages of one text are done.
    fn retire(&mut self, choice: u32, channel: Channel) {
        if let Some(mut strand) = self.strands.0.remove(&(choice, channel)) {
            strand.chain.record(&mut self.flight.trace.stages);
        }
    }

    /// Settles what is held of one choice, or of all: it leaves in chunks of our own.
    async fn finish_choice(&mut self, choice: Option<u32>, stop: &mut Option<(u32, ApiError)>) {
        let keys: Vec<(u32, Channel)> = self
            .strands
            .0
            .keys()
            .copied()
            .filter(|(index, _)| choice.is_none_or(|choice| choice == *index))
            .collect();
        for (index, channel) in keys {
            let Some(mut strand) = self.strands.0.remove(&(index, channel)) else {
                continue;
            };
            let mut out = Released::default();
            let flow = strand.chain.finish(&mut out).await;
            strand.chain.record(&mut self.flight.trace.stages);
            leaves(&mut self.flight, index, channel, &out.text);
            self.send_alone(index, channel, &out.text);
            if let Some(error) = refusal(flow) {
                stop.get_or_insert((index, error));
            }
        }
    }

    /// A chunk of our own with one text, made after the upstream's.
    fn send_alone(&mut self, choice: u32, channel: Channel, text: &str) {
        let Some((pattern, span)) = self.pattern.as_ref().filter(|_| !text.is_empty()) else {
            return;
        };
        let mut choices = vec![b'['];
        choices.extend(channel.alone(choice, text));
        choices.push(b']');
        let mut splice = Splice::default();
        splice.replace(span.clone(), choices);
        self.pending.push_back(Event::Raw(frame(splice, pattern)));
    }

    /// The upstream said that this was all.
    async fn complete(&mut self) {
        let mut stop = None;
        self.finish_choice(None, &mut stop).await;
        if let Some((choice, error)) = stop {
            return self.stop(Finish::Blocked, choice, error).await;
        }
        self.ended = true;
        self.strands.account(&mut self.flight);
        let finish = self.finish.unwrap_or(Finish::Other);
        if let Err(error) = self.flight.end(finish, None).await {
            self.pending
                .push_back(Event::Error(error.with_trace(self.flight.trace.id)));
        }
        self.pending.push_back(Event::Done);
    }

    /// The answer ends here.
    async fn stop(&mut self, finish: Finish, choice: u32, error: ApiError) {
        self.ended = true;
        self.body = None; // closes the connection, and with it the work at the other end
        self.strands.account(&mut self.flight);
        let error = self.flight.fail(finish, error).await;
        self.pending.push_back(match finish {
            Finish::Blocked => Event::Blocked { choice, error },
            _ => Event::Error(error),
        });
        self.pending.push_back(Event::Done);
    }
}

impl Drop for UpstreamAnswer {
    /// The client went away: the trace that the flight writes now says what was done so far.
    fn drop(&mut self) {
        self.strands.account(&mut self.flight);
    }
}

/// Whether a chunk may hold a usage or the reason of an end: one pass over its underscores, of which
/// there are few.
fn worth_reading(data: &[u8]) -> bool {
    let mut at = 0;
    while let Some(rest) = data.get(at..) {
        let Some(found) = rest.iter().position(|byte| *byte == b'_') else {
            return false;
        };
        let (before, word) = data.split_at(at + found);
        let ends = (word.starts_with(b"_reason\":\"") || word.starts_with(b"_reason\": \""))
            && before.ends_with(b"\"finish");
        if ends || word.starts_with(b"_tokens\"") {
            return true;
        }
        at += found + 1;
    }
    false
}

/// A chunk as an event.
fn frame(mut splice: Splice, data: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 64);
    out.extend_from_slice(b"data: ");
    let start = out.len();
    splice.apply_into(data, &mut out);
    // Line ends in JSON stand only between its tokens; in an event they would end the data.
    for byte in out
        .iter_mut()
        .skip(start)
        .filter(|byte| matches!(byte, b'\n' | b'\r'))
    {
        *byte = b' ';
    }
    out.extend_from_slice(b"\n\n");
    out.into()
}
