//! E-mail addresses, as people write them: no quoted local parts, no address literals.

use super::Candidate;
use crate::cursor::{ALNUM, Cursor, DIGIT, LETTER, LOCAL, WIDE, is, is_continuation};
use crate::entity::Entity;

/// The longest local part (RFC 5321, 4.5.3.1.1).
pub const LONGEST_LOCAL: usize = 64;

/// The longest domain that is looked at. The standard allows 255; real ones are far shorter, and
/// this much of a stream is held back while a domain goes on.
const LONGEST_DOMAIN: usize = 128;

/// The address around the `@` at `at`.
pub fn find(cursor: &Cursor<'_>, at: usize, floor: usize) -> Option<Candidate> {
    let mut start = cursor.run_back(at, LOCAL, floor.max(at.saturating_sub(LONGEST_LOCAL)));
    while start < at
        && (is_continuation(cursor.at(start))
            || matches!(cursor.at(start), b'.' | b'-' | b'\'' | b'&'))
    {
        start += 1;
    }
    if start == at || cursor.before(at, 1) == b'.' {
        return None;
    }
    let (end, known) = domain(cursor, at + 1)?;
    let (score, evidence) = if known {
        (1.0, "well formed, with a known top-level domain")
    } else {
        (0.5, "well formed")
    };
    Some(Candidate {
        entity: Entity::Email,
        start,
        end,
        score,
        evidence,
    })
}

/// The `@` of the address whose local part the byte at `from` may belong to.
pub fn sign_after(cursor: &Cursor<'_>, from: usize) -> Option<usize> {
    let end = cursor.run(from, LOCAL, LONGEST_LOCAL);
    (cursor.at(end) == b'@').then_some(end)
}

/// Where the domain that begins at `from` ends, and whether its top level is a known one. Where
/// text is glued to it (`a@example.com.Then`), the longest beginning with a known top level wins.
fn domain(cursor: &Cursor<'_>, from: usize) -> Option<(usize, bool)> {
    let mut best = None;
    let mut at = from;
    let mut labels = 0;
    loop {
        let begin = at;
        while at - from <= LONGEST_DOMAIN
            && (is(cursor.at(at), ALNUM | WIDE) || cursor.at(at) == b'-')
        {
            at += 1;
        }
        if at - from > LONGEST_DOMAIN {
            return None;
        }
        // A dash ends no label; what follows it is no part of the domain then.
        let mut end = at;
        while end > begin && cursor.before(end, 1) == b'-' {
            end -= 1;
        }
        if end == begin || cursor.at(begin) == b'-' {
            break;
        }
        labels += 1;
        let label = cursor.slice(begin, end);
        if labels > 1 && is_top_level(label) {
            let known = is_known(label);
            if known || !matches!(best, Some((_, true))) {
                best = Some((end, known));
            }
        }
        if end != at || cursor.at(at) != b'.' {
            break;
        }
        at += 1;
    }
    let (end, _) = best?;
    // RFC 2606 reserves it for names that nobody has; our pseudonyms use it.
    let invalid = cursor.slice(from, end).ends_with(b".invalid");
    if invalid { None } else { best }
}

/// Letters alone, or punycode.
fn is_top_level(label: &[u8]) -> bool {
    label.len() >= 2
        && (label.iter().all(|&byte| is(byte, LETTER | WIDE)) || label.starts_with(b"xn--"))
        && !label.iter().all(|&byte| is(byte, DIGIT))
}

/// Country codes by two letters (any: new ones come and go), and the generic names in use.
fn is_known(label: &[u8]) -> bool {
    if label.len() == 2 || label.starts_with(b"xn--") || !label.is_ascii() {
        return true;
    }
    let mut lower = [0; 16];
    let Some(lower) = lower.get_mut(..label.len()) else {
        return false;
    };
    lower.copy_from_slice(label);
    lower.make_ascii_lowercase();
    GENERIC
        .binary_search_by(|name| name.as_bytes().cmp(&*lower))
        .is_ok()
}

/// Generic top-level domains with many names below them, and those that networks use inside.
/// Sorted.
static GENERIC: [&str; 124] = [
    "academy",
    "aero",
    "agency",
    "app",
    "art",
    "asia",
    "bank",
    "best",
    "biz",
    "blog",
    "business",
    "care",
    "cat",
    "center",
    "chat",
    "church",
    "city",
    "clinic",
    "cloud",
    "club",
    "code",
    "codes",
    "com",
    "community",
    "company",
    "consulting",
    "coop",
    "corp",
    "deals",
    "design",
    "dev",
    "digital",
    "domains",
    "earth",
    "edu",
    "education",
    "email",
    "energy",
    "engineering",
    "events",
    "example",
    "expert",
    "finance",
    "financial",
    "foundation",
    "fun",
    "games",
    "global",
    "gov",
    "group",
    "guru",
    "health",
    "help",
    "home",
    "host",
    "hotel",
    "info",
    "ink",
    "insurance",
    "int",
    "internal",
    "international",
    "jobs",
    "lan",
    "law",
    "legal",
    "life",
    "link",
    "live",
    "local",
    "ltd",
    "mail",
    "marketing",
    "media",
    "mil",
    "mobi",
    "money",
    "museum",
    "name",
    "net",
    "network",
    "news",
    "ngo",
    "online",
    "org",
    "page",
    "partners",
    "post",
    "pro",
    "rocks",
    "run",
    "school",
    "science",
    "services",
    "shop",
    "site",
    "social",
    "software",
    "solutions",
    "space",
    "store",
    "studio",
    "support",
    "systems",
    "tax",
    "team",
    "tech",
    "technology",
    "tel",
    "test",
    "today",
    "tools",
    "top",
    "trade",
    "travel",
    "university",
    "vip",
    "website",
    "wiki",
    "work",
    "works",
    "world",
    "xyz",
    "zone",
];
