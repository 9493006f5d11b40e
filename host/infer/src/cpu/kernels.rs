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
mod tests {
    use super::*;
    use crate::memory::HugeArena;
    use crate::ops::Weights;
    use crate::testing::random_tensor;
    use proptest::prelude::*;

    fn close(a: f32, b: f32, scale: f32) -> bool {
        (a - b).abs() <= 1e-5 * scale.max(1e-3)
    }

    fn rounded(level: Level, x: &[f32], rows: usize) -> Rounded {
        let columns = x.len() / rows;
        let mut out = Rounded::default();
        out.reset(rows, columns);
        for row in 0..rows {
            let (c, b) = (
                row * columns..(row + 1) * columns,
                row * columns / 32..(row + 1) * columns / 32,
            );
            let Rounded {
                high,
                low,
                word,
                scale,
                sum,
                ..
            } = &mut out;
            round(
                level,
                &x[c.clone()],
                &mut RoundedRow {
                    high: &mut high[c.clone()],
                    low: &mut low[c.clone()],
                    word: &mut word[c],
                    scale: &mut scale[b.clone()],
                    sum: &mut sum[b],
                },
            );
        }
        out
    }

    /// A group's products by the f32 operations that all levels above the plain one have in common.
    fn fused_products(tiles: &Tiles, group: usize, x: &Rounded, rows: usize) -> Vec<[f32; LANES]> {
        let (columns, blocks) = (tiles.columns, tiles.columns / 32);
        let mut sums = vec![[0f32; LANES]; rows];
        for (block, tile) in tiles.tiles(group).enumerate() {
            for lane in 0..LANES {
                let (q, scales, minimum) = tile.lane(lane);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let words = &x.word[row * columns + block * 32..][..32];
                    let (of_row, sum) =
                        (x.scale[row * blocks + block], x.sum[row * blocks + block]);
                    let product = |i: usize| i32::from(q[i]) * i32::from(words[i]);
                    let (near, far): (i32, i32) =
                        ((0..16).map(product).sum(), (16..32).map(product).sum());
                    let sum = minimum.mul_add(sum, sums[lane]);
                    sums[lane] = if tiles.kind == TensorType::Q6K {
                        let sum = (near as f32).mul_add(scales[0] * of_row, sum);
                        (far as f32).mul_add(scales[1] * of_row, sum)
                    } else {
                        ((near + far) as f32).mul_add(scales[0] * of_row, sum)
                    };
                }
            }
        }
        sums
    }

    /// Few cases, or as many as the environment asks for: an emulated processor is slow.
    fn cases() -> ProptestConfig {
        match std::env::var_os("PROPTEST_CASES") {
            Some(_) => ProptestConfig::default(),
            None => ProptestConfig::with_cases(30),
        }
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn products_equal_the_plain_ones_at_every_level_and_a_row_never_depends_on_its_neighbours(
            seed in any::<u64>(), x in prop::collection::vec(-4f32..4.0, 512 * 19),
        ) {
            for (level, kind) in Level::available().into_iter().flat_map(|level| TensorType::ALL.map(|kind| (level, kind))) {
                if !Tiles::has(kind) {
                    continue;
                }
                let (rows, columns) = (13, 512);
                let bytes = random_tensor(kind, rows * columns, seed);
                let tiles = Tiles::pack(&Weights { kind, rows, columns, bytes: &bytes }, &mut HugeArena::default()).unwrap();
                let act = rounded(level, &x, 19);
                let plain = rounded(Level::Scalar, &x, 19);
                let mut panels = Panels::default();
                panels.reset(if has_panels(level) { 19 } else { 0 }, columns);
                let size = panels.panel_words();
                for (index, panel) in panels.words.chunks_exact_mut(size).enumerate() {
                    let (c, b) = (index * 4 * columns..(index + 1) * 4 * columns, index * 4 * 16..(index + 1) * 4 * 16);
                    let mut four = act.clone();
                    let four = RoundedRow {
                        high: &mut four.high[c.clone()], low: &mut four.low[c.clone()], word: &mut four.word[c],
                        scale: &mut four.scale[b.clone()], sum: &mut four.sum[b],
                    };
                    pack_panel(level, &four, panel);
                    let mut plain = vec![0; size];
                    pack_panel(Level::Scalar, &four, &mut plain);
                    prop_assert_eq!(&*panel, &*plain);
                }
                let (none, mut scratch) = (Panels::default(), Vec::new());
                prop_assert_eq!((&act.high, &act.low, &act.word), (&plain.high, &plain.low, &plain.word));
                prop_assert_eq!((&act.scale, &act.sum), (&plain.scale, &plain.sum));
                let mut both = vec![[[0f32; 8]; 2]; 19];
                group_products(level, &tiles, 0..2, (&act, &panels), 19, &mut scratch, |row, group, products| both[row][group] = products);
                for group in [0, 1] {
                    let mut all = vec![[0f32; 8]; 19];
                    group_products(level, &tiles, group..group + 1, (&act, &panels), 19, &mut scratch, |row, _, products| all[row] = products);
                    let mut plainly = vec![[0f32; 8]; 19];
                    scalar::group_products(&tiles, group, &plain, 0..19, |row, products| plainly[row] = products);
                    let fused = fused_products(&tiles, group, &plain, 19);
                    for row in 0..19 {
                        prop_assert_eq!(both[row][group], all[row]);
                        let one = rounded(level, &x[row * 512..(row + 1) * 512], 1);
                        group_products(level, &tiles, group..group + 1, (&one, &none), 1, &mut scratch, |_, _, products| assert_eq!(products, all[row]));
                        prop_assert_eq!(all[row], fused[row], "{} {}", level, kind);
                        for (a, b) in all[row].iter().zip(plainly[row]) {
                            prop_assert!(close(*a, b, 50.0), "{level} {kind}: {a} {b}");
                        }
                    }
                }
            }
        }

        #[test]
        fn vector_operations_equal_the_plain_ones_at_every_level(
            a in prop::collection::vec(-30f32..30.0, 1..200), b in prop::collection::vec(-3f32..3.0, 200),
        ) {
            let b = &b[..a.len()];
            for level in Level::available() {
                let (mut fast, mut plain) = (vec![0.0; a.len()], vec![0.0; a.len()]);
                prop_assert!(close(dot(level, &a, b), scalar::dot(&a, b), 1e4));
                rms_norm(level, &a, b, 1e-5, &mut fast);
                scalar::rms_norm(&a, b, 1e-5, &mut plain);
                prop_assert!(fast.iter().zip(&plain).all(|(x, y)| close(*x, *y, 50.0)));
                gated_gelu(level, &a, b, &mut fast);
                scalar::gated_gelu(&a, b, &mut plain);
                prop_assert!(fast.iter().zip(&plain).all(|(x, y)| close(*x, *y, 90.0)), "{fast:?} {plain:?}");
                gated_silu(level, &a, b, &mut fast);
                scalar::gated_silu(&a, b, &mut plain);
                prop_assert!(fast.iter().zip(&plain).all(|(x, y)| close(*x, *y, 90.0)), "{fast:?} {plain:?}");
                let most = a.iter().copied().fold(f32::MIN, f32::max);
                let (sums, wanted) = (exp_sums(level, &a, most), scalar::exp_sums(&a, most));
                prop_assert!((sums.0 - wanted.0).abs() < 1e-5 * wanted.0 && (sums.1 - wanted.1).abs() < 1e-5 * wanted.1.abs().max(wanted.0));
            }
        }

        #[test]
        fn attention_equals_the_plain_one_at_every_level_whatever_queries_are_computed_together(
            q in prop::collection::vec(-2f32..2.0, 4 * 72), kv in prop::collection::vec(-2f32..2.0, 4 * 32 * 72),
            counts in prop::array::uniform4(1usize..96), windows in prop::array::uniform4(1usize..120),
        ) {
            let halves: Vec<u16> = kv.iter().map(|x| u16::narrow(*x)).collect();
            let values: Vec<u16> = halves.iter().rev().copied().collect();
            let table = [2, 0, 3];
            let cache = HeadCache { keys: &halves, values: &values, table: &table, stride: 32 * 72, offset: 0, head_dim: 72 };
            let span = |i: usize| counts[i].saturating_sub(windows[i])..counts[i];
            let mut scratch = Vec::new();
            let mut run = |level: Level, which: Range<usize>| {
                let mut outs = vec![vec![0.0; 72]; 4];
                let mut queries = [const { None }; QUERIES];
                for ((i, out), query) in outs.iter_mut().enumerate().take(which.end).skip(which.start).zip(&mut queries) {
                    *query = Some(Query { q: &q[i * 72..][..72], span: span(i), out });
                }
                attend(level, &mut queries, &cache, 0.1, &mut scratch);
                outs
            };
            let plain = run(Level::Scalar, 0..4);
            for (level, together) in Level::available().into_iter().flat_map(|level| (1..=4).map(move |count| (level, count))) {
                let fast = run(level, 0..together);
                for i in 0..together {
                    let alone = run(level, i..i + 1);
                    prop_assert_eq!(&fast[i], &alone[i]);
                    prop_assert!(fast[i].iter().zip(&plain[i]).all(|(x, y)| close(*x, *y, 5.0)), "{:?} {:?}", fast[i], plain[i]);
                }
            }
        }
    }

    /// The same program gives the same answers on a server and on an ARM board: every level above the plain one performs the
    /// same f32 operations in the same order.
    #[test]
    fn every_level_gives_the_same_bits_on_every_processor() {
        let mut seed = 9u64;
        let mut floats = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 40) as f32 / (1 << 22) as f32 - 2.0
                })
                .collect()
        };
        let (a, b) = (floats(168), floats(168));
        let [keys, values] = [(); 2].map(|()| {
            let mut halves = vec![0u16; 2 * 32 * 24];
            u16::narrow_all(&floats(halves.len()), &mut halves);
            halves
        });
        let cache = HeadCache {
            keys: &keys,
            values: &values,
            table: &[1, 0],
            stride: 32 * 24,
            offset: 0,
            head_dim: 24,
        };
        for level in Level::available() {
            let mut results = vec![dot(level, &a, &b)];
            let mut add = |fill: &dyn Fn(&mut [f32])| {
                let mut out = vec![0.0; 168];
                fill(&mut out);
                results.extend(out);
            };
            add(&|out| rms_norm(level, &a, &b, 1e-5, out));
            add(&|out| gated_silu(level, &a, &b, out));
            add(&|out| gated_gelu(level, &a, &b, out));
            add(&|out| {
                out.copy_from_slice(&a);
                exp_all(level, out);
            });
            add(&|out| {
                let mut heads = a.chunks_exact(24).zip(out.chunks_exact_mut(24));
                let mut queries = [0..40, 8..48, 0..56, 16..24].map(|span| {
                    let (q, out) = heads.next().unwrap();
                    Some(Query { q, span, out })
                });
                attend(level, &mut queries, &cache, 0.2, &mut Vec::new());
            });
            let (sum, weighted) = exp_sums(level, &a, 2.0);
            results.extend([sum as f32, weighted as f32]);
            // FNV-1a of the bits.
            let digest = results.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, x| {
                (hash ^ u64::from(x.to_bits())).wrapping_mul(0x100_0000_01b3)
            });
            assert_eq!(digest, 15_170_877_356_693_039_708, "{level}");
        }
    }

    #[test]
    fn a_banned_logit_does_not_spoil_the_sums() {
        for level in [Level::Scalar, Level::detect()] {
            let mut powers = [
                0.0,
                f32::NEG_INFINITY,
                1.0,
                -86.0,
                -88.0,
                0.5,
                -3.0,
                2.0,
                f32::NEG_INFINITY,
                -1.0,
            ];
            let wanted = powers.map(|x: f32| if x > -87.0 { x.exp() } else { 0.0 });
            exp_all(level, &mut powers);
            assert!(
                powers
                    .iter()
                    .zip(wanted)
                    .all(|(a, b)| (a - b).abs() <= 1e-6 * b),
                "{powers:?} {wanted:?}"
            );
            assert_eq!(powers[0], 1.0);
            let (sum, weighted) = exp_sums(level, &[1.0, f32::NEG_INFINITY, 1.0], 1.0);
            assert_eq!((sum, weighted), (2.0, 0.0));
        }
    }
}
