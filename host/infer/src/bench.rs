//! How fast a model runs on this machine, and how fast it could run at best, measured in one go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cpu::physical_cores;
use crate::limits;
use crate::{
    Engine, EngineOptions, Error, Event, Finish, GenerateRequest, Generation, Model, Prompt,
    Result, Sampling,
};

/// What [`model`] does.
#[derive(Debug, Clone, Copy, Default)]
pub struct BenchOptions {
    /// Threads that compute; 0 takes one for each physical core.
    pub threads: usize,
    /// Each figure from one short run instead of the median of five.
    pub quick: bool,
}

/// What was measured. Rates are in tokens per second, medians of the runs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelBench {
    /// Threads that computed.
    pub threads: usize,
    /// Requests at once, and the tokens that all of them together generate per second: the sum of their own rates.
    pub decode: Vec<(usize, f64)>,
    /// Tokens of a prompt, and those computed per second up to the first token of the answer.
    pub prefill: Vec<(usize, f64)>,
    /// From 16 requests at once, each with a prompt of 85 tokens, to the first token of half of them (the median).
    pub first_token_of_16: Duration,
    /// Time to the first token after a prompt whose first 512 tokens are cached, over that of one that is not.
    pub cached_prefix_ratio: f64,
    /// Tokens per second if reading the weights once a token were all: bytes that the same threads read per second
    /// from as much memory, over the bytes of the weights.
    pub memory_limit: f64,
    /// Prompt tokens per second if multiplying were all: 8-bit multiplications and additions that the same threads do
    /// per second in registers, over two for each weight (but those of the output matrix, which only a prompt's last
    /// token needs).
    pub int8_limit: f64,
    /// Bytes of the process that were in memory after the runs with 16 requests; `None` where the system does not say.
    pub resident_bytes: Option<u64>,
    /// Of those, what KV pages took, kept ones included.
    pub kv_bytes: u64,
}

/// Requests at once.
const REQUESTS: [usize; 4] = [1, 4, 8, 16];
/// Tokens of a prompt.
const PROMPTS: [usize; 2] = [128, 512];

/// Measures a model. Takes about a minute for a small one; `quick`, a few seconds.
///
/// # Errors
/// The engine does not start, or a request fails; [`Error::ContextExceeded`] where the model's context holds no
/// prompt of 512 tokens and some more.
pub fn model(model: Arc<Model>, options: BenchOptions) -> Result<ModelBench> {
    let threads = match options.threads {
        0 => physical_cores(),
        threads => threads,
    };
    let (runs, tokens) = if options.quick { (1, 32) } else { (5, 128) };
    let time = Duration::from_millis(if options.quick { 100 } else { 500 });
    let info = model.info().clone();
    let mut bench = Bench::start(model, threads)?;
    // The first run takes memory from the system and wakes threads up.
    bench.run(1, 32, 8)?;

    let mut decode = Vec::new();
    for count in REQUESTS {
        let rate = median(runs, || Ok(decode_rate(&bench.run(count, 32, tokens)?)))?;
        decode.push((count, rate));
    }
    let (resident_bytes, kv_bytes) = (resident_bytes(), bench.kv_bytes());
    let mut prefill = Vec::new();
    for count in PROMPTS {
        let rate = median(runs, || {
            let took = bench.first_token(1, count)?;
            Ok(count as f64 / took.as_secs_f64())
        })?;
        prefill.push((count, rate));
    }
    let first_token_of_16 = median(runs, || Ok(bench.first_token(16, 85)?.as_secs_f64()))?;
    let cached_prefix_ratio = median(runs, || bench.cached_ratio())?;
    drop(bench);

    let read = limits::read_rate(threads, info.active_bytes as usize, time)?;
    let multiplied = limits::int8_rate(threads, time);
    let per_prompt_token = 2 * (info.active_parameters - info.output_parameters);
    Ok(ModelBench {
        threads,
        decode,
        prefill,
        first_token_of_16: Duration::from_secs_f64(first_token_of_16),
        cached_prefix_ratio,
        memory_limit: read / info.active_bytes as f64,
        int8_limit: multiplied / per_prompt_token as f64,
        resident_bytes,
        kv_bytes,
    })
}

/// An engine, and requests that do not end early and share nothing unless they are meant to.
struct Bench {
    engine: Engine,
    vocabulary: u32,
    /// Bans the tokens that would end an answer.
    bias: Vec<(u32, f32)>,
    salt: u64,
}

/// A finished request: when it was sent, and what became of it.
type Done = (Instant, Finish);

impl Bench {
    fn start(model: Arc<Model>, threads: usize) -> Result<Self> {
        let vocabulary = model.vocabulary() as u32;
        let bias = (0..vocabulary)
            .filter(|id| model.tokenizer().is_end(*id))
            .map(|id| (id, -100.0));
        Ok(Self {
            bias: bias.collect(),
            vocabulary,
            salt: 0,
            engine: Engine::start(
                model,
                EngineOptions {
                    threads,
                    ..EngineOptions::default()
                },
            )?,
        })
    }

