//! Telephone numbers, international (ITU-T E.164) and in the national forms that people write.
//!
//! There is no checksum, so the score follows the form: a country code is strong, a bracketed or
//! trunk-prefixed area code and North America's 3-3-4 are good enough alone, and anything else
//! needs a word that speaks of telephones, before or right behind it.

use super::{Candidate, begins, ends};
use crate::cursor::{ALNUM, Cursor, DIGIT, LETTER, is};
use crate::entity::Entity;

/// The most digits of a number (E.164), with `00` in front.
const MOST_DIGITS: usize = 17;

/// The most groups that a number is written in.
const MOST_GROUPS: usize = 8;

/// Alone it says nothing.
const WEAK: f32 = 0.05;

/// A number as it is written.
struct Written {
    start: usize,
    end: usize,
    international: bool,
    bracketed: bool,
    digits: [u8; MOST_DIGITS],
    count: usize,
    groups: [usize; MOST_GROUPS],
    parts: usize,
    separator: u8,
}

/// The number that begins with the digit at `digit`, or with the sign right before it.
pub fn find(cursor: &Cursor<'_>, digit: usize, floor: usize) -> Option<Candidate> {
    let mut written = read(cursor, digit, floor)?;
    let (score, evidence) = judge(&written)?;
    if let Some(end) = extension(cursor, written.end) {
        written.end = end;
    } else if !ends(cursor, written.end) || cursor.at(written.end) == b'%' {
        return None;
    }
    let (score, evidence) = match score {
        // A word right behind is looked at only where it decides.
        ..=0.39 if use_behind(cursor, written.end) => {
            (0.45, "digits in groups; the word behind them")
        }
        _ => (score, evidence),
    };
    Some(Candidate {
        entity: Entity::Phone,
        start: written.start,
        end: written.end,
        score,
        evidence,
    })
}

/// Reads the groups of digits.
fn read(cursor: &Cursor<'_>, digit: usize, floor: usize) -> Option<Written> {
    let mut start = digit;
    let mut international = false;
    let mut bracketed = false;
    if start > floor && cursor.before(start, 1) == b'+' {
        start -= 1;
        international = true;
    }
    if start > floor && cursor.before(start, 1) == b'(' {
        start -= 1;
        bracketed = true;
    }
    let before = cursor.before(start, 1);
    let inside = match () {
        () if international || bracketed => is(before, ALNUM) || before == b'_',
        () => !begins(cursor, start) || matches!(before, b'$' | b'#' | b'@'),
    };
    if inside {
        return None;
    }
    let mut written = Written {
        start,
        end: digit,
        international,
        bracketed,
        digits: [0; MOST_DIGITS],
        count: 0,
        groups: [0; MOST_GROUPS],
        parts: 0,
        separator: 0,
    };
    let mut open = bracketed;
    let mut at = digit;
    loop {
        let group = at;
        while is(cursor.at(at), DIGIT) {
            *written.digits.get_mut(written.count)? = cursor.at(at) - b'0';
            written.count += 1;
            at += 1;
        }
        *written.groups.get_mut(written.parts)? = at - group;
        written.parts += 1;
        written.end = at;
        // What separates it from the next group, if there is one.
        let mut next = at;
        if open && cursor.at(next) == b')' {
            open = false;
            next += 1;
            if matches!(cursor.at(next), b' ' | b'-' | b'.') {
                next += 1;
            }
            if !is(cursor.at(next), DIGIT) {
                break;
            }
            at = next;
            continue;
        }
        let separator = cursor.at(next);
        let uniform =
            written.separator == 0 || written.separator == separator || written.international;
        if !matches!(separator, b' ' | b'-' | b'.') || !uniform {
            break;
        }
        next += 1;
        if !open
            && written.international
            && cursor.at(next) == b'('
            && is(cursor.at(next + 1), DIGIT)
        {
            open = true;
            next += 1;
        }
        if !is(cursor.at(next), DIGIT) {
            break;
        }
        written.separator = separator;
        at = next;
    }
    // A bracket that was never closed encloses more than the number.
    if open && bracketed {
        if !written.international
            && written.groups.first().is_some_and(|&first| first < 5)
            && written.parts < 2
        {
            return None;
        }
        written.start += 1;
        written.bracketed = false;
    }
    Some(written)
}

