//! A weight matrix on the device: the file's weights in the order in which a warp reads them.
//!
//! The order is described in `kernels/weights.cuh`: tiles of 16 rows, units of 32 columns, and in a unit for each lane
//! what it needs of two rows. The plain types keep the file's own numbers. The K types keep their weights, but the
//! products of their scales are rounded to f16; where exact numbers are asked for, they are widened to f32 instead.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaSlice, CudaStream, DevicePtr};
use half::f16;

use super::Gpu;
use super::kernels::PartArgument;
use crate::Result;
use crate::model::Precision;
use crate::ops::Weights;
use crate::quant::{SPAN, Span, TensorType};

/// Rows of a tile, and lanes of a warp. A unit is a span wide.
const TILE: usize = 16;
const LANES: usize = 32;

/// How weights lie on the device; the kernels are compiled for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    /// 4-bit weights with a scale and a minimum for each 16 of them.
    Q4In16,
    /// 8-bit weights with a scale for each 16 of them.
    Q8In16,
}

impl Form {
    fn of(kind: TensorType, precision: Precision) -> Self {
        let exact = precision == Precision::Exact;
        match kind {
            TensorType::F32 => Self::F32,
            TensorType::F16 => Self::F16,
            TensorType::Bf16 => Self::Bf16,
            TensorType::Q4_0 => Self::Q4_0,
            TensorType::Q4_1 => Self::Q4_1,
            TensorType::Q5_0 => Self::Q5_0,
            TensorType::Q5_1 => Self::Q5_1,
            TensorType::Q8_0 => Self::Q8_0,
            // The table's values are integers of 8 bits.
            TensorType::Iq4Nl => Self::Q8_0,
            _ if exact => Self::F32,
            TensorType::Q2K | TensorType::Q3K => Self::Q4In16,
            TensorType::Q4K => Self::Q4_1,
            TensorType::Q5K => Self::Q5_1,
            TensorType::Q6K => Self::Q8In16,
        }
    }

    /// The name in the kernels' names.
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4In16 => "Q4_16",
            Self::Q8In16 => "Q8_16",
        }
    }

    /// Bytes for each lane of a unit.
    fn quants(self) -> usize {
        match self {
            Self::F32 => 64,
            Self::F16 | Self::Bf16 => 32,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q4In16 => 8,
            Self::Q8_0 | Self::Q8In16 => 16,
        }
    }

    /// Scales of a row of a unit, and whether each has a minimum beside it.
    fn scales(self) -> (usize, bool) {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => (0, false),
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => (1, false),
            Self::Q4_1 | Self::Q5_1 => (1, true),
            Self::Q4In16 => (2, true),
            Self::Q8In16 => (2, false),
        }
    }

    /// Bytes of scales of a row of a unit.
    fn scale_bytes(self) -> usize {
        let (count, minima) = self.scales();
        count * if minima { 4 } else { 2 }
    }

    /// Bytes of fifth bits for each lane of a unit.
    fn high(self) -> usize {
        if matches!(self, Self::Q5_0 | Self::Q5_1) {
            2
        } else {
            0
        }
    }
}

/// The bytes of a matrix in the device's order.
struct Packed {
    form: Form,
    units: usize,
    quants: Vec<u8>,
    scales: Vec<u8>,
    high: Vec<u8>,
}

impl Packed {
    fn new(form: Form, rows: usize, columns: usize) -> Self {
        let units = columns.div_ceil(SPAN);
        let count = rows.div_ceil(TILE) * units;
        Self {
            form,
            units,
            quants: vec![0; count * LANES * form.quants()],
            scales: vec![0; count * TILE * form.scale_bytes()],
            high: vec![0; count * LANES * form.high()],
        }
    }

    /// Puts a row, as the file has it, in its places.
    fn put(&mut self, kind: TensorType, row: usize, bytes: &[u8]) {
        if kind.block_len() == 1 {
            return self.put_floats(row, bytes);
        }
        let mut unit = row / TILE * self.units;
        for block in bytes.chunks_exact(kind.block_bytes()) {
            for index in 0..kind.block_len() / SPAN {
                self.put_span(kind, unit, row % TILE, &kind.span(block, index));
                unit += 1;
            }
        }
    }

    /// Types without blocks: eight weights of a lane lie as in the file.
    fn put_floats(&mut self, row: usize, bytes: &[u8]) {
        let (g, half, first) = (row % 8, row % TILE / 8, row / TILE * self.units);
        let lane_bytes = self.form.quants() / 2;
        for (index, piece) in bytes.chunks(lane_bytes).enumerate() {
            let lane = (first + index / 4) * LANES + g * 4 + index % 4;
            let at = (lane * 2 + half) * lane_bytes;
            self.quants[at..at + piece.len()].copy_from_slice(piece);
        }
    }

