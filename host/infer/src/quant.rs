//! Tensor types: how a row of weights lies in the file, and the plain arithmetic that widens it to f32.
//!
//! Block layouts after ggml. A block of 32 weights (Q4_0 to Q8_0, IQ4_NL) shares an f16 scale `d`, and an f16
//! minimum `m` in the `_1` types. 4-bit weights: byte i holds weight i in its low and weight i + 16 in its high nibble;
//! 5-bit types keep the fifth bits in a little-endian word `qh`; IQ4_NL's nibbles number the entries of a table.
//!
//! A block of 256 (the K types) has one f16 scale, and in Q2_K, Q4_K and Q5_K an f16 scale of minima; each span of 16
//! or 32 weights in it has a small integer that these are multiplied by.

use half::{bf16, f16};

/// The tensor types that this version computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
}

/// Weights that are widened at once.
pub(crate) const SPAN: usize = 32;

/// The values of IQ4_NL's nibbles, in units of the block's scale.
pub(crate) const IQ4_NL: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

/// A span of a block as integers: weight i is `scale[i / 16] * q[i] + minimum[i / 16]`. All products of a scale
/// and an integer are exact in f32.
pub(crate) struct Span {
    pub(crate) q: [i8; SPAN],
    pub(crate) scale: [f32; 2],
    pub(crate) minimum: [f32; 2],
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.traits().0)
    }
}

