//! `millgate plugin pull`: into the data folder, if it is signed by somebody who is trusted.

use std::process::ExitCode;

use anyhow::{Context, Result};
use millgate_registry::{Reference, Trust, TrustConfig};
use serde_json::json;

use super::place::Place;
use crate::args::PluginPullArgs;
use crate::depot;

pub fn run(args: PluginPullArgs) -> Result<ExitCode> {
    let place = Place::of(args.place)?;
    let reference: Reference = args.reference.parse()?;
    let trust = match &args.key {
        None => place.depot.trust.clone(),
        Some(path) => Trust::new(&[TrustConfig {
            name: path.display().to_string(),
            key: std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the key {}", path.display()))?,
            plugins: vec!["*".to_owned()],
        }])?,
    };
    let pulled = place.depot.pull(&reference, &place.sandbox)?;
    let entry = pulled.entry(&reference, &trust)?;
    let signer = entry.signer.unwrap_or_default();
    if let Some(path) = &args.output {
        std::fs::write(path, &pulled.plugin.component)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let manifest = &pulled.info.manifest;
    let pinned = reference.pinned(pulled.plugin.digest);
    if args.json {
        let told = json!({
            "name": manifest.name,
            "version": manifest.version,
            "reference": pinned,
            "digest": pulled.plugin.digest,
            "component": pulled.plugin.component_digest,
            "signer": signer,
            "requests": manifest.requests,
        });
        println!("{}", serde_json::to_string_pretty(&told)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{} {}\nreference   {pinned}\ncomponent   {}\nsigned by   {signer}\nasks for    {}",
        manifest.name,
        manifest.version,
        pulled.plugin.component_digest,
        depot::asks(manifest)
    );
    Ok(ExitCode::SUCCESS)
}
