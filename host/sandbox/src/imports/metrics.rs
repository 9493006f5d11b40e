//! `metrics.wit`: counters and gauges, bounded in the number of their names.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, WasmStr};

use crate::state::{CallState, Shared, bump};

/// The most bytes of a name.
const NAME: usize = 128;

pub(super) fn link(linker: &mut Linker<CallState>) -> wasmtime::Result<()> {
    let mut metrics = linker.instance(&super::interface("metrics"))?;
    metrics.func_wrap(
        "count",
        |cx: StoreContextMut<'_, CallState>, (name, add): (WasmStr, u64)| {
            let name = name.to_str(&cx)?;
            let shared = &cx.data().shared;
            if admit(shared, &name) {
                shared.services.count(&shared.spec.name, &name, add);
            }
            Ok(())
        },
    )?;
    metrics.func_wrap(
        "gauge",
        |cx: StoreContextMut<'_, CallState>, (name, value): (WasmStr, f64)| {
            let name = name.to_str(&cx)?;
            let shared = &cx.data().shared;
            if admit(shared, &name) {
                shared.services.gauge(&shared.spec.name, &name, value);
            }
            Ok(())
        },
    )
}

/// Whether a metric of this name may be passed on: a name already known, or one more within the
/// limit. A name is what a label of Prometheus may safely be: letters, digits and `._-`.
pub(crate) fn admit(shared: &Shared, name: &str) -> bool {
    let sound = !name.is_empty()
        && name.len() <= NAME
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if sound {
        let mut names = shared.metric_names.lock();
        if names.contains(name) {
            return true;
        }
        if names.len() < shared.spec.limits.metric_names as usize {
            names.insert(name.to_owned());
            return true;
        }
    }
    bump(&shared.counters.metrics_dropped);
    false
}
