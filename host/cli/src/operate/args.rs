//! The commands with which an operator changes a running server, and their options.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use crate::args::DataArgs;

#[derive(Debug, Subcommand)]
pub enum OperateCommand {
    /// Shows what a changed config would do to a running server; changes nothing
    Plan(PlanArgs),
    /// Serves a changed config without a failed request
    Apply(ApplyArgs),
    /// Serves an earlier generation again, with the plugins that it had
    Rollback(RollbackArgs),
    /// The generations that were served, newest first, or one with its config
    Generations(GenerationsArgs),
    /// The stages that are served: whose verdict counts, and how the others compare
    Stages(StagesArgs),
}

#[derive(Debug, ClapArgs)]
pub struct StagesArgs {
    #[command(flatten)]
    pub server: ServerArgs,
}

/// The running server.
#[derive(Debug, ClapArgs)]
pub struct ServerArgs {
    /// The running server
    #[arg(
        long,
        default_value = "http://127.0.0.1:8080",
        env = "MILLGATE_SERVER",
        value_name = "URL"
    )]
    pub server: String,
    /// The operator's key for the server
    #[arg(
        long,
        env = "MILLGATE_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub key: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  millgate plan                       # what the server's own file, as it is now, would change
  millgate plan --config next.toml    # what this file would change in its place

Ends with 0 when nothing would change, with 2 when something would. Paths in the text are read from
the folder of the server's own file.")]
pub struct PlanArgs {
    /// Send this file [default: the server reads its own]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  millgate apply                              # the server reads its own file again, as on SIGHUP
  millgate apply --config next.toml           # serves this file; the server's own stays as it is
  millgate apply --config next.toml --write   # and makes the server's own file say the same

Requests in flight, streams too, finish on the generation they began with. A config that cannot be
served changes nothing.")]
pub struct ApplyArgs {
    /// Send this file [default: the server reads its own]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Make the server's own file say the same, so that a restart serves it too
    #[arg(long, requires = "config")]
    pub write: bool,
    /// Make a new generation even where nothing changes, and let canaries that fell begin anew
    #[arg(long)]
    pub again: bool,
    /// Who applies it, for the audit log [default: the user's name]
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  millgate rollback       # to the generation before
  millgate rollback 7     # to this one

The earlier generation becomes a new one: numbers only grow. The server's own file stays as it is,
so a restart serves the file: change it too.")]
pub struct RollbackArgs {
    /// The number of the generation, as `millgate generations` lists it [default: the one before]
    #[arg(value_name = "N")]
    pub generation: Option<u64>,
    /// Who goes back, for the audit log [default: the user's name]
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    #[command(flatten)]
    pub server: ServerArgs,
}

#[derive(Debug, ClapArgs)]
pub struct GenerationsArgs {
    /// Show this one, with the text of its config
    #[arg(value_name = "N")]
    pub generation: Option<u64>,
    /// The most to list
    #[arg(long, short = 'n', default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub limit: u64,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub data: DataArgs,
}
