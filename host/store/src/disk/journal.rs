//! The journal: an append-only file that makes writes durable before they reach the tree.
//!
//! Why there is one: a commit must cost one small sequential write and one `fdatasync`, shared by
//! all commits under way; and sled's own flush on Linux is `sync_file_range`, which neither empties
//! the drive's cache nor writes the file's metadata, so that alone it does not survive a loss of
//! power.
//!
//! A file is `NNNNNNNNNNNNNNNNNNNN.log`, filled with zeros when it is made, so that writing into it
//! changes no metadata and the `fdatasync` is a plain flush. It holds *frames*, one for each group:
//!
//! ```text
//! magic u32 | crc u32 | length u32 | batches u32 | first u64 | payload
//! ```
//!
//! all little-endian. `first` numbers the group's first batch; numbers run on without gaps through
//! all files. The CRC-32 covers the file's own number (so that bytes of another file never pass)
//! and everything after it. The payload is the batches, each a count of operations and these, an
//! operation being `key length u32 | value length u32 (0xffffffff: delete) | key | value`.
//!
//! A frame that is not whole ends a file: that write was under way when the process died, and
//! nobody was told that it was durable. But a frame is only begun when the one before is durable,
//! so a broken frame with a good one behind it is damage, and reading says so.

use crate::batch::Op;
use crate::blobs::{list, name_of, sync_dir};
use crate::error::{Error, Result};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The bytes in front of a frame's payload.
pub const HEADER: usize = 24;
const MAGIC: u32 = u32::from_le_bytes(*b"MGJ1");
const DELETE: u32 = u32::MAX;

/// The journal file that is written to.
pub struct Journal {
    file: File,
    path: PathBuf,
    id: u64,
    /// Where the next frame goes: behind the last durable one.
    end: u64,
}

impl Journal {
    /// Makes the file number `id`, `bytes` long.
    pub fn create(dir: &Path, id: u64, bytes: u64) -> Result<Journal> {
        let path = dir.join(format!("{id:020}.log"));
        let failed = |error| Error::io("create", &path, error);
        // A file of that number can be there only if making it failed half-way: it holds zeros.
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(failed)?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < bytes {
            let part = zeros
                .get(..(bytes - at).min(1 << 20) as usize)
                .unwrap_or(&zeros);
            file.write_all_at(part, at).map_err(failed)?;
            at += part.len() as u64;
        }
        file.sync_all().map_err(failed)?;
        sync_dir(dir)?;
        Ok(Journal {
            file,
            path,
            id,
            end: 0,
        })
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The bytes written so far.
    pub fn len(&self) -> u64 {
        self.end
    }

    /// Writes whole frames behind the last ones and returns when they are on disk. After an error
    /// nothing counts as written: the same frames, and more behind them, may be given again, and
    /// overwrite what was written of them.
    pub fn append(&mut self, frames: &[u8]) -> Result<()> {
        let failed = |error| Error::io("write", &self.path, error);
        self.file.write_all_at(frames, self.end).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        self.end += frames.len() as u64;
        Ok(())
    }
}

/// Fills in the header of a frame whose payload begins at [`HEADER`].
pub fn seal(frame: &mut [u8], journal: u64, first: u64, batches: u32) {
    let length = (frame.len() - HEADER) as u32;
    let Some((header, payload)) = frame.split_at_mut_checked(HEADER) else {
        return;
    };
    let mut fields = [0; HEADER];
    fields[..4].copy_from_slice(&MAGIC.to_le_bytes());
    fields[8..12].copy_from_slice(&length.to_le_bytes());
    fields[12..16].copy_from_slice(&batches.to_le_bytes());
    fields[16..24].copy_from_slice(&first.to_le_bytes());
    let crc = checksum(journal, &fields[8..], payload);
    fields[4..8].copy_from_slice(&crc.to_le_bytes());
    header.copy_from_slice(&fields);
}

/// Appends a batch to a payload.
pub fn encode<'a>(
    payload: &mut Vec<u8>,
    ops: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
) {
    payload.extend_from_slice(&(ops.len() as u32).to_le_bytes());
    for (key, value) in ops {
        payload.extend_from_slice(&(key.len() as u32).to_le_bytes());
        payload.extend_from_slice(
            &value
                .map_or(DELETE, |value| value.len() as u32)
                .to_le_bytes(),
        );
        payload.extend_from_slice(key);
        payload.extend_from_slice(value.unwrap_or_default());
    }
}

/// What the journal files of a folder hold.
#[derive(Default)]
pub struct Replay {
    /// Every operation, in order.
    pub ops: Vec<Op>,
    /// The number of the next batch.
    pub next: u64,
    /// The number of the newest file; 0 if there is none.
    pub newest: u64,
}

/// Reads all journal files in `dir`.
pub fn replay(dir: &Path) -> Result<Replay> {
    let mut replay = Replay::default();
    let mut known_next = false;
    for (id, path) in files(dir)? {
        replay.newest = id;
        let bytes = fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        let corrupt = |at: usize, why: &str| Error::Corrupt {
            path: path.clone(),
            why: format!("at byte {at}, {why}"),
        };
        let mut at = 0;
        while let Some(frame) = read_frame(&bytes, at, id) {
            if known_next && frame.first != replay.next {
                return Err(corrupt(
                    at,
                    "the journal skips writes that were acknowledged",
                ));
            }
            known_next = true;
            replay.next = frame.first + u64::from(frame.batches);
            let whole = decode(frame.payload, frame.batches, &mut replay.ops);
            whole.ok_or_else(|| corrupt(at, "a record says that it is longer than its group"))?;
            at = frame.end;
        }
        // The rest is zeros, or a group that was being written when the process died.
        let rest = bytes.get(at..).unwrap_or_default();
        let good_behind = rest.iter().any(|byte| *byte != 0)
            && (at + 1..bytes.len()).any(|behind| read_frame(&bytes, behind, id).is_some());
        if good_behind {
            return Err(corrupt(
                at,
                "a group of acknowledged writes does not match its checksum",
            ));
        }
    }
    Ok(replay)
}

