//! `state.wit`: the stage's own key-value space. Grant: `state`.

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::contract::types::{ErrorKind, StageError};
use crate::state::{CallState, Shared};

/// The most bytes of a key.
const KEY: usize = 512;

/// The most keys of one listing.
const KEYS: u32 = 10_000;

type Answer<T> = wasmtime::Result<(Result<T, StageError>,)>;
type Cx<'a> = StoreContextMut<'a, CallState>;

pub(super) fn link(linker: &mut Linker<CallState>) -> wasmtime::Result<()> {
    let mut state = linker.instance(&super::interface("state"))?;
    state.func_wrap(
        "get",
        |cx: Cx<'_>, (key,): (String,)| -> Answer<Option<Vec<u8>>> {
            Ok((space(&cx, &key).and_then(|(s, stage, _)| s.services.state_get(stage, &key)),))
        },
    )?;
    state.func_wrap(
        "set",
        |cx: Cx<'_>, (key, value): (String, Vec<u8>)| -> Answer<()> {
            Ok((space(&cx, &key)
                .and_then(|(s, stage, limit)| s.services.state_set(stage, &key, &value, limit)),))
        },
    )?;
    state.func_wrap(
        "compare-and-swap",
        |cx: Cx<'_>, (key, expected, value): (String, Option<Vec<u8>>, Vec<u8>)| -> Answer<bool> {
            Ok((space(&cx, &key).and_then(|(s, stage, limit)| {
                let expected = expected.as_deref();
                s.services
                    .state_compare_and_swap(stage, &key, expected, &value, limit)
            }),))
        },
    )?;
    state.func_wrap("delete", |cx: Cx<'_>, (key,): (String,)| -> Answer<()> {
        Ok((space(&cx, &key).and_then(|(s, stage, _)| s.services.state_delete(stage, &key)),))
    })?;
    state.func_wrap(
        "keys",
        |cx: Cx<'_>, (prefix, limit): (String, u32)| -> Answer<Vec<String>> {
            Ok((space(&cx, &prefix)
                .and_then(|(s, stage, _)| s.services.state_keys(stage, &prefix, limit.min(KEYS))),))
        },
    )
}

/// The stage's space: its name and size, once the call and the key are in order.
fn space<'a>(cx: &'a Cx<'_>, key: &str) -> Result<(&'a Shared, &'a str, u64), StageError> {
    let data = cx.data();
    if data.configuring {
        return Err(StageError::denied(
            "configuring",
            "`state` is not available in `configure`",
        ));
    }
    let Some(grant) = data.shared.spec.grant.state else {
        return Err(StageError::denied("not-granted", "`state` is not granted"));
    };
    if key.len() > KEY {
        return Err(StageError::new(
            ErrorKind::InvalidInput,
            "key-too-long",
            format!("a key has at most {KEY} bytes"),
        ));
    }
    Ok((&data.shared, &data.shared.spec.name, grant.bytes))
}
