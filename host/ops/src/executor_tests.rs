//! The way of a request, with hand-made stages between a scripted client and a scripted model.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use millgate_infer as infer;
use proptest::prelude::*;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    answer_upstream::UpstreamAnswer,
    config::UpstreamConfig,
    core::Core,
    error::ApiError,
    executor::{ResponseStream, Source, handle},
    flight::Flight,
    model::Backend,
    request::Request,
    response::{Body, Completion, Event, FinishReason},
    stage::testing::{blocking, regenerating, replacing, stage, trapping},
    testing::{Scripted, block_on, chat, core, core_with},
    trace::{Finish, StageVerdict, Trace},
    traces::TraceFilter,
    upstream::{Upstream, UpstreamBody},
};

const HELLO: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
const STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

fn local(model: &Arc<Scripted>) -> Backend {
    Backend::Local(model.clone())
}

fn last_trace(core: &Core) -> Trace {
    core.traces
        .list(&TraceFilter::default())
        .unwrap()
        .traces
        .remove(0)
}

async fn complete(core: &Arc<Core>, body: &str) -> Result<Completion, ApiError> {
    match handle(core, chat(body)).await?.body {
        Body::Completion(completion) => Ok(completion),
        _ => panic!("no completion"),
    }
}

async fn stream_of(core: &Arc<Core>, body: &str) -> Box<ResponseStream> {
    match handle(core, chat(body)).await.unwrap().body {
        Body::Stream(stream) => stream,
        _ => panic!("no stream"),
    }
}

async fn all(mut stream: Box<ResponseStream>) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event);
    }
    events
}

