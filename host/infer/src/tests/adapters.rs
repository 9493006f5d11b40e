//! LoRA adapters: merged and unmerged, in a batch, and for the wrong base.

use std::path::Path;
use std::sync::Arc;

use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

use crate::quant::TensorType;
use crate::testing::{cpu, model, open, tiny_llama};
use crate::weights::Source;
use crate::{
    Adapter, Engine, EngineOptions, Error, Event, GenerateRequest, Model, ModelOptions, Precision,
    Prompt, Sampling,
};

/// The tiny model's matrices: name in PEFT, name in GGUF, outputs, inputs, and rows of a head where its rows are in
/// another order in GGUF.
const MATRICES: [(&str, &str, usize, usize, Option<usize>); 7] = [
    ("self_attn.q_proj", "attn_q", 64, 64, Some(16)),
    ("self_attn.k_proj", "attn_k", 32, 64, Some(16)),
    ("self_attn.v_proj", "attn_v", 32, 64, None),
    ("self_attn.o_proj", "attn_output", 64, 64, None),
    ("mlp.gate_proj", "ffn_gate", 96, 64, None),
    ("mlp.up_proj", "ffn_up", 96, 64, None),
    ("mlp.down_proj", "ffn_down", 64, 96, None),
];
const RANK: usize = 4;
const ALPHA: f64 = 6.0;

type Tensor = (String, Vec<usize>, Vec<f32>);

/// Random A and B of all matrices of both layers.
fn tensors(seed: u64) -> Vec<Tensor> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut out = Vec::new();
    for layer in 0..2 {
        for (name, _, outputs, inputs, _) in MATRICES {
            let stem = format!("base_model.model.model.layers.{layer}.{name}");
            for (part, rows, columns) in [("A", RANK, inputs), ("B", outputs, RANK)] {
                let values = (0..rows * columns).map(|_| random.random_range(-0.1..0.1));
                out.push((
                    format!("{stem}.lora_{part}.weight"),
                    vec![rows, columns],
                    values.collect(),
                ));
            }
        }
    }
    out
}

fn config() -> serde_json::Value {
    json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_dora": false, "use_rslora": false,
        "fan_in_fan_out": false, "modules_to_save": null, "rank_pattern": {}, "alpha_pattern": {},
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    })
}

/// Writes an adapter's folder.
fn write(folder: &Path, config: &serde_json::Value, tensors: &[Tensor]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(folder.join("adapter_model.safetensors"), file).unwrap();
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

fn loaded(
    model: &Model,
    config: &serde_json::Value,
    tensors: &[Tensor],
) -> crate::Result<Arc<Adapter>> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), config, tensors);
    model.load_adapter(folder.path())
}

fn exact() -> ModelOptions {
    ModelOptions {
        precision: Precision::Exact,
        ..cpu()
    }
}

/// The tiny model with `scale * B * A` added to its weights.
fn merged(base: &[u8], tensors: &[Tensor]) -> Vec<u8> {
    let gguf = open(base).unwrap();
    let find = |name: String| {
        &tensors
            .iter()
            .find(|(known, _, _)| *known == name)
            .unwrap()
            .2
    };
    let mut out = base.to_vec();
    for layer in 0..2 {
        for (name, gguf_name, outputs, inputs, head) in MATRICES {
            let stem = format!("base_model.model.model.layers.{layer}.{name}");
            let (a, b) = (
                find(format!("{stem}.lora_A.weight")),
                find(format!("{stem}.lora_B.weight")),
            );
            let target = format!("blk.{layer}.{gguf_name}.weight");
            let (info, bytes) = gguf.tensor(&target).unwrap();
            let place = info.offset..info.offset + info.bytes;
            assert_eq!(&out[place.clone()], bytes);
            let mut weights: Vec<f32> = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect();
            for row in 0..outputs {
                // Row `row` of GGUF is this row of Hugging Face's.
                let source = match head {
                    None => row,
                    Some(size) => {
                        let (head, at) = (row / size, row % size);
                        head * size + at % 2 * (size / 2) + at / 2
                    }
                };
                for column in 0..inputs {
                    let delta: f64 = (0..RANK)
                        .map(|r| {
                            f64::from(b[source * RANK + r]) * f64::from(a[r * inputs + column])
                        })
                        .sum();
                    weights[row * inputs + column] += (ALPHA / RANK as f64 * delta) as f32;
                }
            }
            let weights: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
            out[place].copy_from_slice(&weights);
        }
    }
    out
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn merged_and_unmerged_agree() {
    let base = tiny_llama(TensorType::F32, 256);
    let tensors = tensors(1);
    let unmerged = model(&base, &exact()).unwrap();
    let adapter = loaded(&unmerged, &config(), &tensors).unwrap();
    let merged = model(&merged(&base, &tensors), &exact()).unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37) % 250).collect();
    let plain = unmerged.logits(&tokens, 16).unwrap();
    let wanted = merged.logits(&tokens, 16).unwrap();
    assert!(
        largest_difference(&plain, &wanted) > 0.05,
        "the adapter does something"
    );
    for chunk in [1, 16] {
        let found = unmerged
            .adapted_logits(&tokens, chunk, Some(&adapter))
            .unwrap();
        let difference = largest_difference(&found, &wanted);
        assert!(difference < 1e-5, "{difference}");
    }
}

