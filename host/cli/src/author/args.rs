//! The command lines of the author's commands.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub enum AuthorCommand {
    /// Makes a plugin project that builds: one check, its tests, fixtures and manifest
    New(NewArgs),
    /// Builds a plugin project into a component with its manifest
    Build(BuildArgs),
    /// Runs a plugin's fixtures in the real sandbox, then the properties that every plugin owes
    Test(TestArgs),
    /// Measures a plugin beside the first-party one of its kind
    Bench(BenchArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    Rust,
    Js,
    Python,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Compliance,
    Validation,
    Monitoring,
    Deployment,
    Evaluation,
}

#[derive(Debug, Args)]
pub struct NewArgs {
    /// The plugin's name, in lower case with hyphens; the folder is called the same
    pub name: String,
    /// The language it is written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    pub lang: Language,
    /// The stage interface it has
    #[arg(long, value_enum, default_value_t = Kind::Compliance)]
    pub kind: Kind,
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TestArgs {
    /// The project's folder
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Test what was built before
    #[arg(long)]
    pub no_build: bool,
    /// The seed of the generated texts [default: a new one, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Generated inputs for each config of the fixtures
    #[arg(long, default_value_t = 40, value_name = "N")]
    pub cases: usize,
}

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A project's folder, a .wasm file, or a first-party plugin's name
    #[arg(default_value = ".")]
    pub plugin: PathBuf,
    /// The stage's config as JSON [default: that of the project's first fixture]
    #[arg(long, short, value_name = "JSON")]
    pub config: Option<String>,
    /// Bytes of text a call
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub bytes: usize,
    /// Seconds for each measurement
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub seconds: f64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
