//! The KV cache on the device, and which attention kernel runs.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::Gpu;
use super::executor::{Buffer, CudaExecutor};
use super::kernels::{Argument, Argument::Pointer, HeadsArgument, Size, int};
use super::step::Layout;
use crate::ops::{CacheShape, HeadShape, PAGE_TOKENS, Reach};
use crate::{Error, Result};

/// Largest head that the kernels take.
const MOST_HEAD_DIM: usize = 256;
/// Most memory for the results of units of attention; steps that need more do not share out a sequence.
const MOST_PARTIALS: usize = 256 << 20;

/// Keys and values: in each page, in each layer, the keys of all kv heads and then the values.
pub(crate) struct Cache {
    data: Elements,
    /// With the dimensions that a head has room for.
    shape: CacheShape,
}

/// The dimensions that a head has room for: those that the tensor-core kernels are compiled for, or exactly its own.
pub(super) fn stored_dim(head_dim: usize, exact: bool) -> usize {
    match head_dim {
        _ if exact => head_dim,
        0..=64 => 64,
        65..=128 => 128,
        _ => MOST_HEAD_DIM,
    }
}

enum Elements {
    Half(CudaSlice<u16>),
    Single(CudaSlice<f32>),
}

impl Cache {
    pub(super) fn new(
        shape: CacheShape,
        exact: bool,
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
    ) -> Result<Self> {
        if shape.head_dim > MOST_HEAD_DIM {
            return Err(Error::Unsupported(format!(
                "heads of {} elements on a GPU, which takes up to {MOST_HEAD_DIM}; set device = \"cpu\"",
                shape.head_dim
            )));
        }
        let shape = CacheShape {
            head_dim: stored_dim(shape.head_dim, exact),
            ..shape
        };
        let elements = page_elements(shape) * shape.pages;
        let what = "the KV cache";
        let data = if exact {
            Elements::Single(gpu.zeroed(stream, what, elements)?)
        } else {
            Elements::Half(gpu.zeroed(stream, what, elements)?)
        };
        Ok(Self { data, shape })
    }

    /// The address of a layer in the first page.
    fn layer(&self, layer: usize, stream: &CudaStream) -> u64 {
        let elements = (layer * page_elements(self.shape) / self.shape.layers) as u64;
        match &self.data {
            Elements::Half(data) => data.device_ptr(stream).0 + 2 * elements,
            Elements::Single(data) => data.device_ptr(stream).0 + 4 * elements,
        }
    }
}

fn page_elements(shape: CacheShape) -> usize {
    2 * shape.layers * shape.kv_heads * PAGE_TOKENS * shape.head_dim
}

/// What the units of shared-out sequences leave to be merged.
pub(super) struct Partials {
    data: CudaSlice<f32>,
}

impl Partials {
    pub(super) fn new(gpu: &Gpu, stream: &Arc<CudaStream>) -> Result<Self> {
        Ok(Self {
            data: gpu.zeroed(stream, "attention", 1)?,
        })
    }

    /// Elements that a step needs; 0 where it is to do without.
    fn needed(layout: &Layout, shape: HeadShape) -> usize {
        let elements = layout.short_rows
            * shape.heads
            * layout.units
            * (stored_dim(shape.head_dim, false) + 2);
        if elements * size_of::<f32>() > MOST_PARTIALS {
            0
        } else {
            elements
        }
    }

    /// Room for a step. True where the memory moved.
    pub(super) fn reserve(
        &mut self,
        layout: &Layout,
        shape: HeadShape,
        gpu: &Gpu,
        stream: &Arc<CudaStream>,
    ) -> Result<bool> {
        let needed = Self::needed(layout, shape);
        let moves = needed > self.data.len();
        if moves {
            self.data = gpu.zeroed(stream, "attention", needed.next_power_of_two())?;
        }
        Ok(moves)
    }
}

