//! Formats that are asserted; others are annotations, as the specification has it.

use core::net::{Ipv4Addr, Ipv6Addr};

/// A format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    DateTime,
    Date,
    Time,
    Email,
    Hostname,
    Ipv4,
    Ipv6,
    Uri,
    Uuid,
    JsonPointer,
}

impl Format {
    /// The format of this name, if it is one that is asserted.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "date-time" => Self::DateTime,
            "date" => Self::Date,
            "time" => Self::Time,
            "email" => Self::Email,
            "hostname" => Self::Hostname,
            "ipv4" => Self::Ipv4,
            "ipv6" => Self::Ipv6,
            "uri" => Self::Uri,
            "uuid" => Self::Uuid,
            "json-pointer" => Self::JsonPointer,
            _ => return None,
        })
    }

    /// What is expected, in words.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::DateTime => "a date and time such as 2026-11-24T10:00:00Z",
            Self::Date => "a date such as 2026-11-24",
            Self::Time => "a time such as 10:00:00Z",
            Self::Email => "an e-mail address",
            Self::Hostname => "a host name",
            Self::Ipv4 => "an IPv4 address",
            Self::Ipv6 => "an IPv6 address",
            Self::Uri => "an absolute URI",
            Self::Uuid => "a UUID",
            Self::JsonPointer => "a JSON Pointer",
        }
    }

    /// Whether the text is of this format.
    pub(super) fn fits(self, text: &str) -> bool {
        match self {
            Self::DateTime => text
                .split_once(['T', 't'])
                .is_some_and(|(date, rest)| is_date(date) && is_time(rest)),
            Self::Date => is_date(text),
            Self::Time => is_time(text),
            Self::Email => is_email(text),
            Self::Hostname => is_hostname(text),
            Self::Ipv4 => text.parse::<Ipv4Addr>().is_ok(),
            Self::Ipv6 => text.parse::<Ipv6Addr>().is_ok(),
            Self::Uri => is_uri(text),
            Self::Uuid => is_uuid(text),
            Self::JsonPointer => is_pointer(text),
        }
    }
}

/// A number of exactly so many digits.
fn digits(text: &str, count: usize) -> Option<u32> {
    let all = text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

/// RFC 3339 `full-date`.
fn is_date(text: &str) -> bool {
    let mut parts = text.split('-');
    let (Some(year), Some(month), Some(day), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let (Some(year), Some(month), Some(day)) = (digits(year, 4), digits(month, 2), digits(day, 2))
    else {
        return false;
    };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=days).contains(&day)
}

/// RFC 3339 `full-time`. A leap second must fall on the end of a day of UTC.
fn is_time(text: &str) -> bool {
    let Some(at) = text.find(['Z', 'z', '+', '-']) else {
        return false;
    };
    let (clock, zone) = text.split_at(at);
    let offset = match zone {
        "Z" | "z" => Some(0),
        _ => zone[1..].split_once(':').and_then(|(hours, minutes)| {
            let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
            let total = i64::from(hours * 60 + minutes);
            (hours < 24 && minutes < 60).then_some(if zone.starts_with('-') {
                -total
            } else {
                total
            })
        }),
    };
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut parts = whole.split(':').map(|part| digits(part, 2));
    let (Some(Some(hour)), Some(Some(minute)), Some(Some(second)), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Some(offset) =
        offset.filter(|_| !fraction.is_empty() && fraction.bytes().all(|b| b.is_ascii_digit()))
    else {
        return false;
    };
    let utc = (i64::from(hour * 60 + minute) - offset).rem_euclid(24 * 60);
    hour < 24 && minute < 60 && (second < 60 || second == 60 && utc == 24 * 60 - 1)
}

fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    let atom = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&byte);
    let dotted = local
        .split('.')
        .all(|part| !part.is_empty() && part.bytes().all(atom));
    let quoted = local.len() > 2
        && local.starts_with('"')
        && local.ends_with('"')
        && local[1..local.len() - 1]
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'"');
    let literal = domain
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host = match literal {
        Some(literal) => match literal.strip_prefix("IPv6:") {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => literal.parse::<Ipv4Addr>().is_ok(),
        },
        None => is_hostname(domain),
    };
    local.len() <= 64 && (dotted || quoted) && host
}

fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// RFC 3986: a scheme, then characters that a URI may have, with whole percent escapes.
fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else {
        return false;
    };
    let scheme_fits = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let allowed =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let escapes = rest.split('%').skip(1).all(|escape| {
        escape.len() >= 2 && escape.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit)
    });
    scheme_fits && rest.bytes().all(allowed) && escapes && rest.matches('#').count() <= 1
}

fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// RFC 6901.
fn is_pointer(text: &str) -> bool {
    (text.is_empty() || text.starts_with('/'))
        && text
            .split('~')
            .skip(1)
            .all(|escape| escape.starts_with(['0', '1']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_accept_and_refuse() {
        for (name, good, bad) in [
            (
                "date-time",
                "1990-12-31T23:59:60Z",
                "1990-02-31T15:59:59.123-08:00",
            ),
            (
                "date-time",
                "2026-02-28t08:30:06.28+02:30",
                "1990-12-31T23:59:60",
            ),
            ("date", "2024-02-29", "2023-02-29"),
            ("time", "12:00:00+01:00", "12:00:60Z"),
            ("time", "15:59:60-08:00", "24:00:00Z"),
            (
                "email",
                "joe.bloggs+x@example.com",
                "joe@bloggs@example.com",
            ),
            ("email", "\"joe bloggs\"@[127.0.0.1]", ".joe@example.com"),
            ("hostname", "a-1.example", "-a.example"),
            ("ipv4", "192.0.2.1", "192.0.2.256"),
            ("ipv6", "::ffff:192.0.2.1", "12345::"),
            ("uri", "https://example.org/a%20b?c#d", "//example.org/"),
            ("uri", "urn:isbn:1", "https://example.org/a b"),
            (
                "uuid",
                "2EB8AA08-aa98-11ea-b4aa-73b441d16380",
                "2eb8aa08aa9811eab4aa73b441d16380",
            ),
            ("json-pointer", "/a~0b/~1", "/a~2"),
        ] {
            let format = Format::named(name).unwrap();
            assert!(format.fits(good), "{name} {good}");
            assert!(!format.fits(bad), "{name} {bad}");
        }
        assert_eq!(Format::named("color"), None);
    }
}
