//! `millgate check`.

use std::process::ExitCode;

use anyhow::Result;
use millgate_ops::config;

use crate::args::CheckArgs;
use crate::depot::Reach;
use crate::folders;
use crate::open::{self, LoadError, Setup};

pub fn run(args: CheckArgs) -> Result<ExitCode> {
    if args.schema {
        println!("{}", serde_json::to_string_pretty(&config::schema())?);
        return Ok(ExitCode::SUCCESS);
    }
    // Clap asks for one of the two.
    let Some(file) = args.file else {
        return Ok(ExitCode::FAILURE);
    };
    let setup = Setup {
        config: file,
        data: folders::data(args.data.data),
        model: None,
        // A check asks nobody: what is not here and locked is said.
        reach: Reach::Machine,
    };
    let file = &setup.config;
    let sandbox = open::sandbox(&setup.data)?;
    match setup.load(&sandbox) {
        Ok(ready) => {
            let config = ready.config;
            println!(
                "{}: fine: {} models, {} stages, {} pipelines",
                file.display(),
                config.models.len(),
                config.stages.len(),
                config.pipelines.len()
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(LoadError::Problems(problems)) => {
            for problem in &problems {
                eprintln!("{problem}");
            }
            let errors = if problems.len() == 1 {
                "error"
            } else {
                "errors"
            };
            eprintln!("{} {errors}", problems.len());
            Ok(ExitCode::FAILURE)
        }
        Err(LoadError::Other(error)) => Err(error),
    }
}
