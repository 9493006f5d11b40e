#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and assembly, which read through pointers"
)]
//! Products of one or two groups with many rows of activations, for processors with AVX2, FMA and F16C.
//!
//! The groups' weights are spread out to words, as many blocks of them as the first cache holds; then each panel of rows
//! reads them. What a row gets is bit for bit what the kernels of few rows in `avx2` give it: the same integers, and the
//! same f32 operations in the same order.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx2::{self, MIDDLE, OWN, SHARED, halves, signed_bytes};
use super::avx512;
use super::panels::{PAIRS, PANEL, PANEL_WORDS, Panels};
use super::tiles::{BLOCK, LANES, RoundedRow, SHARE, Tiles};
use crate::quant::{IQ4_NL, TensorType};

/// f32 words of a block of spread weights: 16 vectors of pairs of words, the scales of both halves, the minima.
pub(super) const SPREAD: usize = 8 * PAIRS + 3 * LANES;
/// Most blocks that are spread out at once: two groups of them are 24 KiB.
const MOST_BLOCKS: usize = 20;

/// How the sums of a block become f32.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One scale.
    Plain,
    /// One scale and a minimum.
    Minima,
    /// A scale for each half.
    Halves,
}

/// The sums of a panel's rows with `G` groups.
type Sums<const G: usize> = [[[f32; LANES]; G]; PANEL];

/// Products of `G` groups from `first` on with all panels, given to `write(row, group - first, products)`. `scratch` is
/// overwritten. `WIDE`: with the instructions of AVX-512 and VNNI, for two groups.
///
/// # Safety
/// AVX2, FMA and F16C were detected, and with `WIDE` what `avx512` needs.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn group_products<const G: usize, const WIDE: bool>(
    tiles: &Tiles,
    first: usize,
    panels: &Panels,
    scratch: &mut Vec<f32>,
    write: &mut impl FnMut(usize, usize, [f32; LANES]),
) {
    const { assert!(!WIDE || G == 2, "the wide kernel is for two groups") };
    let blocks = tiles.columns / BLOCK;
    // Parts of about one size. A part begins with a header, where there are headers.
    let mut size = blocks.div_ceil(blocks.div_ceil(MOST_BLOCKS).max(1));
    if tiles.shared() {
        size = size.next_multiple_of(SHARE);
    }
    let count = panels.panels().len();
    let spread_words = G * size * SPREAD;
    let kept_words = if size < blocks {
        count * G * PANEL * LANES
    } else {
        0
    };
    if scratch.len() < spread_words + kept_words {
        scratch.resize(spread_words + kept_words, 0.0);
    }
    let (weights, kept) = scratch[..spread_words + kept_words].split_at_mut(spread_words);
    let mut from = 0;
    while from < blocks {
        let part = size.min(blocks - from);
        let mut form = Form::Plain;
        for (group, out) in (first..first + G).zip(weights.chunks_exact_mut(size * SPREAD)) {
            form = spread(tiles, tiles.group_from(group, from), part, out);
        }
        for (index, panel) in panels.panels().enumerate() {
            let panel = &panel[from * PANEL_WORDS..(from + part) * PANEL_WORDS];
            let mut sums: Sums<G> = [[[0.0; LANES]; G]; PANEL];
            let mut kept = kept
                .as_chunks_mut::<{ LANES }>()
                .0
                .chunks_exact_mut(PANEL * G);
            let kept = kept.nth(index).unwrap_or_default().as_chunks_mut::<G>().0;
            if from > 0 {
                sums.copy_from_slice(kept);
            }
            // SAFETY: the panel has `part` blocks, and so has each group's share of the weights; the caller's, for `WIDE`.
            unsafe {
                let weights = std::array::from_fn(|g| weights.as_ptr().add(g * size * SPREAD));
                let panel = panel.as_ptr();
                match form {
                    _ if WIDE => {
                        let both = [weights[0], weights[G - 1]];
                        avx512::panel_products(form, both, panel, part, sums.as_mut_ptr().cast());
                    }
                    Form::Plain => products::<0, G>(weights, panel, part, &mut sums),
                    Form::Minima => products::<1, G>(weights, panel, part, &mut sums),
                    Form::Halves => products::<2, G>(weights, panel, part, &mut sums),
                }
            }
            if from + part < blocks {
                kept.copy_from_slice(&sums);
                continue;
            }
            for (lane, sums) in sums.into_iter().enumerate() {
                for (group, sums) in sums.into_iter().enumerate() {
                    write(index * PANEL + lane, group, sums);
                }
            }
        }
        from += part;
    }
}