/// How much the form says.
fn judge(written: &Written) -> Option<(f32, &'static str)> {
    let digits = written.digits.get(..written.count)?;
    let groups = written.groups.get(..written.parts)?;
    let count = written.count;
    let first = groups.first().copied()?;
    if digits.iter().all(|digit| Some(digit) == digits.first()) || count < 6 {
        return None;
    }
    if written.international {
        let valid = (8..=15).contains(&count) && country(digits);
        return valid.then_some((0.6, "an international number with a country code in use"));
    }
    if digits.starts_with(&[0, 0]) {
        let valid = (10..=17).contains(&count) && country(digits.get(2..)?);
        return match (valid, written.parts > 1) {
            (true, true) => Some((0.5, "an international number behind 00")),
            (true, false) => Some((0.3, "an international number behind 00, in one piece")),
            _ => None,
        };
    }
    if count > 15 {
        return None;
    }
    if written.bracketed {
        let valid = (2..=5).contains(&first)
            && (7..=12).contains(&count)
            && groups.iter().skip(1).all(|&group| group > 1);
        return valid.then_some((0.4, "an area code in brackets"));
    }
    let joined = matches!(written.separator, b'-' | b'.');
    match groups {
        [3, 3, 4] if joined => return Some((0.4, "three, three and four digits")),
        [1, 3, 3, 4] if digits.first() == Some(&1) => {
            return Some((0.4, "a North American number"));
        }
        [3, 3, 4] if north_american(digits) => return Some((0.4, "a North American number")),
        _ => {}
    }
    if joined && (is_date(groups, digits) || is_years(groups, digits)) {
        return None;
    }
    // Four short parts with points are an IP address or a version.
    if written.separator == b'.' && groups.len() == 4 && groups.iter().all(|&group| group <= 3) {
        return None;
    }
    // Three, two and four is a social security number or nothing.
    if groups == [3, 2, 4] && joined {
        return None;
    }
    let shaped = written.parts > 1 && groups.iter().all(|&group| (2..=8).contains(&group));
    if shaped && digits.first() == Some(&0) && (2..=5).contains(&first) && (9..=12).contains(&count)
    {
        return Some((0.4, "an area code with a leading zero"));
    }
    match groups {
        [10] if north_american(digits) => Some((0.1, "ten digits")),
        [7..=13] => Some((WEAK, "digits in one piece")),
        // Six digits are a number in pairs or halves; otherwise rather of a house and something.
        [2, 2, 2] | [3, 3] => Some((WEAK, "digits in groups")),
        _ if count == 6 => None,
        _ if shaped && count <= 13 => Some((WEAK, "digits in groups")),
        _ => None,
    }
}

/// Area code and exchange of the North American plan begin with 2 to 9.
fn north_american(digits: &[u8]) -> bool {
    matches!(digits, [2..=9, _, _, 2..=9, ..])
}

/// Day, month and year in some order.
fn is_date(groups: &[usize], digits: &[u8]) -> bool {
    let pair = |at: usize| match (digits.get(at), digits.get(at + 1)) {
        (Some(tens), Some(ones)) => tens * 10 + ones,
        _ => u8::MAX,
    };
    let day_and_month = |at: usize| {
        (pair(at) <= 12 && pair(at + 2) <= 31) || (pair(at) <= 31 && pair(at + 2) <= 12)
    };
    match groups {
        [4, 2, 2] => day_and_month(4),
        [2, 2, 4 | 2] => day_and_month(0) || day_and_month(2),
        _ => false,
    }
}

/// Two years with a dash.
fn is_years(groups: &[usize], digits: &[u8]) -> bool {
    matches!(
        (groups, digits),
        (
            [4, 4],
            [1, 8 | 9, _, _, 1, 9, _, _] | [1, 9, _, _, 2, 0, _, _] | [2, 0, _, _, 2, 0, _, _]
        )
    )
}

/// Where an extension ends: `x123`, `ext. 123`.
fn extension(cursor: &Cursor<'_>, from: usize) -> Option<usize> {
    let mut at = from;
    if cursor.at(at) == b' ' {
        at += 1;
    }
    let word = cursor.run(at, LETTER, 10);
    let known = [b"x".as_slice(), b"ext", b"extn", b"extension"];
    if !known
        .iter()
        .any(|known| cursor.slice(at, word).eq_ignore_ascii_case(known))
    {
        return None;
    }
    at = word;
    for optional in [b'.', b' '] {
        if cursor.at(at) == optional {
            at += 1;
        }
    }
    let end = cursor.run(at, DIGIT, 7);
    (end > at && end - at < 7 && !is(cursor.at(end), ALNUM)).then_some(end)
}

