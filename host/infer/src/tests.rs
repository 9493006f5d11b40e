//! The crate as a whole, on a tiny model with random weights.

mod adapters;
mod explain;
mod serving;

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::quant::TensorType;
use crate::testing::{cpu, model, tiny_llama};
use crate::{
    Caller, ChatMessage, Engine, EngineOptions, Error, Event, Finish, FinishReason,
    GenerateRequest, Generation, Model, ModelOptions, Precision, Priority, Prompt, Sampling, Token,
};

fn tiny(context: u32) -> Arc<Model> {
    model(&tiny_llama(TensorType::Q4_1, context), &cpu()).unwrap()
}

fn engine(model: &Arc<Model>, options: EngineOptions) -> Engine {
    Engine::start(
        Arc::clone(model),
        EngineOptions {
            threads: 2,
            ..options
        },
    )
    .unwrap()
}

fn default_engine() -> Engine {
    engine(&tiny(512), EngineOptions::default())
}

/// A request whose answer is printable ASCII, and is not cut short by the end token.
fn request(text: &str, tokens: u32) -> GenerateRequest {
    let others = (0..32).chain(127..258).map(|id| (id, -100.0));
    GenerateRequest {
        sampling: Sampling {
            logit_bias: others.collect(),
            ..Sampling::greedy()
        },
        max_tokens: Some(tokens),
        ..GenerateRequest::new(Prompt::Text(text.into()))
    }
}

fn collect(mut generation: Generation) -> (Vec<Token>, Result<Finish, Error>) {
    let mut tokens = Vec::new();
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Started { .. } => {}
            Event::Token(token) => tokens.push(token),
            Event::Finished(finish) => return (tokens, Ok(finish)),
            Event::Failed(error) => return (tokens, Err(error)),
        }
    }
    panic!("a generation ended without an end");
}

fn text(tokens: &[Token]) -> String {
    tokens.iter().map(|token| token.text.as_str()).collect()
}

fn run(engine: &Engine, request: GenerateRequest) -> (String, Finish) {
    let (tokens, finish) = collect(engine.generate(request).unwrap());
    (text(&tokens), finish.unwrap())
}

