//! The operations that a model's graph is made of. The graphs (`decoder`, `encoder`) are written once over these
//! traits; a device implements them: `cpu`, and `cuda` beside it.
//!
//! A [`Device`] keeps weights, which many executors share. An [`Executor`] runs one step at a time and owns
//! what a step writes to: buffers of activations and the KV cache. All numbers between operations are f32.
//!
//! Every operation treats each row by itself and in the same order of sums, however many rows there are:
//! what a request gets does not depend on what else is in the batch.

use crate::Result;
use crate::quant::TensorType;
use crate::sampling::Distribution;

/// A matrix as it lies in the model's file.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a> {
    pub(crate) kind: TensorType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) bytes: &'a [u8],
}

/// Where weights live.
pub(crate) trait Device: Send + Sync + 'static {
    /// A matrix in the order that the device's kernels read.
    type Matrix: Send + Sync + 'static;
    /// A short vector of f32, as a norm's weights.
    type Vector: Send + Sync + 'static;
    /// What runs the operations.
    type Executor: Executor<Matrix = Self::Matrix, Vector = Self::Vector>;

    /// Loads a matrix. Several parts of the same width are stacked to one, so that one pass serves them all.
    fn matrix(&self, parts: &[Weights<'_>]) -> Result<Self::Matrix>;
    /// Loads a vector.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// An executor with `threads` threads, where the device has such (0: as many as it has cores).
    fn executor(&self, threads: usize) -> Result<Self::Executor>;
}

/// The shape of a model's KV cache. Keys and values lie in pages of [`PAGE_TOKENS`] tokens, each page in all layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheShape {
    pub(crate) layers: usize,
    pub(crate) pages: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
}

/// Tokens in a page of the KV cache.
pub(crate) const PAGE_TOKENS: usize = 32;

/// One token of a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) token: u32,
    /// Its place in its sequence.
    pub(crate) position: u32,
    /// Which of the step's page tables is its sequence's.
    pub(crate) table: u32,
    pub(crate) output: Output,
}

/// The tokens of a step, and the page tables that they name: `tables[row.table]` lists the pages of the row's sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub(crate) rows: &'a [Row],
    pub(crate) tables: &'a [&'a [u32]],
    /// The adapter of each table's sequence; 0 is the model itself. Empty: none has one.
    pub(crate) adapters: &'a [u32],
}

/// What a step is to give for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nothing: its keys and values are kept, that is all.
    None,
    /// The logits of the token after it.
    Logits,
    /// Its last hidden state, after the final norm.
    Hidden,
}

/// Which heads lie where in a row of the fused q-k-v product: `heads` of q, then `kv_heads` of k, then of v.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeadShape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Elements of a head that are rotated; the rest pass.
    pub(crate) rope_dim: usize,
    pub(crate) rope_order: RopeOrder,
    /// What the products of queries and keys are multiplied by: 1 / sqrt(head_dim) in most models.
    pub(crate) scale: f32,
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RopeOrder {
    /// Elements 2i and 2i + 1: GGUF files of the llama architecture.
    Neighbours,
    /// Elements i and i + rope_dim / 2: the other architectures, and all of Hugging Face's.
    Halves,
}

/// Which positions of its sequence a row attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Its own and all before it.
    Causal,
    /// The last so many, its own included.
    Window(u32),
    /// All that the step has of its sequence, before and after it. The step holds the whole sequence.
    Whole,
}

/// What the gate of a feed-forward layer goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// x / (1 + e^-x).
    Silu,
    /// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2 (arXiv:1606.08415).
    GeluTanh,
}

impl HeadShape {
    /// Elements of a row of q, k and v.
    pub(crate) fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Whether a product replaces what is there or is added to it (the residual stream).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Set,
    Add,
}

