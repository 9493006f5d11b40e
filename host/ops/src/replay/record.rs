//! What is kept of a request so that its stages can be run again: the request as it came, the
//! answer as the model gave it, what each stage decided, and the tape of the stages' calls.
//!
//! A record is two parts, each compressed by itself: the [`Source`], which a backtest reads, and
//! the [`Recorded`] tape, which a replay reads.

use std::{borrow::Cow, cell::RefCell};

use bytes::Bytes;
use millgate_sandbox::tape::Recorded;
use serde::{Deserialize, Serialize};

use crate::{
    answer::Channel,
    outlet::Form,
    request::Endpoint,
    trace::{Finish, Place, StageVerdict, Trace},
};

/// The first byte of a record.
const VERSION: u8 = 1;
/// The levels that zstd compresses at. The source is read by every backtest, so its literals stay as
/// they are: that reads several times as fast and takes half as much space again.
const SOURCE_LEVEL: i32 = -1;
const TAPE_LEVEL: i32 = 1;
/// The most bytes of one part, uncompressed.
const MAX_PART: usize = 64 << 20;

/// A request from before any stage, its answer from before any stage, and what became of them.
/// Texts are borrowed where it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Source<'a> {
    pub at_ms: u64,
    #[serde(borrow)]
    pub tenant: Cow<'a, str>,
    #[serde(borrow)]
    pub model: Cow<'a, str>,
    #[serde(borrow)]
    pub language: Cow<'a, str>,
    pub endpoint: Endpoint,
    #[serde(borrow)]
    pub pipeline: Cow<'a, str>,
    pub generation: u64,
    /// `sha256:HEX` of the config that served it.
    #[serde(borrow)]
    pub config: Cow<'a, str>,
    pub finish: Finish,
    /// The body as it came, as a chat where it came as a response.
    #[serde(borrow)]
    pub body: Cow<'a, str>,
    /// Whether the input stages let it through to the model.
    pub departed: bool,
    /// Texts of the request that input stages changed, by their place among the segments.
    pub changed: Vec<(u32, String)>,
    #[serde(borrow)]
    pub stages: Vec<Then<'a>>,
    #[serde(borrow)]
    pub answer: Option<Heard<'a>>,
}

/// What one stage did in one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Then<'a> {
    #[serde(borrow)]
    pub stage: Cow<'a, str>,
    pub place: Place,
    #[serde(borrow)]
    pub plugin: Cow<'a, str>,
    #[serde(borrow)]
    pub digest: Cow<'a, str>,
    pub verdict: StageVerdict,
    pub passed: u64,
    pub given: u64,
    pub edits: u32,
    pub findings: u32,
    pub calls: u32,
    pub micros: u64,
    pub failure: Option<String>,
}

/// The answer as the model gave it, piece by piece.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Heard<'a> {
    /// Of a local model's text; `None`: an upstream's.
    pub form: Option<Form>,
    /// All pieces, one after the other.
    #[serde(borrow)]
    pub text: Cow<'a, str>,
    pub pieces: Vec<Piece>,
    /// The choices that came to their end.
    pub ended: Vec<u32>,
    /// The texts that left, where stages changed them.
    pub left: Vec<(u32, Channel, String)>,
}

/// A piece of one choice's text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub choice: u32,
    pub channel: Channel,
    pub len: u32,
}

impl Heard<'_> {
    /// The pieces with their texts.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Piece, &str)> {
        let mut at = 0;
        self.pieces.iter().map(move |piece| {
            let end = at + piece.len as usize;
            let text = self.text.get(at..end).unwrap_or_default();
            at = end;
            (*piece, text)
        })
    }

    /// Whether all of one text is this one.
    pub(crate) fn is(&self, choice: u32, channel: Channel, mut text: &str) -> bool {
        for (piece, own) in self.pieces() {
            if (piece.choice, piece.channel) != (choice, channel) {
                continue;
            }
            match text.strip_prefix(own) {
                Some(rest) => text = rest,
                None => return false,
            }
        }
        text.is_empty()
    }

    pub(crate) fn push(&mut self, choice: u32, channel: Channel, text: &str) {
        self.text.to_mut().push_str(text);
        self.pieces.push(Piece {
            choice,
            channel,
            len: u32::try_from(text.len()).unwrap_or(u32::MAX),
        });
    }

    /// Forgets all of one choice.
    pub(crate) fn forget(&mut self, choice: u32) {
        let mut old = std::mem::take(self);
        for (piece, text) in old.pieces().filter(|(piece, _)| piece.choice != choice) {
            self.push(piece.choice, piece.channel, text);
        }
        self.form = old.form;
        self.ended = std::mem::take(&mut old.ended);
    }
}

/// What a trace says about its input and output stages.
pub(crate) fn then(trace: &Trace) -> Vec<Then<'static>> {
    let placed = trace
        .stages
        .iter()
        .filter(|record| matches!(record.place, Place::Input | Place::Output));
    let then = placed.map(|record| Then {
        stage: record.stage.to_string().into(),
        place: record.place,
        plugin: record.plugin.to_string().into(),
        digest: record.digest.to_string().into(),
        verdict: record.verdict,
        passed: record.passed,
        given: record.given,
        edits: record.edits,
        findings: u32::try_from(record.findings.len())
            .unwrap_or(u32::MAX)
            .saturating_add(record.findings_dropped),
        calls: record.calls,
        micros: record.micros,
        failure: record.failure.as_ref().map(|failure| failure.kind.clone()),
    });
    then.collect()
}

