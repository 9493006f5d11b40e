//! What every plugin is: a value made from its config, once, and kept in a cell that the exported
//! functions find it in.
#![allow(
    unsafe_code,
    reason = "a static cell for a guest that has one thread; see `Cell`"
)]

use core::cell::UnsafeCell;

use serde::de::DeserializeOwned;

use crate::StageError;

/// A plugin: made once from its config, then only asked.
pub trait Plugin: Sized + 'static {
    /// The config, as the schema in `plugin.toml` describes it. The host has filled in the
    /// schema's defaults before it comes here.
    type Config: DeserializeOwned;

    /// Makes the plugin. With fresh isolation the memory that this leaves behind is the image that
    /// every call starts from, so build every table here.
    ///
    /// # Errors
    /// [`StageError::invalid_config`], saying which key is wrong and what would be right.
    fn configure(config: Self::Config) -> Result<Self, StageError>;
}

/// A plugin that [`plugin!`](crate::plugin!) made a component of. Implemented by the macro alone.
pub trait Installed: Plugin {
    /// The text of `plugin.toml`.
    const MANIFEST: &'static str;

    /// Where the configured plugin lives.
    #[doc(hidden)]
    fn cell() -> &'static Cell<Self>;
}

/// The place of the one configured plugin of a component. It keeps no count of borrows: a count
/// would be written at every call, to a page of the instance's fresh memory that is otherwise only
/// read.
#[doc(hidden)]
pub struct Cell<P>(UnsafeCell<Option<P>>);

// SAFETY: a component is entered by one thread at a time, and never while it waits for a call that
// it made itself: the component model refuses re-entrance. The methods are called by the exports of
// `guest` alone, one in each, so no reference outlives its call or meets another. Natively nobody
// calls those exports.
unsafe impl<P> Sync for Cell<P> {}

impl<P> Cell<P> {
    /// An empty cell.
    #[must_use]
    pub const fn new() -> Self {
        Cell(UnsafeCell::new(None))
    }

    pub(crate) fn set(&self, plugin: P) {
        // SAFETY: see `Sync`.
        unsafe { *self.0.get() = Some(plugin) };
    }

    pub(crate) fn with<T>(
        &self,
        call: impl FnOnce(&P) -> Result<T, StageError>,
    ) -> Result<T, StageError> {
        // SAFETY: see `Sync`.
        match unsafe { &*self.0.get() } {
            Some(plugin) => call(plugin),
            None => Err(not_configured()),
        }
    }

    pub(crate) fn with_mut<T>(
        &self,
        call: impl FnOnce(&mut P) -> Result<T, StageError>,
    ) -> Result<T, StageError> {
        // SAFETY: see `Sync`.
        match unsafe { &mut *self.0.get() } {
            Some(plugin) => call(plugin),
            None => Err(not_configured()),
        }
    }
}

impl<P> Default for Cell<P> {
    fn default() -> Self {
        Cell::new()
    }
}

fn not_configured() -> StageError {
    StageError::internal(
        "not-configured",
        "the host called the plugin before `configure` had succeeded",
    )
}

/// Reads the config and makes the plugin.
pub(crate) fn configure<P: Plugin>(config: &str) -> Result<P, StageError> {
    let config = if config.is_empty() { "{}" } else { config };
    let config = serde_json::from_str(config).map_err(|error| {
        StageError::invalid_config("config", alloc::format!("the config does not fit: {error}"))
    })?;
    P::configure(config)
}
