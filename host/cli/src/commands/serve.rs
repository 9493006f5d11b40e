//! `millgate serve`.

use std::process::ExitCode;

use anyhow::Result;

use crate::args::ServeArgs;
use crate::depot::Reach;
use crate::folders;
use crate::open::Setup;
use crate::serving::{self, Listen};

pub fn run(args: ServeArgs) -> Result<ExitCode> {
    serving::log(&args.process)?;
    let setup = Setup {
        config: args.config,
        data: folders::data(args.data.data),
        model: args.model,
        reach: if args.locked {
            Reach::Locked
        } else {
            Reach::Network
        },
    };
    let listen = args.listen.map_or(Listen::AsConfigured, Listen::At);
    serving::serve(&setup, listen, args.process.workers, |_| {})
}
