//! What can go wrong in the store. One enum for the crate; each message says what to do. Errors
//! are `Clone`, because one failed write to the journal is the answer to every commit in its group.

use crate::audit::AuditError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the store.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another process has the folder open.
    #[error(
        "the data folder {} is in use by another process: stop that `millgate serve`, or give this one \
         another folder",
        path.display()
    )]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// No space is left, a quota or a file-size limit is reached.
    #[error(
        "no space to write {} ({source}): free some space or raise the limit; writes that wait are \
         written by themselves then, and nothing acknowledged is lost",
        path.display()
    )]
    DiskFull {
        /// The file that could not grow.
        path: PathBuf,
        /// The system's own error.
        source: Arc<io::Error>,
    },
    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb: `open`, `write`, …
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own error.
        source: Arc<io::Error>,
    },
    /// Bytes on disk are not what was written.
    #[error(
        "{} is damaged: {why}. Restore it from a copy; to go on without the damaged part, move that \
         file away and start again",
        path.display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// What was found, with the place.
        why: String,
    },
    /// The tree behind the journal failed.
    #[error("the key tree in {} failed ({why}): the journal keeps every acknowledged write; free space or repair \
             the disk, then start again", path.display())]
    Tree {
        /// The folder of the tree.
        path: PathBuf,
        /// The tree's own message.
        why: String,
    },
    /// A key, a value or a batch is larger than the store takes.
    #[error(
        "a {what} of {size} bytes is over the limit of {limit}: keep large bytes in a blob and store its digest"
    )]
    TooLarge {
        /// `key`, `value` or `batch`.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The store is shutting down.
    #[error("the store is closed: open it again before writing")]
    Closed,
    /// There is no blob of that digest.
    #[error("no blob {digest}: it was never stored here or was deleted")]
    NoBlob {
        /// The digest asked for.
        digest: crate::Digest,
    },
    /// Text that is not a digest.
    #[error("`{text}` is no digest: expected `sha256:` and 64 lower-case hexadecimal digits")]
    BadDigest {
        /// The text, cut to 80 characters.
        text: String,
    },
    /// The audit log was changed, or cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl Error {
    /// Wraps a system error, telling "no space" apart from the rest.
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Error {
        let path = path.to_path_buf();
        let full = matches!(
            source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        );
        let source = Arc::new(source);
        if full {
            Error::DiskFull { path, source }
        } else {
            Error::Io {
                doing,
                path,
                source,
            }
        }
    }
}
