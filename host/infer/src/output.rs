//! Tokens to text that may leave: whole characters, nothing that may still turn out to be the beginning of a
//! stop string or of a banned one, and nothing after a stop string.

use std::collections::VecDeque;

use crate::Token;

/// What the newest token did to the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// It goes on.
    Nothing,
    /// A stop string begins at this byte.
    Stop { at: usize, text: String },
    /// A banned string begins in the token of this number (of all tokens since the start).
    Banned { token: usize },
}

struct Held {
    token: Token,
    end: usize,
}

/// The text of one answer.
#[derive(Default)]
pub(crate) struct Output {
    stop: Vec<String>,
    ban: Vec<String>,
    bytes: Vec<u8>,
    /// Bytes that have left.
    sent: usize,
    /// Tokens that have left, and the end of the last one's bytes: the last character may have to wait for more.
    released: usize,
    released_end: usize,
    held: VecDeque<Held>,
}

impl Output {
    pub(crate) fn new(stop: Vec<String>, ban: Vec<String>) -> Self {
        Self {
            stop,
            ban,
            ..Self::default()
        }
    }

    /// Adds a token and its bytes, and looks for the strings. Its text is set when it leaves.
    pub(crate) fn push(&mut self, token: Token, bytes: &[u8]) -> Found {
        self.bytes.extend_from_slice(bytes);
        self.held.push_back(Held {
            token,
            end: self.bytes.len(),
        });
        // What leaves is held back while a string can begin in it. But after a rewind other text may follow it, and
        // make one of it after all.
        let first = |strings: &[String]| {
            let found = strings.iter().enumerate().filter_map(|(i, s)| {
                let from = self.sent.saturating_sub(s.len() - 1);
                Some((from + find(&self.bytes[from..], s.as_bytes())?, i))
            });
            found.min()
        };
        match (first(&self.stop), first(&self.ban)) {
            (None, None) => Found::Nothing,
            (stop, Some((at, _))) if stop.is_none_or(|(stop, _)| at < stop) => {
                // Tokens that have left stay: one after them has to be another.
                let before = self.held.iter().take_while(|held| held.end <= at).count();
                Found::Banned {
                    token: self.released + before,
                }
            }
            (Some((at, index)), _) => Found::Stop {
                at: at.max(self.sent),
                text: self.stop[index].clone(),
            },
            (None, Some(_)) => Found::Nothing,
        }
    }

    /// Takes back all tokens from this number on. They have not left.
    pub(crate) fn rewind(&mut self, token: usize) {
        self.held.truncate(token.saturating_sub(self.released));
        self.bytes
            .truncate(self.held.back().map_or(self.released_end, |held| held.end));
    }

    /// The next token that may leave.
    pub(crate) fn next(&mut self) -> Option<Token> {
        let limit = self
            .hold_from()
            .min(whole_characters(&self.bytes, self.bytes.len()));
        self.release(limit, limit)
    }

    /// At the end: the next token, with its text up to `cut`; tokens that begin there are dropped.
    pub(crate) fn next_at_end(&mut self, cut: usize) -> Option<Token> {
        let begins = self.sent;
        if begins >= cut && cut < self.bytes.len() {
            return None;
        }
        let last = self.held.len() == 1 || self.held.front().is_some_and(|held| held.end >= cut);
        if last {
            // What is incomplete now stays incomplete.
            let held = self.held.pop_front()?;
            let text =
                String::from_utf8_lossy(&self.bytes[self.sent..held.end.min(cut)]).into_owned();
            (self.sent, self.released_end) = (held.end, held.end);
            self.released += 1;
            return Some(Token { text, ..held.token });
        }
        self.release(cut, self.bytes.len())
    }

