//! Weights in the order that the kernels read, and activations as the integers that they multiply.
//!
//! A matrix is cut into groups of 8 rows, a group into tiles of 8 rows by one block of 32 columns. In a
//! tile each SIMD lane belongs to one row, so a group's sums stay in registers from the first column to the
//! last, and its tiles are read front to back.
//!
//! | type | tile | bytes |
//! |---|---|---|
//! | Q4_0, Q4_1 | 4 vectors of 32 B: vector v, byte 4r+j holds columns 4v+j (low nibble) and 16+4v+j (high) of row r; then 8 scales, and for Q4_1 8 minima, f16 | 144, 160 |
//! | Q8_0 | 16 vectors of 16 B: vector v, byte 2r+j holds column 2v+j of row r; then 8 scales, f16 | 272 |
//!
//! Activations are rounded to 14 bits and a sign, with one f32 scale for each 32 columns: q = 128 hi + lo. The 4-bit
//! kernels multiply the two bytes apart, because AVX2 multiplies unsigned by signed bytes at twice the speed
//! of words. With `hi` alone (as other engines do) the rounding moves logits by up to 0.3; with both by less
//! than 0.01, and reading the weights still takes longer than the arithmetic when one token is decoded.

use crate::memory::{HugeArena, HugeBytes};
use crate::ops::Weights;
use crate::quant::TensorType;
use crate::{Error, Result};

/// Rows of a tile.
pub(crate) const LANES: usize = 8;
/// Columns of a tile.
pub(crate) const BLOCK: usize = 32;
/// The largest magnitude of a rounded activation: 128 * 127 + 63.
pub(crate) const LIMIT: f32 = 16319.0;
/// Blocks whose largest magnitude is not above this are zeros, so that no scale overflows.
pub(crate) const TINY: f32 = 1e-30;

/// A repacked matrix.
pub(crate) struct Tiles {
    pub(crate) kind: TensorType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    data: HugeBytes,
}

impl Tiles {
    /// Whether this type has tiles.
    pub(crate) fn has(kind: TensorType) -> bool {
        matches!(kind, TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q8_0)
    }

    /// Bytes of a tile.
    pub(crate) fn tile_bytes(kind: TensorType) -> usize {
        match kind {
            TensorType::Q4_0 => 144,
            TensorType::Q4_1 => 160,
            _ => 272,
        }
    }

    /// Repacks a matrix of a type that [`Self::has`] tiles. Rows that fill the last group up are zero.
    pub(crate) fn pack(weights: &Weights<'_>, arena: &mut HugeArena) -> Result<Self> {
        let Weights {
            kind,
            rows,
            columns,
            bytes,
        } = *weights;
        let (tile_bytes, block_bytes, row_bytes) = (
            Self::tile_bytes(kind),
            kind.block_bytes(),
            kind.row_bytes(columns),
        );
        let length = rows.div_ceil(LANES) * (columns / BLOCK) * tile_bytes;
        let mut data = arena.take(length).map_err(|error| {
            Error::Device(format!("no memory for {length} bytes of weights: {error}"))
        })?;
        let groups = data
            .as_mut_slice()
            .chunks_exact_mut(columns / BLOCK * tile_bytes);
        for (group, source) in groups.zip(bytes.chunks(LANES * row_bytes)) {
            for (lane, row) in source.chunks_exact(row_bytes).enumerate() {
                for (tile, block) in group
                    .chunks_exact_mut(tile_bytes)
                    .zip(row.chunks_exact(block_bytes))
                {
                    pack_block(kind, tile, lane, block);
                }
            }
        }
        Ok(Self {
            kind,
            rows,
            columns,
            data,
        })
    }

    /// The tiles of a group.
    pub(crate) fn group(&self, group: usize) -> &[u8] {
        let bytes = self.columns / BLOCK * Self::tile_bytes(self.kind);
        &self.data[group * bytes..(group + 1) * bytes]
    }

    /// Widens a row.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let (lane, tile_bytes) = (row % LANES, Self::tile_bytes(self.kind));
        let mut block = [0u8; 34];
        for (tile, out) in self
            .group(row / LANES)
            .chunks_exact(tile_bytes)
            .zip(out.chunks_exact_mut(BLOCK))
        {
            unpack_block(self.kind, tile, lane, &mut block);
            self.kind.dequantise(&block[..self.kind.block_bytes()], out);
        }
    }
}

/// Where a tile keeps its scales: after the weights.
pub(crate) fn scales_at(kind: TensorType) -> usize {
    if kind == TensorType::Q8_0 { 256 } else { 128 }
}

fn pack_block(kind: TensorType, tile: &mut [u8], lane: usize, block: &[u8]) {
    let scales = scales_at(kind);
    tile[scales + 2 * lane..][..2].copy_from_slice(&block[..2]);
    if kind == TensorType::Q8_0 {
        for (column, q) in block[2..].iter().enumerate() {
            tile[column / 2 * 16 + 2 * lane + column % 2] = *q;
        }
        return;
    }
    let header = if kind == TensorType::Q4_1 { 4 } else { 2 };
    if kind == TensorType::Q4_1 {
        tile[scales + 16 + 2 * lane..][..2].copy_from_slice(&block[2..4]);
    }
    // The file, too, keeps columns i and i + 16 in one byte.
    for (column, q) in block[header..].iter().enumerate() {
        tile[column / 4 * 32 + 4 * lane + column % 4] = *q;
    }
}

