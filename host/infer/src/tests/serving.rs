//! Many requests at once: shared prefixes, tenants, deadlines, memory.

use std::sync::Mutex;
use std::time::Instant;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;

/// Bytes of a page of the tiny model: 2 planes, 2 layers, 32 tokens, 2 heads of 16 f16.
const PAGE_BYTES: usize = 2 * 2 * 32 * 2 * 16 * 2;

const STORY: &str = "Once upon a time there was a machine that counted tokens, and it never counted one of them \
    twice, because it kept what it had counted, in pages of thirty-two, until it needed the room. ";

fn seeded(request: GenerateRequest, seed: u64) -> GenerateRequest {
    GenerateRequest {
        sampling: Sampling {
            temperature: 0.9,
            top_p: 0.95,
            seed: Some(seed),
            ..request.sampling
        },
        logprobs: Some(2),
        ..request
    }
}

fn of_tenant(name: &str, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        tenant: name.into(),
        ..request
    }
}

/// The tokens and the number of prompt tokens that were cached.
fn answer(generation: Generation) -> (Vec<Token>, u32) {
    let (tokens, finish) = collect(generation);
    (tokens, finish.unwrap().usage.cached_tokens)
}

#[test]
fn answers_are_the_same_with_a_cold_and_a_warm_cache_alone_and_in_a_mix() {
    let model = tiny(512);
    let options = || EngineOptions {
        prefill_chunk: 48,
        ..Default::default()
    };
    let requests: Vec<GenerateRequest> = (0..10)
        .map(|i| {
            let prompt = format!("{}{}", &STORY[..64 + 11 * i], "and so on".repeat(i % 3));
            let plain = request(&prompt, 30 + i as u32);
            if i % 2 == 0 {
                plain
            } else {
                seeded(plain, i as u64)
            }
        })
        .collect();
    let cold: Vec<_> = requests
        .iter()
        .map(|r| answer(engine(&model, options()).generate(r.clone()).unwrap()))
        .collect();
    let warm = engine(&model, options());
    for (request, (tokens, cached)) in requests.iter().zip(&cold) {
        let Prompt::Text(text) = &request.prompt else {
            panic!("a text");
        };
        assert_eq!(*cached, 0);
        assert_eq!(
            &answer(warm.generate(request.clone()).unwrap()).0,
            tokens,
            "with others' pages"
        );
        let (again, cached) = answer(warm.generate(request.clone()).unwrap());
        assert_eq!(&again, tokens, "with its own pages");
        // All of the prompt's full pages, but never its last token.
        assert_eq!(cached as usize, (text.len() - 1) / 32 * 32);
    }
    for engine in [warm, engine(&model, options())] {
        let mix: Vec<_> = requests
            .iter()
            .map(|r| engine.generate(r.clone()).unwrap())
            .collect();
        for (generation, (tokens, _)) in mix.into_iter().zip(&cold) {
            assert_eq!(&answer(generation).0, tokens, "in a mix");
        }
    }
}

#[test]
fn a_prefix_asked_for_many_times_at_once_is_computed_once() {
    let engine = default_engine();
    let prompt = STORY.repeat(2)[..200].to_owned();
    let all: Vec<_> = (0..8)
        .map(|_| engine.generate(request(&prompt, 3)).unwrap())
        .collect();
    let cached: Vec<u32> = all.into_iter().map(|g| answer(g).1).collect();
    assert_eq!(
        cached.iter().filter(|count| **count == 0).count(),
        1,
        "{cached:?}"
    );
    assert_eq!(cached.iter().sum::<u32>(), 7 * 192);
    let stats = engine.stats();
    assert_eq!(
        (stats.prompt_tokens, stats.hit_tokens),
        (200 + 7 * 8, 7 * 192)
    );
}

#[test]
fn nothing_is_shared_across_cache_salts() {
    let engine = default_engine();
    let salted = |cache_salt| GenerateRequest {
        cache_salt,
        ..request(STORY, 4)
    };
    for (salt, cached) in [(0, false), (1, false), (0, true), (2, false), (1, true)] {
        let (_, found) = answer(engine.generate(salted(salt)).unwrap());
        assert_eq!(found > 0, cached, "{salt}");
    }
}

