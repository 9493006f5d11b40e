//! `fault.wit`: the panic text, in plain numbers.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::state::CallState;

pub(super) fn link(linker: &mut Linker<CallState>) -> wasmtime::Result<()> {
    linker.instance(&super::interface("fault"))?.func_wrap(
        "report",
        |mut cx: StoreContextMut<'_, CallState>,
         (length, a, b, c, d): (u32, u64, u64, u64, u64)| {
            cx.data_mut().fault.report(length, [a, b, c, d]);
            Ok(())
        },
    )
}
