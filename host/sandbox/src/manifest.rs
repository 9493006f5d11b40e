//! The manifest: what a plugin says about itself, in a custom section of its component.

use serde::{Deserialize, Serialize};

use crate::contract::Interface;

/// The custom section that holds `plugin.toml` verbatim.
pub const SECTION: &str = "millgate:manifest";

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

/// What a plugin says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// The plugin's name.
    pub name: String,
    /// Its version (semantic versioning).
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
    /// The JSON Schema (2020-12) of its config.
    #[serde(default)]
    pub config: serde_json::Value,
}
