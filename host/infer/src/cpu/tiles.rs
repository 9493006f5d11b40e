//! Weights in the order that the kernels read, and activations as the integers that they multiply.
//!
//! A matrix is cut into groups of 8 rows, a group into tiles of 8 rows by one block of 32 columns. In a
//! tile each SIMD lane belongs to one row, so a group's sums stay in registers from the first column to the
//! last, and its tiles are read front to back.
//!
//! | type | tile | bytes |
//! |---|---|---|
//! | Q4_0, Q4_1 | 4 vectors of 32 B: vector v, byte 4r+j holds columns 4v+j (low nibble) and 16+4v+j (high) of row r; then 8 scales, and for Q4_1 8 minima, f16 | 144, 160 |
//! | Q4_K | as Q4_0, with 8 integer scales and 8 integer minima | 144 |
//! | Q8_0 | 16 vectors of 16 B: vector v, byte 2r+j holds column 2v+j of row r; then 8 scales, f16 | 272 |
//! | IQ4_NL | 8 vectors of 16 B: vector v, byte 2r+j holds columns 2v+j (low nibble) and 16+2v+j (high); then 8 scales, f16 | 144 |
//! | Q5_0, Q5_1 | the low nibbles as in IQ4_NL; 2 vectors of 16 B with the fifth bits: vector w, byte 2r+j, bit b holds that of column 4b+2w+j, bit 4+b that of column 16+4b+2w+j; then scales and minima as in Q4_0 and Q4_1 | 176, 192 |
//! | Q5_K | as Q5_0, with scales and minima as in Q4_K | 176 |
//! | Q6_K | the low nibbles as in IQ4_NL; 4 vectors of 16 B with the upper bits: vector w, byte 2r+j holds those of columns 2w+j, 16+2w+j, 8+2w+j, 24+2w+j, lowest first; then 8 integer scales for the first 16 columns and 8 for the others | 208 |
//!
//! Before every 8 tiles of a K type stand the f16 scales of the 8 rows, and in Q4_K and Q5_K those of the minima. So a
//! matrix is as large as in the file, but for Q4_K (4.63 instead of 4.5 bits a weight) and Q5_K (5.63 instead of
//! 5.5), whose 6-bit scales get a byte each. Q3_K is kept as Q6_K (6.56 instead of 3.44 bits). Q2_K has no tiles.
//!
//! Activations are rounded to 14 bits and a sign, with one f32 scale for each 32 columns: q = 128 hi + lo. The 4-bit
//! kernels (but for IQ4_NL's, whose weights are signed) multiply the two bytes apart, because AVX2 multiplies unsigned by signed bytes at twice the speed
//! of words. With `hi` alone (as other engines do) the rounding moves logits by up to 0.3; with both by less
//! than 0.01, and reading the weights still takes longer than the arithmetic when one token is decoded.

use crate::memory::{HugeArena, HugeBytes};
use crate::ops::Weights;
use crate::quant::{IQ4_NL, SPAN, TensorType, f16_at, scale_and_minimum, span_scales};
use crate::{Error, Result};

/// Rows of a tile.
pub(crate) const LANES: usize = 8;
/// Columns of a tile.
pub(crate) const BLOCK: usize = 32;
/// The largest magnitude of a rounded activation: 128 * 127 + 63.
pub(crate) const LIMIT: f32 = 16319.0;
/// Blocks whose largest magnitude is not above this are zeros, so that no scale overflows.
pub(crate) const TINY: f32 = 1e-30;
/// Tiles that share a header, in a type that has headers.
pub(crate) const SHARE: usize = 8;

const _: () = assert!(SPAN == BLOCK, "a tile holds one span of each of its rows");

/// A repacked matrix.
pub(crate) struct Tiles {
    /// The type of the tiles.
    pub(crate) kind: TensorType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    data: HugeBytes,
}

/// The type whose tiles a type's weights are kept in.
fn tiled_as(kind: TensorType) -> Option<TensorType> {
    match kind {
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 | TensorType::Q2K => None,
        TensorType::Q3K => Some(TensorType::Q6K),
        other => Some(other),
    }
}

/// Bytes of a tile.
fn tile_bytes(kind: TensorType) -> usize {
    scales_at(kind)
        + match kind {
            TensorType::Q4_1 | TensorType::Q5_1 => 32,
            _ => 16,
        }
}

/// Bytes before every [`SHARE`] tiles.
fn header_bytes(kind: TensorType) -> usize {
    match kind {
        TensorType::Q4K | TensorType::Q5K => 32,
        TensorType::Q6K => 16,
        _ => 0,
    }
}

/// Where a tile keeps its scales: after the weights.
fn scales_at(kind: TensorType) -> usize {
    match kind {
        TensorType::Q8_0 => 256,
        TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q5K => 160,
        TensorType::Q6K => 192,
        _ => 128,
    }
}

/// Tiles, and the bytes before them.
fn share(kind: TensorType) -> (usize, usize) {
    match header_bytes(kind) {
        0 => (1, 0),
        header => (SHARE, header),
    }
}