#[test]
fn scores_and_embeddings_are_the_same_beside_cached_pages() {
    let engine = default_engine();
    let text = STORY[..100].to_owned();
    let both = || {
        (
            block_on(engine.score(&text, 0, Caller::default())).unwrap(),
            block_on(engine.embed(std::slice::from_ref(&text), Caller::default())).unwrap(),
        )
    };
    let before = both();
    // The pages of the score serve a generation, and the other way round.
    let (_, cached) = answer(engine.generate(request(&text, 40)).unwrap());
    assert_eq!(cached, 96);
    assert_eq!(both(), before);
}

#[test]
fn a_rewind_into_a_shared_page_computes_it_anew() {
    let model = tiny(512);
    let engine = engine(&model, EngineOptions::default());
    let mut crossed = 0;
    for length in 40..64 {
        let plain = request(&STORY[..length], 40);
        let (whole, _) = run(&engine, plain.clone());
        // A banned string that lies across the place where the second page is full.
        let at = 64 - length;
        let banned = whole[at - 2.min(at)..at + 6].to_owned();
        let wanted = GenerateRequest {
            ban: vec![banned.clone()],
            ..plain
        };
        let (tokens, finish) = collect(engine.generate(wanted.clone()).unwrap());
        assert_eq!(finish.unwrap().reason, FinishReason::Length);
        let found = text(&tokens);
        assert!(
            !found.contains(&banned),
            "{length}: {banned:?} in {found:?}, after {whole:?}"
        );
        crossed += usize::from(text(&tokens)[..at] != whole[..at]);
        let mut ids = model.encode(&STORY[..length], false);
        let prompt = ids.len();
        ids.extend(tokens.iter().map(|token| token.id));
        let logits = model.logits(&ids, 64).unwrap();
        for (index, token) in tokens.iter().enumerate() {
            let row = &logits[prompt + index - 1];
            let log_sum = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln() as f32;
            let logprob = row[token.id as usize] - log_sum;
            assert!((token.logprob - logprob).abs() < 1e-4, "{length} {index}");
        }
        // A continuation finds the pages of the answer that it goes on with.
        let (_, cached) = answer(
            engine
                .generate(GenerateRequest {
                    continuation: whole[..30].into(),
                    ..request(&STORY[..length], 4)
                })
                .unwrap(),
        );
        assert_eq!(cached as usize, (length + 29) / 32 * 32);
    }
    assert!(crossed > 10, "{crossed}");
}

/// What happened, in the order in which it did: whose token came.
fn timeline(engine: &Engine, requests: Vec<GenerateRequest>) -> Vec<Arc<str>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let tasks: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let (seen, tenant) = (Arc::clone(&seen), Arc::clone(&request.tenant));
            let mut generation = engine.generate(request).unwrap();
            runtime.spawn(async move {
                while let Some(event) = generation.next().await {
                    match event {
                        Event::Token(_) => seen.lock().unwrap().push(Arc::clone(&tenant)),
                        Event::Failed(error) => panic!("{error}"),
                        Event::Started { .. } | Event::Finished(_) => {}
                    }
                }
            })
        })
        .collect();
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    Arc::into_inner(seen).unwrap().into_inner().unwrap()
}

#[test]
fn tenants_that_wait_are_served_equally_many_tokens_whatever_they_ask_for() {
    let engine = engine(
        &tiny(512),
        EngineOptions {
            max_sequences: 4,
            queue: 2000,
            ..Default::default()
        },
    );
    // One floods the queue with short requests; the other's, few and long, come last.
    let flood = (0..1200).map(|_| of_tenant("flood", request("a", 8)));
    let few = (0..60).map(|_| of_tenant("few", request("b", 40)));
    let seen = timeline(&engine, flood.chain(few).collect());
    assert_eq!(seen.len(), 1200 * 8 + 60 * 40);
    let first = seen.iter().position(|tenant| &**tenant == "few").unwrap();
    let last = seen.iter().rposition(|tenant| &**tenant == "few").unwrap();
    // The flood is served while the others' requests arrive; from then on both wait, as long as some of it is left.
    assert!(first < 1200 * 8 - 60 * 40, "the flood goes first: {first}");
    let window = &seen[first..=last];
    let few = window.iter().filter(|tenant| &***tenant == "few").count() as f64;
    let share = few / window.len() as f64;
    assert!((share - 0.5).abs() < 0.05, "{share}");
}

