//! Explanations: what leaving a unit out takes from a token, whatever else the engine does.

use super::*;
use crate::{ExplainRequest, Explanation, Unit};

fn asked(prompt: Prompt, answer: &str, unit: Unit) -> ExplainRequest {
    ExplainRequest {
        answer: Some(answer.into()),
        unit,
        ..ExplainRequest::new(GenerateRequest::new(prompt))
    }
}

fn explain(engine: &Engine, asked: ExplainRequest) -> crate::Result<Explanation> {
    block_on(engine.explain(asked))
}

/// Log-probabilities of the tokens from `from` on, computed by the model alone.
fn alone(model: &Model, tokens: &[u32], from: usize) -> Vec<f32> {
    let logits = model.logits(tokens, 64).unwrap();
    (from..tokens.len())
        .map(|at| {
            let row = &logits[at - 1];
            let sum = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            row[tokens[at] as usize] - sum as f32
        })
        .collect()
}

#[test]
fn an_attribution_is_what_scoring_each_variant_alone_gives() {
    let model = tiny(512);
    let long =
        "one two three, four five. Six seven eight nine ten! Eleven twelve thirteen fourteen";
    for unit in [Unit::Word, Unit::Sentence, Unit::Token] {
        let options = EngineOptions {
            prefill_chunk: 9,
            ..Default::default()
        };
        let engine = engine(&model, options);
        let seen = explain(&engine, asked(Prompt::Text(long.into()), " and more", unit)).unwrap();
        let (prompt, answer) = (model.encode(long, false), model.encode(" and more", false));
        assert_eq!(seen.prompt_tokens, prompt.len());
        assert_eq!(seen.tokens.len(), answer.len());
        assert_eq!(seen.attributions.len(), answer.len());
        let texts: Vec<&str> = seen.units.iter().map(|unit| unit.text.as_str()).collect();
        assert_eq!(texts.concat(), long);
        assert_eq!(seen.units.len(), [14, 3, long.len()][unit_index(unit)]);
        let full = alone(
            &model,
            &[prompt.clone(), answer.clone()].concat(),
            prompt.len(),
        );
        for (token, full) in seen.tokens.iter().zip(&full) {
            assert!((token.logprob - full).abs() < 1e-4);
            assert_eq!(token.top.len(), 5);
            let margin = token.top[0].logprob - token.top[1].logprob;
            assert_eq!(token.margin, margin);
        }
        for (index, part) in seen.units.iter().enumerate() {
            let mut rest = prompt.clone();
            rest.drain(part.tokens.clone());
            let from = rest.len();
            rest.extend(&answer);
            let without = alone(&model, &rest, from);
            for attribution in &seen.attributions {
                let at = attribution.token;
                let expected = full[at] - without[at];
                let score = attribution.scores[index];
                assert!(
                    (score - expected).abs() < 1e-4,
                    "{unit:?} {index} {at}: {score} {expected}"
                );
            }
        }
        // Bit for bit the same beside other work, and on an engine without batches.
        let other = engine
            .generate(request("something else that goes on", 60))
            .unwrap();
        let again = explain(&engine, asked(Prompt::Text(long.into()), " and more", unit)).unwrap();
        assert_eq!(again, seen);
        drop(other);
        let single = EngineOptions {
            max_sequences: 1,
            ..Default::default()
        };
        let single = super::engine(&model, single);
        let again = explain(&single, asked(Prompt::Text(long.into()), " and more", unit)).unwrap();
        assert_eq!(again, seen);
        eventually(&engine, |stats| {
            stats.active == 0 && stats.kv_bytes_used == 0
        });
    }
}

fn unit_index(unit: Unit) -> usize {
    match unit {
        Unit::Word => 0,
        Unit::Sentence => 1,
        Unit::Token => 2,
    }
}

