//! One file for each command.

mod audit;
mod backtest;
mod backtest_page;
mod bundle;
mod chat;
mod check;
mod doctor;
mod explain;
mod in_process;
mod keys;
mod model;
mod plugin;
mod quickstart;
mod replay;
mod serve;
mod traces;

pub use plugin::{bytes_of, sample_of};

use std::process::ExitCode;

use anyhow::Result;

use crate::args::{Args, BenchCommand, Command};
use crate::bench;

/// Runs the command; the exit code is the process's.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Quickstart(args) => quickstart::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => check::run(args),
        Command::Operate(command) => crate::operate::run(command),
        Command::Chat(args) => chat::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Traces(command) => traces::run(command),
        Command::Replay(args) => replay::run(args),
        Command::Backtest(args) => backtest::run(args),
        Command::Plugin(command) => plugin::run(command),
        Command::Keys(command) => keys::run(command),
        Command::Bundle(command) => bundle::run(command),
        Command::Model(command) => model::run(command),
        Command::Bench(BenchCommand::Stage(args)) => bench::stage(args),
        Command::Bench(BenchCommand::Gateway(args)) => bench::gateway(args),
        Command::Bench(BenchCommand::Model(args)) => bench::model(args),
        Command::Audit(command) => audit::run(command),
        Command::Doctor(args) => doctor::run(args),
    }
}
