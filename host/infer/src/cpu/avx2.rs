#![allow(unsafe_code, reason = "SIMD intrinsics, which read through pointers")]
//! The kernels for processors with AVX2, FMA and F16C.
//!
//! Every function here may be called only where those three were detected (`kernels::Level::Avx2`). Loads go
//! through slices whose length was checked, or through tiles whose size [`Tiles`] guarantees.

use std::arch::x86_64::*;

use super::scalar;
use super::tiles::{BLOCK, LANES, LIMIT, Rounded, RoundedRow, SHARE, TINY, Tiles};
use crate::quant::{IQ4_NL, TensorType};

/// Shows that a call comes from code that runs only where the features are there.
#[derive(Clone, Copy)]
pub(crate) struct Token(pub(super) ());

/// How far ahead of the kernel weights are fetched, in bytes.
pub(super) const AHEAD: usize = 2048;

/// Eight f16 as f32.
#[inline(always)]
pub(crate) fn half_lanes(of: &[u16; 8], _: Token) -> __m256 {
    // SAFETY: the token shows that F16C is there; the array has 16 bytes.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(of.as_ptr().cast())) }
}

/// Eight f32.
#[inline(always)]
pub(crate) fn float_lanes(of: &[f32; 8], _: Token) -> __m256 {
    // SAFETY: the token shows that AVX is there; the array has 32 bytes.
    unsafe { _mm256_loadu_ps(of.as_ptr()) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn load(of: &[f32; 8]) -> __m256 {
    float_lanes(of, Token(()))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn store(to: &mut [f32; 8], value: __m256) {
    // SAFETY: the array has 32 bytes.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn add_lanes(v: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn largest_lane(v: __m256) -> f32 {
    let most = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    _mm_cvtss_f32(_mm_max_ss(most, _mm_shuffle_ps::<1>(most, most)))
}

/// e^x to 2 units in the last place, for x in -87..=88; beyond that as at the bounds. Cephes' `expf`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn exp(x: __m256) -> __m256 {
    let x = _mm256_min_ps(
        _mm256_max_ps(x, _mm256_set1_ps(-87.0)),
        _mm256_set1_ps(88.0),
    );
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
    let mut p = _mm256_set1_ps(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
    }
    let p = _mm256_add_ps(
        _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r),
        _mm256_set1_ps(1.0),
    );
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(
        _mm256_cvtps_epi32(n),
        _mm256_set1_epi32(127),
    ));
    _mm256_mul_ps(p, _mm256_castsi256_ps(power))
}

/// # Safety
/// As the file says.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let (a32, a_rest) = a.as_chunks::<32>();
    let (b32, b_rest) = b.as_chunks::<32>();
    for (a, b) in a32.iter().zip(b32) {
        let (a, b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = _mm256_fmadd_ps(load(a), load(b), *sum);
        }
    }
    let (a8, a_rest) = a_rest.as_chunks::<8>();
    let (b8, b_rest) = b_rest.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        sums[0] = _mm256_fmadd_ps(load(a), load(b), sums[0]);
    }
    let sum = _mm256_add_ps(
        _mm256_add_ps(sums[0], sums[1]),
        _mm256_add_ps(sums[2], sums[3]),
    );
    add_lanes(sum) + scalar::dot(a_rest, b_rest)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen_halves(bytes: &[u8], out: &mut [f32]) {
    let (bytes8, rest) = bytes.as_chunks::<16>();
    let (out8, out_rest) = out.as_chunks_mut::<8>();
    for (bytes, out) in bytes8.iter().zip(out8) {
        // SAFETY: the chunk has 16 bytes.
        store(out, unsafe {
            _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast()))
        });
    }
    TensorType::F16.dequantise(rest, out_rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let inverse = 1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * weight;
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gated_silu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (gate8, gate_rest) = gate.as_chunks::<8>();
    let (up8, up_rest) = up.as_chunks::<8>();
    let (out8, out_rest) = out.as_chunks_mut::<8>();
    for ((gate, up), out) in gate8.iter().zip(up8).zip(out8) {
        let gate = load(gate);
        let e = exp(_mm256_sub_ps(_mm256_setzero_ps(), gate));
        let silu = _mm256_div_ps(gate, _mm256_add_ps(_mm256_set1_ps(1.0), e));
        store(out, _mm256_mul_ps(silu, load(up)));
    }
    scalar::gated_silu(gate_rest, up_rest, out_rest);
}

