//! A model's text with calls of tools in it, in pieces: the text before them, each call's name, and its
//! arguments as they come. The form is that of [`millgate_infer::Grammar::Tools`], which the model was held to.

use millgate_infer::{CALL_BEGINS, CALL_ENDS};

use crate::leaves::{Bit, Leaves};

/// What comes after a call's beginning, before its name.
const NAME: &str = "\n{\"name\": ";
/// What comes after a call's name, before its arguments.
const ARGUMENTS: &str = ", \"arguments\": ";

/// A piece of the text.
#[derive(Debug, PartialEq)]
pub(crate) enum Part {
    /// Text beside the calls, and where it begins.
    Text { text: String, start: u64 },
    /// A call of this tool begins.
    Call(String),
    /// Its arguments go on: JSON, as it was written and taken apart.
    Arguments { text: String, bits: Vec<Bit> },
    /// The arguments are complete.
    Ends,
}

#[derive(Debug)]
enum State {
    Text,
    /// Between a call's beginning and its arguments.
    Head,
    Arguments(Leaves),
    /// Between a call's arguments and its end.
    Tail,
    /// Behind a call: a line break there is no text.
    Behind,
}

/// Reads a text in pieces.
#[derive(Debug)]
pub(crate) struct CallReader {
    state: State,
    /// What is not decided yet, and where it begins.
    held: String,
    start: u64,
}

impl Default for CallReader {
    fn default() -> Self {
        Self {
            state: State::Text,
            held: String::new(),
            start: 0,
        }
    }
}

impl CallReader {
    /// More text.
    pub(crate) fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        self.held.push_str(text);
        while self.step(out) {}
    }

    /// The text ends here.
    pub(crate) fn finish(&mut self, out: &mut Vec<Part>) {
        match &mut self.state {
            State::Text => {
                let all = self.held.len();
                self.text(all, out);
            }
            State::Arguments(leaves) => {
                // Cut off.
                let mut bits = Vec::new();
                leaves.finish(&mut bits);
                let text = String::new();
                out.extend([Part::Arguments { text, bits }, Part::Ends]);
            }
            State::Head | State::Tail | State::Behind => {}
        }
    }

    /// Whether there may be more to do with what is held.
    fn step(&mut self, out: &mut Vec<Part>) -> bool {
        match &mut self.state {
            State::Text => match self.held.find(CALL_BEGINS) {
                Some(at) => {
                    self.text(at, out);
                    self.skip(CALL_BEGINS.len());
                    self.state = State::Head;
                    true
                }
                None => {
                    let free = self.held.len() - beginning(&self.held, CALL_BEGINS);
                    self.text(free, out);
                    false
                }
            },
            State::Head => {
                // The name is a JSON string that holds no quote: names of tools are letters, digits, _ and -.
                let name = self.held.strip_prefix(NAME).and_then(|rest| {
                    let (name, rest) = rest.strip_prefix('"')?.split_once('"')?;
                    rest.starts_with(ARGUMENTS).then(|| name.to_owned())
                });
                let Some(name) = name else {
                    return false;
                };
                self.skip(NAME.len() + name.len() + 2 + ARGUMENTS.len());
                out.push(Part::Call(name));
                self.state = State::Arguments(Leaves::default());
                true
            }
            State::Arguments(leaves) => {
                let mut bits = Vec::new();
                let taken = leaves.push(&self.held, self.start, &mut bits);
                let done = leaves.done();
                if taken > 0 {
                    let text = self.held[..taken].to_owned();
                    self.skip(taken);
                    out.push(Part::Arguments { text, bits });
                }
                if done {
                    out.push(Part::Ends);
                    self.state = State::Tail;
                }
                done
            }
            State::Tail => match self.held.find(CALL_ENDS) {
                Some(at) => {
                    self.skip(at + CALL_ENDS.len());
                    self.state = State::Behind;
                    true
                }
                None => false,
            },
            State::Behind => {
                if self.held.is_empty() {
                    return false;
                }
                if self.held.starts_with('\n') {
                    self.skip(1);
                }
                self.state = State::Text;
                true
            }
        }
    }

    fn text(&mut self, len: usize, out: &mut Vec<Part>) {
        if len > 0 {
            let (text, start) = (self.held[..len].to_owned(), self.start);
            self.skip(len);
            out.push(Part::Text { text, start });
        }
    }

    fn skip(&mut self, len: usize) {
        self.held.drain(..len);
        self.start += len as u64;
    }
}

/// Bytes at the end of a text that a word may begin with.
fn beginning(text: &str, word: &str) -> usize {
    (1..word.len().min(text.len() + 1))
        .rev()
        .find(|len| {
            text.is_char_boundary(text.len() - len) && word.starts_with(&text[text.len() - len..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "Wait: 1 <2, <tool é.<tool_call>\n{\"name\": \"mail\", \"arguments\": {\"to\": \"}</tool_call>\", \"n\": [1, {}]}}\n</tool_call>\n<tool_call>\n{\"name\": \"b-2\", \"arguments\": {}}\n</tool_call>";

    /// Text, then each call as `name(arguments)`.
    fn read(pieces: &[&str]) -> String {
        let (mut reader, mut parts) = (CallReader::default(), Vec::new());
        pieces
            .iter()
            .for_each(|piece| reader.push(piece, &mut parts));
        reader.finish(&mut parts);
        let shown = parts.into_iter().map(|part| match part {
            Part::Text { text, .. } => text,
            Part::Call(name) => format!("|{name}("),
            Part::Arguments { text, .. } => text,
            Part::Ends => ")".into(),
        });
        shown.collect()
    }

    #[test]
    fn what_is_cut_off_is_as_far_as_it_came() {
        assert_eq!(read(&["so <tool_ca"]), "so <tool_ca");
        assert_eq!(read(&["so <tool_call>\n{\"name\": \"ma"]), "so ");
        assert_eq!(
            read(&["<tool_call>\n{\"name\": \"mail\", \"arguments\": {\"to"]),
            "|mail({\"to)"
        );
    }

    proptest! {
        #[test]
        fn calls_are_found_however_the_text_is_cut(cuts in prop::collection::vec(0..TEXT.len(), 0..12)) {
            let mut places: Vec<usize> = cuts.into_iter().filter(|at| TEXT.is_char_boundary(*at)).collect();
            places.extend([0, TEXT.len()]);
            places.sort_unstable();
            let pieces: Vec<&str> = places.windows(2).map(|pair| &TEXT[pair[0]..pair[1]]).collect();
            prop_assert_eq!(
                read(&pieces),
                "Wait: 1 <2, <tool é.|mail({\"to\": \"}</tool_call>\", \"n\": [1, {}]})|b-2({})"
            );
        }
    }
}
