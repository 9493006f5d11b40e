//! A Hugging Face folder: `config.json`, and `model.safetensors` or the parts that `model.safetensors.index.json` lists.
//! Its tensors get GGUF's names, so that one graph reads both.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{Family, Numbers, RopeScaling};
use crate::ops::RopeOrder;
use crate::safetensors::Safetensors;
use crate::weights::{Source, TensorInfo};
use crate::{Error, Result};

/// The longest JSON file that is read.
const LONGEST_JSON: u64 = 256 << 20;

/// An opened folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    config: Value,
    files: Vec<Safetensors>,
    /// By GGUF's names, with the file that they are in.
    tensors: HashMap<String, (usize, TensorInfo)>,
}

/// Reads a JSON file of a folder; `None` where there is none.
pub(crate) fn json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = file(folder, name)? else {
        return Ok(None);
    };
    let value = serde_json::from_slice(&bytes);
    value
        .map(Some)
        .map_err(|error| Error::Folder(format!("{name}: {error}")))
}

/// Reads a file of a folder; `None` where there is none.
pub(crate) fn file(folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    let read = || {
        if std::fs::metadata(&path)?.len() > LONGEST_JSON {
            return Err(std::io::Error::other("it is larger than 256 MiB"));
        }
        std::fs::read(&path)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// The chat template of a folder: a file of its own, or a key of `tokenizer_config.json`.
pub(crate) fn chat_template(folder: &Path) -> Result<Option<String>> {
    const NAME: &str = "chat_template.jinja";
    if let Some(bytes) = file(folder, NAME)? {
        let text = String::from_utf8(bytes);
        return text
            .map(Some)
            .map_err(|error| Error::Folder(format!("{NAME}: {error}")));
    }
    let settings = json(folder, "tokenizer_config.json")?.unwrap_or_default();
    Ok(match &settings["chat_template"] {
        Value::String(template) => Some(template.clone()),
        // Several by name.
        Value::Array(all) => {
            let default = all
                .iter()
                .find(|one| one["name"] == "default")
                .or(all.first());
            default
                .and_then(|one| one["template"].as_str())
                .map(str::to_owned)
        }
        _ => None,
    })
}

impl Folder {
    /// Reads the configuration and the headers of the weights.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let config = json(path, "config.json")?
            .ok_or_else(|| Error::Folder(format!("{} has no config.json", path.display())))?;
        let names = match json(path, "model.safetensors.index.json")? {
            None => BTreeSet::from(["model.safetensors".to_owned()]),
            Some(index) => parts(&index)?,
        };
        let mut folder = Self {
            path: path.to_owned(),
            config,
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        let family = Family::named(folder.model_type()?);
        let tied = folder.config["tie_word_embeddings"] == Value::Bool(true);
        for (index, name) in names.iter().enumerate() {
            let file = Safetensors::open(&path.join(name))?;
            if family.is_some()
                && let Some((name, kind)) = file.others.iter().next()
            {
                return Err(Error::Unsupported(format!(
                    "tensor {name}: the type {kind}; F32, F16 and BF16 are supported"
                )));
            }
            for (name, info) in &file.tensors {
                let name = match family {
                    Some(_) if tied && name == "lm_head.weight" => continue,
                    // Old files keep the rotation speeds, which the configuration gives too.
                    Some(_) if name.ends_with(".rotary_emb.inv_freq") => continue,
                    Some(family) => gguf_name(name, family).unwrap_or_else(|| name.clone()),
                    None => name.strip_prefix("bert.").unwrap_or(name).to_owned(),
                };
                if folder.tensors.contains_key(&name) {
                    return Err(Error::Folder(format!("tensor {name} is in two files")));
                }
                folder.tensors.insert(name, (index, info.clone()));
            }
            folder.files.push(file);
        }
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// `model_type`: the architecture.
    pub(crate) fn model_type(&self) -> Result<&str> {
        let name = self.config["model_type"].as_str();
        name.ok_or_else(|| Error::Folder("config.json: `model_type` is missing".into()))
    }

    /// Bytes of the weights' files.
    pub(crate) fn len(&self) -> usize {
        self.files.iter().map(Safetensors::len).sum()
    }

    /// Tells the system that the tensors' pages were copied and need not stay in memory.
    pub(crate) fn release_pages(&self) {
        self.files.iter().for_each(Safetensors::release_pages);
    }

    /// A whole number of `config.json` that must be there.
    pub(crate) fn count(&self, key: &str) -> Result<usize> {
        self.optional_count(key)?
            .ok_or_else(|| Error::Folder(format!("config.json: `{key}` is missing")))
    }

    /// A whole number of `config.json` that may be there.
    pub(crate) fn optional_count(&self, key: &str) -> Result<Option<usize>> {
        match &self.config[key] {
            Value::Null => Ok(None),
            value => match value.as_u64().and_then(|n| u32::try_from(n).ok()) {
                Some(number) => Ok(Some(number as usize)),
                None => Err(wrong(key, value, "a whole number of 32 bits")),
            },
        }
    }

    /// A number of `config.json` that must be there.
    pub(crate) fn number(&self, key: &str) -> Result<f64> {
        optional_number(&self.config, key)?
            .ok_or_else(|| Error::Folder(format!("config.json: `{key}` is missing")))
    }

    /// A text of `config.json` that may be there.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.config[key].as_str()
    }

    /// The numbers of a decoder.
    pub(crate) fn numbers(&self, family: Family) -> Result<Numbers> {
        let gemma = family == Family::Gemma3;
        let activation = if gemma {
            "hidden_activation"
        } else {
            "hidden_act"
        };
        let wanted = if gemma { "gelu_pytorch_tanh" } else { "silu" };
        if let Some(other) = self.text(activation).filter(|name| *name != wanted) {
            return Err(Error::Unsupported(format!(
                "config.json: `{activation}` is `{other}`; `{wanted}` is supported"
            )));
        }
        for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if !self.config[cap].is_null() {
                return Err(Error::Unsupported(format!("config.json: `{cap}`")));
            }
        }
        let (layers, heads) = (
            self.count("num_hidden_layers")?,
            self.count("num_attention_heads")?,
        );
        // New files keep all of the rotation in `rope_parameters`, Gemma's one for each kind of layer.
        let parameters = &self.config["rope_parameters"];
        let (full, local) = match &parameters["full_attention"] {
            Value::Null => (parameters, &Value::Null),
            full => (full, &parameters["sliding_attention"]),
        };
        let base = match optional_number(full, "rope_theta")? {
            Some(base) => base,
            None => optional_number(&self.config, "rope_theta")?.unwrap_or(if gemma {
                1e6
            } else {
                1e4
            }),
        };
        let local_base = match optional_number(local, "rope_theta")? {
            Some(base) => base,
            None => optional_number(&self.config, "rope_local_base_freq")?.unwrap_or(1e4),
        };
        let scaling = if full.is_null() {
            &self.config["rope_scaling"]
        } else {
            full
        };
        // Qwen 2 names a window that it does not use.
        let window = match &self.config["use_sliding_window"] {
            Value::Bool(false) => None,
            _ => self.optional_count("sliding_window")?,
        };
        let windowed = match &self.config["layer_types"] {
            Value::Array(types) => Some(types.iter().map(|t| t == "sliding_attention").collect()),
            _ => self
                .optional_count("sliding_window_pattern")?
                .map(|period| {
                    let has = |layer: usize| period == 0 || !(layer + 1).is_multiple_of(period);
                    (0..layers.min(1024)).map(has).collect()
                }),
        };
        let divisor = match gemma {
            true => optional_number(&self.config, "query_pre_attn_scalar")?,
            false => None,
        };
        Ok(Numbers {
            family,
            layers,
            width: self.count("hidden_size")?,
            hidden: self.count("intermediate_size")?,
            heads,
            kv_heads: self.optional_count("num_key_value_heads")?.unwrap_or(heads),
            head_dim: self.optional_count("head_dim")?,
            rope_dim: None,
            rope_order: RopeOrder::Halves,
            rope_base: base,
            rope_scaling: rope_scaling(scaling)?,
            local_rope_base: local_base,
            context: u32::try_from(self.count("max_position_embeddings")?).unwrap_or(u32::MAX),
            epsilon: self.number("rms_norm_eps")? as f32,
            window: window.and_then(|window| u32::try_from(window).ok()),
            windowed,
            attention_divisor: divisor.map(|divisor| divisor as f32),
            // Gemma's files keep what is added to 1.
            norm_offset: if gemma { 1.0 } else { 0.0 },
        })
    }
}

impl Source for Folder {
    fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let (file, info) = self.tensors.get(name)?;
        Some((info, self.files.get(*file)?.bytes(info)?))
    }

    fn tensors(&self) -> Box<dyn Iterator<Item = (&str, &TensorInfo)> + '_> {
        let all = self.tensors.iter();
        Box::new(all.map(|(name, (_, info))| (name.as_str(), info)))
    }

    fn invalid(&self, what: String) -> Error {
        Error::Folder(what)
    }
}

