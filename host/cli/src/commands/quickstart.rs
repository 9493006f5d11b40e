//! `millgate quickstart`: from nothing to a served model in one command.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::args::QuickstartArgs;
use crate::depot::Reach;
use crate::folders;
use crate::models::Library;
use crate::open::Setup;
use crate::serving::{self, Listen};

/// The config, the same as the example's.
const CONFIG: &str = include_str!("../../../../examples/quickstart/millgate.toml");
/// The model that the config names.
const MODEL: &str = "smollm2-135m-instruct";
/// The name under which clients ask for it.
const SERVED: &str = "smollm2";

pub fn run(args: QuickstartArgs) -> Result<ExitCode> {
    if args.print_config {
        print!("{CONFIG}");
        return Ok(ExitCode::SUCCESS);
    }
    serving::log(&args.process)?;
    let data = folders::data(args.data.data);
    let config = place_config(&data)?;
    println!("millgate: data in {}", data.display());
    println!("millgate: config in {}", config.display());
    if args.model.is_none() {
        pull(&data)?;
    }
    let setup = Setup {
        config,
        data,
        model: args.model,
        reach: Reach::Network,
    };
    let listen = Listen::AtOrNear(args.listen);
    serving::serve(&setup, listen, args.process.workers, try_it)
}

/// The quickstart's config in the data folder. One that is there already is left as it is: it may
/// have been edited.
pub fn place_config(data: &Path) -> Result<PathBuf> {
    let path = data.join("quickstart.toml");
    if !path.exists() {
        std::fs::create_dir_all(data)
            .and_then(|()| std::fs::write(&path, CONFIG))
            .with_context(|| {
                format!(
                    "cannot write {}; choose another folder with --data",
                    path.display()
                )
            })?;
    }
    Ok(path)
}

/// Sees to it that the default model is here.
pub fn pull(data: &Path) -> Result<()> {
    let library = Library::of(data);
    let found = library.pull(MODEL)?;
    let how = if found.downloaded {
        "pulled to"
    } else {
        "found at"
    };
    println!("millgate: model {MODEL} {how} {}", found.path.display());
    Ok(())
}

fn try_it(address: SocketAddr) {
    println!(
        r#"
Try it:

  curl http://{address}/v1/chat/completions -H 'content-type: application/json' \
    -d '{{"model":"{SERVED}","messages":[{{"role":"user","content":"Hello! My card is 4111 1111 1111 1111."}}]}}'

  pip install openai && python3 -c 'from openai import OpenAI; print(OpenAI(base_url="http://{address}/v1", api_key="none").chat.completions.create(model="{SERVED}", messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)'

What each stage did:   millgate traces list --server http://{address}
A conversation:        millgate chat --server http://{address}
Ctrl-C stops it.
"#
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_config_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = place_config(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), CONFIG);
        std::fs::write(&path, "# mine").unwrap();
        place_config(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "# mine");
    }
}
