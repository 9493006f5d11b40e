//! The kernels in plain Rust: what runs where there is no better, and what the others are tested against.

use half::f16;

use super::kernels::{CacheElement, HeadCache};
use super::tiles::{BLOCK, LANES, Rounded, Tiles, scales_at};
use crate::quant::TensorType;

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The products of a group's 8 rows with `rows` rows of activations, given to `write(row, products)`.
pub(super) fn group_products(
    tiles: &Tiles,
    group: usize,
    x: &Rounded,
    rows: usize,
    mut write: impl FnMut(usize, [f32; LANES]),
) {
    let (kind, columns, scales) = (tiles.kind, tiles.columns, scales_at(tiles.kind));
    let blocks = columns / BLOCK;
    let mut sums = vec![[0f32; LANES]; rows];
    for (block, tile) in tiles
        .group(group)
        .chunks_exact(Tiles::tile_bytes(kind))
        .enumerate()
    {
        let weights = unpack(kind, tile);
        for (row, sums) in sums.iter_mut().enumerate() {
            let words = &x.word[row * columns + block * BLOCK..][..BLOCK];
            let (scale, sum) = (x.scale[row * blocks + block], x.sum[row * blocks + block]);
            for (lane, (out, weights)) in sums.iter_mut().zip(&weights).enumerate() {
                let pairs = weights.iter().zip(words);
                let products: i32 = pairs
                    .map(|(weight, word)| i32::from(*weight) * i32::from(*word))
                    .sum();
                let d = f16_at(tile, scales + 2 * lane);
                let minimum = match kind {
                    TensorType::Q4_0 => -8.0 * d,
                    TensorType::Q4_1 => f16_at(tile, scales + 16 + 2 * lane),
                    _ => 0.0,
                };
                *out += products as f32 * (d * scale) + minimum * sum;
            }
        }
    }
    sums.into_iter()
        .enumerate()
        .for_each(|(row, sums)| write(row, sums));
}

/// A tile's integers, row by row.
fn unpack(kind: TensorType, tile: &[u8]) -> [[i16; BLOCK]; LANES] {
    let mut out = [[0; BLOCK]; LANES];
    for (lane, out) in out.iter_mut().enumerate() {
        if kind == TensorType::Q8_0 {
            for (column, out) in out.iter_mut().enumerate() {
                *out = i16::from(tile[column / 2 * 16 + 2 * lane + column % 2] as i8);
            }
            continue;
        }
        let (near, far) = out.split_at_mut(BLOCK / 2);
        for (column, (near, far)) in near.iter_mut().zip(far).enumerate() {
            let byte = tile[column / 4 * 32 + 4 * lane + column % 4];
            (*near, *far) = (i16::from(byte & 15), i16::from(byte >> 4));
        }
    }
    out
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
