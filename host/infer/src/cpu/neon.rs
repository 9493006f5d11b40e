#![allow(
    unsafe_code,
    reason = "SIMD intrinsics and assembly, which read through pointers"
)]
//! The kernels for 64-bit ARM: NEON, which every such processor has, and its dot products where they were detected.
//!
//! The order of all operations is that of the AVX2 kernels, with two vectors of four lanes in the place of one of eight,
//! so a row gets the same bits from either. The products are in `neon_products`. Every function here may be called only
//! where NEON was detected (`kernels::Level::Neon`, `kernels::Level::NeonDot`).

use std::arch::aarch64::*;

use super::scalar;
use super::tiles::{BLOCK, LIMIT, RoundedRow, TINY};
use crate::quant::TensorType;

/// Eight lanes.
pub(super) type Eight = [float32x4_t; 2];

/// Shows that a call comes from code that runs only where NEON is there.
#[derive(Clone, Copy)]
pub(crate) struct Token(pub(super) ());

/// Eight f16 as f32.
#[inline(always)]
pub(crate) fn half_lanes(of: &[u16; 8], _: Token) -> Eight {
    // SAFETY: the token shows that NEON is there; the array has 16 bytes.
    unsafe {
        let halves = vreinterpretq_f16_u16(vld1q_u16(of.as_ptr()));
        [
            vcvt_f32_f16(vget_low_f16(halves)),
            vcvt_high_f32_f16(halves),
        ]
    }
}

/// Eight f32.
#[inline(always)]
pub(crate) fn float_lanes(of: &[f32; 8], _: Token) -> Eight {
    // SAFETY: the token shows that NEON is there; the array has 32 bytes.
    unsafe { [vld1q_f32(of.as_ptr()), vld1q_f32(of.as_ptr().add(4))] }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn load(of: &[f32; 8]) -> Eight {
    float_lanes(of, Token(()))
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn store(to: &mut [f32; 8], value: Eight) {
    // SAFETY: the array has 32 bytes.
    unsafe {
        vst1q_f32(to.as_mut_ptr(), value[0]);
        vst1q_f32(to.as_mut_ptr().add(4), value[1]);
    }
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn all(value: f32) -> Eight {
    [vdupq_n_f32(value); 2]
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn add(a: Eight, b: Eight) -> Eight {
    [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])]
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn subtract(a: Eight, b: Eight) -> Eight {
    [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])]
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn multiply(a: Eight, b: Eight) -> Eight {
    [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])]
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn divide(a: Eight, b: Eight) -> Eight {
    [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])]
}

/// a + b * c, rounded once.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn fused(a: Eight, b: Eight, c: Eight) -> Eight {
    [vfmaq_f32(a[0], b[0], c[0]), vfmaq_f32(a[1], b[1], c[1])]
}

#[target_feature(enable = "neon")]
#[inline]
pub(super) fn add_lanes(v: Eight) -> f32 {
    let sum = vaddq_f32(v[0], v[1]);
    let sum = vadd_f32(vget_low_f32(sum), vget_high_f32(sum));
    vget_lane_f32::<0>(sum) + vget_lane_f32::<1>(sum)
}

/// The lanes of `value` where `x` is above `floor`, else 0.
#[target_feature(enable = "neon")]
#[inline]
fn above(x: Eight, floor: f32, value: Eight) -> Eight {
    let four = |x, value| {
        let kept = vandq_u32(
            vcgtq_f32(x, vdupq_n_f32(floor)),
            vreinterpretq_u32_f32(value),
        );
        vreinterpretq_f32_u32(kept)
    };
    [four(x[0], value[0]), four(x[1], value[1])]
}

/// e^x to 2 units in the last place, for x in -87..=88; beyond that as at the bounds. Cephes' `expf`.
#[target_feature(enable = "neon")]
#[inline]
pub(super) fn exp(x: Eight) -> Eight {
    [four_powers(x[0]), four_powers(x[1])]
}

#[target_feature(enable = "neon")]
#[inline]
fn four_powers(x: float32x4_t) -> float32x4_t {
    // These two give the number where the other is none.
    let x = vminnmq_f32(vmaxnmq_f32(x, vdupq_n_f32(-87.0)), vdupq_n_f32(88.0));
    let n = vrndnq_f32(vmulq_n_f32(x, std::f32::consts::LOG2_E));
    let r = vfmsq_f32(x, n, vdupq_n_f32(0.693_359_4));
    let r = vfmsq_f32(r, n, vdupq_n_f32(-2.121_944_4e-4));
    let mut p = vdupq_n_f32(1.987_569_1e-4);
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = vfmaq_f32(vdupq_n_f32(c), p, r);
    }
    let p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0));
    let power = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)));
    vmulq_f32(p, vreinterpretq_f32_s32(power))
}

#[target_feature(enable = "neon")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [all(0.0); 4];
    let (a32, a_rest) = a.as_chunks::<32>();
    let (b32, b_rest) = b.as_chunks::<32>();
    for (a, b) in a32.iter().zip(b32) {
        let (a, b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = fused(*sum, load(a), load(b));
        }
    }
    let (a8, a_rest) = a_rest.as_chunks::<8>();
    let (b8, b_rest) = b_rest.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        sums[0] = fused(sums[0], load(a), load(b));
    }
    let sum = add(add(sums[0], sums[1]), add(sums[2], sums[3]));
    add_lanes(sum) + scalar::dot(a_rest, b_rest)
}