#[test]
fn one_tenant_does_not_fill_the_queue_for_all() {
    let engine = engine(
        &tiny(100_000),
        EngineOptions {
            max_sequences: 1,
            queue: 4,
            ..Default::default()
        },
    );
    let submit = |tenant| engine.generate(of_tenant(tenant, request("x", 9000)));
    let running = submit("a").unwrap();
    eventually(&engine, |stats| stats.active == 1);
    let mut waiting: Vec<_> = (0..4).map(|_| submit("a").unwrap()).collect();
    let full = |outcome| match outcome {
        Err(Error::QueueFull { retry_after, .. }) => {
            assert!((1..=60).contains(&retry_after.as_secs()), "{retry_after:?}");
            true
        }
        _ => false,
    };
    assert!(full(submit("a").map(|_| ())), "its own share is used up");
    let others = [submit("b").unwrap(), submit("b").unwrap()];
    assert!(full(submit("b").map(|_| ())), "two each");
    for _ in 0..2 {
        let displaced = waiting.pop().unwrap();
        assert!(
            full(collect(displaced).1.map(|_| ())),
            "the newest had to go"
        );
    }
    let stats = engine.stats();
    assert_eq!((stats.queued, stats.active, stats.refused), (4, 1, 4));
    drop((running, waiting, others));
    eventually(&engine, |stats| stats.queued + stats.active == 0);
}

#[test]
fn a_request_ends_at_its_deadline_whether_it_waits_or_runs() {
    let engine = engine(
        &tiny(100_000),
        EngineOptions {
            max_sequences: 1,
            ..Default::default()
        },
    );
    let until = |millis| GenerateRequest {
        deadline: Some(Instant::now() + Duration::from_millis(millis)),
        ..request("x", 90_000)
    };
    let running = engine.generate(until(400)).unwrap();
    eventually(&engine, |stats| stats.active == 1);
    let waiting = engine.generate(until(50)).unwrap();
    let (tokens, outcome) = collect(waiting);
    assert!(tokens.is_empty());
    assert!(
        matches!(outcome, Err(Error::DeadlineExceeded { generated: None })),
        "{outcome:?}"
    );
    let (tokens, outcome) = collect(running);
    let Err(
        error @ Error::DeadlineExceeded {
            generated: Some(count),
        },
    ) = outcome
    else {
        panic!("{outcome:?}");
    };
    assert!(count as usize >= tokens.len() && count > 0);
    assert!(error.to_string().contains("deadline"), "{error}");
    assert!(matches!(
        engine.generate(until(0)),
        Err(Error::DeadlineExceeded { generated: None })
    ));
    assert_eq!(engine.stats().late, 2);
    assert!(run(&engine, request("x", 3)).1.usage.completion_tokens == 3);
}

#[test]
fn a_kv_budget_too_small_is_an_error_that_names_it() {
    let model = tiny(512);
    let options = |kv_bytes| EngineOptions {
        kv_bytes,
        ..Default::default()
    };
    let none = Engine::start(Arc::clone(&model), options(PAGE_BYTES - 1));
    let error = none.err().unwrap().to_string();
    assert!(error.contains("kv_bytes"), "{error}");
    let engine = engine(&model, options(2 * PAGE_BYTES + 5));
    assert_eq!(engine.stats().kv_bytes_total, 2 * PAGE_BYTES);
    let error = engine.generate(request(&STORY[..64], 5)).err().unwrap();
    assert!(
        matches!(
            error,
            Error::KvTooSmall {
                tokens: 64,
                limit: 64
            }
        ),
        "{error}"
    );
    let error = engine.generate(request(&STORY.repeat(4), 5)).err().unwrap();
    assert!(
        matches!(error, Error::ContextExceeded { limit: 512, .. }),
        "{error}"
    );
    let (_, finish) = run(&engine, request(&STORY[..60], 50));
    assert_eq!(finish.usage.completion_tokens, 4);
}

/// What the soak's requests are made of: every kind of work, with prompts that share beginnings.
fn varied(number: usize) -> GenerateRequest {
    let lengths = [1, 5, 31, 32, 33, 64, 90, 130];
    let length = lengths[number % lengths.len()];
    let plain = request(
        &STORY[number % 2..length + number % 2],
        [1, 7, 40, 75, 120][number % 5],
    );
    let plain = GenerateRequest {
        tenant: ["a", "b", "c"][number % 3].into(),
        cache_salt: (number % 4 / 3) as u64,
        priority: [Priority::Normal, Priority::Low, Priority::High][number / 2 % 3],
        ban: if number.is_multiple_of(3) {
            vec!["e".into(), "ab".into(), "0".into()]
        } else {
            Vec::new()
        },
        ..plain
    };
    if number % 4 == 1 {
        seeded(plain, number as u64)
    } else {
        plain
    }
}