#[test]
fn a_gguf_file_and_a_folder_of_one_model_agree_with_an_adapter() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models/llama");
    let file = Model::open(&golden.join("model.gguf"), &exact()).unwrap();
    let folder = Model::open(&golden, &exact()).unwrap();
    let text = std::fs::read_to_string(golden.join("config.json")).unwrap();
    let sizes: serde_json::Value = serde_json::from_str(&text).unwrap();
    let size = |name: &str| sizes[name].as_u64().unwrap() as usize;
    let head = sizes["head_dim"]
        .as_u64()
        .map_or(size("hidden_size") / size("num_attention_heads"), |n| {
            n as usize
        });
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let mut tensors = Vec::new();
    for (name, outputs) in [
        ("q_proj", size("num_attention_heads")),
        ("k_proj", size("num_key_value_heads")),
    ] {
        let stem = format!("base_model.model.model.layers.0.self_attn.{name}");
        for (part, rows, columns) in [
            ("A", RANK, size("hidden_size")),
            ("B", outputs * head, RANK),
        ] {
            let values = (0..rows * columns).map(|_| random.random_range(-0.5..0.5));
            tensors.push((
                format!("{stem}.lora_{part}.weight"),
                vec![rows, columns],
                values.collect(),
            ));
        }
    }
    let tokens: Vec<u32> = (3..30).collect();
    let run = |model: &Model| {
        let adapter = loaded(model, &config(), &tensors).unwrap();
        model.adapted_logits(&tokens, 8, Some(&adapter)).unwrap()
    };
    let (a, b) = (run(&file), run(&folder));
    assert!(largest_difference(&a, &file.logits(&tokens, 8).unwrap()) > 1e-3);
    // The file's weights may be rounded; the two models differ by as much without an adapter.
    let plain = largest_difference(
        &file.logits(&tokens, 8).unwrap(),
        &folder.logits(&tokens, 8).unwrap(),
    );
    assert!(
        largest_difference(&a, &b) <= 2.0 * plain + 1e-4,
        "{} {plain}",
        largest_difference(&a, &b)
    );
}

fn answer(engine: &Engine, adapter: Option<&Arc<Adapter>>, start: u32) -> crate::Generation {
    let mut request = GenerateRequest::new(Prompt::Tokens((start..start + 70).collect()));
    request.sampling = Sampling::greedy();
    request.max_tokens = Some(24);
    request.adapter = adapter.cloned();
    engine.generate(request).unwrap()
}

fn tokens(mut generation: crate::Generation) -> Vec<u32> {
    let mut out = Vec::new();
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Token(token) => out.push(token.id),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    out
}