/// tanh-approximated gelu(gate) * up: tanh(t) = 1 - 2 / (1 + e^2t), so gelu(x) = x - x / (1 + e^2t).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gated_gelu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (gate8, gate_rest) = gate.as_chunks::<8>();
    let (up8, up_rest) = up.as_chunks::<8>();
    let (out8, out_rest) = out.as_chunks_mut::<8>();
    let [first, third] = scalar::GELU.map(|c| _mm256_set1_ps(2.0 * c));
    for ((gate, up), out) in gate8.iter().zip(up8).zip(out8) {
        let gate = load(gate);
        let inner = _mm256_fmadd_ps(_mm256_mul_ps(gate, gate), third, first);
        let e = exp(_mm256_mul_ps(inner, gate));
        let off = _mm256_div_ps(gate, _mm256_add_ps(_mm256_set1_ps(1.0), e));
        store(out, _mm256_mul_ps(_mm256_sub_ps(gate, off), load(up)));
    }
    scalar::gated_gelu(gate_rest, up_rest, out_rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn exp_sums(x: &[f32], most: f32) -> (f64, f64) {
    let (mut sum, mut weighted) = (0f64, 0f64);
    let (floor, shift) = (_mm256_set1_ps(-87.0), _mm256_set1_ps(most));
    // Partial sums in f32 over a thousand elements, in f64 over those.
    for part in x.chunks(1024) {
        let (part8, rest) = part.as_chunks::<8>();
        let (mut sums, mut weights) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for x in part8 {
            let shifted = _mm256_sub_ps(load(x), shift);
            let kept = _mm256_cmp_ps::<_CMP_GT_OQ>(shifted, floor);
            let shifted = _mm256_max_ps(shifted, floor);
            let e = _mm256_and_ps(exp(shifted), kept);
            sums = _mm256_add_ps(sums, e);
            weights = _mm256_fmadd_ps(e, shifted, weights);
        }
        let (rest_sum, rest_weighted) = scalar::exp_sums(rest, most);
        sum += f64::from(add_lanes(sums)) + rest_sum;
        weighted += f64::from(add_lanes(weights)) + rest_weighted;
    }
    (sum, weighted)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn exp_all(x: &mut [f32]) {
    let (chunks, rest) = x.as_chunks_mut::<8>();
    for chunk in chunks {
        let x = load(chunk);
        let kept = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_set1_ps(-87.0));
        store(chunk, _mm256_and_ps(exp(x), kept));
    }
    scalar::exp_all(rest);
}

/// The same arithmetic as `tiles::round_row`, bit for bit.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn round_row(x: &[f32], out: &mut RoundedRow<'_>) {
    let sign = _mm256_set1_ps(-0.0);
    for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let x = x.as_chunks::<8>().0;
        let lanes = [load(&x[0]), load(&x[1]), load(&x[2]), load(&x[3])];
        let most = lanes.iter().fold(_mm256_setzero_ps(), |most, x| {
            _mm256_max_ps(most, _mm256_andnot_ps(sign, *x))
        });
        let largest = largest_lane(most);
        let inverse = _mm256_set1_ps(if largest > TINY { LIMIT / largest } else { 0.0 });
        let scale = largest / LIMIT;
        let [q0, q1, q2, q3] = lanes.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)));
        // Packing works within halves of the registers; the permutation restores the order.
        let words = [(q0, q1), (q2, q3)]
            .map(|(a, b)| _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi32(a, b)));
        let high =
            words.map(|w| _mm256_srai_epi16::<7>(_mm256_add_epi16(w, _mm256_set1_epi16(64))));
        let low = [0, 1].map(|i| _mm256_sub_epi16(words[i], _mm256_slli_epi16::<7>(high[i])));
        let bytes =
            |[a, b]: [__m256i; 2]| _mm256_permute4x64_epi64::<0xd8>(_mm256_packs_epi16(a, b));
        let one = _mm256_set1_epi16(1);
        let sums = _mm256_add_epi32(
            _mm256_madd_epi16(words[0], one),
            _mm256_madd_epi16(words[1], one),
        );
        let (high, low) = (bytes(high), bytes(low));
        let at = block * BLOCK..(block + 1) * BLOCK;
        let (word_out, high_out, low_out) = (
            &mut out.word[at.clone()],
            &mut out.high[at.clone()],
            &mut out.low[at],
        );
        // SAFETY: the three slices hold a block: 64, 32 and 32 bytes.
        unsafe {
            _mm256_storeu_si256(word_out.as_mut_ptr().cast(), words[0]);
            _mm256_storeu_si256(word_out.as_mut_ptr().add(16).cast(), words[1]);
            _mm256_storeu_si256(high_out.as_mut_ptr().cast(), high);
            _mm256_storeu_si256(low_out.as_mut_ptr().cast(), low);
        }
        let mut parts = [0i32; 8];
        // SAFETY: the array has 32 bytes.
        unsafe { _mm256_storeu_si256(parts.as_mut_ptr().cast(), sums) };
        out.scale[block] = scale;
        out.sum[block] = scale * parts.iter().sum::<i32>() as f32;
    }
}

