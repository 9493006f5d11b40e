//! The keys of a GGUF file that fix a decoder's numbers.

use crate::config::{Family, Numbers, RopeScaling};
use crate::gguf::{Gguf, Value};
use crate::ops::RopeOrder;
use crate::{Error, Result};

/// Reads the keys that begin with the file's architecture.
pub(crate) fn numbers(gguf: &Gguf, architecture: &str, family: Family) -> Result<Numbers> {
    let key = |name: &str| format!("{architecture}.{name}");
    let count = |name: &str| gguf.u32(&key(name)).map(|n| n as usize);
    let optional = |name: &str| Ok::<_, Error>(gguf.optional_u32(&key(name))?.map(|n| n as usize));
    let number = |name: &str| gguf.optional_f32(&key(name));
    let (layers, heads, width) = (
        count("block_count")?,
        count("attention.head_count")?,
        count("embedding_length")?,
    );
    let head_dim = optional("attention.key_length")?;
    let of_values = optional("attention.value_length")?;
    let keys = head_dim.unwrap_or(width / heads.max(1));
    if let Some(values) = of_values.filter(|values| *values != keys) {
        return Err(Error::Unsupported(format!(
            "keys of {keys} and values of {values} elements"
        )));
    }
    if optional("expert_count")?.is_some_and(|n| n > 0) {
        return Err(Error::Unsupported(format!(
            "mixtures of experts (`{}`)",
            key("expert_count")
        )));
    }
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if number(cap)?.is_some_and(|cap| cap > 0.0) {
            return Err(Error::Unsupported(format!(
                "capped logits (`{}`)",
                key(cap)
            )));
        }
    }
    let epsilon = "attention.layer_norm_rms_epsilon";
    let epsilon = number(epsilon)?
        .ok_or_else(|| Error::Gguf(format!("the key `{}` is missing", key(epsilon))))?;
    let gemma = family == Family::Gemma3;
    let rope_scaling = match gguf.optional_string(&key("rope.scaling.type"))? {
        None => number("rope.scale_linear")?.map_or(RopeScaling::None, linear),
        Some("none") => RopeScaling::None,
        Some("linear") => number("rope.scaling.factor")?.map_or(RopeScaling::None, linear),
        Some(other) => {
            return Err(Error::Unsupported(format!(
                "rotary scaling `{other}` (`{}`)",
                key("rope.scaling.type")
            )));
        }
    };
    // Gemma 3 with 27 billion weights divides by the root of this instead of the heads' size.
    let odd_scale = gemma && layers == 62;
    Ok(Numbers {
        family,
        layers,
        width,
        hidden: count("feed_forward_length")?,
        heads,
        kv_heads: optional("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rope_dim: optional("rope.dimension_count")?,
        rope_order: match family {
            Family::Llama => RopeOrder::Neighbours,
            _ => RopeOrder::Halves,
        },
        rope_base: number("rope.freq_base")?.map_or(if gemma { 1e6 } else { 1e4 }, f64::from),
        rope_scaling,
        local_rope_base: number("rope.freq_base_swa")?.map_or(1e4, f64::from),
        context: gguf.u32(&key("context_length"))?,
        epsilon,
        window: gguf.optional_u32(&key("attention.sliding_window"))?,
        windowed: windowed(gguf, &key("attention.sliding_window_pattern"), layers)?,
        attention_divisor: odd_scale.then(|| width as f32 / heads.max(1) as f32),
        norm_offset: 0.0,
    })
}

fn linear(factor: f32) -> RopeScaling {
    RopeScaling::Linear(f64::from(factor))
}

/// Which layers have a window: a list, or every so many layers one without.
fn windowed(gguf: &Gguf, key: &str, layers: usize) -> Result<Option<Vec<bool>>> {
    match gguf.get(key) {
        None => Ok(None),
        Some(Value::Array(values)) if values.iter().all(|v| matches!(v, Value::Bool(_))) => {
            let layers = values.iter().map(|value| *value == Value::Bool(true));
            Ok(Some(layers.collect()))
        }
        Some(_) => {
            let period = gguf.u32(key)? as usize;
            let has = |layer: usize| period == 0 || !(layer + 1).is_multiple_of(period);
            Ok(Some((0..layers.min(1024)).map(has).collect()))
        }
    }
}
