//! How two arms of a trial are split and compared. The `canary` plugin decides rollouts of models
//! by it, and the host decides canary stages by it, so that both mean the same by "worse".
//!
//! [`split`] places a sticky key; [`moments`] keeps running statistics; [`sequential`] holds the
//! always-valid tests. No clock, no state, no allocation but vectors: it also runs inside a plugin.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

pub mod moments;
pub mod sequential;
pub mod split;