fn text_of(events: &[Event]) -> String {
    let texts = events.iter().filter_map(|event| match event {
        Event::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    texts.collect()
}

#[test]
fn an_answer_leaves_with_a_trace_that_says_what_each_stage_was_given() {
    block_on(async {
        let model = Scripted::new([&["I see ", "sec", "ret", "s"]]);
        let core = core(
            vec![stage(replacing("hell", "****"))],
            vec![stage(replacing("secret", "***"))],
            local(&model),
        );
        let completion = complete(&core, HELLO).await.unwrap();
        assert_eq!(completion.choices[0].text, "I see ***s");
        assert_eq!(completion.usage.completion_tokens, 5);
        let prompt = &model.asked.lock()[0].prompt;
        assert_eq!(
            *prompt,
            millgate_infer::Prompt::Chat(vec![millgate_infer::ChatMessage::new("user", "****o")])
        );

        let trace = last_trace(&core);
        assert_eq!(
            (
                trace.finish,
                trace.generation,
                &*trace.arm,
                &*trace.pipeline
            ),
            (Finish::Stop, 3, "stable", "p")
        );
        let told: Vec<_> = trace
            .stages
            .iter()
            .map(|it| (&*it.stage, it.verdict, it.given, it.passed, it.edits))
            .collect();
        assert_eq!(
            told,
            [
                ("hunt-hell", StageVerdict::Edit, 5, 5, 1),
                ("hunt-secret", StageVerdict::Edit, 13, 13, 1)
            ]
        );
        assert_eq!(
            (
                trace.tokens.prompt,
                trace.tokens.cached,
                trace.tokens.completion
            ),
            (7, 2, 5)
        );
        assert_eq!((trace.entropy, trace.timings.queue), (Some(2.0), 5));
        assert!(
            core.metrics
                .render()
                .contains("millgate_requests_total{pipeline=\"p\",finish=\"stop\"} 1")
        );
    });
}

#[test]
fn each_token_leaves_as_soon_as_no_stage_holds_it() {
    block_on(async {
        let model = Scripted::new([&["a", " se", "cre", "am"]]);
        let core = core(
            vec![],
            vec![stage(replacing("secret", "***"))],
            local(&model),
        );
        let mut stream = stream_of(&core, STREAM).await;
        let taken = || model.taken.load(Ordering::Relaxed);
        assert!(
            matches!(stream.next().await, Some(Event::Delta(delta)) if delta.text == "a" && taken() == 1)
        );
        assert!(
            matches!(stream.next().await, Some(Event::Delta(delta)) if delta.text == " " && taken() == 2)
        );
        assert!(
            matches!(stream.next().await, Some(Event::Delta(delta)) if delta.text == "secream" && taken() == 4)
        );
        assert_eq!(
            stream.next().await,
            Some(Event::Finished {
                choice: 0,
                reason: FinishReason::Stop
            })
        );
        assert_eq!(stream.next().await, Some(Event::Done));
        assert_eq!(stream.next().await, None);
    });
}

#[test]
fn a_block_in_the_middle_keeps_what_left_and_stops_the_model() {
    block_on(async {
        let model = Scripted::new([&["fine, ", "then ba", "d thing", "never", "never"]]);
        let core = core(vec![], vec![stage(blocking("bad"))], local(&model));
        let events = all(stream_of(&core, STREAM).await).await;
        assert_eq!(text_of(&events), "fine, then ");
        let [.., Event::Blocked { choice: 0, error }, Event::Done] = events.as_slice() else {
            panic!("{events:?}")
        };
        assert_eq!((error.status, error.code.as_str()), (400, "hunted"));
        assert_eq!(model.taken.load(Ordering::Relaxed), 3);
        let trace = last_trace(&core);
        assert_eq!(
            (trace.finish, trace.stages[0].verdict),
            (Finish::Blocked, StageVerdict::Block)
        );
        assert_eq!(error.trace, Some(trace.id));
        assert_eq!((trace.stages[0].given, trace.stages[0].passed), (11, 20));
    });
}

#[test]
fn a_blocked_prompt_never_reaches_the_model() {
    block_on(async {
        let model = Scripted::new([&["x"]]);
        let core = core(vec![stage(blocking("hello"))], vec![], local(&model));
        let error = complete(&core, HELLO).await.unwrap_err();
        assert_eq!((error.status, error.kind), (400, "content_filter"));
        assert!(model.asked.lock().is_empty());
        assert_eq!(last_trace(&core).finish, Finish::Blocked);
    });
}

#[test]
fn the_model_says_again_what_a_stage_does_not_like() {
    block_on(async {
        let model = Scripted::new([&["I like ", "oo", "ps", " much"], &["tea", "."]]);
        let core = core(
            vec![],
            vec![
                stage(replacing("like", "love")),
                stage(regenerating("oops")),
            ],
            local(&model),
        );
        let events = all(stream_of(&core, STREAM).await).await;
        assert_eq!(text_of(&events), "I love tea.");
        let asked = model.asked.lock();
        assert_eq!(
            (asked[1].continuation.as_str(), asked[1].ban.as_slice()),
            ("I like ", ["oops".to_owned()].as_slice())
        );
        let trace = last_trace(&core);
        assert_eq!(
            (trace.finish, trace.stages[1].verdict),
            (Finish::Stop, StageVerdict::Regenerate)
        );
        assert_eq!((trace.stages[1].given, trace.stages[1].passed), (11, 11));
    });
}

#[test]
fn a_model_that_cannot_stop_saying_it_is_refused() {
    block_on(async {
        let model = Scripted::new([&["oops"], &["oops"], &["oops"], &["oops"], &["oops"]]);
        let core = core(vec![], vec![stage(regenerating("oops"))], local(&model));
        let error = complete(&core, HELLO).await.unwrap_err();
        assert_eq!(error.code, "hunted");
        assert_eq!(model.asked.lock().len(), 5);
    });
}

#[test]
fn probabilities_of_masked_tokens_do_not_leave() {
    block_on(async {
        let model = Scripted::new([&["my ", "sec", "ret", " end"]]);
        let core = core(
            vec![],
            vec![stage(replacing("secret", "***"))],
            local(&model),
        );
        let body = r#"{"model":"m","logprobs":true,"top_logprobs":1,"messages":[{"role":"user","content":"x"}]}"#;
        let completion = complete(&core, body).await.unwrap();
        let tokens: Vec<_> = completion.choices[0]
            .logprobs
            .as_ref()
            .unwrap()
            .iter()
            .map(|it| it.text.as_str())
            .collect();
        assert_eq!(tokens, ["my ", " end"]);
    });
}

#[test]
fn several_choices_have_stages_of_their_own() {
    block_on(async {
        let model = Scripted::new([&["se", "cret"], &["se", "cond"]]);
        let core = core(
            vec![],
            vec![stage(replacing("secret", "***"))],
            local(&model),
        );
        let body = r#"{"model":"m","n":2,"seed":5,"messages":[{"role":"user","content":"x"}]}"#;
        let completion = complete(&core, body).await.unwrap();
        let texts: Vec<_> = completion
            .choices
            .iter()
            .map(|choice| choice.text.as_str())
            .collect();
        assert_eq!(texts, ["***", "second"]);
        let seeds: Vec<_> = model
            .asked
            .lock()
            .iter()
            .map(|asked| asked.sampling.seed)
            .collect();
        assert_eq!(seeds, [Some(5), Some(6)]);
        assert_eq!(last_trace(&core).stages[0].given, 12);
    });
}

#[test]
fn a_client_that_goes_away_leaves_a_trace() {
    block_on(async {
        let model = Scripted::new([&["a", "b", "c"]]);
        let core = core(vec![], vec![stage(replacing("x", "y"))], local(&model));
        let mut stream = stream_of(&core, STREAM).await;
        stream.next().await;
        drop(stream);
        tokio::task::yield_now().await;
        let trace = last_trace(&core);
        assert_eq!(
            (trace.finish, trace.stages[0].given),
            (Finish::Cancelled, 1)
        );
        assert_eq!(model.taken.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn failing_stages_are_answered_by_their_policy() {
    block_on(async {
        let model = Scripted::new([&["x"], &["y"]]);
        let open = core(vec![stage(trapping("hello", false))], vec![], local(&model));
        assert_eq!(complete(&open, HELLO).await.unwrap().choices[0].text, "x");
        let record = &last_trace(&open).stages[0];
        assert_eq!(
            (record.verdict, record.given, record.passed),
            (StageVerdict::FailedOpen, 0, 5)
        );
        let closed = core(vec![stage(trapping("hello", true))], vec![], local(&model));
        let error = complete(&closed, HELLO).await.unwrap_err();
        assert_eq!((error.status, error.code.as_str()), (503, "stage_failed"));
        assert_eq!(
            last_trace(&closed).stages[0].failure.as_ref().unwrap().kind,
            "trap"
        );
    });
}

#[test]
fn bad_requests_are_refused_in_the_clients_words() {
    block_on(async {
        let model = Scripted::new([]);
        let core = core(vec![], vec![], local(&model));
        for (body, status, param) in [
            ("{", 400, None),
            (r#"{"model":"m"}"#, 400, Some("messages")),
            (
                r#"{"model":"nobody","messages":[{"role":"user","content":"x"}]}"#,
                404,
                Some("model"),
            ),
            (r#"{"model":"m","messages":[]}"#, 400, Some("messages")),
            (
                r#"{"model":"m","messages":[{"content":"x"}]}"#,
                400,
                Some("messages[0].role"),
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":7}]}"#,
                400,
                Some("messages[0].content"),
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"a","content":"b"}]}"#,
                400,
                None,
            ),
            (
                r#"{"model":"m","temperature":3,"messages":[{"role":"user","content":"x"}]}"#,
                400,
                Some("temperature"),
            ),
            (
                r#"{"model":"m","tools":[{}],"messages":[{"role":"user","content":"x"}]}"#,
                400,
                Some("tools"),
            ),
            (
                r#"{"model":"m","n":0,"messages":[{"role":"user","content":"x"}]}"#,
                400,
                Some("n"),
            ),
            (HELLO, 429, None),
        ] {
            let error = complete(&core, body).await.unwrap_err();
            assert_eq!(
                (error.status, error.param.as_deref()),
                (status, param),
                "{body}: {error}"
            );
        }
    });
}

#[test]
fn texts_are_kept_only_where_the_config_says_so() {
    block_on(async {
        let config = crate::testing::config("[traces]\ntexts = \"on\"\n");
        let model = Scripted::new([&["the ", "answer"]]);
        let core = core_with(
            config,
            vec![stage(replacing("hello", "*"))],
            vec![],
            local(&model),
        );
        complete(&core, HELLO).await.unwrap();
        let (input, output) = core.traces.texts(&last_trace(&core)).unwrap().unwrap();
        assert_eq!(input, HELLO.replace("hello", "*").into_bytes());
        assert_eq!(output, b"the answer");
    });
}

/// A server that answers each connection once with these bytes; what it was sent comes back.
async fn serve(answer: Vec<u8>) -> (Arc<Upstream>, tokio::task::JoinHandle<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let config: UpstreamConfig =
        serde_json::from_value(serde_json::json!({ "url": url, "model": "real" })).unwrap();
    let upstream = Arc::new(Upstream::new("m", &config).unwrap());
    let server = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = socket.read(&mut buffer).await.unwrap();
            seen.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&seen).to_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.unwrap().parse().unwrap() {
                    break;
                }
            }
        }
        socket.write_all(&answer).await.unwrap();
        String::from_utf8(seen).unwrap()
    });
    (upstream, server)
}

