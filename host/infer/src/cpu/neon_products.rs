#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and assembly, which read through pointers"
)]
//! Products of a group of weights with rows of activations, for 64-bit ARM.
//!
//! A tile is spread out to the 16 registers that hold 8 rows by 32 columns of bytes: register `[v][h]` the columns 4v to
//! 4v + 3 of the rows 4h to 4h + 3, four bytes a row, which is what the dot product instruction multiplies. Both bytes of
//! the activations are multiplied apart. Then each row of activations reads them; half of the registers are left for its
//! sums, so no panels are needed when there are many rows.
//!
//! Where the processor has no dot products, four instructions give the same integers.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::neon::{self, Eight, all, fused, multiply};
use super::tiles::{BLOCK, LANES, Rounded, SHARE, Tiles};
use crate::quant::{IQ4_NL, TensorType};

/// Rows of activations that share a spread tile.
const MOST: usize = 8;

/// How a tile keeps its weights: nibbles in fours of columns,
const NIBBLES: u8 = 0;
/// nibbles in pairs, and fifth bits,
const FIVE_BITS: u8 = 1;
/// nibbles in pairs, and upper two bits, with a scale for each 16 columns,
const SIX_BITS: u8 = 2;
/// nibbles in pairs, which are looked up in a table,
const TABLE: u8 = 3;
/// or bytes in pairs.
const BYTES: u8 = 4;

/// Minima: none,
const NONE: u8 = 0;
/// the middle of the integers' range,
const MIDDLE: u8 = 1;
/// each tile's own,
const OWN: u8 = 2;
/// or integers with the scales of a header before every [`SHARE`] tiles.
const SHARED: u8 = 3;

/// A tile's weights, as the file says.
type Spread = [[int8x16_t; 2]; 8];

/// Pointers to one row of rounded activations.
#[derive(Clone, Copy)]
struct RowPointers {
    /// The bytes of each plane, the upper ones first.
    planes: [*const i8; 2],
    scale: *const f32,
    sum: *const f32,
}

/// The products of a group's 8 rows with the rows `rows` of activations, given to `write(row, products)`. The sums of a row
/// are formed in one order, whatever other rows there are. `DOT`: whether the processor has dot products.
///
/// # Safety
/// NEON was detected, and with `DOT` its dot products.
#[target_feature(enable = "neon")]
pub(super) unsafe fn group_products<const DOT: bool>(
    tiles: &Tiles,
    group: usize,
    x: &Rounded,
    mut rows: Range<usize>,
    write: &mut impl FnMut(usize, [f32; LANES]),
) {
    let (columns, blocks) = (tiles.columns, tiles.columns / BLOCK);
    let group = tiles.group(group);
    while !rows.is_empty() {
        let (first, count) = (rows.start, rows.len().min(MOST));
        let at = |row: usize| {
            let (c, b) = (row * columns, row * blocks);
            RowPointers {
                planes: [&x.high, &x.low].map(|plane| plane[c..c + columns].as_ptr()),
                scale: x.scale[b..b + blocks].as_ptr(),
                sum: x.sum[b..b + blocks].as_ptr(),
            }
        };
        // The last row stands in for those that are not there.
        let pointers = std::array::from_fn::<_, MOST, _>(|i| at(first + i.min(count - 1)));
        let pointers = &pointers[..count];
        // SAFETY: each row has `columns` elements and `columns / 32` scales and sums, as sliced above; the group
        // has as many tiles of the type's size.
        let sums = unsafe {
            match tiles.kind {
                TensorType::Q4_0 => products::<DOT, NIBBLES, MIDDLE>(group, blocks, pointers),
                TensorType::Q4_1 => products::<DOT, NIBBLES, OWN>(group, blocks, pointers),
                TensorType::Q4K => products::<DOT, NIBBLES, SHARED>(group, blocks, pointers),
                TensorType::Q5_0 => products::<DOT, FIVE_BITS, MIDDLE>(group, blocks, pointers),
                TensorType::Q5_1 => products::<DOT, FIVE_BITS, OWN>(group, blocks, pointers),
                TensorType::Q5K => products::<DOT, FIVE_BITS, SHARED>(group, blocks, pointers),
                TensorType::Iq4Nl => products::<DOT, TABLE, NONE>(group, blocks, pointers),
                TensorType::Q6K => products::<DOT, SIX_BITS, NONE>(group, blocks, pointers),
                _ => products::<DOT, BYTES, NONE>(group, blocks, pointers),
            }
        };
        for (i, sums) in sums.into_iter().enumerate().take(count) {
            let mut out = [0f32; LANES];
            neon::store(&mut out, sums);
            write(first + i, out);
        }
        rows.start += count;
    }
}