/// Pointers to one row of rounded activations.
#[derive(Clone, Copy)]
pub(super) struct RowPointers {
    pub(super) high: *const i8,
    pub(super) low: *const i8,
    word: *const i16,
    scale: *const f32,
    sum: *const f32,
}

/// Pointers to `NT` rows of `columns` columns from `first` on.
#[inline]
pub(super) fn row_pointers<const NT: usize>(
    x: &Rounded,
    first: usize,
    columns: usize,
) -> [RowPointers; NT] {
    let blocks = columns / BLOCK;
    std::array::from_fn(|i| {
        let (c, b) = ((first + i) * columns, (first + i) * blocks);
        RowPointers {
            high: x.high[c..c + columns].as_ptr(),
            low: x.low[c..c + columns].as_ptr(),
            word: x.word[c..c + columns].as_ptr(),
            scale: x.scale[b..b + blocks].as_ptr(),
            sum: x.sum[b..b + blocks].as_ptr(),
        }
    })
}

/// Products of a group with `NT` rows from `first` on; returns `NT`. The sums of a row are formed in one
/// order, whatever `NT` is.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn group_products<const NT: usize>(
    tiles: &Tiles,
    group: usize,
    x: &Rounded,
    first: usize,
    write: &mut impl FnMut(usize, [f32; LANES]),
) -> usize {
    let blocks = tiles.columns / BLOCK;
    let rows = row_pointers::<NT>(x, first, tiles.columns);
    let group = tiles.group(group);
    // SAFETY: `row_pointers` gives rows of the tiles' width; the group has as many tiles of the type's size.
    let sums = unsafe {
        match tiles.kind {
            TensorType::Q4_0 => nibble_products::<NT, MIDDLE>(group, blocks, rows),
            TensorType::Q4_1 => nibble_products::<NT, OWN>(group, blocks, rows),
            TensorType::Q4K => nibble_products::<NT, SHARED>(group, blocks, rows),
            TensorType::Q5_0 => five_bit_products::<NT, MIDDLE>(group, blocks, rows),
            TensorType::Q5_1 => five_bit_products::<NT, OWN>(group, blocks, rows),
            TensorType::Q5K => five_bit_products::<NT, SHARED>(group, blocks, rows),
            TensorType::Iq4Nl => table_products::<NT>(group, blocks, rows),
            TensorType::Q6K => six_bit_products::<NT>(group, blocks, rows),
            _ => byte_products::<NT>(group, blocks, rows),
        }
    };
    for (i, sums) in sums.into_iter().enumerate() {
        let mut out = [0f32; LANES];
        store(&mut out, sums);
        write(first + i, out);
    }
    NT
}