fn json_answer(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[test]
fn an_upstream_gets_and_gives_the_very_bytes_but_for_what_stages_changed() {
    block_on(async {
        let answer = r#"{ "id":"u", "choices":[{"index":0,"message":{"role":"assistant","content":"a secret \u00e9","x":1.0e2},
            "logprobs":{"content":[]},"finish_reason":"stop"}], "usage":{"prompt_tokens":3,"completion_tokens":4} }"#;
        let request = r#"{ "model" : "m", "top_k":1.0, "messages":[{"role":"user","content":"card \u0034 hello"}], "odd":[1,  2] }"#;
        let (upstream, server) = serve(json_answer("200 OK", answer)).await;
        let core = core(
            vec![stage(replacing("hello", "***"))],
            vec![stage(replacing("secret", "***"))],
            Backend::Upstream(upstream),
        );
        let response = handle(&core, chat(request)).await.unwrap();
        let Body::Json(body) = response.body else {
            panic!()
        };
        let expected = answer
            .replace(r#""a secret \u00e9""#, "\"a *** é\"")
            .replace("{\"content\":[]}", "null");
        assert_eq!(String::from_utf8(body.to_vec()).unwrap(), expected);
        let seen = server.await.unwrap();
        let expected = request
            .replace(r#""card \u0034 hello""#, r#""card 4 ***""#)
            .replace("\"m\"", "\"real\"");
        assert!(seen.ends_with(&expected), "{seen}");
        let trace = last_trace(&core);
        assert_eq!(
            (trace.tokens.prompt, trace.tokens.completion, trace.finish),
            (3, 4, Finish::Stop)
        );
        // `odd` and `x` were seen by no stage.
        assert_eq!(
            (trace.stages[0].given, trace.stages[0].passed),
            (12, 12 + 7)
        );
        assert_eq!(
            (trace.stages[1].given, trace.stages[1].passed),
            (11, 11 + 5)
        );
    });
}