/// 64 clients at once with requests of mixed lengths, some of which go away; every token is compared with the same
/// request's alone, and no page is lost.
fn soak(time: Duration) {
    let model = tiny(2048);
    let roomy = engine(&model, EngineOptions::default());
    let expected: Vec<_> = (0..48)
        .map(|number| {
            let request = varied(number);
            let alone = collect(roomy.generate(request.clone()).unwrap());
            (request, alone.0, alone.1.map_err(|e| e.to_string()))
        })
        .collect();
    let expected = Arc::new(expected);
    let score = block_on(roomy.score(&STORY[..70], 0, Caller::default())).unwrap();
    let pages = 30;
    let engine = engine(
        &model,
        EngineOptions {
            max_sequences: 12,
            queue: 64,
            kv_bytes: pages * PAGE_BYTES,
            prefill_chunk: 40,
            ..Default::default()
        },
    );
    let end = Instant::now() + time;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let clients: Vec<_> = (0..64)
        .map(|client| {
            let (engine, expected) = (engine.clone(), Arc::clone(&expected));
            let score = score.clone();
            runtime.spawn(async move {
                let mut random = ChaCha8Rng::seed_from_u64(client);
                let (mut done, mut gone) = (0, 0);
                while Instant::now() < end {
                    if random.random_bool(0.05) {
                        assert_eq!(
                            engine
                                .score(&STORY[..70], 0, Caller::default())
                                .await
                                .unwrap(),
                            score
                        );
                        continue;
                    }
                    let number = random.random_range(0..expected.len());
                    let (request, tokens, finish) = &expected[number];
                    let stay = if random.random_bool(0.3) {
                        random.random_range(0..20)
                    } else {
                        usize::MAX
                    };
                    let mut generation = engine.generate(request.clone()).unwrap();
                    let (mut seen, mut ended) = (0, false);
                    while seen < stay && !ended {
                        match generation.next().await.unwrap() {
                            Event::Started { .. } => {}
                            Event::Token(token) => {
                                assert_eq!(Some(&token), tokens.get(seen), "request {number}");
                                seen += 1;
                            }
                            Event::Finished(found) => {
                                let wanted = finish.as_ref().unwrap();
                                assert_eq!(
                                    (found.reason, found.usage.completion_tokens),
                                    (wanted.reason, wanted.usage.completion_tokens)
                                );
                                ended = true;
                            }
                            Event::Failed(error) => {
                                assert_eq!(Some(&error.to_string()), finish.as_ref().err());
                                ended = true;
                            }
                        }
                    }
                    if ended {
                        assert_eq!(seen, tokens.len(), "request {number}");
                        done += 1;
                    } else {
                        gone += 1;
                    }
                }
                (done, gone)
            })
        })
        .collect();
    let (mut done, mut gone) = (0, 0);
    runtime.block_on(async {
        for client in clients {
            let (more_done, more_gone) = client.await.unwrap();
            (done, gone) = (done + more_done, gone + more_gone);
        }
    });
    let stats = engine.stats();
    println!("{done} answers, {gone} given up: {stats:?}");
    assert!(done >= 64 && gone >= 10, "{done} {gone}");
    assert!(stats.preempted > 0 && stats.hit_tokens > 0 && stats.evictions > 0);
    eventually(&engine, |stats| {
        stats.kv_bytes_used == 0 && stats.active + stats.queued == 0
    });
    // A request that needs every page there is gets them.
    let (_, finish) = run(&engine, request("z", 32 * pages as u32));
    assert_eq!(finish.usage.completion_tokens as usize, 32 * pages - 1);
}

#[test]
fn no_token_is_wrong_and_no_page_lost_over_many_requests_and_cancellations() {
    soak(Duration::from_secs(3));
}

#[test]
#[ignore = "takes ten minutes, or MILLGATE_SOAK_SECONDS"]
fn no_token_is_wrong_and_no_page_lost_in_ten_minutes() {
    let seconds = std::env::var("MILLGATE_SOAK_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(600);
    soak(Duration::from_secs(seconds));
}
