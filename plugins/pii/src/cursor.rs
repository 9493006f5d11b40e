//! Reading a text that may not be complete yet.
//!
//! Every detector reads through a [`Cursor`], which remembers whether anybody looked beyond the end
//! of what has come so far. If nobody did, more text cannot change the answer, so it stands; if
//! somebody did, the candidate is tried again when there is more. That makes the scanner split
//! invariant by construction, and it holds back no byte longer than the detectors need.

use core::cell::Cell;

/// A text, and whether it ends where it ends.
pub struct Cursor<'t> {
    bytes: &'t [u8],
    complete: bool,
    starved: Cell<bool>,
}

impl<'t> Cursor<'t> {
    /// A view of a text; `complete` if nothing will follow.
    pub fn new(bytes: &'t [u8], complete: bool) -> Self {
        Cursor {
            bytes,
            complete,
            starved: Cell::new(false),
        }
    }

    /// The text.
    pub fn bytes(&self) -> &'t [u8] {
        self.bytes
    }

    /// Whether nothing will follow.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A byte; beyond the end 0, which belongs to no class.
    #[inline]
    pub fn at(&self, index: usize) -> u8 {
        match self.bytes.get(index) {
            Some(&byte) => byte,
            None => {
                if !self.complete {
                    self.starved.set(true);
                }
                0
            }
        }
    }

    /// The byte so many places before an index; before the beginning 0.
    #[inline]
    pub fn before(&self, index: usize, places: usize) -> u8 {
        index
            .checked_sub(places)
            .and_then(|at| self.bytes.get(at))
            .copied()
            .unwrap_or(0)
    }

    /// The bytes of a range, cut to what is there.
    pub fn slice(&self, from: usize, to: usize) -> &'t [u8] {
        let to = to.min(self.bytes.len());
        self.bytes.get(from.min(to)..to).unwrap_or_default()
    }

    /// Whether anybody has looked beyond the end since the last call.
    pub fn take_starved(&self) -> bool {
        self.starved.replace(false)
    }

    /// Where a run of bytes of a class that begins at `from` ends; looks at most `most` bytes far,
    /// and at the one behind.
    #[inline]
    pub fn run(&self, from: usize, class: u8, most: usize) -> usize {
        let mut at = from;
        while at - from < most && is(self.at(at), class) {
            at += 1;
        }
        at
    }

    /// Where a run of bytes of a class that ends before `to` begins, not before `floor`.
    #[inline]
    pub fn run_back(&self, to: usize, class: u8, floor: usize) -> usize {
        let mut at = to;
        while at > floor && is(self.before(at, 1), class) {
            at -= 1;
        }
        at
    }
}

/// 0 to 9.
pub const DIGIT: u8 = 1;
/// ASCII letters.
pub const LETTER: u8 = 2;
/// ASCII letters and digits.
pub const ALNUM: u8 = DIGIT | LETTER;
/// A to F in either case.
pub const HEX_LETTER: u8 = 4;
/// Hexadecimal digits.
pub const HEX: u8 = DIGIT | HEX_LETTER;
/// What else the local part of an e-mail address may hold, in practice.
pub const LOCAL_SIGN: u8 = 8;
/// The bytes of two-byte characters from U+00C0 on: letters of the scripts that put spaces between
/// words. (Continuation bytes are those of three-byte characters as well; whoever runs back over
/// them stops at the first byte of such a character and steps forward again.)
pub const WIDE: u8 = 16;
/// The local part of an e-mail address.
pub const LOCAL: u8 = ALNUM | LOCAL_SIGN | WIDE;
/// A colon or an opening parenthesis: what else may stand before the first digit of a match.
pub const OPENING: u8 = 32;

/// The classes of each byte.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        classes[at] = match byte {
            b'0'..=b'9' => DIGIT,
            b'a'..=b'f' | b'A'..=b'F' => LETTER | HEX_LETTER,
            b'g'..=b'z' | b'G'..=b'Z' => LETTER,
            b'.' | b'_' | b'%' | b'+' | b'-' | b'\'' | b'&' | b'~' => LOCAL_SIGN,
            b':' | b'(' => OPENING,
            0x80..=0xbf | 0xc3..=0xdf => WIDE,
            _ => 0,
        };
        at += 1;
    }
    classes
};

/// Whether a byte belongs to a class, or to one of several.
#[inline]
pub fn is(byte: u8, class: u8) -> bool {
    CLASSES[byte as usize] & class != 0
}

/// Whether a byte is inside a character, not its first.
#[inline]
pub fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Where the next digit or `@` is, from `from` on. Nothing that the scanner finds is without one,
/// so this is where nearly all of a clean text passes.
#[inline]
pub fn next_trigger(bytes: &[u8], from: usize) -> Option<usize> {
    let trigger = |byte: u8| byte.wrapping_sub(b'0') < 10 || byte == b'@';
    let rest = bytes.get(from..)?;
    // Whole blocks without branches, which the compiler turns into vector instructions.
    let mut blocks = rest.chunks_exact(32);
    let mut at = from;
    for block in blocks.by_ref() {
        if block.iter().fold(false, |any, &byte| any | trigger(byte)) {
            break;
        }
        at += 32;
    }
    bytes
        .get(at..)?
        .iter()
        .position(|&byte| trigger(byte))
        .map(|distance| at + distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_trigger_is_found_in_and_between_blocks() {
        for trigger in [b'0', b'9', b'@'] {
            for at in 0..100 {
                let mut text = [b'a'; 100];
                text[at] = trigger;
                for from in 0..100 {
                    let expected = (from <= at).then_some(at);
                    assert_eq!(next_trigger(&text, from), expected);
                }
            }
        }
        assert_eq!(next_trigger(b"/:A?.-\x80\xff", 0), None);
        assert_eq!(next_trigger(b"", 7), None);
    }

    #[test]
    fn a_look_beyond_the_end_is_remembered_once_and_only_while_more_may_come() {
        let cursor = Cursor::new(b"ab", false);
        assert_eq!((cursor.at(1), cursor.take_starved()), (b'b', false));
        assert_eq!((cursor.at(2), cursor.take_starved()), (0, true));
        assert!(!cursor.take_starved());
        let cursor = Cursor::new(b"ab", true);
        assert_eq!((cursor.at(2), cursor.take_starved()), (0, false));
    }
}