/// The products of a group with up to [`MOST`] rows.
#[target_feature(enable = "neon")]
unsafe fn products<const DOT: bool, const KIND: u8, const MINIMA: u8>(
    group: &[u8],
    blocks: usize,
    rows: &[RowPointers],
) -> [Eight; MOST] {
    let scales_at = match KIND {
        BYTES => 256,
        FIVE_BITS => 160,
        SIX_BITS => 192,
        _ => 128,
    };
    let tile_bytes = scales_at + if MINIMA == OWN { 32 } else { 16 };
    let mut sums = [all(0.0); MOST];
    let mut header = [all(0.0); 2];
    let mut tile = group.as_ptr();
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer.
        unsafe {
            if block % SHARE == 0 && (MINIMA == SHARED || KIND == SIX_BITS) {
                header[0] = halves(tile);
                tile = tile.add(16);
                if MINIMA == SHARED {
                    header[1] = halves(tile);
                    tile = tile.add(16);
                }
            }
            let weights = spread::<KIND>(tile);
            // The scales, and the minima or the scales of the second half.
            let at = tile.add(scales_at);
            let [scales, others] = match (KIND, MINIMA) {
                (SIX_BITS, _) => [at, at.add(8)].map(|at| multiply(header[0], signed_bytes(at))),
                (_, SHARED) => [
                    multiply(header[0], unsigned_bytes(at)),
                    multiply(header[1], unsigned_bytes(at.add(8))),
                ],
                (_, OWN) => [halves(at), halves(at.add(16))],
                (_, MIDDLE) => {
                    let middle = if KIND == NIBBLES { -8.0 } else { -16.0 };
                    [halves(at), multiply(halves(at), all(middle))]
                }
                _ => [halves(at), all(0.0)],
            };
            for (row, sums) in rows.iter().zip(&mut sums) {
                let [near, far] = half_products::<DOT>(&weights, row, block);
                let of_row = *row.scale.add(block);
                let scale = scaled(scales, of_row);
                if KIND == SIX_BITS {
                    *sums = fused(*sums, floats(near), scale);
                    *sums = fused(*sums, floats(far), scaled(others, of_row));
                } else {
                    let sum = vdupq_n_f32(*row.sum.add(block));
                    *sums = match MINIMA {
                        NONE => *sums,
                        SHARED => [
                            vfmsq_f32(sums[0], others[0], sum),
                            vfmsq_f32(sums[1], others[1], sum),
                        ],
                        _ => fused(*sums, others, [sum; 2]),
                    };
                    let whole = [vaddq_s32(near[0], far[0]), vaddq_s32(near[1], far[1])];
                    *sums = fused(*sums, floats(whole), scale);
                }
            }
            tile = tile.add(tile_bytes);
        }
    }
    sums
}

/// The integer products of a row's first 16 columns of a block, and of its last 16.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn half_products<const DOT: bool>(
    weights: &Spread,
    row: &RowPointers,
    block: usize,
) -> [[int32x4_t; 2]; 2] {
    let mut sums = [[vdupq_n_s32(0); 2]; 2];
    for plane in row.planes {
        for (half, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's: a block has 32 bytes in each plane.
            let x = unsafe { vld1q_s8(plane.add(block * BLOCK + 16 * half)) };
            for (rows, sum) in sums.iter_mut().enumerate() {
                // The planes before count 128 times as much.
                *sum = vshlq_n_s32::<7>(*sum);
                let of = |v: usize| weights[4 * half + v][rows];
                // SAFETY: the caller's, for `DOT`.
                unsafe {
                    *sum = add_fours::<DOT, 0>(*sum, of(0), x);
                    *sum = add_fours::<DOT, 1>(*sum, of(1), x);
                    *sum = add_fours::<DOT, 2>(*sum, of(2), x);
                    *sum = add_fours::<DOT, 3>(*sum, of(3), x);
                }
            }
        }
    }
    sums
}

/// Adds to each lane the products of its 4 bytes of `weights` with the 4 bytes of lane `LANE` of `x`, whose magnitude is at
/// most 127.
///
/// In assembly, because the intrinsic needs a newer compiler than the rest.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn add_fours<const DOT: bool, const LANE: i32>(
    sums: int32x4_t,
    weights: int8x16_t,
    x: int8x16_t,
) -> int32x4_t {
    if DOT {
        let mut sums = sums;
        // SAFETY: the caller's: the instruction is there. It touches only the registers named.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {weights:v}.16b, {x:v}.4b[{lane}]",
                sums = inout(vreg) sums,
                weights = in(vreg) weights,
                x = in(vreg) x,
                lane = const LANE,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        return sums;
    }
    let x = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(x)));
    let low = vmull_s8(vget_low_s8(weights), vget_low_s8(x));
    let high = vmull_high_s8(weights, x);
    // Two products of up to 128 * 127 add up in 16 bits: 32,512 < 32,768.
    vpadalq_s16(sums, vpaddq_s16(low, high))
}