/// Runs operations on `rows` rows of its buffers.
pub(crate) trait Executor: Send + 'static {
    type Matrix;
    type Vector;
    /// Rows of f32 activations of one width.
    type Buffer: Send;
    /// Keys and values of all pages in all layers.
    type Cache: Send;

    /// A zeroed buffer.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer>;
    /// A cache of this shape; [`Self::page_bytes`] says what a page of it costs.
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache>;
    /// Bytes of one page in all layers.
    fn page_bytes(&self, shape: CacheShape) -> usize;

    /// Starts a step: what its operations need of the batch, and the angles that it will rotate by, may be sent to the
    /// device here. True where the device has the step's operations up to [`Self::read`] from an earlier step of the same
    /// layout, and has started them: then only `read` is left to do. Such a step has logits for each of its rows.
    fn begin(&mut self, _batch: Batch<'_>, _shape: HeadShape, _angles: &[&[f32]]) -> Result<bool> {
        Ok(false)
    }
    /// out[row] = the table's row `ids[row]`, multiplied by `scale`; set or added. The ids are within the table.
    fn embed(
        &mut self,
        table: &Self::Matrix,
        ids: &[u32],
        scale: f32,
        out: &mut Self::Buffer,
        write: Write,
    ) -> Result<()>;
    /// out[row] = x[row] / rms(x[row]) * weight, with rms(x) = sqrt(mean(x^2) + epsilon) (arXiv:1910.07467); set or
    /// added.
    fn rms_norm(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        weight: &Self::Vector,
        epsilon: f32,
        out: &mut Self::Buffer,
        write: Write,
    ) -> Result<()>;
    /// Each q head and each k head of a row becomes head / rms(head) * weight, as in [`Self::rms_norm`]; a weight has
    /// `head_dim` elements. The v heads stay.
    fn head_norm(
        &mut self,
        qkv: &mut Self::Buffer,
        rows: usize,
        shape: HeadShape,
        weights: (&Self::Vector, &Self::Vector),
        epsilon: f32,
    ) -> Result<()>;
    /// out[row] = (x[row] - mean) / sqrt(variance + epsilon) * weight + bias (arXiv:1607.06450).
    fn layer_norm(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        weight_and_bias: (&Self::Vector, &Self::Vector),
        epsilon: f32,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// out[row] = weights · x[row], set or added.
    fn matmul(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        weights: &Self::Matrix,
        out: &mut Self::Buffer,
        write: Write,
    ) -> Result<()>;
    /// x[row] += bias.
    fn add_bias(&mut self, x: &mut Self::Buffer, rows: usize, bias: &Self::Vector) -> Result<()>;
    /// Rotates the q and k heads of each row by its angles. `angles[row]` holds `rope_dim / 2` cosines, then as many
    /// sines; `shape.rope_order` says which elements are pairs (arXiv:2104.09864).
    fn rope(
        &mut self,
        qkv: &mut Self::Buffer,
        rows: usize,
        shape: HeadShape,
        angles: &[f32],
    ) -> Result<()>;
    /// Keeps each row's k and v at its position in its sequence's pages.
    fn store_kv(
        &mut self,
        qkv: &Self::Buffer,
        batch: Batch<'_>,
        shape: HeadShape,
        layer: usize,
        cache: &mut Self::Cache,
    ) -> Result<()>;
    /// out[row] = attention of the row's q heads over the positions of its sequence that `reach` says, whose keys and
    /// values are stored.
    #[allow(
        clippy::too_many_arguments,
        reason = "what attention needs; a struct for one caller would hide it"
    )]
    fn attention(
        &mut self,
        qkv: &Self::Buffer,
        batch: Batch<'_>,
        shape: HeadShape,
        reach: Reach,
        layer: usize,
        cache: &Self::Cache,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// out[row] = activation(gate) * up, where a row of `x` holds gate and then up (arXiv:2002.05202).
    fn gated(
        &mut self,
        x: &Self::Buffer,
        rows: usize,
        activation: Activation,
        out: &mut Self::Buffer,
    ) -> Result<()>;
    /// x[row] = gelu(x[row]) = x * (1 + erf(x / sqrt(2))) / 2 (arXiv:1606.08415), not approximated by tanh.
    fn gelu(&mut self, x: &mut Self::Buffer, rows: usize) -> Result<()>;
    /// out[i] = x[rows[i]].
    fn gather(&mut self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer) -> Result<()>;
    /// out[rows[i]][at..] += x[i], over the width of `x`. The rows are all different.
    fn scatter_add(
        &mut self,
        x: &Self::Buffer,
        rows: &[usize],
        out: &mut Self::Buffer,
        at: usize,
    ) -> Result<()>;
    /// Copies the first `rows` rows to the host.
    fn read(&mut self, x: &Self::Buffer, rows: usize, out: &mut Vec<f32>) -> Result<()>;
    /// The first `rows` rows on the host: where they lie, if that is the host's memory, else copied to `spare`.
    fn host<'a>(
        &mut self,
        x: &'a mut Self::Buffer,
        rows: usize,
        spare: &'a mut Vec<f32>,
    ) -> Result<&'a mut [f32]> {
        self.read(x, rows, spare)?;
        Ok(spare)
    }
    /// The distributions of `rows` rows of logits on the host, where the device has threads to form them side by side;
    /// else none. `None` for a row that has none.
    fn distributions(
        &mut self,
        _logits: &[f32],
        _rows: usize,
        out: &mut Vec<Option<Distribution>>,
    ) -> Result<()> {
        out.clear();
        Ok(())
    }
}
