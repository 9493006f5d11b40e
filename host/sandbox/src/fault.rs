//! A plugin's last words: the text of its panic, bounded, and fit to be logged.

/// The most bytes of panic text that are kept.
const MAX_BYTES: usize = 1024;

/// The panic text as it comes in, either in words of 32 bytes through `fault.report` or on
/// standard error.
#[derive(Default)]
pub(crate) struct Fault {
    bytes: Vec<u8>,
    /// The whole length as reported, for the last piece's padding.
    length: usize,
}

impl Fault {
    /// Thirty-two more bytes of a text of `length` bytes.
    pub(crate) fn report(&mut self, length: u32, words: [u64; 4]) {
        self.length = length as usize;
        for word in words {
            self.write(&word.to_le_bytes());
        }
        self.bytes.truncate(self.length);
    }

    /// More of what the plugin writes to standard output or error.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let room = MAX_BYTES.saturating_sub(self.bytes.len());
        self.bytes
            .extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }

    /// Whether anything was said.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The text: valid UTF-8, one line, without control characters.
    pub(crate) fn text(&self) -> String {
        let cut = self.length > MAX_BYTES || self.bytes.len() == MAX_BYTES;
        let mut text = scrub(&String::from_utf8_lossy(&self.bytes));
        if cut {
            text.push('…');
        }
        text
    }
}

/// Makes a guest's text fit for logs and terminals: control characters (escape sequences, line
/// breaks) become spaces, and so do the marks that reorder or hide text.
pub(crate) fn scrub(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hidden = c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffd}');
        match hidden {
            true if out.ends_with(' ') => {}
            true => out.push(' '),
            false => out.push(c),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// At most `limit` bytes of a text, cut on a character boundary.
pub(crate) fn clip(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[u8]) -> Vec<[u64; 4]> {
        text.chunks(32)
            .map(|chunk| {
                let mut padded = [0; 32];
                padded[..chunk.len()].copy_from_slice(chunk);
                std::array::from_fn(|i| {
                    u64::from_le_bytes(padded[i * 8..i * 8 + 8].try_into().unwrap())
                })
            })
            .collect()
    }

    fn told(text: &str) -> String {
        let mut fault = Fault::default();
        for piece in words(text.as_bytes()) {
            fault.report(text.len() as u32, piece);
        }
        fault.text()
    }

    #[test]
    fn a_panic_text_arrives_whole() {
        for text in [
            "x",
            "src/lib.rs:12:5: index out of bounds: the len is 3 but the index is 7",
        ] {
            assert_eq!(told(text), text);
        }
    }

    #[test]
    fn a_long_text_is_cut() {
        let text = told(&"long ".repeat(1000));
        assert!(text.len() <= MAX_BYTES + '…'.len_utf8() && text.ends_with('…'));
    }

    #[test]
    fn escape_sequences_and_line_breaks_are_taken_out() {
        assert_eq!(scrub("a\x1b[31mred\r\n\u{202e}b\0"), "a [31mred b");
    }

    #[test]
    fn a_lie_about_the_length_does_no_harm() {
        let mut fault = Fault::default();
        fault.report(u32::MAX, [u64::MAX; 4]);
        fault.report(0, [u64::MAX; 4]);
        assert_eq!(fault.text(), "");
    }
}