/// Waits until the engine's counts show what is wanted.
fn eventually(engine: &Engine, holds: impl Fn(crate::Stats) -> bool) {
    for _ in 0..2000 {
        if holds(engine.stats()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never seen: {:?}", engine.stats());
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

#[test]
fn answers_are_the_same_alone_and_among_others_greedy_and_seeded() {
    let engine = engine(
        &tiny(512),
        EngineOptions {
            prefill_chunk: 7,
            ..Default::default()
        },
    );
    let requests: Vec<GenerateRequest> = (0..12)
        .map(|i| {
            let mut request = request(
                &"some text to go on with ".repeat(i % 4 + 1)[i..],
                20 + i as u32,
            );
            if i % 2 == 1 {
                request.sampling = Sampling {
                    temperature: 0.9,
                    top_k: 40,
                    seed: Some(i as u64),
                    ..request.sampling
                };
            }
            request
        })
        .collect();
    let alone: Vec<_> = requests
        .iter()
        .map(|r| collect(engine.generate(r.clone()).unwrap()).0)
        .collect();
    let together: Vec<_> = requests
        .iter()
        .map(|r| engine.generate(r.clone()).unwrap())
        .collect();
    for (generation, alone) in together.into_iter().zip(alone) {
        assert_eq!(collect(generation).0, alone);
    }
}

#[test]
fn requests_set_back_for_want_of_memory_give_the_same_answers() {
    let model = tiny(512);
    let roomy = engine(&model, EngineOptions::default());
    // A page holds 32 tokens: 2 planes, 2 layers, 2 heads of 16 f16. Six pages for four requests of up to 100 tokens.
    let tight = engine(
        &model,
        EngineOptions {
            kv_bytes: 6 * 32 * 2 * 2 * 2 * 16 * 2,
            ..Default::default()
        },
    );
    let requests: Vec<_> = (0..4)
        .map(|i| request(&"abcdefg hij ".repeat(i + 1), 60))
        .collect();
    let running: Vec<_> = requests
        .iter()
        .map(|r| tight.generate(r.clone()).unwrap())
        .collect();
    for (generation, request) in running.into_iter().zip(requests) {
        let (tokens, finish) = collect(generation);
        assert_eq!(finish.unwrap().reason, FinishReason::Length);
        assert_eq!(text(&tokens), run(&roomy, request).0);
    }
    assert!(tight.stats().preempted > 0);
    eventually(&tight, |stats| {
        stats.kv_bytes_used == 0 && stats.active == 0
    });
}

#[test]
fn a_full_queue_refuses_and_a_dropped_generation_makes_room() {
    let engine = engine(
        &tiny(100_000),
        EngineOptions {
            max_sequences: 1,
            queue: 1,
            ..Default::default()
        },
    );
    let first = engine.generate(request("a", 20_000)).unwrap();
    let second = engine.generate(request("b", 20_000)).unwrap();
    assert!(matches!(
        engine.generate(request("c", 1)),
        Err(Error::QueueFull { waiting: 1, .. })
    ));
    drop(first);
    eventually(&engine, |stats| stats.cancelled == 1);
    let third = engine.generate(request("c", 1)).unwrap();
    drop(second);
    assert!(collect(third).1.is_ok());
    eventually(&engine, |stats| {
        stats.cancelled == 2
            && stats.kv_bytes_used == 0
            && stats.finished == 3
            && stats.refused == 1
    });
}

#[test]
fn a_dropped_generation_stops_within_one_token() {
    let engine = engine(&tiny(100_000), EngineOptions::default());
    let mut generation = engine.generate(request("a", 90_000)).unwrap();
    while !matches!(generation.next_blocking(), Some(Event::Token(_))) {}
    drop(generation);
    let before = engine.stats().generated_tokens;
    eventually(&engine, |stats| stats.cancelled == 1);
    let after = engine.stats().generated_tokens;
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(engine.stats().generated_tokens, after, "it goes on");
    // Between the drop and the first reading of the counts the engine was free to run; after it, one step at most.
    assert!(after < before + 1000);
}

#[test]
fn higher_priorities_leave_the_queue_first() {
    let engine = engine(
        &tiny(4096),
        EngineOptions {
            max_sequences: 1,
            ..Default::default()
        },
    );
    let blocker = engine.generate(request("x", 3000)).unwrap();
    eventually(&engine, |stats| stats.active == 1);
    let submit = |priority| {
        engine
            .generate(GenerateRequest {
                priority,
                ..request("y", 200)
            })
            .unwrap()
    };
    let (low, high) = (submit(Priority::Low), submit(Priority::High));
    drop(blocker);
    let high_waited = collect(high).1.unwrap().queue_time;
    let low_waited = collect(low).1.unwrap().queue_time;
    assert!(high_waited < low_waited, "{high_waited:?} {low_waited:?}");
}

#[test]
fn a_stop_string_ends_the_answer_before_it() {
    let engine = default_engine();
    let (whole, _) = run(&engine, request("stop test", 60));
    let middle: String = whole.chars().skip(20).take(3).collect();
    let (cut, finish) = run(
        &engine,
        GenerateRequest {
            stop: vec![middle.clone()],
            ..request("stop test", 60)
        },
    );
    assert_eq!(cut, whole[..whole.find(&middle).unwrap()]);
    assert_eq!(
        (finish.reason, finish.stop_text),
        (FinishReason::Stop, Some(middle))
    );
}

#[test]
fn a_banned_string_never_appears_and_the_text_before_it_stays() {
    let engine = default_engine();
    let (whole, _) = run(&engine, request("ban test", 60));
    let middle: String = whole.chars().skip(15).take(2).collect();
    let banned = GenerateRequest {
        ban: vec![middle.clone()],
        ..request("ban test", 60)
    };
    let (other, finish) = run(&engine, banned.clone());
    assert!(
        !other.contains(&middle) && other.starts_with(&whole[..whole.find(&middle).unwrap()]),
        "{other:?} {middle:?}"
    );
    assert_eq!(
        (finish.usage.completion_tokens, finish.reason),
        (60, FinishReason::Length)
    );
    assert_eq!(run(&engine, banned).0, other);
}

#[test]
fn a_ban_that_no_text_satisfies_is_an_error() {
    let engine = default_engine();
    let ban = (b'0'..b'o')
        .map(|byte| char::from(byte).to_string())
        .collect();
    let mut impossible = GenerateRequest {
        ban,
        ..request("x", 5)
    };
    // Nothing but the 63 banned characters may be picked.
    impossible
        .sampling
        .logit_bias
        .extend((32..48).chain(111..127).map(|id| (id, -100.0)));
    let outcome = collect(engine.generate(impossible).unwrap()).1;
    assert!(
        matches!(outcome, Err(Error::BanExhausted(_) | Error::Invalid(_))),
        "{outcome:?}"
    );
}

#[test]
fn a_continuation_goes_on_where_the_answer_was() {
    let engine = default_engine();
    let chat = Prompt::Chat(vec![ChatMessage::new("user", "hello")]);
    let plain = GenerateRequest {
        prompt: chat,
        ..request("", 24)
    };
    let (tokens, _) = collect(engine.generate(plain.clone()).unwrap());
    let whole = text(&tokens);
    let (given, wanted) = whole.split_at(10);
    let (rest, finish) = run(
        &engine,
        GenerateRequest {
            continuation: given.into(),
            max_tokens: Some(14),
            ..plain
        },
    );
    assert_eq!(rest, wanted);
    assert!(finish.usage.prompt_tokens as usize > given.len());
}

#[test]
fn the_context_bounds_prompt_and_answer() {
    let engine = engine(&tiny(64), EngineOptions::default());
    let too_long = engine.generate(request(&"x".repeat(64), 5));
    assert!(matches!(
        too_long,
        Err(Error::ContextExceeded {
            tokens: 64,
            limit: 64
        })
    ));
    assert!(matches!(
        engine.generate(request(&"x".repeat(1 << 20), 5)),
        Err(Error::ContextExceeded { .. })
    ));
    let (_, finish) = run(&engine, request(&"x".repeat(60), 50));
    assert_eq!(
        (finish.reason, finish.usage.completion_tokens),
        (FinishReason::Length, 4)
    );
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let model = tiny(512);
    let engine = engine(&model, EngineOptions::default());
    let wanted = GenerateRequest {
        logprobs: Some(3),
        ..request("log probs", 6)
    };
    let (tokens, finish) = collect(engine.generate(wanted).unwrap());
    assert_eq!(finish.unwrap().usage.completion_tokens, 6);
    let mut ids = model.encode("log probs", false);
    for token in &tokens {
        let logits = model.logits(&ids, 64).unwrap().pop().unwrap();
        let most = logits.iter().copied().fold(f32::MIN, f32::max);
        let log_sum = logits
            .iter()
            .map(|x| f64::from(x - most).exp())
            .sum::<f64>()
            .ln() as f32
            + most;
        assert!((token.logprob - (logits[token.id as usize] - log_sum)).abs() < 1e-4);
        assert_eq!(token.top.len(), 3);
        assert!(token.top[0].logprob >= token.top[1].logprob && token.entropy > 0.0);
        ids.push(token.id);
    }
}

#[test]
fn a_score_is_the_likelihood_of_each_token_however_the_text_is_cut_into_steps() {
    let model = tiny(512);
    let engine = engine(
        &model,
        EngineOptions {
            prefill_chunk: 5,
            ..Default::default()
        },
    );
    let text = "a text to be scored, longer than one step has room for";
    let scores = block_on(engine.score(text, 0, Caller::default())).unwrap();
    let ids = model.encode(text, false);
    let logits = model.logits(&ids, 64).unwrap();
    assert_eq!(scores.len(), ids.len());
    assert_eq!(scores[0].logprob, None);
    for (index, score) in scores.iter().enumerate().skip(1) {
        let row = &logits[index - 1];
        let log_sum = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() as f32;
        assert_eq!(score.id, ids[index]);
        assert!((score.logprob.unwrap() - (row[score.id as usize] - log_sum)).abs() < 1e-4);
    }
}

#[test]
fn embeddings_have_length_one_and_equal_texts_equal_vectors() {
    let engine = default_engine();
    let texts = ["one text", "another one", "one text"].map(String::from);
    let vectors = block_on(engine.embed(&texts, Caller::default())).unwrap();
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    for vector in &vectors {
        assert!(
            (vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5 && vector.len() == 64
        );
    }
}

#[test]
fn an_engine_that_ends_cancels_what_is_under_way() {
    let engine = engine(&tiny(100_000), EngineOptions::default());
    let generation = engine.generate(request("a", 90_000)).unwrap();
    drop(engine);
    assert_eq!(
        collect(generation).1.unwrap().reason,
        FinishReason::Cancelled
    );
}

#[test]
fn requests_out_of_range_are_refused_by_name() {
    let engine = default_engine();
    let plain = request("x", 1);
    for (request, name) in [
        (
            GenerateRequest {
                stop: vec![String::new()],
                ..plain.clone()
            },
            "stop",
        ),
        (
            GenerateRequest {
                ban: vec!["x".repeat(5000)],
                ..plain.clone()
            },
            "ban",
        ),
        (
            GenerateRequest {
                logprobs: Some(21),
                ..plain.clone()
            },
            "logprobs",
        ),
        (
            GenerateRequest {
                max_tokens: Some(0),
                ..plain.clone()
            },
            "max_tokens",
        ),
        (
            GenerateRequest {
                prompt: Prompt::Tokens(vec![258]),
                ..plain.clone()
            },
            "token 258",
        ),
        (
            GenerateRequest {
                prompt: Prompt::Text(String::new()),
                ..plain.clone()
            },
            "empty",
        ),
        (
            GenerateRequest {
                sampling: Sampling {
                    top_p: 2.0,
                    ..Default::default()
                },
                ..plain.clone()
            },
            "top_p",
        ),
    ] {
        let error = engine.generate(request).err().unwrap();
        assert!(
            matches!(error, Error::Invalid(_)) && error.to_string().contains(name),
            "{error}"
        );
    }
    assert_eq!(engine.stats().queued, 0);
}

#[test]
fn every_tensor_type_gives_the_exact_paths_logits() {
    let tokens: Vec<u32> = b"teacher forced".iter().map(|b| u32::from(*b)).collect();
    for kind in TensorType::ALL {
        let bytes = tiny_llama(kind, 64);
        let logits = |precision, plain_kernels| {
            let options = ModelOptions {
                precision,
                plain_kernels,
                ..cpu()
            };
            model(&bytes, &options)
                .unwrap()
                .logits(&tokens, 4)
                .unwrap()
                .concat()
        };
        let exact = logits(Precision::Exact, true);
        assert!(exact.iter().any(|x| x.abs() > 0.5), "{kind}: a dull model");
        for other in [
            logits(Precision::Exact, false),
            logits(Precision::Fast, true),
            logits(Precision::Fast, false),
        ] {
            let worst = exact
                .iter()
                .zip(&other)
                .map(|(a, b)| (a - b).abs())
                .fold(0f32, f32::max);
            // The models of the K types are wider, and their logits larger: their bound is relative.
            let largest = match kind.block_len() {
                256 => exact.iter().fold(1f32, |most, x| most.max(x.abs())),
                _ => 1.0,
            };
            assert!(worst < 1e-2 * largest, "{kind}: {worst} of {largest}");
        }
    }
}

#[test]
fn a_model_whose_parts_do_not_fit_is_refused_by_name() {
    let opens = |bytes: Vec<u8>| model(&bytes, &cpu()).err().unwrap().to_string();
    let find = |bytes: &[u8], text: &str| {
        bytes
            .windows(text.len())
            .position(|w| w == text.as_bytes())
            .unwrap()
    };
    let sound = tiny_llama(TensorType::F16, 64);
    let mut renamed = sound.clone();
    let at = find(&renamed, "blk.1.ffn_up.weight");
    renamed[at + 4] = b'7';
    assert!(opens(renamed).contains("blk.1.ffn_up.weight is missing"));
    let mut wider = sound.clone();
    let at = find(&wider, "llama.feed_forward_length") + "llama.feed_forward_length".len() + 4;
    wider[at] = 64;
    assert!(
        opens(wider).contains(
            "ffn_gate.weight: its shape is 96 x 64, but the model's keys ask for 64 x 64"
        )
    );
    let mut other = sound;
    let at = find(&other, "general.architecture") + "general.architecture".len() + 4 + 8;
    other[at] = b'x';
    assert!(opens(other).contains("the architecture `xlama`"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_damaged_model_is_refused_or_runs_and_never_panics(
        damage in prop::collection::vec((0.0f64..1.0, any::<u8>()), 1..4), header in any::<bool>(), cut in 0.0f64..1.3,
        kind in prop::sample::select(&[TensorType::Q4_1, TensorType::Iq4Nl, TensorType::Q5K]),
    ) {
        let mut bytes = tiny_llama(kind, 64);
        // Most of the file is weights: aim at the header every second time.
        let span = if header { bytes.len() / 8 } else { bytes.len() };
        for (at, value) in damage {
            bytes[(at * span as f64) as usize] = value;
        }
        if cut < 1.0 {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        if let Ok(model) = model(&bytes, &cpu()) {
            let _ = model.logits(&[1, 2, 3], 2);
            let _ = model.encode_chat(&[ChatMessage::new("user", "hi")], true);
        }
    }
}
