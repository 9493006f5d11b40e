//! WASI for guests whose language brings it along (a Rust plugin with `std` imports thirteen of
//! its interfaces, whether it uses them or not). Nothing here reaches the machine: the
//! environment is empty, standard input is at its end, what goes to standard output and error is
//! kept as the panic text, clocks and random numbers follow the trace, so that a call can be
//! replayed. Every other function traps with "not granted".

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{
    Component, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType,
};
use wasmtime::{Engine, Result};

use crate::state::CallState;

type Cx<'a> = StoreContextMut<'a, CallState>;

/// What the stubs remember of a store.
#[derive(Default)]
pub(crate) struct Wasi {
    /// How many numbers have been drawn.
    drawn: u64,
    /// How often the clock was read, so that it never stands still.
    read: u64,
}

/// A guest called a function that its stage has no grant for.
#[derive(Debug, thiserror::Error)]
#[error("not granted: {0}")]
struct NotGranted(String);

/// A guest ended itself.
#[derive(Debug, thiserror::Error)]
#[error("the plugin called exit")]
struct Exit;

/// The types behind WASI's resources. None of them holds anything.
enum InputStream {}
enum OutputStream {}
enum IoError {}
enum Other {}

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[allow(dead_code, reason = "no operation of these streams fails")]
    #[component(name = "last-operation-failed")]
    LastOperationFailed(Resource<IoError>),
    #[component(name = "closed")]
    Closed,
}

#[derive(ComponentType, Lift, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

