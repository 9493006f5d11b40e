//! Prints what the smallest guest costs: `cargo run --release -p millgate-sandbox --example bench`.
//! The command for users is `millgate bench stage`.

use millgate_sandbox::bench::{self, BenchOptions};
use millgate_sandbox::{Sandbox, SandboxOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("millgate-bench-{}", std::process::id()));
    let sandbox = Sandbox::new(SandboxOptions::new(&dir))?;
    let line = "The quick brown fox jumps over the lazy dog. Write to jane.doe@example.com. ";
    let text: String = line.repeat(14).chars().take(1024).collect();
    let wasm = match std::env::args().nth(1) {
        Some(path) => std::fs::read(path)?,
        None => millgate_hostile::SCAN.to_vec(),
    };
    let config = serde_json::json!({});
    let measured = bench::stage(&sandbox, &wasm, &config, &text, BenchOptions::default())?;
    println!("{}", serde_json::to_string_pretty(&measured)?);
    println!(
        "two threads: {:.2} times one",
        measured.two_threads / measured.one_thread
    );
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
