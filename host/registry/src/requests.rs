//! What a plugin asks for, as the lock records it, and what a new version asks for beyond that.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a plugin's manifest asks for, by capability (`state`, `inference`, `secrets`, `http`, or
/// one of a later contract: this crate knows none of them).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Requests(pub BTreeMap<String, Request>);

/// What is asked for of one capability.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// Named things: origins, secrets, models. Empty: the capability as such.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub items: BTreeSet<String>,
    /// Amounts by their names: bytes, tokens-per-minute.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, u64>,
}

impl Requests {
    /// Asks for a capability as such.
    #[must_use]
    pub fn with(mut self, capability: &str) -> Requests {
        self.0.entry(capability.to_owned()).or_default();
        self
    }

    /// Asks for a named thing.
    #[must_use]
    pub fn with_item(mut self, capability: &str, item: &str) -> Requests {
        let request = self.0.entry(capability.to_owned()).or_default();
        request.items.insert(item.to_owned());
        self
    }

    /// Asks for an amount.
    #[must_use]
    pub fn with_limit(mut self, capability: &str, limit: &str, amount: u64) -> Requests {
        let request = self.0.entry(capability.to_owned()).or_default();
        request.limits.insert(limit.to_owned(), amount);
        self
    }
}

/// One difference between what two versions ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It asks for more.
    More(String),
    /// It no longer asks for something.
    Less(String),
}

impl Change {
    /// Whether the operator gives away more than before.
    #[must_use]
    pub fn is_more(&self) -> bool {
        matches!(self, Change::More(_))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::More(what) => write!(f, "newly asks for {what}"),
            Change::Less(what) => write!(f, "no longer asks for {what}"),
        }
    }
}

/// What `new` asks for beyond `old`, and what it no longer does; what is new comes first.
///
/// Written after a version this makes the line that an operator reads before an update:
/// `1.3.0 newly asks for http: api.vendor.example`.
#[must_use]
pub fn diff(old: &Requests, new: &Requests) -> Vec<Change> {
    let mut changes: Vec<Change> = beyond(old, new).into_iter().map(Change::More).collect();
    changes.extend(beyond(new, old).into_iter().map(Change::Less));
    changes
}

/// What `new` has and `old` has not, one line each.
fn beyond(old: &Requests, new: &Requests) -> Vec<String> {
    let mut lines = Vec::new();
    for (capability, request) in &new.0 {
        let before = old.0.get(capability);
        let from = lines.len();
        for item in &request.items {
            // Nothing but the capability as such meant all of it, and so this is not more.
            let had = before.is_some_and(|before| {
                before.items.contains(item) || (before.items.is_empty() && before.limits.is_empty())
            });
            if !had {
                lines.push(format!("{capability}: {item}"));
            }
        }
        for (limit, amount) in &request.limits {
            match before.and_then(|before| before.limits.get(limit)) {
                None if before
                    .is_some_and(|before| before.items.is_empty() && before.limits.is_empty()) => {}
                None => lines.push(format!("{capability}: {amount} {limit}")),
                Some(had) if had < amount => {
                    lines.push(format!("{capability}: {amount} {limit} (it was {had})"));
                }
                Some(_) => {}
            }
        }
        let bare = request.items.is_empty() && request.limits.is_empty();
        let was_bare =
            before.is_some_and(|before| before.items.is_empty() && before.limits.is_empty());
        if lines.len() == from && bare && !was_bare {
            lines.push(match before {
                None => capability.clone(),
                Some(_) => format!("{capability} without bounds"),
            });
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(old: &Requests, new: &Requests) -> Vec<String> {
        diff(old, new).iter().map(Change::to_string).collect()
    }

    #[test]
    fn a_new_origin_is_a_line() {
        let old = Requests::default().with_item("http", "https://a.example");
        let new = old.clone().with_item("http", "api.vendor.example");
        assert_eq!(
            lines(&old, &new),
            ["newly asks for http: api.vendor.example"]
        );
        assert_eq!(
            lines(&new, &old),
            ["no longer asks for http: api.vendor.example"]
        );
    }

    #[test]
    fn amounts_are_compared() {
        let old = Requests::default().with_limit("state", "bytes", 4096);
        let new = Requests::default()
            .with_limit("state", "bytes", 65536)
            .with("secrets");
        assert_eq!(
            lines(&old, &new),
            [
                "newly asks for secrets",
                "newly asks for state: 65536 bytes (it was 4096)"
            ]
        );
    }

    #[test]
    fn a_capability_as_such_is_all_of_it() {
        let bare = Requests::default().with("http");
        let one = Requests::default().with_item("http", "https://a.example");
        assert_eq!(lines(&one, &bare), ["newly asks for http without bounds"]);
        assert!(diff(&bare, &one).iter().all(|change| !change.is_more()));
        assert_eq!(lines(&Requests::default(), &bare), ["newly asks for http"]);
        assert_eq!(lines(&bare, &bare), [""; 0]);
    }

    fn any_requests() -> impl Strategy<Value = Requests> {
        let request = (
            proptest::collection::btree_set("[ab]", 0..3),
            proptest::collection::btree_map("[xy]", 0u64..3, 0..3),
        )
            .prop_map(|(items, limits)| Request { items, limits });
        proptest::collection::btree_map("[hs]", request, 0..3).prop_map(Requests)
    }

    /// Whether whoever grants `old` has granted all of `new`.
    fn covers(old: &Requests, new: &Requests) -> bool {
        let bare = |request: &Request| request.items.is_empty() && request.limits.is_empty();
        new.0.iter().all(|(capability, new)| {
            old.0.get(capability).is_some_and(|old| {
                bare(old)
                    || (!bare(new)
                        && new.items.is_subset(&old.items)
                        && new.limits.iter().all(|(limit, amount)| {
                            old.limits.get(limit).is_some_and(|had| had >= amount)
                        }))
            })
        })
    }

    proptest! {
        #[test]
        fn nothing_more_is_asked_for_exactly_where_the_old_covers_it(
            old in any_requests(), new in any_requests()
        ) {
            let more = diff(&old, &new).iter().any(Change::is_more);
            prop_assert_eq!(!more, covers(&old, &new));
            prop_assert!(diff(&new, &new).is_empty());
        }
    }
}
