//! The guest's memory. A call on a fresh instance must not grow it and should touch few pages, so
//! the allocator is a bump pointer through a fixed arena that lies in the initial memory:
//!
//! * while `configure` runs, memory comes from behind the initial one and grows it; it stays for
//!   good, as part of the image;
//! * afterwards memory comes from the arena. Its first page also holds the allocator's own fields,
//!   so a small call dirties one page of heap;
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
    guest::SEALED.store(true, core::sync::atomic::Ordering::Relaxed);
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
    use core::sync::atomic::{AtomicBool, Ordering};

    /// Set at the end of `configure`.
    pub(super) static SEALED: AtomicBool = AtomicBool::new(false);

    const WASM_PAGE: usize = 64 * 1024;

    /// The arena's size: a segment of 64 KiB twice over (as it comes, and as one text), its verdict,
    /// and room.
    const ARENA: usize = 256 * 1024;

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

    /// The allocator's fields, at the head of the arena.
    struct State {
        /// The rest of the arena. `end == 0`: not yet set up.
        arena: Region,
        /// Grown memory, contiguous: nothing else grows it.
        grown: Region,
        /// Where `grown` starts for calls: behind what `configure` keeps.
        base: usize,
        /// Allocations of calls that are not free yet.
        live: usize,
    }

    /// The bump allocator. One for each component, as its `#[global_allocator]`.
    #[repr(C, align(4096))]
    pub struct Bump {
        state: UnsafeCell<State>,
        arena: UnsafeCell<[u8; ARENA]>,
    }

    // SAFETY: a guest has one thread.
    unsafe impl Sync for Bump {}

    impl Bump {
        /// An untouched arena.
        #[must_use]
        #[allow(clippy::new_without_default, reason = "it is only ever a static")]
        pub const fn new() -> Self {
            let none = Region { top: 0, end: 0 };
            Bump {
                state: UnsafeCell::new(State {
                    arena: none,
                    grown: none,
                    base: 0,
                    live: 0,
                }),
                arena: UnsafeCell::new([0; ARENA]),
            }
        }

        /// SAFETY: the caller must not hold another reference to the state; there is one thread,
        /// and no method calls another while it holds one.
        #[allow(clippy::mut_from_ref, reason = "one thread, see above")]
        unsafe fn state(&self) -> &mut State {
            // SAFETY: as above.
            unsafe { &mut *self.state.get() }
        }
    }

    impl State {
        /// Takes memory from the grown region, growing it where needed.
        fn take_grown(&mut self, layout: Layout) -> Option<usize> {
            if let Some(at) = self.grown.take(layout) {
                return Some(at);
            }
            // In steps of a megabyte at least for calls, so that a long text grows once.
            let least = if SEALED.load(Ordering::Relaxed) {
                16
            } else {
                1
            };
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

        fn is_last(&mut self, at: usize, size: usize) -> Option<&mut Region> {
            [&mut self.arena, &mut self.grown]
                .into_iter()
                .find(|region| region.top == at + size)
        }

        /// Everything that calls allocated is free: start anew.
        fn reset(&mut self, arena: usize) {
            self.arena.top = arena;
            self.grown.top = self.base;
        }
    }

    // SAFETY: regions are disjoint from all else (the arena is this static's own, grown memory comes
    // from `memory.grow`), the bump pointer only moves forward while anything is live, and `take`
    // aligns.
    unsafe impl GlobalAlloc for Bump {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: see `state`.
            let state = unsafe { self.state() };
            let at = if SEALED.load(Ordering::Relaxed) {
                if state.arena.end == 0 {
                    let arena = self.arena.get() as usize;
                    state.arena = Region {
                        top: arena,
                        end: arena + ARENA,
                    };
                    state.base = state.grown.top;
                }
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
            let state = unsafe { self.state() };
            let at = pointer as usize;
            let arena = self.arena.get() as usize;
            let in_arena = at >= arena && at < arena + ARENA;
            if in_arena || (state.arena.end != 0 && at >= state.base) {
                state.live -= 1;
                if state.live == 0 {
                    state.reset(arena);
                    return;
                }
            }
            if let Some(region) = state.is_last(at, layout.size()) {
                region.top = at;
            }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            // SAFETY: see `state`.
            let state = unsafe { self.state() };
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
