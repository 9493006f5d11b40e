#![allow(unsafe_code, reason = "threads write disjoint parts of one slice")]
//! A slice that several threads of the pool write to.

/// A slice that several threads write to, each to its own parts.
pub(super) struct Parts<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: `part` makes the caller promise that parts do not overlap.
unsafe impl<T: Send> Sync for Parts<T> {}

impl<T> Parts<T> {
    pub(super) fn new(slice: &mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
        }
    }

    /// # Safety
    /// No two parts that live at once overlap, and the slice outlives them.
    #[allow(
        clippy::mut_from_ref,
        reason = "the parts are disjoint by the caller's promise"
    )]
    pub(super) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(
            at <= self.len && len <= self.len - at,
            "a part beyond its slice"
        );
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
