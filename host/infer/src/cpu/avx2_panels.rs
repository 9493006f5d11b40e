#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and assembly, which read through pointers"
)]
//! Products of one or two groups with many rows of activations, for processors with AVX2, FMA and F16C.
//!
//! Products are formed two at a time after S. Winograd ("A New Algorithm for Inner Product", 1968):
//! `x0 w0 + x1 w1 = (x0 + w1) (x1 + w0) - x0 x1 - w0 w1`, where the last two terms are summed up once for a row and once for
//! a weight. Every step is exact in whole numbers, which may wrap around as long as the result fits. It halves the
//! multiplications; the processor has two units for those and four for additions.
//!
//! The groups' weights are spread out to words, as many blocks of them as the first cache holds; then each panel of rows
//! reads them. What a row gets is bit for bit what the kernels of few rows in `avx2` give it: the same integers, and the
//! same f32 operations in the same order.

use std::arch::asm;
use std::arch::x86_64::*;

use super::panels::{PAIRS, PANEL, PANEL_WORDS, Panels};
use super::tiles::{BLOCK, LANES, RoundedRow, SHARE, Tiles};
use crate::quant::{IQ4_NL, TensorType};

/// 32-bit words of a block of spread weights: 16 vectors of pairs of words, the scales of both halves, the minima, and
/// for each half less the sum of its products of neighbours.
const SPREAD: usize = 8 * PAIRS + 5 * LANES;
/// Most blocks that are spread out at once: two groups of them are 24 KiB.
const MOST_BLOCKS: usize = 20;

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

/// The sums of a panel's rows with `G` groups.
type Sums<const G: usize> = [[[f32; LANES]; G]; PANEL];

