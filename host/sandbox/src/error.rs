//! Why a sandbox could not be made, or a plugin could not be loaded.

use crate::contract::types::StageError;
use crate::contract::{Interface, MANIFEST_VERSION};
use crate::failure::Failure;

/// Short for results of loading.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a sandbox could not be made, or a plugin could not be loaded. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine could not be set up.
    #[error("the Wasm engine could not be set up: {0}")]
    Engine(String),
    /// A file or thread could not be had.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The bytes are no valid component.
    #[error("not a valid Wasm component: {0}")]
    NotAComponent(String),
    /// There is no manifest.
    #[error(
        "the component has no manifest (custom section `millgate:manifest`): build it with the SDK, or embed its plugin.toml"
    )]
    NoManifest,
    /// The manifest cannot be read.
    #[error("the plugin's manifest cannot be used: {0}")]
    Manifest(String),
    /// The plugin speaks another version of the contract.
    #[error(
        "plugin `{plugin}` needs contract {needs}, this host speaks {MANIFEST_VERSION}: use a build of the plugin for {MANIFEST_VERSION}, or another host"
    )]
    Contract {
        /// The plugin's name.
        plugin: String,
        /// The version it needs.
        needs: String,
    },
    /// The manifest and the component disagree about the interfaces.
    #[error("plugin `{plugin}` {why}")]
    Interfaces {
        /// The plugin's name.
        plugin: String,
        /// The difference.
        why: String,
    },
    /// The component imports something that is not in the contract, or not in its manifest.
    #[error("plugin `{plugin}` imports `{import}`, {why}")]
    Import {
        /// The plugin's name.
        plugin: String,
        /// The import.
        import: String,
        /// Why it is refused.
        why: String,
    },
    /// The plugin asks for something that the operator did not grant.
    #[error(
        "plugin `{plugin}` asks for `{capability}`, which stage `{stage}` does not grant; to grant it, add to [stages.{stage}]: {line}"
    )]
    NotGranted {
        /// The stage's name.
        stage: String,
        /// The plugin's name.
        plugin: String,
        /// The capability.
        capability: &'static str,
        /// The TOML line that would grant it.
        line: &'static str,
    },
    /// The capability is in the contract, but this version of the host has not got it.
    #[error(
        "plugin `{plugin}` asks for `{capability}`: it is in the contract, but not available in this version of the host; use a plugin that does without"
    )]
    NotAvailable {
        /// The plugin's name.
        plugin: String,
        /// The capability.
        capability: &'static str,
    },
    /// The config does not fit the manifest's schema, or the plugin refused it.
    #[error("the config of stage `{stage}` cannot be used: {}", problems.join("; "))]
    Config {
        /// The stage's name.
        stage: String,
        /// One line for each problem: where, and what was expected.
        problems: Vec<String>,
    },
    /// `configure` failed.
    #[error("plugin `{plugin}` could not be configured as stage `{stage}`: {failure}")]
    Configure {
        /// The stage's name.
        stage: String,
        /// The plugin's name.
        plugin: String,
        /// How it failed.
        failure: Failure,
    },
    /// The configured plugin cannot be kept as an image.
    #[error(
        "plugin `{plugin}` cannot be snapshot after its configuration ({why}): run it with `isolation = \"warm\"`"
    )]
    Snapshot {
        /// The plugin's name.
        plugin: String,
        /// Why not.
        why: String,
    },
    /// The plugin takes more than one instance may.
    #[error("plugin `{plugin}` is too large for the sandbox: {what}")]
    TooLarge {
        /// The plugin's name.
        plugin: String,
        /// What is too large, and the limit.
        what: String,
    },
    /// A stage was asked for an interface that its plugin does not have.
    #[error("stage `{stage}`: plugin `{plugin}` has no {interface} interface")]
    Missing {
        /// The stage's name.
        stage: String,
        /// The plugin's name.
        plugin: String,
        /// The interface.
        interface: Interface,
    },
}

impl Error {
    pub(crate) fn engine(error: wasmtime::Error) -> Error {
        Error::Engine(format!("{error:#}"))
    }

    /// The error that a plugin's `configure` returned, as an error of the config where it is one.
    pub(crate) fn configure(stage: &str, plugin: &str, failure: Failure) -> Error {
        match failure {
            Failure::Stage(StageError {
                kind: crate::contract::types::ErrorKind::InvalidConfig,
                message,
                ..
            }) => Error::Config {
                stage: stage.into(),
                problems: vec![message],
            },
            failure => Error::Configure {
                stage: stage.into(),
                plugin: plugin.into(),
                failure,
            },
        }
    }
}
