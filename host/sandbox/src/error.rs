//! Why a plugin could not be loaded.

/// Why a sandbox could not be made, or a plugin could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not filled in yet.
    #[error("{0}")]
    Load(String),
}

/// Short for results of loading.
pub type Result<T, E = Error> = std::result::Result<T, E>;
