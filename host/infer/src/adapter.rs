//! LoRA adapters in PEFT's format: a folder with `adapter_config.json` and `adapter_model.safetensors`. An adapter adds
//! `scale * B * A` to some of a decoder's matrices (arXiv:2106.09685); A and B are kept apart, so that one copy of the
//! base serves many adapters in one batch.
//!
//! Source of the format: <https://huggingface.co/docs/peft>, "LoRA" and "PEFT checkpoint format".

use std::path::Path;

use serde_json::Value;

use crate::folder;
use crate::safetensors::Safetensors;
use crate::{Error, Result};

/// The largest rank that is taken.
const LARGEST_RANK: usize = 1024;

/// A matrix that an adapter may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    Q,
    K,
    V,
    AttentionOut,
    Gate,
    Up,
    Down,
}

impl Module {
    const ALL: [(Self, &str); 7] = [
        (Self::Q, "self_attn.q_proj"),
        (Self::K, "self_attn.k_proj"),
        (Self::V, "self_attn.v_proj"),
        (Self::AttentionOut, "self_attn.o_proj"),
        (Self::Gate, "mlp.gate_proj"),
        (Self::Up, "mlp.up_proj"),
        (Self::Down, "mlp.down_proj"),
    ];

    /// Its name in Hugging Face's models, without `model.layers.N.`.
    pub(crate) fn name(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(module, _)| *module == self)
            .map_or("", |(_, name)| name)
    }
}

/// What an adapter adds to one matrix: `b * a`, with the scale in `b`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) layer: usize,
    pub(crate) module: Module,
    pub(crate) rank: usize,
    /// Elements of the matrix's input and output.
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `rank` rows of `inputs`.
    pub(crate) a: Vec<f32>,
    /// `outputs` rows of `rank`.
    pub(crate) b: Vec<f32>,
}

/// An adapter as it was read.
#[derive(Debug)]
pub(crate) struct AdapterFile {
    pub(crate) changes: Vec<Change>,
    /// SHA-256 of the base's file, in hexadecimal, where the adapter says so (`millgate.base_sha256`).
    pub(crate) base_sha256: Option<String>,
}

/// How the sizes of changes follow from the config.
struct Scales {
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    ranks: Vec<(String, usize)>,
    alphas: Vec<(String, f64)>,
}

impl AdapterFile {
    /// Reads an adapter's folder.
    ///
    /// # Errors
    /// [`Error::Adapter`] names the field or tensor that is missing, does not fit, or is of a kind that is not known.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let config = folder::json(path, "adapter_config.json")?.ok_or_else(|| {
            Error::Adapter(format!(
                "{} holds no adapter_config.json; name the folder that PEFT saved",
                path.display()
            ))
        })?;
        let scales = scales(&config)?;
        let file = path.join("adapter_model.safetensors");
        let tensors = Safetensors::open(&file)?;
        if let Some((name, kind)) = tensors.others.iter().next() {
            return Err(Error::Adapter(format!(
                "tensor {name} is of the type {kind}; F32, F16 and BF16 are known"
            )));
        }
        let mut changes = Vec::new();
        let mut names: Vec<&String> = tensors.tensors.keys().collect();
        names.sort();
        for name in names {
            let Some(stem) = name.strip_suffix(".lora_A.weight") else {
                if name.ends_with(".lora_B.weight") {
                    continue;
                }
                return Err(Error::Adapter(format!(
                    "tensor {name} is no part of a LoRA adapter of linear layers"
                )));
            };
            let (layer, module) = place(stem)?;
            let read = |name: &str| -> Result<(usize, usize, Vec<f32>)> {
                let info = tensors
                    .tensors
                    .get(name)
                    .ok_or_else(|| Error::Adapter(format!("tensor {name} is missing")))?;
                let bytes = tensors
                    .bytes(info)
                    .ok_or_else(|| Error::Adapter(format!("tensor {name} ends beyond the file")))?;
                let mut out = vec![0.0; info.rows * info.columns];
                info.kind.dequantise(bytes, &mut out);
                Ok((info.rows, info.columns, out))
            };
            let (rank, inputs, a) = read(name)?;
            let other = format!("{stem}.lora_B.weight");
            let (outputs, columns, mut b) = read(&other)?;
            let wanted = scales.rank_of(stem);
            if rank != wanted || columns != wanted || rank == 0 || rank > LARGEST_RANK {
                return Err(Error::Adapter(format!(
                    "{stem}: A is {rank} x {inputs} and B {outputs} x {columns}, but the rank is {wanted} (at most {LARGEST_RANK}): \
                     A must have that many rows and B that many columns (are they transposed?)"
                )));
            }
            let scale = scales.scale_of(stem, rank) as f32;
            b.iter_mut().for_each(|value| *value *= scale);
            if a.iter().chain(&b).any(|value| !value.is_finite()) {
                return Err(Error::Adapter(format!(
                    "{stem}: not all numbers are finite"
                )));
            }
            changes.push(Change {
                layer,
                module,
                rank,
                inputs,
                outputs,
                a,
                b,
            });
        }
        let pairs = tensors.tensors.len();
        if changes.is_empty() || pairs != 2 * changes.len() {
            return Err(Error::Adapter(
                "every lora_A needs its lora_B, and there must be one at least".into(),
            ));
        }
        let base_sha256 = config
            .pointer("/millgate/base_sha256")
            .and_then(Value::as_str)
            .map(str::to_ascii_lowercase);
        Ok(Self {
            changes,
            base_sha256,
        })
    }
}

