//! IP addresses, version 4 in four decimal parts, version 6 as of RFC 4291.

use super::Candidate;
use crate::cursor::{ALNUM, Cursor, DIGIT, HEX, is};
use crate::entity::Entity;

/// The address in four parts that begins with the digit at `start`.
pub fn find_v4(cursor: &Cursor<'_>, start: usize) -> Option<Candidate> {
    let before = cursor.before(start, 1);
    if is(before, ALNUM) || matches!(before, b'.' | b'_' | b'-') {
        return None;
    }
    let (end, parts) = parse_v4(cursor, start)?;
    let behind = cursor.at(end);
    if is(behind, ALNUM)
        || behind == b'_'
        || (matches!(behind, b'.' | b'-') && is(cursor.at(end + 1), ALNUM))
    {
        return None;
    }
    // This host, loopback, reserved for ever and broadcast: nobody's. Four parts that begin with 0
    // to 9 and stay small are more often a version or a section.
    if matches!(parts, [0 | 127 | 240..=255, ..]) {
        return None;
    }
    let small = parts.iter().all(|&part| part < 10);
    let score = if small { 0.1 } else { 0.6 };
    Some(Candidate {
        entity: Entity::IpAddress,
        start,
        end,
        score,
        evidence: "four parts of 0 to 255",
    })
}

/// Four decimal parts without leading zeros.
fn parse_v4(cursor: &Cursor<'_>, start: usize) -> Option<(usize, [u16; 4])> {
    let mut parts = [0u16; 4];
    let mut at = start;
    for (place, part) in parts.iter_mut().enumerate() {
        if place > 0 {
            if cursor.at(at) != b'.' {
                return None;
            }
            at += 1;
        }
        let end = cursor.run(at, DIGIT, 4);
        if end == at || end - at > 3 || (end - at > 1 && cursor.at(at) == b'0') {
            return None;
        }
        *part = cursor
            .slice(at, end)
            .iter()
            .fold(0, |part, &digit| part * 10 + u16::from(digit - b'0'));
        if *part > 255 {
            return None;
        }
        at = end;
    }
    Some((at, parts))
}

/// The longest address: eight groups of four, or six and four decimal parts.
const LONGEST_V6: usize = 45;

/// The address of version 6 that the digit at `digit` is part of.
pub fn find_v6(cursor: &Cursor<'_>, digit: usize, floor: usize) -> Option<Candidate> {
    let class = |byte: u8| is(byte, HEX) || byte == b':';
    let mut start = digit;
    while start > floor && digit - start < LONGEST_V6 && class(cursor.before(start, 1)) {
        start -= 1;
    }
    let before = cursor.before(start, 1);
    if is(before, ALNUM) || matches!(before, b':' | b'.' | b'_' | b'-') {
        return None;
    }
    let (end, groups) = parse_v6(cursor, start)?;
    let behind = cursor.at(end);
    if end <= digit
        || is(behind, ALNUM)
        || behind == b'_'
        || (behind == b':' && class(cursor.at(end + 1)))
    {
        return None;
    }
    // Unspecified and loopback are nobody's; 2001:db8::/32 is for documentation, and for us.
    let documentation = matches!(groups, [0x2001, 0x0db8, ..]);
    let nobody = groups.iter().take(7).all(|&group| group == 0) && matches!(groups, [.., 0 | 1]);
    if documentation || nobody {
        return None;
    }
    // `1::2` is as likely a path in some programming language.
    let filled = groups.iter().filter(|&&group| group != 0).count();
    let score = if filled >= 3 { 0.6 } else { 0.1 };
    Some(Candidate {
        entity: Entity::IpAddress,
        start,
        end,
        score,
        evidence: "groups of an IPv6 address",
    })
}

