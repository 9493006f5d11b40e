#![allow(unsafe_code, reason = "SIMD intrinsics, which read through pointers")]
//! Products of a group of weights with many rows of activations, for processors with AVX2, FMA and F16C.
//!
//! The group's weights are spread out to words once; then each panel of 8 rows reads them. What a row gets is bit for
//! bit what the kernels of few rows in `avx2` give it: the same integers, and the same f32 operations in the same
//! order.

use std::arch::x86_64::*;

use super::panels::{PAIRS, PANEL, PANEL_WORDS, Panels};
use super::tiles::{BLOCK, LANES, SHARE, Tiles};
use crate::quant::{IQ4_NL, TensorType};

/// f32 words of a block of spread weights: 16 vectors of pairs of words, the scales of both halves, the minima.
const SPREAD: usize = 8 * PAIRS + 3 * LANES;

/// How the sums of a block become f32.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One scale.
    Plain,
    /// One scale and a minimum.
    Minima,
    /// A scale for each half.
    Halves,
}

/// Products of a group with all panels, given to `write(row, products)`. `scratch` is overwritten.
///
/// # Safety
/// AVX2, FMA and F16C were detected.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn group_products(
    tiles: &Tiles,
    group: usize,
    panels: &Panels,
    scratch: &mut Vec<f32>,
    write: &mut impl FnMut(usize, [f32; LANES]),
) {
    let blocks = tiles.columns / BLOCK;
    scratch.resize(blocks * SPREAD, 0.0);
    let form = spread(tiles, tiles.group(group), blocks, scratch);
    for (index, panel) in panels.panels().enumerate() {
        debug_assert_eq!(panel.len(), blocks * PANEL_WORDS);
        let mut out = [[0f32; LANES]; PANEL];
        // SAFETY: both have `blocks` blocks of their size.
        unsafe {
            match form {
                Form::Plain => products::<0>(scratch.as_ptr(), panel.as_ptr(), blocks, &mut out),
                Form::Minima => products::<1>(scratch.as_ptr(), panel.as_ptr(), blocks, &mut out),
                Form::Halves => products::<2>(scratch.as_ptr(), panel.as_ptr(), blocks, &mut out),
            }
        }
        for (lane, out) in out.into_iter().enumerate() {
            write(index * PANEL + lane, out);
        }
    }
}

/// One panel. `FORM`: 0 plain, 1 with minima, 2 in halves.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn products<const FORM: u8>(
    mut weights: *const f32,
    mut panel: *const u32,
    blocks: usize,
    sums: &mut [[f32; LANES]; PANEL],
) {
    for _ in 0..blocks {
        // SAFETY: the caller's, for both pointers.
        unsafe {
            let numbers = weights.add(8 * PAIRS);
            let scales = panel.add(PAIRS * PANEL).cast::<f32>();
            if FORM == 2 {
                let near = add_pairs(weights, panel, PAIRS / 2);
                let far = add_pairs(
                    weights.add(8 * PAIRS / 2),
                    panel.add(PAIRS / 2 * PANEL),
                    PAIRS / 2,
                );
                let [first, second] = [0, LANES].map(|at| _mm256_loadu_ps(numbers.add(at)));
                for row in 0..PANEL {
                    let of_row = _mm256_broadcast_ss(&*scales.add(row));
                    let sum = &mut sums[row];
                    let mut all = _mm256_loadu_ps(sum.as_ptr());
                    all = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(near[row]),
                        _mm256_mul_ps(first, of_row),
                        all,
                    );
                    all = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(far[row]),
                        _mm256_mul_ps(second, of_row),
                        all,
                    );
                    _mm256_storeu_ps(sum.as_mut_ptr(), all);
                }
            } else {
                let whole = add_pairs(weights, panel, PAIRS);
                let own = _mm256_loadu_ps(numbers);
                let minima = _mm256_loadu_ps(numbers.add(2 * LANES));
                for row in 0..PANEL {
                    let of_row = _mm256_broadcast_ss(&*scales.add(row));
                    let sum = &mut sums[row];
                    let mut all = _mm256_loadu_ps(sum.as_ptr());
                    if FORM == 1 {
                        let sum_of_row = _mm256_broadcast_ss(&*scales.add(PANEL + row));
                        all = _mm256_fmadd_ps(minima, sum_of_row, all);
                    }
                    all = _mm256_fmadd_ps(
                        _mm256_cvtepi32_ps(whole[row]),
                        _mm256_mul_ps(own, of_row),
                        all,
                    );
                    _mm256_storeu_ps(sum.as_mut_ptr(), all);
                }
            }
            weights = weights.add(SPREAD);
            panel = panel.add(PANEL_WORDS);
        }
    }
}