#[test]
fn an_upstreams_errors_are_told_to_whom_they_concern() {
    block_on(async {
        for (status, said, expected, message) in [
            (
                "400 Bad Request",
                r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#,
                400,
                "too long",
            ),
            (
                "401 Unauthorized",
                r#"{"error":{"message":"bad key sk-123"}}"#,
                502,
                "operator",
            ),
            ("429 Too Many Requests", "slow down", 429, "busy"),
            ("500 Internal Server Error", "{}", 502, "failed"),
        ] {
            let (upstream, _server) = serve(json_answer(status, said)).await;
            let core = core(vec![], vec![], Backend::Upstream(upstream));
            let error = handle(&core, chat(HELLO)).await.err().unwrap();
            assert_eq!(error.status, expected, "{error}");
            assert!(
                error.message.contains(message) && !error.message.contains("sk-123"),
                "{error}"
            );
            assert_eq!(last_trace(&core).finish, Finish::Error);
        }
    });
}

#[test]
fn a_stream_without_stages_is_passed_on_as_it_comes_but_for_its_end() {
    block_on(async {
        let head =
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        let chunks = "data: {\"choices\":[{\"delta\":{\"content\":\"hi\"}}]}\n\n: ping\n\ndata: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\r\n\r\n";
        let (upstream, _server) =
            serve(format!("{head}{chunks}data: [DONE]\n\n").into_bytes()).await;
        let core = core(vec![], vec![], Backend::Upstream(upstream));
        let events = all(stream_of(&core, STREAM).await).await;
        assert_eq!(raw(&events), chunks);
        assert_eq!(events.last(), Some(&Event::Done));
        let trace = last_trace(&core);
        assert_eq!((trace.finish, trace.tokens.completion), (Finish::Length, 2));
    });
}

