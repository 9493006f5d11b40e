//! Tokens that wait for their text to leave. A token, with its probability and its alternatives,
//! leaves only when every byte of its text left as the model gave it; a token whose text a stage
//! changed is dropped, for its alternatives would tell what was masked.

use std::{collections::VecDeque, ops::Range};

use crate::response::TokenLogprob;

/// Tokens that wait for their text to leave.
#[derive(Debug, Default)]
pub(crate) struct TokenHold {
    waiting: VecDeque<(Range<u64>, TokenLogprob)>,
    /// The last stretch of the source that left unchanged.
    clean: Range<u64>,
}

impl TokenHold {
    /// A token and the range of the source that it wrote.
    pub(crate) fn push(&mut self, range: Range<u64>, token: TokenLogprob) {
        self.waiting.push_back((range, token));
    }

    /// These ranges of the source have left unchanged: the tokens that may go with them.
    pub(crate) fn release(&mut self, source: &[Range<u64>]) -> Vec<TokenLogprob> {
        let mut out = Vec::new();
        for range in source {
            if self.clean.end == range.start {
                self.clean.end = range.end;
            } else {
                self.clean = range.clone();
            }
            while let Some((token, _)) = self.waiting.front() {
                // A token without text is a part of the character that the next one completes: it
                // shares that character's fate.
                let decided = if token.is_empty() {
                    token.end < self.clean.end
                } else {
                    token.end <= self.clean.end
                };
                if !decided {
                    break;
                }
                let keep = token.start >= self.clean.start;
                if let Some((_, token)) = self.waiting.pop_front().filter(|_| keep) {
                    out.push(token);
                }
            }
        }
        out
    }

    /// The source was taken back to `keep`.
    pub(crate) fn rewind(&mut self, keep: u64) {
        self.waiting
            .retain(|(range, _)| range.end <= keep && range.start < keep);
        self.clean = 0..0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> TokenLogprob {
        TokenLogprob {
            text: text.into(),
            logprob: Some(-1.0),
            top: Vec::new(),
        }
    }

    fn release(hold: &mut TokenHold, range: Range<u64>) -> Vec<TokenLogprob> {
        hold.release(std::slice::from_ref(&range))
    }

    fn texts(tokens: &[TokenLogprob]) -> Vec<&str> {
        tokens.iter().map(|token| token.text.as_str()).collect()
    }

    #[test]
    fn a_token_leaves_when_all_its_text_has_left_unchanged() {
        let mut hold = TokenHold::default();
        hold.push(0..3, token("abc"));
        hold.push(3..5, token("de"));
        assert!(release(&mut hold, 0..2).is_empty());
        assert_eq!(texts(&release(&mut hold, 2..4)), ["abc"]);
        assert_eq!(texts(&release(&mut hold, 4..5)), ["de"]);
    }

    #[test]
    fn a_token_whose_text_was_changed_never_leaves() {
        let mut hold = TokenHold::default();
        for (range, text) in [
            (0..2, "a "),
            (2..5, "bob"),
            (5..5, ""),
            (5..7, "@x"),
            (7..9, " c"),
        ] {
            hold.push(range, token(text));
        }
        // Bytes 2 to 7 were masked.
        assert_eq!(texts(&hold.release(&[0..2, 7..9])), ["a ", " c"]);
    }
}
