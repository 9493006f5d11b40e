//! International Bank Account Numbers (ISO 13616): the length by country, and the remainder of the
//! division by 97.

use super::Candidate;
use crate::cursor::{ALNUM, Cursor, DIGIT, LETTER, is};
use crate::entity::Entity;

/// The length by country, from the registry that SWIFT keeps. Sorted.
static LENGTHS: [(&[u8; 2], usize); 89] = [
    (b"AD", 24),
    (b"AE", 23),
    (b"AL", 28),
    (b"AT", 20),
    (b"AZ", 28),
    (b"BA", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"BH", 22),
    (b"BI", 27),
    (b"BR", 29),
    (b"BY", 28),
    (b"CH", 21),
    (b"CR", 22),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DJ", 27),
    (b"DK", 18),
    (b"DO", 28),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FK", 18),
    (b"FO", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GL", 18),
    (b"GR", 27),
    (b"GT", 28),
    (b"HN", 28),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IQ", 23),
    (b"IS", 26),
    (b"IT", 27),
    (b"JO", 30),
    (b"KW", 30),
    (b"KZ", 20),
    (b"LB", 28),
    (b"LC", 32),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"LY", 25),
    (b"MC", 27),
    (b"MD", 24),
    (b"ME", 22),
    (b"MK", 19),
    (b"MN", 20),
    (b"MR", 27),
    (b"MT", 31),
    (b"MU", 30),
    (b"NI", 28),
    (b"NL", 18),
    (b"NO", 15),
    (b"OM", 23),
    (b"PK", 24),
    (b"PL", 28),
    (b"PS", 29),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"RS", 22),
    (b"RU", 33),
    (b"SA", 24),
    (b"SC", 31),
    (b"SD", 18),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"SO", 23),
    (b"ST", 25),
    (b"SV", 28),
    (b"TL", 23),
    (b"TN", 24),
    (b"TR", 26),
    (b"UA", 29),
    (b"VA", 22),
    (b"VG", 24),
    (b"XK", 20),
    (b"YE", 30),
];

/// The number whose two check digits begin at `digits`.
pub fn find(cursor: &Cursor<'_>, digits: usize, floor: usize) -> Option<Candidate> {
    let start = digits.checked_sub(2).filter(|&start| start >= floor)?;
    let country = [
        cursor.at(start).to_ascii_uppercase(),
        cursor.at(start + 1).to_ascii_uppercase(),
    ];
    if !country.iter().all(|&byte| is(byte, LETTER)) || is(cursor.before(start, 1), ALNUM) {
        return None;
    }
    let place = LENGTHS
        .binary_search_by(|(code, _)| (**code).cmp(&country))
        .ok()?;
    let length = LENGTHS.get(place).map(|&(_, length)| length)?;
    if !is(cursor.at(start + 2), DIGIT) || !is(cursor.at(start + 3), DIGIT) {
        return None;
    }
    // The four characters in front count last.
    let mut remainder = 0u32;
    let mut head = 0u32;
    let mut at = start;
    for place in 0..length {
        // Single spaces or dashes may stand between groups.
        if place > 0 && matches!(cursor.at(at), b' ' | b'-') {
            at += 1;
        }
        let byte = cursor.at(at);
        let value = match byte {
            b'0'..=b'9' => u32::from(byte - b'0'),
            b'A'..=b'Z' => u32::from(byte - b'A') + 10,
            b'a'..=b'z' => u32::from(byte - b'a') + 10,
            _ => return None,
        };
        let shift = if value > 9 { 100 } else { 10 };
        if place < 4 {
            head = head * shift + value;
        } else {
            remainder = (remainder * shift + value) % 97;
        }
        at += 1;
    }
    // The head is two letters (two digits each) and two digits.
    remainder = (remainder * 1_000_000 % 97 + head) % 97;
    if remainder != 1 || is(cursor.at(at), ALNUM) {
        return None;
    }
    Some(Candidate {
        entity: Entity::Iban,
        start,
        end: at,
        score: 1.0,
        evidence: "the country's length; the checksum (mod 97) passes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of the registry.
    const EXAMPLES: [&str; 24] = [
        "AD1200012030200359100100",
        "AE070331234567890123456",
        "AT611904300234573201",
        "BE68539007547034",
        "BR1800360305000010009795493C1",
        "CH9300762011623852957",
        "CY17002001280000001200527600",
        "CZ6508000000192000145399",
        "DE89370400440532013000",
        "DK5000400440116243",
        "ES9121000418450200051332",
        "FI2112345600000785",
        "FR1420041010050500013M02606",
        "GB29NWBK60161331926819",
        "IE29AIBK93115212345678",
        "IT60X0542811101000000123456",
        "LU280019400644750000",
        "MT84MALT011000012345MTLCAST001S",
        "NL91ABNA0417164300",
        "NO9386011117947",
        "PL61109010140000071219812874",
        "PT50000201231234567890154",
        "SE4550000000058398257466",
        "TR330006100519786457841326",
    ];

    fn end(text: &str) -> Option<usize> {
        find(&Cursor::new(text.as_bytes(), true), 2, 0).map(|found| found.end)
    }

    #[test]
    fn the_registry_s_examples_are_found_whole() {
        for example in EXAMPLES {
            assert_eq!(end(example), Some(example.len()), "{example}");
            assert_eq!(
                end(&example.to_lowercase()),
                Some(example.len()),
                "{example}"
            );
        }
    }

    #[test]
    fn groups_of_four_are_found_and_what_follows_is_left_alone() {
        assert_eq!(end("GB29 NWBK 6016 1331 9268 19 is mine"), Some(27));
    }

    #[test]
    fn a_changed_digit_is_no_iban() {
        for example in EXAMPLES {
            let changed = example.replacen(|c: char| c.is_ascii_digit(), "x", 1);
            assert_eq!(end(&changed), None, "{changed}");
        }
        assert_eq!(end("GB29NWBK60161331926818"), None);
    }
}
