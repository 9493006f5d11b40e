//! The numbers in a file of the llama family that fix its graph.

use crate::gguf::{Gguf, TensorInfo};
use crate::ops::{HeadShape, Row};
use crate::{Error, Result};

/// The numbers that fix the graph, all checked against each other.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Config {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocabulary: usize,
    pub(crate) context: u32,
    pub(crate) epsilon: f32,
    rope_dim: usize,
    /// For each rotated pair, radians a position.
    frequencies: Vec<f32>,
}

impl Config {
    /// Reads the keys of a file whose architecture is `llama`.
    pub(crate) fn read(gguf: &Gguf) -> Result<Self> {
        let count = |key: &str, most: u32| -> Result<usize> {
            let key = format!("llama.{key}");
            match gguf.u32(&key)? {
                0 => Err(Error::Gguf(format!("the key `{key}` is 0"))),
                n if n > most => Err(Error::Unsupported(format!(
                    "the key `{key}` is {n}; up to {most} is supported"
                ))),
                n => Ok(n as usize),
            }
        };
        let (layers, width) = (
            count("block_count", 1024)?,
            count("embedding_length", 1 << 17)?,
        );
        let (hidden, heads) = (
            count("feed_forward_length", 1 << 20)?,
            count("attention.head_count", 1024)?,
        );
        let kv_heads = match gguf.get("llama.attention.head_count_kv") {
            None => heads,
            Some(_) => count("attention.head_count_kv", 1024)?,
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(Error::Gguf(format!(
                "{heads} attention heads do not share {kv_heads} key-value heads evenly"
            )));
        }
        let head_dim = match gguf.optional_u32("llama.attention.key_length")? {
            Some(n) => n as usize,
            None => width / heads,
        };
        if let Some(value) = gguf.optional_u32("llama.attention.value_length")?
            && value as usize != head_dim
        {
            return Err(Error::Unsupported(format!(
                "keys of {head_dim} and values of {value} elements"
            )));
        }
        let rope_dim = gguf
            .optional_u32("llama.rope.dimension_count")?
            .map_or(head_dim, |n| n as usize);
        if head_dim == 0 || head_dim > 1024 || rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
            return Err(Error::Gguf(format!(
                "heads of {head_dim} elements, of which {rope_dim} are rotated"
            )));
        }
        if gguf
            .optional_u32("llama.expert_count")?
            .is_some_and(|n| n > 0)
        {
            return Err(Error::Unsupported(
                "mixtures of experts (`llama.expert_count`)".into(),
            ));
        }
        let mut context = gguf.u32("llama.context_length")?.clamp(1, 1 << 24);
        // Full attention inside the window is exact, so a model with a window serves contexts up to it.
        if let Some(window) = gguf.optional_u32("llama.attention.sliding_window")?
            && (1..context).contains(&window)
        {
            tracing::warn!(
                window,
                context,
                "sliding-window attention: the context is limited to the window"
            );
            context = window;
        }
        let vocabulary = tensor(gguf, "token_embd.weight")?.0.rows;
        let epsilon = gguf.optional_f32("llama.attention.layer_norm_rms_epsilon")?;
        let epsilon = epsilon.ok_or_else(|| {
            Error::Gguf("the key `llama.attention.layer_norm_rms_epsilon` is missing".into())
        })?;
        let frequencies = frequencies(gguf, rope_dim)?;
        Ok(Self {
            layers,
            width,
            hidden,
            heads,
            kv_heads,
            head_dim,
            vocabulary,
            context,
            epsilon,
            rope_dim,
            frequencies,
        })
    }

    pub(crate) fn head_shape(&self) -> HeadShape {
        HeadShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rope_dim: self.rope_dim,
        }
    }

    /// The cosines and sines of each row's rotation.
    pub(crate) fn angles(&self, rows: &[Row], out: &mut Vec<f32>) {
        out.clear();
        for row in rows {
            let position = row.position as f32;
            out.extend(self.frequencies.iter().map(|f| (position * f).cos()));
            out.extend(self.frequencies.iter().map(|f| (position * f).sin()));
        }
    }
}

/// Rotation speeds: base^(-2i/dim), scaled linearly where the file says so, and divided by the file's own
/// factors (`rope_freqs.weight`, Llama 3.1's scaling).
fn frequencies(gguf: &Gguf, rope_dim: usize) -> Result<Vec<f32>> {
    let base = f64::from(
        gguf.optional_f32("llama.rope.freq_base")?
            .unwrap_or(10_000.0),
    );
    let scale = match gguf.optional_string("llama.rope.scaling.type")? {
        None => gguf.optional_f32("llama.rope.scale_linear")?.unwrap_or(1.0),
        Some("none") => 1.0,
        Some("linear") => gguf
            .optional_f32("llama.rope.scaling.factor")?
            .unwrap_or(1.0),
        Some(other) => {
            return Err(Error::Unsupported(format!(
                "rotary scaling `{other}` (`llama.rope.scaling.type`)"
            )));
        }
    };
    let mut out: Vec<f32> = (0..rope_dim / 2)
        .map(|i| (base.powf(-2.0 * i as f64 / rope_dim as f64) / f64::from(scale)) as f32)
        .collect();
    if gguf.tensor("rope_freqs.weight").is_some() {
        for (frequency, factor) in
            out.iter_mut()
                .zip(vector(gguf, "rope_freqs.weight", rope_dim / 2)?)
        {
            *frequency /= factor;
        }
    }
    if out.iter().any(|f| !f.is_finite()) {
        return Err(Error::Gguf(
            "the rotary frequencies are not finite; see `llama.rope.*` and `rope_freqs.weight`"
                .into(),
        ));
    }
    Ok(out)
}

pub(crate) fn tensor<'a>(gguf: &'a Gguf, name: &str) -> Result<(&'a TensorInfo, &'a [u8])> {
    gguf.tensor(name)
        .ok_or_else(|| Error::Gguf(format!("tensor {name} is missing")))
}

/// A vector of a known length, widened.
pub(crate) fn vector(gguf: &Gguf, name: &str, len: usize) -> Result<Vec<f32>> {
    let (info, bytes) = tensor(gguf, name)?;
    if info.rows * info.columns != len {
        let found = info.rows * info.columns;
        return Err(Error::Gguf(format!(
            "tensor {name}: {found} elements, but the model needs {len}"
        )));
    }
    let mut out = vec![0.0; len];
    info.kind.dequantise(bytes, &mut out);
    Ok(out)
}