/// Minima: the middle of the integers' range,
pub(super) const MIDDLE: u8 = 0;
/// each tile's own,
pub(super) const OWN: u8 = 1;
/// or integers with the scales of a header before every [`SHARE`] tiles.
pub(super) const SHARED: u8 = 2;

/// The scales and minima of a tile, less the sign of integer minima; `at` is where its scales begin.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn scales_and_minima<const MINIMA: u8>(
    at: *const u8,
    header: [__m256; 2],
    middle: f32,
) -> [__m256; 2] {
    // SAFETY: the caller's: the bytes of a tile from its scales on.
    unsafe {
        match MINIMA {
            SHARED => [
                _mm256_mul_ps(header[0], unsigned_bytes(at)),
                _mm256_mul_ps(header[1], unsigned_bytes(at.add(8))),
            ],
            OWN => [halves(at), halves(at.add(16))],
            _ => [
                halves(at),
                _mm256_mul_ps(halves(at), _mm256_set1_ps(middle)),
            ],
        }
    }
}

/// Adds a tile's products and minima to a row's sums.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn add_tile<const MINIMA: u8>(
    sums: __m256,
    products: __m256i,
    [scales, minima]: [__m256; 2],
    row: &RowPointers,
    block: usize,
) -> __m256 {
    // SAFETY: the caller's.
    let (scale, sum) = unsafe { (*row.scale.add(block), *row.sum.add(block)) };
    let (scale, sum) = (
        _mm256_mul_ps(scales, _mm256_set1_ps(scale)),
        _mm256_set1_ps(sum),
    );
    let sums = match MINIMA {
        SHARED => _mm256_fnmadd_ps(minima, sum, sums),
        _ => _mm256_fmadd_ps(minima, sum, sums),
    };
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sums)
}

/// 4-bit tiles. Two `maddubs` of up to 15 * 127 add up in 16 bits over the 8 vectors: 30,480 < 32,768.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn nibble_products<const NT: usize, const MINIMA: u8>(
    group: &[u8],
    blocks: usize,
    rows: [RowPointers; NT],
) -> [__m256; NT] {
    let (mask, one) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let tile_bytes = if MINIMA == OWN { 160 } else { 144 };
    let mut sums = [_mm256_setzero_ps(); NT];
    let mut header = [_mm256_setzero_ps(); 2];
    let mut tile = group.as_ptr();
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer; prefetching may name any address.
        unsafe {
            if MINIMA == SHARED && block % SHARE == 0 {
                header = [halves(tile), halves(tile.add(16))];
                tile = tile.add(32);
            }
            for line in 0..3 {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(AHEAD + 64 * line).cast());
            }
            let (mut high, mut low) = ([_mm256_setzero_si256(); NT], [_mm256_setzero_si256(); NT]);
            for v in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(v));
                let near = _mm256_and_si256(packed, mask);
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                for i in 0..NT {
                    let four = |bytes: *const i8, at: usize| {
                        _mm256_set1_epi32(bytes.cast::<i32>().add(block * 8 + at).read_unaligned())
                    };
                    let high_pair = _mm256_add_epi16(
                        _mm256_maddubs_epi16(near, four(rows[i].high, v)),
                        _mm256_maddubs_epi16(far, four(rows[i].high, v + 4)),
                    );
                    let low_pair = _mm256_add_epi16(
                        _mm256_maddubs_epi16(near, four(rows[i].low, v)),
                        _mm256_maddubs_epi16(far, four(rows[i].low, v + 4)),
                    );
                    high[i] = _mm256_add_epi16(high[i], high_pair);
                    low[i] = _mm256_add_epi16(low[i], low_pair);
                }
            }
            let factors = scales_and_minima::<MINIMA>(tile.add(128), header, -8.0);
            for i in 0..NT {
                let high = _mm256_slli_epi32::<7>(_mm256_madd_epi16(high[i], one));
                let products = _mm256_add_epi32(high, _mm256_madd_epi16(low[i], one));
                sums[i] = add_tile::<MINIMA>(sums[i], products, factors, &rows[i], block);
            }
            tile = tile.add(tile_bytes);
        }
    }
    sums
}

