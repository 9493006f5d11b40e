//! Grammars: what follows them is valid, what can not be followed is refused by name.

use std::sync::Arc;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::grammar::{Grammars, Matching};
use crate::quant::TensorType;
use crate::sampling::{Distribution, Sampler};
use crate::testing::{cpu, model, open, tiny_llama};
use crate::tokenizer::Tokenizer;
use crate::{
    CALL_BEGINS, CALL_ENDS, Engine, EngineOptions, Error, Event, FinishReason, GenerateRequest,
    Grammar, Prompt, Sampling, Tool,
};

/// All bytes and two control tokens.
fn tokenizer() -> Tokenizer {
    Tokenizer::read(&open(&tiny_llama(TensorType::F32, 64)).unwrap()).unwrap()
}

/// What a model that knows nothing writes: random logits, with more and more weight on what ends things.
/// `None` where it did not come to an end.
fn babble(matching: &mut Matching, tokenizer: &Tokenizer, seed: u64) -> Option<String> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sampling = Sampling {
        seed: Some(seed),
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(sampling, &[], tokenizer.len()).unwrap();
    let mut text = Vec::new();
    for step in 0..600 {
        let push = step as f32 / 16.0;
        // Numbers stay where a 64-bit float tells them apart: what reads the answer uses those.
        let last = text.len().saturating_sub(12);
        let long = text.len() >= 12 && text[last..].iter().all(u8::is_ascii_digit);
        let mut logits: Vec<f32> = (0..tokenizer.len() as u32)
            .map(|id| {
                let ends = tokenizer.is_end(id)
                    || matches!(tokenizer.token_bytes(id), [b'"' | b'}' | b']']);
                let plain = matches!(tokenizer.token_bytes(id), [0x20..=0x7e]);
                let unread = match tokenizer.token_bytes(id) {
                    [b'e' | b'E'] => true,
                    [b'0'..=b'9'] => long,
                    _ => false,
                };
                random.random_range(0.0..3.0)
                    + if ends { push } else { 0.0 }
                    + if plain { 3.0 } else { 0.0 }
                    - if unread { 90.0 } else { 0.0 }
            })
            .collect();
        let ends = |id| tokenizer.is_end(id);
        let pick = sampler
            .pick_of(
                Distribution::of(&logits).unwrap(),
                &mut logits,
                &[],
                0,
                matching,
                &ends,
            )
            .unwrap();
        if tokenizer.is_end(pick.id) {
            return Some(String::from_utf8(text).unwrap());
        }
        matching.take(pick.id).unwrap();
        text.extend_from_slice(tokenizer.token_bytes(pick.id));
        if matching.complete() {
            return Some(String::from_utf8(text).unwrap());
        }
    }
    None
}

#[derive(serde::Deserialize)]
struct Suite {
    schemas: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    file: String,
    about: String,
    schema: Value,
}

/// The official test suite's schemas: see `tests/golden/make_schemas.py`.
fn suite() -> Vec<Case> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/schemas.json.gz"
    );
    let file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
    let mut suite: Suite = serde_json::from_reader(std::io::BufReader::new(file)).unwrap();
    for case in &mut suite.schemas {
        // That suite's files are of the draft by their folder's name.
        if let (true, Some(fields)) = (case.file.starts_with("draft7"), case.schema.as_object_mut())
        {
            fields.insert(
                "$schema".into(),
                "http://json-schema.org/draft-07/schema#".into(),
            );
        }
    }
    suite.schemas
}

/// All names of members in a schema.
fn names(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                out.push(name.clone());
                names(value, out);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, out)),
        _ => {}
    }
}

