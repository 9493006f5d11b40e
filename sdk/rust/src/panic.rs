//! Last words: the panic's text goes to the host by `fault.report`, thirty-two bytes a call, and
//! then the guest traps. Nothing here allocates: the allocator may be what failed.

use core::fmt::{self, Write};

use crate::bindings::host::millgate::stage::fault;

/// The longest text that is passed on, in bytes.
const CAPACITY: usize = 512;

/// A text of bounded size on the stack; what does not fit is cut off.
struct Text {
    bytes: [u8; CAPACITY],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (slot, byte) in self.bytes.iter_mut().skip(self.length).zip(text.bytes()) {
            *slot = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// Sends the text of a panic to the host.
fn report(info: &dyn fmt::Display) {
    let mut text = Text {
        bytes: [0; CAPACITY],
        length: 0,
    };
    let _ = write!(text, "{info}");
    let length = crate::types::offset(text.length);
    let words = |part: &[u8], at: usize| {
        let mut word = [0; 8];
        for (slot, byte) in word.iter_mut().zip(part.iter().skip(at)) {
            *slot = *byte;
        }
        u64::from_le_bytes(word)
    };
    for part in text.bytes.chunks(32).take(text.length.div_ceil(32)) {
        fault::report(
            length,
            words(part, 0),
            words(part, 8),
            words(part, 16),
            words(part, 24),
        );
    }
}

#[cfg(not(feature = "std"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    report(info);
    core::arch::wasm32::unreachable()
}

/// With `std` the handler is the standard library's, and a hook does the reporting.
pub fn install_hook() {
    #[cfg(feature = "std")]
    std::panic::set_hook(alloc::boxed::Box::new(|info| report(info)));
}
