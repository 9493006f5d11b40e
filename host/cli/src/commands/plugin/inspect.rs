//! `millgate plugin inspect`: what a plugin says about itself.

use std::process::ExitCode;

use anyhow::Result;
use millgate_sandbox::PluginInfo;
use serde_json::{Value, json};

use crate::args::PluginInspectArgs;
use crate::{folders, open, words};

pub fn inspect(args: PluginInspectArgs) -> Result<ExitCode> {
    let sandbox = open::sandbox(&folders::data(None))?;
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
    let info = sandbox.inspect(&super::bytes_of(plugin)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&info))?);
    } else {
        print!("{}", describe(&info));
    }
    Ok(ExitCode::SUCCESS)
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

fn describe(info: &PluginInfo) -> String {
    let manifest = &info.manifest;
    let requests: Vec<String> = manifest
        .requests
        .iter()
        .map(|request| json!(request).as_str().unwrap_or_default().to_owned())
        .collect();
    let asks = if requests.is_empty() {
        "nothing".to_owned()
    } else {
        requests.join(", ")
    };
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
