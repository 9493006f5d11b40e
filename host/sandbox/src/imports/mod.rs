//! What a component may import: a linker for each stage, with the granted interfaces and no other.

mod context;
mod fault;
mod inference;
mod log;
mod metrics;
mod state;
pub(crate) mod wasi;

use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use crate::contract::{PACKAGE, VERSION};
use crate::manifest::Capability;
use crate::state::CallState;

pub(crate) use context::Context;
pub(crate) use metrics::admit as admit_metric;

/// The name of an interface of the contract.
fn interface(name: &str) -> String {
    format!("{PACKAGE}/{name}@{VERSION}")
}

/// A linker for `component` with the capabilities in `granted`.
pub(crate) fn linker(
    engine: &Engine,
    component: &Component,
    granted: &[Capability],
) -> wasmtime::Result<Linker<CallState>> {
    let mut linker = Linker::new(engine);
    // Interfaces of types only: there is nothing to link but their being there.
    linker.instance(&interface("types"))?;
    context::link(&mut linker)?;
    fault::link(&mut linker)?;
    log::link(&mut linker)?;
    metrics::link(&mut linker)?;
    if granted.contains(&Capability::State) {
        state::link(&mut linker)?;
    }
    if granted.contains(&Capability::Inference) {
        inference::link(&mut linker)?;
    }
    wasi::link(&mut linker, engine, component)?;
    Ok(linker)
}