/// Products of `G` groups from `first` on with all panels, given to `write(row, group - first, products)`. `scratch` is
/// overwritten.
///
/// # Safety
/// AVX2, FMA and F16C were detected.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn group_products<const G: usize>(
    tiles: &Tiles,
    first: usize,
    panels: &Panels,
    scratch: &mut Vec<f32>,
    write: &mut impl FnMut(usize, usize, [f32; LANES]),
) {
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
    let (weights, kept) = scratch.split_at_mut(spread_words);
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
            // SAFETY: the panel has `part` blocks, and so has each group's share of the weights.
            unsafe {
                let weights = std::array::from_fn(|g| weights.as_ptr().add(g * size * SPREAD));
                let panel = panel.as_ptr();
                match form {
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
    // Of four columns the even ones first.
    let apart = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    for (block, out) in blocks {
        // For each half less the sums of products of neighbours, then for both.
        let mut corrections = [_mm_setzero_si128(); 3];
        for eight in 0..PAIRS / 4 {
            // SAFETY: row `r` has 8 words from there on, as compared above; `out` is a block of a panel, of which each
            // eight columns of four rows are 64 bytes.
            unsafe {
                let at = |row: usize| {
                    x.word
                        .as_ptr()
                        .add(row * columns + block * BLOCK + 8 * eight)
                };
                let [a, b, c, d] = [0, 1, 2, 3]
                    .map(|row| _mm_shuffle_epi8(_mm_loadu_si128(at(row).cast()), apart));
                let (near, far) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
                let (near2, far2) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
                let fours = [
                    [_mm_unpacklo_epi64(near, far), _mm_unpackhi_epi64(near, far)],
                    [
                        _mm_unpacklo_epi64(near2, far2),
                        _mm_unpackhi_epi64(near2, far2),
                    ],
                ];
                let to = out.as_mut_ptr().add(4 * PANEL * eight).cast::<__m128i>();
                for (index, [even, odd]) in fours.into_iter().enumerate() {
                    _mm_storeu_si128(to.add(2 * index), even);
                    _mm_storeu_si128(to.add(2 * index + 1), odd);
                    let products = _mm_madd_epi16(even, odd);
                    let half = &mut corrections[eight / (PAIRS / 8)];
                    *half = _mm_sub_epi32(*half, products);
                }
            }
        }
        corrections[2] = _mm_add_epi32(corrections[0], corrections[1]);
        let to = &mut out[PAIRS * PANEL + 2 * PANEL..][..3 * PANEL];
        for (to, correction) in to.as_chunks_mut::<PANEL>().0.iter_mut().zip(corrections) {
            // SAFETY: the chunk has 16 bytes.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), correction) };
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
            let corrections = panel.add(PAIRS * PANEL + 2 * PANEL).cast::<i32>();
            let of_weights = |g: usize, half: usize| {
                _mm256_loadu_si256(numbers[g].add((3 + half) * LANES).cast())
            };
            let begin = |of_rows: *const i32, of_weights: [__m256i; G]| {
                let mut sums = [of_weights; PANEL];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let of_row = _mm256_set1_epi32(*of_rows.add(row));
                    for sum in sums {
                        *sum = _mm256_add_epi32(*sum, of_row);
                    }
                }
                sums
            };
            if FORM == 2 {
                let mut near = begin(corrections, std::array::from_fn(|g| of_weights(g, 0)));
                add_pairs(weights, panel, PAIRS / 2, &mut near);
                let mut far = begin(
                    corrections.add(PANEL),
                    std::array::from_fn(|g| of_weights(g, 1)),
                );
                let behind = weights.map(|weights| weights.add(8 * PAIRS / 2));
                add_pairs(behind, panel.add(PAIRS / 2 * PANEL), PAIRS / 2, &mut far);
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
                let both = |g| _mm256_add_epi32(of_weights(g, 0), of_weights(g, 1));
                let mut whole = begin(corrections.add(2 * PANEL), std::array::from_fn(both));
                add_pairs(weights, panel, PAIRS, &mut whole);
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

/// Adds the products of a panel's rows over `pairs` pairs of columns, a multiple of 8, with those of neighbours, which
/// the sums begin less by.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_pairs<const G: usize>(
    weights: [*const f32; G],
    panel: *const u32,
    pairs: usize,
    sums: &mut [[__m256i; G]; PANEL],
) {
    // SAFETY: the caller's: `pairs` vectors of weights, `pairs` times 4 words of activations.
    unsafe {
        if G == 2 {
            for first in (0..pairs).step_by(8) {
                let weights = weights.map(|w| w.add(8 * first));
                add_eight_pairs(weights, panel.add(first * PANEL), sums);
            }
            return;
        }
        for pair in (0..pairs).step_by(2) {
            let x = panel.add(pair * PANEL).cast::<i32>();
            for (row, sums) in sums.iter_mut().enumerate() {
                let even = _mm256_set1_epi32(*x.add(row));
                let odd = _mm256_set1_epi32(*x.add(PANEL + row));
                for (sum, w) in sums.iter_mut().zip(weights) {
                    let w = w.add(8 * pair).cast::<__m256i>();
                    let one = _mm256_add_epi16(even, _mm256_loadu_si256(w.add(1)));
                    let other = _mm256_add_epi16(odd, _mm256_loadu_si256(w));
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(one, other));
                }
            }
        }
    }
}

/// Loads both groups' weights of four columns, the even ones and the odd ones.
macro_rules! load {
    ($four:literal) => {
        concat!(
            "vmovdqu {even0}, [{first} + 64*",
            $four,
            "]\n",
            "vmovdqu {odd0}, [{first} + 64*",
            $four,
            " + 32]\n",
            "vmovdqu {even1}, [{second} + 64*",
            $four,
            "]\n",
            "vmovdqu {odd1}, [{second} + 64*",
            $four,
            " + 32]\n",
        )
    };
}

/// Adds what a row and both groups give in four columns to the sums named.
macro_rules! row {
    ($four:literal, $row:literal, $sum0:literal, $sum1:literal) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [{panel} + 32*",
            $four,
            " + 4*",
            $row,
            "]\n",
            "vpbroadcastd {y}, dword ptr [{panel} + 32*",
            $four,
            " + 16 + 4*",
            $row,
            "]\n",
            "vpaddw {t}, {odd0}, {x}\n",
            "vpaddw {u}, {even0}, {y}\n",
            "vpaddw {x}, {odd1}, {x}\n",
            "vpaddw {y}, {even1}, {y}\n",
            "vpmaddwd {t}, {t}, {u}\n",
            "vpmaddwd {x}, {x}, {y}\n",
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

/// Four columns.
macro_rules! four {
    ($four:literal) => {
        concat!(
            load!($four),
            row!($four, 0, "s0", "s1"),
            row!($four, 1, "s2", "s3"),
            row!($four, 2, "s4", "s5"),
            row!($four, 3, "s6", "s7"),
        )
    };
}

/// Adds 8 pairs of columns to the sums of two groups.
///
/// In assembly, because the compiler reorders the additions of what it unrolls so that the sums do not fit into the
/// registers any more: all 16 are used.
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
            four!(0), four!(1), four!(2), four!(3),
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
            even0 = out(ymm_reg) _,
            odd0 = out(ymm_reg) _,
            even1 = out(ymm_reg) _,
            odd1 = out(ymm_reg) _,
            x = out(ymm_reg) _,
            y = out(ymm_reg) _,
            t = out(ymm_reg) _,
            u = out(ymm_reg) _,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    *sums = [a, b, c, d];
}

/// Where the parts of a block of spread weights are written.
struct Out(*mut f32);

impl Out {
    /// Writes the words of two columns of four: the even ones (`pair` is even) or the odd ones.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn pair(&self, pair: usize, words: __m256i) {
        // SAFETY: the caller's: the pointer is that of a block, and `pair` below 16.
        unsafe { _mm256_storeu_si256(self.0.add(8 * pair).cast(), words) }
    }

    /// Writes the scales of the halves and the minima, and sums up the products of neighbours, after the pairs were
    /// written.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn numbers(&self, first: __m256, second: __m256, minima: __m256) {
        // SAFETY: the caller's: the pointer is that of a block.
        unsafe {
            for (index, numbers) in [first, second, minima].into_iter().enumerate() {
                _mm256_storeu_ps(self.0.add(8 * PAIRS + LANES * index), numbers);
            }
            for half in 0..2 {
                let mut sum = _mm256_setzero_si256();
                for four in 0..PAIRS / 4 {
                    let at = self
                        .0
                        .add(8 * (half * PAIRS / 2 + 2 * four))
                        .cast::<__m256i>();
                    let products =
                        _mm256_madd_epi16(_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)));
                    sum = _mm256_sub_epi32(sum, products);
                }
                _mm256_storeu_si256(self.0.add(8 * PAIRS + LANES * (3 + half)).cast(), sum);
            }
        }
    }

    /// Writes columns 2p to 2p + 3 from signed bytes, of which byte 2r + j of each half is row r's.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn bytes(&self, pair: usize, weights: __m256i) {
        let first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(weights));
        let second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(weights));
        let even = _mm256_blend_epi16::<0xaa>(first, _mm256_slli_epi32::<16>(second));
        let odd = _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(first), second);
        // SAFETY: the caller's.
        unsafe {
            self.pair(pair, even);
            self.pair(pair + 1, odd);
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
    // Bytes 4r and 4r + 2 of each row to words, and bytes 4r + 1 and 4r + 3.
    let [front, back] = [0i8, 1].map(|first| {
        let of = |row: i8, j: i8| 4 * row + first + 2 * j;
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
