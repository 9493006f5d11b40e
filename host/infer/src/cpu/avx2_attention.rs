#![allow(
    unsafe_code,
    reason = "SIMD intrinsics, and slices without bounds checks in the inner loops"
)]
//! Attention for processors with AVX2, FMA and F16C. Heads have a multiple of 8 elements.

use std::arch::x86_64::*;
use std::ops::Range;

use super::attention::Query;
use super::avx2::{Token, add_lanes, exp, load, store};
use super::kernels::{CacheElement, HeadCache};
use crate::ops::PAGE_TOKENS;

/// Attention of `R` queries.
///
/// # Safety
/// AVX2, FMA and F16C were detected.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn attend<E: CacheElement, const R: usize>(
    mut queries: [&mut Query<'_>; R],
    cache: &HeadCache<'_, E>,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    let start = queries
        .iter()
        .map(|query| query.span.start)
        .min()
        .unwrap_or(0);
    let end = queries
        .iter()
        .map(|query| query.span.end)
        .max()
        .unwrap_or(0);
    // Scores of whole pages: `scores[r * stride + i]` is of position `base + i`.
    let base = start / PAGE_TOKENS * PAGE_TOKENS;
    let stride = end.next_multiple_of(PAGE_TOKENS) - base;
    scores.resize(R * stride, 0.0);
    let q = std::array::from_fn::<_, R, _>(|r| queries[r].q);
    for (index, page) in cache.pages(base..end).enumerate() {
        products(q, page.keys, scale, scores, stride, index * PAGE_TOKENS);
    }
    let mut sums = [0.0; R];
    for (r, query) in queries.iter().enumerate() {
        let own = r * stride + query.span.start - base..r * stride + query.span.end - base;
        sums[r] = powers(&mut scores[own]);
    }
    let spans = std::array::from_fn::<_, R, _>(|r| queries[r].span.clone());
    let weights = Weights {
        scores,
        stride,
        base,
        spans,
    };
    let vectors = queries[0].out.len() / 8;
    let mut vector = 0;
    while vector < vectors {
        // As many elements at a time as their sums fit into the registers.
        vector += match (R, vectors - vector) {
            (1, 8..) => weights.values::<E, 8>(cache, vector, &sums, &mut queries),
            (1..=3, 4..) => weights.values::<E, 4>(cache, vector, &sums, &mut queries),
            (_, 2..) => weights.values::<E, 2>(cache, vector, &sums, &mut queries),
            _ => weights.values::<E, 1>(cache, vector, &sums, &mut queries),
        };
    }
}

/// The products of `R` queries with the keys of a page, times `scale`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn products<E: CacheElement, const R: usize>(
    q: [&[f32]; R],
    keys: &[E],
    scale: f32,
    scores: &mut [f32],
    stride: usize,
    at: usize,
) {
    let token = Token(());
    let dim = q[0].len();
    assert!(q.iter().all(|q| q.len() == dim) && keys.len() >= dim * PAGE_TOKENS);
    let scale = _mm256_set1_ps(scale);
    for half in 0..2 {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for element in 0..dim {
            let first = element * PAGE_TOKENS + half * 16;
            // SAFETY: `first + 16` is at most `dim * PAGE_TOKENS`, which was compared with the length.
            let [a, b] = [0, 8].map(|more| unsafe {
                E::lanes(&*keys.as_ptr().add(first + more).cast::<[E; 8]>(), token)
            });
            for r in 0..R {
                // SAFETY: every query has `dim` elements.
                let q = _mm256_set1_ps(unsafe { *q[r].get_unchecked(element) });
                sums[r][0] = _mm256_fmadd_ps(q, a, sums[r][0]);
                sums[r][1] = _mm256_fmadd_ps(q, b, sums[r][1]);
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let out = &mut scores[r * stride + at + half * 16..][..16];
            for (out, sum) in out.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
                store(out, _mm256_mul_ps(sum, scale));
            }
        }
    }
}

/// Replaces each score by e^(score - the largest), and gives the sum of them.
#[target_feature(enable = "avx2,fma,f16c")]
fn powers(scores: &mut [f32]) -> f32 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (scores8, rest) = scores.as_chunks_mut::<8>();
    let mut sums = _mm256_setzero_ps();
    for score in scores8 {
        let e = exp(_mm256_sub_ps(load(score), _mm256_set1_ps(most)));
        sums = _mm256_add_ps(sums, e);
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
    /// Adds up `V` vectors of the values from vector `first` on, and writes the outputs. Gives `V`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn values<E: CacheElement, const V: usize>(
        &self,
        cache: &HeadCache<'_, E>,
        first: usize,
        sums: &[f32; R],
        queries: &mut [&mut Query<'_>; R],
    ) -> usize {
        let dim = cache.head_dim;
        let start = self.spans.iter().map(|span| span.start).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span.end).max().unwrap_or(0);
        // The positions that all of them see; each sees some before and after these for itself.
        let common = {
            let from = self.spans.iter().map(|span| span.start).max().unwrap_or(0);
            let to = self.spans.iter().map(|span| span.end).min().unwrap_or(0);
            if from < to { from..to } else { end..end }
        };
        let mut lanes = [[_mm256_setzero_ps(); V]; R];
        for page in cache.pages(start..end) {
            let whole = page.start..page.start + PAGE_TOKENS;
            let within = |span: Range<usize>| span.start.max(whole.start)..span.end.min(whole.end);
            let values = page.values;
            assert!(values.len() >= PAGE_TOKENS * dim && (first + V) * 8 <= dim);
            for r in 0..R {
                let span = &self.spans[r];
                for position in within(span.start..span.end.min(common.start)) {
                    self.add(
                        values,
                        whole.start,
                        position,
                        first,
                        dim,
                        r..r + 1,
                        &mut lanes,
                    );
                }
            }
            for position in within(common.clone()) {
                self.add(values, whole.start, position, first, dim, 0..R, &mut lanes);
            }
            for r in 0..R {
                let span = &self.spans[r];
                for position in within(span.start.max(common.end)..span.end) {
                    self.add(
                        values,
                        whole.start,
                        position,
                        first,
                        dim,
                        r..r + 1,
                        &mut lanes,
                    );
                }
            }
        }
        for (r, lanes) in lanes.into_iter().enumerate() {
            let sum = _mm256_set1_ps(sums[r]);
            let out = &mut queries[r].out[first * 8..(first + V) * 8];
            for (out, lane) in out.as_chunks_mut::<8>().0.iter_mut().zip(lanes) {
                store(out, _mm256_div_ps(lane, sum));
            }
        }
        V
    }

    /// Adds one position's values to the sums of the queries `of`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    #[allow(
        clippy::too_many_arguments,
        reason = "the innermost loop, taken out to be written once"
    )]
    fn add<E: CacheElement, const V: usize>(
        &self,
        values: &[E],
        page: usize,
        position: usize,
        first: usize,
        dim: usize,
        of: Range<usize>,
        lanes: &mut [[__m256; V]; R],
    ) {
        let at = (position - page) * dim + first * 8;
        // SAFETY: the caller compared the page's length and the vectors with the head's size.
        let value = std::array::from_fn::<_, V, _>(|v| unsafe {
            E::lanes(
                &*values.as_ptr().add(at + v * 8).cast::<[E; 8]>(),
                Token(()),
            )
        });
        for r in of {
            let weight = _mm256_set1_ps(self.scores[r * self.stride + position - self.base]);
            for (lane, value) in lanes[r].iter_mut().zip(value) {
                *lane = _mm256_fmadd_ps(weight, value, *lane);
            }
        }
    }
}