#[target_feature(enable = "neon")]
pub(super) fn widen_halves(bytes: &[u8], out: &mut [f32]) {
    let (bytes8, rest) = bytes.as_chunks::<16>();
    let (out8, out_rest) = out.as_chunks_mut::<8>();
    for (bytes, out) in bytes8.iter().zip(out8) {
        // SAFETY: the chunk has 16 bytes.
        let halves = unsafe { vreinterpretq_f16_u8(vld1q_u8(bytes.as_ptr())) };
        let low = vcvt_f32_f16(vget_low_f16(halves));
        store(out, [low, vcvt_high_f32_f16(halves)]);
    }
    TensorType::F16.dequantise(rest, out_rest);
}

#[target_feature(enable = "neon")]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let inverse = 1.0 / (dot(x, x) / x.len() as f32 + epsilon).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * weight;
    }
}

#[target_feature(enable = "neon")]
pub(super) fn gated_silu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (gate8, gate_rest) = gate.as_chunks::<8>();
    let (up8, up_rest) = up.as_chunks::<8>();
    let (out8, out_rest) = out.as_chunks_mut::<8>();
    for ((gate, up), out) in gate8.iter().zip(up8).zip(out8) {
        let gate = load(gate);
        let e = exp(subtract(all(0.0), gate));
        store(out, multiply(divide(gate, add(all(1.0), e)), load(up)));
    }
    scalar::gated_silu(gate_rest, up_rest, out_rest);
}

/// tanh-approximated gelu(gate) * up: tanh(t) = 1 - 2 / (1 + e^2t), so gelu(x) = x - x / (1 + e^2t).
#[target_feature(enable = "neon")]
pub(super) fn gated_gelu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let (gate8, gate_rest) = gate.as_chunks::<8>();
    let (up8, up_rest) = up.as_chunks::<8>();
    let (out8, out_rest) = out.as_chunks_mut::<8>();
    let [first, third] = scalar::GELU.map(|c| all(2.0 * c));
    for ((gate, up), out) in gate8.iter().zip(up8).zip(out8) {
        let gate = load(gate);
        let inner = fused(first, multiply(gate, gate), third);
        let e = exp(multiply(inner, gate));
        let off = divide(gate, add(all(1.0), e));
        store(out, multiply(subtract(gate, off), load(up)));
    }
    scalar::gated_gelu(gate_rest, up_rest, out_rest);
}

#[target_feature(enable = "neon")]
pub(super) fn exp_sums(x: &[f32], most: f32) -> (f64, f64) {
    let (mut sum, mut weighted) = (0f64, 0f64);
    // Partial sums in f32 over a thousand elements, in f64 over those.
    for part in x.chunks(1024) {
        let (part8, rest) = part.as_chunks::<8>();
        let (mut sums, mut weights) = (all(0.0), all(0.0));
        for x in part8 {
            let shifted = subtract(load(x), all(most));
            let e = above(shifted, -87.0, exp(shifted));
            let floor = vdupq_n_f32(-87.0);
            let shifted = [
                vmaxnmq_f32(shifted[0], floor),
                vmaxnmq_f32(shifted[1], floor),
            ];
            sums = add(sums, e);
            weights = fused(weights, e, shifted);
        }
        let (rest_sum, rest_weighted) = scalar::exp_sums(rest, most);
        sum += f64::from(add_lanes(sums)) + rest_sum;
        weighted += f64::from(add_lanes(weights)) + rest_weighted;
    }
    (sum, weighted)
}

#[target_feature(enable = "neon")]
pub(super) fn exp_all(x: &mut [f32]) {
    let (chunks, rest) = x.as_chunks_mut::<8>();
    for chunk in chunks {
        let x = load(chunk);
        store(chunk, above(x, -87.0, exp(x)));
    }
    scalar::exp_all(rest);
}

/// The same arithmetic as `tiles::round_row`, bit for bit.
#[target_feature(enable = "neon")]
pub(super) fn round_row(x: &[f32], out: &mut RoundedRow<'_>) {
    for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        let eights = x.as_chunks::<8>().0;
        let lanes = std::array::from_fn::<_, 4, _>(|i| load(&eights[i]));
        let most = lanes
            .iter()
            .flatten()
            .fold(vdupq_n_f32(0.0), |most, x| vmaxnmq_f32(most, vabsq_f32(*x)));
        let largest = vmaxnmvq_f32(most);
        let inverse = if largest > TINY { LIMIT / largest } else { 0.0 };
        let scale = largest / LIMIT;
        let at = block * BLOCK..(block + 1) * BLOCK;
        let (words, highs, lows) = (
            out.word[at.clone()].as_chunks_mut::<8>().0,
            out.high[at.clone()].as_chunks_mut::<8>().0,
            out.low[at].as_chunks_mut::<8>().0,
        );
        let mut sum = 0;
        for (((x, word), high), low) in lanes.into_iter().zip(words).zip(highs).zip(lows) {
            let four = |x| vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(x, inverse)));
            let q = vcombine_s16(four(x[0]), four(x[1]));
            let upper = vshrq_n_s16::<7>(vaddq_s16(q, vdupq_n_s16(64)));
            let lower = vsubq_s16(q, vshlq_n_s16::<7>(upper));
            sum += vaddlvq_s16(q);
            // SAFETY: the chunks hold 8 elements each: 16, 8 and 8 bytes.
            unsafe {
                vst1q_s16(word.as_mut_ptr(), q);
                vst1_s8(high.as_mut_ptr(), vmovn_s16(upper));
                vst1_s8(low.as_mut_ptr(), vmovn_s16(lower));
            }
        }
        out.scale[block] = scale;
        out.sum[block] = scale * sum as f32;
    }
}
