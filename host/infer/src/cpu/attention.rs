//! Attention with AVX2: the query heads that share keys and values are computed together, so that these are read
//! and widened once for all of them. What a head gets does not depend on how many are computed with it.
//!
//! Every function here may be called only where AVX2, FMA and F16C were detected (`kernels::Level::Avx2`).

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{Token, add_lanes, exp, largest_lane, load, store};
use super::kernels::{CacheElement, HeadCache};
use crate::ops::PAGE_TOKENS;

/// The keys (or values) of the positions of `span`, page by page.
#[inline(always)]
fn pages<'a, E>(
    plane: &'a [E],
    cache: &HeadCache<'a, E>,
    span: &Range<usize>,
) -> impl Iterator<Item = &'a [E]> {
    let HeadCache {
        table,
        stride,
        offset,
        head_dim,
        ..
    } = *cache;
    let (first, end) = (span.start, span.end);
    (first / PAGE_TOKENS..end.div_ceil(PAGE_TOKENS)).map(move |index| {
        let start = table[index] as usize * stride + offset;
        let page = &plane[start..start + PAGE_TOKENS * head_dim];
        let from = first.saturating_sub(index * PAGE_TOKENS);
        let to = (end - index * PAGE_TOKENS).min(PAGE_TOKENS);
        &page[from * head_dim..to * head_dim]
    })
}

/// Attention of neighbouring heads over the positions of `span`: `q` and `out` hold them one after another, each of
/// the cache's `head_dim`, a multiple of 8. Products are multiplied by `scale`; `scores` is scratch.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn attend<E: CacheElement>(
    q: &[f32],
    cache: &HeadCache<'_, E>,
    span: &Range<usize>,
    scale: f32,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let dim = cache.head_dim;
    // As many heads at a time, and elements of their sums, as the registers hold.
    let (mut q, mut out) = (q, out);
    while !q.is_empty() {
        let heads = (q.len() / dim).min(4);
        let (these, rest) = q.split_at(heads * dim);
        let (sums, others) = out.split_at_mut(heads * dim);
        match heads {
            1 => attend_heads::<E, 1, 8>(these, cache, span, scale, scores, sums),
            2 => attend_heads::<E, 2, 4>(these, cache, span, scale, scores, sums),
            3 => attend_heads::<E, 3, 4>(these, cache, span, scale, scores, sums),
            _ => attend_heads::<E, 4, 2>(these, cache, span, scale, scores, sums),
        }
        (q, out) = (rest, others);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn attend_heads<E: CacheElement, const HEADS: usize, const LANES: usize>(
    q: &[f32],
    cache: &HeadCache<'_, E>,
    span: &Range<usize>,
    scale: f32,
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (dim, count) = (cache.head_dim, span.len());
    // One head after another.
    scores.resize(count * HEADS, 0.0);
    match dim {
        // The loop over a head's elements is unrolled for the usual sizes.
        64 => score::<E, HEADS, 8>(q, cache, span, scale, scores),
        128 => score::<E, HEADS, 16>(q, cache, span, scale, scores),
        _ => score::<E, HEADS, 0>(q, cache, span, scale, scores),
    }
    let mut sums = [0f32; HEADS];
    for (sum, scores) in sums.iter_mut().zip(scores.chunks_exact_mut(count)) {
        *sum = softmax(scores);
    }
    let mut lane = 0;
    while lane + LANES <= dim / 8 {
        mix::<E, HEADS, LANES>(cache, span, scores, &sums, lane, out);
        lane += LANES;
    }
    while lane < dim / 8 {
        mix::<E, HEADS, 1>(cache, span, scores, &sums, lane, out);
        lane += 1;
    }
}

/// The products of the queries with each key. `EIGHTS` is an eighth of the head's size, or 0 for any.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn score<E: CacheElement, const HEADS: usize, const EIGHTS: usize>(
    q: &[f32],
    cache: &HeadCache<'_, E>,
    span: &Range<usize>,
    scale: f32,
    scores: &mut [f32],
) {
    let (token, dim, count) = (Token::new(), cache.head_dim, span.len());
    let q: [&[[f32; 8]]; HEADS] =
        std::array::from_fn(|head| q[head * dim..(head + 1) * dim].as_chunks::<8>().0);
    let fixed: [&[[f32; 8]; EIGHTS]; HEADS] =
        std::array::from_fn(|head| q[head].first_chunk().unwrap_or(&[[0.0; 8]; EIGHTS]));
    let mut at = 0;
    for keys in pages(cache.keys, cache, span) {
        let mut found = [[0f32; PAGE_TOKENS]; HEADS];
        for (key, place) in keys.chunks_exact(dim).zip(0..PAGE_TOKENS) {
            let key = key.as_chunks::<8>().0;
            let (mut even, mut odd) = ([_mm256_setzero_ps(); HEADS], [_mm256_setzero_ps(); HEADS]);
            match key.first_chunk::<EIGHTS>() {
                Some(key) if EIGHTS > 0 => {
                    for eighth in 0..EIGHTS {
                        let key = E::lanes(&key[eighth], token);
                        let sums = if eighth % 2 == 0 { &mut even } else { &mut odd };
                        for head in 0..HEADS {
                            sums[head] =
                                _mm256_fmadd_ps(load(&fixed[head][eighth]), key, sums[head]);
                        }
                    }
                }
                _ => {
                    for (eighth, key) in key.iter().enumerate() {
                        let key = E::lanes(key, token);
                        let sums = if eighth % 2 == 0 { &mut even } else { &mut odd };
                        for head in 0..HEADS {
                            sums[head] = _mm256_fmadd_ps(load(&q[head][eighth]), key, sums[head]);
                        }
                    }
                }
            }
            for head in 0..HEADS {
                found[head][place] = add_lanes(_mm256_add_ps(even[head], odd[head])) * scale;
            }
        }
        let tokens = keys.len() / dim;
        for (scores, found) in scores.chunks_exact_mut(count).zip(&found) {
            scores[at..at + tokens].copy_from_slice(&found[..tokens]);
        }
        at += tokens;
    }
}

