//! What an operator does to a running platform: plan another config, apply it, go back to an earlier
//! generation. A generation is swapped in whole: requests in flight finish on the one they began
//! with, and a config that cannot be served changes nothing.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};

use bytes::Bytes;
use millgate_sandbox::{MemoryServices, Services};
use millgate_store::Digest;
use serde::Serialize;
use serde_json::json;

use crate::{
    canary::CanaryPhase,
    config::{self, Config},
    error::{Error, Result},
    generations::{self, GenerationRecord, Generations, How, StagePin},
    id::now_ms,
    loader::{Loader, Parts, pin, spec},
    measure,
    pipeline::Generation,
    plan::{self, Change, Plan, Side},
    platform::{Environment, Inner, Platform, described, reviews},
    plugins::{KeptPlugins, PluginSource},
};

/// A config that was read and found good, with what serving it takes.
pub struct Candidate {
    /// Its text, as it is kept with the generation.
    pub text: String,
    /// What the text says.
    pub config: Config,
    /// Where its plugins are.
    pub plugins: PluginSource,
    /// Called once it is served: what was pulled is written into the lock, say.
    pub served: Option<Box<dyn FnOnce() + Send>>,
}

/// Reads configs for a platform, against the plugins that it can get.
pub trait ConfigReader: Send + Sync + 'static {
    /// The text of the file that the server was started with, as it is now.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    fn file(&self) -> Result<String>;

    /// Reads and checks a config. Blocking; may pull plugins. `kept` are the plugins of an earlier
    /// generation, which come before all others.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    fn read(&self, text: &str, kept: Option<KeptPlugins>) -> Result<Candidate>;

    /// Writes this text into the file that the server was started with, whole or not at all.
    ///
    /// # Errors
    /// There is none, or it cannot be written.
    fn write(&self, text: &str) -> Result<PathBuf>;
}

/// Who wants what of an apply.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// Who asks, for the audit log.
    pub by: String,
    /// Make a new generation even where nothing changes, and let canaries that fell begin anew.
    pub again: bool,
}

/// What an apply or a rollback did.
#[derive(Clone, Debug, Serialize)]
pub struct Applied {
    /// The generation that is served now.
    pub generation: u64,
    /// The one before.
    pub previous: u64,
    /// Whether it is a new one. If not, nothing had changed.
    pub changed: bool,
    /// What changed.
    pub changes: Vec<Change>,
    /// Milliseconds from the checked config to the swap.
    pub took_ms: f64,
    /// Whether the file that the server was started with says the same; `None`: there is no file.
    pub file_agrees: Option<bool>,
    /// What an operator should know beside it.
    pub notes: Vec<String>,
}

/// What a new generation is made of.
pub(crate) struct Loaded {
    pub generation: Generation,
    pub parts: Parts,
    /// The bytes of the plugins.
    pub plugins: Vec<Bytes>,
}

impl Candidate {
    /// A config that was made in this process, with plugins from here.
    ///
    /// # Errors
    /// It cannot be written as TOML.
    pub fn of(config: Config, plugins: PluginSource) -> Result<Self> {
        let text = toml::to_string(&config)
            .map_err(|error| Error::Refused(format!("the config cannot be written: {error}")))?;
        Ok(Self {
            text,
            config,
            plugins,
            served: None,
        })
    }
}

impl Platform {
    /// The generations that were served in this data folder.
    #[must_use]
    pub fn generations(&self) -> &Generations {
        &self.inner.generations
    }

    /// From now on configs are read by this reader. Without one, texts are read against the plugins
    /// of the start, and there is no file. Only the first call counts.
    pub fn read_configs_with(&self, reader: Arc<dyn ConfigReader>) {
        let _ = self.inner.reader.set(reader);
    }

    /// What serving this text (`None`: the server's own file, as it is now) would change. Blocking:
    /// compiles what is new and measures it, so that an apply after it is quick.
    ///
    /// # Errors
    /// Why it could not be served.
    pub fn plan(&self, text: Option<&str>) -> Result<Plan> {
        let reader = self.reader();
        let text = match text {
            Some(text) => text.to_owned(),
            None => reader.file()?,
        };
        self.plan_of(reader.read(&text, None)?)
    }

    /// Serves this text (`None`: the server's own file, as it is now). With `write`, the file is
    /// then made to say the same. Blocking.
    ///
    /// # Errors
    /// Why it cannot be served; nothing has changed then.
    pub fn apply(&self, text: Option<&str>, write: bool, ask: &Ask) -> Result<Applied> {
        let how = How::Apply;
        self.apply_as(how, text, write, ask)
    }

