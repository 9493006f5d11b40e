//! What a guest without the standard library needs: an allocator, a panic handler that says why,
//! and the function by which the host allocates in it.
#![no_std]
#![cfg(target_family = "wasm")]
#![allow(
    unsafe_code,
    reason = "an allocator and the raw imports of the component model"
)]

extern crate alloc;

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Write;

/// An arena in the initial memory; beyond it the memory grows. Nothing is ever freed, but the
/// arena starts anew when nothing in it is live.
struct Bump;

const ARENA: usize = 512 << 10;

#[repr(align(16))]
struct Arena([u8; ARENA]);

static mut MEMORY: Arena = Arena([0; ARENA]);
static mut TOP: usize = 0;
static mut LIVE: usize = 0;

unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe {
            let start = (TOP + layout.align() - 1) & !(layout.align() - 1);
            match start.checked_add(layout.size()) {
                Some(end) if end <= ARENA => {
                    TOP = end;
                    LIVE += 1;
                    (&raw mut MEMORY.0).cast::<u8>().add(start)
                }
                _ => {
                    let pages = layout.size().div_ceil(65536) + 1;
                    match core::arch::wasm32::memory_grow::<0>(pages) {
                        usize::MAX => core::ptr::null_mut(),
                        page => {
                            let at = (page * 65536 + layout.align() - 1) & !(layout.align() - 1);
                            at as *mut u8
                        }
                    }
                }
            }
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, _: Layout) {
        unsafe {
            let arena = (&raw mut MEMORY.0).cast::<u8>();
            if at >= arena && at < arena.add(ARENA) {
                LIVE -= 1;
                if LIVE == 0 {
                    TOP = 0;
                }
            }
        }
    }
}

#[global_allocator]
static ALLOCATOR: Bump = Bump;

#[link(wasm_import_module = "millgate:stage/fault@0.1.0")]
unsafe extern "C" {
    #[link_name = "report"]
    fn report(length: u32, a: u64, b: u64, c: u64, d: u64);
}

/// A text of bounded length, without the heap.
struct Text([u8; 512], usize);

impl Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for &byte in text.as_bytes() {
            if let Some(place) = self.0.get_mut(self.1) {
                *place = byte;
                self.1 += 1;
            }
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut text = Text([0; 512], 0);
    let _ = write!(text, "{}", info.message());
    for piece in text.0[..text.1].chunks(32) {
        let mut words = [0u64; 4];
        for (i, &byte) in piece.iter().enumerate() {
            words[i / 8] |= u64::from(byte) << (8 * (i % 8));
        }
        let [a, b, c, d] = words;
        unsafe { report(text.1 as u32, a, b, c, d) };
    }
    core::arch::wasm32::unreachable()
}

// `memcpy` and its like come from the C library on this target.
#[link(name = "c")]
unsafe extern "C" {}

/// Grows an allocation for the host.
///
/// # Safety
/// As `realloc`.
pub unsafe fn realloc(old: *mut u8, old_size: usize, align: usize, size: usize) -> *mut u8 {
    if size == 0 {
        return align as *mut u8;
    }
    unsafe {
        let new = alloc::alloc::alloc(Layout::from_size_align_unchecked(size, align));
        if new.is_null() {
            core::arch::wasm32::unreachable();
        }
        if old_size > 0 {
            core::ptr::copy_nonoverlapping(old, new, old_size.min(size));
        }
        new
    }
}

/// Puts the manifest into its section, and the host's allocation function into the exports.
#[macro_export]
macro_rules! guest {
    () => {
        #[used]
        #[unsafe(link_section = "millgate:manifest")]
        static MANIFEST: [u8; include_bytes!("../plugin.toml").len()] =
            *include_bytes!("../plugin.toml");

        #[unsafe(no_mangle)]
        unsafe extern "C" fn cabi_realloc(
            old: *mut u8,
            old_size: usize,
            align: usize,
            size: usize,
        ) -> *mut u8 {
            unsafe { $crate::realloc(old, old_size, align, size) }
        }
    };
}