/// Whether the word behind a number says what it is for, as address blocks have it.
fn use_behind(cursor: &Cursor<'_>, end: usize) -> bool {
    let mut at = end;
    if !matches!(cursor.at(at), b' ' | b'-') {
        return false;
    }
    at += 1;
    if cursor.at(at) == b'(' {
        at += 1;
    }
    let behind = cursor.run(at, LETTER, 10);
    let uses = [
        b"office".as_slice(),
        b"fax",
        b"mobile",
        b"cell",
        b"phone",
        b"tel",
        b"landline",
    ];
    uses.iter()
        .any(|name| cursor.slice(at, behind).eq_ignore_ascii_case(name))
}

/// Whether digits begin with a country code in use (ITU-T E.164, list of assigned codes).
fn country(digits: &[u8]) -> bool {
    let [first, second, third, ..] = *digits else {
        return false;
    };
    match (first, second) {
        (1 | 7, _) => true,
        (2, 0 | 7) | (3, 0 | 1 | 2 | 3 | 4 | 6 | 9) | (4, 0 | 1 | 3..=9) => true,
        (5, 1..=8) | (6, 0..=6) | (8, 1 | 2 | 4 | 6) | (9, 0..=5 | 8) => true,
        (2, 1) => matches!(third, 1 | 2 | 3 | 6 | 8),
        (2, 8 | 9) => {
            (second, third) != (8, 0) && matches!((second, third), (9, 0 | 1 | 7 | 8 | 9))
        }
        (2, 2..=6) => !matches!((second, third), (5, 9)),
        (3, 5) | (3, 7) => true,
        (3, 8) => !matches!(third, 4 | 8),
        (4, 2) => matches!(third, 0 | 1 | 3),
        (5, 0) | (5, 9) => true,
        (6, 7) => !matches!(third, 1),
        (6, 8) => !matches!(third, 4),
        (6, 9) => matches!(third, 0..=2),
        (8, 0) => matches!(third, 0 | 8),
        (8, 5) => matches!(third, 0 | 2 | 3 | 5 | 6),
        (8, 7 | 8) => matches!((second, third), (7, 0 | 8) | (8, 0 | 1 | 2 | 3 | 6 | 8)),
        (9, 6) => third != 9,
        (9, 7) => !matches!(third, 8),
        (9, 9) => !matches!(third, 0 | 1 | 7 | 9),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find_in(text: &str) -> Option<(&str, f32)> {
        let digit = text.find(|c: char| c.is_ascii_digit())?;
        let found = find(&Cursor::new(text.as_bytes(), true), digit, 0)?;
        Some((text.get(found.start..found.end)?, found.score))
    }

    #[test]
    fn strong_forms_need_no_context() {
        for text in [
            "+14155550123",
            "+1 (415) 555-0123",
            "+44 20 7946 0958",
            "+49 (0)30 901820",
            "+33 1 23 45 67 89",
            "(415) 555-0123",
            "(415)555-0123 ext. 12",
            "415-555-0123",
            "415.555.0123x44",
            "1-415-555-0123",
            "415 555 0123",
            "001-415-555-0123",
            "(88) 684-334",
            "020 7946 0958",
            "06-10446904",
            "01 23 45 67 89",
        ] {
            let (found, score) = find_in(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(found, text);
            assert!(score >= 0.4, "{text}: {score}");
        }
    }

    #[test]
    fn weak_forms_need_a_word_beside_them() {
        for text in [
            "785 8949",
            "9885 1152",
            "2813882583",
            "73 448 266",
            "50-98-28-96",
        ] {
            assert!(find_in(text).unwrap().1 < 0.4, "{text}");
            assert!(
                find_in(&std::format!("{text} office")).unwrap().1 >= 0.4,
                "{text}"
            );
        }
    }

    #[test]
    fn other_numbers_are_no_phones() {
        for text in [
            "2024-05-01",
            "01.05.2024",
            "1990-1995",
            "12345",
            "1234567890123456",
            "+999-12345678",
            "000-000-0000",
            "308-63-0237",
            "415-555-0123-99",
            "$4155550123",
            "v415-555-0123a",
            "192.168.100.200.300",
        ] {
            assert!(
                find_in(text).is_none_or(|(_, score)| score < 0.4),
                "{text}: {:?}",
                find_in(text)
            );
        }
    }
}
