//! A whole model on the device: the processor's logits and answers, whatever the order of threads.

use std::sync::Arc;

use super::driver::{for_each_setting, on_driver};
use crate::quant::TensorType;
use crate::testing::{model, tiny_llama};
use crate::{
    DeviceChoice, Engine, EngineOptions, Event, GenerateRequest, Generation, Model, ModelOptions,
    Precision, Prompt, Sampling,
};

const GPU: DeviceChoice = DeviceChoice::Cuda(0);

pub(super) fn open(kind: TensorType, device: DeviceChoice, precision: Precision) -> Arc<Model> {
    let options = ModelOptions {
        device,
        precision,
        ..ModelOptions::default()
    };
    model(&tiny_llama(kind, 256), &options).unwrap()
}

fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 11) % 256).collect()
}

/// The largest difference between two models' logits.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.fold(0.0, |worst, (a, b)| {
        assert!(a.is_finite(), "a logit is {a}");
        f32::max(worst, (a - b).abs())
    })
}

#[test]
fn logits_are_the_processors_and_do_not_depend_on_how_the_text_is_cut() {
    on_driver(&[("SEED", "11"), ("THREADS", "2")], || {
        for kind in [
            TensorType::Q4_1,
            TensorType::Bf16,
            TensorType::F32,
            TensorType::Q5_0,
        ] {
            let tokens = tokens(75);
            let wanted = open(kind, DeviceChoice::Cpu, Precision::Exact)
                .logits(&tokens, 64)
                .unwrap();
            let exact = open(kind, GPU, Precision::Exact);
            let off = difference(&exact.logits(&tokens, 64).unwrap(), &wanted);
            assert!(off < 1e-4, "{kind}, exact: {off}");
            let fast = open(kind, GPU, Precision::Fast);
            let at_once = fast.logits(&tokens, 75).unwrap();
            let off = difference(&at_once, &wanted);
            assert!(off < 1e-2, "{kind}, fast: {off}");
            // One by one they are replayed from a recording; in parts, other kernels compute them.
            for chunk in [1, 7, 40] {
                assert_eq!(
                    fast.logits(&tokens, chunk).unwrap(),
                    at_once,
                    "{kind}, {chunk} at once"
                );
            }
        }
    });
}

#[test]
fn a_small_model_of_every_architecture_gives_the_processors_logits() {
    on_driver(&[("SEED", "4"), ("THREADS", "2")], || {
        let models = super::driver::root().join("tests/golden/models");
        for name in ["llama", "qwen2", "qwen3", "gemma3"] {
            for path in [models.join(name), models.join(name).join("model.gguf")] {
                let open = |device, precision| {
                    let options = ModelOptions {
                        device,
                        precision,
                        ..ModelOptions::default()
                    };
                    Model::open(&path, &options).unwrap()
                };
                let tokens = tokens(70);
                let wanted = open(DeviceChoice::Cpu, Precision::Exact)
                    .logits(&tokens, 70)
                    .unwrap();
                for (precision, most) in [(Precision::Exact, 1e-3), (Precision::Fast, 5e-2)] {
                    let gpu = open(GPU, precision);
                    let at_once = gpu.logits(&tokens, 64).unwrap();
                    let off = difference(&at_once, &wanted);
                    println!("{}: {precision:?}: off by {off}", path.display());
                    assert!(off < most, "{}, {precision:?}: {off}", path.display());
                }
            }
        }
    });
}

#[test]
fn an_encoder_gives_the_processors_embeddings() {
    on_driver(&[("SEED", "9"), ("THREADS", "2")], || {
        let path = super::driver::root().join("tests/golden/models/bert");
        let texts = ["a text", "another, which is longer than the first one"].map(String::from);
        let embed = |device| {
            let options = ModelOptions {
                device,
                ..ModelOptions::default()
            };
            let model = Model::open(&path, &options).unwrap();
            let options = EngineOptions {
                kv_bytes: 1 << 20,
                ..EngineOptions::default()
            };
            let engine = Engine::start(model, options).unwrap();
            tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap()
                .block_on(engine.embed(&texts, crate::Caller::default()))
                .unwrap()
        };
        let (seen, wanted) = (embed(GPU), embed(DeviceChoice::Cpu));
        assert!(difference(&seen, &wanted) < 5e-3);
    });
}

