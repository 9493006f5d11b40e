//! `millgate plugin`: one file for each of its commands.

mod inspect;
mod place;
mod publish;
mod pull;
mod run;
mod update;

pub use place::setup;
pub use run::sample_of;
pub use update::agreed;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::args::PluginCommand;

pub fn run(command: PluginCommand) -> Result<ExitCode> {
    match command {
        PluginCommand::Inspect(args) => inspect::inspect(args),
        PluginCommand::Run(args) => run::run(args),
        PluginCommand::Publish(args) => publish::run(args),
        PluginCommand::Pull(args) => pull::run(args),
        PluginCommand::Lock(args) => update::lock(args),
        PluginCommand::Update(args) => update::update(args),
        PluginCommand::Author(command) => crate::author::run(command),
    }
}

/// The bytes of a first-party plugin by name, of a file, or of the one plugin in a folder.
pub fn bytes_of(plugin: &str) -> Result<Vec<u8>> {
    if let Some(known) = millgate_plugins::get(plugin) {
        return Ok(known.wasm.to_vec());
    }
    if Path::new(plugin).is_dir() {
        let file = only_plugin(Path::new(plugin))?;
        return std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()));
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

/// The one `.wasm` file of a folder.
fn only_plugin(folder: &Path) -> Result<PathBuf> {
    let read = || format!("cannot read {}", folder.display());
    let mut found = Vec::new();
    for entry in folder.read_dir().with_context(read)? {
        let path = entry.with_context(read)?.path();
        if path.extension().is_some_and(|kind| kind == "wasm") {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!(
            "there is no .wasm file in {}: build the plugin, or name its file",
            folder.display()
        ),
        several => {
            let names: Vec<String> = several
                .iter()
                .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
                .collect();
            bail!(
                "{} has several .wasm files ({}): name one",
                folder.display(),
                names.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stands_for_its_one_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        assert!(
            bytes_of(folder)
                .unwrap_err()
                .to_string()
                .contains("no .wasm file")
        );
        std::fs::write(dir.path().join("a.wasm"), "a").unwrap();
        assert_eq!(bytes_of(folder).unwrap(), b"a");
        std::fs::write(dir.path().join("b.wasm"), "b").unwrap();
        let error = bytes_of(folder).unwrap_err().to_string();
        assert!(error.contains("a.wasm, b.wasm"), "{error}");
    }
}