/// As [`pack`](super::panels::pack).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn pack(x: &RoundedRow<'_>, panel: &mut [u32]) {
    let (columns, blocks) = (x.word.len() / PANEL, x.scale.len() / PANEL);
    assert!(columns == blocks * BLOCK && x.sum.len() == x.scale.len());
    let blocks = panel.chunks_exact_mut(PANEL_WORDS).enumerate().take(blocks);
    let stride = x.scale.len() / PANEL;
    for (block, out) in blocks {
        for four in 0..PAIRS / 4 {
            // SAFETY: row `r` has 8 words from there on, as compared above; `out` is a block of a panel, of which each
            // four pairs of four rows are 64 bytes.
            unsafe {
                let at = |row: usize| {
                    x.word
                        .as_ptr()
                        .add(row * columns + block * BLOCK + 8 * four)
                };
                let [a, b, c, d] = [0, 1, 2, 3].map(|row| _mm_loadu_si128(at(row).cast()));
                let (near, far) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
                let (near2, far2) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
                let to = out.as_mut_ptr().add(4 * PANEL * four).cast::<__m128i>();
                _mm_storeu_si128(to, _mm_unpacklo_epi64(near, far));
                _mm_storeu_si128(to.add(1), _mm_unpackhi_epi64(near, far));
                _mm_storeu_si128(to.add(2), _mm_unpacklo_epi64(near2, far2));
                _mm_storeu_si128(to.add(3), _mm_unpackhi_epi64(near2, far2));
            }
        }
        for row in 0..PANEL {
            out[PAIRS * PANEL + row] = x.scale[row * stride + block].to_bits();
            out[PAIRS * PANEL + PANEL + row] = x.sum[row * stride + block].to_bits();
        }
    }
}

/// One panel with `G` groups. `FORM`: 0 plain, 1 with minima, 2 in halves.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn products<const FORM: u8, const G: usize>(
    mut weights: [*const f32; G],
    mut panel: *const u32,
    blocks: usize,
    sums: &mut Sums<G>,
) {
    for _ in 0..blocks {
        // SAFETY: the caller's, for all pointers.
        unsafe {
            let numbers = weights.map(|weights| weights.add(8 * PAIRS));
            let scales = panel.add(PAIRS * PANEL).cast::<f32>();
            if FORM == 2 {
                let near = add_pairs(weights, panel, PAIRS / 2);
                let behind = weights.map(|weights| weights.add(8 * PAIRS / 2));
                let far = add_pairs(behind, panel.add(PAIRS / 2 * PANEL), PAIRS / 2);
                for row in 0..PANEL {
                    let of_row = _mm256_broadcast_ss(&*scales.add(row));
                    for g in 0..G {
                        let [first, second] =
                            [0, LANES].map(|at| _mm256_loadu_ps(numbers[g].add(at)));
                        let sum = &mut sums[row][g];
                        let mut all = _mm256_loadu_ps(sum.as_ptr());
                        let near = _mm256_cvtepi32_ps(near[row][g]);
                        all = _mm256_fmadd_ps(near, _mm256_mul_ps(first, of_row), all);
                        let far = _mm256_cvtepi32_ps(far[row][g]);
                        all = _mm256_fmadd_ps(far, _mm256_mul_ps(second, of_row), all);
                        _mm256_storeu_ps(sum.as_mut_ptr(), all);
                    }
                }
            } else {
                let whole = add_pairs(weights, panel, PAIRS);
                for row in 0..PANEL {
                    let of_row = _mm256_broadcast_ss(&*scales.add(row));
                    let sum_of_row = _mm256_broadcast_ss(&*scales.add(PANEL + row));
                    for g in 0..G {
                        let own = _mm256_loadu_ps(numbers[g]);
                        let sum = &mut sums[row][g];
                        let mut all = _mm256_loadu_ps(sum.as_ptr());
                        if FORM == 1 {
                            let minima = _mm256_loadu_ps(numbers[g].add(2 * LANES));
                            all = _mm256_fmadd_ps(minima, sum_of_row, all);
                        }
                        let whole = _mm256_cvtepi32_ps(whole[row][g]);
                        all = _mm256_fmadd_ps(whole, _mm256_mul_ps(own, of_row), all);
                        _mm256_storeu_ps(sum.as_mut_ptr(), all);
                    }
                }
            }
            weights = weights.map(|weights| weights.add(SPREAD));
            panel = panel.add(PANEL_WORDS);
        }
    }
}

