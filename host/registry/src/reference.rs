//! A plugin's place in a registry: `registry/name:tag@sha256:…`.
//!
//! Stricter than what container tools take: the registry is always named (no tool's default one is
//! guessed), and so is a tag or a digest (`latest` is never meant by leaving it out).

use crate::digest::Digest;
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The longest repository, in bytes (distribution specification).
const MAX_REPOSITORY: usize = 255;
/// The longest tag, in bytes (distribution specification).
const MAX_TAG: usize = 128;

/// A plugin's place in a registry, by tag, by digest, or by a tag that is pinned to a digest.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry's host, with its port if it has one: `registry.example:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The name within the registry: `acme/pii`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, usually a version.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the OCI manifest that the reference is pinned to.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same, pinned to `digest`.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Reference {
        Reference {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same by another tag, not pinned.
    pub fn with_tag(&self, tag: &str) -> Result<Reference> {
        check_tag(tag).map_err(|why| wrong(&format!("{self}"), why))?;
        Ok(Reference {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository by tag alone, or by digest where there is no tag.
    #[must_use]
    pub fn without_pin(&self) -> Reference {
        let digest = if self.tag.is_some() {
            None
        } else {
            self.digest
        };
        Reference {
            digest,
            ..self.clone()
        }
    }

    /// Where cosign keeps the signatures of the manifest with this digest: the tag `sha256-….sig`
    /// of the same repository.
    #[must_use]
    pub fn signatures_of(&self, manifest: &Digest) -> Reference {
        Reference {
            tag: Some(format!("sha256-{}.sig", manifest.hex())),
            digest: None,
            ..self.clone()
        }
    }

    /// Whether the registry is this machine by its literal name or address. Only such a registry is
    /// spoken to without TLS unless the operator says otherwise.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = host_of(&self.registry);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The host to connect to. Docker Hub's API does not answer at the name that it is known by.
    pub(crate) fn endpoint(&self) -> &str {
        match self.registry.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        }
    }
}

/// A registry's host without its port and brackets.
pub(crate) fn host_of(registry: &str) -> &str {
    if let Some(rest) = registry.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    registry.split(':').next().unwrap_or(registry)
}

fn wrong(text: &str, why: impl Into<String>) -> Error {
    Error::Reference {
        text: text.chars().take(120).collect(),
        why: why.into(),
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let bad = |why: String| wrong(text, why);
        if let Some((scheme, rest)) = text.split_once("://") {
            return Err(bad(format!("leave out `{scheme}://`: write {rest}")));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let Some((registry, rest)) = rest.split_once('/') else {
            return Err(bad(
                "it has no registry: write such as registry.example/acme/name:1.0.0".into(),
            ));
        };
        check_registry(registry).map_err(bad)?;
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        check_repository(repository).map_err(bad)?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(bad)?;
        }
        if tag.is_none() && digest.is_none() {
            return Err(bad(format!(
                "it says no version: write such as {registry}/{repository}:1.0.0, or pin it by @sha256:…"
            )));
        }
        Ok(Reference {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

fn check_registry(registry: &str) -> std::result::Result<(), String> {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let Some((host, after)) = rest.split_once(']') else {
            return Err(format!(
                "the IPv6 address of the registry {registry:?} has no closing bracket"
            ));
        };
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(format!("{host:?} is no IPv6 address"));
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return Err(format!("{after:?} after the registry's address is no port")),
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    if let Some(port) = port
        && !(port.parse::<u16>().is_ok_and(|port| port > 0)
            && port.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Err(format!("{port:?} is no port: 1 to 65535"));
    }
    let Some(host) = host else { return Ok(()) };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if host.len() > 253 || !host.split('.').all(label) {
        return Err(format!(
            "{host:?} is no registry: write its host in lower case, such as registry.example"
        ));
    }
    // Without this, `acme/pii:1.0` would be taken for the name `pii` on a host called `acme`.
    if port.is_none() && host != "localhost" && !host.contains('.') {
        return Err(format!(
            "it has no registry ({host:?} is a plain word): write such as registry.example/{host}/…"
        ));
    }
    Ok(())
}

fn check_repository(repository: &str) -> std::result::Result<(), String> {
    if repository.len() > MAX_REPOSITORY {
        return Err(format!("its name is longer than {MAX_REPOSITORY} bytes"));
    }
    for part in repository.split('/') {
        if !is_component(part) {
            return Err(format!(
                "{part:?} is no part of a name: lower-case letters and digits, joined by `.`, `_`, \
                 `__` or hyphens"
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution specification).
fn is_component(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(|byte| alphanumeric(*byte))
        || !bytes.last().is_some_and(|byte| alphanumeric(*byte))
    {
        return false;
    }
    bytes
        .split(|byte| alphanumeric(*byte))
        .all(|between| match between {
            [] | b"." | b"_" | b"__" => true,
            hyphens => hyphens.iter().all(|byte| *byte == b'-'),
        })
}

fn check_tag(tag: &str) -> std::result::Result<(), String> {
    let bytes = tag.as_bytes();
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let fits = bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|byte| word(*byte))
        && bytes
            .iter()
            .all(|byte| word(*byte) || *byte == b'.' || *byte == b'-');
    if fits {
        Ok(())
    } else {
        Err(format!(
            "{:?} is no tag: 1 to {MAX_TAG} letters, digits, `_`, `.` and `-`, not beginning with \
             `.` or `-`",
            tag.chars().take(40).collect::<String>()
        ))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Reference, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PIN: &str = "@sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_parts_are_told_apart() {
        let text = format!("registry.example:5000/acme/pii:1.3.0{PIN}");
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.registry(), "registry.example:5000");
        assert_eq!(reference.repository(), "acme/pii");
        assert_eq!(reference.tag(), Some("1.3.0"));
        assert_eq!(reference.digest(), Some(Digest::of(b"abc")));
        assert_eq!(reference.to_string(), text);
        assert!(!reference.is_loopback());
    }

    #[test]
    fn a_port_is_not_a_tag() {
        let reference: Reference = "localhost:5000/pii:1".parse().unwrap();
        assert_eq!(reference.registry(), "localhost:5000");
        assert_eq!(reference.tag(), Some("1"));
    }

    #[test]
    fn loopback_is_told_by_the_literal_name() {
        for (text, loopback) in [
            ("localhost/a:1", true),
            ("127.0.0.1:5000/a:1", true),
            ("[::1]:5000/a:1", true),
            ("localhost.example/a:1", false),
            ("127.0.0.1.example/a:1", false),
            ("10.0.0.1/a:1", false),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.is_loopback(), loopback, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "no registry"),
            ("pii:1.0", "no registry"),
            ("acme/pii:1.0", "no registry"),
            ("https://r.example/pii:1", "leave out `https://`"),
            ("r.example/pii", "no version"),
            ("r.example/Pii:1", "no part of a name"),
            ("r.example/a//b:1", "no part of a name"),
            ("r.example/a___b:1", "no part of a name"),
            ("r.example/../b:1", "no part of a name"),
            ("R.example/pii:1", "lower case"),
            ("r..example/pii:1", "no registry"),
            ("r.example:0/pii:1", "no port"),
            ("r.example:+80/pii:1", "no port"),
            ("r.example:http/pii:1", "no port"),
            ("r.example/pii:", "no tag"),
            ("r.example/pii:-1", "no tag"),
            ("r.example/pii:1:2", "no tag"),
            ("r.example/pii@sha256:12", "64"),
            ("r.example/pii@md5:12", "sha256"),
            ("[::1/pii:1", "bracket"),
            ("[::g]:80/pii:1", "IPv6"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let long = format!("r.example/{}:1", "a".repeat(256));
        assert!(long.parse::<Reference>().is_err());
    }

    #[test]
    fn signatures_have_their_own_tag() {
        let reference: Reference = "r.example/pii:1.0".parse().unwrap();
        let signatures = reference.signatures_of(&Digest::of(b"abc"));
        assert_eq!(
            signatures.to_string(),
            format!("r.example/pii:sha256-{}.sig", &PIN[8..])
        );
    }

    fn any_reference() -> impl Strategy<Value = String> {
        let registry = "(localhost|[a-z0-9]{1,8}(-[a-z0-9]{1,4})?\\.[a-z]{2,5})(:[1-9][0-9]{0,3})?";
        let repository =
            "[a-z0-9]{1,6}(((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,2})";
        let tag = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}";
        (
            registry,
            repository,
            proptest::option::of(tag),
            proptest::option::of(any::<[u8; 32]>()),
        )
            .prop_filter("says a version", |(_, _, tag, pin)| {
                tag.is_some() || pin.is_some()
            })
            .prop_map(|(registry, repository, tag, pin)| {
                let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
                let pin = pin
                    .map(|pin| format!("@{}", Digest(pin)))
                    .unwrap_or_default();
                format!("{registry}/{repository}{tag}{pin}")
            })
    }

    proptest! {
        #[test]
        fn what_is_right_reads_back(text in any_reference()) {
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string(), text.clone());
            // The registry client's own grammar takes it too.
            prop_assert!(text.parse::<oci_client::Reference>().is_ok());
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }

        #[test]
        fn near_misses_are_read_or_refused(text in any_reference(), at in 0usize..80, with in "[A-Z@:/._-]") {
            let at = at.min(text.len());
            let text = format!("{}{with}{}", &text[..at], &text[at..]);
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }
}
