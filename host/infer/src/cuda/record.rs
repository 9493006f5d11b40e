#![allow(
    unsafe_code,
    reason = "a graph moves between threads, but is used by one at a time"
)]
//! Steps of decoding as graphs: the launches of a step are recorded once for each layout of a batch, and then started by
//! one call.
//!
//! A recording holds the addresses of its buffers. They are those of the session that the executor belongs to, and
//! live as long; where the executor moves memory of its own, it forgets its recordings.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode};
use cudarc::driver::{CudaGraph, CudaStream};

use super::describe;
use super::step::Layout;
use crate::{Error, Result};

/// Most rows of a step that is recorded.
const MOST_ROWS: usize = 128;
/// Most recordings that are kept.
const MOST_RECORDINGS: usize = 256;

/// A graph that only its executor's thread uses.
struct Recording(CudaGraph);

// SAFETY: the executor owns it and takes `&mut self` to use it; the driver allows any thread.
unsafe impl Send for Recording {}

/// The recordings of an executor.
#[derive(Default)]
pub(super) struct Recorder {
    done: HashMap<Layout, Recording>,
    /// The step that is being recorded.
    current: Option<Layout>,
}

fn failed(error: cudarc::driver::DriverError) -> Error {
    Error::Device(format!("a graph: {}", describe(error)))
}

impl Recorder {
    /// Starts a step: replays it where its layout was recorded (true), or records it where that is worth it.
    pub(super) fn begin(&mut self, layout: &Layout, stream: &Arc<CudaStream>) -> Result<bool> {
        if let Some(recording) = self.done.get(layout) {
            recording.0.launch().map_err(failed)?;
            return Ok(true);
        }
        // Steps of decoding come again with the same layout; those with a part of a prompt hardly do.
        if layout.rows <= MOST_ROWS && layout.logits == layout.rows && layout.long_tiles == 0 {
            // Others may load a model meanwhile: only this thread's calls are watched.
            stream
                .begin_capture(Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
                .map_err(failed)?;
            self.current = Some(layout.clone());
        }
        Ok(false)
    }

    /// Ends a recording, and runs what was recorded.
    pub(super) fn end(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let Some(layout) = self.current.take() else {
            return Ok(());
        };
        let flags = Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).map_err(failed)?;
        let graph = graph.ok_or_else(|| Error::Device("a graph: nothing was recorded".into()))?;
        graph.launch().map_err(failed)?;
        if self.done.len() >= MOST_RECORDINGS {
            self.done.clear();
        }
        self.done.insert(layout, Recording(graph));
        Ok(())
    }

    /// Drops a recording that an error broke off.
    pub(super) fn abandon(&mut self, stream: &Arc<CudaStream>) {
        if self.current.take().is_some()
            && let Err(error) =
                stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        {
            tracing::debug!(error = describe(error), "a broken recording");
        }
    }

    /// Forgets all recordings: memory that they name has moved.
    pub(super) fn forget(&mut self) {
        self.done.clear();
    }

    pub(super) fn recording(&self) -> bool {
        self.current.is_some()
    }
}
