//! The numbers that fix a model's graph, all checked against each other.

use crate::ops::{Activation, HeadShape, Reach, RopeOrder, Row};
use crate::weights::{Source, vector};
use crate::{Error, Result};

/// The decoders that there are: which parts beside Llama's a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// RMS norms, rotary embedding, grouped-query attention, SwiGLU.
    Llama,
    /// Llama with biases of q, k and v.
    Qwen2,
    /// Llama with a norm of each head of q and k (arXiv:2505.09388).
    Qwen3,
    /// Norms of the heads and after each part too, a gate of gelu, scaled embeddings, and attention within a window
    /// in most layers (arXiv:2503.19786).
    Gemma3,
}

impl Family {
    /// By `general.architecture` of GGUF, or `model_type` of Hugging Face.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "llama" | "mistral" => Some(Self::Llama),
            "qwen2" => Some(Self::Qwen2),
            "qwen3" => Some(Self::Qwen3),
            "gemma3" | "gemma3_text" => Some(Self::Gemma3),
            _ => None,
        }
    }

    /// Whether each head of q and k has a norm.
    pub(crate) fn head_norms(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether what attention and the feed-forward layer give is normed before it joins the stream.
    pub(crate) fn post_norms(self) -> bool {
        self == Self::Gemma3
    }
}

/// How rotation speeds are stretched to longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// All by this factor.
    Linear(f64),
    /// Llama 3.1's: slow ones by `factor`, fast ones not, and between them gradually.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        context: f64,
    },
}

/// What a file says, not yet checked.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    pub(crate) family: Family,
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    /// `None`: width / heads.
    pub(crate) head_dim: Option<usize>,
    /// `None`: all of a head.
    pub(crate) rope_dim: Option<usize>,
    pub(crate) rope_order: RopeOrder,
    pub(crate) rope_base: f64,
    pub(crate) rope_scaling: RopeScaling,
    /// Of the layers with a window; never stretched.
    pub(crate) local_rope_base: f64,
    pub(crate) context: u32,
    pub(crate) epsilon: f32,
    pub(crate) window: Option<u32>,
    /// Which layers have the window; `None`: the family's usual ones.
    pub(crate) windowed: Option<Vec<bool>>,
    /// What the square root of is the divisor of attention's products; `None`: head_dim.
    pub(crate) attention_divisor: Option<f32>,
    /// What is added to the norms' weights as the file has them.
    pub(crate) norm_offset: f32,
}

/// The numbers that fix a decoder's graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: u32,
    pub(crate) epsilon: f32,
    pub(crate) norm_offset: f32,
    pub(crate) embedding_scale: f32,
    pub(crate) activation: Activation,
    pub(crate) heads: HeadShape,
    /// What each layer's rows see.
    pub(crate) reach: Vec<Reach>,
    /// For each rotated pair, radians a position.
    frequencies: Vec<f32>,
    /// The same in layers with a window.
    local_frequencies: Vec<f32>,
}

