//! Golden files for the packaging, made by `oci-wasm` and `oci-client` as `wkg publish` calls them
//! (wasm-pkg-client 0.16, src/oci/publisher.rs), and a push and a pull as `wkg oci` does them.

use anyhow::{Context, Result, bail};
use oci_client::annotations::{
    ORG_OPENCONTAINERS_IMAGE_DESCRIPTION, ORG_OPENCONTAINERS_IMAGE_LICENSES,
    ORG_OPENCONTAINERS_IMAGE_TITLE, ORG_OPENCONTAINERS_IMAGE_VERSION,
};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::manifest::OciImageManifest;
use oci_client::secrets::RegistryAuth;
use oci_wasm::{ToConfig, WASM_MANIFEST_MEDIA_TYPE, WasmClient, WasmConfig};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
use wit_parser::{ManglingAndAbi, Resolve};

const WIT: &str = r#"
package acme:probe@1.2.0;

interface log {
    record level { name: string }
    write: func(level: level, text: string);
}

interface check {
    use log.{level};
    run: func(text: string) -> result<level, string>;
}

world probe {
    import log;
    import now: func() -> u64;
    export check;
    export version: func() -> string;
}
"#;

fn component() -> Result<Vec<u8>> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("probe.wit", WIT)?;
    let world = resolve.select_world(&[package], Some("probe"))?;
    let mut module = dummy_module(&resolve, world, ManglingAndAbi::Standard32);
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)?;
    ComponentEncoder::default()
        .module(&module)?
        .validate(true)
        .encode()
}

fn golden(dir: &Path) -> Result<()> {
    let component = component()?;
    std::fs::write(dir.join("component.wasm"), &component)?;
    let (mut config, mut layer) = WasmConfig::from_raw_component(component, None)?;
    config.created = "2026-01-02T03:04:05Z".parse().context("the time")?;
    layer.annotations = Some(BTreeMap::from([(
        ORG_OPENCONTAINERS_IMAGE_TITLE.to_string(),
        "probe.wasm".to_string(),
    )]));
    let annotations = BTreeMap::from(
        [
            (ORG_OPENCONTAINERS_IMAGE_VERSION, "1.2.0"),
            (ORG_OPENCONTAINERS_IMAGE_DESCRIPTION, "A probe."),
            (ORG_OPENCONTAINERS_IMAGE_LICENSES, "Apache-2.0"),
        ]
        .map(|(key, value)| (key.to_string(), value.to_string())),
    );
    let config = config.to_config()?;
    std::fs::write(dir.join("config.json"), &config.data)?;
    let mut manifest = OciImageManifest::build(&[layer], &config, Some(annotations));
    manifest.media_type = Some(WASM_MANIFEST_MEDIA_TYPE.to_string());
    let mut bytes = Vec::new();
    let formatter = olpc_cjson::CanonicalFormatter::new();
    manifest.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))?;
    std::fs::write(dir.join("manifest.json"), bytes)?;
    Ok(())
}

fn client() -> WasmClient {
    // The client wants a provider of TLS, also where it speaks none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    WasmClient::new(oci_client::Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["golden", dir] => golden(Path::new(dir)),
        ["push", reference, file] => {
            let (config, layer) = WasmConfig::from_component(file, None).await?;
            let reference = reference.parse()?;
            let auth = RegistryAuth::Anonymous;
            let pushed = client().push(&reference, &auth, layer, config, None).await?;
            println!("{}", pushed.manifest_url);
            Ok(())
        }
        ["pull", reference, file] => {
            let reference = reference.parse()?;
            let auth = RegistryAuth::Anonymous;
            client().pull_manifest_and_config(&reference, &auth).await?;
            let image = client().pull(&reference, &auth).await?;
            std::fs::write(file, &image.layers[0].data)?;
            Ok(())
        }
        _ => bail!("golden DIR, push REFERENCE FILE or pull REFERENCE FILE"),
    }
}
