//! JSON that arrives in pieces, taken apart into what stages check and what they do not: the texts of its
//! strings, decoded, and its numbers; and the syntax between them. So a stage sees what a reader of the JSON
//! would see, whatever it is escaped as, and what it changes is put back without breaking the JSON.

/// A piece of JSON.
#[derive(Debug, PartialEq)]
pub(crate) enum Bit {
    /// Syntax as it stands: brackets, commas, white space, `true`; and where it begins.
    Syntax { text: String, start: u64 },
    /// A string begins. Its opening quote is at this place.
    Opens(u64),
    /// Text of the string, decoded, and where what it was decoded from begins.
    Text { text: String, start: u64 },
    /// The string ends. Its closing quote is at this place.
    Closes(u64),
    /// A whole number.
    Number { text: String, start: u64 },
}

/// Where it stands.
#[derive(Debug, Default)]
enum State {
    #[default]
    Between,
    Number {
        text: String,
        start: u64,
    },
    String,
    /// After a backslash: what came since, and where the escape begins.
    Escape {
        text: String,
        start: u64,
    },
    /// After the first half of a character that two `\u` make.
    Surrogate {
        high: u32,
        start: u64,
    },
}

/// Reads JSON in pieces.
#[derive(Debug, Default)]
pub(crate) struct Leaves {
    state: State,
    depth: u32,
    /// The outermost object or array has ended.
    done: bool,
}

impl Leaves {
    /// More JSON, which begins at offset `start` of the whole. Gives the bytes that belong to it: the rest
    /// stands behind the end of the outermost object or array.
    pub(crate) fn push(&mut self, text: &str, start: u64, out: &mut Vec<Bit>) -> usize {
        for (at, c) in text.char_indices() {
            if self.done {
                return at;
            }
            self.take(c, start + at as u64, out);
        }
        text.len()
    }

    /// Whether the outermost object or array has ended.
    pub(crate) fn done(&self) -> bool {
        self.done
    }

    /// The JSON ends here, complete or cut off: what is held leaves.
    pub(crate) fn finish(&mut self, out: &mut Vec<Bit>) {
        if let State::Number { text, start } = std::mem::take(&mut self.state) {
            out.push(Bit::Number { text, start });
        }
    }

    fn take(&mut self, c: char, at: u64, out: &mut Vec<Bit>) {
        match std::mem::take(&mut self.state) {
            State::Number { mut text, start } => {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-') {
                    text.push(c);
                    self.state = State::Number { text, start };
                } else {
                    out.push(Bit::Number { text, start });
                    self.between(c, at, out);
                }
            }
            State::Between => self.between(c, at, out),
            State::String => self.in_string(c, at, out),
            State::Surrogate { high, start } => {
                if c == '\\' {
                    // The escape keeps the half in front of it.
                    self.state = State::Escape {
                        text: format!("u{high:04x}\\"),
                        start,
                    };
                } else {
                    text(out, "\u{fffd}", start);
                    self.in_string(c, at, out);
                }
            }
            State::Escape { text, start } => self.in_escape(text, start, c, out),
        }
    }

    fn between(&mut self, c: char, at: u64, out: &mut Vec<Bit>) {
        match c {
            '"' => {
                out.push(Bit::Opens(at));
                self.state = State::String;
                return;
            }
            '-' | '0'..='9' => {
                let text = c.to_string();
                self.state = State::Number { text, start: at };
                return;
            }
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                self.done = self.depth == 0;
            }
            _ => {}
        }
        match out.last_mut() {
            Some(Bit::Syntax { text, start }) if *start + text.len() as u64 == at => text.push(c),
            _ => out.push(Bit::Syntax {
                text: c.to_string(),
                start: at,
            }),
        }
    }

    fn in_string(&mut self, c: char, at: u64, out: &mut Vec<Bit>) {
        match c {
            '"' => out.push(Bit::Closes(at)),
            '\\' => {
                self.state = State::Escape {
                    text: String::new(),
                    start: at,
                };
            }
            _ => {
                text(out, c.encode_utf8(&mut [0; 4]), at);
                self.state = State::String;
            }
        }
    }

    fn in_escape(&mut self, mut seen: String, start: u64, c: char, out: &mut Vec<Bit>) {
        seen.push(c);
        self.state = State::String;
        let (high, escape) = match seen.split_once('\\') {
            Some((high, escape)) => (number(high), escape),
            None => (None, &*seen),
        };
        let decoded = match escape.as_bytes() {
            [b'u', digits @ ..] if digits.len() < 4 && c != '"' => {
                self.state = State::Escape { text: seen, start };
                return;
            }
            [b'u', ..] => match (high, number(escape)) {
                (None, Some(high @ 0xd800..0xdc00)) => {
                    self.state = State::Surrogate { high, start };
                    return;
                }
                (Some(high), Some(low @ 0xdc00..0xe000)) => {
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))
                }
                (None, Some(code)) => char::from_u32(code),
                _ => None,
            },
            [b'n'] => Some('\n'),
            [b't'] => Some('\t'),
            [b'r'] => Some('\r'),
            [b'b'] => Some('\u{8}'),
            [b'f'] => Some('\u{c}'),
            _ => Some(c),
        };
        let decoded = decoded.unwrap_or('\u{fffd}');
        text(out, decoded.encode_utf8(&mut [0; 4]), start);
    }
}