fn wrong(key: &str, value: &Value, wanted: &str) -> Error {
    Error::Folder(format!("config.json: `{key}` is {value}, not {wanted}"))
}

fn optional_number(of: &Value, key: &str) -> Result<Option<f64>> {
    match &of[key] {
        Value::Null => Ok(None),
        value => match value.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(key, value, "a number")),
        },
    }
}

fn rope_scaling(scaling: &Value) -> Result<RopeScaling> {
    let number = |key: &str| {
        optional_number(scaling, key)?
            .ok_or_else(|| Error::Folder(format!("config.json: `rope_scaling` has no `{key}`")))
    };
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear(number("factor")?)),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            context: number("original_max_position_embeddings")?,
        }),
        other => Err(Error::Unsupported(format!(
            "config.json: rotary scaling `{other}`"
        ))),
    }
}

/// The files that an index lists.
fn parts(index: &Value) -> Result<BTreeSet<String>> {
    const NAME: &str = "model.safetensors.index.json";
    let Value::Object(map) = &index["weight_map"] else {
        return Err(Error::Folder(format!("{NAME}: `weight_map` is missing")));
    };
    let names = map.values().map(|name| match name.as_str() {
        // A name that leads out of the folder is a trap.
        Some(name)
            if Path::new(name)
                .file_name()
                .is_some_and(|plain| plain == name) =>
        {
            Ok(name.to_owned())
        }
        _ => Err(Error::Folder(format!(
            "{NAME}: {name} is not a file's name"
        ))),
    });
    let names = names.collect::<Result<BTreeSet<_>>>()?;
    if names.is_empty() || names.len() > 4096 {
        return Err(Error::Folder(format!(
            "{NAME}: it lists {} files",
            names.len()
        )));
    }
    Ok(names)
}

/// GGUF's name of a decoder's tensor; `None` for one that has none.
fn gguf_name(name: &str, family: Family) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, last) = rest.rsplit_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" if family.post_norms() => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{last}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_leads_out_of_the_folder_is_refused() {
        for name in ["../secret", "/etc/passwd", "", ".", "a/b.safetensors"] {
            let index = serde_json::json!({"weight_map": {"x": name}});
            assert!(parts(&index).is_err(), "{name}");
        }
        let index = serde_json::json!({"weight_map": {"x": "b", "y": "a", "z": "b"}});
        assert_eq!(parts(&index).unwrap().len(), 2);
    }

    #[test]
    fn names_follow_the_family() {
        let norm = "model.layers.3.post_attention_layernorm.weight";
        let name = |family| gguf_name(norm, family).unwrap();
        assert_eq!(name(Family::Gemma3), "blk.3.post_attention_norm.weight");
        assert_eq!(name(Family::Qwen3), "blk.3.ffn_norm.weight");
        assert_eq!(
            gguf_name("model.layers.0.mlp.experts.weight", Family::Llama),
            None
        );
    }
}