/// Scores of one head to e^(score - most), and the sum of those.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn softmax(scores: &mut [f32]) -> f32 {
    let (scores8, rest) = scores.as_chunks_mut::<8>();
    let mut most = _mm256_set1_ps(f32::NEG_INFINITY);
    for scores in scores8.iter() {
        most = _mm256_max_ps(most, load(scores));
    }
    let most = rest.iter().copied().fold(largest_lane(most), f32::max);
    let shift = _mm256_set1_ps(most);
    let mut sums = _mm256_setzero_ps();
    for scores in scores8 {
        let e = exp(_mm256_sub_ps(load(scores), shift));
        sums = _mm256_add_ps(sums, e);
        store(scores, e);
    }
    let mut sum = add_lanes(sums);
    for score in rest {
        *score = (*score - most).exp();
        sum += *score;
    }
    sum
}

/// The mean of the values by their weights, for `LANES` times 8 elements of each head.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn mix<E: CacheElement, const HEADS: usize, const LANES: usize>(
    cache: &HeadCache<'_, E>,
    span: &Range<usize>,
    weights: &[f32],
    sums: &[f32; HEADS],
    first: usize,
    out: &mut [f32],
) {
    let (token, dim, count) = (Token::new(), cache.head_dim, span.len());
    let mut lanes = [[_mm256_setzero_ps(); LANES]; HEADS];
    let mut at = 0;
    for values in pages(cache.values, cache, span) {
        let tokens = values.len() / dim;
        let mut of_page = [[0f32; PAGE_TOKENS]; HEADS];
        for (to, from) in of_page.iter_mut().zip(weights.chunks_exact(count)) {
            to[..tokens].copy_from_slice(&from[at..at + tokens]);
        }
        at += tokens;
        for (value, place) in values.chunks_exact(dim).zip(0..PAGE_TOKENS) {
            let Some(value) = value.as_chunks::<8>().0[first..].first_chunk::<LANES>() else {
                return;
            };
            let value: [__m256; LANES] = std::array::from_fn(|lane| E::lanes(&value[lane], token));
            for head in 0..HEADS {
                let weight = _mm256_set1_ps(of_page[head][place]);
                for lane in 0..LANES {
                    lanes[head][lane] = _mm256_fmadd_ps(weight, value[lane], lanes[head][lane]);
                }
            }
        }
    }
    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
        let out = &mut out.as_chunks_mut::<8>().0[first..first + LANES];
        for (out, lane) in out.iter_mut().zip(lanes[head]) {
            store(out, _mm256_div_ps(lane, _mm256_set1_ps(sums[head])));
        }
    }
}