fn raw(events: &[Event]) -> String {
    let pieces = events.iter().filter_map(|event| match event {
        Event::Raw(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
        _ => None,
    });
    pieces.collect()
}

/// The texts that a client puts together from a stream, by choice and kind.
fn assembled(events: &[Event]) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for line in raw(events)
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
    {
        let chunk: Value = serde_json::from_str(line).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            let index = &choice["index"];
            let mut add = |kind: String, text: &Value| {
                if let Some(text) = text.as_str() {
                    texts
                        .entry(format!("{index} {kind}"))
                        .or_insert_with(String::new)
                        .push_str(text);
                }
            };
            add("content".into(), &choice["delta"]["content"]);
            for call in choice["delta"]["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
            {
                add(
                    format!("tool {}", call["index"]),
                    &call["function"]["arguments"],
                );
            }
            add("finish".into(), &choice["finish_reason"]);
        }
    }
    texts
}

#[test]
fn a_request_to_a_local_model_has_the_configs_deadline_and_a_late_one_is_told_so() {
    block_on(async {
        let model = Scripted::new([&["hi"]]);
        let core = core(Vec::new(), Vec::new(), local(&model));
        let began = std::time::Instant::now();
        complete(&core, HELLO).await.unwrap();
        let deadline = model.asked.lock()[0].deadline.unwrap() - began;
        let timeout = std::time::Duration::from_secs(600);
        assert!((timeout..timeout * 2).contains(&deadline), "{deadline:?}");
        let late = infer::Error::DeadlineExceeded { generated: Some(3) };
        let error = crate::local::api_error(&late);
        assert_eq!(
            (error.status, error.code.as_str()),
            (504, "deadline_exceeded")
        );
        assert!(error.message.contains("server.request-timeout"), "{error}");
    });
}

#[test]
fn an_upstream_that_goes_on_for_ever_ends_at_the_deadline() {
    block_on(async {
        let mut config = crate::testing::config("");
        config.server.request_timeout = crate::config::Time(std::time::Duration::ZERO);
        let nobody = Backend::Local(Scripted::new([]));
        let core = core_with(config, Vec::new(), Vec::new(), nobody);
        // Each piece is there as soon as it is asked for: no wait times out.
        let pieces = (0..1000).map(|_| Bytes::from(delta(0, "on and ")));
        let events = through_until(&core, pieces.collect(), std::time::Instant::now()).await;
        let error = events.iter().find_map(|event| match event {
            Event::Error(error) => Some(error.clone()),
            _ => None,
        });
        let error = error.unwrap();
        assert_eq!(
            (error.status, error.code.as_str()),
            (504, "deadline_exceeded")
        );
        assert!(matches!(events.last(), Some(Event::Done)));
        assert_eq!(last_trace(&core).finish, Finish::Error);
    });
}

/// What leaves of an upstream's stream that is cut in these pieces.
async fn through(core: &Arc<Core>, pieces: Vec<Bytes>) -> Vec<Event> {
    let patience = std::time::Duration::from_secs(60);
    through_until(core, pieces, std::time::Instant::now() + patience).await
}

async fn through_until(
    core: &Arc<Core>,
    pieces: Vec<Bytes>,
    deadline: std::time::Instant,
) -> Vec<Event> {
    let request = Request::parse(chat(STREAM)).unwrap();
    let generation = core.generation.load_full();
    let pipeline = generation.pipeline_for("m").unwrap().clone();
    let flight = Flight::new(core.clone(), generation, pipeline, &request);
    let answer = UpstreamAnswer::new(flight, UpstreamBody::pieces(pieces, deadline));
    all(Box::new(ResponseStream::new(Source::Upstream(Box::new(
        answer,
    )))))
    .await
}

