//! `millgate plugin inspect`: what a plugin says about itself.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use millgate_registry::Reference;
use millgate_sandbox::PluginInfo;
use serde_json::{Value, json};

use super::place::Place;
use crate::args::PluginInspectArgs;
use crate::depot::{self, Pulled};
use crate::words;

pub fn inspect(args: PluginInspectArgs) -> Result<ExitCode> {
    let place = Place::of(args.place)?;
    let sandbox = &place.sandbox;
    let Some(plugin) = &args.plugin else {
        let infos = millgate_plugins::all()
            .iter()
            .map(|plugin| Ok(sandbox.inspect(plugin.wasm)?))
            .collect::<Result<Vec<_>>>()?;
        if args.json {
            let all: Vec<Value> = infos.iter().map(as_json).collect();
            println!("{}", serde_json::to_string_pretty(&all)?);
        } else {
            let rows: Vec<Vec<String>> = infos.iter().map(row).collect();
            print!("{}", words::table(&rows));
        }
        return Ok(ExitCode::SUCCESS);
    };
    // A file may well be called as a reference would be, and then it is the file.
    let reference = plugin.parse::<Reference>().ok();
    let reference = reference.filter(|_| !Path::new(plugin).exists());
    let (info, pulled) = match reference {
        None => (sandbox.inspect(&super::bytes_of(plugin)?)?, None),
        Some(reference) => {
            let pulled = place.depot.pull(&reference, sandbox)?;
            let signed = Signed::of(&pulled, &place);
            let pinned = reference.pinned(pulled.plugin.digest).to_string();
            (pulled.info, Some((pinned, signed)))
        }
    };
    if args.json {
        let mut told = as_json(&info);
        if let (Some((reference, signed)), Value::Object(told)) = (&pulled, &mut told) {
            told.insert("reference".to_owned(), json!(reference));
            told.insert("signer".to_owned(), json!(signed.signer));
            told.insert("keys".to_owned(), json!(signed.keys));
        }
        println!("{}", serde_json::to_string_pretty(&told)?);
    } else {
        print!("{}", describe(&info, pulled.as_ref()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Who signed a plugin from a registry. Looking at it takes no trust.
struct Signed {
    /// The signer, if it is one that the config trusts for it.
    signer: Option<String>,
    /// What else there is to say: why nobody counts.
    why: String,
    /// The ids of the keys that its signatures name.
    keys: Vec<String>,
}

impl Signed {
    fn of(pulled: &Pulled, place: &Place) -> Signed {
        let plugin = &pulled.plugin;
        let verified = plugin.verify(&pulled.info.manifest.name, &place.depot.trust);
        let signatures = plugin.signatures.iter();
        Signed {
            keys: signatures.filter_map(|it| it.key.clone()).collect(),
            why: verified
                .as_ref()
                .err()
                .map(ToString::to_string)
                .unwrap_or_default(),
            signer: verified.ok().map(|signer| signer.name.clone()),
        }
    }
}

fn interfaces(info: &PluginInfo) -> String {
    let names: Vec<&str> = info
        .interfaces
        .iter()
        .map(|interface| interface.name())
        .collect();
    names.join(", ")
}

fn row(info: &PluginInfo) -> Vec<String> {
    let manifest = &info.manifest;
    vec![
        manifest.name.clone(),
        manifest.version.clone(),
        interfaces(info),
        manifest.help.clone(),
    ]
}

fn as_json(info: &PluginInfo) -> Value {
    json!({
        "manifest": info.manifest,
        "digest": info.digest,
        "interfaces": info.interfaces,
        "imports": info.imports,
        "bytes": info.size,
    })
}

fn describe(info: &PluginInfo, pulled: Option<&(String, Signed)>) -> String {
    let manifest = &info.manifest;
    let asks = depot::asks(manifest);
    let mut text = format!(
        "{} {}   {}\n{}\n\ninterfaces  {}\nasks for    {asks}\nimports     {}\ncontract    {}\nsize        {} KiB\ndigest      {}\n",
        manifest.name,
        manifest.version,
        manifest.license,
        manifest.help,
        interfaces(info),
        if info.imports.is_empty() {
            "nothing".to_owned()
        } else {
            info.imports.join(", ")
        },
        manifest.contract,
        info.size >> 10,
        info.digest,
    );
    if let Some((reference, signed)) = pulled {
        text.push_str(&format!("reference   {reference}\n"));
        match &signed.signer {
            Some(signer) => text.push_str(&format!("signed by   {signer}\n")),
            None => text.push_str(&format!(
                "signed by   nobody who counts here: {}\n",
                signed.why
            )),
        }
    }
    let properties = manifest.config.get("properties").and_then(Value::as_object);
    if let Some(properties) = properties.filter(|properties| !properties.is_empty()) {
        text.push_str("\nconfig\n");
        for (name, schema) in properties {
            text.push_str(&format!("  {name}{}\n", kind_of(schema)));
            if let Some(about) = schema.get("description").and_then(Value::as_str) {
                text.push_str(&format!("      {about}\n"));
            }
        }
    }
    text
}

/// ` (string: "mask", "block"; default "mask")`
fn kind_of(schema: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(kind) = schema.get("type").and_then(Value::as_str) {
        parts.push(kind.to_owned());
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        parts.push(format!("one of {}", values.join(", ")));
    }
    if let Some(default) = schema.get("default") {
        parts.push(format!("default {default}"));
    }
    if parts.is_empty() {
        return String::new();
    }
    format!(" ({})", parts.join("; "))
}
