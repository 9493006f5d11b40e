//! The guest's memory. A call on a fresh instance must not grow it and should touch few pages, so
//! the allocator is a bump pointer through a fixed arena that is part of the image:
//!
//! * while `configure` runs, memory comes from behind the initial one and grows it; it stays for
//!   good, as part of the image;
//! * at its end the arena is laid behind that, so that a call neither grows the memory nor touches
//!   more than the arena's first page or two. Behind, because the image reaches from the first byte
//!   that is not zero to the last: an arena in between would be mapped, and looked through when an
//!   instance is thrown away, for nothing;
//! * when everything that calls allocated is free again, the arena starts anew: an instance that is
//!   used again and again needs no more memory than one that is thrown away;
//! * what does not fit into the arena (a text of many kilobytes) goes to grown memory, which is
//!   kept and used again.
//!
//! Plugins that live long (monitoring, deployment) keep what calls allocate, so they get a real
//! heap instead: `dlmalloc`.
#![allow(unsafe_code, reason = "a global allocator: raw memory is its subject")]

/// Ends the configure phase: from here on memory comes from the arena.
pub(crate) fn seal() {
    #[cfg(target_family = "wasm")]
    guest::seal();
}

// `memcmp` and its like: on this target the compiler takes them from the C library, which only the
// standard library would link. Nothing else of it is used, so nothing else comes along.
#[cfg(all(target_family = "wasm", not(feature = "std")))]
#[link(name = "c")]
unsafe extern "C" {}

#[cfg(target_family = "wasm")]
pub use guest::{Bump, Heap};

#[cfg(target_family = "wasm")]
mod guest {
    use core::alloc::{GlobalAlloc, Layout};
    use core::cell::UnsafeCell;
    use core::ptr;

    const WASM_PAGE: usize = 64 * 1024;

    /// The arena's size: a segment of 64 KiB twice over (as it comes, and as one text), its verdict,
    /// and room.
    const ARENA: usize = 256 * 1024;

    /// What the host's kernel maps at once: the arena begins on a page of its own.
    const HOST_PAGE: usize = 4096;

    /// A stretch of memory with a bump pointer. Addresses, because the two stretches of an
    /// allocator have nothing else in common.
    #[derive(Clone, Copy)]
    struct Region {
        top: usize,
        end: usize,
    }

    impl Region {
        fn take(&mut self, layout: Layout) -> Option<usize> {
            let start = self.top.checked_add(layout.align() - 1)? & !(layout.align() - 1);
            let end = start.checked_add(layout.size())?;
            if end > self.end {
                return None;
            }
            self.top = end;
            Some(start)
        }
    }

    /// The allocator's fields. A static of their own, so that they lie beside the other statics
    /// that each call writes to, in one page with them.
    struct State {
        /// `configure` has ended: memory is given to calls.
        sealed: bool,
        /// Where the memory of calls begins; all below is the image.
        start: usize,
        /// The rest of the arena.
        arena: Region,
        /// Grown memory, contiguous: nothing else grows it.
        grown: Region,
        /// Where `grown` starts for calls: behind the arena.
        base: usize,
        /// Allocations of calls that are not free yet.
        live: usize,
    }

    struct Place(UnsafeCell<State>);

    // SAFETY: a guest has one thread.
    unsafe impl Sync for Place {}

    static STATE: Place = Place(UnsafeCell::new(State {
        sealed: false,
        start: 0,
        arena: Region { top: 0, end: 0 },
        grown: Region { top: 0, end: 0 },
        base: 0,
        live: 0,
    }));

