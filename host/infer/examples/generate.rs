//! Streams an answer: `cargo run --release -p millgate-infer --example generate -- MODEL "a question"`. A model without
//! a chat template goes on with the text.
//! The environment may set `TEMPERATURE` (0), `MAX_TOKENS` (128), `THREADS` (0: all cores), `REQUESTS` (1).

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use millgate_infer::{
    ChatMessage, Engine, EngineOptions, Event, GenerateRequest, Model, ModelOptions, Prompt,
    Sampling,
};

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments
        .next()
        .ok_or("usage: generate MODEL.gguf QUESTION")?;
    let question = arguments
        .next()
        .unwrap_or_else(|| "What is the capital of France?".into());
    let began = Instant::now();
    let model = Model::open(Path::new(&path), &ModelOptions::default())?;
    let chat = vec![ChatMessage::new("user", question.clone())];
    let prompt = match model.render_chat(&chat, true) {
        Ok(_) => Prompt::Chat(chat),
        Err(_) => Prompt::Text(question),
    };
    eprintln!("{:?}\nopened in {:?}", model.info(), began.elapsed());
    let engine = Engine::start(
        model,
        EngineOptions {
            threads: setting("THREADS", 0),
            ..EngineOptions::default()
        },
    )?;
    let request = GenerateRequest {
        sampling: Sampling {
            temperature: setting("TEMPERATURE", 0.0),
            seed: Some(1),
            ..Sampling::default()
        },
        max_tokens: Some(setting("MAX_TOKENS", 128)),
        ..GenerateRequest::new(prompt)
    };
    let began = Instant::now();
    let mut others: Vec<_> = (1..setting("REQUESTS", 1))
        .map(|_| engine.generate(request.clone()))
        .collect::<Result<_, _>>()?;
    let mut generation = engine.generate(request)?;
    let mut generated = 0;
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Token(token) => {
                print!("{}", token.text);
                std::io::stdout().flush()?;
            }
            Event::Finished(finish) => {
                let (usage, decode) = (finish.usage, finish.decode_time.as_secs_f64());
                generated += usage.completion_tokens;
                eprintln!(
                    "\n{finish:?}\nprefill {:.0} tokens/s, decode {:.1} tokens/s",
                    f64::from(usage.prompt_tokens) / finish.prefill_time.as_secs_f64(),
                    f64::from(usage.completion_tokens - 1) / decode
                );
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Started { .. } => {}
        }
    }
    for other in &mut others {
        while let Some(event) = other.next_blocking() {
            if let Event::Finished(finish) = event {
                generated += finish.usage.completion_tokens;
            }
        }
    }
    eprintln!(
        "{generated} tokens in all, {:.1} tokens/s; {:?}",
        f64::from(generated) / began.elapsed().as_secs_f64(),
        engine.stats()
    );
    Ok(())
}
