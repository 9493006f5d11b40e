#![allow(
    unsafe_code,
    reason = "SIMD intrinsics, and slices without bounds checks in the inner loops"
)]
//! Attention for 64-bit ARM. Heads have a multiple of 8 elements. What a query gets is bit for bit what `avx2_attention`
//! gives it.

use std::arch::aarch64::*;
use std::ops::Range;

use super::attention::Query;
use super::kernels::{CacheElement, HeadCache};
use super::neon::{
    Eight, Token, add, add_lanes, all, divide, exp, load, multiply, store, subtract,
};
use crate::ops::PAGE_TOKENS;

/// Attention of `R` queries.
///
/// # Safety
/// NEON was detected.
#[target_feature(enable = "neon")]
pub(super) fn attend<E: CacheElement, const R: usize>(
    mut queries: [&mut Query<'_>; R],
    cache: &HeadCache<'_, E>,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    let spans = std::array::from_fn::<_, R, _>(|r| queries[r].span.clone());
    let seen = reach(&spans);
    // Scores of whole pages: `scores[r * stride + i]` is of position `base + i`.
    let base = seen.start / PAGE_TOKENS * PAGE_TOKENS;
    let stride = seen.end.next_multiple_of(PAGE_TOKENS) - base;
    scores.resize(R * stride, 0.0);
    let q = std::array::from_fn::<_, R, _>(|r| queries[r].q);
    for (index, page) in cache.pages(base..seen.end).enumerate() {
        products(q, page.keys, scale, scores, stride, index * PAGE_TOKENS);
    }
    let mut sums = [0.0; R];
    for (r, span) in spans.iter().enumerate() {
        let own = r * stride + span.start - base..r * stride + span.end - base;
        sums[r] = powers(&mut scores[own]);
    }
    let weights = Weights {
        scores,
        stride,
        base,
        spans,
    };
    let eights = queries[0].out.len() / 8;
    let mut eight = 0;
    while eight < eights {
        // As many elements at a time as their sums fit into the registers.
        eight += match (R, eights - eight) {
            (1, 8..) => weights.values::<E, 8>(cache, eight, &sums, &mut queries),
            (1 | 2, 4..) => weights.values::<E, 4>(cache, eight, &sums, &mut queries),
            (_, 2..) => weights.values::<E, 2>(cache, eight, &sums, &mut queries),
            _ => weights.values::<E, 1>(cache, eight, &sums, &mut queries),
        };
    }
}

/// From the first position that any of them sees to the last.
fn reach(spans: &[Range<usize>]) -> Range<usize> {
    let start = spans.iter().map(|span| span.start).min().unwrap_or(0);
    start..spans.iter().map(|span| span.end).max().unwrap_or(0)
}

/// The products of `R` queries with the keys of a page, times `scale`.
#[target_feature(enable = "neon")]
#[inline]
fn products<E: CacheElement, const R: usize>(
    q: [&[f32]; R],
    keys: &[E],
    scale: f32,
    scores: &mut [f32],
    stride: usize,
    at: usize,
) {
    let dim = q[0].len();
    assert!(q.iter().all(|q| q.len() == dim) && keys.len() >= dim * PAGE_TOKENS);
    for half in 0..2 {
        let mut sums = [[all(0.0); 2]; R];
        for element in 0..dim {
            let first = element * PAGE_TOKENS + half * 16;
            // SAFETY: `first + 16` is at most `dim * PAGE_TOKENS`, which was compared with the length.
            let (a, b) = unsafe {
                let at = keys.as_ptr().add(first).cast::<[E; 8]>();
                (E::lanes(&*at, Token(())), E::lanes(&*at.add(1), Token(())))
            };
            for r in 0..R {
                // SAFETY: every query has `dim` elements.
                let q = unsafe { *q[r].get_unchecked(element) };
                sums[r] = [add_times(sums[r][0], a, q), add_times(sums[r][1], b, q)];
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let out = &mut scores[r * stride + at + half * 16..][..16];
            for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
                store(out, multiply(sum, all(scale)));
            }
        }
    }
}

/// sums + lanes * by, rounded once.
#[target_feature(enable = "neon")]
#[inline]
fn add_times(sums: Eight, lanes: Eight, by: f32) -> Eight {
    [
        vfmaq_n_f32(sums[0], lanes[0], by),
        vfmaq_n_f32(sums[1], lanes[1], by),
    ]
}

/// Replaces each score by e^(score - the largest), and gives the sum of them.
#[target_feature(enable = "neon")]
fn powers(scores: &mut [f32]) -> f32 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (scores8, rest) = scores.as_chunks_mut::<8>();
    let mut sums = all(0.0);
    for score in scores8 {
        let e = exp(subtract(load(score), all(most)));
        sums = add(sums, e);
        store(score, e);
    }
    let mut sum = add_lanes(sums);
    for score in rest {
        *score = (*score - most).exp();
        sum += *score;
    }
    sum
}