#[test]
fn every_answer_to_a_schema_of_the_official_suite_is_valid_or_the_schema_is_refused_by_name() {
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    let (mut followed, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for (number, case) in suite().iter().enumerate() {
        let place = format!("{}: {}", case.file, case.about);
        let grammar = Grammar::JsonSchema(case.schema.clone());
        let mut answers = 0;
        for seed in 0..4u64 {
            let mut matching = match grammars.matching(&grammar, &tokenizer) {
                Ok(matching) => matching,
                Err(Error::Grammar(why)) => {
                    refused.push((place.clone(), why, case.schema.clone()));
                    break;
                }
                Err(other) => panic!("{place}: {other}"),
            };
            let seed = seed + 10 * number as u64;
            let Some(text) = babble(&mut matching, &tokenizer, seed) else {
                continue;
            };
            answers += 1;
            // A multiple of a number can take many digits to end: more than the validator's numbers have.
            let mut digits = text.split(|c: char| !c.is_ascii_digit());
            if digits.any(|run| run.len() > 15) {
                continue;
            }
            let draft = if case.file.starts_with("draft7") {
                jsonschema::Draft::Draft7
            } else {
                jsonschema::Draft::Draft202012
            };
            let validator = jsonschema::options()
                .with_draft(draft)
                .build(&case.schema)
                .unwrap_or_else(|error| panic!("{place}: {error}"));
            match serde_json::from_str::<Value>(&text) {
                Ok(value) if validator.is_valid(&value) => {}
                _ => wrong.push(format!("{place}: {} gives {text}", case.schema)),
            }
        }
        followed += usize::from(answers > 0);
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
    assert!(followed >= 200, "{followed} of the suite's schemas");
    let mut unnamed = Vec::new();
    for (place, why, schema) in refused {
        let mut known = Vec::new();
        names(&schema, &mut known);
        let named = known.iter().any(|name| why.contains(&format!("`{name}`")));
        let impossible = why.starts_with("no answer can satisfy");
        // A reference to the metaschema brings that document's keywords with it.
        let metaschema = ["https://json-schema.org/", "http://json-schema.org/"]
            .iter()
            .any(|start| schema.to_string().contains(&format!("\"$ref\":\"{start}")));
        let named = named || metaschema && why.contains('`');
        if !named && !impossible {
            unnamed.push(format!("{place}: {schema}: {why}"));
        }
    }
    assert!(unnamed.is_empty(), "{}", unnamed.join("\n"));
}

fn tool(name: &str, parameters: Value) -> Tool {
    Tool {
        name: name.into(),
        description: String::new(),
        parameters,
        strict: true,
    }
}

fn weather() -> Tool {
    tool(
        "weather",
        json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city"], "additionalProperties": false}),
    )
}

fn follows(matching: &mut Matching, tokenizer: &Tokenizer, text: &str) -> bool {
    let ids = tokenizer.encode(text, false);
    matching.take_all(&ids).unwrap() && matching.accepts().unwrap()
}

#[test]
fn calls_of_tools_follow_their_form_and_the_arguments_their_schema() {
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    let tools = vec![weather(), tool("clock", Value::Null)];
    let grammar = |required, parallel| Grammar::Tools {
        tools: tools.clone(),
        answer: None,
        required,
        parallel,
    };
    let of = |required, parallel| {
        grammars
            .matching(&grammar(required, parallel), &tokenizer)
            .unwrap()
    };
    let call =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\"}}\n</tool_call>";
    let other = "<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call>";
    let both = format!("{call}\n{other}");
    let spoken = format!("Let me see. {call}");
    for (required, parallel, text, wanted) in [
        (true, false, call, true),
        (true, false, other, true),
        (true, false, &both, false),
        (true, true, &both, true),
        (true, true, &spoken, false),
        (true, true, "Let me see.", false),
        (false, false, "Let me see: 1 < 2, <tool> or <tool_cal", true),
        (false, false, &spoken, true),
        (false, true, &format!("{spoken}\n{other}"), true),
        (false, true, &format!("{spoken} and more"), false),
        (false, true, "<tool_call>\n{\"name\": \"shell\"", false),
        (false, true, &call.replace("Bern", "too long a name"), false),
    ] {
        let found = follows(&mut of(required, parallel), &tokenizer, text);
        assert_eq!(found, wanted, "{required} {parallel} {text}");
    }
    let mut ended = 0;
    for seed in 0..40 {
        let Some(text) = babble(&mut of(true, false), &tokenizer, seed) else {
            continue;
        };
        ended += 1;
        let json = text.strip_prefix(CALL_BEGINS).unwrap();
        let json = json.strip_suffix(CALL_ENDS).unwrap();
        let call: Value = serde_json::from_str(json).unwrap();
        let schema = match call["name"].as_str().unwrap() {
            "weather" => weather().parameters,
            _ => json!({"maxProperties": 0}),
        };
        assert!(jsonschema::is_valid(&schema, &call["arguments"]), "{text}");
    }
    assert!(ended > 30, "{ended}");
}

#[test]
fn a_tool_whose_schema_is_not_supported_is_refused_only_where_it_is_strict() {
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    let mut tool = tool(
        "sum",
        json!({"type": "object", "properties": {"of": {"type": "array", "uniqueItems": true}}}),
    );
    let grammar = |tool: &Tool| Grammar::Tools {
        tools: vec![tool.clone()],
        answer: None,
        required: true,
        parallel: false,
    };
    let error = grammars
        .matching(&grammar(&tool), &tokenizer)
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains("`sum`") && text.contains("`uniqueItems`"),
        "{text}"
    );
    tool.strict = false;
    let mut matching = grammars.matching(&grammar(&tool), &tokenizer).unwrap();
    let call = "<tool_call>\n{\"name\": \"sum\", \"arguments\": {\"of\": [1, 1]}}\n</tool_call>";
    assert!(follows(&mut matching, &tokenizer, call));
}

#[test]
fn settings_of_the_compiler_can_not_be_slipped_in_with_a_schema() {
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    let schema = json!({"x-guidance": {"lenient": true}, "type": "array", "uniqueItems": true});
    let error = grammars
        .matching(&Grammar::JsonSchema(schema), &tokenizer)
        .err()
        .unwrap();
    assert!(error.to_string().contains("`uniqueItems`"), "{error}");
}

#[test]
fn what_no_answer_can_satisfy_and_what_is_too_large_is_refused() {
    let (tokenizer, grammars) = (tokenizer(), Grammars::default());
    let refusal = |schema: Value| {
        let found = grammars.matching(&Grammar::JsonSchema(schema), &tokenizer);
        found.err().unwrap().to_string()
    };
    for schema in [
        json!(false),
        json!({"type": "integer", "minimum": 3, "maximum": 2}),
        json!({"allOf": [{"type": "string"}, {"type": "null"}]}),
        json!({"type": "object", "properties": {"a": false}, "required": ["a"]}),
    ] {
        let text = refusal(schema.clone());
        assert!(
            text.starts_with("no answer can satisfy"),
            "{schema}: {text}"
        );
    }
    let many: serde_json::Map<String, Value> = (0..40_000)
        .map(|at| (format!("member-{at}"), json!({"type": "string"})))
        .collect();
    assert!(refusal(json!({"properties": many})).contains("bytes"));
    let text = refusal(json!({"type": "object", "minProperties": 3}));
    assert!(text.contains("`minProperties`"), "{text}");
}

fn engine() -> Engine {
    let model = model(&tiny_llama(TensorType::Q4_1, 512), &cpu()).unwrap();
    let options = EngineOptions {
        threads: 1,
        ..EngineOptions::default()
    };
    Engine::start(Arc::clone(&model), options).unwrap()
}

fn run(engine: &Engine, request: GenerateRequest) -> Result<(String, FinishReason), Error> {
    let mut generation = engine.generate(request)?;
    let mut text = String::new();
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Started { .. } => {}
            Event::Token(token) => text.push_str(&token.text),
            Event::Finished(finish) => return Ok((text, finish.reason)),
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("a generation ended without an end");
}

fn point() -> Grammar {
    let number = json!({"type": "integer", "minimum": 0, "maximum": 99});
    Grammar::JsonSchema(
        json!({"type": "object", "properties": {"x": number, "y": number}, "required": ["x", "y"], "additionalProperties": false}),
    )
}

#[test]
fn an_answer_of_the_engine_follows_its_grammar_greedy_and_drawn() {
    let engine = engine();
    for sampling in [
        Sampling::greedy(),
        Sampling {
            seed: Some(5),
            temperature: 1.5,
            ..Sampling::default()
        },
    ] {
        let request = GenerateRequest {
            grammar: Some(point()),
            sampling,
            max_tokens: Some(200),
            ..GenerateRequest::new(Prompt::Text("a point".into()))
        };
        let (text, reason) = run(&engine, request.clone()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value["x"].is_u64() && value["y"].is_u64(), "{text}");
        assert_eq!(reason, FinishReason::Stop);

        // The same again from the middle on.
        let cut = text.find("\"y\"").unwrap();
        let rest = GenerateRequest {
            continuation: text[..cut].into(),
            sampling: Sampling::greedy(),
            ..request.clone()
        };
        let (more, _) = run(&engine, rest).unwrap();
        let whole = format!("{}{more}", &text[..cut]);
        assert!(serde_json::from_str::<Value>(&whole).is_ok(), "{whole}");

        // And cut short.
        let short = GenerateRequest {
            max_tokens: Some(4),
            ..request
        };
        let (text, reason) = run(&engine, short).unwrap();
        assert!(serde_json::from_str::<Value>(&text).is_err(), "{text}");
        assert_eq!(reason, FinishReason::Length);
    }
}

#[test]
fn a_ban_takes_the_matcher_back_with_the_text() {
    let engine = engine();
    let letters = Grammar::Regex("[ab]{12}".into());
    let request = GenerateRequest {
        grammar: Some(letters),
        sampling: Sampling::greedy(),
        ..GenerateRequest::new(Prompt::Text("letters".into()))
    };
    let (free, _) = run(&engine, request.clone()).unwrap();
    let banned = free[2..6].to_owned();
    let (text, reason) = run(
        &engine,
        GenerateRequest {
            ban: vec![banned.clone()],
            ..request
        },
    )
    .unwrap();
    assert!(
        !text.contains(&banned) && text.len() == 12,
        "{free} {banned} {text}"
    );
    assert!(text.chars().all(|c| "ab".contains(c)));
    assert_eq!(reason, FinishReason::Stop);
}

#[test]
fn a_refused_schema_and_a_continuation_that_does_not_fit_fail_at_once() {
    let engine = engine();
    let request = GenerateRequest {
        grammar: Some(Grammar::JsonSchema(json!({"not": {"type": "null"}}))),
        ..GenerateRequest::new(Prompt::Text("x".into()))
    };
    match engine.generate(request.clone()) {
        Err(Error::Grammar(why)) => assert!(why.contains("`not`"), "{why}"),
        other => panic!("{:?}", other.err()),
    }
    let request = GenerateRequest {
        grammar: Some(point()),
        continuation: "[".into(),
        ..request
    };
    assert!(matches!(engine.generate(request), Err(Error::Invalid(_))));
}

/// `MILLGATE_TEST_MODEL=… cargo test --release -p millgate-infer costs -- --ignored --nocapture`: medians, to be
/// held against the time of a token.
#[test]
#[ignore = "prints what a grammar costs on the vocabulary of MILLGATE_TEST_MODEL"]
fn costs_of_a_grammar_at_each_token() {
    let path = std::env::var("MILLGATE_TEST_MODEL").unwrap();
    let gguf = crate::gguf::Gguf::open(path.as_ref()).unwrap();
    let tokenizer = Tokenizer::read(&gguf).unwrap();
    let grammars = Grammars::default();
    let facts = json!({"type": "object", "properties": {"facts": {"type": "array", "items": {"type": "string"}}, "count": {"type": "integer"}},
        "required": ["facts", "count"], "additionalProperties": false});
    let tools = Grammar::Tools {
        tools: vec![weather()],
        answer: None,
        required: false,
        parallel: true,
    };
    let json_text = r#"{"facts": ["Paris is the capital of France.", "It lies on the Seine; \"Lutetia\" was its name."], "count": 2}"#;
    let plain_text = "Let me look it up for you.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 3}}\n</tool_call>";
    for (name, grammar, text) in [
        ("a schema", Grammar::JsonSchema(facts), json_text),
        ("tools", tools, plain_text),
    ] {
        let begun = std::time::Instant::now();
        let mut matching = grammars.matching(&grammar, &tokenizer).unwrap();
        let compiled = begun.elapsed();
        let begun = std::time::Instant::now();
        grammars.matching(&grammar, &tokenizer).unwrap();
        let again = begun.elapsed();
        let (mut allows, mut masks, mut takes) = (Vec::new(), Vec::new(), Vec::new());
        for id in tokenizer.encode(text, false) {
            let mut logits = vec![0.0; tokenizer.len()];
            let begun = std::time::Instant::now();
            assert!(matching.allows(id, false).unwrap());
            allows.push(begun.elapsed());
            let begun = std::time::Instant::now();
            matching.mask(&mut logits).unwrap();
            masks.push(begun.elapsed());
            assert_eq!(logits[id as usize], 0.0);
            let begun = std::time::Instant::now();
            matching.take(id).unwrap();
            takes.push(begun.elapsed());
        }
        assert!(matching.accepts().unwrap());
        let median = |times: &mut Vec<std::time::Duration>| {
            times.sort();
            times[times.len() / 2]
        };
        eprintln!(
            "{name}: compiled in {compiled:?}, then {again:?}; a token: allowed {:?}, mask {:?}, taken {:?}",
            median(&mut allows),
            median(&mut masks),
            median(&mut takes)
        );
    }
}
