//! The logits of given texts, for comparisons (`tests/bench/closeness.py`):
//! `logits MODEL fast|exact CHUNK` reads a list of lists of token ids as JSON from standard input and writes, after
//! each token of each list, the vocabulary's logits as little-endian f32. `CHUNK` tokens are computed at once.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use millgate_infer::{DeviceChoice, Model, ModelOptions, Precision};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, precision, chunk] = arguments.as_slice() else {
        return Err("usage: logits MODEL fast|exact CHUNK".into());
    };
    let options = ModelOptions {
        precision: match precision.as_str() {
            "fast" => Precision::Fast,
            "exact" => Precision::Exact,
            other => return Err(format!("{other} is neither fast nor exact").into()),
        },
        device: DeviceChoice::Cpu,
        ..ModelOptions::default()
    };
    let model = Model::open(Path::new(path), &options)?;
    let texts: Vec<Vec<u32>> = serde_json::from_reader(std::io::stdin())?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for text in texts {
        for row in model.logits(&text, chunk.parse()?)? {
            for logit in row {
                out.write_all(&logit.to_le_bytes())?;
            }
        }
    }
    out.flush()?;
    Ok(())
}
