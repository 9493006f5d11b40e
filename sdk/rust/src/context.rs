//! What a stage may know about the request it serves.

use alloc::string::String;

pub use crate::bindings::host::millgate::stage::context::Direction;

#[cfg(target_family = "wasm")]
use crate::bindings::host::millgate::stage::context::Context as Source;
#[cfg(not(target_family = "wasm"))]
use crate::testing::MockContext as Source;

/// The request, as far as a plugin may see it. Each getter asks the host, so call what you need and
/// no more. Natively it is a view of a [`MockContext`](crate::testing::MockContext).
#[derive(Clone, Copy)]
pub struct Context<'a>(&'a Source);

impl<'a> Context<'a> {
    #[doc(hidden)]
    #[must_use]
    pub fn new(source: &'a Source) -> Self {
        Context(source)
    }

    /// The trace's id: the same for every stage of one request.
    #[must_use]
    pub fn trace_id(&self) -> String {
        self.0.trace_id()
    }

    /// The tenant's name, `default` where there is none.
    #[must_use]
    pub fn tenant(&self) -> String {
        self.0.tenant()
    }

    /// The model name that the client asked for.
    #[must_use]
    pub fn model(&self) -> String {
        self.0.model()
    }

    /// The stage's name in the pipeline.
    #[must_use]
    pub fn stage(&self) -> String {
        self.0.stage()
    }

    /// Which way this text flows.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.0.direction()
    }

    /// The role of this segment: `system`, `user`, `assistant`, `tool`, or empty.
    #[must_use]
    pub fn role(&self) -> String {
        self.0.role()
    }

    /// A language tag (BCP 47) where the client gave one, else empty.
    #[must_use]
    pub fn language(&self) -> String {
        self.0.language()
    }

    /// Milliseconds since 1970 at which the request arrived. The same at a replay.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }

    /// A seed derived from the trace. The same at a replay.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.seed()
    }
}

/// What a check of a whole text or a window is told about it: the context outlives no call, so the
/// SDK asks for these when the inspection begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which way the text flows.
    pub direction: Direction,
    /// The role: `system`, `user`, `assistant`, `tool`, or empty.
    pub role: String,
    /// A language tag (BCP 47), or empty.
    pub language: String,
}

impl Segment {
    pub(crate) fn of(ctx: &Context<'_>) -> Self {
        Segment {
            direction: ctx.direction(),
            role: ctx.role(),
            language: ctx.language(),
        }
    }
}
