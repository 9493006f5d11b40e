//! One file for each command.

mod model;

use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Args, Command};

/// Runs the command; the exit code is the process's.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Model(command) => model::run(command),
        _ => anyhow::bail!("soon"),
    }
}
