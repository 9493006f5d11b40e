//! `millgate plugin build`: one command whatever the language.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use millgate_sandbox::{PluginInfo, SECTION};
use serde_json::json;

use super::args::{BuildArgs, Language};
use super::project::Project;
use super::{shown, tools};
use crate::{folders, open};

/// What Rust plugins are built for.
const TARGET: &str = "wasm32-wasip2";
/// SIMD, because guests that search text are twice as fast with it; a stack of 256 KiB, because
/// every page of an instance's memory is looked at when it is thrown away.
const RUSTFLAGS: &str = "-C target-feature=+simd128 -C link-arg=-zstack-size=262144";

pub fn run(args: BuildArgs) -> Result<ExitCode> {
    let project = Project::open(&args.dir)?;
    let built = build(&project)?;
    if args.json {
        let report = json!({
            "path": built.path,
            "bytes": built.info.size,
            "digest": built.info.digest,
            "imports": built.info.imports,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", shown(&built.path));
        println!(
            "  {} {}, {} KiB",
            built.info.manifest.name,
            built.info.manifest.version,
            built.info.size.div_ceil(1024)
        );
        println!("  {}", built.info.digest);
    }
    Ok(ExitCode::SUCCESS)
}

/// A component on disk.
pub struct Built {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    pub info: PluginInfo,
}

/// Builds a project's component and checks it as the sandbox would.
pub fn build(project: &Project) -> Result<Built> {
    fs::create_dir_all(project.build_dir())
        .with_context(|| format!("cannot make {}", project.build_dir().display()))?;
    let mut bytes = match project.language {
        Language::Rust => rust(project)?,
        Language::Js => javascript(project)?,
        Language::Python => python(project)?,
    };
    let manifest = fs::read(project.dir.join("plugin.toml"))?;
    if !has_section(&bytes) {
        embed(&mut bytes, &manifest);
    }
    let path = project.component();
    fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    read(path)
}

/// What was built before.
pub fn built(project: &Project) -> Result<Built> {
    let path = project.component();
    if !path.exists() {
        bail!(
            "{} is not there: run `millgate plugin build` first",
            shown(&path)
        );
    }
    read(path)
}

fn read(path: PathBuf) -> Result<Built> {
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let info = open::sandbox(&folders::data(None))?.inspect(&bytes)?;
    Ok(Built { path, bytes, info })
}

fn rust(project: &Project) -> Result<Vec<u8>> {
    ensure_target()?;
    // Everything but the outcome is for the author to see as it comes.
    let output = Command::new("cargo")
        .current_dir(&project.dir)
        .args(["build", "--lib", "--release", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .env("RUSTFLAGS", RUSTFLAGS)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start `cargo`: Rust plugins are built with it; install Rust from https://rustup.rs")?;
    if !output.status.success() {
        bail!("cargo could not build the plugin; its messages stand above");
    }
    // The last .wasm file is the project's own: cargo names what it depends on first.
    let component = String::from_utf8_lossy(&output.stdout)
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| {
            let files = message.get("filenames")?.as_array()?.clone();
            files.into_iter().find_map(|file| file.as_str().filter(|file| file.ends_with(".wasm")).map(PathBuf::from))
        })
        .context("cargo made no .wasm file: [lib] in Cargo.toml must have crate-type = [\"cdylib\", \"rlib\"]")?;
    fs::read(&component).with_context(|| format!("cannot read {}", component.display()))
}

/// Installs the target where it is missing and rustup is there.
fn ensure_target() -> Result<()> {
    let installed = || -> Result<bool> {
        let output = Command::new("rustc")
            .args(["--print", "target-libdir", "--target", TARGET])
            .output()
            .context("cannot start `rustc`: Rust plugins are built with it; install Rust from https://rustup.rs")?;
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(output.status.success() && Path::new(&folder).is_dir())
    };
    if installed()? {
        return Ok(());
    }
    eprintln!("installing the Rust target {TARGET}");
    let added = Command::new("rustup")
        .args(["target", "add", TARGET])
        .status();
    if added.is_ok_and(|status| status.success()) && installed()? {
        return Ok(());
    }
    bail!("the Rust target {TARGET} is not installed; install it with `rustup target add {TARGET}`")
}

fn javascript(project: &Project) -> Result<Vec<u8>> {
    let driver = tools::javascript()?;
    let source = project.dir.join("src/plugin.js");
    let out = project.build_dir().join("component.wasm");
    tools::run(
        Command::new("node")
            .current_dir(&project.dir)
            .arg(driver)
            .arg(&source)
            .arg(world(project)?)
            .arg(&out),
        "componentize-js could not build src/plugin.js:",
    )?;
    taken(&out)
}

fn python(project: &Project) -> Result<Vec<u8>> {
    let env = tools::python()?;
    let out = project.build_dir().join("component.wasm");
    let packages = project.build_dir().join("packages");
    let requirements = project.dir.join("requirements.txt");
    let wanted = fs::read_to_string(&requirements).unwrap_or_default();
    if wanted
        .lines()
        .any(|line| !line.trim().is_empty() && !line.starts_with('#'))
    {
        tools::run(
            Command::new(env.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
                .arg(&packages)
                .arg("-r")
                .arg(&requirements),
            "pip could not install what requirements.txt names:",
        )?;
    }
    let mut command = Command::new(env.join("bin/componentize-py"));
    command
        .current_dir(&project.dir)
        .arg("-d")
        .arg(world(project)?)
        .args(["-w", "plugin", "-q", "componentize", "--stub-wasi"]);
    for folder in [".", "vendor", "vendor/glue"] {
        command.arg("-p").arg(project.dir.join(folder));
    }
    if packages.exists() {
        command.arg("-p").arg(&packages);
    }
    tools::run(
        command.arg("entry").arg("-o").arg(&out),
        "componentize-py could not build plugin.py:",
    )?;
    taken(&out)
}

fn taken(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::remove_file(path)?;
    Ok(bytes)
}

/// The contract with a world of the plugin's own: it imports what the manifest asks for and no
/// more, because these languages put all of a world into the component.
fn world(project: &Project) -> Result<PathBuf> {
    let vendored = project.dir.join("vendor/wit");
    let out = project.build_dir().join("wit");
    fs::create_dir_all(&out)?;
    let files = fs::read_dir(&vendored).with_context(|| {
        format!(
            "cannot read {}, the contract that `millgate plugin new` puts there",
            shown(&vendored)
        )
    })?;
    for file in files {
        let file = file?;
        fs::copy(file.path(), out.join(file.file_name()))?;
    }
    let mut text = String::from(
        "package millgate:stage@0.1.0;\n\nworld plugin {\n    import log;\n    import metrics;\n",
    );
    for request in &project.manifest.requests {
        text.push_str(&format!("    import {};\n", request.name()));
    }
    text.push_str("    export lifecycle;\n");
    for interface in &project.manifest.interfaces {
        text.push_str(&format!("    export {};\n", interface.name()));
    }
    text.push_str("}\n");
    fs::write(out.join("plugin.wit"), text)?;
    Ok(out)
}

/// Whether some section of the component, or of a module in it, is a manifest.
fn has_section(bytes: &[u8]) -> bool {
    bytes
        .windows(SECTION.len())
        .any(|window| window == SECTION.as_bytes())
}

/// Adds the manifest as a custom section (id 0, its size, the name's size, name and content).
fn embed(component: &mut Vec<u8>, manifest: &[u8]) {
    let mut section = Vec::new();
    leb128(&mut section, SECTION.len());
    section.extend_from_slice(SECTION.as_bytes());
    section.extend_from_slice(manifest);
    component.push(0);
    leb128(component, section.len());
    component.extend_from_slice(&section);
}

/// An unsigned number as the binary format writes it.
fn leb128(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_seven_bits_at_a_time() {
        for (value, bytes) in [
            (0usize, vec![0u8]),
            (127, vec![127]),
            (128, vec![0x80, 1]),
            (624_485, vec![0xe5, 0x8e, 0x26]),
        ] {
            let mut out = Vec::new();
            leb128(&mut out, value);
            assert_eq!(out, bytes);
        }
    }
}