/// The integer sums of a panel's rows over `pairs` pairs of columns, a multiple of 8.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_pairs<const G: usize>(
    weights: [*const f32; G],
    panel: *const u32,
    pairs: usize,
) -> [[__m256i; G]; PANEL] {
    let mut sums = [[_mm256_setzero_si256(); G]; PANEL];
    // SAFETY: the caller's: `pairs` vectors of weights, `pairs` times 4 words of activations.
    unsafe {
        if G == 2 {
            for eight in (0..pairs).step_by(8) {
                add_eight_pairs(
                    weights.map(|w| w.add(8 * eight)),
                    panel.add(eight * PANEL),
                    &mut sums,
                );
            }
            return sums;
        }
        for pair in 0..pairs {
            let x = panel.add(pair * PANEL).cast::<i32>();
            for (row, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_epi32(*x.add(row));
                for (sum, w) in sums.iter_mut().zip(weights) {
                    let w = _mm256_loadu_si256(w.add(8 * pair).cast());
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(w, x));
                }
            }
        }
    }
    sums
}

/// Loads both groups' weights of a pair of columns.
macro_rules! load {
    ($pair:literal) => {
        concat!(
            "vmovdqu {w0}, [{first} + 32*",
            $pair,
            "]\n",
            "vmovdqu {w1}, [{second} + 32*",
            $pair,
            "]\n",
        )
    };
}

/// Adds the products of a row's pair with both groups to the sums named.
macro_rules! row {
    ($pair:literal, $row:literal, $sum0:literal, $sum1:literal) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [{panel} + 16*",
            $pair,
            " + 4*",
            $row,
            "]\n",
            "vpmaddwd {t}, {w0}, {x}\n",
            "vpmaddwd {x}, {w1}, {x}\n",
            "vpaddd {",
            $sum0,
            "}, {",
            $sum0,
            "}, {t}\n",
            "vpaddd {",
            $sum1,
            "}, {",
            $sum1,
            "}, {x}\n",
        )
    };
}

/// One pair of columns.
macro_rules! pair {
    ($pair:literal) => {
        concat!(
            load!($pair),
            row!($pair, 0, "s0", "s1"),
            row!($pair, 1, "s2", "s3"),
            row!($pair, 2, "s4", "s5"),
            row!($pair, 3, "s6", "s7"),
        )
    };
}

/// Adds 8 pairs of columns to the sums of two groups; what there is beside two is ignored.
///
/// In assembly, because the compiler reorders the additions of what it unrolls so that the sums do not fit into the
/// registers any more.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_eight_pairs<const G: usize>(
    weights: [*const f32; G],
    panel: *const u32,
    sums: &mut [[__m256i; G]; PANEL],
) {
    let last = G - 1;
    let [mut a, mut b, mut c, mut d] = *sums;
    // SAFETY: the caller's, for what the pointers name; nothing is written but the registers named.
    unsafe {
        asm!(
            pair!(0), pair!(1), pair!(2), pair!(3), pair!(4), pair!(5), pair!(6), pair!(7),
            first = in(reg) weights[0],
            second = in(reg) weights[last],
            panel = in(reg) panel,
            s0 = inout(ymm_reg) a[0],
            s1 = inout(ymm_reg) a[last],
            s2 = inout(ymm_reg) b[0],
            s3 = inout(ymm_reg) b[last],
            s4 = inout(ymm_reg) c[0],
            s5 = inout(ymm_reg) c[last],
            s6 = inout(ymm_reg) d[0],
            s7 = inout(ymm_reg) d[last],
            w0 = out(ymm_reg) _,
            w1 = out(ymm_reg) _,
            x = out(ymm_reg) _,
            t = out(ymm_reg) _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    *sums = [a, b, c, d];
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

/// The scales and minima of a tile; `at` is where its scales begin.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn scales_and_minima<const MINIMA: u8>(
    at: *const u8,
    header: [__m256; 2],
    middle: f32,
) -> [__m256; 2] {
    // SAFETY: the caller's: the bytes of a tile from its scales on.
    let [scales, minima] = unsafe { avx2::scales_and_minima::<MINIMA>(at, header, middle) };
    match MINIMA {
        SHARED => [scales, _mm256_xor_ps(minima, _mm256_set1_ps(-0.0))],
        _ => [scales, minima],
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