/// Groups of up to four hexadecimal digits, once compressed by `::`, the last two perhaps in
/// decimal parts.
fn parse_v6(cursor: &Cursor<'_>, start: usize) -> Option<(usize, [u16; 8])> {
    let mut groups = [0u16; 8];
    let mut count = 0;
    let mut gap = None;
    let mut at = start;
    if cursor.at(at) == b':' {
        if cursor.at(at + 1) != b':' {
            return None;
        }
        gap = Some(0);
        at += 2;
    }
    while count < 8 {
        let end = cursor.run(at, HEX, 5);
        if end == at {
            break;
        }
        if cursor.at(end) == b'.'
            && is(cursor.at(end + 1), DIGIT)
            && count <= 6
            && (gap.is_some() || count == 6)
        {
            let (behind, parts) = parse_v4(cursor, at)?;
            for pair in parts.chunks_exact(2) {
                if let (Some(slot), [high, low]) = (groups.get_mut(count), pair) {
                    *slot = high << 8 | low;
                    count += 1;
                }
            }
            at = behind;
            break;
        }
        if end - at > 4 {
            return None;
        }
        if let Some(slot) = groups.get_mut(count) {
            *slot = cursor
                .slice(at, end)
                .iter()
                .fold(0, |value, &byte| value << 4 | hex(byte));
        }
        count += 1;
        at = end;
        if cursor.at(at) != b':' {
            break;
        }
        if cursor.at(at + 1) == b':' {
            if gap.is_some() {
                return None;
            }
            gap = Some(count);
            at += 2;
        } else if is(cursor.at(at + 1), HEX) && count < 8 {
            at += 1;
        } else {
            break;
        }
    }
    match gap {
        None if count == 8 => {}
        Some(gap) if count < 8 => {
            // What came behind the gap belongs at the end.
            let moved = 8 - count;
            groups.copy_within(gap..count, gap + moved);
            if let Some(gap) = groups.get_mut(gap..gap + moved) {
                gap.fill(0);
            }
        }
        _ => return None,
    }
    Some((at, groups))
}

fn hex(byte: u8) -> u16 {
    u16::from(match byte {
        b'0'..=b'9' => byte - b'0',
        _ => (byte | 0x20) - b'a' + 10,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(text: &str) -> Option<&str> {
        let digit = text.find(|c: char| c.is_ascii_digit())?;
        let found = find_v6(&Cursor::new(text.as_bytes(), true), digit, 0)?;
        text.get(found.start..found.end)
    }

    #[test]
    fn addresses_of_version_6_are_those_that_the_standard_library_parses() {
        for text in [
            "d80:e4b5:79da:6cf6:71f3:51f7:9161:c319",
            "fe80::1ff:fe23:4567:890a",
            "2a00:1450:4001::200e",
            "::ffff:192.168.1.7",
            "1:2:3:4:5:6:77.88.99.1",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
        ] {
            assert!(text.parse::<std::net::Ipv6Addr>().is_ok(), "{text}");
            assert_eq!(v6(text), Some(text));
            assert_eq!(v6(&std::format!("({text}).")), Some(text));
        }
        for text in [
            "12:30:45",
            "00:1a:2b:3c:4d:5e",
            "1:2:3:4:5:6:7:8:9",
            "1::2::3",
            "12345::1",
            "::1",
            "2001:db8::1:2:3",
        ] {
            assert_eq!(v6(text), None, "{text}");
        }
    }

    #[test]
    fn four_parts_are_an_address_unless_they_are_part_of_something_else() {
        let v4 = |text: &str| {
            find_v4(&Cursor::new(text.as_bytes(), true), 0).map(|found| (found.end, found.score))
        };
        assert_eq!(v4("86.231.85.193."), Some((13, 0.6)));
        assert_eq!(v4("10.0.0.1/8"), Some((8, 0.6)));
        assert_eq!(v4("1.2.3.4"), Some((7, 0.1)));
        for text in [
            "256.1.1.1",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "127.0.0.1",
            "86.231.85.193x",
        ] {
            assert_eq!(v4(text), None, "{text}");
        }
    }
}
