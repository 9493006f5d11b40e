//! A server in this process, for commands that talk to one: a conversation or a question passes exactly what a
//! client's request passes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::quickstart;
use crate::client::Client;
use crate::depot::Reach;
use crate::folders;
use crate::open::Setup;
use crate::serving::{Listen, Running, runtime};

/// What is served, as the command line says it.
pub struct Place<'a> {
    /// The data folder.
    pub data: Option<PathBuf>,
    /// The config; without one that of the quickstart.
    pub config: Option<&'a PathBuf>,
    /// A file in place of the config's local model.
    pub model_file: Option<&'a PathBuf>,
    /// The key that the client shows.
    pub key: Option<String>,
}

/// Serves on a port of its own for as long as `work` takes.
pub fn with_server(
    place: Place<'_>,
    work: impl FnOnce(&Client) -> Result<ExitCode>,
) -> Result<ExitCode> {
    let data = folders::data(place.data);
    let config = match place.config {
        Some(config) => config.clone(),
        None => {
            if place.model_file.is_none() {
                quickstart::pull(&data)?;
            }
            quickstart::place_config(&data)?
        }
    };
    let setup = Setup {
        config,
        data,
        model: place.model_file.cloned(),
        reach: Reach::Network,
    };
    let runtime = runtime(None)?;
    let listen = Listen::At(([127, 0, 0, 1], 0).into());
    let (running, platform) = runtime.block_on(Running::start(&setup, listen))?;
    let client = Client::new(&format!("http://{}", running.address), place.key);
    let code = work(&client);
    runtime.block_on(running.close(&platform));
    code
}