/// The journal files of a folder with their numbers, oldest first.
pub fn files(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut files: Vec<(u64, PathBuf)> = list(dir)?
        .into_iter()
        .filter_map(|path| Some((name_of(&path).strip_suffix(".log")?.parse().ok()?, path)))
        .collect();
    files.sort_unstable();
    Ok(files)
}

/// Removes the files up to number `last`: the tree has what they hold.
pub fn remove_through(dir: &Path, last: u64) -> Result<()> {
    for (id, path) in files(dir)? {
        if id <= last {
            fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    Ok(())
}

struct Frame<'a> {
    first: u64,
    batches: u32,
    payload: &'a [u8],
    end: usize,
}

/// The frame at `at`, if a whole and true one is there.
fn read_frame(bytes: &[u8], at: usize, journal: u64) -> Option<Frame<'_>> {
    let header = bytes.get(at..at + HEADER)?;
    if u32_at(header, 0)? != MAGIC {
        return None;
    }
    let start = at + HEADER;
    let end = start.checked_add(u32_at(header, 8)? as usize)?;
    let payload = bytes.get(start..end)?;
    let crc = checksum(journal, header.get(8..)?, payload);
    if crc != u32_at(header, 4)? {
        return None;
    }
    let first = u64::from_le_bytes(header.get(16..24)?.try_into().ok()?);
    Some(Frame {
        first,
        batches: u32_at(header, 12)?,
        payload,
        end,
    })
}

/// Appends a payload's operations to `ops`; `None` if its lengths do not add up.
fn decode(mut payload: &[u8], batches: u32, ops: &mut Vec<Op>) -> Option<()> {
    for _ in 0..batches {
        for _ in 0..take_u32(&mut payload)? {
            let key = take_u32(&mut payload)? as usize;
            let value = take_u32(&mut payload)?;
            let key = payload.split_off(..key)?.to_vec();
            let value = match value {
                DELETE => None,
                length => Some(payload.split_off(..length as usize)?.to_vec()),
            };
            ops.push(Op { key, value });
        }
    }
    payload.is_empty().then_some(())
}

fn checksum(journal: u64, fields: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&journal.to_le_bytes());
    hasher.update(fields);
    hasher.update(payload);
    hasher.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    u32_at(bytes.split_off(..4)?, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(journal: u64, first: u64, pairs: &[(&[u8], Option<&[u8]>)]) -> Vec<u8> {
        let mut frame = vec![0; HEADER];
        for pair in pairs {
            encode(&mut frame, [*pair].into_iter());
        }
        seal(&mut frame, journal, first, pairs.len() as u32);
        frame
    }

    /// Two files of two frames each; the second file's last frame is the newest.
    fn two_files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (id, first) in [(4, 10), (5, 13)] {
            let mut journal = Journal::create(dir.path(), id, 4096).unwrap();
            journal
                .append(&frame(id, first, &[(b"a", Some(b"1")), (b"b", None)]))
                .unwrap();
            journal
                .append(&frame(id, first + 2, &[(b"c", Some(b""))]))
                .unwrap();
        }
        dir
    }

    fn damage(dir: &Path, file: u64, at: usize) {
        let path = dir.join(format!("{file:020}.log"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 0x10;
        fs::write(&path, bytes).unwrap();
    }

    #[test]
    fn what_was_appended_is_replayed_in_order() {
        let dir = two_files();
        let replay = replay(dir.path()).unwrap();
        assert_eq!((replay.ops.len(), replay.next, replay.newest), (6, 16, 5));
        assert_eq!(replay.ops[1].value, None);
        assert_eq!(replay.ops[2].value.as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_torn_last_group_is_as_if_never_written() {
        let dir = two_files();
        let first = frame(5, 13, &[(b"a", Some(b"1")), (b"b", None)]).len();
        let whole = first + frame(5, 15, &[(b"c", Some(b""))]).len();
        let path = dir.path().join(format!("{:020}.log", 5));
        for length in first..whole {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(replay(dir.path()).unwrap().next, 15, "cut at {length}");
            fs::write(&path, bytes).unwrap();
        }
    }

    #[test]
    fn a_flipped_bit_before_a_durable_group_is_an_error_with_the_place() {
        let length = frame(4, 10, &[(b"a", Some(b"1")), (b"b", None)]).len();
        for at in 0..length {
            for file in [4, 5] {
                let dir = two_files();
                damage(dir.path(), file, at);
                let Err(Error::Corrupt { path, why }) = replay(dir.path()) else {
                    panic!("byte {at} of file {file} went unnoticed")
                };
                assert!(
                    path.to_string_lossy().contains(&format!("{file:020}")) || file == 4,
                    "{why}"
                );
            }
        }
    }

    #[test]
    fn a_missing_file_in_the_middle_is_an_error() {
        let dir = two_files();
        let mut journal = Journal::create(dir.path(), 6, 0).unwrap();
        journal.append(&frame(6, 16, &[(b"d", None)])).unwrap();
        fs::remove_file(dir.path().join(format!("{:020}.log", 5))).unwrap();
        assert!(matches!(replay(dir.path()), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn frames_of_another_file_do_not_pass() {
        let bytes = frame(1, 1, &[(b"a", Some(b"1"))]);
        assert!(read_frame(&bytes, 0, 1).is_some());
        assert!(read_frame(&bytes, 0, 2).is_none());
    }
}
