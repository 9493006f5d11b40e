//! The manifest: what a plugin says about itself, in a custom section of its component.

use serde::{Deserialize, Serialize};

use crate::config::check_schema;
use crate::contract::{Interface, MANIFEST_VERSION};
use crate::error::{Error, Result};

/// The custom section that holds `plugin.toml` verbatim.
pub const SECTION: &str = "millgate:manifest";

/// The most bytes that a manifest may have.
const MAX_BYTES: usize = 256 << 10;

/// A capability that a plugin asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// A key-value space of the stage's own.
    State,
    /// The host's own models.
    Inference,
    /// Secrets by name.
    Secrets,
    /// Outgoing HTTP.
    Http,
}

impl Capability {
    /// All of them.
    pub const ALL: [Capability; 4] = [
        Capability::State,
        Capability::Inference,
        Capability::Secrets,
        Capability::Http,
    ];

    /// The word used in manifests and grants, which is also the interface's.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Capability::State => "state",
            Capability::Inference => "inference",
            Capability::Secrets => "secrets",
            Capability::Http => "http",
        }
    }

    /// The TOML line that grants it, with values to start from.
    #[must_use]
    pub fn line(self) -> &'static str {
        match self {
            Capability::State => "grant.state = { bytes = 65536 }",
            Capability::Inference => {
                "grant.inference = { models = [\"default\"], tokens-per-minute = 20000 }"
            }
            Capability::Secrets => "grant.secrets = [\"NAME\"]",
            Capability::Http => "grant.http = [\"https://HOST\"]",
        }
    }
}

/// What a plugin says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// The plugin's name, in kebab case.
    pub name: String,
    /// Its version, `MAJOR.MINOR.PATCH` with an optional suffix.
    pub version: String,
    /// Its licence (SPDX expression).
    pub license: String,
    /// One line of help.
    pub help: String,
    /// The contract that it was built for, such as `0.1`.
    pub contract: String,
    /// The stage interfaces that it exports.
    pub interfaces: Vec<Interface>,
    /// The capabilities that it asks for.
    #[serde(default)]
    pub requests: Vec<Capability>,
    /// The JSON Schema (2020-12) of its config; `null` where any config will do.
    #[serde(default)]
    pub config: serde_json::Value,
}

impl Manifest {
    /// Reads a manifest, strictly: an unknown key is an error, so that a slip is seen at once.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        if bytes.len() > MAX_BYTES {
            return Err(Error::Manifest(format!(
                "it is longer than {MAX_BYTES} bytes"
            )));
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Error::Manifest(format!("it is not UTF-8: {error}")))?;
        // The version first: a manifest of a later contract may well have keys that are not
        // known here, and then the version is what is wrong.
        if let Ok(table) = text.parse::<toml::Table>() {
            let word = |key: &str| table.get(key).and_then(toml::Value::as_str);
            if let Some(needs) = word("contract").filter(|needs| *needs != MANIFEST_VERSION) {
                return Err(Error::Contract {
                    plugin: word("name").unwrap_or("?").chars().take(64).collect(),
                    needs: needs.chars().take(32).collect(),
                });
            }
        }
        let manifest: Manifest = toml::from_str(text)
            .map_err(|error| Error::Manifest(error.to_string().trim_end().to_owned()))?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        let bad = |why: String| Err(Error::Manifest(why));
        if !is_name(&self.name) {
            return bad(format!(
                "`name` must be 1 to 64 lower-case letters, digits and hyphens, not {:?}",
                self.name
            ));
        }
        if !is_version(&self.version) {
            return bad(format!(
                "`version` must be such as 1.2.3, not {:?}",
                self.version
            ));
        }
        if self.license.trim().is_empty() {
            return bad("`license` must be an SPDX expression such as Apache-2.0".into());
        }
        if self.help.trim().is_empty() || self.help.contains('\n') {
            return bad("`help` must be one line".into());
        }
        if self.interfaces.is_empty() {
            return bad(format!(
                "`interfaces` must name at least one of {}",
                Interface::ALL.map(Interface::name).join(", ")
            ));
        }
        if let Some(twice) = duplicate(&self.interfaces) {
            return bad(format!("`interfaces` names {twice} twice"));
        }
        if let Some(twice) = duplicate(&self.requests) {
            return bad(format!("`requests` names {} twice", twice.name()));
        }
        if !self.config.is_null() {
            check_schema(&self.config)
                .or_else(|why| bad(format!("[config] is not a JSON Schema: {why}")))?;
        }
        Ok(())
    }
}

fn duplicate<T: PartialEq>(items: &[T]) -> Option<&T> {
    items
        .iter()
        .enumerate()
        .find(|(i, item)| items.iter().take(*i).any(|x| x == *item))
        .map(|x| x.1)
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_version(version: &str) -> bool {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    version.len() <= 64
        && parts.len() == 3
        && parts
            .iter()
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "pii"
        version = "0.1.0"
        license = "Apache-2.0"
        help = "Finds personal data."
        contract = "0.1"
        interfaces = ["compliance"]
        requests = ["state"]
        [config]
        type = "object"
        [config.properties.action]
        type = "string"
        default = "mask"
    "#;

    fn error_of(text: &str) -> String {
        Manifest::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_manifest_is_read_with_its_schema() {
        let manifest = Manifest::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(manifest.interfaces, [Interface::Compliance]);
        assert_eq!(manifest.requests, [Capability::State]);
        assert_eq!(manifest.config["properties"]["action"]["default"], "mask");
    }

    #[test]
    fn another_contract_is_refused_by_its_version_even_with_unknown_keys() {
        let text = GOOD
            .replace("\"0.1\"", "\"0.2\"")
            .replace("help =", "new-key = 1\nhelp =");
        let message = error_of(&text);
        assert!(
            message.contains("needs contract 0.2, this host speaks 0.1"),
            "{message}"
        );
    }

    #[test]
    fn each_slip_is_named() {
        for (from, to, expected) in [
            ("help =", "halp =", "halp"),
            ("\"pii\"", "\"P I I\"", "`name`"),
            ("\"0.1.0\"", "\"one\"", "`version`"),
            ("[\"compliance\"]", "[]", "`interfaces`"),
            ("[\"compliance\"]", "[\"magic\"]", "magic"),
            (
                "[\"compliance\"]",
                "[\"compliance\", \"compliance\"]",
                "twice",
            ),
            ("[\"state\"]", "[\"root\"]", "root"),
            ("type = \"object\"", "type = \"objekt\"", "[config]"),
            ("\"Finds personal data.\"", "\"\"", "`help`"),
        ] {
            let message = error_of(&GOOD.replacen(from, to, 1));
            assert!(message.contains(expected), "{from} -> {to}: {message}");
        }
        assert!(error_of("\u{0}\u{1}").contains("manifest"));
        assert!(Manifest::parse(b"\xff\xfe").is_err());
    }
}