/// The integer sums of 8 rows over `pairs` pairs of columns.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_pairs(weights: *const f32, panel: *const u32, pairs: usize) -> [__m256i; PANEL] {
    let mut sums = [_mm256_setzero_si256(); PANEL];
    for pair in 0..pairs {
        // SAFETY: the caller's: `pairs` vectors of weights, `pairs` times 8 words of activations.
        unsafe {
            let w = _mm256_loadu_si256(weights.add(8 * pair).cast());
            let x = panel.add(pair * PANEL).cast::<i32>();
            for (row, sum) in sums.iter_mut().enumerate() {
                let product = _mm256_madd_epi16(w, _mm256_set1_epi32(*x.add(row)));
                *sum = _mm256_add_epi32(*sum, product);
            }
        }
    }
    sums
}

/// Where the parts of a block of spread weights are written.
struct Out(*mut f32);

impl Out {
    /// Writes the pairs of words of pair `pair`.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn pair(&self, pair: usize, words: __m256i) {
        // SAFETY: the caller's: the pointer is that of a block, and `pair` below 16.
        unsafe { _mm256_storeu_si256(self.0.add(8 * pair).cast(), words) }
    }

    /// Writes the scales of the halves, and the minima.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn numbers(&self, first: __m256, second: __m256, minima: __m256) {
        for (index, numbers) in [first, second, minima].into_iter().enumerate() {
            // SAFETY: the caller's: the pointer is that of a block.
            unsafe { _mm256_storeu_ps(self.0.add(8 * PAIRS + LANES * index), numbers) }
        }
    }

    /// Writes columns 2p to 2p + 3 from signed bytes, of which byte 2r + j of each half is row r's.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn bytes(&self, pair: usize, weights: __m256i) {
        let first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(weights));
        let second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(weights));
        // SAFETY: the caller's.
        unsafe {
            self.pair(pair, first);
            self.pair(pair + 1, second);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's: 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn unsigned_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller's: 8 bytes.
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn signed_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller's: 8 bytes.
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

/// Spreads a group's tiles out to words.
#[target_feature(enable = "avx2,fma,f16c")]
fn spread(tiles: &Tiles, group: &[u8], blocks: usize, out: &mut [f32]) -> Form {
    assert!(out.len() >= blocks * SPREAD, "room for {blocks} blocks");
    let out = out.as_mut_ptr();
    // SAFETY: `out` has that room, as asserted, and the group has `blocks` tiles of its type.
    unsafe {
        match tiles.kind {
            TensorType::Q4_0 => nibbles::<MIDDLE>(group, blocks, out),
            TensorType::Q4_1 => nibbles::<OWN>(group, blocks, out),
            TensorType::Q4K => nibbles::<SHARED>(group, blocks, out),
            TensorType::Q5_0 => five_bits::<MIDDLE>(group, blocks, out),
            TensorType::Q5_1 => five_bits::<OWN>(group, blocks, out),
            TensorType::Q5K => five_bits::<SHARED>(group, blocks, out),
            TensorType::Iq4Nl => table(group, blocks, out),
            TensorType::Q6K => {
                six_bits(group, blocks, out);
                return Form::Halves;
            }
            _ => {
                bytes(group, blocks, out);
                return Form::Plain;
            }
        }
    }
    match tiles.kind {
        TensorType::Iq4Nl => Form::Plain,
        _ => Form::Minima,
    }
}

/// Minima as in `avx2`.
const MIDDLE: u8 = 0;
const OWN: u8 = 1;
const SHARED: u8 = 2;

/// The scales and minima of a tile; `at` is where its scales begin.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn scales_and_minima<const MINIMA: u8>(
    at: *const u8,
    header: [__m256; 2],
    middle: f32,
) -> [__m256; 2] {
    // SAFETY: the caller's: the bytes of a tile from its scales on.
    unsafe {
        match MINIMA {
            SHARED => {
                let minima = _mm256_mul_ps(header[1], unsigned_bytes(at.add(8)));
                [
                    _mm256_mul_ps(header[0], unsigned_bytes(at)),
                    _mm256_xor_ps(minima, _mm256_set1_ps(-0.0)),
                ]
            }
            OWN => [halves(at), halves(at.add(16))],
            _ => [
                halves(at),
                _mm256_mul_ps(halves(at), _mm256_set1_ps(middle)),
            ],
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles<const MINIMA: u8>(group: &[u8], blocks: usize, out: *mut f32) {
    let mask = _mm256_set1_epi8(15);
    // Bytes 4r and 4r + 1 of each row to words, and bytes 4r + 2 and 4r + 3.
    let [front, back] = [0i8, 2].map(|first| {
        let of = |row: i8, j: i8| 4 * row + first + j;
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| [of(row, 0), -1, of(row, 1), -1]);
        _mm256_broadcastsi128_si256(_mm_setr_epi8(
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ))
    });
    let tile_bytes = if MINIMA == OWN { 160 } else { 144 };
    let mut header = [_mm256_setzero_ps(); 2];
    let mut tile = group.as_ptr();
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer.
        unsafe {
            let out = Out(out.add(block * SPREAD));
            if MINIMA == SHARED && block % SHARE == 0 {
                header = [0, 16].map(|at| halves(tile.add(at)));
                tile = tile.add(32);
            }
            for v in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(v));
                let near = _mm256_and_si256(packed, mask);
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                for (bytes, pair) in [(near, 2 * v), (far, 2 * v + 8)] {
                    out.pair(pair, _mm256_shuffle_epi8(bytes, front));
                    out.pair(pair + 1, _mm256_shuffle_epi8(bytes, back));
                }
            }
            let [scales, minima] = scales_and_minima::<MINIMA>(tile.add(128), header, -8.0);
            out.numbers(scales, scales, minima);
            tile = tile.add(tile_bytes);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn five_bits<const MINIMA: u8>(group: &[u8], blocks: usize, out: *mut f32) {
    let (mask, bit) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
    let tile_bytes = if MINIMA == OWN { 192 } else { 176 };
    let mut header = [_mm256_setzero_ps(); 2];
    let mut tile = group.as_ptr();
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer.
        unsafe {
            let out = Out(out.add(block * SPREAD));
            if MINIMA == SHARED && block % SHARE == 0 {
                header = [0, 16].map(|at| halves(tile.add(at)));
                tile = tile.add(32);
            }
            let fifth = _mm256_loadu_si256(tile.add(128).cast());
            for p in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(p));
                // Bits p and 4 + p of each byte to the fifth place; what crosses bytes is masked out.
                let near_bits = _mm256_sll_epi16(fifth, _mm_cvtsi32_si128(4 - p as i32));
                let near = _mm256_and_si256(packed, mask);
                out.bytes(
                    2 * p,
                    _mm256_or_si256(near, _mm256_and_si256(near_bits, bit)),
                );
                let far_bits = _mm256_srl_epi16(fifth, _mm_cvtsi32_si128(p as i32));
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                out.bytes(
                    2 * p + 8,
                    _mm256_or_si256(far, _mm256_and_si256(far_bits, bit)),
                );
            }
            let [scales, minima] = scales_and_minima::<MINIMA>(tile.add(160), header, -16.0);
            out.numbers(scales, scales, minima);
            tile = tile.add(tile_bytes);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn table(group: &[u8], blocks: usize, out: *mut f32) {
    let mask = _mm256_set1_epi8(15);
    // SAFETY: the table has 16 bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(IQ4_NL.as_ptr().cast()) });
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer.
        unsafe {
            let (out, tile) = (
                Out(out.add(block * SPREAD)),
                group.as_ptr().add(block * 144),
            );
            for p in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(p));
                let near = _mm256_and_si256(packed, mask);
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                out.bytes(2 * p, _mm256_shuffle_epi8(table, near));
                out.bytes(2 * p + 8, _mm256_shuffle_epi8(table, far));
            }
            let scales = halves(tile.add(128));
            out.numbers(scales, scales, _mm256_setzero_ps());
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six_bits(group: &[u8], blocks: usize, out: *mut f32) {
    let (mask, upper, middle) = (
        _mm256_set1_epi8(15),
        _mm256_set1_epi8(48),
        _mm256_set1_epi8(32),
    );
    let mut header = _mm256_setzero_ps();
    let mut tile = group.as_ptr();
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer.
        unsafe {
            let out = Out(out.add(block * SPREAD));
            if block % SHARE == 0 {
                header = halves(tile);
                tile = tile.add(16);
            }
            for p in 0..4 {
                let packed = _mm256_loadu_si256(tile.cast::<__m256i>().add(p));
                let bits = _mm256_loadu_si256(tile.add(128).cast::<__m256i>().add(p % 2));
                let (near_bits, far_bits) = if p < 2 {
                    (_mm256_slli_epi16::<4>(bits), _mm256_slli_epi16::<2>(bits))
                } else {
                    (bits, _mm256_srli_epi16::<2>(bits))
                };
                let near = _mm256_and_si256(packed, mask);
                let near = _mm256_or_si256(near, _mm256_and_si256(near_bits, upper));
                out.bytes(2 * p, _mm256_sub_epi8(near, middle));
                let far = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), mask);
                let far = _mm256_or_si256(far, _mm256_and_si256(far_bits, upper));
                out.bytes(2 * p + 8, _mm256_sub_epi8(far, middle));
            }
            let near = _mm256_mul_ps(header, signed_bytes(tile.add(192)));
            let far = _mm256_mul_ps(header, signed_bytes(tile.add(200)));
            out.numbers(near, far, _mm256_setzero_ps());
            tile = tile.add(208);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes(group: &[u8], blocks: usize, out: *mut f32) {
    for block in 0..blocks {
        // SAFETY: the caller's, for each pointer.
        unsafe {
            let (out, tile) = (
                Out(out.add(block * SPREAD)),
                group.as_ptr().add(block * 272),
            );
            for v in 0..8 {
                out.bytes(2 * v, _mm256_loadu_si256(tile.cast::<__m256i>().add(v)));
            }
            let scales = halves(tile.add(256));
            out.numbers(scales, scales, _mm256_setzero_ps());
        }
    }
}
