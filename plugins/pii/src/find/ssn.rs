//! United States Social Security Numbers: three, two and four digits. There is no checksum, so the
//! numbers that were never issued are refused, and nine digits in one piece need a context word.

use super::{Candidate, begins, ends};
use crate::cursor::{Cursor, DIGIT, is};
use crate::entity::Entity;

/// The number that begins with the digit at `start`.
pub fn find(cursor: &Cursor<'_>, start: usize) -> Option<Candidate> {
    if !begins(cursor, start) {
        return None;
    }
    let separator = match cursor.at(start + 3) {
        byte if is(byte, DIGIT) => None,
        byte @ (b'-' | b' ' | b'.') => Some(byte),
        _ => return None,
    };
    let mut digits = [0u8; 9];
    let mut at = start;
    for (place, slot) in digits.iter_mut().enumerate() {
        if let Some(separator) = separator
            && matches!(place, 3 | 5)
        {
            if cursor.at(at) != separator {
                return None;
            }
            at += 1;
        }
        let byte = cursor.at(at);
        if !is(byte, DIGIT) {
            return None;
        }
        *slot = byte - b'0';
        at += 1;
    }
    if !ends(cursor, at) || !issued(&digits) {
        return None;
    }
    let (score, evidence) = match separator {
        // Blanks also stand between numbers that have nothing to do with each other.
        Some(b' ') => (
            0.3,
            "three, two and four digits in a range that is issued, with blanks",
        ),
        Some(_) => (0.5, "three, two and four digits in a range that is issued"),
        None => (0.05, "nine digits in a range that is issued"),
    };
    Some(Candidate {
        entity: Entity::UsSsn,
        start,
        end: at,
        score,
        evidence,
    })
}

/// Whether the Social Security Administration issues such numbers.
fn issued(digits: &[u8; 9]) -> bool {
    let number = digits
        .iter()
        .fold(0u32, |number, &digit| number * 10 + u32::from(digit));
    let (area, group, serial) = (number / 1_000_000, number / 10_000 % 100, number % 10_000);
    let possible = area != 0 && area != 666 && area < 900 && group != 0 && serial != 0;
    // Printed on wallets and in documentation; and all digits the same.
    let sample =
        matches!(number, 78_051_120 | 219_099_999 | 123_456_789) || number % 111_111_111 == 0;
    possible && !sample
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(text: &str) -> Option<f32> {
        find(&Cursor::new(text.as_bytes(), true), 0).map(|found| found.score)
    }

    #[test]
    fn numbers_in_issued_ranges_are_found() {
        assert_eq!(score("308-63-0237"), Some(0.5));
        assert_eq!(score("308.63.0237."), Some(0.5));
        assert_eq!(score("308 63 0237."), Some(0.3));
        assert_eq!(score("308630237"), Some(0.05));
    }

    #[test]
    fn numbers_that_are_never_issued_are_refused() {
        for text in [
            "000-12-3456",
            "666-12-3456",
            "900-12-3456",
            "308-00-0237",
            "308-63-0000",
            "078-05-1120",
            "333-33-3333",
            "308-63 0237",
            "308-63-02371",
            "308-63-0237-1",
        ] {
            assert_eq!(score(text), None, "{text}");
        }
    }
}
