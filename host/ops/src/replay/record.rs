//! What is kept of a request so that its stages can be run again: the request as it came, the
//! answer as the model gave it, what each stage decided, and the tape of the stages' calls.
//!
//! A record is two parts, each compressed by itself: the [`Source`], which a backtest reads, and
//! the [`Recorded`] tape, which a replay reads.

use std::cell::RefCell;

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
/// The level that zstd compresses at: the fastest of its usual ones, since every request pays.
const LEVEL: i32 = 1;
/// The most bytes of one part, uncompressed.
const MAX_PART: usize = 64 << 20;

/// A request from before any stage, its answer from before any stage, and what became of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Source {
    pub at_ms: u64,
    pub tenant: String,
    pub model: String,
    pub language: String,
    pub endpoint: Endpoint,
    pub pipeline: String,
    pub generation: u64,
    /// `sha256:HEX` of the config that served it.
    pub config: String,
    pub finish: Finish,
    /// The body as it came, as a chat where it came as a response.
    pub body: String,
    /// Whether the input stages let it through to the model.
    pub departed: bool,
    /// Texts of the request that input stages changed, by their place among the segments.
    pub changed: Vec<(u32, String)>,
    pub stages: Vec<Then>,
    pub answer: Option<Heard>,
}

/// What one stage did in one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Then {
    pub stage: String,
    pub place: Place,
    pub plugin: String,
    pub digest: String,
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
pub(crate) struct Heard {
    /// Of a local model's text; `None`: an upstream's.
    pub form: Option<Form>,
    /// All pieces, one after the other.
    pub text: String,
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

impl Heard {
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

    /// All of one text.
    pub(crate) fn whole(&self, choice: u32, channel: Channel) -> String {
        let own = self
            .pieces()
            .filter(|(piece, _)| (piece.choice, piece.channel) == (choice, channel));
        own.map(|(_, text)| text).collect()
    }

    pub(crate) fn push(&mut self, choice: u32, channel: Channel, text: &str) {
        self.text.push_str(text);
        self.pieces.push(Piece {
            choice,
            channel,
            len: u32::try_from(text.len()).unwrap_or(u32::MAX),
        });
    }

    /// Forgets all of one choice.
    pub(crate) fn forget(&mut self, choice: u32) {
        let old = std::mem::take(self);
        for (piece, text) in old.pieces().filter(|(piece, _)| piece.choice != choice) {
            self.push(piece.choice, piece.channel, text);
        }
        self.form = old.form;
        self.ended = old.ended;
    }
}

/// What a trace says about its input and output stages.
pub(crate) fn then(trace: &Trace) -> Vec<Then> {
    let placed = trace
        .stages
        .iter()
        .filter(|record| matches!(record.place, Place::Input | Place::Output));
    let then = placed.map(|record| Then {
        stage: record.stage.to_string(),
        place: record.place,
        plugin: record.plugin.to_string(),
        digest: record.digest.to_string(),
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
    static PACK: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// A record's bytes, before they are sealed.
pub(crate) fn encode(source: &Source, recorded: &Recorded) -> Result<Vec<u8>, String> {
    let source = part(&postcard::to_allocvec(source).map_err(|error| error.to_string())?)?;
    let recorded = part(&postcard::to_allocvec(recorded).map_err(|error| error.to_string())?)?;
    let mut out = Vec::with_capacity(5 + source.len() + recorded.len());
    out.push(VERSION);
    out.extend_from_slice(&u32::try_from(source.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&source);
    out.extend_from_slice(&recorded);
    Ok(out)
}

/// The source in a record's bytes.
pub(crate) fn source(bytes: &[u8]) -> Result<Source, String> {
    let (source, _) = parts(bytes)?;
    let plain = unpack(source)?;
    postcard::from_bytes(&plain).map_err(|error| unreadable(&error))
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

fn part(plain: &[u8]) -> Result<Vec<u8>, String> {
    PACK.with_borrow_mut(|pack| {
        if pack.is_none() {
            *pack = Some(zstd::bulk::Compressor::new(LEVEL).map_err(|error| error.to_string())?);
        }
        match pack {
            Some(pack) => pack.compress(plain).map_err(|error| error.to_string()),
            None => Err("no compressor".to_owned()),
        }
    })
}

fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    UNPACK.with_borrow_mut(|unpack| {
        if unpack.is_none() {
            *unpack = Some(zstd::bulk::Decompressor::new().map_err(|error| unreadable(&error))?);
        }
        let size = zstd::zstd_safe::get_frame_content_size(packed).ok().flatten();
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

    pub(crate) fn example() -> (Source, Recorded) {
        let mut heard = Heard::default();
        heard.push(0, Channel::Content, "hello ");
        heard.push(1, Channel::ToolArguments(2), "{}");
        heard.push(0, Channel::Content, "there");
        let source = Source {
            at_ms: 5,
            tenant: "t".into(),
            model: "m".into(),
            language: String::new(),
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
        assert_eq!(source(&bytes).unwrap(), written);
        assert_eq!(recorded(&bytes).unwrap(), tape);
        assert_eq!(written.answer.unwrap().whole(0, Channel::Content), "hello there");
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_said() {
        let (written, tape) = example();
        let bytes = encode(&written, &tape).unwrap();
        for cut in [0, 1, 4, 10, bytes.len() - 1] {
            assert!(source(&bytes[..cut]).is_err() || recorded(&bytes[..cut]).is_err());
        }
        let mut other = bytes.clone();
        other[0] = 9;
        assert!(source(&other).unwrap_err().contains("version 9"));
    }

    #[test]
    fn a_choice_that_is_said_again_leaves_the_others() {
        let (written, _) = example();
        let mut heard = written.answer.unwrap();
        heard.forget(0);
        heard.push(0, Channel::Content, "again");
        assert_eq!(heard.whole(0, Channel::Content), "again");
        assert_eq!(heard.whole(1, Channel::ToolArguments(2)), "{}");
    }
}
