//! A weight matrix on the processor: stacked parts, each in tiles where its type has them, else row by row.

use std::ops::Range;

use super::kernels::{self, Level};
use super::tiles::{BLOCK, LANES, Rounded, Tiles};
use crate::memory::{HugeArena, HugeBytes};
use crate::model::Precision;
use crate::ops::Weights;
use crate::quant::TensorType;
use crate::{Error, Result};

enum Part {
    /// Integer products with rounded activations.
    Tiles(Tiles),
    /// Rows as the file has them, widened when they are used, f32 products.
    Rows {
        kind: TensorType,
        rows: usize,
        columns: usize,
        data: HugeBytes,
    },
}

impl Part {
    fn rows(&self) -> usize {
        match self {
            Self::Tiles(tiles) => tiles.rows,
            Self::Rows { rows, .. } => *rows,
        }
    }
}

/// Parts of one width, one below the other.
pub(crate) struct Matrix {
    parts: Vec<Part>,
}

impl Matrix {
    pub(super) fn load(
        weights: &[Weights<'_>],
        precision: Precision,
        arena: &mut HugeArena,
    ) -> Result<Self> {
        let mut parts = Vec::new();
        for weights in weights {
            let tiled = precision == Precision::Fast
                && Tiles::has(weights.kind)
                && weights.columns.is_multiple_of(BLOCK);
            parts.push(if tiled {
                Part::Tiles(Tiles::pack(weights, arena)?)
            } else {
                let length = weights.bytes.len();
                let mut data = arena.take(length).map_err(|error| {
                    Error::Device(format!("no memory for {length} bytes of weights: {error}"))
                })?;
                data.as_mut_slice().copy_from_slice(weights.bytes);
                Part::Rows {
                    kind: weights.kind,
                    rows: weights.rows,
                    columns: weights.columns,
                    data,
                }
            });
        }
        Ok(Self { parts })
    }

    /// Whether [`Self::multiply`] reads rounded activations.
    pub(super) fn needs_rounding(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Tiles(_)))
    }

    /// Groups of up to 8 rows: the units in which threads share a product.
    pub(super) fn groups(&self) -> usize {
        self.parts
            .iter()
            .map(|part| part.rows().div_ceil(LANES))
            .sum()
    }

    /// Widens a row.
    pub(super) fn row(&self, mut row: usize, out: &mut [f32]) {
        for part in &self.parts {
            if row >= part.rows() {
                row -= part.rows();
                continue;
            }
            match part {
                Part::Tiles(tiles) => tiles.row(row, out),
                Part::Rows {
                    kind,
                    columns,
                    data,
                    ..
                } => {
                    let bytes = kind.row_bytes(*columns);
                    kind.dequantise(&data[row * bytes..(row + 1) * bytes], out);
                }
            }
            return;
        }
    }

    /// Rows of activations that [`Self::multiply`] is best given at once, of so many.
    pub(super) fn rows_at_once(&self, rows: usize) -> usize {
        /// A good part of a core's own cache: the activations stay there while a task's groups pass.
        const CACHE: usize = 192 << 10;
        let tiles = self.parts.iter().map(|part| match part {
            Part::Tiles(tiles) => Some(tiles.columns),
            Part::Rows { .. } => None,
        });
        match tiles.min() {
            // 12 is a multiple of what the kernels take at once.
            Some(Some(columns)) => (CACHE / (2 * columns) / 12 * 12).max(12),
            // A row is widened for each call.
            _ => rows.max(1),
        }
    }

    /// The products of a group with the rows `rows` of `x`, given to `write(row of x, first column, products)`.
    #[allow(
        clippy::too_many_arguments,
        reason = "a kernel's operands, for one caller"
    )]
    pub(super) fn multiply<'a>(
        &self,
        level: Level,
        mut group: usize,
        x: impl Iterator<Item = &'a [f32]> + Clone,
        rounded: &Rounded,
        rows: Range<usize>,
        scratch: &mut Vec<f32>,
        mut write: impl FnMut(usize, usize, &[f32]),
    ) {
        let mut first = 0;
        for part in &self.parts {
            let groups = part.rows().div_ceil(LANES);
            if group >= groups {
                group -= groups;
                first += part.rows();
                continue;
            }
            let (start, lanes) = (group * LANES, (part.rows() - group * LANES).min(LANES));
            match part {
                Part::Tiles(tiles) => {
                    debug_assert_eq!(rounded.columns(), tiles.columns, "the activations' width");
                    kernels::group_products(
                        level,
                        tiles,
                        group,
                        rounded,
                        rows.clone(),
                        |row, products| {
                            write(row, first + start, &products[..lanes]);
                        },
                    );
                }
                Part::Rows {
                    kind,
                    columns,
                    data,
                    ..
                } => {
                    let bytes = kind.row_bytes(*columns);
                    scratch.resize(*columns, 0.0);
                    for row in start..start + lanes {
                        kernels::dequantise(
                            level,
                            *kind,
                            &data[row * bytes..(row + 1) * bytes],
                            scratch,
                        );
                        for (index, x) in x.clone().enumerate().take(rows.end).skip(rows.start) {
                            write(index, first + row, &[kernels::dot(level, scratch, x)]);
                        }
                    }
                }
            }
            return;
        }
    }
}
