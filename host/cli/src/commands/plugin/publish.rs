//! `millgate plugin publish`: to a registry, packaged as `wkg` does it, and signed.

use std::process::ExitCode;

use anyhow::{Result, bail};
use millgate_registry::{Package, Reference, version};

use super::place::Place;
use crate::args::PluginPublishArgs;
use crate::commands::keys::trust_section;
use crate::depot;

pub fn run(args: PluginPublishArgs) -> Result<ExitCode> {
    let place = Place::of(args.place)?;
    let bytes = super::bytes_of(&args.file)?;
    let manifest = place.sandbox.inspect(&bytes)?.manifest;
    let reference: Reference = args.reference.parse()?;
    if let Some(said) = reference.tag().and_then(version::of_tag)
        && said.to_string() != manifest.version
    {
        bail!(
            "{reference}: the plugin's manifest says version {}: publish it as {}, or change the manifest",
            manifest.version,
            reference.with_tag(&manifest.version.replace('+', "_"))?
        );
    }
    // Before anything is sent: a key that cannot be used is no reason to be half published.
    let keys = depot::keys(&place.data);
    let key = args.key.as_deref().map(|name| keys.load(name));
    let key = key.transpose()?;
    let mut package = Package::new(bytes, &manifest.name, &manifest.version)?
        .description(&manifest.help)
        .licenses(args.licenses.as_deref().unwrap_or(&manifest.license));
    if let Some(source) = &args.source {
        package = package.source(source);
    }
    let registry = place.depot.registry()?;
    let published = depot::wait(async {
        let published = registry
            .publish(&reference, &package, args.overwrite)
            .await?;
        if let Some(key) = &key {
            registry
                .sign(&published.reference, &published.digest, key)
                .await?;
        }
        Ok::<_, millgate_registry::Error>(published)
    })??;
    let what = if published.unchanged {
        "is there already"
    } else {
        "is published"
    };
    println!("{} {} {what}", manifest.name, manifest.version);
    println!("  {}", published.reference);
    match &key {
        Some(key) => println!(
            "signed with the key {} ({})\n\nOperators use it with:\n\n[stages.{}]\nplugin = \"{reference}\"\n\n{}",
            key.name(),
            key.public().id(),
            manifest.name,
            trust_section(key.name(), &key.public().pem()?, &manifest.name)
        ),
        None => {
            println!("not signed: no server uses it before it is; publish it again with --key NAME")
        }
    }
    Ok(ExitCode::SUCCESS)
}