    /// The same for the server's own file, told by a signal.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn apply_file(&self, by: &str) -> Result<Applied> {
        let ask = Ask {
            by: by.to_owned(),
            ..Ask::default()
        };
        self.apply_as(How::Reload, None, false, &ask)
    }

    fn apply_as(&self, how: How, text: Option<&str>, write: bool, ask: &Ask) -> Result<Applied> {
        let reader = self.reader();
        let read = || {
            let text = match text {
                Some(text) => text.to_owned(),
                None => reader.file()?,
            };
            reader.read(&text, None)
        };
        let candidate = match read() {
            Ok(candidate) => candidate,
            Err(error) => return Err(self.refused(error, &ask.by)?),
        };
        let text = candidate.text.clone();
        let mut applied = self.serve(candidate, how, None, ask)?;
        self.compare_file(&text, write, &mut applied);
        Ok(applied)
    }

    /// Serves an earlier generation again, as a new one: its config and the very plugins that it
    /// had. `None`: the one before the present one. The server's file stays as it is. Blocking.
    ///
    /// # Errors
    /// There is no such generation, or it cannot be served any more; nothing has changed then.
    pub fn rollback(&self, to: Option<u64>, ask: &Ask) -> Result<Applied> {
        let inner = &self.inner;
        let present = self.config().1;
        let number = match to {
            Some(number) => number,
            None => inner.generations.before(present)?,
        };
        let record = inner.generations.get(number)?;
        let text = inner.generations.text(&record)?;
        let kept = inner.generations.plugins(&record)?;
        let candidate = match self.reader().read(&text, Some(kept)) {
            Ok(candidate) => candidate,
            Err(error) => return Err(self.refused(error, &ask.by)?),
        };
        let mut applied = self.serve(candidate, How::Rollback, Some(&record), ask)?;
        self.compare_file(&text, false, &mut applied);
        Ok(applied)
    }

    /// Takes a new config. Requests in flight finish on the one they began with; when anything of
    /// the new one cannot be loaded, the old one stays. Blocking. Returns the generation that is
    /// served then.
    ///
    /// # Errors
    /// What could not be loaded; nothing has changed then.
    pub fn reload(&self, config: Config, actor: &str) -> Result<u64> {
        let candidate = Candidate::of(config, self.inner.environment.plugins.clone())?;
        let ask = Ask {
            by: actor.to_owned(),
            ..Ask::default()
        };
        Ok(self.serve(candidate, How::Apply, None, &ask)?.generation)
    }

    fn reader(&self) -> Arc<dyn ConfigReader> {
        let inner = &self.inner;
        let plain = || -> Arc<dyn ConfigReader> {
            Arc::new(PlainReader {
                plugins: inner.environment.plugins.clone(),
                sandbox: inner.sandbox.clone(),
            })
        };
        inner.reader.get().cloned().unwrap_or_else(plain)
    }

    /// Notes a config that could not be served; gives the reason back.
    fn refused(&self, error: Error, by: &str) -> Result<Error> {
        self.inner.audit.append(
            by,
            "config.refused",
            "config",
            json!({ "why": error.to_string() }),
        )?;
        Ok(error)
    }

    /// Says whether the file agrees with what is served, after making it so where that was asked.
    fn compare_file(&self, text: &str, write: bool, applied: &mut Applied) {
        let reader = self.reader();
        if write && let Err(error) = reader.write(text) {
            applied
                .notes
                .push(format!("the file could not be written: {error}"));
        }
        applied.file_agrees = reader.file().ok().map(|file| file == text);
        if applied.file_agrees == Some(false) {
            applied.notes.push(
                "the server's file says something else: a restart, or SIGHUP, serves the file"
                    .to_owned(),
            );
        }
    }

    /// Makes a generation of a candidate and swaps it in.
    fn serve(
        &self,
        candidate: Candidate,
        how: How,
        of: Option<&GenerationRecord>,
        ask: &Ask,
    ) -> Result<Applied> {
        let inner = &self.inner;
        let begin = Instant::now();
        let mut parts = inner.parts.lock();
        let current = inner.core.generation.load_full();
        let environment = Environment {
            plugins: candidate.plugins,
            ..inner.environment.clone()
        };
        let loader = inner.loader(&environment);
        let mut loaded = match loader
            .load(candidate.config, &parts)
            .and_then(|loaded| same_plugins(loaded, of))
        {
            Ok(loaded) => loaded,
            Err(error) => return Err(self.refused(error, &ask.by)?),
        };
        let (old, new) = (
            parts.pins(&current.config),
            loaded.parts.pins(&loaded.generation.config),
        );
        let digest = generations::digest(&loaded.generation.config, &new);
        let changes = plan::changes(
            Side {
                config: &current.config,
                pins: &old,
            },
            Side {
                config: &loaded.generation.config,
                pins: &new,
            },
        );
        let mut applied = Applied {
            generation: current.number,
            previous: current.number,
            changed: false,
            changes,
            took_ms: 0.0,
            file_agrees: None,
            notes: notes(&current.config, &loaded.generation.config),
        };
        if !ask.again {
            applied.notes.extend(fallen(&loaded.parts));
        }
        if digest == current.digest && !ask.again {
            // What was pulled for it is used all the same.
            if let Some(served) = candidate.served {
                served();
            }
            return Ok(applied);
        }
        let record = GenerationRecord {
            number: 0,
            at_ms: now_ms(),
            by: ask.by.clone(),
            how,
            of: of.map(|record| record.number),
            digest,
            text: Digest::of(candidate.text.as_bytes()),
            stages: new,
            changes: applied.changes.iter().map(ToString::to_string).collect(),
        };
        inner.keep(&mut loaded, record, &candidate.text, &ask.by)?;
        // From here on nothing fails.
        loader.takes_effect(&loaded.generation.config, &loaded.parts);
        if ask.again {
            for (_, canary) in loaded.parts.canaries() {
                if canary.status().phase == CanaryPhase::Fallen {
                    canary.begin_again();
                }
            }
        }
        loaded.parts.reviews = reviews(&loaded.generation, &inner.audit, &inner.runtime);
        applied.generation = loaded.generation.number;
        applied.changed = true;
        inner.core.generation.store(Arc::new(loaded.generation));
        *parts = loaded.parts;
        drop(parts);
        applied.took_ms = begin.elapsed().as_secs_f64() * 1e3;
        tracing::info!(
            generation = applied.generation,
            how = how.name(),
            by = %ask.by,
            took_ms = applied.took_ms,
            "a new generation is served"
        );
        if let Some(served) = candidate.served {
            served();
        }
        Ok(applied)
    }

    fn plan_of(&self, candidate: Candidate) -> Result<Plan> {
        let inner = &self.inner;
        let parts = inner.parts.lock().clone();
        let current = inner.core.generation.load_full();
        let environment = Environment {
            plugins: candidate.plugins,
            ..inner.environment.clone()
        };
        let loader = inner.loader(&environment);
        loader.examine(&candidate.config)?;
        let before = self.look(&current.config, &inner.environment.plugins, Some(&parts))?;
        let after = self.look(&candidate.config, &environment.plugins, None)?;
        let (old, new) = (&current.config, &candidate.config);
        let digest = generations::digest(new, &after.pins);
        let mut notes = notes(old, new);
        let stays = |name: &String| {
            old.stages.get(name).map(|it| format!("{it:?}"))
                == new.stages.get(name).map(|it| format!("{it:?}"))
                && before.pins.get(name) == after.pins.get(name)
        };
        notes.extend(
            parts
                .canaries()
                .filter(|(name, canary)| {
                    canary.status().phase == CanaryPhase::Fallen && stays(name)
                })
                .map(|(name, _)| format!("the canary `{name}` has fallen and would stay in the shadow; `millgate apply --again` lets it begin anew")),
        );
        Ok(Plan {
            generation: current.number,
            changed: digest != current.digest,
            digest: digest.to_string(),
            changes: plan::changes(before.side(old), after.side(new)),
            costs: plan::costs(old, new, &before.times, &after.times),
            notes,
        })
    }

    /// Loads a config's stages beside those that serve, and measures those that requests pass. With
    /// the parts of a generation, its own stages are measured.
    fn look(
        &self,
        config: &Config,
        plugins: &PluginSource,
        parts: Option<&Parts>,
    ) -> Result<Looked> {
        let mut looked = Looked::default();
        for (name, stage) in &config.stages {
            let failed = |why: String| Error::Stage {
                stage: name.clone(),
                why,
            };
            let passed = config
                .pipelines
                .values()
                .any(|it| it.input.contains(name) || it.output.contains(name));
            let known = parts.and_then(|parts| parts.stage(name));
            let loaded = match known {
                Some(known) => known.sandboxed().cloned(),
                None => {
                    let bytes = plugins.of_stage(stage).map_err(failed)?;
                    let scratch: Arc<dyn Services> = Arc::new(MemoryServices::default());
                    let made = self.inner.sandbox.load(&bytes, spec(name, stage), scratch);
                    Some(made.map_err(|error| failed(error.to_string()))?)
                }
            };
            let Some(loaded) = loaded else { continue };
            looked.pins.insert(name.clone(), pin(stage, &loaded));
            if passed {
                // A stage that keeps state would keep what it sees of the measurement.
                let time = match known.is_some() && stage.grant.state.is_some() {
                    true => None,
                    false => measure::micros(&loaded),
                };
                looked.times.insert(name.clone(), time);
            }
        }
        Ok(looked)
    }
}

