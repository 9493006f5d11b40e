//! Runs a step on the device: one stream, into which every operation is queued; `read` waits for it.

use std::cell::Cell;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtr};

use super::attention::{Cache, Partials, stored_dim};
use super::kernels::{Argument, Argument::Float, Argument::Pointer, Size, int, launch};
use super::matrix::Matrix;
use super::record::Recorder;
use super::step::Step;
use super::{Gpu, describe};
use crate::model::Precision;
use crate::ops::{
    Activation, Batch, CacheShape, Executor, HeadShape, PAGE_TOKENS, Reach, RopeOrder, Write,
};
use crate::{Error, Result};

/// Shared memory of kernels that sum over a block: a float for each of its warps.
const SUMS: usize = 64;

/// Rows of f32 on the device.
pub(crate) struct Buffer {
    data: CudaSlice<f32>,
    rows: usize,
    pub(super) width: usize,
}

impl Buffer {
    pub(super) fn pointer(&self, stream: &CudaStream) -> u64 {
        self.data.device_ptr(stream).0
    }

    /// Refuses more rows than there are.
    pub(super) fn holds(&self, rows: usize) -> Result<()> {
        if rows > self.rows {
            return Err(Error::Device(format!(
                "{rows} rows in a buffer of {}",
                self.rows
            )));
        }
        Ok(())
    }
}

/// Activations in half precision, for tensor cores: what the last norm or gate wrote beside its f32 result, or what a
/// product had rounded for itself.
struct Rounded {
    halves: CudaSlice<u16>,
    scales: CudaSlice<f32>,
    /// The buffer (by its address) and the rows of it that are here.
    of: Option<(u64, usize)>,
    /// The most that any buffer could need: elements, and rows.
    wanted: Cell<(usize, usize)>,
}

/// Runs operations on a GPU.
pub(crate) struct CudaExecutor {
    pub(super) gpu: Arc<Gpu>,
    pub(super) stream: Arc<CudaStream>,
    precision: Precision,
    pub(super) step: Step,
    rounded: Rounded,
    pub(super) partials: Partials,
    recorder: Recorder,
}

impl Drop for CudaExecutor {
    fn drop(&mut self) {
        self.recorder.abandon(&self.stream);
        // Buffers of the session are freed after this.
        if let Err(error) = self.stream.synchronize() {
            tracing::debug!(error = describe(error), "a stream ended in an error");
        }
    }
}

/// Elements of a row of activations in half precision: whole units of weights.
fn padded(width: usize) -> usize {
    width.next_multiple_of(32)
}

impl CudaExecutor {
    pub(super) fn new(gpu: Arc<Gpu>, precision: Precision) -> Result<Self> {
        let stream = gpu
            .context
            .new_stream()
            .map_err(|error| Error::Device(format!("a stream: {}", describe(error))))?;
        Ok(Self {
            step: Step::new(&gpu, &stream)?,
            rounded: Rounded {
                halves: gpu.zeroed(&stream, "activations", 1)?,
                scales: gpu.zeroed(&stream, "activations", 1)?,
                of: None,
                wanted: Cell::new((0, 0)),
            },
            partials: Partials::new(&gpu, &stream)?,
            recorder: Recorder::default(),
            gpu,
            stream,
            precision,
        })
    }

    pub(super) fn launch(&self, name: &str, size: Size, arguments: &[Argument]) -> Result<()> {
        self.run(self.gpu.kernels.get(name)?, size, arguments)
    }

    fn run(&self, function: &CudaFunction, size: Size, arguments: &[Argument]) -> Result<()> {
        launch(&self.stream, function, size, arguments)
    }

    /// Room for the activations of every buffer.
    fn reserve_rounded(&mut self) -> Result<()> {
        let (elements, rows) = self.rounded.wanted.get();
        if elements > self.rounded.halves.len() || rows > self.rounded.scales.len() {
            self.rounded.halves = self.gpu.zeroed(&self.stream, "activations", elements)?;
            self.rounded.scales = self.gpu.zeroed(&self.stream, "activations", rows)?;
            self.rounded.of = None;
            self.recorder.forget();
        }
        Ok(())
    }

