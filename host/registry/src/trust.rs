//! Whom an operator trusts, for which plugins.

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::key::PublicKey;
use crate::signature::Signature;
use serde::{Deserialize, Serialize};

/// A `[[trust]]` section of the config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrustConfig {
    /// The signer's name, for messages, the lock and the trace.
    pub name: String,
    /// The public key, in PEM.
    pub key: String,
    /// The names of the plugins that it may sign. `*` stands for any letters: `acme-*`.
    pub plugins: Vec<String>,
}

/// Somebody who may sign some plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// The signer's name.
    pub name: String,
    /// The signer's key.
    pub key: PublicKey,
    /// The plugins that the signer may sign.
    plugins: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern(String);

/// All signers that are trusted. By default nobody is.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    signers: Vec<Signer>,
}

impl Trust {
    /// Reads the `[[trust]]` sections. One signer may have several, with a key each (to replace a
    /// key, both are listed for a while).
    pub fn new(sections: &[TrustConfig]) -> Result<Trust> {
        let mut signers = Vec::with_capacity(sections.len());
        for section in sections {
            let bad = |why: String| Error::Trust {
                name: section.name.clone(),
                why,
            };
            if section.name.trim().is_empty() || section.name.chars().any(char::is_control) {
                return Err(bad("`name` must be one line of text".into()));
            }
            if section.plugins.is_empty() {
                return Err(bad(
                    "`plugins` must name what it may sign, such as [\"acme-*\"]".into(),
                ));
            }
            let key = PublicKey::parse(&section.name, &section.key)?;
            let plugins = section
                .plugins
                .iter()
                .map(|pattern| Pattern::parse(pattern).map_err(bad))
                .collect::<Result<_>>()?;
            signers.push(Signer {
                name: section.name.clone(),
                key,
                plugins,
            });
        }
        Ok(Trust { signers })
    }

    /// Whether nobody is trusted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signers.is_empty()
    }

    /// The signers.
    #[must_use]
    pub fn signers(&self) -> &[Signer] {
        &self.signers
    }

    /// Who signed `plugin` (the name in its own manifest), whose OCI manifest has the digest
    /// `digest`. Works offline. One good signature is enough, whatever stands beside it.
    ///
    /// # Errors
    /// [`Error::Unsigned`], [`Error::UnknownKey`], [`Error::NotAllowed`] and [`Error::Tampered`];
    /// where several fit, the one that says most.
    pub fn check(
        &self,
        plugin: &str,
        digest: &Digest,
        signatures: &[Signature],
    ) -> Result<&Signer> {
        if signatures.is_empty() {
            return Err(Error::Unsigned {
                plugin: plugin.to_owned(),
                digest: *digest,
            });
        }
        let tampered = |why: String| Error::Tampered {
            plugin: plugin.to_owned(),
            digest: *digest,
            why,
        };
        let (mut not_allowed, mut changed, mut keys) = (None, None, Vec::new());
        for signature in signatures {
            let mut known = false;
            for signer in &self.signers {
                if !signer
                    .key
                    .verifies(&signature.payload, &signature.signature)
                {
                    if signature.key.as_deref() == Some(signer.key.id()) {
                        known = true;
                        changed = Some(tampered(format!(
                            "a signature beside it names the key of {} and does not fit it",
                            signer.name
                        )));
                    }
                    continue;
                }
                known = true;
                match signature.signed() {
                    Ok(signed) if signed == *digest && signer.may_sign(plugin) => {
                        return Ok(signer);
                    }
                    Ok(signed) if signed == *digest => not_allowed = Some(signer),
                    Ok(signed) => {
                        changed = Some(tampered(format!("{} signed {signed}", signer.name)));
                    }
                    Err(why) => changed = Some(tampered(why)),
                }
            }
            if !known && let Some(key) = &signature.key {
                keys.push(key.clone());
            }
        }
        if let Some(signer) = not_allowed {
            return Err(Error::NotAllowed {
                plugin: plugin.to_owned(),
                signer: signer.name.clone(),
                patterns: signer
                    .plugins
                    .iter()
                    .map(|pattern| pattern.0.clone())
                    .collect(),
            });
        }
        Err(changed.unwrap_or_else(|| Error::UnknownKey {
            plugin: plugin.to_owned(),
            digest: *digest,
            keys,
        }))
    }
}

impl Signer {
    /// Whether this signer is trusted for the plugin of that name.
    #[must_use]
    pub fn may_sign(&self, plugin: &str) -> bool {
        self.plugins.iter().any(|pattern| pattern.fits(plugin))
    }
}