impl Tiles {
    /// Rows of activations whose products are best formed together.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rows_at_once(&self) -> usize {
        match self.kind {
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4K => 4,
            _ => 6,
        }
    }

    /// Whether this type has tiles.
    pub(crate) fn has(kind: TensorType) -> bool {
        tiled_as(kind).is_some()
    }

    /// Repacks a matrix of a type that [`Self::has`] tiles. Rows that fill the last group up are zero.
    pub(crate) fn pack(weights: &Weights<'_>, arena: &mut HugeArena) -> Result<Self> {
        let Weights {
            kind: source_kind,
            rows,
            columns,
            bytes,
        } = *weights;
        let kind = tiled_as(source_kind)
            .ok_or_else(|| Error::Device(format!("{source_kind} has no tiles")))?;
        let (block_bytes, row_bytes) = (source_kind.block_bytes(), source_kind.row_bytes(columns));
        let spans = source_kind.block_len() / SPAN;
        let ((count, header), size) = (share(kind), tile_bytes(kind));
        let group_bytes = group_bytes(kind, columns);
        let length = rows.div_ceil(LANES) * group_bytes;
        let mut data = arena.take(length).map_err(|error| {
            Error::Device(format!("no memory for {length} bytes of weights: {error}"))
        })?;
        let groups = data.as_mut_slice().chunks_exact_mut(group_bytes);
        for (group, source) in groups.zip(bytes.chunks(LANES * row_bytes)) {
            for (lane, row) in source.chunks_exact(row_bytes).enumerate() {
                // A header's tiles are one block of a K type, or one tile is one block.
                let shares = group.chunks_exact_mut(header + count * size);
                for (tiles, block) in shares.zip(row.chunks_exact(block_bytes)) {
                    let (head, tiles) = tiles.split_at_mut(header);
                    pack_header(source_kind, head, lane, block);
                    for (index, tile) in tiles.chunks_exact_mut(size).enumerate().take(spans) {
                        pack_tile(source_kind, kind, tile, lane, block, index);
                    }
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

    /// The tiles of a group, with their headers.
    pub(crate) fn group(&self, group: usize) -> &[u8] {
        let bytes = group_bytes(self.kind, self.columns);
        &self.data[group * bytes..(group + 1) * bytes]
    }

    /// The tiles of a group from tile `first` on, which has a header where there are headers.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn group_from(&self, group: usize, first: usize) -> &[u8] {
        let (count, header) = share(self.kind);
        &self.group(group)[first / count * (header + count * tile_bytes(self.kind))..]
    }

    /// Whether [`SHARE`] tiles share a header.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn shared(&self) -> bool {
        header_bytes(self.kind) > 0
    }

    /// Each tile of a group, in the order of columns.
    pub(crate) fn tiles(&self, group: usize) -> impl Iterator<Item = Tile<'_>> {
        let (kind, size) = (self.kind, tile_bytes(self.kind));
        let (count, header) = share(kind);
        let shares = self.group(group).chunks_exact(header + count * size);
        shares.flat_map(move |bytes| {
            let (header, tiles) = bytes.split_at(header);
            tiles.chunks_exact(size).map(move |bytes| Tile {
                kind,
                header,
                bytes,
            })
        })
    }

    /// Widens a row.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        for (tile, out) in self.tiles(row / LANES).zip(out.chunks_exact_mut(BLOCK)) {
            let (q, scale, minimum) = tile.lane(row % LANES);
            for (column, (out, q)) in out.iter_mut().zip(q).enumerate() {
                *out = scale[column / 16] * f32::from(q) + minimum;
            }
        }
    }
}

fn group_bytes(kind: TensorType, columns: usize) -> usize {
    let (count, header) = share(kind);
    columns / (BLOCK * count) * (header + count * tile_bytes(kind))
}

/// 8 rows by 32 columns.
pub(crate) struct Tile<'a> {
    kind: TensorType,
    header: &'a [u8],
    bytes: &'a [u8],
}

