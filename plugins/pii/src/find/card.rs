//! Payment cards: 13 to 19 digits, in one piece or in groups, that pass the Luhn checksum (ISO/IEC
//! 7812-1); a known issuer's prefix and length is what makes it sure.

use super::Candidate;
use crate::cursor::{Cursor, DIGIT, is};
use crate::entity::Entity;

/// The longest number, in digits.
const LONGEST: usize = 19;

/// The card number that begins with the digit at `start`.
pub fn find(cursor: &Cursor<'_>, start: usize) -> Option<Candidate> {
    let before = cursor.before(start, 1);
    if is(before, DIGIT) || (matches!(before, b'.' | b',') && is(cursor.before(start, 2), DIGIT)) {
        return None;
    }
    let mut digits = [0u8; LONGEST];
    let mut count = 0;
    let mut separator = None;
    let mut at = start;
    let mut best: Option<Candidate> = None;
    loop {
        let group = at;
        while count < LONGEST && is(cursor.at(at), DIGIT) {
            if let Some(slot) = digits.get_mut(count) {
                *slot = cursor.at(at) - b'0';
            }
            count += 1;
            at += 1;
        }
        // A group that goes on beyond the longest number is none.
        if is(cursor.at(at), DIGIT) {
            break;
        }
        let number = digits.get(..count).unwrap_or_default();
        if count >= 13
            && !matches!(cursor.at(at), b'.' | b',' if is(cursor.at(at + 1), DIGIT))
            && let Some((score, evidence)) = judge(number)
            && best.is_none_or(|best| best.score <= score)
        {
            best = Some(Candidate {
                entity: Entity::PaymentCard,
                start,
                end: at,
                score,
                evidence,
            });
        }
        let next = cursor.at(at);
        let goes_on = count < LONGEST
            && at - group >= 3
            && matches!(next, b' ' | b'-')
            && separator.is_none_or(|separator| separator == next)
            && is(cursor.at(at + 1), DIGIT);
        if !goes_on {
            break;
        }
        separator = Some(next);
        at += 1;
    }
    best
}

/// The score of a number, if its checksum passes.
fn judge(number: &[u8]) -> Option<(f32, &'static str)> {
    if !luhn(number) || number.iter().all(|&digit| digit == 0) {
        return None;
    }
    Some(match issuer(number) {
        Some(evidence) => (1.0, evidence),
        None => (0.3, "Luhn checksum passes"),
    })
}

/// The Luhn checksum, digits as numbers.
fn luhn(number: &[u8]) -> bool {
    let sum: u32 = number
        .iter()
        .rev()
        .enumerate()
        .map(|(place, &digit)| {
            let digit = u32::from(digit);
            match place % 2 {
                0 => digit,
                _ if digit > 4 => digit * 2 - 9,
                _ => digit * 2,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Which network issues numbers with this beginning and length.
fn issuer(number: &[u8]) -> Option<&'static str> {
    let prefix = number
        .iter()
        .take(6)
        .fold(0u32, |value, &digit| value * 10 + u32::from(digit));
    let (two, three, four) = (prefix / 10_000, prefix / 1000, prefix / 100);
    Some(match (number.len(), prefix / 100_000) {
        (13 | 16 | 19, 4) => "Luhn checksum passes; Visa's prefix",
        (16, _) if matches!(two, 51..=55) || matches!(four, 2221..=2720) => {
            "Luhn checksum passes; Mastercard's prefix"
        }
        (15, _) if matches!(two, 34 | 37) => "Luhn checksum passes; American Express's prefix",
        (14..=19, _)
            if matches!(two, 36 | 38 | 39) || matches!(three, 300..=305) || four == 3095 =>
        {
            "Luhn checksum passes; Diners Club's prefix"
        }
        (16..=19, _) if four == 6011 || two == 65 || matches!(three, 644..=649) => {
            "Luhn checksum passes; Discover's prefix"
        }
        (16..=19, _) if matches!(four, 3528..=3589) => "Luhn checksum passes; JCB's prefix",
        // JCB's older numbers.
        (15, _) if matches!(four, 1800 | 2131) => "Luhn checksum passes; JCB's prefix",
        (16..=19, _) if two == 62 || two == 81 => "Luhn checksum passes; UnionPay's prefix",
        (13..=19, _)
            if two == 50 || matches!(two, 56..=58) || two == 67 || matches!(four, 6304 | 6390) =>
        {
            "Luhn checksum passes; Maestro's prefix"
        }
        (16, _) if matches!(four, 2200..=2204) => "Luhn checksum passes; Mir's prefix",
        (16, _) if matches!(two, 60 | 65) || matches!(three, 508) || two == 82 => {
            "Luhn checksum passes; RuPay's prefix"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(text: &str) -> Option<f32> {
        find(&Cursor::new(text.as_bytes(), true), 0).map(|found| found.score)
    }

    #[test]
    fn test_numbers_of_each_network_are_certain() {
        for number in [
            "4111111111111111",
            "4012 8888 8888 1881",
            "4222222222222",
            "5555-5555-5555-4444",
            "2223003122003222",
            "378282246310005",
            "3714 496353 98431",
            "30569309025904",
            "6011111111111117",
            "3530111333300000",
            "6304000000000000",
            "6200000000000005",
        ] {
            assert_eq!(score(number), Some(1.0), "{number}");
        }
    }

    #[test]
    fn a_wrong_digit_is_no_card() {
        assert_eq!(score("4111111111111112"), None);
        assert_eq!(score("4111 1111 1111 1112"), None);
    }

    #[test]
    fn a_number_behind_the_card_does_not_hide_it() {
        let found = find(&Cursor::new(b"4111 1111 1111 1111 123", true), 0).unwrap();
        assert_eq!(found.end, 19);
    }
}