thread_local! {
    static UNPACK: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// A record's bytes, before they are sealed.
pub(crate) fn encode(source: &Source<'_>, recorded: &Recorded) -> Result<Vec<u8>, String> {
    let pack = |plain: postcard::Result<Vec<u8>>, level| {
        let plain = plain.map_err(|error| error.to_string())?;
        zstd::bulk::compress(&plain, level).map_err(|error| error.to_string())
    };
    let source = pack(postcard::to_allocvec(source), SOURCE_LEVEL)?;
    let recorded = pack(postcard::to_allocvec(recorded), TAPE_LEVEL)?;
    let mut out = Vec::with_capacity(5 + source.len() + recorded.len());
    out.push(VERSION);
    out.extend_from_slice(
        &u32::try_from(source.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    out.extend_from_slice(&source);
    out.extend_from_slice(&recorded);
    Ok(out)
}

/// The bytes of the source in a record's bytes.
pub(crate) fn source_bytes(bytes: &[u8]) -> Result<Bytes, String> {
    let (source, _) = parts(bytes)?;
    unpack(source).map(Bytes::from)
}

/// A source; it borrows from its bytes.
pub(crate) fn source(plain: &[u8]) -> Result<Source<'_>, String> {
    postcard::from_bytes(plain).map_err(|error| unreadable(&error))
}

/// The tape in a record's bytes.
pub(crate) fn recorded(bytes: &[u8]) -> Result<Recorded, String> {
    let (_, recorded) = parts(bytes)?;
    let plain = unpack(recorded)?;
    postcard::from_bytes(&plain).map_err(|error| unreadable(&error))
}

fn unreadable(error: &dyn std::fmt::Display) -> String {
    format!("its record cannot be read ({error}); it is of another version of Millgate, or damaged")
}

fn parts(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    match bytes {
        [VERSION, a, b, c, d, rest @ ..] => {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            rest.split_at_checked(length)
                .ok_or_else(|| unreadable(&"it is cut off"))
        }
        [other, ..] => Err(unreadable(&format!("version {other}"))),
        [] => Err(unreadable(&"it is empty")),
    }
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    UNPACK.with_borrow_mut(|unpack| {
        if unpack.is_none() {
            *unpack = Some(zstd::bulk::Decompressor::new().map_err(|error| unreadable(&error))?);
        }
        let size = zstd::zstd_safe::get_frame_content_size(packed)
            .ok()
            .flatten();
        let size = usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX);
        match unpack {
            Some(unpack) if size <= MAX_PART => unpack
                .decompress(packed, size)
                .map_err(|error| unreadable(&error)),
            _ => Err(unreadable(&"its size is wrong")),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use millgate_sandbox::{
        Direction, Verdict,
        tape::{Call, Input, Outcome, Session, TapedStage},
    };

    pub(crate) fn example() -> (Source<'static>, Recorded) {
        let mut heard = Heard::default();
        heard.push(0, Channel::Content, "hello ");
        heard.push(1, Channel::ToolArguments(2), "{}");
        heard.push(0, Channel::Content, "there");
        let source = Source {
            at_ms: 5,
            tenant: "t".into(),
            model: "m".into(),
            language: "".into(),
            endpoint: Endpoint::Chat,
            pipeline: "p".into(),
            generation: 3,
            config: "sha256:00".into(),
            finish: Finish::Stop,
            body: "{}".into(),
            departed: true,
            changed: vec![(0, "x".into())],
            stages: Vec::new(),
            answer: Some(heard),
        };
        let recorded = Recorded {
            stages: vec![TapedStage {
                name: "pii".into(),
                identity: "sha256:01".into(),
                plugin: "sha256:02".into(),
            }],
            sessions: vec![Session {
                stage: 0,
                direction: Direction::Output,
                role: "assistant".into(),
                calls: vec![Call {
                    input: Input::Push(vec!["hello ".into()]),
                    outcome: Outcome::Verdict(Verdict::default()),
                }],
                asked: Vec::new(),
            }],
        };
        (source, recorded)
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let (written, tape) = example();
        let bytes = encode(&written, &tape).unwrap();
        let plain = source_bytes(&bytes).unwrap();
        assert_eq!(source(&plain).unwrap(), written);
        assert_eq!(recorded(&bytes).unwrap(), tape);
        let heard = written.answer.unwrap();
        assert!(heard.is(0, Channel::Content, "hello there"));
        for other in ["hello ther", "hello there!", "hello", ""] {
            assert!(!heard.is(0, Channel::Content, other), "{other}");
        }
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_said() {
        let (written, tape) = example();
        let bytes = encode(&written, &tape).unwrap();
        for cut in [0, 1, 4, 10, bytes.len() - 1] {
            assert!(source_bytes(&bytes[..cut]).is_err() || recorded(&bytes[..cut]).is_err());
        }
        let mut other = bytes.clone();
        other[0] = 9;
        assert!(source_bytes(&other).unwrap_err().contains("version 9"));
    }

    #[test]
    fn a_choice_that_is_said_again_leaves_the_others() {
        let (written, _) = example();
        let mut heard = written.answer.unwrap();
        heard.forget(0);
        heard.push(0, Channel::Content, "again");
        assert!(heard.is(0, Channel::Content, "again"));
        assert!(heard.is(1, Channel::ToolArguments(2), "{}"));
    }
}