#[test]
fn each_request_of_a_batch_has_its_own_adapter_and_no_others_cache() {
    let base = model(&tiny_llama(TensorType::Q4_1, 256), &cpu()).unwrap();
    let adapters = [None, Some(1), Some(2)]
        .map(|seed| seed.map(|seed| loaded(&base, &config(), &tensors(seed)).unwrap()));
    let options = EngineOptions {
        threads: 2,
        ..EngineOptions::default()
    };
    let alone: Vec<Vec<u32>> = adapters
        .iter()
        .map(|adapter| {
            let engine = Engine::start(Arc::clone(&base), options.clone()).unwrap();
            tokens(answer(&engine, adapter.as_ref(), 5))
        })
        .collect();
    assert!(alone[0] != alone[1] && alone[1] != alone[2], "{alone:?}");
    let engine = Engine::start(Arc::clone(&base), options).unwrap();
    for _ in 0..2 {
        // Equal prompts: what is cached for one adapter must not serve another.
        let all = adapters
            .each_ref()
            .map(|adapter| answer(&engine, adapter.as_ref(), 5));
        assert_eq!(all.map(tokens).to_vec(), alone);
    }
}

#[test]
fn an_adapter_lives_as_long_as_its_requests() {
    let base = model(&tiny_llama(TensorType::F32, 256), &cpu()).unwrap();
    let adapter = loaded(&base, &config(), &tensors(1)).unwrap();
    let engine = Engine::start(Arc::clone(&base), EngineOptions::default()).unwrap();
    let generation = answer(&engine, Some(&adapter), 5);
    drop(adapter);
    assert!(!tokens(generation).is_empty());
    let other = model(&tiny_llama(TensorType::F32, 256), &cpu()).unwrap();
    let stranger = loaded(&other, &config(), &tensors(1)).unwrap();
    let mut request = GenerateRequest::new(Prompt::Tokens(vec![1, 2]));
    request.adapter = Some(stranger);
    assert!(matches!(engine.generate(request), Err(Error::Invalid(_))));
}

#[test]
fn what_does_not_fit_is_named() {
    // The file stays: its hash is compared.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny_llama(TensorType::F32, 256)).unwrap();
    let base = Model::open(file.path(), &cpu()).unwrap();
    let good = tensors(1);
    let fails = |config: &serde_json::Value, tensors: &[Tensor], word: &str| {
        let error = loaded(&base, config, tensors).unwrap_err();
        assert!(matches!(error, Error::Adapter(_)), "{error:?}");
        assert!(error.to_string().contains(word), "{error} names {word}");
    };
    let with = |name: &str, value: serde_json::Value| {
        let mut config = config();
        config[name] = value;
        config
    };
    fails(&with("peft_type", json!("IA3")), &good, "peft_type");
    fails(&with("use_dora", json!(true)), &good, "use_dora");
    fails(&with("bias", json!("all")), &good, "bias");
    fails(
        &with("modules_to_save", json!(["lm_head"])),
        &good,
        "modules_to_save",
    );
    fails(&with("r", json!("four")), &good, "`r`");
    fails(&with("r", json!(8)), &good, "the rank is 8");
    fails(
        &with("millgate", json!({"base_sha256": "00"})),
        &good,
        "SHA-256",
    );
    let changed = |change: &dyn Fn(&mut Vec<Tensor>)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        tensors
    };
    let transposed = changed(&|tensors| {
        for (_, shape, _) in tensors {
            shape.reverse();
        }
    });
    fails(&config(), &transposed, "transposed");
    fails(
        &config(),
        &changed(&|tensors| drop(tensors.remove(1))),
        "lora_B.weight is missing",
    );
    fails(
        &config(),
        &changed(&|tensors| drop(tensors.remove(0))),
        "lora_B",
    );
    fails(
        &config(),
        &changed(&|tensors| tensors[0].2[3] = f32::NAN),
        "finite",
    );
    let deeper = changed(&|tensors| {
        for (name, _, _) in tensors {
            *name = name.replace("layers.1", "layers.7");
        }
    });
    fails(&config(), &deeper, "another base");
    let other = changed(&|tensors| {
        for (name, _, _) in tensors.iter_mut().take(2) {
            *name = name.replace("q_proj", "k_proj");
        }
        tensors.drain(2..);
    });
    fails(&config(), &other, "another base");
    fails(
        &config(),
        &[(
            "base_model.model.lm_head.lora_A.weight".into(),
            vec![4, 64],
            vec![0.0; 256],
        )],
        "lm_head",
    );
    fails(&config(), &[], "at least");
}