impl CudaExecutor {
    /// Keeps each row's k and v.
    pub(super) fn keep(
        &mut self,
        qkv: &Buffer,
        rows: usize,
        shape: HeadShape,
        layer: usize,
        cache: &Cache,
    ) -> Result<()> {
        self.began_with(rows)?;
        qkv.holds(rows)?;
        if self.step.last_page >= cache.shape.pages {
            return Err(Error::Device(format!(
                "KV page {} of {}",
                self.step.last_page, cache.shape.pages
            )));
        }
        let name = match &cache.data {
            Elements::Half(_) => "store_kv_half",
            Elements::Single(_) => "store_kv_single",
        };
        self.launch(
            name,
            Size::rows(rows, 256),
            &[
                Pointer(cache.layer(layer, &self.stream)),
                Pointer(qkv.pointer(&self.stream)),
                Pointer(self.step.pointer(self.step.layout.slots_at, &self.stream)),
                int(qkv.width),
                int(shape.heads * shape.head_dim),
                int(shape.kv_heads),
                int(shape.head_dim),
                int(cache.shape.head_dim),
                Argument::Long(page_elements(cache.shape) as i64),
            ],
        )
    }

    /// out[row] = attention of the row's q heads.
    #[allow(clippy::too_many_arguments, reason = "see `Executor::attention`")]
    pub(super) fn attend(
        &mut self,
        qkv: &Buffer,
        rows: usize,
        shape: HeadShape,
        reach: Reach,
        layer: usize,
        cache: &Cache,
        out: &mut Buffer,
    ) -> Result<()> {
        self.began_with(rows)?;
        qkv.holds(rows)?;
        out.holds(rows)?;
        self.written(out);
        let layout = &self.step.layout;
        let at = |place| self.step.pointer(place, &self.stream);
        let (last, window) = match reach {
            Reach::Causal => (layout.positions_at, 0),
            Reach::Window(size) => (layout.positions_at, i32::try_from(size).unwrap_or(0)),
            Reach::Whole => (layout.ends_at, 0),
        };
        let heads = Argument::Heads(HeadsArgument {
            last: at(last),
            table_of: at(layout.table_of_at),
            tables: at(layout.tables_at),
            page_stride: page_elements(cache.shape) as i64,
            stride: layout.stride as i32,
            width: qkv.width as i32,
            out_width: out.width as i32,
            heads: shape.heads as i32,
            kv_heads: shape.kv_heads as i32,
            head_dim: shape.head_dim as i32,
            stored_dim: cache.shape.head_dim as i32,
            window,
            scale: std::f32::consts::LOG2_E * shape.scale,
            padding: 0,
        });
        let to = Pointer(out.pointer(&self.stream));
        let from = Pointer(qkv.pointer(&self.stream));
        let keys = Pointer(cache.layer(layer, &self.stream));
        if let Elements::Single(_) = &cache.data {
            let size = Size {
                blocks: (rows, shape.heads.div_ceil(4), 1),
                threads: 128,
                shared: 4 * 32 * size_of::<f32>(),
            };
            return self.launch("attend_plain", size, &[to, from, keys, heads]);
        }
        let dims = cache.shape.head_dim;
        // Of the largest heads a warp sums up half.
        let parts = if dims == MOST_HEAD_DIM { 2 } else { 1 };
        // The queries of four tiles, in half precision.
        let shared = 4 * 16 * dims * size_of::<u16>();
        let whole = |tiles_at: usize, tiles: usize| {
            let size = Size {
                blocks: (tiles.div_ceil(4), shape.kv_heads * parts, 1),
                threads: 128,
                shared,
            };
            let tiles_pointer = Pointer(at(tiles_at));
            let arguments = [to, int(0), tiles_pointer, int(tiles), from, keys, heads];
            self.launch(&format!("attend_whole_{dims}"), size, &arguments)
        };
        whole(layout.long_tiles_at, layout.long_tiles)?;
        if layout.short_tiles == 0 {
            return Ok(());
        }
        if Partials::needed(layout, shape) == 0 {
            return whole(layout.short_tiles_at, layout.short_tiles);
        }
        let partials = Pointer(self.partials.data.device_ptr(&self.stream).0);
        let units = int(layout.units);
        let size = Size {
            blocks: (layout.short_tiles, shape.kv_heads, layout.units.div_ceil(4)),
            threads: 128,
            shared,
        };
        let tiles = Pointer(at(layout.short_tiles_at));
        self.launch(
            &format!("attend_split_{dims}"),
            size,
            &[
                partials,
                units,
                tiles,
                int(layout.short_tiles),
                from,
                keys,
                heads,
            ],
        )?;
        let size = Size {
            blocks: (layout.short_rows, shape.heads, 1),
            threads: 256,
            shared: 0,
        };
        let rows = Pointer(at(layout.short_rows_at));
        self.launch("combine", size, &[to, partials, rows, units, heads])
    }
}