fn delta(choice: u32, text: &str) -> String {
    let text = serde_json::to_string(text).unwrap();
    format!(
        "data: {{\"id\":\"u\",\"choices\":[{{\"index\":{choice},\"delta\":{{\"content\":{text}}},\"finish_reason\":null}}]}}\n\n"
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn however_an_upstreams_stream_is_cut_the_same_text_leaves_two_chained_stages(
        words in proptest::collection::vec((0u32..2, "[ab é\"]|secret|bad|se|cret|x"), 0..12),
        finishes in any::<bool>(),
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        block_on(async {
            let stages = || vec![stage(replacing("secret", "baXd")), stage(replacing("bad", "**"))];
            let nobody = || Backend::Local(Scripted::new([]));
            let mut wire: String = words.iter().map(|(choice, text)| delta(*choice, text)).collect();
            for choice in 0..2 {
                if finishes {
                    wire.push_str(&format!("data: {{\"id\":\"u\",\"choices\":[{{\"index\":{choice},\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}\n\n"));
                }
            }
            wire.push_str("data: [DONE]\n\n");
            let expected: Vec<String> = (0..2).map(|choice| {
                let text: String = words.iter().filter(|(index, _)| *index == choice).map(|(_, text)| text.as_str()).collect();
                text.replace("secret", "baXd").replace("bad", "**")
            }).collect();

            let bytes = Bytes::from(wire);
            let mut cuts: Vec<usize> = picks.iter().map(|pick| pick.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|pair| bytes.slice(pair[0]..pair[1])).collect();
            let core = core(vec![], stages(), nobody());
            let events = through(&core, pieces).await;
            prop_assert_eq!(events.last(), Some(&Event::Done));
            let texts = assembled(&events);
            for (choice, expected) in expected.iter().enumerate() {
                let got = texts.get(&format!("{choice} content")).cloned().unwrap_or_default();
                prop_assert_eq!(&got, expected);
                let passed = last_trace(&core).stages[0].passed;
                prop_assert_eq!(passed, words.iter().map(|(_, text)| text.len() as u64).sum::<u64>());
                prop_assert_eq!(last_trace(&core).stages[0].given, passed);
            }
            Ok(())
        })?;
    }
}

#[test]
fn arguments_of_tool_calls_are_checked_like_any_text() {
    block_on(async {
        let call = |text: &str| {
            format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"tool_calls\":[{{\"index\":1,\"function\":{{\"arguments\":\"{text}\"}}}}]}}}}]}}\n\n"
            )
        };
        let wire = format!(
            "{}{}data: {{\"choices\":[{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"tool_calls\"}}]}}\n\ndata: [DONE]\n\n",
            call("{'to':'sec"),
            call("ret'} se")
        );
        let core = core(
            vec![],
            vec![stage(replacing("secret", "***"))],
            Backend::Local(Scripted::new([])),
        );
        let events = through(&core, vec![wire.into()]).await;
        assert_eq!(assembled(&events)["0 tool 1"], "{'to':'***'} se");
        assert_eq!(last_trace(&core).finish, Finish::ToolCalls);
    });
}

#[test]
fn a_blocked_upstream_stream_ends_with_an_error_after_what_left() {
    block_on(async {
        let wire = format!(
            "{}{}{}data: [DONE]\n\n",
            delta(0, "fine ba"),
            delta(0, "d more"),
            delta(0, "never")
        );
        let core = core(
            vec![],
            vec![stage(blocking("bad"))],
            Backend::Local(Scripted::new([])),
        );
        let events = through(&core, vec![wire.into()]).await;
        assert_eq!(assembled(&events)["0 content"], "fine ");
        assert!(matches!(
            events.as_slice(),
            [.., Event::Blocked { choice: 0, .. }, Event::Done]
        ));
        assert_eq!(last_trace(&core).finish, Finish::Blocked);
    });
}

#[test]
fn an_upstream_that_breaks_off_is_an_error_and_not_an_end() {
    block_on(async {
        for stages in [vec![], vec![stage(replacing("x", "y"))]] {
            let core = core(vec![], stages, Backend::Local(Scripted::new([])));
            let events = through(&core, vec![delta(0, "half").into()]).await;
            assert!(
                matches!(events.as_slice(), [.., Event::Error(_), Event::Done]),
                "{events:?}"
            );
            assert_eq!(last_trace(&core).finish, Finish::Error);
        }
    });
}
