//! Where things are kept on this machine.

use std::path::PathBuf;

/// `${XDG_DATA_HOME:-~/.local/share}/millgate`: models, traces, the audit log.
#[must_use]
pub fn default_data() -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    base.unwrap_or_else(|| PathBuf::from(".")).join("millgate")
}

/// The data folder that was asked for, or the default one.
#[must_use]
pub fn data(given: Option<PathBuf>) -> PathBuf {
    given.unwrap_or_else(default_data)
}
