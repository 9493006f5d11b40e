//! Where a command about registries stands: the config, if there is one, and the data folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use millgate_ops::Config;
use millgate_ops::config;
use millgate_sandbox::Sandbox;

use crate::args::ConfigArgs;
use crate::depot::{Depot, Reach};
use crate::folders;
use crate::open::{self, Setup};

/// The config that is used when none is named.
const DEFAULT: &str = "millgate.toml";

/// A data folder, and what a config says about registries and signers.
pub struct Place {
    /// The data folder.
    pub data: PathBuf,
    /// The cache, the registries and the signers.
    pub depot: Depot,
    /// A sandbox to read manifests with.
    pub sandbox: Sandbox,
}

impl Place {
    /// Reads the config that the command line names, else the one in this folder, else none.
    pub fn of(args: ConfigArgs) -> Result<Place> {
        let data = folders::data(args.data.data);
        let default = Path::new(DEFAULT);
        let path = args
            .config
            .or_else(|| default.exists().then(|| default.to_owned()));
        let config = match &path {
            None => Config::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| {
                    format!(
                        "cannot read {}; name another file with --config",
                        path.display()
                    )
                })?;
                config::check(&text, path).map_err(millgate_ops::Error::Config)?
            }
        };
        let folder = path.as_deref().and_then(Path::parent);
        let folder = folder.unwrap_or(Path::new(""));
        Ok(Place {
            depot: Depot::of(&config, folder, &data)?,
            sandbox: open::sandbox(&data)?,
            data,
        })
    }
}

/// For commands that cannot do without a config.
pub fn setup(args: ConfigArgs) -> Setup {
    Setup {
        config: args.config.unwrap_or_else(|| PathBuf::from(DEFAULT)),
        data: folders::data(args.data.data),
        model: None,
        reach: Reach::Network,
    }
}
