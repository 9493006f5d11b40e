//! `millgate model pull` and `millgate model list`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::args::{ModelCommand, ModelListArgs, ModelPullArgs};
use crate::folders;
use crate::models::{CATALOGUE, Library};

pub fn run(command: ModelCommand) -> Result<ExitCode> {
    match command {
        ModelCommand::Pull(args) => pull(args),
        ModelCommand::List(args) => list(args),
    }
}

fn pull(args: ModelPullArgs) -> Result<ExitCode> {
    let library = Library::of(&folders::data(args.data.data));
    let found = library.pull(&args.name)?;
    let how = if found.downloaded {
        "pulled"
    } else {
        "already here"
    };
    println!(
        "{}: {how}, SHA-256 verified\n  {}",
        args.name,
        found.path.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn list(args: ModelListArgs) -> Result<ExitCode> {
    let library = Library::of(&folders::data(args.data.data));
    let mut rows = Vec::new();
    for model in CATALOGUE {
        let path = library.find(model);
        if args.json {
            rows.push(json!({
                "name": model.name, "bytes": model.bytes, "sha256": model.sha256,
                "licence": model.licence, "path": path,
            }));
            continue;
        }
        let place = path.map_or_else(
            || format!("not here; get it: millgate model pull {}", model.name),
            |path| path.display().to_string(),
        );
        println!(
            "{}  {:.0} MB  {}",
            model.name,
            model.bytes as f64 / 1e6,
            model.licence
        );
        println!("  {}\n  {place}", model.about);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(ExitCode::SUCCESS)
}
