#![allow(
    unsafe_code,
    reason = "calls kernels that need CPU features, after those were detected"
)]
//! Which kernels this processor runs: each function picks the best version by a level detected once.

#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected;
use std::ops::Range;
use std::sync::LazyLock;

use half::f16;
use half::slice::{HalfBitsSliceExt as _, HalfFloatSliceExt as _};

use super::attention::{QUERIES, Query};
use super::check;
use super::panels::{self, Panels};
use super::scalar;
use super::tiles::{LANES, Rounded, RoundedRow, Tiles, round_row};
use crate::memory::Plain;
use crate::ops::PAGE_TOKENS;
use crate::quant::TensorType;

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx2_attention, avx2_panels, avx512};
#[cfg(target_arch = "aarch64")]
use super::{neon, neon_attention, neon_products};

/// What the processor can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What AVX2 has, and AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with dot products.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
}

impl Level {
    /// The best level of this processor whose kernels pass their check. Looked for once.
    pub(crate) fn detect() -> Self {
        static LEVEL: LazyLock<Level> =
            LazyLock::new(|| check::best(Level::available(), |level| level));
        *LEVEL
    }

    /// The levels above the plain one that this processor has the instructions for, the best first.
    pub(super) fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other processors have none")]
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                levels.push(Self::Avx512);
            }
            levels.push(Self::Avx2);
        }
        #[cfg(target_arch = "aarch64")]
        if is_aarch64_feature_detected!("neon") {
            if is_aarch64_feature_detected!("dotprod") {
                levels.push(Self::NeonDot);
            }
            levels.push(Self::Neon);
        }
        levels
    }
}

/// As people name it.
impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scalar => "plain",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "NEON",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => "NEON dot product",
        })
    }
}

/// An element of the KV cache.
pub(crate) trait CacheElement: Plain {
    fn widen(self) -> f32;
    fn narrow(value: f32) -> Self;
    /// Narrows as many as there are of both.
    fn narrow_all(values: &[f32], to: &mut [Self]) {
        for (to, value) in to.iter_mut().zip(values) {
            *to = Self::narrow(*value);
        }
    }
    /// Eight elements as f32 lanes.
    #[cfg(target_arch = "x86_64")]
    fn lanes(of: &[Self; 8], token: avx2::Token) -> std::arch::x86_64::__m256;
    /// Eight elements as f32 lanes.
    #[cfg(target_arch = "aarch64")]
    fn lanes(of: &[Self; 8], token: neon::Token) -> neon::Eight;
}

/// f16, by its bits.
impl CacheElement for u16 {
    fn widen(self) -> f32 {
        f16::from_bits(self).to_f32()
    }

    fn narrow(value: f32) -> Self {
        f16::from_f32(value).to_bits()
    }

    /// Looks for the processor's instruction once, not for each element.
    fn narrow_all(values: &[f32], to: &mut [Self]) {
        let count = values.len().min(to.len());
        to[..count]
            .reinterpret_cast_mut::<f16>()
            .convert_from_f32_slice(&values[..count]);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn lanes(of: &[Self; 8], token: avx2::Token) -> std::arch::x86_64::__m256 {
        avx2::half_lanes(of, token)
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    fn lanes(of: &[Self; 8], token: neon::Token) -> neon::Eight {
        neon::half_lanes(of, token)
    }
}

impl CacheElement for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn narrow(value: f32) -> Self {
        value
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn lanes(of: &[Self; 8], token: avx2::Token) -> std::arch::x86_64::__m256 {
        avx2::float_lanes(of, token)
    }

    #[cfg(target_arch = "aarch64")]
    #[inline(always)]
    fn lanes(of: &[Self; 8], token: neon::Token) -> neon::Eight {
        neon::float_lanes(of, token)
    }
}

/// The keys and values of one head of one sequence in one layer: page `table[i]` begins at
/// `table[i] * stride + offset` and holds [`PAGE_TOKENS`] tokens of `head_dim` elements.
#[derive(Clone, Copy)]
pub(crate) struct HeadCache<'a, E> {
    pub(crate) keys: &'a [E],
    pub(crate) values: &'a [E],
    pub(crate) table: &'a [u32],
    pub(crate) stride: usize,
    pub(crate) offset: usize,
    pub(crate) head_dim: usize,
}

impl<'a, E> HeadCache<'a, E> {
    /// The pages that the positions of `span` lie in.
    #[inline(always)]
    pub(crate) fn pages(self, span: Range<usize>) -> impl Iterator<Item = HeadPage<'a, E>> {
        let size = PAGE_TOKENS * self.head_dim;
        let pages = self.table.iter().enumerate();
        let pages = pages.take(span.end.div_ceil(PAGE_TOKENS));
        pages
            .skip(span.start / PAGE_TOKENS)
            .map(move |(index, page)| {
                let at = *page as usize * self.stride + self.offset;
                HeadPage {
                    start: index * PAGE_TOKENS,
                    keys: &self.keys[at..at + size],
                    values: &self.values[at..at + size],
                }
            })
    }
}

