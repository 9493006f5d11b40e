//! What a call is told about the request it serves.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

use crate::tape::Tape;

/// Which way the text flows.
#[derive(
    ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default,
)]
#[component(enum)]
#[repr(u8)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the client to the model.
    #[default]
    #[component(name = "input")]
    Input,
    /// From the model to the client.
    #[component(name = "output")]
    Output,
    /// Neither: a row of a dataset.
    #[component(name = "dataset")]
    Dataset,
}

/// The request, as far as a stage may see it. A clone shares its texts.
///
/// The stage's own name is not here: each [`Stage`](crate::Stage) answers `context.stage` with
/// its name, so that one context serves all stages of a request.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The trace's id.
    pub trace_id: Arc<str>,
    /// The tenant's name, `default` where there is none.
    pub tenant: Arc<str>,
    /// The model name that the client asked for.
    pub model: Arc<str>,
    /// Which way this text flows.
    pub direction: Direction,
    /// The role of this segment: `system`, `user`, `assistant`, `tool`, or empty.
    pub role: Arc<str>,
    /// A language tag (BCP 47) where the client gave one, else empty.
    pub language: Arc<str>,
    /// Milliseconds since 1970 at which the request arrived.
    pub now_ms: u64,
    /// A seed derived from the trace.
    pub seed: u64,
    /// Where the calls are recorded, or what the host's functions are answered from.
    pub tape: Option<Tape>,
}

impl Default for CallContext {
    /// No request in particular: tenant `default`, all else empty or zero.
    fn default() -> Self {
        let empty: Arc<str> = Arc::from("");
        CallContext {
            trace_id: empty.clone(),
            tenant: Arc::from("default"),
            model: empty.clone(),
            direction: Direction::Input,
            role: empty.clone(),
            language: empty,
            now_ms: 0,
            seed: 0,
            tape: None,
        }
    }
}