/// The number in `uXXXX`.
fn number(escape: &str) -> Option<u32> {
    u32::from_str_radix(escape.get(1..5)?, 16).ok()
}

/// Adds decoded text; what stood one to one in the source is put together.
fn text(out: &mut Vec<Bit>, more: &str, at: u64) {
    match out.last_mut() {
        Some(Bit::Text { text, start }) if *start + text.len() as u64 == at => text.push_str(more),
        _ => out.push(Bit::Text {
            text: more.to_owned(),
            start: at,
        }),
    }
}

/// A text as it stands between the quotes of a JSON string.
pub(crate) fn escaped(text: &str) -> String {
    let mut quoted = serde_json::Value::from(text).to_string();
    quoted.pop();
    quoted.drain(..1);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// The JSON put together again, and all that a stage would have seen.
    fn again(pieces: &[&str]) -> (String, Vec<String>) {
        let (mut leaves, mut bits, mut at) = (Leaves::default(), Vec::new(), 0);
        for piece in pieces {
            assert_eq!(leaves.push(piece, at, &mut bits), piece.len());
            at += piece.len() as u64;
        }
        leaves.finish(&mut bits);
        let (mut json, mut seen) = (String::new(), Vec::new());
        for bit in bits {
            match bit {
                Bit::Syntax { text, .. } => json += &text,
                Bit::Opens(_) => {
                    json.push('"');
                    seen.push(String::new());
                }
                Bit::Text { text, .. } => {
                    json += &escaped(&text);
                    *seen.last_mut().unwrap() += &text;
                }
                Bit::Closes(_) => json.push('"'),
                Bit::Number { text, .. } => {
                    json += &text;
                    seen.push(text);
                }
            }
        }
        (json, seen)
    }

    #[test]
    fn strings_are_decoded_and_numbers_are_whole() {
        let json = r#"{"a\u0040b": ["\ud83d\ude00\n\"x\"", -4111.5e3, true], "c": "\ud83dz"}"#;
        let pieces: Vec<String> = json.chars().map(String::from).collect();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let (_, seen) = again(&pieces);
        assert_eq!(
            seen,
            ["a@b", "\u{1f600}\n\"x\"", "-4111.5e3", "c", "\u{fffd}z"]
        );
    }

    #[test]
    fn what_follows_the_value_is_not_taken() {
        let (mut leaves, mut bits) = (Leaves::default(), Vec::new());
        assert_eq!(leaves.push("{\"}\": [1]}}\n</tool", 0, &mut bits), 10);
        assert!(leaves.done());
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<String>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            Just(Value::Null),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..4).prop_map(|fields| fields
                    .into_iter()
                    .collect::<serde_json::Map<_, _>>()
                    .into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_same_json_comes_out_however_it_is_cut(value in value(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
            let json = serde_json::json!([value]).to_string();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(json.len() + 1)).filter(|at| json.is_char_boundary(*at)).collect();
            places.extend([0, json.len()]);
            places.sort_unstable();
            let pieces: Vec<&str> = places.windows(2).map(|pair| &json[pair[0]..pair[1]]).collect();
            let (out, _) = again(&pieces);
            prop_assert_eq!(out, json);
        }
    }
}