    /// Where a kernel that fills `out` writes its result in half precision too, or null pointers where nobody needs it.
    fn also_rounded(&mut self, out: &Buffer, rows: usize) -> Result<[Argument; 2]> {
        if self.precision == Precision::Exact {
            return Ok([Pointer(0), Pointer(0)]);
        }
        if !self.recorder.recording() {
            self.reserve_rounded()?;
        }
        self.rounded.of = Some((out.pointer(&self.stream), rows));
        Ok(self.rounded_pointers())
    }

    fn rounded_pointers(&self) -> [Argument; 2] {
        [
            Pointer(self.rounded.halves.device_ptr(&self.stream).0),
            Pointer(self.rounded.scales.device_ptr(&self.stream).0),
        ]
    }

    /// Notes that a buffer was written to: what was rounded of it is old.
    pub(super) fn written(&mut self, out: &Buffer) {
        if self.rounded.of.map(|(buffer, _)| buffer) == Some(out.pointer(&self.stream)) {
            self.rounded.of = None;
        }
    }

    /// Has the first rows of a buffer in half precision.
    fn round(&mut self, x: &Buffer, rows: usize) -> Result<()> {
        let x_pointer = x.pointer(&self.stream);
        if self
            .rounded
            .of
            .is_some_and(|(buffer, there)| buffer == x_pointer && there >= rows)
        {
            return Ok(());
        }
        let [halves, scales] = self.also_rounded(x, rows)?;
        let size = Size {
            shared: SUMS,
            ..Size::rows(rows, 256)
        };
        self.launch(
            "round_rows",
            size,
            &[
                halves,
                scales,
                Pointer(x_pointer),
                int(x.width),
                int(padded(x.width)),
            ],
        )
    }

    /// Ids on the device: the step's tokens, or sent now.
    fn ids(&self, ids: &[u32]) -> Result<(u64, Option<CudaSlice<u32>>)> {
        if self.step.tokens() == ids {
            let at = self.step.layout.tokens_at;
            return Ok((self.step.pointer(at, &self.stream), None));
        }
        let sent = self.gpu.upload(&self.stream, "ids", ids)?;
        let pointer = sent.device_ptr(&self.stream).0;
        Ok((pointer, Some(sent)))
    }

    /// Row numbers on the device: those that the step brought, or sent now.
    fn indices(&self, rows: &[usize]) -> Result<(u64, Option<CudaSlice<u32>>)> {
        for (known, at) in [
            (&self.step.logits, self.step.layout.logits_at),
            (&self.step.hidden, self.step.layout.hidden_at),
        ] {
            if known == rows {
                return Ok((self.step.pointer(at, &self.stream), None));
            }
        }
        let words: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let sent = self.gpu.upload(&self.stream, "row numbers", &words)?;
        let pointer = sent.device_ptr(&self.stream).0;
        Ok((pointer, Some(sent)))
    }

    /// Refuses a batch that is not the one that the step began with.
    pub(super) fn began_with(&self, rows: usize) -> Result<()> {
        if self.step.layout.rows != rows {
            return Err(Error::Device("a step that was not begun".into()));
        }
        Ok(())
    }

    /// Whether products are to keep f32 sums of unrounded numbers.
    pub(super) fn exact(&self) -> bool {
        self.precision == Precision::Exact
    }
}

fn add(write: Write) -> Argument {
    Argument::Int(i32::from(write == Write::Add))
}

impl Executor for CudaExecutor {
    type Matrix = Matrix;
    type Vector = CudaSlice<f32>;
    type Buffer = Buffer;
    type Cache = Cache;