    /// A prompt of some tokens; which ones does not matter, but that they are not the same all over.
    fn request(&self, prompt: usize, first: usize, tokens: usize) -> GenerateRequest {
        let id = |place: usize| ((place * 7919 + 1000) % self.vocabulary as usize) as u32;
        GenerateRequest {
            sampling: Sampling {
                logit_bias: self.bias.clone(),
                ..Sampling::greedy()
            },
            max_tokens: Some(tokens as u32),
            cache_salt: self.salt,
            ..GenerateRequest::new(Prompt::Tokens((first..first + prompt).map(id).collect()))
        }
    }

    /// Sends `count` requests at once, with prompts and answers of so many tokens, and waits for all.
    fn run(&mut self, count: usize, prompt: usize, tokens: usize) -> Result<Vec<Done>> {
        // A new salt: nothing is found of the runs before.
        self.salt += 1;
        let requests = (0..count).map(|number| self.request(prompt, number * 1000, tokens));
        let mut sent = Vec::new();
        for request in requests.collect::<Vec<_>>() {
            sent.push((Instant::now(), self.engine.generate(request)?));
        }
        sent.into_iter()
            .map(|(at, generation)| Ok((at, finish(generation)?)))
            .collect()
    }

    /// The median time from the first of `count` requests to each one's first token.
    fn first_token(&mut self, count: usize, prompt: usize) -> Result<Duration> {
        let all = self.run(count, prompt, 2)?;
        let mut times: Vec<Duration> = all
            .iter()
            .map(|done| first_token(done) - all[0].0)
            .collect();
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }

    fn cached_ratio(&mut self) -> Result<f64> {
        self.salt += 1;
        let time = |tail: u32| {
            let mut request = self.request(512, 0, 1);
            if let Prompt::Tokens(tokens) = &mut request.prompt {
                tokens.extend((1..9).map(|place| (tail * 8 + place) % self.vocabulary));
            }
            let finish = finish(self.engine.generate(request)?)?;
            Ok((finish.queue_time + finish.prefill_time).as_secs_f64())
        };
        let uncached: f64 = time(0)?;
        Ok(time(1)? / uncached)
    }

    fn kv_bytes(&self) -> u64 {
        let stats = self.engine.stats();
        let page = self.engine.page_bytes();
        (stats.kv_bytes_used + stats.cached_pages * page) as u64
    }
}

fn first_token((sent, finish): &Done) -> Instant {
    *sent + finish.queue_time + finish.prefill_time
}

/// Tokens per second of all requests together: the sum of their own rates, from the first token of each to its last.
fn decode_rate(all: &[Done]) -> f64 {
    let rates = all.iter().map(|(_, finish)| {
        // The first token belongs to the prompt's step.
        let steps = f64::from(finish.usage.completion_tokens.saturating_sub(1));
        steps / finish.decode_time.as_secs_f64().max(1e-9)
    });
    rates.sum()
}

/// Waits for the end.
fn finish(mut generation: Generation) -> Result<Finish> {
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Finished(finish) => return Ok(finish),
            Event::Failed(error) => return Err(error),
            Event::Started { .. } | Event::Token(_) => {}
        }
    }
    Err(Error::Stopped)
}

fn median(runs: usize, mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut seen = (0..runs).map(|_| run()).collect::<Result<Vec<_>>>()?;
    seen.sort_unstable_by(f64::total_cmp);
    Ok(seen[seen.len() / 2])
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::TensorType;
    use crate::testing::{self, tiny_llama};

    #[test]
    fn every_figure_is_measured() {
        let tiny =
            testing::model(&tiny_llama(TensorType::Q4_1, 1024), &Default::default()).unwrap();
        let options = BenchOptions {
            threads: 2,
            quick: true,
        };
        let seen = model(tiny, options).unwrap();
        assert_eq!(seen.threads, 2);
        assert_eq!(
            seen.decode.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            REQUESTS
        );
        assert_eq!(
            seen.prefill.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            PROMPTS
        );
        let rates = seen
            .decode
            .iter()
            .chain(&seen.prefill)
            .map(|(_, rate)| *rate);
        let others = [seen.memory_limit, seen.int8_limit, seen.cached_prefix_ratio];
        for figure in rates.chain(others) {
            assert!(figure.is_finite() && figure > 0.0, "{seen:?}");
        }
        assert!(seen.kv_bytes > 0 && seen.first_token_of_16 > Duration::ZERO);
        let short =
            testing::model(&tiny_llama(TensorType::Q4_1, 256), &Default::default()).unwrap();
        assert!(matches!(
            model(short, options),
            Err(Error::ContextExceeded { .. })
        ));
    }
}