impl Tile<'_> {
    /// A row's integers, the scales of their two halves, and their minimum.
    pub(crate) fn lane(&self, lane: usize) -> ([i16; BLOCK], [f32; 2], f32) {
        let (kind, tile) = (self.kind, self.bytes);
        let mut q = [0; BLOCK];
        for (column, q) in q.iter_mut().enumerate() {
            let near = column % 16;
            let nibble = |byte: u8| byte >> (column / 16 * 4) & 15;
            *q = match kind {
                TensorType::Q8_0 => i16::from(tile[column / 2 * 16 + 2 * lane + column % 2] as i8),
                TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4K => {
                    i16::from(nibble(tile[near / 4 * 32 + 4 * lane + near % 4]))
                }
                _ => {
                    let low = nibble(tile[near / 2 * 16 + 2 * lane + near % 2]);
                    match kind {
                        TensorType::Iq4Nl => i16::from(IQ4_NL[usize::from(low)]),
                        TensorType::Q6K => {
                            let (at, shift) = sixth_bits_at(column, lane);
                            i16::from(low | (tile[at] >> shift & 3) << 4) - 32
                        }
                        _ => {
                            let (at, shift) = fifth_bit_at(column, lane);
                            i16::from(low | (tile[at] >> shift & 1) << 4)
                        }
                    }
                }
            };
        }
        let scales = &tile[scales_at(kind)..];
        let half = |bytes: &[u8], index: usize| f16_at(bytes, 2 * (8 * index + lane));
        let (scale, minimum) = match kind {
            TensorType::Q4_0 => ([half(scales, 0); 2], -8.0 * half(scales, 0)),
            TensorType::Q5_0 => ([half(scales, 0); 2], -16.0 * half(scales, 0)),
            TensorType::Q4_1 | TensorType::Q5_1 => ([half(scales, 0); 2], half(scales, 1)),
            TensorType::Q4K | TensorType::Q5K => (
                [half(self.header, 0) * f32::from(scales[lane]); 2],
                -(half(self.header, 1) * f32::from(scales[8 + lane])),
            ),
            TensorType::Q6K => (
                [lane, 8 + lane].map(|i| half(self.header, 0) * f32::from(scales[i] as i8)),
                0.0,
            ),
            _ => ([half(scales, 0); 2], 0.0),
        };
        (q, scale, minimum)
    }
}

/// The byte of a 5-bit tile, and the place in it, of a column's fifth bit.
fn fifth_bit_at(column: usize, lane: usize) -> (usize, usize) {
    let vector = column % 16 / 2;
    (
        128 + vector % 2 * 16 + 2 * lane + column % 2,
        vector / 2 + column / 16 * 4,
    )
}

/// The byte of a Q6_K tile, and the place in it, of a column's upper two bits.
fn sixth_bits_at(column: usize, lane: usize) -> (usize, usize) {
    let vector = column % 16 / 2;
    (
        128 + vector % 4 * 16 + 2 * lane + column % 2,
        vector / 4 * 4 + column / 16 * 2,
    )
}

/// Writes a row's f16 scales of a block of a K type.
fn pack_header(kind: TensorType, header: &mut [u8], lane: usize, block: &[u8]) {
    let mut put = |index: usize, at: usize| {
        header[2 * (8 * index + lane)..][..2].copy_from_slice(&block[at..at + 2]);
    };
    match kind {
        TensorType::Q4K | TensorType::Q5K => {
            put(0, 0);
            put(1, 2);
        }
        TensorType::Q3K => put(0, 108),
        TensorType::Q6K => put(0, 208),
        _ => {}
    }
}

/// Writes the span `index` of a row's block of type `source` into a tile of type `kind`.
fn pack_tile(
    source: TensorType,
    kind: TensorType,
    tile: &mut [u8],
    lane: usize,
    block: &[u8],
    index: usize,
) {
    let q = match kind {
        // Its tiles keep the numbers of the table's entries.
        TensorType::Iq4Nl => TensorType::Q4_0.span(block, index).q,
        _ => source.span(block, index).q,
    };
    for (column, q) in q.into_iter().enumerate() {
        let (near, shift) = (column % 16, column / 16 * 4);
        match kind {
            TensorType::Q8_0 => tile[column / 2 * 16 + 2 * lane + column % 2] = q as u8,
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4K => {
                tile[near / 4 * 32 + 4 * lane + near % 4] |= (q as u8) << shift;
            }
            _ => {
                let q = if kind == TensorType::Q6K { q + 32 } else { q } as u8;
                tile[near / 2 * 16 + 2 * lane + near % 2] |= (q & 15) << shift;
                let (at, shift) = match kind {
                    TensorType::Iq4Nl => continue,
                    TensorType::Q6K => sixth_bits_at(column, lane),
                    _ => fifth_bit_at(column, lane),
                };
                tile[at] |= q >> 4 << shift;
            }
        }
    }
    let scales = &mut tile[scales_at(kind)..];
    match kind {
        TensorType::Q4K | TensorType::Q5K => {
            (scales[lane], scales[8 + lane]) = scale_and_minimum(block, index);
        }
        TensorType::Q6K => {
            let [first, second] = span_scales(source, block, index);
            (scales[lane], scales[8 + lane]) = (first as u8, second as u8);
        }
        _ => {
            scales[2 * lane..][..2].copy_from_slice(&block[..2]);
            if matches!(kind, TensorType::Q4_1 | TensorType::Q5_1) {
                scales[16 + 2 * lane..][..2].copy_from_slice(&block[2..4]);
            }
        }
    }
}

/// Rounded activations of several rows.
#[derive(Default, Clone)]
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

/// One row of [`Rounded`], or some that lie one after the other, to be written.
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
    use crate::testing::random_tensor;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_come_back_from_the_tiles_as_the_file_has_them(seed in any::<u64>()) {
            for kind in TensorType::ALL.into_iter().filter(|kind| Tiles::has(*kind)) {
                let (rows, columns) = (11, 512);
                let bytes = random_tensor(kind, rows * columns, seed);
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
