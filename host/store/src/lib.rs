//! Millgate's store: an ordered key-value [`Store`] ([`SledStore`] on disk, [`MemoryStore`] in
//! memory), content-addressed [`Blobs`] beside it, and the hash-chained, signed [`AuditLog`] in it.
//!
//! It knows bytes and durability, nothing of models, plugins or HTTP.
//!
//! ```
//! use millgate_store::{Batch, SledStore, Store};
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("data");
//! let store = SledStore::open(&path, Default::default())?;
//! let mut batch = Batch::new();
//! batch.put("trace/1", "…").put("by-time/0001/1", "");
//! store.commit(batch).wait()?; // or `.await`: on disk now, whatever happens to the process
//! assert_eq!(store.get(b"trace/1")?.as_deref(), Some("…".as_bytes()));
//! # Ok::<(), millgate_store::Error>(())
//! ```

pub mod audit;
mod batch;
mod blobs;
mod commit;
pub mod conformance;
mod digest;
mod disk;
mod error;
mod memory;
mod seal;
mod store;
mod watch;

pub use audit::{AuditError, AuditLog, AuditReport, Entry, Record, SignedHead};
pub use batch::{Batch, MAX_BATCH, MAX_KEY, MAX_VALUE};
pub use blobs::{BlobReport, Blobs};
pub use commit::Commit;
pub use digest::Digest;
pub use disk::{SledOptions, SledStats, SledStore};
pub use error::{Error, Result};
pub use memory::MemoryStore;
pub use seal::{SealError, Vault};
pub use store::{Order, Pair, Store, prefix_end};
pub use watch::{WATCH_QUEUE, Watch, WatchEvent};