impl Config {
    /// Checks what a file says against its tensors.
    pub(crate) fn new(numbers: &Numbers, source: &dyn Source) -> Result<Self> {
        let (heads, kv_heads) = (numbers.heads, numbers.kv_heads);
        let bounds = [
            ("layers", numbers.layers, 1024),
            ("elements of the residual stream", numbers.width, 1 << 17),
            (
                "elements of the feed-forward layer",
                numbers.hidden,
                1 << 20,
            ),
            ("attention heads", heads, 1024),
            ("key-value heads", kv_heads, 1024),
        ];
        for (what, count, most) in bounds {
            if count == 0 {
                return Err(source.invalid(format!("a model of 0 {what}")));
            }
            if count > most {
                return Err(Error::Unsupported(format!(
                    "{count} {what}; up to {most} are supported"
                )));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(source.invalid(format!(
                "{heads} attention heads do not share {kv_heads} key-value heads evenly"
            )));
        }
        let head_dim = numbers.head_dim.unwrap_or(numbers.width / heads);
        let rope_dim = numbers.rope_dim.unwrap_or(head_dim);
        if head_dim == 0 || head_dim > 1024 || rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
            return Err(source.invalid(format!(
                "heads of {head_dim} elements, of which {rope_dim} are rotated"
            )));
        }
        let vocabulary = match source.tensor("token_embd.weight") {
            Some((info, _)) => info.rows,
            None => return Err(source.invalid("tensor token_embd.weight is missing".into())),
        };
        let gemma = numbers.family == Family::Gemma3;
        // Gemma 3 has a layer of full attention after each five with a window.
        let usual = |layer: usize| !gemma || !(layer + 1).is_multiple_of(6);
        let windowed = |layer: usize| match &numbers.windowed {
            Some(layers) => layers.get(layer).copied().unwrap_or(false),
            None => usual(layer),
        };
        let window = numbers.window.filter(|window| *window > 0);
        let reach = (0..numbers.layers).map(|layer| match window {
            Some(window) if windowed(layer) => Reach::Window(window),
            _ => Reach::Causal,
        });
        let mut frequencies = frequencies(numbers.rope_base, rope_dim, &numbers.rope_scaling);
        // The file's own factors (Llama 3.1's scaling).
        if source.tensor("rope_freqs.weight").is_some() {
            let factors = vector(source, "rope_freqs.weight", rope_dim / 2)?;
            for (frequency, factor) in frequencies.iter_mut().zip(factors) {
                *frequency /= factor;
            }
        }
        let local_frequencies = if gemma {
            self::frequencies(numbers.local_rope_base, rope_dim, &RopeScaling::None)
        } else {
            frequencies.clone()
        };
        if frequencies
            .iter()
            .chain(&local_frequencies)
            .any(|f| !f.is_finite())
        {
            return Err(source.invalid(
                "the rotary frequencies are not finite; see the keys of `rope` and `rope_freqs.weight`".into(),
            ));
        }
        let scale = 1.0 / numbers.attention_divisor.unwrap_or(head_dim as f32).sqrt();
        if !(scale.is_finite() && numbers.epsilon.is_finite()) {
            return Err(
                source.invalid("the scale of attention or the norms' epsilon is not finite".into())
            );
        }
        Ok(Self {
            family: numbers.family,
            width: numbers.width,
            hidden: numbers.hidden,
            vocabulary,
            context: numbers.context.clamp(1, 1 << 24),
            epsilon: numbers.epsilon,
            norm_offset: numbers.norm_offset,
            embedding_scale: if gemma {
                (numbers.width as f32).sqrt()
            } else {
                1.0
            },
            activation: if gemma {
                Activation::GeluTanh
            } else {
                Activation::Silu
            },
            heads: HeadShape {
                heads,
                kv_heads,
                head_dim,
                rope_dim,
                rope_order: numbers.rope_order,
                scale,
            },
            reach: reach.collect(),
            frequencies,
            local_frequencies,
        })
    }

    /// The cosines and sines of each row's rotation, in layers of full attention and in those with a window.
    pub(crate) fn angles(&self, rows: &[Row], out: &mut [Vec<f32>; 2]) {
        let [full, local] = out;
        angles(&self.frequencies, rows, full);
        if self.local_frequencies == self.frequencies {
            local.clone_from(full);
        } else {
            angles(&self.local_frequencies, rows, local);
        }
    }
}

fn angles(frequencies: &[f32], rows: &[Row], out: &mut Vec<f32>) {
    out.clear();
    for row in rows {
        let position = row.position as f32;
        out.extend(frequencies.iter().map(|f| (position * f).cos()));
        out.extend(frequencies.iter().map(|f| (position * f).sin()));
    }
}

/// Rotation speeds: base^(-2i/dim), stretched as asked.
fn frequencies(base: f64, rope_dim: usize, scaling: &RopeScaling) -> Vec<f32> {
    let speeds = (0..rope_dim / 2).map(|i| base.powf(-2.0 * i as f64 / rope_dim as f64));
    let stretched = speeds.map(|speed| match *scaling {
        RopeScaling::None => speed,
        RopeScaling::Linear(factor) => speed / factor,
        RopeScaling::Llama3 {
            factor,
            low,
            high,
            context,
        } => {
            // How many turns the original context holds.
            let turns = context * speed / std::f64::consts::TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            kept * speed + (1.0 - kept) * speed / factor
        }
    });
    stretched.map(|speed| speed as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_three_stretches_slow_rotations_and_keeps_fast_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low: 1.0,
            high: 4.0,
            context: 8192.0,
        };
        let (plain, stretched) = (
            frequencies(500_000.0, 128, &RopeScaling::None),
            frequencies(500_000.0, 128, &scaling),
        );
        assert_eq!(plain[0], stretched[0]);
        assert!((plain[63] / stretched[63] - 8.0).abs() < 1e-4);
        let ratios = plain.iter().zip(&stretched).map(|(a, b)| a / b);
        assert!(
            ratios
                .clone()
                .zip(ratios.skip(1))
                .all(|(a, b)| a <= b * 1.000_001)
        );
    }
}
