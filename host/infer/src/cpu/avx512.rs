#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and assembly, which read through pointers"
)]
//! The products for processors with AVX-512 and VNNI, whose instructions multiply and add up at once; for all else such a
//! processor runs the AVX2 kernels.
//!
//! The integers are the same and the f32 operations are those of `avx2` and `avx2_panels` in their order, so a row gets the
//! same bits from either. Every function here may be called only where all of the features that it names were detected
//! (`kernels::Level::Avx512`).

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{self, AHEAD, MIDDLE, OWN, RowPointers, SHARED, add_tile, halves};
use super::avx2_panels::{Form, SPREAD};
use super::panels::{PAIRS, PANEL, PANEL_WORDS};
use super::tiles::{BLOCK, LANES, Rounded, SHARE, Tiles};
use crate::quant::TensorType;

/// Products of a group with `NT` rows from `first` on; returns `NT`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn group_products<const NT: usize>(
    tiles: &Tiles,
    group: usize,
    x: &Rounded,
    first: usize,
    write: &mut impl FnMut(usize, [f32; LANES]),
) -> usize {
    let blocks = tiles.columns / BLOCK;
    let rows = avx2::row_pointers::<NT>(x, first, tiles.columns);
    let bytes = tiles.group(group);
    // SAFETY: `row_pointers` gives rows of the tiles' width; the group has as many tiles of the type's size.
    let sums = unsafe {
        match tiles.kind {
            TensorType::Q4_0 => nibble_products::<NT, MIDDLE>(bytes, blocks, rows),
            TensorType::Q4_1 => nibble_products::<NT, OWN>(bytes, blocks, rows),
            TensorType::Q4K => nibble_products::<NT, SHARED>(bytes, blocks, rows),
            // Their tiles keep columns in pairs, and reading them takes longer than the arithmetic.
            _ => return avx2::group_products::<NT>(tiles, group, x, first, write),
        }
    };
    for (i, sums) in sums.into_iter().enumerate() {
        let mut out = [0f32; LANES];
        avx2::store(&mut out, sums);
        write(first + i, out);
    }
    NT
}

/// 4-bit tiles: each instruction adds four products of both bytes of the activations to each lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn nibble_products<const NT: usize, const MINIMA: u8>(
    group: &[u8],
    blocks: usize,
    rows: [RowPointers; NT],
) -> [__m256; NT] {
    let mask = _mm256_set1_epi8(15);
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
                    for (sum, plane) in [(&mut high[i], rows[i].high), (&mut low[i], rows[i].low)] {
                        *sum = _mm256_dpbusd_epi32(*sum, near, four(plane, v));
                        *sum = _mm256_dpbusd_epi32(*sum, far, four(plane, v + 4));
                    }
                }
            }
            let factors = avx2::scales_and_minima::<MINIMA>(tile.add(128), header, -8.0);
            for i in 0..NT {
                let products = _mm256_add_epi32(_mm256_slli_epi32::<7>(high[i]), low[i]);
                sums[i] = add_tile::<MINIMA>(sums[i], products, factors, &rows[i], block);
            }
            tile = tile.add(tile_bytes);
        }
    }
    sums
}

/// One panel with two groups of spread weights, which are the halves of each register. `sums`: for each row of the panel
/// those of both groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn panel_products(
    form: Form,
    mut weights: [*const f32; 2],
    mut panel: *const u32,
    blocks: usize,
    sums: *mut [[f32; LANES]; 2],
) {
    for _ in 0..blocks {
        // SAFETY: the caller's, for all pointers.
        unsafe {
            let numbers = |index: usize| {
                let at = 8 * PAIRS + index * LANES;
                _mm512_castsi512_ps(both(weights, at))
            };
            let of_rows = panel.add(PAIRS * PANEL).cast::<f32>();
            let of_row = |index: usize| _mm512_set1_ps(*of_rows.add(index));
            if form == Form::Halves {
                let near = pair_products(weights, panel, 0..PAIRS / 2);
                let far = pair_products(weights, panel, PAIRS / 2..PAIRS);
                for row in 0..PANEL {
                    let sum = sums.add(row).cast::<f32>();
                    let mut all = _mm512_loadu_ps(sum);
                    for (products, scales) in [(near, numbers(0)), (far, numbers(1))] {
                        let scale = _mm512_mul_ps(scales, of_row(row));
                        all = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[row]), scale, all);
                    }
                    _mm512_storeu_ps(sum, all);
                }
            } else {
                let products = pair_products(weights, panel, 0..PAIRS);
                let (scales, minima) = (numbers(0), numbers(2));
                for (row, products) in products.into_iter().enumerate() {
                    let sum = sums.add(row).cast::<f32>();
                    let mut all = _mm512_loadu_ps(sum);
                    if form == Form::Minima {
                        all = _mm512_fmadd_ps(minima, of_row(PANEL + row), all);
                    }
                    let scale = _mm512_mul_ps(scales, of_row(row));
                    all = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scale, all);
                    _mm512_storeu_ps(sum, all);
                }
            }
            weights = [weights[0].add(SPREAD), weights[1].add(SPREAD)];
            panel = panel.add(PANEL_WORDS);
        }
    }
}

/// The 8 words at `at` of each of two groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn both([first, second]: [*const f32; 2], at: usize) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let first = _mm256_loadu_si256(first.add(at).cast());
        let second = _mm256_loadu_si256(second.add(at).cast());
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
    }
}

/// The integer sums of a panel's rows over some pairs of columns, whose number is even.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn pair_products(
    weights: [*const f32; 2],
    panel: *const u32,
    pairs: Range<usize>,
) -> [__m512i; PANEL] {
    // Even and odd pairs apart, because an instruction waits for the sum that it adds to.
    let (mut even, mut odd) = (
        [_mm512_setzero_si512(); PANEL],
        [_mm512_setzero_si512(); PANEL],
    );
    for pair in pairs.step_by(2) {
        // SAFETY: the caller's: the words of these pairs are there.
        unsafe {
            add_pair(both(weights, 8 * pair), panel.add(pair * PANEL), &mut even);
            add_pair(
                both(weights, 8 * pair + 8),
                panel.add((pair + 1) * PANEL),
                &mut odd,
            );
        }
    }
    std::array::from_fn(|row| _mm512_add_epi32(even[row], odd[row]))
}

/// Adds the products of a pair of columns of two groups with the pairs of words at `x`, one for each row.
///
/// In assembly, because the compiler takes the instruction apart into a multiplication and an addition.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
unsafe fn add_pair(words: __m512i, x: *const u32, sums: &mut [__m512i; PANEL]) {
    let [mut a, mut b, mut c, mut d] = *sums;
    // SAFETY: the caller's, for the four words at `x`; nothing is written but the registers named.
    unsafe {
        asm!(
            "vpdpwssd {a}, {words}, dword ptr [{x}]{{1to16}}",
            "vpdpwssd {b}, {words}, dword ptr [{x} + 4]{{1to16}}",
            "vpdpwssd {c}, {words}, dword ptr [{x} + 8]{{1to16}}",
            "vpdpwssd {d}, {words}, dword ptr [{x} + 12]{{1to16}}",
            words = in(zmm_reg) words,
            x = in(reg) x,
            a = inout(zmm_reg) a,
            b = inout(zmm_reg) b,
            c = inout(zmm_reg) c,
            d = inout(zmm_reg) d,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    *sums = [a, b, c, d];
}
