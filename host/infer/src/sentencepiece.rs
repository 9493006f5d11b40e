//! SentencePiece's byte-pair encoding, as Llama 1 and 2, Mistral and their kin use it: of all neighbouring
//! pieces whose join is in the vocabulary, the one with the best score is joined, until none is left. Characters
//! that no piece has become bytes.
//!
//! Source of the algorithm: <https://github.com/google/sentencepiece>, `src/bpe_model.cc`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// What stands for a space inside pieces.
pub(crate) const SPACE: char = '\u{2581}';

/// A vocabulary of scored pieces.
pub(crate) struct SentencePiece {
    pieces: HashMap<String, u32>,
    scores: Vec<f32>,
    /// The token of each byte, where there is one.
    bytes: HashMap<u8, u32>,
    unknown: Option<u32>,
    /// A space is put before a text, so that its first word is like the others.
    prefix: bool,
}

/// A piece of the text under way: a range of it, and its neighbours.
#[derive(Clone, Copy)]
struct Part {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that may be joined; best is the higher score, then the earlier place.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Length of the join: when it has changed, one of the two is no longer what it was.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    /// `pieces` are the tokens that text may become, with their ids; `scores` has one for each id.
    pub(crate) fn new(
        pieces: HashMap<String, u32>,
        scores: Vec<f32>,
        bytes: HashMap<u8, u32>,
        unknown: Option<u32>,
        prefix: bool,
    ) -> Self {
        Self {
            pieces,
            scores,
            bytes,
            unknown,
            prefix,
        }
    }

    /// Whether a space is put before a text.
    pub(crate) fn prefix(&self) -> bool {
        self.prefix
    }

    /// Token ids of a text. `beginning`: it is not the rest of another text.
    pub(crate) fn encode(&self, text: &str, beginning: bool, out: &mut Vec<u32>) {
        let mut pieced = String::with_capacity(text.len() + 3);
        if self.prefix && beginning {
            pieced.push(SPACE);
        }
        pieced.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut parts: Vec<Part> = Vec::new();
        for (start, c) in pieced.char_indices() {
            let index = parts.len();
            parts.push(Part {
                start,
                end: start + c.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            });
        }
        if let Some(last) = parts.last_mut() {
            last.next = None;
        }
        let mut pairs = BinaryHeap::new();
        for index in 1..parts.len() {
            self.offer(&pieced, &parts, index - 1, index, &mut pairs);
        }
        while let Some(Pair {
            left, right, len, ..
        }) = pairs.pop()
        {
            let (a, b) = (parts[left], parts[right]);
            if a.next != Some(right) || a.start == a.end || b.end - a.start != len {
                continue;
            }
            parts[left] = Part {
                end: b.end,
                next: b.next,
                ..a
            };
            parts[right] = Part {
                start: b.end,
                next: None,
                previous: None,
                ..b
            };
            if let Some(next) = b.next {
                parts[next].previous = Some(left);
                self.offer(&pieced, &parts, left, next, &mut pairs);
            }
            if let Some(previous) = a.previous {
                self.offer(&pieced, &parts, previous, left, &mut pairs);
            }
        }
        for part in parts.iter().filter(|part| part.start < part.end) {
            let piece = &pieced[part.start..part.end];
            match self.pieces.get(piece) {
                Some(id) => out.push(*id),
                None => out.extend(
                    piece
                        .bytes()
                        .filter_map(|byte| self.bytes.get(&byte).copied().or(self.unknown)),
                ),
            }
        }
    }

    fn offer(
        &self,
        text: &str,
        parts: &[Part],
        left: usize,
        right: usize,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let (start, end) = (parts[left].start, parts[right].end);
        if let Some(id) = self.pieces.get(&text[start..end]) {
            let score = self.scores.get(*id as usize).copied().unwrap_or(f32::MIN);
            pairs.push(Pair {
                score,
                left,
                right,
                len: end - start,
            });
        }
    }
}
