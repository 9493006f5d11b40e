//! `context.wit`: the request as the stage sees it.
//!
//! There is one context to a store, so the resource is no entry in a table: its representation is
//! always 0, and a getter reads the store's data. Lending it costs one handle in the guest.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceType};

use crate::call::Direction;
use crate::state::CallState;

/// The type behind the `context` resource.
pub(crate) enum Context {}

impl Context {
    /// The context of the store that it is lent to.
    pub(crate) fn lend() -> Resource<Context> {
        Resource::new_borrow(0)
    }
}

type This = (Resource<Context>,);

pub(super) fn link(linker: &mut Linker<CallState>) -> wasmtime::Result<()> {
    let mut context = linker.instance(&super::interface("context"))?;
    context.resource("context", ResourceType::host::<Context>(), |_, _| Ok(()))?;

    type Text = fn(&CallState) -> Arc<str>;
    let texts: [(&str, Text); 5] = [
        ("[method]context.trace-id", |state| {
            state.context.trace_id.clone()
        }),
        ("[method]context.tenant", |state| {
            state.context.tenant.clone()
        }),
        ("[method]context.model", |state| state.context.model.clone()),
        ("[method]context.role", |state| state.context.role.clone()),
        ("[method]context.language", |state| {
            state.context.language.clone()
        }),
    ];
    for (name, get) in texts {
        context.func_wrap(
            name,
            move |cx: StoreContextMut<'_, CallState>, (_,): This| Ok((get(cx.data()),)),
        )?;
    }
    context.func_wrap(
        "[method]context.stage",
        |cx: StoreContextMut<'_, CallState>, (_,): This| Ok((cx.data().shared.spec.name.clone(),)),
    )?;
    context.func_wrap(
        "[method]context.direction",
        |cx: StoreContextMut<'_, CallState>, (_,): This| -> wasmtime::Result<(Direction,)> {
            Ok((cx.data().context.direction,))
        },
    )?;
    context.func_wrap(
        "[method]context.now-ms",
        |cx: StoreContextMut<'_, CallState>, (_,): This| Ok((cx.data().context.now_ms,)),
    )?;
    context.func_wrap(
        "[method]context.seed",
        |cx: StoreContextMut<'_, CallState>, (_,): This| Ok((cx.data().context.seed,)),
    )?;
    Ok(())
}