impl TensorType {
    pub(crate) const ALL: [Self; 14] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
    ];

    /// Name, number in GGUF (`enum ggml_type`), weights and bytes of a block.
    fn traits(self) -> (&'static str, u32, usize, usize) {
        match self {
            Self::F32 => ("F32", 0, 1, 4),
            Self::F16 => ("F16", 1, 1, 2),
            Self::Bf16 => ("BF16", 30, 1, 2),
            Self::Q4_0 => ("Q4_0", 2, 32, 18),
            Self::Q4_1 => ("Q4_1", 3, 32, 20),
            Self::Q5_0 => ("Q5_0", 6, 32, 22),
            Self::Q5_1 => ("Q5_1", 7, 32, 24),
            Self::Q8_0 => ("Q8_0", 8, 32, 34),
            Self::Q2K => ("Q2_K", 10, 256, 84),
            Self::Q3K => ("Q3_K", 11, 256, 110),
            Self::Q4K => ("Q4_K", 12, 256, 144),
            Self::Q5K => ("Q5_K", 13, 256, 176),
            Self::Q6K => ("Q6_K", 14, 256, 210),
            Self::Iq4Nl => ("IQ4_NL", 20, 32, 18),
        }
    }

    /// The type's number in GGUF (`enum ggml_type`).
    #[cfg(any(test, fuzzing))]
    pub(crate) fn code(self) -> u32 {
        self.traits().1
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.traits().1 == code)
    }

    /// Weights in a block.
    pub(crate) fn block_len(self) -> usize {
        self.traits().2
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        self.traits().3
    }

    /// Bytes of a row of `columns` weights.
    pub(crate) fn row_bytes(self, columns: usize) -> usize {
        columns / self.block_len() * self.block_bytes()
    }

    /// Widens the blocks of `bytes` into `out`, which holds exactly their weights.
    pub(crate) fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        let blocks = bytes
            .chunks_exact(self.block_bytes())
            .zip(out.chunks_exact_mut(self.block_len()));
        match self {
            Self::F32 => {
                blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            }
            Self::F16 => blocks.for_each(|(b, o)| o[0] = f16_at(b, 0)),
            Self::Bf16 => {
                blocks.for_each(|(b, o)| o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32())
            }
            _ => blocks.for_each(|(block, out)| {
                for (index, out) in out.chunks_exact_mut(SPAN).enumerate() {
                    let span = self.span(block, index);
                    for (half, out) in out.chunks_exact_mut(SPAN / 2).enumerate() {
                        let (scale, minimum) = (span.scale[half], span.minimum[half]);
                        let q = &span.q[half * SPAN / 2..];
                        for (out, q) in out.iter_mut().zip(q) {
                            *out = scale * f32::from(*q) + minimum;
                        }
                    }
                }
            }),
        }
    }

    /// The span `index` of a block; of a block type alone (F32, F16 and BF16 have no spans and give zeros).
    pub(crate) fn span(self, block: &[u8], index: usize) -> Span {
        let mut q = [0i8; SPAN];
        let same = |q, scale, minimum| Span {
            q,
            scale: [scale; 2],
            minimum: [minimum; 2],
        };
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => same(q, 0.0, 0.0),
            Self::Q4_0 => {
                let d = f16_at(block, 0);
                nibbles(&block[2..], &mut q);
                same(q, d, -8.0 * d)
            }
            Self::Q4_1 => {
                nibbles(&block[4..], &mut q);
                same(q, f16_at(block, 0), f16_at(block, 2))
            }
            Self::Q5_0 => {
                let d = f16_at(block, 0);
                nibbles(&block[6..], &mut q);
                fifth_bits(&block[2..6], &mut q);
                same(q, d, -16.0 * d)
            }
            Self::Q5_1 => {
                nibbles(&block[8..], &mut q);
                fifth_bits(&block[4..8], &mut q);
                same(q, f16_at(block, 0), f16_at(block, 2))
            }
            Self::Q8_0 => {
                for (q, byte) in q.iter_mut().zip(&block[2..]) {
                    *q = *byte as i8;
                }
                same(q, f16_at(block, 0), 0.0)
            }
            Self::Iq4Nl => {
                nibbles(&block[2..], &mut q);
                q.iter_mut().for_each(|q| *q = IQ4_NL[*q as usize]);
                same(q, f16_at(block, 0), 0.0)
            }
            Self::Q2K => {
                let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
                for (q, byte) in q.iter_mut().zip(&block[16 + index / 4 * 32..]) {
                    *q = (byte >> (index % 4 * 2) & 3) as i8;
                }
                let scales = [block[2 * index], block[2 * index + 1]];
                Span {
                    q,
                    scale: scales.map(|s| d * f32::from(s & 15)),
                    minimum: scales.map(|s| -(dmin * f32::from(s >> 4))),
                }
            }
            Self::Q3K => {
                let low = block[32 + index / 4 * 32..].iter().zip(&block[..32]);
                for (q, (low, high)) in q.iter_mut().zip(low) {
                    *q = (low >> (index % 4 * 2) & 3) as i8
                        - if high >> index & 1 == 0 { 4 } else { 0 };
                }
                let d = f16_at(block, 108);
                Span {
                    q,
                    scale: span_scales(self, block, index).map(|s| d * f32::from(s)),
                    minimum: [0.0; 2],
                }
            }
            Self::Q4K | Self::Q5K => {
                let weights = if self == Self::Q4K { 16 } else { 48 };
                for (q, byte) in q.iter_mut().zip(&block[weights + index / 2 * 32..]) {
                    *q = (byte >> (index % 2 * 4) & 15) as i8;
                }
                if self == Self::Q5K {
                    for (q, byte) in q.iter_mut().zip(&block[16..48]) {
                        *q |= ((byte >> index & 1) << 4) as i8;
                    }
                }
                let (scale, minimum) = scale_and_minimum(block, index);
                let minimum = -(f16_at(block, 2) * f32::from(minimum));
                same(q, f16_at(block, 0) * f32::from(scale), minimum)
            }
            Self::Q6K => {
                let (half, quarter) = (index / 4, index % 4);
                let low = &block[half * 64 + quarter % 2 * 32..];
                let high = &block[128 + half * 32..];
                for (q, (low, high)) in q.iter_mut().zip(low.iter().zip(high)) {
                    let low = low >> (quarter / 2 * 4) & 15;
                    *q = (low | (high >> (quarter * 2) & 3) << 4) as i8 - 32;
                }
                let d = f16_at(block, 208);
                Span {
                    q,
                    scale: span_scales(self, block, index).map(|s| d * f32::from(s)),
                    minimum: [0.0; 2],
                }
            }
        }
    }
}

/// The integer scales of the two halves of a span of Q3_K or Q6_K.
pub(crate) fn span_scales(kind: TensorType, block: &[u8], index: usize) -> [i8; 2] {
    [2 * index, 2 * index + 1].map(|i| {
        if kind == TensorType::Q6K {
            return block[192 + i] as i8;
        }
        let scales = &block[96..108];
        let low = scales[i % 8] >> (i / 8 * 4) & 15;
        (low | (scales[8 + i % 4] >> (i / 4 * 2) & 3) << 4) as i8 - 32
    })
}

