//! `log.wit`: log lines, bounded in number and size for each call; the rest is counted.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmStr};

use crate::contract::inference::Level;
use crate::fault::{clip, scrub};
use crate::state::{CallState, bump};

/// The most bytes of one line.
const LINE: usize = 1024;

pub(super) fn link(linker: &mut Linker<CallState>) -> wasmtime::Result<()> {
    linker.instance(&super::interface("log"))?.func_wrap(
        "write",
        |mut cx: StoreContextMut<'_, CallState>, (level, message): (Level, WasmStr)| {
            let state = cx.data();
            let (lines, bytes) = (state.log_lines, state.log_bytes);
            let limits = state.limits();
            if lines >= limits.log_lines || bytes >= limits.log_bytes {
                bump(&state.shared.counters.log_dropped);
                return Ok(());
            }
            let room = LINE.min((limits.log_bytes - bytes) as usize);
            // The text is looked at where it lies; only what is kept of it is copied.
            let line = scrub(clip(&message.to_str(&cx)?, room));
            let state = cx.data_mut();
            state.log_lines += 1;
            state.log_bytes += u32::try_from(line.len()).unwrap_or(u32::MAX).max(1);
            let shared = &state.shared;
            shared
                .services
                .log(&shared.spec.name, &state.context.trace_id, level, &line);
            Ok(())
        },
    )
}
