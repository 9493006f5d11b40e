//! A weight matrix on the processor: stacked parts, each in tiles where its type has them, else row by row.

use super::kernels::{self, Level};
use super::panels::Panels;
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

    /// The units in which threads share a product: `groups` groups of up to 8 rows, fewer at a part's end.
    pub(super) fn units(&self, groups: usize) -> usize {
        self.parts
            .iter()
            .map(|part| part.rows().div_ceil(LANES * groups))
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

    /// The products of a unit of `groups` groups (1 or 2) with each row of `x`, given to
    /// `write(row of x, first column, products, how many of them)`.
    pub(super) fn multiply<'a>(
        &self,
        level: Level,
        (mut unit, groups): (usize, usize),
        x: impl ExactSizeIterator<Item = &'a [f32]> + Clone,
        (rounded, panels): (&Rounded, &Panels),
        scratch: &mut Vec<f32>,
        mut write: impl FnMut(usize, usize, &[f32; LANES], usize),
    ) {
        let mut first = 0;
        for part in &self.parts {
            let units = part.rows().div_ceil(LANES * groups);
            if unit >= units {
                unit -= units;
                first += part.rows();
                continue;
            }
            let all = part.rows().div_ceil(LANES);
            let groups = unit * groups..((unit + 1) * groups).min(all);
            let lanes = |group: usize| (part.rows() - group * LANES).min(LANES);
            match part {
                Part::Tiles(tiles) => {
                    debug_assert_eq!(rounded.columns(), tiles.columns, "the activations' width");
                    kernels::group_products(
                        level,
                        tiles,
                        groups,
                        (rounded, panels),
                        x.len(),
                        scratch,
                        |row, group, products| {
                            write(row, first + group * LANES, &products, lanes(group));
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
                    for row in groups.start * LANES..(groups.end * LANES).min(part.rows()) {
                        kernels::dequantise(
                            level,
                            *kind,
                            &data[row * bytes..(row + 1) * bytes],
                            scratch,
                        );
                        for (index, x) in x.clone().enumerate() {
                            let mut products = [0.0; LANES];
                            products[0] = kernels::dot(level, scratch, x);
                            write(index, first + row, &products, 1);
                        }
                    }
                }
            }
            return;
        }
    }
}
