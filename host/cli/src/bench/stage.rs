//! `millgate bench stage`.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::BenchStageArgs;

pub fn run(_args: BenchStageArgs) -> Result<ExitCode> {
    bail!("not yet")
}
