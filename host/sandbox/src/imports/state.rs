//! `state.wit`: the stage's own key-value space. Grant: `state`.

use serde::Serialize;
use serde::de::DeserializeOwned;
use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

use crate::contract::types::{ErrorKind, StageError};
use crate::state::{CallState, Shared};
use crate::tape;

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
            answer(&cx, "state.get", &key, || {
                space(&cx, &key).and_then(|(s, stage, _)| s.services.state_get(stage, &key))
            })
        },
    )?;
    state.func_wrap(
        "set",
        |cx: Cx<'_>, (key, value): (String, Vec<u8>)| -> Answer<()> {
            answer(&cx, "state.set", &(&key, &value), || {
                let (s, stage, limit) = space(&cx, &key)?;
                s.services.state_set(stage, &key, &value, limit)
            })
        },
    )?;
    state.func_wrap(
        "compare-and-swap",
        |cx: Cx<'_>, (key, expected, value): (String, Option<Vec<u8>>, Vec<u8>)| -> Answer<bool> {
            let asked = (&key, &expected, &value);
            answer(&cx, "state.compare-and-swap", &asked, || {
                let (s, stage, limit) = space(&cx, &key)?;
                let expected = expected.as_deref();
                s.services
                    .state_compare_and_swap(stage, &key, expected, &value, limit)
            })
        },
    )?;
    state.func_wrap("delete", |cx: Cx<'_>, (key,): (String,)| -> Answer<()> {
        answer(&cx, "state.delete", &key, || {
            space(&cx, &key).and_then(|(s, stage, _)| s.services.state_delete(stage, &key))
        })
    })?;
    state.func_wrap(
        "keys",
        |cx: Cx<'_>, (prefix, limit): (String, u32)| -> Answer<Vec<String>> {
            answer(&cx, "state.keys", &(&prefix, limit), || {
                let (s, stage, _) = space(&cx, &prefix)?;
                s.services.state_keys(stage, &prefix, limit.min(KEYS))
            })
        },
    )
}

/// The answer on the call's tape, or the host's, which the tape then has.
fn answer<T: Serialize + DeserializeOwned>(
    cx: &Cx<'_>,
    function: &'static str,
    asked: &impl Serialize,
    ask: impl FnOnce() -> Result<T, StageError>,
) -> Answer<T> {
    let tape = cx.data().context.tape.as_ref();
    if let Some(answer) = tape::played(tape, function, asked)? {
        return Ok((answer,));
    }
    let answer = ask();
    tape::told(tape, function, asked, &answer);
    Ok((answer,))
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
