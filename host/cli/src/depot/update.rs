//! What bringing a lock up to date would change, worked out before anything is written.

use std::path::Path;

use anyhow::{Context, Result, bail};
use millgate_ops::{Config, Environment};
use millgate_registry::{Digest, Lock, LockedPlugin, Reference, version};
use millgate_sandbox::Sandbox;

use super::files::{lock_path, wanted_files};
use super::{Depot, wait};

/// What is wanted of an update.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Only this plugin: its name, its stage's or its reference.
    pub only: Option<String>,
    /// Take the newest versions; without it, what the config says.
    pub newest: bool,
    /// Take this tag, of the one plugin.
    pub to: Option<String>,
    /// Allow versions to go backwards.
    pub allow_downgrade: bool,
}

/// One plugin's change.
#[derive(Clone, Debug)]
pub struct Move {
    /// What the config says now.
    pub from: String,
    /// What it would say.
    pub to: String,
}

/// A change of a lock and its config.
#[derive(Debug, Default)]
pub struct Plan {
    /// The lock as it would be.
    pub lock: Lock,
    /// References that the config would say differently.
    pub moves: Vec<Move>,
    /// What the operator is shown, one line for each change.
    pub lines: Vec<String>,
    /// What stays as it is and why, where somebody may wonder.
    pub notes: Vec<String>,
    /// Whether a plugin from a registry changes: the operator is asked.
    pub ask: bool,
    /// Whether anything changes.
    pub changed: bool,
}

impl Plan {
    /// Works out a plan. Blocking: pulls what would be locked.
    pub fn of(
        config: &Config,
        path: &Path,
        environment: &Environment,
        sandbox: &Sandbox,
        wish: &Wish,
    ) -> Result<Plan> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let depot = Depot::of(config, folder, &environment.data)?;
        let old = Lock::read(&lock_path(path));
        let there = old.is_ok();
        let old = old.or_else(Lock::or_new)?;
        let mut plan = Plan {
            lock: old.clone(),
            ..Plan::default()
        };
        let mut kept = Vec::new();
        let mut found = wish.only.is_none();
        let mut seen: Vec<&str> = Vec::new();
        for (stage, text) in config
            .stages
            .iter()
            .filter_map(|(name, stage)| Some((name.as_str(), stage.reference()?)))
        {
            let reference: Reference = text.parse().with_context(|| format!("stage `{stage}`"))?;
            let source = reference.without_pin().to_string();
            let name = old.plugin(&source).map(|locked| locked.name.as_str());
            let chosen = wish.only.as_deref().is_none_or(|only| {
                only == stage || only == text || only == source || Some(only) == name
            });
            found |= chosen;
            if !chosen {
                kept.push(source);
                continue;
            }
            if seen.contains(&text) {
                continue;
            }
            seen.push(text);
            let entry = plan.reference(&depot, sandbox, &old, text, &reference, wish)?;
            kept.push(entry.source.clone());
            plan.lock.set(entry);
        }
        if let (false, Some(only)) = (found, &wish.only) {
            bail!(
                "no stage of {} has a plugin from a registry called {only:?}: give the name of the stage or of the plugin, or its reference",
                path.display()
            );
        }
        plan.lock
            .plugins
            .retain(|plugin| plugin.manifest.is_none() || kept.contains(&plugin.source));
        if wish.only.is_none() || !there {
            plan.own(config, environment, sandbox, &old)?;
        }
        plan.changed = !there || !plan.moves.is_empty() || plan.lock.text()? != old.text()?;
        Ok(plan)
    }

    /// One plugin from a registry.
    fn reference(
        &mut self,
        depot: &Depot,
        sandbox: &Sandbox,
        old: &Lock,
        text: &str,
        reference: &Reference,
        wish: &Wish,
    ) -> Result<LockedPlugin> {
        let mut target = reference.clone();
        if let Some(tag) = &wish.to {
            target = reference.with_tag(tag)?;
        } else if wish.newest && reference.digest().is_some() {
            self.notes.push(format!(
                "{text} is pinned by its digest and stays: --to VERSION moves it"
            ));
        } else if wish.newest
            && let Some(now) = reference.tag().and_then(version::of_tag)
            && let Some(newest) = wait(depot.registry()?.newest(reference))??
            && newest
                .tag()
                .and_then(version::of_tag)
                .is_some_and(|it| it > now)
        {
            target = newest;
        }
        let pulled = depot.pull(&target, sandbox)?;
        let entry = pulled.entry(&target, &depot.trust)?;
        let update = old.compare(&entry, wish.allow_downgrade)?;
        let lines = update.lines();
        self.ask |= !lines.is_empty();
        self.lines.extend(
            lines
                .into_iter()
                .map(|line| format!("{} {line}", entry.name)),
        );
        if update.from.is_none()
            && let Some(signer) = &entry.signer
        {
            self.lines.push(format!(
                "{} {} is signed by {signer}",
                entry.name, entry.version
            ));
        }
        // A config that pins goes on pinning.
        let target = match reference.digest() {
            Some(_) => target.pinned(pulled.plugin.digest),
            None => target,
        };
        if target != *reference {
            self.moves.push(Move {
                from: text.to_owned(),
                to: target.to_string(),
            });
        }
        Ok(entry)
    }

    /// What the operator has at hand: files, first-party plugins, models.
    fn own(
        &mut self,
        config: &Config,
        environment: &Environment,
        sandbox: &Sandbox,
        old: &Lock,
    ) -> Result<()> {
        let wanted = wanted_files(config, environment, sandbox)?;
        self.lock.plugins.retain(|plugin| plugin.manifest.is_some());
        for plugin in &wanted.plugins {
            let lines = old.compare(plugin, true)?.lines();
            self.lines.extend(
                lines
                    .into_iter()
                    .map(|line| format!("{} {line}", plugin.name)),
            );
            self.lock.set(plugin.clone());
        }
        self.lock.models = wanted.locked_models();
        for model in &self.lock.models {
            let known = old.models.iter().find(|known| known.name == model.name);
            match known.map(|known| known.digest) {
                Some(digest) if digest == model.digest => {}
                Some(_) => self
                    .lines
                    .push(format!("model {} is another file", model.name)),
                None => self.lines.push(format!(
                    "model {} is new ({})",
                    model.name,
                    short(&model.digest)
                )),
            }
        }
        Ok(())
    }
}

/// Enough of a digest to tell it from others.
fn short(digest: &Digest) -> String {
    digest.to_string().chars().take(19).collect()
}
