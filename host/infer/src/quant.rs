//! Tensor types: how a row of weights lies in the file, and the plain arithmetic that widens it to f32.
//!
//! Block layouts after ggml: a block of 32 weights shares an f16 scale `d`, and an f16 minimum `m` in the
//! `_1` types. 4-bit weights: byte i holds weight i in its low and weight i + 16 in its high nibble; 5-bit
//! types keep the fifth bits in a little-endian word `qh`.

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
}

impl std::fmt::Display for TensorType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
        })
    }
}

impl TensorType {
    const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
    ];

    /// The type's number in GGUF (`enum ggml_type`).
    pub(crate) fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Weights in a block.
    pub(crate) fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
        }
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
            Self::Q4_0 => blocks.for_each(|(b, o)| {
                let d = f16_at(b, 0);
                nibbles(&b[2..], o, |q, _| d * (f32::from(q) - 8.0));
            }),
            Self::Q4_1 => blocks.for_each(|(b, o)| {
                let (d, m) = (f16_at(b, 0), f16_at(b, 2));
                nibbles(&b[4..], o, |q, _| d * f32::from(q) + m);
            }),
            Self::Q5_0 => blocks.for_each(|(b, o)| {
                let (d, high) = (f16_at(b, 0), u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
                nibbles(&b[6..], o, |q, i| {
                    d * (f32::from(q | fifth_bit(high, i)) - 16.0)
                });
            }),
            Self::Q5_1 => blocks.for_each(|(b, o)| {
                let (d, m, high) = (
                    f16_at(b, 0),
                    f16_at(b, 2),
                    u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
                );
                nibbles(&b[8..], o, |q, i| d * f32::from(q | fifth_bit(high, i)) + m);
            }),
            Self::Q8_0 => blocks.for_each(|(b, o)| {
                let d = f16_at(b, 0);
                for (o, q) in o.iter_mut().zip(&b[2..]) {
                    *o = d * f32::from(*q as i8);
                }
            }),
        }
    }
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn fifth_bit(high: u32, index: usize) -> u8 {
    ((high >> index & 1) << 4) as u8
}

/// Calls `value` with each of a block's 32 nibbles and its index.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (i, ((byte, low), high)) in bytes.iter().zip(low).zip(high).enumerate() {
        *low = value(byte & 15, i);
        *high = value(byte >> 4, i + 16);
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

    #[test]
    fn codes_and_types_match_both_ways() {
        for kind in TensorType::ALL {
            assert_eq!(TensorType::from_code(kind.code()), Some(kind));
        }
        assert_eq!(TensorType::from_code(4), None);
    }
}
