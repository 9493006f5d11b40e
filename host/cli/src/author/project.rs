//! A plugin project: a folder with `plugin.toml` and sources in one of three languages.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use millgate_sandbox::Manifest;

use super::args::Language;

/// A project on disk.
pub struct Project {
    /// Its folder, absolute.
    pub dir: PathBuf,
    /// What it is written in.
    pub language: Language,
    /// Its manifest.
    pub manifest: Manifest,
}

impl Project {
    /// Reads the project in a folder.
    pub fn open(dir: &Path) -> Result<Project> {
        let found = dir
            .canonicalize()
            .with_context(|| format!("there is no folder {}", dir.display()))?;
        let path = found.join("plugin.toml");
        if !path.exists() {
            bail!(
                "{} has no plugin.toml: it is no plugin project; `millgate plugin new NAME` makes one",
                dir.display()
            );
        }
        let text =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let manifest =
            Manifest::parse(&text).with_context(|| format!("{} is not sound", path.display()))?;
        let has = |file: &str| found.join(file).exists();
        let language = if has("Cargo.toml") {
            Language::Rust
        } else if has("package.json") {
            Language::Js
        } else if has("plugin.py") {
            Language::Python
        } else {
            bail!(
                "{} holds no plugin sources: a project has Cargo.toml (Rust), package.json (JavaScript) or plugin.py (Python)",
                dir.display()
            );
        };
        Ok(Project {
            dir: found,
            language,
            manifest,
        })
    }

    /// Where builds go.
    pub fn build_dir(&self) -> PathBuf {
        self.dir.join("build")
    }

    /// The component that `plugin build` makes.
    pub fn component(&self) -> PathBuf {
        self.build_dir()
            .join(format!("{}.wasm", self.manifest.name))
    }
}