/// 5-bit tiles: nibbles and fifth bits joined, then as 8-bit weights.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn five_bit_products<const NT: usize, const MINIMA: u8>(
    group: &[u8],
    blocks: usize,
    rows: [RowPointers; NT],
) -> [__m256; NT] {
    let (mask, bit) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
    let tile_bytes = if MINIMA == OWN { 192 } else { 176 };
    let mut sums = [_mm256_setzero_ps(); NT];
    let mut header = [_mm256_setzero_ps(); 2];
    let mut tile = group.as_ptr();
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer; prefetching may name any address.
        unsafe {
            if MINIMA == SHARED && block % SHARE == 0 {
                header = [halves(tile), halves(tile.add(16))];
                tile = tile.add(32);
            }
            for line in 0..3 {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(AHEAD + 64 * line).cast());
            }
            let fifth = _mm256_loadu_si256(tile.add(128).cast());
            let mut products = [_mm256_setzero_si256(); NT];
            for p in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(p));
                // Bits p and 4 + p of each byte to the fifth place; what crosses bytes is masked out.
                let near_bits = _mm256_sll_epi16(fifth, _mm_cvtsi32_si128(4 - p as i32));
                let near = _mm256_and_si256(packed, mask);
                let near = _mm256_or_si256(near, _mm256_and_si256(near_bits, bit));
                add_pairs(near, block, 2 * p, &rows, &mut products);
                let far_bits = _mm256_srl_epi16(fifth, _mm_cvtsi32_si128(p as i32));
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                let far = _mm256_or_si256(far, _mm256_and_si256(far_bits, bit));
                add_pairs(far, block, 2 * p + 8, &rows, &mut products);
            }
            let factors = scales_and_minima::<MINIMA>(tile.add(160), header, -16.0);
            for i in 0..NT {
                sums[i] = add_tile::<MINIMA>(sums[i], products[i], factors, &rows[i], block);
            }
            tile = tile.add(tile_bytes);
        }
    }
    sums
}

/// Eight f16 at a pointer.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's: 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// Eight unsigned bytes at a pointer, as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn unsigned_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller's: 8 bytes.
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

/// Eight signed bytes at a pointer, as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) unsafe fn signed_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller's: 8 bytes.
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

/// Adds the products of 32 signed bytes, columns 2p to 2p + 3 of 8 rows, with each row of activations; `pair`
/// counts pairs of columns from the block's first.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_pairs<const NT: usize>(
    weights: __m256i,
    block: usize,
    pair: usize,
    rows: &[RowPointers; NT],
    sums: &mut [__m256i; NT],
) {
    let first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(weights));
    let second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(weights));
    for i in 0..NT {
        // SAFETY: the caller's.
        let [x, y] = [0, 1].map(|more| unsafe {
            let words = rows[i].word.cast::<i32>().add(block * 16 + pair + more);
            _mm256_set1_epi32(words.read_unaligned())
        });
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(first, x));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(second, y));
    }
}

/// IQ4_NL: nibbles looked up in the table of its values, then as 8-bit weights.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn table_products<const NT: usize>(
    group: &[u8],
    blocks: usize,
    rows: [RowPointers; NT],
) -> [__m256; NT] {
    let mask = _mm256_set1_epi8(15);
    // SAFETY: the table has 16 bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(IQ4_NL.as_ptr().cast()) });
    let mut sums = [_mm256_setzero_ps(); NT];
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer; prefetching may name any address.
        unsafe {
            let tile = group.as_ptr().add(block * 144);
            for line in 0..3 {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(AHEAD + 64 * line).cast());
            }
            let mut products = [_mm256_setzero_si256(); NT];
            for p in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(p));
                let near = _mm256_and_si256(packed, mask);
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                for (index, pair) in [(near, 2 * p), (far, 2 * p + 8)] {
                    let weights = _mm256_shuffle_epi8(table, index);
                    add_pairs(weights, block, pair, &rows, &mut products);
                }
            }
            let scales = halves(tile.add(128));
            for i in 0..NT {
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps(*rows[i].scale.add(block)));
                sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[i]), scale, sums[i]);
            }
        }
    }
    sums
}

