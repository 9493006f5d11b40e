//! The kernels in plain Rust: what runs where there is no better, and what the others are tested against.

use std::ops::Range;

use super::attention::Query;
use super::kernels::{CacheElement, HeadCache};
use super::tiles::{BLOCK, LANES, Rounded, Tiles};
use crate::ops::PAGE_TOKENS;

/// The products of a group's 8 rows with the rows `rows` of activations, given to `write(row, products)`.
pub(super) fn group_products(
    tiles: &Tiles,
    group: usize,
    x: &Rounded,
    rows: Range<usize>,
    mut write: impl FnMut(usize, [f32; LANES]),
) {
    let (columns, blocks) = (tiles.columns, tiles.columns / BLOCK);
    let mut sums = vec![[0f32; LANES]; rows.len()];
    for (block, tile) in tiles.tiles(group).enumerate() {
        for lane in 0..LANES {
            let (q, scales, minimum) = tile.lane(lane);
            for (row, sums) in rows.clone().zip(&mut sums) {
                let words = &x.word[row * columns + block * BLOCK..][..BLOCK];
                let (scale, sum) = (x.scale[row * blocks + block], x.sum[row * blocks + block]);
                let halves = q.chunks_exact(16).zip(words.chunks_exact(16)).zip(scales);
                for ((q, words), of_half) in halves {
                    let pairs = q.iter().zip(words);
                    let products: i32 = pairs.map(|(q, x)| i32::from(*q) * i32::from(*x)).sum();
                    sums[lane] += products as f32 * (of_half * scale);
                }
                sums[lane] += minimum * sum;
            }
        }
    }
    rows.zip(sums).for_each(|(row, sums)| write(row, sums));
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

/// sqrt(2 / pi), and 0.044715 times that: the approximation of gelu by tanh (arXiv:1606.08415).
pub(super) const GELU: [f32; 2] = [0.797_884_6, 0.035_677_408];

/// tanh-approximated gelu(gate) * up.
pub(super) fn gated_gelu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let [first, third] = GELU;
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        let inner = gate * (first + third * gate * gate);
        *out = 0.5 * gate * (1.0 + inner.tanh()) * up;
    }
}

/// gelu(x) = x * (1 + erf(x / sqrt(2))) / 2, in place.
pub(super) fn gelu(x: &mut [f32]) {
    for x in x {
        *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

/// The error function, off by at most 1.5e-7: formula 7.1.26 of Abramowitz and Stegun, "Handbook of Mathematical
/// Functions".
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let factors = [
        1.061_405_4,
        -1.453_152,
        1.421_413_8,
        -0.284_496_74,
        0.254_829_6,
    ];
    let sum = factors.iter().fold(0.0, |sum, factor| (sum + factor) * t);
    (1.0 - sum * (-x * x).exp()).copysign(x)
}

/// (x - mean) / sqrt(variance + epsilon) * weight + bias.
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let count = x.len() as f32;
    let mean = x.iter().sum::<f32>() / count;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = (x - mean) * inverse * weight + bias;
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

/// Attention of one head over the positions of `span`; `scores` is scratch.
pub(super) fn attend<E: CacheElement>(
    query: &mut Query<'_>,
    cache: &HeadCache<'_, E>,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    let (q, span, dim) = (query.q, query.span.clone(), query.q.len());
    scores.clear();
    for page in cache.pages(span.clone()) {
        for token in slots(&span, page.start) {
            let keys = page.keys.iter().skip(token).step_by(PAGE_TOKENS);
            let product: f32 = q.iter().zip(keys).map(|(q, k)| q * k.widen()).sum();
            scores.push(product * scale);
        }
    }
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for score in scores.iter_mut() {
        *score = (*score - most).exp();
        sum += *score;
    }
    query.out.fill(0.0);
    let mut weights = scores.iter();
    for page in cache.pages(span.clone()) {
        let own = slots(&span, page.start);
        let values = page.values.chunks_exact(dim).take(own.end).skip(own.start);
        for (value, weight) in values.zip(&mut weights) {
            for (out, value) in query.out.iter_mut().zip(value) {
                *out += weight * value.widen();
            }
        }
    }
    for out in query.out.iter_mut() {
        *out /= sum;
    }
}

/// The slots of a page from position `page` on that lie in a span.
fn slots(span: &Range<usize>, page: usize) -> Range<usize> {
    span.start.saturating_sub(page)..(span.end - page).min(PAGE_TOKENS)
}