    /// Length of the text so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn release(&mut self, limit: usize, end: usize) -> Option<Token> {
        let front = self.held.front()?;
        if front.end > limit {
            return None;
        }
        let until = whole_characters(&self.bytes, front.end)
            .min(end)
            .max(self.sent);
        let text = String::from_utf8_lossy(&self.bytes[self.sent..until]).into_owned();
        (self.sent, self.released_end) = (until, front.end);
        self.released += 1;
        self.held
            .pop_front()
            .map(|held| Token { text, ..held.token })
    }

    /// Where the first beginning of a stop or banned string at the end of the text begins.
    fn hold_from(&self) -> usize {
        let text = &self.bytes[self.sent..];
        let begins = |s: &String| {
            (0..text.len())
                .find(|at| text.len() - at < s.len() && s.as_bytes().starts_with(&text[*at..]))
        };
        let held = self.stop.iter().chain(&self.ban).filter_map(begins).min();
        held.map_or(self.bytes.len(), |at| self.sent + at)
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

/// The largest length up to `end` at which no character is cut in two.
fn whole_characters(bytes: &[u8], end: usize) -> usize {
    for back in 1..=3.min(end) {
        let length = match bytes[end - back] {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if length > back { end - back } else { end };
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pick(id: u32) -> Token {
        Token {
            id,
            text: String::new(),
            logprob: 0.0,
            entropy: 0.0,
            top: Vec::new(),
        }
    }

    fn drain(output: &mut Output) -> Vec<String> {
        std::iter::from_fn(|| output.next())
            .map(|token| token.text)
            .collect()
    }

    fn drain_end(output: &mut Output, cut: usize) -> Vec<String> {
        std::iter::from_fn(|| output.next_at_end(cut))
            .map(|token| token.text)
            .collect()
    }

    fn strings(of: &[&str]) -> Vec<String> {
        of.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn a_character_of_several_tokens_leaves_with_the_last() {
        let mut output = Output::default();
        let bytes = "a😀b".as_bytes();
        output.push(pick(0), &bytes[..2]);
        assert_eq!(drain(&mut output), Vec::<String>::new());
        output.push(pick(1), &bytes[2..4]);
        assert_eq!(drain(&mut output), Vec::<String>::new());
        output.push(pick(2), &bytes[4..]);
        assert_eq!(drain(&mut output), ["a", "", "😀b"]);
    }

    #[test]
    fn a_banned_string_that_begins_in_what_has_left_is_found_after_a_rewind() {
        let mut output = Output::new(Vec::new(), strings(&["aab"]));
        let mut left = String::new();
        for id in 0..5 {
            assert_eq!(output.push(pick(id), b"a"), Found::Nothing);
            left.extend(drain(&mut output));
        }
        assert_eq!(left, "aaa");
        assert_eq!(output.push(pick(5), b"b"), Found::Banned { token: 3 });
        output.rewind(3);
        assert_eq!(output.push(pick(6), b"b"), Found::Banned { token: 3 });
        output.rewind(3);
        assert_eq!(output.push(pick(7), b"c"), Found::Nothing);
        assert_eq!(drain(&mut output), ["c"]);
    }

    #[test]
    fn what_may_become_a_stop_string_is_held_and_released_when_it_does_not() {
        let mut output = Output::new(strings(&["\nUser:"]), Vec::new());
        output.push(pick(0), b"hi\nUs");
        assert_eq!(drain(&mut output), Vec::<String>::new());
        output.push(pick(1), b"age");
        assert_eq!(drain(&mut output), ["hi\nUs", "age"]);
        output.push(pick(2), b"!\nUse");
        assert_eq!(
            output.push(pick(3), b"r: x"),
            Found::Stop {
                at: 9,
                text: "\nUser:".into()
            }
        );
        assert_eq!(drain_end(&mut output, 9), ["!"]);
    }

    #[test]
    fn incomplete_bytes_at_the_end_become_replacement_characters() {
        let mut output = Output::default();
        output.push(pick(0), b"a");
        output.push(pick(1), &[0xf0, 0x9f]);
        let end = output.len();
        assert_eq!(drain_end(&mut output, end), ["a", "\u{fffd}"]);
    }

    #[test]
    fn a_banned_string_names_the_token_in_which_it_begins_and_rewinding_takes_it_back() {
        let mut output = Output::new(Vec::new(), strings(&["secret"]));
        output.push(pick(0), b"the ");
        assert_eq!(drain(&mut output), ["the "]);
        output.push(pick(1), b"x se");
        assert_eq!(drain(&mut output), Vec::<String>::new());
        assert_eq!(output.push(pick(2), b"cret!"), Found::Banned { token: 1 });
        output.rewind(1);
        output.push(pick(3), b"end");
        assert_eq!(drain(&mut output), ["end"]);
    }

    #[test]
    fn a_stop_string_before_a_banned_one_wins() {
        let mut output = Output::new(strings(&["END"]), strings(&["ND x"]));
        assert_eq!(
            output.push(pick(0), b"END x"),
            Found::Stop {
                at: 0,
                text: "END".into()
            }
        );
        assert_eq!(drain_end(&mut output, 0), Vec::<String>::new());
    }

    proptest! {
        #[test]
        fn any_cut_into_tokens_gives_the_same_text(
            text in "[abU\n é😀]{0,40}", stop in "[abU\né]{1,4}", cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let mut output = Output::new(vec![stop.clone()], Vec::new());
            let mut out = String::new();
            let mut end = None;
            for (id, pair) in places.windows(2).enumerate() {
                match output.push(pick(id as u32), &text.as_bytes()[pair[0]..pair[1]]) {
                    Found::Stop { at, .. } => {
                        end = Some(at);
                        break;
                    }
                    _ => out.extend(drain(&mut output)),
                }
                // Nothing that leaves is ever taken back.
                prop_assert!(text.starts_with(&out));
            }
            let cut = end.unwrap_or(output.len());
            out.extend(drain_end(&mut output, cut));
            prop_assert_eq!(out, text.find(&stop).map_or(text.as_str(), |at| &text[..at]));
        }
    }
}
