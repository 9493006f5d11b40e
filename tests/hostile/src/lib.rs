//! Plugins for tests, as Wasm components. They are written against the contract alone, without
//! the SDK, because an SDK would not let them misbehave.

/// Misbehaves as its config says: `{ "behaviour": "..." }`. All five interfaces; asks for `state`.
/// See `hostile/src/lib.rs` for the behaviours.
pub static HOSTILE: &[u8] = include_bytes!(env!("GUEST_HOSTILE"));

/// A well-behaved compliance plugin, as small as can be: masks e-mail addresses, in a stream,
/// with a bump allocator and no WASI.
pub static SCAN: &[u8] = include_bytes!(env!("GUEST_SCAN"));

/// A compliance plugin as its language makes it: the standard library, its allocator, WASI.
pub static PLAIN: &[u8] = include_bytes!(env!("GUEST_PLAIN"));

/// A compliance plugin that asks a model; asks for `inference`.
pub static ASKING: &[u8] = include_bytes!(env!("GUEST_ASKING"));