    fn put_span(&mut self, kind: TensorType, unit: usize, row: usize, span: &Span) {
        let (g, half) = (row % 8, row / 8);
        // Q3_K's weights are from -4 to 3; nibbles begin at 0.
        let offset = if kind == TensorType::Q3K { 4 } else { 0 };
        let (count, minima) = self.form.scales();
        let width = self.form.scale_bytes() / count.max(1);
        for part in 0..count {
            let at = (((unit * 8 + g) * count + part) * 2 + half) * width;
            let scale = span.scale[part];
            self.scales[at..at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            if minima {
                let minimum = f16::from_f32(span.minimum[part] - f32::from(offset) * scale);
                self.scales[at + 2..at + 4].copy_from_slice(&minimum.to_le_bytes());
            }
        }
        let lane_bytes = self.form.quants() / 2;
        for t in 0..4 {
            let lane = unit * LANES + g * 4 + t;
            let at = (lane * 2 + half) * lane_bytes;
            let weights = span.q[t * 8..t * 8 + 8].iter().map(|q| q + offset);
            if lane_bytes == 8 {
                // With 128 added: what the kernels' trick for bytes wants.
                for (to, weight) in self.quants[at..].iter_mut().zip(weights) {
                    *to = weight as u8 ^ 0x80;
                }
                continue;
            }
            // Column 2i in bits 4i, column 2i + 1 in bits 16 + 4i; fifth bits in their order.
            let (mut word, mut high) = (0u32, 0u8);
            for (j, weight) in weights.enumerate() {
                word |= u32::from(weight as u8 & 15) << (j / 2 * 4 + j % 2 * 16);
                high |= (weight as u8 >> 4 & 1) << j;
            }
            self.quants[at..at + 4].copy_from_slice(&word.to_le_bytes());
            if self.form.high() > 0 {
                self.high[lane * 2 + half] = high;
            }
        }
    }
}

/// The kernels that multiply with one type of weights.
pub(super) struct Products {
    /// f32 sums of f32 products; `None` for forms that only the other products read.
    pub(super) exact: Option<CudaFunction>,
    /// Tensor cores, for up to 8, up to 32, and more rows of activations; `None` where f32 weights are to stay so.
    pub(super) tensor: Option<[CudaFunction; 3]>,
    pub(super) embed: CudaFunction,
}

/// Stacked rows of one type.
pub(super) struct Part {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) products: Products,
    units: usize,
    data: CudaSlice<u8>,
    scales_at: usize,
    high_at: usize,
}

impl Part {
    fn load(
        kind: TensorType,
        weights: &[Weights<'_>],
        columns: usize,
        precision: Precision,
        gpu: &Arc<Gpu>,
        stream: &Arc<CudaStream>,
    ) -> Result<Self> {
        let rows = weights.iter().map(|part| part.rows).sum();
        let form = Form::of(kind, precision);
        let mut packed = Packed::new(form, rows, columns);
        let mut row = 0;
        let mut wide = vec![0f32; columns];
        for part in weights {
            for bytes in part.bytes.chunks_exact(kind.row_bytes(columns)) {
                if form == Form::F32 && kind != TensorType::F32 {
                    kind.dequantise(bytes, &mut wide);
                    let bytes: Vec<u8> = wide.iter().flat_map(|x| x.to_le_bytes()).collect();
                    packed.put(TensorType::F32, row, &bytes);
                } else {
                    packed.put(kind, row, bytes);
                }
                row += 1;
            }
        }
        let mut data = packed.quants;
        let mut section = |bytes: Vec<u8>| {
            data.resize(data.len().next_multiple_of(256), 0);
            let at = data.len();
            data.extend(bytes);
            at
        };
        let (scales_at, high_at) = (section(packed.scales), section(packed.high));
        let kernel = |name: &str| gpu.kernels.get(&format!("{name}_{}", form.name())).cloned();
        let tensor = if form == Form::F32 {
            None
        } else {
            Some([
                kernel("matmul_8")?,
                kernel("matmul_32")?,
                kernel("matmul_64")?,
            ])
        };
        Ok(Self {
            rows,
            columns,
            products: Products {
                exact: match form {
                    Form::Q4In16 | Form::Q8In16 => None,
                    _ => Some(kernel("matmul_exact")?),
                },
                tensor,
                embed: kernel("embed")?,
            },
            units: packed.units,
            data: gpu.upload(stream, "weights", &data)?,
            scales_at,
            high_at,
        })
    }

    pub(super) fn argument(&self, stream: &CudaStream) -> PartArgument {
        let base = self.data.device_ptr(stream).0;
        PartArgument {
            quants: base,
            scales: base + self.scales_at as u64,
            high: base + self.high_at as u64,
            units: self.units as i32,
            rows: self.rows as i32,
        }
    }
}

/// Parts of one width, one below the other.
pub(crate) struct Matrix {
    pub(super) parts: Vec<Part>,
}

impl Matrix {
    pub(super) fn load(
        weights: &[Weights<'_>],
        precision: Precision,
        gpu: &Arc<Gpu>,
        stream: &Arc<CudaStream>,
    ) -> Result<Self> {
        let mut parts = Vec::new();
        for same in weights.chunk_by(|a, b| a.kind == b.kind) {
            if let Some(first) = same.first() {
                parts.push(Part::load(
                    first.kind,
                    same,
                    first.columns,
                    precision,
                    gpu,
                    stream,
                )?);
            }
        }
        Ok(Self { parts })
    }
}
