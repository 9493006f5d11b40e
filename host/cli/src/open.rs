//! From a config file and a data folder to what the platform is started with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use millgate_ops::config::{self, Config, Problem};
use millgate_ops::{Candidate, ConfigReader, Environment, Error, KeptPlugins, PluginSource};
use millgate_sandbox::{Sandbox, SandboxOptions};

use crate::depot::{self, Reach, Resolved};
use crate::memory;
use crate::models::{Library, known};

/// A config file, a data folder, and what the command line says in place of the config.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The config file.
    pub config: PathBuf,
    /// The data folder.
    pub data: PathBuf,
    /// A GGUF file for the config's local model: `FILE`, or `NAME=FILE` where there are several.
    pub model: Option<PathBuf>,
    /// How far to go for plugins from registries.
    pub reach: Reach,
}

/// A config that was found good, with its plugins.
pub struct Ready {
    /// Its text.
    pub text: String,
    /// The config.
    pub config: Config,
    /// Where its plugins are.
    pub plugins: PluginSource,
    resolved: Resolved,
}

impl Ready {
    /// Writes what is new into the lock. To be called when the config is served: one that cannot
    /// be leaves the lock as it was.
    pub fn keep_lock(&self, setup: &Setup) {
        match self.resolved.keep(&self.config, &setup.config) {
            Ok(lines) => lines.iter().for_each(|line| tracing::info!("{line}")),
            Err(error) => tracing::warn!(
                "the lock could not be written, so the next start pulls again: {error:#}"
            ),
        }
    }

    /// As the platform takes it; once it is served the lock is kept.
    pub fn candidate(self, setup: &Setup) -> Candidate {
        let (text, config) = (self.text.clone(), self.config.clone());
        let (plugins, setup) = (self.plugins.clone(), setup.clone());
        Candidate {
            text,
            config,
            plugins,
            served: Some(Box::new(move || {
                memory::give_back();
                self.keep_lock(&setup);
            })),
        }
    }
}

/// Why a config cannot be used.
pub enum LoadError {
    /// Everything that is wrong with it, in the order of its text.
    Problems(Vec<Problem>),
    /// Something else: it cannot be read, say.
    Other(anyhow::Error),
}

impl Setup {
    /// Reads and checks the config, against its plugins too. Blocking; may pull plugins.
    pub fn load(&self, sandbox: &Sandbox) -> Result<Ready, LoadError> {
        let text = read(&self.config).map_err(LoadError::Other)?;
        self.load_text(text, sandbox)
    }

    /// The same for a text in place of the file's; it lies where the file lies.
    pub fn load_text(&self, text: String, sandbox: &Sandbox) -> Result<Ready, LoadError> {
        let plugins = plugins(&self.config);
        let check = |plugins: &PluginSource| {
            config::check_with_plugins(&text, &self.config, &plugins.catalog(sandbox))
        };
        let mut config = check(&plugins).map_err(LoadError::Problems)?;
        self.override_model(&mut config).map_err(LoadError::Other)?;
        let mut resolved = depot::resolve(
            &config,
            &self.config,
            &self.environment(),
            sandbox,
            self.reach,
        )
        .map_err(LoadError::Other)?;
        let plugins = plugins.with_pulled(std::mem::take(&mut resolved.plugins));
        // Once more, now that it can be held against the plugins from registries, too.
        check(&plugins).map_err(LoadError::Problems)?;
        Ok(Ready {
            text,
            config,
            plugins,
            resolved,
        })
    }

    /// The same with the plugins of an earlier generation in place of all others. The lock stays
    /// as it is: it says what the file uses.
    fn load_kept(
        &self,
        text: String,
        kept: KeptPlugins,
        sandbox: &Sandbox,
    ) -> Result<Ready, LoadError> {
        let plugins = plugins(&self.config).with_kept(kept);
        let checked = config::check_with_plugins(&text, &self.config, &plugins.catalog(sandbox));
        let mut config = checked.map_err(LoadError::Problems)?;
        self.override_model(&mut config).map_err(LoadError::Other)?;
        Ok(Ready {
            text,
            config,
            plugins,
            resolved: Resolved::default(),
        })
    }

    /// [`load`](Self::load) for commands that end with the problems' text.
    pub fn load_or_explain(&self, sandbox: &Sandbox) -> Result<Ready> {
        self.load(sandbox).map_err(LoadError::explained)
    }

