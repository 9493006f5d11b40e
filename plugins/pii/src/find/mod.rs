//! The detectors, a file for each entity. Each looks at one place of the text and says what stands
//! there, how sure it is and why.

pub mod card;
pub mod crypto;
pub mod email;
pub mod iban;
pub mod ip;
pub mod phone;
pub mod ssn;

use crate::cursor::{ALNUM, Cursor, DIGIT, is};
use crate::entity::Entity;

/// Something that looks like personal data, before context words are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// What it is.
    pub entity: Entity,
    /// Its first byte.
    pub start: usize,
    /// The byte behind its last.
    pub end: usize,
    /// How sure the form and the checksum make it, 0 to 1.
    pub score: f32,
    /// Why.
    pub evidence: &'static str,
}

/// Whether a number may begin at `start`: not inside a word, nor behind the point, comma, dash or
/// slash of a longer one.
fn begins(cursor: &Cursor<'_>, start: usize) -> bool {
    let before = cursor.before(start, 1);
    if is(before, ALNUM) || before == b'_' {
        return false;
    }
    !(matches!(before, b'.' | b',' | b'-' | b'/' | b':') && is(cursor.before(start, 2), DIGIT))
}

/// Whether a number may end before `end`.
fn ends(cursor: &Cursor<'_>, end: usize) -> bool {
    let behind = cursor.at(end);
    if is(behind, ALNUM) || behind == b'_' || behind == b'@' {
        return false;
    }
    !(matches!(behind, b'.' | b',' | b'-' | b'/' | b':') && is(cursor.at(end + 1), DIGIT))
}
