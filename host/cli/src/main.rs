//! The `millgate` binary: it reads the command line and calls one file of [`commands`] for each
//! command.

mod args;
mod author;
mod bench;
mod client;
mod commands;
mod depot;
mod folders;
mod memory;
mod models;
mod open;
mod operate;
mod serving;
mod storage;
mod system;
mod words;

use std::process::ExitCode;

use clap::Parser;

/// Requests allocate and free small things on many threads; mimalloc does that with fewer locks
/// and gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(code) => code,
        Err(error) => {
            // A closed pipe (`millgate traces list | head`) is no error worth a message.
            if !is_broken_pipe(&error) {
                eprintln!("millgate: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