    /// Reads and checks the config without its plugins from registries.
    pub fn read(&self, sandbox: &Sandbox) -> Result<(String, Config)> {
        let text = read(&self.config)?;
        let plugins = plugins(&self.config);
        let checked = config::check_with_plugins(&text, &self.config, &plugins.catalog(sandbox));
        let config = checked.map_err(|problems| LoadError::Problems(problems).explained())?;
        Ok((text, config))
    }

    /// What the platform needs beside the config.
    pub fn environment(&self) -> Environment {
        let library = Library::of(&self.data);
        Environment {
            data: self.data.clone(),
            plugins: plugins(&self.config),
            models: Arc::new(move |name: &str| local_file(&library, name)),
        }
    }

    fn override_model(&self, config: &mut Config) -> Result<()> {
        let Some(given) = &self.model else {
            return Ok(());
        };
        let text = given.to_string_lossy();
        let named = text
            .split_once('=')
            .filter(|(name, _)| config.models.contains_key(*name));
        let (name, file) = match named {
            Some((name, file)) => (name.to_owned(), PathBuf::from(file)),
            None => {
                let local: Vec<&String> = config
                    .models
                    .iter()
                    .filter(|(_, model)| model.upstream.is_none())
                    .map(|(name, _)| name)
                    .collect();
                match local.as_slice() {
                    [one] => ((*one).clone(), given.clone()),
                    [] => bail!("--model: the config has no local model to replace"),
                    _ => bail!(
                        "--model: the config has several local models; say which: --model NAME=FILE"
                    ),
                }
            }
        };
        // Relative to the working directory, as everything on the command line.
        let file = std::path::absolute(&file)?;
        if !file.is_file() {
            bail!("--model: there is no file {}", file.display());
        }
        if let Some(model) = config.models.get_mut(&name) {
            model.pull = None;
            model.path = Some(file);
        }
        Ok(())
    }
}

/// Reads configs for a running server: its file, and texts in place of it.
pub struct Reader {
    /// The server's.
    pub setup: Setup,
    /// Whose manifests are read.
    pub sandbox: Sandbox,
}

impl ConfigReader for Reader {
    fn file(&self) -> millgate_ops::Result<String> {
        read(&self.setup.config).map_err(|error| Error::Refused(format!("{error:#}")))
    }

    fn read(&self, text: &str, kept: Option<KeptPlugins>) -> millgate_ops::Result<Candidate> {
        let (text, sandbox) = (text.to_owned(), &self.sandbox);
        let ready = match kept {
            // Nothing but what is locked: also not what was used before.
            Some(kept) if self.setup.reach != Reach::Locked => {
                self.setup.load_kept(text, kept, sandbox)
            }
            _ => self.setup.load_text(text, sandbox),
        };
        let ready = ready.map_err(|error| match error {
            LoadError::Problems(problems) => Error::Config(problems),
            LoadError::Other(error) => Error::Refused(format!("{error:#}")),
        })?;
        Ok(ready.candidate(&self.setup))
    }

    fn write(&self, text: &str) -> millgate_ops::Result<PathBuf> {
        let path = &self.setup.config;
        depot::replace(path, text).map_err(|error| Error::Refused(format!("{error:#}")))?;
        Ok(path.clone())
    }
}

impl LoadError {
    /// As a command ends with it.
    pub fn explained(self) -> anyhow::Error {
        match self {
            LoadError::Problems(problems) => Error::Config(problems).into(),
            LoadError::Other(error) => error,
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read {}; name another file with --config, or try `millgate quickstart`",
            path.display()
        )
    })
}

/// The first-party plugins, and files beside the config.
pub fn plugins(config: &Path) -> PluginSource {
    let folder = config.parent().unwrap_or_else(|| Path::new(""));
    PluginSource::new(
        millgate_plugins::all()
            .iter()
            .map(|plugin| (plugin.name, plugin.wasm)),
        folder,
    )
}

/// A sandbox whose compiled plugins are kept with the data.
pub fn sandbox(data: &Path) -> Result<Sandbox> {
    Ok(Sandbox::new(SandboxOptions::new(data.join("compiled")))?)
}

fn local_file(library: &Library, name: &str) -> Result<PathBuf, String> {
    let Some(model) = known(name) else {
        return Err(format!(
            "no model is called \"{name}\"; `millgate model list` prints those that can be pulled"
        ));
    };
    library
        .find(model)
        .ok_or_else(|| format!("it is not here; fetch it: millgate model pull {name}"))
}
