#![allow(
    unsafe_code,
    reason = "kernel launches: the arguments are held against the kernels' declarations by the test driver"
)]
//! The kernels: PTX that the binary carries, and how one is launched.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;

use super::describe;
use crate::{Error, Result};

/// What `tests/gpu/compile.py` made of `kernels/`.
pub(super) const PTX: &str = include_str!("kernels.ptx");

/// A loaded module's kernels, by name.
pub(super) struct Kernels {
    functions: HashMap<&'static str, CudaFunction>,
}

impl Kernels {
    /// Has the driver compile the kernels for the context's GPU. It keeps the result on disk: only the first start takes
    /// seconds.
    pub(super) fn load(context: &Arc<CudaContext>) -> Result<Self> {
        let failed = |error| Error::Device(format!("loading the kernels: {}", describe(error)));
        let module = context.load_module(Ptx::from_src(PTX)).map_err(failed)?;
        let functions = entries(PTX)
            .map(|name| Ok((name, module.load_function(name).map_err(failed)?)))
            .collect::<Result<_>>()?;
        Ok(Self { functions })
    }

    pub(super) fn get(&self, name: &str) -> Result<&CudaFunction> {
        self.functions
            .get(name)
            .ok_or_else(|| Error::Device(format!("there is no kernel {name}")))
    }
}

/// The names of the kernels in a module's text.
pub(super) fn entries(ptx: &'static str) -> impl Iterator<Item = &'static str> {
    ptx.lines()
        .filter_map(|line| line.strip_prefix(".visible .entry ")?.strip_suffix('('))
}

/// A matrix of one type; the same struct is in `kernels/weights.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct PartArgument {
    pub(super) quants: u64,
    pub(super) scales: u64,
    pub(super) high: u64,
    pub(super) units: i32,
    pub(super) rows: i32,
}

// SAFETY: plain numbers, laid out as C does.
unsafe impl DeviceRepr for PartArgument {}

/// Heads and pages of a step; the same struct is in `kernels/attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadsArgument {
    pub(super) last: u64,
    pub(super) table_of: u64,
    pub(super) tables: u64,
    pub(super) page_stride: i64,
    pub(super) stride: i32,
    pub(super) width: i32,
    pub(super) out_width: i32,
    pub(super) heads: i32,
    pub(super) kv_heads: i32,
    pub(super) head_dim: i32,
    pub(super) stored_dim: i32,
    pub(super) window: i32,
    pub(super) scale: f32,
    pub(super) padding: u32,
}

// SAFETY: plain numbers, laid out as C does.
unsafe impl DeviceRepr for HeadsArgument {}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    Pointer(u64),
    Int(i32),
    Long(i64),
    Float(f32),
    Part(PartArgument),
    Heads(HeadsArgument),
}

/// A count or size as a kernel takes it. Shapes are checked when a model is opened; none comes near the limit.
pub(super) fn int(value: usize) -> Argument {
    Argument::Int(i32::try_from(value).unwrap_or(i32::MAX))
}

/// How large a launch is: blocks, threads of a block, and bytes of shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) blocks: (usize, usize, usize),
    pub(super) threads: u32,
    pub(super) shared: usize,
}

impl Size {
    /// A block for each row.
    pub(super) fn rows(rows: usize, threads: u32) -> Self {
        Self {
            blocks: (rows, 1, 1),
            threads,
            shared: 0,
        }
    }
}

/// Queues a launch.
pub(super) fn launch(
    stream: &CudaStream,
    function: &CudaFunction,
    size: Size,
    arguments: &[Argument],
) -> Result<()> {
    let (x, y, z) = size.blocks;
    if x == 0 || y == 0 || z == 0 {
        return Ok(());
    }
    let mut builder = stream.launch_builder(function);
    for argument in arguments {
        match argument {
            Argument::Pointer(value) => builder.arg(value),
            Argument::Int(value) => builder.arg(value),
            Argument::Long(value) => builder.arg(value),
            Argument::Float(value) => builder.arg(value),
            Argument::Part(value) => builder.arg(value),
            Argument::Heads(value) => builder.arg(value),
        };
    }
    let config = LaunchConfig {
        grid_dim: (x as u32, y as u32, z as u32),
        block_dim: (size.threads, 1, 1),
        shared_mem_bytes: size.shared as u32,
    };
    // SAFETY: each caller names a kernel's arguments in the order of its declaration, with pointers to buffers that live
    // at least until the stream is waited for; the test driver checks counts and sizes, and every access.
    unsafe { builder.launch(config) }
        .map(|_| ())
        .map_err(|error| Error::Device(format!("a launch: {}", describe(error))))
}