#[target_feature(enable = "neon")]
#[inline]
fn floats(of: [int32x4_t; 2]) -> Eight {
    [vcvtq_f32_s32(of[0]), vcvtq_f32_s32(of[1])]
}

#[target_feature(enable = "neon")]
#[inline]
fn scaled(of: Eight, by: f32) -> Eight {
    [vmulq_n_f32(of[0], by), vmulq_n_f32(of[1], by)]
}

/// Eight f16 at a pointer.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn halves(at: *const u8) -> Eight {
    // SAFETY: the caller's: 16 bytes.
    let halves = vreinterpretq_f16_u8(unsafe { vld1q_u8(at) });
    [
        vcvt_f32_f16(vget_low_f16(halves)),
        vcvt_high_f32_f16(halves),
    ]
}

/// Eight unsigned bytes at a pointer, as f32.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn unsigned_bytes(at: *const u8) -> Eight {
    // SAFETY: the caller's: 8 bytes.
    let words = vmovl_u8(unsafe { vld1_u8(at) });
    [
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(words))),
        vcvtq_f32_u32(vmovl_high_u16(words)),
    ]
}

/// Eight signed bytes at a pointer, as f32.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn signed_bytes(at: *const u8) -> Eight {
    // SAFETY: the caller's: 8 bytes.
    let words = vmovl_s8(unsafe { vld1_s8(at.cast()) });
    floats([vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)])
}

/// Two vectors of pairs of columns as fours: those of rows 0 to 3, and of rows 4 to 7.
#[target_feature(enable = "neon")]
#[inline]
fn fours(first: uint8x16_t, second: uint8x16_t) -> [uint8x16_t; 2] {
    let (a, b) = (vreinterpretq_u16_u8(first), vreinterpretq_u16_u8(second));
    [
        vreinterpretq_u8_u16(vzip1q_u16(a, b)),
        vreinterpretq_u8_u16(vzip2q_u16(a, b)),
    ]
}

/// Spreads a tile's weights out.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn spread<const KIND: u8>(tile: *const u8) -> Spread {
    let mut out = [[vdupq_n_s8(0); 2]; 8];
    // SAFETY: the caller's: the weights of a tile of that kind.
    let vector = |index: usize| unsafe { vld1q_u8(tile.add(16 * index)) };
    let pairs = |index: usize| fours(vector(index), vector(index + 1));
    if KIND == BYTES {
        for (v, out) in out.iter_mut().enumerate() {
            let [first, second] = pairs(2 * v);
            *out = [vreinterpretq_s8_u8(first), vreinterpretq_s8_u8(second)];
        }
        return out;
    }
    // The bits above the nibbles, of the columns from 0 on and, where there are two, from 4 on.
    let upper = match KIND {
        FIVE_BITS => [pairs(8); 2],
        SIX_BITS => [pairs(8), pairs(10)],
        _ => [[vdupq_n_u8(0); 2]; 2],
    };
    // SAFETY: the table has 16 bytes.
    let table = unsafe { vld1q_s8(IQ4_NL.as_ptr()) };
    for v in 0..4 {
        let packed = match KIND {
            NIBBLES => [vector(2 * v), vector(2 * v + 1)],
            _ => pairs(2 * v),
        };
        for (rows, packed) in packed.into_iter().enumerate() {
            for half in 0..2 {
                let low = match half {
                    0 => vandq_u8(packed, vdupq_n_u8(15)),
                    _ => vshrq_n_u8::<4>(packed),
                };
                out[4 * half + v][rows] = match KIND {
                    FIVE_BITS => {
                        let bit = moved_up(upper[0][rows], v + 4 * half, 16);
                        vreinterpretq_s8_u8(vorrq_u8(low, bit))
                    }
                    SIX_BITS => {
                        let bits = moved_up(upper[v % 2][rows], v / 2 * 4 + 2 * half, 48);
                        vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(low, bits)), vdupq_n_s8(32))
                    }
                    TABLE => vqtbl1q_s8(table, low),
                    _ => vreinterpretq_s8_u8(low),
                };
            }
        }
    }
    out
}

/// Moves bit `from` of each byte, and those above it, to the place above a nibble, and keeps those of `mask`.
#[target_feature(enable = "neon")]
#[inline]
fn moved_up(bits: uint8x16_t, from: usize, mask: u8) -> uint8x16_t {
    vandq_u8(vshlq_u8(bits, vdupq_n_s8(4 - from as i8)), vdupq_n_u8(mask))
}