/// A page of the keys and values of one head.
pub(crate) struct HeadPage<'a, E> {
    /// The position of its first token.
    pub(crate) start: usize,
    /// For each element the keys of [`PAGE_TOKENS`] tokens.
    pub(crate) keys: &'a [E],
    /// For each token its value.
    pub(crate) values: &'a [E],
}

/// Rounds a row of activations; its length is a multiple of a block's.
pub(crate) fn round(level: Level, x: &[f32], out: &mut RoundedRow<'_>) {
    match level {
        Level::Scalar => round_row(x, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::round_row(x, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        Level::Neon | Level::NeonDot => unsafe { neon::round_row(x, out) },
    }
}

/// Whether there are kernels that read panels.
pub(crate) fn has_panels(level: Level) -> bool {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => true,
        _ => false,
    }
}

/// Writes 4 rounded rows into a panel.
pub(crate) fn pack_panel(level: Level, x: &RoundedRow<'_>, panel: &mut [u32]) {
    match level {
        Level::Scalar => panels::pack(x, panel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2_panels::pack(x, panel) },
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDot => panels::pack(x, panel),
    }
}

/// The products of the 8 rows of each of `groups` (at most two) with `rows` rows of activations, given to
/// `write(row, group, products)`.
#[cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_variables, reason = "these kernels read no panels")
)]
pub(crate) fn group_products(
    level: Level,
    tiles: &Tiles,
    groups: Range<usize>,
    (x, panels): (&Rounded, &Panels),
    rows: usize,
    scratch: &mut Vec<f32>,
    mut write: impl FnMut(usize, usize, [f32; LANES]),
) {
    match level {
        Level::Scalar => {
            for group in groups {
                scalar::group_products(tiles, group, x, 0..rows, |row, products| {
                    write(row, group, products);
                });
            }
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => {
            let first = groups.start;
            if panels.rows() > 0 {
                let mut write = |row, group, products| write(row, first + group, products);
                // SAFETY: the level was detected.
                unsafe {
                    match (groups.len(), level) {
                        (2, Level::Avx512) => avx2_panels::group_products::<2, true>(
                            tiles, first, panels, scratch, &mut write,
                        ),
                        (2, _) => avx2_panels::group_products::<2, false>(
                            tiles, first, panels, scratch, &mut write,
                        ),
                        _ => avx2_panels::group_products::<1, false>(
                            tiles, first, panels, scratch, &mut write,
                        ),
                    }
                }
            }
            for group in groups {
                let mut write = |row, products| write(row, group, products);
                few_products(level, tiles, group, x, panels.rows()..rows, &mut write);
            }
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDot => {
            for group in groups {
                let mut write = |row, products| write(row, group, products);
                // SAFETY: the level was detected.
                unsafe {
                    if level == Level::NeonDot {
                        neon_products::group_products::<true>(tiles, group, x, 0..rows, &mut write);
                    } else {
                        neon_products::group_products::<false>(
                            tiles,
                            group,
                            x,
                            0..rows,
                            &mut write,
                        );
                    }
                }
            }
        }
    }
}

/// The products of a group with some rows: as many at a time as their sums fit into the registers share the unpacked
/// weights.
#[cfg(target_arch = "x86_64")]
fn few_products(
    level: Level,
    tiles: &Tiles,
    group: usize,
    x: &Rounded,
    mut rows: Range<usize>,
    write: &mut impl FnMut(usize, [f32; LANES]),
) {
    let most = tiles.rows_at_once();
    while !rows.is_empty() {
        let (row, wide) = (rows.start, level == Level::Avx512);
        // SAFETY: the caller detected the level.
        rows.start += unsafe {
            match rows.len().min(most) {
                1 if wide => avx512::group_products::<1>(tiles, group, x, row, write),
                2 if wide => avx512::group_products::<2>(tiles, group, x, row, write),
                3 if wide => avx512::group_products::<3>(tiles, group, x, row, write),
                4 if wide => avx512::group_products::<4>(tiles, group, x, row, write),
                1 => avx2::group_products::<1>(tiles, group, x, row, write),
                2 => avx2::group_products::<2>(tiles, group, x, row, write),
                3 => avx2::group_products::<3>(tiles, group, x, row, write),
                4 => avx2::group_products::<4>(tiles, group, x, row, write),
                5 => avx2::group_products::<5>(tiles, group, x, row, write),
                _ => avx2::group_products::<6>(tiles, group, x, row, write),
            }
        };
    }
}

/// The dot product of two vectors of f32.
pub(crate) fn dot(level: Level, a: &[f32], b: &[f32]) -> f32 {
    match level {
        Level::Scalar => scalar::dot(a, b),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::dot(a, b) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        Level::Neon | Level::NeonDot => unsafe { neon::dot(a, b) },
    }
}

/// Widens a row of the file.
pub(crate) fn dequantise(level: Level, kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    match (level, kind) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        (Level::Avx2 | Level::Avx512, TensorType::F16) => unsafe {
            avx2::widen_halves(bytes, out);
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        (Level::Neon | Level::NeonDot, TensorType::F16) => unsafe {
            neon::widen_halves(bytes, out);
        },
        _ => kind.dequantise(bytes, out),
    }
}

/// x / rms(x) * weight.
pub(crate) fn rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    match level {
        Level::Scalar => scalar::rms_norm(x, weight, epsilon, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::rms_norm(x, weight, epsilon, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        Level::Neon | Level::NeonDot => unsafe { neon::rms_norm(x, weight, epsilon, out) },
    }
}

/// x = x / rms(x) * weight.
pub(crate) fn rms_norm_in_place(level: Level, x: &mut [f32], weight: &[f32], epsilon: f32) {
    let inverse = 1.0 / (dot(level, x, x) / x.len() as f32 + epsilon).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * inverse * weight;
    }
}

/// silu(gate) * up.
pub(crate) fn gated_silu(level: Level, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match level {
        Level::Scalar => scalar::gated_silu(gate, up, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::gated_silu(gate, up, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        Level::Neon | Level::NeonDot => unsafe { neon::gated_silu(gate, up, out) },
    }
}

/// gelu(gate) * up, with gelu approximated by tanh.
pub(crate) fn gated_gelu(level: Level, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match level {
        Level::Scalar => scalar::gated_gelu(gate, up, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::gated_gelu(gate, up, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        Level::Neon | Level::NeonDot => unsafe { neon::gated_gelu(gate, up, out) },
    }
}

/// The sums over e = exp(x - most) of e and of e * (x - most).
pub(crate) fn exp_sums(level: Level, x: &[f32], most: f32) -> (f64, f64) {
    match level {
        Level::Scalar => scalar::exp_sums(x, most),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::exp_sums(x, most) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        Level::Neon | Level::NeonDot => unsafe { neon::exp_sums(x, most) },
    }
}

/// e^x of each element; 0 from -87 down.
pub(crate) fn exp_all(level: Level, x: &mut [f32]) {
    match level {
        Level::Scalar => scalar::exp_all(x),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected.
        Level::Avx2 | Level::Avx512 => unsafe { avx2::exp_all(x) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the level was detected.
        Level::Neon | Level::NeonDot => unsafe { neon::exp_all(x) },
    }
}

/// Attention of the queries that are there, which share a kv head; their products with keys are multiplied by `scale`,
/// and `scores` is scratch.
pub(crate) fn attend<E: CacheElement>(
    level: Level,
    queries: &mut [Option<Query<'_>>; QUERIES],
    cache: &HeadCache<'_, E>,
    scale: f32,
    scores: &mut Vec<f32>,
) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 if cache.head_dim.is_multiple_of(8) => {
            // SAFETY: the level was detected.
            unsafe {
                match queries {
                    [Some(a), Some(b), Some(c), Some(d)] => {
                        avx2_attention::attend([a, b, c, d], cache, scale, scores);
                    }
                    [Some(a), Some(b), Some(c), None] => {
                        avx2_attention::attend([a, b, c], cache, scale, scores);
                    }
                    [Some(a), Some(b), ..] => {
                        avx2_attention::attend([a, b], cache, scale, scores);
                    }
                    [Some(a), ..] => avx2_attention::attend([a], cache, scale, scores),
                    _ => {}
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDot if cache.head_dim.is_multiple_of(8) => {
            // SAFETY: the level was detected.
            unsafe {
                match queries {
                    [Some(a), Some(b), Some(c), Some(d)] => {
                        neon_attention::attend([a, b, c, d], cache, scale, scores);
                    }
                    [Some(a), Some(b), Some(c), None] => {
                        neon_attention::attend([a, b, c], cache, scale, scores);
                    }
                    [Some(a), Some(b), ..] => {
                        neon_attention::attend([a, b], cache, scale, scores);
                    }
                    [Some(a), ..] => neon_attention::attend([a], cache, scale, scores),
                    _ => {}
                }
            }
        }
        _ => {
            for query in queries.iter_mut().flatten() {
                scalar::attend(query, cache, scale, scores);
            }
        }
    }
}

#[cfg(test)]
mod tests;