#[test]
fn no_order_of_threads_changes_a_bit() {
    let seeds: Vec<String> = (1..=20).map(|seed| seed.to_string()).collect();
    let settings: Vec<[(&str, &str); 1]> =
        seeds.iter().map(|seed| [("SEED", seed.as_str())]).collect();
    let settings: Vec<&[(&str, &str)]> = settings.iter().map(|one| &one[..]).collect();
    let printed = for_each_setting(&settings, || {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        // A part of 64, then one of 6 whose units of attention are shared out.
        let tokens = tokens(70);
        let wanted = open(TensorType::Q4_0, DeviceChoice::Cpu, Precision::Exact)
            .logits(&tokens, 64)
            .unwrap();
        let mut hash = DefaultHasher::new();
        for (precision, count) in [(Precision::Fast, 70), (Precision::Exact, 20)] {
            let gpu = open(TensorType::Q4_0, GPU, precision);
            let seen = gpu.logits(&tokens[..count], 64).unwrap();
            assert!(difference(&seen, &wanted[..count]) < 1e-2);
            seen.iter()
                .flatten()
                .for_each(|x| x.to_bits().hash(&mut hash));
        }
        println!("hash {:016x}", hash.finish());
    });
    let hashes: Vec<&str> = printed
        .iter()
        .map(|text| text.lines().find(|line| line.contains("hash ")).unwrap())
        .map(|line| line.split_once("hash ").unwrap().1)
        .collect();
    assert!(
        hashes.windows(2).all(|pair| pair[0] == pair[1]),
        "{hashes:?}"
    );
}

/// A request whose answer is not cut short by the end token.
pub(super) fn request(text: &str, tokens: u32) -> GenerateRequest {
    GenerateRequest {
        sampling: Sampling {
            logit_bias: [(257, -100.0)].into(),
            ..Sampling::greedy()
        },
        max_tokens: Some(tokens),
        ..GenerateRequest::new(Prompt::Text(text.into()))
    }
}

pub(super) fn answer(mut generation: Generation) -> Result<Vec<u32>, crate::Error> {
    let mut ids = Vec::new();
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Token(token) => ids.push(token.id),
            Event::Failed(error) => return Err(error),
            Event::Started { .. } | Event::Finished(_) => {}
        }
    }
    Ok(ids)
}

#[test]
fn an_engine_on_the_gpu_answers_as_one_on_the_processor() {
    on_driver(&[("SEED", "2"), ("THREADS", "2")], || {
        let engine = |device, precision| {
            let options = EngineOptions {
                threads: 1,
                max_sequences: 4,
                prefill_chunk: 24,
                kv_bytes: 1 << 20,
                ..EngineOptions::default()
            };
            Engine::start(open(TensorType::F32, device, precision), options).unwrap()
        };
        let texts = [
            "a",
            "some longer text to start with, over a page of it",
            "hm",
            "0 1 2 3 4 5",
        ];
        let all = |engine: &Engine| -> Vec<Vec<u32>> {
            let started: Vec<Generation> = texts
                .iter()
                .map(|text| engine.generate(request(text, 12)).unwrap())
                .collect();
            started
                .into_iter()
                .map(|one| answer(one).unwrap())
                .collect()
        };
        let wanted = all(&engine(DeviceChoice::Cpu, Precision::Exact));
        assert_eq!(all(&engine(GPU, Precision::Exact)), wanted);
        let fast = engine(GPU, Precision::Fast);
        let together = all(&fast);
        for (text, together) in texts.iter().zip(&together) {
            assert_eq!(
                &answer(fast.generate(request(text, 12)).unwrap()).unwrap(),
                together
            );
        }
    });
}
