//! The values of the contract (`wit/`), one module for each interface, as the host sees them.
//!
//! Each type here is the WIT type of the same name; the derived `ComponentType`, `Lift` and
//! `Lower` copy it straight between guest memory and Rust, field by field, with no tree of dynamic
//! values between. They are the sandbox's public types as well, so nothing is converted twice.

pub mod compliance;
pub mod deployment;
pub mod evaluation;
pub mod inference;
pub mod monitoring;
pub mod types;
pub mod validation;

/// The package and version of the contract that this host speaks, as it stands in the names of
/// interfaces: `millgate:stage/compliance@0.1.0`.
pub const PACKAGE: &str = "millgate:stage";

/// The full version of the contract.
pub const VERSION: &str = "0.1.0";

/// The version as a manifest states it: additions keep it, so the patch number is left out.
pub const MANIFEST_VERSION: &str = "0.1";

/// The five stage interfaces.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Interface {
    /// Is this data well formed?
    Validation,
    /// Is this text allowed?
    Compliance,
    /// Is something changing?
    Monitoring,
    /// Who gets the new version?
    Deployment,
    /// Is this answer good?
    Evaluation,
}

impl Interface {
    /// All five, in the order of a request's way.
    pub const ALL: [Interface; 5] = [
        Interface::Validation,
        Interface::Compliance,
        Interface::Monitoring,
        Interface::Deployment,
        Interface::Evaluation,
    ];

    /// The word used in configs and manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Interface::Validation => "validation",
            Interface::Compliance => "compliance",
            Interface::Monitoring => "monitoring",
            Interface::Deployment => "deployment",
            Interface::Evaluation => "evaluation",
        }
    }

    /// The interface's name in a component: `millgate:stage/compliance@0.1.0`.
    #[must_use]
    pub fn export_name(self) -> String {
        format!("{PACKAGE}/{}@{VERSION}", self.name())
    }
}

impl std::fmt::Display for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