fn unpack_block(kind: TensorType, tile: &[u8], lane: usize, block: &mut [u8; 34]) {
    let scales = scales_at(kind);
    block[..2].copy_from_slice(&tile[scales + 2 * lane..][..2]);
    if kind == TensorType::Q8_0 {
        for column in 0..BLOCK {
            block[2 + column] = tile[column / 2 * 16 + 2 * lane + column % 2];
        }
        return;
    }
    let header = if kind == TensorType::Q4_1 { 4 } else { 2 };
    if kind == TensorType::Q4_1 {
        block[2..4].copy_from_slice(&tile[scales + 16 + 2 * lane..][..2]);
    }
    for column in 0..16 {
        block[header + column] = tile[column / 4 * 32 + 4 * lane + column % 4];
    }
}

/// Rounded activations of several rows.
#[derive(Default)]
pub(crate) struct Rounded {
    columns: usize,
    pub(crate) high: Vec<i8>,
    pub(crate) low: Vec<i8>,
    pub(crate) word: Vec<i16>,
    /// One for each block.
    pub(crate) scale: Vec<f32>,
    /// For each block its scale times the sum of its integers: what a minimum is multiplied by.
    pub(crate) sum: Vec<f32>,
}

/// One row of [`Rounded`], to be written.
pub(crate) struct RoundedRow<'a> {
    pub(crate) high: &'a mut [i8],
    pub(crate) low: &'a mut [i8],
    pub(crate) word: &'a mut [i16],
    pub(crate) scale: &'a mut [f32],
    pub(crate) sum: &'a mut [f32],
}

impl Rounded {
    /// Makes room for `rows` rows of `columns` columns.
    pub(crate) fn reset(&mut self, rows: usize, columns: usize) {
        self.columns = columns;
        self.high.resize(rows * columns, 0);
        self.low.resize(rows * columns, 0);
        self.word.resize(rows * columns, 0);
        self.scale.resize(rows * columns / BLOCK, 0.0);
        self.sum.resize(rows * columns / BLOCK, 0.0);
    }

    /// Columns of a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }
}

/// Rounds a row: the plain version of the arithmetic.
pub(crate) fn round_row(x: &[f32], out: &mut RoundedRow<'_>) {
    for (block, x) in x.chunks_exact(BLOCK).enumerate() {
        let largest = x.iter().fold(0f32, |most, value| most.max(value.abs()));
        let inverse = if largest > TINY { LIMIT / largest } else { 0.0 };
        let scale = largest / LIMIT;
        let mut sum = 0i32;
        for (i, value) in x.iter().enumerate() {
            let q = (value * inverse).round_ties_even() as i32;
            let high = (q + 64) >> 7;
            sum += q;
            let at = block * BLOCK + i;
            out.word[at] = q as i16;
            out.high[at] = high as i8;
            out.low[at] = (q - (high << 7)) as i8;
        }
        out.scale[block] = scale;
        out.sum[block] = scale * sum as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_come_back_from_the_tiles_as_the_file_has_them(seed in prop::collection::vec(any::<u8>(), 34 * 2 * 11)) {
            for kind in [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0] {
                let (rows, columns) = (11, 64);
                let mut bytes = seed[..rows * kind.row_bytes(columns)].to_vec();
                // Keep scales and minima finite.
                for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                    block[1] &= 0x3f;
                    if kind == TensorType::Q4_1 {
                        block[3] &= 0x3f;
                    }
                }
                let tiles = Tiles::pack(&Weights { kind, rows, columns, bytes: &bytes }, &mut HugeArena::default()).unwrap();
                for (row, source) in bytes.chunks_exact(kind.row_bytes(columns)).enumerate() {
                    let (mut wanted, mut found) = (vec![0.0; columns], vec![0.0; columns]);
                    kind.dequantise(source, &mut wanted);
                    tiles.row(row, &mut found);
                    prop_assert_eq!(wanted, found);
                }
            }
        }

        #[test]
        fn rounding_keeps_fourteen_bits(x in prop::collection::vec(-50f32..50.0, 64)) {
            let mut rounded = Rounded::default();
            rounded.reset(1, 64);
            let Rounded { high, low, word, scale, sum, .. } = &mut rounded;
            round_row(&x, &mut RoundedRow { high, low, word, scale, sum });
            for (i, value) in x.iter().enumerate() {
                let largest = x[i / 32 * 32..][..32].iter().fold(0f32, |m, v| m.max(v.abs()));
                prop_assert_eq!(i32::from(word[i]), 128 * i32::from(high[i]) + i32::from(low[i]));
                prop_assert!((f32::from(word[i]) * scale[i / 32] - value).abs() <= largest / 32000.0);
                prop_assert!((-127..=127).contains(&high[i]) && (-64..=63).contains(&low[i]));
            }
        }
    }
}
