//! The verification of a whole audit log. It needs neither the signing key nor an open log, so that
//! it works on a log that [`super::AuditLog::open`] refuses.

use super::entry::{Entry, SignedHead};
use super::merkle::{Frontier, leaf_hash};
use super::{AuditError, ENTRY, HEAD, entry_key, newest_head, seq_of};
use crate::digest::Digest;
use crate::store::{Order, Pair, Store, prefix_end};
use serde::Serialize;
use std::ops::Bound;

/// How many entries are read at a time.
const PAGE: usize = 1024;

/// What a clean verification saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditReport {
    /// How many entries were checked.
    pub entries: u64,
    /// The head they lead to; `None` for an empty log.
    pub head: Option<SignedHead>,
}

/// Checks every entry against its own hash, its number and the entry before; then all of them
/// against the newest signed head. `key` is the public key (hexadecimal) that must have signed it,
/// and `kept` a head of this log that was kept elsewhere, which the log must contain.
///
/// # Errors
/// [`AuditError::Tampered`] names the first bad sequence number: of a changed, moved or missing
/// entry, or the first that a shortened log lacks. Where the whole chain behind an entry was
/// rewritten, the heads of earlier sizes tell from where.
pub fn verify(
    store: &dyn Store,
    key: Option<&str>,
    kept: Option<&SignedHead>,
) -> Result<AuditReport, AuditError> {
    let head = newest_head(store).map_err(unreadable)?;
    let walk = walk(store, |_| Ok(()))?;
    let size = walk.frontier.size();
    let Some(head) = head else {
        return match (size, kept.filter(|kept| kept.size > 0)) {
            (0, None) => Ok(AuditReport {
                entries: 0,
                head: None,
            }),
            (0, Some(kept)) => Err(shortened(0, kept)),
            _ => Err(AuditError::Tampered {
                seq: 0,
                why: "no signed head covers it".into(),
            }),
        };
    };
    if size < head.size {
        return Err(shortened(size, &head));
    }
    if size > head.size {
        return Err(AuditError::Tampered {
            seq: head.size,
            why: "no signed head covers it".into(),
        });
    }
    if walk.frontier.root() != head.root.0 || walk.last != head.last {
        return Err(find_rewrite(store, &head)?);
    }
    head.check_signature()?;
    if let Some(key) = key.filter(|key| *key != head.key) {
        return Err(AuditError::OtherKey {
            expected: key.to_owned(),
            found: head.key,
        });
    }
    if let Some(kept) = kept {
        check_kept(store, kept, &head)?;
    }
    Ok(AuditReport {
        entries: size,
        head: Some(head),
    })
}

/// Where a walk over all entries ended.
struct Walk {
    frontier: Frontier,
    last: Digest,
}

/// Walks the entries from the first, checks each by itself and against the one before, and shows
/// each step to `step`.
fn walk(
    store: &dyn Store,
    mut step: impl FnMut(&Walk) -> Result<(), AuditError>,
) -> Result<Walk, AuditError> {
    let mut walk = Walk {
        frontier: Frontier::default(),
        last: Digest([0; 32]),
    };
    let end = prefix_end(ENTRY).unwrap_or_default();
    let mut from = Bound::Included(ENTRY.to_vec());
    loop {
        let start = from.as_ref().map(Vec::as_slice);
        let page = store
            .scan(start, Bound::Excluded(&end), Order::Ascending, PAGE)
            .map_err(unreadable)?;
        let Some((last, _)) = page.last() else {
            return Ok(walk);
        };
        from = Bound::Excluded(last.clone());
        for pair in &page {
            let entry = check_entry(pair, &walk)?;
            walk.frontier.push(leaf_hash(&entry.hash.0));
            walk.last = entry.hash;
            step(&walk)?;
        }
    }
}

fn check_entry((key, value): &Pair, walk: &Walk) -> Result<Entry, AuditError> {
    let seq = walk.frontier.size();
    let bad = |why: &str| AuditError::Tampered {
        seq,
        why: why.to_owned(),
    };
    if *key != entry_key(seq) {
        return Err(bad("it is missing, or something else stands in its place"));
    }
    let entry: Entry =
        serde_json::from_slice(value).map_err(|error| bad(&format!("it is no entry ({error})")))?;
    if entry.seq != seq {
        return Err(bad(&format!("entry {} stands in its place", entry.seq)));
    }
    // One spelling only: a change that leaves the value alone is a change, too.
    if entry.to_bytes()? != *value {
        return Err(bad("it is not in canonical form"));
    }
    if entry.compute_hash()? != entry.hash {
        return Err(bad("its content does not match its hash"));
    }
    if entry.prev != walk.last {
        return Err(bad("it does not follow the entry before"));
    }
    Ok(entry)
}

/// The chain is whole but leads to another root than the signed one: it was written anew from some
/// entry on. Every append left a signed head; the first that the entries do not fit tells where.
fn find_rewrite(store: &dyn Store, newest: &SignedHead) -> Result<AuditError, AuditError> {
    let mut heads = signed_sizes(store)?.into_iter().peekable();
    let mut good = 0;
    let found = walk(store, |walk| {
        let size = walk.frontier.size();
        while heads.next_if(|head| head.size < size).is_some() {}
        let Some(head) = heads.next_if(|head| head.size == size) else {
            return Ok(());
        };
        if walk.frontier.root() == head.root.0 {
            good = size;
            return Ok(());
        }
        let why = format!(
            "the entries up to {} are not those that were signed",
            size - 1
        );
        Err(AuditError::Tampered { seq: good, why })
    });
    match found {
        Err(tampered) => Ok(tampered),
        Ok(_) => Ok(AuditError::BadHead {
            why: format!("the head of size {} fits no entries", newest.size),
        }),
    }
}

/// Every head whose signature holds, by size.
fn signed_sizes(store: &dyn Store) -> Result<Vec<SignedHead>, AuditError> {
    let pairs = store
        .scan_prefix(HEAD, Order::Ascending, usize::MAX)
        .map_err(unreadable)?;
    let heads = pairs.iter().filter_map(|(key, value)| {
        let head: SignedHead = serde_json::from_slice(value).ok()?;
        (seq_of(key) == Some(head.size) && head.check_signature().is_ok()).then_some(head)
    });
    Ok(heads.collect())
}

fn check_kept(store: &dyn Store, kept: &SignedHead, newest: &SignedHead) -> Result<(), AuditError> {
    kept.check_signature()?;
    if kept.key != newest.key {
        return Err(AuditError::OtherKey {
            expected: kept.key.clone(),
            found: newest.key.clone(),
        });
    }
    if kept.size > newest.size {
        return Err(shortened(newest.size, kept));
    }
    let mut fits = kept.size == 0;
    walk(store, |walk| {
        fits |= walk.frontier.size() == kept.size && walk.frontier.root() == kept.root.0;
        Ok(())
    })?;
    if fits {
        return Ok(());
    }
    let why = format!(
        "the first {} entries are not those of the head that was kept",
        kept.size
    );
    Err(AuditError::Tampered { seq: 0, why })
}

fn shortened(size: u64, head: &SignedHead) -> AuditError {
    AuditError::Tampered {
        seq: size,
        why: format!("it is missing: {} entries were signed", head.size),
    }
}

fn unreadable(error: crate::Error) -> AuditError {
    match error {
        crate::Error::Audit(error) => error,
        other => AuditError::Store {
            why: other.to_string(),
        },
    }
}