    /// SAFETY: the caller must not hold another reference to the state; there is one thread, and
    /// no function here calls another while it holds one.
    unsafe fn state() -> &'static mut State {
        // SAFETY: as above.
        unsafe { &mut *STATE.0.get() }
    }

    /// Lays the arena behind what `configure` keeps.
    pub(super) fn seal() {
        // SAFETY: see `state`.
        unsafe { state() }.seal();
    }

    /// The bump allocator, as a component's `#[global_allocator]`.
    pub struct Bump(());

    impl Bump {
        /// The allocator.
        #[must_use]
        #[allow(clippy::new_without_default, reason = "it is only ever a static")]
        pub const fn new() -> Self {
            Bump(())
        }
    }

    impl State {
        /// Takes memory from the grown region, growing it where needed.
        fn take_grown(&mut self, layout: Layout) -> Option<usize> {
            if let Some(at) = self.grown.take(layout) {
                return Some(at);
            }
            // In steps of a megabyte at least for calls, so that a long text grows once.
            let least = if self.sealed { 16 } else { 1 };
            let pages = (layout.size().checked_add(layout.align())?)
                .div_ceil(WASM_PAGE)
                .max(least);
            let before = core::arch::wasm32::memory_grow::<0>(pages);
            if before == usize::MAX {
                return None;
            }
            let start = before * WASM_PAGE;
            if self.grown.end != start {
                // The first growth, or somebody else's came between. What lies before is left
                // alone from now on.
                self.grown.top = start;
                self.base = start;
            }
            self.grown.end = start + pages * WASM_PAGE;
            self.grown.take(layout)
        }

        fn seal(&mut self) {
            // Nothing was allocated: the component has another allocator.
            if self.sealed || self.grown.end == 0 {
                return;
            }
            self.sealed = true;
            self.start = self.grown.top;
            self.base = self.grown.top;
            let start = self.grown.top.next_multiple_of(HOST_PAGE);
            let end = start + ARENA;
            let pages = end.saturating_sub(self.grown.end).div_ceil(WASM_PAGE);
            let before = core::arch::wasm32::memory_grow::<0>(pages);
            if before.checked_mul(WASM_PAGE) != Some(self.grown.end) {
                // No room, or somebody else grew the memory: calls take theirs where they can.
                return;
            }
            self.grown = Region {
                top: end,
                end: self.grown.end + pages * WASM_PAGE,
            };
            self.start = start;
            self.base = end;
            self.arena = Region { top: start, end };
        }

        /// The region whose last allocation this is. What `configure` left is nobody's: it stays.
        fn is_last(&mut self, at: usize, size: usize) -> Option<&mut Region> {
            if self.sealed && at < self.start {
                return None;
            }
            [&mut self.arena, &mut self.grown]
                .into_iter()
                .find(|region| region.top == at + size)
        }

        /// Everything that calls allocated is free: start anew.
        fn reset(&mut self) {
            if self.arena.end != 0 {
                self.arena.top = self.start;
            }
            self.grown.top = self.base;
        }
    }

    // SAFETY: regions are disjoint from each other and all else (both come from `memory.grow`), the
    // bump pointer only moves forward while anything is live, and `take` aligns.
    unsafe impl GlobalAlloc for Bump {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: see `state`.
            let state = unsafe { state() };
            let at = if state.sealed {
                state.live += 1;
                match state.arena.take(layout) {
                    Some(at) => Some(at),
                    None => state.take_grown(layout),
                }
            } else {
                state.take_grown(layout)
            };
            at.map_or(ptr::null_mut(), |at| at as *mut u8)
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: see `state`.
            let state = unsafe { state() };
            let at = pointer as usize;
            if state.sealed && at >= state.start {
                state.live -= 1;
                if state.live == 0 {
                    state.reset();
                    return;
                }
            }
            if let Some(region) = state.is_last(at, layout.size()) {
                region.top = at;
            }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: see `state`.
            let state = unsafe { state() };
            let at = pointer as usize;
            if let Some(region) = state.is_last(at, layout.size())
                && at + size <= region.end
            {
                region.top = at + size;
                return pointer;
            }
            if size <= layout.size() {
                return pointer;
            }
            // SAFETY: the caller's promises are those of `alloc` and `dealloc`; the new memory does
            // not overlap the old one, which is not free yet.
            unsafe {
                let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                if !new.is_null() {
                    ptr::copy_nonoverlapping(pointer, new, layout.size());
                    self.dealloc(pointer, layout);
                }
                new
            }
        }
    }

    /// A heap that frees, for plugins that live long.
    pub struct Heap(UnsafeCell<dlmalloc::Dlmalloc>);

    // SAFETY: a guest has one thread.
    unsafe impl Sync for Heap {}

    impl Heap {
        /// An empty heap.
        #[must_use]
        #[allow(clippy::new_without_default, reason = "it is only ever a static")]
        pub const fn new() -> Self {
            Heap(UnsafeCell::new(dlmalloc::Dlmalloc::new()))
        }
    }

    // SAFETY: passes every promise on to dlmalloc; one thread, and dlmalloc does not call back.
    unsafe impl GlobalAlloc for Heap {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as above.
            unsafe { (*self.0.get()).malloc(layout.size(), layout.align()) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            // SAFETY: as above.
            unsafe { (*self.0.get()).calloc(layout.size(), layout.align()) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: as above.
            unsafe { (*self.0.get()).free(pointer, layout.size(), layout.align()) }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: as above.
            unsafe { (*self.0.get()).realloc(pointer, layout.size(), layout.align(), size) }
        }
    }
}
