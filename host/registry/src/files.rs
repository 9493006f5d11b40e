//! Files that are there whole or not at all.

use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// A temporary file beside its place; removed unless it is put there.
pub(crate) struct Draft {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    done: bool,
}

impl Draft {
    /// A draft of `path`, with the permissions `mode`.
    pub(crate) fn new(path: &Path, mode: u32) -> Result<Draft> {
        let dir = folder_of(path);
        fs::create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!(".{name}.{}-{number}.part", std::process::id()));
        let open = || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&temporary)
        };
        let file = match open() {
            // A process of the same id crashed here once.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&temporary).and_then(|()| open())
            }
            other => other,
        };
        Ok(Draft {
            file: file.map_err(|error| Error::io("create", &temporary, error))?,
            temporary,
            path: path.to_path_buf(),
            done: false,
        })
    }

    /// Where to write.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// The error of a failed write.
    pub(crate) fn failed(&self, error: io::Error) -> Error {
        Error::io("write", &self.path, error)
    }

    /// Syncs the draft and puts it into its place, over what is there.
    pub(crate) fn put(mut self) -> Result<()> {
        self.sync()?;
        fs::rename(&self.temporary, &self.path).map_err(|error| self.failed(error))?;
        self.done = true;
        sync_folder(folder_of(&self.path))
    }

    /// Like [`Draft::put`], and an error where something is there.
    pub(crate) fn put_new(mut self) -> Result<()> {
        self.sync()?;
        // A link fails where the name exists, which a rename does not. The temporary name goes
        // when this is dropped.
        fs::hard_link(&self.temporary, &self.path).map_err(|error| self.failed(error))?;
        sync_folder(folder_of(&self.path))
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed(error))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.done {
            // What matters is the error that led here.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole file: its old bytes are there until the new ones are.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut draft = Draft::new(path, 0o644)?;
    let written = draft.file().write_all(bytes);
    written.map_err(|error| draft.failed(error))?;
    draft.put()
}

/// The bytes of a file that has at most `limit`; `None` where there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", path, error))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge {
            what: path.display().to_string(),
            limit,
            how: "",
        });
    }
    Ok(Some(bytes))
}

pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| Error::io("sync", dir, error))
}
