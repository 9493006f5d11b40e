//! Answers with calls of tools and answers that are JSON, between a scripted model and hand-made stages.

use std::sync::Arc;

use millgate_infer::{Grammar, Prompt};
use serde_json::{Value, json};

use crate::{
    core::Core,
    error::ApiError,
    executor::handle,
    model::Backend,
    request::{ApiRequest, Endpoint},
    response::{Body, Completion, Event, FinishReason},
    stage::{
        LoadedStage,
        testing::{blocking, regenerating, replacing, stage},
    },
    testing::{Scripted, block_on, chat, core},
    trace::{Finish, Trace},
    traces::TraceFilter,
};

fn body(more: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hello"}]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn with_tools(more: Value) -> Value {
    let mail = json!({"type": "function", "function": {"name": "mail", "parameters": {"properties": {"to": {}}}}});
    let mut body = body(json!({"tools": [mail]}));
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn set_up(model: &Arc<Scripted>, output: Vec<Arc<LoadedStage>>) -> Arc<Core> {
    core(vec![], output, Backend::Local(model.clone()))
}

async fn complete(core: &Arc<Core>, body: Value) -> Result<Completion, ApiError> {
    match handle(core, chat(body.to_string())).await?.body {
        Body::Completion(completion) => Ok(completion),
        _ => panic!("no completion"),
    }
}

fn last_trace(core: &Core) -> Trace {
    core.traces
        .list(&TraceFilter::default())
        .unwrap()
        .traces
        .remove(0)
}

const CALLS: [&str; 6] = [
    "I send it. <tool",
    "_call>\n{\"name\": \"mail\", \"arguments\": {\"to\": \"\\nse",
    "cret\\u0041\", \"pin\": 12",
    "34, \"ok\": true}}\n</tool_call>\n<tool_call>\n{\"name\":",
    " \"mail\", \"arguments\": {}}\n</tool",
    "_call>",
];

#[test]
fn a_call_leaves_as_a_call_and_its_arguments_are_json_whatever_a_stage_changes() {
    block_on(async {
        let model = Scripted::new([&CALLS]);
        let output = vec![
            stage(replacing("secret", "\"*\\")),
            stage(replacing("1234", "x")),
        ];
        let core = set_up(&model, output);
        let completion = complete(&core, with_tools(json!({}))).await.unwrap();
        let choice = &completion.choices[0];
        assert_eq!(choice.text, "I send it. ");
        assert_eq!(choice.finish, FinishReason::ToolCalls);
        let calls: Vec<_> = choice
            .tool_calls
            .iter()
            .map(|call| (&*call.name, &*call.arguments))
            .collect();
        assert_eq!(
            calls,
            [
                (
                    "mail",
                    "{\"to\": \"\\n\\\"*\\\\A\", \"pin\": \"x\", \"ok\": true}"
                ),
                ("mail", "{}")
            ]
        );
        let arguments: Value = serde_json::from_str(calls[0].1).unwrap();
        assert_eq!(arguments["to"], "\n\"*\\A");
        assert_ne!(choice.tool_calls[0].id, choice.tool_calls[1].id);

        let trace = last_trace(&core);
        assert_eq!(trace.finish, Finish::ToolCalls);
        // The text, the names of members, the string and the number were given; the tools' names were not.
        let seen = "I send it. ".len()
            + "to".len()
            + "\nsecretA".len()
            + "pin".len()
            + "1234".len()
            + "ok".len();
        let record = &trace.stages[0];
        assert_eq!(
            (record.given, record.passed),
            (seen as u64, seen as u64 + 8)
        );
        assert_eq!(record.edits, 1);
        let asked = model.asked.lock();
        assert!(matches!(&asked[0].prompt, Prompt::Tools { tools, .. } if tools[0].name == "mail"));
        assert!(matches!(
            &asked[0].grammar,
            Some(Grammar::Tools {
                required: false,
                parallel: true,
                ..
            })
        ));
    });
}

#[test]
fn calls_are_streamed_in_pieces_that_make_the_whole() {
    block_on(async {
        let model = Scripted::new([&CALLS]);
        let core = set_up(&model, vec![]);
        let body = with_tools(json!({"stream": true}));
        let Body::Stream(mut stream) = handle(&core, chat(body.to_string())).await.unwrap().body
        else {
            panic!("no stream");
        };
        let mut seen = Vec::new();
        while let Some(event) = stream.next().await {
            match event {
                Event::Delta(delta) => seen.push(delta.text),
                Event::ToolCall(start) => seen.push(format!("[{} {}]", start.index, start.name)),
                Event::ToolArguments { text, .. } => seen.push(text),
                Event::Finished { reason, .. } => seen.push(reason.name().into()),
                _ => {}
            }
        }
        assert_eq!(
            seen,
            [
                "I send it. ",
                "[0 mail]",
                "{\"to\": \"\\nse",
                "cret\\u0041\", \"pin\": 12",
                "34, \"ok\": true}",
                "[1 mail]",
                "{}",
                "tool_calls"
            ]
        );
    });
}

#[test]
fn a_blocked_argument_never_leaves() {
    block_on(async {
        let model = Scripted::new([&CALLS]);
        let core = set_up(&model, vec![stage(blocking("secret"))]);
        let error = complete(&core, with_tools(json!({}))).await.unwrap_err();
        assert_eq!(error.kind, "content_filter");
        assert_eq!(last_trace(&core).finish, Finish::Blocked);
    });
}

#[test]
fn a_stage_can_make_the_model_say_an_argument_again() {
    block_on(async {
        let model = Scripted::new([
            &[
                "<tool_call>\n{\"name\": \"mail\", \"arguments\": {\"to\": \"an ",
                "oops\"}}\n</tool_call>",
            ] as &[&str],
            &["end\"}}\n</tool_call>"],
        ]);
        let core = set_up(&model, vec![stage(regenerating("oops"))]);
        let body = with_tools(json!({"tool_choice": "required"}));
        let completion = complete(&core, body).await.unwrap();
        assert_eq!(
            completion.choices[0].tool_calls[0].arguments,
            "{\"to\": \"an end\"}"
        );
        assert_eq!(completion.choices[0].tool_calls.len(), 1);
        let asked = model.asked.lock();
        assert!(
            asked[1].continuation.ends_with("{\"to\": \"an "),
            "{}",
            asked[1].continuation
        );
        assert!(asked[1].grammar.is_some());
    });
}

#[test]
fn an_answer_that_has_to_be_json_is_json_behind_the_stages() {
    block_on(async {
        let model = Scripted::new([&["{\"a\\nsecret\": \"se", "cret\"", ", \"n\": -12", "34}"]]);
        let output = vec![
            stage(replacing("secret", "\"")),
            stage(replacing("-1234", "?")),
        ];
        let core = set_up(&model, output);
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}});
        let completion = complete(&core, body(json!({"response_format": format})))
            .await
            .unwrap();
        assert_eq!(
            completion.choices[0].text,
            "{\"a\\n\\\"\": \"\\\"\", \"n\": \"?\"}"
        );
        let asked = model.asked.lock();
        assert_eq!(
            asked[0].grammar,
            Some(Grammar::JsonSchema(json!({"type": "object"})))
        );
        assert!(matches!(asked[0].prompt, Prompt::Chat(_)));
    });
}