/// Q6_K: nibbles and upper bits joined, then as 8-bit weights, with a scale for each 16 columns.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn six_bit_products<const NT: usize>(
    group: &[u8],
    blocks: usize,
    rows: [RowPointers; NT],
) -> [__m256; NT] {
    let (mask, upper, middle) = (
        _mm256_set1_epi8(15),
        _mm256_set1_epi8(48),
        _mm256_set1_epi8(32),
    );
    let mut sums = [_mm256_setzero_ps(); NT];
    let mut header = _mm256_setzero_ps();
    let mut tile = group.as_ptr();
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer; prefetching may name any address.
        unsafe {
            if block % SHARE == 0 {
                header = halves(tile);
                tile = tile.add(16);
            }
            for line in 0..4 {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(AHEAD + 64 * line).cast());
            }
            let mut near_sums = [_mm256_setzero_si256(); NT];
            let mut far_sums = [_mm256_setzero_si256(); NT];
            for p in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(p));
                let bits = _mm256_loadu_si256(tile.add(128).cast::<__m256i>().add(p % 2));
                // Two bits of each byte to the fifth and sixth place; what crosses bytes is masked out.
                let (near_bits, far_bits) = if p < 2 {
                    (_mm256_slli_epi16::<4>(bits), _mm256_slli_epi16::<2>(bits))
                } else {
                    (bits, _mm256_srli_epi16::<2>(bits))
                };
                let near = _mm256_and_si256(packed, mask);
                let near = _mm256_or_si256(near, _mm256_and_si256(near_bits, upper));
                let near = _mm256_sub_epi8(near, middle);
                add_pairs(near, block, 2 * p, &rows, &mut near_sums);
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                let far = _mm256_or_si256(far, _mm256_and_si256(far_bits, upper));
                let far = _mm256_sub_epi8(far, middle);
                add_pairs(far, block, 2 * p + 8, &rows, &mut far_sums);
            }
            let near_scales = _mm256_mul_ps(header, signed_bytes(tile.add(192)));
            let far_scales = _mm256_mul_ps(header, signed_bytes(tile.add(200)));
            for i in 0..NT {
                let of_row = _mm256_set1_ps(*rows[i].scale.add(block));
                let (near, far) = (
                    _mm256_mul_ps(near_scales, of_row),
                    _mm256_mul_ps(far_scales, of_row),
                );
                sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(near_sums[i]), near, sums[i]);
                sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(far_sums[i]), far, sums[i]);
            }
            tile = tile.add(208);
        }
    }
    sums
}

/// 8-bit tiles: weights widened to words, so that the activations keep their 15 bits at the same cost.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn byte_products<const NT: usize>(
    group: &[u8],
    blocks: usize,
    rows: [RowPointers; NT],
) -> [__m256; NT] {
    let mut sums = [_mm256_setzero_ps(); NT];
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer; prefetching may name any address.
        unsafe {
            let tile = group.as_ptr().add(block * 272);
            for line in 0..5 {
                _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_add(AHEAD + 64 * line).cast());
            }
            let mut products = [_mm256_setzero_si256(); NT];
            for v in 0..16 {
                let weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(tile.cast::<__m128i>().add(v)));
                for i in 0..NT {
                    let pair = rows[i]
                        .word
                        .cast::<i32>()
                        .add(block * 16 + v)
                        .read_unaligned();
                    products[i] = _mm256_add_epi32(
                        products[i],
                        _mm256_madd_epi16(weights, _mm256_set1_epi32(pair)),
                    );
                }
            }
            let scales = _mm256_cvtph_ps(_mm_loadu_si128(tile.add(256).cast()));
            for i in 0..NT {
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps(*rows[i].scale.add(block)));
                sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products[i]), scale, sums[i]);
            }
        }
    }
    sums
}
