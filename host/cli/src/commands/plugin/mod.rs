//! `millgate plugin inspect` and `millgate plugin run`.

mod inspect;
mod run;

pub use run::sample_of;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::args::PluginCommand;

pub fn run(command: PluginCommand) -> Result<ExitCode> {
    match command {
        PluginCommand::Inspect(args) => inspect::inspect(args),
        PluginCommand::Run(args) => run::run(args),
        PluginCommand::Author(command) => crate::author::run(command),
    }
}

/// The bytes of a first-party plugin by name, or of a file.
pub fn bytes_of(plugin: &str) -> Result<Vec<u8>> {
    if let Some(known) = millgate_plugins::get(plugin) {
        return Ok(known.wasm.to_vec());
    }
    if plugin.contains('/') || plugin.ends_with(".wasm") {
        return std::fs::read(plugin).with_context(|| format!("cannot read the plugin {plugin}"));
    }
    let names: Vec<&str> = millgate_plugins::all()
        .iter()
        .map(|known| known.name)
        .collect();
    bail!(
        "there is no first-party plugin \"{plugin}\"; there are: {}; a file's name ends in .wasm",
        names.join(", ")
    )
}
