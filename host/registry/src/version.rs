//! Versions, which only go forward.

use crate::error::{Error, Result};
use semver::Version;

/// Reads `MAJOR.MINOR.PATCH` with an optional suffix (Semantic Versioning 2.0).
pub fn parse(text: &str) -> Result<Version> {
    Version::parse(text).map_err(|error| Error::Version {
        text: text.chars().take(64).collect(),
        why: error.to_string(),
    })
}

/// The version that a tag says, if it says one (`v1.2.3` does as well). A tag has no `+`, so build
/// metadata follows `_`, as `wkg` and Helm write it.
#[must_use]
pub fn of_tag(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix('v').unwrap_or(tag).replacen('_', "+", 1);
    Version::parse(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_that_are_versions_are_told_from_others() {
        for (tag, version) in [
            ("1.2.3", Some("1.2.3")),
            ("v1.2.3", Some("1.2.3")),
            ("1.2.3-rc.1", Some("1.2.3-rc.1")),
            ("1.2.3_build", Some("1.2.3+build")),
            ("latest", None),
            ("1.2", None),
            ("sha256-00.sig", None),
        ] {
            assert_eq!(
                of_tag(tag).map(|found| found.to_string()).as_deref(),
                version,
                "{tag}"
            );
        }
    }

    #[test]
    fn what_is_no_version_is_said() {
        let error = parse("1.2").unwrap_err().to_string();
        assert!(error.contains("MAJOR.MINOR.PATCH"), "{error}");
    }
}
