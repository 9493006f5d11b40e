//! The kernels in plain Rust: what runs where there is no better, and what the others are tested against.

use half::f16;

use super::kernels::{CacheElement, HeadCache};
use super::tiles::{BLOCK, LANES, Rounded, Tiles, scales_at};
use crate::quant::TensorType;

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The products of a group's 8 rows with one row of activations.
pub(super) fn group_product(tiles: &Tiles, group: usize, x: &Rounded, row: usize) -> [f32; LANES] {
    let kind = tiles.kind;
    let (columns, scales) = (tiles.columns, scales_at(kind));
    let words = &x.word[row * columns..(row + 1) * columns];
    let blocks = columns / BLOCK;
    let mut out = [0f32; LANES];
    for (block, tile) in tiles
        .group(group)
        .chunks_exact(Tiles::tile_bytes(kind))
        .enumerate()
    {
        let words = &words[block * BLOCK..(block + 1) * BLOCK];
        let (scale, sum) = (x.scale[row * blocks + block], x.sum[row * blocks + block]);
        let products = if kind == TensorType::Q8_0 {
            byte_products(tile, words)
        } else {
            nibble_products(tile, words)
        };
        for (lane, (out, products)) in out.iter_mut().zip(products).enumerate() {
            let d = f16_at(tile, scales + 2 * lane);
            let minimum = match kind {
                TensorType::Q4_0 => -8.0 * d,
                TensorType::Q4_1 => f16_at(tile, scales + 16 + 2 * lane),
                _ => 0.0,
            };
            *out += products as f32 * (d * scale) + minimum * sum;
        }
    }
    out
}

fn nibble_products(tile: &[u8], words: &[i16]) -> [i32; LANES] {
    let mut sums = [0i32; LANES];
    for (v, vector) in tile.as_chunks::<32>().0.iter().take(4).enumerate() {
        let (near, far) = (&words[4 * v..4 * v + 4], &words[16 + 4 * v..20 + 4 * v]);
        for (sum, bytes) in sums.iter_mut().zip(vector.as_chunks::<4>().0) {
            for ((byte, near), far) in bytes.iter().zip(near).zip(far) {
                *sum += i32::from(byte & 15) * i32::from(*near)
                    + i32::from(byte >> 4) * i32::from(*far);
            }
        }
    }
    sums
}

fn byte_products(tile: &[u8], words: &[i16]) -> [i32; LANES] {
    let mut sums = [0i32; LANES];
    for (vector, pair) in tile
        .as_chunks::<16>()
        .0
        .iter()
        .zip(words.as_chunks::<2>().0)
    {
        for (sum, bytes) in sums.iter_mut().zip(vector.as_chunks::<2>().0) {
            *sum += i32::from(bytes[0] as i8) * i32::from(pair[0])
                + i32::from(bytes[1] as i8) * i32::from(pair[1]);
        }
    }
    sums
}

/// The dot product of two vectors of f32.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// x / rms(x) * weight.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let inverse = 1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * weight;
    }
}

/// silu(gate) * up.
pub(super) fn gated_silu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + (-gate).exp()) * up;
    }
}

/// The sums over e = exp(x - most) of e and of e * (x - most), in f64: what log-probabilities and entropy need.
pub(super) fn exp_sums(x: &[f32], most: f32) -> (f64, f64) {
    x.iter().fold((0.0, 0.0), |(sum, weighted), x| {
        let shifted = x - most;
        let e = f64::from(shifted.exp());
        // A banned token's logit is -inf: its share is 0, not 0 * -inf.
        (
            sum + e,
            if e > 0.0 {
                weighted + e * f64::from(shifted)
            } else {
                weighted
            },
        )
    })
}

/// e^x of each element; 0 from -87 down.
pub(super) fn exp_all(x: &mut [f32]) {
    for x in x {
        *x = if *x > -87.0 { x.exp() } else { 0.0 };
    }
}

/// Attention of one head over the first `count` positions; `scores` is scratch.
pub(super) fn attend<E: CacheElement>(
    q: &[f32],
    cache: &HeadCache<'_, E>,
    count: usize,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let scale = 1.0 / (q.len() as f32).sqrt();
    scores.clear();
    for (keys, _, tokens) in cache.pages(count) {
        for key in keys.chunks_exact(q.len()).take(tokens) {
            scores.push(q.iter().zip(key).map(|(q, k)| q * k.widen()).sum::<f32>() * scale);
        }
    }
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - most).exp();
        sum += *score;
    }
    out.fill(0.0);
    let mut weights = scores.iter();
    for (_, values, tokens) in cache.pages(count) {
        for (value, weight) in values.chunks_exact(q.len()).take(tokens).zip(&mut weights) {
            for (out, value) in out.iter_mut().zip(value) {
                *out += weight * value.widen();
            }
        }
    }
    for out in out {
        *out /= sum;
    }
}