impl Pattern {
    fn parse(text: &str) -> std::result::Result<Pattern, String> {
        let fits = !text.is_empty()
            && text.len() <= 128
            && text.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'*')
            });
        if fits {
            Ok(Pattern(text.to_owned()))
        } else {
            Err(format!(
                "`plugins` has {text:?}, which no plugin is called: lower-case letters, digits, hyphens, and `*` for any of them"
            ))
        }
    }

    /// Matches greedily from both ends; parts in between are found from the left.
    fn fits(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else {
            return rest.is_empty(); // No star: the whole name.
        };
        let Some(middle) = rest.strip_suffix(last) else {
            return false;
        };
        rest = middle;
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Keys, SecretKey};
    use proptest::prelude::*;

    struct Case {
        _dir: tempfile::TempDir,
        acme: SecretKey,
        other: SecretKey,
        trust: Trust,
        digest: Digest,
    }

    fn case() -> Case {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(dir.path());
        let (acme, other) = (keys.create("acme").unwrap(), keys.create("other").unwrap());
        let trust = Trust::new(&[TrustConfig {
            name: "Acme".into(),
            key: acme.public().pem().unwrap(),
            plugins: vec!["acme-*".into()],
        }])
        .unwrap();
        Case {
            _dir: dir,
            acme,
            other,
            trust,
            digest: Digest::of(b"manifest"),
        }
    }

    fn sign(key: &SecretKey, digest: &Digest) -> Signature {
        let reference = "r.example/acme/pii:1.0.0".parse().unwrap();
        Signature::sign(key, &reference, digest).unwrap()
    }

    #[test]
    fn a_good_signature_is_enough_whatever_stands_beside_it() {
        let case = case();
        let mut broken = sign(&case.acme, &case.digest);
        broken.signature[0] ^= 1;
        let signatures = [
            broken,
            sign(&case.other, &case.digest),
            sign(&case.acme, &Digest::of(b"old")),
            sign(&case.acme, &case.digest),
        ];
        let signer = case.trust.check("acme-pii", &case.digest, &signatures);
        assert_eq!(signer.unwrap().name, "Acme");
    }

    #[test]
    fn each_refusal_has_its_own_name() {
        let case = case();
        let check = |plugin: &str, signatures: &[Signature]| {
            case.trust
                .check(plugin, &case.digest, signatures)
                .unwrap_err()
        };
        let unsigned = check("acme-pii", &[]);
        assert!(matches!(&unsigned, Error::Unsigned { plugin, .. } if plugin == "acme-pii"));
        let unknown = check("acme-pii", &[sign(&case.other, &case.digest)]);
        assert!(
            matches!(&unknown, Error::UnknownKey { keys, .. } if keys == &[case.other.public().id()])
        );
        let not_allowed = check("pii", &[sign(&case.acme, &case.digest)]);
        assert!(matches!(&not_allowed, Error::NotAllowed { signer, .. } if signer == "Acme"));
        let moved = check("acme-pii", &[sign(&case.acme, &Digest::of(b"old"))]);
        assert!(matches!(&moved, Error::Tampered { why, .. } if why.contains("Acme signed")));
        // A payload that was changed to name this digest: the signature no longer fits.
        let mut changed = sign(&case.acme, &Digest::of(b"old"));
        changed.payload = sign(&case.acme, &case.digest).payload;
        let changed = check("acme-pii", &[changed]);
        assert!(matches!(&changed, Error::Tampered { why, .. } if why.contains("does not fit")));
        for error in [unsigned, unknown, not_allowed, moved, changed] {
            let text = error.to_string();
            assert!(text.contains("the plugin "), "{text}");
            assert!(text.contains("pii"), "{text}");
        }
    }

    #[test]
    fn a_signature_of_something_else_is_not_taken() {
        let case = case();
        for payload in [
            &b"{}"[..],
            b"\xff",
            br#"{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"sha256:00"},"type":"cosign container image signature"},"optional":null}"#,
            br#"{"critical":{"identity":{"docker-reference":""},"image":{"docker-manifest-digest":"sha256:b8b2b0e3d5b0d0f3b1a4ef2e3b5c4d7e2b3c1d0e9f8a7b6c5d4e3f2a1b0c9d8e"},"type":"other"},"optional":null}"#,
        ] {
            let signature = Signature {
                payload: payload.into(),
                signature: case.acme.sign(payload).to_vec(),
                key: None,
            };
            let error = case.trust.check("acme-pii", &case.digest, &[signature]);
            assert!(matches!(error, Err(Error::Tampered { .. })), "{error:?}");
        }
    }

    #[test]
    fn sections_that_are_wrong_are_said() {
        let case = case();
        let good = TrustConfig {
            name: "Acme".into(),
            key: case.acme.public().pem().unwrap(),
            plugins: vec!["acme-*".into()],
        };
        for (section, why) in [
            (
                TrustConfig {
                    name: " ".into(),
                    ..good.clone()
                },
                "`name`",
            ),
            (
                TrustConfig {
                    key: "x".into(),
                    ..good.clone()
                },
                "PEM",
            ),
            (
                TrustConfig {
                    plugins: vec![],
                    ..good.clone()
                },
                "`plugins`",
            ),
            (
                TrustConfig {
                    plugins: vec!["Acme".into()],
                    ..good.clone()
                },
                "lower-case",
            ),
        ] {
            let error = Trust::new(&[section]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, fits) in [
            ("pii", "pii", true),
            ("pii", "pii2", false),
            ("*", "anything", true),
            ("acme-*", "acme-", true),
            ("acme-*", "acmes-pii", false),
            ("*-pii", "acme-pii", true),
            ("a*b*c", "aXbXc", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*a*a*", "xax", false),
        ] {
            let pattern = Pattern(pattern.into());
            assert_eq!(pattern.fits(name), fits, "{pattern:?} {name}");
        }
    }

    /// The obvious matcher, exponential and right.
    fn plain(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                plain(rest, name)
                    || name
                        .split_first()
                        .is_some_and(|(_, tail)| plain(pattern, tail))
            }
            (Some((want, rest)), Some((got, tail))) => want == got && plain(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_match_like_the_obvious_matcher(pattern in "[ab*]{1,6}", name in "[ab]{0,8}") {
            prop_assert_eq!(
                Pattern(pattern.clone()).fits(&name),
                plain(pattern.as_bytes(), name.as_bytes())
            );
        }
    }
}
