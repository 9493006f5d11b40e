//! `millgate bundle`: a config with everything that it needs, for a machine without a network.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use millgate_ops::Environment;
use millgate_registry::bundle::{self, Contents};
use millgate_registry::{Lock, Trust, TrustConfig};

use super::keys::key_id;
use super::plugin::{agreed, setup};
use crate::args::{BundleCommand, BundleCreateArgs, BundleLoadArgs};
use crate::depot::{self, Bundled, Depot};
use crate::{folders, open};

/// What the config and its lock are called where a bundle is loaded.
const CONFIG: &str = "millgate.toml";

pub fn run(command: BundleCommand) -> Result<ExitCode> {
    match command {
        BundleCommand::Create(args) => create(args),
        BundleCommand::Load(args) => load(&args),
    }
}

fn create(args: BundleCreateArgs) -> Result<ExitCode> {
    let setup = setup(args.place);
    let sandbox = open::sandbox(&setup.data)?;
    // As a server would start: all of it is here, verified and locked.
    let ready = setup.load_or_explain(&sandbox)?;
    ready.keep_lock(&setup);
    let text = fs::read_to_string(&setup.config)
        .with_context(|| format!("cannot read {}", setup.config.display()))?;
    let lock = Lock::read(&depot::lock_path(&setup.config)).or_else(Lock::or_new)?;
    let environment = Environment {
        plugins: ready.plugins.clone(),
        ..setup.environment()
    };
    let folder = setup.config.parent().unwrap_or(Path::new(""));
    let carried = depot::carry(&text, &ready.config, &environment, &sandbox, &lock, folder)?;
    let contents = Contents {
        config: carried.config,
        lock: carried.lock,
        files: carried.files,
    };
    let summary = bundle::create(&args.path, &depot::cache(&setup.data), &contents)?;
    println!(
        "{}: {} plugins from registries ({} signed), {} files of models and plugins, {:.1} MB\nload it with: millgate bundle load {0} DIR",
        args.path.display(),
        summary.plugins,
        summary.signed,
        summary.files,
        summary.bytes as f64 / 1e6
    );
    Ok(ExitCode::SUCCESS)
}

fn load(args: &BundleLoadArgs) -> Result<ExitCode> {
    let data = folders::data(args.data.data.clone());
    let target = args.folder.join(CONFIG);
    if target.exists() && !args.overwrite {
        bail!(
            "{} is there already: load the bundle into another folder, or say --overwrite (the signers that it trusts stay)",
            target.display()
        );
    }
    let ours = trusted_here(&target)?;
    let cache = depot::cache(&data);
    let loaded = bundle::load(&args.path, &cache)?;
    let bundled = Bundled::of(&loaded.config, &loaded.files)?;
    // The key files of a bundle were taken into its config when it was made.
    let theirs = depot::trust_sections(&bundled.config.trust, Path::new(""))?;
    let trust = together(ours, theirs, args.trust)?;
    let text = depot::with_trust(&loaded.config, &trust)?;

    let depot = Depot::trusting(Trust::new(&trust)?, &data);
    let sandbox = open::sandbox(&data)?;
    for plugin in loaded
        .lock
        .plugins
        .iter()
        .filter(|it| it.manifest.is_some())
    {
        depot.locked(plugin, &sandbox).with_context(|| {
            format!(
                "nothing was written: the plugin {} of the bundle",
                plugin.source
            )
        })?;
    }
    for (from, place) in &bundled.places {
        put(from, &args.folder.join(place))?;
    }
    fs::create_dir_all(&args.folder)
        .with_context(|| format!("cannot create {}", args.folder.display()))?;
    loaded.lock.write(&depot::lock_path(&target))?;
    // Last: what it names is there.
    depot::replace(&target, &text)?;
    println!(
        "{}: {} plugins from registries, {} files of models and plugins\nserve it with: millgate serve --locked --config {0}",
        target.display(),
        loaded.summary.plugins,
        loaded.summary.files
    );
    Ok(ExitCode::SUCCESS)
}

/// The signers of the config that is there already.
fn trusted_here(config: &Path) -> Result<Vec<TrustConfig>> {
    if !config.exists() {
        return Ok(Vec::new());
    }
    let text =
        fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let known = millgate_ops::config::check(&text, config).map_err(millgate_ops::Error::Config)?;
    depot::trust_sections(&known.trust, config.parent().unwrap_or(Path::new("")))
}

/// The machine's own signers, and those of the bundle if the operator says so: a bundle must not
/// say by itself whom this machine trusts.
fn together(
    mut ours: Vec<TrustConfig>,
    theirs: Vec<TrustConfig>,
    given: bool,
) -> Result<Vec<TrustConfig>> {
    Trust::new(&theirs)?;
    let mut new = Vec::new();
    for signer in theirs {
        let id = key_id(&signer)?;
        let mut known = false;
        for own in &ours {
            known |= key_id(own)? == id && signer.plugins.iter().all(|it| own.plugins.contains(it));
        }
        if !known {
            println!(
                "the bundle trusts {} ({id}) to sign {}",
                signer.name,
                signer.plugins.join(", ")
            );
            new.push(signer);
        }
    }
    if new.is_empty() {
        return Ok(ours);
    }
    let accepted = given
        || (std::io::IsTerminal::is_terminal(&std::io::stdin())
            && agreed("Trust these signers on this machine?")?);
    if accepted {
        ours.extend(new);
    } else {
        println!("these signers are not trusted here: say --trust if they should be");
    }
    Ok(ours)
}

/// A file of the cache at another place: the same file where the file system allows it.
fn put(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("cannot write {}", to.display());
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(failed)?;
    }
    match fs::remove_file(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(failed);
        }
        _ => {}
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(failed)?;
    }
    Ok(())
}