/// Links every `wasi:` import of `component`.
pub(super) fn link(
    linker: &mut Linker<CallState>,
    engine: &Engine,
    component: &Component,
) -> Result<()> {
    for (import, ty) in component.component_type().imports(engine) {
        let (ComponentItem::ComponentInstance(ty), true) = (ty.ty, import.starts_with("wasi:"))
        else {
            continue;
        };
        let interface = import.split('@').next().unwrap_or(import);
        let mut instance = linker.instance(import)?;
        for (name, item) in ty.exports(engine) {
            match item.ty {
                ComponentItem::Resource(_) => {
                    instance.resource(name, resource(name), |_, _| Ok(()))?;
                }
                ComponentItem::ComponentFunc(_) if known(&mut instance, interface, name)? => {}
                ComponentItem::ComponentFunc(_) => {
                    let what = format!("{interface} ({name})");
                    instance
                        .func_new(name, move |_, _, _, _| Err(NotGranted(what.clone()).into()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn resource(name: &str) -> ResourceType {
    match name {
        "input-stream" => ResourceType::host::<InputStream>(),
        "output-stream" => ResourceType::host::<OutputStream>(),
        "error" => ResourceType::host::<IoError>(),
        _ => ResourceType::host::<Other>(),
    }
}

/// Links the functions that do something; false for all others.
fn known(to: &mut LinkerInstance<'_, CallState>, interface: &str, name: &str) -> Result<bool> {
    type Bytes = (Result<Vec<u8>, StreamError>,);
    type Done = (Result<(), StreamError>,);
    match (interface, name) {
        ("wasi:cli/environment", "get-environment") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| {
                Ok((Vec::<(String, String)>::new(),))
            })?;
        }
        ("wasi:cli/environment", "get-arguments") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| Ok((Vec::<String>::new(),)))?;
        }
        ("wasi:cli/environment", "initial-cwd" | "get-initial-cwd") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| Ok((None::<String>,)))?;
        }
        ("wasi:cli/exit", "exit") => {
            to.func_wrap(
                name,
                |_: Cx<'_>, (_,): (std::result::Result<(), ()>,)| -> Result<()> {
                    Err(Exit.into())
                },
            )?;
        }
        ("wasi:cli/stdin", "get-stdin") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| {
                Ok((Resource::<InputStream>::new_own(0),))
            })?;
        }
        ("wasi:cli/stdout", "get-stdout") | ("wasi:cli/stderr", "get-stderr") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| {
                Ok((Resource::<OutputStream>::new_own(0),))
            })?;
        }
        (
            "wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr",
            "get-terminal-stdin" | "get-terminal-stdout" | "get-terminal-stderr",
        ) => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| Ok((None::<Resource<Other>>,)))?;
        }
        ("wasi:io/streams", "[method]input-stream.read" | "[method]input-stream.blocking-read") => {
            to.func_wrap(
                name,
                |_: Cx<'_>, (_, _): (Resource<InputStream>, u64)| -> Result<Bytes> {
                    Ok((Err(StreamError::Closed),))
                },
            )?;
        }
        ("wasi:io/streams", "[method]output-stream.check-write") => {
            to.func_wrap(
                name,
                |_: Cx<'_>,
                 (_,): (Resource<OutputStream>,)|
                 -> Result<(std::result::Result<u64, StreamError>,)> {
                    Ok((Ok(4096),))
                },
            )?;
        }
        (
            "wasi:io/streams",
            "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush",
        ) => {
            to.func_wrap(
                name,
                |mut cx: Cx<'_>, (_, bytes): (Resource<OutputStream>, Vec<u8>)| -> Result<Done> {
                    cx.data_mut().fault.write(&bytes);
                    Ok((Ok(()),))
                },
            )?;
        }
        (
            "wasi:io/streams",
            "[method]output-stream.flush" | "[method]output-stream.blocking-flush",
        ) => {
            to.func_wrap(
                name,
                |_: Cx<'_>, (_,): (Resource<OutputStream>,)| -> Result<Done> { Ok((Ok(()),)) },
            )?;
        }
        // Waiting for a stream: it is ready at once.
        ("wasi:io/streams", "[method]output-stream.subscribe") => {
            to.func_wrap(name, |_: Cx<'_>, (_,): (Resource<OutputStream>,)| {
                Ok((Resource::<Other>::new_own(0),))
            })?;
        }
        ("wasi:io/streams", "[method]input-stream.subscribe") => {
            to.func_wrap(name, |_: Cx<'_>, (_,): (Resource<InputStream>,)| {
                Ok((Resource::<Other>::new_own(0),))
            })?;
        }
        ("wasi:io/poll", "[method]pollable.block") => {
            to.func_wrap(name, |_: Cx<'_>, (_,): (Resource<Other>,)| Ok(()))?;
        }
        ("wasi:io/poll", "[method]pollable.ready") => {
            to.func_wrap(name, |_: Cx<'_>, (_,): (Resource<Other>,)| Ok((true,)))?;
        }
        ("wasi:clocks/monotonic-clock", "now") => {
            to.func_wrap(name, |mut cx: Cx<'_>, (): ()| {
                Ok((milliseconds(&mut cx).saturating_mul(1_000_000),))
            })?;
        }
        ("wasi:clocks/monotonic-clock", "resolution") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| Ok((1_000_000u64,)))?;
        }
        ("wasi:clocks/wall-clock", "now") => {
            to.func_wrap(name, |mut cx: Cx<'_>, (): ()| {
                let ms = milliseconds(&mut cx);
                let nanoseconds = u32::try_from(ms % 1000).unwrap_or(0) * 1_000_000;
                Ok((Datetime {
                    seconds: ms / 1000,
                    nanoseconds,
                },))
            })?;
        }
        ("wasi:clocks/wall-clock", "resolution") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| {
                Ok((Datetime {
                    seconds: 0,
                    nanoseconds: 1_000_000,
                },))
            })?;
        }
        ("wasi:random/random", "get-random-u64")
        | ("wasi:random/insecure", "get-insecure-random-u64") => {
            to.func_wrap(name, |mut cx: Cx<'_>, (): ()| Ok((draw(&mut cx),)))?;
        }
        ("wasi:random/random", "get-random-bytes")
        | ("wasi:random/insecure", "get-insecure-random-bytes") => {
            to.func_wrap(name, |mut cx: Cx<'_>, (length,): (u64,)| {
                // More than this at once is no use of random numbers.
                if length > 64 << 10 {
                    return Err(NotGranted("more than 64 KiB of random bytes".into()).into());
                }
                let mut bytes = Vec::new();
                while (bytes.len() as u64) < length {
                    bytes.extend_from_slice(&draw(&mut cx).to_le_bytes());
                }
                bytes.truncate(usize::try_from(length).unwrap_or(0));
                Ok((bytes,))
            })?;
        }
        ("wasi:random/insecure-seed", "insecure-seed") => {
            to.func_wrap(name, |mut cx: Cx<'_>, (): ()| {
                Ok(((draw(&mut cx), draw(&mut cx)),))
            })?;
        }
        ("wasi:filesystem/preopens", "get-directories") => {
            to.func_wrap(name, |_: Cx<'_>, (): ()| {
                Ok((Vec::<(Resource<Other>, String)>::new(),))
            })?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The virtual time: when the request arrived, and a millisecond more for each look at the clock,
/// so that a guest that waits for time to pass does not wait for ever.
fn milliseconds(cx: &mut Cx<'_>) -> u64 {
    let data = cx.data_mut();
    let now = data.context.now_ms.saturating_add(data.wasi.read);
    data.wasi.read += 1;
    now
}

/// The next number of the virtual random source: SplitMix64 (Steele, Lea and Flood 2014) over the
/// trace's seed. Not for secrets: a stage that could keep one would not be replayable.
fn draw(cx: &mut Cx<'_>) -> u64 {
    let data = cx.data_mut();
    data.wasi.drawn += 1;
    let mut z = data
        .context
        .seed
        .wrapping_add(data.wasi.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