impl Scales {
    fn rank_of(&self, stem: &str) -> usize {
        of_pattern(&self.ranks, stem).unwrap_or(self.rank)
    }

    /// alpha / r, or alpha / sqrt(r) where ranks are stabilised (arXiv:2312.03732).
    fn scale_of(&self, stem: &str, rank: usize) -> f64 {
        let alpha = of_pattern(&self.alphas, stem).unwrap_or(self.alpha);
        let rank = rank as f64;
        match self.rank_stabilised {
            true => alpha / rank.sqrt(),
            false => alpha / rank,
        }
    }
}

/// The value of the first pattern that names a module: PEFT matches the end of its name.
fn of_pattern<T: Copy>(patterns: &[(String, T)], stem: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| stem == pattern || stem.ends_with(&format!(".{pattern}")))
        .map(|(_, value)| *value)
}

/// Checks what the config says; what would change the result and is not known here is refused.
fn scales(config: &Value) -> Result<Scales> {
    let refuse = |what: String| Err(Error::Adapter(format!("adapter_config.json: {what}")));
    match config.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return refuse(format!("`peft_type` is {other:?}; LORA is known")),
    }
    for name in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if config.get(name).and_then(Value::as_bool).unwrap_or(false) {
            return refuse(format!("`{name}` is not known"));
        }
    }
    if let Some(bias) = config.get("bias").and_then(Value::as_str)
        && bias != "none"
    {
        return refuse(format!("`bias` is `{bias}`; `none` is known"));
    }
    for name in [
        "modules_to_save",
        "layer_replication",
        "alora_invocation_tokens",
    ] {
        if config.get(name).is_some_and(|value| !value.is_null()) {
            return refuse(format!("`{name}` is not known"));
        }
    }
    let number = |name: &str| config.get(name).and_then(Value::as_f64);
    let (Some(rank), Some(alpha)) = (
        config.get("r").and_then(Value::as_u64),
        number("lora_alpha"),
    ) else {
        return refuse("`r` and `lora_alpha` must be numbers".into());
    };
    let patterns = |name: &str| -> Vec<(String, f64)> {
        let map = config.get(name).and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .filter_map(|(pattern, value)| Some((pattern.clone(), value.as_f64()?)))
            .collect()
    };
    Ok(Scales {
        rank: usize::try_from(rank).unwrap_or(usize::MAX),
        alpha,
        rank_stabilised: config
            .get("use_rslora")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        ranks: patterns("rank_pattern")
            .into_iter()
            .map(|(pattern, rank)| (pattern, rank as usize))
            .collect(),
        alphas: patterns("alpha_pattern"),
    })
}

/// The layer and module of `base_model.model.model.layers.N.MODULE`.
fn place(stem: &str) -> Result<(usize, Module)> {
    let rest = stem
        .strip_prefix("base_model.model.")
        .map(|rest| rest.strip_prefix("model.").unwrap_or(rest))
        .and_then(|rest| rest.strip_prefix("layers."));
    rest.and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, name)| {
            let module = Module::ALL.into_iter().find(|(_, known)| *known == name)?;
            Some((layer.parse().ok()?, module.0))
        })
        .ok_or_else(|| {
            let known = Module::ALL.map(|(_, name)| name).join(", ");
            Error::Adapter(format!(
                "{stem} is no matrix that an adapter may change; known are {known} of base_model.model.model.layers.N"
            ))
        })
}