/// The 6-bit scale and minimum of a span of Q4_K or Q5_K. The first four of each lie in a byte's low six bits; the
/// later ones in a nibble, with their upper two bits above the first ones.
pub(crate) fn scale_and_minimum(block: &[u8], index: usize) -> (u8, u8) {
    let scales = &block[4..16];
    if index < 4 {
        return (scales[index] & 63, scales[index + 4] & 63);
    }
    let low = scales[index + 4];
    (
        low & 15 | scales[index - 4] >> 6 << 4,
        low >> 4 | scales[index] >> 6 << 4,
    )
}

pub(crate) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// A block's 32 nibbles: all low ones first.
fn nibbles(bytes: &[u8], out: &mut [i8; SPAN]) {
    let (low, high) = out.split_at_mut(SPAN / 2);
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = (byte & 15) as i8;
        *high = (byte >> 4) as i8;
    }
}

/// Sets the fifth bit of each weight from a little-endian word.
fn fifth_bits(word: &[u8], out: &mut [i8; SPAN]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out |= ((word[i / 8] >> (i % 8) & 1) << 4) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_block(kind: TensorType, header: &[u8], body: &[u8]) -> Vec<f32> {
        let bytes = [header, body].concat();
        assert_eq!(bytes.len(), kind.block_bytes());
        let mut out = vec![0.0; kind.block_len()];
        kind.dequantise(&bytes, &mut out);
        out
    }

    #[test]
    fn each_block_layout_widens_as_ggml_defines_it() {
        let (half, two) = (
            f16::from_f32(0.5).to_le_bytes(),
            f16::from_f32(2.0).to_le_bytes(),
        );
        let body: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let q4_0 = one_block(TensorType::Q4_0, &half, &body);
        assert_eq!(
            (q4_0[0], q4_0[3], q4_0[16], q4_0[31]),
            (-4.0, -2.5, 3.5, -4.0)
        );
        let q4_1 = one_block(TensorType::Q4_1, &[half, two].concat(), &body);
        assert_eq!((q4_1[0], q4_1[3], q4_1[16], q4_1[31]), (2.0, 3.5, 9.5, 2.0));
        let high = 0x8000_0001u32.to_le_bytes();
        let q5_0 = one_block(TensorType::Q5_0, &[&half[..], &high].concat(), &body);
        assert_eq!((q5_0[0], q5_0[1], q5_0[31]), (0.0, -7.5, 0.0));
        let q5_1 = one_block(TensorType::Q5_1, &[&half[..], &two, &high].concat(), &body);
        assert_eq!((q5_1[0], q5_1[1], q5_1[31]), (10.0, 2.5, 10.0));
        let signed: Vec<u8> = (0..32).map(|i| (i as i8 - 16) as u8).collect();
        assert_eq!(
            one_block(TensorType::Q8_0, &half, &signed)[..3],
            [-8.0, -7.5, -7.0]
        );
        assert_eq!(
            one_block(TensorType::F32, &1.25f32.to_le_bytes(), &[]),
            [1.25]
        );
        assert_eq!(
            one_block(TensorType::Bf16, &bf16::from_f32(-3.0).to_le_bytes(), &[]),
            [-3.0]
        );
        assert_eq!(one_block(TensorType::F16, &two, &[]), [2.0]);
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        bytes: Vec<u8>,
        values: Vec<f32>,
    }

    /// The values are those of the `gguf` package: see `tests/golden/make_models.py`.
    #[test]
    fn every_quantised_type_widens_as_the_reference_does() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/blocks.json.gz"
        );
        let file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
        let golden: std::collections::BTreeMap<String, Golden> =
            serde_json::from_reader(file).unwrap();
        assert_eq!(golden.len(), 11);
        for kind in TensorType::ALL
            .into_iter()
            .filter(|kind| kind.block_len() > 1)
        {
            let Golden { bytes, values } = &golden[&kind.to_string()];
            assert_eq!(bytes.len(), 3 * kind.block_bytes());
            let mut out = vec![0.0; values.len()];
            kind.dequantise(bytes, &mut out);
            for (index, (a, b)) in out.iter().zip(values).enumerate() {
                assert!(
                    (a - b).abs() <= 1e-6 * b.abs().max(0.1),
                    "{kind} {index}: {a} {b}"
                );
            }
        }
    }

    #[test]
    fn codes_and_types_match_both_ways() {
        for kind in TensorType::ALL {
            assert_eq!(TensorType::from_code(kind.code()), Some(kind));
        }
        assert_eq!(TensorType::from_code(4), None);
    }
}