    fn buffer(&self, rows: usize, width: usize) -> Result<Buffer> {
        let (elements, most) = self.rounded.wanted.get();
        self.rounded
            .wanted
            .set((elements.max(rows * padded(width)), most.max(rows)));
        Ok(Buffer {
            data: self.gpu.zeroed(&self.stream, "activations", rows * width)?,
            rows,
            width,
        })
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache> {
        Cache::new(shape, self.exact(), &self.gpu, &self.stream)
    }

    fn page_bytes(&self, shape: CacheShape) -> usize {
        let element = if self.exact() { 4 } else { 2 };
        2 * shape.layers
            * shape.kv_heads
            * PAGE_TOKENS
            * stored_dim(shape.head_dim, self.exact())
            * element
    }

    fn begin(&mut self, batch: Batch<'_>, shape: HeadShape, angles: &[&[f32]]) -> Result<bool> {
        self.recorder.abandon(&self.stream);
        self.rounded.of = None;
        self.reserve_rounded()?;
        if self
            .step
            .send(batch, shape, angles, &self.gpu, &self.stream)?
        {
            self.recorder.forget();
        }
        if self
            .partials
            .reserve(&self.step.layout, shape, &self.gpu, &self.stream)?
        {
            self.recorder.forget();
        }
        // Which rows have adapters differs from step to step.
        if batch.adapters.iter().any(|adapter| *adapter != 0) {
            return Ok(false);
        }
        self.recorder.begin(&self.step.layout, &self.stream)
    }

    fn embed(
        &mut self,
        table: &Matrix,
        ids: &[u32],
        scale: f32,
        out: &mut Buffer,
        write: Write,
    ) -> Result<()> {
        out.holds(ids.len())?;
        self.written(out);
        let [part] = table.parts.as_slice() else {
            return Err(Error::Device("an embedding of several types".into()));
        };
        let (pointer, _sent) = self.ids(ids)?;
        self.run(
            &part.products.embed,
            Size::rows(ids.len(), 128),
            &[
                Pointer(out.pointer(&self.stream)),
                Argument::Part(part.argument(&self.stream)),
                Pointer(pointer),
                int(out.width),
                Float(scale),
                add(write),
            ],
        )
    }

    fn rms_norm(
        &mut self,
        x: &Buffer,
        rows: usize,
        weight: &CudaSlice<f32>,
        epsilon: f32,
        out: &mut Buffer,
        write: Write,
    ) -> Result<()> {
        x.holds(rows)?;
        out.holds(rows)?;
        // What is added to is not multiplied next.
        let [halves, scales] = match write {
            Write::Set => self.also_rounded(out, rows)?,
            Write::Add => {
                self.written(out);
                [Pointer(0), Pointer(0)]
            }
        };
        let size = Size {
            shared: SUMS,
            ..Size::rows(rows, 256)
        };
        self.launch(
            "rms_norm",
            size,
            &[
                Pointer(out.pointer(&self.stream)),
                halves,
                scales,
                Pointer(x.pointer(&self.stream)),
                Pointer(weight.device_ptr(&self.stream).0),
                int(x.width),
                int(padded(x.width)),
                Float(epsilon),
                add(write),
            ],
        )
    }

    fn head_norm(
        &mut self,
        qkv: &mut Buffer,
        rows: usize,
        shape: HeadShape,
        weights: (&CudaSlice<f32>, &CudaSlice<f32>),
        epsilon: f32,
    ) -> Result<()> {
        qkv.holds(rows)?;
        self.written(qkv);
        let heads = shape.heads + shape.kv_heads;
        self.launch(
            "head_norm",
            product(rows, heads.div_ceil(8), 256, 0),
            &[
                Pointer(qkv.pointer(&self.stream)),
                Pointer(weights.0.device_ptr(&self.stream).0),
                Pointer(weights.1.device_ptr(&self.stream).0),
                int(qkv.width),
                int(shape.heads),
                int(shape.kv_heads),
                int(shape.head_dim),
                Float(epsilon),
            ],
        )
    }

    fn layer_norm(
        &mut self,
        x: &Buffer,
        rows: usize,
        weight_and_bias: (&CudaSlice<f32>, &CudaSlice<f32>),
        epsilon: f32,
        out: &mut Buffer,
    ) -> Result<()> {
        x.holds(rows)?;
        out.holds(rows)?;
        let [halves, scales] = self.also_rounded(out, rows)?;
        let size = Size {
            shared: SUMS,
            ..Size::rows(rows, 256)
        };
        self.launch(
            "layer_norm",
            size,
            &[
                Pointer(out.pointer(&self.stream)),
                halves,
                scales,
                Pointer(x.pointer(&self.stream)),
                Pointer(weight_and_bias.0.device_ptr(&self.stream).0),
                Pointer(weight_and_bias.1.device_ptr(&self.stream).0),
                int(x.width),
                int(padded(x.width)),
                Float(epsilon),
            ],
        )
    }

    fn matmul(
        &mut self,
        x: &Buffer,
        rows: usize,
        weights: &Matrix,
        out: &mut Buffer,
        write: Write,
    ) -> Result<()> {
        x.holds(rows)?;
        out.holds(rows)?;
        let mut first = 0;
        for part in &weights.parts {
            if part.columns != x.width || first + part.rows > out.width {
                return Err(Error::Device("a product of the wrong shape".into()));
            }
            let rest = [
                int(rows),
                int(if self.exact() {
                    x.width
                } else {
                    padded(x.width)
                }),
                int(out.width),
                int(first),
                add(write),
            ];
            let tiles = part.rows.div_ceil(16);
            let argument = Argument::Part(part.argument(&self.stream));
            let to = Pointer(out.pointer(&self.stream));
            match &part.products.tensor {
                Some([few, some, many]) if !self.exact() => {
                    self.round(x, rows)?;
                    let [halves, scales] = self.rounded_pointers();
                    let (function, size) = match rows {
                        0..=8 => (few, product(tiles, rows.div_ceil(8), 256, 8 * 512)),
                        9..=32 => (some, product(tiles, rows.div_ceil(32), 256, 8 * 4 * 512)),
                        _ => (
                            many,
                            product(tiles.div_ceil(8), rows.div_ceil(64), 128, 24 << 10),
                        ),
                    };
                    let [tokens, width, rest @ ..] = rest;
                    let mut all = vec![to, halves, scales, argument, tokens, width];
                    all.extend(rest);
                    self.run(function, size, &all)?;
                }
                _ => {
                    let from = Pointer(x.pointer(&self.stream));
                    let [tokens, _, rest @ ..] = rest;
                    let mut all = vec![to, from, argument, tokens, int(x.width)];
                    all.extend(rest);
                    let size = product(tiles, rows.div_ceil(4), 256, 8 * 16 * 4 * 4);
                    let exact = part.products.exact.as_ref().ok_or_else(|| {
                        Error::Device("weights that were loaded for the fast products".into())
                    })?;
                    self.run(exact, size, &all)?;
                }
            }
            first += part.rows;
        }
        self.written(out);
        Ok(())
    }

    fn add_bias(&mut self, x: &mut Buffer, rows: usize, bias: &CudaSlice<f32>) -> Result<()> {
        x.holds(rows)?;
        self.written(x);
        self.launch(
            "add_bias",
            Size::rows(rows, 256),
            &[
                Pointer(x.pointer(&self.stream)),
                Pointer(bias.device_ptr(&self.stream).0),
                int(x.width),
            ],
        )
    }

    fn rope(
        &mut self,
        qkv: &mut Buffer,
        rows: usize,
        shape: HeadShape,
        angles: &[f32],
    ) -> Result<()> {
        qkv.holds(rows)?;
        self.written(qkv);
        // Angles that the step did not bring are sent now; they live until the launch is queued, and are freed in its order.
        let sent;
        let pointer = match self.step.angles(angles) {
            Some(at) => self.step.pointer(at, &self.stream),
            None => {
                sent = self.gpu.upload(&self.stream, "angles", angles)?;
                sent.device_ptr(&self.stream).0
            }
        };
        self.launch(
            "rope",
            Size::rows(rows, 256),
            &[
                Pointer(qkv.pointer(&self.stream)),
                Pointer(pointer),
                int(qkv.width),
                int(shape.heads + shape.kv_heads),
                int(shape.head_dim),
                int(shape.rope_dim / 2),
                Argument::Int(i32::from(shape.rope_order == RopeOrder::Halves)),
            ],
        )
    }

    fn store_kv(
        &mut self,
        qkv: &Buffer,
        batch: Batch<'_>,
        shape: HeadShape,
        layer: usize,
        cache: &mut Cache,
    ) -> Result<()> {
        self.keep(qkv, batch.rows.len(), shape, layer, cache)
    }

    fn attention(
        &mut self,
        qkv: &Buffer,
        batch: Batch<'_>,
        shape: HeadShape,
        reach: Reach,
        layer: usize,
        cache: &Cache,
        out: &mut Buffer,
    ) -> Result<()> {
        self.attend(qkv, batch.rows.len(), shape, reach, layer, cache, out)
    }

    fn gated(
        &mut self,
        x: &Buffer,
        rows: usize,
        activation: Activation,
        out: &mut Buffer,
    ) -> Result<()> {
        x.holds(rows)?;
        out.holds(rows)?;
        let [halves, scales] = self.also_rounded(out, rows)?;
        let size = Size {
            shared: SUMS,
            ..Size::rows(rows, 256)
        };
        self.launch(
            "gated",
            size,
            &[
                Pointer(out.pointer(&self.stream)),
                halves,
                scales,
                Pointer(x.pointer(&self.stream)),
                int(out.width),
                int(padded(out.width)),
                Argument::Int(match activation {
                    Activation::Silu => 0,
                    Activation::GeluTanh => 1,
                }),
            ],
        )
    }

    fn gelu(&mut self, x: &mut Buffer, rows: usize) -> Result<()> {
        x.holds(rows)?;
        self.written(x);
        self.launch(
            "gelu",
            Size::rows(rows, 256),
            &[Pointer(x.pointer(&self.stream)), int(x.width)],
        )
    }

    fn gather(&mut self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Result<()> {
        out.holds(rows.len())?;
        x.holds(rows.iter().map(|row| row + 1).max().unwrap_or(0))?;
        if x.width != out.width {
            return Err(Error::Device("rows of another width".into()));
        }
        self.written(out);
        let (pointer, _sent) = self.indices(rows)?;
        self.launch(
            "gather",
            Size::rows(rows.len(), 256),
            &[
                Pointer(out.pointer(&self.stream)),
                Pointer(x.pointer(&self.stream)),
                Pointer(pointer),
                int(out.width),
            ],
        )
    }

    fn scatter_add(
        &mut self,
        x: &Buffer,
        rows: &[usize],
        out: &mut Buffer,
        at: usize,
    ) -> Result<()> {
        x.holds(rows.len())?;
        out.holds(rows.iter().map(|row| row + 1).max().unwrap_or(0))?;
        if at + x.width > out.width {
            return Err(Error::Device("a sum of the wrong shape".into()));
        }
        self.written(out);
        let (pointer, _sent) = self.indices(rows)?;
        self.launch(
            "scatter_add",
            Size::rows(rows.len(), 256),
            &[
                Pointer(out.pointer(&self.stream)),
                Pointer(x.pointer(&self.stream)),
                Pointer(pointer),
                int(x.width),
                int(out.width),
                int(at),
            ],
        )
    }

    fn read(&mut self, x: &Buffer, rows: usize, out: &mut Vec<f32>) -> Result<()> {
        x.holds(rows)?;
        self.recorder.end(&self.stream)?;
        out.clear();
        out.resize(rows * x.width, 0.0);
        let failed = |error| Error::Device(format!("a step on the GPU: {}", describe(error)));
        self.stream
            .memcpy_dtoh(&x.data.slice(..rows * x.width), out.as_mut_slice())
            .map_err(failed)?;
        // What failed on the device since the last step comes out here.
        self.stream.synchronize().map_err(failed)
    }
}

/// The size of a product: blocks over weights and over rows, threads, shared memory.
fn product(weights: usize, rows: usize, threads: u32, shared: usize) -> Size {
    Size {
        blocks: (weights, rows, 1),
        threads,
        shared,
    }
}
