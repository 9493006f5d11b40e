//! What the fuzz targets in `fuzz/` call: each function takes any bytes, gives them to a reader that faces
//! files or requests, and goes on with what it accepts. Compiled for the fuzzer alone (`--cfg fuzzing`).

use std::path::PathBuf;
use std::sync::LazyLock;

use crate::adapter::AdapterFile;
use crate::grammar::Grammars;
use crate::quant::TensorType;
use crate::safetensors::Safetensors;
use crate::testing::tiny_llama;
use crate::tokenizer::Tokenizer;
use crate::{ChatMessage, DeviceChoice, Grammar, Model, ModelOptions};

/// A folder of this process, in memory where the system has one there.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let folder = parent.join(format!("millgate-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
});

/// Models that are sound: what the damage is done to.
static MODELS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    [TensorType::Q4_1, TensorType::Iq4Nl, TensorType::F16]
        .map(|kind| tiny_llama(kind, 64))
        .into()
});

/// All bytes and two control tokens.
static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let path = file("tokenizer.gguf", &MODELS[0]);
    Tokenizer::read(&crate::gguf::Gguf::open(&path).unwrap()).unwrap()
});

/// One for all inputs, as in a server: what one of them leaves behind must not harm the next.
static GRAMMARS: LazyLock<Grammars> = LazyLock::new(Grammars::default);

fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// `sound` with the changes that `damage` tells: five bytes each, where (of the first 4096 bytes, or of all,
/// where headers are rare) and what; an odd first byte cuts the end off.
fn damaged(sound: &[u8], damage: &[u8]) -> Vec<u8> {
    let mut out = sound.to_vec();
    let Some((&first, rest)) = damage.split_first() else {
        return out;
    };
    for change in rest.chunks_exact(5) {
        let [a, b, c, flags, value] = *change else {
            continue;
        };
        let span = if flags & 1 == 0 {
            out.len().min(4096)
        } else {
            out.len()
        };
        let at = u32::from_le_bytes([a, b, c, 0]) as usize % span;
        match flags >> 1 & 3 {
            0 => out[at] = value,
            1 => out[at] = out[at].wrapping_add(value),
            2 => out[at] ^= 1 << (value & 7),
            // A number of the header becomes one that overflows something.
            _ => out[at..(at + 8).min(span)].fill(value),
        }
    }
    if first & 1 == 1 {
        let keep = out.len() * usize::from(first) / 256;
        out.truncate(keep);
    }
    out
}

/// A GGUF file: these bytes themselves, or a sound model with this damage.
pub fn gguf(data: &[u8]) {
    let Some((&kind, rest)) = data.split_first() else {
        return;
    };
    let bytes = if kind & 3 == 0 {
        [b"GGUF\x03\0\0\0".as_slice(), rest].concat()
    } else {
        damaged(&MODELS[usize::from(kind) % MODELS.len()], rest)
    };
    let path = file("model.gguf", &bytes);
    let options = ModelOptions {
        device: DeviceChoice::Cpu,
        ..ModelOptions::default()
    };
    if let Ok(model) = Model::open(&path, &options) {
        let _ = model.logits(&[1, 2, 3], 2);
        let _ = model.encode_chat(&[ChatMessage::new("user", "hi")], true);
    }
}

/// A safetensors file.
pub fn safetensors(data: &[u8]) {
    // Most random lengths of the header are lies that end the reading at once: every second one is true.
    let bytes = match data.split_first() {
        Some((kind, rest)) if kind & 1 == 0 => {
            let header = rest
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(rest.len());
            [&(header as u64).to_le_bytes(), rest].concat()
        }
        Some((_, rest)) => rest.to_vec(),
        None => return,
    };
    let path = file("model.safetensors", &bytes);
    let Ok(tensors) = Safetensors::open(&path) else {
        return;
    };
    for (name, info) in &tensors.tensors {
        let bytes = tensors.bytes(info);
        let bytes = bytes.unwrap_or_else(|| panic!("{name} was accepted and lies outside"));
        let mut out = vec![0.0; info.rows * info.columns];
        info.kind.dequantise(bytes, &mut out);
    }
}

/// A LoRA adapter: its config up to the first zero byte, its tensors after it.
pub fn adapter(data: &[u8]) {
    let sound = br#"{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":["q_proj"],"base_model_name_or_path":"x"}"#;
    let header = br#"{"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},"base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight":{"dtype":"F32","shape":[4,2],"data_offsets":[32,64]}}"#;
    let end = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    let (config, tensors) = data.split_at(end);
    let folder = FOLDER.join("adapter");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), damaged(sound, config)).unwrap();
    let header = damaged(header, tensors);
    let file = [
        &(header.len() as u64).to_le_bytes(),
        header.as_slice(),
        &[0; 64],
    ]
    .concat();
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    let _ = AdapterFile::open(&folder);
}

/// A JSON Schema.
pub fn schema(data: &[u8]) {
    if let Ok(schema) = serde_json::from_slice(data) {
        follow(&Grammar::JsonSchema(schema));
    }
}

/// A regular expression.
pub fn regex(data: &[u8]) {
    if let Ok(expression) = std::str::from_utf8(data) {
        follow(&Grammar::Regex(expression.into()));
    }
}

/// Compiles a grammar, and follows it for a few tokens.
fn follow(grammar: &Grammar) {
    let Ok(mut matching) = GRAMMARS.matching(grammar, &TOKENIZER) else {
        return;
    };
    let mut logits = vec![0.0; TOKENIZER.len()];
    for step in 0..8 {
        logits.fill(0.0);
        if matching.complete() || matching.mask(&mut logits).is_err() {
            return;
        }
        let allowed: Vec<u32> = (0u32..)
            .zip(&logits)
            .filter(|(_, logit)| logit.is_finite())
            .map(|(id, _)| id)
            .collect();
        let Some(id) = allowed.get(step * 7 % allowed.len().max(1)) else {
            panic!("no token may follow, and the answer may not end");
        };
        if TOKENIZER.is_end(*id) || matching.take(*id).is_err() {
            return;
        }
    }
}
