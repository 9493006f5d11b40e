//! `millgate bench model`: how fast the inference core runs a model on this machine, beside what reading its
//! weights and multiplying them would take at best.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use millgate_infer::bench::{self, BenchOptions, ModelBench};
use millgate_infer::{Model, ModelInfo, ModelOptions};
use serde_json::{Map, Value, json};

use crate::args::BenchModelArgs;
use crate::models::{Library, known};
use crate::{folders, words};

pub fn run(args: BenchModelArgs) -> Result<ExitCode> {
    if args.threads > 1024 {
        bail!("--threads must be at most 1024");
    }
    let path = path_of(&args)?;
    let options = ModelOptions {
        device: args.device,
        ..ModelOptions::default()
    };
    let model =
        Model::open(&path, &options).with_context(|| format!("cannot open {}", path.display()))?;
    let info = model.info().clone();
    let options = BenchOptions {
        threads: args.threads,
        quick: args.quick,
    };
    let seen = bench::model(model, options)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&info, &seen))?);
    } else {
        print!("{}", describe(&info, &seen));
    }
    Ok(ExitCode::SUCCESS)
}

/// The file that is meant.
fn path_of(args: &BenchModelArgs) -> Result<PathBuf> {
    let path = Path::new(&args.model);
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let Some(model) = known(&args.model) else {
        bail!(
            "{} is neither a file nor a model that `millgate model list` names",
            args.model
        );
    };
    let library = Library::of(&folders::data(args.data.data.clone()));
    library.find(model).with_context(|| {
        format!(
            "{} is not here; get it: millgate model pull {}",
            args.model, args.model
        )
    })
}

fn as_json(info: &ModelInfo, seen: &ModelBench) -> Value {
    let rates = |rates: &[(usize, f64)]| {
        let rates = rates.iter().map(|(n, rate)| (n.to_string(), json!(rate)));
        Value::Object(rates.collect::<Map<_, _>>())
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    json!({
        "model": info.name,
        "threads": seen.threads,
        "decode_tok_s": rates(&seen.decode),
        "prefill_tok_s": rates(&seen.prefill),
        "memory_limit_tok_s": seen.memory_limit,
        "int8_limit_tok_s": seen.int8_limit,
        "rss_mib": seen.resident_bytes.map(mib),
        "weights_mib": mib(info.active_bytes),
        "kv_mib": mib(seen.kv_bytes),
        "ttft_16_ms": seen.first_token_of_16.as_secs_f64() * 1e3,
        "cached_prefix_ratio": seen.cached_prefix_ratio,
    })
}

fn describe(info: &ModelInfo, seen: &ModelBench) -> String {
    let row = |name: String, rate: f64, limit: f64| {
        let share = format!("{:.0} %", 100.0 * rate / limit);
        vec![name, format!("{rate:.1}"), share]
    };
    let mut rows = vec![
        ["tokens/s", "", "of the limit"].map(str::to_owned).to_vec(),
        row(
            "decode limit: reading the weights".into(),
            seen.memory_limit,
            seen.memory_limit,
        ),
    ];
    for (count, rate) in &seen.decode {
        let name = match count {
            1 => "  one request".to_owned(),
            count => format!("  {count} requests at once, in all"),
        };
        // Requests at once share the reading of the weights; the limit is that of one.
        rows.push(row(name, *rate, seen.memory_limit));
    }
    let name = "prefill limit: 8-bit multiplications";
    rows.push(row(name.into(), seen.int8_limit, seen.int8_limit));
    for (count, rate) in &seen.prefill {
        rows.push(row(format!("  {count} tokens"), *rate, seen.int8_limit));
    }
    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    format!(
        "{} ({}, {} read a token), {} threads\n{}first token while 16 start at once: {:.0} ms (median)\nfirst token after 512 cached tokens: {:.1} % of the time without\nin memory: {}, of which KV pages {}\n",
        info.name,
        info.quantisation,
        mib(info.active_bytes),
        seen.threads,
        words::table(&rows),
        seen.first_token_of_16.as_secs_f64() * 1e3,
        seen.cached_prefix_ratio * 100.0,
        seen.resident_bytes.map_or("unknown".to_owned(), mib),
        mib(seen.kv_bytes),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn json_has_the_keys_that_others_read() {
        let info = ModelInfo {
            name: "m".to_owned(),
            architecture: "llama".to_owned(),
            parameters: 10,
            context: 512,
            active_parameters: 10,
            active_bytes: 1 << 20,
            output_parameters: 2,
            file_bytes: 1 << 20,
            quantisation: "Q4_1".to_owned(),
        };
        let seen = ModelBench {
            threads: 2,
            decode: vec![(1, 10.0), (16, 40.0)],
            prefill: vec![(128, 100.0)],
            first_token_of_16: Duration::from_millis(1500),
            cached_prefix_ratio: 0.04,
            memory_limit: 20.0,
            int8_limit: 400.0,
            resident_bytes: Some(3 << 20),
            kv_bytes: 1 << 20,
        };
        let json = as_json(&info, &seen);
        assert_eq!(json["decode_tok_s"], json!({ "1": 10.0, "16": 40.0 }));
        assert_eq!(json["prefill_tok_s"], json!({ "128": 100.0 }));
        assert_eq!((&json["model"], &json["threads"]), (&json!("m"), &json!(2)));
        for (key, value) in [
            ("memory_limit_tok_s", 20.0),
            ("int8_limit_tok_s", 400.0),
            ("rss_mib", 3.0),
            ("ttft_16_ms", 1500.0),
        ] {
            assert_eq!(json[key], json!(value), "{key}");
        }
        let text = describe(&info, &seen);
        assert!(
            text.contains("one request") && text.contains("50 %"),
            "{text}"
        );
    }
}
