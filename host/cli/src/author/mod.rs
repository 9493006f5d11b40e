//! What plugin authors call: `millgate plugin new`, `build`, `test` and `bench`.

mod args;
mod bench;
mod build;
mod call;
mod fixture;
mod new;
mod project;
mod property;
mod random;
mod test;
mod tools;

pub use args::AuthorCommand;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use millgate_sandbox::{Capability, StateGrant};
use millgate_sandbox::{Isolation, MemoryServices, PluginInfo, Sandbox, Stage, StageSpec};
use serde_json::Value;

/// Runs one of the author's commands.
pub fn run(command: AuthorCommand) -> Result<ExitCode> {
    match command {
        AuthorCommand::New(args) => new::run(args),
        AuthorCommand::Build(args) => build::run(args),
        AuthorCommand::Test(args) => test::run(args),
        AuthorCommand::Bench(args) => bench::run(args),
    }
}

/// The memory that a plugin may have under these commands: what any stage may be given. An
/// interpreter needs more than the 16 MiB that a stage has by default.
const MEMORY: u64 = 256 << 20;

/// What a stage with the grant `state` gets here.
const STATE_BYTES: u64 = 1 << 20;

/// From this size on a plugin brings an interpreter along, and people should know why they wait.
const LARGE: u64 = 4 << 20;

/// A plugin under test.
struct Subject<'a> {
    sandbox: &'a Sandbox,
    bytes: &'a [u8],
    info: &'a PluginInfo,
}

impl Subject<'_> {
    /// Loads it with a config; the services hold what it reports.
    fn load(&self, config: Value, isolation: Isolation) -> Result<(Stage, Arc<MemoryServices>)> {
        let mut spec = StageSpec::new(&self.info.manifest.name, config);
        spec.limits.memory = MEMORY;
        // A machine that pauses is not the plugin's fault.
        spec.limits.deadline = std::time::Duration::from_secs(5);
        spec.isolation = isolation;
        if self.info.manifest.requests.contains(&Capability::State) {
            spec.grant.state = Some(StateGrant { bytes: STATE_BYTES });
        }
        let services = Arc::new(MemoryServices::default());
        if self.info.size > LARGE {
            eprintln!(
                "loading {}: compiling it for a new config takes up to a minute",
                spec.name
            );
        }
        let stage = self.sandbox.load(self.bytes, spec, services.clone())?;
        Ok((stage, services))
    }
}

/// A path as people type it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(path)
        .display()
        .to_string()
}