/// A config's stages, looked at.
#[derive(Default)]
struct Looked {
    pins: BTreeMap<String, StagePin>,
    times: BTreeMap<String, Option<f64>>,
}

impl Looked {
    fn side<'a>(&'a self, config: &'a Config) -> Side<'a> {
        Side {
            config,
            pins: &self.pins,
        }
    }
}

impl Inner {
    /// What loads generations, with plugins from this environment.
    pub(crate) fn loader<'a>(&'a self, environment: &'a Environment) -> Loader<'a> {
        Loader {
            environment,
            sandbox: &self.sandbox,
            services: &self.services,
            store: &self.store,
            metrics: &self.core.metrics,
            shelf: &self.shelf,
            inputs: &self.core.inputs,
        }
    }

    /// Keeps a new generation and writes it into the audit log; durable when this returns.
    fn keep(
        &self,
        loaded: &mut Loaded,
        record: GenerationRecord,
        text: &str,
        by: &str,
    ) -> Result<()> {
        let (how, of, digest) = (record.how, record.of, record.digest);
        loaded.generation.digest = digest;
        let plugins = loaded.plugins.iter().map(|bytes| &**bytes);
        loaded.generation.number = self.generations.keep(record, text, plugins)?;
        let mut body = described(&loaded.generation);
        if let Some(body) = body.as_object_mut() {
            body.insert("how".to_owned(), how.name().into());
            body.insert("digest".to_owned(), digest.to_string().into());
            body.extend(of.map(|of| ("of".to_owned(), of.into())));
        }
        let action = match how {
            How::Rollback => "config.rolled-back",
            _ => "config.applied",
        };
        self.audit.append(by, action, "config", body)?;
        Ok(())
    }
}

