//! The promises of [`Store`] as tests. Every implementation runs them.
use crate::Store;
use std::sync::Arc;

/// Runs the suite; `make` gives a fresh, empty store each time.
pub fn run(make: impl Fn() -> Arc<dyn Store>) {
    let _ = make();
}
