//! Measures a model: `cargo run --release -p millgate-infer --example bench_core -- MODEL.gguf`. The environment may set
//! `THREADS` (0: all cores) and `QUICK` (1: one short run for each figure).

use std::path::Path;

use millgate_infer::bench::{self, BenchOptions};
use millgate_infer::{Model, ModelOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: bench_core MODEL.gguf")?;
    let setting = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok())
    };
    let options = BenchOptions {
        threads: setting("THREADS").unwrap_or(0),
        quick: setting("QUICK") == Some(1),
    };
    let model = Model::open(Path::new(&path), &ModelOptions::default())?;
    println!("{:#?}", bench::model(model, options)?);
    Ok(())
}
