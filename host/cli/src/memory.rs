#![allow(unsafe_code, reason = "a call of the allocator's C function")]
//! What the process gives back to the system.

unsafe extern "C" {
    fn mi_collect(force: bool);
}

/// Gives the system the memory that the allocator holds and nobody uses. Loading plugins and models frees some hundred
/// MiB at once and then nothing, so the allocator would keep it: it gives back as it goes.
pub fn give_back() {
    // SAFETY: the function is part of mimalloc, which is this binary's allocator; it may be called at any time.
    unsafe { mi_collect(true) }
}