/// What the values are multiplied by.
struct Weights<'a, const R: usize> {
    scores: &'a [f32],
    stride: usize,
    base: usize,
    spans: [Range<usize>; R],
}

impl<const R: usize> Weights<'_, R> {
    /// Adds up `V` times eight elements of the values from eight `first` on, and writes the outputs. Gives `V`.
    #[target_feature(enable = "neon")]
    #[inline]
    fn values<E: CacheElement, const V: usize>(
        &self,
        cache: &HeadCache<'_, E>,
        first: usize,
        sums: &[f32; R],
        queries: &mut [&mut Query<'_>; R],
    ) -> usize {
        let dim = cache.head_dim;
        let seen = reach(&self.spans);
        // The positions that all of them see; each sees some before and after these for itself.
        let common = {
            let from = self.spans.iter().map(|span| span.start).max().unwrap_or(0);
            let to = self.spans.iter().map(|span| span.end).min().unwrap_or(0);
            if from < to {
                from..to
            } else {
                seen.end..seen.end
            }
        };
        let mut lanes = [[all(0.0); V]; R];
        for page in cache.pages(seen) {
            let whole = page.start..page.start + PAGE_TOKENS;
            let within = |span: Range<usize>| span.start.max(whole.start)..span.end.min(whole.end);
            assert!(page.values.len() >= PAGE_TOKENS * dim && (first + V) * 8 <= dim);
            for (r, span) in self.spans.iter().enumerate() {
                for position in within(span.start..span.end.min(common.start)) {
                    let at = (position - whole.start) * dim + first * 8;
                    self.add(page.values, at, position, r..r + 1, &mut lanes);
                }
            }
            for position in within(common.clone()) {
                let at = (position - whole.start) * dim + first * 8;
                self.add(page.values, at, position, 0..R, &mut lanes);
            }
            for (r, span) in self.spans.iter().enumerate() {
                for position in within(span.start.max(common.end)..span.end) {
                    let at = (position - whole.start) * dim + first * 8;
                    self.add(page.values, at, position, r..r + 1, &mut lanes);
                }
            }
        }
        for (r, lanes) in lanes.into_iter().enumerate() {
            let out = &mut queries[r].out[first * 8..(first + V) * 8];
            for (out, lane) in out.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
                store(out, divide(lane, all(sums[r])));
            }
        }
        V
    }

    /// Adds one position's values, which begin at `at`, to the sums of the queries `of`.
    #[target_feature(enable = "neon")]
    #[inline]
    fn add<E: CacheElement, const V: usize>(
        &self,
        values: &[E],
        at: usize,
        position: usize,
        of: Range<usize>,
        lanes: &mut [[Eight; V]; R],
    ) {
        // SAFETY: the caller compared the page's length and the eights with the head's size.
        let value = std::array::from_fn::<_, V, _>(|v| unsafe {
            E::lanes(
                &*values.as_ptr().add(at + v * 8).cast::<[E; 8]>(),
                Token(()),
            )
        });
        for r in of {
            let weight = self.scores[r * self.stride + position - self.base];
            for (lane, value) in lanes[r].iter_mut().zip(value) {
                *lane = add_times(*lane, value, weight);
            }
        }
    }
}
