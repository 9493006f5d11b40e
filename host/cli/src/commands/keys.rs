//! `millgate keys`: key pairs to sign plugins with.

use std::process::ExitCode;

use anyhow::Result;
use millgate_registry::{PublicKey, TrustConfig};
use serde_json::json;

use crate::args::KeysCommand;
use crate::{depot, folders, words};

pub fn run(command: KeysCommand) -> Result<ExitCode> {
    match command {
        KeysCommand::New(args) => {
            let keys = depot::keys(&folders::data(args.data.data));
            let key = keys.create(&args.name)?;
            let entry = keys.list()?.into_iter().find(|key| key.name == args.name);
            println!("made the key {} ({})", args.name, key.public().id());
            if let Some(entry) = entry {
                println!("public key  {}", entry.public.display());
            }
            println!(
                "Whoever trusts it adds this to millgate.toml, with the plugins that it may sign:\n\n{}",
                trust_section(
                    &args.name,
                    &key.public().pem()?,
                    &format!("{}-*", args.name)
                )
            );
        }
        KeysCommand::List(args) => {
            let keys = depot::keys(&folders::data(args.data.data)).list()?;
            if args.json {
                let all: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        json!({
                            "name": key.name, "id": key.id, "public": key.public, "secret": key.secret,
                        })
                    })
                    .collect();
                println!("{}", serde_json::to_string_pretty(&all)?);
            } else {
                let rows: Vec<Vec<String>> = keys
                    .iter()
                    .map(|key| {
                        let can = if key.secret { "signs" } else { "public only" };
                        let file = key.public.display().to_string();
                        vec![key.name.clone(), can.to_owned(), key.id.clone(), file]
                    })
                    .collect();
                print!("{}", words::table(&rows));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A `[[trust]]` section for a config.
pub fn trust_section(name: &str, pem: &str, plugins: &str) -> String {
    format!(
        "[[trust]]\nname = \"{name}\"\nkey = \"\"\"\n{}\n\"\"\"\nplugins = [\"{plugins}\"]\n",
        pem.trim_end()
    )
}

/// The id of a signer's key.
pub fn key_id(signer: &TrustConfig) -> Result<String> {
    Ok(PublicKey::parse(&signer.name, &signer.key)?.id().to_owned())
}