#[cfg(test)]
#[allow(
    unsafe_code,
    reason = "calls kernels after their features were detected"
)]
mod tests {
    use super::*;
    use crate::cpu::kernels::Level;
    use crate::cpu::scalar;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn heads_together_get_what_each_gets_alone_and_what_the_plain_version_gives(
            q in prop::collection::vec(-2f32..2.0, 7 * 72),
            kv in prop::collection::vec(-2f32..2.0, 4 * 32 * 72),
            dim in prop_oneof![Just(8usize), Just(64), Just(72)],
            heads in 1usize..8,
            count in 1usize..96,
        ) {
            prop_assume!(Level::detect() != Level::Scalar);
            let keys: Vec<u16> = kv.iter().map(|x| u16::narrow(*x)).collect();
            let values: Vec<u16> = keys.iter().rev().copied().collect();
            let table = [2, 0, 3];
            let cache = HeadCache { keys: &keys, values: &values, table: &table, stride: 32 * dim, offset: 0, head_dim: dim };
            let (q, scale, mut scratch) = (&q[..heads * dim], 1.0 / (dim as f32).sqrt(), Vec::new());
            let mut together = vec![0.0; heads * dim];
            // SAFETY: the level was detected.
            unsafe { attend(q, &cache, &(0..count), scale, &mut scratch, &mut together) };
            for (q, together) in q.chunks_exact(dim).zip(together.chunks_exact(dim)) {
                let (mut alone, mut plain) = (vec![0.0; dim], vec![0.0; dim]);
                // SAFETY: as above.
                unsafe { attend(q, &cache, &(0..count), scale, &mut scratch, &mut alone) };
                prop_assert_eq!(together, &alone);
                scalar::attend(q, &cache, 0..count, scale, &mut scratch, &mut plain);
                let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 5e-5;
                prop_assert!(alone.iter().zip(&plain).all(close), "{:?} {:?}", alone, plain);
            }
        }

        #[test]
        fn a_span_is_attended_to_as_if_nothing_were_before_it(
            q in prop::collection::vec(-2f32..2.0, 16), kv in prop::collection::vec(-2f32..2.0, 3 * 32 * 16),
            first in 0usize..60, length in 1usize..36,
        ) {
            prop_assume!(Level::detect() != Level::Scalar);
            let keys: Vec<u16> = kv.iter().map(|x| u16::narrow(*x)).collect();
            // The same positions from a cache that begins with them.
            let shifted: Vec<u16> = keys.iter().skip(first * 16).chain(&keys).copied().collect();
            let whole = HeadCache { keys: &keys, values: &keys, table: &[0, 1, 2], stride: 512, offset: 0, head_dim: 16 };
            let begun = HeadCache { keys: &shifted, values: &shifted, ..whole };
            let (mut found, mut wanted, mut scratch) = (vec![0.0; 16], vec![0.0; 16], Vec::new());
            // SAFETY: the level was detected.
            unsafe {
                attend(&q, &whole, &(first..first + length), 0.25, &mut scratch, &mut found);
                attend(&q, &begun, &(0..length), 0.25, &mut scratch, &mut wanted);
            }
            prop_assert_eq!(found, wanted);
        }
    }
}
