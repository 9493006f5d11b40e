//! Builds every first-party plugin to Wasm and writes the table that `lib.rs` includes. A plugin
//! that does not compile stops the build, with cargo's own message.

use std::path::PathBuf;
use std::{env, fs};

/// The first-party plugins: folders beside this one.
const PLUGINS: [&str; 5] = ["pii", "schema", "drift", "canary", "overlap"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The contract's folder as a whole, so that a new file counts; the plugins' own sources are
    // named by `build_guests`.
    println!("cargo::rerun-if-changed=../../wit");
    if let Err(error) = bundle() {
        for line in error.to_string().lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn bundle() -> Result<(), Box<dyn std::error::Error>> {
    let folders = PLUGINS.map(|name| PathBuf::from("..").join(name));
    let components = millgate_plugin_build::build_guests(&folders)?;
    let entries: String = PLUGINS
        .iter()
        .zip(&components)
        .map(|(name, path)| {
            format!("    FirstParty {{ name: {name:?}, wasm: include_bytes!({path:?}) }},\n")
        })
        .collect();
    let table = PathBuf::from(env::var("OUT_DIR")?).join("plugins.rs");
    fs::write(table, format!("&[\n{entries}]\n"))?;
    Ok(())
}