/// The plugins of an earlier generation must be the very ones that it had.
fn same_plugins(loaded: Loaded, of: Option<&GenerationRecord>) -> Result<Loaded> {
    let Some(record) = of else {
        return Ok(loaded);
    };
    for (stage, now) in loaded.parts.pins(&loaded.generation.config) {
        let then = record.stages.get(&stage).map(|pin| pin.digest.as_str());
        if then != Some(now.digest.as_str()) {
            return Err(Error::Stage {
                stage,
                why: format!(
                    "generation {} had the plugin {}, and this server may only use {}; apply a config that says what you want",
                    record.number,
                    then.unwrap_or("of another stage"),
                    now.digest
                ),
            });
        }
    }
    Ok(loaded)
}

/// What an operator should know of a change that the change does not say itself.
fn notes(old: &Config, new: &Config) -> Vec<String> {
    let mut notes = Vec::new();
    if old.server.listen != new.server.listen {
        notes.push("server.listen takes effect at the next start".to_owned());
    }
    for (name, model) in &new.models {
        let same = old
            .models
            .get(name)
            .is_some_and(|known| format!("{known:?}") == format!("{model:?}"));
        if !same && model.upstream.is_none() && model.load == config::Load::Start {
            notes.push(format!(
                "model `{name}` is read before the swap; requests go on meanwhile, and both take memory"
            ));
        }
    }
    notes
}

/// The canaries that fell and do not begin anew by themselves.
fn fallen(parts: &Parts) -> impl Iterator<Item = String> {
    let fallen = parts
        .canaries()
        .filter(|(_, canary)| canary.status().phase == CanaryPhase::Fallen);
    fallen.map(|(name, _)| {
        format!(
            "the canary `{name}` has fallen and stays in the shadow, since it is the same as before; `millgate apply --again` lets it begin anew"
        )
    })
}

/// Reads texts against the plugins that there are.
struct PlainReader {
    plugins: PluginSource,
    sandbox: millgate_sandbox::Sandbox,
}

impl ConfigReader for PlainReader {
    fn file(&self) -> Result<String> {
        Err(Error::Refused(
            "this server was not started from a file: send the config's text".to_owned(),
        ))
    }

    fn read(&self, text: &str, kept: Option<KeptPlugins>) -> Result<Candidate> {
        let plugins = self.plugins.clone().with_kept(kept.unwrap_or_default());
        let checked =
            config::check_with_plugins(text, "config".as_ref(), &plugins.catalog(&self.sandbox));
        let config = checked.map_err(Error::Config)?;
        Ok(Candidate {
            text: text.to_owned(),
            config,
            plugins,
            served: None,
        })
    }

    fn write(&self, _: &str) -> Result<PathBuf> {
        Err(Error::Refused(
            "this server was not started from a file".to_owned(),
        ))
    }
}
