#![allow(
    unsafe_code,
    reason = "memory maps: a file's pages as bytes, and anonymous pages as a slice"
)]
//! Memory that the allocator does not give: a mapped file, and large zeroed areas in huge pages.
//!
//! Huge pages are worth a quarter to a half of the speed at which weights are read: with 4 KiB pages the
//! processor spends that share on looking up addresses.

use std::fs::File;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// A read-only map of a whole file.
#[derive(Debug)]
pub(crate) struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() == 0 {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "the file is empty",
            ));
        }
        // SAFETY: the map is private and read-only. A file that another process shortens while it is mapped
        // raises SIGBUS on access; model files are written under another name and renamed, never rewritten.
        let map = unsafe { MmapOptions::new().map_copy_read_only(&file)? };
        Ok(Self { map })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets the system drop the pages; a later read fetches them from the file again.
    pub(crate) fn release_pages(&self) {
        #[cfg(unix)]
        {
            // SAFETY: the map is read-only and backed by the file, so a dropped page reads the same again.
            let dropped = unsafe {
                self.map
                    .unchecked_advise(memmap2::UncheckedAdvice::DontNeed)
            };
            if let Err(error) = dropped {
                tracing::debug!(%error, "the model file's pages stay resident");
            }
        }
    }
}

/// A type that any bytes, zeros included, are a value of.
///
/// # Safety
/// The type has no padding, no invalid bit patterns and no drop, and its alignment is at most a page's.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: a plain integer.
unsafe impl Plain for u16 {}
// SAFETY: a plain float.
unsafe impl Plain for f32 {}

/// A zeroed slice in anonymous memory of its own, in huge pages where the system has them.
pub(crate) struct HugeSlice<T> {
    map: MmapMut,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Plain> HugeSlice<T> {
    /// `len` zero elements. Their memory is taken from the system when they are first written.
    pub(crate) fn zeroed(len: usize) -> std::io::Result<Self> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            map: map_huge(bytes)?,
            len,
            element: std::marker::PhantomData,
        })
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: the map is page-aligned, holds `len` elements, lives as long as `self`, and is borrowed
        // mutably; any bytes are a `T`.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}

impl<T: Plain> std::ops::Deref for HugeSlice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: as in `as_mut_slice`, borrowed for reading.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

/// Anonymous pages, huge where the system has them.
fn map_huge(bytes: usize) -> std::io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1))?;
    #[cfg(target_os = "linux")]
    if bytes >= 2 << 20
        && let Err(error) = map.advise(memmap2::Advice::HugePage)
    {
        tracing::debug!(%error, "no huge pages");
    }
    Ok(map)
}

/// Cuts many pieces out of few large areas, because a piece under 2 MiB gets no huge page of its own.
#[derive(Default)]
pub(crate) struct HugeArena {
    area: Option<(Arc<MmapMut>, NonNull<u8>, usize)>,
    used: usize,
}

// SAFETY: the pointer is that of the area beside it, and only pieces that were not given out yet are made from it.
unsafe impl Send for HugeArena {}

/// A piece of an arena: zeroed bytes, aligned to 64.
pub(crate) struct HugeBytes {
    start: NonNull<u8>,
    len: usize,
    _area: Arc<MmapMut>,
}

// SAFETY: a piece is the only one with its bytes, and keeps their area alive.
unsafe impl Send for HugeBytes {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for HugeBytes {}

impl HugeArena {
    /// Bytes of an area, unless one piece asks for more.
    const AREA: usize = 64 << 20;

    /// A piece of `len` zero bytes.
    pub(crate) fn take(&mut self, len: usize) -> std::io::Result<HugeBytes> {
        let needed = len
            .checked_next_multiple_of(64)
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        let (area, base) = match &self.area {
            Some((area, base, size)) if size - self.used >= needed => (Arc::clone(area), *base),
            _ => {
                let size = needed.max(Self::AREA);
                let mut map = map_huge(size)?;
                let base = NonNull::new(map.as_mut_ptr()).ok_or(std::io::ErrorKind::OutOfMemory)?;
                let area = Arc::new(map);
                self.area = Some((Arc::clone(&area), base, size));
                self.used = 0;
                (area, base)
            }
        };
        // SAFETY: `used + needed` is at most the area's size.
        let start = unsafe { base.add(self.used) };
        self.used += needed;
        Ok(HugeBytes {
            start,
            len,
            _area: area,
        })
    }
}

impl HugeBytes {
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the piece's bytes are mapped, initialised, and no other piece's.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl std::ops::Deref for HugeBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as in `as_mut_slice`, borrowed for reading.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_slice_is_zeroed_and_writable() {
        let mut slice = HugeSlice::<f32>::zeroed(3 << 20).unwrap();
        assert!(slice.iter().all(|x| *x == 0.0));
        slice.as_mut_slice()[12345] = 1.5;
        assert_eq!(slice[12345], 1.5);
        assert_eq!(HugeSlice::<u16>::zeroed(0).unwrap().len(), 0);
    }

    #[test]
    fn pieces_of_an_arena_do_not_touch_each_other_and_outlive_it() {
        let mut arena = HugeArena::default();
        let mut pieces: Vec<_> = [100, 0, 70 << 20, 1, 64]
            .into_iter()
            .map(|len| arena.take(len).unwrap())
            .collect();
        drop(arena);
        for (index, piece) in pieces.iter_mut().enumerate() {
            assert!(piece.iter().all(|byte| *byte == 0));
            piece.as_mut_slice().fill(index as u8 + 1);
        }
        for (index, piece) in pieces.iter().enumerate() {
            assert!(piece.iter().all(|byte| *byte == index as u8 + 1));
        }
    }

    #[test]
    fn an_empty_file_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(MappedFile::open(file.path()).is_err());
    }
}