#[test]
fn a_conversation_with_calls_and_results_reaches_the_model() {
    block_on(async {
        let model = Scripted::new([&["It rains."]]);
        let core = core(
            vec![stage(replacing("secret", "***"))],
            vec![],
            Backend::Local(model.clone()),
        );
        let call = json!({"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{\"at\": \"secret\"}"}});
        let body = json!({"model": "m", "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "rain, secret"},
        ]});
        complete(&core, body).await.unwrap();
        let asked = model.asked.lock();
        let Prompt::Tools { messages, tools } = &asked[0].prompt else {
            panic!("{:?}", asked[0].prompt);
        };
        assert!(tools.is_empty());
        assert_eq!(messages[1].tool_calls[0].name, "weather");
        assert_eq!(messages[1].tool_calls[0].arguments, "{\"at\": \"***\"}");
        assert_eq!(
            (&*messages[2].role, &*messages[2].content),
            ("tool", "rain, ***")
        );
    });
}

fn to(endpoint: Endpoint, body: Value) -> ApiRequest {
    ApiRequest {
        endpoint,
        ..chat(body.to_string())
    }
}

#[test]
fn embeddings_are_of_the_text_that_the_stages_left() {
    block_on(async {
        let model = Scripted::new([]);
        let core = core(
            vec![stage(replacing("secret", "***"))],
            vec![],
            Backend::Local(model.clone()),
        );
        let ask = |input: Value| to(Endpoint::Embeddings, json!({"model": "m", "input": input}));
        for (input, lengths) in [
            (json!("a secret"), vec![5.0]),
            (json!(["a", "secret"]), vec![1.0, 3.0]),
            (json!([1, 2, 3]), vec![3.0]),
            (json!([[1, 2], [3]]), vec![2.0, 1.0]),
        ] {
            let Body::Embeddings(found) = handle(&core, ask(input)).await.unwrap().body else {
                panic!("no vectors");
            };
            let found: Vec<f32> = found.vectors.iter().map(|vector| vector[0]).collect();
            assert_eq!(found, lengths);
        }
        assert_eq!(last_trace(&core).endpoint, Endpoint::Embeddings);
        for input in [
            json!([]),
            json!([[]]),
            json!(["a", 1]),
            json!({}),
            json!(""),
        ] {
            let refused = handle(&core, ask(input.clone())).await.err();
            let param = refused.and_then(|error| error.param);
            assert_eq!(param.as_deref(), Some("input"), "{input}");
        }
    });
}

#[test]
fn a_prompt_is_scored_and_goes_out_before_the_answer() {
    block_on(async {
        let model = Scripted::new([&["!"]]);
        let core = set_up(&model, vec![]);
        let ask = |tokens: u32| {
            to(
                Endpoint::Completions,
                json!({"model": "m", "prompt": "a bc", "echo": true, "logprobs": 1, "max_tokens": tokens}),
            )
        };
        for (tokens, text, count) in [(0, "a bc", 2), (1, "a bc!", 3)] {
            let Body::Completion(completion) = handle(&core, ask(tokens)).await.unwrap().body
            else {
                panic!("no completion");
            };
            let choice = &completion.choices[0];
            assert_eq!(choice.text, text);
            let logprobs = choice.logprobs.as_ref().unwrap();
            assert_eq!((logprobs.len(), logprobs[0].logprob), (count, None));
            assert_eq!(logprobs[1].top.len(), 1);
        }
        assert_eq!(model.asked.lock().len(), 1);
    });
}