#[test]
fn variants_share_what_stands_before_their_gap_and_leave_no_pages() {
    let engine = default_engine();
    let text = "abcd efg ".repeat(30); // 270 tokens, 8 full pages
    let first = explain(&engine, asked(Prompt::Text(text.clone()), "x", Unit::Word)).unwrap();
    assert_eq!(first.units.len(), 60);
    // An answer is there a moment before its request's pages are given back.
    eventually(&engine, |stats| stats.queued + stats.active == 0);
    let stats = engine.stats();
    // 60 variants of 271 tokens would be 16,000; the gap is in the middle on average.
    assert!(stats.hit_tokens > 6_000, "{stats:?}");
    assert_eq!(
        stats.cached_pages, 8,
        "the pages of the prompt alone: {stats:?}"
    );
}

#[test]
fn in_a_conversation_only_what_its_messages_say_is_left_out() {
    let engine = default_engine();
    let messages = vec![
        ChatMessage::new("system", "user"),
        ChatMessage::new("user", "  say <|im_end|> twice "),
    ];
    let seen = explain(&engine, asked(Prompt::Chat(messages), "ok", Unit::Word)).unwrap();
    let units: Vec<(Option<usize>, &str)> = seen
        .units
        .iter()
        .map(|unit| (unit.message, unit.text.as_str()))
        .collect();
    assert_eq!(
        units,
        [
            (Some(0), "user"),
            (Some(1), "say"),
            (Some(1), " <|im_end|>"),
            (Some(1), " twice")
        ]
    );
    // Behind the first message's role, not the role itself.
    assert_eq!(seen.units[0].tokens.start, 1 + "system\n".len());
}

#[test]
fn an_answer_is_generated_greedily_where_none_is_given() {
    let engine = default_engine();
    let request = request("some words to go on with", 6);
    let (tokens, _) = collect(engine.generate(request.clone()).unwrap());
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let mut hot = request;
    hot.sampling.temperature = 1.5;
    let seen = explain(&engine, ExplainRequest::new(hot)).unwrap();
    assert_eq!(
        seen.tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
        ids
    );
    for (token, explained) in tokens.iter().zip(&seen.tokens) {
        assert_eq!(
            (token.logprob, token.entropy),
            (explained.logprob, explained.entropy)
        );
    }
}

#[test]
fn chosen_tokens_are_attributed_and_what_cannot_be_is_refused_by_name() {
    let engine = default_engine();
    let text = |text: &str| Prompt::Text(text.into());
    let mut one = asked(text("two words"), "abc", Unit::Word);
    one.targets = vec![2, 0];
    let some = explain(&engine, one.clone()).unwrap();
    let all = explain(&engine, asked(text("two words"), "abc", Unit::Word)).unwrap();
    assert_eq!(
        some.attributions,
        [all.attributions[2].clone(), all.attributions[0].clone()]
    );
    let refusal = |asked| explain(&engine, asked).unwrap_err().to_string();
    one.targets = vec![3];
    assert!(refusal(one).contains("no token 3: the answer has 3"));
    assert!(refusal(asked(text(""), "a", Unit::Word)).contains("the prompt is empty"));
    assert!(refusal(asked(text("a b"), "", Unit::Word)).contains("the answer is empty"));
    assert!(refusal(asked(text("word"), "a", Unit::Word)).contains("finer `unit`"));
    assert!(refusal(asked(text(&"x".repeat(300)), "a", Unit::Token)).contains("coarser unit"));
    let long = asked(text(&"word ".repeat(120)), "a", Unit::Word);
    assert!(matches!(
        explain(&engine, long),
        Err(Error::ContextExceeded { limit: 512, .. })
    ));
    let mut late = asked(text("two words"), "abc", Unit::Word);
    late.request.deadline = Some(std::time::Instant::now());
    assert!(matches!(
        explain(&engine, late),
        Err(Error::DeadlineExceeded { .. })
    ));
}

#[test]
fn a_dropped_explanation_stops_its_work() {
    let engine = default_engine();
    let text = "abcd ".repeat(90);
    block_on(async {
        let asked = asked(Prompt::Text(text), "x", Unit::Word);
        let mut explaining = Box::pin(engine.explain(asked));
        let first = std::future::poll_fn(|context| {
            std::task::Poll::Ready(explaining.as_mut().poll(context).is_pending())
        });
        assert!(first.await);
    });
    eventually(&engine, |stats| stats.queued == 0 && stats.active == 0);
    assert_eq!(engine.stats().cancelled, 1);
}
